"""Where frames come from: pictures, folders, video files, cameras, network streams.

from media.sources import open_source
with open_source("clip.mp4") as source:
    for frame in source:
        print(frame.index, frame.time, frame.image.shape)
"""

import glob
import os

from media.frames import ACCEPTED, Frame, SourceError
from media.live import Live, is_live, open_camera
from media.pictures import (
    PICTURE_ENDINGS,
    check_file,
    has_picture_ending,
    is_picture,
    read_picture,
)
from media.videos import Video, open_capture


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
        return Live(number, open_camera(number), reconnect, notify)
    if "://" in value:
        if not value.startswith(("http://", "https://", "rtsp://", "rtsps://")):
            raise SourceError(f"{value}: unknown kind of address. Give {ACCEPTED}.")
        capture = open_capture(value)
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
    check_file(value)
    if is_picture(value):
        return Pictures(value, [value], None)
    return Video(value, open_capture(value))


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


def _pictures_below(folder, output_folder):
    """Paths of all pictures in a folder and those below it, sorted."""
    paths = []
    for parent, folders, names in os.walk(folder):  # does not follow links, so no loops
        folders[:] = [
            name for name in folders if not _below(os.path.join(parent, name), output_folder)
        ]
        paths += [os.path.join(parent, name) for name in names if has_picture_ending(name)]
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
