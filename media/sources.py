"""Where frames come from: pictures, folders, video files, cameras, network streams.

from media.sources import open_source
with open_source("clip.mp4") as source:
    for frame in source:
        print(frame.index, frame.time, frame.image.shape)
"""

import glob
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np

from media.addresses import LARGEST_PICTURE, ask, fetch, hide_password, with_known_scheme
from media.frames import ACCEPTED, Frame, Reading, Source, SourceError, counted
from media.live import Live, given_by, is_camera, is_live, open_camera
from media.mjpeg import open_mjpeg
from media.pictures import (
    PICTURE_ENDINGS,
    check_file,
    decode_for,
    ending_of,
    is_picture,
    kind_of,
    read_file,
)
from media.videos import Video, open_capture

LARGEST_VIDEO = 10_000_000_000  # bytes on standard input
EARLIER = "results of an earlier run"
# Thumbnails and deleted files, as network drives, cameras and Windows keep them.
SYSTEM_FOLDERS = ("@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
# A pattern takes pictures: files with these endings are counted and skipped.
NOT_PICTURES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".flv"),
    *(".wmv", ".3gp", ".ogv", ".gif", ".mjpg", ".mjpeg", ".h264"),
)


def open_source(inputs: str | Sequence[str], how: Reading = Reading()) -> Source:  # noqa: B008 -- frozen
    """Find out what an input is, from its text and the file itself, and open it.

    Parameters
    ----------
    inputs : str or sequence of str
        One, see `ACCEPTED`, or "-", a picture or video on standard input. Or several files,
        folders and patterns, which are taken as one, in the order given. A file's kind is
        inferred from its content.
    how : Reading, optional

    Returns
    -------
    Source
        A context manager to loop over.

    Raises
    ------
    SourceError
        If it is none of these, can't be opened, or can't be read in the way wanted. Of several
        inputs, one that can't be read is no error here, unless there is no other.
    """
    inputs = [inputs] if isinstance(inputs, str) else inputs
    for value in inputs:
        if how.camera and not is_camera(value):
            name = hide_password(value)
            raise SourceError(f"{name}: only a camera can be asked for a size or frame rate.")
    source = _open_one(inputs[0], how) if len(inputs) == 1 else _open_several(inputs, how)
    if how.every > 1 and not source.moving:
        raise SourceError(f"{source.name}: --every {how.every} is for videos, cameras and streams.")
    if (how.start or how.duration < math.inf) and (source.live or not source.moving):
        with source:
            raise SourceError(f"{source.name}: only a video has a start and a duration to choose.")
    return source


def _open_one(value, how):
    if is_camera(value):
        # int() refuses thousands of digits
        camera = int(value[:20]) if value.isdecimal() else value
        capture = open_camera(camera, how.camera)
        given = given_by(capture) if how.camera else ""
        live = Live(camera, capture, how)
        if given:
            how.notify(f"{live.name}: {given}")
        return live
    if value == "-":
        return _standard_input(how)
    if "://" in value:
        return _open_address(value, how)
    if os.path.isdir(value):
        return _folder(value, how.skip)
    if _is_pattern(value):
        return _pattern(value, how.skip)
    check_file(value, advice=f" Give {ACCEPTED}.")
    if is_picture(value):
        return Pictures(value, [value], None)
    return Video(value, open_capture(value), how, value)


def _open_address(value, how):
    address, name = with_known_scheme(value), hide_password(value)
    answer = ask(address)
    if answer.picture:
        return PictureBytes(name, fetch(address))
    if not answer.finite and (capture := open_mjpeg(address, answer)):
        return Live(address, capture, how)
    capture = open_capture(address, answer)
    video = Video(name, capture, how, path=None)
    ends = answer.finite or (video.length and not answer.growing)
    return video if ends else Live(address, capture, how)


def _open_several(values, how):
    paths, left_out = [], []
    for value in values:
        if value == "-" or is_live(value):
            raise SourceError(
                f"{hide_password(value)}: a camera, an address or - must be the only input. "
                "Run demo.py once for each, for example in two terminals."
            )
        if os.path.isdir(value) or _is_pattern(value):
            found = _open_one(value, how)
            paths += found.paths
            left_out += [f"{value}: {found.left_out}"] if found.left_out else []
        else:
            paths.append(value)
    once = {}
    for path in paths:
        once.setdefault(os.path.abspath(path), path)
    paths = list(once.values())
    if not any(map(os.path.exists, paths)):
        check_file(paths[0] if paths else "", advice=f" Give {ACCEPTED}.")
    taken = _without(paths, how.skip)
    if not taken:
        raise SourceError(f"there are only {EARLIER}. Give other files, or another -o.")
    if len(taken) < len(paths):
        left_out.append(f"skipped: {len(paths) - len(taken)} {EARLIER}")
    return Files(taken, "; ".join(left_out), how)


def _is_pattern(value):
    return not os.path.exists(value) and glob.has_magic(value)


class Pictures(Source):
    """Picture files, in the order given.

    Of many, one that can't be read is a frame with an error; a single one, which has no root,
    raises SourceError.
    """

    unit = "pictures"

    def __init__(self, name, paths, root, left_out="", moving=()):
        super().__init__(name, paths, moving)
        self.root, self.length, self.left_out = root, len(paths), left_out
        self.kind = "picture" if root is None else "folder"

    def __iter__(self):
        for path in self.paths:
            yield self._read(path)

    def _read(self, path):
        try:
            image, flaw, whole = decode_for(self.enough, read_file(path), path)
            return Frame(path, 0, 0.0, image, flaw, whole=whole)
        except SourceError as error:
            if self.root is None:
                raise
            return Frame(path, 0, 0.0, None, str(error))

    def summary(self, done):
        return f"{done} of {self.length} pictures"

    def fault(self, done, unreadable, ended):
        return f"{unreadable} of {self.length} pictures can't be read" if unreadable else ""


class PictureBytes(Pictures):
    """A picture that a server sent, or that came through standard input."""

    def __init__(self, name, data):
        super().__init__(name, [name], None)
        self._data = data

    def __iter__(self):
        image, flaw, whole = decode_for(self.enough, self._data, self.name)
        yield Frame(self.name, 0, 0.0, image, flaw, whole=whole)


class Files(Pictures):
    """Pictures and videos, one after the other; what can't be read of them is named."""

    def __init__(self, paths, left_out, how):
        folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
        try:
            root = os.path.commonpath(folders)
        except ValueError as error:  # on Windows
            raise SourceError(
                "the inputs are on different drives. Run demo.py for each."
            ) from error
        name = f"{len(paths)} input{'s' * (len(paths) != 1)}"
        super().__init__(name, paths, root, left_out, filter(_is_video, paths))
        self._how, self._faulty, self._videos = how, set(), {}
        if self.moving:
            self.length, self.unit = None, "pictures and frames"

    def __iter__(self):
        for path in self.paths:
            try:
                for frame in self._video(path) if path in self.moving else [self._read(path)]:
                    if frame.image is None:
                        self._faulty.add(path)
                    yield frame
            except SourceError as error:
                self._faulty.add(path)
                yield Frame(path, 0, 0.0, None, str(error))

    def _video(self, path):
        lost = frames = 0
        with Video(path, open_capture(path), self._how, path) as video:
            self._videos[path] = video
            for frame in video:
                lost, frames = lost + (frame.image is None), frames + 1
                yield frame
        if fault := video.fault(frames - lost, lost, ended=True):
            self._faulty.add(path)
            self._how.notify(fault)

    def video(self, path):
        return self._videos[path]

    def summary(self, done):
        return f"{counted(done, self.unit)} of {self.name}"

    def fault(self, done, unreadable, ended):
        faulty = len(self._faulty)
        return f"{faulty} of {self.name} can't be read in full" if faulty else ""


def _is_video(path):
    """Whether a file is not a picture; those with a picture's ending are not opened for it."""
    if ending_of(path) in PICTURE_ENDINGS or not os.path.isfile(path):
        return False
    try:
        return not is_picture(path)
    except SourceError:  # it is empty, or can't be read
        return False


def _standard_input(how):
    if sys.stdin is None or sys.stdin.isatty():
        raise SourceError("-: reads a picture or video from standard input. Pipe one into demo.py.")
    try:
        data = sys.stdin.buffer.read(LARGEST_PICTURE + 1)
        if data and kind_of(data[:16])[0] in ("", "a video", "a GIF"):
            return _standard_input_as_file(data, how)
    except OSError as error:
        raise SourceError(f"stdin: can't be read: {error.strerror or error}.") from error
    if len(data) > LARGEST_PICTURE:
        raise SourceError(f"stdin: is larger than {LARGEST_PICTURE} bytes.")
    return PictureBytes("stdin", np.frombuffer(data, np.uint8))


def _standard_input_as_file(data, how):
    """What begins with these bytes, in a temporary file: FFmpeg has to look at it twice."""
    import tempfile  # not at the top: one picture must stay fast

    folder, size = tempfile.TemporaryDirectory(), 0
    path = os.path.join(folder.name, "stdin")
    with open(path, "wb") as file:
        while data:
            size += file.write(data)
            if size > LARGEST_VIDEO:
                raise SourceError(f"stdin: is larger than {LARGEST_VIDEO} bytes. Give a file.")
            data = sys.stdin.buffer.read(1 << 20)
    return Video("stdin", open_capture(path, name="stdin"), how, path, folder)


def _folder(folder, skip):
    """All pictures in a folder and those below it."""
    found, linked, system, closed = [], 0, 0, []
    # It does not follow links, so there are no loops.
    for parent, folders, names in os.walk(folder, onerror=closed.append):
        found += [os.path.join(parent, name) for name in names]
        linked += sum(os.path.islink(os.path.join(parent, name)) for name in folders)
        own = [name for name in folders if not (_is_hidden(name) or name in SYSTEM_FOLDERS)]
        system += len(folders) - len(own)
        folders[:] = own
    below = {"linked folder": linked, "hidden or system folder": system}
    below["folder that can't be read"] = len(closed)
    paths = [path for path in found if ending_of(path) in PICTURE_ENDINGS]
    paths, left_out = _leave_out(found, paths, skip, below)
    if not paths:
        endings = " ".join(PICTURE_ENDINGS)
        raise SourceError(
            f"{folder}: no picture in this folder{left_out and f' ({left_out})'}. "
            f"Endings read: {endings}."
        )
    return Pictures(folder, paths, folder, left_out)


def _pattern(pattern, skip):
    """All files that fit a pattern, but no videos."""
    folder = os.path.dirname(pattern)
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    fitting = glob.escape(folder) + pattern[len(folder) :]  # of any name, such as "[2024] Paris"
    try:
        found = [path for path in glob.glob(fitting, recursive=True) if os.path.isfile(path)]
    except ValueError:  # no file can have such a name
        found = []
    if not found:
        raise SourceError(f"{pattern}: no file fits this pattern. Give {ACCEPTED}.")
    paths = [path for path in found if ending_of(path) not in NOT_PICTURES]
    paths, left_out = _leave_out(found, paths, skip)
    if not paths:
        raise SourceError(f"{pattern}: no picture fits this pattern; {left_out}.")
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return Pictures(pattern, paths, root, left_out)


def _without(paths, skip):
    """Those of the paths that are not results of an earlier run."""
    if not skip:  # to find out where a million paths lead takes a while
        return paths
    return [path for path in paths if os.path.realpath(path) not in skip]


def _is_hidden(path):
    return os.path.basename(path).startswith(".")


def _leave_out(found, pictures, skip, below=None):
    """Sorted paths of pictures to take, and a line for people on what else was found.

    `below` counts folders by what is said of one.
    """
    hidden = list(filter(_is_hidden, pictures))
    taken = sorted(set(pictures).difference(hidden))
    others = Counter(ending_of(path) for path in found if not _is_hidden(path))
    others -= Counter(map(ending_of, pictures))
    parts = [_counted(number, ending) for ending, number in sorted(others.items())]
    parts += [f"{len(hidden)} hidden"] if hidden else []
    for what, number in (below or {}).items():
        what = what if number == 1 else what.replace("folder", "folders")
        parts += [f"{number} {what}"] if number else []
    before = len(taken)
    taken = _without(taken, skip)
    parts += [f"{before - len(taken)} {EARLIER}"] if len(taken) < before else []
    return taken, f"skipped: {', '.join(parts)}" if parts else ""


def _counted(number, ending):
    advice = ""
    if ending in NOT_PICTURES:
        it = "it" if number == 1 else "them"
        advice = f" (name {it} to include {it})"
    return f"{number} {ending or 'without ending'}{advice}"
