"""Files that are not a usable NanoDet: one exception, one sentence, nothing on stderr.

Files that are not networks at all: corpus.py.
"""

import pytest
from conftest import make_network
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx_files import edited, write_graph

from nanodet import ModelError, NanoDet, read_model

onnx = pytest.importorskip("onnx")


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


@pytest.fixture
def network(tmp_path):
    """A small NanoDet, to be changed."""
    return make_network(tmp_path / "n.onnx", size=(96, 64))


def test_missing_file_is_named(refused, tmp_path):
    assert "no such file. Give the path of a NanoDet" in refused(tmp_path / "n.onnx")


CLASSES = "{ mean = GlobalAveragePool(image) row = Flatten(mean) out = Softmax<axis = 1>(row) }"
PIXELS = "{ out = Sigmoid(image) }"
MAPS = "[(1, 3, 8, 8)]. Where these are the maps of one, export it with a row for each anchor."


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
@pytest.mark.parametrize(
    "graph, says",
    [
        ("(float[1,3,224,224] image) => (float[1,3] out)" + CLASSES, "its outputs are (1, 3)"),
        ("(float[1,3,H,W] image) => (float[1,3] out)" + CLASSES, "its outputs are (1, 3)"),
        ("(float[1,3,8,8] image) => (float[1,3,8,8] out)" + PIXELS, MAPS),
        ("(float[1,1,28,28] image) => (float[1,1,28,28] out)" + PIXELS, "[[1, 1, 28, 28]]"),
        ("(float[1,9,9,3] image) => (float[1,9,9,3] out)" + PIXELS, "[[1, 9, 9, 3]]"),
        ("(float[1,300] image) => (float[1,300] out)" + PIXELS, "[[1, 300]]"),
        ("(float[1,3,8,8] image, float[1] more) => (float[1] out)" + PIXELS, "[[1, 3, 8, 8], [1]]"),
        ("(float[1,3,1099511627776,64] image) => (float[1] out)" + PIXELS, "its canvas is 64x1099"),
        ("(uint8[1,3,64,64] image) => (float[1] out)" + PIXELS, "its input is not floating point"),
        ("(double[1,3,64,64] image) => (double[1] out)" + PIXELS, "its input is not floating"),
    ],
)
def test_network_of_another_task_is_not_a_nanodet(graph, says, engine, refused, tmp_path):
    assert says in refused(write_graph(tmp_path / "n.onnx", graph), engine=engine)


@pytest.mark.parametrize("place", ["weights", "Constant", "first of two graphs", "branch"])
def test_weights_in_another_file_are_refused_wherever_they_are_named(place, network, refused):
    before = b""
    with edited(network) as model:
        graph = model.graph
        weight = graph.initializer.pop()
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="secret")
        if place == "weights":
            graph.initializer.append(weight)
        elif place == "Constant":
            constant = onnx.helper.make_node("Constant", [], [weight.name], value=weight)
            graph.node.insert(0, constant)
        elif place == "first of two graphs":  # readers of protobuf join all graphs of a file to one
            first = onnx.GraphProto(initializer=[weight])
            before = onnx.ModelProto(graph=first).SerializeToString()
        else:
            branch = onnx.GraphProto(name="then", initializer=[weight])
            choice = onnx.helper.make_node("If", ["zero"], [weight.name], then_branch=branch)
            graph.node.insert(0, choice)
    network.write_bytes(before + network.read_bytes())
    fault = "is damaged" if place == "first of two graphs" else "keeps its weights in other files"
    assert fault in refused(network)


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
def test_network_with_an_operation_that_the_engine_lacks_is_named(engine, network, refused):
    with edited(network) as model:
        model.graph.node[-1].op_type = "NanoDetSecretSauce"
    sentence = refused(network, engine=engine)
    assert "can't read it" in sentence and "NanoDetSecretSauce" in sentence


def test_weights_listed_as_inputs_do_not_count(network):
    with edited(network) as model:
        for weight in model.graph.initializer:
            value = onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
            model.graph.input.append(value)
    assert NanoDet(network).input_size == (96, 64)


def test_nodes_in_any_order_are_a_network_where_the_engine_sorts_them(bundled, tmp_path):
    path = tmp_path / "n.onnx"
    path.write_bytes(bundled.read_bytes())
    with edited(path) as model:  # float16 converters put their nodes last
        nodes = list(model.graph.node)[::-1]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    assert NanoDet(path, engine="onnxruntime").head.num_classes == 80
    with pytest.raises(ModelError, match="OpenCV can't read it"):
        NanoDet(path)


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
def test_name_of_any_letters_is_read(engine, network):
    path = network.rename(network.with_name("сеть 网络 nanodét ☃.onnx"))
    assert NanoDet(str(path), engine=engine).input_size == (96, 64)


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
