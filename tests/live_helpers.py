"""Real parts for tests of videos, streams and the window: ffmpeg, an HTTP and an X server."""

import contextlib
import ctypes
import http.server
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
CI = os.environ.get("CI", "").lower() in ("1", "true")
DEADLINE = 60  # seconds until something that has to happen counts as missing
NOT_PASSED_ON = ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM", "COLUMNS")


def need(*programs):
    """Skip the test where a program is missing; on the gate's machine that is a failure."""
    for program in programs:
        if shutil.which(program) is None:
            reason = f"{program} is not installed"
            pytest.fail(reason) if CI else pytest.skip(reason)


def wait_until(condition, what):
    """Poll until `condition()` is true and give its value; fail at the deadline."""
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {DEADLINE} s")
        time.sleep(0.005)
    return value


# The demo, as a process.


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
    preexec : callable, optional
        Called in the process before it starts.
    """

    def __init__(self, *arguments, cwd, display=None, script=None, preexec=None):
        environment = {k: v for k, v in os.environ.items() if k not in NOT_PASSED_ON}
        environment["PYTHONPATH"] = str(ROOT)
        if display is not None:
            environment["DISPLAY"] = display
        program = [ROOT / "demo.py"] if script is None else ["-c", script]
        # A shell that starts pytest in the background lets it ignore Ctrl-C, and the demo with it.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            self._process = subprocess.Popen(
                [sys.executable, *map(str, program), *map(str, arguments)],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                preexec_fn=preexec,
            )
        finally:
            signal.signal(signal.SIGINT, before)
        self.pid, self.out, self.err = self._process.pid, [], []
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in ((self._process.stdout, self.out), (self._process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe, lines):
        for line in pipe:
            with self._news:
                lines.append(line.decode())
                self._news.notify_all()

    def wait_line(self, lines, pattern):
        """Wait for a line of `out` or `err` that holds this, and give it."""

        def found():
            return next((line for line in lines if re.search(pattern, line)), None)

        with self._news:
            if not self._news.wait_for(lambda: found() or not self.running(), DEADLINE):
                pytest.fail(f"no line {pattern!r} within {DEADLINE} s: {self.out[-3:]} {self.err}")
        self._process.poll() is None or [reader.join(DEADLINE) for reader in self._readers]
        assert found(), f"ended without a line {pattern!r}: {self.out[-3:]} {self.err}"
        return found()

    def wait_lines(self, number):
        """Wait for as many lines on stdout."""
        with self._news:
            enough = self._news.wait_for(lambda: len(self.out) >= number, DEADLINE)
        assert enough, f"{len(self.out)} lines: {self.err}"

    def wait_quiet(self, seconds):
        """Wait until no line has come on stdout for so long."""
        end = time.monotonic() + DEADLINE
        with self._news:
            seen = -1
            while seen != len(self.out):
                assert time.monotonic() < end, "lines keep coming"
                seen = len(self.out)
                self._news.wait_for(lambda seen=seen: len(self.out) > seen, seconds)

    def running(self):
        """Whether the process has not ended."""
        return self._process.poll() is None

    def send(self, number):
        """Send a signal."""
        self._process.send_signal(number)

    def finish(self):
        """Wait for the end; gives the exit code."""
        code = self._process.wait(DEADLINE)
        for reader in self._readers:
            reader.join(DEADLINE)
        return code

    def records(self):
        """The lines of stdout as JSON; each has to be whole."""
        assert all(line.endswith("\n") for line in self.out), self.out[-1]
        return [json.loads(line) for line in self.out]

    @property
    def errors(self):
        """All of stderr."""
        return "".join(self.err)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.running():
            self._process.kill()
        self.finish()
        self._process.stdout.close()
        self._process.stderr.close()


def run_demo(*arguments, **options):
    """Run demo.py to its end; gives the `Demo` and its exit code."""
    with Demo(*arguments, **options) as demo:
        return demo, demo.finish()


def temporary_files(folder):
    """Names of results that were begun and not finished, in a folder and those below it."""
    return [path.name for path in Path(folder).rglob("*partial*")]


# Videos. Frames carry their number as two levels of grey: tens left, ones right.


def numbered_frame(number, width=64, height=48):
    """A frame of which `number_of` gives the number again, from 0 to 624."""
    image = np.empty((height, width), np.uint8)
    image[:, : width // 2], image[:, width // 2 :] = 5 + 10 * (number // 25), 5 + 10 * (number % 25)
    return image


def number_of(image):
    """The number that a frame carries, however it was compressed."""
    height, width = image.shape[:2]
    rows = slice(height // 3, 2 * height // 3)
    left, right = (
        float(np.median(image[rows, start : start + width // 4]))
        for start in (width // 8, 5 * width // 8)
    )
    return 25 * round((left - 5) / 10) + round((right - 5) / 10)


def ffmpeg(*arguments, **options):
    """Run ffmpeg, which has to succeed."""
    need("ffmpeg")
    command = ["ffmpeg", "-v", "error", "-y", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, **options)
    assert done.returncode == 0, done.stderr.decode()
    return done


def numbered_video(path, frames, *options, size=(64, 48), rate=10):
    """Make a video of numbered frames; options are those of ffmpeg for the output."""
    raw = b"".join(numbered_frame(i, *size).tobytes() for i in range(frames))
    form = ("-f", "rawvideo", "-pix_fmt", "gray", "-s", f"{size[0]}x{size[1]}", "-r", rate)
    options = options or ("-c:v", "libx264", "-qp", "8", "-pix_fmt", "yuv420p")
    ffmpeg(*form, "-i", "-", *options, path, input=raw)
    return path


def film(path):
    """Frames, size, rate and seconds of a video, as ffprobe tells them; it has to play."""
    need("ffmpeg", "ffprobe")
    played = ffmpeg("-i", path, "-f", "null", "-")
    assert not played.stderr, played.stderr.decode()
    entries = "stream=width,height,avg_frame_rate,nb_read_frames,duration:format=duration"
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-count_frames", "-of", "json"]
    command += ["-show_entries", entries, str(path)]
    told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    (stream,) = told["streams"]
    over, under = map(int, stream["avg_frame_rate"].split("/"))
    return {
        "frames": int(stream["nb_read_frames"]),
        "size": (stream["width"], stream["height"]),
        "rate": over / under,
        "seconds": float(told["format"]["duration"]),
    }


def images_of(path):
    """All frames of a video, as arrays."""
    capture = cv2.VideoCapture(str(path))
    images = []
    while (answer := capture.read())[0]:
        images.append(answer[1])
    capture.release()
    return images


def numbers_of(path):
    """The numbers of all frames of a video."""
    return [number_of(image) for image in images_of(path)]


# Streams.


class MjpegServer:
    """An HTTP server on loopback that streams numbered JPEGs, as network cameras do.

    Parameters
    ----------
    *connections : callable
        The n-th gets a `Stream` and serves the n-th connection; it hangs up by returning.
        The last one serves all that follow.

    Attributes
    ----------
    address : str
    sent : int
        Frames sent until now, over all connections.
    connected : int
        Connections until now.
    """

    def __init__(self, *connections):
        self.sent = self.connected = 0
        self.stopping = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                serve = connections[min(server.connected, len(connections) - 1)]
                server.connected += 1
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                with contextlib.suppress(ConnectionError):
                    serve(Stream(server, self.wfile))

            def log_message(self, *_):
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._http.server_port}/video.mjpg"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def refuse(self):
        """Accept no more connections."""
        self._http.shutdown()
        self._http.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.refuse()
        self._http.server_close()


class Stream:
    """One connection of a `MjpegServer`."""

    def __init__(self, server, file):
        self.server, self._file = server, file

    def send(self, image):
        """Send a picture."""
        data = cv2.imencode(".jpg", image)[1].tobytes()
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
        self._file.write(head.encode() + data + b"\r\n")
        self._file.flush()
        self.server.sent += 1

    def numbered(self, frames=None, rate=50, size=(64, 48)):
        """Send numbered frames at this rate; without end if `frames` is None."""
        for number in itertools.count() if frames is None else range(frames):
            if self.server.stopping.wait(1 / rate):
                return
            self.send(numbered_frame(number % 625, *size))

    def silence(self):
        """Keep the connection and send nothing more."""
        self.server.stopping.wait(10 * DEADLINE)


# The screen.


@contextlib.contextmanager
def screen(width=1366, height=800):
    """An X server without a monitor; gives its display's name."""
    need("Xvfb")
    inlet, outlet = os.pipe()
    command = ["Xvfb", "-displayfd", str(outlet), "-screen", "0", f"{width}x{height}x24"]
    command += ["-nolisten", "tcp", "-noreset"]
    with subprocess.Popen(
        command, pass_fds=[outlet], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        os.close(outlet)
        try:
            with open(inlet) as pipe:
                number = pipe.readline().strip()
            assert number, "Xvfb did not start"
            yield f":{number}"
        finally:
            server.terminate()


def xdotool(display, *arguments):
    """Run xdotool on a display, which has to succeed."""
    need("xdotool")
    command = ["xdotool", *map(str, arguments)]
    environment = {**os.environ, "DISPLAY": display}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=DEADLINE)
    assert done.returncode == 0, f"{arguments}: {done.stderr.decode()}"


def find_window(display):
    """Wait for the demo's window and give its number."""
    need("xdotool")
    command = ["xdotool", "search", "--onlyvisible", "--name", "^NanoDet$"]
    environment = {**os.environ, "DISPLAY": display}

    def search():  # fails while there is none, and where another window vanishes meanwhile
        done = subprocess.run(command, capture_output=True, env=environment, timeout=DEADLINE)
        return done.stdout.split()

    return wait_until(search, "the window is on the screen")[0].decode()


def press(display, window, key):
    """Press a key in a window."""
    xdotool(display, "windowfocus", window, "key", key)


class _ClientMessage(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("serial", ctypes.c_ulong),
        ("send_event", ctypes.c_int),
        ("display", ctypes.c_void_p),
        ("window", ctypes.c_ulong),
        ("message_type", ctypes.c_ulong),
        ("format", ctypes.c_int),
        ("data", ctypes.c_long * 5),
        ("rest", ctypes.c_long * 12),  # an XEvent has 24 longs
    )


def close_window(display, window):
    """Close a window as the cross in its title bar does (xdotool can only kill it)."""
    x11 = ctypes.CDLL("libX11.so.6")
    x11.XOpenDisplay.restype = ctypes.c_void_p
    x11.XInternAtom.restype = ctypes.c_ulong
    connection = ctypes.c_void_p(x11.XOpenDisplay(display.encode()))
    protocols, delete = (
        x11.XInternAtom(connection, name, 0) for name in (b"WM_PROTOCOLS", b"WM_DELETE_WINDOW")
    )
    client_message = 33
    event = _ClientMessage(
        type=client_message, window=int(window), message_type=protocols, format=32, data=(delete, 0)
    )
    x11.XSendEvent(
        connection, ctypes.c_ulong(int(window)), 0, ctypes.c_long(0), ctypes.byref(event)
    )
    x11.XCloseDisplay(connection)


def map_again(display, window):
    """Take a window off the screen and put it back.

    OpenCV's Qt 5 sometimes paints nothing where no window manager maps the window; this helps.
    """
    xdotool(display, "windowunmap", window, "windowmap", window)


def screenshot(display):
    """What the display shows, as an array (height, width, 3), BGR."""
    need("import")
    command = ["import", "-display", display, "-window", "root", "png:-"]
    data = subprocess.run(command, capture_output=True, check=True).stdout
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
