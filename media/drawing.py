"""Draw detections so that they read well at 200 pixels and at 6000.

from media.drawing import draw
cv2.imwrite("result.jpg", draw(image, detector.detect(image), COCO_CLASSES))
"""

from dataclasses import replace

import cv2
import numpy as np

FONT = cv2.FONT_HERSHEY_SIMPLEX
FONT_HEIGHT = 21  # pixels of a capital at font scale 1
SMALLEST = 0.36  # font scale; below it the letters run together
GOLDEN_RATIO = 0.618034  # steps round the colour circle that keep neighbouring classes apart


def class_colour(class_id):
    """The BGR colour of a class, as (int, int, int); the same in every picture."""
    hue = round(class_id * GOLDEN_RATIO % 1 * 179)
    value = 255 if class_id % 2 == 0 else 215
    pixel = cv2.cvtColor(np.uint8([[[hue, 210, value]]]), cv2.COLOR_HSV2BGR)
    return tuple(int(channel) for channel in pixel[0, 0])


def draw(image, detections, labels):
    """Draw boxes and labels on a copy of an image.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
        BGR.
    detections : Detections
        Boxes in pixels of the image, most confident first.
    labels : sequence of str
        Name of each class_id; a class beyond its end is drawn by its number.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        Line width and text grow with the picture. No label leaves it, and a
        label avoids those of more confident objects.
    """
    canvas = np.array(image, order="C")  # a plain array, also of a cv2.Mat
    height, width = image.shape[:2]
    line = max(1, round(min(height, width) / 280))
    scale = label_scale(height, width)
    corners = np.rint(detections.xyxy).astype(int)
    corners = np.clip(corners, 0, (width - 1, height - 1) * 2)
    texts = [
        f"{label_of(class_id, labels)} {confidence:.2f}" for _, confidence, class_id in detections
    ]
    # The most confident come first, choose their label's place first, and are drawn last.
    places = _label_places(texts, corners, scale, line, (width, height))
    objects = list(zip(corners.tolist(), detections.class_id.tolist(), texts, places, strict=True))
    for (left, top, right, bottom), class_id, _, _ in reversed(objects):
        cv2.rectangle(canvas, (left, top), (right, bottom), class_colour(class_id), line)
    for _, class_id, text, place in reversed(objects):
        if place is not None:
            _draw_label(canvas, text, place, class_colour(class_id))
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


def _label_places(texts, corners, scale, line, size):
    """(left, top, right, bottom, font scale) of each label, None where none fits the picture."""
    width, height = size
    places, taken = [], np.empty((0, 4))
    for text, (left, top, right, bottom) in zip(texts, corners.tolist(), strict=True):
        fit, text_width, text_height = _fit_text(text, scale, width)
        if fit < SMALLEST or text_height > height:
            places.append(None)
            continue
        outside, inside = text_height + line // 2, line // 2
        # Above the box, else inside from the top down, else below.
        rows = (top - outside, *range(top + inside, bottom + text_height, text_height))
        columns = (left - line // 2, right + line // 2 - text_width)
        options = np.array([(x, y) for y in rows for x in columns])
        options = np.clip(options, 0, (width - text_width, height - text_height))
        boxes = np.hstack((options, options + (text_width, text_height)))
        covered = _covered(boxes, taken)
        if covered.min() > text_width * text_height / 2:
            places.append(None)  # half a label tells nothing and hides others
            continue
        best = boxes[np.argmin(covered)]
        taken = np.vstack((taken, best))
        places.append((*best.tolist(), fit))
    return places


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


def _covered(boxes, taken):
    """Pixels of each box that earlier labels cover; (M, 4) and (N, 4) give (M,)."""
    corner = np.maximum(boxes[:, None, :2], taken[None, :, :2])
    sides = np.minimum(boxes[:, None, 2:], taken[None, :, 2:]) - corner  # (M, N, 2)
    return np.prod(np.clip(sides, 0, None), axis=2).sum(axis=1)


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


def draw_status(image, text):
    """A copy of an image with a line of ASCII text in its upper left corner."""
    canvas = np.array(image, order="C")
    height, width = image.shape[:2]
    scale, text_width, text_height = _fit_text(text, label_scale(height, width), width)
    _draw_label(canvas, text, (0, 0, text_width, text_height, scale), (40, 40, 40))
    return canvas
