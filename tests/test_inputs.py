"""Several inputs in one run, lists of them, and a picture or video on standard input."""

import io
import json
import os
import re
import shutil
import sys
import tempfile

import cv2
import numpy as np
import pytest
from demo_process import CAT, EXAMPLES, FAST, STREET, error_of, files_below, refusal, run_demo
from hypothesis import assume, example, given
from hypothesis import strategies as st
from live_helpers import number_of, numbered_video
from source_helpers import read

from cli.command import UsageError
from cli.options import read_list
from media.frames import CameraMode, SourceError
from media.live import Live
from media.sources import Pictures, Reading, open_source
from media.videos import Video

CLIP = EXAMPLES / "street.mp4"


@pytest.fixture
def inputs(tmp_path):
    """Two different pictures of one name, and a short video."""
    for folder, picture in (("a", CAT), ("b", STREET)):
        (tmp_path / folder).mkdir()
        shutil.copy(picture, tmp_path / folder / "x.jpg")
    shutil.copy(CLIP, tmp_path / "clip.mp4")
    return tmp_path


def test_pictures_folders_and_videos_are_read_as_each_is_alone(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    frames, told, fault = read(["a/x.jpg", "clip.mp4", "b"])
    assert (told, fault) == ([], "")
    alone = [frame for name in ("a/x.jpg", "clip.mp4", "b") for frame in read(name)[0]]
    for one, other in zip(frames, alone, strict=True):
        assert (one.source, one.index, one.time) == (other.source, other.index, other.time)
        assert one.moving == other.moving == (one.source == "clip.mp4")
        assert one.pixel_aspect == other.pixel_aspect == 1
        np.testing.assert_array_equal(one.image, other.image)


def test_every_input_gets_a_result_of_its_kind(inputs):
    demo = run_demo("a/x.jpg", "clip.mp4", "-i", "b", *FAST, cwd=inputs)
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


def test_run_again_replaces_its_own_results_only(inputs):
    assert run_demo("a/x.jpg", "clip.mp4", *FAST, "-o", "out", cwd=inputs).returncode == 0
    before = os.stat(inputs / "out" / "clip.mp4").st_ino
    assert run_demo("a/x.jpg", "clip.mp4", *FAST, "-o", "out", cwd=inputs).returncode == 0
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
    demo = run_demo(*arguments, *FAST, "--no-save", "-q", "--json", "-", cwd=inputs)
    assert [record["source"] for record in demo.records()] == ["a/x.jpg", "b/x.jpg"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_list_may_be_what_powershell_writes(encoding, inputs):
    (inputs / "list.txt").write_bytes("\ufeffa/x.jpg\r\nб/ü.jpg\r\n".encode(encoding))
    assert read_list(str(inputs / "list.txt")) == ["a/x.jpg", "б/ü.jpg"]


@pytest.mark.parametrize("data, platform", [(b"caf\xe9.jpg", "win32"), (b"\xff\xfea\0b", "linux")])
def test_list_in_a_code_page_or_half_a_letter_is_refused(data, platform, monkeypatch, tmp_path):
    (tmp_path / "list.txt").write_bytes(data)
    monkeypatch.setattr("sys.platform", platform)
    with pytest.raises(UsageError, match="list.txt: can't be read: it is not UTF-8 text. Save it"):
        read_list(str(tmp_path / "list.txt"))


def test_file_whose_name_begins_like_a_list_is_an_input(inputs):
    """As shells expand *.jpg in a folder from somebody else."""
    shutil.copy(CAT, inputs / "@l.jpg")
    (inputs / "l.jpg").write_text("b/x.jpg\n")
    source = ("--no-save", "-q", "--json", "-", *FAST)
    for arguments in (["@l.jpg"], ["-i", "@l.jpg"]):
        (record,) = run_demo(*arguments, *source, cwd=inputs).records()
        assert record["source"] == "@l.jpg"
    (record,) = run_demo("--list", "l.jpg", *source, cwd=inputs).records()
    assert record["source"] == "b/x.jpg"


@pytest.mark.skipif(os.name != "posix", reason="links need rights")
def test_link_whose_name_begins_like_a_list_is_an_input(inputs):
    (inputs / "l.jpg").write_text("b/x.jpg\n")
    (inputs / "@l.jpg").symlink_to("nowhere")
    assert refusal(run_demo("@l.jpg", cwd=inputs)).startswith("@l.jpg: no such file.")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("flag", ["--list", "--labels"])
@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_list_or_labels_that_may_never_end_are_refused(flag, name, inputs):
    os.mkfifo(inputs / "pipe")
    demo = run_demo(flag, name, *([] if flag == "--list" else ["a/x.jpg"]), cwd=inputs)
    assert refusal(demo) == f"{flag} {name}: is not a regular file."


@pytest.mark.parametrize("more", [0, 1])
@pytest.mark.parametrize("path", ["list.txt", "-"])
def test_list_may_be_as_large_as_the_limit_and_no_larger(more, path, monkeypatch, tmp_path):
    monkeypatch.setattr("cli.options.LONGEST_LIST", 5)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.txt").write_bytes(b"a.jpg" + b"\n" * more)
    stdin = os.dup(0)
    try:
        with open("list.txt", "rb") as file:
            os.dup2(file.fileno(), 0)
        if not more:
            assert read_list(path) == ["a.jpg"]
            return
        shown = re.escape(str(path))
        with pytest.raises(UsageError, match=f"^--list {shown}: is larger than 5 bytes.$"):
            read_list(path)
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)


def test_endless_list_through_a_pipe_ends_at_the_limit(monkeypatch):
    monkeypatch.setattr("cli.options.LONGEST_LIST", 5)
    stdin, (reading, writing) = os.dup(0), os.pipe()
    try:
        os.write(writing, b"a.jpg\n")  # and never closed
        os.dup2(reading, 0)
        with pytest.raises(UsageError, match="^--list -: is larger than 5 bytes.$"):
            read_list("-")
    finally:
        os.dup2(stdin, 0)
        for file in (stdin, reading, writing):
            os.close(file)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_list_may_name_files_of_any_bytes_between_blank_lines(inputs):
    name = os.fsencode(inputs) + b"/caf\xe9.jpg"
    shutil.copy(CAT, name)
    (inputs / "list.txt").write_bytes(name + b"\n \n\t\na/x.jpg\n")
    demo = run_demo("@list.txt", "--no-save", "-q", "--json", "-", *FAST, cwd=inputs)
    assert [record["source"] for record in demo.records()] == [os.fsdecode(name), "a/x.jpg"]


def test_flag_for_inputs_may_be_given_more_than_once(inputs):
    arguments = ("-i", "a/x.jpg", "-i", "b/x.jpg", "--no-save", "-q", "--json", "-", *FAST)
    demo = run_demo(*arguments, cwd=inputs)
    assert [record["source"] for record in demo.records()] == ["a/x.jpg", "b/x.jpg"]


def test_list_comes_through_standard_input(inputs):
    (inputs / "list.txt").write_text("b/x.jpg\na/x.jpg\n")
    piped = {"preexec": lambda: os.dup2(os.open(inputs / "list.txt", os.O_RDONLY), 0)}
    arguments = ("--list", "-", *FAST, "-q", "--no-save", "--json", "-")
    demo = run_demo(*arguments, cwd=inputs, **piped)
    assert [record["source"] for record in demo.records()] == ["b/x.jpg", "a/x.jpg"]


def test_picture_comes_through_standard_input(inputs):
    piped = {"preexec": lambda: os.dup2(os.open(STREET, os.O_RDONLY), 0)}
    demo = run_demo("-", "--json", "-", "-q", *FAST, cwd=inputs, **piped)
    (record,) = demo.records()
    assert record["source"] == "stdin"
    assert cv2.imread(str(inputs / "result.jpg")).shape == cv2.imread(str(STREET)).shape


def test_picture_on_standard_input_is_that_of_its_file(monkeypatch):
    with open(CAT) as file:
        monkeypatch.setattr(sys, "stdin", file)
        frames, _, fault = read("-")
    assert (fault, [(frame.index, frame.time) for frame in frames]) == ("", [(0, 0)])
    np.testing.assert_array_equal(frames[0].image, cv2.imread(str(CAT)))


def test_standard_input_that_can_not_be_read_is_refused(monkeypatch, tmp_path):
    closed = os.fdopen(os.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT), "r")
    monkeypatch.setattr(sys, "stdin", closed)
    with closed, pytest.raises(SourceError, match="^stdin: can't be read: Bad file descriptor.$"):
        open_source("-")


@pytest.mark.parametrize("stdin", [None, "a terminal"])
def test_standard_input_that_nobody_pipes_into_is_refused(monkeypatch, stdin):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", stdin and terminal)
    with pytest.raises(SourceError, match="^-: reads a picture or video from standard input. Pipe"):
        open_source("-")


@pytest.mark.parametrize("more", [0, 1])
def test_standard_input_may_be_as_large_as_the_limit_and_no_larger(monkeypatch, more):
    monkeypatch.setattr("media.sources.LARGEST_PICTURE", CAT.stat().st_size)
    data = CAT.read_bytes() + bytes(more)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    if not more:
        assert len(read("-")[0]) == 1
        return
    with pytest.raises(SourceError, match=f"^stdin: is larger than {CAT.stat().st_size} bytes"):
        open_source("-")


def pipe(monkeypatch, data):
    """Let these bytes come through standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.parametrize("name", ["clip.mp4", "clip.ts", "clip.gif"])
def test_video_comes_through_standard_input(monkeypatch, tmp_path, name):
    path = numbered_video(tmp_path / name, 8, *(["-f", "gif"] * name.endswith("gif")))
    pipe(monkeypatch, path.read_bytes())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "kept"))
    (tmp_path / "kept").mkdir()
    with open_source("-") as source:
        assert (source.name, source.kind, source.paths) == ("stdin", "video", ["stdin"])
        assert os.path.isfile(source.sound)
        frames = list(source)
    assert [number_of(frame.image) for frame in frames] == list(range(8))
    assert {frame.source for frame in frames} == {"stdin"}
    assert os.listdir(tmp_path / "kept") == []


@pytest.mark.parametrize(
    "ending",
    [".jpg", ".png", ".webp", ".bmp", ".tiff", ".ppm", ".pgm", ".pbm", ".pam", ".ras", ".hdr"],
)
def test_every_kind_of_picture_is_told_by_its_content(ending, monkeypatch, tmp_path):
    image = cv2.imread(str(CAT))
    if ending in (".pgm", ".pbm"):
        image = image[:, :, 1]
    data = cv2.imencode(ending, image)[1]
    data.tofile(tmp_path / "猫")  # which names no kind, and is no name for cv2.imread on Windows
    pipe(monkeypatch, data.tobytes())
    for value in ("-", tmp_path / "猫"):
        (frame,), *_ = read(value)
        np.testing.assert_array_equal(frame.image, cv2.imdecode(data, cv2.IMREAD_COLOR))


def test_video_on_standard_input_may_not_be_larger_than_the_disk_should_hold(monkeypatch):
    monkeypatch.setattr("media.sources.LARGEST_VIDEO", 1000)
    pipe(monkeypatch, b"\0\0\0\x10ftypisom" + bytes(1000))
    with pytest.raises(SourceError, match="^stdin: is larger than 1000 bytes. Give a file.$"):
        open_source("-")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"something else", "is neither a picture nor a video that OpenCV reads."),
        (b"\0\0\0\x10ftypisom", "has no index (moov)"),
        (b"#EXTM3U\n", "is a list of other files"),
    ],
)
def test_what_is_no_picture_or_video_on_standard_input_is_named_so(monkeypatch, data, said):
    pipe(monkeypatch, data)
    with pytest.raises(SourceError) as caught:
        open_source("-")
    assert str(caught.value).startswith(f"stdin: {said}")


def test_one_picture_from_a_list_gives_result_jpg(inputs):
    (inputs / "list.txt").write_text("a/x.jpg\n")
    assert run_demo("@list.txt", *FAST, cwd=inputs).returncode == 0
    assert (inputs / "result.jpg").is_file()


def test_results_of_an_earlier_run_are_no_inputs(inputs):
    assert run_demo("a/x.jpg", "b", *FAST, cwd=inputs).returncode == 0
    demo = run_demo("a/x.jpg", "b", "results/a/x.jpg", *FAST, cwd=inputs)
    assert demo.out[1:2] == ["skipped: 1 results of an earlier run\n"]
    assert files_below(inputs / "results") == ["a/x.jpg", "b/x.jpg"]


def test_nothing_but_results_of_an_earlier_run_is_refused(inputs):
    paths = [str(inputs / name / "x.jpg") for name in "ab"]
    with pytest.raises(SourceError, match="^there are only results of an earlier run. Give other"):
        open_source(paths, Reading(skip=set(map(os.path.realpath, paths))))


def test_what_is_left_out_is_told_of_each_input(inputs):
    (inputs / "b" / "x.txt").touch()
    (inputs / "a" / "y.mp4").touch()
    names = [str(inputs / "b"), str(inputs / "a" / "*"), str(inputs / "clip.mp4"), str(CLIP)]
    with open_source(names, Reading(skip=set(map(os.path.realpath, names[2:])))) as source:
        assert source.left_out == (
            f"{names[0]}: skipped: 1 .txt; {names[1]}: skipped: 1 .mp4 (name it to include it); "
            "skipped: 2 results of an earlier run"
        )
        assert source.paths == [str(inputs / name / "x.jpg") for name in "ba"]


def test_results_whose_names_would_be_one_get_two(inputs):
    for name in ("x.pbm", "x.pbm.jpg"):
        cv2.imwrite(str(inputs / name), cv2.imread(str(CAT))[..., :1])
    assert run_demo("x.pbm", "x.pbm.jpg", "./x.pbm", *FAST, cwd=inputs).returncode == 0
    assert files_below(inputs / "results") == ["x.pbm.jpg", "x.pbm.jpg.jpg"]


def test_flags_may_stand_between_inputs_and_a_repeated_one_is_done_once(inputs):
    demo = run_demo("a/x.jpg", *FAST, "--no-save", "b/x.jpg", "--json=-", "a/x.jpg", cwd=inputs)
    assert [record["source"] for record in demo.records()] == ["a/x.jpg", "b/x.jpg"]


def test_what_can_not_be_read_is_named_and_the_others_are_done(inputs):
    (inputs / "broken.mp4").write_bytes(CLIP.read_bytes()[:20_000])
    (inputs / "notes.txt").write_text("no picture")
    (inputs / "empty.mp4").touch()
    names = ["a/x.jpg", "missing.jpg", "broken.mp4", "notes.txt", "empty.mp4", "b/x.jpg"]
    demo = run_demo(*names, *FAST, "--json", "all.jsonl", cwd=inputs)
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
    demo = run_demo("cut.avi", "a/x.jpg", *FAST, cwd=inputs)
    assert error_of(demo) == "1 of 2 inputs can't be read in full"
    assert demo.err[0].startswith("demo.py: cut.avi: ends at frame ")
    assert demo.out[-1] == "saved 1 picture and 1 video in results\n"
    assert files_below(inputs / "results") == ["a/x.jpg", "cut.avi"]


def test_lost_frames_of_a_video_are_told_and_counted_among_the_faults(inputs):
    path = inputs / "clip.mp4"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # its index is at the start
    frames, told, fault = read([CAT, path])
    assert told == [read(path)[2]]
    assert "ends at frame" in told[0] and len(frames) > 2
    assert fault == "1 of 2 inputs can't be read in full"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a/x.jpg"], dict(kind="picture", length=1, unit="pictures", root=None)),
        (["b"], dict(kind="folder", length=1, unit="pictures", root="b", paths=["b/x.jpg"])),
        (["*/x.jpg"], dict(kind="folder", length=2, root="", paths=["a/x.jpg", "b/x.jpg"])),
        (["clip.mp4"], dict(kind="video", unit="frames", root=None, moving={"clip.mp4"})),
        (
            ["a/x.jpg", "clip.mp4"],
            dict(kind="folder", length=None, unit="pictures and frames", moving={"clip.mp4"}),
        ),
        (["a/x.jpg", "b/x.jpg"], dict(kind="folder", length=2, unit="pictures", moving=set())),
    ],
    ids=str,
)
def test_source_says_what_it_is(inputs, monkeypatch, names, expected):
    monkeypatch.chdir(inputs)
    with open_source(names) as source:
        expected = dict(live=False, left_out="", paths=names) | expected
        expected |= dict(name=names[0] if len(names) == 1 else "2 inputs")
        assert {name: getattr(source, name) for name in expected} == expected


def test_sound_and_rate_of_a_video_among_others_are_those_of_its_file(inputs, monkeypatch):
    monkeypatch.chdir(inputs)
    with open_source(["a/x.jpg", "clip.mp4"]) as source, open_source("clip.mp4") as alone:
        assert any(frame.moving for frame in source)
        video = source.video("clip.mp4")
        assert video.sound == alone.sound == os.path.join(".", "clip.mp4")
        assert video.even_rate() == alone.even_rate() == alone.video("clip.mp4").even_rate()
        assert (alone.summary(1), alone.summary(2)) == ("1 frame", "2 frames")
        assert source.summary(1) == "1 picture or frame of 2 inputs"
        assert source.summary(2) == "2 pictures and frames of 2 inputs"


def test_video_with_the_ending_of_a_picture_is_named_among_several(inputs):
    shutil.copy(CLIP, inputs / "clip.jpg")
    frames, told, fault = read([CAT, inputs / "clip.jpg"])
    assert frames[1].error == f"{inputs / 'clip.jpg'}: is a video, not a picture. " + (
        "Give it as the only input."
    )
    assert (told, fault) == ([], "1 of 2 inputs can't be read in full")


def test_inputs_on_different_drives_are_refused(inputs, monkeypatch):
    def commonpath(_):
        raise ValueError("Paths don't have the same drive")  # as on Windows

    monkeypatch.setattr(os.path, "commonpath", commonpath)
    with pytest.raises(SourceError, match="the inputs are on different drives. Run demo.py for"):
        open_source([str(CAT), str(STREET)])


def test_one_input_given_twice_is_one(inputs):
    with open_source([str(inputs / "a" / "x.jpg")] * 2) as source:
        assert (source.kind, source.name, source.length) == ("folder", "1 input", 1)
        assert source.root == str(inputs / "a")
        assert source.summary(1) == "1 picture of 1 input"


@pytest.mark.parametrize("other", ["1", "rtsp://u:secret@127.0.0.1/s", "-"])
def test_camera_address_or_standard_input_must_be_the_only_input(other, inputs):
    with pytest.raises(SourceError, match="an address or - must be the only input") as caught:
        open_source([str(CAT), other])
    assert str(caught.value).startswith(f"{other.replace('secret', '***')}: a camera,")


@pytest.mark.parametrize("others", [[], ["0"], [str(STREET)]])
def test_only_cameras_are_asked_for_a_size_or_rate(others):
    with pytest.raises(SourceError, match="only a camera can be asked for a size or frame rate"):
        open_source([*others, str(CAT)], Reading(camera=CameraMode(fps=30)))


@pytest.mark.parametrize(
    ("name", "head", "says"),
    [
        ("x", b"\0\0\0\x0cjP  \r\n\x87\n", "is JPEG 2000, on which OpenCV 4 can crash"),
        ("x", b"\xff\x4f\xff\x51", "is JPEG 2000, on which"),
        ("x.jpg", b"what", "is neither a picture nor a video that OpenCV reads"),
        ("x", b"what", "is neither a picture nor a video that OpenCV reads"),
        ("x.JPG", b"RIFF\0\0\0\0AVI LIST", "is neither a picture nor a video"),  # it is opened
        ("x.mjpeg", b"\xff\xd8\xff", "contains no picture|is neither a picture nor a video"),
        ("x.jpg", b"#EXTM3U", "is a list of other files. Give a picture, video,"),
        ("x", b"ffconcat", "is a list of other files. Give a picture, video,"),
        ("x.jpg", b"", "is empty. Give a picture, video,"),
    ],
)
def test_kind_of_a_file_is_told_by_its_content_and_else_by_its_name(tmp_path, name, head, says):
    (tmp_path / name).write_bytes(head and head + bytes(64))
    with pytest.raises(SourceError, match=f"^{re.escape(str(tmp_path / name))}: ({says})"):
        read(tmp_path / name)


def test_missing_file_is_named():
    for name, shown in (("no.jpg", "no.jpg"), ("", "(empty)")):
        with pytest.raises(SourceError) as caught:
            open_source(name)
        assert str(caught.value).startswith(f"{shown}: no such file. Give a picture, video,")


def test_no_inputs_are_refused():
    with pytest.raises(SourceError, match="no such file. Give a picture, video, folder"):
        open_source([])


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


# Whatever is named as an input.


@pytest.fixture(scope="module")
def few_files(tmp_path_factory):
    """A folder of a picture, files that are none, and a link to itself."""
    folder = tmp_path_factory.mktemp("few")
    cv2.imwrite(str(folder / "a.jpg"), np.zeros((8, 8, 3), np.uint8))
    (folder / "0").mkdir()
    (folder / "0" / "b[1].png").write_bytes(b"no picture")
    (folder / "empty").write_bytes(b"")
    (folder / "loop").symlink_to("loop")
    return folder


class Capture:
    """Stands for cv2.VideoCapture: opens as told, and yields no frame."""

    opens, value = True, 0.0

    def __init__(self, *_):
        pass

    def isOpened(self):
        return self.opens

    def get(self, _):
        return self.value

    def read(self):
        return False, None

    def grab(self):
        return False

    def release(self):
        pass


def no_server(*_):
    raise OSError


PARTS = (
    *("http://", "https://", "rtsp://", "rtsps://", "file://", "://", "HTTP://", "ftp:", "@"),
    *("*", "**", "?", "[", "]", "[!a]", "/", "./", ".", "~", "0", "9" * 30, "9" * 5000, "-1", "²"),
    *("٣", "a.jpg", "a", "b[1].png", "empty", "loop", " ", "\n", "\0", "\udcff", "\ud800", "é"),
    *("x" * 300, "%s", "%d", "\\", "C:\\", "$HOME", "|"),
)
ANY_TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates and NUL, too
INPUTS = st.lists(st.sampled_from(PARTS), max_size=5).map("".join) | ANY_TEXT
NUMBERS = st.sampled_from((0.0, -1.0, 25.0, 1e300)) | st.floats()


@given(INPUTS, st.booleans(), NUMBERS)
@example("9" * 5000, True, 0.0)
@example("\0/*", True, 0.0)
@example("\ud800/*", True, 0.0)
@example("rtsp://a", True, 25.0)  # of known length: a video
def test_any_input_is_a_source_or_one_error(few_files, value, opens, number):
    assume(not value.startswith("/") and ".." not in value)  # the system's own folders are large
    Capture.opens, Capture.value = opens, number
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(few_files)
        patch.setattr(cv2, "VideoCapture", Capture)
        patch.setattr("media.addresses.response_of", no_server)
        patch.setattr("socket.create_connection", no_server)
        try:
            with open_source(value, Reading(reconnect=0)) as source:
                assert isinstance(source, (Pictures, Video, Live))
                list(source)
        except SourceError as error:
            assert str(error)
