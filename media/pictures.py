"""One picture in a file: read it upright, or say in one line what is wrong with it."""

import functools
import os
import re

import cv2
import numpy as np

from media.frames import ACCEPTED, SourceError

PICTURE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".sr", ".ras", ".avif", ".mpo"),
)
JPEG_2000 = (b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")
DEEP = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
END_OF_JPEG = np.frombuffer(b"\xff\xd9", np.uint8)
# What files begin with: (offset, bytes, what it is, whether OpenCV reads pictures of that kind).
KINDS = (
    (0, b"\xff\xd8\xff", "a JPEG", True),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG", True),
    (8, b"WEBP", "a WebP", True),
    (0, b"BM", "a BMP", True),
    (0, b"II*\0", "a TIFF", True),
    (0, b"MM\0*", "a TIFF", True),
    (8, b"avi", "an AVIF", True),
    (8, b"he", "HEIC, as phones write it", False),
    (8, b"mif1", "HEIC, as phones write it", False),
    (8, b"AVI ", "a video", False),
    (4, b"ftyp", "a video", False),
    (0, b"\x1aE\xdf\xa3", "a video", False),
    (0, b"GIF8", "a GIF", False),
    (0, b"%PDF", "a PDF", False),
    (0, b"<", "a web page or drawing", False),
)
# Two pixels beside each other, with an EXIF note that the camera was held upright.
TURNED_WEBP = (
    b"RIFFN\0\0\0WEBPVP8X\n\0\0\0\x08\0\0\0\x01\0\0\0\0\0VP8L\x0e\0\0\0/\x01\0\0\0\x07\x10\x11\xfd"
    b"\x0fDD\xff\x03EXIF\x1a\0\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
)
# By EXIF orientation: quarters of a turn to the left, then the axis to mirror.
TURNS = {2: (0, 1), 3: (2, None), 4: (0, 0), 5: (1, 0), 6: (3, None), 7: (3, 0), 8: (1, None)}
# Tags of TIFF, which EXIF is made of.
SUBFILE, WIDTH, BITS, COMPRESSION = 254, 256, 258, 259
ORIENTATION, CHANNELS, SAMPLE_FORMAT = 274, 277, 339
READ_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)
MARKER = re.compile(rb"\xff+([^\x00\xff])")  # of JPEG; two bytes of length follow


def read_picture(path):
    """A picture of any name, upright, BGR, and what a person should know of it, such as a cut.

    SourceError if there is no such file, or OpenCV can't read it.
    """
    return decode_picture(read_file(path), path)


def read_file(path):
    """The bytes of a picture's file, as an array; SourceError if it can't be read."""
    check_file(path)
    try:
        return np.fromfile(path, np.uint8)  # cv2.imread fails on other alphabets on Windows
    except OSError as error:
        raise SourceError(f"{path}: can't be read: {error.strerror}.") from error


def decode_picture(data, path):
    """The picture in a file's bytes, as of `read_picture`; `path` is only for messages."""
    if not data.size:
        raise SourceError(f"{path}: is empty. Copy or download it again.")
    if data[:16].tobytes().startswith(JPEG_2000):
        raise SourceError(f"{path}: is JPEG 2000, on which OpenCV 4 can crash. Convert it.")
    kind, readable = kind_of(data[:16].tobytes())
    whole = kind != "a JPEG" or _has_end(data)
    if not whole:
        data = np.concatenate((data, END_OF_JPEG))
    image = _decode(data, path)
    if kind == "a TIFF":
        numbers = {2: "signed", 3: "floating-point"}.get(tiff_tag(data.tobytes(), SAMPLE_FORMAT))
        if numbers:
            raise SourceError(
                f"{path}: is a TIFF of {numbers} numbers. Convert it to 8 bits a channel."
            )
    if image is None:
        raise SourceError(f"{path}: {_why_not(kind, readable, data)}")
    flaw = "" if whole else _what_is_missing(image, data)
    if kind != "a JPEG" and image.max() < 64:  # rather dark
        flaw = _why_dark(image, _decode(data, path, DEEP), path)
    if not flaw and _has_more(kind, data):
        flaw = "contains several pictures, of which only the first is used."
    return _turned(image, kind, data), flaw and f"{path}: {flaw}"


def kind_of(head):
    """What a file is that begins with these 16 bytes, and whether OpenCV reads such pictures."""
    for at, start, kind, readable in KINDS:
        if head.startswith(start, at):
            return kind, readable
    return "", False


def _decode(data, path, flags=cv2.IMREAD_COLOR):
    try:
        return cv2.imdecode(data, flags)
    except cv2.error as error:
        raise SourceError(f"{path}: can't be read: {reason_of(error)}.") from error


def _why_dark(image, deep, path):
    """What a person should know of a dark image if its file has more than 8 bits; else empty."""
    if deep.dtype.kind == "f" and image.max() <= 1:
        raise SourceError(f"{path}: has floating-point pixels. Convert it to 8 bits a channel.")
    bits = int(deep.max()).bit_length() if deep.dtype == np.uint16 else 0
    if 8 < bits <= 12 and image.max() <= 16:
        raise SourceError(
            f"{path}: has 16 bits a channel but uses only 12, so that it would be black. "
            "Multiply its pixels by 16, or convert it to 8 bits."
        )
    if 12 < bits <= 14:
        return "is dark: it has 16 bits a channel but uses only 14. Multiply its pixels by 4."
    return ""


def _has_more(kind, data):
    """Whether a file contains further pictures that count: pages, or frames of an animation."""
    if kind == "a TIFF":  # smaller copies do not count
        data = data.tobytes()
        more = tiff_tag(data, WIDTH, page=1) is not None
        return more and not (tiff_tag(data, SUBFILE, page=1) or 0) & 1
    if kind == "a PNG":
        return b"acTL" in data.tobytes().partition(b"IDAT")[0]
    return kind == "a WebP" and _is_animated_webp(data)


def _is_animated_webp(data):
    return data[12:16].tobytes() == b"VP8X" and bool(data[20] & 2)


def _has_end(data):
    """Whether a JPEG has an end marker, or no pixels that one would help to decode.

    OpenCV 4.10 fills what a JPEG without end lacks with the picture that it decoded before, and
    later versions refuse it, though some cameras just leave the marker out.
    """
    if data[-2:].tobytes() == b"\xff\xd9":
        return True
    jpeg, at = data.tobytes(), 2
    while (marker := MARKER.search(jpeg, at)) and marker[1] != b"\xda":  # where the pixels start
        at = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
    # Anything may follow the end, such as the video of a motion photo.
    return marker is None or jpeg.find(b"\xff\xd9", marker.end()) > 0


def _what_is_missing(image, data):
    """What a person should know of a JPEG without end; empty if only the marker is missing."""
    if b"\xff\xc2" in data.tobytes():  # progressive: a whole picture, less and less sharp
        return "has no end marker and may be cut off."
    corners = image[[0, 0, -1, -1], [0, -1, 0, -1]]
    if (corners == 128).all(axis=1).any():  # what missing pixels become
        return "is cut off; what is missing of it is grey."
    return ""


def _why_not(kind, readable, data):
    """What is wrong with bytes that OpenCV did not decode, and what to do."""
    if kind == "a video":
        return "is a video, not a picture. Give it as the only input."
    if kind == "a GIF":
        return "is a GIF, which is played as a video. Give it as the only input."
    if kind == "an AVIF" and not cv2.haveImageWriter("a.avif"):
        return f"is an AVIF, which this OpenCV {cv2.__version__} does not read. Convert it to JPEG."
    if kind == "a WebP" and _is_animated_webp(data) and not hasattr(cv2, "imdecodeanimation"):
        return (
            f"is an animated WebP, which OpenCV {cv2.__version__} does not read. Convert it to GIF."
        )
    if kind == "a TIFF":
        channels, bits, compression = (
            tiff_tag(data.tobytes(), tag) or 1 for tag in (CHANNELS, BITS, COMPRESSION)
        )
        if channels > 4 or bits > 16:
            return f"is a TIFF of {channels} channels of {bits} bits. Convert it to 3 of 8 bits."
        if compression not in READ_COMPRESSIONS:
            return "is a TIFF of a compression that OpenCV does not read. Save it with LZW or none."
    if readable:
        return f"is {kind}, but damaged or cut off. Copy or download it again."
    if kind:
        return f"is {kind}, which OpenCV does not read. Convert it to JPEG or PNG."
    return "is neither a picture nor a video that OpenCV reads."


def _turned(image, kind, data):
    """The image upright, where OpenCV leaves that to us: WebP before 5.0, AVIF."""
    quarters, mirror = 0, None  # turns to the left, then the axis to mirror
    if kind == "a WebP" and not _opencv_turns_webp():
        _, found, exif = data.tobytes().rpartition(b"EXIF")
        orientation = tiff_tag(exif[4:].removeprefix(b"Exif\0\0"), ORIENTATION) if found else 1
        quarters, mirror = TURNS.get(orientation, (0, None))
    elif kind == "an AVIF":
        head = data.tobytes().partition(b"mdat")[0]
        turn, flip = head.find(b"irot") + 4, head.find(b"imir") + 4  # ISO/IEC 23008-12, 6.5
        quarters = head[turn] & 3 if turn > 3 else 0
        mirror = head[flip] & 1 if flip > 3 else None
    if quarters:
        image = np.rot90(image, quarters)
    if mirror is not None:
        image = np.flip(image, mirror)
    return np.ascontiguousarray(image)


@functools.cache
def _opencv_turns_webp():
    return cv2.imdecode(np.frombuffer(TURNED_WEBP, np.uint8), cv2.IMREAD_COLOR).shape[0] == 2


def tiff_tag(data, wanted, page=0):
    """The first value of a tag of TIFF or EXIF, up to 16 bits; None where the page has none."""
    order = "little" if data[:2] == b"II" else "big"

    def number(at, size):
        return int.from_bytes(data[at : at + size], order)

    start = number(4, 4)
    for _ in range(page):
        start = number(start + 2 + 12 * number(start, 2), 4)
    for at in range(start + 2, start + 2 + 12 * number(start, 2), 12) if start else ():
        if number(at, 2) == wanted:
            size = 4 if number(at + 2, 2) == 4 else 2
            inside = number(at + 4, 4) * size <= 4  # more lie elsewhere
            return number(at + 8 if inside else number(at + 8, 4), size)
    return None


def check_file(path, advice=""):
    """Raise SourceError unless this is a regular file: others may never end."""
    if not os.path.exists(path):
        raise SourceError(f"{path or '(empty)'}: no such file.{advice}")
    if not os.path.isfile(path):
        raise SourceError(f"{path}: is not a regular file.{advice}")


def reason_of(error):
    """The part of OpenCV's error that a person can use."""
    text = str(error.err or error)
    if "PIXELS" in text:
        limit = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", "2^30")
        return f"it has more than {limit} pixels"
    return " ".join(text.split())


def ending_of(path):
    """The ending of a file's name, in small letters and with its dot."""
    return os.path.splitext(path)[1].lower()


def is_picture(path):
    """Whether a file is a still picture: by its content or, if that is unknown, by its name."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise SourceError(f"{path}: can't be read: {error.strerror}.") from error
    if not head:
        raise SourceError(f"{path}: is empty. Give {ACCEPTED}.")
    if head.startswith((b"#EXTM3U", b"ffconcat")):  # FFmpeg would open the files named in it
        raise SourceError(f"{path}: is a list of other files. Give {ACCEPTED}.")
    ending = ending_of(path)
    if kind_of(head)[0] in ("a video", "a GIF") or ending in (".mjpg", ".mjpeg"):
        return False  # a GIF is played, as viewers do; OpenCV 4.10 can't read it in another way
    if head.startswith(JPEG_2000) or ending in PICTURE_ENDINGS:
        return True
    return is_utf8(path) and cv2.haveImageReader(path)


def is_utf8(path):
    """Whether cv2 takes this name; it crashes on a name that is not valid UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
