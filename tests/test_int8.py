"""A network quantised to int8, as OpenCV Zoo ships one."""

import cv2
import numpy as np
import pytest
import reference

from nanodet import NanoDet

SIZE = (416, 416)


def with_float32_weights(model):
    """The bundled network as the quantiser wants it: its float16 weights cast once and for all."""
    from onnx import numpy_helper

    graph = model.graph
    halves = {weight.name: weight for weight in graph.initializer}
    casts = [node for node in graph.node if node.op_type == "Cast" and node.input[0] in halves]
    for node in casts:
        weight = numpy_helper.to_array(halves[node.input[0]]).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
        graph.initializer.remove(halves[node.input[0]])
        graph.node.remove(node)
    return model


@pytest.fixture(scope="module")
def int8(bundled, tmp_path_factory):
    """The bundled network in QDQ form, calibrated on a picture that is shipped."""
    onnx = pytest.importorskip("onnx")
    quantization = pytest.importorskip("onnxruntime.quantization")
    image = cv2.imread(str(bundled.parent / "example_inputs" / "street.jpg"))
    blob, _ = reference.blob_of(image, SIZE, True)

    class Pictures(quantization.CalibrationDataReader):
        left = [{"input": blob}, {"input": blob[..., ::-1].copy()}]

        def get_next(self):
            return self.left.pop() if self.left else None

    folder = tmp_path_factory.mktemp("int8")
    onnx.save(with_float32_weights(onnx.load(bundled)), folder / "float32.onnx")
    quantization.quantize_static(
        folder / "float32.onnx",
        folder / "int8.onnx",
        Pictures(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    return folder / "int8.onnx"


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
def test_int8_network_finds_what_the_float_network_is_sure_of(int8, bundled, engine):
    image = cv2.imread(str(bundled.parent / "example_inputs" / "street.jpg"))
    detector = NanoDet(int8, 0.3, engine=engine)
    assert (detector.head.num_classes, detector.head.reg_max) == (80, 10)
    found = reference.rows_of(detector.detect(image))
    sure = reference.rows_of(NanoDet(bundled, 0.6).detect(image))
    assert len(sure) >= 5
    for box in sure:
        assert any(box[5] == o[5] and reference.iou(box[:4], o[:4]) > 0.8 for o in found), box
