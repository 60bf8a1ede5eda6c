"""Where frames come from: pictures, folders, video files, cameras, network streams.

from media.sources import open_source
with open_source("clip.mp4") as source:
    for frame in source:
        print(frame.index, frame.time, frame.image.shape)
"""

import glob
import os
from collections import Counter

from media.addresses import ask, fetch, hide_password, with_known_scheme
from media.frames import ACCEPTED, Frame, SourceError
from media.live import Live, is_camera, open_camera
from media.pictures import (
    PICTURE_ENDINGS,
    check_file,
    decode_picture,
    ending_of,
    is_picture,
    read_picture,
)
from media.videos import Video, open_capture

# A pattern takes pictures: files with these endings are counted and left out.
NOT_PICTURES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".flv"),
    *(".wmv", ".3gp", ".ogv", ".gif", ".mjpg", ".mjpeg", ".h264"),
)


def open_source(
    value, earlier_results=frozenset(), reconnect=5, notify=lambda line: None, answer=None
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
        return Live(camera, open_camera(camera), reconnect, notify)
    if "://" in value:
        address = with_known_scheme(value)
        answer = answer or ask(address)
        if answer.picture:
            return OnlinePicture(hide_password(value), fetch(address))
        capture = open_capture(address, answer.status)
        video = Video(hide_password(value), capture)
        if answer.finite or video.length:
            return video
        return Live(address, capture, reconnect, notify)
    if os.path.isdir(value):
        return _folder(value, earlier_results)
    if not os.path.exists(value) and glob.has_magic(value):
        return _pattern(value, earlier_results)
    check_file(value, advice=f" Give {ACCEPTED}.")
    if is_picture(value):
        return Pictures(value, [value], None)
    return Video(value, open_capture(value), notify)


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
    left_out : str
        For people: how many files were not taken, by ending; empty if none.
    """

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
            try:
                image, flaw = read_picture(path)
                yield Frame(path, 0, 0.0, image, flaw)
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


class OnlinePicture(Pictures):
    """A picture that a server sent."""

    def __init__(self, name, data):
        super().__init__(name, [name], None)
        self._data = data

    def __iter__(self):
        yield Frame(self.name, 0, 0.0, *decode_picture(self._data, self.name))


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
            f"{pattern}: no picture fits this pattern ({left_out}). "
            "Give a video with -i, by itself."
        )
    root = os.path.commonpath([os.path.dirname(path) for path in paths])
    return Pictures(pattern, paths, root, left_out)


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
    if earlier_results:
        before = len(taken)
        taken = [path for path in taken if os.path.realpath(path) not in earlier_results]
        counts.append((before - len(taken), "results of an earlier run"))
    parts = [f"{number} {what}" for number, what in counts if number]
    return taken, f"left out: {', '.join(parts)}" if parts else ""
