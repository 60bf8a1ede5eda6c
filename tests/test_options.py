"""The checks of the command line's values and classes."""

import argparse
import contextlib
import io
import os
import re
import shlex
import sys

import cv2
import numpy as np
import pytest
from conftest import make_network
from demo_process import CAT, error_of, files_below, refusal, run_demo
from hypothesis import example, given
from hypothesis import strategies as st

from cli.command import UsageError
from cli.network import BACKENDS, BUNDLED, INT8, NetworkOptions, find_classes, read_labels
from cli.options import canvas_size, fraction, host_and_port, parse, whole_number
from nanodet import COCO_CLASSES, ModelError, NanoDet

REFUSED = (ValueError, argparse.ArgumentTypeError)
SIDES = st.integers(2, 128).map(lambda steps: 32 * steps)
WORDS = st.text(st.characters(categories=["L", "N", "S"]), min_size=1)


@given(st.floats(0, 1))
def test_fraction_takes_every_number_from_0_to_1(value):
    assert fraction(repr(value)) == value


@given(st.floats().filter(lambda value: not 0 <= value <= 1))
def test_fraction_refuses_every_other_number(value):
    with pytest.raises(REFUSED, match="from 0 to 1"):
        fraction(repr(value))


@given(SIDES)
def test_canvas_size_of_one_number_is_the_side(side):
    assert canvas_size(str(side)) == (side, side)


@given(SIDES, SIDES, st.sampled_from("xX"))
def test_canvas_size_of_two_numbers_is_width_and_height(width, height, sign):
    assert canvas_size(f"{width}{sign}{height}") == (width, height)


@given(st.integers(0, 65535))
def test_port_alone_is_one_of_this_machine_only(port):
    assert host_and_port(str(port)) == ("127.0.0.1", port)


@pytest.mark.parametrize(
    "text, host",
    [("192.0.2.1:80", "192.0.2.1"), ("[::1]:80", "::1"), ("XBOX:80", "XBOX")],
)
def test_host_may_be_a_name_or_an_address(text, host):
    assert host_and_port(text) == (host, 80)


@pytest.mark.parametrize("text", ["", ":80", "x", "x:", "::1", "[::1]", "::1:80", "65536", "-1"])
def test_no_port_is_refused_with_its_value(text):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        host_and_port(text)
    assert repr(text) in str(error.value)


@given(st.integers(0, 10**9 - 1))
def test_count_takes_whole_numbers_from_0_up(value):
    assert whole_number(0)(str(value)) == value


def test_defaults_are_those_of_the_zoo():
    args = parse([], "")
    assert (args.input, args.confidence, args.nms, args.backend_target) == ([], 0.35, 0.6, 0)
    assert args.model == BUNDLED
    assert (args.vis, args.save, args.output, args.json, args.quiet) == (
        *(False, None, None, None, False),
    )


def test_saving_is_asked_for_refused_or_left_to_the_source():
    given = (["-s"], ["--save"], ["--no-save"], [])
    assert [parse(argv, "").save for argv in given] == [True, True, False, None]


@given(st.lists(st.integers(0, 79), min_size=1), st.randoms(use_true_random=False))
def test_classes_are_found_in_any_case_and_with_spaces(class_ids, random):
    def scrawl(name):
        name = "".join(random.choice((c.lower(), c.upper())) for c in name)
        return " " * random.randint(0, 2) + name + " " * random.randint(0, 2)

    names = ",".join(scrawl(COCO_CLASSES[class_id]) for class_id in class_ids)
    assert find_classes(names, COCO_CLASSES) == tuple(sorted(set(class_ids)))
    assert find_classes(f",{names},,", COCO_CLASSES) == tuple(sorted(set(class_ids)))


@given(WORDS.filter(lambda word: word.strip().lower() not in COCO_CLASSES and "," not in word))
def test_unknown_class_is_named_beside_known_ones(name):
    with pytest.raises(UsageError) as error:
        find_classes(f"person,{name}", COCO_CLASSES)
    message = str(error.value)
    assert name.strip().lower() in message
    offered = message.partition("Did you mean ")[2].rstrip("?").split(", ")
    assert offered
    assert set(offered) <= set(COCO_CLASSES)


@pytest.mark.parametrize(
    "name, nearest",
    [
        *(("persons", "person"), ("persn", "person"), ("tvs", "tv"), ("dogs", "dog")),
        *(("trafficlight", "traffic light"), ("car,Trafic Light", "traffic light")),
    ],
)
def test_nearest_class_comes_first(name, nearest):
    with pytest.raises(UsageError, match=f"Did you mean {nearest}[,?]"):
        find_classes(name, COCO_CLASSES)


def test_classes_are_those_of_the_labels_given():
    labels = ("Äpfel", "BIRNE")
    assert find_classes("äpfel, birne", labels) == (0, 1)
    with pytest.raises(UsageError, match="Did you mean birne"):
        find_classes("birnen", labels)


@given(st.lists(WORDS, min_size=1, max_size=8), st.sampled_from(["\n", "\r\n", "\n\n", " \n  "]))
def test_labels_are_read_line_by_line(tmp_path_factory, labels, end):
    path = tmp_path_factory.mktemp("labels") / "names.txt"
    path.write_bytes(end.join(labels).encode())
    assert read_labels(str(path)) == tuple(labels)


@pytest.mark.parametrize(
    ("flags", "engine", "without"),
    [
        ("", "onnxruntime", "opencv"),
        (f"-m {shlex.quote(os.path.relpath(BUNDLED))}", "onnxruntime", "opencv"),
        ("-m object_detection_nanodet_2022nov", "onnxruntime", "opencv"),
        ("--engine opencv", "opencv", "opencv"),
        ("--engine onnxruntime --provider X", "onnxruntime", "onnxruntime"),
        ("--engine openvino --provider X", "openvino", "openvino"),
        ("-bt 1", "opencv", "opencv"),
    ],
)
def test_int8_takes_the_engine_asked_for_else_onnxruntime_where_it_is_installed(
    flags, engine, without, monkeypatch
):
    pytest.importorskip("onnxruntime")
    args = parse(["--int8", *shlex.split(flags)], "")
    options = NetworkOptions.of(args)
    assert (options.model, options.settings["engine"]) == (INT8, engine)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert NetworkOptions.of(args).settings["engine"] == without


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (f"-m {INT8}", f"--int8: is the network here, not {INT8}. Leave out -m, or make yours"),
        ("-bt 1 --engine openvino", "-bt 1: is OpenCV's. Leave out --engine openvino, or give"),
        ("--provider X --engine opencv", "--provider X: needs --engine onnxruntime or openvino."),
    ],
)
def test_int8_is_refused_with_what_excludes_it(flags, message):
    with pytest.raises(UsageError) as error:
        NetworkOptions.of(parse(["--int8", *flags.split()], ""))
    assert str(error.value).startswith(message)


# What a run says of a value that can't be: it comes before anything is opened or written.


def refused(arguments, cwd):
    """The single line of a run on a picture whose options can't be; it leaves no file."""
    before = files_below(cwd)
    line = refusal(run_demo(CAT, *shlex.split(arguments), cwd=cwd))
    assert files_below(cwd) == before
    return line


FRACTIONS = ("2", "-0.1", "nan", "inf", "0,5", "50%", "1/2", "0.5.5", "abc", "")
SIZES = (
    *("0", "32", "100", "-416", "4128", "99999999", "0x32", "416x", "x416", "416x100", "4x4x4"),
    *("416*416", "x", "nan", "1e2", "416.0", ""),
)
COUNTS = ("-1", "1.5", "nan", "9999999999", "abc", "")


@pytest.mark.parametrize(
    ("flag", "values", "fault"),
    [
        ("--confidence", FRACTIONS, "from 0 to 1"),
        ("--nms", FRACTIONS, "from 0 to 1"),
        ("--centre-offset", FRACTIONS, "from 0 to 1"),
        ("--size", SIZES, "is not a multiple of 32 from 64 to 4096"),
        ("--reconnect", COUNTS, "is not a whole number from 0 up"),
        ("--num-classes", (*COUNTS, "0"), "is not a whole number from 1 up"),
        ("--every", (*COUNTS, "0"), "is not a whole number from 1 up"),
        ("--camera-fps", (*COUNTS, "0"), "is not a whole number from 1 up"),
        ("--camera-size", ("1280", "0x720", "1280x", "axb", "1x2x3"), "is not a size such as"),
        ("--serve", ("x", "65536", "::1:80"), "is not a port from 0 to 65535"),
        ("--duration", ("0", "0.0"), "leaves nothing of a video"),
    ],
)
def test_value_that_can_not_be_is_named_with_its_flag_and_range(flag, values, fault, tmp_path):
    for value in values:
        line = refused(f"{flag}={shlex.quote(value)}", tmp_path)
        assert flag in line and repr(value) in line and fault in line
        assert line.endswith(". See --help.")


@pytest.mark.parametrize(
    ("flag", "values", "says"),
    [
        ("-bt", ("5", "-1"), "(choose from 0, 1, 2, 3, 4)"),
        ("-bt", ("CUDA", "1.5", ""), "invalid int value"),
        ("--engine", ("tensorflow", "", "CPU"), "(choose from opencv, onnxruntime, openvino)"),
        ("--resize", ("crop", ""), "(choose from letterbox, stretch)"),
    ],
)
def test_choice_that_there_is_not_is_named_with_those_there_are(flag, values, says, tmp_path):
    for value in values:
        line = refused(f"{flag}={shlex.quote(value)}", tmp_path)
        assert flag in line and f": {value}" in line.replace("'", "")
        assert says in line.replace("'", "")  # newer Pythons quote no names


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("-i", "-i/--input: expected at least one argument"),
        ("-o", "-o/--output: expected one argument"),
        ("-m", "-m/--model: expected one argument"),
        ("--mean 1 grey 2", "--mean: invalid float value: 'grey'"),
        ("--mean 1 2", "--mean: expected 3 arguments"),
        ("--no-such-option", "unrecognized arguments: --no-such-option"),
        ("--confidence person --classes 0.5", "--confidence: 'person' is not a number from 0 to 1"),
        ("'two\nlines' --x='two\nlines'", "unrecognized arguments: --x=two\\nlines"),
    ],
)
def test_flag_without_its_values_or_unknown_is_named(arguments, says, tmp_path):
    assert says in refused(arguments, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--provider=NoSuch --engine onnxruntime", "has no provider NoSuch. It has: "),
        ("--provider='' --engine onnxruntime", "has no provider "),
        ("--provider=X", "--provider X: needs --engine onnxruntime or openvino."),
        ("--provider=''", "--provider : needs --engine onnxruntime or openvino."),
        ("-bt 1 --engine onnxruntime", "-bt 1: is OpenCV's. Leave out --engine onnxruntime, or"),
        ("--num-classes=7", "7 classes do not fit"),
        ("--std 0 1 1", "std must be three numbers above 0"),
        ("--classes=cars", "--classes cars: unknown class. Did you mean car"),
        ("--classes='person,two\nlines'", "--classes two\\nlines: unknown class"),
        ("--classes=''", "--classes: is empty. Give names such as person,car."),
        ("--classes=' , ,'", "--classes: is empty. Give names such as person,car."),
        (f"-i {'9' * 20}", f"{'9' * 20}: a camera, an address or - must be the only input."),
    ],
)
def test_setting_that_can_not_be_used_is_one_line(arguments, says, tmp_path):
    if "onnxruntime" in arguments:
        pytest.importorskip("onnxruntime")
    assert says in refused(arguments, tmp_path)


def test_camera_of_a_number_beyond_any_can_not_be_opened(tmp_path):
    demo = run_demo("9" * 20, "--json", "-", cwd=tmp_path)
    assert (demo.returncode, demo.stdout) == (2, "")
    assert error_of(demo).startswith(f"camera {'9' * 20}: can't be opened")


def test_remedy_of_a_network_is_told_in_flags(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ModelError("n.onnx: fails.", "Give {}.", engine="onnxruntime", input_size=None)

    monkeypatch.setattr(NanoDet, "__init__", fails)
    assert refused("", tmp_path) == "n.onnx: fails. Give --engine onnxruntime or the --size."


class Camera:
    """Stands for OpenCV's: writes down what is asked of it, and gives two frames."""

    asked, frames = [], 2

    def __init__(self, *_):
        self.left = self.frames

    def isOpened(self):
        return True

    def set(self, name, value):
        self.asked.append((name, value))
        return True

    def get(self, _):
        return 0.0

    def grab(self):
        self.left -= 1
        return self.left >= 0

    def read(self):
        return self.grab(), np.zeros((48, 64, 3), np.uint8)

    def retrieve(self):
        return True, np.zeros((48, 64, 3), np.uint8)

    def release(self):
        pass


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--camera-fps", 15), [(cv2.CAP_PROP_FPS, 15)]),
        (
            ("--camera-size", "320x240"),
            [(cv2.CAP_PROP_FRAME_WIDTH, 320), (cv2.CAP_PROP_FRAME_HEIGHT, 240)],
        ),
        ((), []),
    ],
)
def test_size_and_rate_for_a_camera_reach_it(flags, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(Camera, "asked", [])
    run_demo("0", *flags, "--reconnect", 0, "--json", "-", "--size", 64, cwd=tmp_path)
    assert Camera.asked == expected


def test_camera_is_not_saved_unless_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    arguments = ("0", "--reconnect", 0, "--json", "found.jsonl", "--size", 64)
    run_demo(*arguments, cwd=tmp_path)
    assert files_below(tmp_path) == ["found.jsonl"]
    run_demo(*arguments, "--save", cwd=tmp_path)
    assert files_below(tmp_path) == ["found.jsonl", "result.mp4"]


@pytest.mark.parametrize("number", range(1, len(BACKENDS)))
def test_backend_that_this_opencv_lacks_is_named_with_those_it_has(number, tmp_path):
    backend, target = BACKENDS[number]
    if target in cv2.dnn.getAvailableTargets(backend):
        pytest.skip("this OpenCV has it")
    line = refused(f"-bt {number}", tmp_path)
    name = ("CUDA", "CUDA_FP16", "NPU", "NPU")[number - 1]
    assert name in line and "It has: " in line and "OPENCV (3) with CPU (0)" in line


@pytest.mark.parametrize("flags", ["--size=416", "--rect"])
def test_network_of_one_size_refuses_another(flags, tmp_path):
    make_network(tmp_path / "n.onnx", size=(64, 64), classes=2)
    flag = flags.partition("=")[0]
    expected = f"n.onnx: runs only at 64x64. Leave out the {flag}, or run tools/free_size.py on"
    assert expected in refused(f"-m n.onnx {flags}", tmp_path)


@pytest.mark.parametrize(
    "flags", ["--confidence=0", "--confidence=1", "--nms=0", "--nms=1 --confidence=0"]
)
def test_ends_of_a_range_are_allowed(flags, tmp_path):
    demo = run_demo(CAT, *flags.split(), "--size", 64, "--no-save", cwd=tmp_path)
    assert (demo.returncode, demo.stderr) == (0, "")


# Whatever is written.

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates and NUL, too
LABELS = st.lists(ANY_TEXT.map(str.strip).filter(bool), min_size=1, max_size=12)


@given(ANY_TEXT, LABELS)
def test_any_class_names_are_found_or_one_is_named_unknown(names, labels):
    try:
        found = find_classes(names, labels)
    except UsageError as error:
        assert str(error).startswith("--classes")
    else:
        asked = {name.strip().lower() for name in names.split(",")}
        assert found and all(labels[class_id].lower() in asked for class_id in found)


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
