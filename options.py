"""The demo's command line: its options, their checks, labels and classes."""

import argparse
import math
import os
import re

import cv2

from nanodet import COCO_CLASSES, LARGEST_SIDE, SIZE_STEP, SMALLEST_SIDE
from sources import ACCEPTED

LONGEST_LABELS = 1_000_000  # letters
HERE = os.path.dirname(os.path.abspath(__file__))
BUNDLED = os.path.join(HERE, "object_detection_nanodet_2022nov.onnx")
BACKENDS = (  # numbers of OpenCV Zoo's -bt
    (cv2.dnn.DNN_BACKEND_OPENCV, cv2.dnn.DNN_TARGET_CPU),
    (cv2.dnn.DNN_BACKEND_CUDA, cv2.dnn.DNN_TARGET_CUDA),
    (cv2.dnn.DNN_BACKEND_CUDA, cv2.dnn.DNN_TARGET_CUDA_FP16),
    (cv2.dnn.DNN_BACKEND_TIMVX, cv2.dnn.DNN_TARGET_NPU),
    (cv2.dnn.DNN_BACKEND_CANN, cv2.dnn.DNN_TARGET_NPU),
)


class UsageError(Exception):
    """An option that can't be used with the others; the message says what to do."""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message):
        """Print what is wrong and exit with 2."""
        line = "\\n".join(message.splitlines())
        self.exit(2, f"{self.prog}: error: {line}. See --help.\n")


def fraction(text):
    """A number from 0 to 1, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


def canvas_size(text):
    """A side, or WIDTHxHEIGHT, for argparse."""
    parts = re.fullmatch(r"([0-9]{1,5})(?:[xX]([0-9]{1,5}))?", text)
    size = tuple(int(part) for part in parts.groups(default=parts[1])) if parts else (0, 0)
    if any(n % SIZE_STEP or not SMALLEST_SIDE <= n <= LARGEST_SIDE for n in size):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no multiple of {SIZE_STEP} from {SMALLEST_SIDE} to {LARGEST_SIDE}, "
            "nor two of them as WIDTHxHEIGHT"
        )
    return size


def count(text):
    """A whole number from 0 up, for argparse."""
    if not re.fullmatch("[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 up")
    return int(text)


def add_network_options(parser):
    """Give a parser the options of the network and of what it is to find."""
    network = parser.add_argument_group("network")
    network.add_argument(
        "-m",
        "--model",
        default=BUNDLED,
        metavar="FILE",
        help="ONNX file of any NanoDet, or the name of one downloaded with tools/download_model.py",
    )
    network.add_argument(
        "--labels", metavar="FILE", help="class names, one a line, of a network trained on others"
    )
    network.add_argument(
        "--num-classes", type=count, metavar="N", help="where the network leaves that in doubt"
    )
    network.add_argument(
        "--size",
        type=canvas_size,
        metavar="N|WxH",
        help="side of the network's canvas, a multiple of 32 (default 416, or the network's own)",
    )
    network.add_argument(
        "--rect", action="store_true", help="pad less: as accurate, a third faster for 16:9 and 4:3"
    )
    network.add_argument(
        "--augment", action="store_true", help="look six times at each picture: slower, finds more"
    )
    network.add_argument(
        "--engine",
        choices=("opencv", "onnxruntime"),
        default="opencv",
        help="what runs the network (default %(default)s)",
    )
    network.add_argument(
        "--provider", metavar="NAME", help="onnxruntime's execution provider (default: the CPU's)"
    )
    network.add_argument(
        "-bt",
        "--backend_target",
        type=int,
        choices=range(len(BACKENDS)),
        default=0,
        help="OpenCV: 0 CPU, 1 CUDA, 2 CUDA FP16, 3 TIM-VX NPU, 4 CANN NPU (default %(default)s)",
    )
    detection = parser.add_argument_group("detection")
    detection.add_argument(
        "--confidence",
        type=fraction,
        default=0.35,
        metavar="P",
        help="hide objects less certain than this, 0 to 1 (default %(default)s)",
    )
    detection.add_argument(
        "--nms",
        type=fraction,
        default=0.6,
        metavar="IOU",
        help="boxes of one class that overlap more are one object, 0 to 1 (default %(default)s)",
    )
    detection.add_argument(
        "--classes", metavar="NAMES", help="keep these alone, for example person,car"
    )


def parse(argv, examples):
    """Read the command line; argparse exits with 2 where it is wrong.

    Parameters
    ----------
    argv : list of str or None
        None reads those of the process.
    examples : str
        Shown at the end of --help.

    Returns
    -------
    argparse.Namespace
    """
    parser = OneLineParser(
        prog="demo.py",
        description="Find objects in pictures, videos, cameras and streams.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_argument_group("input")
    source.add_argument("-i", "--input", default="0", help=f"{ACCEPTED} (default: camera 0)")
    source.add_argument(
        "--reconnect",
        type=count,
        default=5,
        metavar="N",
        help="tries to reach a lost stream again before giving up (default %(default)s)",
    )
    add_network_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("-v", "--vis", action="store_true", help="show the result in a window")
    output.add_argument(
        "-s",
        "--save",
        action=argparse.BooleanOptionalAction,
        help="save the drawn result (default: yes, but not of cameras and streams)",
    )
    output.add_argument(
        "-o",
        "--output",
        metavar="PATH",
        help="where to (default result.jpg, result.mp4, or the folder results)",
    )
    output.add_argument(
        "--json", metavar="FILE", help="write a line of JSON for each picture or frame; - is stdout"
    )
    output.add_argument("-q", "--quiet", action="store_true", help="print errors alone")
    return parser.parse_args(argv)


def find_model(name):
    """The path of a network given by its path, or by its name in `tools/download_model.py`.

    Raises
    ------
    UsageError
        If it is not there; the message says which command brings it.
    """
    for path in (name, os.path.join(HERE, name), os.path.join(HERE, f"{name}.onnx")):
        if os.path.exists(path):
            return path
    try:
        from tools.download_model import advice
    except ImportError:  # a copy of the demo without its tools
        way_out = "Give the path of a NanoDet .onnx file"
    else:
        way_out = advice(os.path.basename(name))
    raise UsageError(f"{name or '(empty)'}: no such network. {way_out}.")


def labels_and_wanted(args):
    """The class names, and the class_id of those to keep, None for all, that options ask for."""
    labels = read_labels(args.labels) if args.labels is not None else COCO_CLASSES
    wanted = find_classes(args.classes, labels) if args.classes is not None else None
    return labels, wanted


def read_labels(path):
    """Class names from a text file, one a line.

    Parameters
    ----------
    path : str

    Returns
    -------
    tuple of str

    Raises
    ------
    UsageError
        If the file can't be read or holds none.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(LONGEST_LABELS)
            if file.read(1):
                raise UsageError(f"--labels {path}: is too long for a list of names.")
            labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise UsageError(f"--labels {path or '(empty)'}: can't be read: {reason}.") from error
    if not labels:
        raise UsageError(f"--labels {path}: is empty. Write one class name a line.")
    return labels


def find_classes(names, labels):
    """The class_id of each name.

    Parameters
    ----------
    names : str
        Names with commas between them.
    labels : sequence of str

    Returns
    -------
    list of int

    Raises
    ------
    UsageError
        If a name is unknown; the message gives the nearest ones.
    """
    import difflib  # not at the top: one picture shall be quick

    known = [label.lower() for label in labels]
    wanted = [name.strip().lower() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, cutoff=0.4) or known[:5]
            raise UsageError(f"--classes {name}: unknown class. Did you mean {', '.join(near)}?")
    if not wanted:
        raise UsageError("--classes: is empty. Give names such as person,car.")
    return [class_id for class_id, name in enumerate(known) if name in wanted]
