"""The demo's command line: its flags, and the network, labels and classes that they ask for."""

import argparse
import math
import os
import re
from dataclasses import dataclass

import cv2

from media.frames import ACCEPTED
from nanodet import (
    COCO_CLASSES,
    LARGEST_SIDE,
    SIZE_STEP,
    SMALLEST_SIDE,
    ModelError,
    NanoDet,
    __version__,
    check_canvas,
)

LONGEST_LABELS = 1_000_000  # letters
NO_LABELS = (".yaml", ".yml", ".json", ".csv")
HERE = os.path.dirname(os.path.abspath(__file__))
BUNDLED = os.path.join(HERE, "object_detection_nanodet_2022nov.onnx")
INT8 = BUNDLED.replace(".onnx", "_int8.onnx")
BACKENDS = (  # numbers of OpenCV Zoo's -bt
    (cv2.dnn.DNN_BACKEND_OPENCV, cv2.dnn.DNN_TARGET_CPU),
    (cv2.dnn.DNN_BACKEND_CUDA, cv2.dnn.DNN_TARGET_CUDA),
    (cv2.dnn.DNN_BACKEND_CUDA, cv2.dnn.DNN_TARGET_CUDA_FP16),
    (cv2.dnn.DNN_BACKEND_TIMVX, cv2.dnn.DNN_TARGET_NPU),
    (cv2.dnn.DNN_BACKEND_CANN, cv2.dnn.DNN_TARGET_NPU),
)


class UsageError(Exception):
    """An option that can't be used, alone or with the others; the message says what to do."""


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
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


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


def add_network_options(parser, confidence=0.35):
    """Give a parser the flags that `NetworkOptions.of` reads.

    Parameters
    ----------
    parser : argparse.ArgumentParser
    confidence : float
        The default of --confidence.
    """
    network = parser.add_argument_group("network")
    network.add_argument(
        "-m",
        "--model",
        default=BUNDLED,
        metavar="FILE",
        help="ONNX file of any NanoDet, or the name of one fetched with tools/download_model.py",
    )
    network.add_argument(
        "--int8",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="the network here in int8, with onnxruntime: as accurate, and about half the time on "
        "processors with VNNI",
    )
    network.add_argument(
        "--labels", metavar="FILE", help="class names, one a line, of a network trained on others"
    )
    network.add_argument(
        "--num-classes",
        type=whole_number(1),
        metavar="N",
        help="number of classes, where it can't be inferred from the network",
    )
    network.add_argument(
        "--size",
        type=canvas_size,
        metavar="N|WxH",
        help="side of the network's canvas, a multiple of 32 (default 416, or the network's own)",
    )
    network.add_argument(
        "--rect",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="pad less: as accurate, a fifth faster for 4:3 and more for 16:9",
    )
    network.add_argument(
        "--augment",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="look at each picture again, larger and mirrored (only mirrored if the network has "
        "one size): slower, finds more",
    )
    network.add_argument(
        "--resize",
        choices=("letterbox", "stretch"),
        help="keep the picture's shape or not (default: as this family was trained)",
    )
    network.add_argument(
        "--centre-offset",
        type=fraction,
        metavar="STRIDES",
        help="place of the first anchor's centre, 0 to 1 (default: 0 for NanoDet-Plus, else 0.5)",
    )
    for name, default in (("mean", "103.53 116.28 123.675"), ("std", "57.375 57.12 58.395")):
        network.add_argument(
            f"--{name}",
            type=float,
            nargs=3,
            metavar=("BLUE", "GREEN", "RED"),
            help=f"of the colours in training (default {default})",
        )
    network.add_argument(
        "--engine",
        choices=("opencv", "onnxruntime"),
        help="what runs the network (default opencv; with --int8 onnxruntime)",
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
        default=confidence,
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
        "--agnostic-nms",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="--nms across classes: one object a place",
    )
    detection.add_argument(
        "--classes", metavar="NAMES", help="keep only these, for example person,car"
    )


@dataclass(frozen=True)
class NetworkOptions:
    """The network asked for and what it is to find; plain values, for any thread or process.

    Attributes
    ----------
    model : str
        Path of the ONNX file.
    labels : tuple of str or None
        Name of each class_id; None if not given.
    classes : str or None
        Names of those to keep, with commas between them; None keeps all.
    settings : dict
        Further arguments of `NanoDet`.
    """

    model: str
    labels: tuple[str, ...] | None
    classes: str | None
    settings: dict

    @classmethod
    def of(cls, args):
        """What the flags of `add_network_options` ask for.

        Raises
        ------
        UsageError
            If a file is missing or two flags exclude each other.
        """
        model, engine = args.model, args.engine or ("onnxruntime" if args.int8 else "opencv")
        if args.int8 and os.path.realpath(model) != os.path.realpath(BUNDLED):
            raise UsageError(
                f"--int8: is the network here, not {model}. Leave out -m, or make yours with "
                "tools/quantize_model.py and give it as -m."
            )
        if args.int8 and engine == "opencv":
            raise UsageError("--int8: is slower with OpenCV. Leave out --engine opencv, or --int8.")
        if args.int8:
            model = INT8
        if args.provider is not None and engine == "opencv":
            raise UsageError(f"--provider {args.provider}: needs --engine onnxruntime.")
        if args.backend_target and engine == "onnxruntime":
            raise UsageError(
                f"-bt {args.backend_target}: is OpenCV's. Leave out --engine onnxruntime and "
                "--int8, or give --provider instead."
            )
        labels = None if args.labels is None else read_labels(args.labels)
        backend_id, target_id = BACKENDS[args.backend_target]
        settings = {
            "prob_threshold": args.confidence,
            "iou_threshold": args.nms,
            "backend_id": backend_id,
            "target_id": target_id,
            "input_size": args.size,
            "rect": args.rect,
            "augment": args.augment,
            "class_agnostic": args.agnostic_nms,
            "num_classes": args.num_classes,
            "keep_ratio": None if args.resize is None else args.resize == "letterbox",
            "centre_offset": args.centre_offset,
            "engine": engine,
            "provider": args.provider,
        }
        settings |= {k: getattr(args, k) for k in ("mean", "std") if getattr(args, k) is not None}
        return cls(find_model(model), labels, args.classes, settings)

    def load(self):
        """The network, ready to run.

        Raises
        ------
        UsageError
            If the file or a setting can't be used.
        """
        try:
            return NanoDet(self.model, **self.settings)
        except ModelError as error:
            raise UsageError(error.text(in_flags)) from error
        except ValueError as error:
            raise UsageError(str(error)) from error

    def names_for(self, network):
        """Names of a network's classes, and which to keep.

        Parameters
        ----------
        network : NanoDet

        Returns
        -------
        labels : tuple of str
            Those given, else COCO's if there are as many classes, else none.
        wanted : tuple of int or None
            The class_id to keep; None keeps all.

        Raises
        ------
        UsageError
            If --classes names a class that is unknown.
        """
        known, labels = network.head.num_classes, self.labels
        if labels is None:
            labels = COCO_CLASSES if known == len(COCO_CLASSES) else ()
        if self.classes is None:
            return labels, None
        if not labels:
            raise UsageError(
                f"--classes {self.classes}: the network knows {plural(known)}, without names. "
                "Give them with --labels FILE."
            )
        return labels, find_classes(self.classes, labels)


def in_flags(name, value):
    """A setting of NanoDet that would help, as a flag of the demo."""
    flag = "--size" if name == "input_size" else f"--{name.replace('_', '-')}"
    return f"the {flag}" if value is None else f"{flag} {value}"


def plural(classes):
    """A number of classes, in words."""
    return f"{classes} class{'es' * (classes != 1)}"


def wrong_number(labels, network):
    """What is wrong with the number of a network's labels; empty if nothing, or none are known."""
    known, named = network.head.num_classes, len(labels)
    if named in (0, known):
        return ""
    return (
        f"the network knows {plural(known)}, there are names for {named}. "
        "Give its own with --labels FILE."
    )


def parse(argv, examples):
    """Read the demo's command line; argparse exits with 2 where it is wrong.

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
    parser.add_argument(
        "--version",
        action="version",
        version=f"nanodet-opencv {__version__}, OpenCV {cv2.__version__}",
    )
    source = parser.add_argument_group("input")
    source.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help=f"{ACCEPTED}; - is a picture on standard input (default: camera 0). "
        "Several go into a folder",
    )
    source.add_argument(
        "-i", "--input", nargs="+", action="extend", metavar="INPUT", default=[], help="the same"
    )
    source.add_argument(
        "--list",
        metavar="FILE",
        help="text file with one input a line, - for standard input; @FILE does the same",
    )
    source.add_argument(
        "--reconnect",
        type=whole_number(0),
        default=5,
        metavar="N",
        help="tries to reach a lost camera or stream again before giving up (default %(default)s)",
    )
    source.add_argument(
        "--every",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="take each N-th frame of a video, camera or stream (default: each)",
    )
    source.add_argument(
        "--camera-size",
        type=frame_size,
        metavar="WxH",
        help="size to ask of the camera, for example 1280x720 (default: its own)",
    )
    source.add_argument(
        "--camera-fps",
        type=whole_number(1),
        metavar="N",
        help="frames a second to ask of the camera (default: its own)",
    )
    add_network_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("-v", "--vis", action="store_true", help="show the result in a window")
    output.add_argument(
        "--serve",
        type=host_and_port,
        metavar="[HOST:]PORT",
        help="show it in a browser, on this machine unless HOST is given; port 0 takes a free one",
    )
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
        help="output file or folder (default result.jpg, result.mp4, or the folder results)",
    )
    output.add_argument(
        "--json", metavar="FILE", help="write a line of JSON for each picture or frame; - is stdout"
    )
    output.add_argument("-q", "--quiet", action="store_true", help="print only errors")
    return parser.parse_intermixed_args(argv)


def inputs_of(args):
    """What the command line names as inputs, those in lists included.

    Returns
    -------
    inputs : list of str
        Camera 0 if nothing is named.
    lists : list of str
        The names of the lists.

    Raises
    ------
    UsageError
        If a list can't be read or names nothing.
    """
    inputs, lists = [], []
    for value in args.inputs + args.input + ([] if args.list is None else [f"@{args.list}"]):
        if value.startswith("@"):
            lists.append(value[1:])
            inputs += read_list(value[1:])
        else:
            inputs.append(value)
    return inputs or ["0"], lists


def read_list(path):
    """The inputs that a text file names, one a line; "-" reads standard input.

    Raises
    ------
    UsageError
        If it can't be read or names nothing.
    """
    try:
        with open(
            0 if path == "-" else path,
            encoding="utf-8-sig",
            errors="surrogateescape",
            closefd=path != "-",
        ) as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise UsageError(f"--list {path or '(empty)'}: can't be read: {error.strerror}.") from error
    inputs = [line for line in lines if line.strip()]
    if not inputs:
        raise UsageError(f"--list {path}: is empty. Write one input a line.")
    return inputs


def find_model(name):
    """The path of a network given by its path, or by the name that it was downloaded under.

    Raises
    ------
    UsageError
        If it is not there; the message says how to get one.
    """
    here = (os.path.join(HERE, name), os.path.join(HERE, f"{name}.onnx"))
    for path in (name, *filter(os.path.isfile, here)):
        if os.path.exists(path):
            return path
    raise UsageError(
        f"{name or '(empty)'}: no such network. Give the path of a NanoDet .onnx file, "
        "or download one that 'python tools/download_model.py --list' names."
    )


def read_labels(path):
    """Class names from a text file, one a line.

    Raises
    ------
    UsageError
        If the file can't be read or names nothing.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(LONGEST_LABELS)
            if file.read(1):
                raise UsageError(f"--labels {path}: is too long for a list of names.")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"--labels {path or '(empty)'}: can't be read: {reason}.") from error
    if path.lower().endswith(NO_LABELS) or text.lstrip().startswith(("[", "{", "names:")):
        raise UsageError(
            f"--labels {path}: is YAML, JSON or CSV. Give a text file with one class name a line."
        )
    labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not labels:
        raise UsageError(f"--labels {path}: is empty. Write one class name a line.")
    return labels


def find_classes(names, labels):
    """The class_id of each name, given with commas between them.

    Raises
    ------
    UsageError
        If a name is unknown; the message gives the nearest ones.
    """
    import difflib  # not at the top: one picture must stay fast

    known = [label.lower() for label in labels]
    wanted = [name.strip().lower() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, cutoff=0.4) or known[:5]
            raise UsageError(f"--classes {name}: unknown class. Did you mean {', '.join(near)}?")
    if not wanted:
        raise UsageError("--classes: is empty. Give names such as person,car.")
    return tuple(class_id for class_id, name in enumerate(known) if name in wanted)
