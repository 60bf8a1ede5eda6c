"""JSON Lines: what a program gets to read, digit for digit."""

import io
import json
import sys
from contextlib import closing
from decimal import Decimal
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from demo_process import EXAMPLES, run_demo
from hypothesis import given
from hypothesis import strategies as st

from media import outputs
from media.frames import Frame
from media.outputs import JsonLines, as_record, shortest
from nanodet import COCO_CLASSES, Detections, NanoDet

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
PICTURES = sorted(EXAMPLES.glob("*.jpg"))


@pytest.fixture
def frame():
    return Frame("x.jpg", 3, 0.1250004, np.zeros((4, 6, 3), np.uint8))


@pytest.fixture
def found():
    return Detections([[0, 0.1, 2.5, 3]], [1 / 3], [2])


def test_lines_contain_exactly_what_detect_returns(bundled, tmp_path):
    assert len(PICTURES) >= 2
    process = run_demo("-i", EXAMPLES, "--no-save", "--json", "-", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    detector = NanoDet(bundled)
    total = 0
    for path, line in zip(PICTURES, process.stdout.splitlines(), strict=True):
        record = json.loads(line)
        image = cv2.imread(str(path))
        expected = detector.detect(image)
        total += len(expected)
        objects = record["detections"]
        assert record["source"] == str(path)
        assert (record["height"], record["width"]) == image.shape[:2]
        assert [found["class_id"] for found in objects] == expected.class_id.tolist()
        assert [found["label"] for found in objects] == [
            COCO_CLASSES[class_id] for class_id in expected.class_id
        ]
        confidence = np.array([found["confidence"] for found in objects], np.float32)
        xyxy = np.array([found["xyxy"] for found in objects], np.float32).reshape(-1, 4)
        np.testing.assert_array_equal(confidence, expected.confidence)
        np.testing.assert_array_equal(xyxy, expected.xyxy)
    assert total > 5


def test_a_line_has_the_source_its_place_in_it_the_size_and_the_objects(frame, found):
    record = json.loads(json.dumps(as_record(frame, found, COCO_CLASSES)))
    assert record == {
        "source": "x.jpg",
        "frame": 3,
        "time": 0.125,
        "width": 6,
        "height": 4,
        "detections": [
            {
                "label": "car",
                "class_id": 2,
                "confidence": 0.33333334,
                "xyxy": [0.0, 0.1, 2.5, 3.0],
            }
        ],
    }


def test_picture_without_objects_has_an_empty_list(frame):
    nothing = Detections(np.empty((0, 4)), np.empty(0), np.empty(0))
    assert as_record(frame, nothing, COCO_CLASSES)["detections"] == []


def test_class_beyond_the_labels_has_its_number_for_a_name(frame, found):
    (only,) = as_record(frame, found, ("a", "b"))["detections"]
    assert (only["label"], only["class_id"]) == ("class 2", 2)


@given(FLOATS)
def test_a_number_is_read_back_as_the_same_float32(value):
    value = np.float32(value)
    text = json.dumps(shortest(value))
    assert np.float32(json.loads(text)) == value
    assert len(Decimal(text).normalize().as_tuple().digits) <= 9  # float64 would have 17


@given(st.text(), st.text())
def test_any_text_survives_in_one_line(source, error):
    record = as_record(Frame(source, 0, 0.0, None, error), None, COCO_CLASSES)
    assert record == {"source": source, "error": error}
    line = json.dumps(record)
    assert "\n" not in line
    assert json.loads(line) == record


def test_stdout_carries_only_json_and_people_read_stderr(tmp_path):
    process = run_demo("-i", PICTURES[0], "--json", "-", cwd=tmp_path)
    assert process.returncode == 0
    (line,) = process.stdout.splitlines()
    assert json.loads(line)["source"] == str(PICTURES[0])
    assert process.stderr.startswith(f"{PICTURES[0]}: ")
    assert process.stderr.endswith("saved result.jpg\n")


def test_file_contains_what_stdout_would(tmp_path):
    args = ("-i", PICTURES[0], "--no-save", "--json")
    to_stdout = run_demo(*args, "-", cwd=tmp_path)
    to_file = run_demo(*args, "found.jsonl", cwd=tmp_path)
    assert (tmp_path / "found.jsonl").read_text() == to_stdout.stdout
    assert to_file.stdout == to_stdout.stderr.replace(
        to_stdout.stderr.splitlines()[-1], to_file.stdout.splitlines()[-1]
    )


def test_quiet_leaves_json(tmp_path):
    process = run_demo("-i", PICTURES[0], "--no-save", "--json", "-", "-q", cwd=tmp_path)
    assert process.stderr == ""
    assert json.loads(process.stdout)["frame"] == 0


def test_each_line_is_on_disk_as_soon_as_it_is_written(frame, found, tmp_path):
    path = tmp_path / "found.jsonl"
    with closing(JsonLines(str(path), COCO_CLASSES)) as lines:
        for count in (1, 2, 3):
            lines.write(frame, SimpleNamespace(detections=found))
            assert path.read_bytes().count(b"\n") == count


def test_each_line_is_on_stdout_as_soon_as_it_is_written(frame, found, monkeypatch):
    raw = io.BytesIO()
    raw.close = lambda: None
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(raw)))
    with closing(JsonLines("-", COCO_CLASSES)) as lines:
        lines.write(frame, SimpleNamespace(detections=found))
        assert json.loads(raw.getvalue())["source"] == "x.jpg"
    assert not sys.stdout.closed


def test_line_of_a_picture_is_written_before_the_pictures_after_it(tmp_path, monkeypatch):
    lines_at_save = []

    def count_lines(*_):
        lines_at_save.append((tmp_path / "found.jsonl").read_bytes().count(b"\n"))

    monkeypatch.setattr(outputs, "save_bytes", count_lines)
    demo = run_demo("-i", EXAMPLES, "-o", "out", "-q", "--json", "found.jsonl", cwd=tmp_path)
    assert demo.returncode == 0
    assert lines_at_save == list(range(1, len(PICTURES) + 1))
