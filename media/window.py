"""A window on the screen, and whether there can be one."""

import os
import sys
import time

import cv2

from media.outputs import save_picture

TITLE = "NanoDet"
KEYS = "Keys in the window: q or Esc quit, s saves a snapshot, space pauses."
ESCAPE = 27
LARGEST = (1280, 720)  # width and height of the window at first


def why_no_window():
    """Why no window can be opened here; empty where one can.

    Without a display, OpenCV's Qt aborts the whole process, and nothing can
    catch that: a child process tries first.

    Returns
    -------
    str
    """
    try:
        if not cv2.currentUIFramework():
            raise cv2.error
    except cv2.error:
        return "this OpenCV is a headless build. Install opencv-python for a window"
    if sys.platform != "linux":
        return ""
    if not any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM")):
        return "there is no display"
    import subprocess  # not at the top: one picture shall be quick

    try_it = "import cv2; cv2.namedWindow('try'); cv2.waitKey(1)"
    child = subprocess.run([sys.executable, "-c", try_it], capture_output=True)  # noqa: S603
    return "" if child.returncode == 0 else "the display can't be opened"


class FrameRate:
    """Frames a second, smoothed so that a person can read it."""

    def __init__(self):
        self._rate, self._last = 0.0, None

    def tick(self):
        """Count a frame; gives the rate, 0 at the first one."""
        now = time.perf_counter()
        if self._last is not None:
            current = 1 / (now - self._last)
            self._rate = 0.9 * self._rate + 0.1 * current if self._rate else current
        self._last = now
        return self._rate


class Window:
    """A window that shows pictures and answers to keys.

    Parameters
    ----------
    check : callable
        Called while the user holds it; may raise to end that.

    Attributes
    ----------
    paused : float
        Seconds that the user has held it.
    """

    def __init__(self, check=lambda: None):
        self._check = check
        self.paused = 0.0
        self._sized = False

    def __enter__(self):
        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        return self

    def __exit__(self, *_):
        cv2.destroyAllWindows()

    def step(self, picture, shown=None):
        """Show the next picture of a series and do what the keys ask for.

        Parameters
        ----------
        picture : ndarray of shape (H, W, 3), uint8
            BGR; what a snapshot holds.
        shown : ndarray of shape (H, W, 3), uint8, optional
            What the window shows, where that is not the same.

        Returns
        -------
        bool
            False when the user wants to end.
        """
        key = self._show(picture, shown, wait=1)
        if key == " ":
            began = time.perf_counter()
            while (key := self._key(50)) in ("", "s"):
                self._check()
                if key == "s":
                    save_snapshot(picture)
            self.paused += time.perf_counter() - began
        return key != "q"

    def hold(self, picture):
        """Show a picture until the user wants to end."""
        key = self._show(picture, None, wait=50)
        while key != "q":
            key = self._key(50)
            if key == "s":
                save_snapshot(picture)

    def _show(self, picture, shown, wait):
        """Show a picture, take a snapshot if asked, and give the key that was pressed."""
        picture_shown = picture if shown is None else shown
        if not self._sized:
            height, width = picture.shape[:2]
            scale = min(1, LARGEST[0] / width, LARGEST[1] / height)
            cv2.resizeWindow(TITLE, max(1, round(width * scale)), max(1, round(height * scale)))
            self._sized = True
        cv2.imshow(TITLE, picture_shown)
        key = self._key(wait)
        if key == "s":
            save_snapshot(picture)
        return key

    def _key(self, wait):
        """The key pressed within `wait` milliseconds, "" for none, "q" if the window is closed."""
        code = cv2.waitKey(wait)
        if code == ESCAPE or not _is_open():
            return "q"
        return chr(code & 0xFF) if code != -1 else ""


def _is_open():
    try:
        return cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # OpenCV 5, when the last window is closed
        return False


def save_snapshot(picture):
    """Save a picture under a name that tells the time, and say so."""
    path = time.strftime("snapshot_%Y%m%d_%H%M%S.jpg")
    save_picture(path, picture)
    print(f"saved {path}", file=sys.stderr, flush=True)
