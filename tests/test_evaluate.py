"""COCO evaluation: numbers against pycocotools itself, and what the command line says and keeps.

The pictures are made up: at confidence 0.05 the network sees plenty in coloured blocks, and its
own detections serve as annotations.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from nanodet import COCO_CLASSES, NanoDet

pytest.importorskip("matplotlib", reason="pip install matplotlib")
pytest.importorskip("pycocotools", reason="pip install pycocotools")
import evaluate
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "evaluate.py"
NETWORK = ROOT / "object_detection_nanodet_2022nov.onnx"
SIZE = 128  # a small canvas is quick
CATEGORY_IDS = [3 * i + 7 for i in range(80)]  # not the class index, and with gaps, as COCO's


def run(folder, *options, size=SIZE):
    """The tool as a process on a made-up folder; its output goes to folder/out."""
    command = [sys.executable, TOOL, "--annotations", folder / "instances.json"]
    command += ["--images", folder / "images", "--out", folder / "out"]
    command += ["--size", str(size)] if size else []
    return subprocess.run(
        [*map(str, command), *map(str, options)], capture_output=True, text=True, timeout=120
    )


def metrics(folder):
    return json.loads((folder / "out" / "metrics.json").read_text())


def kept_files(folder):
    return sorted((folder / "out").glob("predictions-*.jsonl"))


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


def test_own_detections_as_annotations_give_ap_1_and_all_files(folder):
    result = run(folder)
    assert result.returncode == 0 and result.stderr == ""
    found = metrics(folder)
    assert found["AP"] == pytest.approx(1) and found["AR 100"] == pytest.approx(1)
    assert found["images"] == 4
    summary = (folder / "out" / "summary.md").read_text()
    classes = (folder / "out" / "classes.md").read_text()
    assert summary in result.stdout and classes in result.stdout
    assert "| all    | 0.50:0.95 | 1.0000 " in summary
    known = {name for name, pair in found["classes"].items() if pair["AP"] is not None}
    assert known and all(f"| {name} " in classes for name in COCO_CLASSES)
    perfect = pytest.approx({"AP50": 1, "AP": 1})
    assert all(found["classes"][name] == perfect for name in known)
    for name in ("precision_recall.png", "classes.png"):
        assert cv2.imread(str(folder / "out" / name)).std() > 10
    assert not list((folder / "out").glob("*.part"))


def test_metrics_agree_with_pycocotools_on_the_written_predictions(folder, data):
    save(folder, harder(data))
    assert run(folder).returncode == 0
    with contextlib.redirect_stdout(io.StringIO()):
        results = COCO(str(folder / "instances.json")).loadRes(
            str(folder / "out" / "predictions.json")
        )
    rows = [
        [box["image_id"], *box["bbox"], box["score"], box["category_id"]]
        for box in results.dataset["annotations"]
    ]
    reference = direct(folder / "instances.json", np.array(rows))
    found = metrics(folder)
    assert 0.2 < found["AP"] < 0.95
    assert [found[name] for name, *_ in evaluate.STATS] == pytest.approx(reference.stats.tolist())
    precision = reference.eval["precision"][:, :, :, 0, -1]
    for k, name in enumerate(COCO_CLASSES):
        expected = precision[:, :, k]
        pair = found["classes"][name]
        if expected.max() < 0:
            assert pair == {"AP50": None, "AP": None}
        else:
            assert pair == pytest.approx({"AP50": expected[0].mean(), "AP": expected.mean()})


def test_a_second_run_keeps_finished_pictures_and_repairs_a_torn_line(folder):
    assert run(folder, "--limit", 2).returncode == 0
    (kept,) = kept_files(folder)
    finished = kept.read_text().splitlines()
    # Marks that no detector would leave: only a kept line can bring them to the end.
    first = json.loads(finished[0]) | {"results": []}
    kept.write_text(json.dumps(first) + "\n" + finished[1] + "\n" + finished[1][:50])
    assert run(folder).returncode == 0
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [line["image_id"] for line in lines] == [37, 38, 39, 40]
    assert lines[:2] == [first, json.loads(finished[1])]
    predicted = {
        box["image_id"] for box in json.loads((folder / "out/predictions.json").read_text())
    }
    assert predicted == {38, 39, 40}
    assert metrics(folder)["images"] == 4 and metrics(folder)["AP"] < 1


def test_other_settings_start_anew(folder):
    run(folder)
    (kept,) = kept_files(folder)
    kept.write_text(kept.read_text().replace('"score": 0.', '"score": 0.00'))
    assert run(folder, "--confidence", 0.1, "--resize", "stretch").returncode == 0
    assert len(kept_files(folder)) == 2
    scores = [box["score"] for box in json.loads((folder / "out/predictions.json").read_text())]
    assert scores and min(scores) > 0.1
    assert metrics(folder)["settings"]["resize"] == "stretch"


def test_networks_of_one_name_are_told_apart(folder):
    for place, more in (("a", b""), ("b", b"\x32\x01x")):  # a doc_string, of one letter
        (folder / place).mkdir()
        (folder / place / "net.onnx").write_bytes(NETWORK.read_bytes() + more)
        assert run(folder, "--model", folder / place / "net.onnx").returncode == 0
    assert len(kept_files(folder)) == 2


def test_classes_that_nobody_annotated_do_not_count(folder, data):
    used = [box["category_id"] for box in data["annotations"]]
    few = sorted(set(used), key=used.count)[-2:]
    data["categories"] = [c for c in data["categories"] if c["id"] in few]
    data["annotations"] = [box for box in data["annotations"] if box["category_id"] in few]
    save(folder, data)
    assert run(folder).returncode == 0
    assert metrics(folder)["AP"] == pytest.approx(1)
    assert len(metrics(folder)["classes"]) == 2


def test_an_id_that_names_another_picture_now_is_detected_again(folder, data):
    assert run(folder).returncode == 0
    first, second = data["images"][:2]
    first["file_name"], second["file_name"] = second["file_name"], first["file_name"]
    save(folder, data)
    assert run(folder).returncode == 0
    assert metrics(folder)["AP"] < 0.9


def test_limit_takes_the_smallest_ids_and_the_rest_of_the_file_does_not_count(folder):
    (folder / "images" / "bild ä 0.png").unlink()  # id 40
    assert run(folder, "--limit", 3).returncode == 0
    predicted = {
        box["image_id"] for box in json.loads((folder / "out/predictions.json").read_text())
    }
    assert predicted == {37, 38, 39}
    assert metrics(folder)["images"] == 3 and metrics(folder)["AP"] == pytest.approx(1)


def test_boxes_of_images_not_listed_and_missing_fields_do_no_harm(folder, data):
    del data["images"][0]
    for box in data["annotations"]:
        del box["area"], box["iscrowd"], box["id"]
    save(folder, data)
    assert run(folder).returncode == 0
    assert metrics(folder)["images"] == 3 and metrics(folder)["AP"] == pytest.approx(1)


def test_box_number_0_counts(folder, data):
    data["annotations"] = [box | {"id": box["id"] - 1} for box in data["annotations"]]
    save(folder, data)
    dataset = evaluate.read_dataset(folder / "instances.json", folder / "images")
    results = [dict(box, score=0.5) for box in data["annotations"]]
    assert evaluate.evaluate(dataset, results).stats[0] == pytest.approx(1)


def test_nothing_found_is_ap_0(folder):
    dataset = evaluate.read_dataset(folder / "instances.json", folder / "images")
    assert evaluate.evaluate(dataset, []).stats[0] == 0


def test_a_crowd_forgives_detections_and_an_object_does_not(folder, data):
    box = data["annotations"][0]
    others = [b for b in data["annotations"] if b["image_id"] == box["image_id"]]
    others = [b for b in others if b["category_id"] == box["category_id"]]
    kept = [b for b in data["annotations"] if b not in others]
    whole = box | {"bbox": [0, 0, 160, 120], "area": 160 * 120}
    scores = []
    for crowd in (1, 0):
        save(folder, data | {"annotations": [*kept, whole | {"iscrowd": crowd}]})
        dataset = evaluate.read_dataset(folder / "instances.json", folder / "images")
        results = [dict(b, score=0.5) for b in data["annotations"]]
        scores.append(evaluate.evaluate(dataset, results).stats[0])
    assert scores[0] == pytest.approx(1) and scores[1] < 1


def missing_picture(folder, data):
    (folder / "images" / "bild ä 2.png").unlink()


def broken_picture(folder, data):
    (folder / "images" / "bild ä 2.png").write_bytes(b"no picture")


def empty_picture(folder, data):
    (folder / "images" / "bild ä 2.png").write_bytes(b"")


def unknown_category(folder, data):
    data["categories"][3]["name"] = "motorbike"


def unknown_category_id(folder, data):
    data["annotations"][3]["category_id"] = 4711


def no_box(folder, data):
    data["annotations"] = []


def boxes_of_other_images_only(folder, data):
    for box in data["annotations"]:
        box["image_id"] = 999


def only_crowds(folder, data):
    for box in data["annotations"]:
        box["iscrowd"] = 1


def same_id_twice(folder, data):
    data["images"][1]["id"] = data["images"][0]["id"]


def no_categories(folder, data):
    del data["categories"]


def box_of_three_numbers(folder, data):
    data["annotations"][0]["bbox"].pop()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (missing_picture, "bild ä 2.png: no such picture (1 of 4 are missing)"),
        (broken_picture, "bild ä 2.png: no picture that OpenCV can read"),
        (empty_picture, "bild ä 2.png: no picture that OpenCV can read"),
        (unknown_category, "'motorbike' is none of the network's 80 classes"),
        (unknown_category_id, "category_id 4711, which no category has"),
        (no_box, "instances.json: no box for its 4 images"),
        (boxes_of_other_images_only, "instances.json: no box for its 4 images"),
        (only_crowds, "instances.json: no box for its 4 images"),
        (same_id_twice, "several images have the same id"),
        (no_categories, "'categories' is missing"),
        (box_of_three_numbers, "instances.json: no COCO instances file"),
    ],
)
def test_bad_input_is_named_in_one_line_and_exits_2(folder, data, damage, said, capsys):
    damage(folder, data)
    save(folder, data)
    options = ["--annotations", folder / "instances.json", "--images", folder / "images"]
    options += ["--out", folder / "out", "--size", SIZE]
    assert evaluate.main(list(map(str, options))) == 2
    error = capsys.readouterr().err
    assert said in error and error.startswith("evaluate.py: error: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--confidence", "1.5"], "1.5 is not from 0 to 1"),
        (["--limit", "0"], "0 is no whole number from 1"),
        (["--size", "100"], "input_size must be a multiple of 32"),
        (["--model", "gone.onnx"], "gone.onnx: no such file"),
        (["--annotations", "gone.json"], "gone.json: No such file"),
        (["--compare", "--limit", "2"], "unrecognized arguments: --limit 2"),
    ],
)
def test_wrong_usage_is_named_in_one_line_and_exits_2(folder, options, said):
    result = run(folder, *options)
    assert result.returncode == 2 and result.stdout == ""
    assert said in result.stderr and result.stderr.startswith("evaluate.py")
    assert result.stderr.count("\n") == 1


def test_missing_package_is_named_with_the_pip_command(tmp_path):
    (tmp_path / "pycocotools.py").write_text("raise ImportError(name='pycocotools')")
    result = subprocess.run(
        [sys.executable, TOOL],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert result.stderr.startswith("evaluate.py: error: pycocotools is not installed. Run: pip ")
    assert result.stderr.count("\n") == 1


def test_ctrl_c_exits_130_without_traceback(folder, monkeypatch, capsys):
    def pressed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate.NanoDet, "detect", pressed)
    options = ["--annotations", folder / "instances.json", "--images", folder / "images"]
    options += ["--out", folder / "out", "--size", SIZE]
    assert evaluate.main(list(map(str, options))) == 130
    assert "Run the same command again" in capsys.readouterr().err


def test_output_folder_that_is_a_file_exits_1(folder, capsys):
    (folder / "out").write_text("a file")
    options = ["--annotations", folder / "instances.json", "--images", folder / "images"]
    assert evaluate.main([*map(str, options), "--out", str(folder / "out")]) == 1
    assert capsys.readouterr().err.startswith("evaluate.py: error: ")


def interval(text):
    """Difference, low and high of --compare's last line."""
    words = text.splitlines()[-1].split()
    return float(words[2].rstrip(",")), float(words[6]), float(words[8])


def test_compare_of_the_same_settings_has_an_interval_around_0(folder, data):
    save(folder, harder(data))
    result = run(folder, "--compare")
    assert result.returncode == 0, result.stderr
    assert interval(result.stdout) == (0, 0, 0)
    assert result.stdout == (folder / "out" / "comparison.md").read_text()


def test_compare_gives_the_difference_of_two_single_runs(folder, data):
    save(folder, harder(data))
    result = run(folder, "--confidence", 0.3, "--compare", "--confidence", 0.05)
    difference, low, high = interval(result.stdout)
    found = []
    for confidence in (0.3, 0.05):
        run(folder, "--confidence", confidence)
        found.append(metrics(folder)["AP"])
    assert difference == pytest.approx(found[1] - found[0], abs=1e-4)
    assert low <= difference <= high and low < high and difference > 0


def test_ap_of_a_sample_is_cocoevals_on_those_images(folder, data):
    save(folder, harder(data))
    settings = evaluate.Settings(size=(SIZE, SIZE))
    dataset = evaluate.read_dataset(folder / "instances.json", folder / "images")
    results, _ = evaluate.predict(dataset, settings, folder)
    matches = evaluate.Matches.of(evaluate.evaluate(dataset, results))
    for sample in ([1, 1, 1, 1], [0, 1, 1, 0], [0, 0, 0, 1]):
        ids = {id_ for id_, drawn in zip(dataset.files, sample, strict=True) if drawn}
        rows = [
            [r["image_id"], *r["bbox"], r["score"], r["category_id"]]
            for r in results
            if r["image_id"] in ids
        ]
        expected = direct(folder / "instances.json", np.array(rows)).stats[0]
        assert evaluate.weighted_ap(matches, np.array(sample)) == pytest.approx(expected)


def test_networks_of_other_classes_take_the_categories_by_id():
    categories = [{"id": 9, "name": "wheel"}, {"id": 2, "name": "door"}]
    coco = evaluate.index([], categories, [])
    assert evaluate.category_ids(coco, 2) == {0: 2, 1: 9}
    with pytest.raises(evaluate.InputError, match="3 classes, the annotations 2 categories"):
        evaluate.category_ids(coco, 3)


def test_sweep_writes_a_row_a_size_and_a_picture(folder):
    result = run(folder, "--sweep", "--limit", 1, size=None)
    assert result.returncode == 0, result.stderr
    assert len(kept_files(folder)) == 12
    table = (folder / "out" / "sweep.md").read_text()
    inputs = [line.split("|")[1].strip() for line in table.splitlines()[2:]]
    sizes = (320, 416, 480, 512, 544, 640)
    assert inputs == [f"{size} {kind}" for kind in ("square", "rect") for size in sizes]
    assert table in result.stdout
    assert cv2.imread(str(folder / "out" / "sweep.png")).std() > 10


def test_real_pictures_reach_the_ap_of_a_loop_of_ones_own(shared, tmp_path):
    subset = shared / "coco_val2017_subset"
    command = [sys.executable, TOOL, "--annotations", subset / "instances.json", "--limit", 25]
    command += ["--images", subset / "images", "--out", tmp_path / "out"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=120)

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
    assert [found[name] for name, *_ in evaluate.STATS] == pytest.approx(expected, abs=1e-3)
