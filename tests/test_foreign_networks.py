"""NanoDets that another tool wrote or changed: each runs, or one sentence says what to do."""

import math
import re
import shutil

import cv2
import numpy as np
import pytest
import reference
from conftest import ENGINES, HAS_OPENVINO, make_network
from demo_process import EXAMPLES, refusal, run_demo
from onnx_files import edited

from nanodet import Head, ModelError, NanoDet

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

BOXES = [(20.0, 30.0, 70.0, 60.0, 0.9, 2)]
SIDE = 96
WAY_OUT = 'engine="onnxruntime"'


@pytest.fixture(scope="module")
def street():
    return cv2.imread(str(EXAMPLES / "street.jpg"))


@pytest.fixture(scope="module")
def plus(shared):
    return shared / "models" / "nanodet-plus-m_416.onnx"


@pytest.fixture
def network(tmp_path):
    """A small network, to be changed."""
    return make_network(tmp_path / "n.onnx", boxes=BOXES, classes=3, size=(SIDE, SIDE))


def refused(path, **settings):
    """The sentence with which a network is refused."""
    with pytest.raises(ModelError) as error:
        NanoDet(path, **settings)
    sentence = str(error.value)
    assert sentence.startswith(f"{path}: ") and sentence.endswith(".") and "\n" not in sentence
    assert not re.search("assert|Assert|error:|parse|[a-z]+[.][ch]pp", sentence), sentence
    return sentence


# float16


def in_float16(path, keep_io_types):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(onnx.load(path), keep_io_types=keep_io_types)


@pytest.fixture(scope="module", params=["bundled", "plus"])
def float32_network(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("keep_io_types", [True, False])
def test_float16_conversion_finds_the_same_or_names_the_way_out(
    keep_io_types, float32_network, street, tmp_path
):
    path = tmp_path / "n.onnx"
    onnx.save(in_float16(float32_network, keep_io_types), path)
    expected = reference.rows_of(NanoDet(float32_network).detect(street))
    assert len(expected) > 5
    engines = ["onnxruntime"]
    try:
        NanoDet(path)
        engines.append("opencv")
    except ModelError as error:
        assert str(error).endswith(f". Give {WAY_OUT}.") and len(str(error)) < 250
    for engine in engines:
        found = reference.rows_of(NanoDet(path, engine=engine).detect(street))
        reference.assert_same_objects(found, expected, 2, 0.03, above=0.35)


def test_demo_names_the_flag_for_a_network_that_computes_in_float16(bundled, tmp_path):
    onnx.save(in_float16(bundled, True), tmp_path / "n.onnx")
    args = ("-i", EXAMPLES / "cat.jpg", "-m", "n.onnx", "--no-save")
    line = refusal(run_demo(*args, cwd=tmp_path))
    assert line.startswith("n.onnx: ") and "float16" in line
    assert line.endswith("Give --engine onnxruntime.")
    assert run_demo(*args, "--engine", "onnxruntime", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("engine", "other"),
    [
        ("opencv", "onnxruntime"),
        ("onnxruntime", "opencv"),
        pytest.param("openvino", "onnxruntime", marks=HAS_OPENVINO),
    ],
)
def test_network_that_computes_no_numbers_is_refused(engine, other, value, network):
    with edited(network) as model:
        weight = next(weight for weight in model.graph.initializer if len(weight.dims) == 3)
        array = onnx.numpy_helper.to_array(weight).copy()
        array[0, 0, 0] = value
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))
    sentence = refused(network, engine=engine)
    assert "computes NaN or infinity" in sentence and f'Give engine="{other}".' in sentence


# int8 and batches


def test_dynamic_int8_names_the_engine_that_runs_it(network):
    with edited(network) as model:
        scale = ["scale", "zero_point"]
        pair = [("DynamicQuantizeLinear", ["image"]), ("DequantizeLinear", ["q", *scale])]
        outputs = [["q", *scale], ["again"]]
        for i, ((operation, inputs), names) in enumerate(zip(pair, outputs, strict=True)):
            model.graph.node.insert(i, onnx.helper.make_node(operation, inputs, names))
        model.graph.node[2].input[0] = "again"
    sentence = refused(network)
    assert "DynamicQuantizeLinear" in sentence and sentence.endswith(f"Give {WAY_OUT}.")
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    found = NanoDet(network, engine="onnxruntime").detect(image)
    reference.assert_same_objects(reference.rows_of(found), BOXES, 0.01, 1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_fixed_batch_of_4_runs_or_is_named(engine, plus, street, tmp_path):
    path = shutil.copy(plus, tmp_path / "n.onnx")
    with edited(path) as model:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    if engine == "opencv" and cv2.__version__.startswith("5."):
        reference.assert_equal(NanoDet(path).detect(street), NanoDet(plus).detect(street))
    else:
        with pytest.raises(ModelError) as error:
            NanoDet(path, engine=engine)
        says = "It takes 4 images at a time: export it with a batch of 1."
        assert (error.value.remedy, error.value.settings) == (says, {})


# int8 as OpenCV 4 computes it wrongly


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("weights", [np.uint8, np.int8])
def test_quantised_convolution_finds_the_same_or_names_the_way_out(weights, engine, network):
    numbers = {"scale": np.float32(0.1), "point": np.uint8(128), "of_weights": weights(1)}
    numbers["w"] = np.ones((3, 3, 1, 1), weights)
    with edited(network) as model:
        for name, number in numbers.items():
            tensor = onnx.numpy_helper.from_array(np.asarray(number), name)
            model.graph.initializer.append(tensor)
        pair, node = ["scale", "point"], onnx.helper.make_node
        convolution = ["q", *pair, "w", "scale", "of_weights", *pair]
        nodes = [
            node("QuantizeLinear", ["image", *pair], ["q"]),
            node("QLinearConv", convolution, ["c"], kernel_shape=[1, 1]),
            node("DequantizeLinear", ["c", *pair], ["again"]),
        ]
        for i, new in enumerate(nodes):
            model.graph.node.insert(i, new)
        model.graph.node[3].input[0] = "again"
    if weights == np.uint8 and engine == "opencv" and cv2.__version__.startswith("4."):
        assert refused(network).endswith(f"its weights are uint8. Give {WAY_OUT}.")
    else:
        found = NanoDet(network, engine=engine).detect(np.zeros((SIDE, SIDE, 3), np.uint8))
        reference.assert_same_objects(reference.rows_of(found), BOXES, 0.01, 1e-3)


# Sizes


@pytest.fixture(scope="module")
def only_416(plus, tmp_path_factory):
    """NanoDet-Plus that says that it takes any size; the Reshapes in it are of 416."""
    path = shutil.copy(plus, tmp_path_factory.mktemp("only") / "n.onnx")
    with edited(path) as model:
        for axis in (0, 2, 3):
            model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"axis{axis}"
    return path


@pytest.mark.parametrize("engine", ENGINES)
def test_network_that_wrongly_says_any_size_runs_at_its_own(engine, only_416, plus, street):
    expected = NanoDet(plus, engine=engine).detect(street)
    detector = NanoDet(only_416, engine=engine)
    assert detector.input_size == (416, 416)
    reference.assert_equal(detector.detect(street), expected)
    assert len(NanoDet(only_416, engine=engine, augment=True).detect(street)) > 5
    sentence = refused(only_416, engine=engine, input_size=320)
    ways = "the input_size" if engine == "onnxruntime" else f"{WAY_OUT} or the input_size"
    remedy = f"Give {ways} that it was exported with, or export it with one fixed size."
    assert sentence.endswith(f"can't run it at 320x320. {remedy}")
    with pytest.raises(ValueError, match="runs only at 416x416. Leave out the rect, or"):
        NanoDet(only_416, engine=engine, rect=True)


# Families


def test_flags_set_centres_resize_and_colours_of_a_network(tmp_path):
    # NanoDet-Plus as trained with 3 levels: what can't be inferred is its centres and no letterbox.
    make_network(
        tmp_path / "n.onnx", boxes=[(16.0, 24.0, 64.0, 48.0, 0.9, 2)], classes=3, size=(96, 96),
        layout="one", levels=3, centre_offset=0.0,
    )  # fmt: skip
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((96, 192, 3), np.uint8))
    args = ("-i", "wide.png", "-m", "n.onnx", "--no-save")
    inferred = run_demo(*args, cwd=tmp_path).stdout
    assert "; NanoDet, 3 levels, letterbox\n" in inferred
    flags = ("--centre-offset", 0, "--resize", "stretch", "--mean", 127, 127, 127)
    right = run_demo(*args, *flags, "--std", 128, 128, 128, cwd=tmp_path).stdout
    assert "; NanoDet-Plus, 3 levels, stretched\n" in right
    assert "[32.0, 24.0, 128.0, 48.0]" in right and "[32.0, 24.0, 128.0, 48.0]" not in inferred


def test_colours_reach_the_network_as_the_flags_say(tmp_path):
    args = ("-i", EXAMPLES / "street.jpg", "--no-save", "--json", "-")
    given = ("--mean", 103.53, 116.28, 123.675, "--std", 57.375, 57.12, 58.395)
    default, same, other = (
        run_demo(*args, *flags, cwd=tmp_path).stdout for flags in ((), given, ("--mean", *"000"))
    )
    assert default == same != other


PICODET = "8 outputs of 4 levels are PicoDet's, whose centres and colours differ."


def test_layout_of_picodet_is_refused_unless_the_centres_are_given(tmp_path):
    path, size = tmp_path / "n.onnx", (SIDE, SIDE)
    make_network(path, boxes=BOXES, classes=3, size=size, levels=4, centre_offset=0.5)
    says = "Give the centre_offset: 0 for a NanoDet-Plus; 0.5, mean and std for PicoDet."
    assert refused(path).endswith(f"{PICODET} {says}")
    found = NanoDet(path, centre_offset=0.5).detect(np.zeros((SIDE, SIDE, 3), np.uint8))
    reference.assert_same_objects(reference.rows_of(found), BOXES, 0.01, 1e-3)
    args = ("-i", EXAMPLES / "cat.jpg", "-m", path, "--no-save")
    assert "Give the --centre-offset: 0 for a NanoDet-Plus" in refusal(
        run_demo(*args, cwd=tmp_path)
    )
    assert run_demo(*args, "--centre-offset", 0, cwd=tmp_path).returncode == 0


RANDOM = np.random.default_rng(0)
LEVELS, ALL = [2704, 676, 169], [3549]  # anchors of a canvas of 416x416
DECODED = ", with boxes that are decoded. Export it without decoding its boxes."
YOLO = ", 4 numbers of a box before the confidences, as a YOLO's. Give a NanoDet, exported without "
YOLO += "decoding its boxes."
TRANSPOSED = ", transposed. Export it with a row for each anchor."
NOT_ONE = "Give a network exported from NanoDet."


def parts(rows, *widths):
    """Columns of probabilities, or of other numbers where a width is below 0."""
    blocks = [
        RANDOM.random((rows, width)) if width > 0 else RANDOM.normal(30, 40, (rows, -width))
        for width in widths
    ]
    return np.concatenate(blocks, axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ([parts(n, 80, -4) for n in ALL], DECODED),
        ([parts(n, 3, -4) for n in LEVELS], DECODED),
        ([parts(3549, 80), parts(3549, -4)], DECODED),
        ([parts(3549, -4), parts(3549, 4)], DECODED),
        ([part for n in LEVELS for part in (parts(n, 80), parts(n, -4))], DECODED),
        ([parts(3549, -4, 81)], YOLO),  # YOLOX
        ([parts(n, -4, 81) for n in LEVELS], YOLO),
        ([parts(3 * 3549, -4, 81)], YOLO),  # YOLOv5
        ([parts(3549, -4, 80).T], YOLO),  # YOLOv8
        ([parts(3549, -4, 1).T], YOLO),
        ([parts(3549, 80, -4).T], DECODED),
        ([parts(3549, 3, -32).T], TRANSPOSED),
        ([parts(3549, 3, -32).T.copy()], TRANSPOSED),
        ([parts(3549, 7).T], NOT_ONE),
        ([parts(3549, 80).T], TRANSPOSED),  # any of these may be a confidence, or not
        ([parts(300, -4, 1, -1)], NOT_ONE),  # after NMS
        ([parts(3549, 1, -1, 1, -3)], NOT_ONE),  # four columns, if not side by side
        ([parts(3549, -3, 1, -1, 1)], "Export it with the sigmoid."),
        ([parts(3549, -7)], "Export it with the sigmoid."),
    ],
)
def test_outputs_of_other_networks_are_called_what_they_are(outputs, says):
    with pytest.raises(ModelError, match="^not a NanoDet as its authors export it") as error:
        Head.find(outputs, (416, 416))
    assert str(error.value).endswith(says)


@pytest.mark.parametrize("num_classes", [None, 80, 76])
def test_decoded_boxes_are_named_whatever_the_number_of_classes(num_classes):
    with pytest.raises(ModelError, match="decoded"):
        Head.find([parts(3549, 80, -4)], (416, 416), num_classes)


# NMS across classes

CROWD = [
    (8.0, 8.0, 40.0, 40.0, 0.9, 0),
    (9.0, 9.0, 41.0, 41.0, 0.8, 1),
    (20.0, 30.0, 70.0, 60.0, 0.7, 2),
    (22.0, 30.0, 72.0, 62.0, 0.6, 0),
    (60.0, 8.0, 90.0, 24.0, 0.5, 1),
]


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("iou_threshold", [0.3, 0.6, 0.95])
def test_nms_is_within_classes_unless_class_agnostic(class_agnostic, iou_threshold, tmp_path):
    path = make_network(tmp_path / "n.onnx", boxes=CROWD, classes=3, size=(SIDE, SIDE))
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    everything = reference.rows_of(NanoDet(path, iou_threshold=1.0).detect(image))
    assert len(everything) == len(CROWD)
    alike = [(*box[:5], 0) if class_agnostic else box for box in everything]
    kept = [everything[i] for i in reference.nms(alike, iou_threshold)]
    detector = NanoDet(path, iou_threshold=iou_threshold, class_agnostic=class_agnostic)
    assert reference.rows_of(detector.detect(image)) == kept
    if iou_threshold == 0.6:
        assert len(kept) == (3 if class_agnostic else 5)


def test_demo_keeps_one_object_a_place_where_asked(tmp_path):
    make_network(tmp_path / "n.onnx", boxes=CROWD, classes=3, size=(SIDE, SIDE))
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((SIDE, SIDE, 3), np.uint8))
    for flags, objects in (((), 5), (("--agnostic-nms",), 3)):
        process = run_demo("-i", "a.png", "-m", "n.onnx", "--no-save", *flags, cwd=tmp_path)
        assert f"a.png: {SIDE}x{SIDE}, {objects} objects" in process.stdout
