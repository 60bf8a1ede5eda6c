"""What must hold for any input at all; longer, 100,000 cases of each:

python -m pytest tests/test_fuzz.py --hypothesis-profile long
"""

import argparse
import contextlib
import io
import os
import random
import re
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import reference
from conftest import make_network
from hypothesis import assume, example, given
from hypothesis import strategies as st

from media.frames import SourceError
from media.live import Live
from media.sources import Pictures, open_source
from media.videos import Video
from nanodet import (
    MAX_CANDIDATES,
    Detections,
    Head,
    Letterbox,
    ModelError,
    anchor_grid,
    decode,
    read_model,
)
from options import BACKENDS, UsageError, find_classes, parse, read_labels

ROOT = Path(__file__).resolve().parent.parent
ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates and NUL, too
SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """The current folder while these tests run: one of a few files."""
    folder = tmp_path_factory.mktemp("fuzz")
    cv2.imwrite(str(folder / "a.jpg"), np.zeros((8, 8, 3), np.uint8))
    (folder / "0").mkdir()
    (folder / "0" / "b[1].png").write_bytes(b"no picture")
    (folder / "empty").write_bytes(b"")
    (folder / "loop").symlink_to("loop")
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@contextlib.contextmanager
def file_of(data):
    """Path of a file of these bytes."""
    with tempfile.TemporaryDirectory(dir=".") as place:
        path = Path(place) / "file"
        path.write_bytes(data)
        yield path


# Letterbox and decode: more in test_letterbox.py and test_decode.py.


@given(st.tuples(*[st.integers(1, 300)] * 2), st.tuples(*[st.integers(1, 100)] * 2), SEEDS)
def test_drawn_image_stays_within_its_place_and_its_own_values(image, canvas, seed):
    box = Letterbox.fit(image, canvas)
    low, high = sorted(np.random.default_rng(seed).integers(10, 256, 2).tolist())
    pixels = np.random.default_rng(seed).integers(low, high + 1, (*image[::-1], 3), np.uint8)
    drawn = np.full((*canvas[::-1], 3), 3, np.uint8)
    box.draw(pixels, drawn)
    inside = drawn[box.top : box.top + box.height, box.left : box.left + box.width]
    assert low <= inside.min() and inside.max() <= high
    assert (drawn == 3).all(axis=2).sum() == canvas[0] * canvas[1] - box.width * box.height


ODD = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e30, 1e4, -1e4, 0.0, 1.0)
STRIDES = st.sampled_from((4, 8, 16, 32, 64, 128))


@given(
    strides=st.lists(STRIDES, min_size=1, max_size=6).map(tuple),
    canvas=st.tuples(*[st.integers(1, 8).map(lambda steps: 32 * steps)] * 2),
    classes=st.integers(1, 100),
    reg_max=st.integers(1, 32),
    joined=st.booleans(),
    offset=st.sampled_from((0.0, 0.5)),
    threshold=st.floats(0, 1, width=32),
    odd=st.sampled_from((0.0, 0.001, 0.2)),
    seed=SEEDS,
)
def test_decode_agrees_with_plain_loops(
    strides, canvas, classes, reg_max, joined, offset, threshold, odd, seed
):
    dice = np.random.default_rng(seed)
    counts = [len(reference.centres(canvas, stride, 0)) for stride in strides]
    dense = min(1.0, 60 / (classes * sum(counts)))  # some 60 boxes: plain loops are slow
    levels, outputs, groups = [], [], []
    for stride, count in zip(strides, counts, strict=True):
        confidence = dice.random((count, classes)) * (dice.random((count, classes)) < dense)
        logits = dice.normal(0, 3, (count, 4 * (reg_max + 1)))
        for array, share in ((confidence, odd * dense), (logits, odd / 20)):
            hit = dice.random(array.shape) < share
            array[hit] = dice.choice(ODD, hit.sum())
        arrays = [array.astype(np.float32) for array in (confidence, logits)]
        levels.append((*arrays, stride))
        i, j = len(outputs), len(outputs) + (not joined)
        groups.append((i, j, (stride,)))
        outputs += [np.column_stack(arrays)] if joined else arrays
    head = Head(strides, classes, reg_max, tuple(groups))
    grids = [anchor_grid(canvas, group, offset) for _, _, group in groups]
    xyxy, confidence, class_id = decode(outputs, head, grids, threshold)

    expected = np.array(reference.decode(levels, canvas, offset, threshold)).reshape(-1, 6)
    expected = expected[:MAX_CANDIDATES]
    expected = expected[np.isfinite(expected[:, :5]).all(axis=1)]
    expected[:, 4] = np.minimum(expected[:, 4], 1)
    assert xyxy.shape == (len(expected), 4)
    np.testing.assert_array_equal(confidence, expected[:, 4].astype(np.float32))
    np.testing.assert_array_equal(class_id, expected[:, 5])
    np.testing.assert_allclose(xyxy, expected[:, :4], rtol=1e-5, atol=1e-5 * max(strides) * reg_max)


# Detections.

SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(SHAPES, SHAPES, SHAPES)
@example((3, 4), (3,), (3,))
@example((), (), ())
def test_detections_have_fitting_shapes_or_are_refused(xyxy, confidence, class_id):
    shapes = (xyxy, confidence, class_id)
    arrays = [np.zeros(shape) for shape in shapes]
    n = confidence[0] if confidence else 0
    if shapes == ((n, 4), (n,), (n,)):
        assert len(Detections(*arrays)) == n
    else:
        with pytest.raises(ValueError, match="must have shape"):
            Detections(*arrays)


# Labels and classes.

LABELS = st.lists(ANY_TEXT.map(str.strip).filter(bool), min_size=1, max_size=12)


@given(st.binary(max_size=300) | ANY_TEXT.map(lambda text: text.encode("utf-8", "ignore")))
@example(b"\xef\xbb\xbf")
@example(b"\xff\xfea\0")
@example(b"\r\n\x0b\x0c\x1c\x85 \n")
def test_labels_of_any_bytes_are_names_or_one_error(data):
    with file_of(data) as path:
        try:
            labels = read_labels(str(path))
        except UsageError as error:
            assert str(path) in str(error)
        else:
            assert isinstance(labels, tuple) and labels
            assert all(label and label == label.strip() for label in labels)


@given(ANY_TEXT, LABELS)
def test_any_class_names_are_found_or_one_is_named_unknown(names, labels):
    try:
        found = find_classes(names, labels)
    except UsageError as error:
        assert str(error).startswith("--classes")
    else:
        asked = {name.strip().lower() for name in names.split(",")}
        assert found and all(labels[class_id].lower() in asked for class_id in found)


# Sources.


class Capture:
    """Stands for cv2.VideoCapture: opens as told, and yields no frame."""

    opens, value = True, 0.0

    def __init__(self, *_):
        pass

    def isOpened(self):
        return self.opens

    def get(self, _):
        return self.value

    def read(self):
        return False, None

    def release(self):
        pass


def no_server(*_):
    raise OSError


PARTS = (
    *("http://", "https://", "rtsp://", "rtsps://", "file://", "://", "HTTP://", "ftp:", "@"),
    *("*", "**", "?", "[", "]", "[!a]", "/", "./", ".", "~", "0", "9" * 30, "9" * 5000, "-1", "²"),
    *("٣", "a.jpg", "a", "b[1].png", "empty", "loop", " ", "\n", "\0", "\udcff", "\ud800", "é"),
    *("x" * 300, "%s", "%d", "\\", "C:\\", "$HOME", "|"),
)
INPUTS = st.lists(st.sampled_from(PARTS), max_size=5).map("".join) | ANY_TEXT
NUMBERS = st.sampled_from((0.0, -1.0, 25.0, 1e300)) | st.floats()


@given(INPUTS, st.booleans(), NUMBERS)
@example("9" * 5000, True, 0.0)
@example("\0/*", True, 0.0)
@example("\ud800/*", True, 0.0)
def test_any_input_is_a_source_or_one_error(value, opens, number):
    assume(not value.startswith("/") and ".." not in value)  # the system's own folders are large
    Capture.opens, Capture.value = opens, number
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", Capture)
        patch.setattr("media.addresses._response", no_server)
        try:
            with open_source(value, reconnect=0) as source:
                assert isinstance(source, (Pictures, Video, Live))
                list(source)
        except SourceError as error:
            assert str(error)


# The command line.

FLAGS = re.findall(
    r"--?[a-z_-]+", "-i --input --reconnect -m --model --labels --num-classes --size --rect"
    " --augment --engine --provider -bt --backend_target --confidence --nms --classes -v --vis"
    " -s --save --no-save -o --output --json -q --quiet --"
)  # fmt: skip
VALUES = ("0", "1", "5", "-1", "64", "64x96", "416", "0.5", "nan", "inf", "1e-3", "", "opencv", "=")
WORDS = (
    st.sampled_from(FLAGS + list(VALUES))
    | st.tuples(st.sampled_from(FLAGS), st.sampled_from(VALUES) | ANY_TEXT).map("=".join)
    | st.tuples(st.sampled_from(FLAGS), st.integers(1, 9)).map(lambda cut: cut[0][: cut[1]])
    | ANY_TEXT
)


@given(st.lists(WORDS, max_size=8))
@example(["a\nb"])
@example(["--help"])
@example(["-bt", "9" * 5000])
def test_any_words_are_options_or_one_line(words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            args = parse(words, "")
        except SystemExit as end:
            assert end.code in (0, 2)
            if end.code == 2:
                assert out.getvalue() == ""
                assert re.fullmatch("demo.py: error: .*\n", err.getvalue())
            else:
                assert out.getvalue().startswith("usage: demo.py") and not err.getvalue()
            return
    assert isinstance(args, argparse.Namespace)
    assert 0 <= args.confidence <= 1 and 0 <= args.nms <= 1
    assert args.backend_target in range(len(BACKENDS)) and args.reconnect >= 0
    assert args.size is None or all(n % 32 == 0 and 64 <= n <= 4096 for n in args.size)


# Networks.


def check_read(data):
    """`read_model` returns the bytes and a size of this file, or a ModelError that names it."""
    with file_of(data) as path:
        try:
            read, size = read_model(path)
        except ModelError as error:
            assert str(path) in str(error)
        else:
            assert read.tobytes() == bytes(data)
            assert size is None or all(0 < side <= 4096 for side in size)


@pytest.fixture(scope="module")
def structure(bundled):
    """The bundled network without its weights' values: 23 kB that are all structure."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(bundled)
    for weight in model.graph.initializer:
        weight.ClearField("raw_data")
    return model.SerializeToString()


@given(st.data())
def test_changed_network_is_a_network_or_one_error(structure, data):
    changed = bytearray(structure)
    places = st.integers(0, len(changed) - 1) | st.integers(0, 300) | st.integers(-400, -1)
    for place in data.draw(st.lists(places, min_size=1, max_size=8)):
        changed[place] = data.draw(st.integers(0, 255))
    check_read(changed[: data.draw(st.just(len(changed)) | places)])


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
def test_any_bytes_and_any_protobuf_are_a_network_or_one_error(data):
    check_read(data)


@pytest.mark.parametrize("place", ["weights", "constant", "other graph", "branch"])
def test_weights_in_another_file_are_refused_wherever_they_are_named(tmp_path, place):
    onnx = pytest.importorskip("onnx")
    make_network(tmp_path / "n.onnx", classes=3, size=(64, 64))
    model = onnx.load(tmp_path / "n.onnx")
    graph = model.graph
    (weight,) = (one for one in graph.initializer if one.name == "output0_constant")
    (tmp_path / "secret").write_bytes(onnx.numpy_helper.to_array(weight).tobytes())
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=str(tmp_path / "secret"))
    before = b""
    if place != "weights":
        moved = onnx.TensorProto()
        moved.CopyFrom(weight)
        graph.initializer.remove(weight)
        constant = onnx.helper.make_node("Constant", [], [moved.name], value=moved)
        if place == "constant":
            graph.node.insert(0, constant)
        elif place == "other graph":  # readers of protobuf join all graphs of a file to one
            before = field(7, onnx.GraphProto(initializer=[moved]).SerializeToString())
        else:
            value = onnx.helper.make_empty_tensor_value_info(moved.name)
            branch = onnx.helper.make_graph([constant], "branch", [], [value])
            graph.node.insert(0, onnx.NodeProto(op_type="If", input=["zero"], output=[moved.name]))
            graph.node[0].attribute.append(onnx.helper.make_attribute("then_branch", branch))
    path = tmp_path / "network.onnx"
    path.write_bytes(before + model.SerializeToString())
    fault = "damaged" if place == "other graph" else "in other files"
    with pytest.raises(ModelError, match=fault):
        read_model(path)


# The tool that changes bytes of files.


@pytest.fixture(scope="module")
def tool():
    pytest.importorskip("resource")
    return pytest.importorskip("fuzz")


@pytest.mark.parametrize(
    "code, lines, in_time, peak, fault",
    [
        (0, [], True, 0, ""),
        (2, ["demo.py: error: a.jpg: is empty."], True, 0, ""),
        (1, ["demo.py: a.jpg: no", "Corrupt JPEG data", "demo.py: error: 1 of 1"], True, 0, ""),
        (-11, [], True, 0, "SIGSEGV"),
        (-9, [], False, 0, "takes more than"),
        (1, ["Traceback (most recent call last):", "KeyError: 1"], True, 0, "KeyError"),
        (134, [], True, 0, "exit code 134"),
        (0, [], True, 4 << 30, "4096 MB"),
        (1, ["demo.py: a", "demo.py: b", "demo.py: c"], True, 0, "3 lines"),
        (1, ["libpng error: CRC"], True, 0, "without a word"),
    ],
)
def test_tool_separates_faults_from_clean_ends(tool, code, lines, in_time, peak, fault):
    found = tool.fault_of(code, lines, 1, in_time, peak)
    assert fault in found and bool(found) == bool(fault)


@given(st.binary(min_size=1, max_size=2000), SEEDS)
def test_tool_makes_the_same_change_of_the_same_seed(tool, data, seed):
    first, again = (tool.change(random.Random(seed), bytearray(data)) for _ in range(2))  # noqa: S311
    assert first == again and len(first) > 0


def test_tool_keeps_what_shows_a_fault_with_its_command(tool, tmp_path, monkeypatch):
    files = [tmp_path / "place" / f"{i}.jpg" for i in range(8)]
    files[0].parent.mkdir()
    for file in files:
        file.write_bytes(file.name.encode())

    def run(kind, folder, given):
        assert sorted(folder.iterdir()) == sorted(given)
        return ("dies" if files[5] in given else ""), 0

    monkeypatch.setattr(tool, "run", run)
    ((guilty, fault),) = tool.smallest("picture", files[0].parent, files, "dies")
    assert (guilty, fault) == ([files[5]], "dies")
    tool.keep(tmp_path / "kept", "picture", guilty, "0-1", fault)
    kept = tmp_path / "kept" / "picture-0-1-5.jpg"
    assert kept.read_bytes() == b"5.jpg"
    assert f"-i {kept}" in (tmp_path / "kept" / "commands.txt").read_text()


def test_tool_tries_one_file_at_least_and_finds_no_fault(tool, tmp_path, capsys):
    arguments = ["--seconds", "0", "--kind", "video", "--keep", str(tmp_path / "kept")]
    assert tool.main(arguments) == 0
    assert re.fullmatch(
        r"fuzz.py: 1 of video; runs ended 1 with [012]; seed 0: no fault\n", capsys.readouterr().out
    )
    assert not (tmp_path / "kept").exists()
