"""Fork demos: the libraries are loaded once, so that a run begins in a hundredth of a second.

`demo_process` starts this. Each run is a process of its own, in which demo.py runs from its first
line; a crash ends only that process.
"""

import contextlib
import io
import json
import os
import runpy
import signal
import socket
import struct
import sys
import warnings

PID, END = struct.Struct("q"), struct.Struct("qdq")  # exit code, seconds of a processor, KiB


def serve(control, demo):
    """Fork a run for each request that comes, until the tests have ended.

    Parameters
    ----------
    control : socket.socket
        Brings JSON and four files: a socket that gets `PID` and then `END`, and stdin, stdout and
        stderr of the run.
    demo : str
        Path of demo.py.
    """
    sys.path[0], sys.argv = os.path.dirname(demo), [demo, "--version"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        runpy.run_path(demo, run_name="__main__")  # so cv2 is loaded as demo.py loads it
    warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # of OpenBLAS's threads
    while True:
        request, files, _, _ = socket.recv_fds(control, 1 << 20, 4)
        with contextlib.suppress(ChildProcessError):  # their time counts as this process's
            while os.waitpid(-1, os.WNOHANG if request else 0)[0]:
                pass
        if not request:
            return
        if os.fork() == 0:
            control.close()
            report, *streams = files
            watch(report, streams)
            run(demo, **json.loads(request))
        for file in files:
            os.close(file)


def watch(report, streams):
    """Fork once more and return in the child; the parent reports how that one ends."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        for file in (report, *streams):
            os.close(file)
        return
    for stream in streams:
        os.close(stream)
    os.write(report, PID.pack(pid))
    _, status, usage = os.wait4(pid, 0)
    seconds = usage.ru_utime + usage.ru_stime
    os.write(report, END.pack(os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss))
    os._exit(0)


def run(demo, arguments, cwd, display, script):
    """Become demo.py, or another script, as if Python had just started."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdout = open(1, "w", encoding=sys.stdout.encoding)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, sys.stderr.encoding, "backslashreplace")  # noqa: SIM115
    os.chdir(cwd)
    if display is not None:
        os.environ["DISPLAY"] = display
    if script is None:
        sys.argv = [demo, *arguments]
        runpy.run_path(demo, run_name="__main__")
    else:
        sys.argv = ["-c", *arguments]
        exec(script, {"__name__": "__main__"})  # noqa: S102 - a test's own
    sys.exit()


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
