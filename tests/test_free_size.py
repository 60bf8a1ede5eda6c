"""tools/free_size.py: a network that was exported for one size, made to run at any."""

import sys
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from conftest import ROOT
from onnx_files import edited
from tool_helpers import assert_refused, run_tool

from nanodet import NanoDet

onnx = pytest.importorskip("onnx", reason="pip install onnx")
pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
import free_size  # noqa: E402

ENGINES = ("opencv", "onnxruntime")
INSTALLED = (*ENGINES, *(["openvino"] if find_spec("openvino") else []))
IMAGE = cv2.imread(str(ROOT / "example_inputs" / "street.jpg"))
SIZE = (96, 64)  # of the network that is changed
STRIDES, CHANNELS = (8, 16, 32), 8
CLASSES, LOGITS = 16, 8  # as many columns as it has anchors of stride 16


class Exporter:
    """Writes a small NanoDet as it is exported for one size (width, height).

    It has all that fixes the size of the published ones: channel shuffles as reshapes, resizes to
    sizes, constant or computed from those of other maps, and numbers of anchors. As in
    NanoDet-Plus, doubled maps are joined with others. Its weights are the same for each size.
    """

    def __init__(self, size, computed):
        self.size, self.computed = size, computed
        self.random, self.nodes, self.weights = np.random.default_rng(3), [], []

    def constant(self, values):
        tensor = onnx.numpy_helper.from_array(np.asarray(values), f"weight{len(self.weights)}")
        self.weights.append(tensor)
        return tensor.name

    def node(self, operation, *inputs, **attributes):
        name = f"{operation}{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(operation, inputs, [name], name, **attributes))
        return name

    def conv(self, name, given, made, kernel=1, bias=0):
        """A convolution; with a kernel of 3 it halves the sides."""
        scale = 1 / np.sqrt(given * kernel**2)  # so that no confidence becomes 1
        shapes = (made, given, kernel, kernel), (made,)
        weights = [self.random.normal(0, scale, shape).astype(np.float32) for shape in shapes]
        weights[1] += np.float32(bias)
        names = map(self.constant, weights)
        how = {"kernel_shape": [kernel] * 2, "strides": [1 + kernel // 2] * 2}
        how["pads"] = [kernel // 2] * 4
        return self.node("Conv", name, *names, **how)

    def shape(self, stride, *channels):
        return self.constant([1, *channels, self.size[1] // stride, self.size[0] // stride])

    def shuffle(self, name, stride):
        parted = self.node("Reshape", name, self.shape(stride, 2, CHANNELS // 2))
        turned = self.node("Transpose", parted, perm=[0, 2, 1, 3, 4])
        return self.node("Reshape", turned, self.shape(stride, CHANNELS))

    def resize(self, name, like, stride):
        wanted = self.shape(stride, CHANNELS)
        if self.computed:
            sides = [
                self.node("Gather", self.node("Shape", source), self.constant(axis), axis=0)
                for axis, source in enumerate((name, name, like, like))
            ]
            parts = [self.node("Unsqueeze", side, axes=[0]) for side in sides]
            wanted = self.node("Concat", *parts, axis=0)
        none = self.constant(np.zeros(0, np.float32))
        how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return self.node("Resize", name, none, none, wanted, **how)

    def join(self, small, large, stride):
        both = self.node("Concat", self.resize(small, large, stride), large, axis=1)
        return self.node("Add", self.conv(both, 2 * CHANNELS, CHANNELS), large)

    def head(self, name, stride):
        bias = [0] * CLASSES + [-4] * LOGITS  # so that no logit could be a confidence
        columns = self.conv(name, CHANNELS, CLASSES + LOGITS, bias=bias)
        axis, ends = self.constant([1]), (0, CLASSES, CLASSES + LOGITS)
        confidences, logits = (
            self.node("Slice", columns, self.constant([a]), self.constant([b]), axis)
            for a, b in zip(ends, ends[1:], strict=False)
        )
        columns = self.node("Concat", self.node("Sigmoid", confidences), logits, axis=1)
        anchors = self.size[0] * self.size[1] // stride**2
        rows = self.node("Reshape", columns, self.constant([1, ends[-1], anchors]))
        return self.node("Transpose", rows, perm=[0, 2, 1])

    def write(self, path):
        name, maps = self.conv("image", 3, CHANNELS, 3), []
        name = self.conv(name, CHANNELS, CHANNELS, 3)
        for stride in STRIDES:
            name = self.shuffle(self.conv(name, CHANNELS, CHANNELS, 3), stride)
            maps.append(name)
        for level in (1, 0):
            maps[level] = self.join(maps[level + 1], maps[level], STRIDES[level])
        outputs = [self.head(*each) for each in zip(maps, STRIDES, strict=True)]
        float32, value = onnx.TensorProto.FLOAT, onnx.helper.make_tensor_value_info
        image = value("image", float32, (1, 3, self.size[1], self.size[0]))
        rows = [self.size[0] * self.size[1] // stride**2 for stride in STRIDES]
        outputs = [
            value(name, float32, (1, n, CLASSES + LOGITS))
            for name, n in zip(outputs, rows, strict=True)
        ]
        graph = onnx.helper.make_graph(self.nodes, "nanodet", [image], outputs, self.weights)
        opsets = [onnx.helper.make_opsetid("", 12)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=7), path)
        return path


@pytest.fixture
def network(tmp_path):
    return Exporter(SIZE, computed=False).write(tmp_path / "mine.onnx")


@pytest.mark.parametrize("computed", [False, True], ids=["constant", "computed"])
def test_changed_network_finds_what_one_exported_for_that_size_finds(computed, tmp_path, capsys):
    given = Exporter(SIZE, computed).write(tmp_path / "mine.onnx")
    assert run_tool(free_size, capsys, given)[0] == 0
    for size in (SIZE, (160, 128), (64, 128)):
        exported = Exporter(size, computed).write(tmp_path / "exported.onnx")
        for engine in ENGINES:
            options = {"engine": engine, "input_size": size}
            expected = NanoDet(exported, 0.97, engine="onnxruntime").infer(IMAGE)
            found = NanoDet(tmp_path / "mine_any.onnx", 0.97, **options).infer(IMAGE)
            assert len(found) == len(expected) > 5
            apart = abs(found[:, None] - expected).max(axis=2)  # engines order equals differently
            assert apart.min(axis=0).max() < 0.01 > apart.min(axis=1).max()


def test_each_engine_is_said_to_give_the_same_outputs(network, tmp_path, capsys):
    output = tmp_path / "new" / "any.onnx"
    code, printed, error = run_tool(free_size, capsys, network, "-o", output)
    engines = [NanoDet(network, engine=engine).engine for engine in INSTALLED]
    same = "".join(f"{engine}: the same outputs at 96x64\n" for engine in engines)
    assert (code, printed, error) == (0, f"{output}: runs at any size\n{same}", "")


def test_network_that_only_claims_to_take_any_size_is_changed(tmp_path, capsys):
    given = Exporter((416, 416), computed=False).write(tmp_path / "mine.onnx")
    with edited(given) as model:
        for dim, name in zip(
            model.graph.input[0].type.tensor_type.shape.dim[2:], "hw", strict=True
        ):
            dim.dim_param = name
    assert run_tool(free_size, capsys, given)[0] == 0
    for engine in ENGINES:
        NanoDet(tmp_path / "mine_any.onnx", engine=engine, rect=True)


def test_nodes_that_computed_sizes_are_gone(tmp_path, capsys):
    given = Exporter(SIZE, computed=True).write(tmp_path / "mine.onnx")
    run_tool(free_size, capsys, given)
    graph = onnx.load(tmp_path / "mine_any.onnx").graph
    assert {"Shape", "Unsqueeze"}.isdisjoint(node.op_type for node in graph.node)
    used = {name for node in graph.node for name in node.input}
    assert {weight.name for weight in graph.initializer} <= used


NOTHING = np.zeros(0, np.float32)
RESIZES = [("Resize", NOTHING, NOTHING, np.array((1, 3, *s))) for s in ((80, 112), (64, 96))]
RESHAPES = [("Reshape", np.array((1, 3, *s))) for s in ((32, 192), (64, 96))]
ADD = [("Add", np.ones((1, 3, 64, 96), np.float32))]


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (RESIZES, "its node Resize first0 makes [1, 3, 80, 112] of [1, 3, 64, 96], by no whole"),
        (RESHAPES, "its node Reshape first0 makes [1, 3, 32, 192] of [1, 3, 64, 96], whatever the"),
        (ADD, "still runs at no other size when changed: "),
    ],
    ids=["resize", "reshape", "add"],
)
def test_node_that_can_not_be_changed_is_named(first, message, network, tmp_path, capsys):
    with edited(network) as model:
        name = "image"
        for place, (operation, *constants) in enumerate(first):
            given = [name]
            for i, array in enumerate(constants):
                given.append(f"first{place}_{i}")
                model.graph.initializer.append(onnx.numpy_helper.from_array(array, given[-1]))
            name = f"first{place}"
            node = onnx.helper.make_node(operation, given, [name], name)
            model.graph.node.insert(place, node)
        model.graph.node[len(first)].input[0] = name
    result = run_tool(free_size, capsys, network)
    assert_refused(free_size, result, f"{network}: {message}", "Export it at the size you need.")
    assert list(tmp_path.iterdir()) == [network]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["missing.onnx"], "missing.onnx: no such network."),
        (["int8.onnx"], "int8.onnx: runs at any size already."),
        (["mine.onnx", "-o", "mine.onnx"], "mine.onnx: is the network itself, or the one here."),
        (["mine.onnx", "-o", "here.onnx"], "here.onnx: is the network itself, or the one here."),
        (["bad.onnx"], "bad.onnx: is not an ONNX file"),
    ],
)
def test_what_is_no_network_to_change_is_refused(
    options, message, network, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(free_size, "BUNDLED", str(tmp_path / "here.onnx"))
    for name in ("bad.onnx", "here.onnx"):
        (tmp_path / name).write_text("not a network")
    (tmp_path / "int8.onnx").symlink_to(ROOT / "object_detection_nanodet_2022nov_int8.onnx")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert_refused(free_size, run_tool(free_size, capsys, *options), message)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_network_whose_outputs_would_differ_is_not_written(network, tmp_path, monkeypatch, capsys):
    def go_wrong(model, size):
        model = free(model, size)
        bias = next(weight for weight in model.graph.initializer if list(weight.dims) == [24])
        wrong = onnx.numpy_helper.to_array(bias) + np.float32(0.01)
        bias.CopyFrom(onnx.numpy_helper.from_array(wrong, bias.name))
        return model

    free = free_size.free_size
    monkeypatch.setattr(free_size, "free_size", go_wrong)
    result = run_tool(free_size, capsys, network)
    assert_refused(free_size, result, f"{network}: its outputs would differ by 0.01 on ", code=1)
    assert list(tmp_path.iterdir()) == [network]


def test_engine_that_can_not_run_the_result_is_named(network, tmp_path, monkeypatch, capsys):
    def fail_on_opencv(path, *, engine, **settings):
        if engine == "opencv" and "rect" in settings:
            raise ValueError(f"{path}: OpenCV can't read it: it fails at an X node. Do Y.")
        return NanoDet(path, engine=engine, **settings)

    monkeypatch.setattr(free_size, "NanoDet", fail_on_opencv)
    code, printed, _ = run_tool(free_size, capsys, network)
    assert code == 0 and (tmp_path / "mine_any.onnx").exists()
    fault = "can't run it at any size: OpenCV can't read it: it fails at an X node"
    assert printed.splitlines()[1] == f"{NanoDet(network).engine}: {fault}"
    assert ": the same outputs at 96x64" in printed.splitlines()[2]


def test_onnx_is_needed_only_once_the_flags_are_read(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)  # import raises ImportError
    assert run_tool(free_size, capsys, "--help")[0] == 0
    code, _, error = run_tool(free_size, capsys, "mine.onnx")
    assert "free_size.py: error: onnx is not installed. Run: pip install onnx" in f"{code}{error}"


@pytest.mark.parametrize(
    "name", ["nanodet-plus-m_416", "object_detection_nanodet_2022nov", "nanodet_320_2d"]
)
def test_published_network_runs_at_other_sizes_on_each_engine(name, shared, tmp_path, capsys):
    given, output = shared / "models" / f"{name}.onnx", tmp_path / "any.onnx"
    code, printed, _ = run_tool(free_size, capsys, given, "-o", output)
    assert code == 0 and printed.count(": the same outputs at ") == len(INSTALLED)
    for options in (
        {"input_size": (256, 192)},
        {"rect": True},
        {"input_size": 320, "augment": True},
    ):
        opencv, other = (NanoDet(output, engine=e, **options).infer(IMAGE) for e in ENGINES)
        assert len(opencv) > 5
        np.testing.assert_allclose(opencv, other, atol=0.01)
    before = NanoDet(given)
    found = NanoDet(output, input_size=before.input_size).infer(IMAGE)
    np.testing.assert_allclose(found, before.infer(IMAGE), atol=0.01)
