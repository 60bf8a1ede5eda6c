"""What runs the network: what can be asked for, what really runs, what is not available."""

import copy
import os
import re
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest
from conftest import ROOT, make_network
from onnx_files import edited

from nanodet import NanoDet

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

BOX = (20.0, 30.0, 70.0, 60.0, 0.9, 2)
IMAGE = np.zeros((96, 96, 3), np.uint8)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("engines") / "n.onnx"
    return make_network(path, boxes=[BOX], classes=3, size=(96, 96))


@pytest.fixture
def detector(network):
    return NanoDet(network)


def test_opencv_says_its_version_engine_and_target(detector):
    if cv2.__version__.startswith("5."):
        expected = "new engine, target CPU"
    else:
        expected = "classic engine, backend OPENCV, target CPU"
    assert re.fullmatch(f"OpenCV {re.escape(cv2.__version__)}, {expected}", detector.engine)


def test_onnxruntime_says_its_version_and_provider(network):
    cpu, azure = "CPUExecutionProvider", "AzureExecutionProvider"  # both without hardware
    providers = [(None, cpu), (cpu, cpu), (azure, f"{azure}, {cpu}")]
    for provider, what_runs in providers[: 2 + (azure in onnxruntime.get_available_providers())]:
        detector = NanoDet(network, engine="onnxruntime", provider=provider)
        assert detector.engine == f"onnxruntime {onnxruntime.__version__}, {what_runs}"


@pytest.mark.parametrize("backend", range(9))
def test_each_backend_and_target_runs_or_is_refused(backend, network, detector):
    expected = detector.infer(IMAGE)
    available = set(cv2.dnn.getAvailableTargets(backend))
    for target in range(10):
        if target in available:
            pair = NanoDet(network, backend_id=backend, target_id=target)
            np.testing.assert_allclose(pair.infer(IMAGE), expected, atol=0.05)
            if target != cv2.dnn.DNN_TARGET_CPU:
                assert "classic engine" in pair.engine
        else:
            with pytest.raises(ValueError, match="has no backend"):
                NanoDet(network, backend_id=backend, target_id=target)


@pytest.mark.parametrize(
    ("backend", "target", "called"),
    [
        (99, 0, "? (99) with CPU (0)"),
        (-1, 0, "? (-1) with CPU (0)"),
        (3, 99, "OPENCV (3) with ? (99)"),
        (3, -1, "OPENCV (3) with ? (-1)"),
        (cv2.dnn.DNN_BACKEND_CUDA, cv2.dnn.DNN_TARGET_CUDA_FP16, "CUDA (5) with CUDA_FP16 (7)"),
    ],
)
def test_pair_that_is_not_available_is_named_with_those_that_are(backend, target, called, network):
    if target in cv2.dnn.getAvailableTargets(backend):
        pytest.skip("this OpenCV has CUDA")
    with pytest.raises(ValueError) as error:
        NanoDet(network, backend_id=backend, target_id=target)
    sentence = str(error.value)
    assert f"this OpenCV {cv2.__version__} has no backend {called}. It has: " in sentence
    assert "OPENCV (3) with CPU (0)" in sentence.partition("It has: ")[2]


@pytest.mark.parametrize(
    ("pair", "operation", "classes", "says"),
    [
        ((99, 0), "Add", 3, "this OpenCV .* has no backend"),
        (("cpu", 0), "Add", 3, "backend_id must be a whole number, not 'cpu'"),
        ((0, None), "Add", 3, "target_id must be a whole number, not None"),
        # Another file by now.
        ((0, 0), "Add", 4, ".*n.onnx: 3 classes do not fit the outputs"),
        ((0, 0), "Ad", 3, '.*n.onnx: OpenCV can\'t .* a Ad node. Give engine="onnxruntime".$'),
    ],
)
def test_refused_backend_leaves_the_detector_as_it_was(pair, operation, classes, says, tmp_path):
    network = {"path": tmp_path / "n.onnx", "boxes": [BOX], "size": (96, 96)}
    detector = NanoDet(make_network(classes=3, **network), engine="onnxruntime")
    before, engine = detector.infer(IMAGE), detector.engine
    with edited(make_network(classes=classes, **network)) as model:
        model.graph.node[-1].op_type = operation
    with pytest.raises(ValueError, match=f"^{says}"):
        detector.setBackendAndTarget(*pair)
    assert detector.engine == engine and len(before) == 1
    np.testing.assert_array_equal(detector.infer(IMAGE), before)
    make_network(classes=3, **network)
    assert copy.copy(detector).engine == engine


def test_set_backend_and_target_moves_a_detector_to_opencv(bundled):
    detector = NanoDet(bundled, input_size=192, engine="onnxruntime")
    street = cv2.imread(str(ROOT / "example_inputs" / "street.jpg"))
    before = detector.infer(street)
    assert len(before) > 2
    detector.setBackendAndTarget(cv2.dnn.DNN_BACKEND_OPENCV, cv2.dnn.DNN_TARGET_CPU)
    assert detector.engine.startswith("OpenCV ")
    np.testing.assert_allclose(detector.infer(street), before, atol=0.05)


def test_default_backend_is_opencv_whatever_the_environment_says(network):
    with pytest.raises(ValueError, match=r"has no backend OPENCV \(3\) with \? \(99\)"):
        NanoDet(network, backend_id=cv2.dnn.DNN_BACKEND_DEFAULT, target_id=99)


def test_other_target_is_that_of_the_classic_engine(network, monkeypatch):
    # Without a GPU, too: OpenCV then computes on the processor.
    monkeypatch.setattr(cv2.dnn, "getAvailableTargets", lambda backend: (0, 1))
    detector = NanoDet(network, target_id=cv2.dnn.DNN_TARGET_OPENCL)
    assert detector.engine.endswith(", classic engine, backend OPENCV, target OPENCL")
    np.testing.assert_allclose(detector.infer(IMAGE), [BOX], atol=0.01)


def test_onnxruntime_takes_as_many_threads_as_opencv_and_lets_them_rest(network, monkeypatch):
    given, session = [], onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda data, options, **more: (given.append(options), session(data, options, **more))[1],
    )
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        NanoDet(network, engine="onnxruntime")
    finally:
        cv2.setNumThreads(before)
    (options,) = given
    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (
            {"provider": "CPUExecutionProvider"},
            'provider \'CPUExecutionProvider\' needs engine="onnxruntime" or engine="openvino"',
        ),
        (
            {"engine": "onnxruntime", "backend_id": 5, "target_id": 6},
            'backend_id 5, target_id 6 need engine="opencv"',
        ),
        (
            {"engine": "onnxruntime", "target_id": 1},
            'backend_id 0, target_id 1 need engine="opencv"',
        ),
    ],
)
def test_setting_of_another_engine_is_refused(settings, says, network):
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        NanoDet(network, **settings)


def test_backend_that_means_opencv_and_the_processor_goes_with_any_engine(network):
    opencv = {"backend_id": cv2.dnn.DNN_BACKEND_OPENCV, "target_id": cv2.dnn.DNN_TARGET_CPU}
    assert len(NanoDet(network, engine="onnxruntime", **opencv).detect(IMAGE)) == 1


def test_missing_onnxruntime_names_the_pip_command(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # import raises ImportError
    with pytest.raises(ValueError, match="onnxruntime is not installed. Run: pip install onnxrun"):
        NanoDet(network, engine="onnxruntime")


def test_nanodet_needs_only_numpy_and_opencv(network):
    code = """
        import sys
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
    command = [sys.executable, "-c", textwrap.dedent(code), network]
    path = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_network_with_float16_input_runs_in_onnxruntime(tmp_path):
    path = make_network(tmp_path / "n.onnx", boxes=[BOX], classes=3, size=(96, 96))
    with edited(path) as model:
        model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        model.graph.node[0].input[0] = "image_32"
        cast = onnx.helper.make_node("Cast", ["image"], ["image_32"], to=onnx.TensorProto.FLOAT)
        model.graph.node.insert(0, cast)
    found = NanoDet(path, engine="onnxruntime").infer(IMAGE)
    np.testing.assert_allclose(found, [BOX], atol=0.01)
