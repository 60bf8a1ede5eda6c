"""Benchmark: it times the same work on both sides, and its files hold what it says."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from nanodet import NanoDet

pytest.importorskip("matplotlib", reason="pip install matplotlib")
import benchmark

ROOT = Path(__file__).resolve().parent.parent
STREET = ROOT / "example_inputs" / "street.jpg"
STAGES = ["letterbox", "normalise", "forward", "decode", "NMS", "rest of detect", "draw"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Folder and printed text of a run of mode stages, as a process."""
    folder = tmp_path_factory.mktemp("stages")
    command = [sys.executable, ROOT / "tools" / "benchmark.py", "--runs", "3"]
    command += ["--size", "640x480", "1920x1080", "--threads", "1", "--out", folder / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "out", done.stdout


@pytest.fixture
def columns(stages):
    """{size: {row: figures}} of that run."""
    (result,) = json.loads((stages[0] / "results.json").read_text())["results"]
    return result["columns"]


def error_of(capsys, *options):
    """The line on stderr where the benchmark ends with 2."""
    try:
        code = benchmark.main([*map(str, options)])
    except SystemExit as exit:  # argparse
        code = exit.code
    assert code == 2
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("size", [(768, 576), (1920, 1080), (500, 700), (416, 416)])
@pytest.mark.parametrize("keep_ratio", [True, False])
@pytest.mark.parametrize("confidence", [0.35, 0.05])
def test_textbook_finds_the_same_boxes_as_detect(bundled, size, keep_ratio, confidence):
    detector = NanoDet(bundled, confidence, keep_ratio=keep_ratio)
    image = cv2.resize(cv2.imread(str(STREET)), size, interpolation=cv2.INTER_AREA)
    forward = detector._engine.forward
    rows = benchmark.textbook(image, detector, forward, benchmark.own_resize)
    found = detector.detect(image)
    assert len(found) >= (1 if confidence == 0.35 else 20)
    assert benchmark.difference(found, rows) <= benchmark.SAME
    np.testing.assert_allclose([row[4] for row in rows], found.confidence, atol=1e-6)


def test_textbook_that_finds_other_boxes_is_noticed(bundled):
    detector = NanoDet(bundled)
    found = detector.detect(cv2.imread(str(STREET)))
    rows = detector.infer(cv2.imread(str(STREET)))
    assert benchmark.difference(found, rows) == 0
    assert benchmark.difference(found, rows[1:]) == np.inf
    rows[0, 2] += 0.2
    assert benchmark.difference(found, rows) == pytest.approx(0.2, abs=1e-3)


def test_timers_are_taken_out_again(bundled):
    detector = NanoDet(bundled)
    image = cv2.imread(str(STREET))
    before = benchmark.nanodet.decode, benchmark.nanodet.nms, benchmark.nanodet.Letterbox.draw
    benchmark.stages_of(detector, image)
    after = benchmark.nanodet.decode, benchmark.nanodet.nms, benchmark.nanodet.Letterbox.draw
    assert before == after


def test_stages_come_in_the_order_of_the_data_with_their_totals(columns):
    assert list(columns) == ["640x480", "1920x1080"]
    for rows in columns.values():
        inside = [name for name in rows if name in STAGES]
        assert inside == STAGES
        assert {"detect", "bare network", "detect - bare network", "textbook"} < set(rows)
        for row in rows.values():
            assert len(row["values"]) == 3
            assert row["q1"] <= row["median"] <= row["q3"]
            assert row["median"] == pytest.approx(np.median(row["values"]))


def test_stages_add_up_to_what_detect_takes_around_the_network(columns):
    for rows in columns.values():
        values = {name: np.array(row["values"]) for name, row in rows.items()}
        around = sum(values[name] for name in STAGES if name not in ("forward", "draw"))
        np.testing.assert_allclose(around, values["detect without forward"], rtol=1e-6)
        assert all((values[name] > 0).all() for name in STAGES)


def test_ratios_are_those_of_the_times_of_each_round(columns):
    for rows in columns.values():
        values = {name: np.array(row["values"]) for name, row in rows.items()}
        for above, below in (("detect", "bare network"), ("textbook", "detect")):
            expected = values[above] / values[below]
            np.testing.assert_allclose(values[f"{above} / {below}"], expected, rtol=1e-9)
        extra = values["detect"] - values["bare network"]
        np.testing.assert_allclose(values["detect - bare network"], extra, atol=1e-9)


def test_files_and_text_say_what_was_measured(stages):
    folder, text = stages
    written = json.loads((folder / "results.json").read_text())
    assert written["mode"] == "stages"
    assert written["machine"]["OpenCV"] == cv2.__version__
    assert written["machine"]["numpy"] == np.__version__
    assert written["machine"]["threads"] == 1
    assert written["machine"]["CPU"]
    (result,) = written["results"]
    assert "object_detection_nanodet_2022nov.onnx" in result["network"]
    assert f"OpenCV {cv2.__version__}" in result["network"]
    assert "640x480: 20 objects" in result["notes"][0]
    assert all("the textbook's boxes are the same to 0.0" in note for note in result["notes"])
    for name, row in result["columns"]["640x480"].items():
        assert f"| {name}, {row['unit']} | {benchmark.cell(row)} |" in text
    assert cv2.imread(str(folder / "chart.png")).shape[1] >= 800


def test_memory_of_a_call_is_found_with_its_line():
    def small():
        return sum(len(bytes(1000)) for _ in range(200))

    def large():
        first = bytearray(200_000)
        del first
        return small()

    peak, lines = benchmark.allocations(small)
    assert peak < 64 << 10 and not lines
    peak, lines = benchmark.allocations(large)
    line = large.__code__.co_firstlineno + 1
    assert list(lines) == [f"test_benchmark.py:{line}"]
    assert 200_000 <= lines[f"test_benchmark.py:{line}"] <= peak < 230_000


@pytest.mark.parametrize(
    "mode, options, rows",
    [
        ("folder", ["--runs", 1, "--count", 5], ["demo", "plain loop", "processor's bound"]),
        ("live", ["--frames", 4], ["age of the frame shown", "worst age / median inference"]),
        ("start", ["--runs", 1], ["import, load, one forward", "demo.py"]),
    ],
)
def test_mode_measures_and_writes_its_files(tmp_path, mode, options, rows):
    if mode == "folder":
        options = [*options, "--input", STREET.parent]
    out = tmp_path / "out"
    assert benchmark.main([*map(str, ["--mode", mode, "--out", out, *options])]) == 0
    written = json.loads((out / "results.json").read_text())
    (column,) = written["results"][0]["columns"].values()
    assert set(rows) <= set(column)
    assert all(column[name]["median"] > 0 for name in rows)
    assert (out / "chart.png").exists()


def test_video_is_measured_and_memory_watched(tmp_path):
    clip = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(clip, cv2.VideoWriter_fourcc(*"MJPG"), 25, (320, 240))
    for _ in range(12):
        writer.write(cv2.resize(cv2.imread(str(STREET)), (320, 240)))
    writer.release()
    video = ["--mode", "video", "--input", clip, "--runs", "1", "--out", str(tmp_path / "video")]
    assert benchmark.main(video) == 0
    written = json.loads((tmp_path / "video" / "results.json").read_text())
    rows = written["results"][0]["columns"]["clip.avi"]
    assert rows["demo / plain loop"]["median"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.avi", "video"]
    if benchmark.LINUX:
        memory = ["--mode", "memory", "--input", clip, "--frames", "30"]
        assert benchmark.main([*memory, "--out", str(tmp_path / "memory")]) == 0
        written = json.loads((tmp_path / "memory" / "results.json").read_text())
        rows = written["results"][0]["columns"]["clip.avi"]
        assert rows["peak of fresh memory in detect"]["median"] > 0
        assert len(rows["resident memory"]["values"]) == 30


@pytest.mark.parametrize(
    "options, words",
    [
        (["--model", "nothing.onnx"], ["nothing.onnx", "no such file"]),
        (["--model", STREET], ["street.jpg", "no ONNX file"]),
        (["--engine", "magic"], ["--engine", "magic"]),
        (["--size", "0x480"], ["--size", "less than 1"]),
        (["--size", "large"], ["--size", "large"]),
        (["--runs", "0"], ["--runs", "less than 1"]),
        (["--frames", "9"], ["--frames belongs to --mode memory, live"]),
        (["--mode", "live", "--runs", "9"], ["--runs belongs to"]),
        (["--mode", "video", "--input", "nothing.mp4"], ["nothing.mp4", "not found", "--input"]),
        (["--mode", "video", "--input", STREET], ["street.jpg", "no video file"]),
        (["--mode", "folder", "--input", STREET], ["street.jpg", "no folder of pictures"]),
    ],
)
def test_error_is_one_line_that_names_the_fault(tmp_path, capsys, options, words):
    line = error_of(capsys, *options, "--out", tmp_path / "out")
    assert line.startswith("benchmark.py: error: ")
    assert all(word in line for word in words)


def test_missing_default_input_says_to_give_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(benchmark.INPUTS, "video", tmp_path / "vtest.avi")
    line = error_of(capsys, "--mode", "video")
    assert "vtest.avi: not found. Give a video file with --input." in line
