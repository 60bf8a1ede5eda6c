"""Letterbox: an image's way onto the canvas, and its boxes' way back."""

import cv2
import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st

from nanodet import Letterbox

SIDES = st.integers(1, 6000)
IMAGES = st.tuples(SIDES, SIDES) | st.sampled_from(
    [(1, 1), (1, 900), (900, 1), (5000, 3), (3, 5000), (416, 416), (6000, 1), (639, 427), (833, 3)]
)
CANVASES = st.tuples(*[st.integers(2, 40).map(lambda steps: 32 * steps)] * 2)


@given(IMAGES, CANVASES)
def test_image_keeps_its_shape_to_a_pixel_centred_and_as_large_as_fits(image, canvas):
    box = Letterbox.fit(image, canvas)
    scale = min(canvas[0] / image[0], canvas[1] / image[1])
    for side, given_side, whole, before in (
        (box.width, image[0], canvas[0], box.left),
        (box.height, image[1], canvas[1], box.top),
    ):
        assert 1 <= side <= whole and abs(side - max(1, given_side * scale)) <= 0.5 + 1e-9
        after = whole - before - side
        assert before >= 0 and after >= 0 and abs(after - before) <= 1
    assert box.width == canvas[0] or box.height == canvas[1]


CORNERS = st.just([0, 1, 0, 1]) | st.lists(st.floats(0, 1), min_size=4, max_size=4)


@given(IMAGES, CANVASES, st.booleans(), st.booleans(), CORNERS)
def test_box_returns_to_its_place_after_letterbox(image, canvas, keep_ratio, mirrored, fractions):
    box = Letterbox.fit(image, canvas, keep_ratio, mirrored)
    x1, x2 = (f * image[0] for f in sorted(fractions[:2]))
    y1, y2 = (f * image[1] for f in sorted(fractions[2:]))
    to_x, to_y = box.width / image[0], box.height / image[1]
    seen = (image[0] - x2, image[0] - x1) if mirrored else (x1, x2)
    there = [[box.left + x * to_x, box.top + y * to_y] for x, y in zip(seen, (y1, y2), strict=True)]
    there = np.array(there, np.float32).reshape(1, 4)
    # A hundredth of a pixel of the coarser of image and canvas: float32 holds no more of both.
    tolerance = 0.01 * np.maximum(1, (1 / to_x, 1 / to_y, 1 / to_x, 1 / to_y))
    back = box.to_image(there)
    assert back.dtype == np.float32
    assert (np.abs(back - [[x1, y1, x2, y2]]) < tolerance).all()


@given(IMAGES, CANVASES, st.booleans(), st.booleans(), st.integers(0, 2**32 - 1))
def test_boxes_are_clipped_to_the_image(image, canvas, keep_ratio, mirrored, seed):
    boxes = np.random.default_rng(seed).normal(0, 2000, (20, 4)).astype(np.float32)
    back = Letterbox.fit(image, canvas, keep_ratio, mirrored).to_image(boxes)
    assert (back >= 0).all()
    assert (back[:, 0::2] <= image[0]).all() and (back[:, 1::2] <= image[1]).all()


@given(
    st.tuples(st.integers(1, 1500), st.integers(1, 1500))
    | st.sampled_from([(1, 1), (1, 900), (5000, 3), (3, 5000), (96, 96), (97, 95), (577, 577)]),
    st.sampled_from([(64, 64), (96, 96), (128, 64), (64, 160)]),
    st.booleans(),
    st.tuples(*[st.integers(4, 255)] * 2) | st.just((200, 200)),
)
def test_drawn_image_lies_where_the_letterbox_says(image, canvas, keep_ratio, colours):
    box = Letterbox.fit(image, canvas, keep_ratio)
    low, high = sorted(colours)
    random = np.random.default_rng(0)
    drawn = np.full((*canvas[::-1], 3), 3, np.uint8)
    box.draw(random.integers(low, high + 1, (*image[::-1], 3), np.uint8), drawn)
    inside = drawn[box.top : box.top + box.height, box.left : box.left + box.width]
    assert low <= inside.min() and inside.max() <= high
    assert (drawn == 3).sum() == 3 * (canvas[0] * canvas[1] - box.width * box.height)


@pytest.mark.parametrize("image", [(640, 480), (100, 150), (1920, 1080), (31, 7)])
@pytest.mark.parametrize(("keep_ratio", "mirrored"), [(True, False), (True, True), (False, False)])
def test_drawn_point_returns_to_its_place_in_the_image(image, keep_ratio, mirrored):
    picture = np.zeros((image[1], image[0], 3), np.uint8)
    size = max(1, image[0] // 20), max(1, image[1] // 20)
    x, y = image[0] * 5 // 8, image[1] // 4
    picture[y : y + size[1], x : x + size[0]] = 255
    before, canvas = picture.copy(), np.zeros((416, 416, 3), np.uint8)
    box = Letterbox.fit(image, (416, 416), keep_ratio, mirrored)
    box.draw(picture, canvas)
    np.testing.assert_array_equal(picture, before)
    weight = canvas[:, :, 0].astype(float)
    rows, columns = np.mgrid[:416, :416] + 0.5  # a pixel's middle
    middle = [(columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()]
    back = box.to_image(np.array([middle * 2], np.float32))[0, :2]
    expected = x + size[0] / 2, y + size[1] / 2
    pixel = max(1, image[0] / box.width), max(1, image[1] / box.height)  # of image or canvas
    assert (np.abs(back - expected) < np.multiply(pixel, 0.3)).all()


# Pairs of stripes that fit into one pixel of the canvas.
@pytest.mark.parametrize(("stripe", "factor"), [(1, 2.7), (1, 3.3), (2, 5.3)])
@pytest.mark.parametrize("upright", [True, False])
def test_fine_stripes_shrink_to_grey_and_not_to_coarse_stripes(stripe, factor, upright):
    side = round(128 * factor)
    pattern = np.where(np.arange(side) // stripe % 2, 255, 0).astype(np.uint8)
    image = cv2.cvtColor(np.tile(pattern, (side, 1)), cv2.COLOR_GRAY2BGR)
    image = image if upright else cv2.transpose(image)
    drawn = np.zeros((128, 128, 3), np.uint8)
    Letterbox.fit((side, side), (128, 128)).draw(image, drawn)
    # Of a contrast of 128, averages by area leave 55 at most where the stripes are finer than
    # the canvas's pixels; picking pixels leaves 64 to 128, as coarse stripes that are not there.
    by_area = cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA)
    assert drawn.std() <= max(by_area.std() + 30, 55)
    assert abs(drawn.mean() - by_area.mean()) < 4


@pytest.mark.parametrize(
    ("side", "halvings", "doubled"),
    [(40, 0, False), (64, 0, False), (65, 0, True), (190, 0, True), (192, 1, True),
     (320, 2, False), (324, 2, True), (256, 2, False), (384, 2, True), (512, 3, False)],
)  # fmt: skip
def test_image_is_halved_to_less_than_twice_the_size_and_averaged(side, halvings, doubled):
    for height, width in ((side, side), (side, 64), (64, side))[: 1 if halvings else 3]:
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        drawn = np.zeros((64, 64, 3), np.uint8)
        Letterbox.fit((width, height), (64, 64), keep_ratio=False).draw(image, drawn)
        for _ in range(halvings):
            half = len(image) // 2
            image = image.reshape(half, 2, half, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
        expected = reference.resized(image, 64, 64) if doubled else cv2.resize(image, (64, 64))
        assert np.abs(drawn.astype(int) - expected).max() <= 2  # roundings of halves


@pytest.mark.parametrize("size", [(2048, 40), (40, 2048)])
def test_image_shrunk_in_one_direction_only_is_averaged_in_that_one(size):
    image = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    drawn = np.zeros((64, 64, 3), np.uint8)
    Letterbox.fit(size, (64, 64), keep_ratio=False).draw(image, drawn)
    averaged = cv2.resize(image, tuple(np.minimum(size, 64)), interpolation=cv2.INTER_AREA)
    averaged = cv2.resize(averaged, (64, 64), interpolation=cv2.INTER_LINEAR)
    assert np.abs(drawn.astype(int) - averaged).mean() < 4
    assert np.abs(cv2.resize(image, (64, 64)).astype(int) - averaged).mean() > 30  # it can tell
