"""A NanoDet network of TensorFlow.js as plain ONNX, in NCHW and for any size."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cli.command import Failed

OPSET, IR_VERSION = 13, 7  # what OpenCV 4.10 and onnxruntime of its day read without fault


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
    """An onnx.ModelProto of a TensorFlow.js graph; weights are its constants by node name.

    Its input is `input` (1, 3, h, w), its outputs are `confidence_<stride>` (1, n, C) by stride,
    then `distribution_<stride>` (1, n, 4 * (reg_max + 1)) by stride, with n = h * w / stride ** 2.
    Failed names a node that is not understood.
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
    return helper.make_model(
        # Casts first: a bias turns up after its Conv was emitted.
        helper.make_graph(to.casts + to.nodes, "NanoDet-g", [picture], values, to.initializers),
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )


def float_value(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
