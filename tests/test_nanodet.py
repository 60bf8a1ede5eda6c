"""The detector as a whole: real networks on real pictures, every shape of image, every setting."""

import threading

import cv2
import numpy as np
import pytest
import reference
from conftest import as_model, make_network

from nanodet import COCO_CLASSES, Detections, NanoDet

onnxruntime = pytest.importorskip("onnxruntime")

NETWORKS = {  # file and its own canvas
    "bundled": ("object_detection_nanodet_2022nov.onnx", (416, 416)),
    "zoo": ("object_detection_nanodet_2022nov.onnx", (416, 416)),
    "plus": ("nanodet-plus-m_416.onnx", (416, 416)),
    "m320": ("nanodet_320_2d.onnx", (320, 320)),
}
# Cars (4:3, wide), a cat (4:3), a suitcase (upright), a giraffe (nearly square).
PICTURES = ("000000017627", "000000119828", "000000125952", "000000153299")
BROKEN_IMAGES = {
    "grey": np.zeros((20, 30), np.uint8),
    "one channel": np.zeros((20, 30, 1), np.uint8),
    "four channels": np.zeros((20, 30, 4), np.uint8),
    "float32": np.zeros((20, 30, 3), np.float32),
    "int64": np.zeros((20, 30, 3), np.int64),
    "uint16": np.zeros((20, 30, 3), np.uint16),
    "no rows": np.zeros((0, 30, 3), np.uint8),
    "no columns": np.zeros((20, 0, 3), np.uint8),
    "a batch": np.zeros((1, 20, 30, 3), np.uint8),
    "objects": np.full((20, 30, 3), None),
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
        image.flags.writeable = False  # and so no test can change them for the next
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


def assert_equal(found, expected):
    """Two Detections, equal to the last bit."""
    for name in ("xyxy", "confidence", "class_id"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
@pytest.mark.parametrize("network", NETWORKS)
def test_objects_are_those_of_an_independent_pipeline(network, engine, path_of, pictures):
    path, canvas = path_of(network), NETWORKS[network][1]
    detector, session = NanoDet(path, engine=engine), session_of(path)
    assert detector.input_size == canvas
    for image in pictures[:3]:
        # So that none shrinks twice and more, where how to average is a matter of choice.
        image = cv2.resize(image, None, fx=0.9, fy=0.9)
        found = reference.rows_of(detector.detect(image))
        expected = reference.detect(session, image, canvas, 0.35)
        assert len(expected) >= 2
        reference.assert_same_objects(found, expected, 0.05, 1e-3, above=0.35)


@pytest.mark.parametrize("network", NETWORKS)
def test_engines_agree(network, path_of, pictures):
    opencv, other = (NanoDet(path_of(network), engine=e) for e in ("opencv", "onnxruntime"))
    for image in pictures:
        found, expected = (reference.rows_of(d.detect(image)) for d in (opencv, other))
        assert found
        reference.assert_same_objects(found, expected, 0.05, 1e-3, above=0.35)


@pytest.mark.parametrize("network", NETWORKS)
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


def test_overlapping_boxes_of_one_class_are_one_object(bundled, pictures):
    numbers = []
    for threshold in (0.3, 0.6, 0.9):
        found = reference.rows_of(NanoDet(bundled, iou_threshold=threshold).detect(pictures[0]))
        pairs = [(a, b) for i, a in enumerate(found) for b in found[:i] if a[5] == b[5]]
        assert max(reference.iou(a, b) for a, b in pairs) <= threshold + 1e-6
        numbers.append(len(found))
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(
    ("name", "value"),
    [("prob_threshold", -0.1), ("prob_threshold", 35), ("iou_threshold", 1.01),
     ("iou_threshold", float("nan"))],
)  # fmt: skip
def test_thresholds_out_of_range_are_named(name, value, bundled):
    with pytest.raises(ValueError, match=f"{name} must be from 0 to 1, not {value}"):
        NanoDet(bundled, **{name: value})


def test_infer_gives_the_rows_of_detect(detector, pictures):
    for image in pictures:
        rows, found = detector.infer(image), detector.detect(image)
        assert rows.dtype == np.float32 and rows.shape == (len(found), 6)
        np.testing.assert_array_equal(rows[:, :4], found.xyxy)
        np.testing.assert_array_equal(rows[:, 4], found.confidence)
        np.testing.assert_array_equal(rows[:, 5], found.class_id)


def test_nothing_found_gives_empty_arrays_of_the_right_shape(detector):
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
def test_image_of_another_kind_is_refused_with_shape_and_dtype(name, detector):
    image = BROKEN_IMAGES[name]
    for method in (detector.detect, detector.infer):
        with pytest.raises(ValueError) as error:
            method(image)
        assert str(image.shape) in str(error.value) and str(image.dtype) in str(error.value)
        assert "uint8" in str(error.value)


@pytest.mark.parametrize("image", [None, "street.jpg", [[[0, 0, 0]]]], ids=str)
def test_image_that_is_no_array_is_refused(image, detector):
    with pytest.raises(ValueError, match=f"must be an array, not {type(image).__name__}"):
        detector.detect(image)


@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 900), (900, 1), (5000, 3), (3, 5000), (2, 2), (416, 416), (415, 417), (64, 64)],
)
def test_image_of_any_size_is_taken_and_boxes_lie_inside(size, bundled):
    width, height = size
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    for keep_ratio in (True, False):
        detector = NanoDet(bundled, prob_threshold=0.01, keep_ratio=keep_ratio)
        found = detector.detect(image)
        assert len(found)
        assert (found.xyxy >= 0).all() and (found.xyxy <= [width, height, width, height]).all()
        assert (found.xyxy[:, 2:] >= found.xyxy[:, :2]).all()


def test_square_picture_gives_the_same_kind_of_result_as_any_other(
    detector, bundled_session, pictures
):
    square = pictures[1][:375, 60:435]
    found = reference.rows_of(detector.detect(square))
    expected = reference.detect(bundled_session, square, (416, 416), 0.35)
    assert len(expected) >= 2
    reference.assert_same_objects(found, expected, 0.05, 1e-3, above=0.35)


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
    ],
    ids=["flipped", "mirrored", "strided", "channels", "cut out", "transposed", "fortran"],
)
def test_view_of_an_image_counts_like_its_copy(view, bundled, pictures):
    detector, image = NanoDet(bundled, prob_threshold=0.1), view(pictures[0])
    found = detector.detect(image)
    assert len(found)
    assert_equal(found, detector.detect(np.array(image, order="C")))


def test_boxes_are_clipped_to_the_image(tmp_path):
    corner, right = (-20.0, -10.0, 40.0, 50.0), (280.0, 250.0, 400.0, 390.0)
    path = make_network(
        tmp_path / "n.onnx", boxes=[(*corner, 0.9, 0), (*right, 0.8, 1)], classes=2,
        size=(320, 320), reg_max=10,
    )  # fmt: skip
    found = NanoDet(path).detect(np.zeros((640, 640, 3), np.uint8))
    np.testing.assert_allclose(found.xyxy, [[0, 0, 80, 100], [560, 500, 640, 640]], atol=0.02)


def colour_meter(path, size=(64, 64)):
    """A NanoDet of 3 classes whose confidences are the sigmoid of the blob's channel means."""
    from onnx import TensorProto, helper, numpy_helper, save

    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Reshape", ["mean", "shape"], ["row"]),
    ]
    weights, outputs = {"shape": np.array([1, 1, 3])}, {}
    for stride in (8, 16, 32):
        n = len(reference.centres(size, stride, 0.5))
        weights[f"zeros{stride}"] = np.zeros((1, n, 3), np.float32)
        weights[f"logits{stride}"] = random.normal(0, 3, (1, n, 32)).astype(np.float32)
        weights["nothing"] = np.zeros(1, np.float32)
        nodes += [
            helper.make_node("Add", [f"zeros{stride}", "row"], [f"sum{stride}"]),
            helper.make_node("Sigmoid", [f"sum{stride}"], [f"cls{stride}"]),
            helper.make_node("Mul", [f"sum{stride}", "nothing"], [f"none{stride}"]),
            helper.make_node("ReduceMean", [f"none{stride}"], [f"m{stride}"], axes=[2], keepdims=1),
            helper.make_node("Add", [f"logits{stride}", f"m{stride}"], [f"dis{stride}"]),
        ]
        outputs |= {f"cls{stride}": (1, n, 3), f"dis{stride}": (1, n, 32)}
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, *size[::-1]))],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    save(as_model(graph), path)
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


def test_channels_swapped_change_the_result(detector, pictures):
    image = pictures[0]
    right, swapped = detector.detect(image), detector.detect(image[:, :, ::-1])
    assert len(right) != len(swapped) or np.abs(right.confidence - swapped.confidence).max() > 0.01


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
    for image in (cv2.resize(picture, (160, 120)) for picture in pictures[:2]):
        found = reference.rows_of(detector.detect(image))
        expected = reference.detect(bundled_session, image, canvas, 0.15)
        assert expected
        reference.assert_same_objects(found, expected, 0.05, 1e-3, above=0.15)


@pytest.mark.parametrize(
    ("input_size", "sides", "canvas"),
    [
        (416, (640, 360), (416, 256)),
        (416, (360, 640), (256, 416)),
        (416, (640, 480), (416, 320)),
        (416, (500, 500), (416, 416)),
        (416, (900, 3), (416, 64)),
        (512, (640, 360), (512, 288)),
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


def test_rect_finds_what_an_independent_pipeline_finds(bundled, bundled_session, pictures):
    image = pictures[0][60:420]  # 640x360
    found = reference.rows_of(NanoDet(bundled, rect=True).detect(image))
    expected = reference.detect(bundled_session, image, (416, 256), 0.35)
    assert len(expected) >= 5
    reference.assert_same_objects(found, expected, 0.05, 1e-3, above=0.35)


@pytest.mark.parametrize(
    "input_size", [400, 32, 0, -64, (416, 400), (416,), (416, 416, 3)], ids=str
)
def test_input_size_that_can_not_be_is_refused(input_size, bundled):
    with pytest.raises(ValueError, match="multiple of 32 from 64 to 4096") as error:
        NanoDet(bundled, input_size=input_size)
    assert str(input_size) in str(error.value)


@pytest.mark.parametrize("settings", [{"input_size": 512}, {"input_size": (416, 320)},
                                      {"rect": True}, {"rect": True, "input_size": 320}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("network", ["zoo", "m320"])
def test_network_of_one_size_names_it_when_asked_for_another(network, settings, path_of):
    path, (width, height) = path_of(network), NETWORKS[network][1]
    with pytest.raises(ValueError) as error:
        NanoDet(path, **settings)
    assert f"{width}x{height}" in str(error.value) and str(path) in str(error.value)


def test_network_of_one_size_may_be_asked_for_that_one(tmp_path):
    path = make_network(tmp_path / "n.onnx", size=(320, 256), classes=3)
    assert NanoDet(path, input_size=(320, 256)).input_size == (320, 256)


def test_one_detector_sees_each_image_as_if_it_were_the_first(bundled, pictures):
    detector = NanoDet(bundled, prob_threshold=0.1)
    wide, tall = pictures[0], pictures[2]
    tiny = np.full((1, 900, 3), 255, np.uint8)
    shrunk = cv2.resize(wide, None, fx=3, fy=3)
    for image in (wide, tall, tiny, tall, wide, shrunk, np.ascontiguousarray(wide[:, ::-1])):
        assert_equal(detector.detect(image), NanoDet(bundled, prob_threshold=0.1).detect(image))


def test_results_stay_as_they_are_when_the_next_image_comes(detector, pictures):
    first = detector.detect(pictures[0])
    copy = Detections(*(np.array(a) for a in (first.xyxy, first.confidence, first.class_id)))
    for image in pictures[1:]:
        detector.detect(image)
    assert len(first)
    assert_equal(first, copy)


@pytest.mark.parametrize("augment", [False, True])
def test_image_is_not_changed(augment, bundled, pictures):
    image = pictures[2].copy()
    NanoDet(bundled, augment=augment).detect(image)
    np.testing.assert_array_equal(image, pictures[2])


def in_threads(work):
    """Run functions at the same time, and give their results."""
    results, start = [None] * len(work), threading.Barrier(len(work))

    def run(i):
        start.wait()
        results[i] = work[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("engine", ["opencv", "onnxruntime"])
@pytest.mark.parametrize("one_object", [True, False], ids=["shared", "one each"])
def test_threads_get_the_results_that_one_thread_gets(one_object, engine, bundled, pictures):
    detectors = [NanoDet(bundled, input_size=256, engine=engine) for _ in range(2)]
    expected = [detectors[0].detect(image) for image in pictures]
    detectors = [detectors[0]] * 2 if one_object else detectors
    rounds = 3 * list(range(len(pictures)))
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


def test_augment_finds_as_many_and_more_inside_the_picture(bundled, detector, pictures):
    augmented = NanoDet(bundled, augment=True)
    for image in pictures[:3]:
        height, width = image.shape[:2]
        found, plain = augmented.detect(image), detector.detect(image)
        assert len(found) >= len(plain) > 0
        assert (found.xyxy >= 0).all() and (found.xyxy <= [width, height, width, height]).all()
        assert (np.diff(found.confidence) <= 0).all()
        # What the plain look finds is still there, if perhaps as a better look at it.
        for box in reference.rows_of(plain):
            same = [other for other in reference.rows_of(found) if other[5] == box[5]]
            assert max(reference.iou(box, other) for other in same) > 0.6


def test_augment_looks_at_the_mirror_image_and_mirrors_its_boxes_back(tmp_path):
    boxes = [(20.0, 100.0, 80.0, 150.0, 0.9, 1)]  # found wherever the network looks
    path = make_network(tmp_path / "n.onnx", boxes=boxes, classes=3, size=(320, 320))
    found = NanoDet(path, augment=True).detect(np.zeros((320, 320, 3), np.uint8))
    expected = [(20, 100, 80, 150, 0.9, 1), (240, 100, 300, 150, 0.9, 1)]
    reference.assert_same_objects(reference.rows_of(found), expected, 0.01, 1e-3)
    wide = NanoDet(path, augment=True).detect(np.zeros((160, 640, 3), np.uint8))
    assert len(wide) == 2


def test_augment_looks_at_several_sizes(bundled, bundled_session, pictures):
    # IoU 1 merges nothing: what each size finds must be among all that is found.
    detector = NanoDet(bundled, augment=True, iou_threshold=1.0)
    found = reference.rows_of(detector.detect(pictures[1]))
    for side in (416, 512, 640):
        expected = reference.detect(bundled_session, pictures[1], (side, side), 0.351, 1.0)
        assert expected
        for box in expected:
            far = [
                np.abs(np.subtract(box[:4], other[:4])).max()
                for other in found
                if box[5] == other[5] and abs(box[4] - other[4]) < 1e-3
            ]
            assert min(far, default=np.inf) < 0.05
