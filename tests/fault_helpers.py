"""Scripts that run the demo with one part of it broken, for tests of faults."""

import os

# Each replaces one function of the product or of OpenCV; `Demo(script=...)` runs it.
START = """
import itertools, os, sys
os.environ |= {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8"}  # as demo.py has it
import cv2, demo, nanodet
from media import film, live, outputs, sources, videos

def fails_at(number, function, error):
    calls = itertools.count(1)
    def call(*args, **kwargs):
        if next(calls) == number:
            raise error
        return function(*args, **kwargs)
    return call
"""
WITHOUT_PYAV = "import sys; sys.modules['av'] = None"
RUN = "\nsys.exit(demo.main())\n"


def broken(part):
    """A script of the demo, with a line of Python that breaks a part of it."""
    return START + part + RUN


def _raising(module, name, method, number, error):
    """A module meets a class of OpenCV whose method raises at the n-th call."""
    return broken(f"""
original = cv2.{name}
class Raising:  # no subclass: OpenCV's types crash Python's garbage collector then
    def __new__(cls, *args):  # a reader of packets is left as it is
        return original(*args) if [cv2.CAP_PROP_FORMAT, -1] in args else object.__new__(cls)
    def __init__(self, *args):
        self.real = original(*args)
    def __getattr__(self, name):
        return getattr(self.real, name)
Raising.{method} = fails_at({number}, lambda self, *args: self.real.{method}(*args), {error})
{module}.cv2.{name} = Raising
""")


def reader(number, error):
    """Reading raises at the n-th frame of a video."""
    return _raising("videos", "VideoCapture", "retrieve", number, error)


def writer(number, error):
    """Writing raises at the n-th frame of a video, which OpenCV writes."""
    return WITHOUT_PYAV + _raising("film", "VideoWriter", "write", number, error)


def disk(number):
    """The disk is full at the n-th look."""
    return broken(f"""
import shutil
look, full = shutil.disk_usage, type("Usage", (), {{"free": 0}})
looks = itertools.count(1)
shutil.disk_usage = lambda path: look(path) if next(looks) < {number} else full
""")


def signal_in_a_lock(number):
    """Ctrl-C comes while the n-th frame is waited for, before the lock is taken back."""
    return broken(f"""
import signal, threading
class Condition(threading.Condition):
    frames = 0
    def wait_for(self, predicate, timeout=None):
        if self.frames == {number - 1}:
            self.release()
            os.kill(os.getpid(), signal.SIGINT)
            self.acquire()
        news = super().wait_for(predicate, timeout)
        self.frames += bool(news)
        return news
live.threading = type("threading", (), {{**vars(threading), "Condition": Condition}})
""")


def vanishing(number, folder):
    """A folder is removed when the n-th frame of a video is to be written."""
    return broken(f"""
import shutil
add = film.Film.add
calls = itertools.count(1)
def add_or_remove(self, *args):
    if next(calls) == {number}:
        shutil.rmtree({folder!r})
    add(self, *args)
film.Film.add = add_or_remove
""")


def renaming(number):
    """The n-th result can't get its name."""
    return broken(f"""
error = OSError(28, "No space left on device")
outputs.os.replace = fails_at({number}, outputs.os.replace, error)
""")


def network(number, error):
    """The network raises at the n-th frame read, whichever thread has it."""
    return broken(f"""
frame_of, detect, bad = sources.Frame, nanodet.NanoDet.detect, []
frames = itertools.count(1)
def marked(*args, **kwargs):
    frame = frame_of(*args, **kwargs)
    bad.extend([frame.image] * (next(frames) == {number}))
    return frame
def detect_or_raise(self, image):
    if any(image is each for each in bad):
        raise {error}
    return detect(self, image)
sources.Frame = videos.Frame = marked
nanodet.NanoDet.detect = detect_or_raise
""")


def timeouts(seconds):
    """Streams may be silent only for so long, once they are open."""
    return broken(f"videos.READ_TIMEOUT = {seconds}\n")


def status(pid):
    """Megabytes of memory and number of threads of a process, from Linux."""
    with open(f"/proc/{pid}/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["VmRSS"].split()[0]) / 1024, int(fields["Threads"])


def number_of_moments():
    """How many random moments to send a signal at; NANODET_FAULT_MOMENTS sets more."""
    return int(os.environ.get("NANODET_FAULT_MOMENTS", "9"))
