"""tools/download_model.py against a real HTTP server on loopback."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import ROOT
from tool_helpers import assert_refused, run_tool

pytest.importorskip("pooch", reason="pip install pooch")
import download_model

TOOL = ROOT / "tools" / "download_model.py"
DATA = bytes(range(256)) * 2000  # 512,000 bytes: several reads
NAME = "nanodet-m_416"


class Server(ThreadingHTTPServer):
    """Answers each GET with `answer(handler)`, and counts them."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked = right, 0
        self.reached, self.over = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/x.onnx"

    def handle_error(self, request, client_address):
        """A client that went away is expected here."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked += 1
        self.server.reached.set()
        self.server.answer(self)

    def log_message(self, *args):
        pass


def send(handler, status=200, body=DATA):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(DATA)))
    handler.end_headers()
    handler.wfile.write(body)


def right(handler):
    send(handler)


def truncated(handler):
    send(handler, body=DATA[:1000])


def stalled(handler):
    truncated(handler)
    handler.server.over.wait()


def wrong(handler):
    send(handler, body=DATA[::-1])


def status(code):
    return lambda handler: send(handler, code)


def hung_up(handler):
    """Closes the connection without an answer."""


@pytest.fixture
def server(monkeypatch):
    """The place of a known network, without the proxies of who runs the tests."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    server = Server()
    known = download_model.NETWORKS[NAME]
    here = known._replace(url=server.url, sha256=hashlib.sha256(DATA).hexdigest())
    monkeypatch.setitem(download_model.NETWORKS, NAME, here)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def tool(capsys):
    """Run the tool; returns exit code, stdout and stderr."""
    return lambda *args: run_tool(download_model, capsys, *args)


def test_list_shows_every_network_with_all_that_is_known(tool):
    code, out, _ = tool("--list")
    head = [word.strip() for word in out.splitlines()[0].split("|")]
    assert (code, head[1:-1]) == (0, ["name", "size", "published AP", "address"])
    for name, network in download_model.NETWORKS.items():
        (row,) = (row for row in out.splitlines() if row.startswith(f"| {name} "))
        words = (f" {network.megabytes} MB ", f" {network.ap} ", f" {network.url} ")
        assert all(word in row for word in words)
        assert network.url.startswith("https://") and len(network.sha256) == 64


def test_file_is_saved_once_and_readable_as_the_umask_says(server, tool, tmp_path):
    code, out, err = tool(NAME, "-o", tmp_path)
    path = tmp_path / f"{NAME}.onnx"
    assert (code, err) == (0, "") and out.startswith(f"{path}: saved, 512000 bytes")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == DATA
    (tmp_path / "reference").touch()
    assert path.stat().st_mode == (tmp_path / "reference").stat().st_mode
    assert "already here, nothing to do" in tool(f"{NAME}.onnx", "-o", tmp_path)[1]
    assert server.asked == 1


def test_folder_is_where_the_demo_looks_if_none_is_given():
    assert download_model.parse([NAME]).output == ROOT


def test_mirror_is_asked_in_place_of_the_address_known(server, tool, tmp_path, monkeypatch):
    gone = download_model.NETWORKS[NAME]._replace(url="http://127.0.0.1:1/gone.onnx")
    monkeypatch.setitem(download_model.NETWORKS, NAME, gone)
    assert tool(NAME, "-o", tmp_path, "--url", server.url)[0] == 0
    assert (tmp_path / f"{NAME}.onnx").read_bytes() == DATA


@pytest.mark.parametrize(
    "answer, words",
    [
        (status(404), "HTTP status 404"),
        (truncated, "more expected"),
        (wrong, hashlib.sha256(DATA).hexdigest()),
    ],
)
def test_fault_of_the_server_is_named_and_leaves_nothing(server, tool, tmp_path, answer, words):
    server.answer = answer
    result = tool(NAME, "-o", tmp_path)
    assert_refused(download_model, result, server.url, "--url", words, code=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url, words",
    [("http://127.0.0.1:1/x", "Connection refused"), ("file:///etc/passwd", "No connection")],
)
def test_address_that_nobody_can_read_is_named(server, tool, tmp_path, url, words):
    result = tool(NAME, "-o", tmp_path, "--url", url)
    assert_refused(download_model, result, f"{url}: ", words, code=1)


@pytest.mark.parametrize("answer", [status(403), hung_up])
def test_error_does_not_show_password_or_query(server, tool, tmp_path, answer):
    server.answer = answer
    url = f"http://me:secret@127.0.0.1:{server.server_port}/x.onnx?key=secret"
    result = tool(NAME, "-o", tmp_path, "--url", url)
    assert_refused(download_model, result, server.url, code=1)
    assert "secret" not in result[2]


@pytest.mark.parametrize(
    "make", [lambda path: path.symlink_to("/nowhere"), lambda path: path.write_bytes(b"other")]
)
def test_anything_else_of_the_name_is_kept(server, tool, tmp_path, make):
    path = tmp_path / f"{NAME}.onnx"
    make(path)
    assert_refused(download_model, tool(NAME, "-o", tmp_path), path, "--output")
    assert path.is_symlink() or path.read_bytes() == b"other"
    assert server.asked == 0


@pytest.mark.parametrize(
    "args, words",
    [
        ([], ["NAME", "--list"]),
        (["object_detection_nanodet_2022nov.onnx"], ["not a known network", "--list"]),
        ([NAME, "-o", "/nowhere"], ["/nowhere", "no such folder"]),
    ],
)
def test_arguments_that_can_not_work_are_named(tool, args, words):
    assert_refused(download_model, tool(*args), *words)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_signal_ends_it_and_leaves_nothing(server, tmp_path):
    server.answer = stalled
    arguments = [sys.executable, TOOL, NAME, "-o", tmp_path, "--url", server.url]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    assert server.reached.wait(30)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (143, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="ulimit is POSIX")
def test_file_that_can_not_be_written_is_named_and_leaves_nothing(server, tmp_path):
    tool = [sys.executable, TOOL, NAME, "-o", tmp_path, "--url", server.url]
    limited = ["sh", "-c", 'ulimit -f 100 && exec "$@"', "sh", *tool]
    result = subprocess.run(limited, capture_output=True, text=True)
    result = result.returncode, result.stdout, result.stderr
    assert_refused(download_model, result, tmp_path, "--output", code=1)
    assert list(tmp_path.iterdir()) == []
