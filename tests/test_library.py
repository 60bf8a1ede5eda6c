"""The demo's parts inside other programs: frozen ones, and folders that are not there yet."""

import contextlib
import io
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import cv2
import pytest
from conftest import ROOT
from demo_process import CAT, FAST, run_demo

import demo
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


@pytest.mark.parametrize("notebook", [False, True])
def test_main_without_arguments_takes_those_of_a_program_only(monkeypatch, capsys, notebook):
    if notebook:
        monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    monkeypatch.setattr(demo, "run", lambda args: print(args.inputs) or 0)
    assert demo.main() == (0 if notebook else 2)
    out, err = capsys.readouterr()
    assert (out == "[]\n") == notebook and ("-f" in err) != notebook


def test_main_takes_paths_and_writes_json_where_stdout_takes_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert demo.main([CAT, *FAST, "-q", "-o", tmp_path / "x.png", "--json", "-"]) == 0
    assert json.loads(out.getvalue())["source"] == str(CAT)
    assert (tmp_path / "x.png").is_file()


def test_main_runs_in_any_thread(tmp_path):
    with ThreadPoolExecutor() as threads:
        demo = threads.submit(run_demo, CAT, *FAST, cwd=tmp_path).result()
    assert (demo.returncode, demo.stderr) == (0, "")
    assert (tmp_path / "result.jpg").is_file()
