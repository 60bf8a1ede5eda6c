"""What the tools have in common that make another ONNX file of a network."""

from pathlib import Path

from cli.command import UsageError
from cli.network import find_model
from cli.options import whole_number
from media.outputs import is_one_of


def add_conversion_flags(parser, ending):
    """Give a parser the network, and the file to write: by default with `ending` in its name."""
    add = parser.add_argument
    add("model", metavar="FILE", help="ONNX file of any NanoDet")
    classes = "number of classes, where it can't be inferred from the network"
    add("--num-classes", type=whole_number(1), metavar="N", help=classes)
    output = f"ONNX file to write (default: FILE with {ending} at the end of its name)"
    add("-o", "--output", type=Path, metavar="FILE", help=output)


def paths_of(args, ending, kept):
    """The network and the file to write, which may be neither the network nor `kept`."""
    path = Path(find_model(args.model))
    output = args.output or path.with_name(f"{path.stem}{ending}.onnx")
    if is_one_of(output, [path, kept]):
        raise UsageError(f"{output}: is the network itself, or the one here. Give another -o.")
    return path, output
