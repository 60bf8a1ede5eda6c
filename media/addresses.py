"""Addresses: which are opened, how they are shown, and what an http server says about one."""

import base64
import os
import re
import string
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from media.frames import SourceError
from media.pictures import PICTURE_ENDINGS, ending_of, kind_of

SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "udp", "srt", "tcp")
# FFmpeg lets a list that comes over http name no local file; for udp, srt and tcp it has no such
# rule. OpenCV 5's FFmpeg refuses parts of an HLS stream whose names have endings it does not know.
OPTIONS = dict.fromkeys(("udp", "srt", "tcp"), "protocol_whitelist;udp,srt,tcp")
OPTIONS |= dict.fromkeys(("http", "https"), "extension_picky;0")
ASK_TIMEOUT = 3  # seconds; what does not answer is opened as a stream
FETCH_TIMEOUT = 60  # seconds for a whole picture, 10 of them without any data
LARGEST_PICTURE = 100_000_000  # bytes
LARGEST_REPLY = 1_000_000  # bytes that an rtsp server says of an address
ENDLESS = re.compile("multipart/|text/(html|plain)|.*mpegurl")
ONE_PICTURE = re.compile("image/(?!gif)|application/octet-stream|$")
NEXT_JPEG = re.compile(b"\xff\xd9[\r\n]{0,4}\xff\xd8\xff")  # behind the end of one
HANDLERS = (
    *("ProxyHandler", "HTTPHandler", "UnknownHandler", "HTTPDefaultErrorHandler"),
    *("HTTPRedirectHandler", "HTTPErrorProcessor"),
)
HEADERS = {"User-Agent": "Mozilla/5.0 (compatible; nanodet-opencv)"}  # some refuse Python's
HASHES = {"MD5": "md5", "SHA-256": "sha256"}  # that sign a login, by RFC 7616
CHALLENGE = re.compile(r'(\w+)=(?:"([^"]*)"|([^\s,]*))')
_environment = threading.Lock()


@dataclass(frozen=True)
class Answer:
    """What a server says about an address before anything is fetched."""

    status: int | None = None  # the HTTP status of a refusal
    kind: str | None = None  # the type of what is there; None where nothing answers
    finite: bool = False  # a file, not a stream: it is read once
    picture: bool = False  # a finite one that is a still picture
    growing: bool = False  # an MP4 of which FFmpeg takes what has come for all


def with_known_scheme(address):
    """The address as servers and FFmpeg need it; SourceError for other schemes.

    The scheme is in small letters; of the path, spaces and other alphabets are escaped.
    """
    from urllib.parse import quote  # not at the top: one picture must stay fast

    scheme, _, rest = address.partition("://")
    if scheme.lower() not in SCHEMES:
        raise SourceError(
            f"{hide_password(address)}: unknown kind of address. "
            f"Known ones: {', '.join(SCHEMES)}. For a file, give its path."
        )
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host}{slash}{quote(path, safe=string.punctuation)}"


def hide_password(address):
    """The address as it may be shown and stored: *** in place of a password.

    A password that should have been escaped may contain @, # or /; in doubt, more is hidden.
    """
    match = re.match(r"([^:]*://)([^:/?#\[]*):(.*)@", address, re.DOTALL)
    if match:
        scheme, user, password = match.groups()
        is_host = "." in user or user == "localhost"
        if not (is_host and re.match("[0-9]{1,5}[/?]", password)):  # @ in a path, after a port
            address = f"{scheme}{user}:***{address[match.end() - 1 :]}"
    return re.sub(r"([?&][^=&]*(?:pas|pwd|token)[^=&]*=)[^&#]+", r"\1***", address, flags=re.I)


def why_not_opened(address, answer):
    """The sentence after "can't be opened", with what to do; asks an rtsp server for it."""
    from http import HTTPStatus  # not at the top: one picture must stay fast

    scheme, _, rest = address.partition("://")
    place = re.split("[/?#]", rest)[0]
    to_escape = ":***@" in hide_password(address) and place.count("@") != 1
    status, kind = answer.status, answer.kind or ""
    if scheme == "rtsp" and not to_escape:
        status = describe(address)
    if status == HTTPStatus.UNAUTHORIZED and "@" not in place:
        return f"The server wants a user and password: {scheme}://USER:PASSWORD@host/..."
    if status == HTTPStatus.OK:
        why = ", or takes only logins signed by SHA-256" if "@" in place else ""
        return f"The server knows it, but sends no pictures that OpenCV reads{why}."
    if status in list(HTTPStatus):
        return f"The server answers: {status} {HTTPStatus(status).phrase}."
    if to_escape:
        return "In a user or password, write %40 for @, %23 for #, %2F for / and %3A for :."
    if kind.startswith("application/dash+xml") or _ending_behind(address) == ".mpd":
        return "It is DASH, which OpenCV from PyPI is built without. Give its HLS or RTSP address."
    if kind.startswith("text/html"):
        return "It is a web page. Give the address of the picture or stream that it shows."
    if scheme == "srt":
        return "Is the address right, the server up? OpenCV from PyPI is built without srt."
    return "Is the address right, the server up?"


def describe(address):
    """The status that an rtsp server gives when asked what an address is; None without one."""
    import socket  # not at the top: one picture must stay fast
    from urllib.parse import urlsplit, urlunsplit

    try:
        parts = urlsplit(address)
        login, _, host = parts.netloc.rpartition("@")
        url = urlunsplit(parts._replace(netloc=host, fragment=""))
        ends = time.monotonic() + ASK_TIMEOUT
        server = (parts.hostname, parts.port or 554)
        with socket.create_connection(server, ASK_TIMEOUT) as connection:
            # Twice on one connection: what the server wants signed may be valid for that only.
            status, headers = _describe(connection, ends, url, "")
            signed = status == 401 and login and _authorization(headers, login, "DESCRIBE", url)
            if signed:
                status, _ = _describe(connection, ends, url, f"Authorization: {signed}\r\n")
        return status
    except (OSError, ValueError):
        return None


def _describe(connection, ends, url, login):
    """Status and headers of one answer, taken in whole; OSError or ValueError without one."""
    import email

    line = f"DESCRIBE {url} RTSP/1.0\r\nCSeq: {2 if login else 1}\r\nAccept: application/sdp"
    connection.sendall(f"{line}\r\n{login}\r\n".encode())
    data, size, headers = b"", None, None
    while size is None or len(data) < size:
        connection.settimeout(max(0.001, ends - time.monotonic()))
        block = connection.recv(1 << 16)
        data += block
        if not block or len(data) > LARGEST_REPLY:
            raise OSError("no answer")
        head, end, _ = data.partition(b"\r\n\r\n")
        if end and size is None:
            first, _, fields = head.decode("latin-1").partition("\r\n")
            headers = email.message_from_string(fields)
            size = len(head) + len(end) + int(headers.get("Content-Length", "0"))
    version, status = first.split()[:2]
    if not version.startswith("RTSP/"):
        raise ValueError(f"{version}: is not RTSP")
    return int(status), headers


def _authorization(headers, login, method, target):
    """What answers a server's demand for a login, signed where it can be; None if nothing does."""
    from urllib.parse import unquote

    user, _, password = map(unquote, login.partition(":"))
    ways = [each.partition(" ") for each in headers.get_all("WWW-Authenticate", ["Basic"])]
    for challenge in (challenge for way, _, challenge in ways if way.lower() == "digest"):
        said = {name.lower(): a or b for name, a, b in CHALLENGE.findall(challenge)}
        known = said.get("algorithm", "MD5").upper() in HASHES and {"realm", "nonce"} <= said.keys()
        if known and "auth" in re.split("[ ,]+", said.get("qop", "auth")):
            return _digest(said, user, password, method, target)
    if any(way.lower() == "basic" for way, _, _ in ways):
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return None


def _digest(said, user, password, method, target):
    """A login signed as a server `said` that it wants it: RFC 7616, 3.4."""
    import hashlib

    def signed(*parts):
        name = HASHES[said.get("algorithm", "MD5").upper()]
        return hashlib.new(name, ":".join(parts).encode(), usedforsecurity=False).hexdigest()

    chance = os.urandom(8).hex()
    how = ("00000001", chance, "auth") if "qop" in said else ()
    what = signed(user, said["realm"], password), said["nonce"], *how, signed(method, target)
    answer = said | {"username": user, "uri": target, "response": signed(*what)}
    kept = ("username", "realm", "nonce", "uri", "response", "algorithm", "opaque")
    text = ", ".join(f'{name}="{answer[name]}"' for name in kept if name in answer)
    return f"Digest {text}" + (f', qop=auth, nc=00000001, cnonce="{chance}"' if how else "")


def ask(address):
    """Ask an http server what an address is: with HEAD, and where that tells nothing, with GET.

    An empty answer where there is none to ask, it can't be reached, or says nothing of use.
    """
    if not re.match("https?://", address, re.IGNORECASE):
        return Answer()
    from urllib.error import HTTPError, URLError  # not at the top: one picture must stay fast

    try:
        with response_of(address, "HEAD", ASK_TIMEOUT) as response:
            answer = _answer_of(address, response)
        if answer.finite or ENDLESS.match(answer.kind) or _is_list(address):
            return answer
    except HTTPError:  # many cameras refuse HEAD, with any status
        answer = Answer()
    except (URLError, TimeoutError):
        return Answer()
    except OSError:  # others hang up
        answer = Answer()
    try:
        with response_of(address, "GET", ASK_TIMEOUT) as response:
            answer = _answer_of(address, response)
            if answer.kind.startswith("video/mp4") and not answer.finite:
                return replace(answer, growing=_is_in_fragments(response))
            if answer.finite or not ONE_PICTURE.match(answer.kind):
                return answer
            whole = _is_whole_picture(response)
            return Answer(kind=answer.kind, finite=whole, picture=whole)
    except HTTPError as error:
        return Answer(error.code)
    except OSError:
        return answer


def _answer_of(address, response):
    """What the headers of a response tell."""
    kind = response.headers.get("Content-Type", "").lower()
    length = response.headers.get("Content-Length", "")
    # A list of a live stream's parts has a length, too.
    if _is_list(address) or "mpegurl" in kind or not re.fullmatch("[1-9][0-9]{0,17}", length):
        return Answer(kind=kind)
    ending, endless = _ending_behind(address), ENDLESS.match(kind)
    if kind.startswith(("image/", "video/")):
        picture = kind.startswith("image/") and kind != "image/gif"  # played, as from a file
    elif endless or not ending:  # a page may stand in for a stream; some cameras call a picture so
        picture = _begins_as_picture(address)
    else:
        picture = ending in PICTURE_ENDINGS
    return Answer(kind=kind, finite=picture or not endless, picture=picture)


def _ending_behind(address):
    return ending_of(re.split("[?#]", address)[0])


def _is_list(address):
    return _ending_behind(address) == ".m3u8"


def _begins_as_picture(address):
    try:
        with response_of(address, "GET", ASK_TIMEOUT) as response:
            return kind_of(response.read(16))[1]
    except OSError:
        return False


def _is_in_fragments(response):
    """Whether an MP4 says that it comes in fragments."""
    data, ends = b"", time.monotonic() + ASK_TIMEOUT
    while time.monotonic() < ends and len(data) < 1 << 20:
        block = response.read1(1 << 16)
        data += block
        if not block or re.search(b"moof|mdat", data):
            break
    return b"mvex" in data


def _is_whole_picture(response):
    """Whether what comes without a length is one picture, and ends; else it may be a stream."""
    data, ends = bytearray(), time.monotonic() + ASK_TIMEOUT
    while block := response.read1(1 << 16):
        searched = max(0, len(data) - 8)
        data += block
        if (len(data) >= 16 and not kind_of(data[:16])[1]) or NEXT_JPEG.search(data, searched):
            return False
        if len(data) > LARGEST_PICTURE or time.monotonic() > ends:
            return False
    return kind_of(data[:16])[1]


def fetch(address):
    """The bytes of a picture behind an http address, as an array; SourceError if not all come."""
    shown, ends, data = hide_password(address), time.monotonic() + FETCH_TIMEOUT, bytearray()
    try:
        with response_of(address, "GET", timeout=10) as response:
            while block := response.read1(1 << 16):
                data += block
                if len(data) > LARGEST_PICTURE:
                    raise SourceError(f"{shown}: has more than {LARGEST_PICTURE} bytes.")
                if time.monotonic() > ends:
                    raise SourceError(f"{shown}: did not come within {FETCH_TIMEOUT} s.")
            # Some cameras state more than they have.
            if response.length and not data.endswith(b"\xff\xd9"):
                raise SourceError(f"{shown}: the connection ended before the picture did.")
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise SourceError(f"{shown}: can't be fetched: {reason}.") from error
    return np.frombuffer(data, np.uint8)


@contextmanager
def response_of(address, method, timeout):
    """The server's response, open; OSError where it gives none that can be used.

    A user and password in the address answer a 401 of that server, and go nowhere else.
    """
    # Not at the top: one picture must stay fast.
    import http.client
    import ssl
    import urllib.request
    from urllib.parse import urlsplit, urlunsplit

    server_of = urllib.request.HTTPPasswordMgr().reduce_uri
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # as FFmpeg: cameras sign for themselves
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    try:
        parts = urlsplit(address)
        login, _, host = parts.netloc.rpartition("@")
        url = urlunsplit(parts._replace(netloc=host, fragment=""))
        request = urllib.request.Request(url, None, HEADERS, method=method)  # noqa: S310
        opener = urllib.request.OpenerDirector()  # build_opener's would follow redirects to ftp
        opener.add_handler(urllib.request.HTTPSHandler(context=trusting))
        for name in HANDLERS:
            opener.add_handler(getattr(urllib.request, name)())
        try:
            response = opener.open(request, timeout=timeout)
        except urllib.request.HTTPError as error:
            own = login and error.code == 401 and server_of(error.url)[0] == server_of(url)[0]
            request = urllib.request.Request(error.url, None, HEADERS, method=method)  # noqa: S310
            signed = own and _authorization(error.headers, login, method, request.selector)
            if not signed:
                raise
            error.close()
            request.add_unredirected_header("Authorization", signed)
            response = opener.open(request, timeout=timeout)
        with response:
            yield response
    except urllib.request.HTTPError as error:
        error.close()
        raise
    except (ValueError, http.client.HTTPException) as error:
        raise OSError(f"{error}") from error


@contextmanager
def confined(address):
    """While this lasts, FFmpeg opens no local file for a list that came over the network."""
    option = OPTIONS.get(address.partition("://")[0])
    if option is None:
        yield
        return
    name = "OPENCV_FFMPEG_CAPTURE_OPTIONS"  # the only way to FFmpeg's options
    with _environment:
        before = os.environ.get(name)
        os.environ[name] = option if before is None else f"{before}|{option}"
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before
