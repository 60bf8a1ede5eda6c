"""Decoding of outputs and NMS, against plain loops in float64."""

import itertools
import warnings

import numpy as np
import pytest
import reference
from hypothesis import assume, given
from hypothesis import strategies as st

from nanodet import Group, Head, anchor_grid, decode, expected_distances, nms

HEADS = st.fixed_dictionaries(
    {
        "canvas": st.tuples(*[st.sampled_from([64, 96, 160])] * 2),
        "levels": st.sampled_from([3, 4]),
        "classes": st.sampled_from([1, 2, 3, 17, 32]),
        "reg_max": st.sampled_from([5, 7, 10, 16]),
        "together": st.booleans(),
        "centre_offset": st.sampled_from([0.0, 0.5, 0.25]),
        "seed": st.integers(0, 2**32 - 1),
    }
)


def random_levels(setup, spread=3.0, dense=0.02):
    """Levels of random confidences, most of them background, and random logits."""
    random = np.random.default_rng(setup["seed"])
    levels = []
    for stride in reference.strides_of(setup["levels"]):
        n = len(reference.centres(setup["canvas"], stride, 0))
        confidence = random.random((n, setup["classes"])) ** (1 / dense)
        logits = random.normal(0, spread, (n, 4 * (setup["reg_max"] + 1)))
        levels.append((confidence.astype(np.float32), logits.astype(np.float32), stride))
    return levels


def decode_levels(setup, levels, threshold):
    """`nanodet.decode` of levels, laid out as pairs a level or as one array of all."""
    strides = tuple(stride for _, _, stride in levels)
    if setup["together"]:
        outputs = [np.concatenate([np.column_stack((c, d)) for c, d, _ in levels])]
        groups = (Group(0, 0, strides),)
    else:
        outputs = [array for c, d, _ in levels for array in (d, c)]
        groups = tuple(Group(2 * i + 1, 2 * i, (stride,)) for i, stride in enumerate(strides))
    head = Head(strides, setup["classes"], setup["reg_max"], groups)
    grids = [anchor_grid(setup["canvas"], s, setup["centre_offset"]) for _, _, s in groups]
    return decode(outputs, head, grids, threshold)


def rows(xyxy, confidence, class_id):
    """Decoded arrays in an order that ties can't change, as (N, 6) float64."""
    table = np.column_stack((xyxy, confidence, class_id)).astype(np.float64).reshape(-1, 6)
    return table[np.lexsort((table[:, 0].round(2), table[:, 5], -table[:, 4]))]


def reference_rows(setup, levels, threshold):
    boxes = reference.decode(levels, setup["canvas"], setup["centre_offset"], threshold)
    table = np.array(boxes, np.float64).reshape(-1, 6)
    return rows(table[:, :4], table[:, 4], table[:, 5])


@given(HEADS, st.sampled_from([3.0, 30.0, 1e4, 1e37]), st.sampled_from([0.1, 0.35, 1.0]))
def test_boxes_are_those_of_plain_loops_to_a_thousandth_of_a_pixel(setup, spread, threshold):
    levels = random_levels(setup, spread, dense=0.02 if threshold > 0.1 else 0.005)
    xyxy, confidence, class_id = decode_levels(setup, levels, threshold)
    assert (np.diff(confidence) <= 0).all()
    found, expected = rows(xyxy, confidence, class_id), reference_rows(setup, levels, threshold)
    assert xyxy.shape == (len(expected), 4)
    np.testing.assert_array_equal(found[:, 4:], expected[:, 4:])
    np.testing.assert_allclose(found[:, :4], expected[:, :4], rtol=0, atol=1e-3)


@given(
    st.integers(1, 40),
    st.sampled_from([2, 6, 8, 11, 17]),
    st.just(0) | st.floats(0, 1e4),
    st.sampled_from([-1e4, 0.0, 1e4]),
    st.integers(0, 2**32 - 1),
)
def test_distance_is_the_expectation_of_each_side(n, bins, spread, offset, seed):
    logits = np.random.default_rng(seed).normal(offset, spread, (n, 4 * bins)).astype(np.float32)
    distances = expected_distances(logits)
    assert distances.shape == (n, 4) and distances.dtype == np.float32
    expected = [
        [reference.expectation(side) for side in row] for row in logits.reshape(n, 4, bins).tolist()
    ]
    np.testing.assert_allclose(distances, expected, rtol=0, atol=3e-6 * bins)


@given(
    st.tuples(*[st.integers(2, 20).map(lambda steps: 32 * steps)] * 2),
    st.sampled_from([(8, 16, 32), (8, 16, 32, 64), (64,)]),
    st.sampled_from([0.0, 0.5]),
)
def test_anchors_stand_row_by_row_and_level_by_level(canvas, strides, offset):
    grid = anchor_grid(canvas, strides, offset)
    expected = [(*xy, s) for s in strides for xy in reference.centres(canvas, s, offset)]
    assert grid.dtype == np.float32
    np.testing.assert_array_equal(grid, expected)
    assert not grid.flags.writeable  # it is kept for the next image


def one_anchor(confidence, logits):
    """Decode a head of one level in which the second anchor has these values."""
    canvas, bins = (64, 64), len(logits) // 4
    confidences = np.full((4, len(confidence)), 0.01, np.float32)
    confidences[1] = confidence
    all_logits = np.zeros((4, 4 * bins), np.float32)
    all_logits[1] = logits
    head = Head((32,), len(confidence), bins - 1, (Group(0, 1, (32,)),))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return decode([confidences, all_logits], head, [anchor_grid(canvas, (32,), 0.5)], 0.35)


def test_several_classes_fire_at_one_anchor():
    xyxy, confidence, class_id = one_anchor([0.5, 0.2, 0.9, 0.6], np.zeros(32))
    np.testing.assert_allclose(confidence, [0.9, 0.6, 0.5], rtol=1e-6)
    assert class_id.tolist() == [2, 3, 0]
    # Centre (48, 16), all sides at the middle of 0 .. 7 strides.
    np.testing.assert_allclose(xyxy, [[-64, -96, 160, 128]] * 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_confidence_that_is_not_a_number_makes_no_box(bad):
    assert one_anchor([bad, bad], np.zeros(32))[0].shape == (0, 4)


@pytest.mark.parametrize(
    ("place", "bad"),
    [*itertools.product((0, 9, 31), (np.nan, np.inf)), (slice(8, 16), -np.inf)],  # a whole side
)
def test_logits_that_are_not_numbers_make_no_box(place, bad):
    logits = np.zeros(32)
    logits[place] = bad
    xyxy, confidence, class_id = one_anchor([0.9], logits)
    assert xyxy.shape == (0, 4) and not len(confidence) and not len(class_id)


def test_bin_ruled_out_by_minus_infinity_counts_nothing():
    logits = np.full(32, -np.inf)
    logits[3::8] = 1.5
    np.testing.assert_array_equal(one_anchor([0.9], logits)[0], [[-48, -80, 144, 112]])


def test_broken_anchors_leave_the_others_as_they_are():
    setup = {"canvas": (96, 96), "levels": 3, "classes": 2, "reg_max": 7, "together": False,
             "centre_offset": 0.5, "seed": 5}  # fmt: skip
    levels = random_levels(setup, dense=0.2)
    for _, logits, _ in levels:
        logits[::3, 4] = np.nan
    found = rows(*decode_levels(setup, levels, 0.35))
    for confidence, logits, _ in levels:
        confidence[::3] = 0
        logits[::3, 4] = 0
    expected = reference_rows(setup, levels, 0.35)
    assert len(expected) > 10 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_confidence_at_the_threshold_is_left_out():
    half = np.float32(0.35)
    assert len(one_anchor([0.35], np.zeros(32))[0]) == 0
    assert len(one_anchor([np.nextafter(half, np.float32(1))], np.zeros(32))[0]) == 1


def test_number_of_candidates_is_bounded_and_the_best_stay():
    setup = {"canvas": (160, 160), "levels": 3, "classes": 17, "reg_max": 5, "together": True,
             "centre_offset": 0.5, "seed": 3}  # fmt: skip
    levels = random_levels(setup, dense=1)
    everything = np.concatenate([confidence.ravel() for confidence, _, _ in levels])
    assert len(everything) > 6000
    xyxy, confidence, class_id = decode_levels(setup, levels, 0.0)
    assert len(xyxy) == len(confidence) == len(class_id) == 3000
    np.testing.assert_array_equal(confidence, np.sort(everything)[:-3001:-1])


@pytest.mark.parametrize("together", [True, False])
def test_equal_confidences_keep_the_order_of_anchors_and_classes(together):
    setup = {"canvas": (96, 96), "levels": 3, "classes": 3, "reg_max": 7, "together": together,
             "centre_offset": 0.5, "seed": 0}  # fmt: skip
    levels = [((c > 0.5) / 4 + 0.5, logits, s) for c, logits, s in random_levels(setup, dense=1)]
    levels = [(confidences.astype(np.float32), *rest) for confidences, *rest in levels]
    xyxy, _, class_id = decode_levels(setup, levels, 0.35)
    expected = reference.decode(levels, setup["canvas"], 0.5, 0.35)
    assert len(xyxy) == 189 * 3
    np.testing.assert_allclose(xyxy, [box[:4] for box in expected], rtol=0, atol=1e-3)
    assert class_id.tolist() == [box[5] for box in expected]


def test_confidence_above_1_is_1():
    assert one_anchor([1.009], np.zeros(32))[1].tolist() == [1]


CORNERS = st.tuples(*[st.integers(0, 120)] * 2, *[st.integers(1, 60)] * 2)


@given(st.lists(st.tuples(CORNERS, st.integers(0, 3)), max_size=40), st.floats(0.05, 0.95))
def test_nms_keeps_what_a_plain_loop_over_each_class_keeps(objects, threshold):
    confidences = np.linspace(0.9, 0.1, len(objects))
    boxes = [
        (x, y, x + width, y + height, confidence, class_id)
        for ((x, y, width, height), class_id), confidence in zip(objects, confidences, strict=True)
    ]
    overlaps = [reference.iou(a, b) for a in boxes for b in boxes]
    assume(all(abs(overlap - threshold) > 1e-6 for overlap in overlaps))
    shuffled = np.random.default_rng(0).permutation(len(boxes))
    table = np.array(boxes, np.float64).reshape(-1, 6)[shuffled]
    kept = nms(
        table[:, :4].astype(np.float32),
        table[:, 4].astype(np.float32),
        table[:, 5].astype(np.int64),
        threshold,
    )
    assert kept.dtype.kind == "i"
    assert [int(shuffled[i]) for i in kept] == reference.nms(boxes, threshold)


@pytest.mark.parametrize("side", [50, 6000])
def test_same_box_of_200_classes_stays_200_objects(side):
    xyxy = np.tile(np.array([[0, 0, side, side]], np.float32), (200, 1))
    confidence = np.linspace(0.9, 0.4, 200, dtype=np.float32)
    assert nms(xyxy, confidence, np.arange(200), 0.6).tolist() == list(range(200))
    assert nms(xyxy, confidence, np.zeros(200, np.int64), 0.6).tolist() == [0]


@pytest.mark.parametrize("n", [301, 3000])
def test_nms_keeps_any_number_of_boxes(n):
    corner = 2.0 * np.arange(n, dtype=np.float32)
    xyxy = np.stack((corner, corner, corner + 1, corner + 1), axis=1)
    confidence = np.linspace(0.9, 0.4, n, dtype=np.float32)
    assert nms(xyxy, confidence, np.zeros(n, np.int64), 0.6).tolist() == list(range(n))


def test_nms_computes_overlaps_in_float64():
    # With sides rounded to float32 these would overlap by 1e-7 more.
    pair = np.array([[13.49, 7.99, 51.64, 64.11], [20.74, 8.34, 54.76, 77.88]], np.float32)
    threshold = reference.iou(*pair.tolist()) + 5e-8
    confidence, class_id = np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64)
    assert nms(pair, confidence, class_id, threshold).tolist() == [0, 1]
