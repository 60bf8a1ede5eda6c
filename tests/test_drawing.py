"""Boxes and labels on a picture: legible at any size, and nothing else is touched."""

import itertools

import cv2
import numpy as np
import pytest
from demo_process import EXAMPLES
from hypothesis import example, given
from hypothesis import strategies as st

from cli.network import BUNDLED
from media.drawing import class_colour, draw, draw_status, label_of
from nanodet import COCO_CLASSES, Detections, NanoDet

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
    return picture.max(axis=2) < 40 if ink == BLACK else picture.min(axis=2) > 230


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


def label_places(image, detections, names, memory=None):
    """(left, top, right, bottom) of each object's label, None where it has none."""
    each = Detections(detections.xyxy, detections.confidence, np.arange(len(detections)))
    drawn = draw(image, each, names, memory=memory)
    boxes = draw(image, each, names, hide_labels=True)
    changed = (drawn != boxes).any(axis=2)
    places = []
    for number in range(len(each)):
        ground = changed & colour_of(drawn, class_colour(number))
        # Not the rim of another label's ink that happens to be of this colour.
        ground &= (ground.sum(axis=1) > 2)[:, None] & (ground.sum(axis=0) > 2)
        places.append(bounds(ground) if ground.any() else None)
    return places


def overlap(one, other):
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    return np.prod(np.clip(sides, 0, None))


def edge_of(place, box, line):
    """The edge of its box that a label lies at; empty if it lies at none."""
    (left, top, right, bottom), near = place, line + 3
    if left > box[2] + near or right < box[0] - near:
        return ""
    edges = {
        "above": abs(bottom - box[1]) <= near,
        "below": abs(top - box[3]) <= near,
        "inside, at the bottom": abs(bottom - box[3]) <= near,
        "inside, at the top": abs(top - box[1]) <= near,
    }
    return next((name for name, lies in edges.items() if lies), "")


@given(st.integers(0, 2**32 - 1), st.integers(2, 60), st.sampled_from([(640, 480), (320, 240)]))
def test_labels_of_a_crowd_lie_at_their_boxes_and_cover_no_other(seed, number, size):
    random = np.random.default_rng(seed)
    corners = np.sort(random.uniform(0, 1, (number, 2, 2)), axis=1).reshape(-1, 4) * (size * 2)
    crowd = Detections(corners, np.full(number, 0.5), np.zeros(number, int))
    names = ["car", "person", "dog"] * 20
    places = label_places(plain(*size), crowd, names)
    line, shown = round(size[1] / 280), [place for place in places if place is not None]
    assert len(shown) > 0
    for box, place in zip(corners, places, strict=True):
        assert place is None or edge_of(place, box, line)
    for i, one in enumerate(shown):
        assert all(overlap(np.array(one), np.array(other)) == 0 for other in shown[:i])


@pytest.mark.parametrize("box", [(200, 200, 440, 400), (500, 150, 640, 300)])
def test_labels_of_objects_in_one_place_lie_at_its_edges(box):
    objects = found(*((*box, 0.9, 0) for _ in range(5)))
    places = label_places(plain(640, 480), objects, ["car", "truck", "bus", "boat", "train"])
    assert all(places)
    edges = [edge_of(place, box, 2) for place in places]
    assert edges.count("above") == 2  # one at each side
    assert set(edges) > {"above", "below"}


def test_places_of_labels_depend_on_where_objects_are_and_not_on_confidence():
    boxes = [(100, 100, 300, 300), (110, 100, 310, 300), (105, 90, 305, 310)]
    seen = set()
    for order in itertools.permutations(range(3)):
        objects = found(*((*boxes[each], 0.9, 0) for each in order))
        places = label_places(plain(640, 480), objects, 3 * ["car"])
        seen.add(tuple(places[order.index(each)] for each in range(3)))
    ((left, _, near),) = seen
    assert edge_of(left, boxes[0], 2) == edge_of(near, boxes[2], 2) == "above"


def test_label_covers_no_face():
    # The label of the second person would stand on the first one's head.
    box = (110, 130, 200, 290)
    people = found((100, 100, 180, 300, 0.9, 0), (*box, 0.5, 0))
    head = np.array((120, 100, 160, 150))
    *_, place = label_places(plain(640, 480), people, ["person", "person"])
    assert edge_of(place, box, 2) == "below"
    assert overlap(np.array(place), head) == 0
    *_, other = label_places(plain(640, 480), people, ["chair", "chair"])
    assert edge_of(other, box, 2) == "above"
    assert overlap(np.array(other), head) > 0.2 * 40 * 50


def test_label_of_somebody_whose_head_is_at_the_border_lies_at_the_feet():
    (place,) = label_places(plain(640, 480), found((200, 0, 400, 479, 0.9, 0)), ["person"])
    assert edge_of(place, (200, 0, 400, 479), 2) == "inside, at the bottom"


def test_label_without_room_is_smaller():
    whole_picture = found(*((0, 0, 639, 479, 0.9, 0) for _ in range(3)))
    smaller = []
    for letters in range(15, 35):  # OpenCV 4 and 5 write them with different widths
        places = label_places(plain(640, 480), whole_picture, 3 * [letters * "m"])
        heights = [place[3] - place[1] for place in places if place]
        smaller += [heights] if len(heights) == 3 and heights[0] == heights[1] > heights[2] else []
    assert smaller and min(map(min, smaller)) > 10


@pytest.mark.parametrize("size", [(64, 64), (100, 80), (160, 120)])
def test_label_leaves_most_of_a_small_picture_in_sight(size):
    width, height = size
    box = (4, 16, width - 4, height - 4, 0.9, 0)
    (place,) = label_places(plain(*size), found(box), ["cat"])
    assert (place[2] - place[0]) * (place[3] - place[1]) <= 0.12 * width * height
    assert place[3] - place[1] >= 13  # and can be read


def test_labels_stay_at_the_same_edge_from_frame_to_frame():
    detector, before, same, jumps, memory = NanoDet(BUNDLED), [], 0, [], []
    capture = cv2.VideoCapture(str(EXAMPLES / "street.mp4"))
    while (image := capture.read()[1]) is not None:
        objects = detector.detect(image)
        names = [COCO_CLASSES[class_id] for class_id in objects.class_id]
        now = []
        for name, box, place in zip(
            names, objects.xyxy, label_places(image, objects, names, memory), strict=True
        ):
            edge = place and edge_of(place, box, 3)
            assert edge != ""  # none hangs beside its box
            now.append((name, box, edge))
            for other_name, other, other_edge in before:
                both = overlap(box, other)
                areas = np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2])
                if name == other_name and both > 0.6 * (areas - both):
                    same += 1
                    jumps += [(edge, other_edge)] * (edge != other_edge)
        before = now
    assert same > 100
    assert len(jumps) <= 0.025 * same, jumps


def ciede2000(one, other):
    """How different two BGR colours are to the eye: G. Sharma et al., 2005."""

    def lab(colour):
        linear = np.array(colour)[::-1] / 255
        linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
        to_xyz = ((0.4125, 0.3576, 0.1804), (0.2127, 0.7152, 0.0722), (0.0193, 0.1192, 0.9503))
        xyz = np.array(to_xyz) @ linear / (0.9505, 1, 1.0888)
        x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return 116 * y - 16, 500 * (x - y), 200 * (y - z)

    (l1, a1, b1), (l2, a2, b2) = lab(one), lab(other)
    c7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    a1, a2 = (a * (1.5 - 0.5 * np.sqrt(c7 / (c7 + 25**7))) for a in (a1, a2))
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.arctan2(b1, a1) % (2 * np.pi), np.arctan2(b2, a2) % (2 * np.pi)
    turn = (h2 - h1 + np.pi) % (2 * np.pi) - np.pi
    hue, c = np.degrees(h1 + turn / 2) % 360, (c1 + c2) / 2
    t = 1 - 0.17 * np.cos(np.radians(hue - 30)) + 0.24 * np.cos(np.radians(2 * hue))
    t += 0.32 * np.cos(np.radians(3 * hue + 6)) - 0.2 * np.cos(np.radians(4 * hue - 63))
    light = ((l1 + l2) / 2 - 50) ** 2
    dl = (l2 - l1) / (1 + 0.015 * light / np.sqrt(20 + light))
    dc = (c2 - c1) / (1 + 0.045 * c)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(turn / 2) / (1 + 0.015 * c * t)
    rotation = -2 * np.sqrt(c**7 / (c**7 + 25**7))
    rotation *= np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))
    return np.sqrt(dl**2 + dc**2 + dh**2 + rotation * dc * dh)


# The thirty classes with most objects in COCO train2017.
FREQUENT = (
    *("person", "car", "chair", "book", "bottle", "cup", "dining table", "bowl", "traffic light"),
    *("handbag", "umbrella", "bird", "boat", "truck", "bench", "sheep", "banana", "kite"),
    *("motorcycle", "backpack", "potted plant", "cow", "wine glass", "carrot", "knife"),
    *("broccoli", "donut", "bicycle", "skis", "vase"),
)
# As who lacks the red, or the green, cones sees them: G. M. Machado et al., 2009.
CONFUSED = (
    ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.0039, -0.0481, 1.052)),
    ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.0118, 0.0429, 0.9689)),
)


def confused(colour, matrix):
    linear = (np.array(colour)[::-1] / 255) ** 2.2
    return 255 * np.clip(np.array(matrix) @ linear, 0, 1)[::-1] ** (1 / 2.2)


def test_frequent_classes_differ_in_colour_also_for_who_confuses_red_and_green():
    assert ciede2000((255, 255, 255), (0, 0, 0)) == pytest.approx(100, abs=0.1)
    colours = [class_colour(COCO_CLASSES.index(name)) for name in FREQUENT]
    for one, other in itertools.combinations(colours, 2):
        assert ciede2000(one, other) >= 12
        for matrix in CONFUSED:
            assert ciede2000(confused(one, matrix), confused(other, matrix)) >= 5


def test_box_beyond_the_picture_is_drawn_on_its_border():
    box = found((-50, -900, 700, 481, 0.5, BLACK_INK))
    drawn = draw(plain(640, 480), box, COCO_CLASSES, hide_labels=True)
    colour = colour_of(drawn, class_colour(BLACK_INK))
    for side in (colour[40:, 0], colour[40:, -1], colour[-1], colour[0, 150:]):
        assert side.all()
    assert not colour[60:-4, 4:-4].any()


@pytest.mark.parametrize("size", [(14, 200), (200, 13)])
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


@pytest.mark.parametrize("width", [1, 7])
def test_line_is_as_wide_as_asked_for(width):
    drawn = draw(plain(640, 480), whole(640, 480), COCO_CLASSES, line_width=width)
    line = colour_of(drawn, class_colour(BLACK_INK))[240, :320].sum()
    assert width <= line <= width * 9 / 7  # OpenCV's are a little wider


def test_labels_are_left_out_if_asked_for():
    drawn = draw(plain(640, 480), whole(640, 480), COCO_CLASSES, hide_labels=True)
    assert not ink_of(drawn, BLACK).any()
    assert bounds(colour_of(drawn, class_colour(BLACK_INK))) == (191, 143, 450, 338)


@pytest.mark.parametrize(
    "image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3)), np.zeros((9, 9, 4), np.uint8), None]
)
def test_picture_that_is_no_bgr_is_refused_with_what_it_is(image):
    with pytest.raises(ValueError, match="^image must be BGR of shape .* uint8, not "):
        draw(image, found(), COCO_CLASSES)


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
