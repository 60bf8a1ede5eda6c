"""The demo and the class in a notebook: the kernel's process and signals stay the kernel's."""

import json

import pytest
from conftest import ROOT
from demo_process import CAT, EXAMPLES, environment

nbclient = pytest.importorskip("nbclient", reason="pip install nbclient nbformat ipykernel")
nbformat = pytest.importorskip("nbformat", reason="pip install nbclient nbformat ipykernel")
pytest.importorskip("ipykernel", reason="pip install nbclient nbformat ipykernel")

PATIENCE = 120  # seconds that a cell may take
BEGIN = f"""
import contextlib, io, json, os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
clip, picture = Path({str(EXAMPLES / "street.mp4")!r}), Path({str(CAT)!r})
ends = [signal.SIGINT, signal.SIGTERM]
handlers = list(map(signal.getsignal, ends))
"""
CLASS = f"""
import cv2
from nanodet import NanoDet
detector = NanoDet({str(ROOT / "object_detection_nanodet_2022nov.onnx")!r})
print(len(detector.detect(cv2.imread(str(picture)))))
"""
RUN = f"""
%run "{ROOT / "demo.py"}" "{CAT}" -q --size 64
print(Path("result.jpg").is_file(), handlers == list(map(signal.getsignal, ends)))
"""
DRAW = """
import demo
threads = cv2.getNumThreads()
print(demo.main([picture, "--size", "64", "-o", Path("cat.png")]))
print(cv2.imread("cat.png").shape == cv2.imread(str(picture)).shape)
"""
JSON = """
print(demo.main([picture, "-q", "--size", "64", "--no-save", "--json", "-"]))
"""
VIDEO = """
print(demo.main([clip, "--size", "64"]), Path("result.mp4").stat().st_size > 1000)
"""
INTERRUPTED = """
class Third(io.StringIO):
    lines = 0
    def write(self, text):
        self.lines += 1
        if self.lines == 3:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)

with contextlib.redirect_stdout(Third()) as third:
    code = demo.main([clip, "-q", "--size", "64", "--no-save", "--json", "-"])
print(code, third.lines, len(third.getvalue().splitlines()))
"""
AFTER = """
print(demo.main([picture, "-q", "--size", "64"]), handlers == list(map(signal.getsignal, ends)))
print(cv2.getNumThreads() == threads, "OPENCV_FFMPEG_LOGLEVEL" in os.environ)
"""
WRONG = """
print(demo.main(["--unknown"]), demo.main(["no.jpg"]), demo.main(["--version"]))
"""
CELLS = {
    name: cell
    for name, cell in globals().items()
    if name.isupper() and isinstance(cell, str) and cell.startswith("\n")
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """What each cell printed, stdout and stderr, when all were run one after the other."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS.values()]
    )
    client = nbclient.NotebookClient(
        notebook, timeout=PATIENCE, kernel_name="python3", resources={"metadata": {"path": folder}}
    )
    client.execute(env=environment())
    printed = {}
    for name, cell in zip(CELLS, notebook.cells, strict=True):
        streams = {"stdout": "", "stderr": ""}
        for output in cell.outputs:
            assert output.output_type == "stream", output
            streams[output.name] += output.text
        printed[name] = tuple(streams.values())
    return printed


def test_class_detects(outputs):
    assert int(outputs["CLASS"][0]) >= 1 and outputs["CLASS"][1] == ""


def test_run_magic_leaves_the_kernel_its_signals(outputs):
    assert outputs["RUN"] == ("True True\n", "")


def test_main_takes_paths_and_draws(outputs):
    lines = outputs["DRAW"][0].splitlines()
    assert lines[0].startswith(f"{CAT}: 451x300, ")
    assert lines[-3:] == ["saved cat.png", "0", "True"] and outputs["DRAW"][1] == ""


def test_json_is_written_into_a_cell(outputs):
    record, code = outputs["JSON"][0].splitlines()
    assert json.loads(record)["source"] == str(CAT) and code == "0"


def test_video_is_run_with_its_progress_in_the_cell(outputs):
    out, err = outputs["VIDEO"]
    assert out.endswith("0 True\n") and "saved result.mp4" in out
    assert " frames" in err and "IProgress" not in err


def test_interrupted_run_ends_with_130_and_the_notebook_goes_on(outputs):
    clip = EXAMPLES / "street.mp4"
    stopped = f"demo.py: stopped after 3 of 24 frames of {clip}\n"
    assert outputs["INTERRUPTED"] == ("130 3 3\n", stopped)
    assert outputs["AFTER"] == ("0 True\nTrue False\n", "")


def test_wrong_flags_and_inputs_are_lines_and_codes(outputs):
    out, err = outputs["WRONG"]
    assert out.splitlines()[-1] == "2 2 0"
    assert [line.split(":")[:2] for line in err.splitlines()] == [["demo.py", " error"]] * 2
