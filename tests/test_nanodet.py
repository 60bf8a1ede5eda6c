"""The detector as a whole: real networks on real pictures, every shape of image, every setting."""

import io
import math
import re
import typing

import cv2
import numpy as np
import pytest
import reference
from conftest import ENGINES, ROOT, make_network
from onnx_files import edited
from reference import assert_equal

import nanodet
from nanodet import COCO_CLASSES, Detections, Head, ModelError, NanoDet, check_canvas

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

NETWORKS = {  # file and its own canvas
    "bundled": ("object_detection_nanodet_2022nov.onnx", (416, 416)),
    "zoo": ("object_detection_nanodet_2022nov.onnx", (416, 416)),
    "plus": ("nanodet-plus-m_416.onnx", (416, 416)),
    "m320": ("nanodet_320_2d.onnx", (320, 320)),
}
# Cars (4:3, wide), a cat (4:3), a suitcase (upright), a giraffe (nearly square).
PICTURES = ("000000017627", "000000119828", "000000125952", "000000153299")
GREY = "Give cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), or COLOR_YUV2BGR_I420 if YUV."
EMPTY = "It is empty: does a crop lie beside the picture?"
DECODE = "Give cv2.imdecode(np.frombuffer({}, np.uint8), cv2.IMREAD_COLOR)."
FLOATS = "Give (255 * image).astype(np.uint8) if its values are from 0 to 1."
BROKEN_IMAGES = {  # and how to mend them
    "grey": (np.zeros((20, 30), np.uint8), GREY),
    "one channel": (np.zeros((20, 30, 1), np.uint8), GREY),
    "four channels": (
        np.zeros((20, 30, 4), np.uint8),
        "Give cv2.cvtColor(image, cv2.COLOR_BGRA2BGR).",
    ),
    "float32": (np.zeros((20, 30, 3), np.float32), FLOATS),
    "float64": (np.zeros((20, 30, 3)), FLOATS),
    "int64": (
        np.zeros((20, 30, 3), np.int64),
        "Give image.astype(np.uint8) if its values are from 0 to 255.",
    ),
    "depth": (np.zeros((20, 30), np.uint16), "Give (image // 257).astype(np.uint8)."),
    "a mask": (np.zeros((20, 30), bool), "Give 255 * image.astype(np.uint8)."),
    "two channels": (np.zeros((20, 30, 2), np.uint8), ""),
    "uint16": (np.zeros((20, 30, 3), np.uint16), "Give (image // 257).astype(np.uint8)."),
    "channels first": (np.zeros((3, 20, 30), np.uint8), "Give image.transpose(1, 2, 0)."),
    "no rows": (np.zeros((0, 30, 3), np.uint8), EMPTY),
    "no columns": (np.zeros((20, 0, 3), np.uint8), EMPTY),
    "a batch": (np.zeros((1, 20, 30, 3), np.uint8), "Give one image of them at a time."),
    "objects": (np.full((20, 30, 3), None), ""),
    "None": (None, "Did cv2.imread find the file?"),
    "a name": ("street.jpg", "Give cv2.imread(image)."),
    "a path": (ROOT / "street.jpg", "Give cv2.imread(image)."),
    "lists": ([[[0, 0, 0]]], "Give np.asarray(image)."),
    "a dict": ({}, ""),
    "an address": (
        "http://127.0.0.1/a.jpg",
        "Fetch it, and give " + DECODE.format("data").removeprefix("Give "),
    ),
    "of a capture": ((True, None), "Give its last part: ok, image = capture.read()."),
    "a file's bytes": (b"\xff\xd8", DECODE.format("image")),
    "bytes in memory": (io.BytesIO(b"\xff\xd8"), DECODE.format("image.getbuffer()")),
    "UMat": (cv2.UMat(np.zeros((20, 30, 3), np.uint8)), "Give image.get()."),
}


def session_of(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 2
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def pictures(shared):
    folder = shared / "coco_val2017_subset" / "images"
    images = [cv2.imread(str(folder / f"{name}.jpg")) for name in PICTURES]
    for image in images:
        image.flags.writeable = False  # so that detecting must leave images as they are
    return images


@pytest.fixture(scope="module")
def path_of(bundled, request):
    def path(network):
        if network == "bundled":
            return bundled
        return request.getfixturevalue("shared") / "models" / NETWORKS[network][0]

    return path


@pytest.fixture(scope="module")
def detector(bundled):
    """The bundled network with the settings that a first user has."""
    return NanoDet(bundled)


@pytest.fixture(scope="module")
def bundled_session(bundled):
    return session_of(bundled)


def assert_as_reference(detector, session, image, canvas, threshold=0.35):
    """A detector finds what an independent pipeline finds."""
    expected = reference.detect(session, image, canvas, threshold)
    assert len(expected) >= 2
    found = reference.rows_of(detector.detect(image))
    reference.assert_same_objects(found, expected, 0.05, 1e-3, above=threshold)


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
@pytest.mark.parametrize("network", NETWORKS)
def test_objects_are_those_of_an_independent_pipeline(network, engine, path_of, pictures):
    path, canvas = path_of(network), NETWORKS[network][1]
    detector, session = NanoDet(path, engine=engine), session_of(path)
    assert detector.input_size == canvas
    for image in (pictures[0], pictures[2]):  # wide and upright
        # So that none shrinks twice and more, where how to average is a matter of choice.
        image = cv2.resize(image, None, fx=0.9, fy=0.9)
        assert_as_reference(detector, session, image, canvas)


@pytest.mark.parametrize("network", ["bundled", "plus"])
def test_what_a_person_sees_is_found(network, path_of, pictures):
    detector = NanoDet(path_of(network))
    cars, cat, _, giraffe = (
        [COCO_CLASSES[class_id] for class_id in detector.detect(image).class_id]
        for image in pictures
    )
    assert cars.count("car") >= 5
    assert "cat" in cat
    assert giraffe[0] == "giraffe"


def test_objects_come_most_confident_first_and_above_the_threshold(bundled, pictures):
    for threshold in (0.1, 0.35, 0.6):
        found = NanoDet(bundled, prob_threshold=threshold).detect(pictures[0])
        assert len(found) >= 3
        assert (np.diff(found.confidence) <= 0).all() and (found.confidence > threshold).all()


FRACTION, FLAG = "a number from 0 to 1", "True or False"
REFUSED = [
    *(("prob_threshold", v, FRACTION) for v in (-0.1, 1.01, math.nan, "0.5", None)),
    ("iou_threshold", 35, FRACTION),
    ("centre_offset", -0.1, FRACTION),
    *((name, "no", FLAG) for name in ("rect", "augment", "class_agnostic", "keep_ratio")),
    ("rect", None, FLAG),
    ("augment", 1, FLAG),
    *(("num_classes", v, "a whole number above 0") for v in (0, 80.0, "80")),
    *(("mean", v, "three numbers") for v in ((1, 2), 5, "abc", (1, "2", 3), [math.nan] * 3)),
    *(("mean", v, "three numbers") for v in ((1, 2, 1e9), (-1e9, 2, 3))),
    *(("std", v, "three numbers above 0") for v in ((0, 1, 1), (1, math.inf, 1), [1e-46] * 3)),
    *(("engine", v, '"opencv", "onnxruntime" or "openvino"') for v in ("OpenCV", None)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "wanted"), REFUSED, ids=str)
def test_parameter_that_can_not_be_used_is_named_with_its_value(name, value, wanted, bundled):
    with pytest.raises(ValueError) as error:
        NanoDet(bundled, **{name: value})
    assert str(error.value) == f"{name} must be {wanted}, not {value!r}"


def test_thresholds_can_be_changed_for_the_next_detection(bundled, pictures):
    detector = NanoDet(bundled, prob_threshold=0.6, iou_threshold=0.3)
    detector.detect(pictures[0])
    for name, value in (("prob_threshold", 0.1), ("iou_threshold", 0.9)):
        setattr(detector, name, value)
        assert getattr(detector, name) == value
    assert_equal(detector.detect(pictures[0]), NanoDet(bundled, 0.1, 0.9).detect(pictures[0]))


@pytest.mark.parametrize("name", ["prob_threshold", "iou_threshold"])
@pytest.mark.parametrize("value", [1.5, math.nan, "0.5", None])
def test_threshold_is_checked_when_it_is_set(name, value, detector):
    before = getattr(detector, name)
    with pytest.raises(ValueError, match=f"{name} must be a number from 0 to 1, not {value!r}"):
        setattr(detector, name, value)
    assert getattr(detector, name) == before


@pytest.mark.parametrize(
    "name",
    ["name", "engine", "input_size", "head", "rect", "augment", "keep_ratio", "centre_offset",
     "num_classes", "mean"],
)  # fmt: skip
def test_other_attributes_can_not_be_changed(name, detector):
    with pytest.raises(AttributeError, match=f"{name} can't be changed; make another NanoDet"):
        setattr(detector, name, getattr(detector, name, None))


@pytest.mark.parametrize("name", ["confidence", "conf_threshold", "nms_threshold", "labels"])
def test_attribute_that_means_nothing_is_refused_with_those_that_do(name, detector):
    with pytest.raises(AttributeError, match=f"{name} means nothing to a NanoDet; prob_threshold"):
        setattr(detector, name, 0.5)


def test_subclass_has_attributes_of_its_own(bundled, pictures):
    class Labelled(NanoDet):
        def __init__(self, path, labels):
            self.before = "super"
            super().__init__(path, input_size=192)
            self.labels = labels

    labelled = Labelled(bundled, COCO_CLASSES)
    labelled.more = 1
    assert (labelled.before, labelled.labels, labelled.more) == ("super", COCO_CLASSES, 1)
    assert len(labelled.detect(pictures[0]))
    with pytest.raises(AttributeError, match="rect can't be changed"):
        labelled.rect = True


def test_method_may_be_replaced_in_somebody_elses_tests(detector, monkeypatch):
    monkeypatch.setattr(detector, "detect", lambda image: "nothing")
    assert detector.detect(None) == "nothing"


def test_detector_tells_what_it_is_in_one_line(bundled, detector):
    assert repr(detector) == (
        "<NanoDet: object_detection_nanodet_2022nov.onnx at 416x416, 80 classes, "
        f"prob_threshold 0.35, iou_threshold 0.6; {detector.engine}>"
    )
    other = NanoDet(bundled, 0.5, input_size=(192, 128), rect=True, augment=True)
    assert "at 192x128" in repr(other)
    assert "prob_threshold 0.5, iou_threshold 0.6, rect, augment; " in repr(other)


def test_infer_returns_the_rows_of_detect(detector, pictures):
    rows, found = detector.infer(pictures[0]), detector.detect(pictures[0])
    assert rows.dtype == np.float32 and rows.shape == (len(found), 6) and len(found) > 2
    np.testing.assert_array_equal(rows[:, :4], found.xyxy)
    np.testing.assert_array_equal(rows[:, 4], found.confidence)
    np.testing.assert_array_equal(rows[:, 5], found.class_id)


def test_nothing_found_is_empty_arrays_of_the_right_shape(detector):
    image = np.full((300, 400, 3), 114, np.uint8)
    rows, found = detector.infer(image), detector.detect(image)
    assert rows.shape == (0, 6) and rows.dtype == np.float32
    assert isinstance(found, Detections) and found.xyxy.shape == (0, 4)


def test_class_is_a_drop_in_for_that_of_opencv_zoo(bundled, pictures):
    zoo = NanoDet(
        modelPath=str(bundled), prob_threshold=0.5, iou_threshold=0.6, backend_id=0, target_id=0
    )
    assert zoo.name == "NanoDet"
    before = zoo.infer(pictures[1])
    assert len(before) and (before[:, 4] > 0.5).all()
    assert zoo.setBackendAndTarget(backendId=0, targetId=0) is None
    np.testing.assert_allclose(zoo.infer(pictures[1]), before, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", BROKEN_IMAGES)
def test_what_is_not_an_image_is_refused_by_what_it_is_with_a_cure(name, detector):
    image, cure = BROKEN_IMAGES[name]
    is_array = isinstance(image, np.ndarray)
    what = f"{image.shape} {image.dtype}" if is_array else type(image).__name__
    for method in (detector.detect, detector.infer):
        with pytest.raises(ValueError, match="^image must be ") as error:
            method(image)
        assert str(error.value).partition(f", not {what}.")[2].strip() == cure


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_cure_for_an_image_of_pillow_makes_it_that_of_opencv(mode, detector, bundled):
    pillow = pytest.importorskip("PIL.Image")
    image = pillow.open(bundled.parent / "example_inputs" / "street.jpg").convert(mode)
    with pytest.raises(ValueError) as error:
        detector.detect(image)
    cure = str(error.value).partition(" Give ")[2].removesuffix(".")
    cured = eval(cure, {"np": np, "image": image})  # noqa: S307
    expected = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(cured, cv2.cvtColor(expected, cv2.COLOR_RGB2BGR))
    assert isinstance(detector.detect(cured), Detections)


@pytest.fixture(scope="module")
def quick_pair(bundled):
    """Two detectors that find much in anything, with a letterbox and stretched."""
    settings = {"prob_threshold": 0.01, "input_size": 128}
    return [NanoDet(bundled, keep_ratio=keep_ratio, **settings) for keep_ratio in (True, False)]


@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 900), (900, 1), (5000, 3), (3, 5000), (2, 2), (416, 416), (415, 417), (64, 64)],
)
def test_image_of_any_size_is_taken_and_boxes_lie_inside(size, quick_pair):
    width, height = size
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    for detector in quick_pair:
        found = detector.detect(image)
        assert len(found)
        assert (found.xyxy >= 0).all() and (found.xyxy <= [width, height, width, height]).all()
        assert (found.xyxy[:, 2:] >= found.xyxy[:, :2]).all()


@pytest.mark.parametrize(
    "view",
    [
        lambda image: image[::-1],
        lambda image: image[:, ::-1],
        lambda image: image[::2, ::3],
        lambda image: image[:, :, ::-1],
        lambda image: image[30:-20, 40:-10],
        lambda image: image.transpose(1, 0, 2),
        np.asfortranarray,
        cv2.Mat,
    ],
    ids=["flipped", "mirrored", "strided", "channels", "cut out", "turned", "fortran", "cv2.Mat"],
)
def test_view_of_an_image_counts_like_its_copy(view, quick_pair, pictures):
    detector, image = quick_pair[0], view(pictures[0])
    found = detector.detect(image)
    assert len(found)
    assert_equal(found, detector.detect(np.array(image, order="C")))


def test_boxes_beside_the_image_are_left_out(tmp_path):
    # On the canvas the image fills the rows from 80 to 240.
    boxes = [
        (100.0, 20.0, 160.0, 76.0, 0.9, 0),
        (100.0, 250.0, 160.0, 300.0, 0.8, 0),
        (200.0, 60.0, 260.0, 110.0, 0.7, 1),
    ]
    path = make_network(tmp_path / "n.onnx", boxes=boxes, classes=2, size=(320, 320))
    found = NanoDet(path).detect(np.zeros((320, 640, 3), np.uint8))
    np.testing.assert_allclose(found.xyxy, [[400, 0, 520, 60]], atol=0.02)
    upright = NanoDet(path).detect(np.zeros((640, 320, 3), np.uint8))  # columns from 80 to 240
    np.testing.assert_allclose(upright.xyxy[2], [240, 120, 320, 220], atol=0.02)


def colour_meter(path):
    """A NanoDet of 3 classes whose confidences are the sigmoid of the blob's channel means."""
    with edited(make_network(path, classes=3, size=(64, 64))) as model:
        node = onnx.helper.make_node
        for add in (add for add in model.graph.node if add.op_type == "Add"):
            (array,) = (w for w in model.graph.initializer if w.name == add.input[0])
            if array.dims[-1] == 3:  # confidences
                array.raw_data = bytes(len(array.raw_data))
                add.input[1] = "seen"
        nodes = [
            node("ReduceMean", ["image"], ["means"], axes=[2, 3], keepdims=0),
            node("Sigmoid", ["means"], ["row"]),
            node("Unsqueeze", ["row"], ["seen"], axes=[1]),
        ]
        for i, new in enumerate(nodes):
            model.graph.node.insert(i, new)
    return path


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
@pytest.mark.parametrize(
    "settings", [{}, {"mean": (127, 127, 127), "std": (128, 128, 128)}], ids=["usual", "lite"]
)
def test_network_sees_blue_green_red_normalised_as_in_training(settings, engine, tmp_path):
    detector = NanoDet(colour_meter(tmp_path / "n.onnx"), 0.0, 0.0, engine=engine, **settings)
    mean = np.array(settings.get("mean", (103.53, 116.28, 123.675)))
    std = np.array(settings.get("std", (57.375, 57.12, 58.395)))
    for colour in ((255, 0, 0), (0, 255, 0), (3, 100, 200), (77, 250, 31)):
        found = detector.detect(np.full((64, 64, 3), colour, np.uint8))
        seen = [found.confidence[found.class_id == class_id].max() for class_id in range(3)]
        np.testing.assert_allclose(seen, 1 / (1 + np.exp(-(colour - mean) / std)), atol=5e-5)


IN_TRAINING = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
PIXELS, FRACTIONS = ((0, 0, 0), (1, 1, 1)), ((0, 0, 0), (255, 255, 255))  # mean and std needed
F2, F4, F8 = np.float16, np.float32, np.float64
USUAL = np.array(IN_TRAINING, F4)
OF_1, HALF, DOUBLE = USUAL / 255, USUAL.astype(F2), USUAL.astype(F8)
INT8 = [("QuantizeLinear", 1), ("DequantizeLinear", 1)]
FIRST_NODES = {  # operations with a number or one a channel; mean and std that they need
    "Sub, Div": ([("Sub", USUAL[0]), ("Div", USUAL[1])], PIXELS),
    "Mul, Add": ([("Mul", 1 / 5), ("Add", -3)], PIXELS),
    "Lite": ([("Sub", 127), ("Div", 128)], PIXELS),
    "Div 255, Sub, Div": ([("Div", 255), ("Sub", OF_1[0]), ("Div", OF_1[1])], PIXELS),
    "Sub 3, Div 15": ([("Sub", 3), ("Div", 15)], PIXELS),
    "Div 255": ([("Div", 255)], PIXELS),
    "Mul 1/255": ([("Mul", 1 / 255)], PIXELS),
    "BatchNormalization": ([("BatchNormalization", ((3, 3, 3), (15, 15, 15)))], PIXELS),
    "float16": ([("Cast", F2), ("Sub", HALF[0]), ("Div", HALF[1]), ("Cast", F4)], PIXELS),
    "float64": ([("Cast", F8), ("Sub", DOUBLE[0]), ("Div", DOUBLE[1]), ("Cast", F4)], PIXELS),
    "int8, eight": ([*[("Identity", None)] * 5, *INT8, ("Sub", USUAL[0])], PIXELS),
    "of fractions": ([("Sub", OF_1[0]), ("Div", OF_1[1])], FRACTIONS),
    "Mul 255": ([("Mul", 255)], FRACTIONS),
    "Mul 1": ([("Mul", 1)], IN_TRAINING),
    "Add 0, Div 1": ([("Add", 0), ("Div", 1)], IN_TRAINING),
    "learnt": ([("Mul", (1.1, 0.9, 1.05)), ("Add", (0.02, -0.03, 0.01))], IN_TRAINING),
    "Div 0": ([("Div", 0)], IN_TRAINING),
    "Sub per row": ([("Sub", np.full((64, 1), 100, F4))], IN_TRAINING),
    "Sigmoid": ([("Sigmoid", None)], IN_TRAINING),
}


def put_first(path, steps, as_constants=False):
    """Let a network change its input before all else; returns the path."""
    with edited(path) as model:
        nodes, name = [], "image"
        for i, (operation, numbers) in enumerate(steps):
            arrays, attributes = [], {}
            if operation == "Cast":
                attributes["to"] = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(numbers))
            elif numbers is not None:
                array = np.asarray(numbers, getattr(numbers, "dtype", F4))
                arrays = [array.reshape(1, 3, 1, 1) if array.shape == (3,) else array]
            if operation == "BatchNormalization":
                mean, std = np.asarray(numbers, F4)
                arrays = [np.ones_like(mean), np.zeros_like(mean), mean, std**2 - 224]
                attributes["epsilon"] = 224.0
            names = [f"number{i}_{k}" for k in range(len(arrays))]
            for array, weight in zip(arrays, names, strict=True):
                tensor = onnx.numpy_helper.from_array(array, weight)
                if as_constants and array.dtype == F4:  # and written in the other way
                    values = array.ravel().tolist()
                    tensor = onnx.helper.make_tensor(weight, tensor.data_type, array.shape, values)
                if as_constants:
                    nodes.append(onnx.helper.make_node("Constant", [], [weight], value=tensor))
                else:
                    model.graph.initializer.append(tensor)
            inputs = [name, *names]
            nodes.append(onnx.helper.make_node(operation, inputs, [f"step{i}"], **attributes))
            name = f"step{i}"
        for node in model.graph.node:
            node.input[:] = [name if given == "image" else given for given in node.input]
        for i, node in enumerate(nodes):
            model.graph.node.insert(i, node)
    return path


@pytest.mark.parametrize("as_constants", [False, True], ids=["weights", "constants"])
@pytest.mark.parametrize("first", FIRST_NODES)
def test_mean_and_std_are_those_that_the_first_nodes_of_a_network_need(
    first, as_constants, tmp_path
):
    steps, (mean, std) = FIRST_NODES[first]
    path = make_network(tmp_path / "n.onnx", classes=3, size=(64, 64))
    put_first(path, steps, as_constants)
    if first == "Div 0":
        with pytest.raises(ValueError, match="computes NaN"):
            NanoDet(path, engine="onnxruntime")
        return
    detector = NanoDet(path, engine="onnxruntime")
    assert (detector.mean, detector.std) == (mean, std)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("first", ["Sub, Div", "Div 255, Sub, Div", "of fractions"])
def test_network_that_normalises_sees_the_colours_as_in_training(first, engine, tmp_path):
    path = put_first(colour_meter(tmp_path / "n.onnx"), FIRST_NODES[first][0])
    detector = NanoDet(path, 0.0, 0.0, engine=engine)
    for colour in ((255, 0, 0), (3, 100, 200)):
        found = detector.detect(np.full((64, 64, 3), colour, np.uint8))
        seen = [found.confidence[found.class_id == class_id].max() for class_id in range(3)]
        expected = 1 / (1 + np.exp(-(colour - USUAL[0]) / USUAL[1]))
        np.testing.assert_allclose(seen, expected, atol=0.01 if engine == "openvino" else 5e-5)


def test_mean_of_training_for_a_network_that_normalises_is_refused(tmp_path):
    path = put_first(make_network(tmp_path / "n.onnx", classes=3, size=(64, 64)), [("Div", 255)])
    with pytest.raises(
        ValueError, match="mean must be left out, with std: .* normalises by itself"
    ):
        NanoDet(path, mean=USUAL[0], std=USUAL[1])
    detector = NanoDet(path, mean=(0, 0, 0), std=[2, 2, 2])  # who knows better is believed
    assert (detector.mean, detector.std) == ((0, 0, 0), (2, 2, 2))


@pytest.mark.parametrize(
    ("input_size", "canvas"),
    [
        (512, (512, 512)),
        (np.int64(320), (320, 320)),
        ((640, 384), (640, 384)),
        ([96, 128], (96, 128)),
    ],
    ids=str,
)
def test_input_size_is_the_canvas_of_a_network_that_accepts_any(
    input_size, canvas, bundled, bundled_session, pictures
):
    detector = NanoDet(bundled, prob_threshold=0.15, input_size=input_size)
    assert detector.input_size == canvas
    image = cv2.resize(pictures[0], (160, 120))
    assert_as_reference(detector, bundled_session, image, canvas, 0.15)


@pytest.mark.parametrize(
    ("input_size", "sides", "canvas"),
    [
        (416, (640, 360), (416, 256)),
        (416, (360, 640), (256, 416)),
        (416, (900, 3), (416, 64)),
        ((640, 384), (500, 500), (384, 384)),
    ],
    ids=str,
)
def test_rect_pads_only_to_the_next_multiple_of_32(input_size, sides, canvas, bundled, pictures):
    image = cv2.resize(pictures[0], sides)
    rect = NanoDet(bundled, prob_threshold=0.1, input_size=input_size, rect=True)
    found = rect.detect(image)
    plain = NanoDet(bundled, prob_threshold=0.1, input_size=canvas)
    assert_equal(found, plain.detect(image))
    whole = input_size if isinstance(input_size, tuple) else (input_size, input_size)
    assert rect.input_size == whole


@pytest.mark.parametrize(
    "size",
    [400, 32, 0, -64, 4128, (416, 400), (416,), (416, 416, 3), (), 416.0, (416.0, 416.0), "416",
     math.nan, True],
    ids=str,
)  # fmt: skip
def test_input_size_that_can_not_be_is_refused(size, bundled):
    expected = f"{size!r} is not a multiple of 32 from 64 to 4096, nor two of them"
    with pytest.raises(ValueError, match=re.escape(f"input_size {expected}")):
        NanoDet(bundled, input_size=size)
    with pytest.raises(ValueError, match="^" + re.escape(expected)):
        check_canvas(size)


def test_canvas_is_two_whole_numbers():
    for size in (64, np.int32(4096), (96, 4064), [np.int64(640), 384]):
        canvas = check_canvas(size)
        assert canvas == tuple(np.broadcast_to(size, 2)) and {*map(type, canvas)} == {int}


@pytest.mark.parametrize(
    "settings",
    [{"input_size": 512}, {"input_size": (416, 320)}, {"input_size": "416"},
     {"input_size": (416.0, 416.0)}, {"rect": True}, {"rect": True, "input_size": 320}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("network", ["zoo", "m320"])
def test_network_of_one_size_names_it_when_asked_for_another(network, settings, path_of):
    path, (width, height) = path_of(network), NETWORKS[network][1]
    with pytest.raises(ModelError) as error:
        NanoDet(path, **settings)
    name = "rect" if "rect" in settings else "input_size"
    assert str(error.value) == (
        f"{path}: runs only at {width}x{height}. "
        f"Leave out the {name}, or run tools/free_size.py on it first."
    )


def test_network_of_one_size_may_be_asked_for_that_one(tmp_path):
    path = make_network(tmp_path / "n.onnx", size=(320, 256), classes=3)
    assert NanoDet(path, input_size=(320, 256)).input_size == (320, 256)


def test_one_detector_sees_each_image_as_if_it_were_the_first(bundled, pictures):
    settings = {"prob_threshold": 0.1, "input_size": 192}
    detector, wide, tall = NanoDet(bundled, **settings), pictures[0], pictures[2]
    tiny = np.full((1, 900, 3), 255, np.uint8)
    for image in (wide, tall, tiny, tall, np.ascontiguousarray(wide[:, ::-1])):
        assert_equal(detector.detect(image), NanoDet(bundled, **settings).detect(image))


def test_results_stay_as_they_are_when_the_next_image_comes(detector, pictures):
    first = detector.detect(pictures[0])
    copy = Detections(*(np.array(a) for a in (first.xyxy, first.confidence, first.class_id)))
    for image in pictures[1:]:
        detector.detect(image)
    assert len(first)
    assert_equal(first, copy)


def test_augment_looks_at_the_mirror_image_and_mirrors_its_boxes_back(tmp_path):
    boxes = [(20.0, 100.0, 80.0, 150.0, 0.9, 1)]  # found wherever the network looks
    path = make_network(tmp_path / "n.onnx", boxes=boxes, classes=3, size=(320, 320))
    found = NanoDet(path, augment=True).detect(np.zeros((320, 320, 3), np.uint8))
    expected = [(20, 100, 80, 150, 0.9, 1), (240, 100, 300, 150, 0.9, 1)]
    reference.assert_same_objects(reference.rows_of(found), expected, 0.01, 1e-3)
    wide = NanoDet(path, augment=True).detect(np.zeros((160, 640, 3), np.uint8))
    assert len(wide) == 2


@pytest.mark.parametrize("overlap", [0.5, 0.8, 1.0])
def test_voted_box_is_the_mean_of_all_of_its_class_that_overlap_it(overlap):
    random = np.random.default_rng(0)
    places = random.uniform(0, 60, (8, 2))[random.integers(0, 8, 200)]
    boxes = np.hstack([places, places + 40]) + random.normal(0, 3, (200, 4))
    boxes, confidence = boxes.astype(np.float32), random.uniform(0.1, 1, 200).astype(np.float32)
    class_id, kept = random.integers(0, 2, 200), np.arange(200)  # more than fit in one part
    rows = boxes.tolist()
    for box, i in zip(nanodet.vote(boxes, confidence, class_id, kept, overlap), kept, strict=True):
        same = [
            j
            for j in range(200)
            if class_id[i] == class_id[j] and (i == j or reference.iou(rows[i], rows[j]) >= overlap)
        ]
        assert len(same) > 1 or overlap > 0.5
        mean = sum(confidence[same, None] * boxes[same]) / sum(confidence[same])
        np.testing.assert_allclose(box, mean, rtol=0, atol=1e-3)
    assert nanodet.vote(boxes, confidence, class_id, kept[:0], 0.8).shape == (0, 4)


@pytest.mark.parametrize(
    ("agnostic", "iou_threshold", "overlap"),
    [(False, 0.6, 0.8), (True, 0.6, 0.8), (False, 0.9, 0.9)],
)
def test_augment_returns_voted_boxes(agnostic, iou_threshold, overlap, bundled):
    settings = {"augment": True, "class_agnostic": agnostic, "input_size": 256}
    settings["iou_threshold"] = iou_threshold
    street = cv2.imread(str(ROOT / "example_inputs" / "street.jpg"))  # a car is a truck, too
    found = NanoDet(bundled, **settings).detect(street)
    # IoU 1 keeps the boxes of all looks as they are; the lists differ by them alone.
    settings = {"augment": True, "iou_threshold": 1.0, "input_size": 256}
    every = reference.rows_of(NanoDet(bundled, **settings).detect(street))
    moved = 0
    for box in reference.rows_of(found):
        (own,) = (other for other in every if other[4:] == box[4:])
        groups = [b for b in every if agnostic or b[5] == own[5]]
        same = np.array([b for b in groups if reference.iou(b, own) >= overlap])
        mean = np.average(same[:, :4], axis=0, weights=same[:, 4])
        np.testing.assert_allclose(box[:4], mean, rtol=0, atol=1e-2)
        moved += not np.allclose(mean, own[:4], atol=0.05)
    assert moved


def test_augment_looks_at_several_sizes_for_small_objects_only_at_the_largest(
    bundled, bundled_session, pictures
):
    # IoU 1 merges nothing: what each size finds must be among all that is found.
    detector = NanoDet(bundled, augment=True, iou_threshold=1.0, input_size=256)
    portrait = cv2.imread(str(ROOT / "example_inputs" / "portrait.jpg"))
    left_out = 0
    for picture in (pictures[1], cv2.resize(portrait, (400, 480))):
        found = reference.rows_of(detector.detect(picture))
        height, width = picture.shape[:2]
        for side, mirrored in ((256, False), (320, True), (480, False)):
            image = picture[:, ::-1] if mirrored else picture
            expected = reference.detect(bundled_session, image, (side, side), 0.351, 1.0)
            assert expected
            for box in expected:
                box = (width - box[2], box[1], width - box[0], *box[3:]) if mirrored else box
                far = [
                    np.abs(np.subtract(box[:4], other[:4])).max()
                    for other in found
                    if box[5] == other[5] and abs(box[4] - other[4]) < 1e-3
                ]
                area = (box[2] - box[0]) * (box[3] - box[1]) * (side / max(width, height)) ** 2
                large = side == 480 and area > 300**2
                assert (min(far, default=np.inf) < 0.05) != large
                left_out += large
    assert left_out


def test_file_says_its_licence_and_version():
    first = (ROOT / "nanodet.py").read_text(encoding="utf-8").splitlines()[0]
    assert first == "# SPDX-License-Identifier: Apache-2.0"
    assert re.fullmatch(r"\d+\.\d+\.\d+", nanodet.__version__)


def test_type_hints_can_be_read_while_a_program_runs():
    for each in (NanoDet.__init__, NanoDet.detect, NanoDet.infer, Detections, Head):
        assert typing.get_type_hints(each)


@pytest.mark.parametrize("read", [bytes, bytearray, io.BytesIO])
def test_content_of_a_file_in_place_of_its_path_is_one_short_line(bundled, read):
    said = f"^modelPath must be the path of an ONNX file, not {read.__name__}$"
    with pytest.raises(ValueError, match=said):
        NanoDet(read(bundled.read_bytes()))
