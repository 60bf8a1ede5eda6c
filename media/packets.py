"""Packets of a video file as they are stored, not decoded: their times, and where pictures change.

OpenCV decodes all pictures of a file as the first: where their size changes, 4.10 repeats the last
one to the end and 5 squeezes what follows; where their colours change form, both read wrong memory.
So what follows a change is written to a file of its own, which is opened anew.
"""

import os
import re
import struct
from collections import deque
from dataclasses import dataclass
from itertools import chain

import cv2

# Packets of sound between two frames before a read fails: hours of them, where a screen is still.
# OpenCV reads this variable once, at the first frame of a process.
os.environ.setdefault("OPENCV_FFMPEG_READ_ATTEMPTS", "1000000")
FAILURES = 250  # reads in a row that fail until a file counts as ended
AHEAD = 64  # packets that a decoder may take in before it gives the first of their pictures
REORDERED = 16  # frames that a codec may store before one that is shown earlier, at most
# What a key packet says of how to decode, by the ending of a file of such packets.
HEADERS = {
    ending: re.compile(pattern, re.DOTALL)
    for ending, pattern in {
        ".mjpeg": rb"\A\xff\xd8.*(\xff[\xc0-\xc2]\0(?:\x0b.{9}|\x11.{15}))",  # start of frame
        ".VP80": rb"\A...\x9d\x01\x2a(.{4})",
        ".VP90": rb"\A[\x80-\xbf]\x49\x83\x42(.{5})",
        ".hevc": rb"\0\0\x01(\x42\x01.*?)(?=\0\0\x01|\Z)",  # sequence parameter set
        ".h264": rb"\0\0\x01([\x27\x47\x67].*?)(?=\0\0\x01|\Z)",
        ".m2v": rb"\0\0\x01(\xb3.{4})",
    }.items()
}


def raw_capture(path):
    """A capture of a file's packets; of several tracks that of the best, not of the first."""
    return cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])


def packets(capture):
    """Yield for each packet how many failed before it; the capture can retrieve it then."""
    failures = 0
    try:
        while failures < FAILURES:
            if capture.grab():
                yield failures
                failures = 0
            else:
                failures += 1
    finally:
        capture.release()


def seconds_of(capture):
    """When what was grabbed last is to be shown."""
    return capture.get(cv2.CAP_PROP_POS_MSEC) / 1000


def header_of(data):
    """How the pictures of a key packet are to be decoded, as (ending, bytes); else None."""
    annex_b = data.startswith((b"\0\0\x01", b"\0\0\0\x01"))
    for ending, pattern in HEADERS.items():
        if annex_b != (pattern.pattern[:2] == rb"\A") and (found := pattern.findall(data)):
            return ending, b"".join(found)
    return None


@dataclass(frozen=True)
class Part:
    """What follows a change, in a file of its own."""

    start: int  # number of its first packet
    path: str
    times: list[float]  # of its packets, in seconds, sorted
    is_timed: bool  # whether the file has them, from 0; some packets may be shown in no frame
    before: tuple[float, ...]  # times of the last packets before the change


class Changes:
    """Where a file's pictures change their size or form, and what follows, one after the other."""

    def __init__(self, capture):
        self._capture, self._packets, self._header = capture, packets(capture), None
        self._count = 0  # packets until now; the last one is that of the change, if there is one
        self._found, self._recent = False, deque(maxlen=REORDERED + 1)

    def begin(self):
        """Take all packets for what follows a change; False where they are of no known kind."""
        self._found = self._next() and self._header is not None
        return self._found

    def found(self, before, second):
        """Whether a change begins before this packet, or second, and was not written yet."""
        while not self._found and (self._count < before or self._recent[-1] < second):
            if not self._next():
                break
        return self._found

    def write(self, folder):
        """Write what follows, up to the next change, to a file; returns the `Part`."""
        start, (ending, _), before = self._count - 1, self._header, tuple(self._recent)[:-1]
        path, times, is_timed = os.path.join(folder, f"{start}{ending}"), [], ending[:3] == ".VP"
        self._found = False
        with open(path, "wb") as file:
            if is_timed:  # IVF: version, length, codec, no size, ticks a second
                head = b"DKIF", 0, 32, ending[1:].encode(), 1000, 1
                file.write(struct.pack("<4sHH4s4xII8x", *head))
            for _ in chain([True], iter(self._next, False)):
                if self._found:
                    break
                data = self._capture.retrieve()[1].tobytes()
                times.append(seconds_of(self._capture))
                if is_timed:
                    tick = max(0, round((times[-1] - times[0]) * 1000))
                    file.write(struct.pack("<IQ", len(data), tick))
                file.write(data)
        return Part(start, path, sorted(times), is_timed, before)

    def _next(self):
        failures = next(self._packets, None)
        if failures is None:
            return False
        self._count += failures + 1
        self._recent.append(seconds_of(self._capture))
        if self._capture.get(cv2.CAP_PROP_LRF_HAS_KEY_FRAME):
            header = header_of(self._capture.retrieve()[1].tobytes())
            self._found = None not in (header, self._header) and header != self._header
            self._header = header or self._header
        return True
