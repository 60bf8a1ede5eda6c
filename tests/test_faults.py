"""Parts that fail in the middle, and an end at any moment: what was done is kept.

NANODET_FAULT_MOMENTS=50 python -m pytest tests/test_faults.py
"""

import json
import os
import random
import shutil
import signal
import sys

import cv2
import fault_helpers as broken
import numpy as np
import pytest
from demo_process import CAT, Demo, error_of, files_below, run_demo
from live_helpers import (
    MjpegServer,
    Stream,
    film,
    images_of,
    numbered_video,
    numbers_of,
    temporary_files,
    wait_until,
)

if sys.platform == "win32":
    pytest.skip("signals of POSIX", allow_module_level=True)

FAST = ("--size", "64", "--confidence", "1", "--quiet")
SIGNALS = {signal.SIGKILL: -signal.SIGKILL, signal.SIGINT: 130, signal.SIGTERM: 143}
FRAMES, PICTURES, EARLIER = 150, 40, 5
TOTAL = {"picture": 1, "folder": PICTURES, "video": FRAMES}
MOMENTS = range(broken.number_of_moments())


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A picture that takes a while to save, a folder and a video."""
    inputs = tmp_path_factory.mktemp("inputs")
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), np.uint8)
    cv2.imwrite(str(inputs / "picture.png"), noise, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    (inputs / "folder" / "below").mkdir(parents=True)
    for i in range(PICTURES):
        place = inputs / "folder" / ("below" if i % 2 else ".")
        shutil.copy(CAT, place / f"{i:03}.jpg")
    numbered_video(inputs / "video.mp4", FRAMES)
    numbered_video(inputs / "earlier.mp4", EARLIER)
    return inputs


def one_error(demo):
    """The single error of a quiet run, which says nothing but this and warnings."""
    assert all(line.startswith("demo.py: ") for line in demo.err), demo.stderr
    return error_of(demo)


# An end at any moment.

NAMES = {"picture": "picture.png", "folder": "folder", "video": "video.mp4"}
RESULTS = {"picture": "result.png", "folder": "results", "video": "result.mp4"}


def results_below(folder):
    """Bytes of every result by its path, temporary files left out."""
    paths = [path for path in folder.rglob("*") if path.suffix in (".jpg", ".png", ".mp4")]
    return {path: path.read_bytes() for path in paths if ".partial" not in path.name}


def put_earlier_results(kind, inputs, folder):
    """Write what an earlier run may have left: whole files under the names of results."""
    if kind == "video":
        shutil.copy(inputs / "earlier.mp4", folder / "result.mp4")
    elif kind == "picture":
        shutil.copy(CAT, folder / "result.png")
    else:
        (folder / "results").mkdir()
        for i in range(0, PICTURES, 2):
            shutil.copy(CAT, folder / "results" / f"{i:03}.jpg")
            with (folder / "results" / ".nanodet-results").open("a") as names:
                names.write(f'"{i:03}.jpg"\n')


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
    """Check that results and lines of JSON are whole; returns the number of each.

    Of a video the results are its frames.
    """
    lines = (folder / "found.jsonl").read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"}\n") and json.loads(line) for line in lines)
    results = results_below(folder)
    if kind == "video":
        (path,) = results
        frames = film(path)["frames"]
        assert numbers_of(path) == list(range(frames))
        return len(lines), frames
    for data in results.values():
        assert data.endswith((b"\xff\xd9", b"IEND\xaeB`\x82"))
        assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None
    return len(lines), len(results)


@pytest.mark.parametrize("moment", MOMENTS)
def test_end_at_a_random_moment_leaves_only_whole_results(tmp_path, inputs, moment):
    kind, number = list(NAMES)[moment % 3], list(SIGNALS)[moment // 3 % 3]
    dice = random.Random(moment)  # noqa: S311
    put_earlier_results(kind, inputs, tmp_path)
    earlier = results_below(tmp_path)
    arguments = ("-i", inputs / NAMES[kind], *FAST, "-o", RESULTS[kind], "--json", "found.jsonl")
    with Demo(*arguments, cwd=tmp_path) as demo:
        moment_of(kind, dice, demo, tmp_path)
        demo.send(number)
        code = demo.finish()
    # A run that was done before the signal came has ended as runs do.
    assert code in (SIGNALS[number], 0), demo.stderr
    assert "Traceback" not in demo.stderr
    _, results = check_whole(kind, tmp_path)
    assert set(earlier) <= set(results_below(tmp_path))
    if number != signal.SIGKILL:
        assert temporary_files(tmp_path) == []
    elif kind == "video":  # the earlier one, or the new one if that was complete
        assert results in (EARLIER, FRAMES)

    demo = run_demo(*arguments, cwd=tmp_path)
    assert (demo.returncode, demo.stderr) == (0, "")
    assert check_whole(kind, tmp_path) == (TOTAL[kind], TOTAL[kind])


# Parts that fail.


@pytest.mark.parametrize(
    "script, says, lines, frames",
    [
        (broken.reader(21, "cv2.error('broken frame')"), "video.mp4, frame 20: ", 20, 20),
        (broken.reader(21, "MemoryError()"), "out of memory", 20, 20),
        (broken.disk(100), "result.mp4: the disk is full", 100, 99),
        (broken.writer(100, "cv2.error('no encoder')"), "result.mp4", 100, 99),
    ],
    ids=["reader", "memory", "disk", "writer"],
)
def test_part_that_fails_keeps_the_frames_before_it(tmp_path, inputs, script, says, lines, frames):
    args = ("-i", inputs / "video.mp4", *FAST, "--json", "-")
    demo = run_demo(*args, cwd=tmp_path, script=script)
    assert demo.returncode == 1
    assert says in one_error(demo)
    assert f"stopped after {frames} of {FRAMES} frames" in demo.stderr or says == "out of memory"
    assert [record["frame"] for record in demo.records()] == list(range(lines))
    assert numbers_of(tmp_path / "result.mp4") == list(range(frames))
    assert files_below(tmp_path) == ["result.mp4"]


def test_folder_of_a_video_that_vanishes_is_named(tmp_path, inputs):
    (tmp_path / "out").mkdir()
    demo = run_demo(
        *("-i", inputs / "video.mp4", *FAST, "-o", "out/film.mp4", "--json", "-"),
        cwd=tmp_path,
        script=broken.vanishing(20, "out"),
    )
    assert demo.returncode == 1
    assert "out/film.mp4: can't be written" in one_error(demo)
    assert len(demo.records()) == 20
    assert os.listdir(tmp_path) == []


def test_result_that_can_not_be_written_ends_a_folder_and_keeps_those_before_it(tmp_path, inputs):
    demo = run_demo(
        *("-i", inputs / "folder", *FAST, "--json", "-"), cwd=tmp_path, script=broken.renaming(10)
    )
    assert demo.returncode == 1
    assert "No space left on device" in one_error(demo)
    assert len(demo.records()) == 10
    assert len(results_below(tmp_path)) == 9
    assert temporary_files(tmp_path) == []


@pytest.mark.parametrize("kind", ["video", "folder"])
@pytest.mark.parametrize("error", ["nanodet.ModelError('no kernel')", "MemoryError()"])
def test_network_that_raises_on_one_frame_keeps_those_before_it(tmp_path, inputs, kind, error):
    demo = run_demo(
        *("-i", inputs / NAMES[kind], *FAST, "--json", "-"),
        cwd=tmp_path,
        script=broken.network(30, error),
    )
    assert demo.returncode == 1
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
    demo = run_demo(
        "-i", inputs / "picture.png", *FAST, cwd=tmp_path, script=broken.network(1, error)
    )
    assert demo.returncode == 1
    one_error(demo)
    assert len(demo.err) == 1
    assert os.listdir(tmp_path) == []


def test_video_of_which_nothing_can_be_read_was_a_mistake_of_the_user(tmp_path, inputs):
    script = broken.reader(1, "cv2.error('broken frame')")
    demo = run_demo("-i", inputs / "video.mp4", *FAST[:-1], cwd=tmp_path, script=script)
    assert demo.returncode == 2
    assert "video.mp4" in error_of(demo)
    assert "a second" not in demo.stdout
    assert os.listdir(tmp_path) == []


# Streams that do harm.


def garbage(stream):
    """Send random bytes without end, as fast as they are taken."""
    dice = random.Random(0)  # noqa: S311
    while not stream.server.stopping.is_set():
        stream.file.write(dice.randbytes(1 << 16))


def garbage_in_frames(stream):
    """Send parts of a stream that hold no pictures."""
    dice = random.Random(0)  # noqa: S311
    while not stream.server.stopping.is_set():
        head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 4096\r\n\r\n"
        stream.file.write(head + dice.randbytes(4096) + b"\r\n")


HARM = [garbage, garbage_in_frames]


@pytest.mark.parametrize("harm", HARM)
def test_stream_of_endless_garbage_ends_with_an_error(tmp_path, harm):
    with MjpegServer(harm) as server:
        args = ("-i", server.address, *FAST, "--json", "-", "--reconnect", "0")
        demo = run_demo(*args, cwd=tmp_path, script=broken.timeouts(2))
    assert demo.returncode in (1, 2)
    assert server.address in one_error(demo)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("harm", [*HARM, Stream.silence])
def test_stream_that_turns_bad_keeps_what_was_recorded(tmp_path, harm):
    def good_then_bad(stream):
        stream.numbered(40)
        harm(stream)

    with MjpegServer(good_then_bad) as server:
        args = ("-i", server.address, *FAST, "--save", "--json", "-", "--reconnect", "0")
        demo = run_demo(*args, cwd=tmp_path, script=broken.timeouts(1))
    assert demo.returncode == 1
    assert "no more frames" in one_error(demo)
    # However many were dropped, the last good one is not.
    numbers = [record["frame"] for record in demo.records()]
    assert numbers[-1] >= 38
    assert len(images_of(tmp_path / "result.mp4")) == len(numbers)
    assert temporary_files(tmp_path) == []
