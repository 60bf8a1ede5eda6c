"""Several inputs in one run, lists of them, and a picture on standard input."""

import json
import os
import shutil

import cv2
import pytest
from demo_process import CAT, EXAMPLES, STREET, error_of, files_below, refusal, run_demo

CLIP = EXAMPLES / "street.mp4"


@pytest.fixture
def inputs(tmp_path):
    """Two different pictures of one name, and a short video."""
    for folder, picture in (("a", CAT), ("b", STREET)):
        (tmp_path / folder).mkdir()
        shutil.copy(picture, tmp_path / folder / "x.jpg")
    shutil.copy(CLIP, tmp_path / "clip.mp4")
    return tmp_path


def found_alone(path, cwd):
    return run_demo(path, "--no-save", "-q", "--json", "-", cwd=cwd).records()


def test_pictures_folders_and_videos_are_done_as_each_is_alone(inputs):
    demo = run_demo("a/x.jpg", "clip.mp4", "-i", "b", "--json", "all.jsonl", cwd=inputs)
    assert (demo.returncode, demo.stderr) == (0, "")
    assert demo.out[-1] == "saved 2 pictures and 1 video in results\n"
    results = inputs / "results"
    assert files_below(results) == ["a/x.jpg", "b/x.jpg", "clip.mp4"]
    assert cv2.imread(str(results / "a/x.jpg")).shape == cv2.imread(str(CAT)).shape
    assert cv2.imread(str(results / "b/x.jpg")).shape == cv2.imread(str(STREET)).shape
    counts = [
        cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)
        for path in (CLIP, results / "clip.mp4")
    ]
    assert counts[0] == counts[1] > 1
    lines = [json.loads(line) for line in (inputs / "all.jsonl").read_text().splitlines()]
    alone = [found_alone(path, inputs) for path in ("a/x.jpg", "clip.mp4", "b/x.jpg")]
    assert lines == sum(alone, [])


def test_run_again_replaces_its_own_results_only(inputs):
    assert run_demo("a/x.jpg", "clip.mp4", "-o", "out", cwd=inputs).returncode == 0
    before = os.stat(inputs / "out" / "clip.mp4").st_ino
    assert run_demo("a/x.jpg", "clip.mp4", "-o", "out", cwd=inputs).returncode == 0
    assert os.stat(inputs / "out" / "clip.mp4").st_ino != before
    (inputs / "mine").mkdir()
    shutil.copy(CLIP, inputs / "mine" / "clip.mp4")
    demo = run_demo("a/x.jpg", "clip.mp4", "-o", "mine", cwd=inputs)
    assert "mine/clip.mp4: exists and is not a result" in refusal(demo)
    assert files_below(inputs / "mine") == ["clip.mp4"]


@pytest.mark.parametrize(
    "arguments", [["@list.txt"], ["-i", "@list.txt"], ["--list", "list.txt"]], ids=str
)
def test_list_names_an_input_a_line(arguments, inputs):
    (inputs / "list.txt").write_bytes("a/x.jpg\r\n\r\nb/x.jpg\r\n".encode("utf-8-sig"))
    demo = run_demo(*arguments, "--no-save", "-q", "--json", "-", cwd=inputs)
    assert [record["source"] for record in demo.records()] == ["a/x.jpg", "b/x.jpg"]


def standard_input(path, mode=os.O_RDONLY):
    return {"preexec": lambda: os.dup2(os.open(path, mode), 0)}


def test_list_comes_through_standard_input(inputs):
    (inputs / "list.txt").write_text("b/x.jpg\na/x.jpg\n")
    read = standard_input(inputs / "list.txt")
    demo = run_demo("--list", "-", "-q", "--no-save", "--json", "-", cwd=inputs, **read)
    assert [record["source"] for record in demo.records()] == ["b/x.jpg", "a/x.jpg"]


def test_picture_comes_through_standard_input(inputs):
    demo = run_demo("-", "--json", "-", "-q", cwd=inputs, **standard_input(STREET))
    (record,) = demo.records()
    assert record["source"] == "stdin"
    assert record["detections"] == found_alone(STREET, inputs)[0]["detections"]
    assert cv2.imread(str(inputs / "result.jpg")).shape == cv2.imread(str(STREET)).shape


def test_standard_input_that_can_not_be_read_is_refused(inputs):
    demo = run_demo("-", cwd=inputs, **standard_input(inputs / "clip.mp4", os.O_WRONLY))
    assert refusal(demo) == "stdin: can't be read: Bad file descriptor."


def test_one_picture_from_a_list_gives_result_jpg(inputs):
    (inputs / "list.txt").write_text("a/x.jpg\n")
    assert run_demo("@list.txt", cwd=inputs).returncode == 0
    assert (inputs / "result.jpg").is_file()


def test_results_of_an_earlier_run_are_no_inputs(inputs):
    assert run_demo("a/x.jpg", "b", cwd=inputs).returncode == 0
    demo = run_demo("a/x.jpg", "b", "results/a/x.jpg", cwd=inputs)
    assert demo.out[1:2] == ["left out: 1 results of an earlier run\n"]
    assert files_below(inputs / "results") == ["a/x.jpg", "b/x.jpg"]


def test_results_whose_names_would_be_one_get_two(inputs):
    for name in ("x.pbm", "x.pbm.jpg"):
        cv2.imwrite(str(inputs / name), cv2.imread(str(CAT))[..., :1])
    assert run_demo("x.pbm", "x.pbm.jpg", "./x.pbm", cwd=inputs).returncode == 0
    assert files_below(inputs / "results") == ["x.pbm.jpg", "x.pbm.jpg.jpg"]


def test_flags_may_stand_between_inputs_and_a_repeated_one_is_done_once(inputs):
    demo = run_demo("a/x.jpg", "--no-save", "b/x.jpg", "-q", "--json", "-", "a/x.jpg", cwd=inputs)
    assert [record["source"] for record in demo.records()] == ["a/x.jpg", "b/x.jpg"]


def test_what_can_not_be_read_is_named_and_the_others_are_done(inputs):
    (inputs / "broken.mp4").write_bytes(CLIP.read_bytes()[:20_000])
    (inputs / "notes.txt").write_text("no picture")
    (inputs / "empty.mp4").touch()
    names = ["a/x.jpg", "missing.jpg", "broken.mp4", "notes.txt", "empty.mp4", "b/x.jpg"]
    demo = run_demo(*names, "--json", "all.jsonl", cwd=inputs)
    assert error_of(demo) == "4 of 6 inputs can't be read in full"
    assert demo.returncode == 1
    for name, line in zip(names[1:5], demo.err, strict=False):
        assert line.startswith(f"demo.py: {name}: ")
    lines = [json.loads(line) for line in (inputs / "all.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines] == names
    assert ["error" in line for line in lines] == [False, *[True] * 4, False]
    assert files_below(inputs / "results") == ["a/x.jpg", "b/x.jpg"]


def test_video_that_is_cut_off_is_saved_as_far_as_it_goes(inputs):
    path, motion_jpeg = inputs / "cut.avi", cv2.VideoWriter_fourcc(*"MJPG")
    film = cv2.VideoWriter(str(path), motion_jpeg, 10, (96, 64))
    for picture in [CAT, STREET] * 10:
        film.write(cv2.resize(cv2.imread(str(picture)), (96, 64)))
    film.release()
    os.truncate(path, path.stat().st_size // 2)
    demo = run_demo("cut.avi", "a/x.jpg", cwd=inputs)
    assert error_of(demo) == "1 of 2 inputs can't be read in full"
    assert demo.err[0].startswith("demo.py: cut.avi: ends at frame ")
    assert demo.out[-1] == "saved 1 picture and 1 video in results\n"
    assert files_below(inputs / "results") == ["a/x.jpg", "cut.avi"]


@pytest.mark.parametrize("other", ["1", "rtsp://127.0.0.1/s", "-"])
def test_camera_address_or_standard_input_must_be_the_only_input(other, inputs):
    demo = run_demo("a/x.jpg", other, cwd=inputs)
    assert f"{other}: a camera, an address or - must be the only input" in refusal(demo)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.jpg", "no.mp4"], "no.jpg: no such file"),
        (["--list", "no.txt"], "--list no.txt: can't be read: No such file"),
        (["@empty.txt"], "--list empty.txt: is empty"),
        (["-"], "stdin: is empty"),
        (["@two.txt", "--json", "two.txt"], "two.txt: is in use as an input"),
        (["a/x.jpg", "b/x.jpg", "-o", "clip.mp4"], "clip.mp4: is a file"),
    ],
)
def test_inputs_that_can_not_be_used_are_refused(arguments, message, inputs):
    (inputs / "empty.txt").touch()
    (inputs / "two.txt").write_text("a/x.jpg\nb/x.jpg")
    assert message in refusal(run_demo(*arguments, cwd=inputs))
