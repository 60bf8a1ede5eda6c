"""Picture files as cameras, phones and broken disks leave them, and whose results go where."""

import io
import json
import shutil

import cv2
import numpy as np
import pytest
from demo_process import EXAMPLES, error_of, files_below, refusal, run_demo
from PIL import Image, ImageOps

from media.frames import SourceError
from media.pictures import decode_picture

CAT, STREET = EXAMPLES / "cat.jpg", EXAMPLES / "street.jpg"
FAST = ("--size", "64", "--confidence", "1")
QUARTERS = np.zeros((48, 96, 3), np.uint8)  # BGR, a colour for each corner
QUARTERS[:24, :48], QUARTERS[24:, :48] = (0, 0, 255), (255, 0, 0)
QUARTERS[:24, 48:], QUARTERS[24:, 48:] = (0, 255, 0), 255


def jpeg(image, *options):
    return cv2.imencode(".jpg", image, options)[1].tobytes()


def decoded(data):
    return decode_picture(np.frombuffer(data, np.uint8), "x")


def by_name(process):
    return {record["source"]: record for record in map(json.loads, process.stdout.splitlines())}


# JPEGs without an end


def test_cut_off_picture_shows_nothing_of_the_one_before_it(tmp_path):
    noise = np.random.default_rng(0).normal(120, 12, cv2.imread(str(STREET)).shape)
    wall = jpeg(np.clip(noise, 0, 255).astype(np.uint8))
    for i in range(3):
        shutil.copy(STREET, tmp_path / f"{i}a.jpg")
        (tmp_path / f"{i}b.jpg").write_bytes(wall[: len(wall) // 10])
    process = run_demo("-i", ".", "--no-save", "--json", "-", "-q", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    for name, record in by_name(process).items():
        if "b.jpg" in name:
            assert record["detections"] == []
            assert record["warning"] == f"{name}: is cut off; what is missing of it is grey."
            assert f"demo.py: {record['warning']}\n" in process.stderr
        else:
            assert len(record["detections"]) > 5 and "warning" not in record


@pytest.mark.parametrize("options", [[], [cv2.IMWRITE_JPEG_RST_INTERVAL, 4]])
@pytest.mark.parametrize("bytes_lost", [1, 2])
def test_picture_without_its_last_two_bytes_is_whole(options, bytes_lost):
    data = jpeg(cv2.imread(str(CAT)), *options)
    image, flaw = decoded(data[:-bytes_lost])
    np.testing.assert_array_equal(image, cv2.imdecode(np.frombuffer(data, np.uint8), 1))
    assert flaw == ""


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_cut_off_picture_is_right_as_far_as_its_data_goes_and_grey_below(part):
    data = jpeg(cv2.imread(str(STREET)))
    whole, _ = decoded(data)
    image, flaw = decoded(data[: int(part * len(data))])
    same = (image == whole).all(axis=(1, 2))
    rows = int(np.argmin(same))  # the first that differs
    assert 0.1 < rows / len(whole) < part + 0.3
    assert (image[rows + 32 :] == 128).all()
    assert "cut off" in flaw


def test_progressive_picture_without_an_end_is_named_as_doubtful():
    data = jpeg(cv2.imread(str(STREET)), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    image, flaw = decoded(data[: len(data) // 2])
    assert image.shape == (576, 768, 3)
    assert "may be cut off" in flaw


# Upright


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_heeded_in_every_format(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    Image.fromarray(QUARTERS[..., ::-1]).save(file, kind, exif=exif, **options)
    upright = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    try:
        image, _ = decoded(file.getvalue())
    except SourceError as error:
        assert (kind, cv2.haveImageWriter("x.avif")) == ("AVIF", False)
        assert "AVIF, which this OpenCV" in str(error)
        return
    assert image.shape == np.shape(upright)
    assert np.abs(image.astype(int) - np.asarray(upright)[..., ::-1]).mean() < 20


# What a file is


def boxed(brand):
    return b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0" + bytes(200)


def encoded(ending, image, part=1):
    data = cv2.imencode(ending, image)[1].tobytes()
    return data[: int(part * len(data))]


def floating_point():
    file = io.BytesIO()
    Image.fromarray(np.float32(QUARTERS[..., 0] / 255)).save(file, "TIFF")
    return file.getvalue()


@pytest.mark.parametrize(
    "data, says",
    [
        (boxed(b"heic"), "is HEIC, as phones write it, which OpenCV does not read. Convert it"),
        (boxed(b"mif1"), "is HEIC"),
        (boxed(b"isom"), "is a video, not a picture. Give it by its name"),
        (b"RIFF\0\0\0\0AVI LIST" + bytes(200), "is a video"),
        (b"\x1aE\xdf\xa3" + bytes(200), "is a video"),
        (b"GIF89a" + bytes(5), "is a GIF"),
        (b"%PDF-1.7" + bytes(200), "is a PDF, which OpenCV does not read"),
        (b"<!doctype html><p>404", "is a web page or drawing"),
        (b"garbage" * 50, "is neither a picture nor a video"),
        (encoded(".png", QUARTERS, 0.5), "is a PNG, but damaged or cut off. Copy or download"),
        (encoded(".webp", QUARTERS, 0.5), "is a WebP, but damaged or cut off"),
        (encoded(".bmp", QUARTERS, 0.5), "is a BMP, but damaged or cut off"),
        (jpeg(QUARTERS)[:60], "is a JPEG, but damaged or cut off"),
        (floating_point(), "is a TIFF of floating-point numbers"),
        (encoded(".png", np.uint16(QUARTERS) * 16), "has 16 bits a channel but uses only 12"),
        (encoded(".tiff", np.uint16(QUARTERS) * 16), "has 16 bits a channel but uses only 12"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_not_be_read_is_told_by_what_it_is(data, says, tmp_path):
    (tmp_path / "x.jpg").write_bytes(data)
    (tmp_path / "y.jpg").write_bytes(jpeg(QUARTERS))
    if says.startswith(("is a video", "is a GIF")):  # alone it is played
        with pytest.raises(SourceError, match=says):
            decoded(data)
        return
    process = run_demo("-i", "x.jpg", "-q", cwd=tmp_path)
    *others, line = process.stderr.splitlines()
    assert (process.returncode, process.stdout) == (2, "")
    assert line.startswith(f"demo.py: error: x.jpg: {says}")
    assert all(other.startswith("libpng error") for other in others)  # libpng says so itself
    assert files_below(tmp_path) == ["x.jpg", "y.jpg"]


def test_dark_picture_of_16_bits_is_read(tmp_path):
    dark = np.full((48, 64, 3), 200, np.uint16)
    image, _ = decoded(encoded(".png", dark))
    assert image.max() <= 1


# Folders and patterns


def test_folder_takes_jfif_and_counts_what_it_leaves_out(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.jfif", "c.JFIF", ".d.jpg"):
        shutil.copy(CAT, tmp_path / "in" / name)
    for name in ("e.heic", "f.HEIC", "g.mp4", "h.gif", "notes"):
        (tmp_path / "in" / name).write_bytes(b"x")
    process = run_demo("-i", "in", *FAST, "-o", "out", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    left_out = "left out: 1 without ending, 1 .gif, 2 .heic, 1 .mp4, 1 hidden"
    assert left_out in process.stdout.splitlines()
    assert files_below(tmp_path / "out") == ["a.jpg", "b.jfif.jpg", "c.JFIF.jpg"]


def test_pattern_leaves_videos_out_and_says_so(tmp_path):
    shutil.copy(CAT, tmp_path / "a.jpg")
    (tmp_path / "f.avi").write_bytes(b"x")
    process = run_demo("-i", "*.*", *FAST, "--no-save", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    assert "left out: 1 .avi" in process.stdout.splitlines()
    message = refusal(run_demo("-i", "*.avi", cwd=tmp_path))
    assert message.startswith(
        "*.avi: no picture fits this pattern (left out: 1 .avi). Give a video"
    )


def test_endings_that_hold_no_colour_and_sizes_too_large_are_saved_under_others(tmp_path):
    (tmp_path / "in").mkdir()
    grey = np.full((48, 64), 90, np.uint8)
    for name in ("a.pgm", "b.pbm", "d.png"):
        cv2.imwrite(str(tmp_path / "in" / name), grey)
    cv2.imwrite(str(tmp_path / "in" / "c.png"), np.zeros((2, 66000), np.uint8))
    (tmp_path / "in" / "c.png").rename(tmp_path / "in" / "c.jpg")
    args = ("-i", "in", *FAST, "-o", "out", "--json", "-", "-q")
    for _ in range(2):  # the second run replaces the results of the first
        process = run_demo(*args, cwd=tmp_path)
        assert (process.returncode, process.stderr) == (0, "")
        assert len(by_name(process)) == 4
        names = ["a.pgm.jpg", "b.pbm.jpg", "c.jpg.png", "d.png"]
        assert files_below(tmp_path / "out") == names
    assert cv2.imread(str(tmp_path / "out" / "c.jpg.png")).shape == (2, 66000, 3)


# Nothing of the user's is replaced


@pytest.fixture
def photos(tmp_path):
    """Pictures of the user's in three folders, two of one name."""
    for name in ("photos/cat.jpg", "photos/sub/cat.jpg", "photos/sub/dog.jpg", "results/cat.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.full((48, 60 + len(name), 3), 90, np.uint8))
    return {name: (tmp_path / name).read_bytes() for name in files_below(tmp_path)}


@pytest.mark.parametrize(
    "args",
    [
        "-i photos -o photos/sub",
        "-i photos/sub -o photos",
        "-i photos/*.jpg -o results",
        "-i photos",
    ],
)
def test_result_never_takes_the_place_of_a_file_of_the_user(args, photos, tmp_path):
    message = refusal(run_demo(*args.split(), cwd=tmp_path))
    assert "cat.jpg: exists and is not a result of an earlier run." in message
    assert {name: (tmp_path / name).read_bytes() for name in files_below(tmp_path)} == photos


def test_own_folder_called_results_is_read_like_any_other(photos, tmp_path):
    for _ in range(2):
        process = run_demo("-i", ".", *FAST, "--json", "-", cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        assert {name.removeprefix("./") for name in by_name(process)} == photos.keys()
    assert "left out: 4 results of an earlier run" in process.stderr.splitlines()
    for name, data in photos.items():
        assert (tmp_path / name).read_bytes() == data
        assert (tmp_path / "results" / name).exists()


def test_results_of_an_earlier_run_are_replaced_and_other_files_kept(photos, tmp_path):
    args = ("-i", "photos", *FAST, "-o", "out", "-q")
    assert run_demo(*args, cwd=tmp_path).returncode == 0
    (tmp_path / "out" / "cat.jpg").write_bytes(b"replaced in the next run")
    (tmp_path / "out" / "notes.txt").write_bytes(b"kept")
    assert run_demo(*args, cwd=tmp_path).returncode == 0
    assert cv2.imread(str(tmp_path / "out" / "cat.jpg")) is not None
    assert (tmp_path / "out" / "notes.txt").read_bytes() == b"kept"


def test_further_name_of_a_wide_result_takes_no_place_of_a_file_of_the_user(tmp_path):
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "c.png"), np.zeros((2, 66000), np.uint8))
    (tmp_path / "in" / "c.png").rename(tmp_path / "in" / "c.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "c.jpg.png").write_bytes(b"mine")
    demo = run_demo("-i", "in", *FAST, "-o", "out", "-q", cwd=tmp_path)
    assert demo.returncode == 1
    message = error_of(demo)
    assert "out/c.jpg.png: exists and is not a result" in message
    assert (tmp_path / "out" / "c.jpg.png").read_bytes() == b"mine"
