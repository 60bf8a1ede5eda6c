"""The other side of the tests' numeric claims: plain, slow, in Python's own float64."""

import math

import cv2
import numpy as np

MEAN = np.array((103.53, 116.28, 123.675))  # blue, green, red
STD = np.array((57.375, 57.12, 58.395))


def strides_of(levels):
    """Strides of the family with this many levels."""
    return (8, 16, 32, 64)[:levels]


def centre_offset_of(levels):
    """Place of the first anchor's centre, in strides: NanoDet-Plus, with 4 levels, has 0."""
    return 0.0 if levels == 4 else 0.5


def centres(canvas, stride, offset):
    """Centres of one level as (x, y), row by row; canvas is (width, height)."""
    columns, rows = (math.ceil(side / stride) for side in canvas)
    return [
        ((x + offset) * stride, (y + offset) * stride) for y in range(rows) for x in range(columns)
    ]


def expectation(logits):
    """Mean of a distribution given by its logits, in bins."""
    top = max(logits)
    weights = [math.exp(logit - top) for logit in logits]
    return sum(i * weight for i, weight in enumerate(weights)) / sum(weights)


def decode(levels, canvas, offset, threshold):
    """Boxes of some levels, each (confidences (N, C), logits (N, 4 K), stride).

    Returns a list of (x1, y1, x2, y2, confidence, class_id) on the canvas, most confident
    first, of equals the one that comes first.
    """
    boxes = []
    for confidences, logits, stride in levels:
        bins = logits.shape[1] // 4
        rows = zip(
            confidences.tolist(), logits.tolist(), centres(canvas, stride, offset), strict=True
        )
        for confidence, row, (x, y) in rows:
            for class_id, value in enumerate(confidence):
                if value > threshold:
                    left, top, right, bottom = (
                        expectation(row[side * bins : (side + 1) * bins]) * stride
                        for side in range(4)
                    )
                    boxes.append((x - left, y - top, x + right, y + bottom, value, class_id))
    return sorted(boxes, key=lambda box: -box[4])


def iou(a, b):
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    inside = max(width, 0) * max(height, 0)
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return inside / (area_a + area_b - inside) if inside else 0.0


def nms(boxes, threshold):
    """Indices of the boxes kept, given most confident first: class against the same class."""
    kept = []
    for i, box in enumerate(boxes):
        if all(boxes[j][5] != box[5] or iou(boxes[j], box) <= threshold for j in kept):
            kept.append(i)
    return kept


def resized(image, width, height):
    """What the class documents: bilinear, and to twice the size first where an image shrinks."""
    if image.shape[1] <= width and image.shape[0] <= height:
        return cv2.resize(image, (width, height))
    double = cv2.resize(image, (2 * width, 2 * height)).reshape(height, 2, width, 2, 3)
    return (double.sum(axis=(1, 3), dtype=int) + 2) // 4


def blob_of(image, canvas, keep_ratio):
    """The network's input, and the rectangle (left, top, width, height) that holds the image."""
    width, height = canvas
    if keep_ratio:
        scale = min(canvas[0] / image.shape[1], canvas[1] / image.shape[0])
        width, height = round(image.shape[1] * scale), round(image.shape[0] * scale)
    left, top = (canvas[0] - width) // 2, (canvas[1] - height) // 2
    picture = np.zeros((canvas[1], canvas[0], 3))
    picture[top : top + height, left : left + width] = resized(image, width, height)
    blob = ((picture - MEAN) / STD).transpose(2, 0, 1)[None]
    return blob.astype(np.float32), (left, top, width, height)


def levels_of(arrays, canvas, classes=80):
    """Outputs of a real network as (confidences, logits, stride), told apart by their widths."""
    arrays = [array.reshape(array.shape[-2:]) for array in arrays]
    if len(arrays) == 1:  # NanoDet-Plus: one array, 4 levels below each other
        counts = [len(centres(canvas, stride, 0)) for stride in strides_of(4)]
        parts = np.split(arrays[0], np.cumsum(counts)[:-1])
        pairs = [(part[:, :classes], part[:, classes:]) for part in parts]
    else:
        arrays.sort(key=len, reverse=True)
        pairs = [
            sorted(two, key=lambda array: array.shape[1] != classes)
            for two in zip(arrays[::2], arrays[1::2], strict=True)
        ]
    return [(*pair, stride) for pair, stride in zip(pairs, strides_of(len(pairs)), strict=True)]


def detect(session, image, canvas, threshold, iou_threshold=0.6):
    """What a network finds, by only onnxruntime and this file: rows as of `decode`."""
    plus = len(session.get_outputs()) == 1
    blob, (left, top, width, height) = blob_of(image, canvas, keep_ratio=not plus)
    arrays = session.run(None, {session.get_inputs()[0].name: blob})
    levels = levels_of(arrays, canvas)
    boxes = []
    for x1, y1, x2, y2, *rest in decode(levels, canvas, centre_offset_of(len(levels)), threshold):
        x1, x2 = (
            min(max((x - left) * image.shape[1] / width, 0), image.shape[1]) for x in (x1, x2)
        )
        y1, y2 = (
            min(max((y - top) * image.shape[0] / height, 0), image.shape[0]) for y in (y1, y2)
        )
        boxes.append((x1, y1, x2, y2, *rest))
    return [boxes[i] for i in nms(boxes, iou_threshold)]


def rows_of(detections):
    """Detections as a list of (x1, y1, x2, y2, confidence, class_id)."""
    return [(*box.tolist(), confidence, class_id) for box, confidence, class_id in detections]


def assert_equal(found, expected):
    """Two Detections, equal to the last bit."""
    for name in ("xyxy", "confidence", "class_id"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def assert_same_objects(found, expected, pixels, confidence, above=0.0):
    """Each object of one list that is surely above the threshold has its like in the other."""
    for ours, theirs in ((found, expected), (expected, found)):
        theirs = list(theirs)
        for box in (box for box in ours if box[4] > above + confidence):
            for other in theirs:
                if (
                    box[5] == other[5]
                    and abs(box[4] - other[4]) <= confidence
                    and max(abs(a - b) for a, b in zip(box[:4], other[:4], strict=True)) <= pixels
                ):
                    theirs.remove(other)
                    break
            else:
                raise AssertionError(f"{box} has no like among {theirs}")
