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
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # python -I and -P leave it out
from cli import command

if __name__ == "__main__":
    command.start("demo.py")

import math
import time
from contextlib import ExitStack, closing

import cv2
import numpy as np

from cli.command import Failed, UsageError, fail, tell
from cli.network import DetectAndDraw, NetworkOptions, share_cores
from cli.options import inputs_of, parse
from media.addresses import ask, with_known_scheme
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
from media.window import Window, why_no_window


def main(argv=None):
    """Run the command line, with paths and texts as arguments; returns the exit code.

    If argv is None, they are the process's, or none in a notebook: those there are the kernel's.
    0 done, 1 failed, 2 usage or input, 129 SIGHUP, 130 Ctrl-C, 143 SIGTERM.
    """
    if argv is None:
        argv = sys.argv[1:] if __name__ == "__main__" or not command.in_ipython() else ()
    argv = list(map(os.fsdecode, argv))
    examples = (__doc__ or "").partition("\n\n")[2]  # none under python -OO
    return command.run(
        "demo.py", lambda: run(parse(argv, examples)), (SourceError,), (OutputError,)
    )


def run(args):
    """Open what the flags name and take every frame through; returns the exit code."""
    # Once a block of this size is freed, glibc keeps smaller ones, of which the network has many,
    # for the next use, instead of asking the system each time. Untouched, it takes no memory.
    np.empty(31 << 20, np.uint8)

    def say(text):
        """Print a line for people; to stderr where stdout carries JSON."""
        if not args.quiet:
            command.say(text, error=args.json == "-")

    options = NetworkOptions.of(args)
    inputs, lists = inputs_of(args)
    no_window = why_not_shown(args, inputs)
    with ExitStack() as stack:
        source = stack.enter_context(open_inputs(inputs, args))
        save = not source.live if args.save is None else args.save
        screen = args.vis or (source.live and not args.serve)
        if screen and no_window:
            tell(f"no window: {no_window}.")
            screen = False
        place = place_for(args.output, source) if save else None
        check_in_use(place, args.json, [*source.paths, options.model, args.labels, *lists])
        stack.callback(cv2.setNumThreads, cv2.getNumThreads())
        if args.threads:
            cv2.setNumThreads(args.threads)
        workers = share_cores(source)
        looked_at = save or screen or args.serve
        style = {"line_width": args.line_width, "hide_labels": args.hide_labels}
        detect = DetectAndDraw(options, drawing=style if looked_at else None)
        source.enough = detect.enough
        still = source.kind == "picture"
        if not still:
            stack.enter_context(command.signals.kept())
            say(f"{source.name}; {detect.description}")
            if source.left_out:
                say(source.left_out)

        window, web = open_views(args, source, detect.labels, screen, stack, say)
        if window and not still:
            say(f"Keys in the window: {window.keys}.")
        with ExitStack() as files:
            sinks = []
            for sink in sinks_for(source, detect, args.json, place, window, say):
                files.callback(close_and_say, sink, say)
                sinks.append(sink)
            sinks += filter(None, (window, web))
            results = results_in_order(source, detect, workers, hidden=args.quiet)
            code = take_all(source, results, sinks, say)
        if window and still:
            say(f"Keys in the window: {window.keys}.")
            window.hold()
        return code


def why_not_shown(args, inputs):
    """Why no window can show the result, empty where one can or none is wanted.

    UsageError for a live input that nobody would see: it is not opened.
    """
    live = len(inputs) == 1 and is_live(inputs[0])
    if not (args.vis or (live and not args.serve)):
        return ""
    fault = why_no_window()
    seen = args.save or args.json is not None or args.serve
    address = inputs[0]
    if fault and live and "://" in address:
        address = with_known_scheme(address)  # for others, no flag would help
    # A server is asked only where it matters: some cameras take one connection at a time.
    if fault and live and not seen and not ask(address).finite:
        raise UsageError(
            f"no window: {fault}. Give --serve PORT to look at it in a browser, "
            "or --save or --json FILE."
        )
    return fault


def open_inputs(inputs, args):
    """Open what the command line names, where the flags suit it."""
    camera = None
    if args.camera_size or args.camera_fps:
        camera = CameraMode(args.camera_size, args.camera_fps)
    own = frozenset() if args.save is False else earlier_results(args.output)
    start, duration = args.start or 0.0, math.inf if args.duration is None else args.duration
    how = Reading(args.every, args.reconnect, start, duration, camera, own, tell)
    source = open_source(inputs, how)
    if args.token and not args.serve:
        raise UsageError("--token: is for --serve. Give --serve PORT, too.")
    if args.serve and source.kind != "video":
        raise UsageError(f"--serve: shows cameras, streams and videos, not {source.name}.")
    return source


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


def check_in_use(place, json, used):
    """Refuse results that would take the place of something in use, or of each other."""
    places = set()
    for flag, name in (("-o", place), ("--json", json)):
        if name in (None, "-"):
            continue
        real = os.path.realpath(name)
        if real in places or is_one_of(name, used):
            raise UsageError(f"{name}: is in use as an input or result. Change {flag}.")
        places.add(real)


def open_views(args, source, labels, screen, stack, say):
    """The window and the page of --serve, None for what is not wanted; `stack` closes them."""
    signals, window, web = command.signals, None, None
    paced = not source.live and bool(source.moving)
    if args.serve:
        from media.web import Web  # not at the top: one picture must stay fast

        try:
            own_pace = paced and not screen
            web = Web(*args.serve, source, labels, own_pace, signals.check, args.token)
        except OutputError as error:
            raise UsageError(f"--serve {error} Give another port or host.") from error
        stack.callback(web.close)
        (tell if args.quiet else say)(f"live view: {web.address}")
    if screen:
        window = Window(signals.check, paced, stepped=source.kind == "folder")
        stack.callback(window.close)
    return window, web


def sinks_for(source, detect, json, place, window, say):
    """Open the sinks, except window and page, and yield each as soon as it is open.

    So the caller can close the first ones if a later one can't be opened.
    """
    if json is not None:
        yield JsonLines(json, detect.labels)
    if source.kind == "picture":
        yield Text(detect.labels, detect.description, say)
    if place is None:
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


def results_in_order(source, detect, workers, hidden):
    """Yield (frame, result) for each frame of a source, behind a progress bar unless hidden."""
    if source.length == 1 or source.live:
        for frame in source:
            yield frame, detect(frame)
        return
    from media.pipeline import in_order  # not at the top: one picture must stay fast

    bar = command.progress_bar(hidden, total=source.length, unit=" frames")
    with bar, closing(in_order(source, detect, workers)) as results:
        for frame, result in results:
            yield frame, result
            bar.update()


def take_all(source, results, sinks, say):
    """Take every result to every sink, in order, and report; returns the exit code."""
    done = unreadable = 0
    of_all = f"of {source.length or '?'} {source.unit} of {source.name}"
    enough, started = False, time.perf_counter()
    try:
        with closing(results):
            for frame, result in results:
                command.signals.check()
                if frame is None:  # a live source has nothing new
                    continue
                answers = [sink.write(frame, result) for sink in sinks]
                enough = False in answers
                if frame.error:
                    tell(frame.error)
                unreadable += result is None
                done += result is not None
                if enough:
                    break
    except (KeyboardInterrupt, Failed, OutputError, SourceError) as error:
        unusable = isinstance(error, SourceError)
        if unusable and not done:
            raise
        if source.kind != "picture" and not source.live:
            tell(f"stopped after {done} {of_all}")
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
