"""Detections: a small frozen value that checks itself and behaves like a list of objects."""

import dataclasses
import json

import numpy as np
import pytest

from nanodet import COCO_CLASSES, Detections, Head, Letterbox


@pytest.fixture
def three():
    xyxy = np.arange(12).reshape(3, 4)
    return Detections(xyxy, np.array([0.9, 0.6, 0.5]), np.array([2, 0, 79]))


@pytest.fixture
def none():
    return Detections(np.empty((0, 4)), np.empty(0), np.empty(0))


def test_arrays_have_the_documented_dtypes(three, none):
    for detections in (three, none):
        dtypes = [getattr(detections, name).dtype for name in ("xyxy", "confidence", "class_id")]
        assert dtypes == [np.float32, np.float32, np.int64]


@pytest.mark.parametrize(
    ("name", "xyxy", "confidence", "class_id", "expected", "given"),
    [
        ("xyxy", (3, 5), (3,), (3,), "(3, 4)", "(3, 5)"),
        ("xyxy", (3,), (3,), (3,), "(3, 4)", "(3,)"),
        ("xyxy", (1, 3, 4), (1,), (1,), "(1, 4)", "(1, 3, 4)"),
        ("confidence", (3, 4), (2,), (3,), "(3,)", "(2,)"),
        ("confidence", (3, 4), (3, 1), (3,), "(3,)", "(3, 1)"),
        ("class_id", (3, 4), (3,), (4,), "(3,)", "(4,)"),
        ("class_id", (0, 4), (0,), (1,), "(0,)", "(1,)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(name, xyxy, confidence, class_id, expected, given):
    with pytest.raises(ValueError) as error:
        Detections(np.zeros(xyxy), np.zeros(confidence), np.zeros(class_id))
    assert str(error.value) == f"{name} must have shape {expected}, not {given}"


def test_nothing_found_has_no_length_and_four_columns(three, none):
    assert three and not none and len(three) == 3
    for empty in (none, three[three.confidence > 1], three[3:]):
        assert len(empty) == 0 and empty.xyxy.shape == (0, 4)
        assert empty.confidence.shape == empty.class_id.shape == (0,)
        assert list(empty) == []


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (np.array([True, False, True]), [0, 2]),
        ([False, True, False], [1]),
        (slice(1, None), [1, 2]),
        (slice(None, None, -1), [2, 1, 0]),
        (np.array([2, 0]), [2, 0]),
        ([1], [1]),
        (0, [0]),
        (-1, [2]),
        (np.int64(1), [1]),
    ],
)
def test_mask_slice_and_index_take_the_same_rows_of_all_arrays(three, index, rows):
    taken = three[index]
    assert isinstance(taken, Detections)
    for name in ("xyxy", "confidence", "class_id"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(three, name)[rows])


@pytest.mark.parametrize("index", [3, -4])
def test_index_out_of_range_is_refused(three, index):
    with pytest.raises(IndexError):
        three[index]


def test_loop_gives_box_confidence_and_class_of_each(three):
    boxes, confidences, class_ids = zip(*three, strict=True)
    np.testing.assert_array_equal(boxes, three.xyxy)
    np.testing.assert_allclose(confidences, [0.9, 0.6, 0.5], rtol=1e-6)
    assert [COCO_CLASSES[i] for i in class_ids] == ["car", "person", "toothbrush"]
    assert {type(c) for c in confidences} == {float} and {type(i) for i in class_ids} == {int}


@pytest.mark.parametrize(
    ("class_ids", "says"),
    [
        ([], "<Detections: none>"),
        ([2], "<Detections: 1 of class 2; confidence 0.25 to 0.25>"),
        ([2, 0, 2], "<Detections: 2 of class 2, 1 of class 0; confidence 0.25 to 1.00>"),
        (range(10), "1 of class 7 and 2 more; confidence 0.25 to 1.00>"),
    ],
)
def test_what_was_found_is_told_in_one_line(class_ids, says):
    n = len(class_ids)
    found = Detections(np.zeros((n, 4)), np.linspace(0.25, 1, n)[::-1], np.array(class_ids, int))
    assert repr(found).endswith(says) and repr(found).startswith("<Detections: ")


@pytest.mark.parametrize("kind", [Detections, Letterbox, Head])
def test_fields_can_not_be_replaced(kind):
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(kind.__new__(kind), field.name, None)


def test_value_is_equal_to_itself_alone_and_can_be_a_key(three):
    assert three != three[:] and {three: "kept"}[three] == "kept"


@pytest.mark.parametrize("index", [slice(None), slice(0, 0)])
def test_supervision_takes_the_fields_as_they_are(three, index):
    supervision = pytest.importorskip("supervision")
    d = three[index]
    theirs = supervision.Detections(d.xyxy, confidence=d.confidence, class_id=d.class_id)
    assert len(theirs) == len(d)
    np.testing.assert_array_equal(theirs.area, np.full(len(d), 4))
    for name in ("xyxy", "confidence", "class_id"):
        np.testing.assert_array_equal(getattr(theirs, name), getattr(d, name))


def test_classes_are_those_of_coco_in_its_order(shared):
    categories = json.loads((shared / "coco_val2017_subset" / "instances.json").read_text())
    categories = sorted(categories["categories"], key=lambda category: category["id"])
    assert tuple(category["name"] for category in categories) == COCO_CLASSES
