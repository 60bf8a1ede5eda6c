"""Where frames come from: pictures, folders, video files, cameras, network streams.

from media.sources import open_source
with open_source("clip.mp4") as source:
    for frame in source:
        print(frame.index, frame.time, frame.image.shape)
"""

import glob
import os
import sys
import threading
import time
from dataclasses import dataclass

import cv2
import numpy as np

PICTURE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".sr", ".ras", ".avif"),
)
ACCEPTED = (
    "a picture, video, folder, pattern such as 'shots/*.jpg', http, https or rtsp address, "
    "or camera number"
)
JPEG_2000 = (b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")
OPEN_TIMEOUT = READ_TIMEOUT = 10  # seconds a stream may stay silent
LARGEST_FRAME = 64_000_000  # pixels of a video; 8K has 33 million
LONGEST_PAUSE = 30  # seconds between two tries to reconnect


class SourceError(Exception):
    """A source that can't be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes
    ----------
    source : str
        The file, address or camera that it comes from.
    index : int
        Its number in the source, from 0; counts frames that were dropped.
    time : float
        Seconds since the source's first frame.
    image : ndarray of shape (H, W, 3), uint8, or None
        BGR; None for a picture that can't be read.
    error : str
        Why not.
    """

    source: str
    index: int
    time: float
    image: np.ndarray | None
    error: str = ""


def read_picture(path):
    """Read a picture in its upright orientation, whatever its name.

    Parameters
    ----------
    path : str

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        BGR.

    Raises
    ------
    SourceError
        If there is no such file, or OpenCV can't read it.
    """
    return decode_picture(read_file(path), path)


def read_file(path):
    """The bytes of a picture's file, as an array; SourceError if it can't be read."""
    _check_file(path)
    try:
        return np.fromfile(path, np.uint8)  # cv2.imread fails on other alphabets on Windows
    except OSError as error:
        raise SourceError(f"{path}: can't be read: {error.strerror}.") from error


def decode_picture(data, path):
    """The picture in a file's bytes, as of `read_picture`; `path` is only for the error."""
    if not data.size:
        raise SourceError(f"{path}: is empty. Give {ACCEPTED}.")
    if data[:12].tobytes().startswith(JPEG_2000):
        raise SourceError(f"{path}: is JPEG 2000, on which OpenCV 4 can crash. Convert it.")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise SourceError(f"{path}: can't be read: {_reason(error)}.") from error
    if image is None:
        raise SourceError(f"{path}: is neither a picture nor a video that OpenCV reads.")
    return image


def _check_file(path):
    """Raise SourceError unless this is a regular file: others may never end."""
    if not os.path.exists(path):
        raise SourceError(f"{path or '(empty)'}: no such file. Give {ACCEPTED}.")
    if not os.path.isfile(path):
        raise SourceError(f"{path}: is not a regular file. Give {ACCEPTED}.")


def _reason(error):
    """The part of OpenCV's error that a person can use."""
    text = str(error.err or error)
    if "PIXELS" in text:
        limit = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", "2^30")
        return f"it has more than {limit} pixels"
    return " ".join(text.split())


class Pictures:
    """Picture files, in the order given.

    Of many, one that can't be read is a frame with an error; a single one
    that can't be read raises SourceError.

    Attributes
    ----------
    name : str
        As the user gave it.
    kind : str
        "folder" or, for a single one, "picture".
    paths : list of str
    root : str or None
        The folder that all lie below; None for a single picture.
    length : int
    """

    def __init__(self, name, paths, root):
        self.name, self.paths, self.root, self.length = name, paths, root, len(paths)
        self.kind = "picture" if root is None else "folder"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __iter__(self):
        for path in self.paths:
            try:
                yield Frame(path, 0, 0.0, read_picture(path))
            except SourceError as error:
                if self.root is None:
                    raise
                yield Frame(path, 0, 0.0, None, str(error))

    def summary(self, done):
        """How far a run came, for people."""
        return f"{done} of {self.length} pictures"

    def fault(self, done, unreadable, ended):
        """What was wrong with it, for people; `ended`: it was read to its end, not left early."""
        return f"{unreadable} of {self.length} pictures can't be read" if unreadable else ""


class Video:
    """A video file, upright as its player shows it.

    Attributes
    ----------
    name : str
        Its path or address.
    kind : str
        "video".
    fps : float
        Frames a second.
    length : int or None
        Frames that the file says it has.
    """

    kind = "video"

    def __init__(self, name, capture):
        self.name, self._capture = name, capture
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.length = round(count) if 0 < count < 1e9 else None
        self.fps = _frame_rate(capture)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._capture.release()

    def __iter__(self):
        index = 0
        while True:
            try:
                ok, image = self._capture.read()
            except cv2.error as error:
                reason = _reason(error)
                raise SourceError(
                    f"{self.name}, frame {index}: can't be read: {reason}."
                ) from error
            if not ok:
                break
            seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000  # of the frame just read
            yield Frame(self.name, index, seconds, image)
            index += 1
        if not index:
            raise SourceError(f"{self.name}: contains no picture that OpenCV reads.")

    def summary(self, done):
        """How far a run came, for people."""
        return f"{done} frames"

    def fault(self, done, unreadable, ended):
        """What was wrong with it, for people; `ended`: it was read to its end, not left early."""
        # The length is exact in MP4 and AVI, an estimate elsewhere.
        if ended and self.length and done < 0.9 * self.length:
            return f"{self.name}: ends at frame {done} of {self.length}; is it cut off?"
        return ""


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
        self.fps = _frame_rate(capture)
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
                capture = _open_capture(self.address)
            except SourceError:
                continue
            self._notify(f"{self.name}: back")
            return capture
        return None


def _open_camera(number):
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


def _open_capture(address):
    """cv2.VideoCapture of a file or stream that gives a picture."""
    if not _is_utf8(address):
        raise SourceError(f"{address}: its name is not valid UTF-8, which OpenCV needs. Rename it.")
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT * 1000]
    timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT * 1000]
    capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, timeouts)
    if not capture.isOpened():
        if "://" in address:
            raise SourceError(f"{address}: can't be opened. Is the address right, the server up?")
        raise SourceError(f"{address}: is neither a picture nor a video that OpenCV reads.")
    pixels = capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if pixels > LARGEST_FRAME:  # FFmpeg does not know OpenCV's limit
        raise SourceError(f"{address}: a frame has more than {LARGEST_FRAME} pixels.")
    return capture


def _frame_rate(capture):
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 0.1 <= fps <= 1000 else 25.0  # some cameras and streams say 0, or 90000


def is_live(value):
    """Whether an input's text names a camera or an address."""
    return (value.isascii() and value.isdecimal()) or "://" in value


def open_source(value, output_folder=None, reconnect=5, notify=lambda line: None):
    """Find out what an input is, from its text and the file itself, and open it.

    Parameters
    ----------
    value : str
        See `ACCEPTED`. A file's kind is inferred from its content.
    output_folder : str, optional
        Where results go: left out where it lies below a folder or pattern.
    reconnect, notify
        See `Live`.

    Returns
    -------
    Pictures, Video or Live
        A context manager to loop over.

    Raises
    ------
    SourceError
        If it is none of these, or can't be opened.
    """
    if is_live(value) and "://" not in value:
        number = int(value[:20])  # int() refuses thousands of digits
        return Live(number, _open_camera(number), reconnect, notify)
    if "://" in value:
        if not value.startswith(("http://", "https://", "rtsp://", "rtsps://")):
            raise SourceError(f"{value}: unknown kind of address. Give {ACCEPTED}.")
        capture = _open_capture(value)
        video = Video(value, capture)
        return video if video.length else Live(value, capture, reconnect, notify)
    if os.path.isdir(value):
        return Pictures(value, _pictures_below(value, output_folder), value)
    if not os.path.exists(value) and glob.has_magic(value):
        try:
            found = glob.glob(value, recursive=True)
        except ValueError:  # no file can have such a name
            found = []
        paths = sorted(filter(os.path.isfile, found))
        if not paths:
            raise SourceError(f"{value}: no file fits this pattern. Give {ACCEPTED}.")
        paths = [path for path in paths if not _below(path, output_folder)] or paths
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
        return Pictures(value, paths, root)
    _check_file(value)
    if _is_picture(value):
        return Pictures(value, [value], None)
    return Video(value, _open_capture(value))


def _pictures_below(folder, output_folder):
    """Paths of all pictures in a folder and those below it, sorted."""
    paths = []
    for parent, folders, names in os.walk(folder):  # does not follow links, so no loops
        folders[:] = [
            name for name in folders if not _below(os.path.join(parent, name), output_folder)
        ]
        paths += [os.path.join(parent, name) for name in names if _has_picture_ending(name)]
    if not paths:
        endings = " ".join(PICTURE_ENDINGS)
        raise SourceError(f"{folder}: no picture in this folder. Endings read: {endings}.")
    return sorted(paths)


def _below(path, folder):
    """Whether a path is this folder or lies in it."""
    if folder is None:
        return False
    path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path == folder or path.startswith(os.path.join(folder, ""))


def _has_picture_ending(name):
    return os.path.splitext(name)[1].lower() in PICTURE_ENDINGS


def _is_picture(path):
    """Whether a file holds a still picture, or at least its name says so."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        raise SourceError(f"{path}: can't be read: {error.strerror}.") from error
    if not head:
        raise SourceError(f"{path}: is empty. Give {ACCEPTED}.")
    if head.startswith((b"#EXTM3U", b"ffconcat")):  # FFmpeg would open the files named in it
        raise SourceError(f"{path}: is a list of other files. Give {ACCEPTED}.")
    if head.startswith(b"GIF8"):  # played, as viewers do; OpenCV 4.10 can't read it in another way
        return False
    if head.startswith(JPEG_2000) or _has_picture_ending(path):
        return True
    return _is_utf8(path) and cv2.haveImageReader(path)


def _is_utf8(path):
    """Whether cv2 takes this name; it crashes on a name that is not valid UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
