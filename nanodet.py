# SPDX-License-Identifier: Apache-2.0
"""NanoDet object detection with OpenCV. Copy this file into your own program.

    import cv2
    from nanodet import COCO_CLASSES, NanoDet

    detector = NanoDet("object_detection_nanodet_2022nov.onnx")
    for box, confidence, class_id in detector.detect(cv2.imread("street.jpg")):
        print(COCO_CLASSES[class_id], f"{confidence:.2f}", box)

An image goes through the file from top to bottom:
letterbox -> blob -> network -> decode -> NMS -> Detections in pixels of the image.
Axes: N boxes or anchors, C classes, K = reg_max + 1 bins of a distribution.
Sizes are (width, height); boxes are xyxy: left, top, right, bottom.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import itertools
import math
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

if sys.version_info < (3, 10):  # noqa: UP036 -- one line for those who try
    raise ImportError("nanodet.py needs Python 3.10 or newer")
if TYPE_CHECKING:  # numpy.typing takes milliseconds to import
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]
    Bytes = NDArray[np.uint8]
    Flags = NDArray[np.bool_]
    Image = NDArray[Any]
    Size = tuple[int, int]  # (width, height)
    Colour = tuple[float, ...]  # blue, green, red
    Columns = tuple[int, int]  # (C, 4 K): of confidences, of logits
    Message = dict[str, list[Any]]  # of an ONNX file: values of its fields, by name
    Fields = dict[int, tuple[str, Any]]
else:  # for those who ask for type hints while the program runs
    Floats = Ints = Bytes = Flags = Image = np.ndarray
    Size = Colour = Columns = tuple
    Message = Fields = dict

__version__ = "1.1.0"

# fmt: off
COCO_CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich",
    "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote",
    "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book",
    "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on

DEFAULT_SIZE = 416  # side of the canvas, for a network that accepts any
SIZE_STEP = 32  # such a network halves its canvas five times; a level of stride 64 rounds up
SMALLEST_SIDE = 64  # OpenCV 5.0 computes garbage where the deepest level has 1 row or column
LARGEST_SIDE = 4096
LARGEST_FILE = 512 << 20
OPENCV_CPU = (cv2.dnn.DNN_BACKEND_OPENCV, cv2.dnn.DNN_TARGET_CPU)
MOST_FIELDS = 200_000  # of an ONNX file that are read; a NanoDet has 3,000 to 20,000
AUGMENT_SCALES = ((1.23, True), (1.84, False))  # beside 416: 512, mirrored, and 768
LARGEST_OBJECTS = (math.inf, math.inf, 300)  # side on the canvas, of what each look may report
VOTING_IOU = 0.8  # boxes of several looks that overlap by so much or more become their mean
MEAN = (103.53, 116.28, 123.675)  # of blue, green, red, in the training of nearly all NanoDets
STD = (57.375, 57.12, 58.395)
MAX_CANDIDATES = 3000  # boxes that enter NMS, so that its time stays bounded
WHOLE: Any = (int, np.integer)
NUMBER: Any = (*WHOLE, float, np.floating)
CHANGEABLE = ("prob_threshold", "iou_threshold")  # of a NanoDet; all else is read-only


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects found in one image, most confident first.

    Has a length, takes a mask, a slice or an index, and loops over
    (xyxy, confidence, class_id) of each object. Shapes that do not fit each
    other raise ValueError.

    Attributes
    ----------
    xyxy : ndarray of shape (N, 4), float32
        Left, top, right, bottom, in pixels of the image.
    confidence : ndarray of shape (N,), float32
        From 0 to 1.
    class_id : ndarray of shape (N,), int64
        Index into the labels, `COCO_CLASSES` unless trained on others.
    """

    xyxy: Floats
    confidence: Floats
    class_id: Ints

    def __post_init__(self) -> None:
        n = len(np.atleast_1d(self.xyxy))
        for name, shape, dtype in (
            ("xyxy", (n, 4), np.float32),
            ("confidence", (n,), np.float32),
            ("class_id", (n,), np.int64),
        ):
            array = np.asarray(getattr(self, name), dtype)
            if array.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, not {array.shape}")
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.xyxy)

    def __iter__(self) -> Iterator[tuple[Floats, float, int]]:
        return zip(self.xyxy, self.confidence.tolist(), self.class_id.tolist(), strict=True)

    def __repr__(self) -> str:
        if not len(self):
            return "<Detections: none>"
        ids, counts = np.unique(self.class_id, return_counts=True)
        most = sorted(zip(counts.tolist(), ids.tolist(), strict=True), key=lambda c: -c[0])
        classes = ", ".join(f"{count} of class {i}" for count, i in most[:8])
        more = f" and {len(most) - 8} more" if len(most) > 8 else ""
        low, high = self.confidence.min(), self.confidence.max()
        return f"<Detections: {classes}{more}; confidence {low:.2f} to {high:.2f}>"

    def __getitem__(self, index: Any) -> Detections:
        index = [index] if isinstance(index, WHOLE) else index
        return Detections(self.xyxy[index], self.confidence[index], self.class_id[index])


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies on the network's canvas: the rectangle that it fills there."""

    image: Size
    canvas: Size
    left: int
    top: int
    width: int
    height: int
    mirrored: bool = False

    @classmethod
    def fit(
        cls, image: Size, canvas: Size, keep_ratio: bool = True, mirrored: bool = False
    ) -> Letterbox:
        """Centre an image on a canvas, or stretch it over all of it.

        At least one pixel is left in each direction, however thin the image.
        """
        width, height = canvas
        if keep_ratio:
            scale = min(canvas[0] / image[0], canvas[1] / image[1])
            width, height = (max(1, round(side * scale)) for side in image)
        left, top = (canvas[0] - width) // 2, (canvas[1] - height) // 2
        return cls(image, canvas, left, top, width, height, mirrored)

    def draw(self, image: Bytes, canvas: Bytes) -> None:
        """Resize an image (H, W, 3) into its place on a canvas (height, width, 3), both uint8."""
        image = image[:, ::-1] if self.mirrored else image
        inside = canvas[self.top : self.top + self.height, self.left : self.left + self.width]
        # Bilinear resizing looks at 4 pixels and so skips some where an image shrinks; averages
        # of 2x2 look at all. An image of 3 times the size or more is halved until less than twice
        # the size is left. One that is still clearly larger is resized to exactly twice the size,
        # and averaged. AP is that of resizing by area, at half its time.
        height, width = image.shape[:2]
        limit, little = 3, 1.0
        while width >= limit * self.width or height >= limit * self.height:
            width = (width + 1) // 2 if width >= limit * self.width else width
            height = (height + 1) // 2 if height >= limit * self.height else height
            image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
            limit, little = 2, 1.25
        how = cv2.INTER_LINEAR
        if width > little * self.width or height > little * self.height:
            image = np.asarray(cv2.resize(image, (2 * self.width, 2 * self.height)))
            how = cv2.INTER_AREA
        cv2.resize(image, inside.shape[1::-1], dst=inside, interpolation=how)

    def to_image(self, xyxy: Floats) -> Floats:
        """Move boxes (N, 4) from the canvas back to the image, and clip them to it."""
        # Width and height have a scale each: rounding to whole pixels makes them differ.
        scale = self.image[0] / self.width, self.image[1] / self.height
        rows = np.array([(self.left, self.top) * 2, scale * 2, self.image * 2], np.float32)
        moved: Floats = (xyxy - rows[0]) * rows[1]
        np.clip(moved, 0, rows[2], out=moved)
        if self.mirrored:
            moved[:, [2, 0]] = self.image[0] - moved[:, [0, 2]]
        return moved


class Group(NamedTuple):
    """Outputs that cover the same anchors: two, or one that contains both."""

    confidences: int  # index of the output whose first C columns are confidences
    logits: int  # index of that whose last 4 K columns are logits
    strides: tuple[int, ...]  # of the levels covered


@dataclass(frozen=True)
class Head:
    """How a network lays out its outputs, inferred from their shapes and values.

    Attributes
    ----------
    strides : tuple of int
        One a level: 8, 16, 32, and in NanoDet-Plus 64.
    num_classes, reg_max : int
        C, and the last bin of a distribution, K - 1.
    groups : tuple of Group
        Which outputs contain what, of each level or of all of them.
    """

    strides: tuple[int, ...]
    num_classes: int
    reg_max: int
    groups: tuple[Group, ...]

    @property
    def like_picodet(self) -> bool:
        """Whether each of 4 levels has an output of confidences and one of logits."""
        return len(self.groups) == 4 and self.groups[0].confidences != self.groups[0].logits

    @classmethod
    def find(cls, outputs: Sequence[Floats], canvas: Size, num_classes: int | None = None) -> Head:
        """Infer the layout from the outputs for one canvas of any size: (rows, columns), float32.

        Names and order of outputs can't be trusted. `num_classes` is needed only where shapes
        and values leave a doubt; the ModelError says so.
        """
        shapes = ", ".join(str(output.shape) for output in outputs)
        # With a tolerance: int8 and float16 networks may step a little over 0 and 1.
        outside = [_outside(output) for output in outputs]
        fault, remedy = _boxes_in(outputs)
        for strides in ((8, 16, 32), (8, 16, 32, 64)) if not fault else ():
            for split in (tuple((stride,) for stride in strides), (strides,)):
                rows = [len(anchor_grid(canvas, group, 0)) for group in split]
                if {*rows} != {len(output) for output in outputs}:
                    continue
                members = [[i for i, o in enumerate(outputs) if len(o) == n] for n in rows]
                readings = [_readings(outside, indices) for indices in members]
                columns = _choose_columns(readings, num_classes, shapes)
                if columns is not None:
                    chosen = [reading[columns] for reading in readings]
                    groups = tuple(
                        Group(reading.confidences, reading.logits, group)
                        for reading, group in zip(chosen, split, strict=True)
                    )
                    return cls(strides, columns[0], columns[1] // 4 - 1, groups)
        if not fault:
            fault, remedy = _misfit(outputs, outside, canvas, num_classes)
        raise ModelError(
            f"not a NanoDet as its authors export it: on a canvas of {canvas[0]}x{canvas[1]} "
            f"its outputs are {shapes}{fault}",
            remedy,
        )


def _outside(output: Floats) -> Flags:
    """Which columns can't be confidences: values are further than 0.01 outside 0 to 1."""
    return np.asarray(((output < -0.01) | (output > 1.01)).any(axis=0))


def _boxes_in(outputs: Sequence[Floats]) -> tuple[str, str]:
    """Fault and remedy if anchors have boxes, 4 columns, in place of distributions; else empty."""
    leading = set()
    for rows in {len(output) for output in outputs}:
        flags = [_outside(output) for output in outputs if output.ndim == 2 and len(output) == rows]
        boxes = [flag for flag in flags if flag.any()]
        if len(boxes) != 1 or boxes[0].sum() != 4 or sum(map(len, flags)) == 4:
            return "", ""
        (box,) = boxes
        if not (box[:4].all() or box[-4:].all()):
            return "", ""
        leading.add(bool(box[:4].all()) and len(box) > 4)
    if leading == {True}:
        fault = ", 4 numbers of a box before the confidences, as a YOLO's."
        return fault, "Give a NanoDet, exported without decoding its boxes."
    if leading:
        return ", with boxes that are decoded.", "Export it without decoding its boxes."
    return "", ""


class _Reading(NamedTuple):
    """One way to read the one or two outputs that cover the same anchors."""

    confidences: int  # index of the output
    logits: int
    sure: bool  # whether no column of the logits could be confidences


def _readings(outside: list[Flags], indices: list[int]) -> dict[Columns, _Reading]:
    """Every way to read these outputs; `outside` flags columns that can't be confidences."""
    readings: dict[Columns, _Reading] = {}
    for order in itertools.permutations(indices) if len(indices) < 3 else ():
        flags = np.concatenate([outside[i] for i in order])
        ends = range(len(flags)) if len(order) == 1 else [len(outside[order[0]])]
        for classes in ends:
            columns = classes, len(flags) - classes
            possible = classes >= 1 and columns[1] >= 8 and columns[1] % 4 == 0
            if possible and not flags[:classes].any():
                sure = bool(flags[classes:].all())
                readings.setdefault(columns, _Reading(order[0], order[-1], sure))
    return readings


def _choose_columns(
    readings: list[dict[Columns, _Reading]], num_classes: int | None, shapes: str
) -> Columns | None:
    """The one (C, 4 K) that is meant; None if none fits all groups of outputs."""
    fitting = set.intersection(*map(set, readings))
    if num_classes is not None and fitting:
        fitting = {columns for columns in fitting if columns[0] == num_classes}
        if not fitting:
            fault = f"{num_classes} classes do not fit the outputs {shapes}."
            raise ModelError(fault, "Leave the number out.")
    sure = {columns for columns in fitting if all(r[columns].sure for r in readings)}
    published = fitting & {(80, 32), (80, 44)}  # COCO's classes, reg_max 7 or 10
    likely = sure or published or fitting
    if len(likely) > 1:
        choices = ", ".join(str(classes) for classes, _ in sorted(likely))
        raise ModelError(
            f"can't infer where the classes end in the outputs {shapes}.",
            f"Give {{}} that it was trained with, one of {choices}.",
            num_classes=None,
        )
    return likely.pop() if likely else None


def _misfit(
    outputs: Sequence[Floats], outside: list[Flags], canvas: Size, num_classes: int | None
) -> tuple[str, str]:
    """What is wrong with outputs that fit no layout, as the end of a sentence, and the remedy."""
    levels = [len(anchor_grid(canvas, (stride,), 0)) for stride in (8, 16, 32, 64)]
    possible = {*levels, sum(levels[:3]), sum(levels)}
    rows = [len(output) for output in outputs]
    if rows and possible.issuperset(rows):
        if all(flags[:1].any() for flags in outside):
            return ". None begins with confidences from 0 to 1.", "Export it with the sigmoid."
        # A head returns one or two arrays for the same anchors; one can be read on its own.
        whole = [any(r.sure for r in _readings([flags], [0]).values()) for flags in outside]
        heads = list(itertools.compress(rows, whole))
        if max(map(rows.count, rows)) > 3 or len(heads) > len({*heads}):
            return ", more than one head's.", "Export it without the auxiliary head."
    elif rows and possible.issuperset(output.shape[-1] for output in outputs):
        turned = [output.T for output in outputs]
        try:
            Head.find(turned, canvas, num_classes)
            fits = True
        except ModelError as error:
            fits = bool(error.settings)  # given the number of its classes
        if fits:
            return ", transposed.", "Export it with a row for each anchor."
        if any(boxes := _boxes_in(turned)):
            return boxes
    return (
        ". A NanoDet returns, for each anchor of 3 or 4 levels, confidences from 0 to 1 "
        "and 4 distributions.",
        NOT_A_NANODET,
    )


@functools.lru_cache(maxsize=64)
def anchor_grid(canvas: Size, strides: tuple[int, ...], centre_offset: float) -> Floats:
    """Centre x, y and stride of all anchors, (N, 3) float32: row by row, level after level.

    The first centre lies at `centre_offset` strides: 0.5, or 0 in NanoDet-Plus.
    """
    levels = []
    for stride in strides:
        columns, rows = (math.ceil(side / stride) for side in canvas)
        y, x = np.mgrid[:rows, :columns].reshape(2, -1)
        centre = (np.stack((x, y), axis=1) + centre_offset) * stride
        levels.append(np.column_stack((centre, np.full(rows * columns, stride))))
    grid = np.concatenate(levels).astype(np.float32)
    grid.flags.writeable = False
    return grid


def expected_distances(logits: Floats) -> Floats:
    """Distances to left, top, right, bottom, (N, 4) in strides, from logits (N, 4 K).

    sum(i * P(i)), i = 0 .. reg_max, with P the softmax of a side's logits: the general
    distribution of X. Li et al., "Generalized Focal Loss", NeurIPS 2020, arXiv:2006.04388.
    """
    bins = logits.shape[1] // 4
    columns = logits.reshape(-1, bins).T.copy()  # (K, 4 N): NumPy adds up whole rows quickest
    weight = np.exp(columns - columns.max(axis=0))  # the largest is 1: no overflow
    distances: Floats = np.arange(bins, dtype=np.float32) @ weight / weight.sum(axis=0)
    return distances.reshape(-1, 4)


def decode(
    outputs: Sequence[Floats], head: Head, grids: Sequence[Floats], threshold: float
) -> tuple[Floats, Floats, Ints]:
    """Boxes of everything more confident than a threshold, most confident first.

    Takes the network's outputs (rows, columns) and the `anchor_grid` of each of the head's groups.
    Returns xyxy (N, 4) in pixels of the canvas, confidence (N,) and class_id (N,) of at most
    MAX_CANDIDATES objects; boxes that are not finite are left out.
    """
    classes, logit_columns = head.num_classes, 4 * (head.reg_max + 1)
    found = []
    for group, grid in zip(head.groups, grids, strict=True):
        confidences = outputs[group.confidences][:, :classes]
        # Nearly all anchors are background: only what passes is decoded.
        place = np.flatnonzero(confidences > threshold)
        row = place // classes
        class_id = place - row * classes
        logits = outputs[group.logits].take(row, axis=0)[:, -logit_columns:]
        found.append((confidences[row, class_id], class_id, logits, grid[row]))
    joined = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    best = np.argsort(-joined[0], kind="stable")[:MAX_CANDIDATES]
    confidence, class_id, logits, anchor = (array[best] for array in joined)
    with np.errstate(all="ignore"):  # a broken network's NaN and inf are left out below
        distance = expected_distances(logits) * anchor[:, 2:]
    xyxy = np.concatenate((anchor[:, :2] - distance[:, :2], anchor[:, :2] + distance[:, 2:]), 1)
    finite = np.isfinite(xyxy).all(axis=1) & np.isfinite(confidence)
    confidence = np.minimum(confidence, 1)  # int8 networks may step over it
    return xyxy[finite], confidence[finite], class_id[finite]


def nms(xyxy: Floats, confidence: Floats, class_id: Ints, iou_threshold: float) -> Ints:
    """Indices (M,) of the boxes kept by non-maximum suppression within each class.

    Of boxes of one class that overlap by more than `iou_threshold`, the most confident stays.
    Coordinates must not be negative: OpenCV keeps classes apart by moving each to a place of its
    own beyond the largest coordinate.
    """
    corners = xyxy.astype(np.float64)
    xywh = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1)
    suppress: Any = cv2.dnn.NMSBoxesBatched  # its stub asks for lists; arrays are quicker
    kept = suppress(xywh, confidence, class_id, 0.0, iou_threshold, 1.0, MAX_CANDIDATES)
    return np.asarray(kept, np.int64)


def vote(xyxy: Floats, confidence: Floats, class_id: Ints, kept: Ints, overlap: float) -> Floats:
    """The boxes that `nms` kept, (M, 4), each replaced by the mean of all that show its object.

    Those are the boxes of its class whose IoU with it is `overlap` or more, weighted by confidence.
    """
    means = np.empty((len(kept), 4), np.float32)
    area = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1)
    for label in np.unique(class_id[kept]):
        (among,), (places,) = np.nonzero(class_id == label), np.nonzero(class_id[kept] == label)
        boxes = xyxy[among]
        for part in np.split(places, range(64, len(places), 64)):  # all at once could take 1 GB
            mine = xyxy[kept[part], None]
            ends = np.minimum(boxes[:, 2:], mine[..., 2:])
            inside = (ends - np.maximum(boxes[:, :2], mine[..., :2])).clip(0).prod(axis=2)
            same = inside >= overlap * (area[among] + area[kept[part], None] - inside)
            weight = same * confidence[among]
            means[part] = weight @ boxes / weight.sum(axis=1, keepdims=True)
    return means


class NanoDet:
    """Any NanoDet network, ready to find objects in images of any size.

    The first five parameters are those of OpenCV Zoo's class of this name. Input size, levels,
    classes, reg_max, centres and resize rule are inferred from the network itself.

    Parameters
    ----------
    modelPath : str or os.PathLike
        ONNX file.
    prob_threshold : float
        Objects less certain than this are left out, 0 to 1.
    iou_threshold : float
        Boxes of one class that overlap more are one object, 0 to 1.
    backend_id, target_id : int
        cv2.dnn's DNN_BACKEND_... and DNN_TARGET_..., for engine "opencv".
    input_size : int or (int, int), optional
        Side or (width, height) of the canvas, multiples of 32 from 64 to
        4096, for networks that accept any size. 416 if not given.
    rect : bool
        Pad only to the next multiple of 32, so that 16:9 at 416 runs as
        416x256. For networks that accept any size.
    augment : bool
        Look at each image twice more, larger and mirrored, or once more,
        mirrored, with a network of one size, and merge: slower, finds more.
    class_agnostic : bool
        Keep one box where boxes of several classes overlap.
    num_classes : int, optional
        Needed where it can't be inferred from the outputs; the error says so.
    keep_ratio : bool, optional
        True to letterbox, False to stretch the image over the canvas. If not
        given, as the family was trained: NanoDet-Plus, with 4 levels, was
        stretched, the others were letterboxed.
    centre_offset : float, optional
        First anchor's centre in strides, 0 to 1. If not given, 0 for
        NanoDet-Plus, 0.5 for the others.
    mean, std : tuple of 3 floats, optional
        Of blue, green, red in training. If not given, (103.53, 116.28, 123.675)
        and (57.375, 57.12, 58.395), but 0 and 1 for a network whose first nodes
        normalise or divide pixels, 0 and 255 where those expect values from 0
        to 1. NanoDet-EfficientNet-Lite needs 127 and 128.
    engine : {"opencv", "onnxruntime", "openvino"}
        What runs the network; the last two are packages of their own. OpenVINO computes in bf16
        on processors that have it: boxes move by a pixel or two, AP stays.
    provider : str, optional
        onnxruntime's execution provider, "CPUExecutionProvider" if not given; OpenVINO's device,
        "CPU" if not given.

    Attributes
    ----------
    prob_threshold, iou_threshold : float
        May be changed at any time, for the next `detect`. All else is read-only, and a name
        that means nothing here is refused, except in a subclass.
    rect, keep_ratio, centre_offset, mean, std
        As given, or as the network needs it.
    name, engine : str
        "NanoDet"; what really runs, for people to read.
    input_size : (int, int)
        (width, height) of the canvas; with `rect`, of the largest one.
    head : Head
        Levels, classes and reg_max found.

    Raises
    ------
    ModelError
        If the file is not a usable NanoDet network.
    ValueError
        If a parameter can't be used or the engine is not available.

    Notes
    -----
    Threads may share an object and take turns; for speed give each its own. Copying one, also by
    sending it to another process, makes it anew from the file and the parameters.
    """

    name = "NanoDet"
    _made: frozenset[str] = frozenset()
    _read_only: frozenset[str] = frozenset()  # nothing, until the object is made

    def __init__(
        self,
        modelPath: str | os.PathLike[str],
        prob_threshold: float = 0.35,
        iou_threshold: float = 0.6,
        backend_id: int = 0,
        target_id: int = 0,
        *,
        input_size: int | Size | None = None,
        rect: bool = False,
        augment: bool = False,
        class_agnostic: bool = False,
        num_classes: int | None = None,
        keep_ratio: bool | None = None,
        centre_offset: float | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        engine: str = "opencv",
        provider: str | None = None,
    ) -> None:
        given = dict(locals())  # self and the parameters: there is nothing else yet
        others = {*vars(self)}  # of a subclass
        del given["self"]
        if not isinstance(modelPath, (str, os.PathLike)):  # which may be 8 MB of bytes
            kind = type(modelPath).__name__
            raise ValueError(f"modelPath must be the path of an ONNX file, not {kind}")
        path = os.fspath(modelPath)
        # To make a copy with, whatever becomes of lists that were given.
        self._parameters = copy.deepcopy(given | {"modelPath": os.path.abspath(path)})
        for name, value in self._parameters.items():
            _check(name, value)
        if engine == "opencv" and provider is not None:
            raise ValueError(
                f'provider {provider!r} needs engine="onnxruntime" or engine="openvino"'
            )
        if engine != "opencv" and (backend_id, target_id) not in ((0, 0), OPENCV_CPU):
            raise ValueError(f'backend_id {backend_id}, target_id {target_id} need engine="opencv"')
        self.prob_threshold, self.iou_threshold = prob_threshold, iou_threshold
        data, graph, own_size = _read_model(path)
        self.input_size = _choose_size(input_size, own_size, rect, path)
        own_mean, own_std = _colours(graph)
        if mean is not None and any(mean) and not any(own_mean):
            raise ValueError(f"mean must be left out, with std: {path} normalises by itself")
        self.mean = own_mean if mean is None else tuple(mean)
        self.std = own_std if std is None else tuple(std)
        values = np.arange(256, dtype=np.float32)
        colours = np.array((self.mean, self.std), np.float32).T
        self._tables = [(values - centre) / spread for centre, spread in colours]
        self.rect, self._class_agnostic = rect, class_agnostic
        self._lock = threading.RLock()
        with _opening:
            _detectors[id(self)] = self
        try:
            with _quiet_opencv():
                if engine == "opencv":
                    self._engine = _open_opencv(path, data, graph, backend_id, target_id)
                elif engine == "onnxruntime":
                    self._engine = _open_onnxruntime(data, provider)
                else:
                    self._engine = _open_openvino(data, provider)
                self.head, own_size = self._find_head(own_size, num_classes)
        except ModelError as error:
            remedy, settings = error.remedy, error.settings
            batch = _input_shape(*_images(graph))[0]
            if isinstance(error, _EngineError) and batch > 1:
                remedy = f"It takes {batch} images at a time: export it with a batch of 1."
                settings = {}
            raise ModelError(f"{path}: {error.fault}", remedy, **settings) from error
        if centre_offset is None and self.head.like_picodet:
            raise ModelError(
                f"{path}: not a NanoDet as its authors export it: 8 outputs of 4 levels are "
                "PicoDet's, whose centres and colours differ.",
                "Give {}: 0 for a NanoDet-Plus; 0.5, mean and std for PicoDet.",
                centre_offset=None,
            )
        _choose_size(None, own_size, rect, path)  # again: some have a size of their own after all
        looks = [(self.input_size, False)]  # each with its canvas, and whether mirrored
        if augment and own_size:
            looks.append((own_size, True))
        elif augment:
            width, height = self.input_size
            looks += [((_round_up(width * x), _round_up(height * x)), m) for x, m in AUGMENT_SCALES]
        self._looks = looks
        # Memory for the largest canvas, kept so that it is paged in once.
        most = 3 * max(width * height for (width, height), _ in looks)
        self._canvas, self._planes = np.zeros(most, np.uint8), np.zeros(most, np.uint8)
        self._blob = np.zeros(most, np.float32)
        self._view: Letterbox | None = None
        plus = len(self.head.strides) == 4
        self.keep_ratio = not plus if keep_ratio is None else keep_ratio
        self.centre_offset = (0.0 if plus else 0.5) if centre_offset is None else centre_offset
        self._made = frozenset(vars(self)) - others  # what a copy makes again by itself
        self._read_only = frozenset({*self._parameters, "name", "head"} - {*CHANGEABLE})

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._read_only:
            raise AttributeError(f"{name} can't be changed; make another NanoDet with it")
        if self._read_only and type(self) is NanoDet and not hasattr(self, name):
            raise AttributeError(
                f"{name} means nothing to a NanoDet; {' and '.join(CHANGEABLE)} can be changed, "
                "and a subclass may have attributes of its own"
            )
        if name in CHANGEABLE:
            _check(name, value)
            self._parameters[name] = value
        super().__setattr__(name, value)

    def __reduce__(self) -> Any:
        added = {name: value for name, value in vars(self).items() if name not in self._made}
        return _made_again, (type(self), self._parameters), added

    def __repr__(self) -> str:
        file, (width, height) = os.path.basename(self._parameters["modelPath"]), self.input_size
        settings = [f"{name} {getattr(self, name)}" for name in CHANGEABLE]
        settings += [name for name in ("rect", "augment") if self._parameters[name]]
        return (
            f"<{type(self).__name__}: {file} at {width}x{height}, {self.head.num_classes} classes, "
            f"{', '.join(settings)}; {self.engine}>"
        )

    def setBackendAndTarget(self, backendId: int, targetId: int) -> None:
        """Let cv2.dnn run the network, on this DNN_BACKEND_... and DNN_TARGET_...

        Raises ValueError if this OpenCV lacks the pair; the message names those it has.
        """
        chosen = {"backend_id": backendId, "target_id": targetId}
        for name, value in chosen.items():
            _check(name, value)
        path = self._parameters["modelPath"]
        data, graph, _ = _read_model(path)  # not kept: there may be many detectors
        with _quiet_opencv(), self._lock:
            before = self._engine
            try:  # engines differ in the order of outputs
                self._engine = _open_opencv(path, data, graph, backendId, targetId)
                head = self._first_look(self.input_size, self.head.num_classes)
            except ModelError as error:
                self._engine = before
                fault = f"{path}: {error.fault}"
                raise ModelError(fault, error.remedy, **error.settings) from error
            super().__setattr__("head", head)
        self._parameters |= {"engine": "opencv", "provider": None} | chosen

    @property
    def engine(self) -> str:
        """What really runs the network, for people to read."""
        return self._engine.name

    def infer(self, image: Image | None) -> Floats:
        """What `detect` finds, in the rows of OpenCV Zoo's class: (N, 6) float32.

        Left, top, right, bottom in pixels of the image, confidence, class.
        """
        found = self.detect(image)
        return np.column_stack((found.xyxy, found.confidence, found.class_id)).astype(np.float32)

    def detect(self, image: Image | None) -> Detections:
        """Find objects.

        Parameters
        ----------
        image : ndarray of shape (H, W, 3), uint8
            BGR, as `cv2.imread` returns it, from 1x1 up.

        Returns
        -------
        Detections
            Boxes in pixels of the image, most confident first.

        Raises
        ------
        ValueError
            If the image is something else, None included; the message says
            how to convert it.
        """
        image = _check_image(image)
        with self._lock:
            views = zip(self._views(image.shape[1::-1]), LARGEST_OBJECTS, strict=False)
            found = [self._look(image, view, largest) for view, largest in views]
        xyxy, confidence, class_id = map(np.concatenate, zip(*found, strict=True))
        groups = np.zeros_like(class_id) if self._class_agnostic else class_id
        kept = nms(xyxy, confidence, groups, self.iou_threshold)
        overlap = max(VOTING_IOU, self.iou_threshold)
        boxes = xyxy[kept] if len(found) == 1 else vote(xyxy, confidence, groups, kept, overlap)
        return Detections(boxes, confidence[kept], class_id[kept])

    def _views(self, image: Size) -> Iterator[Letterbox]:
        """Each way to look at an image of this size: one, or more with `augment`."""
        for canvas, mirrored in self._looks:
            if self.rect:
                whole = Letterbox.fit(image, canvas)
                canvas = _round_up(whole.width), _round_up(whole.height)
            yield Letterbox.fit(image, canvas, self.keep_ratio, mirrored)

    def _look(self, image: Bytes, view: Letterbox, largest: float) -> tuple[Floats, Floats, Ints]:
        """Everything above the threshold in one view of an image, in the image's pixels."""
        outputs = self._forward(self._fill(image, view))
        offset = self.centre_offset
        grids = [anchor_grid(view.canvas, group.strides, offset) for group in self.head.groups]
        xyxy, confidence, class_id = decode(outputs, self.head, grids, self.prob_threshold)
        xyxy = view.to_image(xyxy)
        sides = xyxy[:, 2:] - xyxy[:, :2]
        most = largest**2 * math.prod(view.image) / (view.width * view.height)
        taken = (sides > 0).all(axis=1)  # others lie beside the image
        taken &= sides.prod(axis=1) <= most
        return xyxy[taken], confidence[taken], class_id[taken]

    def _fill(self, image: Bytes, view: Letterbox) -> Floats:
        """The image as the network wants it: (1, 3, H, W) float32, normalised."""
        width, height = view.canvas
        size = 3 * width * height
        canvas = self._canvas[:size].reshape(height, width, 3)
        planes = self._planes[:size].reshape(3, height, width)
        blob = self._blob[:size].reshape(1, 3, height, width)
        if view != self._view:
            canvas.fill(0)  # the border; an image in the same place leaves it as it is
            self._view = view
        view.draw(image, canvas)
        cv2.split(canvas, list(planes))
        for plane, table, channel in zip(planes, self._tables, blob[0], strict=True):
            cv2.LUT(plane, table, dst=channel)  # subtracts and divides 256 values, not all
        return blob

    def _find_head(
        self, own_size: Size | None, num_classes: int | None
    ) -> tuple[Head, Size | None]:
        """The layout of the outputs, and the one size that the network takes, if it has one."""
        if own_size:
            return self._first_look(own_size, num_classes), own_size
        try:
            return self._first_look((128, 128), num_classes), None  # small, so quick
        except _EngineError:
            # It says that it takes any size, and some node in it takes only one.
            size = self.input_size
            if self._engine.again:  # in bf16, OpenVINO computes NaN after a run that failed
                self._engine = self._engine.again()
        try:
            return self._first_look(size, num_classes), size
        except _EngineError as error:
            remedy = "Give {} that it was exported with, or export it with one fixed size."
            raise _EngineError(error.fault, remedy, **error.settings, input_size=None) from error

    def _first_look(self, size: Size, num_classes: int | None) -> Head:
        """The layout of the outputs for any picture: here a ramp of grey."""
        ramp = np.linspace(-2, 2, 3 * size[0] * size[1], dtype=np.float32)
        outputs = self._forward(ramp.reshape(1, 3, size[1], size[0]))
        if not all(np.isfinite(output).all() for output in outputs):
            other = "opencv" if self.engine.startswith("onnxruntime") else "onnxruntime"
            raise ModelError(
                f"computes NaN or infinity on {self.engine}.", "Give {}.", engine=other
            )
        return Head.find(outputs, size, num_classes)

    def _forward(self, blob: Floats) -> list[Floats]:
        """The network's outputs for a blob (1, 3, H, W), each as (rows, columns)."""
        outputs = self._engine.run(blob)
        shapes = [output.shape for output in outputs]
        if not all(len(shape) in (2, 3) and shape[:-2] in ((), (1,)) for shape in shapes):
            raise ModelError(
                f"not a NanoDet: its outputs have shapes {shapes}.",
                "Where these are the maps of one, export it with a row for each anchor.",
            )
        return [output.reshape(output.shape[-2:]) for output in outputs]


def _made_again(cls: type[NanoDet], parameters: dict[str, Any]) -> NanoDet:
    """A copy, also of a subclass whose own __init__ takes other parameters."""
    detector = cls.__new__(cls)
    NanoDet.__init__(detector, **parameters)
    return detector


# What a NanoDet may be given, and what is said of anything else.

NOT_A_NANODET = "Give a network exported from NanoDet."


class ModelError(ValueError):
    """The file is missing, damaged, or not a NanoDet network; the message says which.

    Attributes
    ----------
    fault : str
        What is wrong, with a full stop.
    remedy : str
        What to do, a sentence or nothing. "{}" stands for the settings.
    settings : dict
        Parameters of NanoDet that may help, each with a value, None if only the user knows it.
    """

    def __init__(self, fault: str, remedy: str = "", **settings: Any) -> None:
        self.fault, self.remedy, self.settings = fault, remedy, settings
        super().__init__(self.text(_in_python))

    def text(self, spell: Callable[[str, Any], str]) -> str:
        """The whole message, with each setting as `spell(name, value)` writes it."""
        ways = " or ".join(spell(name, value) for name, value in self.settings.items())
        return f"{self.fault} {self.remedy.replace('{}', ways)}".rstrip()


def _in_python(name: str, value: Any) -> str:
    return f"the {name}" if value is None else f'{name}="{value}"'


class _EngineError(ModelError):
    """An engine can't read or run a network."""


def _check(name: str, value: Any) -> None:
    """Raise ValueError if a parameter of NanoDet can't have a value."""
    suits, wanted = True, ""
    if value is None and name in ("num_classes", "keep_ratio", "centre_offset", "mean", "std"):
        return
    if name in ("prob_threshold", "iou_threshold", "centre_offset"):
        suits, wanted = isinstance(value, NUMBER) and 0 <= value <= 1, "a number from 0 to 1"
    elif name in ("rect", "augment", "class_agnostic", "keep_ratio"):
        suits, wanted = isinstance(value, bool), "True or False"
    elif name == "num_classes":
        suits, wanted = isinstance(value, WHOLE) and value > 0, "a whole number above 0"
    elif name in ("backend_id", "target_id"):
        suits, wanted = isinstance(value, WHOLE), "a whole number"
    elif name in ("mean", "std"):
        least, wanted = -1e9, "three numbers"
        if name == "std":
            least, wanted = 1e-30, "three numbers above 0"  # less is 0 in float32
        suits = isinstance(value, (tuple, list, np.ndarray)) and len(value) == 3
        suits = suits and all(isinstance(n, NUMBER) and least < n < 1e9 for n in value)
    elif name == "engine":
        suits = value in ("opencv", "onnxruntime", "openvino")
        wanted = '"opencv", "onnxruntime" or "openvino"'
    if not suits:
        raise ValueError(f"{name} must be {wanted}, not {value!r}")


def check_canvas(size: int | Size) -> Size:
    """The canvas (width, height) of a side or a (width, height), for networks that accept any.

    Raises ValueError if it can't be; the message begins with the value.
    """
    sides = _whole_sides(size) or (0, 0)
    if any(side % SIZE_STEP or not SMALLEST_SIDE <= side <= LARGEST_SIDE for side in sides):
        raise ValueError(
            f"{size!r} is not a multiple of {SIZE_STEP} from {SMALLEST_SIDE} to {LARGEST_SIDE}, "
            "nor two of them as (width, height)"
        )
    return sides


def _whole_sides(size: object) -> Size | None:
    sides = size if isinstance(size, (tuple, list)) else (size, size)
    whole = len(sides) == 2 and all(isinstance(side, WHOLE) for side in sides)
    return (int(sides[0]), int(sides[1])) if whole else None


def _choose_size(asked: int | Size | None, own: Size | None, rect: bool, path: str) -> Size:
    """The canvas to use, or an error that says what would do."""
    if own is None:
        try:
            return check_canvas(DEFAULT_SIZE if asked is None else asked)
        except ValueError as error:
            raise ValueError(f"input_size {error}") from None
    if rect or asked is not None and _whole_sides(asked) != own:
        remedy = "Leave out {}, or run tools/free_size.py on it first."
        setting: dict[str, None] = {"rect" if rect else "input_size": None}
        raise ModelError(f"{path}: runs only at {own[0]}x{own[1]}.", remedy, **setting)
    return own


def _round_up(side: float) -> int:
    return max(SMALLEST_SIDE, math.ceil(side / SIZE_STEP) * SIZE_STEP)


def _check_image(image: Any) -> Bytes:
    """The image itself, or an error that says how to make one of it."""
    if not isinstance(image, np.ndarray):
        decode = "cv2.imdecode(np.frombuffer({}, np.uint8), cv2.IMREAD_COLOR)"
        cure = ""
        if image is None:
            cure = "Did cv2.imread find the file?"
        elif isinstance(image, str) and "://" in image:
            cure = f"Fetch it, and give {decode.format('data')}."
        elif isinstance(image, (str, os.PathLike)):
            cure = "Give cv2.imread(image)."
        elif isinstance(image, (bytes, bytearray, memoryview)):
            cure = f"Give {decode.format('image')}."
        elif hasattr(image, "getbuffer"):  # BytesIO
            cure = f"Give {decode.format('image.getbuffer()')}."
        elif isinstance(image, tuple):  # of VideoCapture.read
            cure = "Give its last part: ok, image = capture.read()."
        elif isinstance(image, cv2.UMat):
            cure = "Give image.get()."
        elif hasattr(image, "convert"):  # PIL, whose order is RGB
            cure = 'Give np.asarray(image.convert("RGB"))[:, :, ::-1].'
        elif hasattr(image, "__array__") or isinstance(image, list):
            cure = "Give np.asarray(image)."
        raise ValueError(f"image must be an array, not {type(image).__name__}. {cure}".rstrip())
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        cure = ""
        if not image.size:
            cure = " It is empty: does a crop lie beside the picture?"
        elif image.dtype.kind == "f":
            cure = " Give (255 * image).astype(np.uint8) if its values are from 0 to 1."
        elif image.dtype == np.uint16:
            cure = " Give (image // 257).astype(np.uint8)."
        elif image.dtype == np.bool_:
            cure = " Give 255 * image.astype(np.uint8)."
        elif image.dtype.kind in "iu" and image.dtype != np.uint8:
            cure = " Give image.astype(np.uint8) if its values are from 0 to 255."
        elif image.ndim == 2 or image.shape[2:] == (1,):
            cure = " Give cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), or COLOR_YUV2BGR_I420 if YUV."
        elif image.shape[2:] == (4,):
            cure = " Give cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)."
        elif image.ndim == 3 and image.shape[0] == 3:
            cure = " Give image.transpose(1, 2, 0)."
        elif image.ndim == 4:
            cure = " Give one image of them at a time."
        raise ValueError(
            "image must be BGR of shape (height, width, 3) and dtype uint8, "
            f"not {image.shape} {image.dtype}.{cure}"
        )
    return np.asarray(image)  # OpenCV takes no cv2.Mat of its own


# What runs a network.


class Engine(NamedTuple):
    """A network that an engine has read; `run` raises _EngineError."""

    run: Callable[[Floats], Sequence[Floats]]  # blob (1, 3, H, W) in, outputs out
    name: str  # for people to read
    again: Callable[[], Engine] | None = None  # opens another, where this must not be used again


_opening = threading.RLock()  # one network at a time: OpenCV's log level is the whole process's
_detectors: weakref.WeakValueDictionary[int, NanoDet] = weakref.WeakValueDictionary()  # by id
_forking = contextlib.ExitStack()
_opencv: Any = cv2  # OpenCV 4's type hints know less than OpenCV 5's
_set_log_level = getattr(cv2, "setLogLevel", None) or _opencv.utils.logging.setLogLevel  # 4, 5


def _hold_locks() -> None:
    """Wait until no thread runs a network, so that a child made by fork gets all at rest."""
    _forking.enter_context(_opening)
    for detector in _detectors.values():
        _forking.enter_context(detector._lock)


def _leave_engines() -> None:
    """In a child made by fork: leave the parent's engines alone, and open others when needed.

    A session joins its threads when it is destroyed, and would wait for ever, as fork does not
    copy threads. So it is never destroyed, not even when the process ends.
    """
    for detector in _detectors.values():
        engine = getattr(detector, "_engine", None)  # none yet in one that can't be made
        if engine and engine.again:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))
            detector._engine = engine._replace(run=_opened_later(engine.again))
    _let_go()


def _let_go() -> None:
    # All at once: when the first lock is free, another thread may begin to fork and hold its own.
    _forking.pop_all().close()


def _opened_later(again: Callable[[], Engine]) -> Callable[[Floats], Sequence[Floats]]:
    """What runs an engine, and opens it the first time."""
    opened = functools.cache(again)
    return lambda blob: opened().run(blob)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_hold_locks, after_in_parent=_let_go)
    os.register_at_fork(after_in_child=_leave_engines)


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from printing what its exceptions say anyway."""
    with _opening:
        level = _set_log_level(0)
        try:
            yield
        finally:
            _set_log_level(level)


def _one_line(error: Exception) -> str:
    """What an error says, without the place in OpenCV's source that it names."""
    text = " ".join(str(error).split())
    place = r"^OpenCV\(.*? error: \(.*?\) (.*?)( in function '.*')?$"
    return re.sub(place, r"\1", text).rstrip(".")


def _open_opencv(path: str, data: Bytes, graph: Message, backend_id: int, target_id: int) -> Engine:
    dnn: Any = cv2.dnn

    def constants(prefix: str) -> dict[int, str]:
        return {getattr(dnn, n): n[len(prefix) :] for n in dir(dnn) if n.startswith(prefix)}

    def pair(b: int, t: int) -> str:
        return f"{backends.get(b, '?')} ({b}) with {targets.get(t, '?')} ({t})"

    backends, targets = constants("DNN_BACKEND_"), constants("DNN_TARGET_")
    if backend_id == dnn.DNN_BACKEND_DEFAULT:  # an environment variable could change it
        backend_id = dnn.DNN_BACKEND_OPENCV
    if target_id not in dnn.getAvailableTargets(backend_id):
        pairs = [pair(b, t) for b in sorted(backends) for t in sorted(dnn.getAvailableTargets(b))]
        raise ValueError(
            f"this OpenCV {cv2.__version__} has no backend {pair(backend_id, target_id)}. "
            f"It has: {', '.join(pairs)}."
        )
    failed = functools.partial(_EngineError, remedy="Give {}.", engine="onnxruntime")
    fault = _unfit_for_opencv_4(graph)
    if fault and cv2.__version__.startswith("4."):
        raise failed(f"OpenCV {cv2.__version__} can't run it: {fault}.")
    try:
        if target_id != dnn.DNN_TARGET_CPU and hasattr(dnn, "ENGINE_CLASSIC"):
            # OpenCV 5's new engine ignores the target, and only reading by path avoids it.
            net = dnn.readNetFromONNX(path, dnn.ENGINE_CLASSIC)
        else:
            net = dnn.readNetFromONNX(data)
    except cv2.error as error:
        node = re.search(r"Node \[(\w+)", str(error))  # the rest is about OpenCV's source
        fault = fault or (f"it fails at a {node[1]} node" if node else _one_line(error))
        raise failed(f"OpenCV can't read it: {fault}.") from error
    # Only OpenCV 5 has two engines, and its classic one leaves the format unset.
    where = "new engine, target CPU"
    if getattr(net, "getModelFormat", int)() == 0:
        net.setPreferableBackend(backend_id)
        net.setPreferableTarget(target_id)
        where = f"classic engine, backend {backends[backend_id]}, target {targets[target_id]}"
    output_names, outputs = net.getUnconnectedOutLayersNames(), None

    def run(blob: Floats) -> Sequence[Floats]:
        nonlocal outputs
        try:
            net.setInput(blob)
            outputs = net.forward(output_names, outputs)  # OpenCV 5 writes into the last ones
        except cv2.error as error:
            raise failed(f"OpenCV can't run it at {blob.shape[3]}x{blob.shape[2]}.") from error
        return list(outputs)

    return Engine(run, f"OpenCV {cv2.__version__}, {where}")


def _open_onnxruntime(data: Bytes, provider: str | None) -> Engine:
    # From 1.29 on it would report to its makers, in a thread that a forked child's end waits for.
    before = os.environ.get("ORT_DISABLE_TELEMETRY")
    os.environ["ORT_DISABLE_TELEMETRY"] = before or "1"
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(
            "engine onnxruntime is not installed. Run: pip install onnxruntime"
        ) from error
    finally:
        if before is None:
            del os.environ["ORT_DISABLE_TELEMETRY"]
    available = onnxruntime.get_available_providers()
    if provider is not None and provider not in available:
        raise ValueError(
            f"this onnxruntime has no provider {provider}. It has: {', '.join(available)}."
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors arrive as exceptions
    options.intra_op_num_threads = cv2.getNumThreads()
    # Its threads would spin after each run and take the cores from OpenCV's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(
            data.tobytes(), options, providers=[provider or "CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's exceptions share no other base
        fault = f"onnxruntime can't read it: {_one_line(error)}."
        raise _EngineError(fault, "Export it again.") from error
    (given,) = session.get_inputs()
    dtype = np.float16 if given.type == "tensor(float16)" else np.float32

    def run(blob: Floats) -> Sequence[Floats]:
        try:
            outputs = session.run(None, {given.name: blob.astype(dtype, copy=False)})
        except Exception as error:
            fault = f"onnxruntime can't run it at {blob.shape[3]}x{blob.shape[2]}."
            raise _EngineError(fault, "Export it again.") from error
        return [output.astype(np.float32, copy=False) for output in outputs]

    name = f"onnxruntime {onnxruntime.__version__}, {', '.join(session.get_providers())}"
    return Engine(run, name, functools.partial(_open_onnxruntime, data, provider))


@functools.cache
def _openvino_core(openvino: Any, process: int) -> Any:
    """OpenVINO's core of a process, which is never destroyed.

    Each sets up a stack for signal handlers, and when it is destroyed puts back the one it found.
    Destroyed in the order in which they were made, two leave a freed one: the next signal crashes.
    """
    return openvino.Core()


def _open_openvino(data: Bytes, provider: str | None) -> Engine:
    modules: dict[str, Any] = sys.modules
    # Where this package is installed, importing openvino would report to its makers.
    modules.setdefault("openvino_telemetry", None)
    try:
        import openvino  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise ValueError("engine openvino is not installed. Run: pip install openvino") from error
    finally:
        if modules["openvino_telemetry"] is None:
            del modules["openvino_telemetry"]
    core, device = _openvino_core(openvino, os.getpid()), "CPU" if provider is None else provider
    available = [*core.available_devices, "AUTO"]
    if device not in available and f"{device}.0" not in available:
        raise ValueError(f"this OpenVINO has no provider {device}. It has: {', '.join(available)}.")
    wanted = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": cv2.getNumThreads(),
        "ENABLE_CPU_PINNING": False,  # else the threads of several networks share one core
    }
    known = core.get_property(device, "SUPPORTED_PROPERTIES")
    failed = functools.partial(_EngineError, remedy="Give {}.", engine="onnxruntime")
    wanted = {name: value for name, value in wanted.items() if name in known}
    try:
        model = core.read_model(data.tobytes())
        last = openvino.opset8.constant(np.int64(-3)).output(0)
        for node in model.get_ops():
            # 2026.4 mistakes a shuffle of channels for colours in another order, moves it into the
            # convolutions around it, and computes nonsense, unless its axis counts from the end.
            if node.get_type_name() == "Gather" and node.get_output_partial_shape(0).rank == 4:
                axis = node.input_value(2).get_node()
                if axis.get_type_name() == "Constant" and axis.get_vector() == [1]:
                    node.input(2).replace_source_output(last)
        compiled = core.compile_model(model, device, wanted)
        request = compiled.create_infer_request()
    except Exception as error:  # its exceptions share no other base
        lacks = re.search("rule found for (.+)", str(error))  # most else is about its source
        lines = [line for line in str(error).splitlines() if " src/" not in line]
        fault = f"it lacks {lacks[1]}" if lacks else " ".join(" ".join(lines).split()).rstrip(".")
        raise failed(f"OpenVINO can't read it: {fault}.") from error
    dtype = compiled.input(0).element_type.to_dtype()

    def run(blob: Floats) -> Sequence[Floats]:
        try:
            outputs = request.infer([blob.astype(dtype, copy=False)], share_inputs=True)  # copies
        except Exception as error:
            raise failed(f"OpenVINO can't run it at {blob.shape[3]}x{blob.shape[2]}.") from error
        return [output.astype(np.float32, copy=False) for output in outputs.to_tuple()]

    name = [f"OpenVINO {openvino.__version__.partition('-')[0]}"]
    name += compiled.get_property("EXECUTION_DEVICES")
    if "INFERENCE_PRECISION_HINT" in known:
        name.append(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())
    return Engine(run, ", ".join(name), functools.partial(_open_openvino, data, provider))


# The few fields of an ONNX file that are needed: OpenCV does not tell a network's input size, its
# parser writes to stderr when a file is damaged, and it crashes on some.


def _fields(**fields: Any) -> Fields:
    """Fields of a message by their keys in the file, from name=(number, type of the content)."""
    return {
        number << 3 | (0 if holds is int else 5 if holds is float else 2): (name, holds)
        for name, (number, holds) in fields.items()
    }


# Numbers as in onnx.proto. Messages hold fields of their own, or bytes where those don't matter.
_TENSOR = _fields(
    data_type=(2, int), float_data=(4, bytes), name=(8, str), raw_data=(9, bytes),
    external_data=(13, bytes), data_location=(14, int),
)  # fmt: skip
_SPARSE = _fields(values=(1, _TENSOR), indices=(2, _TENSOR))
_ATTRIBUTE = _fields(
    name=(1, str), f=(2, float), i=(3, int), t=(5, _TENSOR), g=(6, bytes), tensors=(10, _TENSOR),
    graphs=(11, bytes), sparse_tensor=(22, _SPARSE), sparse_tensors=(23, _SPARSE),
)  # fmt: skip
_NODE = _fields(
    input=(1, str), output=(2, str), name=(3, str), op_type=(4, str), attribute=(5, _ATTRIBUTE)
)
_SHAPE = _fields(dim=(1, _fields(dim_value=(1, int))))
_TYPE = _fields(tensor_type=(1, _fields(elem_type=(1, int), shape=(2, _SHAPE))))
_VALUE = _fields(name=(1, str), type=(2, _TYPE))
_GRAPH = _fields(
    node=(1, _NODE), initializer=(5, _TENSOR), input=(11, _VALUE), output=(12, _VALUE),
    sparse_initializer=(15, _SPARSE),
)  # fmt: skip
_MODEL = _fields(graph=(7, _GRAPH), functions=(25, _fields(node=(7, _NODE))))


def read_model(path: str | os.PathLike[str]) -> tuple[Bytes, Size | None]:
    """An ONNX file's bytes, and its canvas (width, height), None where it accepts any.

    Raises ModelError if the file is missing, damaged, or can't be a NanoDet.
    """
    data, _, size = _read_model(os.fspath(path))
    return data, size


def _read_model(name: str) -> tuple[Bytes, Message, Size | None]:
    """What `read_model` returns, with the graph between the two."""
    if not os.path.isfile(name):  # a pipe or device may never end
        fault = "is not a regular file" if os.path.exists(name) else "no such file"
        raise ModelError(f"{name}: {fault}.", "Give the path of a NanoDet .onnx file.")
    try:
        with open(name, "rb") as file:
            if os.fstat(file.fileno()).st_size > LARGEST_FILE:
                fault = f"is larger than {LARGEST_FILE >> 20} MB"
                raise ModelError(f"{name}: not a NanoDet: it {fault}.", NOT_A_NANODET)
            data = file.read(LARGEST_FILE)
    except OSError as error:
        raise ModelError(f"{name}: can't be read: {error.strerror}.") from error
    if not data:
        raise ModelError(f"{name}: is empty.", "Download it again.")
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"{name}: is a Git LFS pointer, not the network itself.",
            "Run 'git lfs pull' where you cloned it, or download the file.",
        )
    try:
        model = _message(memoryview(data), _MODEL, iter(range(MOST_FIELDS)))
        (graph,) = model["graph"]  # readers join several, each with what it has
        _check_nodes(graph)
        images = _images(graph)
    except (ValueError, LookupError) as error:
        raise ModelError(
            f"{name}: is not an ONNX file, or is damaged ({len(data)} bytes).",
            "Give a network exported to ONNX, or download it again.",
        ) from error
    attributes = _inside(graph, "node", "attribute")
    attributes += _inside(model, "functions", "node", "attribute")
    if any(map(_lies_elsewhere, _tensors(graph, attributes))):
        # An engine would read any file that the network names.
        one = "Save it as one file: onnx.save(onnx.load(path), new_path)."
        raise ModelError(f"{name}: keeps its weights in other files.", one)
    if any(attribute["g"] or attribute["graphs"] for attribute in attributes):
        # OpenCV 5 crashes on some.
        raise ModelError(f"{name}: not a NanoDet: it contains If or Loop nodes.", NOT_A_NANODET)
    types, shapes = [_input_type(image) for image in images], [*map(_input_shape, images)]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in (0, 3):
        raise ModelError(
            f"{name}: not a NanoDet: its inputs are {shapes}, not one of (1, 3, height, width).",
            NOT_A_NANODET,
        )
    if types[0] not in (0, 1, 10):  # not told, float32, float16; OpenCV 4 would find nothing
        raise ModelError(f"{name}: its input is not floating point.", "Export it with float input.")
    height, width = shapes[0][2:]
    if max(width, height) > LARGEST_SIDE:
        raise ModelError(f"{name}: not a NanoDet: its canvas is {width}x{height}.", NOT_A_NANODET)
    return np.frombuffer(data, np.uint8), graph, (width, height) if width and height else None


def _message(data: memoryview, fields: Fields, budget: Iterator[int]) -> Message:
    """The values of some fields of a protobuf message, a list for each of their names.

    Takes one step of the budget for each field of any kind, so that the time stays bounded.
    """
    values: Message = {name: [] for name, _ in fields.values()}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        value: Any
        if key < 8 or next(budget, None) is None:
            raise ValueError("a field has the number 0, or there are too many")
        if kind == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            if size > len(data) - at:
                raise ValueError("a field is cut off")
            value, at = data[at : at + size], at + size
        if key in fields:
            name, holds = fields[key]
            if holds is str:
                value = str(value, "utf-8")
            elif isinstance(holds, dict):
                value = _message(value, holds, budget)
            values[name].append(value)
    return values


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A protobuf number and the offset after it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number is too long")


def _inside(message: Message, *names: str) -> list[Any]:
    """Every value of a nested field, given the field's name at each depth."""
    found: list[Any] = [message]
    for name in names:
        found = [value for part in found for value in part[name]]
    return found


def _images(graph: Message) -> list[Message]:
    """The inputs of a graph; old exports list their weights as inputs, too."""
    weights = {*_inside(graph, "initializer", "name")}
    return [value for value in graph["input"] if value["name"][0] not in weights]


def _input_type(value: Message) -> int:
    """Number of an input's type in onnx.proto, 0 if it isn't told."""
    told: list[int] = _inside(value, "type", "tensor_type", "elem_type")
    return told[-1] if told else 0


def _input_shape(value: Message) -> list[int]:
    """Sides of an input, 0 for one that may have any length."""
    dims = _inside(value, "type", "tensor_type", "shape", "dim")
    told = [dim["dim_value"][-1] if dim["dim_value"] else 0 for dim in dims]
    return [side if side < 1 << 63 else 0 for side in told]  # int64; -1 is any, too


def _check_nodes(graph: Message) -> None:
    """Raise ValueError for what crashes OpenCV: nodes without inputs, names without tensors."""
    made = {*_inside(graph, "initializer", "name"), *_inside(graph, "input", "name")}
    made.update(_inside(graph, "sparse_initializer", "values", "name"))
    used = {*_inside(graph, "output", "name")}
    for node in graph["node"]:
        named = {text for text in node["input"] if text}  # "": left out
        if not named and "Constant" not in node["op_type"]:
            raise ValueError("a node has no input")
        used |= named
        made.update(node["output"])
    if not used <= made:
        raise ValueError("a node or output uses a tensor that nothing produces")


def _tensors(graph: Message, attributes: list[Message]) -> list[Message]:
    """All that a network stores, wherever it stands: weights, constants, sparse ones."""
    tensors, sparse = [*graph["initializer"]], [*graph["sparse_initializer"]]
    for attribute in attributes:
        tensors += attribute["t"] + attribute["tensors"]
        sparse += attribute["sparse_tensor"] + attribute["sparse_tensors"]
    return tensors + [part for each in sparse for part in each["values"] + each["indices"]]


def _lies_elsewhere(tensor: Message) -> bool:
    """Whether a tensor's numbers are in another file."""
    return bool(tensor["external_data"]) or 1 in tensor["data_location"]  # EXTERNAL


def _unfit_for_opencv_4(graph: Message) -> str:
    """Why OpenCV 4 crashes on a network or computes nonsense, nothing if it doesn't."""
    types = {name: w["data_type"] for w in graph["initializer"] for name in w["name"]}
    for node in graph["node"]:
        to = [a["i"] for a in node["attribute"] if a["name"] == ["to"]]
        if [10] in to:
            return "it computes in float16"
        weights = node["input"][3:4] if "QLinearConv" in node["op_type"] else []
        if any(types.get(name) == [2] for name in weights):
            return "its weights are uint8"
    return ""


# What a network does to its input by itself.


def _colours(graph: Message) -> tuple[Colour, Colour]:
    """Mean and std that a network needs: those of training, unless its first nodes normalise."""
    with np.errstate(all="ignore"):
        scale, shift = _first_steps(graph)
        # Which value becomes 0, and how much more becomes 1. Where pixels from 0 to 255 come in,
        # that is about 100 and 58, or 0 and 255 if they are only divided; where values from 0 to
        # 1 do, about 0.45 and 0.23, or 0 and 1 / 255 if they are only multiplied.
        centre, step = np.mean(-shift / scale), np.mean(1 / abs(scale))
    if math.isfinite(centre + step) and max(centre, step) > 10:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if math.isfinite(centre + step) and (centre > 0.2 or step < 0.1):
        return (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)
    return MEAN, STD


def _first_steps(graph: Message) -> tuple[Any, Any]:
    """Scale and shift, (3,) each, of what happens to the colours before anything else does."""
    scale, shift = np.ones(3), np.zeros(3)
    constants = {name: tensor for tensor in graph["initializer"] for name in tensor["name"]}
    for node in graph["node"]:
        if "Constant" in node["op_type"]:
            constants.update(zip(node["output"], _inside(node, "attribute", "t"), strict=False))
    name = _images(graph)[0]["name"][0]
    for _ in range(8):  # each looks at all nodes; up to four are usual
        users = [n for n in graph["node"] if name in n["input"] and "Shape" not in n["op_type"]]
        step = _step(users[0], name, constants) if len(users) == 1 else None
        if step is None or not users[0]["output"]:
            break
        scale, shift = scale * step[0], shift * step[0] + step[1]
        name = users[0]["output"][0]
    return scale, shift


def _step(node: Message, name: str, constants: dict[str, Message]) -> tuple[Any, Any] | None:
    """Scale and shift of a node that does only that to an input, None of any other."""
    operation = "".join(node["op_type"])
    if operation in ("Cast", "Identity", "QuantizeLinear", "DequantizeLinear"):
        return 1, 0
    numbers: list[Any] = [_colour(constants.get(n)) for n in node["input"] if n != name]
    if not numbers or any(number is None for number in numbers):
        return None
    if operation == "BatchNormalization" and len(numbers) == 4:
        gamma, beta, mean, variance = numbers
        told = [a["f"] for a in node["attribute"] if a["name"] == ["epsilon"]]
        epsilon = np.frombuffer(told[0][0], "<f4") if told and told[0] else 1e-5
        scale = gamma / np.sqrt(variance + epsilon)
        return scale, beta - mean * scale
    if operation in ("Add", "Mul") or node["input"][0] == name:
        number = numbers[0]
        steps = {
            "Add": (1, number),
            "Sub": (1, -number),
            "Mul": (number, 0),
            "Div": (1 / number, 0),
        }
        return steps.get(operation)
    return None


def _colour(tensor: Message | None) -> Any:
    """Three numbers, or three times the one, from a tensor of as many floats; None from others."""
    formats = {1: "<f4", 10: "<f2", 11: "<f8"}
    data = tensor and (tensor["raw_data"] or tensor["float_data"])
    if not tensor or not data:
        return None
    form = formats.get(*tensor["data_type"][-1:] or [0])
    if form is None or len(data[-1]) not in (int(form[2]), 3 * int(form[2])):
        return None
    return np.broadcast_to(np.frombuffer(data[-1], form).astype(np.float64), 3)
