"""README and docs: their commands run as pasted from a clone, and what they say is so."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
from demo_process import ROOT, environment, run_demo

from cli import options

README, FLAGS = ROOT / "README.md", ROOT / "docs" / "flags.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "tests", "results", "build", "*.egg-info")
HD = ["demo.py", "1", "--camera-size", "1280x720"]
CAMERAS = (["demo.py"], HD, ["demo.py", "--serve", "8000"])
# Streams, clusters, Ray, data to download, the tests themselves.
ELSEWHERE = (
    "://",
    "nanodet-plus-m_416.onnx",
    "detect_dataset.py",
    "--annotations",
    "pytest",
    "ruff",
    "mypy",
)
FLAG = r"(?<![\w-])--[a-z][a-z_-]*"


def blocks(page, language):
    """The code blocks of a page in a language."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(page):
    """The arguments of each line that begins with python, without the comment after them."""
    lines = re.findall(r"^(?:\S*/)?python (.*)$", "".join(blocks(page, "sh")), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


RUNNABLE = [
    command
    for page in PAGES
    for command in commands(page)
    if command not in CAMERAS and not any(word in " ".join(command) for word in ELSEWHERE)
]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the repository, where commands may leave results."""
    folder = tmp_path_factory.mktemp("clone") / "here"
    shutil.copytree(ROOT, folder, ignore=NOT_COPIED)
    return folder


def run(*command, cwd):
    """The standard output of a Python command that succeeds, where there is no display."""
    process = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("command", RUNNABLE, ids=" ".join)
def test_command_runs_as_pasted(command, clone):
    assert run(*command, cwd=clone)


def test_readme_shows_a_picture_a_video_a_folder_and_a_pattern():
    shown = {word for command in RUNNABLE if command[0] == "demo.py" for word in command}
    inputs = ("street.jpg", "street.mp4", "", "*.jpg")
    assert {f"example_inputs/{name}".rstrip("/") for name in inputs} <= shown


def test_commands_for_cameras_and_streams_parse():
    live = [command for command in commands(README) if command not in RUNNABLE]
    assert len(live) >= 3
    for command in live:
        options.parse(command[1:], "")


def test_python_of_readme_names_the_objects_in_its_picture(clone):
    (snippet,) = blocks(README, "python")
    lines = run("-c", snippet, cwd=clone).splitlines()
    assert len(lines) > 5
    for line in lines:
        assert re.fullmatch(r"(person|car|truck) 0\.\d+ \[.*\]", line)


def test_set_up_for_windows_is_that_of_the_other_systems_in_lines_of_their_own():
    (windows,) = blocks(README, "powershell")
    other = next(block for block in blocks(README, "sh") if block.startswith("python3 -m venv"))
    as_there = windows.replace("py -m", "python3 -m").replace(".venv\\Scripts\\", ".venv/bin/")
    assert as_there.splitlines() == other.strip().split(" && ")


def test_json_example_is_what_its_command_prints(clone):
    (command,) = commands(FLAGS)
    (example,) = map(json.loads, blocks(FLAGS, "json"))
    (printed,) = map(json.loads, run(*command, cwd=clone).splitlines())
    assert list(printed) == list(example)
    objects, expected = printed.pop("detections"), example.pop("detections")
    assert printed == example
    for found, shown in zip(objects, expected, strict=True):
        assert list(found) == list(shown)
        assert found == {
            **shown,
            "confidence": pytest.approx(shown["confidence"], abs=1e-3),
            "xyxy": pytest.approx(shown["xyxy"], abs=0.1),
        }


def test_flags_page_names_only_flags_of_help(tmp_path):
    named = set(re.findall(FLAG, FLAGS.read_text(encoding="utf-8")))
    assert len(named) > 20
    assert named <= set(re.findall(FLAG, run_demo("--help", cwd=tmp_path).stdout))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings_that_are_there(page):
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, heading = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        if heading:
            titles = re.findall("^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in [title.lower().replace(" ", "-") for title in titles], link


def test_readme_links_every_page():
    text = README.read_text(encoding="utf-8")
    names = [page.relative_to(ROOT).as_posix() for page in PAGES if page != README]
    assert [name for name in names if f"]({name})" not in text] == []
