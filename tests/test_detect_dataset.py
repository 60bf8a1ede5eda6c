"""Many pictures on Ray Data: what demo.py finds, complete, through kills and on two machines."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from demo_process import run_demo

try:
    import psutil
    import pyarrow as pa
    import pyarrow.parquet as pq
    import ray.data  # noqa: F401
except ImportError as error:
    if os.environ.get("NANODET_RAY") == "required":
        raise
    pytest.skip(f"{error.name} is not installed: requirements-ray.txt", allow_module_level=True)

TOOL = Path(__file__).resolve().parent.parent / "tools" / "detect_dataset.py"
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


def refusal(process, code=2):
    """What a run says that was refused: one line at the end, and no traceback."""
    assert process.returncode == code, process.stderr
    line = process.stderr.splitlines()[-1]
    assert line.startswith("detect_dataset.py: error: "), process.stderr
    assert "Traceback" not in process.stderr
    return line.removeprefix("detect_dataset.py: error: ")


def test_folder_gives_what_the_demo_finds_and_a_second_run_skips_it(photos, truth):
    process = run("-i", "photos", "-o", "found", "--rows", 4, cwd=photos.parent)
    assert process.returncode == 0, process.stderr
    found = photos.parent / "found"
    rows = rows_of(found)
    assert_same(rows, truth)
    assert {Path(path).name for path, row in rows.items() if row["error"]} == BROKEN
    assert sum(len(row["label"] or ()) for row in rows.values()) > 20
    total = NEEDED + len(BROKEN)
    assert f"found: {total} pictures, {len(BROKEN)} of them can't be read" in process.stderr
    files = sorted(found.iterdir())
    assert len(files) >= total / 4

    process = run("-i", "photos", "-o", "found", cwd=photos.parent)
    assert process.returncode == 0
    assert process.stderr == f"photos: {total} pictures, {total} of them done before\n"
    assert sorted(found.iterdir()) == files


def test_list_with_the_demos_options(photos, tmp_path):
    options = ("--classes", "person,dog", "--confidence", 0.5, "--nms", 0.5, "--size", "320x256")
    records = demo_records(photos, photos.parent, *options)
    assert any(record.get("detections") == [] for record in records.values())
    assert any(record.get("detections") for record in records.values())
    place = str(photos.parent)
    absolute = json.loads(json.dumps(records).replace('"photos/', f'"{place}/photos/'))
    for form, expected in (("relative", records), ("absolute", absolute)):
        lines = [*expected, *list(expected)[:3]]  # some of them twice
        (photos.parent / f"{form}.txt").write_text("\r\n".join(lines) + "\n\n", encoding="utf-8")
    expected = records | absolute
    (photos.parent / "list.txt").write_bytes(
        b"".join((photos.parent / f"{form}.txt").read_bytes() for form in ("relative", "absolute"))
    )
    process = run("-i", "list.txt", "-o", tmp_path / "found", *options, cwd=photos.parent)
    assert process.returncode == 0, process.stderr
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
    process = run("-i", "crawl", "-o", "found", *columns, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert_same(rows_of(tmp_path / "found"), {path: truth[path] for path in paths[:5]})

    # One file as before, one that grew in front and behind, one with a row that holds no picture.
    write("b.parquet", paths[5:])
    pq.write_table(pa.table({"url": ["x"], "image": [None]}), tmp_path / "crawl" / "c.parquet")
    write("a.parquet", paths[:5])
    process = run("-i", "crawl", "-o", "found", *columns, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert f"{len(paths) + 1} pictures, 5 of them done before" in process.stderr
    rows = rows_of(tmp_path / "found")
    assert rows.pop("x")["error"].startswith("x: is empty")
    assert_same(rows, {path: truth[path] for path in paths})


def test_killed_run_is_taken_up_again(shared, tmp_path):
    (tmp_path / "photos").symlink_to(shared / "coco_val2017_subset" / "images")
    args = ("-i", "photos", "-o", "found", "--rows", 6)
    found = tmp_path / "found"
    process = start(*args, cwd=tmp_path)
    wait_for_result(process, found)
    kill_all(process)
    files = sorted(found.glob("*.parquet"))
    # Whatever the kill met, now one file surely is cut off, and one was only just begun.
    files[0].write_bytes(files[0].read_bytes()[:-100])
    files[0].with_stem(files[0].stem.replace("_0000", "_0009")).touch()
    process = run(*args, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert files[0] not in found.iterdir()
    assert set(files[1:]) <= set(found.iterdir())
    rows = rows_of(found)
    records = demo_records(tmp_path / "photos", tmp_path)
    assert len(records) > 100
    assert_same(rows, records)


def test_run_survives_a_killed_process(shared, tmp_path):
    (tmp_path / "photos").symlink_to(shared / "coco_val2017_subset" / "images")
    process = start("-i", "photos", "-o", "found", "--rows", 6, cwd=tmp_path)
    wait_for_result(process, tmp_path / "found")
    workers = [
        child
        for child in process.children(recursive=True)
        if "MapWorker" in "".join(child.cmdline())
    ]
    assert len(workers) == 2
    workers[0].kill()
    assert process.wait(PATIENCE) == 0, (tmp_path / "stderr.txt").read_text()
    records = demo_records(tmp_path / "photos", tmp_path)
    assert_same(rows_of(tmp_path / "found"), records)


def test_cluster_of_two_machines(photos, truth):
    from ray.cluster_utils import Cluster

    machine = {"num_cpus": 1, "object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=machine)
    try:
        cluster.add_node(**machine)
        # A process a core: each machine has room for one of the two.
        options = ("--rows", 2, "--address", cluster.address, "--concurrency", 2)
        process = run("-i", "photos", "-o", "cluster", *options, cwd=photos.parent)
        assert process.returncode == 0, process.stderr
        assert_same(rows_of(photos.parent / "cluster"), truth)
        process = run("-i", "photos", "-o", "x", *options[:-1], 3, cwd=photos.parent)
        assert refusal(process).startswith("3 processes want 1 CPU each, here are 2")
    finally:
        cluster.shutdown()


def test_interrupt_ends_it_quietly(shared, tmp_path):
    (tmp_path / "photos").symlink_to(shared / "coco_val2017_subset" / "images")
    process = start("-i", "photos", "-o", "found", "--rows", 6, cwd=tmp_path)
    wait_for_result(process, tmp_path / "found")
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130
    assert "Traceback" not in (tmp_path / "stderr.txt").read_text()


def test_without_ray_it_says_what_to_install(tmp_path):
    program = (
        "import runpy, sys; sys.modules['ray'] = None; sys.argv = sys.argv[1:];"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, TOOL, "-i", "photos", "-o", "found"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert refusal(process) == 'ray is not installed. Run: pip install "ray[data]"'
    assert process.stderr.count("\n") == 1


@pytest.fixture
def crawl(tmp_path):
    """A Parquet input of one picture."""
    pq.write_table(pa.table({"path": ["a.jpg"], "bytes": [b"x"]}), tmp_path / "crawl.parquet")
    return tmp_path


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("-i nowhere", "nowhere: no such file or folder"),
        ("-i empty", "empty: holds no pictures"),
        ("-i bad.parquet", "bad.parquet: can't be read"),
        ("-i twice.parquet", "a path is missing or there twice"),
        ("-i crawl.parquet --bytes-column image", "has no column image, but path, bytes"),
        ("-i nosuch://bucket/photos", "nosuch://bucket/photos: can't be reached"),
        ("-i crawl.parquet --classes zebr", "Did you mean zebra"),
        ("-i crawl.parquet --labels none.txt", "--labels none.txt: can't be read"),
        ("-i crawl.parquet --model none.onnx", "none.onnx: no such network"),
        ("-i crawl.parquet --size 100", "multiple of 32"),
        ("-i crawl.parquet --provider X --engine onnxruntime", "onnxruntime"),
        ("-i crawl.parquet -o other", "is no result of detect_dataset.py"),
        ("-i crawl.parquet -o foreign", "is no result of detect_dataset.py"),
        ("-i crawl.parquet -o old", "was made with another confidence, nms"),
    ],
)
def test_refusals_name_the_fault_before_ray_starts(args, words, crawl):
    (crawl / "empty").mkdir()
    (crawl / "bad.parquet").write_bytes(b"PAR1")
    row = {"path": ["a.jpg"], "bytes": [b"x"]}
    pq.write_table(
        pa.table({key: value * 2 for key, value in row.items()}), crawl / "twice.parquet"
    )
    for folder in ("other", "foreign", "old"):
        (crawl / folder).mkdir()
    pq.write_table(pa.table(row), crawl / "other" / "x.parquet")
    (crawl / "foreign" / "x.parquet").write_bytes(b"someone's")
    old = pa.table(row, metadata={"nanodet": "{}"})
    pq.write_table(old, crawl / "old" / "x.parquet")
    output = () if "-o" in args else ("-o", "found")
    process = run(*args.split(), *output, cwd=crawl)
    assert words in refusal(process)
    assert (crawl / "foreign" / "x.parquet").exists()
    assert not (crawl / "found").exists()
    assert "logging.cc" not in process.stderr


def test_address_without_a_cluster_is_named(crawl):
    process = run("-i", "crawl.parquet", "-o", "x", "--address", "127.0.0.1:1", cwd=crawl)
    assert refusal(process).startswith("--address 127.0.0.1:1: no answer")
