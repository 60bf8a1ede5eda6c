"""Inputs of public reports that are neither damaged nor rare, each with what is right."""

import io
import json
import shutil
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import ROOT
from demo_process import EXAMPLES, run_demo
from live_helpers import ffmpeg
from PIL import Image

from media.drawing import draw, draw_status
from media.frames import SourceError
from media.outputs import VideoFile
from media.pictures import decode_picture
from media.sources import open_source
from nanodet import Detections

PHOTO = (EXAMPLES / "cat.jpg").read_bytes()
CAT = Image.open(EXAMPLES / "cat.jpg").convert("RGB").resize((96, 64))
TURNED = CAT.rotate(180)
MANY = "x: contains several pictures, of which only the first is used."
# As a video has them by chance: bytes that look like the start of a JPEG's pixels.
MOTION = b"\0\0\0\x18ftypmp42" + b"\xff\xda\xff\xc2" + bytes(500)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(pixels, sample_format=1, compression=1):
    """An uncompressed TIFF of any number of channels, whatever it says."""
    height, width, channels = pixels.shape
    bits = 8 * pixels.itemsize
    tags = {256: width, 257: height, 258: bits, 259: compression, 262: 1, 273: 0, 277: channels}
    tags |= {278: height, 279: pixels.nbytes, 339: sample_format}
    start = 8 + 2 + 12 * len(tags) + 4
    after = start + 4 * channels  # 258 and 339 have a value for each channel
    lists = struct.pack(f"<{channels}H", *[bits] * channels)
    lists += struct.pack(f"<{channels}H", *[sample_format] * channels)
    entries = b""
    for tag, value in tags.items():
        if tag in (258, 339) and channels > 2:
            place = start + 2 * channels * (tag == 339)
            entries += struct.pack("<HHII", tag, 3, channels, place)
        else:
            entries += struct.pack("<HHII", tag, 4, 1, after if tag == 273 else value)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    return head + entries + bytes(4) + lists + pixels.tobytes()


def decoded(data):
    return decode_picture(np.frombuffer(data, np.uint8), "x")


@pytest.mark.parametrize(
    "data, flaw",
    [
        pytest.param(PHOTO + MOTION, "", id="motion photo"),
        pytest.param(saved(CAT, "MPO", save_all=True, append_images=[CAT]), "", id="stereo"),
        pytest.param(saved(CAT.convert("CMYK"), "JPEG"), "", id="CMYK"),
        pytest.param(saved(CAT.convert("P"), "PNG", transparency=3), "", id="palette"),
        pytest.param(saved(CAT, "TIFF", save_all=True, append_images=[TURNED]), MANY, id="pages"),
        pytest.param(saved(CAT, "PNG", save_all=True, append_images=[TURNED]), MANY, id="APNG"),
    ],
)
def test_picture_is_read_with_a_word_on_what_is_left_out(data, flaw):
    image, said = decoded(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[..., ::-1]
    assert np.abs(image.astype(int) - expected).mean() < 3
    assert said == flaw


def test_cut_off_motion_photo_is_still_named():
    _, flaw = decoded(PHOTO[: len(PHOTO) // 2])
    assert "is cut off" in flaw


def test_animated_webp_is_read_or_named():
    data = saved(CAT, "WEBP", save_all=True, append_images=[TURNED], lossless=True)
    if hasattr(cv2, "imdecodeanimation"):
        assert decoded(data)[1] == MANY
    else:
        with pytest.raises(SourceError, match="is an animated WebP, which OpenCV 4.* Convert it"):
            decoded(data)


def test_smaller_copy_in_a_tiff_is_no_further_picture():
    pages = bytearray(saved(CAT, "TIFF", save_all=True, append_images=[CAT.resize((48, 32))]))
    (first,) = struct.unpack_from("<I", pages, 4)
    (entries,) = struct.unpack_from("<H", pages, first)
    (second,) = struct.unpack_from("<I", pages, first + 2 + 12 * entries)
    struct.pack_into("<HHII", pages, second + 2, 254, 4, 1, 1)  # in place of its width
    (count,) = struct.unpack_from("<H", pages, second)
    struct.pack_into("<HHII", pages, second + 2 + 12 * (count - 1), 256, 4, 1, 48)
    assert decoded(bytes(pages))[1] == ""


def encoded(ending, image):
    return cv2.imencode(ending, image)[1].tobytes()


GREY = np.full((8, 8, 3), 0.5, np.float32)


@pytest.mark.parametrize(
    "data, says",
    [
        (tiff(np.zeros((8, 8, 5), np.uint8)), "is a TIFF of 5 channels of 8 bits. Convert it"),
        (tiff(np.zeros((8, 8, 3), np.uint32)), "is a TIFF of 3 channels of 32 bits. Convert it"),
        (tiff(np.zeros((8, 8, 3), np.int16), 2), "is a TIFF of signed numbers. Convert it"),
        (tiff(np.zeros((8, 8, 3), np.uint8), 1, 50000), "a compression that OpenCV does not read"),
        (encoded(".pfm", GREY), "has floating-point pixels. Convert it to 8 bits"),
    ],
    ids=["5 channels", "32 bits", "signed", "Zstandard", "PFM"],
)
def test_picture_that_opencv_can_not_read_is_not_called_damaged(data, says):
    with pytest.raises(SourceError, match=says):
        decoded(data)


def test_picture_of_14_bits_is_read_and_called_dark():
    pixels = np.asarray(CAT, np.uint16) * 64
    image, flaw = decoded(encoded(".png", pixels))
    np.testing.assert_array_equal(image, pixels >> 8)
    assert "is dark: it has 16 bits a channel but uses only 14" in flaw


@pytest.mark.parametrize("name", ["clip.jpg", "clip.PNG"])
def test_video_with_the_ending_of_a_picture_is_played(name, tmp_path):
    shutil.copy(EXAMPLES / "street.mp4", tmp_path / name)
    with open_source(str(tmp_path / name)) as source:
        assert source.kind == "video"
        assert len(list(source)) == 24


@pytest.mark.parametrize("name", ["camera.mjpeg", "camera.MJPG"])
def test_jpegs_one_after_the_other_are_played(name, tmp_path):
    frames = [encoded(".jpg", np.full((64, 96, 3), 40 * i, np.uint8)) for i in range(5)]
    (tmp_path / name).write_bytes(b"".join(frames))
    with open_source(str(tmp_path / name)) as source:
        played = list(source)
    means = [frame.image.mean() for frame in played]
    np.testing.assert_allclose(means, [0, 40, 80, 120, 160], atol=2)
    times = [frame.time for frame in played]
    assert times[0] == 0 and times == sorted(set(times)) and times[-1] < 1


def test_video_whose_name_has_a_colon_is_played(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLES / "street.mp4", "12:30.mp4")
    with open_source("12:30.mp4") as source:
        assert (source.name, len(list(source))) == ("12:30.mp4", 24)
        assert source.even_rate() == 10


def test_song_with_a_cover_is_one_frame_and_no_error(tmp_path):
    cv2.imwrite(str(tmp_path / "cover.jpg"), np.full((64, 96, 3), 90, np.uint8))
    tone = ("-f", "lavfi", "-i", "sine=duration=1", "-i", tmp_path / "cover.jpg", "-map", 0)
    ffmpeg(*tone, "-map", 1, "-c:v", "copy", "-disposition:v", "attached_pic", tmp_path / "x.mp3")
    process = run_demo("-i", "x.mp3", "--no-save", "-q", "--size", "64", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")


def test_video_of_a_codec_that_opencv_lacks_is_named(tmp_path):
    options = ("-frames:v", 3, "-c:v", "libaom-av1", "-cpu-used", 8, "-usage", "realtime")
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x64", *options, tmp_path / "x.mp4")
    process = run_demo("-i", "x.mp4", "--no-save", cwd=tmp_path)
    assert process.returncode in (0, 2)  # an OpenCV that has the codec plays it
    if process.returncode:
        assert "x.mp4: is AV1, which this OpenCV can't decode." in process.stderr


def test_demo_runs_where_python_drops_docstrings(tmp_path):
    command = [sys.executable, "-OO", ROOT / "demo.py", "--version"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).stderr == b""


def test_folder_takes_mpo_and_counts_linked_folders(tmp_path):
    photos, others = tmp_path / "photos", tmp_path / "others"
    photos.mkdir(), others.mkdir()
    (photos / "a.MPO").write_bytes(PHOTO)
    (others / "b.jpg").write_bytes(PHOTO)
    (photos / "more").symlink_to(others, target_is_directory=True)
    with open_source(str(photos)) as source:
        assert [frame.source for frame in source] == [str(photos / "a.MPO")]
        assert source.left_out == "left out: 1 linked folder"


def test_video_gets_a_name_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    video = VideoFile("2024-05-01T12:30.mp4", 10)
    video.add(np.zeros((64, 96, 3), np.uint8))
    assert video.close() == "2024-05-01T12:30.mp4, 1 frames"
    assert [path.name for path in tmp_path.iterdir()] == ["2024-05-01T12:30.mp4"]


@pytest.mark.parametrize(
    "view",
    [cv2.Mat, np.asfortranarray, lambda a: np.broadcast_to(a[:1, :1], a.shape), lambda a: a[::-1]],
    ids=["cv2.Mat", "Fortran order", "read-only", "negative strides"],
)
def test_any_array_of_the_right_shape_can_be_drawn_on(view):
    image = np.full((64, 96, 3), 90, np.uint8)
    found = Detections([[10, 10, 50, 50]], [0.5], [0])
    np.testing.assert_array_equal(draw(view(image), found, ["cat"]), draw(image, found, ["cat"]))
    np.testing.assert_array_equal(draw_status(view(image), "5 FPS"), draw_status(image, "5 FPS"))


def test_warning_of_a_picture_stands_in_its_json(tmp_path):
    CAT.save(tmp_path / "x", "TIFF", save_all=True, append_images=[TURNED])
    process = run_demo("-i", "x", "--no-save", "--json", "-", "-q", "--size", "64", cwd=tmp_path)
    assert process.returncode == 0
    assert json.loads(process.stdout)["warning"] == MANY
    assert process.stderr == f"demo.py: {MANY}\n"
