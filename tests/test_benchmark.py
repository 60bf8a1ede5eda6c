"""Benchmark: it times the same work on both sides, and its files contain what it says."""

import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import benchmark
import cv2
import numpy as np
import pytest
from conftest import ROOT

from cli.command import Failed
from cli.network import BUNDLED, ENGINES, INT8, NetworkOptions
from cli.options import parse as demo_flags
from nanodet import NanoDet

TOOL = ROOT / "tools" / "benchmark.py"
STEPS = ["letterbox", "normalise", "forward", "decode", "back to the image", "NMS"]


@pytest.fixture(scope="module")
def picture():
    """An example picture."""
    return cv2.imread(str(min(benchmark.EXAMPLES.glob("*.jpg"))))


def run(*args, cwd, code=0):
    """Run the benchmark in a folder; returns stdout, or stderr where it has to fail."""
    command = [sys.executable, TOOL, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)
    assert done.returncode == code, done.stderr
    assert code or done.stderr == ""
    return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Folder and printed text of a run of mode stages."""
    folder = tmp_path_factory.mktemp("stages")
    more = ("--size", "640x480", "1920x1080", "--threads", 1, "--out", "out")
    return folder / "out", run("--mode", "stages", "--runs", 3, *more, cwd=folder)


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Results and printed text of a run without a mode, of two engines."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("engines")
    text = run("--runs", 1, "--engine", "opencv", "onnxruntime", cwd=folder)
    written = json.loads(
        (folder / "results" / "benchmark" / "engines" / "results.json").read_text()
    )
    return written["results"], text


@pytest.fixture
def columns(stages):
    """{size: {row: figures}} of that run."""
    (result,) = json.loads((stages[0] / "results.json").read_text())["results"]
    return result["columns"]


@pytest.mark.parametrize(
    "size, keep_ratio, confidence",
    [((768, 576), True, 0.35), ((500, 700), True, 0.05), ((1920, 1080), False, 0.05)],
)
def test_textbook_and_timed_steps_find_the_boxes_of_detect(
    bundled, picture, size, keep_ratio, confidence
):
    detector = NanoDet(bundled, confidence, keep_ratio=keep_ratio)
    image = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    found = detector.detect(image)
    assert len(found) >= (1 if confidence == 0.35 else 10)
    rows = benchmark.textbook(image, detector, benchmark.own_resize)
    assert benchmark.difference(found, rows) <= benchmark.SAME
    np.testing.assert_allclose(rows[:, 4], found.confidence, atol=1e-6)
    stepwise, times = benchmark.Steps(detector, size)(image)
    for name in ("xyxy", "confidence", "class_id"):
        np.testing.assert_array_equal(getattr(stepwise, name), getattr(found, name))
    assert list(times) == [*STEPS, "draw"]


def test_textbook_that_finds_other_boxes_is_noticed(bundled, picture):
    detector = NanoDet(bundled)
    found, rows = detector.detect(picture), detector.infer(picture)
    assert benchmark.difference(found, rows) == 0
    assert benchmark.difference(found, rows[1:]) == np.inf
    rows[0, 2] += 0.2
    assert benchmark.difference(found, rows) == pytest.approx(0.2, abs=1e-3)


def test_figures_of_each_round_add_up(columns):
    assert list(columns) == ["640x480", "1920x1080"]
    for rows in columns.values():
        values = {name: np.array(row["values"]) for name, row in rows.items()}
        assert all(len(value) == 3 for value in values.values())
        assert all((values[name] > 0).all() for name in (*STEPS, "draw", "textbook"))
        extra = values["detect"] - values["network only"]
        np.testing.assert_allclose(values["detect - network only"], extra)
        for above, below in (("detect", "network only"), ("textbook", "detect")):
            expected = values[above] / values[below]
            np.testing.assert_allclose(values[f"{above} / {below}"], expected)
        for name, row in rows.items():
            assert row["q1"] <= row["median"] <= row["q3"]
            assert row["median"] == pytest.approx(np.median(values[name]))


def test_files_and_text_say_what_was_measured(stages):
    folder, text = stages
    written = json.loads((folder / "results.json").read_text())
    assert written["mode"] == "stages"
    machine = written["machine"]
    versions = [machine["OpenCV"], machine["numpy"], machine["threads"]]
    assert versions == [cv2.__version__, np.__version__, 1]
    assert machine["CPU"]
    (result,) = written["results"]
    assert "object_detection_nanodet_2022nov.onnx" in result["network"]
    assert f"OpenCV {cv2.__version__}" in result["network"]
    assert result["notes"][0].startswith("640x480: 20 objects")
    for name, row in result["columns"]["640x480"].items():
        words = [word.strip() for word in text.partition(f"| {name}, ")[2].split("|")]
        assert words[:2] == [row["unit"], benchmark.cell(row)]
    assert [path.name for path in folder.iterdir()] == ["results.json"]


def test_each_engine_and_network_is_measured_with_the_flags_to_type(engines):
    results, text = engines
    expected = [
        ("opencv", BUNDLED, ""),
        ("opencv", INT8, "--int8 --engine opencv"),
        ("onnxruntime", BUNDLED, "--engine onnxruntime"),
        ("onnxruntime", INT8, "--int8"),
    ]
    assert [(r["engine"], r["model"], r["flags"]) for r in results] == expected
    rows = [line.strip("| \n").split("|") for line in text.splitlines() if line.startswith("| O")]
    rows += [
        line.strip("| \n").split("|") for line in text.splitlines() if line.startswith("| onn")
    ]
    for (engine, model, flags), row, result in zip(expected, rows, results, strict=True):
        ran, network, look, stream, accuracy, typed = (word.strip() for word in row)
        assert ran.lower().startswith(engine) and typed == (flags or "none")
        assert network == ("int8" if model == INT8 else "float32")
        (figures,) = result["columns"].values()
        assert look.strip("*") == benchmark.cell(figures[benchmark.LOOK])
        assert stream.strip("*") == benchmark.cell(figures[benchmark.STREAM])
        assert float(accuracy) == pytest.approx(0.235, abs=0.002)
        parsed = NetworkOptions.of(demo_flags(flags.split(), ""))
        assert (parsed.model, parsed.settings["engine"]) == (model, engine)


def test_best_of_each_kind_is_marked_and_its_flags_are_named(engines):
    results, text = engines
    for kind, best in ((benchmark.LOOK, min), (benchmark.STREAM, max)):
        value = {r["flags"]: next(iter(r["columns"].values()))[kind]["median"] for r in results}
        flags = best(value, key=value.get)
        (line,) = (line for line in text.splitlines() if line.startswith("- Quickest here: "))
        words = {benchmark.LOOK: "a picture", benchmark.STREAM: "videos"}
        assert f"{flags or 'no flags'} for {words[kind]}" in line
        column = 2 if kind == benchmark.LOOK else 3
        cells = [row.split("|")[1:][column] for row in text.splitlines() if "**" in row]
        assert sum("**" in cell for cell in cells) == 1


def test_engines_that_are_not_installed_are_named(engines, monkeypatch, capsys):
    monkeypatch.setattr("cli.network.find_spec", lambda name: None)
    assert "- To compare more: pip install onnxruntime openvino\n" in benchmark.engine_table(
        engines[0]
    )
    assert benchmark.parse([]).engine == ["opencv"]
    monkeypatch.setattr("cli.network.find_spec", lambda name: name == "openvino")
    assert benchmark.parse([]).engine == ["opencv", "openvino"]
    assert "- To compare more: pip install onnxruntime\n" in benchmark.engine_table(engines[0])


def test_accuracy_beside_the_engines_is_that_of_the_docs():
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    (row,) = (line for line in text.splitlines() if line.startswith("| 416 | "))
    float32, *int8 = (f"{float(value):.3f}" for value in row.split("|")[2:-1])
    ap = benchmark.AP
    assert {ap[engine, BUNDLED] for engine in ENGINES} == {float32}
    assert [ap[engine, INT8] for engine in ("onnxruntime", "opencv", "openvino")] == int8


def test_rounds_end_in_time_and_alternate(monkeypatch):
    now, order = [0.0], []

    def measure(argv, model, engine):
        order.append((engine, model))
        now[0] += 20
        row = {benchmark.LOOK: len(order), benchmark.STREAM: 9}
        return {"network": "n", "columns": {"v": row}, "notes": []}

    monkeypatch.setattr(benchmark, "measure_alone", measure)
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])
    args = benchmark.parse(["--engine", "opencv", "onnxruntime", "--model", BUNDLED, "--runs", "9"])
    results = list(benchmark.compare_engines(args, []))
    first = [("opencv", BUNDLED), ("onnxruntime", BUNDLED)]
    assert order == first + first[::-1]  # a third round would end after 120 seconds
    values = [result["columns"]["v"][benchmark.LOOK]["values"] for result in results]
    assert values == [[1, 4], [2, 3]]


@pytest.mark.parametrize("mode", ["video", "folder"])
def test_whole_run_is_measured_against_a_plain_loop(tmp_path, monkeypatch, mode):
    ticks = SimpleNamespace(
        perf_counter=itertools.count(0, 0.5).__next__, process_time=itertools.count(0, 2).__next__
    )
    monkeypatch.setattr(benchmark, "time", ticks)
    monkeypatch.setattr(benchmark, "FRAMES", 7)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(3), raising=False)
    one = ["--mode", mode, "--runs", "1", "--worker", str(tmp_path)]
    threads = cv2.getNumThreads()
    try:
        benchmark.main(one)
        result = json.loads((tmp_path / "result.json").read_text())
        name = "examples.mp4" if mode == "video" else "examples"
        rows = {row: figures["median"] for row, figures in result["columns"][name].items()}
        # 7 frames in 0.5 s, of a look at the clock to the next, and 2 s of one processor of 3.
        assert rows == {
            **{"processor's bound": 3 * 7 / 2, "plain loop": 14, "demo": 14},
            **{"demo / processor's bound": 14 / 10.5, "demo / plain loop": 1},
        }
        assert result["notes"][0].startswith("7 frames; ")
        assert result["network"].startswith(f"{Path(BUNDLED).name}, OpenCV ")
        monkeypatch.setattr(benchmark.demo, "main", lambda _: 1)
        with pytest.raises(Failed, match="examples.*: the demo fails on it"):
            benchmark.main([*one, "--input", str(tmp_path / name)])
    finally:
        cv2.setNumThreads(threads)
    results = ["demo.mp4", "plain.mp4"] if mode == "video" else ["demo", "plain.jpg"]
    assert sorted(os.listdir(tmp_path)) == sorted([*results, name, "result.json"])


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(
    "number, code, running", [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, False)]
)
def test_signal_leaves_no_process_and_no_file(tmp_path, number, code, running):
    mode = "folder" if running else "stages"
    command = [sys.executable, TOOL, "--runs", "100000", "--mode", mode]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for line in process.stdout:
        if line.startswith(b"CPU "):  # the worker is about to start
            break
    while running and not list(tmp_path.glob("tmp*/plain.jpg")):
        assert process.poll() is None
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]  # a worker left behind would keep it open
    assert (process.returncode, err) == (code, b"")
    assert os.listdir(tmp_path) == ["results"]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--model", "nothing.onnx"], ["nothing.onnx", "no such network"]),
        (["--mode", "stages", "--input", "."], [".", "is not a regular file"]),
        (["--input", "a.png"], ["a.png", "is not a video", "--input"]),
        (["--mode", "video", "--input", "a.png"], ["a.png", "is not a video", "--input"]),
        (["--mode", "folder", "--input", "a.png"], ["a.png", "is not a folder", "--input"]),
        (["--mode", "folder", "--input", "."], ["text.jpg"]),
    ],
)
def test_error_is_one_line_that_names_the_fault(tmp_path, options, words):
    (tmp_path / "text.jpg").write_text("not a network, nor a picture")
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    error = run(*options, cwd=tmp_path, code=2)
    assert error.startswith("benchmark.py: error: ") and error.count("\n") == 1
    assert all(word in error for word in words)
