"""Many pictures on Ray Data: what demo.py finds, complete, through kills and on two machines."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from demo_process import CAT, STREET, run_demo
from tool_helpers import run_tool

from cli.network import BUNDLED, NetworkOptions
from cli.options import parse

try:
    import psutil
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray.data
except ImportError as error:
    if os.environ.get("NANODET_RAY") == "required":
        raise
    pytest.skip(f"{error.name} is not installed: requirements-ray.txt", allow_module_level=True)
import detect_dataset

TOOL = ROOT / "tools" / "detect_dataset.py"
PATIENCE = 120  # seconds that a run may take
NEEDED = 14  # pictures, of the shared ones
BROKEN = {"empty.jpg", "text.png", "cut.jpg", "link.jpg", "j2k.jpg"}
JPEG_2000 = b"\0\0\0\x0cjP  \r\n\x87\n"  # how such a file begins


@pytest.fixture(scope="module")
def photos(shared, tmp_path_factory):
    """A folder of good pictures, one of them below, and of broken ones."""
    folder = tmp_path_factory.mktemp("work") / "photos"
    (folder / "below").mkdir(parents=True)
    good = sorted((shared / "coco_val2017_subset" / "images").glob("*.jpg"))[:NEEDED]
    for path in good[1:]:
        shutil.copy(path, folder)
    shutil.copy(good[0], folder / "below" / "Straße 1.jpg")
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no picture")
    (folder / "j2k.jpg").write_bytes(JPEG_2000)
    (folder / "cut.jpg").write_bytes(good[1].read_bytes()[:200])
    (folder / "link.jpg").symlink_to("nowhere")
    return folder


@pytest.fixture(scope="module")
def truth(photos):
    """What demo.py says of each picture of the folder."""
    return demo_records(photos, photos.parent)


def demo_records(folder, cwd, *options):
    process = run_demo("-i", folder.name, "--no-save", "--json", "-", *options, cwd=cwd)
    records = [json.loads(line) for line in process.stdout.splitlines()]
    return {record["source"]: record for record in records}


def command(*args):
    return [sys.executable, str(TOOL), *map(str, args)]


def run(*args, cwd):
    """Run the tool to its end."""
    return subprocess.run(
        command(*args), cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def start(*args, cwd):
    """Start the tool and leave it running."""
    with open(cwd / "stderr.txt", "w") as errors:
        return psutil.Popen(command(*args), cwd=cwd, stdout=subprocess.DEVNULL, stderr=errors)


def wait_for_result(process, folder):
    """Return as soon as a first result file is there."""
    deadline = time.monotonic() + PATIENCE
    while not list(folder.glob("*.parquet")):
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def kill_all(process):
    """Kill a run with all that belongs to it, without a warning."""
    family = [process, *process.children(recursive=True)]
    for member in family:
        member.kill()
    psutil.wait_procs(family)


def rows_of(folder):
    """The output's rows by path; each path is there once."""
    rows = pq.read_table(folder).to_pylist()
    by_path = {row["path"]: row for row in rows}
    assert len(by_path) == len(rows)
    return by_path


def assert_same(rows, records):
    """The output holds what demo.py found, to the last digit, and nothing else."""
    assert sorted(rows) == sorted(records)
    for path, record in records.items():
        row = rows[path]
        if "error" in record:
            # The demo tells a person what else could be given; a table needs the fault only.
            assert row["error"] == record["error"]
            assert all(row[key] is None for key in row if key not in ("path", "error"))
            continue
        found = record["detections"]
        assert row["error"] is None
        assert (row["width"], row["height"]) == (record["width"], record["height"])
        assert row["label"] == [one["label"] for one in found]
        assert row["class_id"] == [one["class_id"] for one in found]
        for key in ("confidence", "xyxy"):
            expected = np.array([one[key] for one in found], np.float32)
            np.testing.assert_array_equal(np.array(row[key], np.float32), expected)


def done(process, code=0):
    """What a run says, line by line, all of it its own: Ray and OpenCV are silent."""
    assert process.returncode == code, process.stderr
    assert process.stdout == ""
    lines = process.stderr.splitlines()
    assert all(line.startswith("detect_dataset.py: ") for line in lines), process.stderr
    return [line.removeprefix("detect_dataset.py: ") for line in lines]


def refusal(process, code=2):
    """The last line of a run that was refused."""
    line = done(process, code)[-1]
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


def test_folder_becomes_what_the_demo_finds_and_a_second_run_skips_it(photos, truth):
    total, broken = NEEDED + len(BROKEN), len(BROKEN)
    lines = done(run("-i", "photos", "-o", "found", "--rows", 4, cwd=photos.parent), 1)
    assert lines[0] == f"photos: {total} pictures, 0 of them done before"
    assert lines[1].startswith(f"found: {total} pictures; OpenCV ")
    assert lines[2:] == [f"error: {broken} of {total} pictures can't be read"]
    found = photos.parent / "found"
    rows = rows_of(found)
    assert_same(rows, truth)
    assert {Path(path).name for path, row in rows.items() if row["error"]} == BROKEN
    assert sum(len(row["label"] or ()) for row in rows.values()) > 20
    files = sorted(found.iterdir())
    sizes = sorted(pq.ParquetFile(file).metadata.num_rows for file in files)
    assert sizes == [total % 4, *[4] * (total // 4)]

    lines = done(run("-i", "photos", "-o", "found", cwd=photos.parent), 1)
    assert lines[0] == f"photos: {total} pictures, {total} of them done before"
    assert lines[1:] == [
        f"found: {total} pictures",
        f"error: {broken} of {total} pictures can't be read",
    ]
    assert sorted(found.iterdir()) == files


def test_list_with_the_demos_options(photos, tmp_path):
    options = ("--classes", "person,dog", "--confidence", 0.5, "--nms", 0.5, "--size", "320x256")
    records = demo_records(photos, photos.parent, *options)
    assert any(record.get("detections") == [] for record in records.values())
    assert any(record.get("detections") for record in records.values())
    absolute = {f"{photos.parent}/{path}": record for path, record in records.items()}
    absolute = json.loads(json.dumps(absolute).replace('"photos/', f'"{photos.parent}/photos/'))
    expected = records | absolute
    lines = [*expected, *list(expected)[:3]]  # some of them twice
    (photos.parent / "list.txt").write_text("\r\n".join(lines) + "\n\n", encoding="utf-8")
    process = run("-i", "list.txt", "-o", tmp_path / "found", *options, cwd=photos.parent)
    assert f"{2 * len(BROKEN)} of {len(expected)}" in refusal(process, 1)
    assert_same(rows_of(tmp_path / "found"), expected)


def test_parquet_with_bytes_and_later_more_of_it(photos, truth, tmp_path):
    paths = [path for path in truth if not path.endswith("link.jpg")]
    (tmp_path / "crawl").mkdir()

    def write(name, paths):
        data = [(photos.parent / path).read_bytes() for path in paths]
        table = pa.table({"url": paths, "number": range(len(paths)), "image": data})
        pq.write_table(table, tmp_path / "crawl" / name, row_group_size=3)

    columns = ("--path-column", "url", "--bytes-column", "image")
    write("a.parquet", paths[:5])
    done(run("-i", "crawl", "-o", "found", *columns, cwd=tmp_path))
    assert_same(rows_of(tmp_path / "found"), {path: truth[path] for path in paths[:5]})

    # One file as before, one that is new, one that grew, one with a row without a picture.
    write("b.parquet", paths[5:9])
    write("a.parquet", [*paths[9:], *paths[:5]])
    pq.write_table(pa.table({"url": ["x"], "image": [None]}), tmp_path / "crawl" / "c.parquet")
    lines = done(run("-i", "crawl", "-o", "found", *columns, cwd=tmp_path), 1)
    assert lines[0] == f"crawl: {len(paths) + 1} pictures, 5 of them done before"
    rows = rows_of(tmp_path / "found")
    assert rows.pop("x")["error"] == "x: is empty. Copy or download it again."
    assert_same(rows, {path: truth[path] for path in paths})


@pytest.fixture(scope="module")
def many(shared, tmp_path_factory):
    """A folder that has more than 100 pictures in photos, and what demo.py says of them."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "photos").symlink_to(shared / "coco_val2017_subset" / "images")
    records = demo_records(folder / "photos", folder)
    assert len(records) > 100
    return folder, records


def test_classes_without_names_are_numbered(tmp_path, monkeypatch):
    from tools.dataset import Detector

    monkeypatch.chdir(tmp_path)  # back at the end, as a Detector changes it
    options = NetworkOptions(BUNDLED, labels=(), classes=None, settings={})
    detector = Detector(options, {}, ["path", "bytes"], tmp_path, str(tmp_path / "found"))
    row = detector.row("a.jpg", np.fromfile(CAT, np.uint8))
    assert row["label"] == [f"class {class_id}" for class_id in row["class_id"]] != []


def test_each_picture_counts_as_soon_as_it_was_looked_at(tmp_path, monkeypatch):
    from tools.dataset import Counter, Detector

    monkeypatch.chdir(tmp_path)
    options = NetworkOptions(BUNDLED, labels=(), classes=None, settings={})
    counter, columns = Counter(), ["path", "bytes"]
    detector = Detector(options, {}, columns, tmp_path, str(tmp_path / "found"), counter.add)
    seen, row = [], detector.row
    detector.row = lambda *picture: seen.append(counter.number()) or row(*picture)
    detector(pa.table({"path": ["a", "b", "c"], "bytes": [CAT.read_bytes(), b"", b"x"]}))
    assert (seen, counter.number()) == ([0, 1, 2], 3)


class Stopping:
    """An event that is set after some seconds of a clock that only it moves."""

    def __init__(self, seconds):
        self.now, self._end = 0.0, seconds

    def wait(self, seconds):
        self.now += seconds
        return self.now > self._end


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_a_bar_on_a_terminal_and_else_a_line_a_minute(monkeypatch, capsys, terminal):
    stopping = Stopping(190)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr("detect_dataset.time.perf_counter", lambda: stopping.now)
    monkeypatch.setattr("cli.command.program", "detect_dataset.py")
    # Processes start for 70 seconds; more than there are, as a batch was done again.
    numbers = iter([0] * 70 + [10] + [60] * 58 + [130] * 90)
    detect_dataset.show_progress(120, lambda: next(numbers), stopping)
    said = capsys.readouterr().err
    if terminal:
        assert said.count("\r") > 150 and " 60/120 [" in said and "120/120" in said
        return
    assert said.splitlines() == [
        "detect_dataset.py: 0 of 120 pictures",
        "detect_dataset.py: 60 of 120 pictures, 1.0 a second, 00:58 left",
        "detect_dataset.py: 120 of 120 pictures, 1.0 a second, 00:00 left",
    ]


def test_progress_that_can_not_be_had_stops_nothing():
    def count():
        asked.set()
        raise TimeoutError

    asked = threading.Event()
    with detect_dataset.progress(9, count, TimeoutError):
        assert asked.wait(PATIENCE)


def test_row_of_a_large_photo_is_that_of_the_demo(tmp_path, monkeypatch):
    from tools.dataset import Detector

    monkeypatch.chdir(tmp_path)
    photo = cv2.resize(cv2.imread(str(STREET)), (4001, 3003))
    cv2.imwrite("a.jpg", photo)
    (record,) = demo_records(tmp_path, tmp_path.parent).values()
    options = NetworkOptions.of(parse([], ""))
    detector = Detector(options, {}, ["path", "bytes"], tmp_path, str(tmp_path / "found"))
    row = detector.row("a.jpg", np.fromfile("a.jpg", np.uint8))
    assert (row["width"], row["height"]) == (record["width"], record["height"]) == (4001, 3003)
    found = [o["xyxy"] for o in record["detections"]]
    np.testing.assert_allclose(row["xyxy"], found, rtol=1e-6)


def test_killed_run_is_resumed(many):
    folder, records = many
    args, found = ("-i", "photos", "-o", "killed", "--rows", 6), folder / "killed"
    process = start(*args, cwd=folder)
    wait_for_result(process, found)
    kill_all(process)
    files = {file: file.stat().st_mtime_ns for file in found.glob("*.parquet")}
    (found / ".begun.parquet.partial").write_bytes(b"PAR1")  # if the kill met none
    before = len(rows_of(found))
    lines = done(run(*args, cwd=folder))
    assert lines[0] == f"photos: {len(records)} pictures, {before} of them done before"
    assert_same(rows_of(found), records)
    assert files == {file: file.stat().st_mtime_ns for file in files}
    assert all(len(rows_of(file)) <= 6 for file in found.iterdir())


def test_run_survives_a_killed_process(many):
    folder, records = many
    process = start("-i", "photos", "-o", "survived", "--rows", 6, cwd=folder)
    wait_for_result(process, folder / "survived")
    children = process.children(recursive=True)
    workers = [child for child in children if "MapWorker" in "".join(child.cmdline())]
    assert workers
    workers[0].kill()
    assert process.wait(PATIENCE) == 0, (folder / "stderr.txt").read_text()
    assert_same(rows_of(folder / "survived"), records)


def test_cluster_of_two_machines(photos, truth):
    from ray.cluster_utils import Cluster

    machine = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=machine)
    try:
        cluster.add_node(**machine)
        # A process a core: each machine has room for one of the two.
        options = ("--rows", 2, "--address", cluster.address, "--concurrency", 2)
        process = run("-i", "photos", "-o", "cluster", *options, cwd=photos.parent)
        assert "can't be read" in refusal(process, 1)
        assert_same(rows_of(photos.parent / "cluster"), truth)
        process = run("-i", "photos", "-o", "x", *options[:-1], 3, cwd=photos.parent)
        assert refusal(process).startswith("3 processes want 1 CPU each, here are 2")
    finally:
        cluster.shutdown()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_it_and_all_its_processes(many, number, code):
    folder, output = many[0], f"signal{code}"
    process = start("-i", "photos", "-o", output, "--rows", 6, cwd=folder)
    wait_for_result(process, folder / output)
    children = process.children(recursive=True)
    process.send_signal(number)
    assert process.wait(PATIENCE) == code
    lines = (folder / "stderr.txt").read_text().splitlines()
    assert lines[1:] == []
    assert psutil.wait_procs(children, PATIENCE)[1] == []


@pytest.fixture
def crawl(tmp_path):
    """A Parquet input of one picture."""
    pq.write_table(pa.table({"path": ["a.jpg"], "bytes": [b"x"]}), tmp_path / "crawl.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("-i nowhere", "nowhere: no such file or folder"),
        ("-i empty", "empty: contains no pictures"),
        ("-i bad.parquet", "bad.parquet: can't be read"),
        ("-i twice.parquet", "a path is missing or there twice"),
        ("-i crawl.parquet --bytes-column image", "has no column image, but path, bytes"),
        ("-i nosuch://bucket/photos", "nosuch://bucket/photos: can't be read: "),
        ("-i crawl.parquet -o loop", "loop: can't be read: "),
        ("-i crawl.parquet -o other", "is not a result of detect_dataset.py"),
        ("-i crawl.parquet -o foreign", "foreign/x.parquet: can't be read"),
        ("-i crawl.parquet -o old", "was made with another confidence, nms"),
        ("-i . -o .", "-o .: lies in the input"),
        (
            "-i crawl.parquet -o drawn",
            "-o drawn: has other files in it: a.jpg. Give another",
        ),
        ("-i crawl.parquet -o results", "-o results: has other files in it: .nanodet-results."),
        ("-i crawl.parquet -o three.txt", "-o three.txt: is a file. Give a folder."),
        ("-i pipe -o found", "pipe: is not a regular file"),
        ("-i three.txt -o found", "three.txt: is larger than 5 bytes. Give Parquet files"),
        ("-i half.txt -o found", "half.txt: is no list of paths: it is not UTF-8 text"),
        ("-i crawl.parquet --labels three.txt", "knows 80 classes, there are names for 3"),
        ("-i crawl.parquet --address 127.0.0.1:1", "--address 127.0.0.1:1: no answer"),
        ("-i crawl.parquet --gpus -1", "--gpus -1: is neither a part of one nor a whole number"),
        ("-i crawl.parquet --gpus nan", "--gpus nan: is neither a part of one nor a whole number"),
    ],
)
def test_refusals_name_the_fault_before_ray_starts(args, words, crawl, monkeypatch, capsys):
    (crawl / "empty").mkdir()
    (crawl / "bad.parquet").write_bytes(b"PAR1")
    (crawl / "three.txt").write_text("a\nb\nc\n")
    row = {"path": ["a.jpg"], "bytes": [b"x"]}
    pq.write_table(
        pa.table({key: value * 2 for key, value in row.items()}), crawl / "twice.parquet"
    )
    for folder in ("other", "foreign", "old", "drawn", "results/below"):
        (crawl / folder).mkdir(parents=True)
    (crawl / "drawn" / "a.jpg").touch()
    (crawl / "results" / ".nanodet-results").touch()
    (crawl / "half.txt").write_bytes(b"\xff\xfea\0b")
    monkeypatch.setattr("tools.dataset.LONGEST_LIST", 5)
    os.mkfifo(crawl / "pipe")
    (crawl / "loop").symlink_to("loop")
    pq.write_table(pa.table(row), crawl / "other" / "x.parquet")
    (crawl / "foreign" / "x.parquet").write_bytes(b"someone's")
    old = pa.table(row, metadata={"nanodet": "{}"})
    pq.write_table(old, crawl / "old" / "x.parquet")
    output = () if "-o" in args else ("-o", "found")
    monkeypatch.chdir(crawl)
    code, out, err = run_tool(detect_dataset, capsys, *args.split(), *output)
    error = err.splitlines()[-1]
    assert (code, out) == (2, "") and error.startswith("detect_dataset.py: error: ")
    assert words in error and not ray.is_initialized()
    assert (crawl / "foreign" / "x.parquet").exists()
    assert not (crawl / "found").exists()
