"""What every tool does on the command line: a missing library, Ctrl-C while libraries load."""

import os
import signal
import subprocess
import sys

import command
import pytest
from conftest import ROOT

# The first library that each loads, and what its error says to install.
LIBRARIES = {
    "build_model.py": ("onnx", "onnx onnxruntime"),
    "detect_dataset.py": ("pyarrow", '"ray[data]"'),
    "download_model.py": ("pooch", "pooch requests tqdm"),
    "evaluate.py": ("matplotlib", "pycocotools matplotlib tqdm"),
    "quantize_model.py": ("onnx", "onnx onnxruntime"),
}


def begin(folder, tool, library, content):
    """The tool as a process that meets, instead of a library, a module of this content."""
    (folder / f"{library}.py").write_text(content)
    needed = {"download_model.py": ["nanodet-m_416", "-o", folder]}.get(tool, ["--help"])
    return subprocess.Popen(
        [sys.executable, ROOT / "tools" / tool, *needed],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("tool", LIBRARIES)
def test_missing_library_is_named_with_the_pip_command(tmp_path, tool):
    library, packages = LIBRARIES[tool]
    process = begin(tmp_path, tool, library, f"raise ImportError('gone', name={library!r})")
    out, error = process.communicate(timeout=60)
    said = f"{tool}: error: {library} is not installed. Run: pip install {packages}\n"
    assert (process.returncode, out, error) == (1, "", said)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("tool", LIBRARIES)
def test_signal_while_libraries_load_ends_with_one_line(tmp_path, tool, number, code):
    library, _ = LIBRARIES[tool]
    slow = "import threading\nprint('loading', flush=True)\nthreading.Event().wait(60)\n"
    process = begin(tmp_path, tool, library, slow)
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "")
    assert error in (f"{tool}: interrupted\n", f"{tool}: error: interrupted\n")


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
