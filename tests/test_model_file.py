"""Files that are not a usable NanoDet: one exception, one sentence, nothing on stderr.

Files that are not networks at all: corpus.py.
"""

import contextlib
import copy
import os
import pickle
import re
import shutil

import pytest
from conftest import ENGINES, make_network
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx_files import edited, write_graph

import nanodet
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
ROWS = ". Where these are the maps of one, export it with a row for each anchor."
MAPS, ROWS = f"[(1, 3, 8, 8)]{ROWS}", f"[(3, 8, 8)]{ROWS}"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "graph, says",
    [
        ("(float[1,3,224,224] image) => (float[1,3] out)" + CLASSES, "its outputs are (1, 3)"),
        ("(float[1,3,H,W] image) => (float[1,3] out)" + CLASSES, "its outputs are (1, 3)"),
        ("(float[1,3,8,8] image) => (float[1,3,8,8] out)" + PIXELS, MAPS),
        ("(float[1,3,8,8] image) => (float[3,8,8] out) { out = Squeeze<axes = [0]>(image) }", ROWS),
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


# Where the format lets a tensor stand.


def as_weight(graph, tensor):
    graph.initializer.append(tensor)


def constant_of(graph, tensor, **value):
    graph.node.insert(0, onnx.helper.make_node("Constant", [], [tensor.name], **value))


def as_constant(graph, tensor):
    constant_of(graph, tensor, value=tensor)


def among_constants(graph, tensor):
    constant_of(graph, tensor, values=[tensor])


def sparse(tensor, index=0):
    """A sparse tensor whose values, or whose indices, are a tensor."""
    values = [onnx.helper.make_tensor("other", onnx.TensorProto.INT64, [1], [0])]
    values.insert(index, tensor)
    return onnx.helper.make_sparse_tensor(*values, [4])


def as_sparse_weight(graph, tensor):
    graph.sparse_initializer.append(sparse(tensor))


def as_index_of_a_sparse_weight(graph, tensor):
    graph.sparse_initializer.append(sparse(tensor, 1))


def as_sparse_constant(graph, tensor):
    constant_of(graph, tensor, sparse_value=sparse(tensor))


def among_sparse_constants(graph, tensor):
    constant_of(graph, tensor, values=[sparse(tensor)])


PLACES = [as_weight, as_constant, among_constants, as_sparse_weight, as_index_of_a_sparse_weight,
          as_sparse_constant, among_sparse_constants]  # fmt: skip


@pytest.fixture
def outside():
    """A tensor whose numbers are in another file."""
    tensor = onnx.TensorProto(name="more", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


@pytest.mark.parametrize("put", PLACES, ids=lambda put: put.__name__)
def test_weights_in_another_file_are_refused_wherever_they_stand(put, outside, network, refused):
    with edited(network) as model:
        put(model.graph, outside)
    assert "keeps its weights in other files. Save it as one file: onnx.save(" in refused(network)


def test_weights_in_another_file_are_refused_in_a_function(outside, network, refused):
    with edited(network) as model:
        model.functions.append(onnx.FunctionProto(name="F", domain="local"))
        as_constant(model.functions[0], outside)
    assert "keeps its weights in other files" in refused(network)


@pytest.mark.parametrize("field", ["data_location", "external_data"])
def test_either_sign_of_weights_in_another_file_is_enough(field, outside, network, refused):
    outside.ClearField(field)
    with edited(network) as model:
        as_weight(model.graph, outside)
    assert "keeps its weights in other files" in refused(network)


def test_second_graph_that_readers_would_join_to_the_first_is_refused(outside, network, refused):
    first = onnx.ModelProto(graph=onnx.GraphProto(initializer=[outside]))
    network.write_bytes(first.SerializeToString() + network.read_bytes())
    assert "is not an ONNX file, or is damaged" in refused(network)


def test_file_that_lacks_its_last_byte_is_damaged(network, refused):
    network.write_bytes(network.read_bytes()[:-1])
    assert "is damaged (" in refused(network)


def test_name_location_is_like_any_other(network):
    with edited(network) as model:
        model.graph.node[1].name = "location"
        model.graph.output[-1].name = model.graph.node[-1].output[0] = "location"
        model.metadata_props.add(key="location", value="plant 3")
        weight = model.graph.initializer[0]
        weight.data_location = onnx.TensorProto.DEFAULT
    assert NanoDet(network).input_size == (96, 64)


@pytest.mark.parametrize("branches", [{"then_branch": 1}, {"bodies": 2}], ids=["If", "Loop"])
def test_network_with_branches_is_refused(branches, network, refused):
    parts = {name: onnx.GraphProto(name=name) for name in branches}
    parts = {n: [part] * 2 if branches[n] == 2 else part for n, part in parts.items()}
    with edited(network) as model:
        first = model.graph.node[0]
        first.attribute.extend(onnx.helper.make_attribute(n, part) for n, part in parts.items())
    says = "not a NanoDet: it contains If or Loop nodes. Give a network exported from NanoDet."
    assert refused(network).endswith(says)


@pytest.mark.parametrize("size", [(64, 4128), (4128, 64)])
def test_canvas_above_4096_is_refused(size, network, refused):
    with edited(network) as model:
        sides = model.graph.input[0].type.tensor_type.shape.dim[2:]
        for dim, side in zip(sides, size[::-1], strict=True):
            dim.dim_value = side
    assert refused(network).endswith(
        f"not a NanoDet: its canvas is {size[0]}x{size[1]}. Give a network exported from NanoDet."
    )


def test_canvas_of_4096_is_read_whose_type_is_not_told(network):
    with edited(network) as model:
        tensor = model.graph.input[0].type.tensor_type
        tensor.ClearField("elem_type")
        for dim in tensor.shape.dim[2:]:
            dim.dim_value = 4096
    assert read_model(network)[1] == (4096, 4096)


LACKS = {
    "opencv": "OpenCV can't read it: it fails at a NanoDetSecretSauce node. Give ",
    "onnxruntime": "onnxruntime can't read it: .*NanoDetSecretSauce.*[^.]. Export it again.",
    "openvino": "OpenVINO can't read it: it lacks operations: NanoDetSecretSauce[-0-9]*. Give ",
}
CANT_PARSE = {
    "opencv": "OpenCV can't read it: Failed to parse onnx model from in-memory byte array. Give ",
    "onnxruntime": r"onnxruntime can't read it: \[ONNXRuntimeError\] : 7 : INVALID_PROTOBUF : F",
    "openvino": "OpenVINO can't read it: .*[^.]. Give ",
}


@pytest.mark.parametrize("engine", ENGINES)
def test_network_with_an_operation_that_the_engine_lacks_is_named(engine, network, refused):
    with edited(network) as model:
        model.graph.node[-1].op_type = "NanoDetSecretSauce"
    assert re.search(f": {LACKS[engine]}", refused(network, engine=engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_damage_that_only_the_engine_sees_is_told_in_its_words(engine, network, refused):
    network.write_bytes(network.read_bytes() + field(14, b"\xff"))  # metadata
    assert re.search(f": {CANT_PARSE[engine]}", refused(network, engine=engine))


@pytest.mark.parametrize("engine", ENGINES)
def test_sparse_weight_runs_in_onnxruntime_and_is_named_by_others(engine, network, refused):
    with edited(network) as model:
        weight = next(weight for weight in model.graph.initializer if weight.name == "zero")
        model.graph.initializer.remove(weight)
        indices = onnx.helper.make_tensor("places", onnx.TensorProto.INT64, [1], [0])
        pair = onnx.helper.make_sparse_tensor(weight, indices, [1])
        model.graph.sparse_initializer.append(pair)
    if engine == "onnxruntime":
        assert NanoDet(network, engine=engine).input_size == (96, 64)
    else:
        assert refused(network, engine=engine).endswith('Give engine="onnxruntime".')


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


@pytest.mark.parametrize("engine", ENGINES)
def test_name_of_any_letters_is_read(engine, network):
    path = network.rename(network.with_name("сеть 网络 nanodét ☃.onnx"))
    assert NanoDet(str(path), engine=engine).input_size == (96, 64)


@pytest.mark.parametrize("sides", [(-1, -(2**63)), (96, -1), (-1, 96)], ids=str)
def test_side_below_0_is_any(sides, bundled, tmp_path):
    path = shutil.copy(bundled, tmp_path / "n.onnx")
    with edited(path) as model:
        dims = model.graph.input[0].type.tensor_type.shape.dim[2:]
        for dim, side in zip(dims, sides, strict=True):
            dim.Clear()
            dim.dim_value = side
    assert read_model(path)[1] is None
    assert NanoDet(path, input_size=96, engine="onnxruntime").input_size == (96, 96)


def test_size_is_that_which_onnx_reads(shared):
    for path in sorted((shared / "models").glob("*.onnx")):
        graph = onnx.load(path, load_external_data=False).graph
        weights = {weight.name for weight in graph.initializer}
        (image,) = (value for value in graph.input if value.name not in weights)
        height, width = (dim.dim_value for dim in image.type.tensor_type.shape.dim[2:])
        assert read_model(path)[1] == (width, height)


@pytest.mark.parametrize("again", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301
def test_error_tells_fault_remedy_and_settings_also_in_another_process(again):
    error = again(ModelError("n.onnx: fails.", "Give {}.", engine="onnxruntime", input_size=None))
    assert type(error) is ModelError
    assert (error.fault, error.remedy) == ("n.onnx: fails.", "Give {}.")
    assert error.settings == {"engine": "onnxruntime", "input_size": None}
    assert str(error) == 'n.onnx: fails. Give engine="onnxruntime" or the input_size.'
    assert error.text("{}={}".format) == (
        "n.onnx: fails. Give engine=onnxruntime or input_size=None."
    )


def test_error_without_a_remedy_is_its_fault():
    assert str(ModelError("n.onnx: fails.")) == "n.onnx: fails."


@pytest.fixture(scope="module")
def small_network(tmp_path_factory):
    path = make_network(tmp_path_factory.mktemp("small") / "n.onnx", classes=1, size=(64, 64))
    return path.read_bytes()


# Time. It is bounded by how many numbers of the format are read, each from bytes of its own.


@pytest.fixture
def numbers_read(tmp_path, monkeypatch):
    """Calls that read bytes as a network, refused or not, and tell how many numbers they read."""
    read, path, places = nanodet._varint, tmp_path / "n.onnx", []
    monkeypatch.setattr(nanodet, "_varint", lambda data, at: (places.append(at), read(data, at))[1])

    def count(data):
        path.write_bytes(data)
        places.clear()
        with contextlib.suppress(ModelError):  # and nothing else
            read_model(path)
        return len(places)

    return count


def in_a_graph(data):
    return varint(7 << 3 | 2) + varint(len(data)) + data


def test_no_byte_of_a_prefix_is_read_twice(numbers_read, small_network, bundled):
    tiny = network_of(field(1, b"image"), field(1, 64), field(1, 64))
    for file, step in ((tiny, 1), (small_network, 61), (bundled.read_bytes()[:9000], 101)):
        for end in range(0, len(file) + 1, step):
            assert numbers_read(file[:end]) <= end + 1


@pytest.mark.parametrize("wrap", [bytes, in_a_graph], ids=["alone", "in a graph"])
def test_no_repeated_byte_is_read_twice(wrap, numbers_read):
    for value in range(256):
        assert numbers_read(wrap(bytes([value]) * 600)) <= 606


@pytest.mark.parametrize("many", [b"\x08\0", b"\x2a\0", b"\x0a\0", b"\x0a\2\x2a\0"], ids=str)
def test_more_fields_than_any_network_has_are_not_read(many, numbers_read, monkeypatch):
    monkeypatch.setattr(nanodet, "MOST_FIELDS", 1000)
    assert 1000 < numbers_read(in_a_graph(many * 5000)) < 3000


def test_field_of_number_0_ends_the_reading(numbers_read):
    assert numbers_read(bytes(100_000)) == 1
    assert numbers_read(b"\x88" + 9 * b"\x80" + bytes(2)) == 1  # nor is one of 11 bytes a number
    assert numbers_read(in_a_graph(bytes(100_000))) <= 4


def test_file_above_512_mb_is_refused_unread(refused, tmp_path):
    path = tmp_path / "n.onnx"
    path.touch()
    os.truncate(path, 1 << 40)  # of nothing: it would fit in no memory
    assert refused(path).endswith(
        "not a NanoDet: it is larger than 512 MB. Give a network exported from NanoDet."
    )


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


@st.composite
def messages(draw, depth=0):
    """Protobuf of the numbers that `read_model` looks for, with any kind of value."""
    out = bytearray()
    for _ in range(draw(st.integers(0, 5))):
        number, kind = draw(st.sampled_from((1, 2, 5, 7, 8, 11, 13))), draw(st.integers(0, 5))
        value = b""
        if kind == 0:
            value = varint(draw(st.integers(0, 2**70 - 1) | st.sampled_from((1, 3, 64, 2**63))))
        elif kind == 2:
            inner = messages(depth + 1) if depth < 6 else st.binary(max_size=4)
            inner = draw(inner | st.binary(max_size=4))
            value = varint(len(inner)) + inner
        elif kind in (1, 5):
            value = bytes(8 if kind == 1 else 4)
        out += varint(number << 3 | kind) + value
    return bytes(out)


def varint(value):
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def field(number, value):
    """A field of a message, of bytes or a number."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def network_of(name, *sides):
    """The smallest file that is a network for `read_model`, of fields for its name and sides."""
    shape = b"".join(field(1, side) for side in (field(1, 1), field(1, 3), *sides))
    return field(7, field(11, name + field(2, field(1, field(2, shape)))))


GOOD_NAME, GOOD_SIDE = field(1, b"image"), field(1, 64)


@given(messages().map(lambda graph: field(7, graph)) | messages() | st.binary(max_size=400))
@example(network_of(GOOD_NAME, GOOD_SIDE, GOOD_SIDE))
@example(network_of(GOOD_NAME, field(1, b"\1"), GOOD_SIDE))  # a side of text
@example(network_of(GOOD_NAME, varint(1 << 3 | 5) + bytes(4), GOOD_SIDE))  # of fixed length
@example(network_of(field(1, 2**40), GOOD_SIDE, GOOD_SIDE))  # a name that is a number
@example(network_of(field(1, 2**64), GOOD_SIDE, GOOD_SIDE))
@example(field(7, field(5, field(8, 2**64))))
def test_any_bytes_and_any_protobuf_are_a_network_or_one_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(data)
    try:
        read, size = read_model(path)
    except ModelError as error:
        assert str(path) in str(error)
    else:
        assert read.tobytes() == bytes(data)
        assert size is None or all(0 < side <= 4096 for side in size)
