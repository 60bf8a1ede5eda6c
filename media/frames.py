"""What every source yields: frames. And the error of a source that can't be used."""

import time
from dataclasses import dataclass, field

import numpy as np

ACCEPTED = (
    "a picture, video, folder, pattern such as 'shots/*.jpg', camera number, "
    "or http, rtsp, rtmp, udp, srt or tcp address"
)


class SourceError(Exception):
    """A source that can't be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Frame:
    """One picture of a source.

    Attributes
    ----------
    source : str
        The file, address or camera that it comes from.
    index : int
        Its number in the source, from 0; counts frames that were dropped or can't be read.
    time : float
        Seconds since the source's first frame.
    image : ndarray of shape (H, W, 3), uint8, or None
        BGR; None for one that can't be read.
    error : str
        Why not; or, beside an image, what a person should know of it.
    moving : bool
        Whether it is one of a video, and not a picture in a file of its own.
    pixel_aspect : float
        Width of a pixel over its height, as it is to be displayed.
    read_at : float
        When it was read, by `time.monotonic`.
    """

    source: str
    index: int
    time: float
    image: np.ndarray | None
    error: str = ""
    moving: bool = False
    pixel_aspect: float = 1.0
    read_at: float = field(default_factory=time.monotonic)
