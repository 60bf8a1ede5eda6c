"""What a source is, how it is to be read, the frames it yields; the error of one that can't be."""

import math
import time
from collections.abc import Callable, Set
from dataclasses import dataclass, field

import numpy as np

ACCEPTED = (
    "a picture, video, folder, pattern such as 'shots/*.jpg', camera number, "
    "or http, rtsp, rtmp, udp, srt or tcp address"
)


class SourceError(Exception):
    """A source that can't be used; the message names it and says what to do."""


def counted(number, unit):
    """So many of a unit, for people: 1 frame, 2 frames, 1 picture or frame."""
    one = " or ".join(each.removesuffix("s") for each in unit.split(" and "))
    return f"{number} {one if number == 1 else unit}"


@dataclass(frozen=True)
class Frame:
    """One picture of a source."""

    source: str  # the file, address or camera that it comes from
    index: int  # in the source, from 0; counts frames that were dropped or can't be read
    time: float  # seconds since the source's first frame
    image: np.ndarray | None  # BGR, (H, W, 3), uint8; None for one that can't be read
    error: str = ""  # why not; or, beside an image, what a person should know of it
    moving: bool = False  # whether it is one of a video, and not a picture in a file of its own
    pixel_aspect: float = 1.0  # width of a pixel over its height, as it is to be displayed
    read_at: float = field(default_factory=time.perf_counter)
    whole: tuple[int, int] | None = None  # (width, height) of the picture if image is a smaller one

    @property
    def size(self):
        """(width, height) of the picture."""
        return self.whole or self.image.shape[1::-1]


@dataclass(frozen=True)
class CameraMode:
    """What is asked of a camera: (width, height) and frames a second; None is the camera's own."""

    size: tuple[int, int] | None = None
    fps: int | None = None


@dataclass(frozen=True)
class Reading:
    """How inputs are read."""

    every: int = 1  # every n-th frame of a video, camera or stream is taken, from the first on
    reconnect: int = 5  # how often in a row a lost camera or stream is tried again
    start: float = 0.0  # second of a video to begin at
    duration: float = math.inf  # seconds of it to take
    camera: CameraMode | None = None  # what to ask of a camera; what it gives then is told
    skip: Set[str] = frozenset()  # real paths that folders and patterns leave out
    notify: Callable[[str], None] = lambda line: None  # gets lines for people, from any thread


class Source:
    """A context manager to loop over for frames; these are what all kinds have.

    A live one yields None where nothing is new, so that the loop can look after other things.
    """

    kind = "video"  # what can be made of it: "picture", "folder" of results or "video"
    live = False  # whether frames are dropped to stay with the newest one
    unit = "frames"  # what `length` counts, for people
    length = None  # how many it will yield, where that is known
    ends = None  # the second at which it does, where frames are left out and that is known
    root = None  # the folder that all files of a "folder" lie below
    left_out = ""  # for people: how many files were not taken, and of which kinds
    sound = None  # the file that has the sound of a video
    enough = None  # longest and shortest side that a picture needs, if it need not be whole

    def __init__(self, name, paths=None, moving=None):
        self.name = name  # for people, without a password
        self.paths = [name] if paths is None else paths  # what the `source` of a frame may be
        self.moving = frozenset(self.paths if moving is None else moving)  # those that are videos

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def __iter__(self):
        raise NotImplementedError

    def even_rate(self):
        """Frames a second of a video of what is taken, each shown for its time."""
        raise NotImplementedError

    def video(self, path):
        """The source of one of `moving`, once a frame of it has been read."""
        return self

    def summary(self, done):
        """How far a run came, for people."""
        return counted(done, self.unit)

    def fault(self, done, unreadable, ended):
        """What was wrong with it, for people; `ended`: it was read to its end, not left early."""
        return ""
