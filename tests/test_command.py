"""The life of a command: exit codes, one line for an error, signals, packages, isolated Pythons."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import cv2
import pytest
from conftest import ROOT
from demo_process import CAT, run_demo

from cli import command
from cli.options import OneLineParser
from tools.markdown import markdown

TOOLS = [path.name for path in (ROOT / "tools").glob("*.py") if "command.start" in path.read_text()]


def fails(error):
    raise error


@pytest.mark.parametrize(
    "error, code, said",
    [
        (command.UsageError("x: is bad"), 2, "x: is bad"),
        (KeyError("x"), 2, "'x'"),
        (command.Failed("x:\n\x1b[31m broke\udcff"), 1, r"x:\n\x1b[31m broke\udcff"),
        (LookupError("x"), 1, "x"),
        (OSError(28, "No space left on device", "out/x"), 1, "out/x: No space left on device"),
        (MemoryError(), 1, "out of memory. Give a smaller picture or --size."),
        (
            RuntimeError("can't start new thread"),
            1,
            "no more threads can be started. Raise the limit (ulimit -u, docker's --pids-limit), "
            "or give --threads 1.",
        ),
    ],
)
def test_error_is_one_printable_line_with_its_exit_code(capsys, error, code, said):
    assert (
        command.run("tool.py", lambda: fails(error), usage=(KeyError,), failed=(LookupError,))
        == code
    )
    assert capsys.readouterr().err == f"tool.py: error: {said}\n"


def test_other_errors_are_faults_of_ours_and_are_shown_whole():
    with pytest.raises(ZeroDivisionError):
        command.run("tool.py", lambda: 1 / 0)
    with pytest.raises(SystemError):
        command.run("tool.py", lambda: fails(SystemError("not of a signal")))
    with pytest.raises(RuntimeError):
        command.run("tool.py", lambda: fails(RuntimeError("of no thread")))


@pytest.mark.parametrize("ending, code", [(None, 0), (0, 0), (2, 2)])
def test_program_that_ends_itself_gives_its_exit_code(ending, code):
    assert command.run("tool.py", lambda: sys.exit(ending)) == code
    assert command.run("tool.py", lambda: ending) == code


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("error", [None, SystemError("a signal came inside a function of C")])
def test_signal_ends_the_run_with_the_code_of_shells(capsys, number, code, error):
    def main():
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            if error is None:
                raise
            raise error from None
        raise AssertionError("it went on")

    handlers = [signal.getsignal(number) for number in command.ENDING]
    assert command.run("tool.py", main) == code
    assert handlers == [signal.getsignal(number) for number in command.ENDING]
    assert capsys.readouterr().err == ""


@pytest.fixture
def ipython(monkeypatch):
    """As if the process were a notebook's kernel."""
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))


def test_run_in_a_kernel_takes_only_the_interrupt_and_gives_it_back(ipython):
    def main():
        now = [signal.getsignal(number) for number in command.ENDING]
        assert now[0] != handlers[0] and now[1:] == handlers[1:]
        signal.raise_signal(signal.SIGINT)

    handlers = [signal.getsignal(number) for number in command.ENDING]
    command.start("tool.py")
    assert command.run("tool.py", main) == 130
    assert handlers == [signal.getsignal(number) for number in command.ENDING]


def test_signals_that_a_program_around_python_handles_stay_its_own(monkeypatch):
    def main():
        assert handlers == [handler_of(number) for number in command.ENDING]

    handler_of = signal.getsignal
    handlers = [handler_of(number) for number in command.ENDING]
    monkeypatch.setattr("signal.getsignal", lambda _: None)
    assert command.run("tool.py", main) == 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a signal of POSIX")
@pytest.mark.parametrize("before, code", [("SIG_DFL", "129\n"), ("SIG_IGN", "0\n")])
def test_closed_terminal_ends_a_run_as_ctrl_c_does_unless_nohup_keeps_it(before, code):
    run = (
        f"import signal; signal.signal(signal.SIGHUP, signal.{before}); from cli import command; "
        "print(command.run('tool.py', lambda: signal.raise_signal(signal.SIGHUP)))"
    )
    process = subprocess.run([sys.executable, "-c", run], cwd=ROOT, capture_output=True, text=True)
    assert (process.stdout, process.stderr) == (code, "")


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="stands for Windows's signal")
def test_ctrl_break_ends_as_ctrl_c_does():
    code = (
        "import signal, sys; signal.SIGBREAK = signal.SIGUSR1; from cli import command; "
        "run = lambda: command.run('tool.py', lambda: signal.raise_signal(signal.SIGBREAK)); "
        "print(run(), flush=True); command.start('tool.py'); signal.raise_signal(signal.SIGBREAK)"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (130, "130\n", "")


@pytest.mark.parametrize(
    ("platform", "error", "code"),
    [("linux", 22, 1), ("win32", 22, 0), ("win32", 28, 1), ("linux", 32, 0)],
)
def test_output_that_nobody_reads_on_is_no_fault(monkeypatch, capsys, platform, error, code):
    monkeypatch.setattr("sys.platform", platform)
    assert command.run("tool.py", lambda: fails(OSError(error, "No"))) == code
    said = "tool.py: error: standard output can't be written: No.\n"
    assert capsys.readouterr().err == said * code


def test_without_a_console_nothing_goes_to_the_other_stream(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    assert command.run("tool.py", lambda: OneLineParser("tool.py", "").parse_args(["--no"])) == 2
    assert command.run("tool.py", lambda: fails(command.Failed("x"))) == 1
    with command.progress_bar(total=1) as bar:
        bar.update()
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "stdout", None)
    command.say("x")


def test_libraries_are_quiet_during_a_run_and_as_before_afterwards(monkeypatch):
    def main():
        assert set_level(0) == 0
        assert all(os.environ[name] == value for name, value in command.QUIET.items())
        assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"

    set_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel
    for name in command.QUIET:
        monkeypatch.delenv(name, raising=False)
    before = set_level(4)
    try:
        assert command.run("tool.py", main) == 0
        assert os.environ.keys().isdisjoint(command.QUIET)
        assert set_level(4) == 4
        monkeypatch.setenv("OPENCV_LOG_LEVEL", "DEBUG")  # what somebody has set stays
        assert command.run("tool.py", lambda: set_level(4) != 4) == 0
        assert os.environ["OPENCV_LOG_LEVEL"] == "DEBUG"
    finally:
        set_level(before)


@pytest.mark.parametrize("cell", [False, True])
def test_bar_is_shown_on_a_terminal_and_in_a_cell(monkeypatch, request, cell):
    if cell:
        request.getfixturevalue("ipython")
    with command.progress_bar(total=1) as bar:
        assert bar.disable != cell
    with command.progress_bar(hidden=True, total=1) as bar:
        assert bar.disable
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with command.progress_bar(total=1) as bar:
        assert not bar.disable


def test_second_signal_changes_nothing():
    def main():
        with command.signals.kept():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)

    assert command.run("tool.py", main) == 143


def test_signal_waits_until_what_is_being_made_is_whole():
    made = []

    def main():
        with command.signals.kept():
            signal.raise_signal(signal.SIGINT)
            made.append("folder")
        made.append("more")

    assert command.run("tool.py", main) == 130
    assert made == ["folder"]


def test_signal_that_waits_comes_at_the_next_check():
    made = []

    def main():
        with command.signals.kept():
            command.signals.check()
            made.append(1)
            signal.raise_signal(signal.SIGINT)
            command.signals.check()
            made.append(2)

    assert command.run("tool.py", main) == 130
    assert made == [1]


def test_command_inside_another_leaves_its_signals_to_the_outer_one():
    def outer():
        assert command.run("tool.py", lambda: signal.raise_signal(signal.SIGINT)) == 130
        command.signals.check()  # the outer one was not told to end
        signal.raise_signal(signal.SIGTERM)

    assert command.run("tool.py", outer) == 143


def test_missing_package_is_named_with_the_pip_command(capsys):

    def main():
        with command.packages("some-package another"):
            import no_such_module  # noqa: F401

    assert command.run("tool.py", main) == 1
    said = "no_such_module is not installed. Run: pip install some-package another"
    assert capsys.readouterr().err == f"tool.py: error: {said}\n"


HOSTILE = "\x1b]0;x\x07\x1b[2K\r\u202e\n"  # a title, an empty line, letters from right to left


def harmless(text):
    """Whether no name in it reaches the terminal as it is, and all of them are there."""
    return all(line.isprintable() for line in text.split("\n")) and r"\x1b[2K\r\u202e\n" in text


@pytest.mark.skipif(os.name != "posix", reason="files can't have such names")
def test_demo_prints_no_escape_code_of_a_name_or_label(tmp_path):
    folder = tmp_path / HOSTILE
    folder.mkdir()
    shutil.copy(CAT, folder)
    (folder / f"{HOSTILE}.jpg").touch()
    (tmp_path / "names.txt").write_text("\x1b[31mcat\n" * 80)
    flags = ("--labels", "names.txt", "--size", 96, "--confidence", 0.05)
    demo = run_demo(f"{HOSTILE}/cat.jpg", *flags, "--json", HOSTILE, "-o", folder, cwd=tmp_path)
    assert demo.returncode == 1 and harmless(demo.stderr)  # --json names a folder
    demo = run_demo(f"{HOSTILE}/cat.jpg", *flags, "--json", "a.jsonl", "-o", folder, cwd=tmp_path)
    assert demo.returncode == 0 and harmless(demo.stdout) and r"\x1b[31mcat" in demo.stdout
    assert json.loads((tmp_path / "a.jsonl").read_text())["source"] == f"{HOSTILE}/cat.jpg"
    demo = run_demo(folder, *flags, "--json", "-", cwd=tmp_path)
    assert demo.returncode == 1 and harmless(demo.stderr)
    assert HOSTILE in [record["source"] for record in demo.records()][-1]


def test_table_of_a_tool_shows_no_escape_code():
    table = markdown(("class", HOSTILE), [(HOSTILE, "1.0")])
    assert harmless(table) and table.count("\n") == 3


def test_line_for_people_is_one_line(capsys):
    command.say(HOSTILE)
    printed = capsys.readouterr().out
    assert harmless(printed) and printed.count("\n") == 1


def begin(folder, program, *arguments, **modules):
    """The program as a process that meets, instead of libraries, modules of this content."""
    for name, content in modules.items():
        (folder / f"{name}.py").write_text(content)
    return subprocess.Popen(
        [sys.executable, ROOT / program, *arguments],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize(
    "library, number, code", [("numpy", signal.SIGINT, 130), ("cv2", signal.SIGTERM, 143)]
)
def test_signal_while_libraries_load_ends_without_a_traceback(tmp_path, library, number, code):
    slow = "import threading\nprint('loading', flush=True)\nthreading.Event().wait(60)\n"
    process = begin(tmp_path, "demo.py", "--version", **{library: slow})
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out, error) == (code, "", "")


@pytest.mark.parametrize("program", ["demo.py", "tools/evaluate.py"])
def test_opencv_that_does_not_load_is_named_with_the_ways_out(tmp_path, program):
    broken = r"raise ImportError('libGL.so.1: cannot open shared object file:\n\nNo' + 200 * 'x')"
    process = begin(tmp_path, program, "-h", cv2=broken)
    out, error = process.communicate(timeout=60)
    reason = ("libGL.so.1: cannot open shared object file: No" + 200 * "x")[:200]
    said = f"{program.rpartition('/')[2]}: error: OpenCV can't be loaded ({reason}). "
    assert (process.returncode, out, error.count("\n")) == (1, "", 1) and error.startswith(said)
    for remedy in ("-r requirements.txt", "libgl1 libglib2.0-0", "opencv-python-headless"):
        assert remedy in error


@pytest.mark.parametrize(
    "tool, missing",
    [
        ("detect_dataset", "-i/--input, -o/--output"),
        ("evaluate", "--annotations, --images"),
        ("free_size", "FILE"),
        ("quantize_model", "--images, FILE"),
    ],
)
def test_tool_without_what_it_needs_names_it(capsys, tool, missing):
    module = importlib.import_module(tool)
    assert command.run(f"{tool}.py", lambda: module.main([])) == 2
    said = f"the following arguments are required: {missing}. See --help."
    assert capsys.readouterr().err == f"{tool}.py: error: {said}\n"


def test_older_python_is_named():
    code = "import sys; sys.version_info = (3, 9); import cli.command"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 1
    assert process.stderr.startswith("-c: error: needs Python 3.10 or newer, this is 3.")


@pytest.mark.parametrize("program", ["demo.py", *(f"tools/{name}" for name in TOOLS)])
def test_help_needs_no_optional_package_and_no_path_and_no_docstrings(tmp_path, program):
    # -I: as in Python's embeddable package for Windows. -OO removes the texts that --help shows.
    absent = ("av", "matplotlib", "onnx", "onnxruntime", "openvino", "pooch", "pycocotools", "ray")
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({absent})); "
        f"sys.argv = ['{program}', '--help']; "
        f"runpy.run_path(r'{ROOT / program}', run_name='__main__')"
    )
    process = subprocess.run(
        [sys.executable, "-I", "-OO", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith(f"usage: {program.rpartition('/')[2]} ")
