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
import stat
import sys
from collections import defaultdict
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np

from media.drawing import label_of
from media.frames import counted
from media.pictures import ending_of

DEFAULT_NAMES = {"picture": "result.jpg", "video": "result.mp4", "folder": "results"}
CODECS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v", ".webm": "VP80"}
LONGEST_NAME = 255  # bytes, of most disks
MANIFEST = ".nanodet-results"  # in a folder of results: the name of each, a line of JSON


class OutputError(Exception):
    """A result that can't be written; the message names it and says what to do."""


class TooLarge(OutputError):
    """An image that this kind of picture can't hold."""


def decide_place(output, kind):
    """The file or folder for the results of a "picture", "video" or "folder".

    `output` is what the user asked for: a file, or a folder for a file of the default name; None
    is the default in the current folder. OutputError if nothing of this kind can be written there.
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
    check_name(place, moving=kind == "video")
    if kind == "video":
        folder = os.path.dirname(place)
        while folder and not os.path.exists(folder):  # it is made with the video
            folder = os.path.dirname(folder)
        if not os.path.isdir(folder or "."):
            raise OutputError(f"{place}: can't be written: {folder} is no folder.")
        if not os.access(folder or ".", os.W_OK):
            raise OutputError(f"{place}: can't be written: the folder is read-only.")
    if os.path.exists(place):
        try:
            os.rename(place, place)  # fails on Windows while a player has it open
        except OSError as error:
            raise OutputError(
                f"{place}: can't be replaced: {error.strerror}. "
                "Close the program that has it open, or give another name with -o."
            ) from error
    return place


def is_one_of(name, files):
    """Whether a name means one of these files, by whatever links; they may be a million."""
    own = _identity(name)
    return own is not None and any(_identity(file) == own for file in files if file is not None)


def _identity(path):
    """What identifies a file, by whatever name; None where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # such as a zero in an address
        return None
    if found.st_ino:
        return found.st_dev, found.st_ino
    return os.path.normcase(os.path.realpath(path))  # network drives may count all as 0


def temporary_name(path, hidden=True):
    """A new name beside `path` for a result until it is whole; it keeps the ending.

    Nobody can foresee it, and put a link there. Make the file with `touch(exist_ok=False)`: then
    whoever opens it by name meets the one that was made.
    """
    folder, name = os.path.split(path)
    stem, ending = os.path.splitext(name)
    # Cut, so that a name of the greatest length allowed still works, and in ASCII, which
    # every encoder takes.
    stem = stem[:40].encode("ascii", "replace").decode().replace("?", "_")
    # With a folder, since FFmpeg takes 12:30.mp4 for an address.
    chance = os.urandom(4).hex()
    return os.path.join(folder or ".", f"{'.' * hidden}{stem}.{chance}.partial{ending}")


@functools.cache
def _writes_picture(ending):
    """Whether OpenCV writes pictures in colour with this ending."""
    try:
        return ending.isascii() and cv2.imencode(ending, np.zeros((1, 1, 3), np.uint8))[0]
    except cv2.error:
        return False


def _is_written(path, moving):
    """Whether pictures, or videos, are written with the ending of this name."""
    return ending_of(path) in CODECS if moving else _writes_picture(ending_of(path))


def check_name(path, moving):
    """Raise OutputError unless pictures, or videos, are written with the ending of this name."""
    if not _is_written(path, moving):
        kind, endings = "picture", ".jpg or .png"
        if moving:
            kind, endings = "video", f"one of {' '.join(CODECS)}"
        raise OutputError(f"{path}: unknown kind of {kind}. End the name in {endings}.")


@contextmanager
def whole_file(path):
    """Write a file whole or not at all: to the name yielded, which becomes `path` at the end.

    Missing folders are made. OSError, which names it, if it can't be written; after any error
    nothing is left.
    """
    part = temporary_name(path)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        Path(part).touch(exist_ok=False)
        yield part
        os.replace(part, path)
    except OSError as error:
        if error.filename in (None, part):  # a full disk has no name
            error.filename, error.filename2 = os.fspath(path), None
        raise
    finally:
        Path(part).unlink(missing_ok=True)


def encoded(path, image):
    """The bytes of a BGR image as a picture of the kind that a name ends in.

    OutputError where there is no such kind, TooLarge where the image is too large for it.
    """
    check_name(path, moving=False)
    try:
        ok, data = cv2.imencode(ending_of(path), image)
    except cv2.error:
        ok = False
    if not ok:
        height, width = image.shape[:2]
        raise TooLarge(f"{path}: {width}x{height} is too large for this kind of picture. Try .png.")
    return data


def save_bytes(path, data):
    """Write a file whole, in folders that are made; OutputError where it can't be written."""
    try:
        with whole_file(path) as part, open(part, "wb") as file:
            file.write(data)
    except OSError as error:
        raise OutputError(f"{path}: can't be written: {error.strerror}.") from error


def save_picture(path, image):
    """Write a BGR image as a picture of the kind that its name ends in, in folders that are made.

    OutputError if it can't be written; then no partial file is left.
    """
    save_bytes(path, encoded(path, image))


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

    Each gets the name there that its input has below `root`. `open_film` takes the path of a
    result and of its input, and returns the sink of a video.
    """

    def __init__(self, folder, root, open_film):
        self._folder, self._root, self._open_film = folder, root, open_film
        self._own, self._new = earlier_names(folder), defaultdict(list)  # by name, whatever case
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
                data = encoded(name, result.drawn)
            except TooLarge:
                name += ".png"
                data = encoded(name, result.drawn)
            save_bytes(self._claim(name), data)
            self._pictures += 1

    def _claim(self, name):
        """The path for a result, noted in the list: what is not noted there is never replaced."""
        while self._is_taken(name):  # as x.pgm.jpg by the result of x.pgm
            name += ending_of(name)
        path = os.path.join(self._folder, name)
        refuse_foreign(self._folder, [name], self._own)
        if name not in self._own:
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open_list(self._folder, "a") as file:
                    # The last line of a run that lost its power may be half a line.
                    file.write("\n" * (not self._new) + json.dumps(name) + "\n")
            except OSError as error:
                raise OutputError(f"{path}: can't be written: {error.strerror}.") from error
        self._new[name.casefold()].append(name)
        return path

    def _is_taken(self, name):
        alike = self._new.get(name.casefold(), ())
        return name in alike or _is_one_below(self._folder, name, alike)

    def _end_film(self):
        film, self._film, self._source = self._film, None, None
        if film is not None and film.close():
            self._videos += 1
            if film.advice not in self._advice:
                self._advice.append(film.advice)

    def close(self):
        """End what is open; return what was saved, for people."""
        self._end_film()
        saved = [counted(self._videos, "videos")] if self._videos else []
        if self._pictures or not saved:
            saved.insert(0, counted(self._pictures, "pictures"))
        return f"{' and '.join(saved)} in {self._folder}{''.join(self._advice)}"


def _is_one_below(folder, name, names):
    """Whether a name means the file of one of these names on this disk, which may not know case."""
    return is_one_of(os.path.join(folder, name), (os.path.join(folder, each) for each in names))


def result_name(source, root, moving):
    """The name below the folder of results that the result of a picture, or a video, gets."""
    name = os.path.relpath(source, root)
    if _is_written(name, moving):
        return name
    ending = ".mp4" if moving else ".jpg"
    if len(os.fsencode(os.path.basename(name))) + len(ending) > LONGEST_NAME:
        name = os.path.splitext(name)[0]
    return name + ending


@contextmanager
def open_list(folder, mode):
    """Open the list of a folder's results, to read it or to add to it.

    OutputError unless it is a plain file without links: through one, names that a stranger chose
    could be written into any file of the user's.
    """
    path = os.path.join(folder, MANIFEST)

    def check(found):
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise OutputError(
                f"{path}: is a link, or no file, and can't be the list of results. "
                "Remove it, or give another folder with -o."
            )

    def opener(name, flags):
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        return os.open(name, flags, 0o666)

    if os.path.lexists(path):
        check(os.lstat(path))
    with open(path, mode, encoding="ascii", errors="replace", opener=opener) as file:
        check(os.fstat(file.fileno()))  # it may have come after the first look
        yield file


def earlier_names(folder):
    """Names of the results of earlier runs in a folder."""
    names = set()
    with suppress(OSError), open_list(folder, "r") as file:
        for line in file:
            if line.startswith('"'):
                with suppress(ValueError):  # half a line, as a power cut leaves it
                    names.add(json.loads(line))
    return names


def earlier_results(output):
    """Real paths of the results of earlier runs in a folder, None for the default one."""
    folder = DEFAULT_NAMES["folder"] if output is None else output
    real = os.path.realpath(folder)
    try:
        return {os.path.join(real, name) for name in earlier_names(folder)}
    except OutputError:  # for those who write there
        return set()


def refuse_foreign(folder, names, own=None):
    """Raise OutputError if a result would replace a file that no run of ours has written.

    Or if it would leave the folder, as through a link in it that leads elsewhere. `own`: names
    that ours have written, read from the folder if not given.
    """
    own = earlier_names(folder) if own is None else own
    root, inside = os.path.join(os.path.realpath(folder), ""), set()
    for name in names if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        parent = os.path.dirname(path)
        if parent not in inside:
            real = os.path.join(os.path.realpath(parent), "")
            if not real.startswith(root):
                raise OutputError(
                    f"{path}: would be written in {real}, by a link that leads out of {folder}. "
                    "Remove the link, or give another folder with -o."
                )
            inside.add(parent)
        if name not in own and os.path.lexists(path):
            alike = [each for each in own if each.casefold() == name.casefold()]
            if _is_one_below(folder, name, alike):
                continue
            raise OutputError(
                f"{path}: exists and is not a result of an earlier run. "
                "Give another folder with -o, or move this file."
            )


class JsonLines:
    """A sink of one line of JSON for each picture or frame, written out at once; "-" is stdout."""

    def __init__(self, path, labels):
        self._path, self._labels = path, labels
        if path == "-":
            if sys.stdout is None:
                raise OutputError("--json -: there is no standard output.")
            self._file = getattr(sys.stdout, "buffer", sys.stdout)  # a notebook's has none
            return
        try:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            self._file = open(path, "wb", 0)  # noqa: SIM115
        except OSError as error:
            name = path or "(empty)"
            raise OutputError(f"{name}: can't be written: {error.strerror}.") from error

    def write(self, frame, result):
        """Add the line of a frame."""
        detections = None if result is None else result.detections
        line = json.dumps(as_record(frame, detections, self._labels)) + "\n"
        try:
            self._file.write(line if self._file is sys.stdout else line.encode())
            self._file.flush()
        except OSError as error:
            if self._path == "-":  # nobody may be left to read
                raise
            raise OutputError(f"{self._path}: can't be written: {error.strerror}.") from error

    def close(self):
        """Close the file; standard output stays open."""
        if self._path != "-":
            self._file.close()


def as_record(frame, detections, labels):
    """The content of a frame's line of JSON, whose keys docs/flags.md describes.

    `detections` is None for one that can't be read. Numbers keep all digits of float32.
    """
    if frame.image is None:
        number = {"frame": frame.index} if frame.moving else {}
        return {"source": frame.source} | number | {"error": frame.error}
    width, height = frame.size
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
    """A sink that prints what is in a picture; `description` says what ran the network.

    `say` prints a line, and makes harmless any control characters in names.
    """

    def __init__(self, labels, description, say):
        self._labels, self._description, self._say = labels, description, say

    def write(self, frame, result):
        """Print the objects of a frame, a line each."""
        width, height = frame.size
        found = result.detections
        lines = [f"{frame.source}: {width}x{height}, {counted(len(found), 'objects')}"]
        for box, confidence, class_id in found:
            corners = ", ".join(f"{value:.1f}" for value in box)
            lines.append(f"  {label_of(class_id, self._labels):<15} {confidence:.2f}  [{corners}]")
        lines.append(f"{result.milliseconds:.1f} ms; {self._description}")
        for line in lines:  # a name with a line's end in it is still on one
            self._say(line)

    def close(self):
        """Nothing is open."""
