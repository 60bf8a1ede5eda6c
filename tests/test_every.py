"""`--every N`: each N-th frame of a video, at its own time and with its own number."""

import numpy as np
import pytest
from demo_process import CAT, EXAMPLES, FAST, refusal, run_demo
from live_helpers import ffmpeg, film, numbered_video, numbers_of, numbers_shown
from source_helpers import images, indices, read, times

from media.sources import Reading, open_source

MOTION_JPEG = ("-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p")
H264 = ("-c:v", "libx264", "-qp", "8", "-pix_fmt", "yuv420p")


@pytest.mark.parametrize("name", ["out.mp4", "out.avi"])
def test_each_third_frame_is_taken_and_the_video_keeps_the_pace(tmp_path, name):
    numbered_video(tmp_path / "in.mp4", 31)
    arguments = ("--every", 3, "-o", name, "--json", "-")
    demo = run_demo("-i", "in.mp4", *FAST, *arguments, cwd=tmp_path)
    assert demo.returncode == 0
    taken = list(range(0, 31, 3))
    assert [record["frame"] for record in demo.records()] == taken
    times = [record["time"] for record in demo.records()]
    assert times == pytest.approx([number / 10 for number in taken])
    assert numbers_of(tmp_path / name) == taken
    # Where each frame is shown as long as any other, the last is too.
    seconds = {"out.mp4": 3.1, "out.avi": 11 * 0.3}[name]
    assert film(tmp_path / name)["seconds"] == pytest.approx(seconds, rel=1e-3)


def test_frames_taken_of_a_real_video_are_those_without_the_flag(tmp_path, shared):
    ffmpeg("-i", shared / "video" / "vtest.avi", "-frames:v", 21, "-c", "copy", tmp_path / "in.avi")
    every, _, _ = read(tmp_path / "in.avi", every=5)
    each, _, _ = read(tmp_path / "in.avi")
    assert indices(every) == [0, 5, 10, 15, 20]
    assert times(every) == times(each)[::5]
    assert all(map(np.array_equal, images(every), images(each)[::5]))


def test_each_second_frame_at_variable_frame_rate_is_shown_at_its_time(tmp_path):
    rule = "setpts='round(if(lt(N,20),N,20+(N-20)*5)*0.1/TB)'"
    numbered_video(tmp_path / "in.mp4", 30, "-vf", rule, "-vsync", "vfr", *H264)
    assert run_demo("-i", "in.mp4", *FAST, "--every", 2, cwd=tmp_path).returncode == 0
    shown = numbers_shown(tmp_path / "result.mp4", 5)
    assert shown[:10] == list(range(0, 20, 2))
    assert shown[10:31:5] == [20, 22, 24, 26, 28]


def test_length_counts_the_frames_that_are_taken(tmp_path):
    path = numbered_video(tmp_path / "in.mp4", 10)
    for every, length in ((1, 10), (3, 4), (5, 2), (10, 1), (99, 1)):
        with open_source(str(path), Reading(every=every)) as source:
            assert source.length == length == len(list(source))


def test_damaged_frames_are_counted_only_if_they_were_to_be_taken(tmp_path):
    numbered_video(tmp_path / "whole.avi", 30, *MOTION_JPEG)
    noise = "noise=amount='eq(n,10)+eq(n,17)'"
    ffmpeg("-i", tmp_path / "whole.avi", "-c", "copy", "-bsf:v", noise, tmp_path / "in.avi")
    frames, _, fault = read(tmp_path / "in.avi", every=5)
    assert [frame.index for frame in frames] == [0, 5, 10, 15, 20, 25]
    assert indices(frames, good=False) == [10]
    assert fault.endswith(": 1 of 6 frames can't be read")


def test_video_cut_off_names_the_frame_of_the_file(tmp_path):
    path = numbered_video(tmp_path / "in.mp4", 60, *MOTION_JPEG, "-movflags", "faststart")
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * 0.6)])
    fault = read(path, every=4)[2]
    assert fault == read(path)[2]
    assert "of 60; is it cut off?" in fault


def test_it_is_for_the_videos_among_several_inputs(tmp_path):
    numbered_video(tmp_path / "in.mp4", 10)
    frames, _, fault = read([CAT, tmp_path / "in.mp4"], every=4)
    assert (indices(frames), fault) == ([0, 0, 4, 8], "")


@pytest.mark.parametrize("value", [CAT, EXAMPLES])
def test_pictures_are_refused(tmp_path, value):
    demo = run_demo("-i", value, "--every", 2, cwd=tmp_path)
    assert refusal(demo) == f"{value}: --every 2 is for videos, cameras and streams."
