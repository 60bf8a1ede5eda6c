"""Run the command line as people do: as a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "demo.py"
EXAMPLES = ROOT / "example_inputs"
DISPLAY = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")


def environment(**more):
    """This process's variables without a display, and some more."""
    return {name: value for name, value in os.environ.items() if name not in DISPLAY} | more


def run_demo(*args, cwd, env=None, input=None, timeout=60):
    """Run `demo.py args` in the folder `cwd`, where there is no display unless `env` names one.

    Returns
    -------
    subprocess.CompletedProcess
        With returncode, stdout and stderr as text.
    """
    return subprocess.run(
        [sys.executable, str(DEMO), *map(str, args)],
        cwd=cwd,
        env=environment(**(env or {})),
        input=input,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=timeout,
    )


def refusal(process, code=2):
    """What a run says that was refused: one line on stderr, and nothing else anywhere."""
    assert process.returncode == code, process.stderr
    assert process.stdout == ""
    assert process.stderr.startswith("demo.py: error: "), process.stderr
    assert process.stderr.count("\n") == 1, process.stderr
    return process.stderr.removeprefix("demo.py: error: ").rstrip("\n")


def files_below(folder):
    """Paths of all files in a folder and those below it, hidden ones too, as sorted text.

    Only the list of a folder's own results is left out.
    """
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    paths = (path for path in paths if path.name != ".nanodet-results")
    return sorted(path.relative_to(folder).as_posix() for path in paths)
