"""One detector for many: threads that share it, copies of it, and processes that are forked."""

import concurrent.futures
import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading

import cv2
import pytest
from conftest import ENGINES, ROOT
from demo_process import DEADLINE
from reference import assert_equal

from cli.network import BUNDLED
from nanodet import NanoDet


@pytest.fixture(scope="module")
def pictures(bundled):
    """The street, whole and in parts, so that sizes and objects differ."""
    street = cv2.imread(str(bundled.parent / "example_inputs" / "street.jpg"))
    height, width = street.shape[:2]
    return [street, street[:, : width // 2], street[height // 3 :, width // 3 :]]


def in_threads(work):
    """Run functions at the same time, and return their results."""
    start = threading.Barrier(len(work))
    with concurrent.futures.ThreadPoolExecutor(len(work)) as pool:
        jobs = [pool.submit(lambda do=do: (start.wait(), do())[1]) for do in work]
        return [job.result() for job in jobs]


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
@pytest.mark.parametrize("one_object", [True, False], ids=["shared", "one each"])
def test_threads_get_the_results_that_one_thread_gets(one_object, engine, bundled, pictures):
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    detectors = [NanoDet(bundled, input_size=192, engine=engine) for _ in range(2)]
    expected = [detectors[0].detect(image) for image in pictures]
    assert any(len(found) for found in expected)
    detectors = [detectors[0]] * 2 if one_object else detectors
    rounds = 2 * list(range(len(pictures)))
    orders = rounds, rounds[::-1]
    results = in_threads(
        [
            lambda d=detector, order=order: [d.detect(pictures[i]) for i in order]
            for detector, order in zip(detectors, orders, strict=True)
        ]
    )
    for order, found in zip(orders, results, strict=True):
        for i, detections in zip(order, found, strict=True):
            assert_equal(detections, expected[i])


def log_level():
    logging = cv2 if hasattr(cv2, "getLogLevel") else cv2.utils.logging
    return logging.getLogLevel()


def test_detectors_made_in_many_threads_are_all_alike_and_leave_the_log_level(bundled, pictures):
    before = log_level()
    made = in_threads([lambda: NanoDet(bundled, input_size=128)] * 4)
    assert log_level() == before != 0
    expected = made[0].detect(pictures[0])
    for detector in made[1:]:
        assert_equal(detector.detect(pictures[0]), expected)


def test_network_that_is_refused_leaves_the_log_level(bundled, tmp_path):
    before = log_level()
    (tmp_path / "n.onnx").write_bytes(bundled.read_bytes().replace(b"LeakyRelu", b"LeakyR3lu"))
    with pytest.raises(ValueError, match="OpenCV can't read it"):
        NanoDet(tmp_path / "n.onnx")
    assert log_level() == before


def changed_detector(bundled):
    detector = NanoDet(bundled, 0.3, input_size=(320, 256), keep_ratio=False, std=(58, 57, 58))
    detector.prob_threshold, detector.iou_threshold = 0.2, 0.7
    return detector


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy])
def test_copy_finds_the_same_and_is_independent(make, bundled, pictures):
    detector = changed_detector(bundled)
    twin, expected = make(detector), detector.detect(pictures[0])
    assert len(expected)
    assert_equal(twin.detect(pictures[0]), expected)
    twin.prob_threshold = 1.0
    assert not len(twin.detect(pictures[0]))
    assert_equal(detector.detect(pictures[0]), expected)


def test_copy_has_the_numbers_given_at_first(bundled):
    mean, std = [0.0, 0.0, 0.0], [255.0, 255.0, 255.0]
    detector = NanoDet(bundled, mean=mean, std=std)
    mean[0], std[0] = 1.0, 1.0
    for each in (detector, copy.copy(detector)):
        assert (each.mean, each.std) == ((0.0,) * 3, (255.0,) * 3)


def test_copy_has_the_engine_that_was_set_later(bundled, pictures):
    pytest.importorskip("onnxruntime")
    provider = "CPUExecutionProvider"
    detector = NanoDet(bundled, input_size=256, engine="onnxruntime", provider=provider)
    assert copy.copy(detector).engine.startswith("onnxruntime")
    detector.setBackendAndTarget(cv2.dnn.DNN_BACKEND_OPENCV, cv2.dnn.DNN_TARGET_CPU)
    assert copy.copy(detector).engine == detector.engine


def test_detector_goes_to_another_process(bundled, pictures, monkeypatch):
    monkeypatch.chdir(bundled.parent)
    detector = changed_detector(bundled.name)
    monkeypatch.chdir(bundled.parent / "tests")  # a relative path must still be found
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
        found = pool.submit(detector.detect, pictures[0]).result(timeout=60)
    assert_equal(found, detector.detect(pictures[0]))


FORKING = """
    import os, signal, sys, threading
    import cv2, numpy as np
    from nanodet import NanoDet

    detector = NanoDet(sys.argv[1], input_size=256, engine=sys.argv[2])
    image = cv2.imread(sys.argv[3])
    expected = detector.infer(image)
    busy, stop = threading.Event(), threading.Event()

    def work():
        while not stop.is_set():
            detector.infer(image)
            busy.set()

    def make():
        while not stop.is_set():
            NanoDet(sys.argv[1], input_size=64)

    threads = [threading.Thread(target=work), threading.Thread(target=make)]
    for thread in threads:
        thread.start()
    busy.wait()
    ends = []
    for _ in range(2):
        child = os.fork()
        if not child:
            signal.alarm(60)  # one that hangs is killed
            same = np.array_equal(detector.infer(image), expected)
            os._exit(not (same and NanoDet(sys.argv[1], input_size=64).input_size == (64, 64)))
        ends.append(os.waitpid(child, 0)[1])
    stop.set()
    for thread in threads:
        thread.join()
    print(ends)
"""


def printed_by(program, network, engine):
    """What a program prints that is given a network, an engine and a picture, and ends well."""
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    street = network.parent / "example_inputs" / "street.jpg"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), network, engine, street],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=250,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")  # where a fault in a hook of fork is told
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
def test_child_forked_while_threads_detect_and_open_networks_can_do_both(engine, bundled):
    assert printed_by(FORKING, bundled, engine) == "[0, 0]\n"


# A child that hangs is killed by its alarm; os._exit leaves out the interpreter's own end.
ENDS = """
    import os, signal, sys
    import cv2, numpy as np
    from nanodet import NanoDet

    detector = NanoDet(sys.argv[1], input_size=192, engine=sys.argv[2])
    image = cv2.imread(sys.argv[3])
    expected, name = detector.infer(image), detector.engine
    assert "ORT_DISABLE_TELEMETRY" not in os.environ  # nobody else's settings are changed
    ends = []
    for how in ("exit", "detect, exit", "detect, drop", "drop", "fork, detect, exit", "move, exit"):
        child = os.fork()
        if not child:
            signal.alarm(60)
            if how.startswith("fork"):  # so that the child's child is the one that detects
                grandchild = os.fork()
                if grandchild:
                    sys.exit(os.waitpid(grandchild, 0)[1])
                signal.alarm(60)
            if "detect" in how:
                assert np.array_equal(detector.infer(image), expected)
                assert np.array_equal(detector.infer(image), expected)
            if "move" in how:
                detector.setBackendAndTarget(0, 0)
                assert len(detector.infer(image))
            assert "move" in how or detector.engine == name
            if "drop" in how:
                del detector
                os._exit(0)
            sys.exit(0)
        ends.append(os.waitpid(child, 0)[1])
    assert np.array_equal(detector.infer(image), expected)
    print(ends)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("engine", ENGINES)
def test_forked_child_detects_and_ends_however_it_leaves_the_detector(engine, bundled):
    assert printed_by(ENDS, bundled, engine) == f"{[0] * 6}\n"


class Named(NanoDet):
    """As people write subclasses: with parameters of their own, and attributes."""

    def __init__(self, name_of_camera):
        self.camera = name_of_camera
        super().__init__(BUNDLED, input_size=64)
        self.seen = [1, 2]


def through_pickle(detector):
    return pickle.loads(pickle.dumps(detector))  # noqa: S301


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, through_pickle])
def test_copy_of_a_subclass_keeps_what_it_added(make):
    detector = Named("door")
    again = make(detector)
    assert type(again) is Named
    assert (again.camera, again.seen, again.input_size) == ("door", [1, 2], (64, 64))
    assert (again.seen is detector.seen) == (make is copy.copy)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_threads_that_fork_at_once_hold_nobody_up(tmp_path):
    code = f"""if True:
        import os, sys, threading
        import nanodet
        detectors = [nanodet.NanoDet({BUNDLED!r}, input_size=64) for _ in range(3)]
        faults = []
        def fork():
            for _ in range(25):
                try:
                    pid = os.fork()
                except BaseException as fault:
                    faults.append(fault)
                    continue
                if pid == 0:
                    os._exit(0)
                os.waitpid(pid, 0)
        threads = [threading.Thread(target=fork, daemon=True) for _ in range(4)]
        for each in threads: each.start()
        for each in threads: each.join({DEADLINE})
        sys.stdout.write(f"{{sum(each.is_alive() for each in threads)}} {{faults}}")
        sys.stdout.flush()
        os._exit(0)
    """
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == "0 []", run.stderr
