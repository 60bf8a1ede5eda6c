"""Names of classes: the network's own, or its numbers; never those of other classes."""

import json

import cv2
import numpy as np
import pytest
from conftest import make_network
from demo_process import CAT, refusal, run_demo
from hypothesis import example, given
from hypothesis import strategies as st

from cli.command import UsageError
from cli.network import read_labels


@pytest.fixture
def folder(tmp_path):
    """A picture, and networks of 1 and of 3 classes that find one object in it."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((96, 96, 3), np.uint8))
    for classes in (1, 3):
        box = (20.0, 30.0, 70.0, 60.0, 0.9, classes - 1)
        make_network(tmp_path / f"{classes}.onnx", boxes=[box], classes=classes, size=(96, 96))
    return tmp_path


def test_classes_without_names_are_numbered_in_text_and_json(folder):
    args = ("-i", "a.png", "-m", "3.onnx", "--json", "a.jsonl", "-o", "found.png")
    process = run_demo(*args, cwd=folder)
    assert (process.returncode, process.stderr) == (0, "")
    assert "  class 2 " in process.stdout
    (found,) = json.loads((folder / "a.jsonl").read_text())["detections"]
    assert (found["label"], found["class_id"]) == ("class 2", 2)


def test_classes_without_names_are_numbered_in_the_picture(folder):
    """Drawn as with a file of labels that names the class so."""
    (folder / "names.txt").write_text("class 0\n")
    args = ("-i", "a.png", "-m", "1.onnx")
    for more in (("-o", "own.png"), ("-o", "named.png", "--labels", "names.txt")):
        assert run_demo(*args, *more, cwd=folder).stderr == ""
    own, named = (cv2.imread(str(folder / name)) for name in ("own.png", "named.png"))
    np.testing.assert_array_equal(own, named)


def test_classes_to_keep_need_names(folder):
    args = ("-i", "a.png", "-m", "3.onnx", "--classes", "car")
    assert refusal(run_demo(*args, cwd=folder)) == (
        "--classes car: the network knows 3 classes, without names. Give them with --labels FILE."
    )
    (folder / "names.txt").write_text("bus\ntram\ncar\n")
    process = run_demo(*args, "--labels", "names.txt", cwd=folder)
    assert (process.returncode, process.stderr) == (0, "")
    assert "  car " in process.stdout


def test_labels_of_the_wrong_number_warn_in_good_grammar(folder):
    (folder / "names.txt").write_text("bus\ntram\n")
    process = run_demo("-i", "a.png", "-m", "1.onnx", "--labels", "names.txt", cwd=folder)
    assert process.returncode == 0
    assert process.stderr == (
        "demo.py: the network knows 1 class, there are names for 2. "
        "Give its own with --labels FILE.\n"
    )


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("no.txt", None, "can't be read: No such file or directory."),
        ("", None, "(empty): can't be read: No such file or directory."),
        (".", None, "can't be read: Is a directory."),
        ("none.txt", b"", "is empty. Write one class name a line."),
        ("blank.txt", b"\n \n\r\n", "is empty. Write one class name a line."),
        ("latin1.txt", b"caf\xe9\n", "can't be read: it is not UTF-8 text."),
        ("utf16.txt", b"\xff\xfe\0", "can't be read: it is not UTF-8 text."),
        ("a.txt", b'{"0": "person", "1": "car"}', "is YAML, JSON or CSV. Give a text file with"),
        ("b.txt", b' ["person", "car"]', "is YAML, JSON or CSV. Give a text file with"),
        ("c.txt", b"names:\n- person\n- car\n", "is YAML, JSON or CSV. Give a text file with"),
        ("names.CSV", b"id,name\n0,person\n", "is YAML, JSON or CSV. Give a text file with"),
        ("data.yaml", b"path: data\nnames:\n", "is YAML, JSON or CSV. Give a text file with"),
        ("data.yml", b"path: data\nnames:\n", "is YAML, JSON or CSV. Give a text file with"),
        ("data.json", b"person\n", "is YAML, JSON or CSV. Give a text file with"),
        ("long.txt", b"x" * 1_000_001, "is larger than 1000000 bytes."),
    ],
)
def test_file_that_is_no_list_of_names_is_refused_with_what_it_is(name, data, says, tmp_path):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    line = refusal(run_demo(CAT, "--labels", name, cwd=tmp_path))
    assert line.startswith(f"--labels {name or '(empty)'}: ") and says in line


def test_names_may_fill_a_million_letters(tmp_path):
    (tmp_path / "names.txt").write_text("x" * 999_998 + "\n" + "y")
    assert len(read_labels(str(tmp_path / "names.txt"))) == 2


def test_commas_in_names_stay(tmp_path):
    (tmp_path / "names.txt").write_text("tench, Tinca tinca\n")
    assert read_labels(str(tmp_path / "names.txt")) == ("tench, Tinca tinca",)


@given(st.binary(max_size=300) | st.text().map(str.encode))
@example(b"\xef\xbb\xbf")
@example(b"\xff\xfea\0")
@example(b"\r\n\x0b\x0c\x1c\x85 \n")
def test_any_bytes_are_labels_or_one_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(data)
    try:
        labels = read_labels(str(path))
    except UsageError as error:
        assert str(path) in str(error)
    else:
        assert isinstance(labels, tuple) and labels
        assert all(label and label == label.strip() for label in labels)
