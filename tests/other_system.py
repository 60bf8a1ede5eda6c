"""Collects the tests as on another system: python tests/other_system.py win32 (or darwin).

Prints each test that is skipped there by a marker, with the reason; exits as pytest does. What it
imitates is a name, and what Python lacks on that system; paths stay those of this one.
"""

import contextlib
import importlib
import os
import signal
import sys

import pytest

LACKING = {  # what Python's documentation gives as not there, as far as tests might use it
    "win32": {
        "modules": ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"),
        signal: ("SIGALRM", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGSTOP", "SIGUSR1"),
        os: ("fork", "geteuid", "getuid", "killpg", "mkfifo", "openpty", "setsid", "sync"),
    },
    "darwin": {"modules": (), signal: (), os: ("sched_getaffinity", "posix_fadvise")},
}
LIBRARIES = (
    "cv2",
    "hypothesis",
    "onnxruntime",
    "psutil",
    "pyarrow.parquet",
    "ray.data",
    "av",
    "nbclient",
)


class OtherSystem:
    """A plugin of pytest: changes this process once pytest and the libraries are loaded."""

    def __init__(self, system):
        self._system, self.skipped = system, []

    def pytest_collection(self):
        """Become the other system."""
        lacking = dict(LACKING[self._system])
        for name in lacking.pop("modules"):
            sys.modules[name] = None  # its import fails
        for module, names in lacking.items():
            for name in names:
                if hasattr(module, name):
                    delattr(module, name)
        sys.platform = self._system

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        """Note what is skipped."""
        for item in items:
            for mark in item.iter_markers():
                if mark.name == "skip" or (mark.name == "skipif" and mark.args[0] is True):
                    reason = mark.kwargs.get("reason") or "".join(mark.args[:1])
                    self.skipped.append(f"{item.nodeid}: {reason}")

    def pytest_collectreport(self, report):
        """Note the files that are skipped as a whole."""
        if report.skipped:
            self.skipped.append(f"{report.nodeid}: {report.longrepr[2].removeprefix('Skipped: ')}")


if __name__ == "__main__":
    # What asks for the system when it is imported, and would look for that one's libraries.
    for library in ("asyncio", "multiprocessing.context", "urllib.request", *LIBRARIES):
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    other = OtherSystem(sys.argv[1])
    arguments = ["--collect-only", "-qq", "-n", "0", "-p", "no:cacheprovider"]
    code = pytest.main([*arguments, *sys.argv[2:]], plugins=[other])
    print(*other.skipped, sep="\n")
    sys.exit(code)
