"""The live view in a browser: what it shows, whom it serves, and that detection never waits."""

import concurrent.futures
import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from itertools import islice
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
from demo_process import CAT, DEADLINE, EXAMPLES, FAST, STREET, Demo, refusal, run_demo
from fault_helpers import broken
from live_helpers import (
    MjpegServer,
    browser,
    film,
    find_window,
    number_of,
    numbered_frame,
    numbered_video,
    press,
    screen,
    wait_until,
)

ROUTES = ("", "picture", "numbers", "snapshot.jpg")


def steady(stream):
    """Send numbered frames until the end of the test."""
    stream.numbered()


def noisy(stream):
    """Send large pictures until the end of the test."""
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    while not stream.server.stopping.wait(0.02):
        stream.send(noise)


def changed(**settings):
    """A script of the demo with some of the server's settings changed."""
    lines = (f"web.{name} = {value!r}" for name, value in settings.items())
    return broken("from media import web\n" + "\n".join(lines))


@contextlib.contextmanager
def served(*arguments, cwd, send=steady, at="0", **options):
    """Serve a made-up stream; yields the run and its address."""
    with (
        MjpegServer(send) as server,
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


def pictures(address):
    """The JPEGs of the picture's stream, until it ends."""
    with connect(address, "picture") as response:
        data, part = b"", b"\r\n--part\r\nContent-Type: image/jpeg\r\n\r\n"
        while block := response.read1():
            *whole, data = (data + block).split(part)
            yield from filter(None, whole)


def numbers(address):
    """What the page tells, until it ends."""
    with connect(address, "numbers") as response:
        while line := response.readline():
            if line.startswith(b"data: "):
                yield json.loads(line.removeprefix(b"data: "))


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


STALL = b"GET /picture HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of a stream that is served on loopback."""
    with served(*FAST, cwd=tmp_path_factory.mktemp("site")) as (_, address):
        yield address


# What is shown.


def test_stream_moves_without_a_display(site):
    shown = [number_in(jpeg) for jpeg in islice(pictures(site), 10)]
    assert shown == sorted(set(shown))


def test_numbers_tell_what_json_tells(tmp_path):
    street = cv2.imread(str(STREET))

    def send(stream):
        while not stream.server.stopping.wait(0.02):
            stream.send(street)

    with served("--json", "found.jsonl", cwd=tmp_path, send=send) as (demo, address):
        seen = next(event for event in numbers(address) if event["rate"])
        demo.send(signal.SIGINT)
        demo.finish()
    found = json.loads((tmp_path / "found.jsonl").read_text().splitlines()[0])["detections"]
    labels = [each["label"] for each in found]
    assert seen["objects"] == {label: labels.count(label) for label in labels}
    assert 0 < seen["age"] < DEADLINE
    assert 0 < seen["milliseconds"] < 1000 * seen["age"]


def test_age_of_the_picture_grows_while_the_stream_is_silent(tmp_path):
    def some(stream):
        stream.numbered(30)
        stream.silence()

    with served(*FAST, cwd=tmp_path, send=some) as (_, address):
        assert any(event["age"] > 1 for event in islice(numbers(address), 40))
        assert number_in(next(pictures(address))) == 29


def test_video_plays_at_its_pace_beside_its_result_and_json(tmp_path):
    numbered_video(tmp_path / "clip.mp4", 30, rate=15)
    arguments = ("-i", "clip.mp4", "--serve", "0", "--json", "found.jsonl", *FAST)
    with Demo(*arguments, cwd=tmp_path) as demo:
        shown = [number_in(jpeg) for jpeg in pictures(address_of(demo))]
        assert demo.finish() == 0
    assert demo.err == []
    assert len(shown) > 2 and shown == sorted(shown)
    assert film(tmp_path / "result.mp4")["frames"] == 30
    assert len((tmp_path / "found.jsonl").read_text().splitlines()) == 30
    rate = float(next(line for line in demo.out if "a second" in line).split()[-3])
    assert rate < 16  # 29 intervals of 1/15 s


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
        MjpegServer(steady) as server,
        Demo("-i", server.address, "--serve", "0", "-q", *FAST, cwd=tmp_path) as demo,
    ):
        address = demo.wait_line(demo.err, "live view").split()[-1]
        assert status(address) == 200


def test_snapshot_is_the_newest_picture(site):
    before = number_in(next(pictures(site)))
    with connect(site, "snapshot.jpg") as response:
        assert response.headers["Content-Type"] == "image/jpeg"
        number = number_in(response.read())
    assert before <= number <= number_in(next(pictures(site)))


def test_snapshot_before_the_first_picture_is_refused(tmp_path):
    started = "web.Web.write = lambda *_: None\n"
    with served(*FAST, cwd=tmp_path, script=broken("from media import web\n" + started)) as (
        _,
        address,
    ):
        assert status(address, "snapshot.jpg") == 503


# Who watches, and what it costs.


COUNTING = broken("""
encode = cv2.imencode
def counted(*arguments):
    print("encoded", file=sys.stderr, flush=True)
    return encode(*arguments)
cv2.imencode = counted
""")


def test_picture_is_encoded_once_for_ten_viewers(tmp_path):
    def watch(address):
        return [number_in(jpeg) for jpeg in islice(pictures(address), 20)]

    with (
        served(*FAST, "--json", "found.jsonl", cwd=tmp_path, script=COUNTING) as (demo, address),
        concurrent.futures.ThreadPoolExecutor(10) as pool,
    ):
        shown = [job.result() for job in [pool.submit(watch, address) for _ in range(10)]]
        demo.send(signal.SIGINT)
        demo.finish()
    assert all(numbers == sorted(set(numbers)) for numbers in shown)
    encoded = demo.err.count("encoded\n")
    assert 20 <= encoded <= len((tmp_path / "found.jsonl").read_text().splitlines())


def test_nothing_is_encoded_while_nobody_watches(tmp_path):
    with served(*FAST, "--json", "found.jsonl", cwd=tmp_path, script=COUNTING) as (demo, address):
        assert status(address) == 200
        assert all(islice(numbers(address), 4))
    assert demo.err == []


def test_detection_does_not_wait_for_a_stalled_viewer(tmp_path):
    arguments = (*FAST, "--json", "found.jsonl")
    script = changed(SEND_TIMEOUT=DEADLINE)
    with served(*arguments, cwd=tmp_path, send=noisy, script=script) as (demo, address):
        with raw(address, STALL):
            assert all(islice(pictures(address), 50))  # 3 MB, more than a connection buffers
        demo.send(signal.SIGINT)
        demo.finish()
    assert (tmp_path / "found.jsonl").read_text().count("\n") >= 49


def test_stalled_viewer_is_dropped_in_time(tmp_path):
    script = changed(SEND_TIMEOUT=1, CONNECTIONS=1)
    with (
        served(*FAST, cwd=tmp_path, send=noisy, script=script) as (_, address),
        raw(address, STALL),
    ):
        wait_until(lambda: status(address) == 503, "it has the only place")
        wait_until(lambda: status(address) == 200, "its place is free")


def test_slow_request_is_dropped_in_time(tmp_path):
    with (
        served(*FAST, cwd=tmp_path, script=changed(HEAD_TIMEOUT=1)) as (_, address),
        raw(address, b"GET / HTTP/1.1\r\nX: ") as slow,
        contextlib.suppress(ConnectionError),
    ):
        while True:
            slow.sendall(b"x")  # each alone is soon enough
            slow.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                assert slow.recv(1) == b""
                break
            assert status(address) == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        *(b"\x16\x03\x01\r\n\r\n", b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/x\r\n\r\n"),
        *(b"GET / HTTP/1.1\r\n" + n * b"X: y\r\n" + b"\r\n" for n in (200, 20_000)),
    ],
    ids=["tls", "empty", "one word", "version", "too many", "too long"],
)
def test_what_is_no_request_ends_its_connection_only(site, request_bytes):
    answer = b""
    with raw(site, b"") as connection, contextlib.suppress(ConnectionError):
        connection.sendall(request_bytes)
        while block := connection.recv(4096):
            answer += block
    assert b" 200 " not in answer
    assert status(site) == 200


def test_number_of_viewers_is_bounded(tmp_path):
    with served(*FAST, cwd=tmp_path, script=changed(CONNECTIONS=2)) as (_, address):
        first, second = pictures(address), numbers(address)
        assert next(first) and next(second)
        assert status(address) == 503
        first.close()
        wait_until(lambda: status(address) == 200, "a place is free")


@pytest.mark.parametrize("at", ["0", "0.0.0.0:0"])
def test_ctrl_c_ends_within_a_second_with_viewers_connected(tmp_path, at):
    with (
        served(*FAST, cwd=tmp_path, send=noisy, at=at) as (demo, address),
        concurrent.futures.ThreadPoolExecutor(11) as pool,
    ):
        watching = [pool.submit(lambda: len(list(pictures(address)))) for _ in range(10)]
        watching += [pool.submit(lambda: len(list(numbers(address))))]
        assert all(islice(pictures(address), 20))
        with raw(address, STALL), raw(address, b"GET"):
            demo.send(signal.SIGINT)
            started = time.monotonic()
            assert demo.finish() == 130
            assert time.monotonic() - started < 2  # one of them for a busy machine
        for job in watching:
            with contextlib.suppress(ConnectionError, http.client.IncompleteRead):
                assert job.result() > 0
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


@pytest.fixture(scope="module")
def open_site(tmp_path_factory):
    """The address of a stream that is served to other machines."""
    folder = tmp_path_factory.mktemp("open_site")
    with served(*FAST, cwd=folder, at="0.0.0.0:0") as (_, address):
        yield address


@pytest.mark.parametrize("route", ROUTES)
def test_other_machines_need_the_token(open_site, route):
    address, _, token = open_site.partition("?token=")
    assert len(token) > 40
    assert status(open_site, route, Host="any.example") == 200
    wrong = ("", "?token=", f"?token={token[:-1]}", f"?token={token}x", "?token=%ff%00", "?token")
    for query in (*wrong, f"?Token={token}"):
        assert status(address + query, route) == 403
        assert status(address + query, route, "HEAD") == 403


def test_token_is_another_in_every_run(open_site, tmp_path):
    with served(*FAST, cwd=tmp_path, at="0.0.0.0:0") as (_, address):
        assert urlsplit(address).query != urlsplit(open_site).query


def test_loopback_of_ipv6_needs_no_token(tmp_path):
    if not socket.has_ipv6:
        pytest.skip("there is no IPv6")
    with served(*FAST, cwd=tmp_path, at="[::1]:0") as (_, address):
        assert address.startswith("http://[::1]:")
        assert urlsplit(address).query == ""
        assert status(address) == 200


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
            assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert "Python" not in response.headers["Server"]


# What is refused.


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


@pytest.mark.parametrize("at", ["192.0.2.1:0", "no.such.host.invalid:0"])
def test_host_that_is_not_this_machine_is_refused(tmp_path, at):
    message = refusal_after_the_network(
        run_demo("-i", EXAMPLES / "street.mp4", "--serve", at, cwd=tmp_path)
    )
    assert at in message
    assert list(tmp_path.iterdir()) == []


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


def test_browser_shows_the_newest_picture_at_once(tab, tmp_path):
    driver, _ = tab
    go_on = threading.Event()

    def send(stream):
        while not go_on.wait(0.02):
            stream.send(numbered_frame(100))
        stream.send(numbered_frame(200))
        stream.silence()

    with served(*FAST, cwd=tmp_path, send=send, script=changed(AGAIN=DEADLINE)) as (_, address):
        driver.get(address)
        wait_until(lambda: number_seen(driver) == 100, "the picture is shown")
        go_on.set()
        wait_until(lambda: number_seen(driver) == 200, "the last picture is shown")


def test_browser_shows_numbers_that_change(tab, tmp_path):
    driver, _ = tab

    def send(stream):
        pictures = [cv2.imread(str(path)) for path in (STREET, CAT)]
        while not stream.server.stopping.wait(0.02):
            stream.send(pictures[stream.server.sent // 50 % 2])

    with served(cwd=tmp_path, send=send) as (_, address):
        driver.get(address)
        for objects in ("person\n7", "cat\n1", "person\n7"):
            wait_until(lambda o=objects: o in text_of(driver, "objects"), f"{objects} is shown")
        for name in ("rate", "inference", "age"):
            before = text_of(driver, name)
            assert float(before.split()[0]) > 0
            wait_until(lambda n=name, b=before: text_of(driver, n) != b, f"{name} changes")


def test_browser_saves_a_snapshot(tab, site):
    driver, folder = tab
    driver.get(site)
    wait_until(lambda: text_of(driver, "state") == "Live", "the page is live")
    before = number_seen(driver)
    driver.find_element("id", "snapshot").click()
    (path,) = wait_until(lambda: list(folder.glob("snapshot_????????_??????.jpg")), "it is saved")
    assert number_in(path.read_bytes()) >= before


def test_page_says_that_the_run_has_ended_and_finds_the_next_one(tab, tmp_path):
    driver, _ = tab
    with served(*FAST, cwd=tmp_path) as (demo, address):
        driver.get(address)
        picture = driver.find_element("id", "picture")
        wait_until(lambda: text_of(driver, "state") == "Live", "the page is live")
        wait_until(lambda: picture.size["height"] > 400, "the picture is shown")
        demo.send(signal.SIGINT)
        demo.finish()
    wait_until(lambda: text_of(driver, "state").startswith("Ended"), "the page says so")
    assert picture.size["height"] > 400  # the last one
    with served(*FAST, cwd=tmp_path, at=str(urlsplit(address).port)):
        wait_until(lambda: text_of(driver, "state") == "Live", "the page is live again")
        before = number_seen(driver)
        wait_until(lambda: number_seen(driver) != before, "the picture moves")


def test_page_fetches_a_picture_again_whose_stream_was_dropped(tab, tmp_path):
    driver, _ = tab
    dropped = """
from media import web
route, pictures = "/picture", web.Web.pictures
web.ROUTES[route] = web.ROUTES[route][0], lambda *who: itertools.islice(pictures(*who), 5)
"""
    with served(*FAST, cwd=tmp_path, script=broken(dropped)) as (_, address):
        driver.get(address)
        wait_until(lambda: text_of(driver, "state") == "Live", "the page is live")
        first = wait_until(lambda: number_seen(driver), "the picture is shown")
        wait_until(lambda: number_seen(driver) > first + 50, "the next stream is shown")


def test_hidden_page_fetches_nothing(tab, tmp_path):
    driver, _ = tab
    with served(*FAST, cwd=tmp_path, script=changed(CONNECTIONS=2)) as (_, address):
        driver.get(address)
        wait_until(lambda: text_of(driver, "state") == "Live", "the page is live")
        wait_until(lambda: status(address) == 503, "the page has two connections")
        shown = driver.current_window_handle
        driver.switch_to.new_window("tab")
        wait_until(lambda: status(address) == 200, "they are closed")
        driver.close()
        driver.switch_to.window(shown)
        wait_until(lambda: status(address) == 503, "the page is back")
