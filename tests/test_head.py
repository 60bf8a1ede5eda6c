"""Every NanoDet layout, inferred from shapes and values: networks that emit known boxes."""

import numpy as np
import pytest
import reference
from conftest import known_boxes, make_network

from nanodet import Head, ModelError, NanoDet

onnx = pytest.importorskip("onnx")
BOX = (56.0, 56.0, 112.0, 112.0, 0.9, 1)  # an anchor of stride 8, each side at bin 3.5 of 0 .. 7


def assert_finds(path, boxes, size, pixels=0.01, confidence=1e-3, **settings):
    """A network returns its boxes in an image of the canvas's size; returns the detector."""
    detector = NanoDet(path, **settings)
    image = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    found = reference.rows_of(detector.detect(image))
    assert len(found) == len(boxes) > 0
    reference.assert_same_objects(found, boxes, pixels, confidence)
    return detector


def assert_network_returns_its_boxes(path, size=(416, 416), engine="opencv", **network):
    setup = {"classes": 80, "reg_max": 7, "levels": 3} | network
    boxes = known_boxes(size, setup["classes"], setup["reg_max"], setup["levels"])
    make_network(path, boxes=boxes, size=size, **setup)
    detector = assert_finds(path, boxes, size, engine=engine)
    assert detector.input_size == size
    assert detector.head.strides == reference.strides_of(setup["levels"])
    assert detector.head.num_classes == setup["classes"]
    assert detector.head.reg_max == setup["reg_max"]


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize("reg_max", [5, 7, 10, 16])
@pytest.mark.parametrize("classes", [1, 3, 32, 200])
def test_classes_and_bins_are_told_apart(classes, reg_max, levels, tmp_path):
    assert_network_returns_its_boxes(
        tmp_path / "n.onnx", (320, 320), classes=classes, reg_max=reg_max, levels=levels
    )


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize(
    "size",
    [
        (320, 320),
        (416, 416),
        (512, 512),
        (640, 640),
        (640, 384),
        (384, 640),
        (320, 180),  # no multiples of a stride: the last row and column are cut
        (300, 300),
    ],
    ids=str,
)
def test_size_is_the_networks_own(size, levels, tmp_path):
    assert_network_returns_its_boxes(tmp_path / "n.onnx", size, levels=levels)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("order", ["pairs", "grouped", "reversed", 1, 2, 3])
@pytest.mark.parametrize("classes", [1, 32])
def test_outputs_may_come_in_any_order(classes, order, rank, tmp_path):
    assert_network_returns_its_boxes(
        tmp_path / "n.onnx", (320, 320), classes=classes, order=order, rank=rank
    )


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize("classes", [1, 3, 8, 32, 80, 200])
@pytest.mark.parametrize("layout", ["joined", "two", "one"])
def test_outputs_may_be_joined(layout, classes, levels, tmp_path):
    network = {"layout": layout, "classes": classes, "levels": levels, "order": "reversed"}
    assert_network_returns_its_boxes(
        tmp_path / "n.onnx", (320, 320), rank=2 if layout == "two" else 3, **network
    )


@pytest.mark.parametrize(
    "network",
    [
        {"misleading_names": True},
        {"misleading_names": True, "order": "grouped", "rank": 2},
        {"symbolic_batch": True},
        {"symbolic_batch": True, "layout": "one", "levels": 4, "classes": 3},
        {"symbolic_batch": True, "rank": 2, "reg_max": 10},
        {"float16_weights": True},
        {"float16_weights": True, "symbolic_batch": True, "levels": 4, "layout": "two"},
        {"float16_weights": True, "reg_max": 16, "classes": 1, "size": (640, 384)},
    ],
    ids=lambda network: "-".join(network),
)
def test_names_batch_symbol_and_float16_weights_change_nothing(network, tmp_path):
    assert_network_returns_its_boxes(tmp_path / "n.onnx", **network)


@pytest.mark.parametrize(
    "network",
    [
        {},
        {"classes": 32, "order": 4, "rank": 2},
        {"layout": "one", "levels": 4, "reg_max": 10, "symbolic_batch": True},
        {"layout": "joined", "float16_weights": True, "size": (640, 384)},
    ],
    ids=["plain", "shuffled", "one", "float16"],
)
def test_onnxruntime_reads_them_too(network, tmp_path):
    pytest.importorskip("onnxruntime")
    assert_network_returns_its_boxes(tmp_path / "n.onnx", engine="onnxruntime", **network)


def test_several_classes_of_one_anchor_are_several_objects(tmp_path):
    corners = (100.0, 100.0, 180.0, 160.0)
    boxes = [(*corners, 0.9, 4), (*corners, 0.7, 0), (*corners, 0.5, 2)]
    path = make_network(tmp_path / "n.onnx", boxes=boxes, classes=5)
    assert_finds(path, boxes, (416, 416))


@pytest.mark.parametrize(
    ("classes", "layout", "choices"),
    [(3, "one", "[3, 7, 11, 15, 19, 23, 27]"), (64, "two", "[32, 64]")],
)
def test_doubtful_values_need_num_classes(classes, layout, choices, tmp_path):
    path = make_network(
        tmp_path / "n.onnx", boxes=[BOX], classes=classes, layout=layout, order="reversed",
        flat_logits=True,
    )  # fmt: skip
    with pytest.raises(ModelError) as error:
        NanoDet(path)
    assert str(error.value).startswith(f"{path}: ")
    assert f"Pass num_classes, one of {choices}." in str(error.value)
    detector = assert_finds(path, [BOX], (416, 416), num_classes=classes)
    assert (detector.head.num_classes, detector.head.reg_max) == (classes, 7)


@pytest.mark.parametrize("layout", ["apart", "one"])
def test_doubtful_values_in_the_shape_of_coco_are_coco(layout, tmp_path):
    path = make_network(tmp_path / "n.onnx", boxes=[BOX], layout=layout, flat_logits=True)
    detector = assert_finds(path, [BOX], (416, 416))
    assert (detector.head.num_classes, detector.head.reg_max) == (80, 7)


@pytest.mark.parametrize("layout", ["apart", "joined", "two", "one"])
def test_num_classes_that_can_not_be_is_refused(layout, tmp_path):
    path = make_network(tmp_path / "n.onnx", classes=3, layout=layout, size=(320, 320))
    with pytest.raises(ModelError, match="num_classes 4 does not fit"):
        NanoDet(path, num_classes=4)


def test_probabilities_a_little_outside_0_to_1_are_still_probabilities(tmp_path):
    boxes = [(100.0, 100.0, 180.0, 160.0, 1.009, 31), (10.0, 10.0, 60.0, 60.0, 0.9, 0)]
    path = make_network(tmp_path / "n.onnx", boxes=boxes, classes=32, rank=2)
    detector = assert_finds(path, [(*boxes[0][:4], 1.0, 31), boxes[1]], (416, 416))
    assert detector.head.num_classes == 32


def test_centre_offset_can_be_overridden(tmp_path):
    boxes = known_boxes((320, 320), 3, 7, 3)
    path = make_network(
        tmp_path / "n.onnx", boxes=boxes, classes=3, size=(320, 320), centre_offset=0.25
    )
    detector = assert_finds(path, boxes, (320, 320), centre_offset=0.25)
    assert detector.centre_offset == 0.25
    with pytest.raises(AssertionError):
        assert_finds(path, boxes, (320, 320))


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize("keep_ratio", [None, True, False])
def test_resize_rule_follows_the_family_and_can_be_overridden(keep_ratio, levels, tmp_path):
    # An image of half the canvas's height: letterboxed it fills the middle, stretched all.
    box = (96.0, 128.0, 160.0, 192.0)
    path = make_network(
        tmp_path / "n.onnx", boxes=[(*box, 0.9, 2)], classes=3, size=(320, 320), levels=levels
    )
    detector = NanoDet(path, keep_ratio=keep_ratio)
    found = detector.detect(np.zeros((320, 640, 3), np.uint8))
    letterboxed = [[192, (128 - 80) * 2, 320, (192 - 80) * 2]]
    stretched = [[192, 128, 320, 192]]
    stretches = levels == 4 if keep_ratio is None else not keep_ratio
    assert detector.keep_ratio == (not stretches)
    np.testing.assert_allclose(found.xyxy, stretched if stretches else letterboxed, atol=0.02)


@pytest.mark.parametrize(
    "shapes",
    [
        [(8400, 84)],
        [(1000,)],
        [(3548, 112)],
        [(2704, 7), (676, 7), (169, 7)],
        [(2704, 80), (2704, 32), (676, 80), (676, 32)],
        [(2704, 80), (2704, 32), (676, 80), (676, 32), (169, 81), (169, 32)],
        [(2704, 81), (2704, 33), (676, 81), (676, 33), (169, 81), (169, 33)],
        [(2704, 80)] * 3 + [(676, 80), (676, 32), (169, 80), (169, 32)],
        [],
    ],
    ids=str,
)
def test_outputs_of_other_networks_are_refused_with_their_shapes(shapes):
    outputs = [np.full(shape, 0.5, np.float32) for shape in shapes]
    with pytest.raises(ModelError, match="not a NanoDet as .* on a canvas of 416x416") as error:
        Head.find(outputs, (416, 416))
    assert all(str(shape) in str(error.value) for shape in shapes)


# What an export may do to the outputs; columns of 3 classes come first.


def without_sigmoid(outputs):
    return [np.where(np.arange(o.shape[1]) < 3 * (o.shape[1] != 32), o - 5, o) for o in outputs]


def transposed(outputs):
    return [output.T for output in outputs]


def with_auxiliary_head(outputs):
    return outputs * 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without_sigmoid, "None begins with confidences from 0 to 1. Export it with the sigmoid."),
        (transposed, ", transposed. Export it with a row for each anchor."),
        (with_auxiliary_head, ", more than one head's. Export it without the auxiliary head."),
    ],
)
@pytest.mark.parametrize(
    ("layout", "levels"), [("apart", 3), ("joined", 3), ("two", 4), ("one", 4)]
)
def test_outputs_that_an_export_changed_are_named(layout, levels, change, says, tmp_path):
    network = {"classes": 3, "size": (96, 96), "layout": layout, "levels": levels}
    weights = onnx.load(make_network(tmp_path / "n.onnx", **network)).graph.initializer
    outputs = [
        onnx.numpy_helper.to_array(weight)[0]
        for weight in weights
        if weight.name.endswith("_constant")
    ]
    assert Head.find(outputs, (96, 96)).num_classes == 3
    with pytest.raises(ModelError, match="^not a NanoDet as its authors export it") as error:
        Head.find(change(outputs), (96, 96))
    assert str(error.value).endswith(says)
