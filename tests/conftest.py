"""What the tests share: places of files, and small networks that emit known boxes."""

import importlib.util
import math
import os
from pathlib import Path

import numpy as np
import pytest
import reference
import systems
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
# Not importorskip: to import OpenVINO reports that to its makers.
HAS_OPENVINO = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="pip install openvino"
)
ENGINES = ("opencv", "onnxruntime", pytest.param("openvino", marks=HAS_OPENVINO))
CI = os.environ.get("CI", "").lower() in ("1", "true")


class Absent(pytest.skip.Exception):
    """A program or data is missing that some of the tests need."""


def absent(reason):
    """Skip a test that lacks a program or data; at the gate, which has all of them, fail."""
    if os.environ.get("NANODET_SHARED_REQUIRED") == "1":
        pytest.fail(reason)
    raise Absent(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call):
    """Place each such skip here: pytest then says in one line how many tests lack the same."""
    report = yield
    if call.excinfo is not None and isinstance(call.excinfo.value, Absent):
        report.longrepr = (__file__, 1, f"Skipped: {call.excinfo.value.msg}")
    return report


def pytest_collection_modifyitems(items):
    """Mark the tests that can't run on this system."""
    for item in items:
        if why := systems.why_not_here(f"{item.path.name}::{item.name}"):
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup():
    """Skip a test whose fixture asks for what this system lacks."""
    return (yield from _skipped_where_lacking())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    """Skip a test that asks for what this system lacks."""
    return (yield from _skipped_where_lacking())


def _skipped_where_lacking():
    try:
        return (yield)
    except Exception as error:
        if why := systems.lacking(error):
            pytest.skip(why)
        raise


settings.register_profile(
    "quick", deadline=None, max_examples=60, derandomize=CI, database=None, print_blob=True
)
# python -m pytest -k test_any --hypothesis-profile long
settings.register_profile(
    "long",
    deadline=None,
    max_examples=int(os.environ.get("NANODET_FUZZ_EXAMPLES", "100_000")),
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("quick")


@pytest.fixture(scope="session")
def bundled():
    """Path of the network that the repository ships."""
    return ROOT / "object_detection_nanodet_2022nov.onnx"


@pytest.fixture(scope="session")
def shared():
    """Folder of networks and pictures that may not be shipped, beside the repository."""
    folder = Path(os.environ.get("NANODET_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        absent(
            "need networks and pictures that may not be shipped, and there is no folder "
            f"{folder}: set NANODET_SHARED to where they lie"
        )
    return folder


def make_network(
    path,
    *,
    boxes=(),
    classes=80,
    reg_max=7,
    size=(416, 416),
    levels=3,
    layout="apart",
    order="pairs",
    rank=3,
    misleading_names=False,
    symbolic_batch=False,
    float16_weights=False,
    centre_offset=None,
    flat_logits=False,
):
    """Write a NanoDet that finds the same boxes in every image, and background elsewhere.

    Parameters
    ----------
    path : path-like
        ONNX file to write.
    boxes : sequence of (x1, y1, x2, y2, confidence, class_id)
        In pixels of the canvas. Equal corners share an anchor.
    size : tuple of int
        (width, height) of the canvas.
    layout : {"apart", "joined", "two", "one"}
        An array for confidences and one for logits of each level; one array a level; two of
        all levels; one of all.
    order : {"pairs", "grouped", "reversed"} or int
        Level by level, all confidences first, pairs backwards, or shuffled with this seed.
    flat_logits : bool
        All logits 0.5, so that they could be probabilities too; boxes must suit.

    Returns
    -------
    path
    """
    onnx = pytest.importorskip("onnx")
    random = np.random.default_rng(7)
    offset = reference.centre_offset_of(levels) if centre_offset is None else centre_offset
    strides = reference.strides_of(levels)
    grids = [np.array(reference.centres(size, stride, offset)) for stride in strides]
    # Background: next to no confidence, and logits that no column of probabilities could hold.
    confidences = [random.random((len(grid), classes)) ** 4 * 0.05 for grid in grids]
    logits = [random.normal(0, 3, (len(grid), 4, reg_max + 1)) for grid in grids]
    if flat_logits:
        logits = [np.full_like(array, 0.5) for array in logits]
    taken = {}
    for *corners, confidence, class_id in boxes:
        anchors = _anchors_of(corners, strides, grids, reg_max)
        if flat_logits:  # every side at the middle bin
            anchors = [anchor for anchor in anchors if set(anchor[2]) == {reg_max / 2}]
        anchors = [a for a in anchors if taken.get(a[:2], corners) == corners]
        level, row, distances = anchors[int(corners[0]) % len(anchors)]
        taken[level, row] = corners
        confidences[level][row, class_id] = confidence
        if not flat_logits:
            logits[level][row] = [_logits_of(distance, reg_max) for distance in distances]

    logits = [array.reshape(len(array), -1) for array in logits]
    if layout in ("two", "one"):
        confidences, logits = [np.concatenate(confidences)], [np.concatenate(logits)]
    if layout in ("joined", "one"):
        arrays = [np.column_stack(pair) for pair in zip(confidences, logits, strict=True)]
    elif order == "grouped":
        arrays = confidences + logits
    else:
        arrays = [array for pair in zip(confidences, logits, strict=True) for array in pair]
    if order == "reversed":
        arrays.reverse()
    elif isinstance(order, int):
        arrays = [arrays[i] for i in np.random.default_rng(order).permutation(len(arrays))]
    names = [f"output{i}" for i in range(len(arrays))]
    if misleading_names:  # those of confidences on logits and the other way round
        names = [
            f"{'bbox' if array.shape[1] == classes else 'cls'}_pred{i}"
            for i, array in enumerate(arrays)
        ]
    dtype = np.float16 if float16_weights else np.float32
    outputs = dict(zip(names, arrays, strict=True))
    onnx.save(_model_of(outputs, size, rank, symbolic_batch, dtype), path)
    return path


def _anchors_of(corners, strides, grids, reg_max):
    """Level, row and distances, in strides, of the anchor of each level that can hold a box."""
    x1, y1, x2, y2 = corners
    anchors = []
    for level, (stride, grid) in enumerate(zip(strides, grids, strict=True)):
        row = int(np.hypot(grid[:, 0] - (x1 + x2) / 2, grid[:, 1] - (y1 + y2) / 2).argmin())
        x, y = grid[row].tolist()
        distances = [side / stride for side in (x - x1, y - y1, x2 - x, y2 - y)]
        if all(0 <= distance <= reg_max for distance in distances):
            anchors.append((level, row, distances))
    return anchors


def _logits_of(distance, reg_max):
    """Logits whose expectation is a distance: two neighbouring bins share the probability."""
    low = min(int(distance), reg_max - 1)
    logits = np.full(reg_max + 1, -25.0)
    for i, share in ((low, 1 - (distance - low)), (low + 1, distance - low)):
        logits[i] = math.log(max(share, 1e-11))
    return logits


def _model_of(outputs, size, rank, symbolic_batch, dtype):
    """A network of these outputs, whatever the image: constants plus 0 times the image's mean."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Mul", ["mean", "zero"], ["nothing_4d"]),
        helper.make_node("Reshape", ["nothing_4d", "ones"], ["nothing"]),
    ]
    weights = {"zero": np.zeros(1, np.float32), "ones": np.ones(rank, np.int64)}
    values = []
    for name, array in outputs.items():
        constant = f"{name}_constant"
        shape = (1,) * (rank - 2) + array.shape
        weights[constant] = array.reshape(shape).astype(dtype)
        if dtype == np.float16:
            nodes.append(helper.make_node("Cast", [constant], [f"{name}_32"], to=TensorProto.FLOAT))
            constant = f"{name}_32"
        nodes.append(helper.make_node("Add", [constant, "nothing"], [name]))
        shape = ("batch", *array.shape) if symbolic_batch and rank == 3 else shape
        values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    batch = "batch" if symbolic_batch else 1
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, (batch, 3, size[1], size[0]))
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return as_model(helper.make_graph(nodes, "nanodet", [image], values, initializers))


def as_model(graph):
    """An ONNX model of a graph that OpenCV 4.10 reads, too."""
    from onnx import checker, helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7)
    checker.check_model(model)
    return model


def known_boxes(size, classes, reg_max, levels, seed=0):
    """Boxes that `make_network` can hold: hardly overlapping, first and last class among them."""
    random = np.random.default_rng(seed)
    boxes = []
    for i in range(200):
        stride = reference.strides_of(levels)[i % levels]
        width, height = (min(stride * random.uniform(1.5, reg_max), 0.8 * side) for side in size)
        x, y = random.uniform(0, size[0] - width), random.uniform(0, size[1] - height)
        box = (x, y, x + width, y + height)
        if all(reference.iou(box, other) < 0.3 for other in boxes):
            boxes.append(box)
    boxes = boxes[:8]
    class_ids = [0, classes - 1, *random.integers(0, classes, len(boxes))]
    confidences = np.linspace(0.95, 0.4, len(boxes))
    return [(*b, float(p), int(c)) for b, p, c in zip(boxes, confidences, class_ids, strict=False)]
