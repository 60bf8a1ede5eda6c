"""Fetch a NanoDet network and keep it only if its sha256 is the one expected.

    pip install pooch tqdm
    python tools/download_model.py --list              # names, sizes, published AP, licences
    python tools/download_model.py nanodet-plus-m_416  # into the repository's root
    python demo.py -m nanodet-plus-m_416.onnx

A mirror:             python tools/download_model.py nanodet-m_416 --url ADDRESS
A file of your own:   python tools/download_model.py mine.onnx --url ADDRESS --sha256 HASH

Proxies are taken from HTTP_PROXY, HTTPS_PROXY and NO_PROXY. Exit code: 0 done or already here,
1 failed, 2 usage or input, 130 Ctrl-C.
"""

import argparse
import difflib
import ipaddress
import os
import re
import secrets
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

try:
    import pooch
    import requests
    from tqdm import tqdm
except ImportError as error:
    missing = error.name  # --list and advice() work without it
except KeyboardInterrupt:  # these imports are half of the time until the first request
    sys.exit(130)
else:
    missing = None

ROOT = Path(__file__).resolve().parent.parent
HUB = "https://huggingface.co/opencv/object_detection_nanodet/resolve/main"
ZOO = f"{HUB}/object_detection_nanodet_2022nov"
RELEASE = "https://github.com/RangiLyu/nanodet/releases/download/v1.0.0-alpha-1/nanodet-plus-"
MAX_BYTES = 200_000_000  # many times any NanoDet; an endless answer ends here
CHUNK = 65_536  # bytes read at a time
TIMEOUT = 30.0  # seconds without data
PAUSES = (1.0, 3.0, 9.0)  # seconds before each retry
HEADERS = {"Accept-Encoding": "identity"}  # so that Content-Length is the size of the file


@dataclass(frozen=True)
class Network:
    """A network that can be fetched; it is saved as `name` + ".onnx"."""

    name: str
    ap: float | None  # COCO val2017, published by its author
    megabytes: float | None
    url: str
    sha256: str | None = None  # None: not known here, --sha256 is needed
    licence: str = "Apache-2.0"


# The Zoo's two files get the author's name for the network: object_detection_nanodet_2022nov is
# the bundled one here. The AP in the Zoo's README is that of another network, Plus-m 416.
M_416 = "4b82da9944b88577175ee23a459dce2e26e6e4be573def65b1055dc2d9720186"
M_416_INT8 = "8dd32b85f2d273e9047f1d6b59e0b2fd008b1076338107bb547ac28942cdf90b"
PLUS_M_416 = "59d2f166088889c902f523bf08079391993491324f0d84847e3c4016a8f7cc3d"
NETWORKS = (
    Network("nanodet-m_416", 0.235, 3.8, ZOO + ".onnx", M_416),
    Network("nanodet-m_416_int8", None, 1.0, ZOO + "_int8.onnx", M_416_INT8),
    Network("nanodet-plus-m_416", 0.304, 4.8, RELEASE + "m_416.onnx", PLUS_M_416),
    Network("nanodet-plus-m_320", 0.270, None, RELEASE + "m_320.onnx"),
    Network("nanodet-plus-m-1.5x_320", 0.299, None, RELEASE + "m-1.5x_320.onnx"),
    Network("nanodet-plus-m-1.5x_416", 0.341, None, RELEASE + "m-1.5x_416.onnx"),
)
KNOWN = {network.name: network for network in NETWORKS}


class DownloadError(Exception):
    """Nothing was saved; `exit_code` is 2 if the input is to blame, `again` tells to retry."""

    def __init__(self, message, exit_code=1, again=False):
        super().__init__(message)
        self.exit_code, self.again = exit_code, again


def advice(name):
    """Say which command brings a network.

    Parameters
    ----------
    name : str
        A name in `KNOWN`, the Zoo's name, or one like these; .onnx may follow.

    Returns
    -------
    str
        One sentence with the command, or with the command that lists the names.
    """
    stem = name.removesuffix(".onnx")
    sources = {Path(network.url).stem: network.name for network in NETWORKS}
    similar = difflib.get_close_matches(stem, KNOWN, n=1, cutoff=0.8)
    network = KNOWN.get(sources.get(stem, similar[0] if similar else stem))
    if network is None:
        return "Run python tools/download_model.py --list for the names known"
    needs = "" if network.sha256 else " --sha256 HASH"
    return f"Run python tools/download_model.py {network.name}{needs}"


def choose(name, url, sha256):
    """Return file name, address and sha256 of what was asked for, or say what is missing."""
    network = KNOWN.get(name.removesuffix(".onnx"))
    if network is None:
        if not (url and sha256):
            own = "a file of your own needs --url and --sha256"
            raise DownloadError(f"{name}: not a known network; {own}. {advice(name)}", 2)
        if not re.fullmatch(r"\w[\w .+-]*\.onnx", name) or ".." in name:
            raise DownloadError(f"{name}: not a plain file name. Give one like mine.onnx", 2)
        return name, url, sha256
    if not (network.sha256 or sha256):
        raise DownloadError(f"{name}: its sha256 is not known here. {advice(name)}", 2)
    if network.sha256 and sha256 not in (None, network.sha256):
        raise DownloadError(f"{name}: has sha256 {network.sha256}. Give another file name", 2)
    return network.name + ".onnx", url or network.url, network.sha256 or sha256


def shown(address):
    """The address without password and query, which may hold secrets."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def fault(url, reason, again=False):
    way_out = "Check network and proxy, or give another address with --url"
    return DownloadError(f"{shown(url)}: {reason}. {way_out}", again=again)


def is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_redirect(response, **_):
    """Look at each answer before requests follows it: to http or https only, and never down."""
    if not response.is_redirect:
        return
    response.close()  # else requests reads the redirect's body, endless or not
    here = urlsplit(response.url)
    there = urlsplit(urljoin(response.url, response.headers["location"]))
    down = here.scheme == "https" and there.scheme == "http"
    local = is_loopback(here.hostname) and is_loopback(there.hostname)
    if there.scheme not in ("http", "https") or (down and not local):
        raise fault(response.url, f"redirects to {shown(there.geturl())}, which is not followed")


class LimitedFile:
    """What pooch writes to: a file that takes MAX_BYTES."""

    def __init__(self, file, url):
        self.file, self.url, self.room = file, url, MAX_BYTES
        self.flush = file.flush

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise fault(self.url, f"sends more than {MAX_BYTES} bytes, the most that is taken")
        self.file.write(data)


def explain(error, url, timeout):
    """Turn what requests raised into a DownloadError."""
    url = getattr(error.request, "url", None) or url
    if isinstance(error, requests.HTTPError):
        status = error.response.status_code
        return fault(url, f"HTTP status {status}", again=status >= 500 or status in (408, 429))
    cause = error  # the root says it in words, those above it in class names
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__
    reason = getattr(cause, "strerror", None) or cause
    if isinstance(cause, TimeoutError):
        reason = f"no data for {timeout:g} s"
    broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    untrusted = isinstance(error, requests.exceptions.SSLError)
    return fault(url, reason, again=isinstance(error, broken) and not untrusted)


def download(url, target, sha256, timeout):
    """Fetch `url` once; `target` appears whole and right, or not at all."""
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    look = {"total": 1, "unit": "B", "unit_scale": True, "disable": not sys.stderr.isatty()}
    request = {"timeout": timeout, "headers": HEADERS, "hooks": {"response": check_redirect}}
    try:
        with part.open("xb") as file, tqdm(desc=target.name, **look) as bar:
            downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, **request)
            downloader(url, LimitedFile(file, url), None)
            os.fsync(file.fileno())
        found = pooch.file_hash(str(part))
        if found != sha256:
            raise fault(url, f"sends a file with sha256 {found}, not {sha256}")
        os.replace(part, target)
    except requests.RequestException as error:
        raise explain(error, url, timeout) from error
    except ValueError as error:  # a header that pooch or urllib3 can't read
        raise fault(url, error) from error
    finally:
        part.unlink(missing_ok=True)


def fetch(url, target, sha256, timeout, pauses):
    """Bring `target` here, restarted after a break as often as there are pauses; say how."""
    if target.exists() or target.is_symlink():
        if not target.is_file() or pooch.file_hash(str(target)) != sha256:
            raise DownloadError(f"{target}: something else is there. Move it, or use --output", 2)
        return "already here, nothing to do"
    for pause in (*pauses, None):
        try:
            download(url, target, sha256, timeout)
            break
        except DownloadError as error:
            if pause is None or not error.again:
                raise
            print(f"{printable(error)}. Trying again in {pause:g} s.", file=sys.stderr)
            time.sleep(pause)
    return f"saved, {target.stat().st_size} bytes"


def print_networks():
    row = "{:24} {:>7} {:>6}  {:11} {}"
    print(row.format("name", "size", "AP", "licence", "source"))
    for network in NETWORKS:
        size = f"{network.megabytes:.1f} MB" if network.megabytes else "-"
        ap = f"{network.ap:.3f}" if network.ap else "-"
        source = network.url if network.sha256 else f"{network.url} (needs --sha256)"
        print(row.format(network.name, size, ap, network.licence, source))


def printable(text):
    """One line without control characters, whatever a server or an argument put into it."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def http_address(text):
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is not an http or https address")
    return text


def sha256_hex(text):
    digits = text.lower().removeprefix("sha256:")
    if not re.fullmatch("[0-9a-f]{64}", digits):
        raise argparse.ArgumentTypeError(f"{text!r} is not 64 hexadecimal digits")
    return digits


def seconds(text):
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and up to 3600")
    return value


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")


def parse(argv):
    summary, _, details = __doc__.partition("\n\n")
    parser = Parser(
        prog="download_model.py",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="one of --list, or a file name of your own")
    add("--list", action="store_true", help="show the networks known, and exit")
    folder = "folder (default: the repository)"
    add("-o", "--output", type=Path, default=ROOT, metavar="DIR", help=folder)
    add("--url", type=http_address, metavar="ADDRESS", help="http or https address of a mirror")
    add("--sha256", type=sha256_hex, metavar="HASH", help="what the file must have, in hexadecimal")
    add = parser.add_argument_group("when the network is slow").add_argument
    wait = "give up after S seconds without data (default %(default)g)"
    add("--timeout", type=seconds, default=TIMEOUT, metavar="S", help=wait)
    pause = f"seconds before each retry (default {' '.join(f'{pause:g}' for pause in PAUSES)})"
    add("--pauses", type=seconds, nargs="*", default=PAUSES, metavar="S", help=pause)
    args = parser.parse_args(argv)
    if not (args.name or args.list):
        parser.error("NAME is missing. Run it with --list for the names known")
    return args


def main(argv=None) -> int:
    args = parse(argv)
    try:
        if args.list:
            print_networks()
            return 0
        name, url, sha256 = choose(args.name, args.url, args.sha256)
        if missing:
            raise DownloadError(f"{missing} is not installed. Run pip install pooch tqdm")
        if not args.output.is_dir():
            raise DownloadError(f"{args.output}: no such folder. Make it first", 2)
        target = args.output / name
        outcome = fetch(url, target, sha256, args.timeout, args.pauses)
        print(printable(f"{target}: {outcome}, sha256 as expected"))
        return 0
    except DownloadError as error:
        message, exit_code = error, error.exit_code
    except OSError as error:
        reason = f"{error.strerror or error}. Use --output for another folder"
        message, exit_code = f"{error.filename or args.output}: {reason}", 1
    except KeyboardInterrupt:
        message, exit_code = "interrupted, nothing saved", 130
    print(f"download_model.py: error: {printable(message)}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing half-done is left
    sys.exit(main())
