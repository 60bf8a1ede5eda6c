"""The tests on Windows and macOS, imitated: they are collected, and skipped where they must be."""

import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import systems
from demo_process import ROOT


@pytest.fixture(scope="module", params=["win32", "darwin"])
def collected(request):
    """A system, and what collecting the tests there says."""
    command = [sys.executable, ROOT / "tests" / "other_system.py", request.param]
    return request.param, subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_tests_are_collected_on_other_systems(collected):
    _, done = collected
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_each_pattern_of_tests_that_are_skipped_there_names_some(collected):
    _, done = collected
    skipped = [line.removeprefix("tests/") for line in done.stdout.splitlines()]
    for pattern, reason in systems.ONLY_LINUX.items():
        assert any(systems.fnmatchcase(line, f"{pattern}: {reason}") for line in skipped), pattern


def failed(act):
    """The error that this raises."""
    with pytest.raises(Exception) as caught:
        act()
    return caught.value


def test_what_a_test_asks_for_and_a_system_lacks_is_a_reason_to_skip_it(monkeypatch):
    def link():
        error = OSError("a required privilege is not held")
        error.winerror = 1314
        raise error

    def unsupported():
        raise ValueError("Unsupported signal: 2")

    monkeypatch.delattr(os, "fork", raising=False)
    monkeypatch.delattr(signal, "SIGKILL", raising=False)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    errors = [
        failed(lambda: os.fork()),
        failed(lambda: signal.SIGKILL),
        failed(lambda: __import__("fcntl")),
        failed(link),
        failed(unsupported),
    ]
    monkeypatch.setattr("sys.platform", "win32")
    assert list(map(systems.lacking, errors)) == [
        "win32 has no os.fork",
        "win32 has no signal.SIGKILL",
        "win32 has no fcntl",
        "symbolic links need a right on Windows",
        "Unsupported signal: 2",
    ]
    monkeypatch.setattr("sys.platform", "linux")
    assert not any(map(systems.lacking, errors))


def test_what_the_program_asks_for_and_a_system_lacks_is_a_failure(monkeypatch):
    monkeypatch.delattr(os, "cpu_count")
    errors = [
        failed(multiprocessing.cpu_count),
        failed(lambda: os.fspath(1)),
        failed(lambda: "".nothing),
    ]
    monkeypatch.setattr("sys.platform", "win32")
    assert not any(map(systems.lacking, errors))
