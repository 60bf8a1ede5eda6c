"""tools/make_gif.py: the film it makes, and what it says where it can't."""

import os
from contextlib import closing

import cv2
import pytest
from demo_process import STREET
from tool_helpers import assert_refused, run_tool

from media.film import Film

Image = pytest.importorskip("PIL.Image", reason="pip install pillow")
import make_gif  # noqa: E402


@pytest.fixture
def clip(tmp_path):
    """A video of 5 frames, 10 a second."""
    path = str(tmp_path / "clip.avi")
    picture = cv2.resize(cv2.imread(str(STREET)), (320, 240))
    with closing(Film(path, 10)) as video:
        for _ in range(5):
            video.add(picture)
    return path


def test_film_has_the_frames_asked_for_at_the_pace_of_the_clip(clip, tmp_path, capsys):
    path = tmp_path / "new" / "film.gif"
    code, _, err = run_tool(make_gif, capsys, clip, "--first", 2, "--count", 2, "-o", path)
    assert (code, err) == (0, "")
    with Image.open(path) as film:
        assert (film.format, film.n_frames, film.size) == ("GIF", 2, (480, 360))
        assert film.info["duration"] == 100
    assert os.listdir(path.parent) == ["film.gif"]


@pytest.mark.parametrize(
    "args, words",
    [
        ([STREET], f"{STREET}: is not a video"),
        ([STREET.parent], f"{STREET.parent}: is not a video"),
        (["gone"], "gone: no such file"),
        (["clip.avi", "--first", "5"], "has no frame 5"),
        (["clip.avi", "--count", "0"], "--count: '0' is not a whole number from 1 up"),
        (["clip.avi", "--count", "1", "-o", "clip.avi/film.gif"], "clip.avi"),
    ],
)
def test_bad_input_is_named_in_one_line(clip, tmp_path, monkeypatch, capsys, args, words):
    monkeypatch.chdir(tmp_path)
    result = run_tool(make_gif, capsys, *args)
    assert_refused(make_gif, result, words, code=1 if "-o" in args else 2)
    assert os.listdir(tmp_path) == ["clip.avi"]
