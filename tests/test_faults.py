"""Parts that fail in the middle, and an end at any moment: what was done is kept.

NANODET_FAULT_MOMENTS=50 python -m pytest tests/test_faults.py
"""

import json
import os
import random
import shutil
import signal
import time

import cv2
import fault_helpers as broken
import numpy as np
import pytest
from live_helpers import (
    ROOT,
    Demo,
    MjpegServer,
    film,
    numbered_video,
    numbers_of,
    run_demo,
    temporary_files,
    wait_until,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

FAST = ("--size", "64", "--confidence", "1", "--quiet")
SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}
FRAMES, PICTURES, EARLIER = 300, 80, 5
TOTAL = {"picture": 1, "folder": PICTURES, "video": FRAMES}
MOMENTS = range(broken.number_of_moments())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A picture that takes a while to save, a folder and a video."""
    inputs = tmp_path_factory.mktemp("inputs")
    noise = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8)
    cv2.imwrite(str(inputs / "picture.png"), noise, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    (inputs / "folder" / "below").mkdir(parents=True)
    for i in range(PICTURES):
        place = inputs / "folder" / ("below" if i % 2 else ".")
        shutil.copy(ROOT / "example_inputs" / "cat.jpg", place / f"{i:03}.jpg")
    numbered_video(inputs / "video.mp4", FRAMES)
    return inputs


def one_error(demo):
    """The single error that the demo told, all in lines of its own."""
    assert all(line.startswith("demo.py: ") for line in demo.err), demo.errors
    (line,) = (line for line in demo.err if line.startswith("demo.py: error: "))
    assert demo.err[-1] == line
    return line


# An end at any moment.

NAMES = {"picture": "picture.png", "folder": "folder", "video": "video.mp4"}
RESULTS = {"picture": "result.png", "folder": "results", "video": "result.mp4"}


def results_below(folder):
    """Bytes of every result by its path, temporary files left out."""
    paths = [path for path in folder.rglob("*") if path.suffix in (".jpg", ".png", ".mp4")]
    return {path: path.read_bytes() for path in paths if ".partial" not in path.name}


def put_earlier_results(kind, folder):
    """Write what an earlier run may have left: whole files under the names of results."""
    if kind == "video":
        numbered_video(folder / "result.mp4", EARLIER)
    elif kind == "picture":
        shutil.copy(ROOT / "example_inputs" / "cat.jpg", folder / "result.png")
    else:
        (folder / "results").mkdir()
        for i in range(0, PICTURES, 2):
            shutil.copy(ROOT / "example_inputs" / "cat.jpg", folder / "results" / f"{i:03}.jpg")


def moment_of(kind, dice, demo, folder):
    """Wait for a random moment of a run: each is tied to what the run has done until then."""
    path = folder / "found.jsonl"
    part = dice.choice(("begun", "part", "lines", "lines"))
    if part == "begun":
        wait_until(path.exists, "the network is loaded")
    elif part == "part":
        wait_until(lambda: temporary_files(folder) or not demo.running(), "a result is begun")
    else:
        number = dice.randint(1, TOTAL[kind] // 2 or 1)
        wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= number, "lines")


def check_whole(kind, folder):
    """Every result of its final name is whole, and so is each line of JSON; gives their number."""
    lines = (folder / "found.jsonl").read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"}\n") and json.loads(line) for line in lines)
    for path, data in results_below(folder).items():
        if kind == "video":
            assert numbers_of(path) == list(range(film(path)["frames"]))
        else:
            assert data.endswith((b"\xff\xd9", b"IEND\xaeB`\x82"))
            assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None
    return len(lines)


@pytest.mark.parametrize("moment", MOMENTS)
def test_end_at_a_random_moment_leaves_only_whole_results(tmp_path, inputs, moment):
    kind, number = list(NAMES)[moment % 3], list(SIGNALS)[moment // 3 % 3]
    dice = random.Random(moment)  # noqa: S311
    put_earlier_results(kind, tmp_path)
    earlier = results_below(tmp_path)
    arguments = ("-i", inputs / NAMES[kind], *FAST, "-o", RESULTS[kind], "--json", "found.jsonl")
    with Demo(*arguments, cwd=tmp_path) as demo:
        moment_of(kind, dice, demo, tmp_path)
        demo.send(number)
        code = demo.finish()
    # A run that was done before the signal came has ended as runs do.
    assert code in (SIGNALS[number], 0), demo.errors
    assert "Traceback" not in demo.errors
    check_whole(kind, tmp_path)
    later = results_below(tmp_path)
    assert set(earlier) <= set(later)
    if number != signal.SIGKILL:
        assert temporary_files(tmp_path) == []
    elif kind == "video":  # the earlier one, or the new one if that was complete
        assert film(tmp_path / "result.mp4")["frames"] in (EARLIER, FRAMES)

    demo, code = run_demo(*arguments, cwd=tmp_path)
    assert (code, demo.errors) == (0, "")
    assert check_whole(kind, tmp_path) == TOTAL[kind]
    if kind == "video":
        assert film(tmp_path / "result.mp4")["frames"] == FRAMES
    else:
        assert len(results_below(tmp_path)) == TOTAL[kind]


# Parts that fail.


def test_reader_that_dies_keeps_the_frames_before_it(tmp_path, inputs):
    script = broken.reader(21, "cv2.error('broken frame')")
    demo, code = run_demo(
        "-i", inputs / "video.mp4", *FAST, "--json", "-", cwd=tmp_path, script=script
    )
    assert code == 1
    assert "video.mp4" in one_error(demo)
    assert "stopped after 20 of 300 frames" in demo.errors
    assert [record["frame"] for record in demo.records()] == list(range(20))
    assert numbers_of(tmp_path / "result.mp4") == list(range(20))
    assert temporary_files(tmp_path) == []


def test_reader_out_of_memory_keeps_the_frames_before_it(tmp_path, inputs):
    script = broken.reader(21, "MemoryError()")
    demo, code = run_demo(
        "-i", inputs / "video.mp4", *FAST, "--json", "-", cwd=tmp_path, script=script
    )
    assert code == 1
    assert "out of memory" in one_error(demo)
    assert len(demo.records()) == 20
    assert numbers_of(tmp_path / "result.mp4") == list(range(20))
    assert temporary_files(tmp_path) == []


def test_disk_that_is_full_at_the_hundredth_frame_keeps_those_before_it(tmp_path, inputs):
    demo, code = run_demo(
        *("-i", inputs / "video.mp4", *FAST, "--json", "-"), cwd=tmp_path, script=broken.disk(100)
    )
    assert code == 1
    assert "result.mp4: the disk is full" in one_error(demo)
    assert "stopped after 99 of 300 frames" in demo.errors
    assert [record["frame"] for record in demo.records()] == list(range(100))
    assert numbers_of(tmp_path / "result.mp4") == list(range(99))
    assert temporary_files(tmp_path) == []


def test_writer_that_fails_at_the_hundredth_frame_keeps_those_before_it(tmp_path, inputs):
    script = broken.writer(100, "cv2.error('no encoder')")
    demo, code = run_demo(
        "-i", inputs / "video.mp4", *FAST, "--json", "-", cwd=tmp_path, script=script
    )
    assert code == 1
    assert "result.mp4" in one_error(demo)
    assert [record["frame"] for record in demo.records()] == list(range(100))
    assert numbers_of(tmp_path / "result.mp4") == list(range(99))
    assert temporary_files(tmp_path) == []


def test_folder_of_a_video_that_vanishes_is_named(tmp_path, inputs):
    (tmp_path / "out").mkdir()
    demo, code = run_demo(
        *("-i", inputs / "video.mp4", *FAST, "-o", "out/film.mp4", "--json", "-"),
        cwd=tmp_path,
        script=broken.vanishing(20, "out"),
    )
    assert code == 1
    assert "out/film.mp4: can't be written" in one_error(demo)
    assert len(demo.records()) == 20
    assert os.listdir(tmp_path) == []


def test_result_that_can_not_be_written_ends_a_folder_and_keeps_those_before_it(tmp_path, inputs):
    demo, code = run_demo(
        *("-i", inputs / "folder", *FAST, "--json", "-"), cwd=tmp_path, script=broken.renaming(10)
    )
    assert code == 1
    assert "No space left on device" in one_error(demo)
    assert len(demo.records()) == 10
    assert len(results_below(tmp_path)) == 9
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("kind", ["video", "folder"])
@pytest.mark.parametrize("error", ["nanodet.ModelError('no kernel')", "MemoryError()"])
def test_network_that_raises_on_one_frame_keeps_those_before_it(tmp_path, inputs, kind, error):
    demo, code = run_demo(
        *("-i", inputs / NAMES[kind], *FAST, "--json", "-"),
        cwd=tmp_path,
        script=broken.network(30, error),
    )
    assert code == 1
    said = one_error(demo)
    assert "out of memory" in said or ("no kernel" in said and "frame" in said)
    done = len(demo.records())
    assert done == 29
    if kind == "video":
        assert numbers_of(tmp_path / "result.mp4") == list(range(done))
    else:
        assert len(results_below(tmp_path)) == done
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("error", ["nanodet.ModelError('no kernel')", "MemoryError()"])
def test_network_that_raises_on_the_only_picture_is_one_error(tmp_path, inputs, error):
    demo, code = run_demo(
        "-i", inputs / "picture.png", *FAST, cwd=tmp_path, script=broken.network(1, error)
    )
    assert code == 1
    one_error(demo)
    assert os.listdir(tmp_path) == []


# Streams that do harm.


def garbage(stream):
    """Send random bytes without end, as fast as they are taken."""
    dice = random.Random(0)  # noqa: S311
    while not stream.server.stopping.is_set():
        stream._file.write(dice.randbytes(1 << 16))


def garbage_in_frames(stream):
    """Send parts of a stream that hold no pictures."""
    dice = random.Random(0)  # noqa: S311
    while not stream.server.stopping.is_set():
        head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 4096\r\n\r\n"
        stream._file.write(head + dice.randbytes(4096) + b"\r\n")


def then(first, later):
    """A connection that serves one thing and then another."""

    def serve(stream):
        first(stream)
        later(stream)

    return serve


def some(stream):
    stream.numbered(40)


@pytest.mark.parametrize("harm", [garbage, garbage_in_frames])
def test_stream_of_endless_garbage_ends_with_an_error(tmp_path, harm):
    with MjpegServer(harm) as server:
        started = time.monotonic()
        demo, code = run_demo(
            *("-i", server.address, *FAST, "--json", "-", "--reconnect", "0"),
            cwd=tmp_path,
            script=broken.timeouts(2),
        )
        lasted = time.monotonic() - started
    assert code in (1, 2)
    assert server.address in one_error(demo)
    assert lasted < 20
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("harm", [garbage, garbage_in_frames, lambda stream: stream.silence()])
def test_stream_that_turns_bad_keeps_what_was_recorded(tmp_path, harm):
    with MjpegServer(then(some, harm)) as server:
        started = time.monotonic()
        demo, code = run_demo(
            *("-i", server.address, *FAST, "--save", "--json", "-", "--reconnect", "0"),
            cwd=tmp_path,
            script=broken.timeouts(1),
        )
        lasted = time.monotonic() - started
    assert code == 1
    assert "no more frames" in one_error(demo)
    assert lasted < 20
    assert len(demo.records()) > 5
    assert film(tmp_path / "result.mp4")["frames"] > 5
    assert temporary_files(tmp_path) == []
