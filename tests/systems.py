"""What tests need that Windows or macOS lack: there, such a test is skipped with the reason."""

import os
import signal
import sys
from fnmatch import fnmatchcase
from pathlib import Path

WINDOW = "a window would open on the screen and wait for a key"
DEVICES = "devices are files on Linux only"
ONLY_LINUX = {  # names of tests; * stands for any text
    "test_cameras.py::test_device_*": DEVICES,
    "test_cameras.py::*/dev/video*": DEVICES,
    "test_cameras.py::test_small_size_is_asked_for_in_the_camera_s_own_format": DEVICES,
    "test_addresses.py::test_rtmp_stream_is_shown": "asks /proc whether ffmpeg listens",
    "test_demo.py::test_short_and_long_forms_of_the_zoo_flags_do_the_same": WINDOW,
    "test_headless.py::test_folder_is_done_without_a_display": WINDOW,
    "test_live.py::test_live_without_a_display_*": WINDOW,
    "test_readme.py::test_command_runs_as_pasted* -v*": WINDOW,
    "test_web.py::test_window_that_can_not_be_opened_*": WINDOW,
}
POSIX_MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")
NO_RIGHT = 1314  # of Windows: symbolic links are for administrators and developers


def why_not_here(name):
    """Why a test, "test_x.py::test_y[z]", can't run on this system; empty where it can."""
    if sys.platform == "linux":
        return ""
    return next((why for pattern, why in ONLY_LINUX.items() if fnmatchcase(name, pattern)), "")


def lacking(error):
    """What this system lacks, if that is why a test (not what it tests) failed; else empty."""
    if sys.platform == "linux":
        return ""
    if isinstance(error, OSError):
        no_right = getattr(error, "winerror", None) == NO_RIGHT
        return "symbolic links need a right on Windows" if no_right else ""
    if isinstance(error, ValueError):  # of subprocess
        said = str(error)
        return said if said.startswith(("Unsupported signal", "preexec_fn is not")) else ""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    if Path(trace.tb_frame.f_code.co_filename).parent != Path(__file__).parent:
        return ""
    if isinstance(error, ImportError):
        return f"{sys.platform} has no {error.name}" if error.name in POSIX_MODULES else ""
    if isinstance(error, AttributeError) and error.obj in (os, signal):
        return f"{sys.platform} has no {error.obj.__name__}.{error.name}"
    return ""
