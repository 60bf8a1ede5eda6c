"""The bundled network in int8: what it is, and that each engine computes it rightly."""

import sys

import cv2
import numpy as np
import pytest
import reference
from conftest import ROOT
from demo_process import run_demo

from nanodet import NanoDet

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

INT8 = ROOT / "object_detection_nanodet_2022nov_int8.onnx"
PICTURES = ("cat.jpg", "street.jpg")
SIZES = ((416, 416), (416, 320), (160, 96))


@pytest.fixture(scope="module")
def model():
    return onnx.load(INT8)


@pytest.fixture(scope="module")
def session():
    return onnxruntime.InferenceSession(str(INT8), providers=["CPUExecutionProvider"])


def picture(name):
    return cv2.imread(str(ROOT / "example_inputs" / name))


def test_file_says_what_it_is_and_is_much_smaller(model, bundled):
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["network"] == "NanoDet-g 416, 80 COCO classes, reg_max 10, int8"
    assert properties["license"] == "Apache-2.0"
    assert properties["source"].startswith(bundled.name)
    assert properties["note"] == f"Not the file that OpenCV Zoo ships as {INT8.name}"
    assert INT8.stat().st_size < 0.6 * bundled.stat().st_size


def test_inputs_and_outputs_are_those_of_the_float_network(model, bundled):
    graph = onnx.load(bundled).graph
    assert [*model.graph.input] == [*graph.input]
    assert [*model.graph.output] == [*graph.output]


def test_no_int8_convolution_of_1x1_meets_a_map_that_opencv_5_computes_wrong(model):
    # A canvas of 32 a x 32 b has 16 a b cells at stride 8, always divisible by 8; at strides 16
    # and 32 there may be another number (docs/speed.md).
    weights = {weight.name for weight in model.graph.initializer}
    convs = [node for node in model.graph.node if node.op_type == "Conv"]
    in_float = {node.name for node in convs if node.input[1] in weights}
    assert in_float == {"Conv_19", "Conv_28", "Conv_31", "Conv_33", "Conv_34"}
    kernels = {n.name: onnx.helper.get_node_attr_value(n, "kernel_shape") for n in convs}
    assert [n for n, kernel in kernels.items() if kernel == [1, 1] and n not in in_float] == [
        "Conv_12"
    ]


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
def test_finds_what_the_float_network_finds(name, engine, bundled):
    detectors = [NanoDet(path, 0.3, engine=engine, rect=True) for path in (bundled, INT8)]
    pair = [reference.rows_of(detector.detect(picture(name))) for detector in detectors]
    assert abs(len(pair[0]) - len(pair[1])) <= 0.2 * len(pair[0]) + 1
    for these, others in (pair, pair[::-1]):
        sure = [box for box in these if box[4] > 0.4]
        assert sure
        for box in sure:
            assert any(box[5] == o[5] and reference.iou(box, o) > 0.75 for o in others), box


@pytest.mark.parametrize(
    ("flags", "installed", "engine"),
    [
        ([], True, f"onnxruntime {onnxruntime.__version__}"),
        ([], False, f"OpenCV {cv2.__version__}"),
        (["--engine", "opencv"], True, f"OpenCV {cv2.__version__}"),
    ],
)
def test_demo_runs_int8_with_any_engine_and_names_it(
    flags, installed, engine, tmp_path, monkeypatch
):
    if not installed:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    street = ROOT / "example_inputs" / "street.jpg"
    result = run_demo("-i", street, "--no-save", "--int8", *flags, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert "person" in result.stdout
    assert f"{INT8.name} at 416x416 on {engine}, " in result.stdout


@pytest.mark.parametrize("size", SIZES)
def test_opencv_computes_each_place_of_each_map_as_onnxruntime_does(size, session):
    blob, _ = reference.blob_of(picture("street.jpg"), size, False)
    net = cv2.dnn.readNetFromONNX(str(INT8))
    net.setInput(blob)
    names = [output.name for output in session.get_outputs()]
    results = zip(names, net.forward(names), session.run(names, {"input": blob}), strict=True)
    for name, ours, theirs in results:
        # Roundings differ here and there by a step, which later layers carry on.
        limit = 0.08 if name.startswith("confidence") else 1
        assert np.abs(ours - theirs).max() < limit, name
        assert np.abs(ours - theirs).mean() < limit / 10, name


@pytest.mark.parametrize("slope", [0.01, 0.1, 0.3])
def test_opencv_keeps_the_slope_of_a_leaky_relu_after_an_int8_convolution(slope, tmp_path):
    # Sources of OpenCV have a fusion of both that takes the slope in the wrong scale.
    make, random = onnx.helper.make_node, np.random.default_rng(0)
    steps, image = random.integers(-100, 100, (16, 8, 3, 3)), random.uniform(-1.9, 3, (8, 12, 12))
    scales = {"image": (0.02, 100), "map": (0.04, 128), "out": (0.022, 25)}  # and zero points
    values = {f"{name}_scale": np.float32(scale) for name, (scale, _) in scales.items()}
    values |= {f"{name}_zero": np.array(zero, np.uint8) for name, (_, zero) in scales.items()}
    values |= {"steps": steps.astype(np.int8), "steps_zero": np.zeros(16, np.int8)}
    values["steps_scale"] = np.full(16, 0.004, np.float32)

    def int8(name):
        mapping = [f"{name}_scale", f"{name}_zero"]
        return [
            make("QuantizeLinear", [name, *mapping], [f"{name}_int8"]),
            make("DequantizeLinear", [f"{name}_int8", *mapping], [f"{name}_again"]),
        ]

    nodes = [
        *int8("image"),
        make("DequantizeLinear", ["steps", "steps_scale", "steps_zero"], ["weight"], axis=0),
        make("Conv", ["image_again", "weight"], ["map"], kernel_shape=[3, 3], pads=[1] * 4),
        *int8("map"),
        make("LeakyRelu", ["map_again"], ["out"], alpha=slope),
        *int8("out"),
    ]
    tensor, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    ends = [tensor("image", kind, (1, 8, 12, 12))], [tensor("out_again", kind, (1, 16, 12, 12))]
    constants = [onnx.numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()]
    graph = onnx.helper.make_graph(nodes, "g", *ends, constants)
    opset = [onnx.helper.make_opsetid("", 13)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=7), tmp_path / "n.onnx")
    net = cv2.dnn.readNetFromONNX(str(tmp_path / "n.onnx"))
    net.setInput(image[None].astype(np.float32))
    found = net.forward()[0]

    def rounded(array, name):
        scale, zero = scales[name]
        return (np.clip(np.rint(array / scale) + zero, 0, 255) - zero) * scale

    padded = np.pad(rounded(image, "image"), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    expected = rounded(np.einsum("ihwyx,oiyx->ohw", windows, steps * 0.004), "map")
    expected = rounded(np.where(expected < 0, slope * expected, expected), "out")
    assert (expected < 0).mean() > 0.3
    assert np.abs(found - expected).max() < 0.022 + 0.04 + 1e-3  # a step of each rounding
