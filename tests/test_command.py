"""What every tool does on the command line: a missing library, Ctrl-C while libraries load."""

import os
import signal
import subprocess
import sys

import command
import pytest
from conftest import ROOT

# The first package that each loads, what its error says to install, and arguments that need it.
LIBRARIES = {
    "build_model.py": ("onnx", "onnx onnxruntime", []),
    "detect_dataset.py": ("ray", '"ray[data]"', ["-i", ".", "-o", "found"]),
    "download_model.py": ("pooch", "pooch", ["nanodet-m_416", "-o", "."]),
    "evaluate.py": (
        "matplotlib",
        "pycocotools matplotlib",
        ["--annotations", "a", "--images", "."],
    ),
    "quantize_model.py": ("onnx", "onnx onnxruntime", ["my.onnx", "--images", "."]),
}


def begin(folder, tool, content, *args):
    """The tool as a process that meets, instead of its first package, a module of this content."""
    (folder / f"{LIBRARIES[tool][0]}.py").write_text(content)
    return subprocess.Popen(
        [sys.executable, ROOT / "tools" / tool, *args],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("tool", LIBRARIES)
def test_missing_package_is_named_with_the_pip_command(tmp_path, tool):
    library, packages, args = LIBRARIES[tool]
    process = begin(tmp_path, tool, f"raise ImportError('gone', name={library!r})", *args)
    out, error = process.communicate(timeout=60)
    said = f"{tool}: error: {library} is not installed. Run: pip install {packages}\n"
    assert (process.returncode, out, error) == (1, "", said)


NO_PACKAGES = """
import runpy, sys
for name in "av matplotlib onnx onnxruntime pooch pyarrow pycocotools ray requests".split():
    sys.modules[name] = None  # as if not installed
sys.argv = [sys.argv[1], "--help"]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("tool", ["benchmark.py", *LIBRARIES])
def test_help_needs_no_optional_package(tmp_path, tool):
    path = (ROOT / "tools" / tool).as_posix()
    command = [sys.executable, "-c", NO_PACKAGES, path]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith(f"usage: {tool} [-h]")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_while_packages_load_ends_with_one_line(tmp_path, number, code):
    slow = "import threading\nprint('loading', flush=True)\nthreading.Event().wait(60)\n"
    process = begin(tmp_path, "quantize_model.py", slow, "my.onnx", "--images", ".")
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    assert error == "quantize_model.py: error: interrupted\n"


def fails(error):
    raise error


@pytest.mark.parametrize(
    "error, code, said",
    [
        (command.InputError("x: is bad"), 2, "x: is bad"),
        (KeyError("x"), 2, "'x'"),
        (command.Failed("x:\n\x1b[31m  broke"), 1, "x: ?[31m broke"),
        (OSError(28, "No space left on device", "out/x"), 1, "out/x: No space left on device"),
        (MemoryError(), 1, "out of memory"),
    ],
)
def test_error_is_one_printable_line_with_its_exit_code(capsys, error, code, said):
    handlers = [signal.getsignal(number) for number in command.ENDING]
    command.start("tool.py")
    assert command.run(lambda: fails(error), usage=(KeyError,)) == code
    assert capsys.readouterr().err == f"tool.py: error: {said}\n"
    assert handlers == [signal.getsignal(number) for number in command.ENDING]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_waits_until_what_is_being_made_is_whole(capsys, number, code):
    made = []

    def main():
        with command.uninterrupted():
            signal.raise_signal(number)
            made.append("folder")
        made.append("more")

    command.start("tool.py")
    assert command.run(main) == code
    assert capsys.readouterr().err == "tool.py: error: interrupted\n"
    assert made == ["folder"]
