"""What runs the network: what can be asked for, what really runs, what is not available."""

import os
import re
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest
from conftest import ROOT, make_network

from nanodet import NanoDet

onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    boxes = [(20.0, 30.0, 70.0, 60.0, 0.9, 2)]
    return make_network(
        tmp_path_factory.mktemp("engines") / "n.onnx", boxes=boxes, classes=3, size=(96, 96)
    )


@pytest.fixture
def detector(network):
    return NanoDet(network)


def run_python(code, *arguments):
    """Run a program in a process of its own, with nanodet.py at hand."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_opencv_says_its_version_engine_and_target(detector):
    if cv2.__version__.startswith("5."):
        expected = "new engine, target CPU"
    else:
        expected = "classic engine, backend (DEFAULT|OPENCV), target CPU"
    assert re.fullmatch(f"OpenCV {re.escape(cv2.__version__)}, {expected}", detector.engine)


def test_onnxruntime_says_its_version_and_provider(network):
    for provider in (None, "CPUExecutionProvider"):
        detector = NanoDet(network, engine="onnxruntime", provider=provider)
        expected = f"onnxruntime {onnxruntime.__version__}, CPUExecutionProvider"
        assert detector.engine == expected


@pytest.mark.parametrize("backend", range(9))
def test_each_backend_and_target_runs_or_is_refused(backend, network, detector):
    image = np.zeros((96, 96, 3), np.uint8)
    expected = detector.infer(image)
    available = set(cv2.dnn.getAvailableTargets(backend))
    for target in range(10):
        if target in available:
            pair = NanoDet(network, backend_id=backend, target_id=target)
            np.testing.assert_allclose(pair.infer(image), expected, atol=0.05)
            if target != cv2.dnn.DNN_TARGET_CPU:
                assert "classic engine" in pair.engine
        else:
            with pytest.raises(ValueError, match="has no backend"):
                NanoDet(network, backend_id=backend, target_id=target)


def test_pair_that_is_not_available_is_named_with_those_that_are(network):
    backend, target = cv2.dnn.DNN_BACKEND_CUDA, cv2.dnn.DNN_TARGET_CUDA_FP16
    if target in cv2.dnn.getAvailableTargets(backend):
        pytest.skip("this OpenCV has CUDA")
    with pytest.raises(ValueError) as error:
        NanoDet(network, backend_id=backend, target_id=target)
    sentence = str(error.value)
    assert f"OpenCV {cv2.__version__} has no backend CUDA (5) with CUDA_FP16 (7)." in sentence
    assert "It has: " in sentence and "OPENCV (3) with CPU (0)" in sentence


@pytest.mark.parametrize(("backend", "target"), [(99, 0), (0, 99), (-1, 0), (0, -1)])
def test_numbers_that_no_opencv_knows_are_refused(backend, target, network):
    with pytest.raises(ValueError) as error:
        NanoDet(network, backend_id=backend, target_id=target)
    assert f"({backend}) with " in str(error.value) and f"({target})." in str(error.value)
    assert "OPENCV (3) with CPU (0)" in str(error.value)


def test_refused_backend_leaves_the_detector_as_it_was(detector):
    image = np.zeros((96, 96, 3), np.uint8)
    before, engine = detector.infer(image), detector.engine
    with pytest.raises(ValueError):
        detector.setBackendAndTarget(99, 0)
    assert detector.engine == engine and len(before) == 1
    np.testing.assert_array_equal(detector.infer(image), before)


def test_set_backend_and_target_moves_a_detector_to_opencv(network):
    detector = NanoDet(network, engine="onnxruntime")
    before = detector.infer(np.zeros((96, 96, 3), np.uint8))
    detector.setBackendAndTarget(cv2.dnn.DNN_BACKEND_OPENCV, cv2.dnn.DNN_TARGET_CPU)
    assert detector.engine.startswith("OpenCV ")
    after = detector.infer(np.zeros((96, 96, 3), np.uint8))
    np.testing.assert_allclose(after, before, atol=0.05)


def test_unknown_provider_is_refused_with_those_available(network):
    with pytest.raises(ValueError) as error:
        NanoDet(network, engine="onnxruntime", provider="AbacusExecutionProvider")
    assert "AbacusExecutionProvider" in str(error.value)
    assert all(name in str(error.value) for name in onnxruntime.get_available_providers())


def test_missing_onnxruntime_names_the_pip_command(network):
    code = """
        import sys
        sys.modules["onnxruntime"] = None  # import raises ImportError
        from nanodet import NanoDet
        try:
            NanoDet(sys.argv[1], engine="onnxruntime")
        except ValueError as error:
            print(type(error).__name__, error)
    """
    done = run_python(code, network)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ValueError ")
    assert "engine onnxruntime is not installed. Run: pip install onnxruntime" in done.stdout


def test_nanodet_needs_only_numpy_and_opencv(network):
    code = """
        import builtins, sys
        import cv2, numpy
        from importlib.abc import MetaPathFinder
        class Refuse(MetaPathFinder):
            def find_spec(self, name, path, target=None):
                allowed = sys.stdlib_module_names | {"nanodet", "cv2", "numpy"}
                if name.partition(".")[0] not in allowed:
                    raise ImportError(f"{name} is imported")
        sys.meta_path.insert(0, Refuse())
        from nanodet import NanoDet
        print(len(NanoDet(sys.argv[1]).detect(numpy.zeros((96, 96, 3), numpy.uint8))))
    """
    done = run_python(code, network)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_onnxruntime_is_imported_only_when_asked_for(network):
    code = """
        import sys
        from nanodet import NanoDet
        NanoDet(sys.argv[1])
        print("onnxruntime" in sys.modules)
    """
    assert run_python(code, network).stdout == "False\n"


def test_network_with_float16_input_runs_in_onnxruntime(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    boxes = [(20.0, 30.0, 70.0, 60.0, 0.9, 2)]
    model = onnx.load(make_network(tmp_path / "n.onnx", boxes=boxes, classes=3, size=(96, 96)))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    model.graph.node[0].input[0] = "image_32"
    cast = helper.make_node("Cast", ["image"], ["image_32"], to=TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    onnx.save(model, tmp_path / "n.onnx")
    found = NanoDet(tmp_path / "n.onnx", engine="onnxruntime").infer(
        np.zeros((96, 96, 3), np.uint8)
    )
    np.testing.assert_allclose(found, [boxes[0]], atol=0.01)
