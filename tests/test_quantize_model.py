"""tools/quantize_model.py: the int8 twin of anybody's network."""

import shutil

import cv2
import numpy as np
import pytest
import reference
from conftest import ROOT
from tool_helpers import assert_refused, run_tool

from nanodet import NanoDet

onnx = pytest.importorskip("onnx", reason="pip install onnx")
pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
import quantize_model  # noqa: E402

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
    lowest = -int8.MEAN / int8.STD
    highest = (255 - int8.MEAN) / int8.STD
    scale, zero = table["input"]
    assert 255 * scale == pytest.approx(highest.max() - lowest.min(), rel=0.02)
    assert -zero * scale == pytest.approx(lowest.min(), abs=1.1 * scale)
    for scale, zero in table.values():
        assert scale > 0 and 0 <= zero <= 255 and isinstance(zero, int)


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
