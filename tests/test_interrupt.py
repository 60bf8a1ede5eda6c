"""Ctrl-C and SIGTERM at any moment: what is done stays whole, nothing half is left."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
from demo_process import DEADLINE, DEMO, FAST, STREET, Demo, run_demo
from live_helpers import film, numbered_video, numbers_of, temporary_files, wait_until

import nanodet

SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143)]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A video that takes many seconds."""
    return numbered_video(tmp_path_factory.mktemp("video") / "long.mp4", 600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of 200 pictures."""
    folder = tmp_path_factory.mktemp("folder") / "pictures"
    (folder / "below").mkdir(parents=True)
    for i in range(200):
        shutil.copy(STREET, folder / ("below" if i % 2 else ".") / f"{i:03}.jpg")
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A picture that takes a second to compress."""
    path = tmp_path_factory.mktemp("large") / "large.png"
    noise = np.random.default_rng(0).integers(0, 256, (2000, 3000, 3), np.uint8)
    cv2.imwrite(str(path), noise, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    return path


def loaded(demo, library):
    """Whether the process has begun to load a library."""
    with contextlib.suppress(OSError), open(f"/proc/{demo.pid}/maps") as maps:
        return library in maps.read()
    return False


def check_ended(demo, expected, tmp_path):
    """Ended as asked, and left nothing half done."""
    assert demo.finish() == expected, demo.stderr
    assert "Traceback" not in demo.stderr
    assert temporary_files(tmp_path) == []
    return demo.records()


@pytest.mark.parametrize("number, expected", SIGNALS)
def test_signal_while_the_network_is_loaded_ends_quietly(tmp_path, video, number, expected):
    script = """
import demo, nanodet, sys
load = nanodet.NanoDet.__init__
nanodet.NanoDet.__init__ = lambda *a, **k: print("loading", flush=True) or load(*a, **k)
sys.exit(demo.main())
"""
    with Demo("-i", video, cwd=tmp_path, script=script) as demo:
        demo.wait_line(demo.out, "loading")
        demo.send(number)
        assert demo.finish() == expected
    assert "Traceback" not in demo.stderr
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("number, expected", SIGNALS)
def test_signal_in_a_video_keeps_what_was_done(tmp_path, video, number, expected):
    with Demo("-i", video, "--json", "-", "--confidence", "1", cwd=tmp_path) as demo:
        demo.wait_lines(10)
        demo.send(number)
        records = check_ended(demo, expected, tmp_path)
    made = film(tmp_path / "result.mp4")
    assert 9 <= made["frames"] < 600
    assert len(records) - made["frames"] in (0, 1)  # its line comes before its frame
    assert f"saved result.mp4, {made['frames']} frame" in demo.stderr
    assert f"stopped after {made['frames']} of 600 frames" in demo.stderr
    assert numbers_of(tmp_path / "result.mp4") == list(range(made["frames"]))
    assert [record["frame"] for record in records] == list(range(len(records)))


def test_signal_at_the_first_frame_of_a_video_leaves_what_it_says(tmp_path, video):
    with Demo("-i", video, "--size", "64", "--json", "-", cwd=tmp_path) as demo:
        demo.wait_lines(1)
        demo.send(signal.SIGINT)
        records = check_ended(demo, 130, tmp_path)
    result = tmp_path / "result.mp4"  # there is none before the first frame
    made = film(result)["frames"] if result.exists() else 0
    assert (f"saved result.mp4, {made} frame" in demo.stderr) == result.exists()
    assert f"stopped after {made} of 600 frames" in demo.stderr
    assert len(records) < 600 and len(records) - made in (0, 1)


def test_second_signal_does_not_lose_the_video(tmp_path, video):
    with Demo("-i", video, "--size", "64", "--json", "-", cwd=tmp_path) as demo:
        demo.wait_lines(10)
        demo.send(signal.SIGINT)
        demo.wait_line(demo.err, "stopped after")  # it is being closed
        demo.send(signal.SIGINT)
        check_ended(demo, 130, tmp_path)
    assert film(tmp_path / "result.mp4")["frames"] >= 9


@pytest.mark.parametrize("number, expected", SIGNALS)
def test_signal_in_a_folder_keeps_whole_results(tmp_path, folder, number, expected):
    with Demo("-i", folder, "--json", "-", cwd=tmp_path) as demo:
        demo.wait_lines(10)
        demo.send(number)
        records = check_ended(demo, expected, tmp_path)
    results = sorted((tmp_path / "results").rglob("*.jpg"))
    assert 9 <= len(results) < 200
    assert len(records) - len(results) in (0, 1)
    for path in results:
        assert path.read_bytes().endswith(b"\xff\xd9")
        assert cv2.imread(str(path)).shape == (576, 768, 3)
    named = [os.path.relpath(record["source"], folder) for record in records]
    done = [os.path.relpath(path, tmp_path / "results") for path in results]
    assert set(done) == set(named[: len(done)])


@pytest.mark.parametrize("number, expected", SIGNALS)
def test_signal_while_a_picture_is_saved_leaves_no_half_of_it(tmp_path, large, number, expected):
    with Demo("-i", large, "-o", "result.png", "--json", "-", cwd=tmp_path) as demo:
        demo.wait_lines(1)  # next, it is compressed
        demo.send(number)
        assert len(check_ended(demo, expected, tmp_path)) == 1
    assert os.listdir(tmp_path) == []


def test_signal_while_a_picture_is_looked_at(tmp_path, large):
    arguments = ("-i", large, "--augment", "--size", "1024", "--json", "found.jsonl")
    with Demo(*arguments, cwd=tmp_path) as demo:
        wait_until((tmp_path / "found.jsonl").exists, "the network is loaded")
        demo.send(signal.SIGINT)
        check_ended(demo, 130, tmp_path)
    assert os.listdir(tmp_path) == ["found.jsonl"]
    assert (tmp_path / "found.jsonl").read_text() == ""


def test_reader_that_leaves_ends_the_run_without_a_word(tmp_path, video):
    command = f"'{sys.executable}' '{DEMO}' -i '{video}' -q --no-save --json - | head -2"
    done = subprocess.run(
        ["bash", "-c", command + '; exit "${PIPESTATUS[0]}"'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [json.loads(line)["frame"] for line in done.stdout.splitlines()] == [0, 1]


@pytest.mark.parametrize("lines", [0, 1, 4])
def test_two_signals_at_once_end_as_one_does(tmp_path, video, lines):
    arguments = ("-i", video, "--size", "64", "--json", "-", "-q")
    # A forked run has OpenCV before it begins, and with it no moment to wait for.
    with Demo(*arguments, cwd=tmp_path, fresh=lines == 0) as demo:
        demo.wait_lines(lines)
        wait_until(lambda: loaded(demo, "/cv2/"), "OpenCV is loaded")
        demo.send(signal.SIGSTOP)  # so that both are there when it goes on
        demo.send(signal.SIGINT)
        demo.send(signal.SIGTERM)
        demo.send(signal.SIGCONT)
        assert demo.finish() in (130, 143) or lines == 0
    assert all(line.startswith("demo.py: stopped after") for line in demo.err), demo.stderr


# The same in this process, at a moment that no signal from outside could hit each time.


def signals_in(monkeypatch, module, name, *numbers):
    """Send these signals whenever a function is called, before it does its work."""
    function = getattr(module, name)
    ended = []

    def call(*args, **options):
        for number in numbers:
            signal.raise_signal(number)
        result = function(*args, **options)
        ended.append(name)
        return result

    monkeypatch.setattr(module, name, call)
    return ended


@pytest.fixture
def photos(tmp_path):
    """A folder of one picture."""
    (tmp_path / "photos").mkdir()
    shutil.copy(STREET, tmp_path / "photos" / "a.jpg")


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGINT,), 130),
        ((signal.SIGTERM, signal.SIGINT), 143),
        ((signal.SIGINT, signal.SIGTERM), 130),
    ],
)
def test_signal_waits_for_the_frame_in_work_and_the_first_one_counts(
    tmp_path, monkeypatch, photos, numbers, code
):
    ended = signals_in(monkeypatch, nanodet.NanoDet, "detect", *numbers)
    demo = run_demo("photos", *FAST, cwd=tmp_path)
    assert (demo.returncode, ended) == (code, ["detect"])
    assert demo.stderr == "demo.py: stopped after 0 of 1 pictures of photos\n"
    assert "a second" not in demo.stdout  # no summary of nothing
    assert temporary_files(tmp_path) == []


def test_signal_while_the_last_result_is_written_waits_for_it(tmp_path, monkeypatch, photos):
    signals_in(monkeypatch, cv2, "imencode", signal.SIGTERM)
    demo = run_demo("photos", *FAST, cwd=tmp_path)
    assert (demo.returncode, demo.stderr) == (143, "")
    assert demo.out[-1] == "saved 1 picture in results\n"
    assert cv2.imread(str(tmp_path / "results" / "a.jpg")).shape == (576, 768, 3)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux")
def test_signal_after_the_end_does_not_change_the_exit_code(tmp_path):
    script = """
import atexit, os, runpy, signal, sys
atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv[0] = PATH
runpy.run_path(PATH, run_name="__main__")
""".replace("PATH", repr(str(DEMO)))
    demo = run_demo(STREET, *FAST, "-q", cwd=tmp_path, script=script, fresh=True)
    assert (demo.returncode, demo.stderr) == (0, "")
