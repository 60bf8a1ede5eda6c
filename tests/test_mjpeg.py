"""JPEG after JPEG over http, however a camera joins them."""

import base64
import contextlib
import http.server
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from live_helpers import http_server, number_of, numbered_frame
from source_helpers import read

from media import videos
from media.addresses import ask
from media.mjpeg import Mjpeg

MULTIPART = "multipart/x-mixed-replace; boundary=frame"


@contextlib.contextmanager
def camera(send, kind=MULTIPART, login=None):
    """A camera that answers each GET with this type and lets `send(write)` send; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if login and self.headers["Authorization"] != login:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                send(self.wfile.write)

    with http_server(Handler) as server:
        yield f"http://127.0.0.1:{server.server_port}/stream"


def jpeg(number, *size):
    """A small JPEG that carries its number."""
    return cv2.imencode(".jpg", numbered_frame(number, *size))[1].tobytes()


def part(data, line="\r\n", kind="image/jpeg", length=None, boundary="--frame"):
    """A part of a multipart stream; `length` is what it says of its length, "" for nothing."""
    length = len(data) if length is None else length
    length = f"Content-Length: {length}{line}" if length != "" else ""
    head = f"{boundary}{line}Content-Type: {kind}{line}{length}{line}"
    return head.encode() + data + line.encode()


def later(data):
    """A part whose boundary comes behind it, as of old ESP32-CAM."""
    head = f"Content-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    return head + data + b"\r\n--frame\r\n"


def with_thumbnail(data):
    """A JPEG with a smaller one in its EXIF note."""
    note = b"Exif\0\0" + jpeg(99, 16, 16)
    return data[:2] + b"\xff\xe1" + (len(note) + 2).to_bytes(2, "big") + note + data[2:]


CAMERAS = {
    "usual": (MULTIPART, part),
    "dashes in the boundary": ("multipart/x-mixed-replace;boundary=--frame", part),
    "quotes": ('multipart/x-mixed-replace; boundary="frame"', part),
    "no boundary named": ("multipart/x-mixed-replace", part),
    "mixed": ("multipart/mixed; boundary=frame", part),
    "no length": (MULTIPART, lambda data: part(data, length="")),
    "wrong length": (MULTIPART, lambda data: part(data, length=7)),
    "short line ends": (MULTIPART, lambda data: part(data, "\n")),
    "image/jpg": (MULTIPART, lambda data: part(data, kind="image/jpg")),
    "octet-stream": (MULTIPART, lambda data: part(data, kind="application/octet-stream")),
    "text between": (MULTIPART, lambda data: part(data) + part(b"hello", kind="text/plain")),
    "empty parts between": (MULTIPART, lambda data: part(data) + part(b"")),
    "no first boundary": (MULTIPART, later),
    "nothing between": ("video/x-motion-jpeg", bytes),
    "as one picture": ("image/jpeg", bytes),
    "as bytes": ("application/octet-stream", bytes),
    "no end markers": (MULTIPART, lambda data: part(data[:-2])),
    "thumbnails": (MULTIPART, lambda data: part(with_thumbnail(data))),
    "fill bytes": (MULTIPART, lambda data: part(data[:2] + b"\xff\xff" + data[2:])),
    "start of a picture only": (MULTIPART, lambda data: part(b"\xff\xd8\xff\0") + part(data)),
}


@pytest.mark.parametrize("name", CAMERAS)
def test_every_picture_is_taken_and_the_last_one_is_shown(name):
    kind, join = CAMERAS[name]
    stream = b"".join(join(jpeg(i)) for i in range(25))
    with camera(lambda write: write(stream), kind) as address:
        frames, told, fault = read(address, reconnect=0)
    # One without its end is only whole once the next one comes.
    last = 23 if name == "no end markers" else 24
    assert (frames[-1].index, number_of(frames[-1].image)) == (last, last)
    assert (told, fault) == ([], f"{address}: gives no more frames")


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_pictures_are_whole_however_their_bytes_come(monkeypatch, size):
    pictures = [with_thumbnail(jpeg(i, 16, 16)) for i in range(3)]
    stream = b"".join(part(data[:2] + b"\xff\xff" + data[2:]) for data in pictures)
    blocks = (stream[at : at + size] for at in range(0, len(stream), size))
    response = SimpleNamespace(read1=lambda _: next(blocks, b""))
    monkeypatch.setattr("media.mjpeg.response_of", lambda *_: contextlib.nullcontext(response))
    capture = Mjpeg("http://camera/")
    for data in pictures:
        assert capture.grab()  # at once, not at a second try
        whole = cv2.imdecode(np.frombuffer(data, np.uint8), 1)
        np.testing.assert_array_equal(capture.retrieve()[1], whole)
    assert not capture.grab()


def test_size_may_change():
    stream = part(jpeg(0)) + part(jpeg(1, 96, 80))
    with camera(lambda write: write(stream)) as address:
        frames, *_ = read(address, reconnect=0)
    assert frames[-1].image.shape == (80, 96, 3)


def test_damaged_picture_is_skipped():
    broken = b"\xff\xd8\xff\xdb\0\4\0\0\xff\xda\0\4\0\0\xff\xd9"
    with camera(lambda write: write(part(broken) * 3 + part(jpeg(7)))) as address:
        frames, *_ = read(address, reconnect=0)
    assert (frames[-1].index, number_of(frames[-1].image)) == (0, 7)


def test_picture_without_end_takes_no_more_memory_than_the_limit(monkeypatch):
    monkeypatch.setattr("media.mjpeg.LARGEST_JPEG", 100_000)
    endless = jpeg(1)[:-2] + bytes(3_000_000)
    with camera(lambda write: write(part(endless) + part(jpeg(7)))) as address:
        frames, *_ = read(address, reconnect=0)
    assert number_of(frames[-1].image) == 7


@pytest.mark.parametrize("repeated", [b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\0\4\0\0", b"\xff", b"\0"])
def test_long_rubbish_takes_little_time(monkeypatch, repeated):
    monkeypatch.setattr(videos, "READ_TIMEOUT", 10)
    with camera(
        lambda write: write(part(jpeg(1)) + repeated * (8_000_000 // len(repeated)))
    ) as address:
        frames, *_ = read(address, reconnect=0)
    assert number_of(frames[-1].image) == 1


def test_stream_that_trickles_is_lost_at_the_time_out(monkeypatch):
    monkeypatch.setattr(videos, "READ_TIMEOUT", 0.2)
    ended = threading.Event()

    def send(write):
        write(part(jpeg(1)))
        while not ended.wait(0.01):
            write(b"x")

    with camera(send) as address:
        _, _, fault = read(address, reconnect=0)
        ended.set()
    assert fault == f"{address}: gives no more frames"


def test_login_is_used_and_not_shown():
    login = "Basic " + base64.b64encode(b"admin:p@ss").decode()
    with camera(lambda write: write(later(jpeg(1)) * 2), login=login) as address:
        frames, *_ = read(address.replace("//", "//admin:p%40ss@"), reconnect=0)
    assert frames[-1].source == address.replace("//", "//admin:***@")


def test_lost_stream_is_connected_to_again(monkeypatch):
    monkeypatch.setattr("media.live.LONGEST_PAUSE", 0.01)
    with camera(lambda write: write(later(jpeg(1)) * 2)) as address:
        frames, told, _ = read(address, reconnect=1)
    assert told == [f"{address}: lost, trying again in 0.01 s", f"{address}: back"]
    assert frames[-1].index == 3


@pytest.mark.parametrize(("kind", "look"), [("video/mp4", ask), ("image/jpeg", Mjpeg)])
def test_server_that_sends_byte_after_byte_is_not_waited_for(kind, look, monkeypatch):
    sent, pause = [], threading.Event()

    def drip(write):
        while len(sent) < 500 and not pause.wait(0.02):
            write(b".")
            sent.append(1)

    monkeypatch.setattr("media.addresses.ASK_TIMEOUT", 0.2)
    monkeypatch.setattr("media.videos.READ_TIMEOUT", 0.2)
    with camera(drip, kind) as address:
        with contextlib.suppress(OSError):
            look(address)
        assert len(sent) < 500
        pause.set()
