"""The life of a command: signals, exit codes, one line for an error, missing packages.

    if __name__ == "__main__":
        command.start("evaluate.py")    # before libraries that load slowly
    ...
    sys.exit(command.run("evaluate.py", main))

In a notebook, `start` leaves the kernel its signals, and `run` gives back what it takes.

Exit codes: 0 done, 1 failed, 2 usage or input, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM.
"""

import errno
import os
import signal
import sys
import threading
import warnings
from contextlib import contextmanager, suppress

program = os.path.basename(sys.argv[0])  # its name in messages
if sys.version_info < (3, 10):  # noqa: UP036 -- one line for those who try
    sys.exit(f"{program}: error: needs Python 3.10 or newer, this is {sys.version.split()[0]}")

ENDING = {signal.SIGINT: 130, signal.SIGTERM: 143}  # signals that end a run, with its exit code
if hasattr(signal, "SIGBREAK"):  # Windows: Ctrl-Break
    ENDING[signal.SIGBREAK] = 130
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
    ENDING[signal.SIGHUP] = 129  # the terminal is gone; under nohup that is ignored
QUIET = {  # one clear line of ours instead of many of its libraries'
    "OPENCV_LOG_LEVEL": "SILENT",
    "OPENCV_FFMPEG_LOGLEVEL": "-8",
    "QT_LOGGING_RULES": "*=false",
    # A few kilobytes can unfold to gigabytes; the largest cameras have 200 million pixels.
    "OPENCV_IO_MAX_IMAGE_PIXELS": str(200_000_000),
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime would report its use to its makers
}


class UsageError(Exception):
    """Something given can't be used; the message says what to do."""


class Failed(Exception):
    """The work can't be finished; the message says why."""


class Signals:
    """The first of `ENDING` ends the run: KeyboardInterrupt with the shells' exit code.

    Raised at any moment, it could leave a lock locked for ever, or a video without its name. So
    while something is made whole it is kept, and raised afterwards; `code` is set at once.
    """

    def __init__(self):
        self._keep, self.code = False, None

    def handle(self, number, _):
        """End now, or at the next `check`; more signals change nothing."""
        if self.code is None:
            self.code = ENDING[number]
            if not self._keep:
                self.check()

    def check(self):
        """Raise KeyboardInterrupt if a signal has come."""
        if self.code is not None:
            raise KeyboardInterrupt(self.code)

    @contextmanager
    def kept(self):
        """Keep a signal until the next `check`, or until the end of this."""
        self._keep = True
        try:
            yield
        finally:
            self._keep = False
        self.check()


signals = Signals()  # of the run in progress


def _end_at_once(number, _):
    os._exit(ENDING[number])


def in_ipython():
    """Whether IPython runs this: in a notebook, also by %run, the process is the kernel's."""
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return get_ipython() is not None


@contextmanager
def _quiet():
    """Set `QUIET`, unless somebody has, for OpenCV to read when it is loaded, others at first use.

    In an OpenCV that is loaded already, as in a notebook, the limit of pixels can't be changed.
    """
    given = {name: value for name, value in QUIET.items() if name not in os.environ}
    os.environ.update(given)
    cv2 = sys.modules.get("cv2") if "OPENCV_LOG_LEVEL" in given else None
    set_level = cv2 and (getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel)
    level = set_level and set_level(0)
    try:
        yield
    finally:
        for name in given:
            os.environ.pop(name, None)
        if set_level:
            set_level(level)


def start(name):
    """Begin a program that is run, not imported; its messages begin with this name.

    Until `run`, signals end it at once, but for those of a notebook's kernel. OpenCV is loaded
    here, to say how to get it if that fails.
    """
    global program
    program = name
    for number in () if in_ipython() else ENDING:
        signal.signal(number, _end_at_once)
    try:
        with _quiet():
            import cv2  # noqa: F401
            import numpy  # noqa: F401
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        sys.exit(
            f"{program}: error: OpenCV can't be loaded ({reason}). "
            "Run: pip install -r requirements.txt. "
            "If a library such as libGL.so.1 is missing: apt-get install libgl1 libglib2.0-0, "
            "or pip install opencv-python-headless in place of opencv-python."
        )


@contextmanager
def packages(names):
    """Raise Failed, with these names for pip, where an import inside finds no package."""
    try:
        yield
    except ImportError as missing:
        name = missing.name or missing
        raise Failed(f"{name} is not installed. Run: pip install {names}") from missing


def run(name, main, usage=(), failed=()):
    """Call main() and say in one line what went wrong; returns the exit code of the program `name`.

    `usage` and `failed` are the errors that mean 2 and 1, beside `UsageError` and `Failed`.
    """
    global program, signals
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may be more than the terminal can show
            stream.reconfigure(errors="backslashreplace")
    outer, program, signals, handlers = (program, signals), name, Signals(), {}
    if threading.current_thread() is threading.main_thread():
        numbers = {signal.SIGINT} if in_ipython() else set(ENDING)  # SIGTERM is to end the kernel
        numbers = (number for number in numbers if signal.getsignal(number) is not None)  # C's own
        handlers = {number: signal.signal(number, signals.handle) for number in numbers}
    try:
        with _quiet():
            return main() or 0
    except SystemExit as ending:  # argparse's
        return ending.code or 0
    except (UsageError, *usage) as error:
        return fail(error, 2)
    except (Failed, *failed) as error:
        return fail(error, 1)
    except MemoryError:
        return fail("out of memory. Give a smaller picture or --size.", 1)
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        return fail(
            "no more threads can be started. Raise the limit (ulimit -u, docker's --pids-limit), "
            "or give --threads 1.",
            1,
        )
    except KeyboardInterrupt:
        return signals.code or 130
    except SystemError:  # what a signal becomes that is raised inside some functions of C
        if signals.code is None:
            raise
        return signals.code
    except OSError as error:
        if error.filename:
            return fail(f"{error.filename}: {error.strerror}", 1)
        if not in_ipython():
            # What is left of the output must not be tried again when Python ends.
            with suppress(AttributeError, OSError):  # there is none, or one without a file
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        closed = sys.platform == "win32" and error.errno == errno.EINVAL
        if closed or isinstance(error, BrokenPipeError):  # as with `| head -1`: nobody reads on
            return 0
        return fail(f"standard output can't be written: {error.strerror}.", 1)
    finally:
        program, signals = outer
        for number, handler in handlers.items():
            # If Python ends now, a late Ctrl-C must not change the code.
            signal.signal(number, signal.SIG_IGN if handler is _end_at_once else handler)


def printable(text):
    """The text on one line that moves no cursor and changes no colour, whoever named the file."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def say(text, error=False):
    """Print a line for people, on stderr if `error`; None is where it is without a console."""
    stream = sys.stderr if error else sys.stdout
    if stream is not None:  # else print would take the other one
        print(printable(str(text)), file=stream, flush=True)


def tell(text):
    """Tell the user, on stderr, of something that does not end the run."""
    say(f"{program}: {text}", error=True)


def progress_bar(hidden=False, **settings):
    """A bar of tqdm on a terminal or in the cell of a notebook; a hidden one elsewhere."""
    # Not at the top: one picture must stay fast.
    cell = in_ipython()
    terminal = sys.stderr is not None and sys.stderr.isatty()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ipywidgets if it is not there, of its own thread
        if cell:
            from tqdm.auto import tqdm
        else:
            from tqdm import tqdm
        return tqdm(disable=hidden or not (cell or terminal), leave=False, **settings)


def fail(error, code):
    """Say what was wrong; returns the exit code."""
    tell(f"error: {error}")
    return code
