"""Videos whose pictures change their size or form on the way: each picture is as it was stored."""

import os
import subprocess
import tempfile

import numpy as np
import pytest
from live_helpers import ffmpeg, number_of, numbered_video
from source_helpers import images, indices, read, times

from media.frames import SourceError
from media.sources import open_source

SIZES = [(64, 48), (96, 80), (48, 64)]
CODECS = {
    "h264.ts": ("-c:v", "libx264", "-qp", "8", "-pix_fmt", "yuv420p"),
    "hevc.ts": ("-c:v", "libx265", "-x265-params", "log-level=none", "-pix_fmt", "yuv420p"),
    "mjpeg.avi": ("-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p"),
    "vp8.webm": ("-c:v", "libvpx", "-deadline", "realtime", "-b:v", "2M"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-deadline", "realtime", "-cpu-used", "8", "-b:v", "2M"),
}


def joined(path, parts):
    """Join videos as they are, one after the other."""
    listed = path.with_suffix(".txt")
    listed.write_text("".join(f"file '{part}'\n" for part in parts))
    ffmpeg("-f", "concat", "-safe", 0, "-i", listed, "-c", "copy", path)
    return path


def changing(path, codec, sizes=SIZES, frames=12, rate=25):
    """A video of so many numbered frames of each size; the numbers begin anew at each change."""
    part = path.suffix if path.suffix in (".ts", ".webm") else ".nut"
    parts = [path.with_name(f"{i}{part}") for i in range(len(sizes))]
    for name, size in zip(parts, sizes, strict=True):
        numbered_video(name, frames, *codec, size=size, rate=rate)
    return joined(path, parts)


def times_stored(path):
    """Seconds of all frames of a video from its first, by ffprobe."""
    command = ["ffprobe", "-v", "error", "-show_entries", "packet=pts_time", "-of", "csv=p=0", path]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds = sorted(float(line.strip(",")) for line in listed.split())
    return [each - seconds[0] for each in seconds]


MPEG_2 = ("-c:v", "mpeg2video", "-q:v", "2", "-sc_threshold", "1000000000")


@pytest.mark.parametrize("name", CODECS)
def test_each_picture_has_its_own_size_and_content(tmp_path, name):
    frames, told, fault = read(changing(tmp_path / name, CODECS[name]))
    assert [image.shape[1::-1] for image in images(frames)] == [s for s in SIZES for _ in range(12)]
    assert [number_of(image) for image in images(frames)] == [*range(12)] * 3
    assert (indices(frames), told, fault) == (list(range(36)), [], "")
    assert times(frames) == pytest.approx(times_stored(tmp_path / name), abs=0.002)


def test_last_picture_that_a_decoder_loses_is_none_of_the_next_size(tmp_path):
    frames, told, fault = read(changing(tmp_path / "clip.ts", MPEG_2, SIZES[:2]))
    shown = [(image.shape[1::-1], number_of(image)) for image in images(frames)]
    assert shown == [(SIZES[0], i) for i in range(11)] + [(SIZES[1], i) for i in range(12)]
    assert (told, fault) == ([], "")


def test_packets_that_are_shown_in_no_frame_do_not_move_the_change(tmp_path):
    # Of VP8 with frames to refer to, which a film has more and more of.
    parts = [tmp_path / "0.webm", tmp_path / "1.webm"]
    for path, size in zip(parts, ("96x80", "64x48"), strict=True):
        source = ("-f", "lavfi", "-i", f"testsrc2=s={size}:r=25", "-frames:v", 60)
        codec = ("-c:v", "libvpx", "-auto-alt-ref", 1, "-lag-in-frames", 25, "-cpu-used", 5)
        for number in (1, 2):  # they need two passes
            passes = ("-pass", number, "-passlogfile", tmp_path / "log")
            ffmpeg(*source, *codec, *passes, path)
    path = joined(tmp_path / "clip.webm", parts)
    assert len(times_stored(path)) > 120
    frames, *_ = read(path)
    assert [image.shape[1] for image in images(frames)] == [96] * 60 + [64] * 60
    assert times(frames) == pytest.approx([i / 25 for i in range(120)], abs=0.02)


def test_colours_may_change_their_form(tmp_path):
    # As trail cameras do; OpenCV would read beyond the planes of the second picture.
    parts = [tmp_path / "0.mjpeg", tmp_path / "1.mjpeg"]
    for path, form in zip(parts, ("yuvj422p", "yuvj420p"), strict=True):
        ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:r=25", "-frames:v", 3,
               "-q:v", 2, "-pix_fmt", form, path)  # fmt: skip
    frames, *_ = read(joined(tmp_path / "clip.avi", parts))
    wanted = []
    for path in parts:
        wanted += images(read(path)[0])
    for frame, image in zip(frames, wanted, strict=True):
        np.testing.assert_array_equal(frame.image, image)


def test_pictures_that_grow_beyond_64_million_pixels_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("media.videos.LARGEST_FRAME", 64 * 48)
    path = changing(tmp_path / "clip.ts", MPEG_2, SIZES[:2])
    with pytest.raises(SourceError) as caught:
        read(path)
    assert str(caught.value) == f"{path}, frame 12: a frame has more than {64 * 48} pixels."


def test_what_follows_a_change_is_removed_at_the_end(tmp_path, monkeypatch):
    path = changing(tmp_path / "clip.ts", MPEG_2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    with open_source(str(path)) as source:
        frames = iter(source)
        next(frames)
        assert os.listdir(tmp_path / "kept")
        assert list(frames)
        (_,) = tmp_path.glob("kept/*/*")  # what was read before is gone already
    assert os.listdir(tmp_path / "kept") == []


@pytest.mark.parametrize("what", ["media.packets.Changes.write", "tempfile.TemporaryDirectory"])
def test_no_room_for_what_follows_a_change_is_named(tmp_path, monkeypatch, what):
    path = changing(tmp_path / "clip.ts", MPEG_2)

    def write(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(what, write)
    with pytest.raises(SourceError, match="can't be written: No space left on device"):
        read(path)


def test_other_parameters_of_the_same_size_change_nothing(tmp_path):
    parts = [tmp_path / "0.ts", tmp_path / "1.ts"]
    for path, rate in zip(parts, (10, 25), strict=True):  # which the parameters tell
        numbered_video(path, 12, *CODECS["h264.ts"], rate=rate)
    frames, told, fault = read(joined(tmp_path / "clip.ts", parts))
    assert [number_of(image) for image in images(frames)] == [*range(12)] * 2
    assert (told, fault) == ([], "")


def test_pixel_aspect_is_that_of_the_part(tmp_path):
    parts = [tmp_path / "0.ts", tmp_path / "1.ts"]
    for path, aspect in zip(parts, ("1", "4/3"), strict=True):
        numbered_video(path, 12, "-vf", f"setsar={aspect}", *MPEG_2, rate=25)
    frames, *_ = read(joined(tmp_path / "clip.ts", parts))
    assert (frames[0].pixel_aspect, frames[-1].pixel_aspect) == (1, pytest.approx(4 / 3))


def test_a_damaged_frame_does_not_move_the_change(tmp_path):
    whole = changing(tmp_path / "whole.avi", CODECS["mjpeg.avi"], SIZES[:2])
    ffmpeg("-i", whole, "-c", "copy", "-bsf:v", "noise=amount='eq(n,5)'", tmp_path / "clip.avi")
    frames, _, fault = read(tmp_path / "clip.avi")
    assert indices(frames, good=False) == [5]
    shapes = [frame.image.shape[1::-1] for frame in frames if frame.image is not None]
    assert shapes == [SIZES[0]] * 11 + [SIZES[1]] * 12
    assert fault.endswith("1 of 24 frames can't be read")
