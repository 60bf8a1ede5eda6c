"""The network that the flags ask for, its labels and classes, and what it does with a frame."""

import difflib
import math
import os
import queue
import time
from dataclasses import dataclass
from importlib.util import find_spec

import cv2
import numpy as np

from cli.command import Failed, UsageError, tell
from cli.text import read_text
from media.drawing import as_displayed, draw
from nanodet import AUGMENT_SCALES, COCO_CLASSES, SIZE_STEP, Detections, ModelError, NanoDet

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BUNDLED = os.path.join(ROOT, "object_detection_nanodet_2022nov.onnx")
INT8 = BUNDLED.replace(".onnx", "_int8.onnx")
LONGEST_LABELS = 1_000_000  # bytes
NO_LABELS = (".yaml", ".yml", ".json", ".csv")
ENGINES = ("opencv", "onnxruntime", "openvino")
BACKENDS = (  # numbers of OpenCV Zoo's -bt
    (cv2.dnn.DNN_BACKEND_OPENCV, cv2.dnn.DNN_TARGET_CPU),
    (cv2.dnn.DNN_BACKEND_CUDA, cv2.dnn.DNN_TARGET_CUDA),
    (cv2.dnn.DNN_BACKEND_CUDA, cv2.dnn.DNN_TARGET_CUDA_FP16),
    (cv2.dnn.DNN_BACKEND_TIMVX, cv2.dnn.DNN_TARGET_NPU),
    (cv2.dnn.DNN_BACKEND_CANN, cv2.dnn.DNN_TARGET_NPU),
)


@dataclass(frozen=True)
class NetworkOptions:
    """The network asked for and what it is to find; plain values, for any thread or process."""

    model: str  # path of the ONNX file
    labels: tuple[str, ...] | None  # name of each class_id, if given
    classes: str | None  # names of those to keep, with commas between them
    settings: dict  # further arguments of NanoDet

    @classmethod
    def of(cls, args):
        """What the flags ask for; UsageError where they exclude each other or a file is missing."""
        model, engine = find_model(args.model), args.engine or "opencv"
        if args.int8 and os.path.realpath(model) != os.path.realpath(BUNDLED):
            raise UsageError(
                f"--int8: is the network here, not {args.model}. Leave out -m, or make yours with "
                "tools/quantize_model.py and give it as -m."
            )
        if args.int8 and not (args.engine or args.backend_target) and find_spec("onnxruntime"):
            engine = "onnxruntime"
        if args.provider is not None and engine == "opencv":
            raise UsageError(f"--provider {args.provider}: needs --engine onnxruntime or openvino.")
        if args.backend_target and engine != "opencv":
            raise UsageError(
                f"-bt {args.backend_target}: is OpenCV's. Leave out --engine {engine}, or give "
                "--provider instead."
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
        return cls(INT8 if args.int8 else model, labels, args.classes, settings)

    def load(self):
        """The network, ready to run; UsageError where the file or a setting can't be used."""
        try:
            return NanoDet(self.model, **self.settings)
        except ModelError as error:
            raise UsageError(error.text(_as_flag)) from error
        except ValueError as error:
            raise UsageError(error) from error

    def enough(self, network):
        """Longest and shortest side that a picture needs: twice those of the largest canvas."""
        scale = AUGMENT_SCALES[-1][0] if self.settings.get("augment") else 1
        side = 2 * SIZE_STEP * math.ceil(max(network.input_size) * scale / SIZE_STEP)
        return side, (0 if network.keep_ratio else side)

    def names_for(self, network):
        """Names of a network's classes, and each class_id to keep, None for all.

        The names are those given, else COCO's if there are as many classes, else none.
        """
        known, labels = network.head.num_classes, self.labels
        if labels is None:
            labels = COCO_CLASSES if known == len(COCO_CLASSES) else ()
        if self.classes is None:
            return labels, None
        if not labels:
            raise UsageError(
                f"--classes {self.classes}: the network knows {_plural(known)}, without names. "
                "Give them with --labels FILE."
            )
        return labels, find_classes(self.classes, labels)


def _as_flag(name, value):
    """A parameter of NanoDet as the command line has it."""
    flag = "--size" if name == "input_size" else "--" + name.replace("_", "-")
    return f"the {flag}" if value is None else f"{flag} {value}"


def installed_engines():
    """Those of `ENGINES` that can be used here; OpenCV is the first."""
    return [engine for engine in ENGINES if engine == "opencv" or find_spec(engine)]


def find_model(name):
    """The path of a network given by its path, or by the name that it was downloaded under."""
    here = (os.path.join(ROOT, name), os.path.join(ROOT, f"{name}.onnx"))
    for path in (name, *filter(os.path.isfile, here)):
        if os.path.exists(path):
            return path
    raise UsageError(
        f"{name or '(empty)'}: no such network. Give the path of a NanoDet .onnx file, "
        "or download one that 'python tools/download_model.py --list' names."
    )


def read_labels(path):
    """Class names from a text file, one a line."""
    text = read_text(path, LONGEST_LABELS, f"--labels {path or '(empty)'}")
    if path.lower().endswith(NO_LABELS) or text.lstrip().startswith(("[", "{", "names:")):
        raise UsageError(
            f"--labels {path}: is YAML, JSON or CSV. Give a text file with one class name a line."
        )
    labels = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not labels:
        raise UsageError(f"--labels {path}: is empty. Write one class name a line.")
    return labels


def find_classes(names, labels):
    """The class_id of each name, given with commas between them."""
    known = [label.lower() for label in labels]
    wanted = [name.strip().lower() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            near = difflib.get_close_matches(name, known, cutoff=0.4) or known[:5]
            raise UsageError(f"--classes {name}: unknown class. Did you mean {', '.join(near)}?")
    if not wanted:
        raise UsageError("--classes: is empty. Give names such as person,car.")
    return tuple(class_id for class_id, name in enumerate(known) if name in wanted)


def wrong_number(labels, network):
    """What is wrong with the number of a network's labels; empty if nothing, or none are known."""
    known, named = network.head.num_classes, len(labels)
    if named in (0, known):
        return ""
    return (
        f"the network knows {_plural(known)}, there are names for {named}. "
        "Give its own with --labels FILE."
    )


def _plural(classes):
    return f"{classes} class{'es' * (classes != 1)}"


def in_whole(found, image, whole):
    """Detections of an image that `decode_for` made smaller, in pixels of the whole picture."""
    if whole is None:
        return found
    # Its sides were rounded up, so its last pixels, or first if it was turned, lie partly outside
    # the picture. Not asking which costs less than one of its pixels, so less than half a pixel of
    # the canvas.
    scale = np.array(whole * 2, np.float32) / (image.shape[1::-1] * 2)
    xyxy = np.minimum(found.xyxy * scale, whole * 2)  # float32 may round above it
    return Detections(xyxy, found.confidence, found.class_id)


@dataclass(frozen=True)
class Result:
    """What was found in a frame, and in how long; `drawn`: with boxes, None if nobody looks."""

    detections: Detections
    drawn: np.ndarray | None
    milliseconds: float


class DetectAndDraw:
    """What happens to a frame, in any number of threads.

    `drawing` has further arguments of `draw`; it is None where nobody looks at the result.

    Each call borrows an idle network, or makes one if there is none. The first is made at once, so
    that what is wrong with it shows before the first frame.
    """

    def __init__(self, options, drawing):
        self._options, self._drawing = options, drawing
        self._idle = queue.SimpleQueue()
        network = options.load()
        self._idle.put(network)
        self.labels, self._wanted = options.names_for(network)
        self._places = {}  # of the labels in the frame before, by source
        self.enough = None if drawing is not None else options.enough(network)  # for `decode_for`
        if fault := wrong_number(self.labels, network):
            tell(fault)
        width, height = network.input_size
        file = os.path.basename(options.model)
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
            fault = error.text(_as_flag)
            raise Failed(f"{frame.source}, frame {frame.index}: {fault}") from error
        milliseconds = 1000 * (time.perf_counter() - started)
        self._idle.put(network)
        found = in_whole(found, frame.image, frame.whole)
        if self._wanted is not None:
            found = found[np.isin(found.class_id, self._wanted)]
        if self._drawing is None:
            return Result(found, None, milliseconds)
        image, boxes = frame.image, found
        if frame.pixel_aspect != 1:
            image, boxes = as_displayed(image, found, frame.pixel_aspect)
        if frame.source not in self._places:
            self._places = {frame.source: []}
        memory = self._places[frame.source]
        drawn = draw(image, boxes, self.labels, memory=memory, **self._drawing)
        return Result(found, drawn, milliseconds)


def share_cores(source):
    """How many frames are in work at a time: 1 of a single picture or a live source.

    If more, each network that is made from here on gets one core.
    """
    if source.length == 1 or source.live:
        return 1
    workers = cv2.getNumThreads()
    if source.length:  # to make a network takes as long as to look at a picture or two
        workers = min(workers, math.ceil(source.length / 2))
    if workers > 1:  # many networks of one thread each beat one of many
        cv2.setNumThreads(1)
    return workers
