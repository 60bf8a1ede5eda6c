"""The demo's parts inside other programs: frozen ones, and folders that are not there yet."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import cv2
import pytest
from conftest import ROOT
from demo_process import CAT, FAST, run_demo

from media.outputs import JsonLines
from media.window import why_no_window


def test_frozen_program_does_not_start_itself_to_look_for_a_display(monkeypatch):
    def run(*_, **__):
        raise AssertionError("sys.executable was started")

    try:
        framework = cv2.currentUIFramework()
    except cv2.error:
        framework = ""
    if not framework or sys.platform != "linux":
        pytest.skip("this OpenCV is a headless build, or needs no display")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("DISPLAY", ":9999")
    assert why_no_window() == ""


def test_older_python_is_named():
    code = "import sys, cv2; sys.version_info = (3, 9); import nanodet"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stderr.endswith("ImportError: nanodet.py needs Python 3.10 or newer\n")


def test_json_makes_missing_folders(tmp_path):
    path = tmp_path / "not" / "yet" / "found.jsonl"
    with closing(JsonLines(str(path), ())):
        assert path.exists()


def test_main_runs_in_any_thread(tmp_path):
    with ThreadPoolExecutor() as threads:
        demo = threads.submit(run_demo, CAT, *FAST, cwd=tmp_path).result()
    assert (demo.returncode, demo.stderr) == (0, "")
    assert (tmp_path / "result.jpg").is_file()
