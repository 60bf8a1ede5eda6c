"""Files that are not a usable NanoDet: one exception, one sentence, nothing on stderr."""

import re

import numpy as np
import pytest
from conftest import as_model, make_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanodet import ModelError, NanoDet, read_model

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

POINTER = b"""version https://git-lfs.github.com/spec/v1
oid sha256:4b82da9944b88577175ee23a459dce2e26e6e4be573def65b1055dc2d9720186
size 3800954
"""


@pytest.fixture
def refused(capfd):
    """Calls that must fail with a sentence about a file and print nothing; returns the sentence."""

    def check(path, **settings):
        with pytest.raises(ModelError) as error:
            NanoDet(path, **settings)
        sentence = str(error.value)
        assert sentence.startswith(f"{path}: ") and "\n" not in sentence
        assert capfd.readouterr() == ("", "")
        return sentence

    return check


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: path.write_bytes(POINTER), "Run 'git lfs pull'"),
        (lambda path: path.write_bytes(POINTER.replace(b"\n", b"\r\n")), "a Git LFS pointer"),
    ],
    ids=["missing", "folder", "empty", "Git LFS pointer", "the same on Windows"],
)
def test_what_is_not_a_file_with_a_network_is_named(make, fault, refused, tmp_path):
    make(tmp_path / "n.onnx")
    assert fault in refused(tmp_path / "n.onnx")


@pytest.mark.parametrize(
    "content",
    [
        b"hello\n",
        b"<!DOCTYPE html><html><head><title>404: Not Found</title></head></html>",
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        b"PK\x03\x04" + bytes(60),
        bytes(1000),
        b"\xff" * 1000,
        b"\x3a",
        np.random.default_rng(0).bytes(10_000),
    ],
    ids=["text", "html", "png", "jpeg", "zip", "zeros", "ones", "a byte", "random"],
)
def test_file_of_something_else_is_not_a_network(content, refused, tmp_path):
    path = tmp_path / "n.onnx"
    path.write_bytes(content)
    assert "is not an ONNX file, or is damaged" in refused(path)


def model_of(nodes, inputs, outputs, weights=None):
    """An ONNX model from nodes and from shapes and arrays by name."""
    graph = helper.make_graph(
        nodes,
        "other",
        [helper.make_tensor_value_info(*item[:1], TensorProto.FLOAT, item[1]) for item in inputs],
        [helper.make_tensor_value_info(*item[:1], TensorProto.FLOAT, item[1]) for item in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    return as_model(graph)


def classifier(side):
    """Pictures in, probabilities of 1000 classes out."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["row"]),
        helper.make_node("MatMul", ["row", "weight"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probability"], axis=1),
    ]
    weight = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    return model_of(
        nodes, [("image", [1, 3, side, side])], [("probability", [1, 1000])], {"weight": weight}
    )


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
@pytest.mark.parametrize("side", [224, "side"])
def test_network_of_another_task_is_not_a_nanodet(side, engine, refused, tmp_path):
    onnx.save(classifier(side), tmp_path / "n.onnx")
    sentence = refused(tmp_path / "n.onnx", engine=engine)
    if side == "side" and "OpenCV can't read it" in sentence:
        return  # OpenCV 4.10: its MatMul wants to know all sizes
    assert "not a NanoDet" in sentence and "(1, 1000)" in sentence


def test_network_that_returns_pictures_is_not_a_nanodet(refused, tmp_path):
    nodes = [helper.make_node("Sigmoid", ["image"], ["mask"])]
    model = model_of(nodes, [("image", [1, 3, 64, 64])], [("mask", [1, 3, 64, 64])])
    onnx.save(model, tmp_path / "n.onnx")
    sentence = refused(tmp_path / "n.onnx")
    assert "not a NanoDet" in sentence and "(1, 3, 64, 64)" in sentence


@pytest.mark.parametrize(
    "inputs",
    [
        [("image", [1, 1, 28, 28])],
        [("image", [1, 224, 224, 3])],
        [("image", [1, 300])],
        [("image", [1, 3, 64, 64]), ("other", [1, 3, 64, 64])],
    ],
    ids=["grey", "channels last", "text", "two inputs"],
)
def test_network_of_another_input_is_not_a_nanodet(inputs, refused, tmp_path):
    names = [name for name, _ in inputs]
    nodes = [helper.make_node("Sum", names, ["out"])]
    onnx.save(model_of(nodes, inputs, [("out", inputs[0][1])]), tmp_path / "n.onnx")
    sentence = refused(tmp_path / "n.onnx")
    assert "not a NanoDet: its inputs are" in sentence and str(inputs[0][1]) in sentence


@pytest.mark.parametrize("side", [2**40, -1])
def test_network_of_an_impossible_size_is_refused(side, tmp_path):
    model = onnx.load(make_network(tmp_path / "whole.onnx", size=(64, 64)))
    for dim in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        dim.dim_value = side
    path = tmp_path / "n.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=re.escape(f"{path}: ")):
        NanoDet(path)


def test_network_with_its_weights_elsewhere_says_so(refused, tmp_path):
    model = onnx.load(make_network(tmp_path / "whole.onnx", size=(64, 64)))
    path = tmp_path / "n.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").stat().st_size > path.stat().st_size
    assert "weights in other files" in refused(path)


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
def test_network_with_an_operation_that_the_engine_lacks_is_named(engine, refused, tmp_path):
    model = onnx.load(make_network(tmp_path / "whole.onnx", size=(64, 64)))
    model.graph.node[-1].op_type = "NanoDetSecretSauce"
    onnx.save(model, tmp_path / "n.onnx")
    sentence = refused(tmp_path / "n.onnx", engine=engine)
    assert "can't read it" in sentence and "NanoDetSecretSauce" in sentence


def test_weights_listed_as_inputs_do_not_count(tmp_path):
    model = onnx.load(make_network(tmp_path / "whole.onnx", size=(96, 64)))
    for weight in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        )
    onnx.save(model, tmp_path / "n.onnx")
    assert read_model(tmp_path / "n.onnx")[1] == (96, 64)
    assert NanoDet(tmp_path / "n.onnx").input_size == (96, 64)


def test_nodes_in_any_order_are_a_network_where_the_engine_sorts_them(bundled, tmp_path):
    model = onnx.load(bundled)  # float16 converters put their nodes last
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "n.onnx")
    assert NanoDet(tmp_path / "n.onnx", engine="onnxruntime").head.num_classes == 80
    with pytest.raises(ModelError, match="OpenCV can't read it"):
        NanoDet(tmp_path / "n.onnx")


def test_name_of_any_letters_is_read(tmp_path):
    path = tmp_path / "сеть 网络 é" / "nanodét ☃.onnx"
    path.parent.mkdir()
    make_network(path, size=(64, 64))
    for engine in ("opencv", "onnxruntime"):
        assert NanoDet(str(path), engine=engine).input_size == (64, 64)


def test_size_is_read_from_the_file(bundled, tmp_path):
    assert read_model(bundled)[1] is None
    for size in ((320, 320), (640, 384)):
        path = make_network(tmp_path / "n.onnx", size=size, classes=1, symbolic_batch=True)
        data, own_size = read_model(path)
        assert own_size == size and data.tobytes() == path.read_bytes()


def test_size_is_that_which_onnx_reads(shared):
    for path in sorted((shared / "models").glob("*.onnx")):
        graph = onnx.load(path, load_external_data=False).graph
        weights = {weight.name for weight in graph.initializer}
        (image,) = (value for value in graph.input if value.name not in weights)
        height, width = (dim.dim_value for dim in image.type.tensor_type.shape.dim[2:])
        assert read_model(path)[1] == (width, height)


@pytest.fixture(scope="module")
def small_network(tmp_path_factory):
    path = make_network(tmp_path_factory.mktemp("small") / "n.onnx", classes=1, size=(64, 64))
    return path.read_bytes()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_file_is_read_or_refused_and_nothing_else(data, small_network, tmp_path):
    damaged = bytearray(small_network)
    # Numbers between weights: there the structure of the file stands.
    places = st.integers(0, 400) | st.integers(-600, -1) | st.integers(0, len(damaged) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=6)):
        damaged[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    path = tmp_path / "n.onnx"
    path.write_bytes(damaged[:cut])
    try:
        read, size = read_model(path)
    except ModelError as error:
        assert str(path) in str(error)
    else:
        assert read.tobytes() == bytes(damaged[:cut])
        assert size is None or min(size) > 0
