"""What a video file says of itself: the boxes of MP4, chunks of AVI, elements of Matroska."""

import os
import struct

MOST_BOXES = 200_000  # of a file; a recording of a day may have two a second
MATROSKA, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
MP4 = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"sidx", b"moof", b"pnot")
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def boxes(file, start, end):
    """Yield kind, start and end of what each box of MP4 between two places contains."""
    for _ in range(MOST_BOXES):
        if start >= end:
            break
        file.seek(start)
        size, kind, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        size, head = {0: (end - start, 8), 1: (large, 16)}.get(size, (size, 8))
        yield kind, start + head, start + max(size, 8)
        start += max(size, 8)


def is_mp4(path):
    """Whether a file is MP4, QuickTime or of their family."""
    return _head(path)[4:8] in MP4


def states_times(path):
    """Whether a file's kind states when each frame is shown, however long that is."""
    return is_mp4(path) or _head(path).startswith(MATROSKA)


def why_refused(path):
    """The sentence on a file that makes FFmpeg open other files or addresses; else empty."""
    with open(path, "rb") as file:
        for _ in range(100):
            head = file.read(10)
            if not head.startswith(b"ID3") or len(head) < 10:  # FFmpeg skips these notes
                break
            size = 0
            for byte in head[6:]:
                size = size << 7 | byte & 0x7F
            file.seek(size + 10 * bool(head[5] & 0x10), os.SEEK_CUR)
        text = (head + file.read(100)).lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith((b"#EXTM3U", b"ffconcat")):
        return "is a list of other files. Give these."
    if text.startswith(b"v=0"):
        return (
            "is an SDP file of an RTP stream, which is not opened. Give the camera's rtsp address."
        )
    return ""


def is_cut_off(path):
    """Whether a file lacks bytes that it counts itself."""
    with open(path, "rb") as file:
        head, end = file.read(1 << 16), file.seek(0, 2)
        if head[4:8] in MP4:
            return max(stop for _, _, stop in boxes(file, 0, end)) > end
        if head.startswith(b"FLV"):  # each tag is followed by its length
            return not _ends_with_a_tag(file, end)
        if head.startswith(MATROSKA):
            counted = _end_of_matroska(head)
        elif head.startswith(b"RIFF"):
            counted = _end_of_riff(file)
        elif head.startswith(ASF):
            at = head.find(ASF_PROPERTIES)
            counted = int.from_bytes(head[at + 40 : at + 48], "little") if at > 0 else 0
        else:
            counted = 0
    return counted > end


def _end_of_matroska(head):
    """Where the first segment ends; 0 where it does not say."""
    at = 0
    while at < len(head) - 16:
        length = 9 - head[at].bit_length()  # of a number is in its first bits
        kind, at = head[at : at + length], at + length
        length = 9 - head[at].bit_length()
        size = int.from_bytes(head[at : at + length], "big") & (1 << 7 * length) - 1
        unknown = size == (1 << 7 * length) - 1
        at += length + size
        if kind == SEGMENT or unknown or length > 8:
            return 0 if unknown or kind != SEGMENT else at
    return 0


def _end_of_riff(file):
    """Where the last chunk ends; 0 where one does not say, as while it is still written."""
    at = 0
    for _ in range(MOST_BOXES):
        file.seek(at)
        kind, size = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
        if kind != b"RIFF":
            break
        if size in (0, 0xFFFFFFFF):
            return 0
        at += 8 + size + size % 2
    return at - 1  # the last byte is only there to make the number even


def _ends_with_a_tag(file, end):
    file.seek(max(0, end - 4))
    length = int.from_bytes(file.read(4), "big")
    file.seek(max(0, end - 4 - length))
    return file.read(4)[1:] == (length - 11).to_bytes(3, "big") if 11 <= length < 1 << 24 else False


def is_mirrored(path):
    """Whether an MP4 wants its pictures mirrored before they are turned, as of selfies."""
    with open(path, "rb") as file:
        for matrix in _video_tracks(file):
            a, b, c, d = (matrix[i] for i in (0, 1, 3, 4))
            return a * d - b * c < 0
    return False


def _video_tracks(file):
    """Yield for each video track of an MP4 the matrix that tells how to display it."""
    head, end = file.read(8), file.seek(0, 2)
    if head[4:8] not in MP4:
        return
    for start, stop in _inside(file, 0, end, b"moov"):
        for track, track_end in _inside(file, start, stop, b"trak"):
            handlers = [
                place
                for media, media_end in _inside(file, track, track_end, b"mdia")
                for place, _ in _inside(file, media, media_end, b"hdlr")
            ]
            for place, _ in _inside(file, track, track_end, b"tkhd"):
                if handlers and _read(file, handlers[0] + 8, 4) == b"vide":
                    version = _read(file, place, 1)
                    matrix = _read(file, place + (52 if version == b"\1" else 40), 36)
                    yield struct.unpack(">9i", matrix.ljust(36, b"\0"))


def _inside(file, start, end, wanted):
    """Yield where each box of one kind between two places starts and ends."""
    for kind, inner, stop in boxes(file, start, end):
        if kind == wanted:
            yield inner, min(stop, end)


def _read(file, place, size):
    file.seek(place)
    return file.read(size)


def _head(path, size=64):
    with open(path, "rb") as file:
        return file.read(size)


def why_not_read(path):
    """The sentence on a file that OpenCV does not open, with what to do."""
    head = _head(path)
    if head[4:12] == b"ftypcrx ":
        return "is a camera's raw file, which OpenCV does not read. Convert it to JPEG."
    if head[4:8] not in MP4:
        return "is neither a picture nor a video that OpenCV reads."
    with open(path, "rb") as file:
        kinds = [kind for kind, _, _ in boxes(file, 0, os.path.getsize(path))]
    if b"moov" in kinds:
        return "is a video that OpenCV does not read, or damaged. Convert it to H.264 in MP4."
    if b"moof" in kinds:
        return "is a fragment of a video, without its beginning. Join the first part and this one."
    return (
        "has no index (moov), as where the power went before the recording ended. "
        "A program such as untrunc may repair it."
    )
