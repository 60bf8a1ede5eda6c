"""Run the command line as people do: as a process of its own."""

import atexit
import contextlib
import functools
import io
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
from conftest import ROOT
from demo_server import END, PID

import demo

DEMO = ROOT / "demo.py"
EXAMPLES = ROOT / "example_inputs"
CAT, STREET = EXAMPLES / "cat.jpg", EXAMPLES / "street.jpg"  # 451x300 and 768x576
FAST = ("--size", "64", "--confidence", "1")  # finds nothing: frames stay as they are
NOT_PASSED_ON = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM", "COLUMNS")
DEADLINE = 60  # seconds until something that has to happen counts as missing
FORKS = sys.platform == "linux"


def environment(**more):
    """This process's variables without a display, and some more."""
    return {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON} | more


class Fork:
    """A run that was forked by demo_server.py, with the methods of a `subprocess.Popen`.

    Attributes
    ----------
    pid : int
    returncode : int or None
    seconds : float
        Of processor time, when it has ended.
    memory : int
        The most that it had, in KiB, when it has ended.
    """

    def __init__(self, report):
        self._report, self.returncode, self.seconds, self.memory = report, None, None, None
        (self.pid,) = PID.unpack(report.recv(PID.size, socket.MSG_WAITALL))

    def wait(self, timeout=None):
        """Wait for the end; returns the exit code."""
        if self.returncode is None:
            if not select.select([self._report], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("demo.py", timeout)
            end = END.unpack(self._report.recv(END.size, socket.MSG_WAITALL))
            self.returncode, self.seconds, self.memory = end
            self._report.close()
        return self.returncode

    def poll(self):
        """The exit code if it has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number):
        """Send a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


@functools.cache
def server(*through):
    """A socket to demo_server.py, started `through` a command such as prlimit."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = Path(__file__).with_name("demo_server.py")
    with theirs:
        process = subprocess.Popen(
            [*through, sys.executable, code, str(theirs.fileno()), DEMO],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )
    atexit.register(process.wait)
    atexit.register(ours.close)  # comes first, and ends it
    return ours


def fork(arguments, out, err, *, cwd, display=None, script=None, through=()):
    """Start demo.py, or a script, in a process that has its libraries loaded; Linux only.

    Returns
    -------
    Fork
    """
    ours, theirs = socket.socketpair()
    arguments = [os.fsdecode(argument) for argument in arguments]
    request = {"arguments": arguments, "cwd": str(cwd), "display": display, "script": script}
    with theirs, open(os.devnull) as nothing:
        files = [theirs.fileno(), nothing.fileno(), out.fileno(), err.fileno()]
        socket.send_fds(server(*through), [json.dumps(request).encode()], files)
    return Fork(ours)


def start(arguments, out, err, *, cwd, display=None, script=None, env=None, preexec=None):
    """Start demo.py, or a script, in a Python of its own.

    Returns
    -------
    subprocess.Popen
    """
    more = {"PYTHONPATH": str(ROOT)} if script is not None else {}
    more |= {"DISPLAY": display} if display is not None else {}
    program = [DEMO] if script is None else ["-c", script]
    # A shell that starts pytest in the background lets it ignore Ctrl-C, and the demo with it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=cwd,
            env=environment(**more, **(env or {})),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            preexec_fn=preexec,
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)


class Demo:
    """A run of demo.py, or of another script, whose lines are read as they come.

    Parameters
    ----------
    *arguments
        Of demo.py; if `script` is given, of that Python text in place of demo.py.
    cwd : path-like
        Results without a path land here.
    display : str, optional
        There is none otherwise.
    script : str, optional
    fresh : bool
        Whether Python starts anew and loads the libraries, as it does for people. Otherwise, where
        it can, the process is forked from one that has them loaded.
    env : dict, optional
        More variables; implies `fresh`.
    preexec : callable, optional
        Called in the process before it starts; implies `fresh`.

    Attributes
    ----------
    pid : int
    out, err : list of str
        Lines of stdout and stderr.
    """

    def __init__(self, *arguments, cwd, display=None, script=None, fresh=False, **more):
        begin = start if fresh or more or not FORKS else fork
        arguments = [str(argument) for argument in arguments]
        pipes = [os.pipe(), os.pipe()]
        self.out, self.err = [], []
        with open(pipes[0][1], "wb") as out, open(pipes[1][1], "wb") as err:
            self._process = begin(
                arguments, out, err, cwd=cwd, display=display, script=script, **more
            )
        self.pid = self._process.pid
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((pipes[0][0], self.out), (pipes[1][0], self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe, lines):
        with open(pipe, encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                with self._news:
                    lines.append(line)
                    self._news.notify_all()

    def wait_line(self, lines, pattern, again=lambda: None):
        """Wait for a line of `out` or `err` that contains this, and return it.

        Calls `again` every two seconds until then.
        """

        def found():
            return next((line for line in lines if re.search(pattern, line)), None)

        end = time.monotonic() + DEADLINE
        with self._news:
            while not self._news.wait_for(lambda: found() or not self.running(), 2):
                if time.monotonic() > end:
                    pytest.fail(f"no line {pattern!r} in time: {self.out[-3:]} {self.err}")
                again()
        self.running() or [reader.join(DEADLINE) for reader in self._readers]
        assert found(), f"ended without a line {pattern!r}: {self.out[-3:]} {self.err}"
        return found()

    def wait_lines(self, number):
        """Wait for as many lines on stdout."""
        with self._news:
            enough = self._news.wait_for(lambda: len(self.out) >= number, DEADLINE)
        assert enough, f"{len(self.out)} lines: {self.err}"

    def wait_quiet(self, seconds):
        """Wait until no line has come on stdout for so long."""
        with self._news:
            while True:
                seen = len(self.out)
                if not self._news.wait_for(lambda seen=seen: len(self.out) > seen, seconds):
                    return

    def running(self):
        """Whether the process has not ended."""
        return self._process.poll() is None

    def send(self, number):
        """Send a signal."""
        self._process.send_signal(number)

    def finish(self, timeout=DEADLINE):
        """Wait for the end; returns the exit code."""
        code = self._process.wait(timeout)
        for reader in self._readers:
            reader.join(DEADLINE)
        return code

    def records(self):
        """The lines of stdout as JSON; each has to be whole."""
        assert all(line.endswith("\n") for line in self.out), self.out[-1]
        return [json.loads(line) for line in self.out]

    @property
    def returncode(self):
        """The exit code, None while it runs."""
        return self._process.poll()

    @property
    def stdout(self):
        """All of stdout."""
        return "".join(self.out)

    @property
    def stderr(self):
        """All of stderr."""
        return "".join(self.err)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.send(getattr(signal, "SIGKILL", signal.SIGTERM))
        self.finish()


class Done:
    """How a run ended, with what a `Demo` has then: `returncode`, stdout and stderr, `records`."""

    def __init__(self, returncode, stdout, stderr):
        self.returncode, self.stdout, self.stderr = returncode, stdout, stderr
        self.out, self.err = (io.StringIO(text).readlines() for text in (stdout, stderr))

    records = Demo.records


def run_demo(*arguments, cwd, **options):
    """Run demo.py to its end; with options, those of `Demo`, in a process of its own.

    Without, in this process, which is many times as fast and proves the same of everything but
    exit by signals, closed streams, missing libraries and what libraries print themselves.

    Returns
    -------
    Demo or Done
    """
    if options:
        with Demo(*arguments, cwd=cwd, **options) as process:
            process.finish()
            return process
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="\n") for _ in range(2))
    folder = os.getcwd()
    with (
        open(os.devnull) as nothing,
        mock.patch.object(sys, "stdin", nothing),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.dict(os.environ),
    ):
        for name in NOT_PASSED_ON:
            os.environ.pop(name, None)
        os.chdir(cwd)
        try:
            code = demo.main([os.fsdecode(str(argument)) for argument in arguments])
        finally:
            os.chdir(folder)
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode("utf-8", "surrogateescape"))
    return Done(code, *texts)


def refusal(demo, code=2):
    """What a run says that was refused: one line on stderr, and nothing else anywhere."""
    assert demo.returncode == code, demo.stderr
    assert demo.stdout == ""
    assert len(demo.err) == 1, demo.stderr
    return error_of(demo)


def error_of(demo):
    """The single error of a run, the last of its lines; others may come before it."""
    assert "Traceback" not in demo.stderr
    errors = [line for line in demo.err if line.startswith("demo.py: error: ")]
    assert errors == demo.err[-1:], demo.stderr
    return demo.err[-1].removeprefix("demo.py: error: ").rstrip("\n")


def files_below(folder):
    """Paths of all files in a folder and those below it, hidden ones too, as sorted text.

    Only the list of a folder's own results is left out.
    """
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    paths = (path for path in paths if path.name != ".nanodet-results")
    return sorted(path.relative_to(folder).as_posix() for path in paths)
