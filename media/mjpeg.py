"""JPEG after JPEG over http, as network cameras send them.

FFmpeg wants a boundary before the first picture, parts of type image/jpeg, and no text between
them; it gives nothing, or one picture, where a camera does otherwise. Browsers just look for
pictures, and so does this.
"""

import re
import time
from contextlib import ExitStack

import cv2
import numpy as np

from media import videos
from media.addresses import response_of
from media.pictures import END_OF_JPEG, MARKER

LARGEST_JPEG = 20_000_000  # bytes
HEAD = 4096  # bytes within which the first picture begins
START, SCAN = b"\xff\xd8\xff", b"\xda"
END = re.compile(b"\xff[\xd8\xd9]")  # of the pixels: the end, or the next picture if there is none


# What a server may call such a stream, or where it does not say before it is asked for it.
KINDS = re.compile("multipart/|image/|video/x-(motion-)?jpeg|application/octet-stream|$")


def open_mjpeg(address, answer):
    """An `Mjpeg` of what an http server sends; None if that is something else, or can't be had.

    `answer` is what the server said of it before.
    """
    if answer.kind is None or not KINDS.match(answer.kind):
        return None
    try:
        return Mjpeg(address)
    except OSError:
        return None


class Mjpeg:
    """A cv2.VideoCapture for such a stream: `grab` receives a picture, `retrieve` decodes it.

    OSError where it can't be had, or is something else.
    """

    def __init__(self, address):
        self._open = ExitStack()
        self._response = self._open.enter_context(response_of(address, "GET", videos.READ_TIMEOUT))
        self._data, self._picture = bytearray(), b""
        self._at, self._pixels = 0, False  # where to look on, and whether that is among the pixels
        if not self._begins():
            self.release()
            raise OSError("no picture comes soon")

    def get(self, wanted):
        """No property is known."""
        return 0.0

    def grab(self):
        """Wait for the next picture; False at the end, and where none comes in time."""
        ends = time.monotonic() + videos.READ_TIMEOUT
        while not self._take():
            if len(self._data) > LARGEST_JPEG:
                self._drop(len(self._data))
                return False
            if time.monotonic() > ends or not self._receive():
                return False
        return True

    def retrieve(self):
        """Decode the picture: whether it could be, and the image."""
        image = cv2.imdecode(np.frombuffer(self._picture, np.uint8), cv2.IMREAD_COLOR)
        return image is not None, image

    def read(self):
        """Grab and retrieve."""
        return self.retrieve() if self.grab() else (False, None)

    def release(self):
        """Close the connection."""
        self._open.close()

    def _begins(self):
        ends = time.monotonic() + videos.READ_TIMEOUT
        while (start := self._data.find(START)) < 0 and len(self._data) < HEAD:
            if time.monotonic() > ends or not self._receive():
                return False
        return 0 <= start < HEAD

    def _receive(self):
        try:
            block = self._response.read1(1 << 16)
        except (OSError, ValueError):  # it stalls, is lost, or was closed meanwhile
            return False
        self._data += block
        return bool(block)

    def _take(self):
        """Take a whole picture out of what came; each byte is looked at once."""
        data = self._data
        if not self._at:
            self._find_start()
        # Segments before the pixels may contain a smaller picture.
        while self._at and not self._pixels and self._at + 4 <= len(data):
            if data[self._at : self._at + 2] == b"\xff\xff":  # more of them may stand in front
                self._at += 1
                continue
            marker = MARKER.match(data, self._at)
            if not marker or marker.end() + 2 > len(data):
                self._drop(2)  # no picture after all
                self._find_start()
                continue
            self._at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
            self._pixels = marker[1] == SCAN
        end = self._pixels and END.search(data, self._at)
        if not end:
            self._at = max(self._at, len(data) - 1) if self._pixels else self._at
            return False
        self._picture = bytes(data[: end.start()]) + END_OF_JPEG.tobytes()
        self._drop(end.end() if end[0] == b"\xff\xd9" else end.start())
        return True

    def _find_start(self):
        start = self._data.find(START)
        self._drop(start if start >= 0 else max(0, len(self._data) - 2))
        self._at = 2 if start >= 0 else 0

    def _drop(self, size):
        del self._data[:size]
        self._at, self._pixels = 0, False
