"""A film: its pace, space, errors and name, and what OpenCV makes of its images."""

import os
import re
import shutil
import sys
from contextlib import closing, suppress
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from demo_process import files_below
from live_helpers import images_of, largest_file, small_disk

from media.film import RESERVE, Film, open_film
from media.frames import Frame
from media.outputs import CODECS, OutputError

resource = pytest.importorskip("resource", reason="limits on a file's size are POSIX's")


def shade(value, width=64, height=48):
    return np.full((height, width, 3), value, np.uint8)


class Recorder:
    """An encoder that keeps what it is given; its file is as long as it is told."""

    plays_unfinished = False

    def __init__(self, own_times=False, advice="", bytes_written=0):
        self.own_times, self.advice, self._bytes = own_times, advice, bytes_written
        self.opened, self.values, self.seconds, self.finished = None, [], [], False

    def open(self, path, size, fps, start):
        self.opened = size, fps, start
        with open(path, "wb") as file:
            file.truncate(self._bytes)
        return True

    def add(self, image, second):
        self.values.append(int(image.mean()))
        self.seconds.append(second)

    def finish(self):
        self.finished = True


def written(tmp_path, encoder, frames, fps=10):
    """Write (second, shade) to a film, the shade None for a frame that can't be read."""
    with closing(Film(str(tmp_path / "x.mp4"), fps, encoder)) as film:
        for index, (second, value) in enumerate(frames):
            result = None if value is None else SimpleNamespace(drawn=shade(value))
            film.write(Frame("in.mp4", index, second, None, moving=True), result)
    return film


# Pace


def test_image_is_repeated_until_the_next_is_due(tmp_path):
    encoder = Recorder()
    film = written(tmp_path, encoder, [(0, 1), (0.1, 2), (0.44, 3), (0.5, 4)])
    assert encoder.values == [1, 2, 2, 2, 3, 4]
    assert film.length == 6


def test_image_whose_place_is_taken_is_left_out(tmp_path):
    encoder = Recorder()
    written(tmp_path, encoder, [(0, 1), (0.1, 2), (0.12, 3), (0.2, 4)])
    assert encoder.values == [1, 2, 4]


def test_frame_that_can_not_be_read_shows_the_one_before_it(tmp_path):
    encoder = Recorder()
    written(tmp_path, encoder, [(0, 1), (0.1, None), (0.2, None), (0.3, 4)])
    assert encoder.values == [1, 1, 1, 4]


def test_first_image_is_shown_from_the_start(tmp_path):
    for own_times, values in ((False, [3, 3, 3, 4]), (True, [3, 4])):
        encoder = Recorder(own_times)
        written(tmp_path, encoder, [(7, None), (7.1, None), (7.2, 3), (7.3, 4)])
        assert encoder.values == values
        assert encoder.opened == ((64, 48), 10, 7)
    assert encoder.seconds == pytest.approx([0, 0.3])


def test_encoder_that_takes_times_gets_them(tmp_path):
    encoder = Recorder(own_times=True)
    written(tmp_path, encoder, [(5, 1), (5.03, 2), (5.04, None), (9, 3)])
    assert encoder.values == [1, 2, 2, 3]
    assert encoder.seconds == pytest.approx([0, 0.03, 0.04, 4])


def test_clock_says_when_a_frame_is_shown(tmp_path):
    encoder = Recorder(own_times=True)
    clock = lambda frame: 2 * frame.index  # noqa: E731
    with closing(Film(str(tmp_path / "x.mp4"), 10, encoder, clock)) as film:
        for index in range(3):
            film.write(Frame("in.mp4", index, 0.0, None), SimpleNamespace(drawn=shade(0)))
    assert encoder.seconds == [0, 2, 4]


def test_images_without_times_come_one_after_the_other(tmp_path):
    encoder = Recorder(own_times=True)
    with closing(Film(str(tmp_path / "x.mp4"), 25, encoder)) as film:
        for value in range(4):
            film.add(shade(value))
    assert encoder.seconds == pytest.approx([0, 0.04, 0.08, 0.12])
    assert encoder.opened == ((64, 48), 25, 0)


# Space


def needed_for(image, length):
    """Bytes that have to be free for an image after so many others."""
    return RESERVE + image.nbytes + 64 * length


def test_image_needs_room_for_itself_and_for_the_end_of_the_video(tmp_path, monkeypatch):
    free = {}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[folder]))
    image, encoder = shade(1), Recorder()
    film = Film(str(tmp_path / "x.mp4"), 10, encoder)
    for length in range(2):
        free[str(tmp_path)] = needed_for(image, length)
        film.add(image)
    free[str(tmp_path)] = needed_for(image, 2) - 1
    with pytest.raises(OutputError, match="x.mp4: the disk is full"):
        film.add(image)
    assert film.length == len(encoder.values) == 2


def test_file_needs_room_below_its_limit_for_an_image_and_the_end(tmp_path, monkeypatch):
    image, size = shade(1), 5000
    limit = size + needed_for(image, 1)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, resource.RLIM_INFINITY))
    film = Film(str(tmp_path / "x.mp4"), 10, Recorder(bytes_written=size))
    film.add(image)
    film.add(image)
    with pytest.raises(OutputError, match=f"x.mp4: the limit of {limit} bytes"):
        film.add(image)


def test_file_has_no_limit_where_the_system_knows_none(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    with closing(Film(str(tmp_path / "x.mp4"), 10, Recorder())) as film:
        film.add(shade(1))
    assert film.length == 1


def test_film_in_the_current_folder_asks_for_its_disk(tmp_path, monkeypatch):
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: asked.append(folder) or SimpleNamespace(free=1e12)
    )
    with closing(Film("x.mp4", 10, Recorder())) as film:
        film.add(shade(1))
    assert asked == ["."]
    assert files_below(tmp_path) == ["x.mp4"]


# Errors and the name


def error_of_opencv():
    try:
        cv2.imencode(".xyz", shade(1))
    except cv2.error as error:
        return error


@pytest.mark.parametrize(
    "error, says",
    [
        (OSError(5, "Input/output error"), "x.mp4: can't be written: Input/output error."),
        (error_of_opencv(), "x.mp4: can't be written: could not find encoder for the specified"),
    ],
)
def test_error_of_the_encoder_is_named_and_what_was_written_is_kept(tmp_path, error, says):
    encoder = Recorder()
    film = Film(str(tmp_path / "x.mp4"), 10, encoder)
    film.add(shade(1))

    def fails(*_):
        raise error

    encoder.add = fails
    with pytest.raises(OutputError) as caught, closing(film):
        film.add(shade(2))
    assert str(caught.value).startswith(str(tmp_path / says))
    assert "\n" not in str(caught.value)
    assert (film.length, encoder.finished) == (1, True)
    assert files_below(tmp_path) == ["x.mp4"]


def test_end_that_fails_is_named_and_the_video_keeps_its_name(tmp_path):
    def fails():
        raise OSError(28, "No space left on device")

    encoder = Recorder()
    encoder.finish = fails
    film = Film(str(tmp_path / "x.mp4"), 10, encoder)
    film.add(shade(1))
    with pytest.raises(OutputError, match="x.mp4: can't be written: No space left on device\\.$"):
        film.close()
    assert files_below(tmp_path) == ["x.mp4"]


@pytest.mark.parametrize("rename", ["works", "fails"])
def test_video_that_can_not_replace_the_earlier_one_is_kept_beside_it(
    tmp_path, monkeypatch, rename
):
    def refuse(*_):  # as Windows does where a player has the file open
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    if rename == "fails":
        monkeypatch.setattr(os, "rename", refuse)
    for name in ("x.mp4", "x-2.mp4"):
        (tmp_path / name).write_bytes(b"earlier")
    film = Film(str(tmp_path / "x.mp4"), 10)
    film.add(shade(1))
    with pytest.raises(
        OutputError, match="x.mp4: can't be replaced: Permission denied. "
    ) as caught:
        film.close()
    kept = re.search(r"The video is kept as (.*)\.$", str(caught.value))[1]
    assert len(images_of(kept)) == 1
    if rename == "works":
        assert kept == str(tmp_path / "x-3.mp4")
        assert files_below(tmp_path) == ["x-2.mp4", "x-3.mp4", "x.mp4"]
    assert (tmp_path / "x.mp4").read_bytes() == b"earlier"


def test_film_whose_first_image_fails_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    film = Film(str(tmp_path / "x.mp4"), 10, Recorder())
    with pytest.raises(OutputError, match="the disk is full"), closing(film):
        film.add(shade(1))
    assert film.close() is None
    assert files_below(tmp_path) == []


def test_encoder_that_can_not_open_is_an_error_with_size_and_rate(tmp_path):
    encoder = Recorder()
    encoder.open = lambda *_: False
    film = Film(str(tmp_path / "x.mp4"), 29.97, encoder)
    with pytest.raises(OutputError, match=r"x\.mp4: a video of 63x47 at 29\.97 frames a second"):
        film.add(shade(1, 63, 47))
    assert (film.close(), encoder.finished) == (None, False)


def test_rate_that_opencv_can_not_write_is_refused(tmp_path):
    film = Film(str(tmp_path / "x.mp4"), 0)
    with pytest.raises(OutputError, match="a video of 64x48 at 0 frames a second"), closing(film):
        film.add(shade(1))
    assert files_below(tmp_path) == []


def test_unknown_kind_of_video_is_refused_before_a_frame_is_read(tmp_path):
    with pytest.raises(OutputError, match=r"x\.xyz: unknown kind of video"):
        Film(str(tmp_path / "x.xyz"), 10)


def test_close_says_what_was_saved_and_what_the_encoder_advises(tmp_path):
    film = written(tmp_path, Recorder(advice=" (without its sound)"), [(0, 1), (0.1, 2)])
    assert film.close() == f"{tmp_path / 'x.mp4'}, 2 frames (without its sound)"
    assert film.advice == " (without its sound)"


def test_unfinished_file_is_hidden_unless_it_plays(tmp_path):
    for plays, prefix in ((False, ".x."), (True, "x.")):
        encoder = Recorder()
        encoder.plays_unfinished = plays
        with closing(Film(str(tmp_path / "x.mp4"), 10, encoder)) as film:
            film.add(shade(1))
            (name,) = (name for name in os.listdir(tmp_path) if "partial" in name)
            assert re.fullmatch(rf"{re.escape(prefix)}[0-9a-f]{{8}}\.partial\.mp4", name)


def test_link_under_the_name_of_an_unfinished_video_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "urandom", bytes)  # so that the name can be foreseen
    (tmp_path / "mine").write_text("mine")
    film = Film(str(tmp_path / "x.mp4"), 10)
    try:
        os.symlink("mine", tmp_path / ".x.00000000.partial.mp4")
    except OSError as error:
        pytest.skip(f"this user may not make links: {error}")
    with pytest.raises(OutputError, match="x.mp4: can't be written: File exists"), closing(film):
        film.add(shade(1))
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="files have no such modes on Windows")
def test_video_may_be_read_by_whom_umask_lets(tmp_path):
    earlier = os.umask(0o027)
    try:
        with closing(Film(str(tmp_path / "x.mp4"), 10)) as film:
            film.add(shade(1))
    finally:
        os.umask(earlier)
    assert (tmp_path / "x.mp4").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name, value", [("__version__", "14.4.0"), ("codecs_available", {"aac"})])
def test_pyav_that_is_too_old_or_lacks_h264_counts_as_missing(tmp_path, monkeypatch, name, value):
    monkeypatch.setattr(pytest.importorskip("av"), name, value)
    monkeypatch.delitem(sys.modules, "media.h264", raising=False)
    source = SimpleNamespace(even_rate=lambda: 10, sound=None, ends=None)
    with closing(open_film(str(tmp_path / "x.mp4"), source)) as film:
        film.add(shade(1))
    assert film.advice == " (for browsers and sound: pip install av)"


@pytest.mark.parametrize(
    "name, advice", [("x.mp4", " (for browsers and sound: pip install av)"), ("x.avi", "")]
)
def test_where_pyav_is_missing_an_mp4_comes_with_advice(tmp_path, monkeypatch, name, advice):
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.delitem(sys.modules, "media.h264", raising=False)
    source = SimpleNamespace(even_rate=lambda: 12.5, sound="in.mp4", ends=None)
    with closing(open_film(str(tmp_path / name), source)) as film:
        film.add(shade(1))
    assert film.advice == advice
    capture = cv2.VideoCapture(str(tmp_path / name))
    assert capture.get(cv2.CAP_PROP_FPS) == 12.5
    assert int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little") in (b"FMP4", b"MJPG")


# Written by OpenCV


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


@pytest.mark.parametrize("ending", CODECS)
def test_nothing_is_printed_of_a_video_that_is_written(ending, tmp_path, capfd):
    before = copies_of_stderr()
    with closing(Film(str(tmp_path / f"x{ending}"), 10)) as film:
        film.add(shade(1))
    os.write(2, b"still there")
    assert capfd.readouterr() == ("", "still there")
    assert copies_of_stderr() == before


def copies_of_stderr():
    """How many of this process's open files are the one that stderr is."""
    copies = 0
    for number in range(1000):
        with suppress(OSError):
            copies += os.path.samestat(os.fstat(number), os.fstat(2))
    return copies


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


def test_frame_of_another_size_keeps_its_shape_between_black_bars(tmp_path):
    with closing(Film(str(tmp_path / "x.avi"), 10)) as film:
        film.add(shade(50))
        film.add(shade(100, 256, 96))
        film.add(shade(150, 10, 10))
    first, wide, square = images_of(tmp_path / "x.avi")
    assert first.shape == wide.shape == square.shape == (48, 64, 3)
    for grey, inside in (
        (wide[14:34], 100),
        (wide[:10], 0),
        (wide[38:], 0),
        (square[:, 10:54], 150),
        (square[:, :6], 0),
        (square[:, 58:], 0),
    ):
        assert grey.mean() == pytest.approx(inside, abs=4)
    assert first.mean() == pytest.approx(50, abs=4)


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


def test_video_may_be_closed_twice_and_is_saved_in_a_new_folder(tmp_path):
    film = Film(str(tmp_path / "new" / "folder" / "x.mp4"), 10)
    film.add(shade(0))
    assert film.close().endswith("x.mp4, 1 frame")
    film.close()
    assert files_below(tmp_path) == ["new/folder/x.mp4"]


def check_it_ends_playable(path, says):
    """Fill a video until its system takes no more: all that was added before can be played."""
    noise = np.random.default_rng(0)
    with pytest.raises(OutputError, match=says), closing(Film(str(path), 10)) as film:
        for _ in range(2000):
            film.add(noise.integers(0, 256, (240, 320, 3), np.uint8))
    assert film.length > 3
    assert len(images_of(path)) == film.length
    assert files_below(path.parent) == [path.name]


@pytest.mark.parametrize("ending", [".mp4", ".avi", ".mkv"])
def test_video_ends_playable_where_its_file_may_not_grow(ending, tmp_path):
    with largest_file(4 << 20):
        check_it_ends_playable(tmp_path / f"x{ending}", "limit of 4194304 bytes")


@pytest.mark.parametrize("ending", [".mp4", ".mkv"])
def test_video_ends_playable_where_the_disk_is_full(ending, tmp_path):
    with small_disk(tmp_path / "disk", "4m") as disk:
        check_it_ends_playable(disk / f"x{ending}", "the disk is full")
