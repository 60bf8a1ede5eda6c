"""Whatever strangers give: a right result or one clear line, and never half a file.

The table of what is given and what has to come of it is CORPUS in corpus.py.
"""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
from corpus import BUNDLED, CORPUS, cat, shown
from demo_process import CAT, DEMO, ROOT, environment, fork, run_demo
from reference import iou

from nanodet import COCO_CLASSES, NanoDet

if sys.platform != "linux":
    pytest.skip("pipes, devices and limits are Linux's", allow_module_level=True)

TIMEOUT = 40  # seconds until a run counts as hanging
GIB = 1 << 20  # in KiB
# Root reads and writes everything; without these rights it is a user as others are.
AS_USER = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--")
LIMITED = ("prlimit", f"--as={4 << 30}", "--")  # so that a defect does not take the machine down
# What libraries below OpenCV print themselves.
CHATTER = (
    "libpng error: ",
    "libpng warning: ",
    "Corrupt JPEG data",
    "Warning: unknown JFIF revision",
)


@dataclass(frozen=True)
class Run:
    """How a run ended.

    Attributes
    ----------
    code : int
        The exit code, negative after a signal.
    out, err : str
    before, after : dict of str to bytes
        Files in the folder, and what was in them.
    process : Fork, subprocess.Popen or Done
    """

    code: int
    out: str
    err: str
    before: dict
    after: dict
    process: object

    def records(self):
        """The lines of JSON on stdout; Infinity and NaN are not JSON."""

        def refuse(constant):
            raise ValueError(f"{constant} is not JSON")

        return [json.loads(line, parse_constant=refuse) for line in self.out.splitlines()]


def contents(folder):
    """{name: bytes} of all regular files below a folder."""
    paths = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    regular = [path for path in paths if path.is_file() and not path.is_symlink()]
    readable = [path for path in regular if os.access(path, os.R_OK)]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in readable}


def run(case, place):
    """Make the case's files in a folder of its own and run the demo there."""
    folder = place / "run"
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        made = case.make(folder)
        if hasattr(made, "__enter__"):
            stack.enter_context(made)
        before = contents(folder)
        if case.kind == "output" and not case.through and "read-only" not in case.what:
            process = run_demo(*case.args, cwd=folder)
            code, out, err = process.returncode, process.stdout, process.stderr
        else:  # what strangers give may crash, hang or fill the memory
            process, code, out, err = in_a_process(case, folder, place)
        return Run(code, out, err, before, contents(folder), process)


def in_a_process(case, folder, place):
    """The run of a case as a user without special rights, and its exit code, stdout and stderr."""
    through = LIMITED if shutil.which(LIMITED[0]) else ()
    if os.geteuid() == 0 and shutil.which(AS_USER[0]):
        through = (*AS_USER, *through)
    elif os.geteuid() == 0 and ("rights" in case.what or "read-only" in case.what):
        pytest.skip(f"{AS_USER[0]} is not installed: root can't give up its rights")
    with open(place / "out", "wb") as out, open(place / "err", "wb") as err:
        if case.through:
            shell = ["bash", "-c", case.through, "bash", sys.executable, DEMO, *case.args]
            process = subprocess.Popen(
                [*through, *shell],
                cwd=folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        else:
            process = fork(case.args, out, err, cwd=folder, through=through)
        try:
            code = process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            pytest.fail(f"runs after {TIMEOUT} s: {(place / 'err').read_bytes()}")
    out, err = ((place / name).read_text("utf-8", "surrogateescape") for name in ("out", "err"))
    return process, code, out, err


@pytest.mark.parametrize("case", CORPUS, ids=str)
def test_case_ends_as_the_table_says(case, tmp_path):
    done = run(case, tmp_path)
    assert "Traceback" not in done.err and "Exception" not in done.err
    assert not [name for name in done.after if "partial" in name]
    misfits = [misfit(case, outcome, done) for outcome in case.outcomes]
    assert None in misfits, f"{misfits}\nexit code {done.code}\n{done.err}{done.out[:1000]}"
    if case.bomb:  # it ends within a second and a gibibyte
        (tmp_path / "missing").mkdir()
        missing = run(CORPUS[0], tmp_path / "missing").process
        assert done.process.seconds < missing.seconds + 1
        assert done.process.memory < GIB


def misfit(case, outcome, run):
    """What differs between a run and an outcome, None if nothing."""
    try:
        check_end(case, outcome, run)
        if case.kind in ("picture", "video", "folder", "network"):
            check_records(case, outcome, run)
        check_files(case, outcome, run)
    except (AssertionError, ValueError) as error:
        return str(error)
    return None


def check_end(case, outcome, run):
    """The exit code and what stderr says."""
    assert run.code == outcome.code
    lines = [line for line in run.err.splitlines() if not line.startswith(CHATTER)]
    errors = [line for line in lines if line.startswith("demo.py: error: ")]
    assert len(errors) == (1 if outcome.code else 0)
    if outcome.code:
        assert outcome.says in errors[0]
        missing = [name for name in case.names if shown(name) not in errors[0]]
        assert not missing, f"{missing} not in: {errors[0]}"
        assert errors[0] == lines[-1] or case.kind == "output"
        given = errors[0].replace(str(CAT), "").replace(str(BUNDLED), "")
        assert str(ROOT) not in given
        if case.kind in ("picture", "video") and outcome.code == 2:
            assert errors[0].startswith(f"demo.py: error: {shown(case.names[0]) or '(empty)'}: ")
    if outcome.code == 2:
        assert run.out == ""
        assert [line for line in lines if "no window" not in line] == errors
    if case.kind != "output":
        assert all(line.startswith("demo.py: ") for line in lines)


def check_records(case, outcome, run):
    """The number of frames, their source and size, and the object that has to be there."""
    records = run.records()
    if isinstance(outcome.frames, range):
        assert len(records) in outcome.frames
    elif outcome.frames is not None:
        assert len(records) == outcome.frames
    if case.kind in ("picture", "video"):
        assert {record["source"] for record in records} <= {os.fsdecode(case.source)}
    whole = [record for record in records if "error" not in record]
    if outcome.size:
        assert {(record["width"], record["height"]) for record in whole} == {outcome.size}
    for record in whole:
        for left, top, right, bottom in (thing["xyxy"] for thing in record["detections"]):
            assert 0 <= left < right <= record["width"]
            assert 0 <= top < bottom <= record["height"]
    if outcome.finds:
        things = whole[0]["detections"]
        boxes = [thing["xyxy"] for thing in things if thing["label"] == outcome.finds]
        assert boxes, f"no {outcome.finds} in {things}"
        if outcome.finds == "cat":
            assert max(iou(box, cat_box()) for box in boxes) > 0.8


def check_files(case, outcome, run):
    """What was there is unchanged, and only what was asked for is new, and whole."""
    names = [
        name
        for name, data in run.after.items()
        if name not in run.before or not data.startswith(run.before[name])
    ]
    assert sorted(names) == sorted(case.files if outcome.files is None else outcome.files)
    assert not set(run.before) - set(run.after)
    for name in names:
        image, frames = first_image(name, run.after[name])
        assert image is not None, f"{name} is not whole"
        size = image.shape[1::-1]
        assert outcome.size is None or all(
            got in (side, side + side % 2)  # a video's sides are even
            for got, side in zip(size, outcome.size, strict=True)
        )
        if run.out and name.endswith(".mp4"):
            assert frames == len(run.out.splitlines())
        if outcome.finds == "cat":  # upright, and drawn on rather than changed
            grey = [
                cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) for picture in (image[:300, :451], cat())
            ]
            assert cv2.matchTemplate(*grey, cv2.TM_CCOEFF_NORMED) > 0.8


def first_image(name, data):
    """The picture or first frame in a result, None if it can't be read, and the frames in it."""
    if not name.endswith(".mp4"):
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), 1
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        capture = cv2.VideoCapture(file.name, cv2.CAP_FFMPEG)
        image, frames = capture.read()[1], 1
        while capture.grab():
            frames += 1
        return image, frames


@functools.cache
def cat_box():
    """Where the cat is in the picture that the corpus is made of."""
    found = NanoDet(BUNDLED).detect(cat())
    return found.xyxy[found.class_id == COCO_CLASSES.index("cat")][0].tolist()
