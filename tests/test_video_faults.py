"""Damaged, cut and cut off videos: what is lost is named, the rest is done."""

import struct

import pytest
from demo_process import FAST, run_demo
from live_helpers import ffmpeg, number_of, numbered_video, numbers_shown
from source_helpers import indices, read, times

CODECS = {
    "mjpeg": ("-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p"),
    "mpeg4": ("-c:v", "mpeg4", "-q:v", "2", "-g", "1", "-pix_fmt", "yuv420p"),
    # Decoded in another order than shown, so a failure shows some frames before its place.
    "h264": ("-c:v", "libx264", "-qp", "8", "-g", "12", "-pix_fmt", "yuv420p"),
}


def damaged(path, codec, which, frames=30):
    """A numbered video, the data of some packets (an expression of n) replaced by noise."""
    whole = numbered_video(path.with_stem("whole"), frames, *CODECS[codec], size=(320, 240))
    ffmpeg("-i", whole, "-c", "copy", "-bsf:v", f"noise=amount='{which}'", path)
    whole.unlink()
    return path


@pytest.mark.parametrize(
    "codec, ending, frame",
    [
        ("mjpeg", "avi", 0),
        ("mjpeg", "mkv", 20),
        ("mjpeg", "avi", 29),
        ("mpeg4", "mp4", 0),
        ("mpeg4", "avi", 20),
        ("mpeg4", "mkv", 29),
        ("h264", "mp4", 20),
        ("h264", "mkv", 20),
        ("h264", "mp4", 29),
        ("h264", "ts", 29),
    ],
)
def test_damaged_frame_is_named_and_the_others_are_read(tmp_path, codec, ending, frame):
    path = damaged(tmp_path / f"clip.{ending}", codec, f"eq(n,{frame})")
    frames, told, fault = read(path)
    assert [each.index for each in frames] == list(range(30))
    assert [each.error for each in frames if each.error] == [
        f"{path}, frame {frame}: can't be decoded"
    ]
    assert indices(frames, good=False) == [frame]
    assert [number_of(each.image) for each in frames if not each.error] == indices(frames)
    assert times(frames) == pytest.approx([i / 10 for i in range(30)])
    assert told == []
    assert fault == f"{path}: 1 of 30 frames can't be read"


@pytest.mark.parametrize(
    "codec, ending, frame", [("mjpeg", "avi", 0), ("h264", "mp4", 20), ("h264", "ts", 29)]
)
def test_damaged_frame_costs_the_result_neither_pace_nor_other_frames(
    tmp_path, codec, ending, frame
):
    name = damaged(tmp_path / f"clip.{ending}", codec, f"eq(n,{frame})").name
    demo = run_demo("-i", name, *FAST, "--json", "-", cwd=tmp_path)
    assert demo.returncode == 1
    error = f"{name}, frame {frame}: can't be decoded"
    assert [line for line in demo.err if line.startswith("demo.py: ")] == [
        f"demo.py: {error}\n",
        f"demo.py: error: {name}: 1 of 30 frames can't be read\n",
    ]
    assert demo.records()[frame] == {"source": name, "frame": frame, "error": error}
    # The frame before is shown longer, at the start the one after.
    shown = [i if i != frame else max(i - 1, int(i == 0)) for i in range(30)]
    assert numbers_shown(tmp_path / "result.mp4", 10) == shown


def test_many_damaged_frames_in_a_row_do_not_end_the_video(tmp_path):
    path = damaged(tmp_path / "clip.avi", "mjpeg", "between(n,10,49)", frames=60)
    frames, _, fault = read(path)
    assert indices(frames) == [*range(10), *range(50, 60)]
    assert fault == f"{path}: 40 of 60 frames can't be read"


def test_damaged_key_frame_takes_only_the_frames_that_need_it(tmp_path):
    path = damaged(tmp_path / "clip.mkv", "h264", "eq(n,0)")
    frames, told, _ = read(path)
    assert [frame.index for frame in frames] == list(range(30))
    good = [frame.image is not None for frame in frames]
    assert good == sorted(good) and not good[0] and all(good[12:])
    assert told == []


def test_frame_of_a_transport_stream_lost_without_a_trace_keeps_the_pace(tmp_path):
    # The reader of the stream drops what is no picture; OpenCV reports nothing.
    path = damaged(tmp_path / "clip.ts", "mpeg4", "eq(n,20)")
    frames, told, fault = read(path)
    assert (indices(frames), told, fault) == (list(range(29)), [], "")
    assert times(frames) == pytest.approx([i / 10 for i in range(30) if i != 20])


def hide_beginning(folder):
    whole = numbered_video(folder / "whole.mp4", 60, *CODECS["h264"])
    ffmpeg("-ss", "1.37", "-i", whole, "-c", "copy", folder / "clip.mp4")
    return 51, list(range(60))[-46:]  # from the key frame before


def hide_end(folder):
    data = bytearray(numbered_video(folder / "clip.mp4", 60, *CODECS["mpeg4"]).read_bytes())
    duration = data.index(b"elst") + 12  # ISO/IEC 14496-12, 8.6.6, in milliseconds
    data[duration : duration + 4] = struct.pack(">I", 4000)
    (folder / "clip.mp4").write_bytes(data)
    return 60, list(range(40))


def damage_last(folder):
    damaged(folder / "clip.mp4", "mjpeg", "eq(n,59)", frames=60)
    return 60, list(range(59))


@pytest.mark.parametrize("make", [hide_beginning, hide_end, damage_last])
def test_frames_missing_from_a_whole_mp4_are_a_warning(tmp_path, make):
    # An edit list hides them, or the last one is damaged: OpenCV does not tell which.
    stored, shown = make(tmp_path)
    frames, told, fault = read(tmp_path / "clip.mp4")
    assert told == [
        f"{tmp_path}/clip.mp4: {len(shown)} of {stored} frames are shown; "
        "the others were cut away, or are damaged"
    ]
    assert [number_of(frame.image) for frame in frames] == shown
    assert fault == ""


@pytest.mark.parametrize("ending, part", [("mp4", 0.97), ("mp4", 0.6), ("avi", 0.6), ("mkv", 0.6)])
def test_video_cut_off_is_an_error_however_little_an_mp4_lacks(tmp_path, ending, part):
    option = ("-movflags", "faststart") if ending == "mp4" else ()
    path = numbered_video(tmp_path / f"clip.{ending}", 60, *CODECS["mjpeg"], *option)
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * part)])
    frames, told, fault = read(path)
    assert part * 60 - 9 < len(frames) < 60
    assert told == []
    assert fault == f"{path}: ends at frame {len(frames)} of 60; is it cut off?"


def test_matroska_of_varying_frame_rate_is_not_taken_for_cut_off(tmp_path):
    rule = "select='lt(n,30)+not(mod(n,10))'"
    options = ("-vf", rule, "-vsync", "vfr", *CODECS["h264"])
    path = numbered_video(tmp_path / "clip.mkv", 90, *options, rate=30)
    frames, told, fault = read(path)
    assert (len(frames), told, fault) == (36, [], "")


@pytest.mark.parametrize("name, codec", [("clip.264", "h264"), ("clip.mjpeg", "mjpeg")])
def test_time_rises_where_a_file_stores_none(name, codec, tmp_path):
    frames, _, _ = read(numbered_video(tmp_path / name, 20, *CODECS[codec]))
    assert times(frames) == pytest.approx([i / 25 for i in range(20)], abs=0.002)
