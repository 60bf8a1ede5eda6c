"""Draw detections so that they read well at 200 pixels and at 6000.

from media.drawing import draw
cv2.imwrite("result.jpg", draw(image, detector.detect(image), COCO_CLASSES))
"""

import itertools
from dataclasses import replace

import cv2
import numpy as np

FONT = cv2.FONT_HERSHEY_SIMPLEX
FONT_HEIGHT = 21  # pixels of a capital at font scale 1
SMALLEST = 0.36  # font scale; below it the letters run together
SMALLER = 0.75  # of a label's size, where it has no place at its own
LARGEST_PART = 0.12  # of a picture that one label may hide
PERSON = "person"
SAME = 0.5  # IoU from which on boxes of two frames show one object
# RGB by class_id. The thirty classes that COCO shows most differ by at least 12 (CIEDE2000) from
# each other, and by 6 for people who confuse red and green; each further one is the farthest from
# all before it.
COLOURS = bytes.fromhex(
    "ff2d2d ffe169 00e1ff 96874b 3cff78 4b4ba5 c3785a 5ad21e ffa5a5 783c00 "
    "d2005a 004bff 960078 008700 2d69a5 d2000f ff0f5a a51e2d 875aff ffa5e1 "
    "d287ff 3c784b 1ea5a5 0087d2 008778 00ffd2 69a5ff d2780f 8787c3 96ff1e "
    "ff78a5 ffb496 ff875a a55a4b 4ba53c 961e00 ffb400 c34b00 69874b b478b4 "
    "c35a78 69a578 965a87 a5b469 96693c ffc387 693c78 3cd287 e17878 c3b4ff "
    "1e5a2d c3ffb4 c30ff0 ff0fa5 00a5d2 ff00ff 0000ff 4b78ff c300a5 00ffff "
    "960f4b a57800 789600 c3965a 00b496 872dc3 787800 695a00 ff963c d2e187 "
    "f05a0f 4b6900 7869a5 e1ff00 c3a500 69d2c3 5ac3ff b4c300 96e1b4 ff69d2 "
)


def class_colour(class_id):
    """The BGR colour of a class, as (int, int, int); the same in every picture."""
    red, green, blue = COLOURS[3 * class_id % len(COLOURS) :][:3]
    return blue, green, red


def draw(image, detections, labels, line_width=None, hide_labels=False, memory=None):
    """Draw boxes and labels on a copy of an image.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
        BGR.
    detections : Detections
        Boxes in pixels of the image, most confident first.
    labels : sequence of str
        Name of each class_id; a class beyond its end is drawn by its number.
    line_width : int, optional
        In pixels; grows with the picture if not given.
    hide_labels : bool
        Draw the boxes only.
    memory : list, optional
        Of a video, the same list for each of its frames, empty at first: labels then stay at the
        edge of their box that they had in the frame before, while there is room.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        Text grows with the picture. A label stays at an edge of its box, covers no other and no
        face, and is smaller, without its confidence, or left out where it has no room.

    Raises
    ------
    ValueError
        If the image is something else, such as grey or of floats.
    """
    if np.ndim(image) != 3 or np.shape(image)[2] != 3 or image.dtype != np.uint8:
        shape, dtype = np.shape(image), getattr(image, "dtype", type(image).__name__)
        raise ValueError(
            f"image must be BGR of shape (height, width, 3) and dtype uint8, not {shape} {dtype}"
        )
    canvas = np.array(image, order="C")  # a plain array, also of a cv2.Mat
    height, width = image.shape[:2]
    line = line_width or max(1, round(min(height, width) / 280))
    corners = np.rint(detections.xyxy).astype(int)
    corners = np.clip(corners, 0, (width - 1, height - 1) * 2)
    class_ids = detections.class_id.tolist()
    # The most confident are drawn last.
    for (left, top, right, bottom), class_id in reversed(
        list(zip(corners.tolist(), class_ids, strict=True))
    ):
        cv2.rectangle(canvas, (left, top), (right, bottom), class_colour(class_id), line)
    if hide_labels:
        return canvas
    names = [label_of(class_id, labels) for class_id in class_ids]
    texts = [(f"{n} {c:.2f}", n) for n, c in zip(names, detections.confidence, strict=True)]
    before = [_edge_before(memory, *each) for each in zip(names, corners, strict=True)]
    places = _label_places(texts, corners, before, line, (width, height))
    for number, text, place, _ in places:
        _draw_label(canvas, text, place, class_colour(class_ids[number]))
    if memory is not None:
        memory[:] = [(names[number], corners[number], edge) for number, _, _, edge in places]
    return canvas


def as_displayed(image, detections, pixel_aspect):
    """An image, never made smaller, and the boxes in it, in the shape in which it is displayed.

    `pixel_aspect` is the width of one of its pixels over the height.
    """
    across, down = max(1, pixel_aspect), max(1, 1 / pixel_aspect)
    boxes = detections.xyxy * np.float32((across, down, across, down))
    return cv2.resize(image, None, fx=across, fy=down), replace(detections, xyxy=boxes)


def label_scale(height, width):
    """Font scale for a picture of this size."""
    return max(SMALLEST, min(height, width) * 0.021 / FONT_HEIGHT)


def label_of(class_id, labels):
    """The name of a class, or its number where the labels do not reach it."""
    return labels[class_id] if class_id < len(labels) else f"class {class_id}"


def _edge_before(memory, name, box):
    """The edge of an object's label in the frame before; None if it had none."""
    for name_before, box_before, edge in memory or ():
        both = _covered(box, box_before[None])[0]
        area, area_before = ((each[2:] - each[:2]).prod() for each in (box, box_before))
        if name == name_before and both > SAME * (area + area_before - both):
            return edge
    return None


def _label_places(texts, corners, before, line, size):
    """(object, text, (left, top, right, bottom, font scale), edge) of each label that has room.

    `texts` are those to try for each object, `before` the edge to try first. Labels are placed from
    the nearest object to the farthest, taking the lowest box for the nearest: that order changes
    less from frame to frame than confidence.
    """
    scale = label_scale(*size[::-1])
    heads = _heads([text.startswith(PERSON) for *_, text in texts], corners)
    places, taken = [], np.empty((0, 4))
    new = [edge is None for edge in before]
    for number in np.lexsort((corners[:, 0], -corners[:, 3], new)).tolist():
        for text, part in itertools.product(texts[number], (1, SMALLER)):
            fit = _fit_text(text, max(scale * part, SMALLEST), size[0])
            edges = _edges(fit, corners[number], before[number], line, size)
            free = (e for e in edges if _is_free(np.array(edges[e]), taken, heads))
            edge = next(free, None)
            if edge is not None:
                places.append((number, text, (*edges[edge], fit[0]), edge))
                taken = np.vstack((taken, edges[edge]))
                break
    return places


def _edges(fit, box, first, line, size):
    """{edge: (left, top, right, bottom)} of where a label could be, the best first."""
    (scale, text_width, text_height), (width, height) = fit, size
    if scale < SMALLEST or text_width * text_height > LARGEST_PART * width * height:
        return {}
    (left, top, right, bottom), edge = box.tolist(), line // 2
    # Above the box, below it, inside at the bottom and at the top: so faces stay in sight.
    rows = top - edge - text_height, bottom + edge + 1, bottom - edge - text_height, top + edge
    columns = left - edge, right + edge - text_width
    places = {}
    for number, (y, x) in enumerate(itertools.product(rows, columns)):
        x = min(max(x, 0), width - text_width)
        if 0 <= y <= height - text_height:
            places[number] = x, y, x + text_width, y + text_height
    return {first: places[first], **places} if first in places else places


def _is_free(place, taken, heads):
    """Whether a label here would cover no other, and no face."""
    area = (heads[:, 2:] - heads[:, :2]).prod(axis=1)
    return not _covered(place, taken).any() and not (_covered(place, heads) > area / 5).any()


def _heads(people, corners):
    """Where the faces are, roughly: (N, 4); `people` tells which corners are a person's."""
    left, top, right, bottom = corners[np.array(people, bool)].reshape(-1, 4).T
    width = right - left
    down = np.minimum((bottom - top) * 0.25, width * 0.8)
    return np.stack((left + width * 0.25, top, right - width * 0.25, top + down), axis=1)


def _fit_text(text, scale, width):
    """Largest font scale up to `scale` at which a label fits, and the label's size in pixels."""
    (text_width, _), _ = cv2.getTextSize(text, FONT, scale, _stroke(scale))
    padding = round(FONT_HEIGHT * scale * 0.7)
    if text_width + padding > width:
        scale *= width / (text_width + padding)
        (text_width, _), _ = cv2.getTextSize(text, FONT, scale, _stroke(scale))
        padding = width - text_width
    return scale, text_width + padding, round(FONT_HEIGHT * scale * 1.8)


def _stroke(scale):
    return max(1, round(scale * 1.6))


def _covered(place, others):
    """Pixels of each of the other boxes, (N, 4), that lie in this one."""
    sides = np.minimum(place[2:], others[:, 2:]) - np.maximum(place[:2], others[:, :2])
    return np.prod(np.clip(sides, 0, None), axis=1)


def _draw_label(canvas, text, place, colour):
    """Black or white text on a filled ground."""
    left, top, right, bottom, scale = place
    cv2.rectangle(canvas, (left, top), (right - 1, bottom - 1), colour, cv2.FILLED)
    blue, green, red = colour
    light = 0.072 * (blue / 255) ** 2.2 + 0.715 * (green / 255) ** 2.2 + 0.213 * (red / 255) ** 2.2
    ink = (0, 0, 0) if light > 0.18 else (255, 255, 255)  # whichever has more contrast
    (text_width, text_height), _ = cv2.getTextSize(text, FONT, scale, _stroke(scale))
    origin = (left + (right - left - text_width) // 2, (top + bottom + text_height) // 2)
    cv2.putText(canvas, text, origin, FONT, scale, ink, _stroke(scale), cv2.LINE_AA)


def draw_status(image, *lines):
    """A copy of an image with lines of ASCII text in its upper left corner."""
    canvas = np.array(image, order="C")
    height, width = image.shape[:2]
    top = 0
    for text in lines:
        scale, text_width, text_height = _fit_text(text, label_scale(height, width), width)
        bottom = top + text_height
        _draw_label(canvas, text, (0, top, text_width, bottom, scale), (40, 40, 40))
        top = bottom
    return canvas
