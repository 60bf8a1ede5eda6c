"""Make the int8 twin of a NanoDet network: half the bytes or less, and less time where it pays.

    pip install numpy onnx onnxruntime opencv-python
    python tools/quantize_model.py my.onnx --images DIR
    python tools/quantize_model.py my.onnx --images DIR --annotations instances.json

The pictures show how large each tensor becomes: some 30 like those that the network will see are
enough, and of more an even choice is used. Then the detections and times of both networks are
compared on them; --annotations measures AP, too. Exit code: 0 done, 1 failed, 2 usage or input,
130 Ctrl-C.
"""

import command

if __name__ == "__main__":
    command.start("quantize_model.py")

import copy
import itertools
import logging
import sys
import tempfile
import time
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

import numpy as np
from command import InputError

from media.frames import SourceError
from media.outputs import is_one_of, whole_file
from media.pictures import read_picture
from media.sources import open_source
from nanodet import Letterbox, nms, read_model
from options import INT8, NetworkOptions, OneLineParser, UsageError, find_model, whole_number

with command.libraries("onnx onnxruntime"):
    import onnx
    import onnx.version_converter
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.calibrate import create_calibrator
    from onnxruntime.quantization.shape_inference import quant_pre_process

# Of the bundled network, one of these left in float takes more time than it saves.
QUANTIZED = ["Conv", "Concat", "MaxPool", "LeakyRelu", "Resize", "Add"]
SIZES = [(side, side) for side in (320, 416, 512, 640)]  # of 416 only, AP drops at 512 and 640
ODD = (96, 96)  # a canvas that leaves most maps with a number of places not divisible by 8
PICTURES, CROPS = 32, 6
LEAKY_LOW = -0.75  # lower end of a LeakyRelu's input, of its upper end
PLUS_IN_FLOAT = 27  # first convolutions of NanoDet-Plus: in int8 they lose AP and save nothing
WORTH = 0.9  # int8's part of float32's time from which on it is not worth it
SAME = 0.6  # IoU from which on boxes show one object, as of `NanoDet`
MEAN, STD = np.array(((103.53, 116.28, 123.675), (57.375, 57.12, 58.395)))


class Blobs(quantization.CalibrationDataReader):
    """What the quantizer's calibration reads: {name of the input: blob}, one after another."""

    def __init__(self, blobs):
        self.blobs = iter(blobs)

    def get_next(self):
        return next(self.blobs, None)


def blobs(name, image, sizes, keep_ratio):
    """An image as a network is given it: whole, mirrored, and in random crops, at each size."""
    random, (height, width) = np.random.default_rng(0), image.shape[:2]
    views = [image, image[:, ::-1]]
    for scale in random.uniform(0.3, 0.9, CROPS):  # it decides how large values get
        top, left = (int(random.uniform(0, side - scale * side)) for side in (height, width))
        bottom, right = (max(1, int(scale * side)) for side in (height, width))
        views.append(image[top:, left:][:bottom, :right])
    for view, size in itertools.product(views, sizes):
        canvas = np.zeros((size[1], size[0], 3), np.uint8)
        Letterbox.fit(view.shape[1::-1], size, keep_ratio).draw(view, canvas)
        yield {name: ((canvas - MEAN) / STD).astype(np.float32).transpose(2, 0, 1)[None]}


def read_network(path):
    """A network as the quantizer needs it: names, and weights that are float32 constants."""
    model = onnx.load(path)
    if any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in model.graph.node):
        raise InputError(f"{path}: is in int8 already.")
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


def calibrate(model, images, sizes, keep_ratio=True):
    """How to map each tensor of a network to uint8: [scale, zero point] by its name.

    The images are BGR uint8 of shape (H, W, 3), looked at on canvases of sizes (width, height).
    """
    with tempfile.TemporaryDirectory() as folder:
        given, augmented = Path(folder, "float32.onnx"), Path(folder, "augmented.onnx")
        onnx.save(model, given)
        calibrator = create_calibrator(given, QUANTIZED, str(augmented))
        for image in images:
            blob = blobs(model.graph.input[0].name, image, sizes, keep_ratio)
            calibrator.collect_data(Blobs(blob))
        ranges = calibrator.compute_data().data
    readers = {name: set() for name in ranges}
    for node in model.graph.node:
        for name in ranges.keys() & {*node.input}:
            readers[name].add(node.op_type)
    table = {}
    for name, found in ranges.items():
        low, high = min(0.0, float(np.min(found.lowest))), float(np.max(found.highest))
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
    # is 1x1 and their number does not divide by 8 (docs/opencv5_int8_1x1.md).
    names = {
        node.name
        for node in convs
        if kernels[node.input[1]] == [1, 1] and np.prod(shapes[node.output[0]][2:]) % 8
    }
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
            Blobs([{model.graph.input[0].name: black}]),
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
        raise InputError(f"--images {folder}: is not a folder.")
    paths = open_source(str(folder)).paths
    places = np.linspace(0, len(paths) - 1, min(len(paths), PICTURES)).round().astype(int)
    return [read_picture(paths[place])[0] for place in places]


def compare(detectors, images):
    """Print how detections and times of the network in float32 and in int8 differ."""
    counts, same, times = [0, 0], 0, ([], [])
    for image in images:
        found = []
        for detector, milliseconds in zip(detectors, times, strict=True):
            started = time.perf_counter()
            found.append(detector.detect(image))
            milliseconds.append(1000 * (time.perf_counter() - started))
        boxes = [
            np.concatenate([getattr(each, name) for each in found])
            for name in ("xyxy", "confidence", "class_id")
        ]
        counts = np.add(counts, [len(each) for each in found])
        same += len(boxes[0]) - len(nms(*boxes, SAME))  # within a network none overlap so much
    before, after = (float(np.median(milliseconds)) for milliseconds in times)
    print(
        f"{len(images)} pictures: {counts[0]} objects in float32, {counts[1]} in int8, "
        f"{same} of them in both\n{detectors[0].engine}: {before:.1f} ms a picture in float32, "
        f"{after:.1f} in int8"
    )
    if after > WORTH * before:
        print("int8 is not worth it for this network on this machine.")


def main(argv=None):
    """Run the command line."""
    summary, _, epilog = __doc__.partition("\n\n")
    layout = {"epilog": epilog, "formatter_class": RawDescriptionHelpFormatter}
    parser = OneLineParser(prog="quantize_model.py", description=summary, **layout)
    add = parser.add_argument
    add("model", metavar="FILE", help="ONNX file of any NanoDet")
    add("--images", type=Path, required=True, metavar="DIR", help="folder of pictures")
    instances = "COCO instances file of these pictures, to measure AP"
    add("--annotations", metavar="FILE", help=instances)
    classes = "number of classes, where it can't be inferred from the network"
    add("--num-classes", type=whole_number(1), metavar="N", help=classes)
    output = "ONNX file to write (default: FILE with _int8 at the end of its name)"
    add("-o", "--output", type=Path, metavar="FILE", help=output)
    args = parser.parse_args(argv)
    path = Path(find_model(args.model))
    output = args.output or path.with_name(f"{path.stem}_int8.onnx")
    if is_one_of(output, [path, INT8]):
        raise InputError(f"{output}: is the network itself, or the one here. Give another -o.")
    if args.annotations and not Path(args.annotations).is_file():
        raise InputError(f"--annotations {args.annotations}: no such file.")
    settings = {"engine": "onnxruntime", "num_classes": args.num_classes}
    detector = NetworkOptions(path, None, None, settings).load()
    own_size, plus = read_model(path)[1], len(detector.head.strides) == 4
    images, model = read_pictures(args.images), read_network(path)
    table = calibrate(model, images, [own_size] if own_size else SIZES, detector.keep_ratio)
    size = own_size or ODD
    with whole_file(output) as part:
        onnx.save(quantize(model, table, left_in_float(model, size, plus), size), part)
        twin = NetworkOptions(part, None, None, settings).load()
    print(f"{output}: {output.stat().st_size} bytes, {path.stat().st_size} before")
    compare((detector, twin), images)
    if args.annotations:
        import evaluate  # not at the top: it needs more libraries

        with tempfile.TemporaryDirectory() as folder:
            given = [
                "--annotations",
                args.annotations,
                "--images",
                str(args.images),
                "-m",
                str(path),
            ]
            given += ["--num-classes", str(args.num_classes)] if args.num_classes else []
            given += ["--engine", "onnxruntime", "--out", folder]
            evaluate.main([*given, "--compare", "-m", str(output)])


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # the quantizer recommends what is done
    onnxruntime.set_default_logger_severity(3)
    sys.exit(command.run(main, (SourceError, UsageError)))
