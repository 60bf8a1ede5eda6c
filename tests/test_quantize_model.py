"""tools/quantize_model.py: the int8 twin of anybody's network."""

import shutil

import cv2
import numpy as np
import pytest
import reference
from conftest import ROOT
from tool_helpers import assert_refused, run_tool

from cli.command import UsageError
from nanodet import MEAN, STD, NanoDet

onnx = pytest.importorskip("onnx", reason="pip install onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
import quantize_model  # noqa: E402
from onnxruntime.transformers.float16 import convert_float_to_float16  # noqa: E402

from tools import int8  # noqa: E402

INT8 = ROOT / "object_detection_nanodet_2022nov_int8.onnx"
STREET = ROOT / "example_inputs" / "street.jpg"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    shutil.copy(STREET, folder)
    return folder


@pytest.fixture(scope="module")
def fixed(bundled, tmp_path_factory):
    """The bundled network as people export theirs: at 416x224 only, of old a weight as input."""
    model = onnx.load(bundled)
    sides = {"h": 224, "w": 416, "n8": 1456, "n16": 364, "n32": 91}
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sides[dim.dim_param]
    weight = model.graph.initializer[0]
    listed = onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
    model.graph.input.append(listed)
    path = tmp_path_factory.mktemp("network") / "mine.onnx"
    onnx.save(model, path)
    return path


def test_twin_is_smaller_and_finds_the_same(fixed, pictures, tmp_path, capsys):
    code, printed, _ = run_tool(quantize_model, capsys, fixed, "--images", pictures)
    assert code == 0
    twin = fixed.with_name("mine_int8.onnx")
    assert twin.stat().st_size < 0.6 * fixed.stat().st_size
    assert printed.startswith(f"{twin}: {twin.stat().st_size} bytes, {fixed.stat().st_size} before")
    assert "1 pictures: " in printed and " ms a picture in float32, " in printed
    image = cv2.imread(str(STREET))
    for engine in ("onnxruntime", "opencv"):
        detectors = [NanoDet(path, 0.25, engine=engine) for path in (fixed, twin)]
        before, after = (reference.rows_of(detector.detect(image)) for detector in detectors)
        sure = [box for box in before if box[4] > 0.4]
        assert len(sure) >= 3
        for box in sure:
            assert any(box[5] == o[5] and reference.iou(box, o) > 0.75 for o in after), box


@pytest.mark.parametrize("seconds", [0.5, 2.0])
def test_int8_that_saves_no_time_is_said_not_to_be_worth_it(seconds, bundled, monkeypatch, capsys):
    class Slow:
        engine = "slow"

        def __init__(self, seconds):
            self.seconds = seconds

        def detect(self, image):
            clock[0] += self.seconds
            return detector.detect(image)

    clock, detector = [0.0], NanoDet(bundled)
    monkeypatch.setattr(quantize_model.time, "perf_counter", lambda: clock[0])
    found = len(detector.detect(cv2.imread(str(STREET))))
    quantize_model.compare((Slow(1.0), Slow(seconds)), [cv2.imread(str(STREET))] * 2)
    printed = capsys.readouterr().out
    assert f"2 pictures: {2 * found} objects in float32, {2 * found} in int8" in printed
    assert f"{2 * found} of them in both" in printed
    assert ("not worth it" in printed) == (seconds == 2.0)


def test_step_fits_the_range_and_zero_stays_exact(fixed):
    model = int8.read_network(fixed)
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    table = int8.calibrate(model, [image], [(416, 224)])
    mean, std = np.array((MEAN, STD))
    lowest, highest = -mean / std, (255 - mean) / std
    scale, zero = table["input"]
    assert 255 * scale == pytest.approx(highest.max() - lowest.min(), rel=0.02)
    assert -zero * scale == pytest.approx(lowest.min(), abs=1.1 * scale)
    for scale, zero in table.values():
        assert scale > 0 and 0 <= zero <= 255 and isinstance(zero, int)


def as_float16(model):
    return convert_float_to_float16(model)


def as_float16_inside(model):
    return convert_float_to_float16(model, keep_io_types=True)


def as_domain_in_full(model):
    for named in (*model.opset_import, *model.graph.node):
        named.domain = "ai.onnx"
    return model


@pytest.mark.parametrize("change", [as_float16, as_float16_inside, as_domain_in_full])
def test_network_as_others_write_it_is_read_as_float32(shared, tmp_path, change):
    path = shared / "models" / "object_detection_nanodet_2022nov.onnx"  # Resize by sizes
    model = onnx.load(path)
    del model.graph.input[1:]  # weights
    onnx.save(change(model), tmp_path / "changed.onnx")
    pair = [int8.read_network(each) for each in (path, tmp_path / "changed.onnx")]
    kinds = {weight.data_type for weight in pair[1].graph.initializer}
    assert kinds <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    blob = np.random.default_rng(0).standard_normal((1, 3, 416, 416), np.float32)
    sessions = [onnxruntime.InferenceSession(each.SerializeToString()) for each in pair]
    given = {sessions[0].get_inputs()[0].name: blob}
    for before, after in zip(*(each.run(None, given) for each in sessions), strict=True):
        np.testing.assert_allclose(after, before, atol=0.05)


def small_network(*nodes, side=8, **values):
    """The nodes, which take x of shape (1, 3, side, side) and values and end in y."""
    tensor = onnx.helper.make_tensor_value_info
    ends = [tensor(name, onnx.TensorProto.FLOAT, (1, 3, side, side)) for name in ("x", "y")]
    constants = [onnx.numpy_helper.from_array(np.array(v), name) for name, v in values.items()]
    graph = onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    opset = [onnx.helper.make_opsetid("", 13)]
    return onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)


def conv(given, made):
    return onnx.helper.make_node("Conv", [given, "w", "b"], [made], f"of {given}")


def test_tensor_that_is_negative_everywhere_is_mapped_with_0(tmp_path):
    bias, weight = np.float32([-4, -5, -6]), np.zeros((3, 3, 1, 1), np.float32)
    model = small_network(conv("x", "map"), conv("map", "y"), w=weight, b=bias)
    image = np.zeros((60, 90, 3), np.uint8)
    table = int8.calibrate(model, [image], [(8, 8)])
    for name in ("map", "y"):
        scale, zero = table[name]
        assert zero == 255 and -255 * scale == pytest.approx(-6, abs=scale)
    result = int8.quantize(model, table, [], (8, 8))
    session = onnxruntime.InferenceSession(result.SerializeToString())
    (y,) = session.run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})
    np.testing.assert_allclose(y[0, :, 0, 0], bias, atol=6 / 255)


def test_normalisation_in_the_network_stays_and_is_given_pixels():
    mean = onnx.helper.make_node("Add", ["x", "mean"], ["centred"], "mean")
    values = {"w": np.ones((3, 3, 1, 1), np.float32), "b": np.zeros(3, np.float32)}
    values["mean"] = np.full((1, 3, 1, 1), -100, np.float32)
    last = onnx.helper.make_node("Relu", ["end"], ["y"])
    nodes = (mean, conv("centred", "map"), conv("map", "end"), last)
    model = small_network(*nodes, side=80, **values)
    image = np.array([0, 255], np.uint8)[np.arange(80 * 80 * 3).reshape(80, 80, 3) // 240 % 2]
    table = int8.calibrate(model, [image], [(80, 80)], mean=(0, 0, 0), std=(1, 1, 1))
    assert table["x"] == [1.0, 0]
    assert "mean" in int8.left_in_float(model, (8, 8))


def test_pictures_are_looked_at_mirrored_too_and_other_operations_stay_in_float():
    left = np.zeros((1, 3, 80, 80), np.float32)
    left[..., :40] = 1000  # so what is bright there is the highest
    make = onnx.helper.make_node
    nodes = [make("Add", ["x", "left"], ["sum"]), conv("sum", "map")]
    nodes += [make("Sigmoid", ["map"], ["once"]), make("Sigmoid", ["once"], ["twice"])]
    weights = {"w": np.full((3, 3, 1, 1), 1e-3, np.float32), "b": np.zeros(3, np.float32)}
    model = small_network(*nodes, conv("twice", "y"), side=80, left=left, **weights)
    image = np.zeros((80, 80, 3), np.uint8)
    image[:, 78:] = 255
    table = int8.calibrate(model, [image], [(80, 80)], mean=(0, 0, 0), std=(1, 1, 1))
    assert table["sum"] == [pytest.approx(1255 / 255, rel=1e-4), 0]
    graph = int8.quantize(model, table, [], (80, 80)).graph
    mapped = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    assert {"sum", "map", "twice"} <= mapped and "once" not in mapped


@pytest.mark.parametrize(
    "op", ["QLinearConv", "ConvInteger", "DynamicQuantizeLinear", "DequantizeLinear"]
)
def test_network_with_int8_inside_is_not_quantized_again(op, tmp_path):
    path = tmp_path / "n.onnx"
    onnx.save(small_network(onnx.helper.make_node(op, ["x"], ["y"])), path)
    with pytest.raises(UsageError, match=r"n\.onnx: is in int8 already\. Give the network"):
        int8.read_network(path)


def test_nodes_that_int8_would_harm_are_left_in_float(bundled):
    model = int8.read_network(bundled)

    def convs(size, plus=False):
        names = int8.left_in_float(model, size, plus)
        return [name for name in names if name.startswith("Conv_")]

    head = ["Conv_31", "Conv_33", "Conv_34"]
    # Maps of 1x1 convolutions: 8x8, 4x4, 2x2; then 12x12, 6x6, 3x3.
    assert convs((64, 64)) == ["Conv_28", *head]
    assert convs((96, 96)) == ["Conv_19", "Conv_28", *head]
    first = [node.name for node in model.graph.node if node.op_type == "Conv"][:27]
    assert {*first} <= {*convs((64, 64), plus=True)}


@pytest.mark.parametrize(
    ("network", "images", "message"),
    [
        ("missing.onnx", None, "missing.onnx: no such network."),
        (INT8, None, f"{INT8}: is in int8 already."),
        (None, "nowhere", "--images nowhere: is not a folder."),
        (None, ".", "no picture in this folder"),
    ],
)
def test_what_can_not_be_quantized_is_named(
    network, images, message, fixed, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    options = (network or fixed, "--images", images or pictures)
    assert_refused(quantize_model, run_tool(quantize_model, capsys, *options), message)
    assert list(tmp_path.iterdir()) == []
