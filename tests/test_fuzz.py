"""What must hold for any input at all; longer, 100,000 cases of each:

python -m pytest tests/test_fuzz.py --hypothesis-profile long
"""

import argparse
import contextlib
import io
import os
import re
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from cli.command import UsageError
from cli.network import BACKENDS, find_classes, read_labels
from cli.options import parse
from media.frames import SourceError
from media.live import Live
from media.sources import Pictures, Reading, open_source
from media.videos import Video
from nanodet import ModelError, read_model

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates and NUL, too


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

    def grab(self):
        return False

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
@example("rtsp://a", True, 25.0)  # of known length: a video
def test_any_input_is_a_source_or_one_error(value, opens, number):
    assume(not value.startswith("/") and ".." not in value)  # the system's own folders are large
    Capture.opens, Capture.value = opens, number
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cv2, "VideoCapture", Capture)
        patch.setattr("media.addresses._response", no_server)
        try:
            with open_source(value, Reading(reconnect=0)) as source:
                assert isinstance(source, (Pictures, Video, Live))
                list(source)
        except SourceError as error:
            assert str(error)


# The command line.

FLAGS = re.findall(
    r"--?[a-z_-]+", "-i --input --reconnect -m --model --labels --num-classes --size --rect"
    " --augment --int8 --engine --provider -bt --backend_target --confidence --nms --classes"
    " -v --vis -s --save --no-save -o --output --json --serve -q --quiet --"
)  # fmt: skip
VALUES = ("0", "1", "5", "-1", "64", "64x96", "416", "0.5", "nan", "inf", "1e-3", "", "opencv", "=")
WORDS = (
    st.sampled_from((*FLAGS, *VALUES))
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
    with file_of(data) as path:
        try:
            read, size = read_model(path)
        except ModelError as error:
            assert str(path) in str(error)
        else:
            assert read.tobytes() == bytes(data)
            assert size is None or all(0 < side <= 4096 for side in size)


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


def test_tool_keeps_what_shows_a_fault_alone_with_its_command(tool, tmp_path, monkeypatch):
    folder = tmp_path / "place"
    folder.mkdir()
    files = [folder / f"{i}.jpg" for i in range(8)]
    for file in files:
        file.write_bytes(file.name.encode())
    monkeypatch.setattr(tool, "run", lambda kind, path: ("dies" if path == files[5] else "", 0))
    assert tool.guilty("picture", folder, files, "dies") == [(files[5], "dies")]
    assert tool.guilty("picture", folder, files[:5], "dies") == [(folder, "dies")]
    tool.keep(tmp_path / "kept", "picture", files[5], "5.jpg", "dies")
    assert (tmp_path / "kept" / "5.jpg").read_bytes() == b"5.jpg"
    assert f"-i {tmp_path / 'kept' / '5.jpg'}" in (tmp_path / "kept" / "commands.txt").read_text()


def test_tool_tries_one_file_at_least_and_finds_no_fault(tool, tmp_path, capsys):
    arguments = ["--seconds", "0", "--kind", "video", "--keep", str(tmp_path / "kept")]
    assert tool.main(arguments) == 0
    assert re.fullmatch(
        r"fuzz.py: 1 of video; runs ended 1 with [012]; seed 0: no fault\n", capsys.readouterr().out
    )
    assert not (tmp_path / "kept").exists()
