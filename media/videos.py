"""Video files, and what they share with streams: FFmpeg opens both."""

import cv2

from media.addresses import confined, hide_password, why_not_opened
from media.frames import Frame, SourceError
from media.pictures import is_utf8, reason_of

OPEN_TIMEOUT = READ_TIMEOUT = 10  # seconds a stream may stay silent
LARGEST_FRAME = 64_000_000  # pixels of a video; 8K has 33 million


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
        self.fps = frame_rate(capture)

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
                reason = reason_of(error)
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


def open_capture(address, status=None):
    """cv2.VideoCapture of a file or stream that gives a picture; `status`: see `Answer`."""
    name = hide_password(address)
    if not is_utf8(address):
        raise SourceError(f"{name}: its name is not valid UTF-8, which OpenCV needs. Rename it.")
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, OPEN_TIMEOUT * 1000]
    timeouts += [cv2.CAP_PROP_READ_TIMEOUT_MSEC, READ_TIMEOUT * 1000]
    with confined(address):
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, timeouts)
    if not capture.isOpened():
        if "://" in address:
            raise SourceError(f"{name}: can't be opened. {why_not_opened(address, status)}")
        raise SourceError(f"{name}: is neither a picture nor a video that OpenCV reads.")
    pixels = capture.get(cv2.CAP_PROP_FRAME_WIDTH) * capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
    if pixels > LARGEST_FRAME:  # FFmpeg does not know OpenCV's limit
        raise SourceError(f"{name}: a frame has more than {LARGEST_FRAME} pixels.")
    return capture


def frame_rate(capture):
    fps = capture.get(cv2.CAP_PROP_FPS)
    return fps if 0.1 <= fps <= 1000 else 25.0  # some cameras and streams say 0, or 90000
