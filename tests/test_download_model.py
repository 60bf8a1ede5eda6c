"""tools/download_model.py against a real HTTP server on loopback that does all kinds of wrong."""

import contextlib
import hashlib
import os
import shutil
import signal
import ssl
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import command
import pytest
from conftest import ROOT, absent

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
        self.answer, self.asked, self.scheme = right, [], "http"
        self.reached, self.over = threading.Event(), threading.Event()

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.server_port}/x.onnx"

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
    """Run the tool in this process; returns exit code, stdout and stderr."""

    def run(*args):
        try:
            code = command.run(lambda: download_model.main(list(map(str, args))))
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    command.start("download_model.py")
    return run


def source(server):
    return ("--url", server.url, "--sha256", SHA256, "--retries", "0")


def assert_error(result, exit_code, *words):
    """One line says what is wrong."""
    code, out, err = result
    assert (code, out) == (exit_code, ""), err
    (line,) = err.splitlines()
    assert line.startswith("download_model.py: error: ") and line.isprintable()
    assert [word for word in words if word not in line] == []


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


def test_folder_is_the_repository_if_none_is_given():
    args = download_model.parse(["mine.onnx", "--sha256", f"sha256:{SHA256.upper()}"])
    assert (args.output, args.sha256) == (ROOT, SHA256)


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


@pytest.mark.parametrize("location", ["/right", "//127.0.0.1:{port}/right", "{url}?right"])
def test_redirect_is_followed(server, tool, tmp_path, location):
    there = location.format(port=server.server_port, url=server.url)
    server.answer = lambda handler: (right if "right" in handler.path else redirect(there))(handler)
    assert tool("mine.onnx", "-o", tmp_path, *source(server))[0] == 0
    assert len(server.asked) == 2


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
def test_proxy_of_the_environment_is_asked(server, tool, tmp_path, monkeypatch, variable):
    with serving() as proxy:
        monkeypatch.setenv(variable, f"http://127.0.0.1:{proxy.server_port}")
        assert tool("mine.onnx", "-o", tmp_path, *source(server))[0] == 0
        assert (proxy.asked, server.asked) == ([server.url], [])


def test_terminal_shows_progress(server, tmp_path):
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    arguments = [sys.executable, TOOL, "mine.onnx", "-o", tmp_path, *source(server)]
    process = subprocess.Popen(arguments, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        for piece in iter(lambda: os.read(terminal, 4096), b""):
            shown += piece
    os.close(terminal)
    assert process.wait() == 0
    assert b"100%" in shown


# What goes wrong


FAULTS = {  # case: what the server does, what the error says
    "not found": (status(404), ["HTTP status 404"]),
    "server error": (status(500), ["HTTP status 500"]),
    "truncated": (truncated, ["more expected"]),
    "truncated, no length": (truncated_without_length, ["hash", SHA256]),
    "length no number": (status(200, Content_Length="many"), ["'many'"]),
    "wrong bytes": (wrong, ["hash", SHA256]),
    "web page": (status(200), ["hash", SHA256]),
    "not HTTP": (garbage, ["SSH"]),
    "hung up": (hung_up, ["closed connection without response"]),
    "to file:": (redirect("file:///etc/passwd"), ["file:///etc/passwd"]),
    "to ftp:": (redirect("ftp://127.0.0.1/x"), ["ftp://127.0.0.1/x"]),
    "to nonsense": (redirect("http://[bad/"), ["IPv6"]),
    "to escape codes": (redirect("ftp://a\x1bc\x07/"), ["ftp:"]),
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


NAMES = ["../x.onnx", "/nowhere/x.onnx", "a/x.onnx", "a\\x.onnx", "C:x.onnx", "..onnx", "a..onnx"]


@pytest.mark.parametrize("name", [*NAMES, ".onnx", ".x.onnx", "x", "x.py", "x.onnx\n"])
def test_name_that_is_not_a_plain_onnx_file_is_refused(server, tool, tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    assert_error(tool(name, "-o", inside, *source(server)), 2, name.strip())
    assert list(tmp_path.rglob("*")) == [inside]
    assert server.asked == []


@pytest.mark.parametrize(
    "args, words",
    [
        ([], ["NAME", "--list"]),
        ([""], ["NAME", "--list"]),
        (["yolo"], ["yolo", "not a known network", "--list"]),
        ([BUNDLED], [BUNDLED, "not a known network", "--list"]),
        (["mine.onnx", "--sha256", SHA256], ["mine.onnx", "--url"]),
        (["mine.onnx", "--url", "http://127.0.0.1/"], ["mine.onnx", "--sha256"]),
        (["nanodet-plus-m_320"], ["nanodet-plus-m_320", "--sha256"]),
        (["nanodet-m_416", "--sha256", SHA256], ["nanodet-m_416", "4b82da99"]),
        (["nanodet-m_416", "-o", "/nowhere"], ["/nowhere", "no such folder"]),
        (["nanodet-m_416", "--sha256", "123"], ["'123'", "64 hexadecimal digits"]),
        (["nanodet-m_416", "--url", "file:///etc/passwd"], ["file:///etc/passwd", "http"]),
        (["nanodet-m_416", "--url", "ftp://127.0.0.1/x"], ["ftp://127.0.0.1/x", "http"]),
        (["nanodet-m_416", "--url", "http://[bad/"], ["http://[bad/"]),
        (["nanodet-m_416", "--url", "http:///x"], ["http:///x"]),
        (["nanodet-m_416", "--timeout", "0"], ["--timeout", "'0'"]),
        (["nanodet-m_416", "--retries", "-1"], ["--retries"]),
        (["nanodet-m_416", "--frobnicate"], ["--frobnicate"]),
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


def test_name_too_long_for_the_folder_is_an_error(server, tool, tmp_path):
    name = "x" * 251 + ".onnx"
    assert_error(tool(name, "-o", tmp_path, *source(server)), 1, name)
    assert list(tmp_path.iterdir()) == []


def test_certificate_that_nobody_trusts_is_refused(server, tool, tmp_path):
    if shutil.which("openssl") is None:
        absent("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*make, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.scheme = "https"
    result = tool("mine.onnx", "-o", tmp_path, *source(server))
    assert_error(result, 1, server.url, "certificate")
    assert not (tmp_path / "mine.onnx").exists() and server.asked == []
