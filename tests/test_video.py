"""Video in, video out: as many frames of the same size in the same order, whatever happens."""

import collections
import os
import shutil
import struct

import cv2
import numpy as np
import pytest
from demo_process import CAT, FAST, STREET, error_of, refusal, run_demo
from fault_helpers import broken
from live_helpers import (
    ffmpeg,
    film,
    images_of,
    number_of,
    numbered_video,
    numbers_of,
    small_disk,
    temporary_files,
)
from source_helpers import indices, read, times

from media.sources import open_source


@pytest.fixture
def clip(tmp_path):
    """A video of 12 numbered frames."""
    return numbered_video(tmp_path / "clip.mp4", 12)


@pytest.fixture
def street(tmp_path):
    """A video of people and cars, 5 frames of 768x576."""
    path = tmp_path / "street.avi"
    ffmpeg("-loop", 1, "-i", STREET, "-frames:v", 5, "-r", 10, "-c:v", "mjpeg", "-q:v", 2, path)
    return path


@pytest.mark.parametrize("rate", ["10", "30000/1001"])
def test_result_has_the_size_rate_count_and_order_of_the_input(tmp_path, rate):
    numbered_video(tmp_path / "in.mp4", 40, rate=rate)
    demo = run_demo("-i", "in.mp4", *FAST, cwd=tmp_path)
    assert (demo.returncode, demo.err) == (0, [])
    assert numbers_of(tmp_path / "result.mp4") == list(range(40))
    given, made = film(tmp_path / "in.mp4"), film(tmp_path / "result.mp4")
    assert made["frames"] == 40
    assert made["size"] == (64, 48)
    assert made["rate"] == pytest.approx(given["rate"], rel=1e-3)
    assert made["seconds"] == pytest.approx(given["seconds"], rel=0.01)


def test_frames_of_a_real_video_come_out_one_by_one(tmp_path, shared):
    ffmpeg("-i", shared / "video" / "vtest.avi", "-frames:v", 15, "-c", "copy", tmp_path / "in.avi")
    demo = run_demo("-i", "in.avi", *FAST, cwd=tmp_path)
    assert demo.returncode == 0
    made = film(tmp_path / "result.mp4")
    assert (made["frames"], made["size"], made["rate"]) == (15, (768, 576), 10)
    given, got = images_of(tmp_path / "in.avi"), images_of(tmp_path / "result.mp4")
    for i in (0, 7, 14):  # each is closest to its own original
        differences = [cv2.norm(got[i], image, cv2.NORM_L1) for image in given]
        assert np.argmin(differences) == i


def test_objects_are_drawn_into_the_video(tmp_path, street):
    demo = run_demo("-i", street, "--json", "-", cwd=tmp_path)
    assert demo.returncode == 0
    given, got = images_of(street)[2], images_of(tmp_path / "result.mp4")[2]
    changed = cv2.absdiff(given, got).max(axis=2) > 60
    found = demo.records()[2]["detections"]
    assert found
    for each in found[:5]:
        left, top, _, bottom = (max(0, round(value)) for value in each["xyxy"])
        assert changed[top:bottom, left : left + 2].mean() > 0.3
    assert changed.mean() < 0.2


def test_frames_of_a_video_share_the_places_of_its_labels(tmp_path, clip, monkeypatch):
    shutil.copy(clip, tmp_path / "other.mp4")
    places = []

    def draw(image, *_, memory, **__):
        places.append(memory)
        return image

    monkeypatch.setattr("cli.network.draw", draw)
    arguments = (clip, "other.mp4", "--threads", 1, *FAST)  # one takes them in order
    assert run_demo(*arguments, cwd=tmp_path).returncode == 0
    assert [place is places[0] for place in places] == [True] * 12 + [False] * 12
    assert all(place is places[12] for place in places[12:])


# (horizontal, vertical) of what the stored right and down become, in the order of the file.
MATRICES = {
    "turned by 90": (0, 1, -1, 0),
    "turned by 180": (-1, 0, 0, -1),
    "turned by 270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "mirrored upside down": (1, 0, 0, -1),
    "mirrored, turned by 90": (0, 1, 1, 0),
    "mirrored, turned by 270": (0, -1, -1, 0),
}


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("version", [0, 1])
def test_phone_video_comes_upright(tmp_path, matrix, version):
    # Upside-down, lying or mirrored pictures with a note of how to turn them, as phones store them.
    path = tmp_path / "clip.mp4"
    # One corner is white, so that each way of turning and mirroring is different.
    source = "color=black:size=64x48:rate=10,drawbox=0:0:24:16:white:fill"
    ffmpeg("-f", "lavfi", "-i", source, "-frames:v", 6, "-pix_fmt", "yuv420p", path)
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 for value in matrix)
    start = data.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(with_long_times(data) if version else data)

    frames = read(path)[0]
    assert len(frames) == 6
    # The white corner is where ffmpeg, which turns too, puts it.
    ffmpeg("-i", path, "-frames:v", 1, tmp_path / "upright.png")
    upright = cv2.imread(str(tmp_path / "upright.png"))
    assert upright.shape[1::-1] == ((48, 64) if matrix[0] == 0 else (64, 48))
    assert cv2.norm(frames[0].image, upright, cv2.NORM_INF) < 80
    assert upright.min() < 20 and upright.max() > 235


def with_long_times(data):
    """An MP4 whose track header has its times in 64 bits, as version 1 of the box."""
    place = data.index(b"tkhd") + 4
    for name in (b"moov", b"trak", b"tkhd"):
        size = data.index(name) - 4
        data[size : size + 4] = (int.from_bytes(data[size : size + 4], "big") + 12).to_bytes(
            4, "big"
        )
    made, changed, track, reserved, duration = struct.unpack(">5I", data[place + 4 : place + 24])
    times = struct.pack(">QQIIQ", made, changed, track, reserved, duration)
    data[place : place + 24] = b"\1" + data[place + 1 : place + 4] + times
    return data


def test_each_frame_has_its_own_time_at_variable_frame_rate(tmp_path):
    rule = "setpts='round(if(lt(N,10),N,2*N-10)*0.1/TB)'"
    codec = ("-c:v", "libx264", "-qp", "8", "-pix_fmt", "yuv420p")
    path = numbered_video(tmp_path / "uneven.mp4", 20, "-vf", rule, "-vsync", "vfr", *codec)
    frames, told, fault = read(path)
    assert (indices(frames), told, fault) == (list(range(20)), [], "")
    each = [i * 0.1 if i < 10 else 1 + (i - 10) * 0.2 for i in range(20)]
    assert times(frames) == pytest.approx(each, abs=1e-3)


def two_tracks(path, first, second):
    """A file with the videos of two others; the first is that which OpenCV takes."""
    ffmpeg("-i", first, "-i", second, "-map", "0:v", "-map", "1:v", "-c", "copy", path)
    return path


def test_film_behind_its_cover_is_played(tmp_path, clip):
    # Of files as some programs for music and films make them.
    cover = tmp_path / "cover.mkv"
    ffmpeg("-i", STREET, "-c:v", "mjpeg", cover)
    path = two_tracks(tmp_path / "in.mkv", cover, clip)
    frames, told, fault = read(path)
    assert [number_of(frame.image) for frame in frames] == list(range(12))
    assert times(frames) == pytest.approx([i / 10 for i in range(12)], abs=0.002)
    assert (told, fault) == ([], "")
    with open_source(str(path)) as source:
        assert (source.length, source.even_rate()) == (12, 10)


def test_second_camera_of_a_file_is_told(tmp_path, clip):
    # A recording of two cameras; the second has the higher bit rate.
    other = tmp_path / "other.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=320x240:r=10:d=2", other)
    path = two_tracks(tmp_path / "in.mp4", clip, other)
    frames, told, fault = read(path)
    assert [number_of(frame.image) for frame in frames] == list(range(12))
    assert told == [f"{path}: contains several videos, of which only the first is looked at"]
    assert fault == ""


def test_no_save_writes_no_video(tmp_path, clip):
    demo = run_demo("-i", clip, *FAST, "--no-save", "--json", "-", cwd=tmp_path)
    assert (demo.returncode, len(demo.records())) == (0, 12)
    assert os.listdir(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.mov", "a.webm"])
def test_output_names_the_video(tmp_path, clip, name):
    (tmp_path / "out").mkdir()
    demo = run_demo("-i", clip, *FAST, "-o", f"out/{name}", cwd=tmp_path)
    assert demo.returncode == 0
    assert demo.out[-1] == f"saved out/{name}, 12 frames\n"
    assert film(tmp_path / "out" / name)["frames"] == 12
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4", "out"]


LOOK = broken("""
read = videos.Video.__iter__
def read_and_look(self):
    for frame in read(self):
        if frame.index == 40:  # at most some frames behind it, the result grows
            print(*sorted(os.listdir()), open("result.mp4").read(), sep="\\n", file=sys.stderr)
        yield frame
videos.Video.__iter__ = read_and_look
""")


def test_earlier_result_is_replaced_only_when_the_new_one_is_whole(tmp_path):
    numbered_video(tmp_path / "long.mp4", 60)
    (tmp_path / "result.mp4").write_text("an earlier one")
    demo = run_demo("-i", "long.mp4", *FAST, cwd=tmp_path, script=LOOK)
    assert demo.returncode == 0
    *names, earlier = map(str.rstrip, demo.err)
    (part,) = set(names) - {"long.mp4", "result.mp4"}
    assert "partial" in part and part.endswith(".mp4")
    assert earlier == "an earlier one"
    assert film(tmp_path / "result.mp4")["frames"] == 60
    assert temporary_files(tmp_path) == []


def test_odd_side_gains_one_pixel_and_loses_none(tmp_path):
    size = (97, 65)
    numbered_video(tmp_path / "odd.mkv", 4, "-c:v", "ffv1", "-pix_fmt", "bgr0", size=size)
    demo = run_demo("-i", "odd.mkv", *FAST, "--json", "-", cwd=tmp_path)
    assert demo.returncode == 0
    assert {(r["width"], r["height"]) for r in demo.records()} == {size}
    even = tuple(side + side % 2 for side in size)
    made = film(tmp_path / "result.mp4")
    assert (made["frames"], made["size"]) == (4, even)
    assert numbers_of(tmp_path / "result.mp4") == list(range(4))
    last = images_of(tmp_path / "result.mp4")[3]
    assert abs(int(last[-1, -1, 0]) - int(last[-9, -9, 0])) < 8  # no black edge


def test_gif_is_played(tmp_path):
    path = numbered_video(tmp_path / "moving.gif", 8, "-pix_fmt", "gray")
    with open_source(str(path)) as source:
        assert (source.kind, source.length, source.even_rate()) == ("video", 8, 10)
        assert [number_of(frame.image) for frame in source] == list(range(8))


def test_cut_off_video_gives_what_it_holds_and_says_how_far(tmp_path):
    codec = ("-c:v", "libx264", "-g", "5", "-qp", "8", "-pix_fmt", "yuv420p")
    whole = numbered_video(tmp_path / "whole.mp4", 40, *codec, "-movflags", "faststart")
    cut = tmp_path / "cut.mp4"
    data = whole.read_bytes()
    start = data.index(b"mdat")
    cut.write_bytes(data[: start + (len(data) - start) * 6 // 10])
    demo = run_demo("-i", "cut.mp4", *FAST, "--json", "-", cwd=tmp_path)
    assert demo.returncode == 1
    done = len(demo.records())
    assert 10 < done < 36
    assert f"frame {done} of 40" in demo.stderr
    assert demo.stderr.count("error:") == 1 and "cut.mp4" in demo.stderr
    assert numbers_of(tmp_path / "result.mp4")[: done - 3] == list(range(done - 3))
    assert film(tmp_path / "result.mp4")["frames"] == done
    assert temporary_files(tmp_path) == []


@pytest.fixture
def noise(tmp_path):
    """A video that can't be compressed: 120 frames, each over 25 kB in the result."""
    path = tmp_path / "noise.mp4"
    source = "color=gray:size=320x240:rate=25,noise=alls=90:allf=t"
    codec = ("-c:v", "mpeg4", "-q:v", "4", "-pix_fmt", "yuv420p")
    ffmpeg("-f", "lavfi", "-i", source, "-frames:v", 120, *codec, path)
    return path


def check_ended_early(demo, result, said):
    assert demo.returncode == 1
    kinds = collections.Counter("error:" in line for line in demo.err)
    assert kinds == {True: 1, False: 1}, demo.stderr
    (error,) = (line for line in demo.err if "error:" in line)
    assert said in error and result.name in error
    made = film(result)
    assert 3 < made["frames"] < 120
    assert f"stopped after {made['frames']} of 120 frames" in demo.stderr
    assert temporary_files(result.parent) == []


def test_full_disk_leaves_a_video_of_what_was_done(tmp_path, noise):
    with small_disk(tmp_path / "disk", "3m") as disk:
        demo = run_demo("-i", noise, *FAST, cwd=disk)
        check_ended_early(demo, disk / "result.mp4", "the disk is full")


def test_limit_of_file_size_leaves_a_video_of_what_was_done(tmp_path, noise):
    resource = pytest.importorskip("resource", reason="Windows has no such limit")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))

    demo = run_demo("-i", noise, *FAST, cwd=tmp_path, preexec=limit)
    check_ended_early(demo, tmp_path / "result.mp4", "3000000 bytes")
    assert (tmp_path / "result.mp4").stat().st_size < 3_000_000


def test_full_disk_under_json_leaves_whole_lines_and_the_video(tmp_path):
    numbered_video(tmp_path / "clip.mp4", 30)
    with small_disk(tmp_path / "disk", "1m") as disk:
        (disk / "ballast").write_bytes(bytes(1024 * 1024 - 4096))
        args = ("-o", tmp_path / "out.mp4", "--json", disk / "found.jsonl")
        demo = run_demo("-i", tmp_path / "clip.mp4", *FAST, *args, cwd=tmp_path)
    assert demo.returncode == 1
    assert "found.jsonl" in demo.stderr and "Traceback" not in demo.stderr
    done = film(tmp_path / "out.mp4")["frames"]
    assert 3 < done < 30
    assert f"stopped after {done} of 30" in demo.stderr


@pytest.fixture(scope="module")
def minute(tmp_path_factory):
    """A video of a minute, 5 frames a second, each with its number."""
    path = tmp_path_factory.mktemp("minute") / "minute.mp4"
    return numbered_video(path, 300, rate=5)


@pytest.mark.parametrize(
    ("flags", "first", "number", "seconds"),
    [
        ("--start 50", 250, 50, 10),
        ("--duration 4", 0, 20, 4),
        ("--start 10.2 --duration 0.8", 51, 4, 0.8),
        ("--start 50 --duration 99", 250, 50, 10),
        ("--start 10 --duration 4 --every 15", 60, 1, 2),  # from second 12 on
    ],
)
def test_part_of_a_video_keeps_its_numbers_and_times(
    minute, tmp_path, flags, first, number, seconds
):
    demo = run_demo("-i", minute, *flags.split(), *FAST, "--json", "-", cwd=tmp_path)
    frames = "1 frame" if number == 1 else f"{number} frames"
    assert (demo.returncode, demo.err[-1:]) == (0, [f"saved result.mp4, {frames}\n"])
    records = demo.records()
    assert (records[0]["frame"], len(records)) == (first, number)
    assert records[0]["time"] == pytest.approx(first / 5, abs=0.002)
    assert numbers_of(tmp_path / "result.mp4")[0] == first
    assert film(tmp_path / "result.mp4")["seconds"] == pytest.approx(seconds, abs=0.001)


def test_start_beyond_the_end_is_refused_with_where_that_is(minute, tmp_path):
    demo = run_demo("-i", minute, "--start", "60", "--no-save", *FAST, cwd=tmp_path)
    assert demo.returncode == 2
    assert error_of(demo).endswith("minute.mp4: ends at 59.8 s. Give a smaller --start.")


@pytest.mark.parametrize("flag", ["--start", "--duration"])
def test_only_a_video_has_a_start_and_a_duration(tmp_path, flag):
    said = refusal(run_demo("-i", CAT, flag, "5", cwd=tmp_path))
    assert said.endswith("cat.jpg: only a video has a start and a duration to choose.")
