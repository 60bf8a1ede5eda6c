"""Where frames come from: pictures, folders, video files, cameras, network streams.

from media.sources import open_source
with open_source("clip.mp4") as source:
    for frame in source:
        print(frame.index, frame.time, frame.image.shape)
"""

import glob
import os
import sys
from collections import Counter

import numpy as np

from media.addresses import LARGEST_PICTURE, ask, fetch, hide_password, with_known_scheme
from media.frames import ACCEPTED, Frame, SourceError
from media.live import Live, given_by, is_camera, is_live, open_camera
from media.pictures import (
    PICTURE_ENDINGS,
    check_file,
    decode_picture,
    ending_of,
    is_picture,
    read_picture,
)
from media.videos import Video, open_capture

EARLIER = "results of an earlier run"
# A pattern takes pictures: files with these endings are counted and left out.
NOT_PICTURES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".flv"),
    *(".wmv", ".3gp", ".ogv", ".gif", ".mjpg", ".mjpeg", ".h264"),
)


def open_source(
    value,
    earlier_results=frozenset(),
    reconnect=5,
    notify=lambda line: None,
    answer=None,
    every=1,
    camera_mode=None,
):
    """Find out what an input is, from its text and the file itself, and open it.

    Parameters
    ----------
    value : str
        See `ACCEPTED`. A file's kind is inferred from its content.
    earlier_results : set of str
        Real paths of files that are left out of a folder or pattern.
    reconnect, notify
        See `Live`.
    answer : Answer, optional
        What `ask` returned for this address; asked for if not given.
    every : int
        Each n-th frame of a video, camera or stream is taken, and the first.
    camera_mode : CameraMode, optional
        What to ask of a camera; what it gives then is told by `notify`.

    Returns
    -------
    Pictures, Video or Live
        A context manager to loop over.

    Raises
    ------
    SourceError
        If it is none of these, or can't be opened.
    """
    if is_camera(value):
        # int() refuses thousands of digits
        camera = int(value[:20]) if value.isdecimal() else value
        capture = open_camera(camera, camera_mode)
        given = given_by(capture) if camera_mode else ""
        live = Live(camera, capture, reconnect, notify, every, camera_mode)
        if given:
            notify(f"{live.name}: {given}")
        return live
    if value == "-":
        return PictureBytes("stdin", _standard_input())
    if "://" in value:
        address = with_known_scheme(value)
        answer = answer or ask(address)
        if answer.picture:
            return PictureBytes(hide_password(value), fetch(address))
        capture = open_capture(address, answer.status)
        video = Video(hide_password(value), capture, every=every)
        if answer.finite or video.length:
            return video
        return Live(address, capture, reconnect, notify, every)
    if os.path.isdir(value):
        return _folder(value, earlier_results)
    if not os.path.exists(value) and glob.has_magic(value):
        return _pattern(value, earlier_results)
    check_file(value, advice=f" Give {ACCEPTED}.")
    if is_picture(value):
        return Pictures(value, [value], None)
    return Video(value, open_capture(value), notify, every)


def open_all(values, earlier_results=frozenset(), notify=lambda line: None, every=1):
    """Open several inputs as one: files, folders and patterns, in the order given.

    Parameters and errors are those of `open_source`. A file that can't be read is no error here,
    unless there is no other.

    Returns
    -------
    Files
    """
    paths, left_out = [], []
    for value in values:
        if value == "-" or is_live(value):
            raise SourceError(
                f"{hide_password(value)}: a camera, an address or - must be the only input. "
                "Run demo.py once for each, for example in two terminals."
            )
        if os.path.isdir(value) or not os.path.exists(value) and glob.has_magic(value):
            with open_source(value, earlier_results) as found:
                paths += found.paths
                left_out += [f"{value}: {found.left_out}"] if found.left_out else []
        else:
            paths.append(value)
    once = {}
    for path in paths:
        once.setdefault(os.path.abspath(path), path)
    paths = list(once.values())
    if not any(map(os.path.exists, paths)):
        check_file(paths[0], advice=f" Give {ACCEPTED}.")
    taken = _without(paths, earlier_results)
    if not taken:
        raise SourceError(f"there are only {EARLIER}. Give other files, or another -o.")
    if len(taken) < len(paths):
        left_out.append(f"left out: {len(paths) - len(taken)} {EARLIER}")
    return Files(taken, "; ".join(left_out), notify, every)


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
    live : bool
        False.
    unit : str
        What `length` counts, for people.
    paths : list of str
    moving : set of str
        Those of them that are videos.
    root : str or None
        The folder that all lie below; None for a single picture.
    length : int
    left_out : str
        For people: how many files were not taken, by ending; empty if none.
    """

    live, unit, moving = False, "pictures", frozenset()

    def __init__(self, name, paths, root, left_out=""):
        self.name, self.paths, self.root, self.length = name, paths, root, len(paths)
        self.kind = "picture" if root is None else "folder"
        self.left_out = left_out

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __iter__(self):
        for path in self.paths:
            yield self._read(path)

    def _read(self, path):
        try:
            return Frame(path, 0, 0.0, *read_picture(path))
        except SourceError as error:
            if self.root is None:
                raise
            return Frame(path, 0, 0.0, None, str(error))

    def summary(self, done):
        """How far a run came, for people."""
        return f"{done} of {self.length} pictures"

    def fault(self, done, unreadable, ended):
        """What was wrong with it, for people; `ended`: it was read to its end, not left early."""
        return f"{unreadable} of {self.length} pictures can't be read" if unreadable else ""


class PictureBytes(Pictures):
    """A picture that a server sent, or that came through standard input."""

    def __init__(self, name, data):
        super().__init__(name, [name], None)
        self._data = data

    def __iter__(self):
        yield Frame(self.name, 0, 0.0, *decode_picture(self._data, self.name))


class Files(Pictures):
    """Pictures and videos, one after the other; what can't be read of them is named."""

    def __init__(self, paths, left_out, notify, every):
        folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
        try:
            root = os.path.commonpath(folders)
        except ValueError as error:  # on Windows
            raise SourceError(
                "the inputs are on different drives. Run demo.py for each."
            ) from error
        super().__init__(f"{len(paths)} input{'s' * (len(paths) != 1)}", paths, root, left_out)
        self._notify, self._every, self._faulty, self._videos = notify, every, set(), {}
        self.moving = set(filter(_is_video, paths))
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
        with Video(path, open_capture(path), self._notify, self._every) as video:
            self._videos[path] = video
            for frame in video:
                lost, frames = lost + (frame.image is None), frames + 1
                yield frame
        if fault := video.fault(frames - lost, lost, ended=True):
            self._faulty.add(path)
            self._notify(fault)

    def video(self, path):
        """The `Video` with this path, of which a frame has been read."""
        return self._videos[path]

    def summary(self, done):
        """How far a run came, for people."""
        return f"{done} {self.unit} of {self.name}"

    def fault(self, done, unreadable, ended):
        """What was wrong, for people; `ended`: it was read to its end, not left early."""
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


def _standard_input():
    if sys.stdin is None or sys.stdin.isatty():
        raise SourceError("-: reads a picture from standard input. Pipe one into demo.py.")
    try:
        data = sys.stdin.buffer.read(LARGEST_PICTURE + 1)
    except OSError as error:
        raise SourceError(f"stdin: can't be read: {error.strerror or error}.") from error
    if len(data) > LARGEST_PICTURE:
        raise SourceError(f"stdin: is larger than {LARGEST_PICTURE} bytes.")
    return np.frombuffer(data, np.uint8)


def _folder(folder, earlier_results):
    """All pictures in a folder and those below it."""
    found, linked = [], 0
    for parent, folders, names in os.walk(folder):  # does not follow links, so no loops
        found += [os.path.join(parent, name) for name in names]
        linked += sum(os.path.islink(os.path.join(parent, name)) for name in folders)
    paths = [path for path in found if ending_of(path) in PICTURE_ENDINGS]
    paths, left_out = _leave_out(found, paths, earlier_results, linked)
    if not paths:
        endings = " ".join(PICTURE_ENDINGS)
        raise SourceError(
            f"{folder}: no picture in this folder{left_out and f' ({left_out})'}. "
            f"Endings read: {endings}."
        )
    return Pictures(folder, paths, folder, left_out)


def _pattern(pattern, earlier_results):
    """All files that fit a pattern, but no videos."""
    try:
        found = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
    except ValueError:  # no file can have such a name
        found = []
    if not found:
        raise SourceError(f"{pattern}: no file fits this pattern. Give {ACCEPTED}.")
    paths = [path for path in found if ending_of(path) not in NOT_PICTURES]
    paths, left_out = _leave_out(found, paths, earlier_results)
    if not paths:
        raise SourceError(
            f"{pattern}: no picture fits this pattern ({left_out}). Give a video by its name."
        )
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return Pictures(pattern, paths, root, left_out)


def _without(paths, earlier_results):
    """Those of the paths that are not results of an earlier run."""
    if not earlier_results:  # to find out where a million paths lead takes a while
        return paths
    return [path for path in paths if os.path.realpath(path) not in earlier_results]


def _is_hidden(path):
    return os.path.basename(path).startswith(".")


def _leave_out(found, pictures, earlier_results, linked=0):
    """Sorted paths of pictures to take, and for people how many of the files found are not."""
    hidden = list(filter(_is_hidden, pictures))
    taken = sorted(set(pictures).difference(hidden))
    others = Counter(ending_of(path) for path in found if not _is_hidden(path))
    others -= Counter(map(ending_of, pictures))
    counts = [(number, ending or "without ending") for ending, number in sorted(others.items())]
    counts += [(len(hidden), "hidden"), (linked, "linked folder" + "s" * (linked > 1))]
    before = len(taken)
    taken = _without(taken, earlier_results)
    counts.append((before - len(taken), EARLIER))
    parts = [f"{number} {what}" for number, what in counts if number]
    return taken, f"left out: {', '.join(parts)}" if parts else ""
