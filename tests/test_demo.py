"""The command line on one picture: what it says, what it writes, how it refuses."""

import argparse
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from demo_process import EXAMPLES, ROOT, environment, files_below, refusal, run_demo

import demo
import nanodet
import options

CAT, STREET = EXAMPLES / "cat.jpg", EXAMPLES / "street.jpg"
OBJECT_LINE = r"  (\S.*?) +(\d\.\d\d)  \[(.+)\]"


def run_json(*args, cwd, **more):
    """Run with --json -; gives the process and the lines of JSON it wrote."""
    process = run_demo(*args, "--json", "-", cwd=cwd, **more)
    return process, [json.loads(line) for line in process.stdout.splitlines()]


@pytest.fixture(scope="module")
def street_run(tmp_path_factory):
    """One run on a street: the process, its folder, and the record that it wrote as JSON."""
    folder = tmp_path_factory.mktemp("street")
    process = run_demo("-i", STREET, "-o", "result.png", "--json", "found.jsonl", cwd=folder)
    assert process.returncode == 0, process.stderr
    return process, folder, json.loads((folder / "found.jsonl").read_text())


# What it says


def test_every_object_is_printed_with_label_confidence_and_box(street_run):
    process, _, record = street_run
    head, *lines = process.stdout.splitlines()
    assert head == f"{STREET}: 768x576, {len(record['detections'])} objects"
    assert len(record["detections"]) > 5
    for line, found in zip(lines, record["detections"], strict=False):
        label, confidence, box = re.fullmatch(OBJECT_LINE, line).groups()
        assert label == found["label"]
        assert float(confidence) == pytest.approx(found["confidence"], abs=0.0051)
        corners = [float(number) for number in box.split(", ")]
        assert corners == pytest.approx(found["xyxy"], abs=0.051)


def test_time_network_opencv_engine_and_target_are_printed(street_run):
    process, _, record = street_run
    line = process.stdout.splitlines()[1 + len(record["detections"])]
    version = re.escape(cv2.__version__)
    engine = rf"OpenCV {version}, (new|classic) engine, .*target CPU"
    network = r"object_detection_nanodet_2022nov\.onnx at 416x416"
    milliseconds = re.fullmatch(rf"(\d+\.\d) ms; {network} on {engine}", line).group(1)
    assert float(milliseconds) > 0


def test_place_of_the_result_is_printed_last_and_stderr_stays_empty(street_run):
    process, _, _ = street_run
    assert process.stdout.splitlines()[-1] == "saved result.png"
    assert process.stderr == ""


def test_quiet_prints_nothing_and_saves(tmp_path):
    process = run_demo("-i", CAT, "--quiet", cwd=tmp_path)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert files_below(tmp_path) == ["result.jpg"]


def test_picture_without_objects_is_no_error(tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((50, 70, 3), 128, np.uint8))
    process = run_demo("-i", "grey.png", "-o", "same.png", cwd=tmp_path)
    assert process.returncode == 0
    assert process.stdout.startswith("grey.png: 70x50, 0 objects\n")
    given, result = (cv2.imread(str(tmp_path / name)) for name in ("grey.png", "same.png"))
    np.testing.assert_array_equal(given, result)


def test_confidence_hides_less_certain_objects(street_run, tmp_path):
    _, _, record = street_run
    _, (strict,) = run_json("-i", STREET, "--confidence", "0.7", "--no-save", cwd=tmp_path)
    certain = [found for found in record["detections"] if found["confidence"] > 0.7]
    assert strict["detections"] == certain
    assert 0 < len(certain) < len(record["detections"])


def test_nms_zero_leaves_no_two_boxes_of_a_class_that_overlap(tmp_path):
    args = ("-i", STREET, "--confidence", "0.2", "--no-save")
    _, (loose,) = run_json(*args, "--nms", "1", cwd=tmp_path)
    _, (strict,) = run_json(*args, "--nms", "0", cwd=tmp_path)
    assert len(loose["detections"]) > len(strict["detections"]) > 0
    for i, one in enumerate(strict["detections"]):
        for other in strict["detections"][:i]:
            if one["class_id"] == other["class_id"]:
                (a, b, c, d), (e, f, g, h) = one["xyxy"], other["xyxy"]
                assert min(c, g) <= max(a, e) or min(d, h) <= max(b, f)


def test_size_and_rect_change_the_canvas(tmp_path):
    for args, canvas in (
        (("--size", "320"), "320x320"),
        (("--size", "256x192"), "256x192"),
        (("--size", "256X192"), "256x192"),
        (("--size", "64", "--rect"), "64x64"),
    ):
        process = run_demo("-i", CAT, "--no-save", *args, cwd=tmp_path)
        assert process.returncode == 0, process.stderr
        assert f".onnx at {canvas} on OpenCV" in process.stdout


# What it writes


def test_result_differs_round_the_object_and_nowhere_else(tmp_path):
    process, (record,) = run_json(
        "-i", STREET, "--classes", "dog", "-o", "result.png", cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    (dog,) = record["detections"]
    given, result = cv2.imread(str(STREET)), cv2.imread(str(tmp_path / "result.png"))
    assert result.shape == given.shape
    changed = (given != result).any(axis=2)
    left, top, right, bottom = np.rint(dog["xyxy"]).astype(int)
    for side in (
        changed[top : bottom + 1, left],
        changed[top : bottom + 1, right],
        changed[top, left : right + 1],
        changed[bottom, left : right + 1],
    ):
        assert side.mean() > 0.95
    inside = changed[top + 3 : bottom - 2, left + 3 : right - 2]
    near = changed[top - 40 : bottom + 40, left - 150 : right + 150]
    assert not inside.any()
    assert near.sum() == changed.sum() < 5000


def test_result_jpg_is_written_without_asking(street_run, tmp_path):
    process = run_demo("--input", STREET, cwd=tmp_path)
    assert process.returncode == 0
    assert files_below(tmp_path) == ["result.jpg"]
    result = cv2.imread(str(tmp_path / "result.jpg")).astype(float)
    exact = cv2.imread(str(street_run[1] / "result.png"))
    assert result.shape == exact.shape
    assert np.abs(result - exact).mean() < 4


def test_no_save_writes_nothing(tmp_path):
    process = run_demo("-i", CAT, "--no-save", cwd=tmp_path)
    assert process.returncode == 0
    assert "saved" not in process.stdout
    assert files_below(tmp_path) == []


def test_output_names_the_file_and_its_folders_are_made(tmp_path):
    assert run_demo("-i", CAT, "-o", "new/folder/CAT.PNG", cwd=tmp_path).returncode == 0
    assert files_below(tmp_path) == ["new/folder/CAT.PNG"]
    assert (tmp_path / "new/folder/CAT.PNG").read_bytes().startswith(b"\x89PNG")


def test_output_into_a_folder_gets_the_default_name(tmp_path):
    (tmp_path / "here").mkdir()
    assert run_demo("-i", CAT, "-o", "here", cwd=tmp_path).returncode == 0
    assert run_demo("-i", CAT, "-o", "there/", cwd=tmp_path).returncode == 0
    assert files_below(tmp_path) == ["here/result.jpg", "there/result.jpg"]


@pytest.mark.parametrize("name", ["result.xyz", "result", "result.mp4"])
def test_output_of_unknown_ending_is_named_and_exits_2(name, tmp_path):
    message = refusal(run_demo("-i", CAT, "-o", name, cwd=tmp_path))
    assert message.startswith(f"{name}: ")
    assert ".png" in message
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("output", ["in.jpg", "./in.jpg", "link.jpg", "again.jpg"])
def test_output_over_the_input_is_refused(output, tmp_path):
    shutil.copy(CAT, tmp_path / "in.jpg")
    (tmp_path / "link.jpg").symlink_to("in.jpg")
    os.link(tmp_path / "in.jpg", tmp_path / "again.jpg")
    message = refusal(run_demo("-i", "in.jpg", "-o", output, cwd=tmp_path))
    assert message.startswith(f"{output}: ")
    assert "-o" in message
    assert (tmp_path / "in.jpg").read_bytes() == CAT.read_bytes()


def test_input_that_is_called_result_jpg_is_not_overwritten(tmp_path):
    shutil.copy(CAT, tmp_path / "result.jpg")
    refusal(run_demo("-i", "result.jpg", cwd=tmp_path))
    assert (tmp_path / "result.jpg").read_bytes() == CAT.read_bytes()


def test_picture_too_wide_for_jpg_leaves_nothing_half_written(tmp_path):
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((2, 66000, 3), np.uint8))
    process = run_demo("-i", "wide.png", "-q", cwd=tmp_path)
    assert "66000x2" in refusal(process, 1)
    assert files_below(tmp_path) == ["wide.png"]


def test_result_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in place of a folder")
    message = refusal(run_demo("-i", CAT, "-q", "-o", "file/result.jpg", cwd=tmp_path), 1)
    assert message.startswith("file/result.jpg: can't be written")
    assert files_below(tmp_path) == ["file"]


def test_stdout_that_is_full_is_said_in_one_line(tmp_path):
    full = "/dev/full"
    if not os.path.exists(full):
        pytest.skip(f"{full} is on Linux alone")
    code = "import os, sys; os.dup2(os.open('/dev/full', os.O_WRONLY), 1); "
    code += "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    process = subprocess.run(
        [sys.executable, "-c", code, ROOT / "demo.py", "-i", CAT], cwd=tmp_path, capture_output=True
    )
    assert process.returncode == 1
    assert b"Traceback" not in process.stderr
    assert process.stderr.startswith(b"demo.py: error: ")


# Any picture that people have


@pytest.mark.parametrize("width, height", [(1, 1), (1, 900), (5000, 3), (33, 31)])
def test_picture_of_any_shape_gives_a_result_of_its_size(width, height, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "in.png"), pixels)
    args = ("-i", "in.png", "-o", "out.png", "--confidence", "0.05")
    process, (record,) = run_json(*args, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert cv2.imread(str(tmp_path / "out.png")).shape == (height, width, 3)
    assert (record["width"], record["height"]) == (width, height)
    for found in record["detections"]:
        left, top, right, bottom = found["xyxy"]
        assert 0 <= left <= right <= width
        assert 0 <= top <= bottom <= height


def test_alpha_and_16_bit_find_what_the_plain_picture_has_and_grey_works(tmp_path):
    street = cv2.imread(str(STREET))
    alpha = np.dstack((street, np.full(street.shape[:2], 255, np.uint8)))
    cv2.imwrite(str(tmp_path / "0.png"), street)
    cv2.imwrite(str(tmp_path / "1.png"), alpha)
    cv2.imwrite(str(tmp_path / "2.png"), street.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "3.png"), cv2.cvtColor(street, cv2.COLOR_BGR2GRAY))
    process, records = run_json("-i", ".", "-o", "out", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    plain, *others, grey = [record["detections"] for record in records]
    assert others == [plain, plain]
    assert sum(found["label"] == "person" for found in grey) >= 3
    for name in ("0.png", "1.png", "2.png", "3.png"):
        result = cv2.imread(str(tmp_path / "out" / name), cv2.IMREAD_UNCHANGED)
        assert (result.shape, result.dtype) == (street.shape, np.uint8)


@pytest.mark.parametrize("ending", [".bmp", ".webp", ".tif", ".ppm", ".JPEG", ""])
def test_picture_of_each_format_is_read_whatever_its_name(ending, tmp_path):
    kind = ending.lower() or ".png"
    (tmp_path / f"cat{ending}").write_bytes(cv2.imencode(kind, cv2.imread(str(CAT)))[1])
    process, (record,) = run_json("-i", f"cat{ending}", "--no-save", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert (record["width"], record["height"]) == (451, 300)
    assert "cat" in [found["label"] for found in record["detections"]]


def with_orientation(jpeg, orientation):
    """JPEG bytes with an EXIF segment that says how the camera was held."""
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def test_picture_of_a_camera_held_upright_is_turned(tmp_path):
    lying = np.rot90(cv2.imread(str(STREET)), 1)  # 6: to be turned right by 90 degrees
    jpeg = cv2.imencode(".jpg", lying, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()
    (tmp_path / "phone.jpg").write_bytes(with_orientation(jpeg, 6))
    args = ("-i", "phone.jpg", "--classes", "person", "-o", "out.png")
    process, (record,) = run_json(*args, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert (record["width"], record["height"]) == (768, 576)
    assert len(record["detections"]) >= 5
    decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    upright, result = np.rot90(decoded, -1), cv2.imread(str(tmp_path / "out.png"))
    assert result.shape == upright.shape
    assert (result == upright).all(axis=2).mean() > 0.8


@pytest.mark.parametrize(
    "name",
    [
        "with  spaces .jpg",
        "ünï-日本-🐈.jpg",
        'it\'s "quoted".jpg',
        "two\nlines.jpg",
        "a[1]*?.jpg",
        "%d%s{0}.jpg",
        "-x.jpg",
        "123",
    ],
)
def test_picture_of_any_name_is_read_and_written(name, tmp_path):
    shutil.copy(CAT, tmp_path / name)
    given = f"./{name}" if name == "123" else name
    output = f"./out {name}.png"
    process = run_demo(f"-i={given}", f"-o={output}", "--json", "found.jsonl", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"{given}: 451x300, ")
    assert json.loads((tmp_path / "found.jsonl").read_text())["source"] == given
    assert cv2.imdecode(np.fromfile(tmp_path / output, np.uint8), 1).shape == (300, 451, 3)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know text as names alone")
def test_picture_whose_name_is_no_text_is_read(tmp_path):
    name = os.fsdecode(b"\xff\xfe.jpg")
    shutil.copy(CAT, tmp_path / name)
    process = run_demo("-i", name, cwd=tmp_path)
    assert "Traceback" not in process.stderr
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "result.jpg").exists()


def test_name_that_stdout_can_not_spell_is_no_error(tmp_path):
    shutil.copy(CAT, tmp_path / "日本🐈.jpg")
    process = run_demo("-i", "日本🐈.jpg", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert process.returncode == 0, process.stderr
    assert ": 451x300, " in process.stdout


# How it refuses


@pytest.mark.parametrize("name", ["no such.jpg", "nö.mp4", "folder/x", "no  two  spaces.jpg"])
def test_missing_input_is_named_and_exits_2(name, tmp_path):
    message = refusal(run_demo("-i", name, cwd=tmp_path))
    assert message.startswith(f"{name}: no such file. Give a picture, ")
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "content, name",
    [
        *(("", name) for name in ("x.jpg", "x")),
        *(("garbage", name) for name in ("x.jpg", "x.png", "x.webp", "x.mp4", "x")),
        *(("text", name) for name in ("x.tif", "x")),
        *(("truncated", name) for name in ("x.jpg", "x")),
    ],
)
def test_file_that_is_no_picture_is_named_and_exits_2(content, name, tmp_path):
    garbage = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()
    data = {
        "": b"",
        "garbage": garbage,
        "text": b"Dear diary,\nnothing to see.\n" * 50,
        "truncated": CAT.read_bytes()[:30],
    }
    (tmp_path / name).write_bytes(data[content])
    message = refusal(run_demo("-i", name, cwd=tmp_path))
    assert message.startswith(f"{name}: is ")
    assert ("empty" in message) == (content == "")
    assert files_below(tmp_path) == [name]


def test_picture_that_unfolds_to_gigabytes_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    png = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    checksum = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(png[:16] + header + checksum + png[33:])
    message = refusal(run_demo("-i", "bomb.png", cwd=tmp_path))
    assert message.startswith("bomb.png: ")
    assert "pixels" in message


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "pipe.jpg: is not a regular file" in refusal(run_demo("-i", "pipe.jpg", cwd=tmp_path))


@pytest.mark.parametrize(
    "args",
    [
        "--confidence 2",
        "--confidence -1",
        "--confidence=-0.1",
        "--confidence nan",
        "--confidence abc",
        "--nms 1.5",
        "--nms half",
        "--size 100",
        "--size 0x32",
        "--size abc",
        "--size 416x",
        "--size=-416",
        "--size 32",
        "-bt 5",
        "-bt CUDA",
        "--engine tensorflow",
        "--num-classes -3",
        "--reconnect many",
    ],
)
def test_value_that_an_option_can_not_have_is_named_and_exits_2(args, tmp_path):
    message = refusal(run_demo("-i", CAT, *args.split(), cwd=tmp_path))
    option, value = re.split("[ =]", args)
    assert option in message
    assert value in message
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "option, way_out", [("--confidence", "0 to 1"), ("--nms", "0 to 1"), ("--size", "32")]
)
def test_value_that_is_no_number_is_answered_with_what_would_do(option, way_out, tmp_path):
    process = run_demo("-i", CAT, option, "abc", cwd=tmp_path)
    assert process.returncode == 2
    assert way_out in process.stderr.splitlines()[-1]


def test_unknown_option_is_named_and_exits_2(tmp_path):
    assert "--nonsense" in refusal(run_demo("-i", CAT, "--nonsense", cwd=tmp_path))


@pytest.mark.parametrize("number, backend", [(1, "CUDA"), (2, "CUDA_FP16"), (4, "CANN")])
def test_backend_that_is_not_there_is_named_with_those_that_are(number, backend, tmp_path):
    pair = options.BACKENDS[number]
    if pair[1] in cv2.dnn.getAvailableTargets(pair[0]):
        pytest.skip(f"this OpenCV has {backend}")
    message = refusal(run_demo("-i", CAT, "-bt", number, cwd=tmp_path))
    assert backend in message
    assert "It has: " in message
    assert "OPENCV (3) with CPU (0)" in message
    assert files_below(tmp_path) == []


LFS_POINTER = """version https://git-lfs.github.com/spec/v1
oid sha256:0000000000000000000000000000000000000000000000000000000000000000
size 3800954
"""


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "no such "),
        ("", "is empty"),
        (LFS_POINTER, "git lfs pull"),
        ("no network", "is not an ONNX file"),
    ],
)
def test_model_that_is_none_is_named_and_exits_2(content, says, tmp_path):
    if content is not None:
        (tmp_path / "net.onnx").write_text(content)
    message = refusal(run_demo("-i", CAT, "-m", "net.onnx", cwd=tmp_path))
    assert message.startswith("net.onnx: ")
    assert says in message
    assert "result.jpg" not in files_below(tmp_path)


def test_truncated_model_is_named_and_exits_2(bundled, tmp_path):
    (tmp_path / "net.onnx").write_bytes(bundled.read_bytes()[:2_000_000])
    assert refusal(run_demo("-i", CAT, "-m", "net.onnx", cwd=tmp_path)).startswith("net.onnx: ")


def test_size_on_a_network_of_fixed_size_names_the_one_it_has(shared, tmp_path):
    network = shared / "models" / "nanodet_320_2d.onnx"
    process = run_demo("-i", CAT, "-m", network, "--size", "416", cwd=tmp_path)
    message = refusal(process)
    assert "416" in message
    assert "320x320" in message
    assert "320x320" in refusal(run_demo("-i", CAT, "-m", network, "--rect", cwd=tmp_path))


@pytest.mark.parametrize(
    "model", ["object_detection_nanodet_2022nov", "nanodet_320_2d", "nanodet-plus-m_416"]
)
def test_other_networks_work_with_m(model, shared, tmp_path):
    network = shared / "models" / f"{model}.onnx"
    process, (record,) = run_json("-i", STREET, "-m", network, "--no-save", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert [found["label"] for found in record["detections"]].count("person") >= 3


@pytest.mark.parametrize(
    "names, nearest",
    [("persn", "person"), ("car,Trafic Light", "traffic light"), ("moto", "motor")],
)
def test_unknown_class_is_named_with_the_nearest(names, nearest, tmp_path):
    message = refusal(run_demo("-i", CAT, "--classes", names, cwd=tmp_path))
    assert names.split(",")[-1].lower() in message.lower()
    assert nearest in message


def test_classes_of_no_name_are_refused(tmp_path):
    assert "--classes" in refusal(run_demo("-i", CAT, "--classes", " , ", cwd=tmp_path))


@pytest.mark.parametrize(
    "content, says", [(None, "No such file"), (b" \n\n", "empty"), (b"\xff\xfe\0", "UTF-8")]
)
def test_labels_that_are_none_are_named_and_exit_2(content, says, tmp_path):
    if content is not None:
        (tmp_path / "names.txt").write_bytes(content)
    message = refusal(run_demo("-i", CAT, "--labels", "names.txt", cwd=tmp_path))
    assert "names.txt" in message
    assert says in message


def test_labels_of_another_number_warn_and_classes_beyond_get_their_number(tmp_path):
    (tmp_path / "names.txt").write_text("human\nbike\nauto\n")
    process = run_demo("-i", STREET, "--labels", "names.txt", cwd=tmp_path)
    assert process.returncode == 0
    assert process.stderr.startswith(
        "demo.py: the network knows 80 classes, there are names for 3."
    )
    assert process.stderr.count("\n") == 1
    labels = {match[0] for match in re.findall(OBJECT_LINE, process.stdout)}
    assert {"human", "auto"} <= labels
    assert "class 7" in labels
    assert "person" not in labels


def test_camera_of_any_number_is_refused_in_one_line(tmp_path):
    for number in ("97", "99999999999999999999"):
        process = run_demo("-i", number, "--save", cwd=tmp_path)
        assert process.returncode == 2
        *_, last = process.stderr.splitlines()  # the first says that there is no window
        assert last.startswith(f"demo.py: error: camera {number}: ")
        assert "Traceback" not in process.stderr


# Flags


def test_empty_model_is_refused_without_naming_a_folder_of_this_machine(tmp_path):
    message = refusal(run_demo("-i", CAT, "-m", "", cwd=tmp_path))
    assert message.startswith("(empty): no such network")
    assert str(ROOT) not in message


@pytest.mark.parametrize(
    "flags", ["--provider CPUExecutionProvider", "--engine onnxruntime --backend_target 1"]
)
def test_flag_of_the_other_engine_is_refused(flags, tmp_path):
    message = refusal(run_demo("-i", CAT, *flags.split(), cwd=tmp_path))
    assert message.startswith(("--provider CPUExecutionProvider: ", "-bt 1: "))
    assert "--engine onnxruntime" in message


def test_version_names_the_package_and_opencv(tmp_path):
    process = run_demo("--version", cwd=tmp_path)
    assert process.returncode == 0
    version = rf"nanodet-opencv {re.escape(nanodet.__version__)}, OpenCV {cv2.__version__}\n"
    assert re.fullmatch(version, process.stdout)


def test_import_changes_nothing_in_the_process(tmp_path):
    look = """
import os, signal, sys, threading
import cv2
def state():
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return dict(os.environ), handlers, cv2.getNumThreads(), threading.enumerate(), sys.stdout.errors
before = state()
import demo
assert state() == before
"""
    process = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, env=environment()
    )
    assert (process.returncode, process.stderr) == (0, "")


def test_short_and_long_forms_of_the_zoo_flags_do_the_same(bundled, tmp_path):
    results = []
    for flags in ("-i -m -bt -s -v", "--input --model --backend_target --save --vis"):
        source, model, backend, save, vis = flags.split()
        args = (source, STREET, model, bundled, backend, "0", save, vis)
        process, records = run_json(*args, cwd=tmp_path)
        assert process.returncode == 0
        assert process.stderr.startswith("demo.py: no window: ")
        (tmp_path / "result.jpg").unlink()
        results.append(records)
    assert results[0] == results[1]


@pytest.fixture
def parser(monkeypatch):
    """The parser of the command line."""
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", lambda self, argv: self)
    return options.parse([], "")


def test_help_lists_every_group_and_flag(parser, tmp_path):
    process = run_demo("--help", cwd=tmp_path)
    assert (process.returncode, process.stderr) == (0, "")
    for group in ("input", "network", "detection", "output", "examples"):
        assert f"\n{group}:\n" in process.stdout
    for action in parser._actions:
        assert all(flag in process.stdout for flag in action.option_strings)


def test_every_flag_has_help_and_its_default_is_the_zoos(parser):
    assert all(action.help for action in parser._actions)
    defaults = {action.dest: action.default for action in parser._actions}
    zoo = {"input": "0", "confidence": 0.35, "nms": 0.6, "backend_target": 0, "vis": False}
    assert zoo.items() <= defaults.items()
    assert os.path.samefile(defaults["model"], ROOT / "object_detection_nanodet_2022nov.onnx")


def test_every_flag_is_in_the_readme(parser):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for action in parser._actions:
        if action.dest != "help":
            for flag in action.option_strings:
                assert re.search(rf"`{flag}[ `]", readme), f"README.md does not explain {flag}"


def examples_of(text):
    """The arguments of each line that runs demo.py, without what explains it."""
    lines = re.findall(r"^(?:\S*python3?) demo\.py(.*)$", text, re.MULTILINE)
    return [shlex.split(re.split(r"   +| #", line)[0]) for line in lines]


def test_examples_in_help_and_readme_parse():
    readme = examples_of((ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(examples_of(demo.__doc__)) >= 4
    assert len(readme) >= 4
    for args in examples_of(demo.__doc__) + readme:
        options.parse(args, "")


def test_examples_in_help_run(tmp_path):
    shutil.copy(STREET, tmp_path / "street.jpg")
    (tmp_path / "photos").mkdir()
    shutil.copy(CAT, tmp_path / "photos" / "cat.jpg")
    writer = cv2.VideoWriter(
        str(tmp_path / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 64)
    )
    for _ in range(3):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    for args in examples_of(demo.__doc__):
        if args:  # without any, it is the camera
            process = run_demo(*args, cwd=tmp_path)
            assert process.returncode == 0, process.stderr
    assert {"result.jpg", "result.mp4", "results/cat.jpg"} <= set(files_below(tmp_path))
