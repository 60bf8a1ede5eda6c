"""Frames through several detectors at once, results in order, memory bounded.

    for frame, result in in_order(frames, work, workers=2):
        ...

Reading, detection and what the caller does with a result overlap.
"""

import queue
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

END = object()
HEAVY = 64 << 20  # bytes; of larger images only one at a time waits for a worker
HELD = 256 << 20  # bytes of images held; with more, the first has to be done before another


def in_order(frames, work, workers):
    """Do work on each frame in `workers` threads; yield (frame, result) in the frames' order.

    Frames are read in a thread of its own, a few ahead: at most 3 for each worker and 3 more are
    held at a time, and fewer of those whose images are large. The first error of reading or of
    work is raised after the results before it. Leaving the loop early ends reading and drops what
    was not yet given.
    """
    ahead = queue.Queue(workers)
    stopping = threading.Event()
    reader = threading.Thread(target=_read, args=(frames, ahead, stopping), daemon=True)
    pending = deque()
    with ThreadPoolExecutor(workers) as pool:
        reader.start()
        try:
            while True:
                frame, error = ahead.get()
                if frame is END:
                    break
                pending.append((frame, pool.submit(work, frame)))
                full = len(pending) > 2 * workers or sum(_size(each) for each, _ in pending) > HELD
                if full or pending[0][1].done():
                    first, future = pending.popleft()
                    yield first, future.result()
            while pending:
                first, future = pending.popleft()
                yield first, future.result()
            if error is not None:
                raise error
        finally:
            stopping.set()
            for _, future in pending:
                future.cancel()
            reader.join()


def _size(frame):
    """Bytes of a frame's image, if it has one."""
    return getattr(getattr(frame, "image", None), "nbytes", 0)


def _read(frames, ahead, stopping):
    """Put (frame, None) for each frame, then (END, error or None)."""
    error = None
    try:
        for frame in frames:
            if not _put(ahead, (frame, None), stopping):
                return
    except Exception as caught:  # handed to the thread that waits for frames
        error = caught
    _put(ahead, (END, error), stopping)


def _put(ahead, item, stopping):
    """Put an item into the queue unless the other side has stopped."""
    while _size(item[0]) > HEAVY and not ahead.empty():
        if stopping.wait(0.02):
            return False
    while not stopping.is_set():
        try:
            ahead.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False
