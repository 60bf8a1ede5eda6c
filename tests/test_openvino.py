"""OpenVINO as the engine: what it runs and says, and that it tells nobody that it is used."""

import os
import re
import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest
import reference
from conftest import HAS_OPENVINO, ROOT, make_network
from demo_process import run_demo

from nanodet import NanoDet

pytestmark = HAS_OPENVINO

BOX = (20.0, 30.0, 70.0, 60.0, 0.9, 2)
NETWORKS = ("object_detection_nanodet_2022nov", "nanodet-plus-m_416", "nanodet_320_2d")
EXAMPLES = ROOT / "example_inputs"


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp("openvino") / "n.onnx"
    return make_network(path, boxes=[BOX], classes=3, size=(96, 96))


@pytest.fixture(scope="module")
def street():
    return cv2.imread(str(EXAMPLES / "street.jpg"))


@pytest.fixture
def compiled_with(network, monkeypatch):
    """The settings of each network compiled; those added to it here go with the next ones."""
    NanoDet(network, engine="openvino")  # imports it, silently
    import openvino

    given, added, compile_model = [], {}, openvino.Core.compile_model

    def compile_and_note(core, model, device, settings):
        given.append(settings)
        return compile_model(core, model, device, settings | added)

    monkeypatch.setattr(openvino.Core, "compile_model", compile_and_note)
    return given, added


def same_in_float32(path, image, added, **settings):
    added["INFERENCE_PRECISION_HINT"] = "f32"
    detector = NanoDet(path, 0.1, engine="openvino", **settings)
    assert detector.engine.endswith(", f32")
    expected = reference.rows_of(NanoDet(path, 0.1, engine="onnxruntime", **settings).detect(image))
    assert len(expected) > 10
    found = reference.rows_of(detector.detect(image))
    reference.assert_same_objects(found, expected, 0.01, 1e-4, above=0.1)


@pytest.mark.parametrize("size", [(416, 416), (512, 320), (96, 64)])
def test_boxes_in_float32_are_those_of_onnxruntime_at_any_size(
    size, bundled, street, compiled_with
):
    pytest.importorskip("onnxruntime")
    same_in_float32(bundled, street, compiled_with[1], input_size=size, augment=size[0] == 96)


@pytest.mark.parametrize("name", NETWORKS)
def test_boxes_of_each_network_in_float32_are_those_of_onnxruntime(
    name, street, compiled_with, request
):
    pytest.importorskip("onnxruntime")
    path = request.getfixturevalue("shared") / "models" / f"{name}.onnx"
    same_in_float32(path, street, compiled_with[1])


@pytest.mark.parametrize("suffix", ["", "_int8"])
def test_its_own_precision_finds_what_onnxruntime_finds(suffix, street):
    pytest.importorskip("onnxruntime")
    path = ROOT / f"object_detection_nanodet_2022nov{suffix}.onnx"
    pair = [
        reference.rows_of(NanoDet(path, 0.3, engine=engine, rect=True).detect(street))
        for engine in ("openvino", "onnxruntime")
    ]
    for these, others in (pair, pair[::-1]):
        sure = [box for box in these if box[4] > 0.4]
        assert len(sure) > 5
        for box in sure:
            assert any(box[5] == o[5] and reference.iou(box, o) > 0.8 for o in others), box


def test_network_that_computes_in_float16_runs(bundled, street, tmp_path):
    onnx = pytest.importorskip("onnx")
    float16 = pytest.importorskip("onnxruntime.transformers.float16")
    model = float16.convert_float_to_float16(onnx.load(bundled), keep_io_types=False)
    onnx.save(model, tmp_path / "n.onnx")
    found, expected = (
        reference.rows_of(NanoDet(path, engine="openvino").detect(street))
        for path in (tmp_path / "n.onnx", bundled)
    )
    reference.assert_same_objects(found, expected, 3, 0.05, above=0.4)


def test_engine_says_version_device_and_precision(network):
    from importlib.metadata import version

    said = f"OpenVINO {re.escape(version('openvino'))}, CPU"
    for provider in (None, "CPU"):
        detector = NanoDet(network, engine="openvino", provider=provider)
        assert re.fullmatch(f"{said}, (bf16|f16|f32)", detector.engine)
    automatic = NanoDet(network, engine="openvino", provider="AUTO")
    assert automatic.engine.startswith("OpenVINO ")
    image = np.zeros((96, 96, 3), np.uint8)
    np.testing.assert_allclose(automatic.infer(image), [BOX], atol=0.5)


def test_device_that_is_not_there_is_named_with_those_that_are(network):
    for device in ("NoSuch", "", "cpu"):
        with pytest.raises(ValueError) as error:
            NanoDet(network, engine="openvino", provider=device)
        sentence = str(error.value)
        assert sentence.startswith(f"this OpenVINO has no provider {device}. It has: CPU, ")
        assert sentence.endswith("AUTO.") and "\n" not in sentence


def test_missing_openvino_names_the_pip_command(network, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)  # import raises ImportError
    with pytest.raises(ValueError, match="openvino is not installed. Run: pip install openvino"):
        NanoDet(network, engine="openvino")
    assert "openvino_telemetry" not in sys.modules


def test_it_takes_as_many_threads_as_opencv_and_pins_none(network, compiled_with):
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        NanoDet(network, engine="openvino")
    finally:
        cv2.setNumThreads(before)
    (settings,) = compiled_with[0]
    assert settings["INFERENCE_NUM_THREADS"] == 1
    assert settings["ENABLE_CPU_PINNING"] is False


def test_result_stays_when_the_next_picture_is_looked_at(bundled, street):
    detector = NanoDet(bundled, engine="openvino")
    first = detector.detect(street)
    kept = reference.rows_of(first)
    detector.detect(street[::-1])
    assert reference.rows_of(first) == kept
    assert reference.rows_of(detector.detect(street)) == kept


def test_nothing_is_sent_written_or_printed(network, tmp_path):
    code = """
        import sys
        def watch(event, values):
            write = event == "open" and set(str(values[1])) & set("wax+")
            if write or event.startswith(("socket.", "urllib.", "os.mkdir", "subprocess.")):
                print(event, values)
                raise OSError("not sent")
        sys.addaudithook(watch)
        from nanodet import NanoDet
        print(NanoDet(sys.argv[1], engine="openvino").name)
        import openvino_telemetry  # as for any other program
    """
    home = {name: str(tmp_path) for name in ("HOME", "USERPROFILE", "LOCALAPPDATA")}
    outside_ci = {name: v for name, v in os.environ.items() if name not in ("CI", "GITHUB_ACTIONS")}
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", textwrap.dedent(code), network],
        env=outside_ci | {"PYTHONPATH": str(ROOT)} | home,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "NanoDet\n", "")
    assert not any(tmp_path.iterdir())


def test_demo_runs_it_where_asked(tmp_path):
    args = ("-i", EXAMPLES / "cat.jpg", "--no-save", "--int8", "--engine", "openvino")
    done = run_demo(*args, "--provider", "CPU", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search("_int8.onnx at 416x416 on OpenVINO .*, CPU", done.stdout)
    assert "cat" in done.stdout


def test_signal_after_detectors_have_gone_in_any_order_is_handled(network):
    code = f"""
    import gc, signal
    from nanodet import NanoDet
    first, second = (NanoDet({str(network)!r}, engine="openvino") for _ in range(2))
    del first
    gc.collect()
    del second
    gc.collect()
    filled = [bytearray(1 << size) for size in range(10, 22) for _ in range(50)]
    signal.signal(signal.SIGINT, lambda *_: print("handled"))
    signal.raise_signal(signal.SIGINT)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "handled\n")
