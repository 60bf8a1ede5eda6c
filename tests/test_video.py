"""Video in, video out: as many frames of the same size in the same order, whatever happens."""

import collections
import json
import os
import signal
import subprocess

import cv2
import numpy as np
import pytest
from live_helpers import (
    CI,
    ROOT,
    Demo,
    ffmpeg,
    film,
    images_of,
    numbered_video,
    numbers_of,
    run_demo,
    temporary_files,
)

FAST = ("--size", "64", "--confidence", "1")  # finds nothing: frames stay as they are


def one_line(demo):
    """The single line of stderr."""
    assert len(demo.err) == 1, demo.errors
    return demo.err[0]


@pytest.fixture
def clip(tmp_path):
    """A video of 12 numbered frames."""
    return numbered_video(tmp_path / "clip.mp4", 12)


@pytest.fixture
def street(tmp_path):
    """A video of people and cars, 5 frames of 768x576."""
    path = tmp_path / "street.avi"
    picture = ROOT / "example_inputs" / "street.jpg"
    ffmpeg("-loop", 1, "-i", picture, "-frames:v", 5, "-r", 10, "-c:v", "mjpeg", "-q:v", 2, path)
    return path


@pytest.mark.parametrize("rate", ["10", "25", "30000/1001"])
def test_result_has_the_size_rate_count_and_order_of_the_input(tmp_path, rate):
    numbered_video(tmp_path / "in.mp4", 40, rate=rate)
    demo, code = run_demo("-i", "in.mp4", *FAST, cwd=tmp_path)
    assert (code, demo.err) == (0, [])
    assert numbers_of(tmp_path / "result.mp4") == list(range(40))
    given, made = film(tmp_path / "in.mp4"), film(tmp_path / "result.mp4")
    assert made["frames"] == 40
    assert made["size"] == (64, 48)
    assert made["rate"] == pytest.approx(given["rate"], rel=1e-3)
    assert made["seconds"] == pytest.approx(given["seconds"], rel=0.01)


def test_frames_of_a_real_video_come_out_one_by_one(tmp_path, shared):
    ffmpeg("-i", shared / "video" / "vtest.avi", "-frames:v", 15, "-c", "copy", tmp_path / "in.avi")
    _, code = run_demo("-i", "in.avi", *FAST, cwd=tmp_path)
    assert code == 0
    made = film(tmp_path / "result.mp4")
    assert (made["frames"], made["size"], made["rate"]) == (15, (768, 576), 10)
    given, got = images_of(tmp_path / "in.avi"), images_of(tmp_path / "result.mp4")
    for i in (0, 7, 14):  # each is closest to its own original
        differences = [cv2.norm(got[i], image, cv2.NORM_L1) for image in given]
        assert np.argmin(differences) == i


def test_objects_are_drawn_into_the_video(tmp_path, street):
    demo, code = run_demo("-i", street, "--json", "-", cwd=tmp_path)
    assert code == 0
    given, got = images_of(street)[2], images_of(tmp_path / "result.mp4")[2]
    changed = cv2.absdiff(given, got).max(axis=2) > 60
    found = demo.records()[2]["detections"]
    assert len(found) > 5
    for each in found[:5]:
        left, top, _, bottom = (max(0, round(value)) for value in each["xyxy"])
        assert changed[top:bottom, left : left + 2].mean() > 0.3
    assert changed.mean() < 0.2


@pytest.mark.parametrize("angle, turned", [(90, (48, 64)), (180, (64, 48)), (270, (48, 64))])
def test_phone_video_comes_upright(tmp_path, clip, angle, turned):
    # Upside-down or lying pictures with a note of how to turn them, as phones store them.
    top_white = tmp_path / "top.mp4"
    source = "color=black:size=64x48:rate=10,drawbox=0:0:64:16:white:fill"
    ffmpeg("-f", "lavfi", "-i", source, "-frames:v", 6, "-pix_fmt", "yuv420p", top_white)
    data = bytearray(top_white.read_bytes())
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[angle]
    matrix = [cosine << 16, sine << 16, 0, -sine << 16, cosine << 16, 0, 0, 0, 1 << 30]
    start = data.index(b"tkhd") + 44  # ISO/IEC 14496-12, 8.3.2
    data[start : start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    top_white.write_bytes(data)

    demo, code = run_demo("-i", top_white, *FAST, "--json", "-", cwd=tmp_path)
    assert code == 0
    made = film(tmp_path / "result.mp4")
    assert (made["frames"], made["size"]) == (6, turned)
    first = demo.records()[0]
    assert (first["width"], first["height"]) == turned
    # The white edge is where ffmpeg, which turns too, puts it.
    ffmpeg("-i", top_white, "-frames:v", 1, tmp_path / "upright.png")
    upright = cv2.imread(str(tmp_path / "upright.png"))
    assert upright.shape[1::-1] == turned
    assert cv2.norm(images_of(tmp_path / "result.mp4")[0], upright, cv2.NORM_INF) < 80
    assert upright.min() < 20 and upright.max() > 235


@pytest.fixture
def uneven(tmp_path):
    """A video of 10 frames a second, then 10 of 5 a second; and the frames' times."""
    path = tmp_path / "uneven.mp4"
    rule = "setpts='round(if(lt(N,10),N,2*N-10)*0.1/TB)'"
    numbered_video(
        path, 20, "-vf", rule, "-vsync", "vfr", "-c:v", "libx264", "-qp", "8", "-pix_fmt", "yuv420p"
    )
    return path, [i * 0.1 if i < 10 else 1 + (i - 10) * 0.2 for i in range(20)]


def test_variable_frame_rate_keeps_every_frame_and_the_length(tmp_path, uneven):
    path, times = uneven
    _, code = run_demo("-i", path, *FAST, cwd=tmp_path)
    assert code == 0
    assert numbers_of(tmp_path / "result.mp4") == list(range(20))
    assert film(tmp_path / "result.mp4")["seconds"] == pytest.approx(times[-1], abs=0.35)


def test_json_tells_each_frame_s_own_time_at_variable_frame_rate(tmp_path, uneven):
    path, times = uneven
    demo, _ = run_demo("-i", path, *FAST, "--no-save", "--json", "-", cwd=tmp_path)
    assert [record["time"] for record in demo.records()] == pytest.approx(times, abs=1e-3)


def test_json_gives_index_time_and_size_of_each_frame(tmp_path, clip):
    demo, code = run_demo("-i", "clip.mp4", *FAST, "--json", "found.jsonl", cwd=tmp_path)
    assert code == 0
    lines = (tmp_path / "found.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["frame"] for record in records] == list(range(12))
    assert [record["time"] for record in records] == pytest.approx([i / 10 for i in range(12)])
    assert {(r["source"], r["width"], r["height"]) for r in records} == {("clip.mp4", 64, 48)}
    assert film(tmp_path / "result.mp4")["frames"] == 12


def test_classes_leaves_out_the_others(tmp_path, street):
    demo, code = run_demo("-i", street, "--no-save", "--json", "-", cwd=tmp_path)
    alone, _ = run_demo("-i", street, "--no-save", "--json", "-", "--classes", "car", cwd=tmp_path)
    cars = [
        [found for found in record["detections"] if found["label"] == "car"]
        for record in demo.records()
    ]
    assert [record["detections"] for record in alone.records()] == cars
    assert all(cars)


def test_no_save_writes_no_video(tmp_path, clip):
    demo, code = run_demo("-i", clip, *FAST, "--no-save", "--json", "-", cwd=tmp_path)
    assert (code, len(demo.records())) == (0, 12)
    assert os.listdir(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize("name", ["found.mp4", "found.avi", "found.mkv", "found.mov"])
def test_output_names_the_video(tmp_path, clip, name):
    (tmp_path / "out").mkdir()
    demo, code = run_demo("-i", clip, *FAST, "-o", f"out/{name}", cwd=tmp_path)
    assert code == 0
    assert demo.out[-1] == f"saved out/{name}, 12 frames\n"
    assert film(tmp_path / "out" / name)["frames"] == 12
    assert sorted(os.listdir(tmp_path)) == ["clip.mp4", "out"]


def test_output_may_be_a_folder(tmp_path, clip):
    (tmp_path / "out").mkdir()
    assert run_demo("-i", clip, *FAST, "-o", "out", cwd=tmp_path)[1] == 0
    assert os.listdir(tmp_path / "out") == ["result.mp4"]


@pytest.mark.parametrize(
    "output, said",
    [("missing/x.mp4", "Make it first"), ("found.gif", ".mp4"), ("clip.mp4", "is in use")],
)
def test_output_that_can_not_be_is_refused_in_one_line(tmp_path, clip, output, said):
    before = clip.read_bytes()
    demo, code = run_demo("-i", clip, *FAST, "-o", output, cwd=tmp_path)
    assert code in (1, 2)
    assert output in one_line(demo) and said in one_line(demo)
    assert clip.read_bytes() == before
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_earlier_result_is_replaced_only_when_the_new_one_is_whole(tmp_path):
    numbered_video(tmp_path / "long.mp4", 60)
    (tmp_path / "result.mp4").write_text("an earlier one")
    with Demo("-i", "long.mp4", "--size", "256", "--json", "-", cwd=tmp_path) as demo:
        demo.wait_lines(2)  # told before it is written, so one frame is
        demo.send(signal.SIGSTOP)
        names = os.listdir(tmp_path)
        assert (tmp_path / "result.mp4").read_text() == "an earlier one"
        (part,) = set(names) - {"long.mp4", "result.mp4"}
        assert "partial" in part and part.endswith(".mp4")
        demo.send(signal.SIGCONT)
        assert demo.finish() == 0
    assert film(tmp_path / "result.mp4")["frames"] == 60
    assert temporary_files(tmp_path) == []


def test_one_frame_is_a_video(tmp_path):
    numbered_video(tmp_path / "one.mp4", 1)
    demo, code = run_demo("-i", "one.mp4", *FAST, "--json", "-", cwd=tmp_path)
    assert (code, len(demo.records())) == (0, 1)
    assert film(tmp_path / "result.mp4")["frames"] == 1


@pytest.mark.parametrize("size", [(641, 479), (640, 479), (641, 480)])
def test_odd_side_gains_one_pixel_and_loses_none(tmp_path, size):
    numbered_video(tmp_path / "odd.mkv", 4, "-c:v", "ffv1", "-pix_fmt", "bgr0", size=size)
    demo, code = run_demo("-i", "odd.mkv", *FAST, "--json", "-", cwd=tmp_path)
    assert code == 0
    assert {(r["width"], r["height"]) for r in demo.records()} == {size}
    even = tuple(side + side % 2 for side in size)
    made = film(tmp_path / "result.mp4")
    assert (made["frames"], made["size"]) == (4, even)
    assert numbers_of(tmp_path / "result.mp4") == list(range(4))
    last = images_of(tmp_path / "result.mp4")[3]
    assert abs(int(last[-1, -1, 0]) - int(last[-9, -9, 0])) < 8  # no black edge


def test_gif_is_played(tmp_path):
    numbered_video(tmp_path / "moving.gif", 8, "-pix_fmt", "gray")
    demo, code = run_demo("-i", "moving.gif", *FAST, "--json", "-", cwd=tmp_path)
    assert (code, len(demo.records())) == (0, 8), demo.errors
    made = film(tmp_path / "result.mp4")
    assert (made["frames"], made["size"]) == (8, (64, 48))
    assert made["rate"] == pytest.approx(10)
    assert numbers_of(tmp_path / "result.mp4") == list(range(8))


def test_video_without_the_ending_of_one_is_known_by_its_content(tmp_path, clip):
    clip.rename(tmp_path / "clip")
    assert run_demo("-i", "clip", *FAST, cwd=tmp_path)[1] == 0
    assert film(tmp_path / "result.mp4")["frames"] == 12


def test_cut_off_video_gives_what_it_holds_and_says_how_far(tmp_path):
    codec = ("-c:v", "libx264", "-g", "5", "-qp", "8", "-pix_fmt", "yuv420p")
    whole = numbered_video(tmp_path / "whole.mp4", 40, *codec, "-movflags", "faststart")
    cut = tmp_path / "cut.mp4"
    data = whole.read_bytes()
    start = data.index(b"mdat")
    cut.write_bytes(data[: start + (len(data) - start) * 6 // 10])
    demo, code = run_demo("-i", "cut.mp4", *FAST, "--json", "-", cwd=tmp_path)
    assert code == 1
    done = len(demo.records())
    assert 10 < done < 36
    assert f"frame {done} of 40" in demo.errors
    assert demo.errors.count("error:") == 1 and "cut.mp4" in demo.errors
    assert numbers_of(tmp_path / "result.mp4")[: done - 3] == list(range(done - 3))
    assert film(tmp_path / "result.mp4")["frames"] == done
    assert temporary_files(tmp_path) == []


def make_zero_frames(path):
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x48", "-t", 0, path)


def make_sound(path):
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", path)


def make_garbage(path):
    path.write_bytes(np.random.default_rng(0).bytes(20_000))


def make_empty(path):
    path.write_bytes(b"")


def make_beginning(path):
    numbered_video(path, 12)  # its index is at the end
    path.write_bytes(path.read_bytes()[:1500])


@pytest.mark.parametrize(
    "make", [make_zero_frames, make_sound, make_garbage, make_empty, make_beginning]
)
def test_file_without_pictures_is_named_in_one_line_and_exits_2(tmp_path, make):
    make(tmp_path / "bad.mp4")
    demo, code = run_demo("-i", "bad.mp4", cwd=tmp_path)
    assert code == 2
    assert one_line(demo).startswith("demo.py: error: bad.mp4: ")
    assert demo.out == []
    assert os.listdir(tmp_path) == ["bad.mp4"]


@pytest.fixture
def noise(tmp_path):
    """A video that can't be compressed: 120 frames, each over 100 kB in the result."""
    path = tmp_path / "noise.mp4"
    source = "color=gray:size=640x480:rate=25,noise=alls=90:allf=t"
    codec = ("-c:v", "mpeg4", "-q:v", "4", "-pix_fmt", "yuv420p")
    ffmpeg("-f", "lavfi", "-i", source, "-frames:v", 120, *codec, path)
    return path


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
        trouble = done.stderr if done.returncode else ""
    except OSError as error:
        trouble = str(error)
    if trouble:
        reason = f"a small disk can't be mounted: {trouble.strip()}"
        pytest.fail(reason) if CI and os.geteuid() == 0 else pytest.skip(reason)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def check_ended_early(demo, code, result, said):
    assert code == 1
    kinds = collections.Counter("error:" in line for line in demo.err)
    assert kinds == {True: 1, False: 1}, demo.errors
    (error,) = (line for line in demo.err if "error:" in line)
    assert said in error and result.name in error
    made = film(result)
    assert 3 < made["frames"] < 120
    assert f"stopped after {made['frames']} of 120 frames" in demo.errors
    assert temporary_files(result.parent) == []


def test_full_disk_leaves_a_video_of_what_was_done(small_disk, noise):
    demo, code = run_demo("-i", noise, *FAST, cwd=small_disk)
    check_ended_early(demo, code, small_disk / "result.mp4", "the disk is full")


@pytest.mark.parametrize("name", ["result.mp4", "result.avi", "result.mkv"])
def test_limit_of_file_size_leaves_a_video_of_what_was_done(tmp_path, noise, name):
    resource = pytest.importorskip("resource", reason="Windows has no such limit")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, 6_000_000))

    demo, code = run_demo("-i", noise, *FAST, "-o", name, cwd=tmp_path, preexec=limit)
    check_ended_early(demo, code, tmp_path / name, "6000000 bytes")
    assert (tmp_path / name).stat().st_size < 6_000_000


def test_full_disk_under_json_leaves_whole_lines_and_the_video(small_disk, tmp_path):
    numbered_video(tmp_path / "clip.mp4", 30)
    (small_disk / "ballast").write_bytes(bytes(6 * 1024 * 1024 - 4096))
    demo, code = run_demo(
        "-i", tmp_path / "clip.mp4", *FAST, "-o", tmp_path / "out.mp4",
        "--json", small_disk / "found.jsonl", cwd=tmp_path,
    )  # fmt: skip
    assert code == 1
    assert "found.jsonl" in demo.errors and "Traceback" not in demo.errors
    done = film(tmp_path / "out.mp4")["frames"]
    assert 3 < done < 30
    assert f"stopped after {done} of 30" in demo.errors


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder_is_named_before_the_work(tmp_path, clip):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    demo, code = run_demo("-i", clip, *FAST, cwd=folder)
    assert code in (1, 2)
    assert "result.mp4" in one_line(demo)


def test_changing_size_inside_a_video_keeps_the_first_size(tmp_path):
    small, large = tmp_path / "a.ts", tmp_path / "b.ts"
    codec = ("-c:v", "mpeg2video", "-q:v", "2", "-pix_fmt", "yuv420p", "-f", "mpegts")
    numbered_video(small, 6, *codec, rate=25)
    numbered_video(large, 6, *codec, size=(128, 96), rate=25)
    (tmp_path / "both.ts").write_bytes(small.read_bytes() + large.read_bytes())
    demo, code = run_demo("-i", "both.ts", *FAST, "--json", "-", cwd=tmp_path)
    assert "Traceback" not in demo.errors
    made = film(tmp_path / "result.mp4")
    assert made["size"] == (64, 48)
    assert made["frames"] == len(demo.records())
