"""Videos that are written: their pace, size, space, errors and name. An encoder makes the file.

An encoder has

    open(path, size, fps, start)  False if it can't; what it shows first is at second `start` of
                                  the input
    add(image, second)            an image of this size, and when it is shown
    finish()                      makes the file whole

and tells by `own_times` whether an image may be shown at any time or each for 1 / fps, by
`plays_unfinished` what its name says, and by `advice` what people should know once it is saved.
"""

import itertools
import os
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import cv2

from media.frames import counted
from media.outputs import CODECS, OutputError, check_name, temporary_name
from media.pictures import ending_of, reason_of

RESERVE = 2 << 20  # bytes left free for the index that a video ends with


def open_film(path, source, clock=None):
    """The `Film` of a source's frames: H.264 in .mp4 where PyAV is installed, else by OpenCV."""
    encoder = OpenCVEncoder()
    if ending_of(path) == ".mp4":
        try:
            from media.h264 import H264Encoder  # not at the top: PyAV is optional, and slow to load

            encoder = H264Encoder(source.sound, source.ends)
        except ImportError:
            encoder.advice = " (for browsers and sound: pip install av)"
    return Film(path, source.even_rate(), encoder, clock)


class Film:
    """A sink that saves a video: it grows frame by frame and gets its name when it is closed.

    `clock` takes a frame and returns the second at which it is shown, `frame.time` if not given.
    Where the encoder shows each image for 1 / fps, an image is repeated until the next one is due,
    and left out if that is due at once, so that the video keeps the pace. OutputError if it can't
    be written; what was written before stays playable.

    Attributes
    ----------
    length : int
        Images written.
    advice : str
        For people, after what was saved.
    """

    def __init__(self, path, fps, encoder=None, clock=None):
        check_name(path, moving=True)
        self._path, self._fps, self._encoder = path, fps, encoder or OpenCVEncoder()
        self._clock = clock or (lambda frame: frame.time)
        self._start = self._image = None  # second of the first frame; what is shown until the next
        self._part = temporary_name(path, hidden=not self._encoder.plays_unfinished)
        self._size, self._is_open, self.length, self.advice = None, False, 0, ""

    def write(self, frame, result):
        """Add the drawn image of a frame; of one that can't be read, the one before it."""
        now, before = self._clock(frame), self._image
        if self._start is None:
            self._start = now
        if result is not None:
            self._image = result.drawn
        if self._image is None:
            return
        second = now - self._start
        if self._encoder.own_times:
            self.add(self._image, second if self.length else 0)
            return
        place = round(second * self._fps)
        while self.length < place:
            self.add(self._image if before is None else before)
        if self.length == place:
            self.add(self._image)

    def add(self, image, second=None):
        """Add a BGR image, right after the last one if `second` does not say when.

        One of another size than the first is fitted to it.
        """
        try:
            if not self._is_open:
                self._open(image)
            self._check_space(image.nbytes)
            second = self.length / self._fps if second is None else second
            self._encoder.add(_fitted(image, self._size), second)
        except OSError as error:
            raise OutputError(f"{self._path}: can't be written: {error.strerror}.") from error
        except cv2.error as error:
            raise OutputError(f"{self._path}: can't be written: {reason_of(error)}.") from error
        self.length += 1

    def _open(self, image):
        height, width = image.shape[:2]
        # Encoders work on blocks of 2x2; OpenCV would cut an odd row or column off.
        self._size = (width + width % 2, height + height % 2)
        os.makedirs(os.path.dirname(self._part), exist_ok=True)
        Path(self._part).touch(exist_ok=False)
        self._is_open = self._encoder.open(self._part, self._size, self._fps, self._start or 0)
        if not self._is_open:
            raise OutputError(
                f"{self._path}: a video of {width}x{height} at {self._fps:g} frames a second "
                "can't be written here. Try another ending or folder."
            )

    def _check_space(self, frame_bytes):
        import shutil  # not at the top: one picture must stay fast

        # cv2.VideoWriter does not report a full disk, and a video without its end can't be
        # played: stop while the end still fits.
        needed = RESERVE + frame_bytes + 64 * self.length
        if shutil.disk_usage(os.path.dirname(self._path) or ".").free < needed:
            raise OutputError(f"{self._path}: the disk is full.")
        limit = _largest_file()
        if limit is not None and os.path.getsize(self._part) + needed > limit:
            raise OutputError(f"{self._path}: the limit of {limit} bytes for a file is reached.")

    def close(self):
        """End the video and give it its name; return what was saved, for people.

        One without images leaves no file.
        """
        if self._is_open:
            self._is_open = False
            try:
                self._finish()
            except OSError as error:
                raise OutputError(f"{self._path}: can't be written: {error.strerror}.") from error
        if not self.length:
            Path(self._part).unlink(missing_ok=True)
            return None
        return f"{self._path}, {counted(self.length, 'frames')}{self.advice}"

    def _finish(self):
        try:
            self._encoder.finish()
        finally:
            self.advice = self._encoder.advice
            if self.length:
                self._take_name()

    def _take_name(self):
        try:
            os.replace(self._part, self._path)
        except OSError as error:  # on Windows, while a player has the earlier one open
            if not os.path.exists(self._part):
                raise
            kept, stem, ending = self._part, *os.path.splitext(self._path)
            names = (f"{stem}-{number}{ending}" for number in itertools.count(2))
            with suppress(OSError):
                free = next(name for name in names if not os.path.lexists(name))
                os.rename(self._part, free)
                kept = free
            raise OutputError(
                f"{self._path}: can't be replaced: {error.strerror}. The video is kept as {kept}."
            ) from error


def _fitted(image, size):
    """An image of this size: one that lacks a row or column gets its last one twice.

    One of another shape keeps it, between black bars.
    """
    right, bottom = size[0] - image.shape[1], size[1] - image.shape[0]
    if right == bottom == 0:
        return image
    if right in (0, 1) and bottom in (0, 1):
        return cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    scale = min(size[0] / image.shape[1], size[1] / image.shape[0])
    width, height = (max(1, round(side * scale)) for side in image.shape[1::-1])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    right, bottom = size[0] - width - left, size[1] - height - top
    return cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT)


def _largest_file():
    """The system's limit for one file in bytes, None where there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


@contextmanager
def _without_stderr():
    """Lose what any library prints to stderr in here."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none, as in a program without a console
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


class OpenCVEncoder:
    """Encodes as OpenCV can, the kind inferred from the ending; without sound."""

    own_times = plays_unfinished = False
    advice = ""

    def open(self, path, size, fps, start):
        """Begin a video; False where this OpenCV can't."""
        fourcc = cv2.VideoWriter_fourcc(*CODECS[ending_of(path)])
        # Of VP8 in WebM OpenCV prints that it is not supported, and then writes it.
        with _without_stderr() if ending_of(path) == ".webm" else nullcontext():
            self._writer = cv2.VideoWriter(path, cv2.CAP_FFMPEG, fourcc, fps, size)
        return self._writer.isOpened()

    def add(self, image, second):
        """Add an image right after the last one."""
        self._writer.write(image)

    def finish(self):
        """End the file with its index."""
        self._writer.release()
