"""Damaged, cut and cut off videos: what is lost is named, the rest is done."""

import struct

import pytest
from demo_process import FAST, run_demo
from live_helpers import ffmpeg, film, numbered_video, numbers_of, numbers_shown

from media.sources import Reading, open_source

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
def test_damaged_frame_is_named_and_the_others_are_done(tmp_path, codec, ending, frame):
    name = damaged(tmp_path / f"clip.{ending}", codec, f"eq(n,{frame})").name
    demo = run_demo("-i", name, *FAST, "--json", "-", cwd=tmp_path)
    assert demo.returncode == 1
    error = f"{name}, frame {frame}: can't be decoded"
    assert [line for line in demo.err if "error" in line or "frame" in line][:1] == [
        f"demo.py: {error}\n"
    ]
    assert f"demo.py: error: {name}: 1 of 30 frames can't be read\n" in demo.err
    records = demo.records()
    assert records.pop(frame) == {"source": name, "frame": frame, "error": error}
    others = [number for number in range(30) if number != frame]
    assert [record["frame"] for record in records] == others
    assert [record["time"] for record in records] == pytest.approx([i / 10 for i in others])
    # The video keeps its pace: the frame before is shown longer, at the start the one after.
    shown = [i if i != frame else max(i - 1, int(i == 0)) for i in range(30)]
    assert numbers_shown(tmp_path / "result.mp4", 10) == shown


def test_many_damaged_frames_in_a_row_do_not_end_the_video(tmp_path):
    path = damaged(tmp_path / "clip.avi", "mjpeg", "between(n,10,49)", frames=60)
    demo = run_demo("-i", path, *FAST, "--no-save", "--json", "-", cwd=tmp_path)
    assert demo.returncode == 1
    assert "40 of 60 frames can't be read" in demo.stderr
    good = [record["frame"] for record in demo.records() if "error" not in record]
    assert good == [*range(10), *range(50, 60)]


def test_damaged_key_frame_takes_only_the_frames_that_need_it(tmp_path):
    path = damaged(tmp_path / "clip.mkv", "h264", "eq(n,0)")
    lines = []
    with open_source(str(path), Reading(notify=lines.append)) as source:
        frames = list(source)
    assert [frame.index for frame in frames] == list(range(30))
    good = [frame.image is not None for frame in frames]
    assert good == sorted(good) and not good[0] and all(good[12:])
    assert lines == []


def test_frame_of_a_transport_stream_lost_without_a_trace_keeps_the_pace(tmp_path):
    # The reader of the stream drops what is no picture; OpenCV reports nothing.
    path = damaged(tmp_path / "clip.ts", "mpeg4", "eq(n,20)")
    demo = run_demo("-i", path, *FAST, "--json", "-", cwd=tmp_path)
    assert demo.returncode == 0 and "error" not in demo.stderr
    assert len(demo.records()) == 29
    assert numbers_shown(tmp_path / "result.mp4", 10) == [*range(20), 19, *range(21, 30)]


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
    demo = run_demo("-i", "clip.mp4", *FAST, cwd=tmp_path)
    assert demo.returncode == 0
    assert demo.err == [
        f"demo.py: clip.mp4: {len(shown)} of {stored} frames are shown; "
        "the others were cut away, or are damaged\n"
    ]
    assert numbers_of(tmp_path / "result.mp4") == shown


@pytest.mark.parametrize("ending, part", [("mp4", 0.97), ("mp4", 0.6), ("avi", 0.6), ("mkv", 0.6)])
def test_video_cut_off_is_an_error_however_little_an_mp4_lacks(tmp_path, ending, part):
    option = ("-movflags", "faststart") if ending == "mp4" else ()
    path = numbered_video(tmp_path / f"clip.{ending}", 60, *CODECS["mjpeg"], *option)
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * part)])
    demo = run_demo("-i", path.name, *FAST, cwd=tmp_path)
    assert demo.returncode == 1
    done = film(tmp_path / "result.mp4")["frames"]
    assert demo.err == [
        f"demo.py: error: clip.{ending}: ends at frame {done} of 60; is it cut off?\n"
    ]


def test_matroska_of_varying_frame_rate_is_not_taken_for_cut_off(tmp_path):
    rule = "select='lt(n,30)+not(mod(n,10))'"
    options = ("-vf", rule, "-vsync", "vfr", *CODECS["h264"])
    path = numbered_video(tmp_path / "clip.mkv", 90, *options, rate=30)
    demo = run_demo("-i", path, *FAST, "--no-save", "--json", "-", cwd=tmp_path)
    assert (demo.returncode, len(demo.records())) == (0, 36)
    assert "error" not in demo.stderr


@pytest.mark.parametrize("name, codec", [("clip.264", "h264"), ("clip.mjpeg", "mjpeg")])
def test_time_rises_where_a_file_stores_none(name, codec, tmp_path):
    path = numbered_video(tmp_path / name, 20, *CODECS[codec])
    with open_source(str(path)) as source:
        frames = list(source)
    steps = [after.time - before.time for before, after in zip(frames, frames[1:], strict=False)]
    assert steps == pytest.approx([1 / source.fps] * 19, abs=0.002)
