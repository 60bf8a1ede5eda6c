"""Where results go: text, JSON Lines, pictures and videos.

What takes results is a sink: `write(frame, result)` for each frame, in order, then `close()`.
`write` returns False where the user has seen enough, `close` what was saved, for people. A result
has `detections`, `drawn` (the image with boxes) and `milliseconds`; it is None for a frame that
can't be read.

A picture or video is written under a temporary name and renamed when it is complete, so that a
file of the final name is never half a file.
"""

import functools
import json
import os
import sys
from contextlib import contextmanager

import cv2
import numpy as np

from media.drawing import label_of
from media.pictures import ending_of

DEFAULT_NAMES = {"picture": "result.jpg", "video": "result.mp4", "folder": "results"}
CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v", ".webm": "VP80"}
MANIFEST = ".nanodet-results"  # in a folder of results: the name of each, a line of JSON
RESERVE = 2 << 20  # bytes left free for the index that a video ends with


class OutputError(Exception):
    """A result that can't be written; the message names it and says what to do."""


class TooLarge(OutputError):
    """An image that this kind of picture can't hold."""


def decide_place(output, kind):
    """The file or folder that results are written to.

    Parameters
    ----------
    output : str or None
        What the user asked for: a file, or a folder for a file of the default name. None is the
        default in the current folder.
    kind : str
        Of the source: "picture", "video" or "folder".

    Returns
    -------
    str

    Raises
    ------
    OutputError
        If nothing of this kind can be written there.
    """
    place = DEFAULT_NAMES[kind] if output is None else output
    if not place:
        raise OutputError("is empty. Give the name of a file or folder.")
    if kind == "folder":
        if os.path.exists(place) and not os.path.isdir(place):
            raise OutputError(f"{place}: is a file. Results of many pictures need a folder.")
        return place
    if os.path.isdir(place) or place.endswith(("/", os.sep)):
        place = os.path.join(place, DEFAULT_NAMES[kind])
    if os.path.isdir(place):
        raise OutputError(f"{place}: is a folder. Give the name of a file.")
    if kind == "picture":
        check_picture_name(place)
    else:
        check_video_name(place)
        folder = os.path.dirname(place) or "."
        if not os.path.isdir(folder):
            raise OutputError(f"{place}: there is no folder {folder}. Make it first.")
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{place}: can't be written: the folder is read-only.")
    return place


def is_one_of(name, files):
    """Whether a name means one of these files, by whatever links; they may be a million."""
    if not os.path.exists(name):
        return False
    own = os.stat(name)
    existing = (file for file in files if file is not None and os.path.exists(file))
    return any(os.path.samestat(own, os.stat(file)) for file in existing)


def temporary_name(path, hidden=True):
    """The name beside `path` that holds a result until it is whole; it keeps the ending."""
    folder, name = os.path.split(path)
    stem, ending = os.path.splitext(name)
    # Cut, so that a name of the greatest length allowed still works, and in ASCII, which
    # every encoder takes.
    stem = stem[:40].encode("ascii", "replace").decode().replace("?", "_")
    # With a folder, since FFmpeg takes 12:30.mp4 for an address.
    return os.path.join(folder or ".", f"{'.' * hidden}{stem}.{os.getpid()}.partial{ending}")


@functools.cache
def _writes(ending):
    """Whether OpenCV writes pictures in colour with this ending."""
    try:
        return ending.isascii() and cv2.imencode(ending, np.zeros((1, 1, 3), np.uint8))[0]
    except cv2.error:
        return False


def check_picture_name(path):
    """Raise OutputError unless OpenCV writes pictures with this ending."""
    if not _writes(ending_of(path)):
        name = path or "(empty)"
        raise OutputError(f"{name}: unknown kind of picture. End the name in .jpg or .png.")


def _codec(path):
    """What a video with the ending of this name is encoded as; None if none is written."""
    return CODECS.get(ending_of(path))


def check_video_name(path):
    """Raise OutputError unless videos are written with this ending."""
    if not _codec(path):
        endings = " ".join(CODECS)
        name = path or "(empty)"
        raise OutputError(f"{name}: unknown kind of video. End the name in one of {endings}.")


def writable_name(path, moving=False):
    """The name, with .jpg or .mp4 after it where OpenCV can't write its kind in colour."""
    if moving:
        return path if _codec(path) else path + ".mp4"
    return path if _writes(ending_of(path)) else path + ".jpg"


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
        remove(part)


def remove(path):
    """Remove a file that may not be there."""
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
        ok, data = cv2.imencode(ending_of(path), image)
    except cv2.error:
        ok = False
    if not ok:
        height, width = image.shape[:2]
        raise TooLarge(f"{path}: {width}x{height} is too large for this kind of picture. Try .png.")
    try:
        with whole_file(path) as part, open(part, "wb") as file:
            file.write(data)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}.") from error


class PictureFile:
    """A sink that saves the drawn picture under a name."""

    def __init__(self, path):
        self._path, self._saved = path, None

    def write(self, frame, result):
        """Save the picture of a frame; OutputError where that fails."""
        if result is not None:
            save_picture(self._path, result.drawn)
            self._saved = self._path

    def close(self):
        """Return what was saved, for people."""
        return self._saved


class ResultFolder:
    """A sink that saves each drawn picture and video in a folder.

    Parameters
    ----------
    folder : str
        There, each gets the name that it has below root.
    root : str
        The folder that the inputs lie below.
    film : callable
        Takes the path of a result and of its input, and returns the sink of a video.
    """

    def __init__(self, folder, root, film):
        self._folder, self._root, self._open_film = folder, root, film
        self._own, self._new = earlier_names(folder), set()
        self._pictures, self._videos, self._advice = 0, 0, []
        self._film = self._source = None  # of the video that is being written

    def write(self, frame, result):
        """Save the picture of a frame, or add it to its video; OutputError where that fails."""
        if frame.source != self._source:
            self._end_film()
        if frame.moving:
            if self._film is None:
                path = self._claim(result_name(frame.source, self._root, True))
                self._film, self._source = self._open_film(path, frame.source), frame.source
            self._film.write(frame, result)
        elif result is not None:
            name = result_name(frame.source, self._root, False)
            try:
                save_picture(self._claim(name), result.drawn)
            except TooLarge:
                save_picture(self._claim(name + ".png"), result.drawn)
            self._pictures += 1

    def _claim(self, name):
        """The path of a result, noted as one of ours: what is not noted is never replaced."""
        while name in self._new:  # as of x.pgm beside x.pgm.jpg
            name += ending_of(name)
        path = os.path.join(self._folder, name)
        if name not in self._own:
            refuse_foreign(self._folder, [name], self._own)
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(os.path.join(self._folder, MANIFEST), "a") as file:
                    file.write(json.dumps(name) + "\n")
            except OSError as error:
                raise OutputError(f"{path}: can't be written: {error.strerror}.") from error
        self._new.add(name)
        return path

    def _end_film(self):
        film, self._film, self._source = self._film, None, None
        if film is not None and film.close():
            self._videos += 1
            if film.advice not in self._advice:
                self._advice.append(film.advice)

    def close(self):
        """End what is open; return what was saved, for people."""
        self._end_film()
        saved = [_plural(self._videos, "video")] if self._videos else []
        if self._pictures or not saved:
            saved.insert(0, _plural(self._pictures, "picture"))
        return f"{' and '.join(saved)} in {self._folder}{''.join(self._advice)}"


def _plural(number, what):
    return f"{number} {what}{'s' * (number != 1)}"


def result_name(source, root, moving):
    """The name below the folder of results that the result of a picture, or a video, gets."""
    return writable_name(os.path.relpath(source, root), moving)


def earlier_names(folder):
    """Names of the results of earlier runs in a folder."""
    try:
        with open(os.path.join(folder, MANIFEST)) as file:
            lines = file.read().splitlines()
    except (OSError, ValueError):
        return set()
    return {json.loads(line) for line in lines if line.startswith('"') and line.endswith('"')}


def earlier_results(output):
    """Real paths of the results of earlier runs in a folder, None for the default one."""
    folder = DEFAULT_NAMES["folder"] if output is None else output
    real = os.path.realpath(folder)
    return {os.path.join(real, name) for name in earlier_names(folder)}


def refuse_foreign(folder, names, own=None):
    """Raise OutputError if a result would replace a file that no run of ours has written.

    `own`: names that ours have written, read from the folder if not given.
    """
    own = earlier_names(folder) if own is None else own
    for name in names if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        if name not in own and os.path.lexists(path):
            raise OutputError(
                f"{path}: exists and is not a result of an earlier run. "
                "Give another folder with -o, or move this file."
            )


class VideoFile:
    """A sink that saves a video: it grows frame by frame and gets its name when it is closed.

    Parameters
    ----------
    path : str
        Ends in one of `CODECS`; its folder exists.
    fps : float
        Frames a second.
    clock : callable, optional
        Takes a frame, returns the second at which it is shown; `frame.time` if not given. A frame
        is shown until the next one is due, and left out where that is at once, so that the video
        keeps the pace.

    Attributes
    ----------
    length : int
        Frames written.
    advice : str
        For people, after what was saved.

    Raises
    ------
    OutputError
        If it can't be written; what was written before stays playable.
    """

    advice = ""

    def __init__(self, path, fps, clock=None):
        check_video_name(path)
        self.path, self._fps = path, fps
        self._clock = clock or (lambda frame: frame.time)
        self._start = self._image = None  # second of the first frame; what is shown until the next
        self._part = temporary_name(path)
        self._writer, self.length, self._size = None, 0, None

    def write(self, frame, result):
        """Add the drawn image of a frame; of one that can't be read, the one before it."""
        now = self._clock(frame)
        if self._start is None:
            self._start = now
        place = round((now - self._start) * self._fps)
        while self._image is not None and self.length < place:
            self.add(self._image)
        if result is not None:
            self._image = result.drawn
        while self._image is not None and self.length <= place:
            self.add(self._image)

    def add(self, image):
        """Add an image.

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
        self.length += 1

    def _write(self, image):
        height, width = image.shape[:2]
        if self._writer is None:
            # The encoder works on blocks of 2x2; OpenCV would cut an odd row or column off.
            self._size = (width + width % 2, height + height % 2)
            self._writer = self._open()
            if self._writer is None:
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
        self._encode(image)

    def _open(self):
        """A writer of images of this size; None where there is none."""
        fourcc = cv2.VideoWriter_fourcc(*_codec(self.path))
        writer = cv2.VideoWriter(self._part, cv2.CAP_FFMPEG, fourcc, self._fps, self._size)
        return writer if writer.isOpened() else None

    def _encode(self, image):
        self._writer.write(image)

    def _check_space(self, frame_bytes):
        import shutil  # not at the top: one picture must stay fast

        # cv2.VideoWriter does not report a full disk, and a video without its end can't be
        # played: stop while the end still fits.
        needed = RESERVE + frame_bytes + 64 * self.length
        if shutil.disk_usage(os.path.dirname(self.path) or ".").free < needed:
            raise OutputError(f"{self.path}: the disk is full.")
        limit = _largest_file()
        if limit is not None and os.path.getsize(self._part) + needed > limit:
            raise OutputError(f"{self.path}: the limit of {limit} bytes for a file is reached.")

    def close(self):
        """End the video and give it its name; return what was saved, for people.

        One without frames leaves no file.
        """
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                self._finish(writer)
            except OSError as error:
                raise OutputError(f"{self.path}: can't be written: {error.strerror}.") from error
        remove(self._part)
        return f"{self.path}, {self.length} frames{self.advice}" if self.length else None

    def _finish(self, writer):
        writer.release()
        if self.length:
            os.replace(self._part, self.path)


def video_file(path, source, clock=None):
    """The `VideoFile` for a source's frames: `H264File` for .mp4, where PyAV is installed."""
    is_mp4, fps = ending_of(path) == ".mp4", source.even_rate()
    if is_mp4:
        try:
            from media.h264 import H264File  # not at the top: PyAV is optional, and slow to load

            return H264File(path, fps, clock, source.sound)
        except ImportError:
            pass
    film = VideoFile(path, fps, clock)
    film.advice = " (for browsers and sound: pip install av)" if is_mp4 else ""
    return film


def _largest_file():
    """The system's limit for one file in bytes, None where there is none."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if limit == resource.RLIM_INFINITY else limit


class JsonLines:
    """A sink of one line of JSON for each picture or frame, written out at once.

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
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            self._file = sys.stdout.buffer if path == "-" else open(path, "wb", 0)  # noqa: SIM115
        except AttributeError as error:
            raise OutputError("--json -: there is no standard output.") from error
        except OSError as error:
            name = path or "(empty)"
            raise OutputError(f"{name}: can't be written: {error.strerror}.") from error

    def write(self, frame, result):
        """Add the line of a frame."""
        detections = None if result is None else result.detections
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


def as_record(frame, detections, labels):
    """The content of a frame's line of JSON.

    Parameters
    ----------
    frame : Frame
    detections : Detections or None
        None for a picture or frame that can't be read.
    labels : sequence of str

    Returns
    -------
    dict
        The keys that docs/flags.md describes; numbers keep all digits of float32.
    """
    if frame.image is None:
        number = {"frame": frame.index} if frame.moving else {}
        return {"source": frame.source} | number | {"error": frame.error}
    height, width = frame.image.shape[:2]
    record = {
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
    return record | {"warning": frame.error} if frame.error else record


def shortest(value):
    """A float whose JSON text is the shortest that gives this float32 back."""
    return float(str(value))


class Text:
    """A sink that prints what is in a picture.

    Parameters
    ----------
    labels : sequence of str
        Name of each class_id.
    description : str
        What ran the network.
    say : callable
        Prints a text.
    """

    def __init__(self, labels, description, say):
        self._labels, self._description, self._say = labels, description, say

    def write(self, frame, result):
        """Print the objects of a frame, a line each."""
        height, width = frame.image.shape[:2]
        found = result.detections
        lines = [f"{frame.source}: {width}x{height}, {_plural(len(found), 'object')}"]
        for box, confidence, class_id in found:
            corners = ", ".join(f"{value:.1f}" for value in box)
            lines.append(f"  {label_of(class_id, self._labels):<15} {confidence:.2f}  [{corners}]")
        lines.append(f"{result.milliseconds:.1f} ms; {self._description}")
        self._say("\n".join(lines))

    def close(self):
        """Nothing is open."""
