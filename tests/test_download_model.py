"""tools/download_model.py against a real HTTP server on loopback that does all kinds of wrong."""

import contextlib
import hashlib
import importlib.util
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

import pytest

pytest.importorskip("pooch")
pytest.importorskip("tqdm")

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "download_model.py"
BUNDLED = "object_detection_nanodet_2022nov.onnx"
DATA = bytes(range(256)) * 2000  # 512,000 bytes: several reads
SHA256 = hashlib.sha256(DATA).hexdigest()
QUICK = ["--pauses", "0.01", "0.02"]  # two retries


def load_tool():
    spec = importlib.util.spec_from_file_location("download_model", TOOL)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up here
    spec.loader.exec_module(module)
    return module


download_model = load_tool()


class Server(ThreadingHTTPServer):
    """Answers each GET with `answer(handler)`, and keeps the addresses asked for."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.asked = right, []
        self.reached, self.over = threading.Event(), threading.Event()
        self.scheme = "http"

    @property
    def url(self):
        return f"{self.scheme}://127.0.0.1:{self.server_port}/x.onnx"

    def handle_error(self, request, client_address):
        """A client that went away is no news here."""


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


def endless(handler, status=200, **headers):
    send(handler, status, Content_Length=None, **headers)
    while not handler.server.over.is_set():
        handler.wfile.write(bytes(1 << 20))  # ends when the client hangs up


def endless_redirect(handler):
    if handler.path == "/right":
        right(handler)
    else:
        endless(handler, 302, Location="/right")


def status(code, **headers):
    return lambda handler: send(handler, code, b"<html>sorry</html>", **headers)


def redirect(location):
    return status(302, Location=location)


def garbage(handler):
    handler.wfile.write(b"\x00\xffSSH-2.0-x\r\n\r\n")


def hung_up(handler):
    """Closes the connection without a word."""


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


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def proxy():
    with serving() as server:
        yield server


def environment(**extra):
    clean = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return {**clean, **extra}


def command(*args):
    return [sys.executable, str(TOOL), *map(str, args)]


def run(*args, **extra):
    return subprocess.run(
        command(*args), env=environment(**extra), capture_output=True, text=True, timeout=60
    )


def fetch(server, folder, *args, name="mine.onnx", sha256=SHA256, **extra):
    source = ("--url", server.url, "--sha256", sha256)
    return run(name, "-o", folder, *source, *(args or QUICK), **extra)


def assert_error(result, exit_code, *words):
    """One line says what is wrong, after those about retries; no traceback."""
    *retries, last = result.stderr.splitlines()
    assert result.returncode == exit_code, result.stderr
    assert last.startswith("download_model.py: error: ")
    assert all(line.isprintable() for line in result.stderr.splitlines())
    assert all(line.endswith(" s.") and "Trying again in" in line for line in retries)
    assert [word for word in words if word not in last] == []
    assert result.stdout == ""


# What is known


def test_list_shows_every_network_with_all_that_is_known():
    result = run("--list")
    assert result.returncode == 0
    _, *rows = result.stdout.splitlines()
    for row, network in zip(rows, download_model.NETWORKS, strict=True):
        assert row.split()[0] == network.name
        assert f"{network.ap:.3f}" in row if network.ap else " - " in row
        assert f"{network.megabytes} MB" in row if network.megabytes else " - " in row
        assert network.licence in row and network.url in row
        assert ("needs --sha256" in row) == (network.sha256 is None)


def test_no_known_network_takes_the_name_of_the_bundled_one():
    assert BUNDLED.removesuffix(".onnx") not in download_model.KNOWN
    assert all(network.url.startswith("https://") for network in download_model.NETWORKS)


@pytest.mark.parametrize(
    "name, command",
    [
        ("nanodet-plus-m_416", "download_model.py nanodet-plus-m_416"),
        ("nanodet-plus-m_416.onnx", "download_model.py nanodet-plus-m_416"),
        ("nanodet_plus_m_416", "download_model.py nanodet-plus-m_416"),
        ("nanodet-plus-m_320", "download_model.py nanodet-plus-m_320 --sha256 HASH"),
        (BUNDLED, "download_model.py nanodet-m_416"),
        ("yolo", "download_model.py --list for the names known"),
    ],
)
def test_advice_names_the_command(name, command):
    assert download_model.advice(name) == f"Run python tools/{command}"


# What goes right


@pytest.mark.parametrize("name", ["mine.onnx", "nanodet-plus-m_320", "nanodet-plus-m_320.onnx"])
def test_file_with_the_right_sha256_is_saved(server, tmp_path, name):
    result = fetch(server, tmp_path, name=name)
    path = tmp_path / (name.removesuffix(".onnx") + ".onnx")
    assert (result.returncode, result.stderr) == (0, "")
    assert str(path) in result.stdout
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == DATA


def test_second_call_asks_for_nothing_and_says_so(server, tmp_path):
    fetch(server, tmp_path)
    result = fetch(server, tmp_path)
    assert result.returncode == 0
    assert "already here, nothing to do" in result.stdout
    assert len(server.asked) == 1


def test_folder_is_the_repository_unless_told_otherwise(server, tmp_path):
    (tmp_path / "tools").mkdir()
    tool = shutil.copy(TOOL, tmp_path / "tools")
    source = ["--url", server.url, "--sha256", f"sha256:{SHA256.upper()}"]
    subprocess.run([sys.executable, tool, "mine.onnx", *source], env=environment(), check=True)
    assert (tmp_path / "mine.onnx").read_bytes() == DATA


@pytest.mark.skipif(os.name != "posix", reason="file modes and umask are POSIX")
def test_others_may_read_the_file_as_the_umask_says(server, tmp_path):
    fetch(server, tmp_path)
    (tmp_path / "reference").touch()
    assert (tmp_path / "mine.onnx").stat().st_mode == (tmp_path / "reference").stat().st_mode


@pytest.mark.parametrize("first", [status(500), status(503), status(429), truncated, hung_up])
def test_download_starts_again_after_a_break(server, tmp_path, first):
    answers = iter([first, right])
    server.answer = lambda handler: next(answers)(handler)
    result = fetch(server, tmp_path)
    assert result.returncode == 0
    assert "Trying again in 0.01 s." in result.stderr
    assert len(server.asked) == 2
    assert (tmp_path / "mine.onnx").read_bytes() == DATA


@pytest.mark.parametrize("location", ["/right", "//127.0.0.1:{port}/right", "{url}?right"])
def test_redirect_to_http_is_followed(server, tmp_path, location):
    there = location.format(port=server.server_port, url=server.url)
    server.answer = lambda handler: (right if "right" in handler.path else redirect(there))(handler)
    assert fetch(server, tmp_path).returncode == 0
    assert len(server.asked) == 2


def test_body_of_a_redirect_is_not_read(server, tmp_path):
    server.answer = endless_redirect
    assert fetch(server, tmp_path).returncode == 0


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_proxy_of_the_environment_is_asked(server, proxy, tmp_path, variable):
    result = fetch(server, tmp_path, **{variable: f"http://127.0.0.1:{proxy.server_port}"})
    assert result.returncode == 0
    assert (proxy.asked, server.asked) == ([server.url], [])


def test_terminal_shows_progress(server, tmp_path):
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    terminal, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    source = ("--url", server.url, "--sha256", SHA256)
    process = subprocess.Popen(
        command("mine.onnx", "-o", tmp_path, *source), env=environment(), stderr=theirs
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        for piece in iter(lambda: os.read(terminal, 4096), b""):
            shown += piece
    os.close(terminal)
    assert process.wait() == 0
    assert b"mine.onnx: 100%" in shown


# What goes wrong


FAULTS = {  # case: what the server does, what the error says, how often the server is asked
    "not found": (status(404), ["HTTP status 404"], 1),
    "forbidden": (status(403), ["HTTP status 403"], 1),
    "always 500": (status(500), ["HTTP status 500"], 3),
    "always truncated": (truncated, ["more expected"], 3),
    "truncated, no length": (truncated_without_length, ["sha256"], 1),
    "length no number": (status(200, Content_Length="many"), ["'many'"], 1),
    "wrong bytes": (wrong, [f"not {SHA256}"], 1),
    "web page": (status(200), [f"not {SHA256}"], 1),
    "endless": (endless, ["200000000 bytes"], 1),
    "not HTTP": (garbage, ["SSH"], 3),
    "hung up": (hung_up, ["closed connection without response"], 3),
    "to file:": (redirect("file:///etc/passwd"), ["to file:///etc/passwd", "not followed"], 1),
    "to ftp:": (redirect("ftp://127.0.0.1/x"), ["to ftp://127.0.0.1/x", "not followed"], 1),
    "to data:": (redirect("data:,x"), ["to data:", "not followed"], 1),
    "to nonsense": (redirect("http://[bad/"), ["Invalid IPv6"], 1),
    "to escape codes": (redirect("ftp://a\x1bc\x07/"), ["not followed"], 1),
    "to itself": (redirect("/circle"), ["Exceeded 30 redirects"], 31),
}


@pytest.mark.parametrize("answer, words, requests", FAULTS.values(), ids=FAULTS)
def test_fault_of_the_server_is_named_and_leaves_nothing(server, tmp_path, answer, words, requests):
    server.answer = answer
    result = fetch(server, tmp_path)
    assert_error(result, 1, f"http://127.0.0.1:{server.server_port}/", "--url", *words)
    assert len(server.asked) == requests
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", [silent, stalled])
def test_stalled_server_is_left_after_the_timeout(server, tmp_path, answer):
    server.answer = answer
    result = fetch(server, tmp_path, "--timeout", "0.5", "--pauses", "0.01")
    assert_error(result, 1, server.url, "no data for 0.5 s")
    assert len(server.asked) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", [silent, stalled])
@pytest.mark.parametrize("signal_name, exit_code", [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_signal_ends_it_and_leaves_nothing(server, tmp_path, answer, signal_name, exit_code):
    server.answer = answer
    source = ("--url", server.url, "--sha256", SHA256)
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits "ignored"
    process = subprocess.Popen(
        command("mine.onnx", "-o", tmp_path, *source),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(signal.SIGINT, ours)
    assert server.reached.wait(30)
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    process.send_signal(getattr(signal, signal_name))
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == exit_code
    assert "Traceback" not in stderr and len(stderr.splitlines()) <= 1
    assert list(tmp_path.iterdir()) == []


def test_nobody_listening_is_named(server, tmp_path):
    with serving() as gone:
        url = gone.url
    result = run("mine.onnx", "-o", tmp_path, "--url", url, "--sha256", SHA256, *QUICK)
    assert_error(result, 1, url, "refused")
    assert list(tmp_path.iterdir()) == []


def test_error_does_not_show_password_or_query(server, tmp_path):
    server.answer = status(403)
    url = f"http://me:secret@127.0.0.1:{server.server_port}/x.onnx?key=secret"
    result = run("mine.onnx", "-o", tmp_path, "--url", url, "--sha256", SHA256)
    assert_error(result, 1, server.url, "403")
    assert "secret" not in result.stderr


def test_other_file_under_the_name_is_kept(server, tmp_path):
    (tmp_path / "mine.onnx").write_bytes(b"other")
    assert_error(fetch(server, tmp_path), 2, str(tmp_path / "mine.onnx"), "--output")
    assert (tmp_path / "mine.onnx").read_bytes() == b"other"
    assert server.asked == []


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("/nowhere")])
def test_folder_or_dangling_link_under_the_name_is_kept(server, tmp_path, make):
    make(tmp_path / "mine.onnx")
    assert_error(fetch(server, tmp_path), 2, "something else is there")
    assert server.asked == []


@pytest.mark.parametrize(
    "name",
    [
        "../x.onnx",
        "/nowhere/x.onnx",
        "a/x.onnx",
        "a\\x.onnx",
        "C:x.onnx",
        "..onnx",
        "a..onnx",
        ".onnx",
        ".x.onnx",
        "x",
        "x.py",
        "x.onnx\n",
        "",
    ],
)
def test_name_that_is_not_a_plain_onnx_file_is_refused(server, tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    assert_error(fetch(server, inside, name=name), 2, name.strip())
    assert list(tmp_path.rglob("*")) == [inside]
    assert server.asked == []


@pytest.mark.parametrize(
    "args, words",
    [
        ([], ["NAME", "--list"]),
        (["yolo"], ["yolo", "not a known network", "--list"]),
        (["mine.onnx", "--sha256", SHA256], ["mine.onnx", "--url"]),
        (["mine.onnx", "--url", "http://127.0.0.1/"], ["mine.onnx", "--sha256"]),
        (["nanodet-plus-m_320"], ["nanodet-plus-m_320", "--sha256"]),
        (["nanodet-m_416", "--sha256", SHA256], ["nanodet-m_416", "4b82da99"]),
        ([BUNDLED], [BUNDLED, "nanodet-m_416"]),
        (["nanodet-m_416", "-o", "/nowhere"], ["/nowhere", "no such folder"]),
        (["nanodet-m_416", "--sha256", "123"], ["'123'", "64 hexadecimal digits"]),
        (["nanodet-m_416", "--url", "file:///etc/passwd"], ["file:///etc/passwd", "http"]),
        (["nanodet-m_416", "--url", "ftp://127.0.0.1/x"], ["ftp://127.0.0.1/x", "http"]),
        (["nanodet-m_416", "--url", "http://[bad/"], ["http://[bad/"]),
        (["nanodet-m_416", "--url", "http:///x"], ["http:///x"]),
        (["nanodet-m_416", "--timeout", "0"], ["--timeout", "0"]),
        (["nanodet-m_416", "--timeout", "nan"], ["--timeout", "nan"]),
        (["nanodet-m_416", "--pauses", "-1"], ["--pauses"]),
        (["nanodet-m_416", "--frobnicate"], ["--frobnicate"]),
    ],
)
def test_arguments_that_can_not_work_are_named(args, words, capsys):
    with contextlib.suppress(SystemExit):
        assert download_model.main(args) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("download_model.py: error: ")
    assert [word for word in words if word not in line] == []


def test_missing_pooch_is_named_with_the_pip_command(server, tmp_path):
    (tmp_path / "pooch.py").write_text("raise ModuleNotFoundError('gone', name='pooch')\n")
    result = fetch(server, tmp_path, PYTHONPATH=str(tmp_path))
    assert_error(result, 1, "pooch is not installed", "pip install pooch tqdm")
    assert run("--list", PYTHONPATH=str(tmp_path)).returncode == 0


@pytest.mark.skipif(os.name != "posix", reason="ulimit is POSIX")
def test_file_that_can_not_be_written_is_named_and_leaves_nothing(server, tmp_path):
    source = ("--url", server.url, "--sha256", SHA256)
    tool = command("mine.onnx", "-o", tmp_path, *source)
    result = subprocess.run(
        ["sh", "-c", 'ulimit -f 100 && exec "$@"', "sh", *tool],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert_error(result, 1, str(tmp_path), "--output")
    assert list(tmp_path.iterdir()) == []


def test_name_too_long_for_the_folder_is_an_error(server, tmp_path):
    name = "x" * 250 + ".onnx"
    assert_error(fetch(server, tmp_path, name=name), 1, name, "--output")


# https


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that nobody trusts."""
    if shutil.which("openssl") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("openssl is not installed")
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        + ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        + ["-addext", "keyUsage=critical,digitalSignature,keyCertSign"]
        + ["-keyout", path, "-out", path.with_suffix(".crt")],
        check=True,
        capture_output=True,
    )
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
    return path


@pytest.fixture
def secure_server(server, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.scheme = "https"
    return server


def test_https_redirects_down_to_http_on_loopback_only(secure_server, proxy, certificate, tmp_path):
    trust = {"REQUESTS_CA_BUNDLE": str(certificate)}
    secure_server.answer = redirect("http://models.example/x.onnx")
    result = fetch(secure_server, tmp_path, **trust)
    assert_error(result, 1, secure_server.url, "http://models.example/x.onnx", "not followed")
    assert list(tmp_path.iterdir()) == []
    secure_server.answer = redirect(proxy.url)
    assert fetch(secure_server, tmp_path, **trust).returncode == 0
    assert (tmp_path / "mine.onnx").read_bytes() == DATA


def test_certificate_that_nobody_trusts_is_refused_at_once(secure_server, tmp_path):
    result = fetch(secure_server, tmp_path)
    assert_error(result, 1, secure_server.url, "certificate")
    assert "Trying again" not in result.stderr
    assert list(tmp_path.iterdir()) == []
