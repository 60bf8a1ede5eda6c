"""COCO evaluation: numbers against pycocotools itself, and what the command line says and keeps.

The pictures are made up: at confidence 0.05 the network sees plenty in coloured blocks, and its
own detections serve as annotations.
"""

import contextlib
import io
import json
import os
import shutil
from importlib.util import find_spec

import cv2
import numpy as np
import pytest
from conftest import ROOT, make_network
from tool_helpers import assert_refused, run_tool

from nanodet import COCO_CLASSES, NanoDet

pytest.importorskip("matplotlib", reason="pip install matplotlib")
pytest.importorskip("pycocotools", reason="pip install pycocotools")
import evaluate
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

TOOL = ROOT / "tools" / "evaluate.py"
NETWORK = ROOT / "object_detection_nanodet_2022nov.onnx"
SIZE = 128  # a small canvas is quick
CATEGORY_IDS = [3 * i + 7 for i in range(80)]  # not the class index, and with gaps, as COCO's
NAMES = ["AP", "AP50", "AP75", "AP small", "AP medium", "AP large"]  # in COCOeval's order
NAMES += ["AR 1", "AR 10", "AR 100", "AR small", "AR medium", "AR large"]


@pytest.fixture
def tool(folder, capsys):
    """Run the tool on the made-up folder; returns exit code, stdout and stderr."""

    def run(*options, size=SIZE):
        args = ["--annotations", folder / "instances.json", "--images", folder / "images"]
        args += ["--out", folder / "out", *(["--size", size] if size else []), *options]
        return run_tool(evaluate, capsys, *args)

    evaluate.warn.cache_clear()
    return run


def metrics(folder):
    return json.loads((folder / "out" / "metrics.json").read_text())


def predictions(folder):
    return json.loads((folder / "out" / "predictions.json").read_text())


def save(folder, data):
    (folder / "instances.json").write_text(json.dumps(data))


def direct(annotations, results):
    """COCOeval by pycocotools alone, of rows (image, x, y, width, height, score, category)."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.imgIds = sorted({int(row[0]) for row in results})
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.fixture(scope="module")
def made_up():
    """Four pictures and, as annotations, all that the network finds on them."""
    generator = np.random.default_rng(5)
    detector = NanoDet(NETWORK, 0.05, 0.6, input_size=SIZE)
    pictures, images, boxes = {}, [], []
    for number in range(4):
        blocks = generator.integers(0, 256, (4 + number, 6, 3), dtype=np.uint8)
        picture = cv2.resize(blocks, (160, 120 + 10 * number), interpolation=cv2.INTER_CUBIC)
        name, id_ = f"bild ä {number}.png", 40 - number  # ids run against the file's order
        pictures[name] = cv2.imencode(".png", picture)[1]
        images.append({"id": id_, "file_name": name, "width": 160, "height": picture.shape[0]})
        for xyxy, _, class_id in detector.detect(picture)[:100]:
            x, y, right, bottom = map(float, xyxy)
            box = {"image_id": id_, "category_id": CATEGORY_IDS[class_id], "iscrowd": 0}
            box |= {"id": len(boxes) + 1, "bbox": [x, y, right - x, bottom - y]}
            boxes.append(box | {"area": (right - x) * (bottom - y)})
    assert len(boxes) >= 40
    categories = [
        {"id": id_, "name": name} for id_, name in zip(CATEGORY_IDS, COCO_CLASSES, strict=True)
    ]
    return pictures, {"images": images, "annotations": boxes, "categories": categories}


@pytest.fixture
def folder(made_up, tmp_path):
    """The made-up pictures and annotations as files; `save` changes the annotations."""
    pictures, data = made_up
    (tmp_path / "images").mkdir()
    for name, png in pictures.items():
        png.tofile(tmp_path / "images" / name)
    save(tmp_path, data)
    return tmp_path


@pytest.fixture
def data(made_up):
    """A copy of the made-up annotations, to change."""
    return json.loads(json.dumps(made_up[1]))


def harder(data):
    """Annotations that the network meets only in part: some gone, some moved, one a crowd."""
    boxes = data["annotations"]
    for box in boxes[::3]:
        box["bbox"][0] += 0.15 * box["bbox"][2]
    for box in boxes[1::3]:
        box["bbox"][0] += 0.3 * box["bbox"][2]  # IoU 0.54
    boxes[4]["iscrowd"] = 1
    data["annotations"] = [box for i, box in enumerate(boxes) if i % 5 != 1]
    return data


def test_own_detections_as_annotations_give_ap_1_and_all_files(folder, tool):
    code, out, err = tool()
    assert (code, err) == (0, "")
    found = metrics(folder)
    assert found["AP"] == pytest.approx(1) and found["AR 100"] == pytest.approx(1)
    assert found["images"] == 4
    assert "| all    | 0.50:0.95 | 1.0000 " in out
    known = {name for name, pair in found["classes"].items() if pair["AP"] is not None}
    assert known and all(f"| {name} " in out for name in COCO_CLASSES)
    perfect = pytest.approx({"AP50": 1, "AP": 1})
    assert all(found["classes"][name] == perfect for name in known)
    assert cv2.imread(str(folder / "out" / "precision_recall.png")).std() > 10
    files = {"predictions.json", "metrics.json", "precision_recall.png"}
    assert set(os.listdir(folder / "out")) == files


def test_metrics_agree_with_pycocotools_on_the_written_predictions(folder, data, tool):
    save(folder, harder(data))
    assert tool()[0] == 0
    rows = [[r["image_id"], *r["bbox"], r["score"], r["category_id"]] for r in predictions(folder)]
    reference = direct(folder / "instances.json", np.array(rows))
    found = metrics(folder)
    assert 0.2 < found["AP"] < 0.95
    assert [found[name] for name in NAMES] == pytest.approx(reference.stats.tolist())
    precision = reference.eval["precision"][:, :, :, 0, -1]
    for k, name in enumerate(COCO_CLASSES):
        expected = precision[:, :, k]
        pair = found["classes"][name]
        if expected.max() < 0:
            assert pair == {"AP50": None, "AP": None}
        else:
            assert pair == pytest.approx({"AP50": expected[0].mean(), "AP": expected.mean()})


def test_limit_takes_the_smallest_ids_and_the_rest_of_the_file_does_not_count(folder, tool):
    (folder / "images" / "bild ä 0.png").unlink()  # id 40
    assert tool("--limit", 3)[0] == 0
    assert {result["image_id"] for result in predictions(folder)} == {37, 38, 39}
    assert metrics(folder)["images"] == 3 and metrics(folder)["AP"] == pytest.approx(1)


def test_settings_decide_about_the_detections_and_are_written_down(folder, tool):
    assert tool("--confidence", 0.1, "--resize", "stretch")[0] == 0
    assert min(result["score"] for result in predictions(folder)) > 0.1
    settings = metrics(folder)["settings"]
    assert (settings["confidence"], settings["resize"]) == (0.1, "stretch")


def test_pictures_are_read_as_they_are_stored(folder, tool):
    picture = cv2.imread(str(folder / "images" / "bild ä 0.png"))
    jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
    turned = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    path = folder / "turned.jpg"
    path.write_bytes(jpeg[:2] + b"\xff\xe1\0\x22" + turned + jpeg[2:])
    assert cv2.imread(str(path)).shape[:2] == picture.shape[1::-1]
    assert evaluate.read_as_stored(path).shape == picture.shape


def test_boxes_of_images_not_listed_missing_fields_and_a_bom_do_no_harm(folder, data, tool):
    del data["images"][0]
    data["images"][0]["area"] = None  # of no interest
    for box in data["annotations"]:
        del box["area"], box["iscrowd"], box["id"]
    (folder / "instances.json").write_text(json.dumps(data), encoding="utf-8-sig")
    assert tool()[0] == 0
    assert metrics(folder)["images"] == 3 and metrics(folder)["AP"] == pytest.approx(1)


def as_text(data):
    for section, field in (("images", "id"), ("categories", "id")):
        for entry in data[section]:
            entry[field] = f"{entry[field]:06}"
    for entry in data["annotations"]:
        entry["image_id"] = str(entry["image_id"])


def as_floats(data):
    for section, field in (("images", "id"), ("annotations", "category_id")):
        for entry in data[section]:
            entry[field] = float(entry[field])


def as_polygons(data):
    for entry in data["annotations"]:
        x, y, width, height = entry.pop("bbox")
        across, down = x + width, y + height
        first, second = [x, y, across, y, across, y + 1], [x, down, x + 1, down, x, down - 1]
        entry["segmentation"] = [first, second]


def as_on_windows(data):
    for entry in data["images"]:
        entry["file_name"] = f"below\\{entry['file_name']}"


def in_capitals(data):
    for entry in data["categories"]:
        entry["name"] = entry["name"].upper()


@pytest.mark.parametrize("change", [as_text, as_floats, as_polygons, as_on_windows, in_capitals])
def test_annotations_as_other_programs_write_them_are_taken(folder, data, tool, change):
    change(data)
    save(folder, data)
    if change is as_on_windows:
        (folder / "images").rename(folder / "below")
        (folder / "images").mkdir()
        (folder / "below").rename(folder / "images" / "below")
    code, _, err = tool()
    assert (code, err) == (0, "")
    assert metrics(folder)["AP"] == pytest.approx(1)


@pytest.mark.skipif(os.name != "posix", reason="files can't have such names")
def test_backslash_that_is_part_of_a_name_stays(folder, data, tool):
    (folder / "images" / "bild ä 0.png").rename(folder / "images" / "a\\b.png")
    data["images"][0]["file_name"] = "a\\b.png"
    save(folder, data)
    assert tool()[0] == 0 and metrics(folder)["AP"] == pytest.approx(1)


def test_categories_that_differ_only_in_capitals_are_two(folder, two_classes, tool):
    two_classes["categories"][0]["name"] = "Door"  # was a wheel
    save(folder, two_classes)
    model, names = ("-m", folder / "two.onnx", "--labels", folder / "names.txt"), "door\nDoor\n"
    (folder / "names.txt").write_text(names)
    assert tool(*model, size=None)[0] == 0
    assert list(metrics(folder)["classes"]) == ["door", "Door"]
    assert metrics(folder)["AP"] == pytest.approx(1)
    (folder / "names.txt").write_text("DOOR\nwheel\n")  # which of both?
    code, _, err = tool(*model, size=None)
    assert code == 2 and "no class to score is a category of the annotations" in err


@pytest.mark.parametrize("more", [0, 1])
def test_annotations_may_be_as_large_as_the_limit_and_no_larger(folder, tool, monkeypatch, more):
    size = (folder / "instances.json").stat().st_size
    monkeypatch.setattr(evaluate, "LONGEST_ANNOTATIONS", size - more)
    result = tool()
    if not more:
        assert result[0] == 0
    else:
        assert_fault(folder, result, f"instances.json: is larger than {size - 1} bytes")


def test_box_number_0_counts_and_nothing_found_is_ap_0(folder, data):
    data["annotations"] = [box | {"id": box["id"] - 1} for box in data["annotations"]]
    save(folder, data)
    coco = evaluate.read_annotations(folder / "instances.json")
    results = [dict(box, score=0.5) for box in data["annotations"]]
    for found, ap in ((results, 1), ([], 0)):
        stats = evaluate.coco_eval(coco, coco.imgs, coco.cats, found).stats
        assert stats[0] == pytest.approx(ap)


# Classes that only one side knows


def most_frequent(data, number):
    used = [box["category_id"] for box in data["annotations"]]
    return sorted(set(used), key=used.count)[-number:]


def test_classes_without_a_category_do_not_count(folder, data, tool):
    few = most_frequent(data, 2)
    data["categories"] = [c for c in data["categories"] if c["id"] in few]
    data["annotations"] = [box for box in data["annotations"] if box["category_id"] in few]
    save(folder, data)
    assert tool()[0] == 0
    assert metrics(folder)["AP"] == pytest.approx(1)
    assert len(metrics(folder)["classes"]) == 2


def test_categories_that_the_network_does_not_know_are_named_and_not_scored(folder, data, tool):
    data["categories"].append({"id": 1, "name": "things"})  # a parent that nothing detects
    data["annotations"].append(data["annotations"][0] | {"category_id": 1})
    save(folder, data)
    code, _, err = tool()
    said = "evaluate.py: not scored, as the network does not know them: things\n"
    assert (code, err) == (0, said)
    assert metrics(folder)["AP"] == pytest.approx(1)
    assert "things" not in metrics(folder)["classes"]


def test_classes_scores_only_those(folder, data, tool):
    names = {c["id"]: c["name"] for c in data["categories"]}
    wanted = names[most_frequent(data, 1)[0]]
    assert tool("--classes", wanted)[0] == 0
    assert list(metrics(folder)["classes"]) == [wanted]


@pytest.fixture
def two_classes(folder, data):
    """A network of two classes, and annotations of what it always finds: a door and a wheel."""
    boxes = [(20, 30, 90, 110, 0.9, 0), (150, 160, 300, 290, 0.8, 1)]
    make_network(folder / "two.onnx", boxes=boxes, classes=2)
    picture = np.zeros((416, 416, 3), np.uint8)
    cv2.imwrite(str(folder / "images" / "black.png"), picture)
    found = NanoDet(folder / "two.onnx").detect(picture)
    data["images"] = [{"id": 1, "file_name": "black.png"}]
    data["categories"] = [{"id": 9, "name": "wheel"}, {"id": 2, "name": "door"}]
    data["annotations"] = [
        {"image_id": 1, "category_id": (2, 9)[class_id]}
        | {"bbox": [float(v) for v in (*box[:2], *(box[2:] - box[:2]))]}
        for box, _, class_id in found
    ]
    save(folder, data)
    return data


def test_network_of_other_classes_takes_the_categories_by_id(folder, two_classes, tool):
    assert tool("-m", folder / "two.onnx", size=None)[0] == 0
    assert metrics(folder)["AP"] == pytest.approx(1)
    assert list(metrics(folder)["classes"]) == ["door", "wheel"]


def test_labels_name_the_classes_of_the_network(folder, two_classes, tool):
    two_classes["categories"] += [{"id": 1, "name": "part"}]
    save(folder, two_classes)
    model = ("-m", folder / "two.onnx")
    code, _, err = tool(*model, size=None)
    assert code == 2 and "knows 2 classes, there are names for 3" in err and "--labels" in err
    code, _, err = tool(*model, "--classes", "person", size=None)
    assert code == 2 and "--classes person: the network knows 2 classes, without names" in err
    (folder / "names.txt").write_text("door\nwheel\n")
    code, _, err = tool(*model, "--labels", folder / "names.txt", size=None)
    assert (code, err.count("\n")) == (0, 1) and err.endswith("does not know them: part\n")
    assert metrics(folder)["AP"] == pytest.approx(1)
    (folder / "names.txt").write_text("porte\nroue\n")
    code, _, err = tool(*model, "--labels", folder / "names.txt", size=None)
    assert code == 2 and "is a category of the annotations, which are part, door, wheel" in err


# What can't be evaluated


def assert_fault(folder, result, said):
    assert_refused(evaluate, result, said)
    assert not list(folder.glob("out/*"))


def image(**fields):
    return lambda data: data["images"][2].update(fields)


def box(**fields):
    return lambda data: data["annotations"][0].update(fields)


def all_of(section, **fields):
    return lambda data: [entry.update(fields) for entry in data[section]]


FAULTS = [  # what changes the annotations, what is said
    (image(file_name="gone.png"), "gone.png: no such picture (1 of 4"),
    (image(file_name="../images/x.png"), "images[2]: file_name is '../images/x.png', not the name"),
    (image(file_name="/x.png"), "images[2]: file_name is '/x.png', not the name"),
    (image(file_name="a\\..\\..\\x.png"), "x.png', not the name of a file below"),
    (image(id="x39"), "images[2]: id is 'x39', not a whole number"),
    (image(id=38.5), "images[2]: id is 38.5, not a whole number"),
    (image(id=40), "2 images have the same id, 40"),
    (box(bbox=[1, 2, 3]), "annotations[0]: bbox is [1, 2, 3], not left, top, width and height"),
    (box(bbox=[1, 2, 3, float("nan")]), "annotations[0]: bbox is [1, 2, 3, nan], not left"),
    (box(bbox=[1, 2, -1, 4]), "annotations[0]: bbox is [1, 2, -1, 4], not left"),
    (box(bbox=None), "annotations[0]: bbox is None, not left, top, width and height, nor are"),
    (box(bbox=[], segmentation=[]), "annotations[0]: bbox is [], not left"),
    (box(bbox=[], segmentation={"counts": "x", "size": [9, 9]}), "annotations[0]: bbox is [], not"),
    (box(bbox=[], segmentation=[[1, float("nan"), 3, 4]]), "annotations[0]: bbox is [], not"),
    (box(area=None), "annotations[0]: area is None, not a number"),
    (box(iscrowd=2), "annotations[0]: iscrowd is 2, not 0 or 1"),
    (box(image_id="4O"), "annotations[0]: image_id is '4O', not a whole number"),
    (box(image_id=True), "annotations[0]: image_id is True, not a whole number"),
    (lambda data: data["annotations"].insert(0, None), "annotations[0]: image_id is None, not a"),
    (lambda data: data["annotations"].clear(), "instances.json: lists no annotations"),
    (lambda data: data.pop("categories"), "instances.json: lists no categories"),
    (all_of("annotations", iscrowd=1), "the 4 pictures have only crowds"),
    (all_of("annotations", image_id=999), "the 4 pictures have no box"),
    (all_of("categories", name="object"), "80 categories have the same name, 'object'"),
]


@pytest.mark.parametrize("change, said", FAULTS, ids=[said for _, said in FAULTS])
def test_fault_of_the_annotations_is_named_in_one_line(folder, data, tool, change, said):
    change(data)
    save(folder, data)
    assert_fault(folder, tool(), said)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("instances.json", b"", "instances.json: is not JSON"),
        ("instances.json", b"[1]", "instances.json: lists no images"),
        ("images/bild ä 2.png", b"no picture", "bild ä 2.png: is not a picture that OpenCV reads"),
        ("images/bild ä 2.png", b"", "bild ä 2.png: is not a picture that OpenCV reads"),
    ],
)
def test_file_that_can_not_be_read_is_named(folder, tool, name, content, said):
    (folder / name).write_bytes(content)
    assert_fault(folder, tool(), said)


@pytest.mark.parametrize(
    "options, said",
    [
        (["--model", "gone"], "gone: no such network"),
        (["--annotations", "gone.json"], "gone.json: can't be read: No such file"),
        (["--sweep"], "--sweep: tries sizes, square and rect, itself. Leave out --size and --rect"),
        (["--out", ""], "--out (empty): is not a folder"),
        (["--out", TOOL], f"--out {TOOL}: is not a folder"),
    ],
)
def test_wrong_usage_is_named_in_one_line(folder, tool, options, said):
    assert_fault(folder, tool(*options), said)


def test_sweep_writes_a_row_a_size_and_a_picture(folder, tool, monkeypatch):
    sizes = (64, 96, 128)
    monkeypatch.setattr(evaluate, "SWEEP_SIZES", sizes)
    (folder / "other").mkdir()
    plus = make_network(folder / "plus.onnx", levels=4, layout="joined")
    same = shutil.copy(plus, folder / "other")
    code, out, _ = tool("--sweep", "--limit", 1, "--beside", plus, same, size=None)
    assert code == 0
    table = (folder / "out" / "sweep.md").read_text()
    head, _, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines())
    names = ["opencv", "onnxruntime", "onnxruntime, int8"]
    names += ["openvino"] if find_spec("openvino") else []
    assert head[1::2] == [f"AP, {name}" for name in (*names, "plus", same)]
    inputs = [f"{size} {kind}" for kind in ("square", "rect") for size in sizes]
    assert [row[0] for row in rows] == [*inputs, "--augment", "its size"]
    assert all(float(row[2]) > 0 for row in rows[:-1]) and float(rows[-1][-1]) > 0
    assert rows[-1][1:-4] == ["-"] * 2 * len(names)
    assert table in out
    assert cv2.imread(str(folder / "out" / "sweep.png")).std() > 10


def test_real_pictures_reach_the_ap_of_a_loop_of_ones_own(shared, tmp_path):
    subset = shared / "coco_val2017_subset"
    args = ["--annotations", subset / "instances.json", "--images", subset / "images"]
    assert not evaluate.main([*map(str, args), "--limit", "25", "--out", str(tmp_path / "out")])

    data = json.loads((subset / "instances.json").read_text())
    ids = {category["name"]: category["id"] for category in data["categories"]}
    detector = NanoDet(NETWORK, 0.05, 0.6)
    rows = []
    for image in sorted(data["images"], key=lambda image: image["id"])[:25]:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        picture = cv2.imread(str(subset / "images" / image["file_name"]), flags)
        for (x, y, right, bottom), confidence, class_id in detector.detect(picture)[:100]:
            box = (image["id"], x, y, right - x, bottom - y, confidence)
            rows.append([*box, ids[COCO_CLASSES[class_id]]])
    expected = direct(subset / "instances.json", np.array(rows, np.float64)).stats
    found = metrics(tmp_path)
    assert found["AP"] > 0.2
    assert [found[name] for name in NAMES] == pytest.approx(expected, abs=1e-3)
