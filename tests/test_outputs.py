"""Results on disk: whole or not at all, under names that are ours; and what is said of them."""

import os
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from demo_process import files_below
from live_helpers import largest_file, small_disk

from media.frames import Frame
from media.outputs import (
    OutputError,
    PictureFile,
    ResultFolder,
    Text,
    decide_place,
    earlier_names,
    earlier_results,
    is_one_of,
    refuse_foreign,
    result_name,
    save_picture,
    whole_file,
)
from nanodet import COCO_CLASSES, Detections


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


def linked(target, name):
    try:
        os.symlink(target, name)
    except OSError as error:
        pytest.skip(f"this user may not make links: {error}")


# Pictures


def test_picture_is_saved_in_folders_that_are_made(picture, tmp_path):
    save_picture(str(tmp_path / "a" / "b" / "x.png"), picture)
    assert files_below(tmp_path) == ["a/b/x.png"]
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "a" / "b" / "x.png")), picture)


def test_picture_is_saved_in_the_current_folder(picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_picture("x.png", picture)
    assert files_below(tmp_path) == ["x.png"]


@pytest.mark.parametrize("name", ["x" * 251 + ".png", "🐈" * 62 + ".png", ".png.png", "a.b.PNG"])
def test_picture_may_have_any_name_that_the_system_takes(name, picture, tmp_path):
    save_picture(str(tmp_path / name), picture)
    assert files_below(tmp_path) == [name]
    data = np.fromfile(tmp_path / name, np.uint8)
    np.testing.assert_array_equal(cv2.imdecode(data, cv2.IMREAD_COLOR), picture)


def test_kinds_that_are_only_read_get_an_ending_that_is_written():
    assert result_name("in/a/x.jpg", "in", moving=False) == "a/x.jpg"
    assert result_name("in/a/x.PNG", "in", moving=False) == "a/x.PNG"
    assert result_name("in/a/x.unknown", "in", moving=False) == "a/x.unknown.jpg"
    assert result_name("in/a/x.avi", "in", moving=True) == "a/x.avi"
    assert result_name("in/a/x.flv", "in", moving=True) == "a/x.flv.mp4"
    longest = "é" * 125  # two bytes each
    assert result_name(f"in/{longest}.", "in", moving=False) == f"{longest}..jpg"  # 255 bytes
    assert result_name(f"in/{longest}a.mpo", "in", moving=False) == f"{longest}a.jpg"


def test_existing_picture_is_replaced_and_never_written_into(picture, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"earlier")
    os.link(path, tmp_path / "witness")  # keeps what was the file of this name
    save_picture(str(path), picture)
    assert (tmp_path / "witness").read_bytes() == b"earlier"
    assert files_below(tmp_path) == ["witness", "x.png"]


def test_folder_that_is_a_file_is_named_and_nothing_is_left(picture, tmp_path):
    (tmp_path / "file").write_bytes(b"earlier")
    with pytest.raises(OutputError, match="file/x.png: can't be written: "):
        save_picture(str(tmp_path / "file" / "x.png"), picture)
    assert files_below(tmp_path) == ["file"]


def test_picture_over_a_folder_is_refused_and_nothing_is_left(picture, tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OutputError, match="x.png: can't be written: "):
        save_picture(str(tmp_path / "x.png"), picture)
    assert files_below(tmp_path) == []


def test_disk_that_gets_full_leaves_the_earlier_picture(picture, tmp_path):
    (tmp_path / "x.png").write_bytes(b"earlier")
    with largest_file(1000), pytest.raises(OutputError, match="x.png: can't be written: "):
        save_picture(str(tmp_path / "x.png"), picture)
    assert files_below(tmp_path) == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"earlier"


def test_small_disk_leaves_nothing_half_written(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8)
    with small_disk(tmp_path / "disk", "1m") as disk:
        with pytest.raises(OutputError, match="No space left"):
            save_picture(str(disk / "x.png"), noise)
        assert files_below(disk) == []


def test_error_while_a_file_is_written_leaves_the_earlier_one(tmp_path):
    (tmp_path / "x.txt").write_text("earlier")
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "x.txt") as part:
        with open(part, "w") as file:
            file.write("half")
        raise ZeroDivisionError
    assert files_below(tmp_path) == ["x.txt"]
    assert (tmp_path / "x.txt").read_text() == "earlier"


def test_error_of_writing_names_the_file_and_another_keeps_its_own_name(tmp_path):
    path = tmp_path / "x.txt"
    with pytest.raises(OSError, match="No space left on device") as caught, whole_file(path):
        raise OSError(28, "No space left on device")
    assert (caught.value.filename, caught.value.errno) == (str(path), 28)
    with pytest.raises(FileNotFoundError) as caught, whole_file(path):
        open("missing")  # noqa: SIM115
    assert caught.value.filename == "missing"
    path.mkdir()
    with pytest.raises(OSError) as caught, whole_file(path):
        pass
    assert (caught.value.filename, caught.value.filename2) == (str(path), None)
    assert files_below(tmp_path) == []


def test_unfinished_file_is_hidden_beside_the_final_one_and_ends_alike(tmp_path):
    parts = []
    for name, stem in ((f"{60 * 'x'}ö.txt", 40 * "x"), ("12:30 ö.txt", "12:30 _")):
        with whole_file(tmp_path / "a" / name) as part:
            assert os.path.dirname(part) == str(tmp_path / "a")
            assert re.fullmatch(rf"\.{stem}\.[0-9a-f]{{8}}\.partial\.txt", os.path.basename(part))
            parts.append(os.path.basename(part)[-20:-12])
    assert len(set(parts)) == 2


def test_link_under_the_name_of_an_unfinished_file_is_not_followed(picture, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "urandom", bytes)  # so that the name can be foreseen
    (tmp_path / "mine").write_text("mine")
    for target, name in (("mine", ".x.00000000.partial.png"), ("new", ".y.00000000.partial.png")):
        linked(target, tmp_path / name)
        with pytest.raises(OutputError, match="can't be written: File exists"):
            save_picture(str(tmp_path / f"{name[1]}.png"), picture)
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.name == "nt", reason="files have no such modes on Windows")
def test_result_may_be_read_by_whom_umask_lets(picture, tmp_path):
    earlier = os.umask(0o027)
    try:
        save_picture(str(tmp_path / "x.png"), picture)
    finally:
        os.umask(earlier)
    assert (tmp_path / "x.png").stat().st_mode & 0o777 == 0o640


def test_only_frame_that_was_read_is_saved(picture, tmp_path):
    sink = PictureFile(str(tmp_path / "x.png"))
    sink.write(Frame("in.png", 0, 0.0, None, "damaged"), None)
    assert (sink.close(), files_below(tmp_path)) == (None, [])
    sink.write(Frame("in.png", 0, 0.0, picture), SimpleNamespace(drawn=picture))
    assert (sink.close(), files_below(tmp_path)) == (str(tmp_path / "x.png"), ["x.png"])


def test_picture_too_large_for_its_kind_is_named_with_its_size(tmp_path):
    with pytest.raises(OutputError, match=r"x\.jpg: 65536x1 is too large .* Try \.png\.$"):
        save_picture(str(tmp_path / "x.jpg"), np.zeros((1, 65536, 3), np.uint8))
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("name", ["x", "x.xyz", "x.öäü", "x.mp4"])
def test_unknown_kind_of_picture_is_refused(name, picture, tmp_path):
    with pytest.raises(OutputError, match=f"{name}: unknown kind of picture. End the name in .jpg"):
        save_picture(str(tmp_path / name), picture)


# Where results go


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The current folder, with a folder `made` and a file `file`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "result.jpg").mkdir()
    (tmp_path / "file").touch()


@pytest.mark.parametrize(
    "output, kind, place",
    [
        (None, "picture", "result.jpg"),
        (None, "video", "result.mp4"),
        (None, "folder", "results"),
        ("x.PNG", "picture", "x.PNG"),
        ("new/x.png", "picture", "new/x.png"),
        ("new/", "picture", "new/result.jpg"),
        ("x.avi", "video", "x.avi"),
        ("made/x.webm", "video", "made/x.webm"),
        ("made", "video", "made/result.mp4"),
        ("made", "folder", "made"),
        ("new/deep", "folder", "new/deep"),
    ],
)
def test_place_of_results_is_what_was_asked_for_or_a_default_name(places, output, kind, place):
    assert decide_place(output, kind) == place


@pytest.mark.parametrize(
    "output, kind, says",
    [
        ("", "folder", "is empty. Give"),
        ("file", "folder", "file: is a file. Results of many pictures need a folder."),
        ("made", "picture", "made/result.jpg: is a folder. Give the name of a file."),
        ("x.mp4", "picture", "x.mp4: unknown kind of picture. End the name in .jpg or .png."),
        ("x", "picture", "x: unknown kind of picture."),
        ("x.jpg", "video", "x.jpg: unknown kind of video. End the name in one of .mp4 .avi "),
        ("file/a/x.mp4", "video", "file/a/x.mp4: can't be written: file is no folder."),
    ],
)
def test_place_that_results_can_not_have_is_refused(places, output, kind, says):
    with pytest.raises(OutputError) as caught:
        decide_place(output, kind)
    assert str(caught.value).startswith(says)


def test_video_in_a_read_only_folder_is_refused(places, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "access", lambda *arguments: asked.append(arguments))
    with pytest.raises(OutputError, match="x.mp4: can't be written: the folder is read-only"):
        decide_place("x.mp4", "video")
    assert asked == [(".", os.W_OK)]


@pytest.mark.parametrize("kind, name", [("video", "x.mp4"), ("picture", "x.jpg")])
def test_place_of_a_file_that_can_not_be_replaced_is_refused(places, monkeypatch, kind, name):
    def refuse(source, target):  # as Windows does where a player has the file open
        assert source == target == name
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    assert decide_place(name, kind) == name
    with open(name, "w") as file:
        file.write("earlier")
    says = f"^{name}: can't be replaced: Permission denied. Close the program that has it open"
    with pytest.raises(OutputError, match=says):
        decide_place(name, kind)
    monkeypatch.undo()


def test_place_of_a_file_that_can_be_replaced_is_left_as_it_is(places, tmp_path):
    (tmp_path / "x.mp4").write_text("earlier")
    assert decide_place(str(tmp_path / "x.mp4"), "video") == str(tmp_path / "x.mp4")
    assert (tmp_path / "x.mp4").read_text() == "earlier"


def test_file_is_known_by_any_of_its_names(places, tmp_path):
    os.link("file", "hard")
    os.symlink("file", "soft")
    for name in ("file", "hard", "soft", "made/../file", str(tmp_path / "file")):
        assert is_one_of(name, [None, "missing", "made", "file"])
    assert not is_one_of("file", ["made", "missing", None])
    assert not is_one_of("missing", ["missing", "file"])


def test_file_without_a_number_is_known_by_its_path(places, tmp_path, monkeypatch):
    (tmp_path / "other").touch()
    numbered = os.stat
    monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(st_ino=0 * numbered(path).st_ino))
    assert is_one_of("file", ["other", "missing", "made/../file"])
    assert not is_one_of("file", ["other", "missing", "made"])
    assert not is_one_of("missing", ["missing"])
    monkeypatch.undo()


# A folder of results


def put(sink, name, image, moving=False):
    """Hand a sink the frame of an input, its image or None."""
    result = None if image is None else SimpleNamespace(drawn=image)
    sink.write(Frame(f"in/{name}", 0, 0.0, image, moving=moving), result)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return ResultFolder("out", "in", CountingFilm)


class CountingFilm:
    """In place of a video: a file that says how many frames it has got."""

    advice = " (slow)"

    def __init__(self, path, source):
        self.path, self.source, self.length = path, source, 0

    def write(self, frame, result):
        assert frame.source == self.source
        self.length += result is not None

    def close(self):
        with open(self.path, "w") as file:
            file.write(str(self.length))
        return self.length and "saved"


def test_picture_too_large_for_its_kind_is_saved_as_png(folder, picture):
    put(folder, "wide.jpg", np.zeros((1, 65536, 3), np.uint8))
    put(folder, "x.jpg", picture)
    assert files_below("out") == ["wide.jpg.png", "x.jpg"]
    assert earlier_names("out") == {"wide.jpg.png", "x.jpg"}  # a wide.jpg is the user's
    assert cv2.imread("out/wide.jpg.png").shape == (1, 65536, 3)
    assert folder.close() == "2 pictures in out"


def test_two_pictures_whose_results_would_have_one_name_get_two(folder, picture):
    put(folder, "x.gif", picture)
    put(folder, "x.gif.jpg", picture // 2)
    names = files_below("out")
    assert len(names) == 2 and names[0] in ("x.gif", "x.gif.jpg")
    results = sorted(cv2.imread(f"out/{name}").mean() for name in names)
    assert results == pytest.approx([picture.mean() / 2, picture.mean()], rel=0.1)


def test_results_whose_names_are_one_on_a_disk_that_knows_no_case_get_two(
    picture, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    names = ("cat.png", "Cat.png")
    for _ in range(2):  # the second run meets the results of the first
        refuse_foreign("out", names)
        sink = ResultFolder("out", "in", CountingFilm)
        put(sink, names[0], picture)
        if knows_case := not os.path.exists("out/Cat.png"):
            os.link("out/cat.png", "out/Cat.png")  # what such a disk finds under the other name
        put(sink, names[1], picture // 2)
        assert cv2.imread("out/cat.png").mean() == picture.mean()
        assert cv2.imread("out/Cat.png.png").mean() == (picture // 2).mean()
        refuse_foreign("out", names)
        if knows_case:
            os.remove("out/Cat.png")


def test_results_whose_names_differ_in_case_keep_them_on_a_disk_that_knows_it(
    picture, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        sink = ResultFolder("out", "in", CountingFilm)
        put(sink, "cat.png", picture)
        if os.path.exists("out/CAT.PNG"):
            pytest.skip("this disk does not know case")
        put(sink, "Cat.png", picture // 2)
        assert files_below("out") == ["Cat.png", "cat.png"]
        assert cv2.imread("out/Cat.png").mean() < cv2.imread("out/cat.png").mean()


def test_picture_that_can_not_be_read_has_no_result(folder):
    put(folder, "x.jpg", None)
    assert folder.close() == "0 pictures in out"
    assert not os.path.exists("out")


def test_frames_of_a_video_go_into_one_film_until_another_source_comes(folder, picture):
    put(folder, "a.png", picture)
    for name in ("b/one.mp4", "b/one.mp4", "two.flv", "two.flv", "two.flv"):
        put(folder, name, picture, moving=True)
    assert files_below("out") == ["a.png", "b/one.mp4"]  # the next one grows
    put(folder, "c.png", picture)
    assert folder.close() == "2 pictures and 2 videos in out (slow)"
    lengths = [open(f"out/{name}").read() for name in ("b/one.mp4", "two.flv.mp4")]  # noqa: SIM115
    assert lengths == ["2", "3"]


def test_folder_of_one_video_says_so_and_ends_it(folder, picture):
    put(folder, "one.mp4", picture, moving=True)
    assert folder.close() == "1 video in out (slow)"
    assert files_below("out") == ["one.mp4"]
    assert folder.close() == "1 video in out (slow)"  # and closes nothing twice


def test_video_of_which_nothing_was_saved_is_not_counted(folder, picture):
    put(folder, "one.mp4", None, moving=True)
    put(folder, "x.png", picture)
    assert folder.close() == "1 picture in out"


def test_earlier_results_are_replaced_and_a_foreign_file_is_not(folder, picture, tmp_path):
    put(folder, "x.png", picture)
    folder.close()
    again = ResultFolder("out", "in", CountingFilm)
    put(again, "x.png", picture // 2)
    assert cv2.imread("out/x.png").mean() < picture.mean()
    (tmp_path / "out" / "foreign.png").write_text("mine")
    with pytest.raises(OutputError, match="out/foreign.png: exists and is not a result of an"):
        put(again, "foreign.png", picture)
    assert (tmp_path / "out" / "foreign.png").read_text() == "mine"
    os.symlink("nowhere", "out/link.png")
    with pytest.raises(OutputError, match="out/link.png: exists"):
        put(again, "link.png", picture)


def test_names_that_a_run_will_need_are_looked_at_before_it_begins(folder, picture, tmp_path):
    put(folder, "x.png", picture)
    refuse_foreign("out", ["x.png", "new.png"])
    refuse_foreign("none", ["x.png"])
    (tmp_path / "out" / "new.png").write_text("mine")
    with pytest.raises(OutputError, match="out/new.png: exists and is not a result of an"):
        refuse_foreign("out", ["x.png", "new.png"])


def test_results_of_earlier_runs_are_known_by_their_real_paths(folder, picture, tmp_path):
    put(folder, "b/x\n.png", picture)
    with open("out/.nanodet-results", "a") as file:
        file.write('"half a li')  # what a power cut leaves
    os.symlink("out", "results")
    expected = {str(tmp_path / "out" / "b/x\n.png")}
    assert earlier_results("out") == earlier_results(None) == expected
    assert earlier_results("none") == set()


@pytest.mark.parametrize(
    "half", [b'"half a li', b'"', b'"b/\\u00', b"\0" * 4096, b'"\xff\n[1]\n{"a": "x"}\n7']
)
def test_list_of_results_that_is_half_written_keeps_what_is_whole(folder, picture, tmp_path, half):
    put(folder, "x.png", picture)
    with open("out/.nanodet-results", "ab") as file:
        file.write(half)
    again = ResultFolder("out", "in", CountingFilm)
    for name in ("y.png", "x.png", "z.png"):
        put(again, name, picture)
    assert earlier_results("out") == {str(tmp_path / "out" / f"{name}.png") for name in "xyz"}


@pytest.mark.parametrize("kind", ["link", "link to nothing", "second name", "folder", "fifo"])
def test_list_of_results_is_read_and_written_only_where_it_is_a_file_of_its_own(
    folder, picture, tmp_path, kind
):
    (tmp_path / "profile").write_text('"x.png"\n')
    (tmp_path / "out").mkdir()
    if kind == "second name":
        os.link("profile", "out/.nanodet-results")
    elif kind == "folder":
        (tmp_path / "out" / ".nanodet-results").mkdir()
    elif kind == "fifo":
        getattr(os, "mkfifo", lambda _: pytest.skip("no fifos here"))("out/.nanodet-results")
    else:
        linked("../profile" if kind == "link" else "../new", "out/.nanodet-results")
    says = r"^out/\.nanodet-results: is a link, or no file, and can't be the list of results\."
    with pytest.raises(OutputError, match=says.replace("/", re.escape(os.sep))):
        put(folder, "$(touch y).png", picture)
    with pytest.raises(OutputError, match=says.replace("/", re.escape(os.sep))):
        refuse_foreign("out", ["x.png"])
    assert earlier_results("out") == set()
    assert (tmp_path / "profile").read_text() == '"x.png"\n'
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "out" / "$(touch y).png").exists()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system can't open without following")
def test_list_of_results_that_becomes_a_link_at_the_last_moment_is_not_followed(
    folder, picture, tmp_path, monkeypatch
):
    (tmp_path / "profile").write_text("mine")
    (tmp_path / "out").mkdir()
    linked("../profile", "out/.nanodet-results")
    exists = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", lambda path: "nanodet" not in path and exists(path))
    with pytest.raises(OutputError, match="can't be written: "):
        put(folder, "x.png", picture)
    assert (tmp_path / "profile").read_text() == "mine"


@pytest.mark.parametrize("target", ["../outside", "../missing", ".."])
def test_link_that_leads_out_of_the_folder_is_not_followed(folder, picture, tmp_path, target):
    for name in ("out", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside" / "x.png").write_text("mine")
    (tmp_path / "out" / ".nanodet-results").write_text('"sub/x.png"\n')  # forged
    linked(target, "out/sub")
    says = "x.png: would be written in .*, by a link that leads out of out. Remove the link"
    with pytest.raises(OutputError, match=says):
        refuse_foreign("out", ["sub/x.png"])
    forged = ResultFolder("out", "in", CountingFilm)
    for name in ("sub/x.png", "sub/new.png", "sub/deep/x.png"):
        with pytest.raises(OutputError, match="by a link that leads out of out"):
            put(forged, name, picture)
    assert files_below(tmp_path / "outside") == ["x.png"]
    assert (tmp_path / "outside" / "x.png").read_text() == "mine"
    assert not (tmp_path / "missing").exists()


def test_links_to_and_within_the_folder_are_followed(picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk" / "sub").mkdir(parents=True)
    linked("disk", "out")
    linked("sub", "disk/other")
    sink = ResultFolder("out", "in", CountingFilm)
    put(sink, "x.png", picture)
    put(sink, "other/x.png", picture)
    assert files_below("disk") == ["sub/x.png", "x.png"]


def test_earlier_result_that_became_a_link_is_replaced_and_its_target_kept(
    folder, picture, tmp_path
):
    put(folder, "x.png", picture)
    (tmp_path / "mine").write_text("mine")
    os.remove("out/x.png")
    linked("../mine", "out/x.png")
    put(ResultFolder("out", "in", CountingFilm), "x.png", picture)
    assert (tmp_path / "mine").read_text() == "mine"
    assert not os.path.islink("out/x.png")


def test_folder_that_can_not_be_made_is_named(folder, picture, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match=r"^out/x\.png: can't be written: "):
        put(folder, "x.png", picture)


# What is said


def test_text_tells_size_objects_boxes_time_and_what_ran(picture):
    said = []
    found = Detections([[1, 2.25, 30.04, 40], [0, 0, 5, 5]], [0.906, 0.5], [2, 80])
    text = Text(COCO_CLASSES, "a network on a machine", said.append)
    frame = Frame("x.png", 0, 0.0, picture)
    text.write(frame, SimpleNamespace(detections=found, milliseconds=12.34))
    text.write(frame, SimpleNamespace(detections=found[1:], milliseconds=0.06))
    assert said == [
        "x.png: 64x48, 2 objects",
        "  car             0.91  [1.0, 2.2, 30.0, 40.0]",
        "  class 80        0.50  [0.0, 0.0, 5.0, 5.0]",
        "12.3 ms; a network on a machine",
        "x.png: 64x48, 1 object",
        "  class 80        0.50  [0.0, 0.0, 5.0, 5.0]",
        "0.1 ms; a network on a machine",
    ]
