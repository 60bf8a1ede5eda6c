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


LAYOUTS = [
    {},
    {"levels": 4},
    {"levels": 4, "layout": "one"},  # NanoDet-Plus
    {"classes": 1},
    {"classes": 1, "levels": 4, "layout": "joined", "reg_max": 16},
    {"classes": 3, "reg_max": 5, "layout": "two", "order": "reversed"},
    {"classes": 200, "reg_max": 10, "layout": "one"},
    # As many classes as columns of logits.
    {"classes": 32},
    {"classes": 32, "order": "grouped", "rank": 2},
    {"classes": 32, "order": "reversed", "levels": 4},
    {"classes": 32, "order": 1},
    {"classes": 32, "layout": "two", "levels": 4},
    {"classes": 32, "layout": "one"},
    {"classes": 32, "layout": "joined", "order": "reversed"},
    {"size": (384, 640)},
    # No multiples of a stride, so that the last row and column are cut.
    {"size": (320, 180)},
    {"size": (300, 300), "levels": 4},
    {"misleading_names": True, "order": "grouped", "rank": 2},
    {"symbolic_batch": True},
    {"symbolic_batch": True, "layout": "one", "levels": 4, "classes": 3},
    {"float16_weights": True},
    {"engine": "onnxruntime", "classes": 32, "order": 4, "rank": 2},
    {"engine": "onnxruntime", "layout": "one", "levels": 4, "symbolic_batch": True},
]


@pytest.mark.parametrize("network", LAYOUTS, ids=lambda n: ",".join(f"{k}={n[k]}" for k in n))
def test_network_of_any_layout_returns_its_boxes(network, tmp_path):
    network = {"classes": 80, "reg_max": 7, "levels": 3, "size": (320, 320)} | network
    engine = network.pop("engine", "opencv")
    classes, reg_max, levels, size = (network[k] for k in ("classes", "reg_max", "levels", "size"))
    boxes = known_boxes(size, classes, reg_max, levels)
    path = make_network(tmp_path / "n.onnx", boxes=boxes, **network)
    picodet_like = levels == 4 and network.get("layout", "apart") == "apart"
    settings = {"centre_offset": 0.0} if picodet_like else {}
    detector = assert_finds(path, boxes, size, engine=engine, **settings)
    assert detector.input_size == size
    head = detector.head
    assert (head.num_classes, head.reg_max) == (classes, reg_max)
    assert head.strides == reference.strides_of(levels)


@pytest.mark.parametrize(
    ("classes", "layout", "choices"),
    [(3, "one", "3, 7, 11, 15, 19, 23, 27"), (64, "two", "32, 64")],
)
def test_doubtful_values_need_num_classes(classes, layout, choices, tmp_path):
    path = make_network(
        tmp_path / "n.onnx", boxes=[BOX], classes=classes, layout=layout, order="reversed",
        flat_logits=True,
    )  # fmt: skip
    with pytest.raises(ModelError) as error:
        NanoDet(path)
    assert str(error.value).startswith(f"{path}: ")
    says = f"Give the num_classes that it was trained with, one of {choices}."
    assert str(error.value).endswith(says)
    detector = assert_finds(path, [BOX], (416, 416), num_classes=classes)
    assert (detector.head.num_classes, detector.head.reg_max) == (classes, 7)


MIDDLES = {7: BOX, 10: (44.0, 44.0, 124.0, 124.0, 0.9, 1)}  # each side at the middle bin


@pytest.mark.parametrize("layout", ["apart", "one"])
@pytest.mark.parametrize("reg_max", MIDDLES)
def test_doubtful_values_in_the_shape_of_coco_are_coco(reg_max, layout, tmp_path):
    box, path = MIDDLES[reg_max], tmp_path / "n.onnx"
    make_network(path, boxes=[box], layout=layout, reg_max=reg_max, flat_logits=True)
    detector = assert_finds(path, [box], (416, 416))
    assert (detector.head.num_classes, detector.head.reg_max) == (80, reg_max)


@pytest.mark.parametrize("layout", ["apart", "joined", "two", "one"])
def test_num_classes_that_can_not_be_is_refused(layout, tmp_path):
    path = make_network(tmp_path / "n.onnx", classes=3, layout=layout, size=(320, 320))
    with pytest.raises(ModelError, match="4 classes do not fit .*. Leave the number out."):
        NanoDet(path, num_classes=4)


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
        tmp_path / "n.onnx", boxes=[(*box, 0.9, 2)], classes=3, size=(320, 320), levels=levels,
        layout="joined",
    )  # fmt: skip
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
        [(n, columns) for n in (2704, 676, 169) for columns in (7, 4)],
        [(n, columns) for n in (2704, 676, 169) for columns in (0, 32)],
        [],
    ],
    ids=str,
)
def test_outputs_of_other_networks_are_refused_with_their_shapes(shapes):
    outputs = [np.full(shape, 0.5, np.float32) for shape in shapes]
    with pytest.raises(ModelError, match="not a NanoDet as .* on a canvas of 416x416") as error:
        Head.find(outputs, (416, 416))
    assert all(str(shape) in str(error.value) for shape in shapes)


def test_three_outputs_a_level_are_another_network():
    # As FCOS has them; centerness and distributions must not be taken for one output.
    shapes = [(n, columns) for n in (2704, 676, 169) for columns in (80, 32, 4)]
    with pytest.raises(ModelError, match="confidences from 0 to 1 and 4 distributions"):
        Head.find([np.full(shape, 0.5, np.float32) for shape in shapes], (416, 416))


def outputs_of(path, **network):
    """Outputs of a network of 3 classes on a canvas of 96x96; columns of classes come first."""
    model = onnx.load(make_network(path, classes=3, size=(96, 96), **network))
    weights = (w for w in model.graph.initializer if w.name.endswith("_constant"))
    return [onnx.numpy_helper.to_array(weight)[0].copy() for weight in weights]


@pytest.mark.parametrize("value", [-0.009, 1.009])
def test_output_a_hundredth_outside_0_to_1_still_contains_confidences(value, tmp_path):
    outputs = outputs_of(tmp_path / "n.onnx")
    outputs[0][5, 2] = value
    assert Head.find(outputs, (96, 96)).num_classes == 3


@pytest.mark.parametrize("value", [-0.011, 1.011])
def test_output_further_outside_0_to_1_contains_no_confidences(value, tmp_path):
    outputs = outputs_of(tmp_path / "n.onnx")
    outputs[0][5, 2] = value
    with pytest.raises(ModelError, match="None begins|not a NanoDet as its authors export it"):
        Head.find(outputs, (96, 96))


# What an export may do to the outputs.


def without_sigmoid(outputs):
    changed = [output.copy() for output in outputs]
    for output in changed:
        if output.shape[1] != 32:  # not only logits
            output[:, :3] -= 5
    return changed


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
    outputs = outputs_of(tmp_path / "n.onnx", layout=layout, levels=levels)
    assert Head.find(outputs, (96, 96)).num_classes == 3
    with pytest.raises(ModelError, match="^not a NanoDet as its authors export it") as error:
        Head.find(change(outputs), (96, 96))
    assert str(error.value).endswith(says)
