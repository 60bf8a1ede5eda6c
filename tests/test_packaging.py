"""What is installed: the wheel, and what demo.py asks uv for."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
from demo_process import EXAMPLES, ROOT

import nanodet

STREET = EXAMPLES / "street.jpg"
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "tests", "*.onnx")
DETECT = """
import sys
import cv2
import nanodet

print(nanodet.__file__)
for row in nanodet.NanoDet(sys.argv[1]).infer(cv2.imread(sys.argv[2])):
    print(*row)
"""


def run(*command, cwd=None):
    """The standard output of a command that succeeds."""
    process = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout


def list_of(name, text):
    """The strings of `name = [...]` in TOML, sorted."""
    values = re.search(rf"^{name} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)[1]
    return sorted(re.findall('"(.*?)"', values))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this repository, built of a copy because building leaves files there."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_COPIED)
    build = ("wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source")
    run(sys.executable, "-m", "pip", *build, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_contains_nanodet_py_and_nothing_else(wheel):
    version = nanodet.__version__
    assert wheel.name == f"nanodet_opencv-{version}-py3-none-any.whl"
    with ZipFile(wheel) as archive:
        names = archive.namelist()
        assert archive.read("nanodet.py") == (ROOT / "nanodet.py").read_bytes()
    about = f"nanodet_opencv-{version}.dist-info/"
    assert [name for name in names if not name.startswith(about)] == ["nanodet.py"]
    assert {f"{about}licenses/LICENSE", f"{about}licenses/NOTICE"} <= set(names)


def test_installed_wheel_finds_what_the_clone_finds(wheel, bundled, tmp_path):
    run(sys.executable, "-m", "venv", "--without-pip", "fresh", cwd=tmp_path)
    python = tmp_path / "fresh" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    install = ("install", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=tmp_path)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    # OpenCV and NumPy are those of this environment: a download would be slow.
    Path(packages.strip(), "here.pth").write_text(str(Path(np.__file__).parents[1]))
    file, *rows = run(python, "-c", DETECT, bundled, STREET, cwd=tmp_path).splitlines()
    assert Path(file).parent.samefile(packages.strip())
    found = [[float(number) for number in row.split()] for row in rows]
    expected = nanodet.NanoDet(bundled).infer(cv2.imread(str(STREET)))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert len(found) > 5


def test_wheel_and_uv_need_what_requirements_txt_names():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    demo = (ROOT / "demo.py").read_text(encoding="utf-8")
    script = re.search(r"^# /// script\n((?:#.*\n)+?)# ///$", demo, re.MULTILINE)[1]
    script = re.sub("^# ?", "", script, flags=re.MULTILINE)
    requirements = sorted((ROOT / "requirements.txt").read_text().split())
    assert list_of("dependencies", script) == requirements
    # nanodet.py shows no progress.
    assert list_of("dependencies", project) == [r for r in requirements if "tqdm" not in r]
    (python,) = re.findall("^requires-python.*$", project, re.MULTILINE)
    assert python in script.splitlines()


def test_uv_runs_the_demo_from_a_clone(tmp_path):
    uv = pytest.importorskip("uv", reason="uv is not installed: pip install uv").find_uv_bin()
    command = [uv, "run", "demo.py", "-i", "example_inputs/street.jpg"]
    process = subprocess.run(
        [*command, "-o", tmp_path / "result.jpg", "--json", tmp_path / "found.jsonl"],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
    )
    if process.returncode and "Failed to fetch" in process.stderr:
        pytest.skip("uv reaches no package index")
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "result.jpg").exists()
    record = json.loads((tmp_path / "found.jsonl").read_text())
    assert "person" in [found["label"] for found in record["detections"]]
