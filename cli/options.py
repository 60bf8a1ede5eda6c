"""The flags: tables of them, the checks of their values, and the inputs that they name."""

import argparse
import math
import os
import re
import sys

import cv2

from cli.command import UsageError, say
from cli.network import BACKENDS, BUNDLED, ENGINES
from cli.text import LONGEST_LIST, read_text
from media.frames import ACCEPTED
from nanodet import LARGEST_SIDE, SIZE_STEP, SMALLEST_SIDE, __version__, check_canvas


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line; --help says what `text` does: a module's docstring."""

    def __init__(self, prog, text):
        summary, _, epilog = (text or "").partition("\n\n")  # none under python -OO
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(prog, description=summary, epilog=epilog, formatter_class=raw)

    def error(self, message):
        """Print what is wrong and exit with 2."""
        say(f"{self.prog}: error: {message}. See --help.", error=True)
        self.exit(2)


def fraction(text):
    """A number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def seconds(text):
    """A time in a video, for argparse."""
    if not re.fullmatch("[0-9]{1,9}([.][0-9]{1,9})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds, such as 90 or 2.5")
    return float(text)


def duration(text):
    """How much of a video, for argparse."""
    length = seconds(text)
    if not length:
        raise argparse.ArgumentTypeError(f"{text!r} leaves nothing of a video")
    return length


def whole_number(least):
    """For argparse: what reads a whole number from `least` up."""

    def read(text):
        if not re.fullmatch("[0-9]{1,9}", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
        return int(text)

    return read


def host_and_port(text):
    """A host and a port of it, or only a port of this machine, for argparse."""
    parts = re.fullmatch(r"(?:(\[[^\[\]]+\]|[^\[\]:]+):)?([0-9]{1,5})", text)
    if not parts or int(parts[2]) > 65535:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a port from 0 to 65535, nor HOST:PORT or [IPV6]:PORT"
        )
    return (parts[1] or "127.0.0.1").strip("[]"), int(parts[2])


def token(text):
    """A word that fits into an address and is no one's guess, for argparse."""
    if not re.fullmatch("[A-Za-z0-9_.~-]{8,200}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 8 or more letters and digits")
    return text


def canvas_size(text):
    """A side, or WIDTHxHEIGHT, for argparse."""
    parts = re.fullmatch(r"([0-9]{1,5})(?:[xX]([0-9]{1,5}))?", text)
    try:
        return check_canvas(tuple(map(int, parts.groups(default=parts[1]))) if parts else text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a multiple of {SIZE_STEP} from {SMALLEST_SIDE} to {LARGEST_SIDE}, "
            "nor two of them as WIDTHxHEIGHT"
        ) from None


def frame_size(text):
    """WIDTHxHEIGHT, for argparse."""
    parts = re.fullmatch("([1-9][0-9]{0,4})[xX]([1-9][0-9]{0,4})", text)
    if not parts:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 1280x720")
    return int(parts[1]), int(parts[2])


YES, YES_OR_NO = {"action": "store_true"}, {"action": argparse.BooleanOptionalAction}
SECONDS = {"type": seconds, "metavar": "SECONDS"}
COLOURS = {"type": float, "nargs": 3, "metavar": ("BLUE", "GREEN", "RED")}
COUNT, NUMBER = {"type": whole_number(1), "metavar": "N"}, {"type": whole_number(0), "metavar": "N"}
# Each flag, what argparse needs beside its name, and its help.
# fmt: off
INPUT = (
    ("inputs", {"nargs": "*", "metavar": "INPUT"},
     f"{ACCEPTED}; - is a picture or video on standard input (default: camera 0). "
     "Results of several inputs go into a folder"),
    ("-i --input", {"nargs": "+", "action": "extend", "metavar": "INPUT", "default": []},
     "the same"),
    ("--list", {"metavar": "FILE"},
     "text file with one input a line, - for standard input; @FILE does the same"),
    ("--reconnect", NUMBER | {"default": 5},
     "number of reconnection attempts, when a camera or stream is lost (default %(default)s)"),
    ("--every", COUNT | {"default": 1},
     "take every N-th frame of a video, camera or stream (default: every frame)"),
    ("--start", SECONDS, "begin a video at this time (default: its beginning)"),
    ("--duration", SECONDS | {"type": duration},
     "end a video after this time (default: its end)"),
    ("--camera-size", {"type": frame_size, "metavar": "WxH"},
     "size to ask of the camera, for example 1280x720 (default: its own)"),
    ("--camera-fps", COUNT, "FPS to ask of the camera (default: its own)"),
)
NETWORK = (
    ("-m --model", {"default": BUNDLED, "metavar": "FILE"},
     "ONNX file of any NanoDet, or the name of one fetched with tools/download_model.py"),
    ("--int8", YES,
     "the network here in int8: as accurate, and with onnxruntime about half the time on "
     "processors with VNNI; tools/benchmark.py measures it on yours"),
    ("--labels", {"metavar": "FILE"}, "class names, one a line, of a network trained on others"),
    ("--size", {"type": canvas_size, "metavar": "N|WxH"},
     "network input size, a multiple of 32 (default 416, or the network's own)"),
    ("--rect", YES,
     "pad less: as accurate, a fifth faster for 4:3 and more for 16:9"),
    ("--augment", YES,
     "look at each picture again, larger and mirrored (only mirrored if the network has one "
     "size): slower, finds more"),
    ("--engine", {"choices": ENGINES},
     "what runs the network (default opencv; with --int8 onnxruntime, where it is installed)"),
    ("--provider", {"metavar": "NAME"},
     "onnxruntime's execution provider, or OpenVINO's device (default: the CPU)"),
    ("-bt --backend_target", {"type": int, "choices": range(len(BACKENDS)), "default": 0},
     "OpenCV: 0 CPU, 1 CUDA, 2 CUDA FP16, 3 TIM-VX NPU, 4 CANN NPU (default %(default)s)"),
)
DETECTION = (
    ("--confidence", {"type": fraction, "default": 0.35, "metavar": "P"},
     "hide objects less certain than this, 0 to 1 (default %(default)s)"),
    ("--nms", {"type": fraction, "default": 0.6, "metavar": "IOU"},
     "boxes of one class that overlap more than this are one object, 0 to 1 (default %(default)s)"),
    ("--agnostic-nms", YES,
     "keep one box where classes overlap, whatever they are"),
    ("--classes", {"metavar": "NAMES"}, "keep only these classes, for example person,car"),
)
OWN_NETWORK = (
    ("--num-classes", COUNT, "number of classes, where it can't be inferred from the network"),
    ("--resize", {"choices": ("letterbox", "stretch")},
     "keep the picture's shape or not (default: as this family was trained)"),
    ("--centre-offset", {"type": fraction, "metavar": "STRIDES"},
     "place of the first anchor's centre, 0 to 1 (default: 0 for NanoDet-Plus, else 0.5)"),
    ("--mean", COLOURS, "mean of the colours in training (default 103.53 116.28 123.675)"),
    ("--std", COLOURS,
     "standard deviation of the colours in training (default 57.375 57.12 58.395)"),
)
OUTPUT = (
    ("-v --vis", YES, "show the result in a window"),
    ("--serve", {"type": host_and_port, "metavar": "[HOST:]PORT"},
     "show it in a browser, on this machine unless HOST is given; port 0 takes a free one"),
    ("--token", {"type": token, "metavar": "WORD"},
     "what viewers of --serve must give; the same each time, so that a bookmark survives a restart "
     "(default: a new one each time, and none where only this machine can look)"),
    ("--line-width", COUNT, "width of a box's lines in pixels (default: grows with the picture)"),
    ("--hide-labels", YES, "draw boxes only"),
    ("-s --save", YES_OR_NO,
     "save the drawn result (default: yes, but not of cameras and streams)"),
    ("-o --output", {"metavar": "PATH"},
     "output file or folder (default result.jpg, result.mp4, or the folder results)"),
    ("--json", {"metavar": "FILE"},
     "write a line of JSON for each picture or frame; - is stdout"),
    ("--threads", COUNT, "number of cores to use (default: all)"),
    ("-q --quiet", YES, "print only errors"),
)
# fmt: on


def add_flags(parser, title, flags):
    """Give a parser a group of the flags of a table."""
    group = parser.add_argument_group(title)
    for names, settings, text in flags:
        group.add_argument(*names.split(), **settings, help=text)


def add_network_options(parser, confidence=0.35):
    """Give a parser the flags that `NetworkOptions.of` reads; `confidence`: their default of it."""
    add_flags(parser, "network", NETWORK)
    add_flags(parser, "detection", DETECTION)
    add_flags(parser, "for networks of your own", OWN_NETWORK)
    parser.set_defaults(confidence=confidence)


def parse(argv, examples):
    """Read the demo's command line, the process's if None; `examples` end --help."""
    summary = "Find objects in pictures, videos, cameras and streams."
    parser = OneLineParser("demo.py", f"{summary}\n\nexamples:\n{examples}")
    parser.add_argument(
        "--version",
        action="version",
        version=f"nanodet-opencv {__version__}, OpenCV {cv2.__version__}",
    )
    add_flags(parser, "input", INPUT)
    add_flags(parser, "output", OUTPUT)
    add_network_options(parser)
    return parser.parse_intermixed_args(argv)


def inputs_of(args):
    """What the command line names, what its lists name included, and the names of the lists."""
    inputs, lists = [], []
    given = [(value, is_list(value)) for value in args.inputs + args.input]
    if args.list is not None:
        given.append((f"@{args.list}", True))
    for value, is_one in given:
        if is_one:
            lists.append(value[1:])
            inputs += read_list(value[1:])
        else:
            inputs.append(value)
    return inputs or ["0"], lists


def is_list(value):
    """Whether an input is a list of inputs; a file of that name is none, as shells expand *.jpg."""
    return value.startswith("@") and not os.path.lexists(value)


def read_list(path):
    """The inputs that a text file names, one a line; "-" reads standard input."""
    name = f"--list {path or '(empty)'}"
    # Names on Linux are bytes of any kind; elsewhere they are text.
    errors = "strict" if sys.platform == "win32" else "surrogateescape"
    text = read_text(0 if path == "-" else path, LONGEST_LIST, name, errors)
    inputs = [line for line in re.split("\r\n?|\n", text) if line.strip()]
    if not inputs:
        raise UsageError(f"{name}: is empty. Write one input a line.")
    return inputs
