"""Large JPEGs: decoded smaller where nobody looks at them, with boxes in the whole's pixels."""

import io
import itertools
import math

import cv2
import numpy as np
import pytest
import reference
from conftest import make_network
from demo_process import STREET, run_demo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from cli.network import BUNDLED, NetworkOptions, in_whole
from media.pictures import decode_for
from nanodet import Detections, NanoDet


def jpeg(image, *options):
    return np.frombuffer(cv2.imencode(".jpg", image, options)[1].tobytes(), np.uint8)


def turned(image, orientation):
    """A JPEG with a note of how the camera was held."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image[..., ::-1]).save(file, "JPEG", exif=exif, quality=95)
    return np.frombuffer(file.getvalue(), np.uint8)


def enlarged(size):
    return cv2.resize(cv2.imread(str(STREET)), size, interpolation=cv2.INTER_CUBIC)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 160), st.booleans())
def test_sides_stay_long_enough_and_no_longer_than_needed(width, height, enough, both):
    data = jpeg(np.zeros((height, width, 3), np.uint8))
    image, flaw, whole = decode_for((enough, enough if both else 0), data, "x")
    measure = min if both else max

    def sides(times):
        return math.ceil(height / times), math.ceil(width / times)

    times = next((n for n in (8, 4, 2) if measure(sides(n)) >= enough), 1)
    assert image.shape[:2] == sides(times) and flaw == ""
    assert whole == (None if times == 1 else (width, height))


@pytest.mark.parametrize("size", [(401, 299), (299, 401), (403, 401), (408, 408)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_picture_is_upright_and_boxes_return_to_their_place(size, orientation):
    image = np.zeros((*size[::-1], 3), np.uint8)
    image[40:120, 48:200] = 255
    data = turned(image, orientation)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("L"))
    small, _, whole = decode_for((50, 0), data, "x")
    assert whole == upright.shape[1::-1]
    assert max(small.shape) == 51

    def box(grey):
        ys, xs = np.nonzero(grey > 127)
        return [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]

    found = in_whole(Detections([box(small[..., 0])], [1], [0]), small, whole)
    pixel = max(size) / max(small.shape)
    np.testing.assert_allclose(found.xyxy, [box(upright)], atol=pixel)
    everything = Detections([[0, 0, *small.shape[1::-1]]], [1], [0])
    assert in_whole(everything, small, whole).xyxy.tolist() == [[0, 0, *whole]]


def test_cut_off_picture_is_named_and_grey_where_it_ends():
    data = jpeg(enlarged((1600, 1200)))
    image, flaw, whole = decode_for((200, 0), data[: len(data) // 2], "x")
    assert (image.shape, whole) == ((150, 200, 3), (1600, 1200))
    assert (image[-20:] == 128).all() and not (image[:40] == 128).all()
    assert flaw == "x: is cut off; what is missing of it is grey."


def test_thumbnail_in_the_file_is_not_its_size():
    data, small = jpeg(enlarged((800, 600))), jpeg(np.zeros((16, 16, 3), np.uint8)).tobytes()
    note = b"\xff\xe1" + (2 + len(small)).to_bytes(2, "big") + small
    data = np.frombuffer(data[:2].tobytes() + note + data[2:].tobytes(), np.uint8)
    image, _, whole = decode_for((200, 0), data, "x")
    assert (image.shape, whole) == ((150, 200, 3), (800, 600))


@pytest.mark.parametrize(
    "options", [[cv2.IMWRITE_JPEG_PROGRESSIVE, 1], [cv2.IMWRITE_JPEG_QUALITY, 9]]
)
def test_every_kind_of_jpeg_is_decoded_smaller(options):
    image, _, whole = decode_for((100, 0), jpeg(enlarged((800, 600)), *options), "x")
    assert (image.shape, whole) == ((75, 100, 3), (800, 600))
    expected = cv2.resize(enlarged((800, 600)), (100, 75), interpolation=cv2.INTER_AREA)
    assert np.abs(image.astype(int) - expected).mean() < 12


def test_other_formats_stay_whole():
    data = cv2.imencode(".png", enlarged((800, 600)))[1].ravel()
    image, _, whole = decode_for((100, 0), data, "x")
    assert (image.shape, whole) == ((600, 800, 3), None)


@pytest.mark.parametrize("limit", ["1000", "1KB"])
def test_picture_of_too_many_pixels_is_refused_as_ever(limit, monkeypatch):
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", limit)  # OpenCV has read another already
    image, _, whole = decode_for((16, 0), jpeg(np.zeros((200, 300, 3), np.uint8)), "x")
    assert (image.shape, whole) == ((200, 300, 3), None)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"augment": True},
        {"augment": True, "rect": True, "input_size": (640, 384)},
        {"keep_ratio": False},
    ],
)
def test_enough_is_twice_the_largest_canvas(settings):
    options = NetworkOptions(BUNDLED, None, None, settings)
    network = options.load()
    longest = max(max(canvas) for canvas, *_ in network._looks)
    stretched = settings.get("keep_ratio") is False
    assert options.enough(network) == (2 * longest, 2 * longest if stretched else 0)


def test_demo_finds_in_a_large_photo_what_is_there_in_its_pixels(tmp_path):
    photo = enlarged((4001, 3003))
    cv2.imwrite(str(tmp_path / "a.jpg"), photo)
    looked, detect = [], NanoDet.detect

    def note(network, image):
        looked.append(image.shape[1::-1])
        return detect(network, image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NanoDet, "detect", note)
        unseen = run_demo("-i", "a.jpg", "--no-save", "--json", "f", cwd=tmp_path)
        seen = run_demo("-i", "a.jpg", "-o", "b.png", "--json", "g", cwd=tmp_path)
    assert (unseen.returncode, seen.returncode) == (0, 0)
    assert looked == [(1001, 751), (4001, 3003)]
    assert "a.jpg: 4001x3003, " in unseen.stdout
    assert cv2.imread(str(tmp_path / "b.png")).shape == photo.shape
    expected = reference.rows_of(NanoDet(BUNDLED).detect(photo))
    (record,) = run_demo("-i", "a.jpg", "--no-save", "--json", "-", cwd=tmp_path).records()
    assert (record["width"], record["height"]) == (4001, 3003)
    found = [(*o["xyxy"], o["confidence"], o["class_id"]) for o in record["detections"]]
    assert len(expected) > 5
    for these, others in itertools.permutations((found, expected)):
        for box in (box for box in these if box[4] > 0.45):
            assert any(box[5] == o[5] and reference.iou(box, o) > 0.85 for o in others), box


@pytest.mark.parametrize("stretch", [False, True])
def test_stretched_networks_need_more_of_a_picture(stretch, tmp_path):
    make_network(
        tmp_path / "n.onnx", boxes=[(20.0, 30.0, 70.0, 60.0, 0.9, 2)], classes=3, size=(96, 96)
    )
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((480, 1600, 3), np.uint8))
    flags = ("--resize", "stretch") if stretch else ()
    args = ("-i", ".", "-m", "n.onnx", "--no-save", "--json", "-", *flags)
    (record,) = run_demo(*args, cwd=tmp_path).records()
    (found,) = record["detections"]
    scale = np.array([1600 / 96, 480 / 96] * 2) if stretch else np.array([1600 / 96] * 4)
    top = 0 if stretch else (96 - 96 * 480 / 1600) / 2
    expected = (np.array([20, 30, 70, 60]) - [0, top, 0, top]) * scale
    np.testing.assert_allclose(found["xyxy"], np.clip(expected, 0, [1600, 480] * 2), atol=9)
