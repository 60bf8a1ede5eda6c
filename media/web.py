"""The live view in a browser: pictures as MJPEG, numbers as server-sent events.

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
from urllib.parse import parse_qsl

import cv2

from media.drawing import label_of
from media.outputs import OutputError
from media.window import FrameRate, Pace

CONNECTIONS = 64  # at a time; an open page has two
LARGEST_HEAD, HEAD_TIMEOUT = 64 << 10, 5  # bytes of a request, and seconds for all of them
SEND_TIMEOUT = 5  # seconds for one picture; a viewer that needs longer is dropped
SEND_BUFFER = 64 << 10  # bytes; what lies there when a new picture comes is already old
AGAIN = 2  # seconds after which a picture is sent again, to find out who has left
INTERVAL = 0.25  # seconds between two looks at the numbers
QUALITY = 80  # of the JPEGs, 0 to 100
PART = b"\r\n--part\r\nContent-Type: image/jpeg\r\n\r\n"
PAGE = Path(__file__).with_name("page.html").read_bytes()
HOST_HERE = r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?"


def _hashes(element):
    """What the page's security policy calls the content of its elements of this name."""
    contents = re.findall(rb"<%b>(.*?)</%b>" % (element, element), PAGE, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(content).digest()) for content in contents)
    return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)


HEADERS = {
    "Allow": "GET, HEAD",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; connect-src 'self'; "
    f"script-src {_hashes(b'script')}; style-src {_hashes(b'style')}; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Web:
    """A sink that serves the live view over HTTP, at `address`; OutputError if it can't listen.

    Unless `host` means this machine only, viewers need the token that `address` contains. Port 0
    takes a free one. `paced`: show no frame of a video before its time; `check` is called while
    that is waited for and may raise to end it.
    """

    def __init__(self, host, port, labels, paced=False, check=lambda: None):
        self._labels, self._check = labels, check
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
        self.token = None if here.is_loopback else secrets.token_urlsafe()
        shown = _own_address(family) if here.is_unspecified else str(here)
        shown = f"[{shown}]" if ":" in shown else shown
        query = "" if self.token is None else f"?token={self.token}"
        self.address = f"http://{shown}:{self._server.server_address[1]}/{query}"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def write(self, frame, result):
        """Show the next image to whoever is watching."""
        if result is None:
            return
        while self._pace and (left := self._pace.left(frame.time)) > 0:
            time.sleep(min(left, 0.05))
            self._check()
        read_at = time.monotonic() if self._pace else frame.read_at
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
            self._server.changed.wait_for(lambda: not self._server.connections, 0.3)

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
        """Yield what the page tells beside the picture, as server-sent events."""
        while not self._ended.is_set():
            if self._shown is None:
                yield b":\n\n"  # a comment
            else:
                _, result, read_at, rate = self._shown
                found = Counter(result.detections.class_id.tolist())
                numbers = {
                    "rate": rate,
                    "milliseconds": result.milliseconds,
                    "age": time.monotonic() - read_at,
                    "objects": {label_of(k, self._labels): found[k] for k in sorted(found)},
                    "watching": self._watching[viewer] > 0,
                }
                yield f"data: {json.dumps(numbers)}\n\n".encode()
            self._ended.wait(INTERVAL)


ROUTES = {
    "/": ("text/html; charset=utf-8", lambda web, viewer: PAGE),
    "/picture": ("multipart/x-mixed-replace; boundary=part", Web.pictures),
    "/numbers": ("text/event-stream", Web.numbers),
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

    Not an HTTPServer, which asks a name server for its own name: that may take seconds.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # where it lets two programs take one port
    request_queue_size = 32

    def __init__(self, address, web, family):
        self.address_family, self.web = family, web
        self.connections, self.changed = 0, threading.Condition()
        super().__init__(address, Viewer)

    def process_request(self, request, client_address):
        """Start a thread for a connection, or refuse it."""
        with self.changed:
            full = self.connections >= CONNECTIONS
            self.connections += not full
        if not full:
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.settimeout(0.1)
            request.recv(LARGEST_HEAD)  # closed with something unread, it would lose the answer
            request.sendall(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 5\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        """Serve a connection in its thread."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self.changed:
                self.connections -= 1
                self.changed.notify_all()

    def handle_error(self, request, client_address):
        """Say nothing of a viewer that left before its connection was set up."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Viewer(BaseHTTPRequestHandler):
    """Answers one request."""

    disable_nagle_algorithm = True

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
            return self.send_error(403)
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

        For a page elsewhere can let its own name mean this machine, and then read what it sends.
        """
        needed = self.server.web.token
        if needed is None:
            return re.fullmatch(HOST_HERE, self.headers.get("Host", ""), re.IGNORECASE)
        return secrets.compare_digest(token.encode(), needed.encode())

    def end_headers(self):
        """Send the headers that every answer has, and end them."""
        for header in HEADERS.items():
            self.send_header(*header)
        super().end_headers()

    def version_string(self):
        """What the server calls itself; no versions."""
        return "nanodet"

    def log_message(self, *_):
        """Say nothing."""
