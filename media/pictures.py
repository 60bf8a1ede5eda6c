"""One picture in a file: read it upright, or say in one line what is wrong with it."""

import os

import cv2
import numpy as np

from media.frames import ACCEPTED, SourceError

PICTURE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".sr", ".ras", ".avif"),
)
JPEG_2000 = (b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51")


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
    check_file(path)
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
        raise SourceError(f"{path}: can't be read: {reason_of(error)}.") from error
    if image is None:
        raise SourceError(f"{path}: is neither a picture nor a video that OpenCV reads.")
    return image


def check_file(path):
    """Raise SourceError unless this is a regular file: others may never end."""
    if not os.path.exists(path):
        raise SourceError(f"{path or '(empty)'}: no such file. Give {ACCEPTED}.")
    if not os.path.isfile(path):
        raise SourceError(f"{path}: is not a regular file. Give {ACCEPTED}.")


def reason_of(error):
    """The part of OpenCV's error that a person can use."""
    text = str(error.err or error)
    if "PIXELS" in text:
        limit = os.environ.get("OPENCV_IO_MAX_IMAGE_PIXELS", "2^30")
        return f"it has more than {limit} pixels"
    return " ".join(text.split())


def has_picture_ending(name):
    return os.path.splitext(name)[1].lower() in PICTURE_ENDINGS


def is_picture(path):
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
    if head.startswith(JPEG_2000) or has_picture_ending(path):
        return True
    return is_utf8(path) and cv2.haveImageReader(path)


def is_utf8(path):
    """Whether cv2 takes this name; it crashes on a name that is not valid UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
