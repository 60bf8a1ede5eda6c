"""Folders and patterns of pictures: one result each, and nothing lost on the way."""

import json
import os
import re
import shutil

import cv2
import numpy as np
import pytest
from demo_process import CAT, FAST, STREET, files_below, run_demo

from media.frames import SourceError
from media.sources import Reading, open_source

UNREADABLE = b"no picture at all"


@pytest.fixture
def photos(tmp_path):
    """A folder with four small pictures, one of them two folders deep, and other files."""
    folder = tmp_path / "photos"
    (folder / "b" / "deep").mkdir(parents=True)
    cat = cv2.resize(cv2.imread(str(CAT)), (160, 120))
    for i, name in enumerate(("a.png", "Z.PNG", "b/a.png", "b/deep/x.png")):
        cv2.imwrite(str(folder / name), cat[: 120 - i])  # each has its own height
    (folder / "notes.txt").write_text("no picture")
    (folder / "clip.mp4").write_bytes(UNREADABLE)
    return folder


ALL = ["Z.PNG", "a.png", "b/a.png", "b/deep/x.png"]


def originals(folder):
    return {name: (folder / name).read_bytes() for name in files_below(folder)}


def test_every_picture_gets_a_result_of_its_size_in_the_same_folder_below(photos, tmp_path):
    before = originals(photos)
    process = run_demo("-i", "photos", "-o", "out", "--confidence", "0.1", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    used, left_out, done, saved = process.stdout.splitlines()
    assert used.startswith("photos; object_detection_nanodet")
    assert left_out == "skipped: 1 .mp4 (name it to include it), 1 .txt"
    assert done.startswith("4 of 4 pictures, ")
    assert saved == "saved 4 pictures in out"
    assert process.stderr == ""
    assert files_below(tmp_path / "out") == ALL
    for name in ALL:
        given, result = (cv2.imread(str(folder / name)) for folder in (photos, tmp_path / "out"))
        assert given.shape == result.shape
        assert (given != result).any()
    assert originals(photos) == before


def test_results_go_to_results_by_default(photos, tmp_path):
    process = run_demo("-i", f"{photos}/", *FAST, "-q", cwd=tmp_path)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert files_below(tmp_path / "results") == ALL


def test_folder_with_no_save_writes_nothing(photos, tmp_path):
    before = files_below(tmp_path)
    process = run_demo("-i", photos, *FAST, "--no-save", cwd=tmp_path)
    assert process.returncode == 0
    assert "4 of 4 pictures, " in process.stdout
    assert files_below(tmp_path) == before


def test_pictures_come_in_sorted_order(photos, tmp_path):
    frames = list(open_source(str(photos)))
    assert [frame.source for frame in frames] == [str(photos / name) for name in ALL]
    assert [frame.image.shape[0] for frame in frames] == [119, 120, 118, 117]


def test_unreadable_picture_of_a_folder_is_a_frame_with_an_error(photos):
    (photos / "b" / "empty.png").write_bytes(b"")
    frames = list(open_source(str(photos)))
    said = f"{photos / 'b' / 'empty.png'}: is empty. Copy or download it again."
    assert [frame.error for frame in frames] == ["", "", "", "", said]
    assert [frame.image is None for frame in frames] == [False, False, False, False, True]


def test_unreadable_pictures_are_named_and_skipped_and_the_exit_code_is_1(photos, tmp_path):
    (photos / "aa.jpg").write_bytes(UNREADABLE)
    (photos / "b" / "empty.png").write_bytes(b"")
    (photos / "lost.png").symlink_to("nowhere.png")
    process = run_demo("-i", "photos", *FAST, "-o", "out", "--json", "found.jsonl", cwd=tmp_path)
    assert process.returncode == 1
    names = ["photos/aa.jpg", "photos/b/empty.png", "photos/lost.png"]
    *warnings, last = process.stderr.splitlines()
    assert [re.match(r"demo\.py: (\S+): ", line)[1] for line in warnings] == names
    assert last == "demo.py: error: 3 of 7 pictures can't be read"
    assert "4 of 7 pictures, " in process.stdout
    assert files_below(tmp_path / "out") == ALL
    lines = (tmp_path / "found.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len(records) == 7
    assert [record["source"] for record in records if "error" in record] == names
    for record in records:
        if "error" in record:
            assert record.keys() == {"source", "error"}
            assert record["error"].startswith(record["source"])


@pytest.mark.parametrize("output", [(), ("-o", "found"), ("-o", "./b/found/")])
def test_results_of_an_earlier_run_are_not_read_again(output, photos):
    (photos / "clip.mp4").unlink()
    for _ in range(2):
        process = run_demo("-i", ".", *FAST, *output, cwd=photos)
        assert process.returncode == 0, process.stderr
        assert "4 of 4 pictures, " in process.stdout
    below = photos / (output[1] if output else "results")
    assert files_below(below) == ALL


@pytest.mark.parametrize("source", [".", "results", "results/*.PNG"])
def test_results_of_an_earlier_run_are_read_where_nothing_is_saved(source, photos):
    shutil.copytree(photos / "b", photos / "results")
    shutil.copy(photos / "Z.PNG", photos / "results")
    process = run_demo("-i", source, *FAST, "--no-save", "--json", "-", cwd=photos)
    assert process.returncode == 0, process.stderr
    sources = [record["source"].removeprefix("./") for record in process.records()]
    assert "results/Z.PNG" in sources
    assert len(sources) == {".": 7, "results": 3, "results/*.PNG": 1}[source]


def test_pattern_takes_what_fits_and_keeps_folders_below(photos, tmp_path):
    process = run_demo("-i", "photos/**/*.png", *FAST, "-o", "out", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert files_below(tmp_path / "out") == ["a.png", "b/a.png", "b/deep/x.png"]


VIDEOS = [
    *("mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "ts"),
    *("mts", "flv", "wmv", "3gp", "ogv", "gif", "mjpg", "mjpeg", "h264"),
]


def test_pattern_takes_no_videos_and_whatever_else_fits(tmp_path):
    for ending in (*VIDEOS, "MP4", "png", "xyz"):
        (tmp_path / f"a.{ending}").touch()
    (tmp_path / ".a.png").touch()
    (tmp_path / "b.png").mkdir()
    source = open_source(f"{tmp_path}/*")
    assert source.paths == [str(tmp_path / name) for name in ("a.png", "a.xyz")]
    counts = [f"1 .{name} (name it to include it)" for name in sorted(VIDEOS)]
    counts[sorted(VIDEOS).index("mp4")] = "2 .mp4 (name them to include them)"
    assert source.left_out == f"skipped: {', '.join(counts)}"


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("{}/*.jpg", "no file fits this pattern. Give a picture, video,"),
        ("{}/\0*", "no file fits this pattern. Give a picture, video,"),
        ("\0/*", "no file fits this pattern. Give a picture, video,"),
        ("{}/?", "no file fits this pattern. Give a picture, video,"),  # but a folder
        ("{}/*.mp4", "no picture fits this pattern; skipped: 1 .mp4 (name it to include it)."),
        ("{}/.*", "no picture fits this pattern; skipped: 1 hidden."),
    ],
)
def test_pattern_that_fits_no_picture_is_refused(photos, pattern, says):
    (photos / ".b.png").touch()
    with pytest.raises(SourceError) as caught:
        open_source(pattern.format(photos))
    assert str(caught.value).startswith(f"{pattern.format(photos)}: {says}")


@pytest.mark.parametrize(
    ("names", "counts"),
    [
        ([], ""),
        (["a.txt", "B.TXT", "c", ".d.jpg"], " (skipped: 1 without ending, 2 .txt, 1 hidden)"),
    ],
)
def test_folder_without_a_picture_is_refused_and_the_endings_named(tmp_path, names, counts):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(SourceError) as caught:
        open_source(str(tmp_path))
    assert str(caught.value).startswith(f"{tmp_path}: no picture in this folder{counts}")
    assert ". Endings read: .jpg .jpeg .jpe .jfif .png " in str(caught.value)


def test_name_of_a_file_is_no_pattern_where_there_is_one(tmp_path):
    shutil.copy(CAT, tmp_path / "a[1].jpg")
    with open_source(f"{tmp_path}/a[1].jpg") as source:
        assert (source.kind, len(list(source))) == ("picture", 1)


def test_earlier_results_are_left_out_by_whatever_link_they_are_found(photos):
    (photos / "link.png").symlink_to(photos / "b" / "a.png")
    source = open_source(str(photos), Reading(skip={os.path.realpath(photos / "b" / "a.png")}))
    assert source.paths == [str(photos / name) for name in ("Z.PNG", "a.png", "b/deep/x.png")]
    assert source.left_out.endswith(", 2 results of an earlier run")


def test_pattern_in_the_current_folder_works(photos):
    process = run_demo("-i", "*.[pP]*", *FAST, "--json", "-", cwd=photos)
    assert [record["source"] for record in process.records()] == ["Z.PNG", "a.png"]
    assert files_below(photos / "results") == ["Z.PNG", "a.png"]


@pytest.mark.parametrize("pattern", ["?.png", "**/a*", "../[2]/a*"])
def test_pattern_in_a_folder_of_any_name_works(photos, pattern):
    (photos / "[2]").mkdir()
    shutil.copy(photos / "a.png", photos / "[2]")
    with open_source(f"{photos}/[2]/{pattern}") as source:
        assert [os.path.realpath(path) for path in source.paths] == [f"{photos}/[2]/a.png"]


def test_pattern_that_fits_one_file_still_gives_a_folder(photos, tmp_path):
    assert run_demo("-i", "photos/a.*", *FAST, "-o", "out", cwd=tmp_path).returncode == 0
    assert files_below(tmp_path / "out") == ["a.png"]


def test_folder_of_any_name_works(tmp_path):
    name = "日本 [1]*\n'x'"
    (tmp_path / name).mkdir()
    shutil.copy(CAT, tmp_path / name / "🐈 .jpg")
    process = run_demo("-i", name, *FAST, "-o", "öut", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert files_below(tmp_path / "öut") == ["🐈 .jpg"]


def test_folder_that_links_to_itself_ends(photos):
    (photos / "b" / "loop").symlink_to(photos, target_is_directory=True)
    source = open_source(str(photos))
    assert source.paths == [str(photos / name) for name in ALL]
    assert source.left_out == "skipped: 1 .mp4 (name it to include it), 1 .txt, 1 linked folder"


def test_several_linked_folders_are_counted(photos):
    for name in ("one", "two"):
        (photos / name).symlink_to(photos / "b", target_is_directory=True)
    assert open_source(str(photos)).left_out.endswith(", 2 linked folders")


def test_folders_of_thumbnails_and_rubbish_are_skipped_and_counted(photos):
    for name in ("@eaDir/a.png", ".thumbnails", "b/#recycle", "$RECYCLE.BIN/S-1"):
        (photos / name).mkdir(parents=True)
        shutil.copy(photos / "a.png", photos / name)
    source = open_source(str(photos))
    assert source.paths == [str(photos / name) for name in ALL]
    assert source.left_out.endswith(", 4 hidden or system folders")
    assert open_source(str(photos / ".thumbnails")).length == 1  # named, it is taken


def test_folder_that_can_not_be_read_is_counted(photos, monkeypatch):
    # Root may read all folders, so the system's answer is made up.
    look = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return look(path)

    monkeypatch.setattr(os, "scandir", refuse)
    source = open_source(str(photos))
    assert source.paths == [str(photos / name) for name in ALL[:3]]
    assert source.left_out.endswith(", 1 folder that can't be read")


def test_few_pictures_make_few_networks_on_many_cores(photos, tmp_path):
    count = """
import demo, nanodet, sys
load = nanodet.NanoDet.__init__
nanodet.NanoDet.__init__ = lambda self, *a, **k: print("network") or load(self, *a, **k)
sys.exit(demo.main())
"""
    many = {"OPENCV_FOR_THREADS_NUM": "64"}
    process = run_demo("-i", photos, *FAST, "-q", cwd=tmp_path, script=count, env=many)
    assert process.returncode == 0, process.stderr
    assert 1 <= process.stdout.count("network") <= 4


def test_classes_keep_only_what_they_name(tmp_path):
    (tmp_path / "photos").mkdir()
    shutil.copy(STREET, tmp_path / "photos")
    shutil.copy(CAT, tmp_path / "photos")
    args = ("-i", "photos", "--no-save", "--json", "-")
    every = run_demo(*args, cwd=tmp_path).records()
    kept = run_demo(*args, "--classes", " Person ,CAR", cwd=tmp_path).records()
    for record in every:
        record["detections"] = [
            found for found in record["detections"] if found["label"] in ("person", "car")
        ]
    assert kept == every
    cat, street = kept
    assert cat["detections"] == []
    assert {found["label"] for found in street["detections"]} == {"person", "car"}


def test_classes_left_out_are_not_drawn(tmp_path):
    (tmp_path / "photos").mkdir()
    cv2.imwrite(str(tmp_path / "photos" / "street.png"), cv2.imread(str(STREET)))
    run_demo("-i", "photos", "--classes", "zebra", cwd=tmp_path)
    given, result = (
        cv2.imread(str(tmp_path / folder / "street.png")) for folder in ("photos", "results")
    )
    np.testing.assert_array_equal(given, result)
