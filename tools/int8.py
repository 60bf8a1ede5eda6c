"""How a NanoDet network becomes one in int8: ranges from pictures, and what stays in float."""

import copy
import itertools
import tempfile
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization
from onnxruntime.quantization.calibrate import create_calibrator
from onnxruntime.quantization.shape_inference import quant_pre_process

from cli.command import UsageError
from media.pictures import read_picture
from media.sources import open_source
from nanodet import MEAN, STD, Letterbox

# Of the bundled network, one of these left in float takes more time than it saves.
QUANTIZED = ["Conv", "Concat", "MaxPool", "LeakyRelu", "Resize", "Add"]
SIZES = [(side, side) for side in (320, 416, 512, 640)]  # of 416 only, AP drops at 512 and 640
ODD = (96, 96)  # a canvas that leaves most maps with a number of places not divisible by 8
PICTURES, CROPS = 32, 6
LEAKY_LOW = -0.75  # lower end of a LeakyRelu's input, of its upper end
PLUS_IN_FLOAT = 27  # first convolutions of NanoDet-Plus: in int8 they lose AP and save nothing
DONE = ("Quantize", "Dequantize", "Dynamic", "QLinear", "ConvInteger", "MatMulInteger")


def reader(blobs):
    """What the quantizer's calibration reads: {name of the input: blob}, one after another."""
    blobs = iter(blobs)
    return SimpleNamespace(get_next=lambda: next(blobs, None))


def blobs(name, image, sizes, keep_ratio, mean, std):
    """An image as a network is given it: whole, mirrored, and in random crops, at each size."""
    mean, std = np.array((mean, std))[..., None]
    tables = ((np.arange(256) - mean) / std).astype(np.float32)  # what a colour's values become
    random, (height, width) = np.random.default_rng(0), image.shape[:2]
    views = [image, image[:, ::-1]]
    for scale in random.uniform(0.3, 0.9, CROPS):  # it decides how large values get
        top, left = (int(random.uniform(0, side - scale * side)) for side in (height, width))
        bottom, right = (max(1, int(scale * side)) for side in (height, width))
        views.append(image[top:, left:][:bottom, :right])
    for view, size in itertools.product(views, sizes):
        canvas = np.zeros((size[1], size[0], 3), np.uint8)
        Letterbox.fit(view.shape[1::-1], size, keep_ratio).draw(view, canvas)
        yield {name: np.stack([t[canvas[..., i]] for i, t in enumerate(tables)])[None]}


def read_network(path):
    """A network as the quantizer needs it: names, and weights that are float32 constants."""
    model = onnx.load(path)
    if any(node.op_type.startswith(DONE) for node in model.graph.node):
        raise UsageError(f"{path}: is in int8 already. Give the network that it was made from.")
    for named in (*model.opset_import, *model.graph.node):
        if named.domain == "ai.onnx":  # the same as none
            named.domain = ""
    compute_in_float32(model.graph)
    weights = {weight.name for weight in model.graph.initializer}
    for value in [value for value in model.graph.input if value.name in weights]:
        model.graph.input.remove(value)  # of old exports: what is an input is not constant
    if max(opset.version for opset in model.opset_import if not opset.domain) < 13:
        model = onnx.version_converter.convert_version(model, 13)
    with tempfile.TemporaryDirectory() as folder:
        given, output = Path(folder, "given.onnx"), Path(folder, "float32.onnx")
        onnx.save(model, given)
        quant_pre_process(given, output, skip_symbolic_shape=True, skip_onnx_shape=True)
        model = onnx.load(output)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    return model


def compute_in_float32(graph):
    """Let a network that computes in float16 compute in float32; others stay as they are."""
    casts = [node for node in graph.node if node.op_type == "Cast"]
    targets = [to for node in casts for to in node.attribute if to.i == TensorProto.FLOAT16]
    kinds = [value.type.tensor_type for value in (*graph.input, *graph.output, *graph.value_info)]
    kinds = [kind for kind in kinds if kind.elem_type == TensorProto.FLOAT16]
    if not (targets or kinds):  # float16 is only how weights are stored
        return
    for to in targets:
        to.i = TensorProto.FLOAT
    for kind in kinds:
        kind.elem_type = TensorProto.FLOAT
    attributes = (attribute.t for node in graph.node for attribute in node.attribute)
    constants = set()
    for tensor in (*graph.initializer, *attributes):
        if tensor.data_type == TensorProto.FLOAT16:
            wide = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
            constants.add(tensor.name)
    # A Cast hides that they are constant, and Resize would seem to have both sizes and scales.
    given = {node.output[0]: node.input[0] for node in casts if node.input[0] in constants}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = given.get(name, name)


def calibrate(model, images, sizes, keep_ratio=True, mean=MEAN, std=STD):
    """How to map each tensor of a network to uint8: [scale, zero point] by its name.

    The images are BGR uint8 of shape (H, W, 3), looked at on canvases of sizes (width, height).
    """
    with tempfile.TemporaryDirectory() as folder:
        given, augmented = Path(folder, "float32.onnx"), Path(folder, "augmented.onnx")
        onnx.save(model, given)
        calibrator = create_calibrator(given, QUANTIZED, str(augmented))
        for image in images:
            blob = blobs(model.graph.input[0].name, image, sizes, keep_ratio, mean, std)
            calibrator.collect_data(reader(blob))
        ranges = calibrator.compute_data().data
    readers = {name: set() for name in ranges}
    for node in model.graph.node:
        for name in ranges.keys() & {*node.input}:
            readers[name].add(node.op_type)
    table = {}
    for name, found in ranges.items():
        # With 0, which padding needs, also where all values are below or above it.
        low, high = min(0.0, float(np.min(found.lowest))), max(0.0, float(np.max(found.highest)))
        if readers[name] == {"LeakyRelu"}:  # it makes what is far below zero small
            low = max(low, min(low / 2, LEAKY_LOW * high))
        scale = float(f"{max(high - low, 1e-6) / 255:.5g}")  # so that other machines make the same
        table[name] = [scale, round(-low / scale)]
    return table


def left_in_float(model, size, plus=False):
    """Names of the nodes that int8 would harm, for a canvas (width, height)."""
    shaped = copy.deepcopy(model)
    dims = shaped.graph.input[0].type.tensor_type.shape.dim
    for dim, side in zip(dims, (1, 3, *size[::-1]), strict=True):
        dim.dim_value = side
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in onnx.shape_inference.infer_shapes(shaped).graph.value_info
    }
    kernels = {weight.name: [*weight.dims[2:]] for weight in model.graph.initializer}
    nodes = list(model.graph.node)
    convs = [node for node in nodes if node.op_type == "Conv"]
    # OpenCV 5.0 computes the last places of an int8 map wrong on some processors where the kernel
    # is 1x1 and their number does not divide by 8 (`fault_case`).
    names = {
        node.name
        for node in convs
        if kernels[node.input[1]] == [1, 1] and np.prod(shapes[node.output[0]][2:]) % 8
    }
    # What stands before the first one normalises, and is told by its constants.
    names |= {node.name for node in nodes[: nodes.index(convs[0])]}
    # An error of the last convolutions goes straight into the outputs, and a Concat after them
    # would join confidences and logits under one scale.
    needed = {name for node in convs for name in node.input}
    for node in reversed(nodes):
        if needed.isdisjoint(node.output):
            names.add(node.name)
        else:
            needed.update(node.input)
    if plus:
        names |= {node.name for node in nodes[: nodes.index(convs[PLUS_IN_FLOAT])]}
    return sorted(names)


def quantize(model, table, excluded, size):
    """The network in QDQ form: weights int8 per channel, activations uint8 by a table of mappings.

    `excluded` names the nodes left in float; it accepts a canvas of `size` (width, height).
    """
    black = np.zeros((1, 3, *size[::-1]), np.float32)  # it asks for blobs, if all is known, too
    overrides = {
        name: [{"scale": np.array(scale, np.float32), "zero_point": np.array(zero, np.uint8)}]
        for name, (scale, zero) in table.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        given, output = Path(folder, "float32.onnx"), Path(folder, "int8.onnx")
        onnx.save(model, given)
        quantization.quantize_static(
            given,
            output,
            reader([{model.graph.input[0].name: black}]),
            op_types_to_quantize=QUANTIZED,
            nodes_to_exclude=excluded,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"TensorQuantOverrides": overrides},
        )
        result = onnx.load(output)
    for opset in [opset for opset in result.opset_import if opset.domain]:
        result.opset_import.remove(opset)  # the tools name all that they know
    del result.graph.value_info[:], result.metadata_props[:]
    return result


def read_pictures(folder):
    """The pictures of a folder, evenly chosen if there are many."""
    if not Path(folder).is_dir():
        raise UsageError(f"--images {folder}: is not a folder.")
    paths = open_source(str(folder)).paths
    places = np.linspace(0, len(paths) - 1, min(len(paths), PICTURES)).round().astype(int)
    return [read_picture(paths[place])[0] for place in places]


def fault_case():
    """A network of one int8 1x1 convolution, its input, and the map that is right (C, 13, 13).

    OpenCV 5.0 computes it wrong on processors with AVX-VNNI: in the last places of a map whose
    number of places does not divide by 8.
    """
    random, side, channels = np.random.default_rng(0), 13, 64
    weight = random.integers(-100, 100, (channels, channels, 1, 1)).astype(np.int8)
    constants = {
        "scale": np.float32(0.02),
        "zero": np.uint8(30),
        "w": weight,
        "w_scale": np.full(channels, 0.01 / channels, np.float32),
        "w_zero": np.zeros(channels, np.int8),
        "out_scale": np.float32(0.1),
        "out_zero": np.uint8(128),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "scale", "zero"], ["x32"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w32"], axis=0),
        helper.make_node("Conv", ["x32", "w32"], ["y"], kernel_shape=[1, 1]),
        helper.make_node("QuantizeLinear", ["y", "out_scale", "out_zero"], ["y8"]),
        helper.make_node("DequantizeLinear", ["y8", "out_scale", "out_zero"], ["out"]),
    ]
    shape = (1, channels, side, side)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "out")]
    values = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items()]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    x = random.uniform(0, 4, shape).astype(np.float32)
    x8 = np.clip(np.rint(x[0] / 0.02) + 30, 0, 255) - 30
    y = np.einsum("oi,ihw->ohw", weight[:, :, 0, 0] * (0.01 / channels), x8 * 0.02)
    return model.SerializeToString(), x, (np.clip(np.rint(y / 0.1) + 128, 0, 255) - 128) * 0.1


def opencv_faults():
    """Row and column of each place of `fault_case` that the installed OpenCV computes wrong."""
    model, x, expected = fault_case()
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
    net.setInput(x)
    wrong = np.abs(net.forward()[0] - expected).max(axis=0) > 0.15  # a step is 0.1
    return np.argwhere(wrong).tolist()
