# /// script
# requires-python = ">=3.10"
# dependencies = ["opencv-python>=4.10,<6", "numpy>=1.23", "tqdm>=4.60"]
# ///
"""Find objects with NanoDet in pictures, videos, cameras and streams.

python demo.py                         the camera, in a window
python demo.py street.jpg -v           a picture: result.jpg, and a window
python demo.py clip.mp4                a video: result.mp4
python demo.py photos --json -         a folder: results/, and a line of JSON each
python demo.py *.jpg clip.mp4          several: results/
"""

import os
import signal
import sys

if sys.version_info < (3, 10):  # noqa: UP036 -- one line for those who try
    sys.exit("demo.py: error: needs Python 3.10 or newer, this is " + sys.version.split()[0])

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # libraries load, the longest part of a short run
    # Read when cv2 is loaded: one clear line of ours instead of many of OpenCV's, FFmpeg's, Qt's.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    os.environ.setdefault("QT_LOGGING_RULES", "*=false")
    # A few kilobytes can unfold to gigabytes; the largest cameras have 200 million pixels.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(200_000_000))

import math
import queue
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

try:
    import cv2
    import numpy as np
except ImportError as error:
    if __name__ != "__main__":
        raise
    sys.exit(
        f"demo.py: error: OpenCV can't be loaded ({' '.join(str(error).split())[:200]}). "
        "Run: pip install -r requirements.txt. "
        "If a library such as libGL.so.1 is missing: apt-get install libgl1 libglib2.0-0, "
        "or pip install opencv-python-headless in place of opencv-python."
    )

from media.addresses import ask
from media.drawing import as_displayed, draw
from media.film import open_film
from media.frames import CameraMode, SourceError
from media.live import is_live
from media.outputs import (
    JsonLines,
    OutputError,
    PictureFile,
    ResultFolder,
    Text,
    decide_place,
    earlier_results,
    is_one_of,
    refuse_foreign,
    result_name,
)
from media.sources import Reading, open_source
from media.window import KEYS, Window, why_no_window
from nanodet import Detections, ModelError
from options import NetworkOptions, UsageError, inputs_of, parse, wrong_number

ENDING = (signal.SIGINT, signal.SIGTERM)


class Failed(Exception):
    """Something went wrong in the middle of the work; the message says what."""


@dataclass(frozen=True)
class Result:
    """What was found in a frame, and in how many milliseconds; `drawn`: the frame with boxes.

    `drawn` is None if nobody will look at it.
    """

    detections: Detections
    drawn: np.ndarray | None
    milliseconds: float


def main(argv=None):
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        Without the program's name; those of the process if not given.

    Returns
    -------
    int
        0 done, 1 failed, 2 usage or input, 130 Ctrl-C, 143 SIGTERM.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file's name may be more than the terminal can show
            stream.reconfigure(errors="backslashreplace")
    args = parse(argv, examples=(__doc__ or "").partition("\n\n")[2])
    # Once a block of this size is freed, glibc keeps smaller ones for the next use, as the network
    # has many, instead of asking the system anew each time. Not touched, so it takes no memory.
    np.empty(31 << 20, np.uint8)
    signals, handlers = Signals(), {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, signals.handle) for number in ENDING}
    try:
        return run(args, signals)
    except (UsageError, SourceError) as error:
        return fail(error, 2)
    except (Failed, OutputError) as error:
        return fail(error, 1)
    except MemoryError:
        return fail("out of memory. Give a smaller --size or picture.", 1)
    except KeyboardInterrupt as interrupt:
        return interrupt.args[0]
    except SystemError:  # what a signal becomes that is raised inside some functions of C
        if signals.code is None:
            raise
        return signals.code
    except OSError as error:  # only stdout's: media turns those of files and sockets into its own
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # as with `| head -1`: nobody is left to read
            return 0
        return fail(f"standard output can't be written: {error.strerror}.", 1)
    finally:
        for number, handler in handlers.items():
            # If Python ends now, a late Ctrl-C must not change the code.
            signal.signal(number, signal.SIG_IGN if __name__ == "__main__" else handler)


class Signals:
    """The first SIGINT or SIGTERM ends the run: KeyboardInterrupt with the shells' exit code.

    Raised at any moment, it could leave a lock locked for ever, or a video without its name. So
    while frames flow it is kept, and raised between two of them.

    Attributes
    ----------
    code : int or None
        That exit code, once a signal has come.
    """

    def __init__(self):
        self._keep, self.code = False, None

    def handle(self, number, _):
        """End now, or at the next `check`; more signals change nothing."""
        if self.code is None:
            self.code = 128 + number
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


def fail(error, code):
    """Say what was wrong in one line; returns the exit code."""
    line = "\\n".join(str(error).splitlines())  # a file's name may contain a line break
    print(f"demo.py: error: {line}", file=sys.stderr)
    return code


def warn(line):
    """Tell the user of something that does not end the run."""
    print(f"demo.py: {line}", file=sys.stderr, flush=True)


def run(args, signals):
    """Open what the flags name and take every frame through; returns the exit code."""

    def say(text):
        """Print for people; to stderr where stdout carries JSON."""
        if not args.quiet:
            print(text, file=sys.stderr if args.json == "-" else sys.stdout, flush=True)

    options = NetworkOptions.of(args)
    inputs, lists = inputs_of(args)
    only = inputs[0] if len(inputs) == 1 else ""
    live = is_live(only) and not ask(only).finite
    save = not live if args.save is None else args.save
    screen = has_screen(args, live, save)
    own = earlier_results(args.output) if save else set()

    with ExitStack() as stack:
        source = stack.enter_context(open_inputs(inputs, args, own))
        place = place_for(args.output, source) if save else None
        check_in_use(place, args.json, source, (options.model, args.labels, *lists))
        workers = share_cores(source)
        detect = DetectAndDraw(options, drawing=save or screen or bool(args.serve))
        still = source.kind == "picture"
        if not still:
            stack.enter_context(signals.kept())
            say(f"{source.name}; {detect.description}")
        if source.kind == "folder" and source.left_out:
            say(source.left_out)

        paced = not source.live and bool(source.moving)
        web = window = None
        if args.serve:
            web = web_view(args.serve, detect.labels, paced and not screen, signals.check)
            stack.callback(web.close)
            (warn if args.quiet else say)(f"live view: {web.address}")
        if screen:
            window = Window(status=source.live, check=signals.check, paced=paced)
            stack.callback(window.close)
        if window and not still:
            say(KEYS)
        with ExitStack() as closing_sinks:
            sinks = []
            for sink in sinks_for(source, detect, args.json, place, window, say):
                closing_sinks.callback(close_and_say, sink, say)
                sinks.append(sink)
            sinks += filter(None, (window, web))
            results = results_in_order(source, detect, workers, hidden=args.quiet)
            code = take_all(source, results, sinks, signals.check, say)
        if window and still:
            say(KEYS)
            window.hold()
        return code


def has_screen(args, live, save):
    """Whether to open a window: where asked for, or where nothing else shows a live source."""
    if not (args.vis or (live and not args.serve)):
        return False
    fault = why_no_window()
    if fault and live and not (save or args.json is not None or args.serve):
        raise UsageError(
            f"no window: {fault}. Give --serve PORT to look at it in a browser, "
            "or --save or --json FILE."
        )
    if fault:
        warn(f"no window: {fault}.")
    return not fault


def open_inputs(inputs, args, own):
    """Open what the command line names, where the flags suit it; `own`: earlier results."""
    mode = None
    if args.camera_size or args.camera_fps:
        mode = CameraMode(args.camera_size, args.camera_fps)
    source = open_source(inputs, Reading(args.every, args.reconnect, mode, own, warn))
    if args.serve and source.kind != "video":
        raise UsageError(f"--serve: shows cameras, streams and videos, not {source.name}.")
    return source


def sinks_for(source, detect, json, place, window, say):
    """Open one sink after the other, except the window; yield each at once.

    So the caller can close the first ones if a later one can't be opened.
    """
    if json is not None:
        yield JsonLines(json, detect.labels)
    if source.kind == "picture":
        yield Text(detect.labels, detect.description, say)
    if not place:
        return
    if source.kind == "picture":
        yield PictureFile(place)
    elif source.kind == "folder":
        yield ResultFolder(
            place, source.root, lambda path, name: open_film(path, source.video(name))
        )
    elif source.live:  # recorded at the pace at which it was shown
        yield open_film(place, source, lambda f: f.time - (window.paused if window else 0))
    else:
        yield open_film(place, source)


def web_view(serve, labels, paced, check):
    """The sink of --serve HOST:PORT."""
    from media.web import Web  # not at the top: one picture must stay fast

    try:
        return Web(*serve, labels, paced, check)
    except OutputError as error:
        raise UsageError(f"--serve {error} Give another port or host.") from error


def place_for(output, source):
    """Where the results of a source go: `decide_place`, before anything is detected."""
    try:
        place = decide_place(output, source.kind)
        if source.kind == "folder":
            if is_one_of(place, [source.root or "."]):
                raise UsageError(f"{place}: -o is the input folder. Give another folder.")
            names = (result_name(p, source.root, p in source.moving) for p in source.paths)
            refuse_foreign(place, names)
    except OutputError as error:
        raise UsageError(f"-o: {error}" if output == "" else error) from error
    return place


def check_in_use(place, json, source, others):
    """Refuse results that would take the place of something in use, or of each other."""
    used = [*source.paths, *others]
    places = set()
    for flag, name in (("-o", place), ("--json", json)):
        if name in (None, "-"):
            continue
        real = os.path.realpath(name)
        if real in places or is_one_of(name, used):
            raise UsageError(f"{name}: is in use as an input or result. Change {flag}.")
        places.add(real)


class DetectAndDraw:
    """What happens to a frame, in any number of threads.

    Each call borrows an idle network, or makes one if there is none. The first is made at once, so
    that what is wrong with it shows before the first frame.

    Parameters
    ----------
    options : NetworkOptions
    drawing : bool
        Whether anybody will look at the drawn image.

    Attributes
    ----------
    description : str
        What runs the network, and as what, for people.
    labels : sequence of str
        Name of each class_id.
    """

    def __init__(self, options, drawing):
        self._options, self._drawing = options, drawing
        self._idle = queue.SimpleQueue()
        network = options.load()
        self._idle.put(network)
        self.labels, self._wanted = options.names_for(network)
        if fault := wrong_number(self.labels, network):
            warn(fault)
        width, height = network.input_size
        file = os.path.basename(options.model)
        if file.endswith("_int8.onnx") and options.settings["engine"] == "opencv":
            warn(f"{file}: OpenCV is slower in int8 on most processors. Give --engine onnxruntime.")
        self.description = (
            f"{file} at {width}x{height} on {network.engine}; "
            f"{'NanoDet' if network.centre_offset else 'NanoDet-Plus'}, "
            f"{len(network.head.strides)} levels, "
            f"{'letterbox' if network.keep_ratio else 'stretched'}"
        )

    def __call__(self, frame):
        """The `Result` of a frame; None where there is no image to look at."""
        if frame is None or frame.image is None:
            return None
        try:
            network = self._idle.get_nowait()
        except queue.Empty:
            network = self._options.load()
        started = time.perf_counter()
        try:
            found = network.detect(frame.image)
        except ModelError as error:
            raise Failed(f"{frame.source}, frame {frame.index}: {error}") from error
        milliseconds = 1000 * (time.perf_counter() - started)
        self._idle.put(network)
        if self._wanted is not None:
            found = found[np.isin(found.class_id, self._wanted)]
        if not self._drawing:
            return Result(found, None, milliseconds)
        image, boxes = frame.image, found
        if frame.pixel_aspect != 1:
            image, boxes = as_displayed(image, found, frame.pixel_aspect)
        return Result(found, draw(image, boxes, self.labels), milliseconds)


def share_cores(source):
    """How many frames to look at at a time: 1 of a single picture or a live source.

    With more, each network that is made from here on gets one core.
    """
    if source.length == 1 or source.live:
        return 1
    workers = cv2.getNumThreads()
    if source.length:  # to make a network takes as long as to look at a picture or two
        workers = min(workers, math.ceil(source.length / 2))
    if workers > 1:  # many networks of one thread each beat one of many
        cv2.setNumThreads(1)
    return workers


def results_in_order(source, detect, workers, hidden):
    """Yield (frame, result) for each frame of a source, behind a progress bar unless hidden."""
    if workers == 1:
        for frame in source:
            yield frame, detect(frame)
        return
    # Not at the top: one picture must stay fast.
    from tqdm import tqdm

    from media.pipeline import in_order

    hidden = hidden or not sys.stderr.isatty()
    bar = tqdm(total=source.length, unit=" frames", disable=hidden, leave=False)
    with bar, closing(in_order(source, detect, workers)) as results:
        for frame, result in results:
            yield frame, result
            bar.update()


def take_all(source, results, sinks, check, say):
    """Take every result to every sink, in order, and report; returns the exit code."""
    done = unreadable = 0
    of_all = f"of {source.length or '?'} {source.unit} of {source.name}"
    enough, started = False, time.perf_counter()
    try:
        with closing(results):
            for frame, result in results:
                check()
                if frame is None:  # a live source has nothing new
                    continue
                answers = [sink.write(frame, result) for sink in sinks]
                enough = False in answers
                if frame.error:
                    warn(frame.error)
                unreadable += result is None
                done += result is not None
                if enough:
                    break
    except (KeyboardInterrupt, Failed, OutputError, SourceError) as error:
        unusable = isinstance(error, SourceError)
        if unusable and not done:
            raise
        if source.kind != "picture" and not source.live:
            warn(f"stopped after {done} {of_all}")
        if unusable:  # it began well, so the input was no mistake
            raise Failed(error) from error
        raise
    finally:
        if source.kind != "picture" and (done or unreadable):
            rate = done / (time.perf_counter() - started)
            say(f"{source.summary(done)}, {rate:.1f} a second")
    if enough and source.kind != "picture" and not source.live:
        say(f"the window was closed after {done + unreadable} {of_all}")
    fault = source.fault(done, unreadable, ended=not enough)
    return fail(fault, 1) if fault else 0


def close_and_say(sink, say):
    """Close a sink and tell what it saved."""
    saved = sink.close()
    if saved:
        say(f"saved {saved}")


if __name__ == "__main__":
    sys.exit(main())
