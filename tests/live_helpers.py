"""Real parts for tests of videos, streams and the window: ffmpeg, an HTTP and an X server."""

import contextlib
import ctypes
import http.server
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import absent
from demo_process import DEADLINE


def need(*programs):
    """Skip the test where a program is missing; at the gate that is a failure."""
    for program in programs:
        if shutil.which(program) is None:
            absent(f"{program} is not installed")


@contextlib.contextmanager
def meanwhile(work):
    """Let a thread do work(ended) until the end of this, when the event `ended` is set."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def http_server(handler):
    """A server on loopback, each request in a thread of its own, that prints nothing."""
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


@contextlib.contextmanager
def small_disk(folder, size):
    """Make a folder with room for so many bytes."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    done = shutil.which("mount") and subprocess.run(mount, capture_output=True, text=True)
    if not done or done.returncode:
        reason = f"a small disk can't be mounted: {done and done.stderr.strip()}"
        absent(reason) if done and os.geteuid() == 0 else pytest.skip(reason)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def largest_file(size):
    """Let no file of this process grow beyond a size, as on a full disk."""
    resource = pytest.importorskip("resource", reason="limits on a file's size are POSIX's")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def wait_until(condition, what):
    """Poll until `condition()` is true and return its value; fail at the deadline."""
    end = time.monotonic() + DEADLINE
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {DEADLINE} s")
        time.sleep(0.005)
    return value


def temporary_files(folder):
    """Names of results that were begun and not finished, in a folder and those below it."""
    return [path.name for path in Path(folder).rglob("*partial*")]


# Videos. Frames carry their number as two levels of grey: tens left, ones right.


def numbered_frame(number, width=64, height=48):
    """A frame whose number `number_of` reads again, from 0 to 624."""
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
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", *map(str, arguments)]
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
    """Frames, size, rate and seconds of a video, by ffprobe; it has to play."""
    need("ffmpeg", "ffprobe")
    as_timed = ("-vsync", "passthrough", "-enc_time_base", "1:120000")
    played = ffmpeg("-i", path, *as_timed, "-f", "null", "-")
    assert not played.stderr, played.stderr.decode()
    entries = "stream=width,height,avg_frame_rate,nb_read_frames,duration:format=duration"
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-count_frames", "-of", "json"]
    command += ["-show_entries", entries, str(path)]
    probed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    (stream,) = probed["streams"]
    over, under = map(int, stream["avg_frame_rate"].split("/"))
    return {
        "frames": int(stream["nb_read_frames"]),
        "size": (stream["width"], stream["height"]),
        "rate": over / under,
        "seconds": float(probed["format"]["duration"]),
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


def numbers_shown(path, rate):
    """The number shown at each 1/rate of a second of a video, however many frames it has."""
    capture = cv2.VideoCapture(str(path))
    numbers, times = [], []
    while (answer := capture.read())[0]:
        numbers.append(number_of(answer[1]))
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000 - 1e-3)
    capture.release()
    ticks = np.arange(round(film(path)["seconds"] * rate)) / rate
    return [numbers[i - 1] for i in np.searchsorted(times, ticks, "right")]


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
            def do_HEAD(self):
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()

            def do_GET(self):
                serve = connections[min(server.connected, len(connections) - 1)]
                server.connected += 1
                self.do_HEAD()
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
        self.server, self.file = server, file

    def send(self, image):
        """Send a picture."""
        data = cv2.imencode(".jpg", image)[1].tobytes()
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
        self.file.write(head.encode() + data + b"\r\n")
        self.file.flush()
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
    """An X server without a monitor; yields its display's name."""
    if sys.platform != "linux":
        pytest.skip("only on Linux is the window one of an X server")
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
    """Wait for the demo's window and return its number."""
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


# The browser.


@contextlib.contextmanager
def browser(folder):
    """Debian's Chromium without a screen, driven by selenium; downloads go to an empty folder."""
    need("chromium", "chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for name in ("background-networking", "component-update", "gpu", "quic", "sync"):
        options.add_argument(f"--disable-{name}")
    for argument in ("headless=new", "no-sandbox", "no-first-run", "window-size=1200,900"):
        options.add_argument(f"--{argument}")
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    service = webdriver.ChromeService(shutil.which("chromedriver"))  # so selenium fetches none
    with webdriver.Chrome(options, service) as driver:
        yield driver
