"""Cameras and network streams: always the newest frame."""

import sys
import threading
import time

import cv2

from media.frames import ACCEPTED, Frame, SourceError
from media.videos import frame_rate, open_capture

LONGEST_PAUSE = 30  # seconds between two tries to reconnect


class Live:
    """A camera or stream: a thread of its own reads it and keeps only the newest frame.

    A driver buffers frames; a loop slower than the camera that read them one
    by one would show the past. Where no frame has come for 0.1 s, the loop
    gets None, so that it can look after other things.

    Parameters
    ----------
    address : int or str
        Camera number, or address of a stream.
    capture : cv2.VideoCapture
        Already open.
    reconnect : int
        How often in a row a lost stream is tried again, with pauses of 1, 2,
        4 ... seconds.
    notify : callable
        Called with a line for the user when the stream is lost or back.

    Attributes
    ----------
    name : str
        For people.
    kind : str
        "video", which is what can be made of it.
    length : None
        Not known.
    fps : float
        Frames a second that the source says it gives.
    dropped : int
        Frames that were read but never asked for in time.
    error : str
        Why it ended; empty while it runs, or where it was closed.
    """

    kind, length = "video", None

    def __init__(self, address, capture, reconnect, notify):
        self.address, self._reconnect, self._notify = address, reconnect, notify
        self.name = f"camera {address}" if isinstance(address, int) else address
        self.dropped, self.error = 0, ""
        self._frame, self._taken = None, -1
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self.fps = frame_rate(capture)
        self._thread = threading.Thread(target=self._read, args=(capture,), daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._closing.set()
        # A read from a silent stream returns at its time-out; nobody has to wait for that.
        self._thread.join(timeout=2)

    def __iter__(self):
        while True:
            with self._changed:
                self._changed.wait_for(self._news, timeout=0.1)
                frame = self._frame
                if frame is not None and frame.index == self._taken:
                    frame = None
                if frame is not None:
                    self.dropped += frame.index - self._taken - 1
                    self._taken = frame.index
                elif self.error or self._closing.is_set():
                    return
            yield frame

    def summary(self, done):
        """How far a run came, for people."""
        return f"{done} frames shown or written, {self.dropped} dropped to keep up"

    def fault(self, done, unreadable, ended):
        """What was wrong with it, for people; `ended`: it was read to its end, not left early."""
        return self.error

    def _news(self):
        return self.error or (self._frame is not None and self._frame.index != self._taken)

    def _read(self, capture):
        index, started = 0, None
        while not self._closing.is_set():
            try:
                ok, image = capture.read()
            except cv2.error:
                ok = False
            if ok:
                started = started or time.monotonic()
                frame = Frame(self.name, index, time.monotonic() - started, image)
                with self._changed:
                    self._frame = frame
                    self._changed.notify_all()
                index += 1
                continue
            capture.release()
            capture = None if isinstance(self.address, int) else self._connect_again()
            if capture is None:
                with self._changed:
                    self.error = f"{self.name}: gives no more frames"
                    self._changed.notify_all()
                return
        capture.release()

    def _connect_again(self):
        for attempt in range(self._reconnect):
            pause = min(2**attempt, LONGEST_PAUSE)
            self._notify(f"{self.name}: lost, trying again in {pause} s")
            if self._closing.wait(pause):
                return None
            try:
                capture = open_capture(self.address)
            except SourceError:
                continue
            self._notify(f"{self.name}: back")
            return capture
        return None


def open_camera(number):
    """The camera of this number, by the interface that starts quickest on each system."""
    backend = {"win32": cv2.CAP_DSHOW, "darwin": cv2.CAP_AVFOUNDATION, "linux": cv2.CAP_V4L2}
    known = number < 2**31  # what fits into OpenCV's number
    capture = cv2.VideoCapture(number if known else -1, backend.get(sys.platform, cv2.CAP_ANY))
    if not known or not capture.isOpened():
        raise SourceError(
            f"camera {number}: can't be opened. Plug it in, close other programs that use it, "
            f"or give another number with -i, or {ACCEPTED}."
        )
    return capture


def is_live(value):
    """Whether an input's text names a camera or an address."""
    return (value.isascii() and value.isdecimal()) or "://" in value
