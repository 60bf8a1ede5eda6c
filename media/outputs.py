"""Where results go: pictures, videos and JSON Lines, whole or not at all.

A picture or video is written under a temporary name and renamed when it is
complete, so that a file of the final name is never half a file.
"""

import json
import os
import sys
from contextlib import contextmanager

import cv2
import numpy as np

from media.drawing import label_of

VIDEO_ENDINGS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v"}
RESERVE = 2 << 20  # bytes left free for the index that a video ends with


class OutputError(Exception):
    """A result that can't be written; the message names it and says what to do."""


def temporary_name(path):
    """The name beside `path` that holds a result until it is whole; it keeps the ending."""
    folder, name = os.path.split(path)
    stem, ending = os.path.splitext(name)
    # Cut, so that a name of the greatest length allowed still works, and in ASCII, which
    # every encoder takes.
    stem = stem[:40].encode("ascii", "replace").decode().replace("?", "_")
    return os.path.join(folder, f".{stem}.{os.getpid()}.partial{ending}")


def _is_writable(path):
    """Whether OpenCV writes pictures with the ending of this name."""
    ending = os.path.splitext(path)[1].lower()
    return ending.isascii() and cv2.haveImageWriter("a" + ending)


def check_picture_name(path):
    """Raise OutputError unless OpenCV writes pictures with this ending."""
    if not _is_writable(path):
        name = path or "(empty)"
        raise OutputError(f"{name}: unknown kind of picture. End the name in .jpg or .png.")


def _codec(path):
    return VIDEO_ENDINGS.get(os.path.splitext(path)[1].lower())


def check_video_name(path):
    """Raise OutputError unless videos are written with this ending."""
    if not _codec(path):
        endings = " ".join(VIDEO_ENDINGS)
        name = path or "(empty)"
        raise OutputError(f"{name}: unknown kind of video. End the name in one of {endings}.")


def writable_name(path):
    """The name, with .jpg after it where OpenCV reads its kind of picture but can't write it."""
    return path if _is_writable(path) else path + ".jpg"


@contextmanager
def whole_file(path):
    """Write a file whole or not at all: under a temporary name, which becomes `path` at the end.

    Parameters
    ----------
    path : str or os.PathLike
        Folders that are missing are made.

    Yields
    ------
    str
        The name to write to.

    Raises
    ------
    OSError
        If it can't be written. After this or any other error no partial file is left.
    """
    part = temporary_name(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        yield part
        os.replace(part, path)
    finally:
        _remove(part)


def _remove(path):
    if os.path.exists(path):
        os.remove(path)


def save_picture(path, image):
    """Write a picture, its kind inferred from the ending of its name.

    Parameters
    ----------
    path : str
        Folders that are missing are made.
    image : ndarray of shape (H, W, 3), uint8
        BGR.

    Raises
    ------
    OutputError
        If it can't be written; no partial file is left.
    """
    check_picture_name(path)
    try:
        ok, data = cv2.imencode(os.path.splitext(path)[1].lower(), image)
    except cv2.error:
        ok = False
    if not ok:
        height, width = image.shape[:2]
        raise OutputError(
            f"{path}: {width}x{height} is too large for this kind of picture. Try .png."
        )
    try:
        with whole_file(path) as part, open(part, "wb") as file:
            file.write(data)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}.") from error


class VideoFile:
    """A video that grows frame by frame and gets its name when it is closed.

    Parameters
    ----------
    path : str
        Ends in one of `VIDEO_ENDINGS`.
    fps : float
        Frames a second.

    Attributes
    ----------
    length : int
        Frames written.

    Raises
    ------
    OutputError
        If it can't be written; what was written before stays playable.
    """

    def __init__(self, path, fps):
        check_video_name(path)
        folder = os.path.dirname(path) or "."
        if os.path.isdir(path):
            raise OutputError(f"{path}: is a folder. Give another name with -o.")
        if not os.path.isdir(folder):
            raise OutputError(f"{path}: there is no folder {folder}. Make it first.")
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{path}: can't be written: the folder is read-only.")
        self.path, self._fps, self._codec = path, fps, _codec(path)
        self._part = temporary_name(path)
        self._writer, self.length, self._size = None, 0, None

    def write(self, image):
        """Add a frame.

        Parameters
        ----------
        image : ndarray of shape (H, W, 3), uint8
            BGR; one of another size than the first is fitted to it.
        """
        try:
            self._write(image)
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written: {error.strerror}.") from error
        except cv2.error as error:
            raise OutputError(f"{self.path}: can't be written: {error.err or error}.") from error

    def _write(self, image):
        height, width = image.shape[:2]
        if self._writer is None:
            # The encoder works on blocks of 2x2; OpenCV would cut an odd row or column off.
            self._size = (width + width % 2, height + height % 2)
            fourcc = cv2.VideoWriter_fourcc(*self._codec)
            self._writer = cv2.VideoWriter(
                self._part, cv2.CAP_FFMPEG, fourcc, self._fps, self._size
            )
            if not self._writer.isOpened():
                raise OutputError(
                    f"{self.path}: a video of {width}x{height} at {self._fps:g} frames a second "
                    "can't be written here. Try another ending or folder."
                )
        self._check_space(image.nbytes)
        right, bottom = self._size[0] - width, self._size[1] - height
        if (right, bottom) != (0, 0):
            if right in (0, 1) and bottom in (0, 1):
                image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
            else:
                image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        self.length += 1  # first: Ctrl-C comes out when the encoder is done with the frame
        self._writer.write(image)

    def write_until(self, image, seconds):
        """Add a frame as often as it takes for the video to last this long.

        Frames of a camera come when they come; so the video keeps its pace.
        """
        while self.length <= seconds * self._fps:
            self.write(image)

    def _check_space(self, frame_bytes):
        import shutil  # not at the top: one picture shall be quick

        # cv2.VideoWriter does not report a full disk, and a video without its end can't be
        # played: stop while the end still fits.
        needed = RESERVE + frame_bytes + 64 * self.length
        if shutil.disk_usage(os.path.dirname(self.path) or ".").free < needed:
            raise OutputError(f"{self.path}: the disk is full.")
        limit = _largest_file()
        if limit is not None and os.path.getsize(self._part) + needed > limit:
            raise OutputError(f"{self.path}: the limit of {limit} bytes for a file is reached.")

    def close(self):
        """End the video and give it its name; one without frames leaves no file."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None
            try:
                if self.length:
                    os.replace(self._part, self.path)
            except OSError as error:
                raise OutputError(f"{self.path}: can't be written: {error.strerror}.") from error
        _remove(self._part)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def _largest_file():
    """The system's limit for one file in bytes, None where there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


class JsonLines:
    """One line of JSON for each picture or frame, written out at once.

    Parameters
    ----------
    path : str
        File, or "-" for standard output.
    labels : sequence of str
        Name of each class_id.
    """

    def __init__(self, path, labels):
        self.path, self._labels = path, labels
        try:
            self._file = sys.stdout.buffer if path == "-" else open(path, "wb", 0)  # noqa: SIM115
        except AttributeError as error:
            raise OutputError("--json -: there is no standard output.") from error
        except OSError as error:
            name = path or "(empty)"
            raise OutputError(f"{name}: can't be written: {error.strerror}.") from error

    def write(self, frame, detections):
        """Add the line of a frame.

        Parameters
        ----------
        frame : Frame
        detections : Detections or None
            None for a picture that can't be read.
        """
        line = json.dumps(as_record(frame, detections, self._labels)) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"{self.path}: can't be written: {error.strerror}.") from error

    def close(self):
        """Close the file; standard output stays open."""
        if self.path != "-":
            self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def as_record(frame, detections, labels):
    """What the JSON line of a frame holds.

    Parameters
    ----------
    frame : Frame
    detections : Detections
    labels : sequence of str

    Returns
    -------
    dict
        The keys that README.md describes; numbers keep all digits of float32.
    """
    if frame.image is None:
        return {"source": frame.source, "error": frame.error}
    height, width = frame.image.shape[:2]
    return {
        "source": frame.source,
        "frame": frame.index,
        "time": round(frame.time, 6),
        "width": width,
        "height": height,
        "detections": [
            {
                "label": label_of(class_id, labels),
                "class_id": class_id,
                "confidence": shortest(np.float32(confidence)),
                "xyxy": [shortest(value) for value in box],
            }
            for box, confidence, class_id in detections
        ],
    }


def shortest(value):
    """A float whose JSON text is the shortest that gives this float32 back."""
    return float(str(value))
