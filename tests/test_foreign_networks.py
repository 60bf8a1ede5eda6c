"""NanoDets that another tool wrote or changed: each runs, or one sentence says what to do."""

import math
import re

import cv2
import numpy as np
import pytest
import reference
from conftest import make_network
from demo_process import EXAMPLES, refusal, run_demo

from nanodet import ModelError, NanoDet

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

BOXES = [(20.0, 30.0, 70.0, 60.0, 0.9, 2)]
SIDE = 96
OPENCV_4 = cv2.__version__.startswith("4.")
WAY_OUT = 'engine="onnxruntime"'


@pytest.fixture(scope="module")
def street():
    return cv2.imread(str(EXAMPLES / "street.jpg"))


@pytest.fixture
def model(tmp_path):
    """A function that makes a small network, as an onnx model to change."""

    def make(**layout):
        settings = {"boxes": BOXES, "classes": 3, "size": (SIDE, SIDE)} | layout
        return onnx.load(make_network(tmp_path / "made.onnx", **settings))

    return make


def opened(model, path, **settings):
    """The detector of a model."""
    onnx.save(model, path)
    return NanoDet(path, **settings)


def refused(model, path, **settings):
    """The sentence with which a model is refused."""
    with pytest.raises(ModelError) as error:
        opened(model, path, **settings)
    sentence = str(error.value)
    assert sentence.startswith(f"{path}: ") and sentence.endswith(".") and "\n" not in sentence
    assert not re.search("assert|Assert|error:|parse|[a-z]+[.][ch]pp", sentence), sentence
    return sentence


def shape_of(value):
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def replace_outputs(model, change):
    """Let change(name, shape) -> (nodes, {name: shape}) make the outputs from those there are."""
    outputs = [(value.name, shape_of(value)) for value in model.graph.output]
    del model.graph.output[:]
    for name, shape in outputs:
        nodes, made = change(name, shape)
        model.graph.node.extend(nodes)
        for new, size in made.items():
            value = helper.make_tensor_value_info(new, TensorProto.FLOAT, size)
            model.graph.output.append(value)
    return model


# float16


def in_float16(path, keep_io_types):
    pytest.importorskip("onnxruntime")
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(onnx.load(path), keep_io_types=keep_io_types)


@pytest.fixture(scope="module", params=["bundled", "zoo", "plus"])
def float32_network(request, bundled):
    if request.param == "bundled":
        return bundled
    models = request.getfixturevalue("shared") / "models"
    names = {"zoo": "object_detection_nanodet_2022nov.onnx", "plus": "nanodet-plus-m_416.onnx"}
    return models / names[request.param]


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


def test_weights_stored_in_float16_run_on_every_opencv(model, tmp_path):
    detector = opened(model(float16_weights=True), tmp_path / "n.onnx")
    assert len(detector.detect(np.zeros((SIDE, SIDE, 3), np.uint8))) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("engine", "other"), [("opencv", "onnxruntime"), ("onnxruntime", "opencv")]
)
def test_network_that_computes_no_numbers_is_refused(engine, other, value, model, tmp_path):
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    broken = model()
    weight = next(weight for weight in broken.graph.initializer if len(weight.dims) == 3)
    array = numpy_helper.to_array(weight).copy()
    array[0, 0, 0] = value
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    sentence = refused(broken, tmp_path / "n.onnx", engine=engine)
    assert "computes NaN or infinity" in sentence and f'Give engine="{other}".' in sentence


# int8 and batches


def test_dynamic_int8_names_the_engine_that_runs_it(shared, street, tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    plus = shared / "models" / "nanodet-plus-m_416.onnx"
    quantization.quantize_dynamic(plus, tmp_path / "n.onnx")
    int8 = onnx.load(tmp_path / "n.onnx")
    sentence = refused(int8, tmp_path / "n.onnx")
    assert "DynamicQuantizeLinear" in sentence and sentence.endswith(f"Give {WAY_OUT}.")
    assert len(NanoDet(tmp_path / "n.onnx", engine="onnxruntime").detect(street)) > 5


def test_fixed_batch_of_4_runs_or_is_named(shared, street, tmp_path):
    pytest.importorskip("onnxruntime")
    plus = shared / "models" / "nanodet-plus-m_416.onnx"
    batch = onnx.load(plus)
    batch.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    path = tmp_path / "n.onnx"
    says = "It takes 4 images at a time: export it with a batch of 1."
    assert refused(batch, path, engine="onnxruntime").endswith(says)
    if OPENCV_4:
        assert refused(batch, path).endswith(says)
    else:
        reference.assert_equal(NanoDet(path).detect(street), NanoDet(plus).detect(street))


# Sizes


@pytest.fixture(scope="module")
def only_416(shared, tmp_path_factory):
    """NanoDet-Plus that says that it takes any size; the Reshapes in it are of 416."""
    model = onnx.load(shared / "models" / "nanodet-plus-m_416.onnx")
    for axis in (0, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"axis{axis}"
    path = tmp_path_factory.mktemp("only") / "n.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
def test_network_that_wrongly_says_any_size_runs_at_its_own(engine, only_416, shared, street):
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    whole = NanoDet(shared / "models" / "nanodet-plus-m_416.onnx", engine=engine)
    for settings in ({}, {"input_size": 416}, {"augment": True}):
        detector = NanoDet(only_416, engine=engine, **settings)
        assert detector.input_size == (416, 416)
        if "augment" not in settings:
            reference.assert_equal(detector.detect(street), whole.detect(street))
        assert len(detector.detect(street)) > 5
    with pytest.raises(ModelError) as error:
        NanoDet(only_416, engine=engine, input_size=320)
    assert "can't run it at 320x320. Give the input_size that" in str(error.value)
    assert str(error.value).endswith(", or export it with one fixed size.")
    with pytest.raises(ValueError, match="rect needs a network .* runs only at 416x416"):
        NanoDet(only_416, engine=engine, rect=True)


# Outputs


def without_sigmoid(model):
    for weight in model.graph.initializer:
        array = numpy_helper.to_array(weight)
        if array.ndim == 3 and array.shape[2] in (3, 35):
            array = array.copy()
            array[..., :3] = np.log(array[..., :3] / (1 - array[..., :3]))
            weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    return model


def transposed(model):
    def change(name, shape):
        node = helper.make_node("Transpose", [name], [f"{name}_t"], perm=[0, 2, 1])
        return [node], {f"{name}_t": [1, shape[2], shape[1]]}

    return replace_outputs(model, change)


def as_maps(model):
    def change(name, shape):
        side = math.isqrt(shape[1])
        size = [1, shape[2], side, side]
        weight = numpy_helper.from_array(np.array(size), f"{name}_size")
        model.graph.initializer.append(weight)
        nodes = [
            helper.make_node("Transpose", [name], [f"{name}_t"], perm=[0, 2, 1]),
            helper.make_node("Reshape", [f"{name}_t", weight.name], [f"{name}_map"]),
        ]
        return nodes, {f"{name}_map": size}

    return replace_outputs(model, change)


def with_auxiliary_head(model):
    def change(name, shape):
        node = helper.make_node("Add", [name, "nothing"], [f"aux_{name}"])
        return [node], {name: shape, f"aux_{name}": shape}

    return replace_outputs(model, change)


APART, PLUS = {}, {"layout": "one", "levels": 4}
TWO = {"layout": "two", "levels": 4}
JOINED = {"layout": "joined"}
NO_SIGMOID = "None begins with confidences from 0 to 1. Export it with the sigmoid."
TRANSPOSED = ", transposed. Export it with a row for each anchor."
MAPS = "Where these are the maps of one, export it with a row for each anchor."
HEADS = ", more than one head's. Export it without the auxiliary head."


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
@pytest.mark.parametrize(
    ("layout", "change", "says"),
    [
        *((layout, without_sigmoid, NO_SIGMOID) for layout in (APART, JOINED, TWO, PLUS)),
        *((layout, transposed, TRANSPOSED) for layout in (APART, JOINED, TWO, PLUS)),
        *((layout, with_auxiliary_head, HEADS) for layout in (APART, JOINED, TWO, PLUS)),
        *((layout, as_maps, MAPS) for layout in (APART, JOINED)),
    ],
)
def test_outputs_that_an_export_changed_are_named(layout, change, says, engine, model, tmp_path):
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    sentence = refused(change(model(**layout)), tmp_path / "n.onnx", engine=engine)
    assert sentence.startswith(f"{tmp_path / 'n.onnx'}: not a NanoDet")
    assert sentence.endswith(says)


# Families


@pytest.fixture(scope="module")
def plus_of_3_levels(tmp_path_factory):
    """NanoDet-Plus as trained with strides 8, 16, 32: its centres, no letterbox; a box on 96x96."""
    path = tmp_path_factory.mktemp("plus") / "n.onnx"
    return make_network(
        path, boxes=[(16.0, 24.0, 64.0, 48.0, 0.9, 2)], classes=3, size=(96, 96),
        layout="one", levels=3, centre_offset=0.0,
    )  # fmt: skip


def test_flags_set_centres_resize_and_colours_of_a_network(plus_of_3_levels, tmp_path):
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((96, 192, 3), np.uint8))
    args = ("-i", "wide.png", "-m", plus_of_3_levels, "--no-save")
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
    assert "std must be three numbers above 0" in refusal(
        run_demo(*args, "--std", 0, 1, 1, cwd=tmp_path)
    )


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
def test_nms_is_within_classes_unless_class_agnostic(
    class_agnostic, iou_threshold, model, tmp_path
):
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


@pytest.mark.parametrize("kind", ["UINT8", "DOUBLE", "INT64"])
def test_network_that_takes_no_floats_says_so(kind, tmp_path):
    model = onnx.load(make_network(tmp_path / "n.onnx", size=(128, 128)))
    model.graph.input[0].type.tensor_type.elem_type = getattr(onnx.TensorProto, kind)
    onnx.save(model, tmp_path / "n.onnx")
    with pytest.raises(ModelError, match="n.onnx: its input is not floating point. Export it"):
        NanoDet(tmp_path / "n.onnx")
