"""Find objects with NanoDet in pictures, videos, cameras and streams.

python demo.py                         the camera, in a window
python demo.py -i street.jpg -v        a picture: result.jpg, and a window
python demo.py -i clip.mp4             a video: result.mp4
python demo.py -i photos --json -      a folder: results/, and a line of JSON each
"""

import os

# Read when cv2 is loaded: one clear line of ours instead of many of OpenCV's, FFmpeg's and Qt's.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("QT_LOGGING_RULES", "*=false")
# A few kilobytes can unfold to gigabytes; the largest cameras have 200 million pixels.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(200_000_000))

import signal
import sys

if __name__ == "__main__":  # Ctrl-C while libraries load, the longest part of a short run
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import queue
import threading
import time
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass

try:
    import cv2
    import numpy as np
except ImportError as error:
    sys.exit(
        f"demo.py: error: OpenCV can't be loaded ({' '.join(str(error).split())[:200]}). "
        "Run: pip install -r requirements.txt. "
        "If a library such as libGL.so.1 is missing: apt-get install libgl1 libglib2.0-0, "
        "or pip install opencv-python-headless in place of opencv-python."
    )

from media.drawing import draw, draw_status, label_of
from media.outputs import (
    JsonLines,
    OutputError,
    VideoFile,
    check_picture_name,
    check_video_name,
    save_picture,
    writable_name,
)
from media.sources import Live, Pictures, SourceError, Video, is_live, open_source
from media.window import KEYS, FrameRate, Window, why_no_window
from nanodet import Detections, ModelError
from options import NetworkOptions, UsageError, parse

# glibc asks the system anew for each block larger than any that was freed; the network has many.
np.empty(31 << 20, np.uint8)  # not touched, so it costs nothing

ENDING = (signal.SIGINT, signal.SIGTERM)
RESULT_PICTURE, RESULT_VIDEO, RESULTS = "result.jpg", "result.mp4", "results"


class Failed(Exception):
    """Something went wrong in the middle of the work; the message says what."""


@dataclass(frozen=True)
class Result:
    """What was found in one frame, the picture of it, and the milliseconds it took."""

    detections: Detections
    drawn: np.ndarray
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
        0 done, 1 failed, 2 usage or input, 130 ended with Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a file's name need not be text that the terminal can show
            stream.reconfigure(errors="backslashreplace")
    args = parse(argv, examples=__doc__.partition("\n\n")[2])
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
    except OSError as error:  # of stdout: errors of files became one of the above
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # as with `| head -1`: nobody is left to read
            return 0
        return fail(f"standard output can't be written: {error.strerror}.", 1)
    finally:
        if __name__ != "__main__":  # else Python ends: a late Ctrl-C shall not change the code
            for number, handler in handlers.items():
                signal.signal(number, handler)


class Signals:
    """The first SIGINT or SIGTERM ends the run: KeyboardInterrupt with the shells' exit code.

    Raised at any moment, it could leave a lock locked for ever, or a video without its name. So
    while frames flow it is kept, and raised between two of them.
    """

    def __init__(self):
        self._keep, self._code = False, None

    def handle(self, number, _):
        """End now, or at the next `check`; more signals change nothing."""
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        self._code = 128 + number
        if not self._keep:
            self.check()

    def check(self):
        """Raise what was kept."""
        if self._code is not None:
            raise KeyboardInterrupt(self._code)

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
    """Say what was wrong in one line, and give the exit code."""
    line = "\\n".join(str(error).splitlines())  # a file's name may hold a line break
    print(f"demo.py: error: {line}", file=sys.stderr)
    return code


def warn(line):
    """Tell the user of something that does not end the run."""
    print(f"demo.py: {line}", file=sys.stderr, flush=True)


def say(args, text):
    """Print for people; to stderr where stdout carries JSON."""
    if not args.quiet:
        print(text, file=sys.stderr if args.json == "-" else sys.stdout, flush=True)


def result_path(output, default):
    """The file to write: -o, or the default name, in the folder -o if it names one."""
    if output is None:
        return default
    if os.path.isdir(output) or output.endswith(("/", os.sep)):
        return os.path.join(output, default)
    return output


def check_output(args, model, source):
    """Refuse names of results that can't be written, or that are something already in use."""
    folder = isinstance(source, Pictures) and source.root is not None
    inputs = source.paths if isinstance(source, Pictures) else [source.name]
    used = [*inputs, model, args.labels, (source.root or ".") if folder else None]
    results = []
    if args.save and folder:
        results.append(("-o", args.output or RESULTS))
    elif args.save:
        still = isinstance(source, Pictures)
        name = result_path(args.output, RESULT_PICTURE if still else RESULT_VIDEO)
        try:
            (check_picture_name if still else check_video_name)(name)
        except OutputError as error:
            raise UsageError(error) from error
        results.append(("-o", name))
    if args.json not in (None, "-"):
        results.append(("--json", args.json))
    places = set()
    for flag, name in results:
        place = os.path.realpath(name)
        if place in places or is_one_of(name, used):
            raise UsageError(f"{name}: is in use as an input or result. Change {flag}.")
        places.add(place)


def is_one_of(name, files):
    """Whether a name means one of these files, by whatever links; they may be a million."""
    if not os.path.exists(name):
        return False
    own = os.stat(name)
    there = (file for file in files if file is not None and os.path.exists(file))
    return any(os.path.samestat(own, os.stat(file)) for file in there)


def run(args, signals):
    """Open what the options name and do the work of the source's kind; gives the exit code."""
    options = NetworkOptions.of(args)
    live = is_live(args.input)
    no_window = why_no_window() if args.vis or live else ""
    if no_window and live and not (args.save or args.json is not None):
        raise UsageError(f"no window: {no_window}. Give --save or --json FILE to go without one.")
    if no_window:
        warn(f"no window: {no_window}.")

    if args.save is None:
        args.save = not live
    screen = (args.vis or live) and not no_window

    with ExitStack() as stack:
        skip = args.output or RESULTS
        source = stack.enter_context(
            open_source(args.input, skip, args.reconnect, warn, signals.check)
        )
        check_output(args, options.model, source)
        alone = isinstance(source, Live) or source.length == 1
        workers = 1 if alone else cv2.getNumThreads()
        work = Work(options, workers, args.save or screen, signals.check)
        json = None
        if args.json is not None:
            json = stack.enter_context(JsonLines(args.json, options.labels))
        window = stack.enter_context(Window(signals.check)) if screen else None
        if isinstance(source, Pictures) and source.root is None:
            return run_picture(args, source, work, json, window)
        runner = {Live: run_live, Video: run_video, Pictures: run_pictures}[type(source)]
        with signals.kept():
            return runner(args, source, work, json, window)


class Work:
    """Detect and draw one frame. Any thread may call it: each takes a network of its own.

    Parameters
    ----------
    options : NetworkOptions
    workers : int
        How many threads will call it at a time.
    drawing : bool
        Whether anybody will look at the drawn picture.
    check : callable
        Called between two frames; may raise to end that.
    """

    def __init__(self, options, workers, drawing, check=lambda: None):
        self.labels, self.wanted, self.workers = options.labels, options.wanted, workers
        self.check, self._drawing = check, drawing
        if workers > 1:  # many networks of one thread each beat one of many
            cv2.setNumThreads(1)
        self._networks = queue.SimpleQueue()
        for _ in range(workers):
            network = options.load()
            self._networks.put(network)
        if network.head.num_classes != len(self.labels):
            warn(
                f"the network knows {network.head.num_classes} classes, there are names for "
                f"{len(self.labels)}. Give its own with --labels FILE."
            )
        width, height = network.input_size
        file = os.path.basename(options.model)
        self.description = f"{file} at {width}x{height} on {network.engine}"

    def __call__(self, frame):
        if frame.image is None:
            return None
        network = self._networks.get()
        try:
            started = time.perf_counter()
            found = network.detect(frame.image)
            milliseconds = 1000 * (time.perf_counter() - started)
        except ModelError as error:
            raise Failed(f"{frame.source}, frame {frame.index}: {error}") from error
        finally:
            self._networks.put(network)
        if self.wanted is not None:
            found = found[np.isin(found.class_id, self.wanted)]
        drawn = draw(frame.image, found, self.labels) if self._drawing else None
        return Result(found, drawn, milliseconds)


def steps(args, source, work):
    """Every frame of a source with its result, in order, behind a progress bar."""
    from tqdm import tqdm  # not at the top: one picture shall be quick

    from media.pipeline import in_order

    hidden = args.quiet or not sys.stderr.isatty()
    bar = tqdm(total=source.length, unit=" frames", disable=hidden, leave=False)
    with bar, closing(in_order(source, work, work.workers)) as results:
        for frame, result in results:
            work.check()
            yield frame, result
            bar.update()


def run_pictures(args, source, work, json, window):
    """All pictures of a folder or pattern."""
    folder = args.output or RESULTS
    unreadable = done = 0
    for frame, result in steps(args, source, work):
        if json:
            json.write(frame, result and result.detections)
        if result is None:
            warn(frame.error)
            unreadable += 1
            continue
        if args.save:
            name = os.path.relpath(frame.source, source.root)
            save_picture(os.path.join(folder, writable_name(name)), result.drawn)
        done += 1
        if window and not window.step(result.drawn):
            break
    summary = f"{done} of {source.length} pictures"
    if args.save:
        summary += f", saved in {folder}"
    say(args, f"{summary}; {work.description}")
    if unreadable:
        return fail(f"{unreadable} of {source.length} pictures can't be read", 1)
    return 0


def run_picture(args, source, work, json, window):
    """One picture: say what is in it, save it, show it."""
    (frame,) = source
    if frame.image is None:
        raise SourceError(frame.error)
    result = work(frame)
    if json:
        json.write(frame, result.detections)
    height, width = frame.image.shape[:2]
    found = result.detections
    lines = [f"{frame.source}: {width}x{height}, {len(found)} object{'s' * (len(found) != 1)}"]
    for box, confidence, class_id in found:
        corners = ", ".join(f"{value:.1f}" for value in box)
        lines.append(f"  {label_of(class_id, work.labels):<15} {confidence:.2f}  [{corners}]")
    lines.append(f"{result.milliseconds:.1f} ms; {work.description}")
    say(args, "\n".join(lines))
    if args.save:
        path = result_path(args.output, RESULT_PICTURE)
        save_picture(path, result.drawn)
        say(args, f"saved {path}")
    if window:
        say(args, KEYS)
        window.hold(result.drawn)
    return 0


def run_video(args, source, work, json, window):
    """A video file: every frame, in order, into a video of the same size and rate."""
    path = result_path(args.output, RESULT_VIDEO)
    done, quit_early, started = 0, False, time.perf_counter()
    with ExitStack() as stack:
        film = None
        if args.save:
            film = stack.enter_context(VideoFile(path, source.fps))
        try:
            for frame, result in steps(args, source, work):
                if json:
                    json.write(frame, result.detections)
                if film:
                    film.write(result.drawn)
                done += 1
                if window and not window.step(result.drawn):
                    quit_early = True
                    break
        except (KeyboardInterrupt, Failed, OutputError, SourceError) as error:
            done = film.length if film else done
            warn(f"stopped after {done} of {source.length or '?'} frames of {source.name}")
            if isinstance(error, SourceError):  # it began well, so the input was no mistake
                raise Failed(error) from error
            raise
        finally:
            if film:
                film.close()
                if film.length:
                    say(args, f"saved {path}, {film.length} frames")
    if not done:
        raise SourceError(f"{source.name}: holds no picture that OpenCV reads.")
    rate = done / (time.perf_counter() - started)
    say(args, f"{done} frames, {rate:.1f} a second; {work.description}")
    # The length is exact in MP4 and AVI, an estimate elsewhere.
    if source.length and done < 0.9 * source.length and not quit_early:
        return fail(f"{source.name}: ends at frame {done} of {source.length}; is it cut off?", 1)
    return 0


def run_live(args, source, work, json, window):
    """A camera or stream: always the newest frame, until it ends or the user has enough."""
    path = result_path(args.output, RESULT_VIDEO)
    film = VideoFile(path, source.fps) if args.save else None
    say(args, f"{source.name}; {work.description}")
    if window:
        say(args, KEYS)
    done, rate = 0, FrameRate()
    try:
        for frame in source:
            result = work(frame)
            done += 1
            if json:
                json.write(frame, result.detections)
            if film:
                film.write_until(result.drawn, frame.time - (window.paused if window else 0))
            if window:
                status = f"{rate.tick():.1f} FPS, network {result.milliseconds:.1f} ms"
                if not window.step(result.drawn, draw_status(result.drawn, status)):
                    break
    finally:
        if film:
            film.close()
        say(args, f"{done} frames shown or written, {source.dropped} dropped to keep up")
        if film and film.length:
            say(args, f"saved {path}, {film.length} frames")
    if source.error:
        return fail(source.error, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
