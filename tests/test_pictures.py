"""Picture files as cameras, phones and broken disks leave them, and whose results go where.

What is no picture, and what can't be read: corpus.py.
"""

import contextlib
import io
import shutil
import struct
import time

import cv2
import numpy as np
import pytest
from demo_process import CAT, FAST, STREET, error_of, files_below, refusal, run_demo
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from media.frames import SourceError
from media.pictures import decode_picture

QUARTERS = np.zeros((48, 96, 3), np.uint8)  # BGR, a colour for each corner
QUARTERS[:24, :48], QUARTERS[24:, :48] = (0, 0, 255), (255, 0, 0)
QUARTERS[:24, 48:], QUARTERS[24:, 48:] = (0, 255, 0), 255


def jpeg(image, *options):
    return cv2.imencode(".jpg", image, options)[1].tobytes()


def decoded(data):
    return decode_picture(np.frombuffer(data, np.uint8), "x")


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_name(process):
    return {record["source"]: record for record in process.records()}


# JPEGs without an end


def test_cut_off_picture_is_a_warning_and_shows_nothing_of_the_one_before_it(tmp_path):
    noise = np.random.default_rng(0).normal(120, 12, cv2.imread(str(STREET)).shape)
    wall = jpeg(np.clip(noise, 0, 255).astype(np.uint8))
    shutil.copy(STREET, tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes(wall[: len(wall) // 10])
    process = run_demo("-i", ".", "--no-save", "--json", "-", "-q", cwd=tmp_path)
    assert process.returncode == 0
    street, cut = process.records()
    assert len(street["detections"]) > 5 and "warning" not in street
    assert cut["detections"] == []
    assert cut["warning"] == "./b.jpg: is cut off; what is missing of it is grey."
    assert process.err[-1] == f"demo.py: {cut['warning']}\n"


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


def test_end_of_a_thumbnail_is_not_that_of_the_picture():
    data, small = jpeg(cv2.imread(str(STREET))), jpeg(np.zeros((8, 8, 3), np.uint8))
    note = b"\xff\xe1" + struct.pack(">H", 2 + len(small)) + small
    cut = data[:2] + note + data[2 : len(data) // 2]
    assert decoded(cut)[1] == "x: is cut off; what is missing of it is grey."
    assert decoded(data[:2] + note + data[2:] + b"more")[1] == ""


def test_progressive_picture_without_an_end_is_named_as_doubtful():
    data = jpeg(cv2.imread(str(STREET)), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    image, flaw = decoded(data[: len(data) // 2])
    assert image.shape == (576, 768, 3)
    assert "may be cut off" in flaw


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_missing_end_is_seen_in_whichever_corner_it_is_shown(orientation):
    data = oriented("JPEG", orientation, Image.open(CAT))
    image, flaw = decoded(data[:-40])
    corners = (image[[0, 0, -1, -1], [0, -1, 0, -1]] == 128).all(axis=1)
    assert corners.tolist() == [orientation == each for each in (3, 8, 6, 1)]
    assert flaw == "x: is cut off; what is missing of it is grey."


# Upright


def oriented(kind, orientation, picture):
    """A file with a note of how the camera was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95}
    return saved(picture, kind, exif=exif, **options)


def check_upright(data):
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image, _ = decoded(data)
    assert image.shape == np.shape(upright)
    assert np.abs(image.astype(int) - np.asarray(upright)[..., ::-1]).mean() < 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_orientation_is_heeded_in_every_format(kind):
    check_upright(oriented(kind, 6, Image.fromarray(QUARTERS[..., ::-1])))


@pytest.mark.parametrize("orientation", range(1, 10))  # 9 means nothing
def test_orientation_is_heeded_where_opencv_does_not_turn_webp(monkeypatch, orientation):
    decode = cv2.imdecode
    as_stored = lambda data, flags: decode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)  # noqa: E731
    monkeypatch.setattr(cv2, "imdecode", as_stored)  # as OpenCV before 5.0
    monkeypatch.setattr("media.pictures._opencv_turns_webp", lambda: False)
    check_upright(oriented("WEBP", orientation, Image.fromarray(QUARTERS[..., ::-1])))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_or_named(orientation):
    data = oriented("AVIF", orientation, Image.fromarray(QUARTERS[..., ::-1]))
    if cv2.haveImageWriter("x.avif"):
        check_upright(data)
    else:
        with pytest.raises(SourceError, match="AVIF, which this OpenCV"):
            decoded(data)


# What is left out of a file

PHOTO = Image.open(CAT).convert("RGB").resize((96, 64))
MANY = "x: contains several pictures, of which only the first is used."


def of_two(kind, **options):
    """A file of two pictures."""
    return saved(PHOTO, kind, save_all=True, append_images=[PHOTO.rotate(180)], **options)


# As a video has them by chance: bytes that look like the start of a JPEG's pixels.
MOTION = b"\0\0\0\x18ftypmp42" + b"\xff\xda\xff\xc2" + bytes(500)


@pytest.mark.parametrize(
    "data, flaw",
    [
        pytest.param(CAT.read_bytes() + MOTION, "", id="motion photo"),
        pytest.param(of_two("MPO"), "", id="stereo"),
        pytest.param(saved(PHOTO.convert("CMYK"), "JPEG"), "", id="CMYK"),
        pytest.param(saved(PHOTO.convert("P"), "PNG", transparency=3), "", id="palette"),
        pytest.param(saved(PHOTO, "WEBP", lossless=True), "", id="plain WebP"),
        pytest.param(of_two("TIFF"), MANY, id="pages"),
        pytest.param(of_two("PNG"), MANY, id="APNG"),
    ],
)
def test_picture_is_read_with_a_word_on_what_is_left_out(data, flaw):
    image, said = decoded(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[..., ::-1]
    assert np.abs(image.astype(int) - expected).mean() < 3
    assert said == flaw


def test_animated_webp_is_read_or_named():
    data = of_two("WEBP", lossless=True)
    if hasattr(cv2, "imdecodeanimation"):
        assert decoded(data)[1] == MANY
    else:
        with pytest.raises(SourceError, match="is an animated WebP, which OpenCV 4.* Convert it"):
            decoded(data)


@pytest.mark.parametrize(
    "data, says",
    [
        (b"\0\0\0\x18ftypisom\0\0\0\0", "is a video, not a picture. Give it as the only input"),
        (b"RIFF\0\0\0\0AVI LIST", "is a video"),
        (b"\x1aE\xdf\xa3", "is a video"),
        (b"GIF89a", "is a GIF, which is played as a video. Give it as the only input"),
        (b"\0\0\0\x18ftypheic", "is HEIC, as phones write it, which OpenCV does not read. Convert"),
        (b"\0\0\0\x18ftypmif1", "is HEIC, as phones write it, which OpenCV does not read. Convert"),
        (b"%PDF-1.7", "is a PDF, which OpenCV does not read. Convert it to JPEG or PNG"),
        (b"<html>", "is a web page or drawing, which OpenCV does not read"),
        (b"BM", "is a BMP, but damaged or cut off. Copy or download it again"),
        (b"\x89PNG\r\n\x1a\n", "is a PNG, but damaged"),
        (b"\xff\xd8\xff", "is a JPEG, but damaged"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "is a WebP, but damaged"),
        (b"what", "is neither a picture nor a video that OpenCV reads"),
    ],
)
def test_what_is_no_picture_is_told_by_what_it_is(data, says):
    with pytest.raises(SourceError, match=f"^x: {says}"):  # alone it is played
        decoded(data + bytes(200))


DARK = "x: is dark: it has 16 bits a channel but uses only 14. Multiply its pixels by 4."


@pytest.mark.parametrize(
    "value, flaw", [(200, ""), (4096, DARK), (16383, DARK), (16384, ""), (65535, "")]
)
def test_dark_picture_of_16_bits_is_read(value, flaw):
    dark = np.full((48, 64, 3), value, np.uint16)
    image, said = decoded(cv2.imencode(".png", dark)[1].tobytes())
    np.testing.assert_array_equal(image, dark >> 8)
    assert said == flaw


@pytest.mark.parametrize("value", [256, 4095])
def test_picture_of_12_bits_in_16_is_refused(value):
    black = cv2.imencode(".png", np.full((48, 64, 3), value, np.uint16))[1].tobytes()
    with pytest.raises(SourceError, match="^x: has 16 bits a channel but uses only 12, so that"):
        decoded(black)


# TIFFs that OpenCV does not read


def tiff(order, *pages):
    """A TIFF of pages of (tag, type, values), in order; what does not fit lies behind a page."""
    data = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    for number, fields in enumerate(pages, 1):
        behind, begin = b"", len(data) + 2 + 12 * len(fields) + 4
        data += struct.pack(f"{order}H", len(fields))
        for tag, kind, values in fields:
            packed = struct.pack(f"{order}{len(values)}{'HI'[kind - 3]}", *values)
            if len(packed) > 4:
                place = struct.pack(f"{order}I", begin + len(behind))
                behind, packed = behind + packed, place
            data += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
        data += struct.pack(f"{order}I", begin + len(behind) if number < len(pages) else 0) + behind
    return data


PAGE = [(256, 3, [2]), (257, 3, [2]), (258, 3, [8]), (259, 3, [1]), (262, 3, [1])]
PAGE += [(273, 4, [8]), (277, 3, [1]), (278, 3, [2]), (279, 4, [4])]  # some bytes of its own


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "second, flaw",
    [
        (PAGE, MANY),
        ([(254, 4, [0]), *PAGE], MANY),
        ([(254, 4, [2]), *PAGE], MANY),  # one of several
        ([(254, 4, [1]), *PAGE], ""),  # a smaller copy
        ([(254, 3, [3]), *PAGE], ""),
        ([(254, 4, [0])], ""),  # no picture
    ],
)
def test_further_pages_of_a_tiff_count_unless_they_are_smaller_copies(order, second, flaw):
    image, said = decoded(tiff(order, [*PAGE, (306, 4, [7] * 300)], second, PAGE))
    assert image.shape == (2, 2, 3)
    assert said == flaw


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    "fields, says",
    [
        ([(258, 3, [32] * 3), (277, 3, [3])], "is a TIFF of 3 channels of 32 bits"),
        ([(258, 3, [32] * 2), (277, 3, [2])], "is a TIFF of 2 channels of 32 bits"),
        ([(258, 3, [17])], "is a TIFF of 1 channels of 17 bits"),
        ([(258, 4, [64]), (277, 4, [1])], "is a TIFF of 1 channels of 64 bits"),
        ([(258, 4, [32] * 2), (277, 3, [2])], "is a TIFF of 2 channels of 32 bits"),
        ([(258, 3, [8] * 5), (277, 3, [5])], "is a TIFF of 5 channels of 8 bits"),
        ([(258, 3, [16] * 4), (259, 3, [6]), (277, 3, [4])], "is a TIFF of a compression that"),
        ([(258, 3, [16] * 4), (259, 3, [5]), (277, 3, [4])], "is a TIFF, but damaged or cut off"),
        *(([(259, 3, [c])], "is a TIFF, but damaged") for c in (1, 2, 3, 4, 5, 7, 8, 32773, 32946)),
        *(([(259, 3, [c])], "is a TIFF of a compression that") for c in (6, 9, 34712, 50000)),
        ([(339, 3, [2])], "is a TIFF of signed numbers"),
        ([(339, 3, [3] * 3)], "is a TIFF of floating-point numbers"),
    ],
)
def test_tiff_is_refused_for_what_its_first_page_says(order, fields, says):
    with pytest.raises(SourceError, match=f"^x: {says}"):
        decoded(tiff(order, [(256, 3, [4]), (257, 4, [4]), *fields]))


def bigtiff(order, entries):
    """A BigTIFF whose only page has these (tag, type, value), and no pixels."""
    page = struct.pack(order + "Q", len(entries))
    page += b"".join(struct.pack(order + "HHQQ", tag, kind, 1, n) for tag, kind, n in entries)
    head = (b"II+\0" if order == "<" else b"MM\0+") + struct.pack(order + "HHQ", 8, 0, 16)
    return head + page + bytes(8)


@pytest.mark.parametrize("order", "<>")
def test_bigtiff_is_told_as_a_tiff(order):
    signed = 2 if order == "<" else 2 << 48  # a short number stands in front
    with pytest.raises(SourceError, match="^x: is a TIFF of signed numbers"):
        decoded(bigtiff(order, [(256, 4, 4), (339, 3, signed)]))
    with pytest.raises(SourceError, match="^x: is a TIFF, but damaged"):
        decoded(bigtiff(order, [(256, 4, 4)]))


@pytest.mark.parametrize(
    "fields", [[(254, 4, [1]), (330, 4, [500])], [(254, 4, [0]), (50706, 1, [1])]]
)
def test_raw_file_is_not_taken_for_its_thumbnail(fields):
    with pytest.raises(SourceError, match="a camera's raw file, of which OpenCV reads only the th"):
        decoded(tiff("<", [(256, 3, [4]), (257, 4, [4]), *fields]))


def test_smaller_page_before_the_picture_alone_makes_no_raw_file():
    with pytest.raises(SourceError, match="^x: is a TIFF, but damaged"):
        decoded(tiff("<", [(254, 4, [1]), (256, 3, [4])]))


# JPEGs that cameras and scanners write


def sof_of(data):
    return data.index(b"\xff\xc0")


@pytest.mark.parametrize(
    ("at", "value", "says"),
    [
        (4, b"\x0c", "of 12 bits"),
        (1, b"\xc3", "that is lossless"),
        (5, b"\0\0", "that tells its height after its pixels"),
    ],
)
def test_jpeg_of_another_form_is_named(at, value, says):
    data = bytearray(jpeg(cv2.imread(str(CAT))))
    place = sof_of(data) + at
    data[place : place + len(value)] = value
    with pytest.raises(SourceError, match=f"^x: is a JPEG {says}, which OpenCV does not read"):
        decoded(bytes(data))


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [3, 4])
@pytest.mark.parametrize("notes_before", [0, 1])
def test_jpeg_is_upright_wherever_its_note_stands_and_however_it_is_written(
    order, kind, notes_before
):
    value = struct.pack(order + ("H2x" if kind == 3 else "I"), 6)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    entry = struct.pack(order + "HHHI", 1, 0x112, kind, 1) + value + bytes(4)
    exif, xmp = b"Exif\0\0" + head + entry, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"
    notes = [xmp] * notes_before + [exif]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(n)) + n for n in notes)
    data = jpeg(QUARTERS)
    image, _ = decoded(data[:2] + segments + data[2:])
    upright = np.rot90(cv2.imdecode(np.frombuffer(data, np.uint8), 1), 3)
    np.testing.assert_array_equal(image, upright)


# Bytes that were made to harm


def heads():
    """The beginning of a file of each kind whose headers are read here."""
    picture = Image.fromarray(QUARTERS)
    yield from (oriented(kind, 6, picture) for kind in ("JPEG", "WEBP", "PNG", "TIFF"))
    yield tiff("<", [(256, 3, [4]), (274, 3, [6])])
    yield bigtiff(">", [(256, 4, 4), (339, 3, 2 << 48)])
    yield b"\0\0\0\x20ftypavif" + bytes(20) + b"irot\x01imir\x01" + b"mdat" + bytes(9)


HEADS = list(heads())


def read_or_refused(data):
    with contextlib.suppress(SourceError):
        decoded(data)


@pytest.mark.parametrize("data", HEADS, ids=["jpeg", "webp", "png", "tiff", "page", "big", "avif"])
def test_every_prefix_is_read_or_refused(data):
    for end in range(min(len(data), 600)):
        read_or_refused(data[:end])


@given(st.data())
def test_any_bytes_changed_are_read_or_refused(data):
    head = bytearray(data.draw(st.sampled_from(HEADS)))
    for _ in range(data.draw(st.integers(1, 8))):
        head[data.draw(st.integers(2, min(len(head), 300) - 1))] = data.draw(st.integers(0, 255))
    read_or_refused(bytes(head))


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8X", b"II*\0", b"MM\0+"])
@pytest.mark.parametrize("fill", [b"\xff", b"\0", b"\xff\xe1\0\2", b"EXIF", b"\x2a\0", b"\xff\xd9"])
def test_work_grows_no_faster_than_the_bytes(start, fill, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: None)  # OpenCV's own time is not ours

    def seconds(length):
        data = start + fill * (length // len(fill))
        began = time.process_time()
        read_or_refused(data)
        return time.process_time() - began

    # Quadratic work took 200 s for 150 kB.
    assert seconds(300_000) < 2


# Folders and patterns


def test_folder_takes_jfif_and_mpo_and_counts_what_it_leaves_out(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "other").mkdir()
    for name in ("a.jpg", "b.jfif", "c.JFIF", "d.MPO", ".d.jpg", "../other/e.jpg"):
        shutil.copy(CAT, tmp_path / "in" / name)
    (tmp_path / "in" / "more").symlink_to(tmp_path / "other", target_is_directory=True)
    for name in ("e.heic", "f.HEIC", "g.mp4", "h.gif", "notes"):
        (tmp_path / "in" / name).write_bytes(b"x")
    process = run_demo("-i", "in", *FAST, "-o", "out", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    left_out = (
        "skipped: 1 without ending, 1 .gif (name it to include it), 2 .heic, "
        "1 .mp4 (name it to include it), 1 hidden, 1 linked folder"
    )
    assert left_out in process.stdout.splitlines()
    assert files_below(tmp_path / "out") == ["a.jpg", "b.jfif.jpg", "c.JFIF.jpg", "d.MPO.jpg"]


def make_wide_picture(folder):
    """A folder with a picture too wide for the kind that its name says."""
    (folder / "in").mkdir()
    cv2.imwrite(str(folder / "in" / "c.png"), np.zeros((2, 66000), np.uint8))
    (folder / "in" / "c.png").rename(folder / "in" / "c.jpg")


def test_endings_that_hold_no_colour_and_sizes_too_large_are_saved_under_others(tmp_path):
    make_wide_picture(tmp_path)
    grey = np.full((48, 64), 90, np.uint8)
    for name in ("a.pgm", "b.pbm", "d.png"):
        cv2.imwrite(str(tmp_path / "in" / name), grey)
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
    assert "skipped: 4 results of an earlier run" in process.stderr.splitlines()
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
    make_wide_picture(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "c.jpg.png").write_bytes(b"mine")
    demo = run_demo("-i", "in", *FAST, "-o", "out", "-q", cwd=tmp_path)
    assert demo.returncode == 1
    assert "out/c.jpg.png: exists and is not a result" in error_of(demo)
    assert (tmp_path / "out" / "c.jpg.png").read_bytes() == b"mine"
