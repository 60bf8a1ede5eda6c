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
RAW = "a camera's raw file"
# How many times smaller a JPEG can be decoded, without decoding it whole first.
REDUCED = {n: getattr(cv2, f"IMREAD_REDUCED_COLOR_{n}") for n in (8, 4, 2)}
END_OF_JPEG = np.frombuffer(b"\xff\xd9", np.uint8)
# What files begin with: (offset, bytes, what it is, whether OpenCV reads pictures of that kind).
KINDS = (
    (0, b"\xff\xd8\xff", "a JPEG", True),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG", True),
    (8, b"WEBP", "a WebP", True),
    (0, b"BM", "a BMP", True),
    (0, b"II*\0\x10\0\0\0CR", RAW, False),
    (0, b"IIU\0", RAW, False),
    (0, b"FUJIFILM", RAW, False),
    (0, b"II*\0", "a TIFF", True),
    (0, b"MM\0*", "a TIFF", True),
    (0, b"II+\0", "a TIFF", True),  # BigTIFF
    (0, b"MM\0+", "a TIFF", True),
    (0, b"\xff\x0a", "a JPEG XL", False),
    (4, b"JXL ", "a JPEG XL", False),
    (0, b"8BPS", "a Photoshop file", False),
    (8, b"avi", "an AVIF", True),
    *((0, b"P%d" % number, "a PNM", True) for number in range(1, 8)),
    (0, b"PF\n", "a PFM", True),
    (0, b"Pf\n", "a PFM", True),
    (0, b"\x59\xa6\x6a\x95", "a Sun raster picture", True),
    (0, b"#?R", "a Radiance HDR picture", True),
    (0, b"v/1\x01", "an OpenEXR picture", True),
    (4, b"ftyphe", "HEIC, as phones write it", False),
    (4, b"ftypmif1", "HEIC, as phones write it", False),
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
ORIENTATION, CHANNELS, OTHER_PAGES, SAMPLE_FORMAT, DNG = 274, 277, 330, 339, 50706
READ_COMPRESSIONS = (1, 2, 3, 4, 5, 7, 8, 32773, 32946)
OPENCV_ERROR = re.compile(r"^OpenCV\(.*? error: \(.*?\) (.*?)( in function '.*')?$")
MARKER = re.compile(rb"\xff([^\x00\xff])")  # of JPEG; two bytes of length follow
FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # they tell precision and height
START_OF_PIXELS, APPLICATION_1 = 0xDA, 0xE1
LOSSLESS_MARKERS = {0xC3, 0xC7, 0xCB, 0xCF}


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
    return decode_for(None, data, path)[:2]


def decode_for(enough, data, path):
    """As `decode_picture`, but a large JPEG may come 2, 4 or 8 times smaller, in less time.

    Its longest and shortest side then still have at least the two lengths `enough`. The third
    value is the (width, height) of the whole picture if it came smaller, else None.
    """
    if not data.size:
        raise SourceError(f"{path}: is empty. Copy or download it again.")
    if data[:16].tobytes().startswith(JPEG_2000):
        raise SourceError(f"{path}: is JPEG 2000, on which OpenCV 4 can crash. Convert it.")
    kind, readable = kind_of(data[:16].tobytes())
    whole = kind != "a JPEG" or _has_end(data)
    if not whole:
        data = np.concatenate((data, END_OF_JPEG))
    image, size = None, None
    if enough and kind == "a JPEG":
        image, size = _decode_reduced(enough, data, path)
    if image is None:
        image = _decode(data, path)
    if kind == "a TIFF":
        _check_tiff(data.tobytes(), path)
    if image is None:
        raise SourceError(f"{path}: {_why_not(kind, readable, data)}")
    flaw = "" if whole else _what_is_missing(image, data)
    if kind != "a JPEG" and image.max() < 64:  # rather dark
        flaw = _why_dark(image, _decode(data, path, DEEP), path)
    if not flaw and _has_more(kind, data):
        flaw = "contains several pictures, of which only the first is used."
    return _turned(image, kind, data), flaw and f"{path}: {flaw}", size


def kind_of(head):
    """What a file is that begins with these 16 bytes, and whether OpenCV reads such pictures."""
    for at, start, kind, readable in KINDS:
        if head.startswith(start, at):
            return kind, readable
    return "", False


def _decode(data, path, flags=cv2.IMREAD_COLOR):
    if data[:3].tobytes() == b"\xff\xd8\xff":
        flags |= cv2.IMREAD_IGNORE_ORIENTATION  # `_turned` does it
    try:
        return cv2.imdecode(data, flags)
    except cv2.error as error:
        raise SourceError(f"{path}: can't be read: {reason_of(error)}.") from error


def _check_tiff(tiff, path):
    """Raise SourceError for a TIFF that OpenCV would silently read as another picture."""
    thumbnail_first = (tiff_tag(tiff, SUBFILE) or 0) & 1 and tiff_tag(tiff, OTHER_PAGES) is not None
    if thumbnail_first or tiff_tag(tiff, DNG) is not None:
        raise SourceError(
            f"{path}: is {RAW}, of which OpenCV reads only the thumbnail. Convert it to JPEG."
        )
    numbers = {2: "signed", 3: "floating-point"}.get(tiff_tag(tiff, SAMPLE_FORMAT))
    if numbers:
        raise SourceError(
            f"{path}: is a TIFF of {numbers} numbers. Convert it to 8 bits a channel."
        )


def _decode_reduced(enough, data, path):
    """A JPEG smaller, but still large `enough`, and its whole (width, height); None, None if not.

    A side becomes a half, a quarter or an eighth of it, rounded up.
    """
    frame = next((at for kind, at, _ in jpeg_segments(data) if kind in FRAME_MARKERS), len(data))
    height, width = (
        int.from_bytes(data[at : at + 2].tobytes(), "big") for at in (frame + 1, frame + 3)
    )
    limit = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 30))
    if not limit.isdecimal() or width * height > int(limit):  # refused, as if it were whole
        return None, None
    for times, flags in REDUCED.items():
        sides = [-(-side // times) for side in (width, height)]
        if max(sides) >= enough[0] and min(sides) >= enough[1]:
            image = _decode(data, path, flags)
            if image is not None and image.shape[1::-1] == tuple(sides):
                turned = _jpeg_orientation(data) in (5, 6, 7, 8)
                return image, (height, width) if turned else (width, height)
            break
    return None, None


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
    if bits > 12:
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
    return data[12:16].tobytes() == b"VP8X" and bool((data[20:21] & 2).any())


def _has_end(data):
    """Whether a JPEG has an end marker, or no pixels that one would help to decode.

    OpenCV 4.10 fills what a JPEG without end lacks with the picture that it decoded before, and
    later versions refuse it, though some cameras just leave the marker out.
    """
    if data[-2:].tobytes() == b"\xff\xd9":
        return True
    pixels = [begin for marker, begin, _ in jpeg_segments(data) if marker == START_OF_PIXELS]
    # Anything may follow the end, such as the video of a motion photo.
    return not pixels or data.tobytes().find(b"\xff\xd9", *pixels) > 0


def jpeg_segments(jpeg):
    """Yield marker, begin and end of the content of each segment of a JPEG before its pixels."""
    at = 2
    while found := MARKER.search(jpeg, at):
        marker, begin = found[1][0], found.end()
        at = begin + int.from_bytes(jpeg[begin : begin + 2], "big")
        yield marker, begin + 2, at
        if marker == START_OF_PIXELS:
            return


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
    if kind == "a JPEG" and (form := _odd_jpeg(data)):
        return f"is a JPEG {form}, which OpenCV does not read. Convert it to an 8-bit JPEG."
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


def _odd_jpeg(jpeg):
    """What distinguishes a JPEG from those that are usually read; empty if nothing."""
    for marker, begin, _ in jpeg_segments(jpeg):
        if marker in FRAME_MARKERS:
            bits, height = jpeg[begin : begin + 1].tobytes(), jpeg[begin + 1 : begin + 3].tobytes()
            if bits not in (b"", b"\x08"):
                return f"of {bits[0]} bits"
            if marker in LOSSLESS_MARKERS:
                return "that is lossless"
            return "that tells its height after its pixels" * (height == b"\0\0")
    return ""


def _turned(image, kind, data):
    """The image upright, where that is left to us: JPEG, WebP before OpenCV 5.0, AVIF."""
    quarters, mirror = 0, None  # turns to the left, then the axis to mirror
    if kind == "a JPEG":
        quarters, mirror = TURNS.get(_jpeg_orientation(data), (0, None))
    elif kind == "a WebP" and not _opencv_turns_webp():
        _, found, exif = data.tobytes().rpartition(b"EXIF")
        orientation = tiff_tag(exif[4:].removeprefix(b"Exif\0\0"), ORIENTATION) if found else 1
        quarters, mirror = TURNS.get(orientation, (0, None))
    elif kind == "an AVIF":  # ISO/IEC 23008-12, 6.5
        head = data.tobytes().partition(b"mdat")[0]
        turn, flip = (head.partition(name)[2][:1] for name in (b"irot", b"imir"))
        quarters = turn[0] & 3 if turn else 0
        mirror = flip[0] & 1 if flip else None
    if quarters:
        image = np.rot90(image, quarters)
    if mirror is not None:
        image = np.flip(image, mirror)
    return np.ascontiguousarray(image)


def _jpeg_orientation(jpeg):
    """How the camera was held. OpenCV 4 sees it only in the first of a JPEG's notes."""
    for marker, begin, end in jpeg_segments(jpeg):
        content = jpeg[begin:end].tobytes() if marker == APPLICATION_1 else b""
        if content.startswith(b"Exif\0\0"):
            return tiff_tag(content[6:], ORIENTATION)
    return None


@functools.cache
def _opencv_turns_webp():
    return cv2.imdecode(np.frombuffer(TURNED_WEBP, np.uint8), cv2.IMREAD_COLOR).shape[0] == 2


def tiff_tag(data, wanted, page=0):
    """The first value of a tag of TIFF or EXIF, if a whole number; None where the page has none."""
    order = "little" if data[:2] == b"II" else "big"
    big = data[2:4] in (b"+\0", b"\0+")  # BigTIFF: longer numbers
    word, counter = (8, 8) if big else (4, 2)
    entry = 4 + 2 * word

    def number(at, size):
        return int.from_bytes(data[at : at + size], order)

    start = number(word, word)
    for _ in range(page):
        start = number(start + counter + entry * number(start, counter), word)
    entries = min(number(start, counter), len(data) // entry) if start else 0
    for at in range(start + counter, start + counter + entry * entries, entry):
        if number(at, 2) == wanted:
            size = {1: 1, 4: 4, 16: 8}.get(number(at + 2, 2), 2)
            value = at + 4 + word
            inside = number(at + 4, word) * size <= word  # more lie elsewhere
            return number(value if inside else number(value, word), size)
    return None


def check_file(path, advice=""):
    """Raise SourceError unless this is a regular file: others may never end."""
    if not os.path.exists(path):
        raise SourceError(f"{path or '(empty)'}: no such file.{advice}")
    if not os.path.isfile(path):
        raise SourceError(f"{path}: is not a regular file.{advice}")


def reason_of(error):
    """The part of OpenCV's error that a person can use."""
    # Its attributes are those of the last error of any thread.
    text = " ".join(str(error).split())
    if "PIXELS" in text:
        limit = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", "2^30")
        return f"it has more than {limit} pixels"
    return OPENCV_ERROR.sub(r"\1", text)


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
    kind, _ = kind_of(head)
    if kind in ("a video", "a GIF") or ending in (".mjpg", ".mjpeg"):
        return False  # a GIF is played, as viewers do; OpenCV 4.10 can't read it in another way
    # One that OpenCV does not read is called what it is. FFmpeg may play HEIC as a video.
    return bool(kind) or head.startswith(JPEG_2000) or ending in PICTURE_ENDINGS
