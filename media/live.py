"""Cameras and network streams: always the newest frame."""

import os
import sys
import threading
import time

import cv2

from media import videos
from media.addresses import hide_password
from media.frames import Frame, Source, SourceError
from media.mjpeg import Mjpeg

LONGEST_PAUSE = 30  # seconds between two tries to reconnect
# Reads that fail in a row until a source counts as lost. One damaged picture fails one read, a bad
# cable or radio a few. 30 take a usual camera a second, and no time where nothing is left.
FAILURES = 30
# DirectShow starts at once, Media Foundation after seconds; a few cameras have only the latter.
INTERFACES = {
    "win32": (cv2.CAP_DSHOW, cv2.CAP_MSMF),
    "darwin": (cv2.CAP_AVFOUNDATION,),
    "linux": (cv2.CAP_V4L2,),
}
PRIVACY = {  # where cameras are refused until the user allows them
    "win32": "let desktop apps use it (Settings > Privacy & security > Camera), ",
    "darwin": "allow it for your terminal (System Settings > Privacy & Security > Camera), ",
}
STEADY = 10  # seconds of frames after which a connection counts as good


class Live(Source):
    """A camera or stream: a thread of its own reads it and keeps only the newest frame.

    A driver buffers frames; a loop slower than the camera that read them one by one would show
    the past. Where no frame has come for 0.1 s, the loop gets None. A lost one is tried again
    with pauses of 1, 2, 4 ... seconds; a connection that is soon lost again is one of these
    tries. `address` is a camera's number or path, or that of a stream, `capture` already open.
    """

    live = True

    def __init__(self, address, capture, how):
        is_number = isinstance(address, int)
        super().__init__(f"camera {address}" if is_number else hide_password(address))
        self._address, self._how = address, how
        self.dropped = 0  # frames taken that were never asked for in time
        self.error = ""  # why it ended; empty while it runs, or where it was closed
        self._frame, self._taken = None, -how.every
        self._count, self._started = 0, None
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._fps = videos.frame_rate(capture)
        self._is_mjpeg = isinstance(capture, Mjpeg)
        self._is_stream = isinstance(address, str) and "://" in address
        # On Windows, DirectShow's grab() doesn't wait for a frame, and so would skip none.
        self._grabs = self._is_stream or sys.platform != "win32"
        self._thread = threading.Thread(target=self._run, args=(capture,), daemon=True)
        self._thread.start()

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
                    self.dropped += (frame.index - self._taken) // self._how.every - 1
                    self._taken = frame.index
                elif self.error or self._closing.is_set():
                    return
            yield frame

    def even_rate(self):
        return self._fps / self._how.every

    def summary(self, done):
        return f"{done} frames shown or written, {self.dropped} dropped to keep up"

    def fault(self, done, unreadable, ended):
        return self.error

    def _news(self):
        return self.error or (self._frame is not None and self._frame.index != self._taken)

    def _run(self, capture):
        tries = 0
        while capture is not None:
            connected = time.perf_counter()
            last = self._read(capture)
            capture.release()
            if last - connected > STEADY:
                tries = 0
            capture, tries = self._connect_again(tries)
        with self._changed:
            if not self._closing.is_set():
                self.error = f"{self.name}: gives no more frames"
                if not (self._count or self._is_stream):
                    self.error = f"{self.name}: gives no frame. {_what_to_do()}."
            self._changed.notify_all()

    def _read(self, capture):
        """Read until it is lost, or this is closed; returns when the last frame came."""
        failures, last = 0, time.perf_counter()
        # A read that waited in vain is not repeated: that would take as long again.
        while failures < FAILURES and not (failures and _patience_ended(last)):
            if self._closing.is_set():
                break
            taken = self._count % self._how.every == 0
            try:
                reads = taken or not self._grabs
                ok, image = capture.read() if reads else (capture.grab(), None)
            except cv2.error:
                ok = False
            # After a wait in vain, FFmpeg gives frames that it kept, each after one more.
            if not ok or (self._is_stream and _patience_ended(last)):
                failures += 1
                continue
            failures, last = 0, time.perf_counter()
            self._started = self._started or last
            if taken:
                with self._changed:
                    seconds = last - self._started
                    self._frame = Frame(self.name, self._count, seconds, image, moving=True)
                    self._changed.notify_all()
            self._count += 1
        return last

    def _connect_again(self, tries):
        """A new capture, or None, and how many tries were made until now."""
        while tries < self._how.reconnect and not self._closing.is_set():
            pause = min(2**tries, LONGEST_PAUSE)
            what = "lost" if self._count else "gives no frame"
            self._how.notify(f"{self.name}: {what}, trying again in {pause} s")
            if self._closing.wait(pause):
                break
            tries += 1
            try:
                capture = self._open()
            except (SourceError, OSError):
                continue
            self._how.notify(f"{self.name}: back")
            return capture, tries
        return None, tries

    def _open(self):
        if self._is_mjpeg:
            return Mjpeg(self._address)
        if self._is_stream:
            return videos.open_capture(self._address)
        return open_camera(self._address, self._how.camera)


def _patience_ended(last):
    return time.perf_counter() - last >= videos.READ_TIMEOUT


def _what_to_do():
    """The sentence for a camera that shows nothing, without its full stop."""
    allow = PRIVACY.get(sys.platform, "")
    return f"Plug it in, close other programs that use it, {allow}or give another camera with -i"


def open_camera(camera, asked=None):
    """The camera of this number or path, by the interface that starts quickest on each system."""
    by_path = isinstance(camera, str)
    name = camera if by_path else f"camera {camera}"
    known = by_path or camera < 2**31  # what fits into OpenCV's number
    for interface in INTERFACES.get(sys.platform, (cv2.CAP_ANY,)):
        capture = cv2.VideoCapture(camera if known else -1, interface)
        if known and capture.isOpened():
            break
    else:
        raise SourceError(f"{name}: can't be opened. {_what_to_do()}, or a picture or video.")
    if asked:
        width, height = asked.size or (0, 0)
        # USB has room for 5 to 10 raw frames a second of more than VGA.
        form = cv2.VideoWriter_fourcc(*"MJPG") if width * height > 640 * 480 else 0
        wanted = [
            (cv2.CAP_PROP_FOURCC, form),
            (cv2.CAP_PROP_FRAME_WIDTH, width),
            (cv2.CAP_PROP_FRAME_HEIGHT, height),
            (cv2.CAP_PROP_FPS, asked.fps),
        ]
        if interface == cv2.CAP_DSHOW:  # where size and rate reset the format
            wanted = [wanted[3], *wanted[1:3], wanted[0]]
        for key, value in wanted:
            if value:
                capture.set(key, value)
    return capture


def given_by(capture):
    """What a camera gives, for people: size, rate and format of its frames."""
    names = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS)
    width, height, fps = map(capture.get, names)
    code = int(capture.get(cv2.CAP_PROP_FOURCC)) % (1 << 32)
    code = code.to_bytes(4, "little").decode("ascii", "replace").strip()
    form = f" as {code}" if code.isalnum() else ""  # some cameras don't tell
    rate = f" at {fps:g} frames a second" if fps > 0 else ""
    return f"gives {width:.0f}x{height:.0f}{rate}{form}"


def is_camera(value):
    """Whether an input's text is a camera's number or the path of its device."""
    if value.isascii() and value.isdecimal():
        return True
    # On Linux; a name that udev rules made is a link to /dev/video0 and the like.
    is_device = value.startswith("/dev/") and "\0" not in value
    return is_device and os.path.realpath(value).startswith(("/dev/video", "/dev/v4l/"))


def is_live(value):
    """Whether an input's text names a camera or an address."""
    return is_camera(value) or "://" in value
