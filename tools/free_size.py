"""Let a NanoDet network that was exported for one size run at any.

    pip install onnx
    python tools/free_size.py nanodet-plus-m_416.onnx
    python demo.py -m nanodet-plus-m_416_any.onnx --size 512

The weights stay as they are. What fixes the size is only how a few nodes are written: channel
shuffles as reshapes, resizes to sizes, the flattening of the outputs. The outputs are then compared
with those before, at the network's own size, on each engine that is installed; where they differ,
nothing is written. Exit code: 0 done, 1 failed, 2 usage or input, 130 Ctrl-C.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # python -I and -P know no other folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cli import command

if __name__ == "__main__":
    command.start("free_size.py")

import math

import numpy as np

from cli.command import Failed, UsageError, say
from cli.network import BUNDLED, installed_engines
from cli.options import OneLineParser
from media.outputs import whole_file
from nanodet import NanoDet
from tools.conversion import add_conversion_flags, paths_of

SAME = 1e-3  # outputs that differ by less are the same; logits reach 10


def free_size(model, size):
    """An ONNX network like this one that runs at any size; `size` (width, height) is its own."""
    from onnx import version_converter

    if max(opset.version for opset in model.opset_import if not opset.domain) < 13:
        model = version_converter.convert_version(model, 13)  # before, sizes can't be followed
    graph = model.graph
    del graph.value_info[:]  # shapes at its own size
    for output in graph.output:
        for dim in output.type.tensor_type.shape.dim[-2:-1]:
            dim.dim_param = f"anchors of {output.name}"
    shapes = shapes_at(model, *size[::-1])
    for node in list(graph.node):
        if node.op_type == "Reshape":
            free_shuffle(graph, node, shapes)
        elif node.op_type == "Resize" and len(node.input) > 3:
            free_resize(graph, node, shapes)
    free_flattening(model, shapes)
    join_doubled_maps(graph)
    remove_unused(graph)
    return model


def image_of(graph):
    """The one input that is not a weight."""
    weights = {weight.name for weight in graph.initializer}
    (image,) = (value for value in graph.input if value.name not in weights)
    return image


def shapes_at(model, height, width):
    """{tensor: shape} for an image of these sides; what depends on a side given as a name is 0."""
    from onnx import shape_inference

    dims = image_of(model.graph).type.tensor_type.shape.dim
    for dim, side in zip(dims, (1, 3, height, width), strict=True):
        setattr(dim, "dim_param" if isinstance(side, str) else "dim_value", side)
    graph = shape_inference.infer_shapes(model, data_prop=True).graph
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


def known_shapes(node, shapes):
    """Shapes of what a node is given and of what it makes of it."""
    found = [shapes.get(name, []) for name in (node.input[0], node.output[0])]
    if not all(shape and all(shape) for shape in found):
        raise refusal(node, "has shapes that can't be inferred")
    return found


def refusal(node, fault):
    """The error for a node that can't be changed."""
    name = f"{node.op_type} {node.name or node.output[0]}"
    return UsageError(f"its node {name} {fault}. Export it at the size you need.")


def constant(graph, name, array):
    """Add a constant to a graph; returns its name."""
    from onnx import numpy_helper

    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def free_shuffle(graph, node, shapes):
    """Let one Gather shuffle the channels where a Reshape, a Transpose and a Reshape do it."""
    from onnx import helper

    nodes = [node]
    for operation in ("Transpose", "Reshape"):
        readers = [reader for reader in graph.node if nodes[-1].output[0] in reader.input]
        if [reader.op_type for reader in readers] != [operation]:
            return
        nodes += readers
    before, inside = known_shapes(node, shapes)
    (perm,) = (list(attribute.ints) for attribute in nodes[1].attribute)
    channels = math.prod(inside[:3])
    swapped = perm == [0, 2, 1, *range(3, len(inside))]
    if swapped and [1, channels] == before[:2] and shapes.get(nodes[2].output[0]) == before:
        order = np.arange(channels).reshape(inside[1:3]).T.ravel()
        name = constant(graph, f"{nodes[2].output[0]}_order", order)
        node.CopyFrom(
            helper.make_node("Gather", [node.input[0], name], nodes[2].output, node.name, axis=1)
        )
        for rest in nodes[1:]:
            graph.node.remove(rest)


def free_resize(graph, node, shapes):
    """Let a Resize multiply the sides where it makes them those of its own size."""
    before, after = known_shapes(node, shapes)
    if any(max(pair) % min(pair) for pair in zip(before, after, strict=True)):
        raise refusal(node, f"makes {after} of {before}, by no whole factor")
    scales = np.array(after, np.float32) / np.array(before, np.float32)
    node.input[1:] = ["", constant(graph, f"{node.output[0]}_scales", scales)]


def free_flattening(model, shapes):
    """Let each Reshape of a map count the anchors by itself."""
    done = set()
    while True:
        free = shapes_at(model, "height", "width")  # behind a Reshape known once that is changed
        ready = [
            node
            for node in model.graph.node
            if node.op_type == "Reshape"
            and node.output[0] not in done
            and 0 in free.get(node.input[0], ())
        ]
        if not ready:
            return
        for node in ready:
            before, after = known_shapes(node, shapes)
            sides = [n for n, fixed in zip(before, free[node.input[0]], strict=True) if not fixed]
            places = [place for place, n in enumerate(after) if n == math.prod(sides)]
            if not places:
                raise refusal(node, f"makes {after} of {before}, whatever the size")
            after[places[-1]] = -1
            node.input[1] = constant(model.graph, f"{node.output[0]}_shape", np.array(after))
            done.add(node.output[0])


def join_doubled_maps(graph):
    """Let OpenCV 4 read a Concat of a doubled map and others.

    While it reads, it takes free sides as 0. An Add makes 1 of 0, a Resize then 2, and a Concat
    refuses sides that differ, while Add accepts 1 beside 2. So a Mul makes all sides 1 from the
    image on, and beside a doubled map the others get added what is 0 and as large.
    """
    from onnx import helper

    doubled = {name for node in graph.node if node.op_type == "Resize" for name in node.output}
    joins = [n for n in graph.node if n.op_type == "Concat" and not doubled.isdisjoint(n.input)]
    if not joins:
        return
    image = image_of(graph)
    one = np.ones(1, helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type))
    start = f"{image.name}_times_one"
    for node in graph.node:
        node.input[:] = [start if name == image.name else name for name in node.input]
    factors = [image.name, constant(graph, f"{start}_one", one)]
    graph.node.insert(0, helper.make_node("Mul", factors, [start]))
    for join in joins:
        double = next(name for name in join.input if name in doubled)
        for place, name in enumerate(join.input):
            if name not in doubled:
                zero, sum_ = f"{name}_zero_{double}", f"{name}_as_{double}"
                at = list(graph.node).index(join)
                graph.node.insert(at, helper.make_node("Add", [name, zero], [sum_]))
                graph.node.insert(at, helper.make_node("Sub", [double, double], [zero]))
                join.input[place] = sum_


def remove_unused(graph):
    """Remove the nodes that computed sizes, and constants that nothing needs any more."""
    needed, nodes = {output.name for output in graph.output}, []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            needed.update(node.input)
            nodes.insert(0, node)
    for values, kept in (
        (graph.node, nodes),
        (graph.initializer, [weight for weight in graph.initializer if weight.name in needed]),
        (graph.input, [value for value in graph.input if value.name in needed]),
    ):
        del values[:]
        values.extend(kept)


def load(path, **settings):
    """A network on the engines that are installed: ({engine: NanoDet}, {engine: its fault})."""
    networks, faults = {}, {}
    for engine in installed_engines():
        try:
            networks[engine] = NanoDet(path, engine=engine, **settings)
        except ValueError as error:
            faults[engine] = str(error)
    return networks, faults


def outputs_of(network, size):
    """What a network makes of noise at a size (width, height), in the order of its groups.

    Engines order outputs as they like, and may do so anew when a graph has been changed.
    """
    noise = np.random.default_rng(0).normal(size=(1, 3, *size[::-1])).astype(np.float32)
    outputs = network._forward(noise)
    order = [place for first, second, _ in network.head.groups for place in (first, second)]
    return np.concatenate([outputs[place].ravel() for place in order])


def main(argv=None):
    """Run the command line."""
    parser = OneLineParser("free_size.py", __doc__)
    add_conversion_flags(parser, "_any")
    args = parser.parse_args(argv)
    with command.packages("onnx"):
        import onnx
    path, output = paths_of(args, "_any", BUNDLED)
    given, faults = load(path, num_classes=args.num_classes)
    if not given:
        raise UsageError(faults["opencv"])
    at_any_size = {"num_classes": args.num_classes, "rect": True}  # rect needs it
    if load(path, **at_any_size)[0].keys() == given.keys():
        raise UsageError(f"{path}: runs at any size already.")
    size = next(iter(given.values())).input_size
    try:
        model = free_size(onnx.load(path), size)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    lines = [f"{output}: runs at any size", *faults.values()]
    with whole_file(output) as part:
        onnx.save(model, part)
        free, faults = load(part, **at_any_size)
        for engine, network in given.items():
            if engine not in free:
                fault = faults[engine].removeprefix(f"{part}: ").partition(". ")[0]
                lines.append(f"{network.engine}: can't run it at any size: {fault}")
                continue
            difference = abs(outputs_of(network, size) - outputs_of(free[engine], size)).max()
            if not difference < SAME:
                raise Failed(
                    f"{path}: its outputs would differ by {difference:.1g} on {network.engine}. "
                    "Export it at the size you need."
                )
            lines.append(f"{network.engine}: the same outputs at {size[0]}x{size[1]}")
        if given.keys().isdisjoint(free):
            raise UsageError(
                f"{path}: still runs at no other size when changed: {fault}. "
                "Export it at the size you need."
            )
    for line in lines:
        say(line)


if __name__ == "__main__":
    sys.exit(command.run("free_size.py", main))
