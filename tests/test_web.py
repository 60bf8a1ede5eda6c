"""The live view in a browser: what it shows, whom it serves, and that detection never waits."""

import concurrent.futures
import contextlib
import http.client
import ipaddress
import itertools
import json
import signal
import socket
import time
from contextlib import closing
from itertools import islice
from types import SimpleNamespace
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from demo_process import CAT, DEADLINE, EXAMPLES, FAST, STREET, Demo, refusal, run_demo
from live_helpers import (
    MjpegServer,
    browser,
    film,
    find_window,
    meanwhile,
    number_of,
    numbered_frame,
    numbered_video,
    press,
    screen,
    wait_until,
)

import media.web
from media.frames import Frame
from media.outputs import OutputError
from media.web import Web
from nanodet import COCO_CLASSES, Detections

ROUTES = ("", "picture", "numbers", "snapshot.jpg")
CAMERA = SimpleNamespace(name="camera 0", live=True)
NOISE = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)


def objects(*class_ids):
    """Detections of these classes, all in one place."""
    number = len(class_ids)
    return Detections(np.tile([1.0, 2, 9, 8], (number, 1)), np.full(number, 0.5), class_ids)


def show(web, image, *class_ids, seconds=0.0, **more):
    """Show the next image, or the frame of this number."""
    image = numbered_frame(image) if isinstance(image, int) else image
    frame = Frame("clip", 0, seconds, image, moving=True, **more)
    web.write(frame, SimpleNamespace(drawn=image, detections=objects(*class_ids), milliseconds=7.5))


def clock_of(*seconds):
    """In place of one module's `time`: the seconds at which that one looks."""
    return SimpleNamespace(perf_counter=iter(seconds).__next__)


def showing(web, images):
    """Show one image after the other until the end of this."""

    def go_on(ended):
        for image in images:
            if ended.wait(0.01):
                return
            show(web, image)

    return meanwhile(go_on)


@contextlib.contextmanager
def served(*arguments, cwd, send=None, at="0", **options):
    """Serve a made-up stream; yields the run and its address."""
    with (
        MjpegServer(send or (lambda stream: stream.numbered())) as server,
        Demo("-i", server.address, "--serve", at, *arguments, cwd=cwd, **options) as demo,
    ):
        yield demo, address_of(demo)


def address_of(demo):
    """The address that a run prints."""
    return demo.wait_line(demo.out, "^live view: http").split()[-1]


def connect(address, path="", method="GET", **headers):
    """The response to a request, its body not yet read."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=DEADLINE)
    connection.request(method, f"/{path}?{parts.query}", headers=headers)
    return connection.getresponse()


def status(*arguments, **headers):
    """The status of the response to a request."""
    with connect(*arguments, **headers) as response:
        return response.status


def pictures(address, viewer=""):
    """The JPEGs of the picture's stream, until it ends."""
    with connect(f"{address}&viewer={viewer}" if viewer else address, "picture") as response:
        data, part = b"", b"\r\n--part\r\nContent-Type: image/jpeg\r\n\r\n"
        assert response.read(len(part)) == part
        while block := response.read1():
            *whole, data = (data + block).split(part)
            yield from whole


def numbers(address):
    """What the page tells now."""
    with connect(address, "numbers") as response:
        return json.load(response)


def number_in(jpeg):
    """The number of the frame in a JPEG."""
    return number_of(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))


def raw(address, data):
    """A connection over which these bytes have been sent, and that buffers little."""
    parts = urlsplit(address)
    connection = socket.socket(socket.AF_INET6 if ":" in parts.hostname else socket.AF_INET)
    connection.settimeout(DEADLINE)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((parts.hostname, parts.port))
    connection.sendall(data)
    return connection


def answer_to(address, data):
    """All that is sent back for these bytes, until the connection is closed."""
    answer = b""
    with raw(address, b"") as connection, contextlib.suppress(ConnectionError):
        connection.sendall(data)
        while block := connection.recv(4096):
            answer += block
    return answer


FORBIDDEN = (
    b"403 Forbidden. Open the address that demo.py printed; behind a proxy, run it with --token.\n"
)
STALL = b"GET /picture HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def web():
    """A server on loopback that has not shown anything."""
    with closing(Web("127.0.0.1", 0, CAMERA, COCO_CLASSES)) as web:
        yield web


@pytest.fixture(scope="module")
def site():
    """The address of a server on loopback that shows frame 7."""
    with closing(Web("127.0.0.1", 0, CAMERA, COCO_CLASSES)) as web:
        show(web, 7)
        yield web.address


@pytest.fixture(scope="module")
def open_site():
    """The address of a server for other machines that shows frame 7."""
    with closing(Web("0.0.0.0", 0, CAMERA, COCO_CLASSES)) as web:  # noqa: S104
        show(web, 7)
        yield web.address


# What is shown.


def test_each_new_picture_is_sent_once_to_who_keeps_up(web, monkeypatch):
    monkeypatch.setattr("media.web.AGAIN", DEADLINE)
    show(web, 0)
    stream, shown = pictures(web.address), []
    for number in range(1, 6):
        shown.append(number_in(next(stream)))
        show(web, number)
    assert shown == [0, 1, 2, 3, 4]


def test_picture_is_sent_again_when_no_new_one_comes(web, monkeypatch):
    monkeypatch.setattr("media.web.AGAIN", 0.01)
    show(web, 3)
    assert [number_in(jpeg) for jpeg in islice(pictures(web.address), 3)] == [3, 3, 3]


def test_viewer_from_before_the_first_picture_gets_it(web):
    stream = pictures(web.address)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, stream)
        wait_until(lambda: web._watching, "the viewer waits")
        show(web, 8)
        assert number_in(first.result(DEADLINE)) == 8


def test_frame_that_can_not_be_read_leaves_the_picture_before_it(web):
    show(web, 5)
    web.write(Frame("clip", 1, 0.1, None, "damaged", True), None)
    assert number_in(next(pictures(web.address))) == 5


def test_numbers_tell_what_json_tells(tmp_path):
    street = cv2.imread(str(STREET))

    def send(stream):
        while not stream.server.stopping.wait(0.02):
            stream.send(street)

    with served("--json", "found.jsonl", cwd=tmp_path, send=send) as (demo, address):
        seen = wait_until(lambda: (now := numbers(address))["fps"] and now, "frames come")
        demo.send(signal.SIGINT)
        demo.finish()
    found = json.loads((tmp_path / "found.jsonl").read_text().splitlines()[0])["detections"]
    labels = [each["label"] for each in found]
    assert seen["objects"] == {label: labels.count(label) for label in labels}
    assert 0 < seen["age"] < DEADLINE
    assert 0 < seen["inference_ms"] < 1000 * seen["age"]


def test_numbers_count_the_objects_of_each_class(web):
    show(web, 0, 2, 0, 2, 80, 2)
    seen = numbers(web.address)
    assert list(seen["objects"].items()) == [("person", 1), ("car", 3), ("class 80", 1)]
    assert seen["inference_ms"] == 7.5


def test_rate_is_that_at_which_pictures_come(web, monkeypatch):
    monkeypatch.setattr("media.window.time", clock_of(0, 0.1, 0.2, 0.3))
    for number in range(4):
        show(web, number)
    assert numbers(web.address)["fps"] == pytest.approx(10)


def test_age_of_the_picture_grows_while_no_other_comes(web):
    began = time.perf_counter()
    show(web, 0, read_at=began - 30)
    first, later = numbers(web.address), numbers(web.address)
    assert 30 <= first["age"] < later["age"] <= 30 + time.perf_counter() - began


def test_numbers_say_what_is_seen_and_how_it_stands(web, monkeypatch):
    assert numbers(web.address) == {"source": "camera 0", "state": "waiting", "fps": None}
    show(web, 0)
    seen = numbers(web.address)
    assert (seen["source"], seen["state"]) == ("camera 0", "live")
    video = SimpleNamespace(name="clip.mp4", live=False)
    with closing(Web("127.0.0.1", 0, video, COCO_CLASSES)) as other:
        show(other, 0)
        seen = numbers(other.address)
        assert (seen["source"], seen["state"]) == ("clip.mp4", "video")


def test_source_that_gives_nothing_new_is_lost_and_has_no_rate(web, monkeypatch):
    monkeypatch.setattr("media.window.time", clock_of(0, 0.1, 0.2))
    now = time.perf_counter()
    show(web, 0, read_at=now)
    show(web, 1, read_at=now)
    assert (numbers(web.address)["state"], numbers(web.address)["fps"]) == ("live", 10)
    show(web, 2, read_at=now - 10)
    assert (numbers(web.address)["state"], numbers(web.address)["fps"]) == ("lost", None)


def test_page_learns_whether_its_own_picture_is_watched(web):
    def watched(viewer):
        return numbers(f"{web.address}?viewer={viewer}")["watching"]

    show(web, 0)
    assert not watched("mine")
    stream = pictures(f"{web.address}?viewer=mine")
    assert next(stream)
    assert wait_until(lambda: watched("mine"), "it is told")
    assert not watched("other")
    again = pictures(f"{web.address}?viewer=mine")
    assert next(again)
    stream.close()
    with showing(web, range(600)):
        wait_until(lambda: web._watching["mine"] == 1, "the first stream has ended")
        assert watched("mine")
    again.close()
    with showing(web, range(600)):
        wait_until(lambda: not watched("mine"), "it is told that the stream has ended")


def test_video_plays_at_its_pace_beside_its_result_and_json(tmp_path):
    numbered_video(tmp_path / "clip.mp4", 15, rate=15)
    arguments = ("-i", "clip.mp4", "--serve", "0", "--json", "found.jsonl", *FAST)
    with Demo(*arguments, cwd=tmp_path) as demo:
        shown = [number_in(jpeg) for jpeg in pictures(address_of(demo))]
        assert demo.finish() == 0
    assert demo.err == []
    assert len(shown) > 1 and shown == sorted(shown)
    assert film(tmp_path / "result.mp4")["frames"] == 15
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 15
    rate = float(next(line for line in demo.out if "a second" in line).split()[-3])
    assert rate < 17  # 14 intervals of 1/15 s


def test_frame_of_a_paced_video_is_as_old_as_its_being_shown():
    with closing(Web("127.0.0.1", 0, CAMERA, COCO_CLASSES, paced=True)) as web:
        began = time.perf_counter()
        show(web, 0, read_at=began - 30)  # and then waited for its turn
        assert numbers(web.address)["age"] <= time.perf_counter() - began


def test_wait_for_a_frame_s_time_can_be_ended():
    checks = iter((None, None, KeyboardInterrupt()))

    def check():
        if error := next(checks):
            raise error

    with closing(Web("127.0.0.1", 0, CAMERA, COCO_CLASSES, paced=True, check=check)) as web:
        show(web, 0)
        with pytest.raises(KeyboardInterrupt):
            show(web, 1, seconds=1e6)
        assert number_in(next(pictures(web.address))) == 0


@pytest.mark.skipif(not cv2.currentUIFramework(), reason="this OpenCV is a headless build")
def test_window_is_opened_beside_it_if_asked_for(tmp_path):
    with (
        screen() as display,
        served("-v", *FAST, cwd=tmp_path, display=display) as (demo, address),
    ):
        assert next(pictures(address))
        press(display, find_window(display), "q")
        assert demo.finish() == 0


def test_live_source_needs_no_window(tmp_path):
    with served(*FAST, cwd=tmp_path, display=":4711") as (demo, address):
        assert next(pictures(address))
        assert demo.err == []


def test_window_that_can_not_be_opened_is_only_a_warning(tmp_path):
    with served("-v", *FAST, cwd=tmp_path, display=":4711") as (demo, address):
        assert next(pictures(address))
        assert [line.partition(": ")[2][:10] for line in demo.err] == ["no window:"]


def test_address_is_printed_though_quiet(tmp_path):
    with (
        MjpegServer(lambda stream: stream.numbered()) as server,
        Demo("-i", server.address, "--serve", "0", "-q", *FAST, cwd=tmp_path) as demo,
    ):
        address = demo.wait_line(demo.err, "live view").split()[-1]
        assert status(address) == 200


def test_snapshot_is_the_newest_picture(web):
    for number in (3, 4):
        show(web, number)
        with connect(web.address, "snapshot.jpg") as response:
            assert response.headers["Content-Type"] == "image/jpeg"
            assert int(response.headers["Content-Length"]) > 100
            assert number_in(response.read()) == number


def test_snapshot_before_the_first_picture_is_refused(web):
    assert status(web.address, "snapshot.jpg") == 503


# Who watches, and what it costs.


@pytest.fixture
def encoded(monkeypatch):
    """A list that grows with every picture that is encoded."""
    images, encode = [], cv2.imencode

    def counted(ending, image, *options):
        images.append(image)
        return encode(ending, image, *options)

    monkeypatch.setattr(cv2, "imencode", counted)
    return images


def test_picture_is_encoded_once_for_ten_viewers(web, encoded):
    show(web, 0)
    streams = [pictures(web.address) for _ in range(10)]
    for number in range(1, 6):
        assert [number_in(next(stream)) for stream in streams] == [number - 1] * 10
        show(web, number)
    assert [number_in(next(stream)) for stream in streams] == [5] * 10
    assert [number_of(image) for image in encoded] == [0, 1, 2, 3, 4, 5]


def test_nothing_is_encoded_while_nobody_watches(web, encoded):
    assert status(web.address) == 200
    for number in range(5):
        show(web, number)
    assert numbers(web.address)["state"] == "live"
    assert encoded == []


def test_detection_does_not_wait_for_a_stalled_viewer(web, monkeypatch):
    monkeypatch.setattr("media.web.SEND_TIMEOUT", DEADLINE)
    show(web, NOISE)
    with raw(web.address, STALL):
        for _ in islice(pictures(web.address), 50):  # 3 MB, more than a connection buffers
            show(web, NOISE)


def test_stalled_viewer_is_dropped_in_time(web, monkeypatch):
    monkeypatch.setattr("media.web.SEND_TIMEOUT", 0.3)
    with showing(web, itertools.cycle([NOISE])), raw(web.address, STALL):
        wait_until(lambda: web._watching, "it is served")
        wait_until(lambda: not web._watching, "its place is free")


def test_slow_request_is_dropped_in_time(web, monkeypatch):
    monkeypatch.setattr("media.web.HEAD_TIMEOUT", 0.5)
    show(web, 0)
    with (
        raw(web.address, b"GET / HTTP/1.1\r\nX: ") as slow,
        contextlib.suppress(ConnectionError),
    ):
        slow.settimeout(0.1)
        for _ in range(10 * DEADLINE):
            slow.sendall(b"x")  # each alone is soon enough
            with contextlib.suppress(TimeoutError):
                assert slow.recv(1) == b""
                return
        pytest.fail("it is still served")


def test_request_may_come_in_pieces(site):
    with raw(site, b"") as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (b"GET / HT", b"TP/1.0\r\nHost: localhost\r", b"\n\r", b"\n"):
            connection.sendall(piece)
        assert b" 200 " in connection.recv(100)


@pytest.mark.parametrize(
    "request_bytes",
    [
        *(b"\x16\x03\x01\r\n\r\n", b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/x\r\n\r\n"),
        *(b"GET / HTTP/1.1\r\n" + n * b"X: y\r\n" + b"\r\n" for n in (200, 20_000)),
    ],
    ids=["tls", "empty", "one word", "version", "too many", "too long"],
)
def test_what_is_no_request_ends_its_connection_only(site, request_bytes):
    assert b" 200 " not in answer_to(site, request_bytes)
    assert status(site) == 200


def test_head_that_never_ends_is_read_to_its_limit_and_no_further(web, monkeypatch):
    monkeypatch.setattr("media.web.HEAD_TIMEOUT", 2 * DEADLINE)
    assert answer_to(web.address, b"GET / HTTP/1.1\r\n" + 20_000 * b"X: y\r\n") == b""


def is_open(connection):
    """Whether the server has not closed a connection that it sends nothing."""
    connection.setblocking(False)
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return True
    except ConnectionError:
        return False


def test_who_says_nothing_keeps_nobody_out(web, monkeypatch):
    monkeypatch.setattr("media.web.HEAD_TIMEOUT", 2 * DEADLINE)
    monkeypatch.setattr("media.web.STRANGERS", 3)
    show(web, 0)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(raw(web.address, b"GET")) for _ in range(20)]
        assert status(web.address) == 200
        wait_until(lambda: sum(map(is_open, silent)) <= 3, "the others' places are taken back")
        assert status(web.address) == 200


def test_who_takes_all_viewers_places_keeps_nobody_out(web, monkeypatch):
    monkeypatch.setattr("media.web.SEND_TIMEOUT", DEADLINE)
    monkeypatch.setattr("media.web.CONNECTIONS", 3)
    show(web, NOISE)
    with contextlib.ExitStack() as stack:
        for _ in range(10):  # they never read
            stack.enter_context(raw(web.address, STALL))
        with showing(web, itertools.cycle([NOISE])):
            assert len(next(pictures(web.address))) > 1000
            wait_until(lambda: web._watching.total() <= 3, "the others' places are taken back")


def test_place_is_taken_from_whoever_has_the_most(web, monkeypatch):
    monkeypatch.setattr("media.web.CONNECTIONS", 3)
    server, greedy, modest = web._server, [socket.socket() for _ in range(3)], socket.socket()
    server.welcome(modest, "192.0.2.1")
    for connection in greedy:
        server.welcome(connection, "192.0.2.2")
    assert list(server.guests) == [modest, *greedy[1:]]
    server.guests.clear()


@pytest.mark.parametrize("head", [b"GET / HT", STALL])
def test_viewer_that_hangs_up_frees_its_place(web, head):
    places = web._server.strangers if head != STALL else web._server.guests
    with raw(web.address, head):
        wait_until(lambda: places, "it has a place")
    with showing(web, range(600)):
        wait_until(lambda: not places, "its place is free")


@pytest.mark.parametrize("error, told", [(ConnectionResetError, False), (ZeroDivisionError, True)])
def test_viewer_that_left_at_once_is_not_told_of(web, monkeypatch, capsys, error, told):
    def setup(_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(media.web.Viewer, "setup", setup)
        assert answer_to(web.address, b"GET / HTTP/1.0\r\n\r\n") == b""
    web.close()  # waits for the viewer's thread
    assert (error.__name__ in capsys.readouterr().err) == told


def test_close_does_not_wait_for_viewers_that_stall(web, monkeypatch):
    monkeypatch.setattr("media.web.SEND_TIMEOUT", DEADLINE)
    monkeypatch.setattr("media.web.HEAD_TIMEOUT", DEADLINE)
    show(web, np.tile(NOISE, (10, 10, 1)))
    with raw(web.address, STALL) as stalled, raw(web.address, b"GET"):
        assert stalled.recv(1)
        began = time.monotonic()
        web.close()
        assert time.monotonic() - began < DEADLINE / 4


def test_close_ends_the_stream_of_who_watches(web, monkeypatch):
    monkeypatch.setattr("media.web.AGAIN", DEADLINE)
    show(web, 0)
    stream = pictures(web.address)
    assert next(stream)
    web.close()
    assert len(list(stream)) <= 1  # it ends; the last picture may come once more


@pytest.mark.parametrize("at", ["0", "0.0.0.0:0"])
def test_ctrl_c_ends_a_run_with_viewers_connected(tmp_path, at):
    with served(*FAST, cwd=tmp_path, at=at) as (demo, address):
        streams = [pictures(address), pictures(address)]
        assert all(next(stream) for stream in streams)
        with raw(address, STALL), raw(address, b"GET"):
            demo.send(signal.SIGINT)
            assert demo.finish() == 130
        for stream in streams:
            with contextlib.suppress(ConnectionError, http.client.IncompleteRead):
                list(stream)
    assert demo.err == []


# Who may watch.


@pytest.mark.parametrize("route", ROUTES)
def test_host_of_another_name_is_refused_on_loopback(site, route):
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", "127.0.0.1.x", ""):
        assert status(site, route, Host=host) == 403
    for host in ("localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:80", "[::1]"):
        assert status(site, route, Host=host) == 200
    with raw(site, f"GET /{route} HTTP/1.0\r\n\r\n".encode()) as without:
        assert b" 403 " in without.recv(100)


@pytest.mark.parametrize("route", ROUTES)
def test_other_machines_need_the_token(open_site, route):
    address, _, token = open_site.partition("?token=")
    assert len(token) > 40
    assert status(open_site, route, Host="any.example") == 200
    wrong = ("", "?token=", f"?token={token[:-1]}", f"?token={token}x", "?token=%ff%00", "?token")
    for query in (*wrong, f"?Token={token}"):
        assert status(address + query, route) == 403
        assert status(address + query, route, "HEAD") == 403


def test_token_is_another_in_every_run(open_site):
    with closing(Web("0.0.0.0", 0, CAMERA, COCO_CLASSES)) as another:  # noqa: S104
        assert urlsplit(another.address).query != urlsplit(open_site).query


def test_address_for_other_machines_is_one_at_which_they_reach_this_one(open_site):
    host = urlsplit(open_site).hostname
    assert host not in ("0.0.0.0", "localhost")  # noqa: S104
    with contextlib.suppress(ValueError):
        assert not ipaddress.ip_address(host).is_loopback


def test_loopback_of_ipv6_needs_no_token():
    if not socket.has_ipv6:
        pytest.skip("there is no IPv6")
    with closing(Web("::1", 0, CAMERA, COCO_CLASSES)) as web:
        assert web.address.startswith("http://[::1]:")
        assert urlsplit(web.address).query == ""
        assert status(web.address) == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
def test_only_get_and_head_are_answered(site, method):
    with connect(site, "", method) as response:
        assert response.status == 405
        assert response.headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("route", ROUTES)
def test_head_has_the_headers_of_get_and_no_body(site, route):
    with connect(site, route, "HEAD") as head, connect(site, route) as get:
        names = ("Content-Type", "Content-Security-Policy", "Cache-Control")
        assert [head.headers[name] for name in names] == [get.headers[name] for name in names]
        assert (head.status, head.read()) == (200, b"")


@pytest.mark.parametrize(
    "path",
    ["demo.py", "media/page.html", "../demo.py", "%2e%2e/demo.py", "etc/passwd", "page.html"],
)
def test_no_file_is_reachable(site, path):
    for prefix in ("", "/", "picture/", "//"):
        assert status(site, prefix + path) == 404


def test_every_answer_forbids_scripts_of_others_and_guessing(site):
    for arguments in (("",), ("none",), ("", "POST")):
        with connect(site, *arguments) as response:
            policy = response.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none';")
            assert "unsafe" not in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert response.headers["Server"] == "nanodet"
            # nginx would keep 8 MB of old pictures for a viewer that reads slowly.
            assert response.headers["X-Accel-Buffering"] == "no"


def test_only_pages_of_this_machine_show_it_in_a_frame_and_none_where_there_is_a_token(
    site, open_site
):
    def framers(address):
        with connect(address) as response:
            return response.headers["Content-Security-Policy"].partition("frame-ancestors ")[2]

    assert framers(site) == "http://localhost:* http://127.0.0.1:* http://[::1]:*"
    assert framers(open_site) == "'none'"


def test_token_that_is_given_is_that_of_every_run():
    for host in ("127.0.0.1", "0.0.0.0"):  # noqa: S104
        with closing(Web(host, 0, CAMERA, COCO_CLASSES, token="kitchen-cam")) as web:  # noqa: S106
            assert urlsplit(web.address).query == "token=kitchen-cam"
            assert status(web.address, Host="a-proxy.example.org") == 200
            assert status(web.address.partition("?")[0]) == 403


def test_who_lacks_the_token_is_told_to_open_the_printed_address(site, open_site):
    with connect(open_site.partition("?")[0]) as response:
        assert (response.status, response.read()) == (403, FORBIDDEN)
    with connect(site, Host="my-computer:8000") as response:
        assert (response.status, response.read()) == (403, FORBIDDEN)


# What is refused.


def test_token_without_a_server_is_refused(tmp_path):
    arguments = ("-i", EXAMPLES / "street.mp4", "--token", "kitchen-cam")
    said = "--token: is for --serve. Give --serve PORT, too."
    assert refusal(run_demo(*arguments, cwd=tmp_path)) == said


@pytest.mark.parametrize(
    "source", [CAT, EXAMPLES, EXAMPLES / "*.jpg"], ids=["picture", "folder", "pattern"]
)
def test_pictures_are_not_served(tmp_path, source):
    message = refusal(run_demo("-i", source, "--serve", "0", cwd=tmp_path))
    assert "--serve" in message and str(source) in message
    assert list(tmp_path.iterdir()) == []


def test_port_in_use_is_refused(site, tmp_path):
    port = urlsplit(site).port
    arguments = ("-i", EXAMPLES / "street.mp4", "--serve", port, "--json", "found.jsonl")
    message = refusal_after_the_network(run_demo(*arguments, cwd=tmp_path))
    assert f"127.0.0.1:{port}" in message and "in use" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "a" * 70])
def test_host_that_is_not_this_machine_is_refused(host):
    with pytest.raises(OutputError, match=f"^{host}:0: can't listen there: .*[a-z)]\\.$"):
        Web(host, 0, CAMERA, COCO_CLASSES)


def refusal_after_the_network(demo):
    """The one line on stderr of a run that was refused once its network was loaded."""
    assert demo.returncode == 2
    (line,) = demo.err
    return line


# In a browser.


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """A browser, and the folder of its downloads."""
    folder = tmp_path_factory.mktemp("browser")
    with browser(folder) as driver:
        yield driver, folder


def text_of(driver, name):
    """The text of an element of the page."""
    return driver.find_element("id", name).text


def number_seen(driver):
    """The number of the frame that the page shows."""
    return number_in(driver.find_element("id", "picture").screenshot_as_png)


def test_browser_shows_the_newest_picture_at_once(tab, web, monkeypatch):
    monkeypatch.setattr("media.web.AGAIN", DEADLINE)
    driver, _ = tab
    show(web, 100)
    driver.get(web.address)
    wait_until(lambda: number_seen(driver) == 100, "the picture is shown")
    show(web, 200)
    wait_until(lambda: number_seen(driver) == 200, "the next picture is shown")


def test_browser_shows_numbers_that_change(tab, web, monkeypatch):
    driver, _ = tab
    show(web, 0, *7 * [0])
    driver.get(web.address)
    wait_until(lambda: "person\n7" in text_of(driver, "objects"), "seven persons are shown")
    show(web, 0, 15)
    wait_until(lambda: text_of(driver, "objects") == "cat\n1", "a cat is shown")
    with showing(web, range(600)):
        wait_until(lambda: float(text_of(driver, "fps").strip("–") or 0) > 0, "a rate is shown")
        assert text_of(driver, "inference") == "8 ms"
        assert text_of(driver, "source") == driver.title == "camera 0"
        before = text_of(driver, "delay")
        wait_until(lambda: text_of(driver, "delay") != before, "the delay changes")


def test_browser_saves_a_snapshot(tab, site):
    driver, folder = tab
    driver.get(site)
    wait_until(lambda: text_of(driver, "state") in ("Live", "Lost"), "it is there")
    driver.find_element("id", "snapshot").click()
    (path,) = wait_until(lambda: list(folder.glob("snapshot_????????_??????.jpg")), "it is saved")
    assert number_in(path.read_bytes()) == 7


def test_page_says_that_the_run_has_ended_and_finds_the_next_one(tab):
    driver, _ = tab
    with closing(Web("127.0.0.1", 0, CAMERA, COCO_CLASSES)) as web, showing(web, range(600)):
        driver.get(web.address)
        picture = driver.find_element("id", "picture")
        wait_until(lambda: text_of(driver, "state") == "Live", "the page is live")
        wait_until(lambda: picture.size["height"] > 400, "the picture is shown")
    wait_until(lambda: text_of(driver, "state").startswith("Ended"), "the page says so")
    assert [text_of(driver, name) for name in ("fps", "inference", "delay")] == ["–", "–", ""]
    assert picture.size["height"] > 400  # the last one
    port = urlsplit(web.address).port
    with closing(Web("127.0.0.1", port, CAMERA, COCO_CLASSES)) as web, showing(web, range(600)):
        wait_until(lambda: text_of(driver, "state") == "Live", "the page is live again")
        before = number_seen(driver)
        wait_until(lambda: number_seen(driver) != before, "the picture moves")


def test_page_fetches_a_picture_again_whose_stream_was_dropped(tab, web, monkeypatch):
    driver, _ = tab
    kind, whole = media.web.ROUTES["/picture"]
    dropped = kind, lambda *who: islice(whole(*who), 5)
    monkeypatch.setitem(media.web.ROUTES, "/picture", dropped)
    with showing(web, itertools.cycle(range(600))):
        driver.get(web.address)
        wait_until(lambda: text_of(driver, "state") == "Live", "the page is live")
        first = wait_until(lambda: number_seen(driver), "the picture is shown")
        wait_until(lambda: number_seen(driver) > first + 50, "the next stream is shown")


def test_hidden_page_fetches_nothing(tab, web):
    driver, _ = tab
    with showing(web, itertools.cycle(range(600))):
        driver.get(web.address)
        wait_until(lambda: web._watching, "the page is live")
        shown = driver.current_window_handle
        driver.switch_to.new_window("tab")
        wait_until(lambda: not web._watching, "its stream is closed")
        driver.close()
        driver.switch_to.window(shown)
        wait_until(lambda: web._watching, "the page is back")


def test_pause_holds_the_picture_of_this_page_only(tab, web):
    driver, _ = tab
    with showing(web, itertools.cycle(range(600))):
        driver.get(web.address)
        wait_until(lambda: number_seen(driver), "the picture is shown")
        driver.find_element("id", "pause").send_keys(" ")  # by keyboard
        still = driver.find_element("id", "still")
        wait_until(lambda: not web._watching, "its stream is closed")
        held = number_in(still.screenshot_as_png)
        assert next(pictures(web.address))  # others go on
        assert number_in(still.screenshot_as_png) == held
        assert text_of(driver, "pause") == "Go on"
        driver.find_element("tag name", "body").send_keys("p")
        wait_until(lambda: number_seen(driver) not in (None, held), "the picture moves again")


def test_label_of_ten_thousand_letters_leaves_the_page_its_width(tab):
    driver, _ = tab
    with closing(Web("127.0.0.1", 0, CAMERA, ["x" * 10_000])) as web:
        show(web, 0, 0)
        driver.get(web.address)
        wait_until(lambda: text_of(driver, "objects").startswith("x"), "the label is shown")
        widths = "const e = document.documentElement; return [e.scrollWidth, e.clientWidth]"
        assert len({*driver.execute_script(widths)}) == 1


@pytest.mark.parametrize("windows", [5])
def test_many_windows_in_sight_each_show_pictures_and_save_snapshots(tab, web, windows):
    driver, _ = tab
    first = driver.current_window_handle
    show(web, 7)
    opened = []
    try:
        for _ in range(windows - 1):
            driver.switch_to.new_window("window")
            opened.append(driver.current_window_handle)
            driver.get(web.address)
            wait_until(lambda: text_of(driver, "source") == "camera 0", "the page is loaded")
            fetch = "const done = arguments[0]; fetch('snapshot.jpg').then(r => done(r.status))"
            assert driver.execute_async_script(fetch) == 200
    finally:
        for handle in opened:
            driver.switch_to.window(handle)
            driver.close()
        driver.switch_to.window(first)
