"""ONNX files by hand: the text form of a graph, written, and a file with its graph changed."""

import contextlib

import pytest


def write_graph(path, text):
    """Write a network given in ONNX's text form, "(inputs) => (outputs) { nodes }"."""
    onnx = pytest.importorskip("onnx")
    head = '<ir_version: 7, opset_import: ["" : 12]> graph '  # OpenCV 4.10 reads these, too
    onnx.save(onnx.parser.parse_model(head + text), path)
    return path


@contextlib.contextmanager
def edited(path):
    """The ONNX model in a file, to be changed; then it is written back."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    yield model
    onnx.save(model, path)
