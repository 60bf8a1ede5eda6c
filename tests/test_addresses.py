"""Addresses: pictures and recordings behind http, passwords, further protocols, lists."""

import base64
import contextlib
import dataclasses
import email
import functools
import hashlib
import http.server
import os
import re
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import pytest
from demo_process import FAST, STREET, files_below, refusal, run_demo
from live_helpers import (
    MjpegServer,
    http_server,
    images_of,
    need,
    number_of,
    numbered_video,
    wait_until,
)
from source_helpers import read

from media.addresses import Answer, ask, describe, fetch, hide_password
from media.frames import SourceError
from media.live import Live
from media.sources import Pictures, Reading, open_source
from media.videos import Video

LOGIN = "admin", "p@ss#1:/"
ESCAPED = "admin:p%40ss%231%3A%2F@"
STREAM = ("-c:v", "libx264", "-qp", "8", "-g", "5", "-bf", "0", "-pix_fmt", "yuv420p")


class Files(http.server.SimpleHTTPRequestHandler):
    """The files of a folder; `heads`: whether HEAD is known, `wanted`: demands for a login."""

    heads, types, wanted = True, {}, ('Basic realm="camera"',)

    def login(self):
        """Whether the request may be answered."""
        return True

    def send_head(self):
        if self.command == "HEAD" and not self.heads:
            return self.send_error(501)
        if not self.login():
            self.send_response(401)
            for each in self.wanted:
                self.send_header("WWW-Authenticate", each)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.server.seen.append((self.command, self.path))
        return super().send_head()

    def guess_type(self, path):
        return self.types.get(Path(path).suffix) or super().guess_type(path)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(folder, certificate=None, **settings):
    """Serve a folder on loopback; yields its address, and what was asked for."""
    handler = functools.partial(type("Handler", (Files,), settings), directory=str(folder))
    with http_server(handler) as server:
        server.seen = []
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        yield f"http{'s' * bool(certificate)}://127.0.0.1:{server.server_port}/", server.seen


@contextlib.contextmanager
def answering(status, kind=None, length=None, content=b"\xff\xd8\xff", get=None):
    """Answer every request so, one that is no HEAD with the status `get`; yields the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(get if get and self.command == "GET" else status)
            for name, value in (("Content-Type", kind), ("Content-Length", length)):
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_GET = do_HEAD

    with http_server(Handler) as server:
        yield f"http://127.0.0.1:{server.server_port}/"


def known(address):
    """What is known of an address, besides its type."""
    return dataclasses.replace(ask(address), kind=None)


PICTURE, FILE = Answer(finite=True, picture=True), Answer(finite=True)


@pytest.fixture
def site(tmp_path):
    """A folder to serve, with a picture, beside the one that results go to."""
    (tmp_path / "site").mkdir()
    (tmp_path / "run").mkdir()
    shutil.copy(STREET, tmp_path / "site")
    return tmp_path / "site"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Behind http.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("street.jpg", "image/jpeg"),
        ("street.png", "application/octet-stream"),
        ("snapshot?channel=1", "image/jpeg"),
        ("snapshot", "application/octet-stream"),
    ],
)
def test_picture_behind_http_is_a_picture(site, name, kind):
    cv2.imwrite(str(site / "street.png"), cv2.imread(str(STREET)))
    shutil.copy(STREET, site / "snapshot")
    with serve(site, guess_type=lambda *_: kind) as (address, _):
        (frame,), told, fault = read(address + name)
    assert (frame.source, told, fault) == (address + name, [], "")
    np.testing.assert_array_equal(frame.image, cv2.imread(str(STREET)))


def test_picture_behind_http_gets_a_result_as_a_file_does(site, tmp_path):
    with serve(site) as (address, _):
        demo = run_demo("-i", address + "street.jpg", *FAST, "--json", "-", cwd=tmp_path / "run")
    assert demo.returncode == 0, demo.stderr
    assert [record["source"] for record in demo.records()] == [address + "street.jpg"]
    assert files_below(tmp_path / "run") == ["result.jpg"]


def test_damaged_picture_behind_http_is_named_and_exits_2(site, tmp_path):
    (site / "a.jpg").write_bytes(b"no picture")
    with serve(site) as (address, _):
        demo = run_demo("-i", address + "a.jpg", cwd=tmp_path / "run")
    assert refusal(demo).startswith(f"{address}a.jpg: is neither a picture")


def test_picture_that_ends_early_is_refused(site):
    def send_part(_, source, output):
        output.write(source.read(100))

    with serve(site, copyfile=send_part) as (address, _), pytest.raises(SourceError, match="ended"):
        open_source(address + "street.jpg")


def test_jpeg_with_its_end_is_whole_whatever_length_is_stated():
    data = STREET.read_bytes()
    with answering(200, "image/jpeg", len(data) + 48, data) as address:
        assert len(read(address)[0]) == 1


def test_picture_of_too_many_bytes_is_refused(site, monkeypatch):
    size = STREET.stat().st_size
    with serve(site) as (address, _):
        monkeypatch.setattr("media.addresses.LARGEST_PICTURE", size)
        open_source(address + "street.jpg")
        monkeypatch.setattr("media.addresses.LARGEST_PICTURE", size - 1)
        with pytest.raises(SourceError, match=f"street.jpg: has more than {size - 1} bytes."):
            open_source(address + "street.jpg")


def test_picture_that_comes_too_slowly_is_refused(site, monkeypatch):
    monkeypatch.setattr("media.addresses.FETCH_TIMEOUT", -1)  # over before it began
    with serve(site) as (address, _), pytest.raises(SourceError, match="not come within -1 s."):
        open_source(address + "street.jpg")


@pytest.mark.parametrize(
    ("name", "kind", "length", "answer"),
    [
        ("a.jpg", "image/jpeg", 5, PICTURE),
        ("a", "IMAGE/PNG; x=1", 5, PICTURE),
        ("a", "image/bmp", 5, PICTURE),
        ("a.jpg", "image/gif", 5, FILE),
        ("a.jpg", "video/mp4", 5, FILE),
        ("a.JPG?x=1#y", "application/octet-stream", 5, PICTURE),
        ("a.jpg", None, 5, PICTURE),
        ("a.mp4", None, 5, FILE),
        ("a?b.jpg", None, 5, PICTURE),  # what it begins with decides
        ("a.jpg", "multipart/x-mixed-replace", 5, PICTURE),
        ("a.cgi", "text/html; charset=x", 5, PICTURE),
        ("a.cgi", "text/plain", 5, PICTURE),
        ("a.jpg", "multipart/x-mixed-replace", None, Answer()),
        ("a.csv", "text/csv", 5, FILE),
        ("a", "application/vnd.apple.mpegURL", 5, Answer()),
        ("a.m3u8?token=1", "video/x", 5, Answer()),
        ("a.mp4", "video/mp4", None, Answer()),
        ("a.mp4", "video/mp4", "0", Answer()),
        ("a.mp4", "video/mp4", "05", Answer()),
        ("a.mp4", "video/mp4", "9" * 18, FILE),
        ("a.mp4", "video/mp4", "9" * 19, Answer()),
        ("a.mp4", "video/mp4", "many", Answer()),
    ],
)
def test_headers_tell_a_file_from_a_stream_and_a_picture_from_a_video(name, kind, length, answer):
    with answering(200, kind, length) as address:
        assert known(address + name) == answer


@pytest.mark.parametrize(
    ("begin", "picture"),
    [(b"\xff\xd8\xff", True), (b"RIFFxxxxWEBP", True), (b"GIF89a", False), (b"", False)],
)
def test_without_ending_or_kind_the_first_bytes_decide(begin, picture):
    with answering(200, None, len(begin) or 5, begin) as address:
        assert known(address + "a") == Answer(finite=True, picture=picture)


@pytest.mark.parametrize("kind", ["text/html", "text/plain", "multipart/x-mixed-replace"])
def test_page_or_stream_with_a_length_is_no_file(kind):
    with answering(200, kind, 5, b"--\r\nx") as address:
        assert known(address + "a.jpg") == Answer()


def test_what_can_not_be_looked_into_is_no_picture():
    with answering(200, None, 5, get=404) as address:
        assert known(address + "a") == FILE


def test_picture_that_is_not_sent_is_named_with_the_reason():
    with (
        answering(200, "image/jpeg", 5, get=404) as address,
        pytest.raises(SourceError, match=f"^{address}a: can't be fetched: Not Found.$"),
    ):
        open_source(address + "a")


@pytest.mark.parametrize("status", [400, 403, 404, 405, 500, 501])
def test_status_of_a_refusal_is_told_unless_only_head_is_refused(status):
    with answering(status) as address:
        assert ask(address) == Answer(status=status)
    with answering(status, "image/jpeg", 3, get=200) as address:
        assert known(address) == PICTURE


def chunked(handler, data):
    """Answer GET with a picture of no stated length, in chunks."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n")
    handler.wfile.write(b"Transfer-Encoding: chunked\r\n\r\n")
    for at in range(0, len(data), 5000) if handler.command == "GET" else ():
        block = data[at : at + 5000]
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(block), block))
    handler.wfile.write(b"0\r\n\r\n" * (handler.command == "GET"))


def length_0(handler, data):
    """Answer HEAD with length 0."""
    length = len(data) * (handler.command == "GET")
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n")
    handler.wfile.write(b"Content-Length: %d\r\n\r\n%b" % (length, data[:length]))


def no_length(handler, data):
    """Answer with a picture until the connection ends."""
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: image/jpeg\r\n\r\n")
    handler.wfile.write(data * (handler.command == "GET"))


def no_type(handler, data):
    """Answer GET alone, without saying what it is."""
    if handler.command == "HEAD":
        return handler.send_error(404)
    return handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + data)


def hangs_up(handler, data):
    """Answer no HEAD at all."""
    if handler.command == "GET":
        no_length(handler, data)


@pytest.mark.parametrize("send", [chunked, length_0, no_length, no_type, hangs_up])
@pytest.mark.parametrize("ending", [".jpg", ".png"])
def test_snapshot_is_a_picture_however_the_camera_answers(site, send, ending):
    data = cv2.imencode(ending, cv2.imread(str(STREET)))[1].tobytes()
    with serve(site, send_head=functools.partialmethod(send, data)) as (address, _):
        assert known(address + "snapshot") == PICTURE
        frames, said, fault = read(address + "snapshot")
    assert (len(frames), said, fault) == (1, [], "")
    np.testing.assert_array_equal(frames[0].image, cv2.imdecode(np.frombuffer(data, np.uint8), 1))


@pytest.mark.parametrize("name", ["snapshot", "front door"])
def test_snapshot_without_length_is_saved_and_needs_no_window(name, site, tmp_path):
    send = functools.partialmethod(chunked, STREET.read_bytes())
    with serve(site, send_head=send) as (address, _):
        demo = run_demo("-i", address + name, *FAST, cwd=tmp_path / "run")
    assert demo.returncode == 0, demo.stderr
    assert files_below(tmp_path / "run") == ["result.jpg"]


@pytest.mark.parametrize("silent", [True, False])
def test_what_does_not_come_in_time_may_be_a_stream(site, monkeypatch, silent):
    monkeypatch.setattr("media.addresses.ASK_TIMEOUT", 0.3)
    ended = threading.Event()

    def trickle(handler):
        if silent:
            ended.wait(10)
        no_length(handler, b"\xff\xd8\xff" + bytes(20))
        while not silent and handler.command == "GET" and not ended.wait(0.02):
            handler.wfile.write(b"\0")

    with serve(site, send_head=trickle) as (address, _):
        assert known(address) == Answer()
        ended.set()


@pytest.mark.parametrize("status", [None, 405])
def test_server_that_hangs_up_gives_no_answer(site, status):
    def hang_up(handler):
        if status and handler.command == "HEAD":
            handler.send_error(status)

    with serve(site, send_head=hang_up) as (address, _):
        assert ask(address) == Answer()


def test_picture_without_end_takes_no_more_memory_than_the_limit(site, monkeypatch):
    monkeypatch.setattr("media.addresses.LARGEST_PICTURE", 1000)
    data = STREET.read_bytes()
    with serve(site, send_head=functools.partialmethod(no_length, data)) as (address, _):
        assert known(address) == Answer()


@pytest.mark.parametrize("address", ["rtsp://127.0.0.1/a.jpg", "a.jpg", "xhttp://127.0.0.1/", ""])
def test_only_http_servers_are_asked(address, monkeypatch):
    monkeypatch.setattr("media.addresses.response_of", None)
    assert ask(address) == Answer()


@pytest.mark.parametrize("address", ["http://[", "http://127.0.0.1:x/", "https://127.0.0.1:1/"])
def test_server_that_can_not_be_asked_gives_no_answer(address):
    assert ask(address) == Answer()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webm", ("-c:v", "libvpx", "-deadline", "realtime", "-live", "1")),  # no length
        ("a.h264", STREAM),
        ("a.ts", STREAM),
        ("a.gif", ("-f", "gif")),
        ("a.mp4", STREAM),
    ],
)
def test_recording_behind_http_is_played_once_with_all_its_frames(site, tmp_path, name, options):
    numbered_video(site / name, 30, *options)
    with serve(site) as (address, seen), open_source(address + name) as source:
        assert isinstance(source, Video)
        indices = [frame.index for frame in source]
        assert source.fault(len(indices), 0, ended=True) == ""
    assert sorted(seen) == [("GET", f"/{name}"), ("HEAD", f"/{name}")]
    assert indices == list(range(len(images_of(site / name))))


def test_recording_behind_http_is_saved_as_a_file_is_and_needs_no_window(site, tmp_path):
    numbered_video(site / "a.h264", 8, *STREAM)
    with serve(site) as (address, _):
        demo = run_demo("-i", address + "a.h264", *FAST, "--json", "-", cwd=tmp_path / "run")
    assert demo.returncode == 0, demo.stderr
    assert "no window" not in demo.stderr and "lost" not in demo.stderr
    assert [record["frame"] for record in demo.records()] == list(range(8))
    assert files_below(tmp_path / "run") == ["result.mp4"]


@pytest.mark.parametrize("heads", [True, False])
def test_what_starts_anew_at_each_connection_ends_after_the_tries_allowed(site, monkeypatch, heads):
    """A server that does not answer HEAD, or says nothing of use: what it is can't be known."""
    monkeypatch.setattr("media.live.LONGEST_PAUSE", 0.001)
    numbered_video(site / "a.h264", 5, *STREAM)
    with (
        serve(site, heads=heads, types={".h264": "text/plain"}) as (address, seen),
        open_source(address + "a.h264", Reading(reconnect=3)) as live,
    ):
        assert isinstance(live, Live)
        assert max(frame.index for frame in filter(None, live)) < 4 * 5
        assert "no more frames" in live.error
    # One more looks whether it is a picture; where HEAD is not known, one whether it is MJPEG.
    assert len([path for command, path in seen if command == "GET"]) == 5 + (not heads)


@pytest.mark.parametrize(
    ("name", "heads", "said"),
    [
        ("missing", True, "The server answers: 404 Not Found."),
        ("missing", False, "The server answers: 404 Not Found."),
        ("page.html", True, "It is a web page. Give the address of the picture or stream that"),
        ("page.html", False, "It is a web page. Give the address of the picture or stream that"),
        ("a.mpd", True, "It is DASH, which OpenCV from PyPI is built without."),
        ("b", True, "It is DASH, which OpenCV from PyPI is built without."),
    ],
)
def test_address_that_can_not_be_opened_says_what_the_server_answers(site, name, heads, said):
    (site / "page.html").write_text("<html>Not here</html>" * 100)
    for dash in ("a.mpd", "b"):
        (site / dash).write_text("<MPD xmlns='urn:mpeg:dash:schema:mpd:2011'/>")
    types = {"": "application/dash+xml"}
    with (
        serve(site, heads=heads, types=types) as (address, _),
        pytest.raises(SourceError) as caught,
    ):
        open_source(address + name)
    assert str(caught.value).startswith(f"{address}{name}: can't be opened. {said}")


@pytest.mark.parametrize(("fragments", "kind"), [("+frag_keyframe+empty_moov", Live), ("", Video)])
def test_mp4_in_fragments_without_a_length_is_live(site, fragments, kind):
    """As go2rtc and Frigate send what a camera sees."""
    path = numbered_video(site / "a.mp4", 30, *STREAM, "-movflags", f"faststart{fragments}")
    data = path.read_bytes()

    def send(handler):
        handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp4\r\n\r\n")
        handler.wfile.write(data * (handler.command == "GET"))

    with (
        serve(site, send_head=send) as (address, _),
        open_source(address + "stream.mp4?src=door", Reading(reconnect=0)) as source,
    ):
        assert type(source) is kind
        assert number_of([frame.image for frame in source if frame][-1]) == 29


def test_stream_is_opened_once():
    with MjpegServer(lambda stream: stream.numbered(30)) as server:
        read(server.address, reconnect=0)
        assert server.connected == 1


# Passwords.


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://admin:secret@cam/s", "rtsp://admin:***@cam/s"),
        ("rtsp://admin:se@ret@cam/s", "rtsp://admin:***@cam/s"),
        ("rtsp://admin:se#ret@cam:554/s?x=1", "rtsp://admin:***@cam:554/s?x=1"),
        ("rtsp://admin:12345#@cam/s", "rtsp://admin:***@cam/s"),
        ("rtsp://admin:12/ret@cam/s", "rtsp://admin:***@cam/s"),
        ("RTSP://admin:se:ret@10.0.0.9", "RTSP://admin:***@10.0.0.9"),
        ("rtsp://me@mail.com:secret@cam/", "rtsp://me@mail.com:***@cam/"),
        ("http://:secret@[::1]:80/", "http://:***@[::1]:80/"),
        ("http://cam/v?user=a&password=secret&x=1", "http://cam/v?user=a&password=***&x=1"),
        ("http://cam/v.cgi?loginuse=a&loginpas=secret", "http://cam/v.cgi?loginuse=a&loginpas=***"),
        ("http://cam/v?PWD=secret#top", "http://cam/v?PWD=***#top"),
        ("ftp://admin:sec\nret@host/", "ftp://admin:***@host/"),
        # There is none.
        ("rtsp://admin@cam/s", "rtsp://admin@cam/s"),
        ("http://cam.local:8080/live@1", "http://cam.local:8080/live@1"),
        ("http://localhost:8080/live@1", "http://localhost:8080/live@1"),
        ("http://cam/a:b@c", "http://cam/a:b@c"),
        ("http://[::1]:80/a@b", "http://[::1]:80/a@b"),
    ],
)
def test_password_is_hidden_whatever_is_in_it(address, shown):
    assert hide_password(address) == shown


def basic(user, password):
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return lambda handler: handler.headers["Authorization"] == wanted


def digest(user, password, algorithm="MD5"):
    """By RFC 7616, 3.4.1, with qop or without."""

    def signed(*parts):
        name = {"MD5": "md5", "SHA-256": "sha256"}[algorithm]
        return hashlib.new(name, ":".join(parts).encode(), usedforsecurity=False).hexdigest()

    def login(handler):
        text = handler.headers["Authorization"] or ""
        said = dict(re.findall(r'(\w+)="?([^",]*)', text))
        if not text.startswith("Digest ") or said.get("algorithm", "MD5") != algorithm:
            return False
        how = [said[name] for name in ("nc", "cnonce", "qop") if "qop" in said]
        what = signed(user, "camera", password), "1", *how, signed(handler.command, handler.path)
        return said["response"] == signed(*what)

    return login


def with_login(address, login=ESCAPED):
    return address.replace("://", "://" + login)


@pytest.mark.parametrize("name", ["street.jpg", "a.mp4", "a.h264"])
def test_login_in_an_address_opens_it_and_its_password_is_not_in_its_name(site, name):
    if name != "street.jpg":
        numbered_video(site / name, 5, *STREAM)
    with serve(site, login=basic(*LOGIN)) as (address, _):
        frames, told, fault = read(with_login(address) + name)
    shown = with_login(address, "admin:***@") + name
    assert {frame.source for frame in frames} == {shown}
    assert (told, fault) == ([], "")


DIGEST = 'Digest realm="camera", nonce="1"'
SHA_256 = f'{DIGEST}, qop="auth", algorithm=SHA-256'


@pytest.mark.parametrize(
    ("login", "wanted"),
    [
        (digest(*LOGIN), [DIGEST]),
        (digest(*LOGIN), [f'{DIGEST}, qop="auth-int, auth", algorithm=MD5, stale=FALSE']),
        (digest(*LOGIN), [f"{DIGEST}, algorithm=SHA-512-256", DIGEST, SHA_256]),
        (digest(*LOGIN), ['Bearer realm="camera"', DIGEST]),
        (digest(*LOGIN, "SHA-256"), [SHA_256]),
        (digest(*LOGIN, "SHA-256"), [SHA_256, DIGEST]),
        (basic(*LOGIN), ["Negotiate", "NTLM", "basic realm=camera"]),
    ],
)
def test_login_opens_a_picture_however_the_server_wants_it(site, login, wanted):
    with serve(site, login=login, wanted=wanted) as (address, _):
        assert known(with_login(address) + "street.jpg#top") == PICTURE
        assert len(read(with_login(address) + "street.jpg#top")[0]) == 1


def test_login_that_has_to_be_signed_is_not_sent_in_clear(site):
    wanted = [f"{DIGEST}, algorithm=SHA-512-256", f'{DIGEST}, qop="auth-int"', "Negotiate"]
    with serve(site, login=basic(*LOGIN), wanted=wanted) as (address, _):
        assert ask(with_login(address) + "street.jpg") == Answer(status=401)


def test_login_goes_to_no_other_server(site):
    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", other + "street.jpg")
        handler.end_headers()

    with (
        serve(site, login=basic(*LOGIN)) as (other, seen),
        serve(site, send_head=redirect) as (address, _),
    ):
        assert ask(with_login(other) + "street.jpg").finite
        del seen[:]
        assert ask(with_login(address) + "street.jpg") == Answer(status=401)
    assert seen == []


@pytest.mark.parametrize("target", ["ftp://127.0.0.1:1/street.jpg", "file:///etc/hostname"])
def test_redirect_leads_to_http_only(site, target):
    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()

    with (
        serve(site, send_head=redirect) as (address, _),
        pytest.raises(SourceError, match="can't be fetched: .*(unknown url type|not allowed)"),
    ):
        fetch(address + "street.jpg")


def test_password_is_never_shown(site, tmp_path):
    numbered_video(site / "a.mp4", 5, *STREAM)
    with serve(site, login=basic(*LOGIN)) as (address, _):
        wanted = with_login(address) + "a.mp4"
        demo = run_demo("-i", wanted, *FAST, "--json", "-", cwd=tmp_path / "run")
    assert demo.returncode == 0, demo.stderr
    said = demo.stderr + demo.stdout
    assert with_login(address, "admin:***@") + "a.mp4; " in said
    assert "p%40" not in said and "p@ss" not in said


def test_lost_stream_is_told_without_its_password(monkeypatch):
    monkeypatch.setattr("media.live.LONGEST_PAUSE", 0.01)
    with MjpegServer(lambda stream: stream.numbered(10)) as server:
        _, told, fault = read(with_login(server.address, "admin:secret@"), reconnect=1)
    shown = with_login(server.address, "admin:***@")
    assert told == [f"{shown}: lost, trying again in 0.01 s", f"{shown}: back"]
    assert fault == f"{shown}: gives no more frames"


@pytest.mark.parametrize("login", ["", "admin:secret@"])
@pytest.mark.parametrize("login_by", [basic, digest])
def test_refused_login_is_named(site, login, login_by):
    wanted = Files.wanted if login_by is basic else [DIGEST]
    with (
        serve(site, login=login_by(*LOGIN), wanted=wanted) as (address, _),
        pytest.raises(SourceError) as caught,
    ):
        open_source(with_login(address, login) + "street.jpg")
    said = (
        "The server answers: 401 Unauthorized."
        if login
        else "The server wants a user and password: http://USER:PASSWORD@host/..."
    )
    shown = with_login(address, login.replace("secret", "***"))
    assert str(caught.value) == f"{shown}street.jpg: can't be opened. {said}"


@pytest.mark.parametrize("password", ["pa#ss", "pa/ss", "pa?ss", "pa@ss"])
def test_password_that_should_be_escaped_gets_a_hint(password):
    with pytest.raises(SourceError, match="write %40 for @, %23 for #") as caught:
        open_source(f"rtsp://admin:{password}@127.0.0.1:{free_port()}/s")
    assert password not in str(caught.value)


def test_password_that_is_as_it_should_be_gets_no_hint():
    with pytest.raises(SourceError, match="Is the address right, the server up"):
        open_source(f"rtsp://admin:pa%40ss@127.0.0.1:{free_port()}/s@1")


# Kinds of addresses.


def test_scheme_may_be_in_capitals(site):
    numbered_video(site / "a.mp4", 5)
    with serve(site) as (address, _):
        address = address.replace("http", "HTTP")
        with open_source(address + "street.jpg") as source:
            assert isinstance(source, Pictures)
        with open_source(address + "a.mp4") as source:
            assert len(list(source)) == 5


@pytest.mark.parametrize(
    "address",
    [
        "ftp://u:secret@host/x",
        "file:///etc/passwd",
        "concat://a",
        "async:http://x",
        "://x",
        " http://x",
    ],
)
def test_other_addresses_are_refused_and_the_known_ones_listed(address):
    with pytest.raises(SourceError, match="unknown kind of address") as caught:
        open_source(address)
    listed = "http, https, rtsp, rtsps, rtmp, rtmps, udp, srt, tcp"
    assert listed in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["concat:a.mp4|b.mp4", "data:video/mp4;base64,A", "file:a.mp4"])
def test_protocols_without_an_address_are_names_of_files(value):
    with pytest.raises(SourceError, match="no such file"):
        open_source(value)


@pytest.fixture
def transport_stream(tmp_path):
    """Bytes of an MPEG transport stream of 50 numbered frames."""
    return numbered_video(tmp_path / "a.ts", 50, *STREAM, rate=25).read_bytes()


def answer_once(data):
    """A TCP server that sends these bytes to the first who connects; returns its address."""
    server = socket.create_server(("127.0.0.1", 0))

    def send():
        with server, server.accept()[0] as connection:
            connection.sendall(data)

    threading.Thread(target=send, daemon=True).start()
    return f"tcp://127.0.0.1:{server.getsockname()[1]}"


def check_frames(live, least):
    """Go through a stream until a numbered frame of at least this number comes."""
    assert isinstance(live, Live)
    index = -1
    for frame in filter(None, live):
        assert frame.image.shape == (48, 64, 3)
        assert frame.index > index
        index = frame.index
        if number_of(frame.image) >= least:
            return
    pytest.fail(f"ended at {index}: {live.error}")


def test_tcp_stream_is_shown(transport_stream):
    with open_source(answer_once(transport_stream), Reading(reconnect=0)) as live:
        check_frames(live, 45)


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (b"RTSP/1.0 404 Not Found\r\nCSeq: 1\r\n\r\n", 404),
        (b"RTSP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nv=0", 200),
        (b"RTSP/1.0 200 OK\r\nContent-Length: 3\r\n\r\n", None),
        (b"RTSP/1.0 200 OK\r\nContent-Length: x\r\n\r\n", None),
        (b"RTSP/1.0 401 No\r\nWWW-Authenticate: Digest realm=\r\n\r\n", 401),
        (b"RTSP/1.0 401 No\r\nWWW-Authenticate: Digest realm\r\n\r\n", 401),
        (b"RTSP/1.0 401 No\r\n\r\n", None),  # and nothing more for the login
        (b"RTSP/1.0 many\r\n\r\n", None),
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", None),
        (b"\0" * 2_000_000, None),
        (b"\r\n\r\n", None),
        (b"", None),
    ],
)
def test_reply_of_an_rtsp_server_is_a_status_or_nothing(reply, status):
    address = answer_once(reply).replace("tcp://", "rtsp://admin:secret@")
    assert describe(address) == status


def test_rtsp_server_is_asked_at_its_port_or_the_usual_one(monkeypatch):
    asked = []

    def connect(place, _):
        asked.append(place)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", connect)
    assert {describe("rtsp://camera/1"), describe("rtsp://camera:80/1")} == {None}
    assert asked == [("camera", 554), ("camera", 80)]


def test_rtsp_server_that_trickles_is_asked_no_longer_than_the_time_out(monkeypatch):
    monkeypatch.setattr("media.addresses.ASK_TIMEOUT", 0.2)
    ended = threading.Event()

    def trickle(server):
        with server, server.accept()[0] as connection, contextlib.suppress(OSError):
            while not ended.wait(0.01):
                connection.sendall(b"x")

    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=trickle, args=(server,), daemon=True).start()
    assert describe(f"rtsp://127.0.0.1:{server.getsockname()[1]}/") is None
    ended.set()


@contextlib.contextmanager
def sending(source, *output):
    """Let ffmpeg send a video at its pace, again and again."""
    need("ffmpeg")
    command = ["ffmpeg", "-v", "error", "-re", "-stream_loop", "-1", "-i", source, "-c", "copy"]
    with subprocess.Popen([*command, *output], stderr=subprocess.DEVNULL) as sender:
        try:
            yield
        finally:
            sender.kill()


def test_udp_stream_is_shown(tmp_path, transport_stream):
    address = f"udp://127.0.0.1:{free_port()}"
    with (
        sending(tmp_path / "a.ts", "-f", "mpegts", address),
        open_source(address, Reading(reconnect=0)) as live,
    ):
        check_frames(live, 20)


def test_rtmp_stream_is_shown(monkeypatch, tmp_path, transport_stream):
    # The user's own option: half a second is enough to find out what comes.
    monkeypatch.setenv("OPENCV_FFMPEG_CAPTURE_OPTIONS", "analyzeduration;500000")
    port = free_port()
    address = f"rtmp://127.0.0.1:{port}/live/camera"
    listening = f"0100007F:{port:04X} 00000000:0000 0A"
    with sending(tmp_path / "a.ts", "-f", "flv", "-listen", "1", address):
        wait_until(lambda: listening in Path("/proc/net/tcp").read_text(), "ffmpeg listens")
        with open_source(address, Reading(reconnect=0)) as live:
            check_frames(live, 20)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("udp://127.0.0.1:{}", "Is the address right, the server up?"),
        ("tcp://127.0.0.1:{}?listen=1", "Is the address right, the server up?"),
        ("rtmp://127.0.0.1:{}/live/x", "Is the address right, the server up?"),
        ("srt://127.0.0.1:{}", "OpenCV from PyPI is built without srt"),
    ],
)
def test_stream_that_never_comes_ends_at_the_time_out(monkeypatch, address, said):
    monkeypatch.setattr("media.videos.OPEN_TIMEOUT", 1)
    with pytest.raises(SourceError, match="can't be opened. ") as caught:
        open_source(address.format(free_port()))
    assert said in str(caught.value)


def test_video_over_tcp_with_too_large_frames_is_refused(monkeypatch, transport_stream):
    monkeypatch.setattr("media.videos.LARGEST_FRAME", 1000)
    with pytest.raises(SourceError, match="more than 1000 pixels"):
        open_source(answer_once(transport_stream))


# Lists, which name further addresses or files.


def playlist(*lines):
    head = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:9", "#EXT-X-MEDIA-SEQUENCE:0"]
    return "\n".join([*head, "#EXTINF:5.0,", *lines, "#EXT-X-ENDLIST", ""])


OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


@pytest.fixture(params=[None, "protocol_whitelist;file,tcp"], ids=["none", "own"])
def options(request, monkeypatch):
    """The user's own options for FFmpeg, or none."""
    monkeypatch.delenv(OPTIONS, raising=False)
    if request.param:
        monkeypatch.setenv(OPTIONS, request.param)
    return request.param


@pytest.mark.parametrize("path", ["", "/x.m3u8"])
def test_list_that_comes_over_tcp_opens_no_local_file(tmp_path, transport_stream, path, options):
    listed = playlist(f"file://{tmp_path}/a.ts").encode()
    with pytest.raises(SourceError, match="can't be opened"):
        open_source(answer_once(listed) + path)


def test_own_options_for_ffmpeg_stay_as_they_are(transport_stream, options):
    with open_source(answer_once(transport_stream), Reading(reconnect=0)) as live:
        check_frames(live, 1)
    assert os.environ.get(OPTIONS) == options


@pytest.mark.parametrize("scheme", ["tcp", "udp", "srt", "http", "rtsp"])
def test_own_options_for_ffmpeg_reach_it(monkeypatch, scheme, options):
    given = []

    class Capture:
        def __init__(self, *_):
            given.append(os.environ.get(OPTIONS))

        def isOpened(self):
            return False

    monkeypatch.setattr(cv2, "VideoCapture", Capture)
    with pytest.raises(SourceError):
        open_source(f"{scheme}://127.0.0.1:{free_port()}/")
    ours = {"http": ["extension_picky;0"], "rtsp": []}.get(
        scheme, ["protocol_whitelist;udp,srt,tcp"]
    )
    assert given == ["|".join([options] * bool(options) + ours) or None]
    assert os.environ.get(OPTIONS) == options


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.m3u8", playlist("file://{secret}")),
        ("b.m3u8", playlist("{secret}")),
        ("c.m3u8", playlist("concat:file://{secret}")),
        ("d.m3u8", playlist("crypto+file://{secret}")),
        ("e.m3u8", "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nfile://{folder}/f.m3u8\n"),
        ("f.ffconcat", "ffconcat version 1.0\nfile 'file://{secret}'\n"),
        ("g.ffconcat", "ffconcat version 1.0\nfile '{secret}'\n"),
    ],
)
def test_list_behind_http_opens_no_local_file(site, tmp_path, transport_stream, name, text):
    (site / "f.m3u8").write_text(playlist("a.ts"))
    (site / name).write_text(text.format(secret=tmp_path / "a.ts", folder=site))
    with serve(site) as (address, _), pytest.raises(SourceError):
        list(open_source(address + name, Reading(reconnect=0)))


@pytest.mark.parametrize("segment", ["part", "part.jpg", "part.txt", "part.ts?token=a.b"])
def test_parts_of_a_stream_may_have_any_name(site, tmp_path, transport_stream, segment):
    (site / segment.partition("?")[0]).write_bytes(transport_stream)
    (site / "a.m3u8").write_text(playlist(segment))
    with serve(site) as (address, _), open_source(address + "a.m3u8") as source:
        assert len(list(source)) == 50


def test_list_behind_http_may_name_another_http_server(site, tmp_path, transport_stream):
    """As SECURITY.md says; streams of web sites come like this."""
    with serve(tmp_path) as (other, seen), serve(site) as (address, _):
        (site / "a.m3u8").write_text(playlist(other + "a.ts"))
        with open_source(address + "a.m3u8") as source:
            assert len(list(source)) == 50
    assert ("GET", "/a.ts") in seen


# What servers are particular about.


def test_server_that_refuses_python_s_own_requests_is_asked(site):
    def login(handler):
        return "Python" not in handler.headers["User-Agent"]

    with serve(site, login=login) as (address, _):
        assert known(address + "street.jpg") == PICTURE


@pytest.mark.parametrize("name", ["my street", "фото", "a%20b", "[1]~!$&'()*+,;=:@"])
def test_address_may_have_spaces_and_other_alphabets(site, name):
    shutil.copy(STREET, site / f"{unquote(name)}.jpg")
    numbered_video(site / f"{unquote(name)}.ts", 5, *STREAM)
    with serve(site) as (address, _):
        frames, _, fault = read(f"{address}{name}.jpg")
        assert [frame.source for frame in frames] == [f"{address}{name}.jpg"]
        assert len(read(f"{address}{name}.ts")[0]) == 5


def test_server_may_have_signed_its_certificate_itself(site, tmp_path):
    need("openssl")
    both = tmp_path / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=camera"]
    subprocess.run([*command, "-keyout", both, "-out", tmp_path / "c"], check=True, stderr=-3)
    both.write_bytes(both.read_bytes() + (tmp_path / "c").read_bytes())
    with serve(site, both, login=basic(*LOGIN)) as (address, _):
        assert known(with_login(address) + "street.jpg") == PICTURE


def test_rtsp_login_that_opencv_can_not_sign_is_named():
    class Camera(http.server.BaseHTTPRequestHandler):
        protocol_version = "RTSP/1.0"

        def parse_request(self):
            self.command, self.path, _ = str(self.raw_requestline, "ascii").split()
            self.headers = email.message_from_bytes(b"".join(iter(self.rfile.readline, b"\r\n")))
            self.close_connection = False
            return True

        def do_DESCRIBE(self):
            known = digest(*LOGIN, "SHA-256")(self)
            self.wfile.write(b"RTSP/1.0 %b\r\n" % (b"200 OK" if known else b"401 No"))
            self.wfile.write(f"CSeq: {self.headers['CSeq']}\r\n".encode())
            self.wfile.write(f"WWW-Authenticate: {SHA_256}\r\n\r\n".encode())

        do_OPTIONS = do_DESCRIBE

    with (
        http_server(Camera) as server,
        pytest.raises(SourceError, match="reads, or takes only logins signed by SHA-256."),
    ):
        open_source(f"rtsp://{ESCAPED}127.0.0.1:{server.server_port}/s")
