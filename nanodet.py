"""NanoDet object detection with OpenCV. Copy this file into your own program.

    import cv2
    from nanodet import COCO_CLASSES, NanoDet

    detector = NanoDet("object_detection_nanodet_2022nov.onnx")
    for box, confidence, class_id in detector.detect(cv2.imread("street.jpg")):
        print(COCO_CLASSES[class_id], f"{confidence:.2f}", box)

An image takes this way through the file, top to bottom:
image -> letterbox -> blob -> forward -> decode -> original pixels -> NMS.
Axes: N anchors, C classes, K = reg_max + 1 bins of a distribution.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:  # numpy.typing takes milliseconds to import
    from numpy.typing import DTypeLike, NDArray

    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]
    Bytes = NDArray[np.uint8]
    Size = tuple[int, int]  # (width, height)
    Span = tuple[int, int]  # (begin, end) in a file's bytes
    Path = str | os.PathLike[str]
    # (C, 4 K) -> which outputs hold confidences and logits, and whether every column of the
    # logits shows by its values that it is none of confidences.
    Readings = dict[tuple[int, int], tuple[tuple[int, int], bool]]

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
LARGEST_SIDE = 4096
SMALLEST_SIDE = 64  # OpenCV 5.0 computes garbage where the deepest level has 1 row or column
AUGMENT_SCALES = (1.2, 1.5)  # further canvases: 512 and 640 beside 416
MAX_CANDIDATES = 3000  # boxes that enter NMS, so that its time stays bounded


class ModelError(ValueError):
    """The file is missing, damaged, or no NanoDet network; the message says which."""


@dataclass(frozen=True, eq=False)
class Detections:
    """Objects found in one image, most confident first.

    Has a length, takes a mask, a slice or an index, and loops over
    (xyxy, confidence, class_id) of each object.

    Attributes
    ----------
    xyxy : ndarray of shape (N, 4), float32
        Left, top, right, bottom, in pixels of the image given.
    confidence : ndarray of shape (N,), float32
        From 0 to 1.
    class_id : ndarray of shape (N,), int64
        Index into the labels, `COCO_CLASSES` unless trained on others.

    Raises
    ------
    ValueError
        If the arrays' shapes do not fit each other.
    """

    xyxy: Floats
    confidence: Floats
    class_id: Ints

    def __post_init__(self) -> None:
        n = (*np.shape(self.xyxy), 0)[0]
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

    def __getitem__(self, index: Any) -> Detections:
        if isinstance(index, (int, np.integer)):
            index = [index]
        return Detections(self.xyxy[index], self.confidence[index], self.class_id[index])


class Buffers:
    """Arrays kept from image to image, so that their memory is paged in once."""

    def __init__(self) -> None:
        self._arrays: dict[Any, NDArray[Any]] = {}

    def get(self, name: Any, shape: tuple[int, ...], dtype: DTypeLike = np.uint8) -> NDArray[Any]:
        """The array of this name: zeros at first and after a change of shape."""
        array = self._arrays.get(name)
        if array is None or array.shape != shape:
            array = self._arrays[name] = np.zeros(shape, dtype)
        return array


@dataclass(frozen=True)
class Letterbox:
    """Where an image lies on the network's canvas, computed once an image.

    Attributes
    ----------
    image, canvas : tuple of int
        (width, height), in pixels.
    left, top, width, height : int
        The rectangle of the canvas that the image fills.
    """

    image: Size
    canvas: Size
    left: int
    top: int
    width: int
    height: int

    @classmethod
    @functools.lru_cache(maxsize=64)  # images mostly come in a few sizes
    def fit(cls, image: Size, canvas: Size, keep_ratio: bool = True) -> Letterbox:
        """Place an image on a canvas: centred, or stretched over all of it.

        Parameters
        ----------
        image, canvas : tuple of int
            (width, height), in pixels.
        keep_ratio : bool
            False stretches the image to the whole canvas.

        Returns
        -------
        Letterbox
            At least one pixel in each direction, however thin the image.
        """
        width, height = canvas
        if keep_ratio:
            scale = min(canvas[0] / image[0], canvas[1] / image[1])
            width = min(width, max(1, round(image[0] * scale)))
            height = min(height, max(1, round(image[1] * scale)))
        return cls(
            image, canvas, (canvas[0] - width) // 2, (canvas[1] - height) // 2, width, height
        )

    def draw(self, image: Bytes, canvas: Bytes, buffers: Buffers | None = None) -> None:
        """Resize an image into its place; the rest of the canvas stays as it is.

        Parameters
        ----------
        image : ndarray of shape (H, W, 3), uint8
        canvas : ndarray of shape (height, width, 3), uint8
            Changed in place.
        buffers : Buffers, optional
            Memory to work in.
        """
        buffers = buffers or Buffers()
        # Bilinear looks at 4 pixels only and skips some where an image shrinks. Averages of 2x2
        # look at all, at the speed of memory: an image of 3 times the size and more is halved
        # until less than twice the size is left, and the last average follows a bilinear step to
        # twice the size, unless halving left little. AP is that of resizing by area, at half its
        # time.
        height, width = image.shape[:2]
        step, limit, little = 0, 3, 1.0
        while width >= limit * self.width or height >= limit * self.height:
            width = (width + 1) // 2 if width >= limit * self.width else width
            height = (height + 1) // 2 if height >= limit * self.height else height
            half = buffers.get(("half", step), (height, width, 3))
            cv2.resize(image, (width, height), dst=half, interpolation=cv2.INTER_AREA)
            image, step, limit, little = half, step + 1, 2, 1.25
        inside = canvas[self.top : self.top + self.height, self.left : self.left + self.width]
        if width > little * self.width or height > little * self.height:
            double = buffers.get("double", (2 * self.height, 2 * self.width, 3))
            cv2.resize(image, double.shape[1::-1], dst=double, interpolation=cv2.INTER_LINEAR)
            cv2.resize(double, inside.shape[1::-1], dst=inside, interpolation=cv2.INTER_AREA)
        else:
            cv2.resize(image, inside.shape[1::-1], dst=inside, interpolation=cv2.INTER_LINEAR)

    def to_image(self, xyxy: Floats) -> Floats:
        """Move boxes from the canvas back to the image and clip them to it.

        Parameters
        ----------
        xyxy : ndarray of shape (N, 4), float32
            In pixels of the canvas.

        Returns
        -------
        ndarray of shape (N, 4), float32
            In pixels of the image.
        """
        offset, scale, limit = self._to_image
        moved: Floats = (xyxy - offset) * scale
        return np.clip(moved, 0, limit, out=moved)

    @functools.cached_property
    def _to_image(self) -> tuple[Floats, Floats, Floats]:
        # Width and height have a scale each: rounding to whole pixels makes them differ.
        scale = self.image[0] / self.width, self.image[1] / self.height
        rows = (self.left, self.top) * 2, scale * 2, self.image * 2
        offset, scales, limit = np.array(rows, np.float32)
        return offset, scales, limit


def expected_distances(logits: Floats) -> Floats:
    """Expectation of each side's distribution.

    Parameters
    ----------
    logits : ndarray of shape (N, 4 * K), float32
        Unnormalised distributions: left, top, right, bottom.

    Returns
    -------
    ndarray of shape (N, 4), float32
        Distance from the centre to left, top, right, bottom, in strides.

    Notes
    -----
    sum(i * P(i)), i = 0 .. reg_max, with P the softmax of a side's
    logits: the general distribution of [1]_.

    References
    ----------
    .. [1] X. Li et al., "Generalized Focal Loss", NeurIPS 2020,
       arXiv:2006.04388.
    """
    bins = logits.shape[1] // 4
    columns = logits.reshape(-1, bins).T.copy()  # (K, 4 N): NumPy adds up whole rows quickest
    weight = np.exp(columns - columns.max(axis=0))  # the largest is 1: no overflow
    distances: Floats = np.arange(bins, dtype=np.float32) @ weight / weight.sum(axis=0)
    return distances.reshape(-1, 4)


@functools.lru_cache(maxsize=64)
def anchor_grid(canvas: Size, strides: tuple[int, ...], centre_offset: float) -> Floats:
    """Centres of all anchors of some levels, row by row, level after level.

    Parameters
    ----------
    canvas : tuple of int
        (width, height), in pixels.
    strides : tuple of int
        Pixels between neighbouring centres, a level each.
    centre_offset : float
        Place of the first centre, in strides: 0.5, or 0 in NanoDet-Plus.

    Returns
    -------
    ndarray of shape (N, 3), float32
        x and y of the centre and the stride, in pixels of the canvas;
        read-only.
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


@dataclass(frozen=True)
class Head:
    """How a network lays out its outputs, found from their shapes and values.

    Attributes
    ----------
    strides : tuple of int
        One a level: 8, 16, 32, and in NanoDet-Plus 64.
    num_classes, reg_max : int
        C, and the last bin of a distribution, K - 1.
    groups : tuple of (int, int, tuple of int)
        Which output holds the confidences (its first C columns), which the
        logits (its last 4 K columns), and the strides that both cover.
    """

    strides: tuple[int, ...]
    num_classes: int
    reg_max: int
    groups: tuple[tuple[int, int, tuple[int, ...]], ...]

    @classmethod
    def find(cls, outputs: Sequence[Floats], canvas: Size, num_classes: int | None = None) -> Head:
        """Tell a NanoDet's layout; names and order of outputs can't be trusted.

        Parameters
        ----------
        outputs : list of ndarray of shape (rows, columns), float32
            What the network made of any one canvas.
        canvas : tuple of int
            (width, height) of that canvas, in pixels.
        num_classes : int, optional
            C, where shapes and values leave a doubt.

        Returns
        -------
        Head

        Raises
        ------
        ModelError
            If this is no NanoDet, or several readings are possible.
        """
        shapes = ", ".join(str(output.shape) for output in outputs)
        by_rows: dict[int, list[int]] = {}
        for index, output in enumerate(outputs):
            by_rows.setdefault(len(output), []).append(index)
        for strides in ((8, 16, 32), (8, 16, 32, 64)):
            for split in (tuple((stride,) for stride in strides), (strides,)):
                rows = [len(anchor_grid(canvas, group, 0)) for group in split]
                if sorted(rows) == sorted(by_rows):
                    members = [by_rows[n] for n in rows]
                    readings = [cls._readings(outputs, indices) for indices in members]
                    sizes = set.intersection(*(set(reading) for reading in readings))
                    if sizes:
                        size = cls._choose(sizes, readings, num_classes, shapes)
                        pairs = [reading[size][0] for reading in readings]
                        groups = tuple((*pair, s) for pair, s in zip(pairs, split, strict=True))
                        return cls(strides, size[0], size[1] // 4 - 1, groups)
        raise ModelError(
            f"no NanoDet: on a canvas of {canvas[0]}x{canvas[1]} its outputs are {shapes}. "
            "A NanoDet gives, for each anchor of 3 or 4 levels, confidences from 0 to 1 "
            "and 4 distributions. Give a network exported from NanoDet."
        )

    @staticmethod
    def _readings(outputs: Sequence[Floats], indices: list[int]) -> Readings:
        """{(C, 4 K): ((confidence output, logits output), every column surely logits)}."""
        first, last = indices[0], indices[-1]
        if len(indices) == 1:
            columns = outputs[first].shape[1]
            tries = [(first, first, columns - sides) for sides in range(8, columns, 4)]
        elif len(indices) == 2:
            tries = [(i, j, outputs[i].shape[1]) for i, j in ((first, last), (last, first))]
        else:
            return {}
        # int8 and float16 networks may step a little over the ends of 0 to 1.
        outside: dict[int, NDArray[np.bool_]] = {
            i: np.any((outputs[i] < -0.01) | (outputs[i] > 1.01), axis=0) for i in indices
        }
        readings: Readings = {}
        for i, j, classes in tries:
            sides = len(outside[j]) - (classes if i == j else 0)
            if classes >= 1 and sides >= 8 and sides % 4 == 0 and not outside[i][:classes].any():
                sure = bool(outside[j][-sides:].all())
                if (classes, sides) not in readings or sure:
                    readings[classes, sides] = ((i, j), sure)
        return readings

    @staticmethod
    def _choose(
        sizes: set[tuple[int, int]], readings: list[Readings], num_classes: int | None, shapes: str
    ) -> tuple[int, int]:
        """The one (C, 4 K) that is meant."""
        if num_classes is not None:
            sizes = {size for size in sizes if size[0] == num_classes}
            if not sizes:
                raise ModelError(f"num_classes {num_classes} does not fit the outputs {shapes}")
        sure = {size for size in sizes if all(reading[size][1] for reading in readings)}
        sizes = sure or sizes
        if len(sizes) > 1:  # all published networks: COCO's classes, reg_max 7 or 10
            sizes = sizes & {(80, 32), (80, 44)} or sizes
        if len(sizes) > 1:
            raise ModelError(
                f"can't tell where the classes end in the outputs {shapes}. "
                f"Pass num_classes, one of {sorted(classes for classes, _ in sizes)}."
            )
        return sizes.pop()


def decode(
    outputs: Sequence[Floats],
    head: Head,
    grids: Sequence[Floats],
    threshold: float,
    buffers: Buffers | None = None,
) -> tuple[Floats, Floats, Ints]:
    """Boxes of everything more confident than a threshold.

    Parameters
    ----------
    outputs : list of ndarray of shape (rows, columns), float32
        As the network gives them.
    head : Head
        Their layout.
    grids : sequence of ndarray of shape (rows, 3), float32
        `anchor_grid` of each group of the head.
    threshold : float
        From 0 to 1.
    buffers : Buffers, optional
        Memory to work in.

    Returns
    -------
    xyxy : ndarray of shape (N, 4), float32
        In pixels of the canvas, most confident first, MAX_CANDIDATES at most.
        Boxes that are not finite are left out.
    confidence : ndarray of shape (N,), float32
    class_id : ndarray of shape (N,), int64
    """
    buffers = buffers or Buffers()
    classes, sides = head.num_classes, 4 * (head.reg_max + 1)
    found = []
    for (i, j, _), grid in zip(head.groups, grids, strict=True):
        confidence = outputs[i][:, :classes]
        passes = buffers.get(("passes", i), confidence.shape, bool)
        np.greater(confidence, threshold, out=passes)
        # Nearly all anchors are background: only what passes is decoded.
        place = np.flatnonzero(passes)
        row = place // classes
        class_id = place - row * classes
        logits = outputs[j].take(row, axis=0)[:, -sides:]
        found.append((confidence[row, class_id], class_id, logits, grid[row]))
    joined = [np.concatenate(parts) for parts in zip(*found, strict=True)]
    order = np.argsort(-joined[0], kind="stable")[:MAX_CANDIDATES]
    confidence, class_id, logits, anchor = (array[order] for array in joined)
    with np.errstate(all="ignore"):  # a broken network's NaN and inf are sorted out below
        distance = expected_distances(logits) * anchor[:, 2:]
    xyxy = np.empty_like(distance)
    np.subtract(anchor[:, :2], distance[:, :2], out=xyxy[:, :2])
    np.add(anchor[:, :2], distance[:, 2:], out=xyxy[:, 2:])
    finite = np.isfinite(xyxy).all(axis=1) & np.isfinite(confidence)
    confidence = np.minimum(confidence, 1)  # int8 networks may step over it
    return xyxy[finite], confidence[finite], class_id[finite]


def xyxy_to_xywh(xyxy: NDArray[Any]) -> NDArray[Any]:
    """Corners to left, top, width, height, which cv2.dnn's NMS wants; (N, 4) both."""
    return np.concatenate((xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]), axis=1)


def nms(xyxy: Floats, confidence: Floats, class_id: Ints, iou_threshold: float) -> Ints:
    """Non-maximum suppression within each class, of the most confident MAX_CANDIDATES.

    Parameters
    ----------
    xyxy : ndarray of shape (N, 4), float32
        Not negative: OpenCV keeps classes apart by moving each to a place of
        its own beyond the largest coordinate.
    confidence : ndarray of shape (N,), float32
    class_id : ndarray of shape (N,), int64
    iou_threshold : float
        A box that overlaps a more confident one of its class by more goes.

    Returns
    -------
    ndarray of shape (M,), int
        Indices of the boxes kept, most confident first.
    """
    boxes = xyxy_to_xywh(xyxy.astype(np.float64)), confidence, class_id
    suppress: Any = cv2.dnn.NMSBoxesBatched  # its stub asks for lists; arrays are quicker
    return np.asarray(suppress(*boxes, 0.0, iou_threshold, 1.0, MAX_CANDIDATES), np.int64)


def _round_up(side: float) -> int:
    return max(SMALLEST_SIDE, math.ceil(side / SIZE_STEP) * SIZE_STEP)


def _varint(data: bytes, at: int) -> Span:
    """A protobuf number and the place behind it."""
    value = shift = 0
    while shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number is too long")


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, Span]]:
    """Number of each field of a protobuf message and where its value lies, as (begin, end)."""
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 2:
            size, at = _varint(data, at)
        elif kind == 0:
            size = _varint(data, at)[1] - at
        else:
            size = {1: 8, 5: 4}[kind]
        if size > end - at:
            raise ValueError("a field is cut off")
        yield key >> 3, (at, at + size)
        at += size


def _find(data: bytes, message: Span, number: int, *path: int) -> Iterator[Span]:
    """Where every value of a nested field lies, given the field's number at each depth."""
    for found, value in _fields(data, *message):
        if found == number:
            yield from _find(data, value, *path) if path else (value,)


def _texts(data: bytes, message: Span, *path: int) -> list[str]:
    """Every value of a nested field that is text."""
    return [data[begin:end].decode() for begin, end in _find(data, message, *path)]


def read_model(path: Path) -> tuple[Bytes, Size | None]:
    """Read an ONNX file and the input size it was exported for.

    OpenCV does not tell a network's input size, and its parser writes to
    stderr when a file is damaged, so the few fields needed are read here.

    Parameters
    ----------
    path : str or os.PathLike
        The network; any name that the system allows, on Windows too.

    Returns
    -------
    data : ndarray of shape (bytes,), uint8
        The file.
    size : tuple of int or None
        (width, height) of the canvas, None where the network accepts any.

    Raises
    ------
    ModelError
        If the file is missing, no ONNX network, or keeps weights elsewhere.
    """
    name = os.fspath(path)
    if not os.path.exists(name):
        raise ModelError(f"{name}: no such file. Give the path of a NanoDet .onnx file.")
    if not os.path.isfile(name):
        raise ModelError(f"{name}: is no file. Give the path of a NanoDet .onnx file.")
    try:
        with open(name, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ModelError(f"{name}: can't be read: {error.strerror}.") from error
    if not data:
        raise ModelError(f"{name}: is empty. Download it again.")
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(
            f"{name}: is a Git LFS pointer, not the network itself. "
            "Run 'git lfs pull' where you cloned it, or download the file."
        )
    try:
        # Field numbers of onnx.proto: model.graph 7; graph.node 1, initializer 5, input 11,
        # output 12; node.input 1, output 2, name 3, op_type 4, attribute 5.
        (graph,) = _find(data, (0, len(data)), 7)
        known = set(_texts(data, graph, 5, 8))  # names of weights
        taken = set(_texts(data, graph, 12, 1))
        shapes = []
        for value in _find(data, graph, 11):
            (input_name,) = _texts(data, value, 1)
            if input_name not in known:  # old exports list their weights as inputs, too
                dims = _find(data, value, 2, 1, 2, 1)
                sizes = [next(_find(data, dim, 1), None) for dim in dims]
                shapes.append([_varint(data, size[0])[0] if size else 0 for size in sizes])
                known.add(input_name)
        # OpenCV crashes on names that nothing makes, on some that are no text, and on a node
        # that takes nothing.
        for node in _find(data, graph, 1):
            texts = [(n, data[a:b].decode()) for n, (a, b) in _fields(data, *node) if n < 5]
            inputs = {text for number, text in texts if number == 1 and text}  # "": left out
            if not inputs and (4, "Constant") not in texts:
                raise ValueError("a node takes nothing")
            taken |= inputs
            known.update(text for number, text in texts if number == 2)
        if not taken <= known:
            raise ValueError("nothing makes what a node or the graph gives on")
        attributes = _find(data, graph, 1, 5)
        branches = any(number in (6, 11) for a in attributes for number, _ in _fields(data, *a))
        # The key of a tensor's external_data, wherever in the file the tensor stands.
        external = any(part.endswith((b"\0", b"\x08")) for part in data.split(b"location")[:-1])
    except (ValueError, LookupError) as error:
        raise ModelError(
            f"{name}: is no ONNX file, or a damaged one ({len(data)} bytes). Download it again."
        ) from error
    if external:
        raise ModelError(f"{name}: keeps its weights in other files. Save it as one file.")
    if branches:  # OpenCV 5 crashes on some
        raise ModelError(f"{name}: no NanoDet: it has branches. Give a network exported from one.")
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][1] not in (0, 3):
        raise ModelError(
            f"{name}: no NanoDet: its inputs are {shapes}, not one of (1, 3, height, width). "
            "Give a network exported from NanoDet."
        )
    height, width = shapes[0][2:]
    if max(width, height) > LARGEST_SIDE:
        raise ModelError(f"{name}: no NanoDet: its canvas is {width}x{height}.")
    return np.frombuffer(data, np.uint8), (width, height) if width and height else None


def _dnn_constants(prefix: str) -> dict[int, str]:
    """{value: name} of cv2.dnn's constants, for example {0: "CPU"} of DNN_TARGET_."""
    return {getattr(cv2.dnn, n): n[len(prefix) :] for n in dir(cv2.dnn) if n.startswith(prefix)}


def _one_line(error: Exception) -> str:
    return " ".join(str(getattr(error, "err", error)).split())


_LOG_LEVEL = threading.Lock()
_opencv: Any = cv2  # OpenCV 4's type hints know less than OpenCV 5's
_set_log_level = getattr(cv2, "setLogLevel", None) or _opencv.utils.logging.setLogLevel  # 4, 5


@contextlib.contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from printing what its exceptions tell as well."""
    with _LOG_LEVEL:  # it is the whole process's
        level = _set_log_level(0)
        try:
            yield
        finally:
            _set_log_level(level)


class OpenCVEngine:
    """A network run by cv2.dnn: blob in, arrays out.

    Attributes
    ----------
    description : str
        Which OpenCV, engine, backend and target really run.
    """

    def __init__(self, path: str, data: Bytes, backend_id: int, target_id: int) -> None:
        backends, targets = _dnn_constants("DNN_BACKEND_"), _dnn_constants("DNN_TARGET_")
        if backend_id == cv2.dnn.DNN_BACKEND_DEFAULT:  # an environment variable could change it
            backend_id = cv2.dnn.DNN_BACKEND_OPENCV
        if target_id not in cv2.dnn.getAvailableTargets(backend_id):
            pairs = [
                f"{backends[b]} ({b}) with {targets[t]} ({t})"
                for b in sorted(backends)
                for t in sorted(int(t) for t in cv2.dnn.getAvailableTargets(b))
            ]
            asked = f"{backends.get(backend_id, '?')} ({backend_id}) with "
            asked += f"{targets.get(target_id, '?')} ({target_id})"
            raise ValueError(
                f"this OpenCV {cv2.__version__} has no backend {asked}. It has: {', '.join(pairs)}."
            )
        try:
            if target_id != cv2.dnn.DNN_TARGET_CPU and hasattr(cv2.dnn, "ENGINE_CLASSIC"):
                # OpenCV 5's new engine ignores the target, and reading from memory takes it.
                self._net = _opencv.dnn.readNetFromONNX(path, _opencv.dnn.ENGINE_CLASSIC)
            else:
                self._net = cv2.dnn.readNetFromONNX(data)
        except cv2.error as error:
            raise ModelError(f"OpenCV can't read it: {_one_line(error)}") from error
        self._names = self._net.getUnconnectedOutLayersNames()
        self._outputs: Any = None
        # Only OpenCV 5 has two engines, and its classic one leaves the format unset.
        formats = getattr(self._net, "getModelFormat", int)
        if formats() == 0:
            self._net.setPreferableBackend(backend_id)
            self._net.setPreferableTarget(target_id)
            where = f"classic engine, backend {backends[backend_id]}, target {targets[target_id]}"
        else:
            where = "new engine, target CPU"
        self.description = f"OpenCV {cv2.__version__}, {where}"

    def forward(self, blob: Floats) -> Sequence[Floats]:
        """Run the network.

        Parameters
        ----------
        blob : ndarray of shape (1, 3, height, width), float32

        Returns
        -------
        list of ndarray
            Its outputs, in an order that never changes; good until the next call.
        """
        try:
            self._net.setInput(blob)
            # OpenCV 5 writes into the arrays of the last call.
            self._outputs = self._net.forward(self._names, self._outputs)
        except cv2.error as error:
            raise ModelError(f"OpenCV can't run it: {_one_line(error)}") from error
        return list(self._outputs)


class OnnxRuntimeEngine:
    """A network run by onnxruntime: blob in, arrays out.

    Attributes
    ----------
    description : str
        Which onnxruntime and execution providers really run.
    """

    def __init__(self, data: Bytes, provider: str | None = None) -> None:
        try:
            import onnxruntime  # type: ignore[import-untyped]
        except ImportError as error:
            raise ValueError(
                "engine onnxruntime is not installed. Run: pip install onnxruntime"
            ) from error
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
            self._session = onnxruntime.InferenceSession(
                data.tobytes(), options, providers=[provider or "CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no other base
            raise ModelError(f"onnxruntime can't read it: {_one_line(error)}") from error
        (self._input,) = self._session.get_inputs()
        self._dtype = np.float16 if self._input.type == "tensor(float16)" else np.float32
        providers = ", ".join(self._session.get_providers())
        self.description = f"onnxruntime {onnxruntime.__version__}, {providers}"

    def forward(self, blob: Floats) -> Sequence[Floats]:
        """Run the network; see `OpenCVEngine.forward`."""
        try:
            outputs = self._session.run(
                None, {self._input.name: blob.astype(self._dtype, copy=False)}
            )
        except Exception as error:
            raise ModelError(f"onnxruntime can't run it: {_one_line(error)}") from error
        return [output.astype(np.float32, copy=False) for output in outputs]


class NanoDet:
    """Any NanoDet network, ready to find objects in images of any size.

    The first five parameters are those of OpenCV Zoo's class of this name.
    What a network needs (input size, levels, classes, reg_max, centres,
    resize rule) is told from its file and from its outputs.

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
    input_size : int or tuple of int, optional
        Side of the square canvas, or (width, height), multiples of 32 from
        64 to 4096; for networks that accept any size. 416 unless the network says
        otherwise.
    rect : bool
        Pad only to the next multiple of 32, so that 16:9 at 416 runs as
        416x256. For networks that accept any size.
    augment : bool
        Look at each image several times, mirrored too and at several sizes
        where the network accepts any, and merge: slower, finds more.
    num_classes : int, optional
        Where the outputs leave a doubt; the error says so.
    keep_ratio : bool, optional
        Letterbox (True) or stretch (False). By family: NanoDet-Plus, with 4
        levels, was trained stretched, the others were not.
    centre_offset : float, optional
        First anchor's centre in strides. By family: 0 for NanoDet-Plus,
        0.5 for the others.
    mean, std : tuple of 3 floats
        Of blue, green, red, as in training. NanoDet-EfficientNet-Lite has
        others: 127 and 128 for each colour.
    engine : {"opencv", "onnxruntime"}
        What runs the network; onnxruntime is a package of its own.
    provider : str, optional
        onnxruntime's execution provider, "CPUExecutionProvider" if not given.

    Attributes
    ----------
    name : str
        "NanoDet".
    engine : str
        What really runs, for people to read.
    input_size : tuple of int
        (width, height) of the canvas; with `rect`, the largest one.
    head : Head
        Levels, classes and reg_max found.

    Raises
    ------
    ModelError
        If the file is no usable NanoDet network.
    ValueError
        If a parameter is out of range, the network has a size of its own,
        or the engine, backend, target or provider is not there.

    Notes
    -----
    Calls from several threads are safe and take turns; for speed give each
    thread an object of its own.
    """

    name = "NanoDet"

    def __init__(
        self,
        modelPath: Path,
        prob_threshold: float = 0.35,
        iou_threshold: float = 0.6,
        backend_id: int = 0,
        target_id: int = 0,
        *,
        input_size: int | Size | None = None,
        rect: bool = False,
        augment: bool = False,
        num_classes: int | None = None,
        keep_ratio: bool | None = None,
        centre_offset: float | None = None,
        mean: Sequence[float] = (103.53, 116.28, 123.675),
        std: Sequence[float] = (57.375, 57.12, 58.395),
        engine: str = "opencv",
        provider: str | None = None,
    ) -> None:
        for name, value in (("prob_threshold", prob_threshold), ("iou_threshold", iou_threshold)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be from 0 to 1, not {value}")
        if engine not in ("opencv", "onnxruntime"):
            raise ValueError(f'engine must be "opencv" or "onnxruntime", not {engine!r}')
        self.prob_threshold = prob_threshold
        self.iou_threshold = iou_threshold
        self.rect = rect
        self._path = os.fspath(modelPath)
        self._lock = threading.Lock()
        self._buffers = Buffers()
        self._letterbox: Letterbox | None = None
        self._engine: OpenCVEngine | OnnxRuntimeEngine
        values = np.arange(256, dtype=np.float32)
        self._tables = [
            (values - np.float32(m)) / np.float32(s) for m, s in zip(mean, std, strict=True)
        ]

        self._data, own_size = read_model(modelPath)
        self.input_size = self._choose_size(input_size, own_size)
        width, height = self.input_size
        sizes = [self.input_size]
        if augment and own_size is None:
            sizes += [(_round_up(width * x), _round_up(height * x)) for x in AUGMENT_SCALES]
        self._views = [(size, mirrored) for size in sizes for mirrored in sorted({False, augment})]
        # One look at the outputs tells their layout. Any picture does: here a ramp of grey,
        # a small one where the network allows.
        canvas = own_size or (128, 128)
        ramp = np.linspace(-2, 2, 3 * canvas[0] * canvas[1], dtype=np.float32)
        try:
            with _quiet_opencv():
                if engine == "opencv":
                    self.setBackendAndTarget(backend_id, target_id)
                else:
                    self._engine = OnnxRuntimeEngine(self._data, provider)
                outputs = self._forward(ramp.reshape(1, 3, canvas[1], canvas[0]))
            self.head = Head.find(outputs, canvas, num_classes)
        except ModelError as error:
            raise ModelError(f"{modelPath}: {error}") from error
        plus = len(self.head.strides) == 4
        self.keep_ratio = not plus if keep_ratio is None else keep_ratio
        self.centre_offset = (0.0 if plus else 0.5) if centre_offset is None else centre_offset

    def _choose_size(self, input_size: int | Size | None, own_size: Size | None) -> Size:
        """The canvas (width, height) to use, or an error that says what would do."""
        if isinstance(input_size, (int, np.integer)):
            input_size = int(input_size), int(input_size)
        size = tuple(input_size or own_size or (DEFAULT_SIZE, DEFAULT_SIZE))
        if own_size and (self.rect or size != own_size):
            asked = "rect" if self.rect else f"input_size {input_size}"
            raise ValueError(
                f"{asked} needs a network that accepts any size; "
                f"{self._path} runs at {own_size[0]}x{own_size[1]} only"
            )
        good = all(SMALLEST_SIDE <= n <= LARGEST_SIDE and n % SIZE_STEP == 0 for n in size)
        if not own_size and (len(size) != 2 or not good):
            raise ValueError(
                f"input_size must be a multiple of {SIZE_STEP} from {SMALLEST_SIDE} to "
                f"{LARGEST_SIDE}, or two of them as (width, height), not {input_size}"
            )
        return size[0], size[1]

    def setBackendAndTarget(self, backendId: int, targetId: int) -> None:
        """Let cv2.dnn run the network, on this backend and target.

        Parameters
        ----------
        backendId, targetId : int
            cv2.dnn's DNN_BACKEND_... and DNN_TARGET_...

        Raises
        ------
        ValueError
            If this OpenCV lacks the pair; the message names those it has.
        ModelError
            If OpenCV can't read the network.
        """
        with self._lock:
            self._engine = OpenCVEngine(self._path, self._data, backendId, targetId)

    @property
    def engine(self) -> str:
        """What really runs the network, for people to read."""
        return self._engine.description

    def infer(self, image: Bytes) -> Floats:
        """Find objects, in the rows that OpenCV Zoo's class returns.

        Parameters
        ----------
        image : ndarray of shape (H, W, 3), uint8
            BGR, as `cv2.imread` gives it.

        Returns
        -------
        ndarray of shape (N, 6), float32
            Left, top, right, bottom in pixels of the image, confidence, class.
        """
        found = self.detect(image)
        return np.column_stack((found.xyxy, found.confidence, found.class_id)).astype(np.float32)

    def detect(self, image: Bytes) -> Detections:
        """Find objects.

        Parameters
        ----------
        image : ndarray of shape (H, W, 3), uint8
            BGR, as `cv2.imread` gives it, from 1x1 up.

        Returns
        -------
        Detections
            Boxes in pixels of the image, most confident first.

        Raises
        ------
        ValueError
            If the image has another shape or dtype.
        """
        if not isinstance(image, np.ndarray):
            raise ValueError(f"image must be an array, not {type(image).__name__}")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                "image must be BGR of shape (height, width, 3) and dtype uint8, "
                f"not {image.shape} {image.dtype}"
            )
        with self._lock:
            views = [self._look(image, size, mirrored) for size, mirrored in self._views]
        xyxy, confidence, class_id = map(np.concatenate, zip(*views, strict=True))
        kept = nms(xyxy, confidence, class_id, self.iou_threshold)
        return Detections(xyxy[kept], confidence[kept], class_id[kept])

    def _look(self, image: Bytes, size: Size, mirrored: bool) -> tuple[Floats, Floats, Ints]:
        """Everything above the threshold in one view of an image, in the image's pixels."""
        letterbox = self._place(image, size)
        blob = self._fill(letterbox, np.fliplr(image) if mirrored else image)
        outputs = self._forward(blob)
        grids = [
            anchor_grid(letterbox.canvas, strides, self.centre_offset)
            for _, _, strides in self.head.groups
        ]
        xyxy, confidence, class_id = decode(
            outputs, self.head, grids, self.prob_threshold, self._buffers
        )
        xyxy = letterbox.to_image(xyxy)
        if mirrored:
            xyxy[:, [2, 0]] = image.shape[1] - xyxy[:, [0, 2]]
        inside = (xyxy[:, 2:] > xyxy[:, :2]).all(axis=1)  # others lie beside the image
        return xyxy[inside], confidence[inside], class_id[inside]

    def _place(self, image: Bytes, size: Size) -> Letterbox:
        """The letterbox of an image on a canvas of this size, or of less with `rect`."""
        image_size = image.shape[1], image.shape[0]
        if self.rect:
            whole = Letterbox.fit(image_size, size)
            size = _round_up(whole.width), _round_up(whole.height)
        return Letterbox.fit(image_size, size, self.keep_ratio)

    def _fill(self, letterbox: Letterbox, image: Bytes) -> Floats:
        """The image as the network wants it: (1, 3, H, W) float32, normalised."""
        width, height = letterbox.canvas
        canvas = self._buffers.get("canvas", (height, width, 3))
        if letterbox != self._letterbox:
            canvas.fill(0)  # what lay beside the last image must go
            self._letterbox = letterbox
        letterbox.draw(image, canvas, self._buffers)
        planes = self._buffers.get("planes", (3, height, width))
        blob = self._buffers.get("blob", (1, 3, height, width), np.float32)
        cv2.split(canvas, list(planes))
        for plane, table, channel in zip(planes, self._tables, blob[0], strict=True):
            cv2.LUT(plane, table, dst=channel)  # subtracts and divides 256 values, not all
        return blob

    def _forward(self, blob: Floats) -> list[Floats]:
        """The network's outputs, each as (rows, columns)."""
        outputs = self._engine.forward(blob)
        shapes = [output.shape for output in outputs]
        if not all(len(shape) in (2, 3) and shape[:-2] in ((), (1,)) for shape in shapes):
            raise ModelError(f"no NanoDet: its outputs have shapes {shapes}")
        return [output.reshape(output.shape[-2:]) for output in outputs]
