"""Pictures and videos on disk: whole or not at all."""

import contextlib
import os
from contextlib import closing
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from demo_process import files_below
from live_helpers import images_of, small_disk

from media.film import Film
from media.outputs import CODECS, OutputError, result_name, save_picture

resource = pytest.importorskip("resource", reason="limits on a file's size are POSIX's")


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)


@contextlib.contextmanager
def largest_file(size):
    """Let no file of this process grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def shade(value, width=64, height=48):
    return np.full((height, width, 3), value, np.uint8)


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


# Videos


@pytest.mark.parametrize("ending", [*CODECS, ".MP4"])
def test_video_keeps_size_rate_number_and_order_of_frames(ending, tmp_path):
    path = tmp_path / f"x{ending}"
    with closing(Film(str(path), 12.5)) as film:
        for i in range(20):
            film.add(shade(10 * i + 20))
    assert film.length == 20
    assert files_below(tmp_path) == [path.name]
    frames = images_of(path)
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    brightness = [frame.mean() for frame in frames]
    assert brightness == pytest.approx([10 * i + 20 for i in range(20)], abs=4)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)


@pytest.mark.parametrize("fps", [0.5, 10, 23.976, 30000 / 1001, 120])
def test_video_keeps_its_rate(fps, tmp_path):
    with closing(Film(str(tmp_path / "x.mp4"), fps)) as film:
        for _ in range(3):
            film.add(shade(0))
    capture = cv2.VideoCapture(str(tmp_path / "x.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(fps, rel=1e-3)
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.mark.parametrize("ending", CODECS)
@pytest.mark.parametrize(
    "size, even",
    [((641, 479), (642, 480)), ((33, 16), (34, 16)), ((32, 17), (32, 18))],
)
def test_odd_row_and_column_are_kept_and_doubled(size, even, ending, tmp_path):
    width, height = size
    image = shade(40, width, height)
    image[-1], image[:, -1] = 200, 200
    with closing(Film(str(tmp_path / f"x{ending}"), 10)) as film:
        film.add(image)
    (frame,) = images_of(tmp_path / f"x{ending}")
    assert frame.shape[1::-1] == even
    if width > 16:
        assert frame[:-8, -1].mean() == pytest.approx(200, abs=12)
        assert frame[: height - 8, : width - 8].mean() == pytest.approx(40, abs=12)


def test_frame_of_another_size_is_fitted_to_the_first(tmp_path):
    with closing(Film(str(tmp_path / "x.avi"), 10)) as film:
        film.add(shade(50))
        film.add(shade(100, 200, 100))
        film.add(shade(150, 10, 10))
    frames = images_of(tmp_path / "x.avi")
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 3
    assert [frame.mean() for frame in frames] == pytest.approx([50, 100, 150], abs=4)


def test_video_has_its_name_when_it_is_whole_and_not_before(tmp_path):
    path = tmp_path / "x.mp4"
    path.write_bytes(b"earlier")
    with closing(Film(str(path), 10)) as film:
        for _ in range(5):
            film.add(shade(0))
            assert path.read_bytes() == b"earlier"
    assert len(images_of(path)) == 5
    assert files_below(tmp_path) == ["x.mp4"]


def test_video_that_is_broken_off_is_playable(tmp_path):
    with pytest.raises(KeyboardInterrupt), closing(Film(str(tmp_path / "x.mp4"), 10)) as film:
        for i in range(5):
            film.add(shade(50 * i))
        raise KeyboardInterrupt
    assert len(images_of(tmp_path / "x.mp4")) == 5
    assert files_below(tmp_path) == ["x.mp4"]


def test_video_without_frames_leaves_no_file(tmp_path):
    Film(str(tmp_path / "x.mp4"), 10).close()
    assert files_below(tmp_path) == []


def test_video_may_be_closed_twice(tmp_path):
    film = Film(str(tmp_path / "x.mp4"), 10)
    film.add(shade(0))
    film.close()
    film.close()
    assert files_below(tmp_path) == ["x.mp4"]


def test_frames_are_repeated_until_the_video_is_as_long_as_the_time(tmp_path):
    film = Film(str(tmp_path / "x.mp4"), 10, clock=lambda seconds: seconds)
    with closing(film):
        lengths = []
        for value, seconds in ((50, 0.0), (100, 0.45), (150, 0.46), (200, 1.0)):
            film.write(seconds, SimpleNamespace(drawn=shade(value)))
            lengths.append(film.length)
    assert lengths == [1, 5, 6, 11]
    brightness = [frame.mean() for frame in images_of(tmp_path / "x.mp4")]
    assert brightness == pytest.approx([50] * 4 + [100] + [150] * 5 + [200], abs=6)


def fill(film):
    noise = np.random.default_rng(0)
    for _ in range(2000):
        film.add(noise.integers(0, 256, (240, 320, 3), np.uint8))


@pytest.mark.parametrize("ending", [".mp4", ".avi", ".mkv"])
def test_video_ends_playable_where_its_file_may_not_grow(ending, tmp_path):
    path = tmp_path / f"x{ending}"
    with (
        largest_file(4 << 20),
        pytest.raises(OutputError, match="limit of 4194304 bytes"),
        closing(Film(str(path), 10)) as film,
    ):
        fill(film)
    assert film.length > 3
    assert len(images_of(path)) == film.length
    assert files_below(tmp_path) == [path.name]


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_video_ends_playable_where_the_disk_is_full(ending, tmp_path):
    with small_disk(tmp_path / "disk", "4m") as disk:
        path = disk / f"x{ending}"
        with (
            pytest.raises(OutputError, match="the disk is full"),
            closing(Film(str(path), 10)) as film,
        ):
            fill(film)
        assert film.length > 3
        assert len(images_of(path)) == film.length
        assert files_below(disk) == [path.name]
