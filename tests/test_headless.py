"""Where there is no display, no window system, or no OpenCV that loads."""

import sys

import cv2
import pytest
from demo_process import CAT, EXAMPLES, files_below, refusal, run_demo

from media import window

HEADLESS = not cv2.currentUIFramework()
linux_with_windows = pytest.mark.skipif(
    HEADLESS or sys.platform != "linux", reason="needs an OpenCV with windows on Linux"
)


def result_and_warning(process, folder):
    """The one warning of a run with -v that did all but show the window."""
    assert process.returncode == 0, process.stderr
    assert "saved result.jpg" in process.stdout
    assert cv2.imread(str(folder / "result.jpg")).shape == (300, 451, 3)
    assert process.stderr.count("\n") == 1, process.stderr
    assert process.stderr.startswith("demo.py: no window: ")
    return process.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="there is always a display")
def test_picture_is_saved_where_there_is_no_display(tmp_path):
    warning = result_and_warning(run_demo("-i", CAT, "-v", cwd=tmp_path), tmp_path)
    assert ("headless build" if HEADLESS else "there is no display") in warning


@linux_with_windows
def test_picture_is_saved_where_the_display_can_not_be_opened(tmp_path):
    process = run_demo("-i", CAT, "-v", cwd=tmp_path, display=":98765")
    assert "the display can't be opened" in result_and_warning(process, tmp_path)


def test_picture_is_saved_where_opencv_is_a_headless_build(tmp_path, monkeypatch):
    def no_window(*_):
        raise cv2.error("The function is not implemented. Rebuild with GTK+")

    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "")
    for name in ("namedWindow", "imshow", "waitKey", "destroyAllWindows"):
        monkeypatch.setattr(cv2, name, no_window)
    warning = result_and_warning(run_demo("-i", CAT, "-v", cwd=tmp_path), tmp_path)
    assert "headless build" in warning
    assert "Install opencv-python" in warning


def test_folder_is_done_without_a_display(tmp_path):
    process = run_demo("-i", EXAMPLES, "-v", cwd=tmp_path)
    assert process.returncode == 0
    assert process.stderr.startswith("demo.py: no window: ")
    assert len(files_below(tmp_path / "results")) == len(list(EXAMPLES.glob("*.jpg")))


@pytest.mark.skipif(sys.platform != "linux", reason="there is always a display")
def test_camera_without_a_display_or_a_file_to_write_is_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(cv2, "VideoCapture", None)
    streams = ("rtsp://127.0.0.1:1/none", "http://127.0.0.1:9/")
    for args in ((), ("-i", "0"), ("--no-save",), *(("-i", name, "-v") for name in streams)):
        message = refusal(run_demo(*args, cwd=tmp_path))
        assert message.startswith("no window: ")
        assert "--save" in message
        assert "--json" in message
    assert files_below(tmp_path) == []


def test_windows_and_macos_are_not_asked_for_a_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cv2, "currentUIFramework", lambda: "COCOA")
    for platform in ("darwin", "win32"):
        monkeypatch.setattr(sys, "platform", platform)
        assert window.why_no_window() == ""


def test_help_and_errors_do_not_ask_for_a_display(tmp_path):
    assert run_demo("--help", cwd=tmp_path).stderr == ""
    assert "no window" not in run_demo("-i", "none.jpg", cwd=tmp_path).stderr


def test_unknown_kind_of_address_is_named_as_that(tmp_path):
    said = refusal(run_demo("-i", "file:///a.jpg", cwd=tmp_path))
    assert said.startswith("file:///a.jpg: unknown kind of address.")
