"""Fetch a NanoDet network and keep it only if its sha256 is the one known.

    pip install pooch
    python tools/download_model.py --list              # names, sizes, published AP, addresses
    python tools/download_model.py nanodet-plus-m_416  # into the repository's root
    python demo.py -m nanodet-plus-m_416

From a mirror: python tools/download_model.py nanodet-plus-m_416 --url ADDRESS

Proxies are taken from HTTP_PROXY, HTTPS_PROXY and NO_PROXY. Exit code: 0 done or already here,
1 failed, 2 usage or input, 130 Ctrl-C.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # python -I and -P know no other folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cli import command

if __name__ == "__main__":
    command.start("download_model.py")

import os
import re
from typing import NamedTuple

from cli.command import Failed, UsageError, say
from cli.network import ROOT
from cli.options import OneLineParser
from tools.markdown import markdown

HUB = "https://huggingface.co/opencv/object_detection_nanodet/resolve/main"
PLUS = "https://github.com/RangiLyu/nanodet/releases/download/v1.0.0-alpha-1"


class Network(NamedTuple):
    """A network that can be fetched."""

    ap: str  # COCO val2017, published by its author
    megabytes: float
    url: str
    sha256: str


# By name; saved as name + ".onnx". The Zoo's two files get the author's name for the network:
# object_detection_nanodet_2022nov is the bundled one here. The AP in the Zoo's README is that of
# another network, Plus-m 416.
NETWORKS = {
    "nanodet-m_416": Network(
        "0.235",
        3.8,
        f"{HUB}/object_detection_nanodet_2022nov.onnx",
        "4b82da9944b88577175ee23a459dce2e26e6e4be573def65b1055dc2d9720186",
    ),
    "nanodet-m_416_int8": Network(
        "-",
        1.0,
        f"{HUB}/object_detection_nanodet_2022nov_int8.onnx",
        "8dd32b85f2d273e9047f1d6b59e0b2fd008b1076338107bb547ac28942cdf90b",
    ),
    "nanodet-plus-m_416": Network(
        "0.304",
        4.8,
        f"{PLUS}/nanodet-plus-m_416.onnx",
        "59d2f166088889c902f523bf08079391993491324f0d84847e3c4016a8f7cc3d",
    ),
}


def fetch(url, target, sha256):
    """Bring `target` here, whole and with this sha256 or not at all; returns what was done."""
    import pooch
    import requests

    if os.path.lexists(target):  # pooch would overwrite it
        if not target.is_file() or not pooch.hashes.hash_matches(str(target), sha256):
            raise UsageError(f"{target}: something else has this name. Move it, or use --output.")
        return "already here, nothing to do"
    pooch.get_logger().setLevel("ERROR")
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty())
    try:
        pooch.retrieve(url, sha256, target.name, target.parent, downloader=downloader)
    except (requests.RequestException, ValueError) as error:  # ValueError: another sha256
        shown = re.sub(r"[^/]*@|\?.*", "", url)  # password and query may be secrets
        raise Failed(
            f"{shown}: {reason(error)}. Check network and proxy, or give --url."
        ) from error
    except OSError as error:
        message = f"{target}: can't be written: {error.strerror or error}. Use --output."
        raise Failed(message) from error
    umask = os.umask(0)
    os.umask(umask)
    target.chmod(0o666 & ~umask)  # pooch's temporary files are for their owner only
    return f"saved, {target.stat().st_size} bytes"


def reason(error):
    """Why a download failed, without the address, which may contain secrets."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP status {response.status_code}"
    while error.__context__:  # the first says it, those above quote the address
        error = error.__context__
    return getattr(error, "strerror", None) or str(error).rstrip(".")


def parse(argv):
    """The options; argparse exits with 2 where one is wrong."""
    parser = OneLineParser("download_model.py", __doc__)
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="one of --list")
    add("--list", action="store_true", help="show the networks known, and exit")
    folder = "folder (default: the repository)"
    add("-o", "--output", type=Path, default=Path(ROOT), metavar="DIR", help=folder)
    add("--url", metavar="ADDRESS", help="http or https address of a mirror")
    args = parser.parse_args(argv)
    if not (args.name or args.list):
        parser.error("NAME is missing. Run with --list for the names known")
    return args


def main(argv=None):
    """Run the command line."""
    args = parse(argv)
    if args.list:
        rows = [
            (name, f"{network.megabytes} MB", network.ap, network.url)
            for name, network in NETWORKS.items()
        ]
        print(markdown(("name", "size", "published AP", "address"), rows))
        return print("All are by RangiLyu, under the Apache License 2.0.")
    name = args.name.removesuffix(".onnx")
    if name not in NETWORKS:
        raise UsageError(f"{args.name}: not a known network. Run with --list for their names.")
    if not args.output.is_dir():
        raise UsageError(f"{args.output}: no such folder. Make it first.")
    network, target = NETWORKS[name], args.output / f"{name}.onnx"
    with command.packages("pooch"):
        import pooch  # noqa: F401
    done = fetch(args.url or network.url, target, network.sha256)
    say(f"{target}: {done}, sha256 as expected")


if __name__ == "__main__":
    sys.exit(command.run("download_model.py", main))
