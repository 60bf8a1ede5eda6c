"""tools/download_model.py against a real HTTP server on loopback that does all kinds of wrong."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT
from tool_helpers import assert_refused, run_tool

pytest.importorskip("pooch", reason="pip install pooch")
import download_model

TOOL = ROOT / "tools" / "download_model.py"
BUNDLED = "object_detection_nanodet_2022nov.onnx"
DATA = bytes(range(256)) * 2000  # 512,000 bytes: several reads
SHA256 = hashlib.sha256(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers each GET with `answer(handler)`, and keeps the addresses asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked = right, []
        self.reached, self.over = threading.Event(), threading.Event()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/x.onnx"

    def handle_error(self, request, client_address):
        """A client that went away is expected here."""


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        self.server.reached.set()
        self.server.answer(self)

    def log_message(self, *args):
        pass


def send(handler, status=200, body=b"", **headers):
    handler.send_response(status)
    for name, value in {"Content_Length": str(len(body)), **headers}.items():
        if value is not None:
            handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def right(handler):
    send(handler, body=DATA)


def truncated(handler):
    send(handler, body=DATA[:1000], Content_Length=str(len(DATA)))


def truncated_without_length(handler):
    send(handler, body=DATA[:1000], Content_Length=None)


def silent(handler):
    handler.server.over.wait()


def stalled(handler):
    truncated(handler)
    handler.server.over.wait()


def wrong(handler):
    send(handler, body=DATA[::-1])


def status(code, **headers):
    return lambda handler: send(handler, code, b"<html>sorry</html>", **headers)


def redirect(location):
    return status(302, Location=location)


def garbage(handler):
    handler.wfile.write(b"\x00\xffSSH-2.0-x\r\n\r\n")


def hung_up(handler):
    """Closes the connection without an answer."""


@contextlib.contextmanager
def serving():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Without the proxies of who runs the tests, here and in child processes."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def tool(capsys):
    """Run the tool; returns exit code, stdout and stderr."""
    return lambda *args: run_tool(download_model, capsys, *args)


def source(server):
    return ("--url", server.url, "--sha256", SHA256, "--retries", "0")


def assert_error(result, code, *words):
    assert_refused(download_model, result, *words, code=code)


# What is known


def test_list_shows_every_network_with_all_that_is_known(tool):
    code, out, _ = tool("--list")
    assert code == 0
    for row, network in zip(out.splitlines()[1:], download_model.NETWORKS, strict=True):
        assert row.split()[0] == network.name
        assert f"{network.ap:.3f}" in row if network.ap else " - " in row
        assert f"{network.megabytes} MB" in row if network.megabytes else " - " in row
        assert network.licence in row and network.url in row
        assert ("needs --sha256" in row) == (network.sha256 is None)
        assert network.url.startswith("https://")
        assert network.name + ".onnx" != BUNDLED


# What goes right


@pytest.mark.parametrize("name", ["mine.onnx", "nanodet-plus-m_320", "nanodet-plus-m_320.onnx"])
def test_file_is_saved_once_and_readable_as_the_umask_says(server, tool, tmp_path, name):
    code, out, err = tool(name, "-o", tmp_path, *source(server))
    path = tmp_path / (name.removesuffix(".onnx") + ".onnx")
    assert (code, err) == (0, "") and str(path) in out
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == DATA
    (tmp_path / "reference").touch()
    assert path.stat().st_mode == (tmp_path / "reference").stat().st_mode
    assert "already here, nothing to do" in tool(name, "-o", tmp_path, *source(server))[1]
    assert len(server.asked) == 1


def test_folder_is_where_the_demo_looks_if_none_is_given():
    assert download_model.parse(["mine.onnx"]).output == ROOT


def test_hash_may_be_in_capitals_and_have_its_algorithm(server, tool, tmp_path):
    hash = f"sha256:{SHA256.upper()}"
    for done in ("saved", "already here"):
        code, out, _ = tool("mine.onnx", "-o", tmp_path, "--url", server.url, "--sha256", hash)
        assert code == 0 and done in out


@pytest.mark.parametrize("first", [status(503), truncated])
def test_download_starts_again_after_a_fault(server, tmp_path, first):
    answers = iter([first, right])
    server.answer = lambda handler: next(answers)(handler)
    arguments = [sys.executable, TOOL, "mine.onnx", "-o", tmp_path, *source(server)[:-2]]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert "attempt the download again" in result.stderr and server.url not in result.stderr
    assert len(server.asked) == 2
    assert (tmp_path / "mine.onnx").read_bytes() == DATA


def test_redirect_is_followed(server, tool, tmp_path):
    server.answer = lambda handler: (right if handler.path == "/b" else redirect("/b"))(handler)
    assert tool("mine.onnx", "-o", tmp_path, *source(server))[0] == 0
    assert server.asked == ["/x.onnx", "/b"]


def test_proxy_of_the_environment_is_asked(server, tool, tmp_path, monkeypatch):
    with serving() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_port}")
        assert tool("mine.onnx", "-o", tmp_path, *source(server))[0] == 0
        assert (proxy.asked, server.asked) == ([server.url], [])


def test_terminal_shows_progress(server, tool, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, _, err = tool("mine.onnx", "-o", tmp_path, *source(server))
    assert code == 0 and "100%" in err


# What goes wrong


FAULTS = {  # case: what the server does, what the error says
    "not found": (status(404), ["HTTP status 404"]),
    "truncated": (truncated, ["more expected"]),
    "truncated, no length": (truncated_without_length, ["hash", SHA256]),
    "wrong bytes": (wrong, ["hash", SHA256]),
    "not HTTP": (garbage, ["SSH"]),
    "hung up": (hung_up, ["closed connection without response"]),
    "to file:": (redirect("file:///etc/passwd"), ["file:///etc/passwd"]),
    "to itself": (redirect("/circle"), ["Exceeded 30 redirects"]),
}


@pytest.mark.parametrize("answer, words", FAULTS.values(), ids=FAULTS)
def test_fault_of_the_server_is_named_and_leaves_nothing(server, tool, tmp_path, answer, words):
    server.answer = answer
    result = tool("mine.onnx", "-o", tmp_path, *source(server))
    assert_error(result, 1, "--url", *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", [silent, stalled])
def test_stalled_server_is_left_after_the_timeout(server, tool, tmp_path, answer):
    server.answer = answer
    result = tool("mine.onnx", "-o", tmp_path, *source(server), "--timeout", "1")
    assert_error(result, 1, server.url, "no data for 1 s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", [silent, stalled])
@pytest.mark.parametrize("number, exit_code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_signal_ends_it_and_leaves_nothing(server, tmp_path, answer, number, exit_code):
    server.answer = answer
    arguments = [sys.executable, TOOL, "mine.onnx", "-o", tmp_path, *source(server)]
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    assert server.reached.wait(30)
    assert len(list(tmp_path.iterdir())) == 1  # a temporary file
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (exit_code, "download_model.py: error: interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "host/x.onnx", "http://[bad/"])
def test_address_that_is_not_http_is_named(tool, tmp_path, url):
    result = tool("mine.onnx", "-o", tmp_path, "--sha256", SHA256, "--retries", 0, "--url", url)
    assert_error(result, 1, f"{url}: ", "--url")


def test_nobody_listening_is_named(tool, tmp_path):
    with serving() as gone:
        pass
    assert_error(tool("mine.onnx", "-o", tmp_path, *source(gone)), 1, gone.url, "refused")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", [status(403), truncated, hung_up, wrong])
def test_error_does_not_show_password_or_query(server, tool, tmp_path, answer):
    server.answer = answer
    url = f"http://me:secret@127.0.0.1:{server.server_port}/x.onnx?key=secret"
    result = tool("mine.onnx", "-o", tmp_path, *source(server), "--url", url)
    assert_error(result, 1, server.url)
    assert "secret" not in result[2]


@pytest.mark.parametrize(
    "make",
    [Path.mkdir, lambda path: path.symlink_to("/nowhere"), lambda path: path.write_bytes(b"other")],
)
def test_anything_else_of_the_name_is_kept(server, tool, tmp_path, make):
    path = tmp_path / "mine.onnx"
    make(path)
    assert_error(tool("mine.onnx", "-o", tmp_path, *source(server)), 2, str(path), "--output")
    assert path.is_dir() or path.is_symlink() or path.read_bytes() == b"other"
    assert server.asked == []


def test_name_with_folders_is_saved_in_the_folder_named(server, tool, tmp_path):
    (tmp_path / "inside").mkdir()
    assert tool("../x.onnx", "-o", tmp_path / "inside", *source(server))[0] == 0
    assert [path.name for path in tmp_path.rglob("*")] == ["inside", "x.onnx"]
    assert (tmp_path / "inside" / "x.onnx").exists()


@pytest.mark.parametrize(
    "args, words",
    [
        ([], ["NAME", "--list"]),
        (["yolo"], ["yolo", "not a known network", "--list"]),
        ([BUNDLED], [BUNDLED, "not a known network", "--list"]),
        (["mine.onnx", "--sha256", SHA256], ["mine.onnx", "--url"]),
        (["mine.onnx", "--url", "http://127.0.0.1/"], ["mine.onnx", "--sha256"]),
        (["nanodet-plus-m_320"], ["nanodet-plus-m_320", "--sha256"]),
        (["nanodet-m_416", "-o", "/nowhere"], ["/nowhere", "no such folder"]),
    ],
)
def test_arguments_that_can_not_work_are_named(tool, args, words):
    assert_error(tool(*args), 2, *words)


@pytest.mark.skipif(os.name != "posix", reason="ulimit is POSIX")
def test_file_that_can_not_be_written_is_named_and_leaves_nothing(server, tmp_path):
    tool = [sys.executable, TOOL, "mine.onnx", "-o", tmp_path, *source(server)]
    limited = ["sh", "-c", 'ulimit -f 100 && exec "$@"', "sh", *tool]
    result = subprocess.run(limited, capture_output=True, text=True)
    assert_error((result.returncode, result.stdout, result.stderr), 1, str(tmp_path), "--output")
    assert list(tmp_path.iterdir()) == []
