"""The live view in a browser: pictures as MJPEG, numbers as JSON.

Detection never waits for a viewer: each has a thread of its own, which takes the newest picture
whenever it is ready for one.
"""

import base64
import hashlib
import io
import ipaddress
import json
import os
import re
import secrets
import socket
import socketserver
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qsl, quote

import cv2

from media.drawing import label_of
from media.outputs import OutputError
from media.window import FrameRate, Pace

CONNECTIONS = 64  # answered at a time; an open page keeps one of them
STRANGERS = 16  # connections at a time whose request has not yet come, or been allowed
LARGEST_HEAD, HEAD_TIMEOUT = 64 << 10, 5  # bytes of a request, and seconds for all of them
SEND_TIMEOUT = 5  # seconds for one picture; a viewer that needs longer is dropped
SEND_BUFFER = 64 << 10  # bytes; what lies there when a new picture comes is already old
AGAIN = 2  # seconds after which a picture is sent again, to find out who has left
QUALITY = 80  # of the JPEGs, 0 to 100
PART = b"\r\n--part\r\nContent-Type: image/jpeg\r\n\r\n"
PAGE = Path(__file__).with_name("page.html").read_bytes()
HOST_HERE = r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?"


def _hashes(element):
    """What the page's security policy calls the content of its elements of this name."""
    contents = re.findall(rb"<%b>(.*?)</%b>" % (element, element), PAGE, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(content).digest()) for content in contents)
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)


# What a page may load and run; the end says who may show it in a frame.
POLICY = (
    "default-src 'none'; img-src 'self'; connect-src 'self'; "
    f"script-src {_hashes(b'script')}; style-src {_hashes(b'style')}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors "
)
WAY_IN = "Open the address that demo.py printed; behind a proxy, run it with --token."
NOTEBOOKS = "http://localhost:* http://127.0.0.1:* http://[::1]:*"
HEADERS = {
    "Allow": "GET, HEAD",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Accel-Buffering": "no",  # else nginx keeps old pictures for a slow viewer
    "X-Content-Type-Options": "nosniff",
}


class Web:
    """A sink that serves the live view over HTTP, at `address`; OutputError if it can't listen.

    Unless `host` means this machine only, viewers need the token that `address` contains, which is
    a new one if none is given. Port 0 takes a free one. `paced`: show no frame of a video before
    its time; `check` is called while that is waited for and may raise to end it.
    """

    def __init__(self, host, port, source, labels, paced=False, check=lambda: None, token=None):
        self._source, self._labels, self._check = source, labels, check
        self._pace, self._rate = Pace() if paced else None, FrameRate()
        self._number, self._shown, self._changed = 0, None, threading.Condition()
        self._part, self._encoding = (0, b""), threading.Lock()
        self._watching, self._ended = Counter(), threading.Event()  # streams of each viewer
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self._server = Server(address, self, family)
        except (OSError, UnicodeError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(f"{host}:{port}: can't listen there: {reason}.") from error
        here = ipaddress.ip_address(self._server.server_address[0].partition("%")[0])
        self.token = token or (None if here.is_loopback else secrets.token_urlsafe())
        policy = POLICY + ("'none'" if self.token else NOTEBOOKS)
        self.headers = HEADERS | {"Content-Security-Policy": policy}
        shown = _own_address(family) if here.is_unspecified else str(here)
        shown = f"[{shown}]" if ":" in shown else shown
        query = "" if self.token is None else f"?token={quote(self.token)}"
        self.address = f"http://{shown}:{self._server.server_address[1]}/{query}"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def write(self, frame, result):
        """Show the next image to whoever is watching."""
        if result is None:
            return
        while self._pace and (left := self._pace.left(frame.time)) > 0:
            time.sleep(min(left, 0.05))
            self._check()
        read_at = time.perf_counter() if self._pace else frame.read_at
        with self._changed:
            self._number += 1
            self._shown = self._number, result, read_at, self._rate.tick()
            self._changed.notify_all()

    def close(self):
        """Send the viewers away and stop listening."""
        with self._changed:
            self._ended.set()
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        with self._server.changed:  # those that are not done then end with the process
            self._server.changed.wait_for(lambda: not self._server.guests, 0.3)

    def snapshot(self, _):
        """The newest image as a JPEG; empty while there is none."""
        if self._shown is None:
            return b""
        return cv2.imencode(".jpg", self._shown[1].drawn)[1].tobytes()

    def pictures(self, viewer):
        """Yield the newest image, again and again, as parts of a multipart stream."""
        seen = 0
        with self._changed:
            self._watching[viewer] += 1
        try:
            yield PART
            while not self._ended.is_set():
                with self._changed:
                    self._changed.wait_for(lambda: self._is_news(seen), AGAIN)  # noqa: B023
                if self._shown:
                    seen, part = self._newest_part()
                    yield part
        finally:
            with self._changed:
                self._watching[viewer] -= 1
                self._watching += Counter()  # forgets those at 0

    def _is_news(self, seen):
        return self._ended.is_set() or self._number != seen

    def _newest_part(self):
        """Number and bytes of the newest image, encoded once however many watch."""
        with self._encoding:
            number, result, *_ = self._shown
            if number != self._part[0]:
                quality = (cv2.IMWRITE_JPEG_QUALITY, QUALITY)
                jpeg = cv2.imencode(".jpg", result.drawn, quality)[1].tobytes()
                self._part = number, jpeg + PART  # Chromium shows it when the next one has begun
            return self._part

    def numbers(self, viewer):
        """What the page tells beside the picture, and dashboards may read: docs/flags.md."""
        seen = {"source": self._source.name, "state": "waiting", "fps": None}
        if self._shown is not None:
            _, result, read_at, fps = self._shown
            age = time.perf_counter() - read_at
            lost = age > 2 + 3 / fps if fps else age > 5
            state = "lost" if lost else "live" if self._source.live else "video"
            found = Counter(result.detections.class_id.tolist())
            seen |= {
                "state": state,
                "fps": None if lost else fps,
                "inference_ms": result.milliseconds,
                "age": age,
                "objects": {label_of(k, self._labels): found[k] for k in sorted(found)},
                "watching": self._watching[viewer] > 0,
            }
        return json.dumps(seen).encode()


ROUTES = {
    "/": ("text/html; charset=utf-8", lambda web, viewer: PAGE),
    "/picture": ("multipart/x-mixed-replace; boundary=part", Web.pictures),
    "/numbers": ("application/json", Web.numbers),
    "/snapshot.jpg": ("image/jpeg", Web.snapshot),
}


def _own_address(family):
    """This machine's address as others in its network know it."""
    far = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}[family]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((far, 9))  # of UDP: nothing is sent
        except OSError:
            return socket.gethostname()
        return probe.getsockname()[0]


class Server(socketserver.ThreadingTCPServer):
    """Hands connections to `Viewer`, a bounded number at a time.

    Where all places are taken, a new connection gets that of whoever has the most of them: so
    nobody can keep others out, neither by connections that say nothing nor by ones that never end.
    Not an HTTPServer, which asks a name server for its own name: that may take seconds.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # where it lets two programs take one port
    request_queue_size = 32

    def __init__(self, address, web, family):
        self.address_family, self.web = family, web
        self.strangers, self.guests = {}, {}  # {connection: its host}, the oldest first
        self.changed = threading.Condition()
        super().__init__(address, Viewer)

    def process_request(self, request, client_address):
        """Start a thread for a connection."""
        self._admit(self.strangers, request, client_address[0], STRANGERS)
        super().process_request(request, client_address)

    def welcome(self, request, host):
        """Give a connection whose request may be answered a place among those."""
        self._admit(self.guests, request, host, CONNECTIONS)
        with self.changed:
            self.strangers.pop(request, None)

    def _admit(self, places, request, host, limit):
        with self.changed:
            places[request] = host
            if len(places) > limit:
                (most, _), *_ = Counter(places.values()).most_common(1)
                oldest = next(each for each, its_host in places.items() if its_host == most)
                del places[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread then ends

    def process_request_thread(self, request, client_address):
        """Serve a connection in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.changed:
                self.strangers.pop(request, None)
                self.guests.pop(request, None)
                self.changed.notify_all()

    def handle_error(self, request, client_address):
        """Say nothing of a viewer that left before its connection was set up."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Viewer(BaseHTTPRequestHandler):
    """Answers one request."""

    disable_nagle_algorithm = True
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(code)d %(message)s. %(explain)s\n"

    def handle(self):
        """Read the request, check it, and send what it asks for until the viewer leaves."""
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            head = self._head()
            self.connection.settimeout(SEND_TIMEOUT)
            self.rfile = io.BytesIO(head)
            self.raw_requestline = self.rfile.readline()
            if self.raw_requestline and self.parse_request():  # which answers what is no HTTP
                self._answer()

    def _head(self):
        """The bytes of the request, up to an empty line."""
        head, block, ends = b"", b"", time.monotonic() + HEAD_TIMEOUT
        while b"\r\n\r\n" not in head[-len(block) - 3 :]:
            self.connection.settimeout(max(0.001, ends - time.monotonic()))
            block = self.connection.recv(4096)
            head += block
            if not block or len(head) > LARGEST_HEAD:
                raise ConnectionError
        return head

    def _answer(self):
        path, _, query = self.path.partition("?")
        fields = dict(parse_qsl(query))
        if not self._is_allowed(fields.get("token", "")):
            return self.send_error(403, explain=WAY_IN)
        self.server.welcome(self.connection, self.client_address[0])
        if self.command not in ("GET", "HEAD"):
            return self.send_error(405)
        if path not in ROUTES:
            return self.send_error(404)
        kind, function = ROUTES[path]
        content = function(self.server.web, fields.get("viewer"))
        if not content:
            return self.send_error(503)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        if isinstance(content, bytes):
            self.send_header("Content-Length", str(len(content)))
            content = [content]
        self.end_headers()
        for block in content if self.command == "GET" else ():
            self.wfile.write(block)

    def _is_allowed(self, token):
        """Whether this is the token; where none is needed, whether the request is for this machine.

        For a page elsewhere could let its own name lead to this machine, and read what it sends.
        """
        needed = self.server.web.token
        if needed is None:
            return re.fullmatch(HOST_HERE, self.headers.get("Host", ""), re.IGNORECASE)
        return secrets.compare_digest(token.encode(), needed.encode())

    def end_headers(self):
        """Send the headers that every answer has, and end them."""
        for header in self.server.web.headers.items():
            self.send_header(*header)
        super().end_headers()

    def version_string(self):
        """What the server calls itself; no versions."""
        return "nanodet"

    def log_message(self, *_):
        """Say nothing."""
