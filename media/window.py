"""A window on the screen, and whether there can be one."""

import os
import sys
import time

import cv2

from media.drawing import draw_status
from media.outputs import OutputError, save_picture

TITLE = "NanoDet"
COMMON_KEYS = "q or Esc quit, s saves a snapshot"
ESCAPE = 27
SMALLEST = (640, 480)  # a picture that is smaller in both is enlarged to fit these
LARGEST = (1280, 720)  # width and height of the window at first
READING = 5  # seconds for which the keys stand in the picture
LATE = 0.1  # seconds of delay that a video makes up for; after a longer one it just goes on


def why_no_window():
    """Why no window can be opened here; empty where one can.

    Without a display, OpenCV's Qt aborts the whole process, and nothing can catch that: a child
    process tries first. A program frozen by PyInstaller or the like has no Python for that, and
    would start itself again: there, a display that is named is taken to work.
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
    if getattr(sys, "frozen", False):
        return ""
    import subprocess  # not at the top: one picture must stay fast

    try_it = "import cv2; cv2.namedWindow('try'); cv2.waitKey(1)"
    child = subprocess.run([sys.executable, "-c", try_it], capture_output=True)  # noqa: S603
    return "" if child.returncode == 0 else "the display can't be opened"


class FrameRate:
    """Frames a second, smoothed so that a person can read it."""

    def __init__(self):
        self._interval = self._last = None

    def tick(self, paused=0.0):
        """Count a frame; returns the rate, 0 at the first one. `paused` is the pauses so far."""
        now, before = time.perf_counter() - paused, self._last
        self._last = now
        if before is None:
            return 0.0
        smoothed = self._interval or now - before
        self._interval = 0.9 * smoothed + 0.1 * (now - before)
        return 1 / self._interval


class Pace:
    """How long until each frame of a video is due."""

    def __init__(self):
        self.start = None  # when the video began, by time.perf_counter; a pause moves it

    def left(self, seconds):
        """Seconds until this time of the video is due; 0 or less if it is."""
        began = time.perf_counter() - seconds
        if self.start is None:
            self.start = began
        self.start = max(self.start, began - LATE)
        return self.start - began


class Window:
    """A sink that shows images and answers to keys.

    `check` is called while nothing new is shown and may raise to end that. `paced`: show no frame
    before its time. `stepped`: a picture stays until a key is pressed.
    """

    def __init__(self, check=lambda: None, paced=False, stepped=False):
        self._check, self._stepped = check, stepped
        does = "any other key shows the next picture" if stepped else "space pauses"
        self.keys = f"{COMMON_KEYS}, {does}, h shows the keys"
        self._rate, self._pace = FrameRate(), Pace() if paced else None
        self._image = None  # as saved by a snapshot
        self._size = None  # in which it is shown
        self._status = ""  # what is written on it
        self._keys_until = None  # when the keys go from it; None: they are not there
        self.paused = 0.0  # seconds in which it waited for a key
        cv2.namedWindow(TITLE, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)

    def write(self, frame, result):
        """Show the next image and do what the keys ask for; False when the user wants to end."""
        if result is None:
            return True
        if self._pace and not self._wait(frame.time):
            return False
        if self._image is None:
            self._keys_until = time.perf_counter() + READING
        self._image, self._status = result.drawn, ""
        if frame.moving:
            rate = self._rate.tick(self.paused)
            fps = f"{rate:.1f} FPS, " if rate else ""
            self._status = f"{fps}network {result.milliseconds:.1f} ms"
        self._show()
        if self._stepped and not frame.moving:
            return self._any_key() != "q"
        return self._goes_on(1)

    def _show(self):
        """Put the image on the screen, with what is to be read on it now."""
        height, width = self._image.shape[:2]
        enlarged = max(1, min(SMALLEST[0] / width, SMALLEST[1] / height))
        shown = self._image
        if enlarged > 1:  # before it is written on, so that the letters are sharp
            shown = cv2.resize(shown, None, fx=enlarged, fy=enlarged, interpolation=cv2.INTER_CUBIC)
        height, width = shown.shape[:2]
        scale = min(1, LARGEST[0] / width, LARGEST[1] / height)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        if size != self._size:  # not each time: the user may have made it larger
            cv2.resizeWindow(TITLE, *size)
            self._size = size
        lines = [self._status, self.keys if self._keys_until else ""]
        cv2.imshow(TITLE, draw_status(shown, *filter(None, lines)))

    def _wait(self, seconds):
        """Wait until this time of a video is due; False if it is to end."""
        while (left := self._pace.left(seconds)) > 0:
            paused = self.paused
            if not self._goes_on(max(1, min(50, int(left * 1000)))):
                return False
            self._pace.start += self.paused - paused
            self._check()
        return True

    def _goes_on(self, wait):
        """Do what a key pressed within `wait` milliseconds asks for; False if it is to end."""
        key = self._key(wait)
        if key == " ":
            status, self._status = self._status, "paused"
            self._show()
            key = self._any_key()
            self._status = status
            self._show()
        return key != "q"

    def _any_key(self):
        """Wait for a key other than those that change nothing, and return it."""
        began = time.perf_counter()
        while (key := self._key(50)) in ("", "s", "h"):
            self._check()
        self.paused += time.perf_counter() - began
        return key

    def hold(self):
        """Go on showing the last image until the user wants to end."""
        while self._key(50) != "q":
            self._check()

    def close(self):
        """Take the window off the screen."""
        cv2.destroyAllWindows()

    def _key(self, wait):
        """The key pressed within `wait` milliseconds: "" for none, "q" if the window is closed.

        Saves a snapshot or shows the keys where that is what it asks for.
        """
        code = cv2.waitKey(wait)
        if code == ESCAPE or not _is_open():
            return "q"
        key = chr(code) if code != -1 else ""
        if key == "h":
            self._keys_until = time.perf_counter() + READING
            self._show()
        elif self._keys_until and time.perf_counter() >= self._keys_until:
            self._keys_until = None
            self._show()
        if key == "s":
            path = time.strftime("snapshot_%Y%m%d_%H%M%S.jpg")
            try:
                save_picture(path, self._image)
                said = f"saved {path}"
            except OutputError as error:  # the run goes on
                said = error
            print(said, file=sys.stderr, flush=True)
        return key


def _is_open():
    # On macOS such a window has no button to close it, and one that is minimised is not visible.
    if cv2.currentUIFramework() == "COCOA":
        return True
    try:
        return cv2.getWindowProperty(TITLE, cv2.WND_PROP_VISIBLE) >= 1
    except cv2.error:  # OpenCV 5, when the last window is closed
        return False
