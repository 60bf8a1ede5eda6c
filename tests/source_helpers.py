"""Read a source to its end in the test's own process."""

from media.sources import Reading, open_source


def read(inputs, **how):
    """Read inputs to their end: the frames, what was told meanwhile, and the fault."""
    told = []
    inputs = str(inputs) if not isinstance(inputs, list) else list(map(str, inputs))
    with open_source(inputs, Reading(notify=told.append, **how)) as source:
        frames = [frame for frame in source if frame is not None]
    lost = sum(frame.image is None for frame in frames)
    return frames, told, source.fault(len(frames) - lost, lost, ended=True)


def indices(frames, good=True):
    """Numbers of the frames that could be read, or of those that could not."""
    return [frame.index for frame in frames if (frame.image is not None) == good]


def times(frames):
    """Seconds of all frames."""
    return [frame.time for frame in frames]


def images(frames):
    """Images of all frames."""
    return [frame.image for frame in frames]
