"""Fetch a NanoDet network and keep it only if its sha256 is the one expected.

    pip install pooch requests tqdm
    python tools/download_model.py --list              # names, sizes, published AP, licences
    python tools/download_model.py nanodet-plus-m_416  # into the repository's root
    python demo.py -m nanodet-plus-m_416

A mirror:             python tools/download_model.py nanodet-m_416 --url ADDRESS
A file of your own:   python tools/download_model.py mine.onnx --url ADDRESS --sha256 HASH

Proxies are taken from HTTP_PROXY, HTTPS_PROXY and NO_PROXY. Exit code: 0 done or already here,
1 failed, 2 usage or input, 130 Ctrl-C.
"""

# ruff: noqa: E402
import command

command.start("download_model.py")
import os
import re
import sys
from argparse import RawDescriptionHelpFormatter
from pathlib import Path
from typing import NamedTuple

from command import ROOT, Failed, InputError

from options import OneLineParser, whole_number

HUB = "https://huggingface.co/opencv/object_detection_nanodet/resolve/main"
ZOO = f"{HUB}/object_detection_nanodet_2022nov"
PLUS = "https://github.com/RangiLyu/nanodet/releases/download/v1.0.0-alpha-1/nanodet-plus-"


class Network(NamedTuple):
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
    Network("nanodet-plus-m_416", 0.304, 4.8, PLUS + "m_416.onnx", PLUS_M_416),
    Network("nanodet-plus-m_320", 0.270, None, PLUS + "m_320.onnx"),
    Network("nanodet-plus-m-1.5x_320", 0.299, None, PLUS + "m-1.5x_320.onnx"),
    Network("nanodet-plus-m-1.5x_416", 0.341, None, PLUS + "m-1.5x_416.onnx"),
)
KNOWN = {network.name: network for network in NETWORKS}


def choose(name, url, sha256):
    """File name, address and sha256 of what was asked for; InputError says what is missing."""
    stem = name.removesuffix(".onnx")
    network = KNOWN.get(stem)
    if network is None and not (url and sha256):
        raise InputError(
            f"{name}: not a known network. Run with --list for their names; "
            "a file of your own needs --url and --sha256."
        )
    sha256 = sha256 or network.sha256
    if not sha256:
        raise InputError(f"{name}: its sha256 is not known here. Give it with --sha256 HASH.")
    return f"{stem}.onnx", url or network.url, sha256


def fetch(url, target, sha256, timeout, retries):
    """Bring `target` here, whole and with this sha256 or not at all; returns what was done."""
    with command.libraries("pooch requests tqdm"):
        import pooch  # not at the top: --list works without it
        import requests
        import tqdm  # noqa: F401  for pooch's progress

    if os.path.lexists(target):  # pooch would overwrite it
        if not target.is_file() or not pooch.hashes.hash_matches(str(target), sha256):
            raise InputError(f"{target}: something else has this name. Move it, or use --output.")
        return "already here, nothing to do"
    pooch.get_logger().addFilter(lambda record: "again" in record.msg)  # not of each start
    downloader = pooch.HTTPDownloader(sys.stderr.isatty(), chunk_size=1 << 16, timeout=timeout)
    source = {"registry": {target.name: sha256}, "urls": {target.name: url}}
    keeper = pooch.create(target.parent, "", **source, retry_if_failed=retries)
    try:
        keeper.fetch(target.name, downloader=downloader)
        umask = os.umask(0)
        os.umask(umask)
        target.chmod(0o666 & ~umask)  # pooch's temporary files are for their owner only
    except (requests.RequestException, ValueError) as error:  # ValueError: another sha256
        shown = re.sub(r"[^/]*@|\?.*", "", url)  # password and query may be secrets
        way_out = "Check network and proxy, or give another address with --url."
        raise Failed(f"{shown}: {reason(error, timeout)}. {way_out}") from error
    except OSError as error:
        message = f"{target}: can't be written: {error.strerror or error}. Use --output."
        raise Failed(message) from error
    return f"saved, {target.stat().st_size} bytes"


def reason(error, timeout):
    """Why a download failed, in words."""
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status >= 400:
        return f"HTTP status {status}"
    while error.__cause__ or error.__context__:  # the first says it, those above quote the address
        error = error.__cause__ or error.__context__
    if isinstance(error, TimeoutError):
        return f"no data for {timeout} s"
    return getattr(error, "strerror", None) or str(error).rstrip(".")


def print_networks():
    row = "{:24} {:>7} {:>6}  {:11} {}"
    print(row.format("name", "size", "AP", "licence", "source"))
    for network in NETWORKS:
        size = f"{network.megabytes:.1f} MB" if network.megabytes else "-"
        ap = f"{network.ap:.3f}" if network.ap else "-"
        source = network.url if network.sha256 else f"{network.url} (needs --sha256)"
        print(row.format(network.name, size, ap, network.licence, source))


def parse(argv):
    parser = OneLineParser(
        prog="download_model.py",
        description=__doc__.partition("\n")[0],
        epilog=__doc__.partition("\n\n")[2],
        formatter_class=RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="one of --list, or a file name of your own")
    add("--list", action="store_true", help="show the networks known, and exit")
    folder = "folder (default: the repository)"
    add("-o", "--output", type=Path, default=ROOT, metavar="DIR", help=folder)
    add("--url", metavar="ADDRESS", help="http or https address of a mirror")
    add("--sha256", metavar="HASH", help="of the file, 64 hexadecimal digits")
    wait = "give up after S seconds without data (default %(default)s)"
    add("--timeout", type=whole_number(1), default=30, metavar="S", help=wait)
    tries = "how often to try again after a fault (default %(default)s)"
    add("--retries", type=whole_number(0), default=2, metavar="N", help=tries)
    args = parser.parse_args(argv)
    if not (args.name or args.list):
        parser.error("NAME is missing. Run with --list for the names known")
    return args


def main(argv=None):
    """Run the command line."""
    args = parse(argv)
    if args.list:
        return print_networks()
    name, url, sha256 = choose(args.name, args.url, args.sha256)
    if not args.output.is_dir():
        raise InputError(f"{args.output}: no such folder. Make it first.")
    target = args.output / Path(name).name
    done = fetch(url, target, sha256, args.timeout, args.retries)
    print(f"{target}: {done}, sha256 as expected")


if __name__ == "__main__":
    sys.exit(command.run(main))
