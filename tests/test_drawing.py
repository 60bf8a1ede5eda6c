"""Boxes and labels on a picture: legible at any size, and nothing else is touched."""

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from media.drawing import class_colour, draw, draw_status, label_of
from nanodet import COCO_CLASSES, Detections

GREY = 127
BLACK, WHITE = (0, 0, 0), (255, 255, 255)
SIZES = [(1, 1), (2, 1), (20, 20), (64, 48), (100, 200), (37, 900), (900, 37), (5000, 3)]
SIZES += [(200, 150), (640, 480), (3000, 2000)]
BORDERS = st.floats(-0.1, 1.1)  # of the picture's side
BLACK_INK = COCO_CLASSES.index("car")  # this class's label is written in black


def found(*rows):
    """Detections of rows (x1, y1, x2, y2, confidence, class_id)."""
    rows = np.array(rows, float).reshape(-1, 6)
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(int))


def plain(width, height):
    return np.full((height, width, 3), GREY, np.uint8)


def whole(width, height, class_id=BLACK_INK):
    """One object in the middle of a picture."""
    return found((width * 0.3, height * 0.3, width * 0.7, height * 0.7, 0.5, class_id))


def colour_of(picture, colour):
    """Where a picture has exactly this colour."""
    return (picture == np.uint8(colour)).all(axis=2)


def ink_of(picture, ink):
    """Where a picture that was grey before has more of black or white ink than of the ground."""
    return picture.max(axis=2) < 100 if ink == BLACK else picture.min(axis=2) > 155


def bounds(mask):
    """(left, top, right, bottom) of what is set."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def ratio(one, other):
    """Contrast of two BGR colours, 1 to 21, as WCAG 2 defines it."""

    def luminance(colour):
        channels = np.array(colour) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return linear @ (0.0722, 0.7152, 0.2126)

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width, height", SIZES)
def test_picture_of_any_size_can_be_drawn_on_and_is_not_changed(width, height):
    image = plain(width, height)
    objects = found((0, 0, width, height, 0.9, 0), (width / 2, height / 2, width, height, 0.5, 79))
    drawn = draw(image, objects, COCO_CLASSES)
    assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
    assert (drawn != GREY).any()
    assert (image == GREY).all()


def test_nothing_found_leaves_the_picture_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    drawn = draw(image, found(), COCO_CLASSES)
    np.testing.assert_array_equal(drawn, image)
    assert not np.shares_memory(drawn, image)


@pytest.mark.parametrize(
    "view",
    [
        np.asfortranarray,
        cv2.Mat,
        lambda a: a[::-1],
        lambda a: a[:, ::2],
        lambda a: np.broadcast_to(a[:1, :1], a.shape),
    ],
    ids=["Fortran order", "cv2.Mat", "negative strides", "every other", "read-only"],
)
def test_picture_may_lie_in_memory_in_any_way(view):
    image = view(plain(200, 100))
    copy = np.array(image)
    drawn, expected = (draw(a, whole(50, 50), COCO_CLASSES) for a in (image, copy))
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(draw_status(image, "5 FPS"), draw_status(copy, "5 FPS"))


def test_box_is_drawn_on_its_corners_and_its_inside_is_kept():
    drawn = draw(plain(640, 480), found((100, 200, 500, 400, 0.5, BLACK_INK)), COCO_CLASSES)
    colour = colour_of(drawn, class_colour(BLACK_INK))
    for side in (colour[200:401, 100], colour[200:401, 500], colour[400, 100:501]):
        assert side.all()
    assert (drawn[204:397, 104:497] == GREY).all()


def test_most_confident_object_is_drawn_last():
    same = (100, 100, 300, 300)
    drawn = draw(plain(400, 400), found((*same, 0.9, 3), (*same, 0.5, 4)), COCO_CLASSES)
    assert colour_of(drawn, class_colour(3))[300, 110:290].all()
    assert not colour_of(drawn, class_colour(4))[300, 110:290].any()


@pytest.mark.parametrize(
    "size, line_widths, ink_heights",
    [
        ((200, 200), range(1, 2), range(7, 20)),  # never too small to read
        ((768, 576), range(2, 5), range(10, 21)),
        ((3000, 2000), range(5, 14), range(37, 66)),
    ],
)
def test_line_and_text_grow_with_the_picture(size, line_widths, ink_heights):
    width, height = size
    drawn = draw(plain(*size), whole(*size), COCO_CLASSES)
    line = colour_of(drawn, class_colour(BLACK_INK))[height // 2, : width // 2]
    _, top, _, bottom = bounds(ink_of(drawn, BLACK))
    assert line.sum() in line_widths
    assert bottom - top in ink_heights


@given(st.sampled_from(SIZES[2:-1]), BORDERS, BORDERS, BORDERS, BORDERS)
@example((640, 480), 0, 0, 1, 1)
def test_label_is_whole_wherever_the_box_is(size, left, top, right, bottom):
    width, height = size
    (left, right), (top, bottom) = sorted((left, right)), sorted((top, bottom))
    box = (left * width, top * height, right * width, bottom * height)
    drawn = draw(plain(width, height), found((*box, 0.5, BLACK_INK)), COCO_CLASSES)
    middle = draw(plain(width, height), whole(width, height), COCO_CLASSES)
    ink = ink_of(drawn, BLACK)
    assert ink.sum() == ink_of(middle, BLACK).sum()
    if ink.any():  # and its ground reaches round it
        left, top, right, bottom = bounds(ink)
        assert 0 < left < right < width
        assert 0 < top < bottom < height


@pytest.mark.parametrize("size", [(640, 480), (200, 200), (3000, 2000), (110, 400)])
def test_every_letter_lies_on_a_filled_ground(size):
    drawn = draw(plain(*size), whole(*size), ["gjpqy AX"] * 80)
    assert ink_of(drawn, BLACK).any()
    low, high = drawn.min(axis=2), drawn.max(axis=2)
    ink_on_picture = (high - low <= 2) & (high > 10) & (high < GREY - 40)
    assert ink_on_picture.sum() <= 2  # the rim of a descender, with OpenCV 4.10


def test_label_stands_close_above_its_box():
    drawn = draw(plain(640, 480), found((100, 200, 400, 400, 0.5, BLACK_INK)), COCO_CLASSES)
    left, top, right, bottom = bounds(ink_of(drawn, BLACK))
    assert 100 <= left < right <= 400
    assert 170 < top < bottom <= 200


@pytest.mark.parametrize("size", [(640, 480), (800, 560), (3000, 2000)])
def test_label_touches_the_line_of_its_box_and_hides_nothing_of_the_inside(size):
    line = round(size[1] / 280)
    height = bounds((draw_status(plain(*size), "car 0.50") != GREY).any(axis=2))[3]
    drawn = draw(plain(*size), found((300, 200, 600, 400, 0.5, BLACK_INK)), COCO_CLASSES)
    colour = colour_of(drawn, class_colour(BLACK_INK))
    top = 200 - line // 2 - height
    assert bounds(colour)[1] == top
    assert colour[top:400, 300].all()
    assert (drawn[200 + line : 400 - line, 300 + line : 600 - line] == GREY).all()


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from([(640, 480), (320, 240)]))
def test_label_of_the_most_confident_object_stays_whole_in_a_crowd(seed, number, size):
    random = np.random.default_rng(seed)
    corners = np.sort(random.uniform(0, 1, (number, 2, 2)), axis=1).reshape(-1, 4) * (size * 2)
    class_ids = random.integers(0, 80, number)
    class_ids[0] = BLACK_INK
    confidence = np.sort(random.uniform(0.3, 1, number))[::-1]
    crowd = Detections(corners, confidence, class_ids)
    single = draw(plain(*size), crowd[:1], COCO_CLASSES)
    left, top, right, bottom = bounds(ink_of(single, BLACK))
    place = np.s_[max(top - 1, 0) : bottom + 1, max(left - 1, 0) : right + 1]
    np.testing.assert_array_equal(draw(plain(*size), crowd, COCO_CLASSES)[place], single[place])


@pytest.mark.parametrize("box", [(200, 200, 440, 400), (0, 0, 640, 480), (500, 0, 640, 300)])
def test_labels_of_objects_in_one_place_are_all_whole(box):
    classes = [i for i in range(80) if ratio(class_colour(i), BLACK) > 8][:5]
    objects = found(*((*box, 0.9 - i / 10, class_id) for i, class_id in enumerate(classes)))
    together = ink_of(draw(plain(640, 480), objects, COCO_CLASSES), BLACK).sum()
    apart = [draw(plain(640, 480), objects[i], COCO_CLASSES) for i in range(len(objects))]
    expected = sum(ink_of(picture, BLACK).sum() for picture in apart)
    assert together == pytest.approx(expected, rel=0.01)  # a label in part covered lacks more


def test_box_beyond_the_picture_is_drawn_on_its_border():
    drawn = draw(plain(640, 480), found((-50, -900, 700, 481, 0.5, BLACK_INK)), COCO_CLASSES)
    colour = colour_of(drawn, class_colour(BLACK_INK))
    for side in (colour[40:, 0], colour[40:, -1], colour[-1], colour[0, 150:]):
        assert side.all()
    assert not colour[60:-4, 4:-4].any()


@pytest.mark.parametrize("height, labels", [(13, 0), (14, 1), (20, 1), (21, 2), (28, 2)])
def test_label_that_would_be_covered_by_more_than_half_is_hidden(height, labels):
    ground = draw_status(plain(200, 200), "car 0.50")  # of a label's size
    _, _, width, label_height = bounds((ground != GREY).any(axis=2))
    assert label_height == 14
    size = width, height
    both = found((0, 0, *size, 0.5, BLACK_INK), (0, 0, *size, 0.4, BLACK_INK))
    first, second = (draw(plain(*size), both[i], COCO_CLASSES) for i in (0, 1))
    drawn = draw(plain(*size), both, COCO_CLASSES)
    ink = ink_of(drawn, BLACK).sum()
    if labels < 2:
        assert ink == labels * ink_of(first, BLACK).sum()
    else:
        assert ink > 1.3 * ink_of(first, BLACK).sum()
        np.testing.assert_array_equal(ink_of(drawn, BLACK)[:5], ink_of(first, BLACK)[:5])


@pytest.mark.parametrize("size", [(40, 200), (200, 13)])
def test_label_that_does_not_fit_a_picture_is_hidden_and_its_box_is_drawn(size):
    drawn = draw(plain(*size), whole(*size), COCO_CLASSES)
    assert not ink_of(drawn, BLACK).any()
    assert colour_of(drawn, class_colour(BLACK_INK)).any()


def test_long_label_is_made_smaller_until_it_fits():
    labels = [7 * "a long name "] * 80
    narrow, wide = (
        bounds(ink_of(draw(plain(*size), whole(*size), labels), BLACK))
        for size in ((700, 1600), (1600, 700))
    )
    left, top, right, bottom = narrow
    assert 0 < left < 40 and 660 < right < 700
    assert bottom - top < wide[3] - wide[1]


def test_colour_of_a_class_is_the_same_in_every_picture():
    small = draw(plain(200, 200), whole(200, 200, 17), COCO_CLASSES)
    large = draw(plain(900, 700), found((1, 1, 5, 5, 0.9, 3), (90, 90, 700, 600, 0.5, 17)), ())
    for picture in (small, large):
        assert colour_of(picture, class_colour(17)).sum() > 100


def test_every_class_has_a_colour_of_its_own():
    assert len({class_colour(class_id) for class_id in range(80)}) == 80
    assert all(0 <= value <= 255 for class_id in range(1000) for value in class_colour(class_id))


def test_ink_stands_out_from_its_ground():
    for class_id in range(80):
        drawn = draw(plain(200, 150), whole(200, 150, class_id), ["M"] * 80)
        inks = [ink for ink in (BLACK, WHITE) if ink_of(drawn, ink).any()]
        assert len(inks) == 1, class_id
        assert ratio(inks[0], class_colour(class_id)) >= 3, class_id


def test_unknown_class_is_drawn_by_its_number():
    assert label_of(80, COCO_CLASSES) == "class 80"
    assert label_of(79, COCO_CLASSES) == "toothbrush"
    labels = [*COCO_CLASSES, "class 80"]
    np.testing.assert_array_equal(
        draw(plain(640, 480), whole(640, 480, 80), COCO_CLASSES),
        draw(plain(640, 480), whole(640, 480, 80), labels),
    )
    assert (draw(plain(64, 48), whole(64, 48, 10**6), ()) != GREY).any()


def test_label_gives_name_and_confidence():
    def label(name, confidence):
        box = (200, 200, 400, 400, confidence, BLACK_INK)
        return draw(plain(640, 480), found(box), [name] * 80)

    assert (label("car", 0.5) != label("cat", 0.5)).any()
    assert (label("car", 0.5) != label("car", 0.6)).any()
    np.testing.assert_array_equal(label("car", 0.501), label("car", 0.499))


@pytest.mark.parametrize("width, height", SIZES)
def test_status_is_drawn_in_the_upper_left_corner_of_a_copy(width, height):
    image = plain(width, height)
    shown = draw_status(image, "29.9 FPS, network 12.3 ms")
    assert (shown.shape, shown.dtype) == (image.shape, np.uint8)
    assert (image == GREY).all()
    if min(width, height) >= 150:
        left, top, right, bottom = bounds((shown != GREY).any(axis=2))
        assert (left, top) == (0, 0)
        assert right <= width
        assert bottom <= height / 8
        ink_left, ink_top, ink_right, ink_bottom = bounds(ink_of(shown, WHITE))
        assert 0 < ink_left < ink_right < right
        assert 0 < ink_top < ink_bottom < bottom


def test_status_changes_with_its_text():
    one, other = (draw_status(plain(640, 480), text) for text in ("29.9 FPS", "29.8 FPS"))
    assert (one != other).any()
    assert cv2.norm(one, other) < cv2.norm(one, plain(640, 480))
