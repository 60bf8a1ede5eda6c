"""The command line on pictures: what it says, what it writes, and its flags."""

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import threading
import time

import cv2
import numpy as np
import pytest
from demo_process import (
    CAT,
    DEADLINE,
    FAST,
    FORKS,
    ROOT,
    STREET,
    environment,
    files_below,
    fork,
    run_demo,
)

import nanodet

OBJECT_LINE = r"  (\S.*?) +(\d\.\d\d)  \[(.+)\]"


def run_json(*args, cwd, **more):
    """Run with --json -; returns the run and the lines of JSON it wrote."""
    demo = run_demo(*args, "--json", "-", cwd=cwd, **more)
    assert demo.returncode == 0, demo.stderr
    return demo, demo.records()


@pytest.fixture(scope="module")
def street_run(tmp_path_factory):
    """One run on a street: the process, its folder, and the record that it wrote as JSON."""
    folder = tmp_path_factory.mktemp("street")
    args = ("-i", STREET, "-o", "result.png", "--json", "found.jsonl")
    demo = run_demo(*args, cwd=folder, fresh=True)
    assert demo.returncode == 0, demo.stderr
    return demo, folder, json.loads((folder / "found.jsonl").read_text())


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
    engine = rf"OpenCV {version}, (new|classic) engine, .*target CPU; NanoDet, 3 levels, letterbox"
    network = r"object_detection_nanodet_2022nov\.onnx at 416x416"
    milliseconds = re.fullmatch(rf"(\d+\.\d) ms; {network} on {engine}", line).group(1)
    assert float(milliseconds) > 0


def test_time_printed_is_that_of_the_network_in_milliseconds(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", itertools.count(0, 0.25).__next__)  # one each look
    process = run_demo("-i", CAT, "--no-save", *FAST, cwd=tmp_path)
    assert process.out[1].startswith("250.0 ms; ")


def test_place_of_the_result_is_printed_last_and_stderr_stays_empty(street_run):
    process, _, record = street_run
    assert process.stdout.splitlines()[2 + len(record["detections"]) :] == ["saved result.png"]
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
    most, *_, least = (found["confidence"] for found in record["detections"])
    limit = (most + least) / 2
    _, (strict,) = run_json("-i", STREET, "--confidence", limit, "--no-save", cwd=tmp_path)
    certain = [found for found in record["detections"] if found["confidence"] > limit]
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


def test_result_differs_round_the_object_and_nowhere_else(street_run, tmp_path):
    first, second = (found["confidence"] for found in street_run[2]["detections"][:2])
    args = ("-i", STREET, "--confidence", (first + second) / 2, "-o", "result.png")
    _, (record,) = run_json(*args, cwd=tmp_path)
    (only,) = record["detections"]
    given, result = cv2.imread(str(STREET)), cv2.imread(str(tmp_path / "result.png"))
    assert result.shape == given.shape
    changed = (given != result).any(axis=2)
    limit = (given.shape[1] - 1, given.shape[0] - 1) * 2
    left, top, right, bottom = np.minimum(np.rint(only["xyxy"]).astype(int), limit)
    for side in (
        changed[top : bottom + 1, left],
        changed[top : bottom + 1, right],
        changed[top, left : right + 1],
        changed[bottom, left : right + 1],
    ):
        assert side.mean() > 0.95
    label = 40  # pixels above the box, or in its upper part where the picture ends
    inside = changed[max(top, label) + 3 : bottom - 2, left + 3 : right - 2]
    near = changed[max(top - label, 0) : bottom + 3, max(left - 150, 0) : right + 150]
    assert inside.size and not inside.any()
    assert near.sum() == changed.sum()


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


# Many pictures


def photos(folder, number):
    """Make a folder of small pictures."""
    (folder / "photos").mkdir()
    for i in range(number):
        shutil.copy(CAT, folder / "photos" / f"{i}.jpg")


@pytest.fixture
def cores(monkeypatch):
    """Give OpenCV so many threads; returns how many it was told to use afterwards."""
    told = []
    monkeypatch.setattr(cv2, "setNumThreads", told.append)
    monkeypatch.setattr(cv2, "getNumThreads", lambda: 8)
    return told


@pytest.mark.parametrize(("number", "together"), [(5, 3), (4, 2)])
def test_pictures_are_looked_at_together_two_for_each_network(
    number, together, tmp_path, monkeypatch, cores
):
    photos(tmp_path, number)
    detect, lock, all_there = nanodet.NanoDet.detect, threading.Lock(), threading.Event()
    too_many = threading.Event()
    running = [0, 0]  # now, and before that

    def watched(network, image):
        with lock:
            running[0] += 1
            running[1] += 1
            if running[0] == together:
                all_there.set()
            if running[0] > together:
                too_many.set()
            first = running[1] <= together
        if first:
            assert all_there.wait(DEADLINE)
            too_many.wait(0.2)  # none comes
        found = detect(network, image)
        with lock:
            running[0] -= 1
        return found

    monkeypatch.setattr(nanodet.NanoDet, "detect", watched)
    _, records = run_json("photos", "--no-save", *FAST, cwd=tmp_path)
    assert len(records) == number
    assert not too_many.is_set()
    assert cores[0] == 1  # each network has a core of its own


def test_one_picture_or_two_are_looked_at_with_all_cores(tmp_path, cores):
    photos(tmp_path, 2)
    for name in ("photos/0.jpg", "photos"):
        assert run_demo(name, "--no-save", *FAST, cwd=tmp_path).returncode == 0
    assert 1 not in cores


def test_networks_are_used_again(tmp_path, monkeypatch, cores):
    photos(tmp_path, 12)
    made = []
    load = nanodet.NanoDet.__init__

    def counted(*args, **settings):
        made.append(args[0])
        load(*args, **settings)

    monkeypatch.setattr(nanodet.NanoDet, "__init__", counted)
    assert run_demo("photos", "--no-save", *FAST, cwd=tmp_path).returncode == 0
    assert 1 <= len(made) <= 6


def test_summary_tells_how_many_pictures_a_second(tmp_path):
    photos(tmp_path, 2)
    demo = run_demo("photos", "--no-save", *FAST, cwd=tmp_path)
    head, rate = demo.out[-1].removesuffix(" a second\n").split(", ")
    assert head == "2 of 2 pictures"
    assert float(rate) > 0


def test_folder_in_which_nothing_can_be_read_has_a_summary(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no picture")
    demo = run_demo("photos", "--no-save", *FAST, cwd=tmp_path)
    assert demo.returncode == 1
    assert demo.out[-1] == "0 of 1 pictures, 0.0 a second\n"


def test_results_of_an_earlier_run_are_pictures_like_others_where_nothing_is_saved(tmp_path):
    photos(tmp_path, 1)
    assert run_demo("photos", *FAST, cwd=tmp_path).returncode == 0
    _, records = run_json(".", "--no-save", *FAST, cwd=tmp_path)
    assert [record["source"] for record in records] == ["./photos/0.jpg", "./results/0.jpg"]


@pytest.mark.skipif(not FORKS, reason="a terminal, as Linux has it")
@pytest.mark.parametrize("more", [(), ("--threads", "1"), ("-q",)], ids=" ".join)
def test_progress_is_shown_on_a_terminal_unless_quiet(more, tmp_path):
    photos(tmp_path, 6)
    arguments = ["photos", "--no-save", *FAST, *more]
    import fcntl
    import termios

    at_once = """
import functools, sys
import demo, tqdm
tqdm.tqdm.__init__ = functools.partialmethod(tqdm.tqdm.__init__, mininterval=0)
sys.exit(demo.main())
"""
    screen, terminal = os.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    with open(screen, "rb", 0) as shown, open(os.devnull, "wb") as nothing:
        with open(terminal, "wb", 0) as file:
            process = fork(arguments, nothing, file, cwd=tmp_path, script=at_once)
        said = b""
        with contextlib.suppress(OSError):  # that is how a terminal ends
            while part := shown.read(1000):
                said += part
        assert process.wait(DEADLINE) == 0
    steps = re.findall(rb"(\d)/6 \[", said)
    assert steps == ([] if "-q" in more else [b"%d" % i for i in range(7)])


# Any picture


def test_alpha_and_16_bit_find_what_the_plain_picture_has_and_grey_works(tmp_path):
    street = cv2.imread(str(STREET))
    alpha = np.dstack((street, np.full(street.shape[:2], 255, np.uint8)))
    cv2.imwrite(str(tmp_path / "0.png"), street)
    cv2.imwrite(str(tmp_path / "1.png"), alpha)
    cv2.imwrite(str(tmp_path / "2.png"), street.astype(np.uint16) * 257)
    cv2.imwrite(str(tmp_path / "3.png"), cv2.cvtColor(street, cv2.COLOR_BGR2GRAY))
    _, records = run_json("-i", ".", "-o", "out", cwd=tmp_path)
    plain, *others, grey = [record["detections"] for record in records]
    assert others == [plain, plain]
    assert "person" in [found["label"] for found in grey]
    for name in ("0.png", "1.png", "2.png", "3.png"):
        result = cv2.imread(str(tmp_path / "out" / name), cv2.IMREAD_UNCHANGED)
        assert (result.shape, result.dtype) == (street.shape, np.uint8)


def test_name_that_stdout_can_not_spell_is_no_error(tmp_path):
    shutil.copy(CAT, tmp_path / "日本🐈.jpg")
    process = run_demo("-i", "日本🐈.jpg", cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert process.returncode == 0, process.stderr
    assert ": 451x300, " in process.stdout


# Networks, labels and flags


@pytest.mark.parametrize(
    "model", ["object_detection_nanodet_2022nov", "nanodet_320_2d", "nanodet-plus-m_416"]
)
def test_other_networks_work_with_m(model, shared, tmp_path):
    network = shared / "models" / f"{model}.onnx"
    _, (record,) = run_json("-i", STREET, "-m", network, "--no-save", cwd=tmp_path)
    assert {"person", "car"} <= {found["label"] for found in record["detections"]}


@pytest.mark.parametrize("ending", ["", ".onnx"])
def test_network_here_is_found_by_its_name_from_anywhere(ending, tmp_path):
    name = f"object_detection_nanodet_2022nov{ending}"
    demo = run_demo("-i", CAT, "-m", name, "--no-save", *FAST, cwd=tmp_path)
    assert demo.returncode == 0, demo.stderr


def test_augment_looks_again(bundled, tmp_path):
    _, (record,) = run_json("-i", STREET, "--augment", "--no-save", cwd=tmp_path)
    found = nanodet.NanoDet(bundled, augment=True).detect(cv2.imread(str(STREET)))
    assert [thing["class_id"] for thing in record["detections"]] == found.class_id.tolist()
    plain = nanodet.NanoDet(bundled).detect(cv2.imread(str(STREET)))
    assert found.confidence.tolist() != plain.confidence.tolist()


def test_labels_of_another_number_warn_and_classes_beyond_get_their_number(street_run, tmp_path):
    (tmp_path / "names.txt").write_text("human\nbike\n")
    demo = run_demo("-i", STREET, "--labels", "names.txt", cwd=tmp_path)
    assert demo.returncode == 0
    assert len(demo.err) == 1
    assert demo.stderr.startswith("demo.py: the network knows 80 classes, there are names for 2.")
    class_ids = {found["class_id"] for found in street_run[2]["detections"]}
    assert {0, 2} <= class_ids  # persons and cars
    names = {0: "human", 1: "bike"}
    labels = {match[0] for match in re.findall(OBJECT_LINE, demo.stdout)}
    assert labels == {names.get(class_id, f"class {class_id}") for class_id in class_ids}


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
        assert process.stderr.startswith("demo.py: no window: ")
        (tmp_path / "result.jpg").unlink()
        results.append(records)
    assert results[0] == results[1]


@pytest.fixture(scope="module")
def help_text(tmp_path_factory):
    """What --help prints."""
    demo = run_demo("--help", cwd=tmp_path_factory.mktemp("help"))
    assert (demo.returncode, demo.stderr) == (0, "")
    return demo.stdout


def test_help_lists_every_group_and_the_flags_of_the_zoo(help_text):
    for group in ("input", "network", "detection", "output", "examples"):
        assert f"\n{group}:\n" in help_text
    zoo = ("-i --input", "-m --model", "-bt --backend_target", "-s --save", "-v --vis")
    for short, long in map(str.split, zoo):
        assert re.search(rf"^  {short}\b.*, {long}\b", help_text, re.MULTILINE)


def test_every_flag_has_help(help_text):
    usage, *groups = re.split(r"^\w[\w ]*:\n", help_text, flags=re.MULTILINE)
    entries = re.findall(r"^  (-.*(?:\n {3,}.*)*)", "".join(groups[:-1]), re.MULTILINE)
    assert len(entries) > 15
    for entry in entries:  # flags, and after two spaces or a line break what they do
        assert len(re.split(r" {2,}|\n +", entry)) > 1, entry


def test_examples_in_help_run(help_text, tmp_path):
    shutil.copy(STREET, tmp_path / "street.jpg")
    (tmp_path / "photos").mkdir()
    shutil.copy(CAT, tmp_path / "photos" / "cat.jpg")
    path, mp4v = str(tmp_path / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(path, mp4v, 10, (64, 64))
    for _ in range(3):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    examples = re.findall(r"^ *python3? demo\.py(.*?)   .*$", help_text, re.MULTILINE)
    assert len(examples) >= 4
    for args in map(shlex.split, examples):
        if args:  # without any, it is the camera
            demo = run_demo(*args, cwd=tmp_path)
            assert demo.returncode == 0, demo.stderr
    assert {"result.jpg", "result.mp4", "results/cat.jpg"} <= set(files_below(tmp_path))


def test_boxes_are_drawn_as_asked_for(tmp_path):
    drawn = []
    for flags in ((), ("--hide-labels",), ("--hide-labels", "--line-width", "9")):
        assert run_demo("-i", STREET, *flags, "-o", "x.png", cwd=tmp_path).returncode == 0
        drawn.append(cv2.imread(str(tmp_path / "x.png")))
    plain = cv2.imread(str(STREET))
    changed = [int((image != plain).any(axis=2).sum()) for image in drawn]
    assert changed[1] < changed[0] and 2 * changed[1] < changed[2]


def test_cores_to_use_may_be_chosen(tmp_path, monkeypatch):
    chosen, threads = [], cv2.getNumThreads()
    monkeypatch.setattr(cv2, "setNumThreads", chosen.append)
    assert run_demo("-i", CAT, "--threads", "1", "--no-save", *FAST, cwd=tmp_path).returncode == 0
    assert chosen == [1, threads]
