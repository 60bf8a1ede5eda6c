"""The window, on a real X server."""

import contextlib
import re
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from demo_process import FAST, STREET, Demo, refusal, run_demo
from live_helpers import (
    MjpegServer,
    close_window,
    film,
    find_window,
    map_again,
    number_of,
    numbered_frame,
    numbered_video,
    press,
    screen,
    screenshot,
    wait_until,
)

from media.frames import Frame
from media.window import Window

SIDES = (640, 480)  # shown pixel for pixel


def has_windows():
    try:
        return bool(cv2.currentUIFramework())
    except cv2.error:
        return False


@pytest.fixture
def display():
    """An X server of the test's own."""
    if not has_windows():
        pytest.skip("this OpenCV is a headless build")
    with screen() as name:
        yield name


def seen(display, window, picture):
    """The part of the screen that looks most like a picture, and how much: 1 is the same."""
    shot = screenshot(display)
    if not shot.any():
        map_again(display, window)
    match = cv2.matchTemplate(shot, picture, cv2.TM_CCOEFF_NORMED)
    _, likeness, _, (left, top) = cv2.minMaxLoc(match)
    height, width = picture.shape[:2]
    return shot[top : top + height, left : left + width], likeness


def wait_seen(display, window, picture):
    """Wait until a picture can be seen; return what the screen shows there."""

    def look():
        part, likeness = seen(display, window, picture)
        return [part] if likeness > 0.97 else None

    return wait_until(look, "the picture is on the screen")[0]


def number_shown(display, window):
    """The number of the frame on the screen, None where there is none."""
    shot = screenshot(display)
    if not shot.any():
        map_again(display, window)
        return None
    return number_of(shot[: SIDES[1], : SIDES[0]])


@pytest.fixture
def start(tmp_path, display):
    """Start the demo; returns the run and its window."""
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            demo = stack.enter_context(Demo(*arguments, cwd=tmp_path, display=display))
            return demo, find_window(display)

        yield start


def save_snapshot(demo, display, window):
    """Press s until the demo answers: once in a while, a key does not arrive. Returns the name."""

    def press_s():
        press(display, window, "s")

    press_s()
    return demo.wait_line(demo.err, "saved snapshot", again=press_s).split()[-1]


def end(how, demo, display, window):
    """End a run by a key or by the cross of its window."""
    close_window(display, window) if how == "cross" else press(display, window, how)
    assert demo.finish() == 0


def test_window_shows_the_drawn_picture(tmp_path, display, start):
    demo, window = start("-i", STREET, "-v", "-o", "result.png")
    demo.wait_line(demo.out, "q or Esc quit, s saves a snapshot, space pauses")
    drawn, given = cv2.imread(str(tmp_path / "result.png")), cv2.imread(str(STREET))
    part = wait_seen(display, window, drawn)
    boxes = cv2.absdiff(drawn, given).max(axis=2) > 60
    assert boxes.any()
    to_drawn, to_given = (
        np.abs(part[boxes].astype(int) - image[boxes]).mean() for image in (drawn, given)
    )
    assert to_drawn < to_given / 3
    snapshot = cv2.imread(str(tmp_path / save_snapshot(demo, display, window)))
    assert cv2.absdiff(snapshot, drawn).mean() < 3


@pytest.mark.parametrize("how", ["q", "Escape", "cross"])
def test_key_or_cross_ends_the_window_of_a_picture(how, display, start):
    demo, window = start("-i", STREET, "-v", "--no-save")
    demo.wait_line(demo.out, "Keys")
    end(how, demo, display, window)
    assert demo.err == []


def test_space_pauses_a_video_and_lets_it_go_on(tmp_path, display, start):
    numbered_video(tmp_path / "long.mp4", 600, size=SIDES)
    arguments = ("-i", "long.mp4", "-v", "--no-save", "--json", "-", "--confidence", "1")
    demo, window = start(*arguments)
    demo.wait_lines(3)
    press(display, window, "space")
    demo.wait_quiet(0.5)
    wait_until(lambda: number_shown(display, window) is not None, "the window is painted")
    lines, number = len(demo.out), number_shown(display, window)
    assert abs(lines - 1 - number) <= 1  # the frame shown is that of the last line
    snapshot = save_snapshot(demo, display, window)  # answered while paused
    assert number_shown(display, window) == number
    assert len(demo.out) == lines
    press(display, window, "space")
    wait_until(lambda: number_shown(display, window) > number + 1, "the video goes on")
    end("q", demo, display, window)
    assert number_of(cv2.imread(str(tmp_path / snapshot))) == number


def test_folder_waits_at_each_picture_for_a_key(tmp_path, display, start):
    (tmp_path / "in").mkdir()
    for number in (100, 200, 300, 400):
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), numbered_frame(number, *SIDES))
    demo, window = start("-i", "in", "-v", "--no-save", "--json", "-", *FAST)
    wait_until(lambda: number_shown(display, window) == 100, "the first is shown")
    assert len(demo.out) == 1

    def next_is_shown():
        press(display, window, "n")  # once in a while, a key does not arrive
        return number_shown(display, window) in (200, 300, 400)

    wait_until(next_is_shown, "the next one is shown")
    end("q", demo, display, window)


def test_cross_ends_a_video_early_and_keeps_what_was_done(tmp_path, display, start):
    numbered_video(tmp_path / "long.mp4", 600, size=SIDES)
    demo, window = start("-i", "long.mp4", "-v", "--json", "-", "--confidence", "1")
    demo.wait_lines(3)
    end("cross", demo, display, window)
    made = film(tmp_path / "result.mp4")
    assert 1 < made["frames"] < 600
    assert f"the window was closed after {made['frames']} of 600 frames" in demo.stderr
    assert f"saved result.mp4, {made['frames']} frame" in demo.stderr


def test_live_stream_is_shown_with_its_frames_a_second(tmp_path, display, start):
    def grey(stream):
        while not stream.server.stopping.wait(0.03):
            stream.send(numbered_frame(40, *SIDES))

    with MjpegServer(grey) as server:
        demo, window = start("-i", server.address, *FAST)
        demo.wait_line(demo.out, "q or Esc quit")
        wait_until(lambda: number_shown(display, window) == 40, "the stream is shown")
        shot = screenshot(display)[: SIDES[1], : SIDES[0]].astype(int)
        written = np.abs(shot - cv2.cvtColor(numbered_frame(40, *SIDES), cv2.COLOR_GRAY2BGR)) > 60
        rows = np.flatnonzero(written.any(axis=2).any(axis=1))
        assert written.any(axis=2).sum() > 100  # the text
        assert rows.max() < SIDES[1] / 3 or rows.min() > SIDES[1] * 2 / 3
        name = save_snapshot(demo, display, window)
        end("q", demo, display, window)
    snapshot = cv2.imread(str(tmp_path / name)).astype(int)
    assert np.ptp(snapshot[:, 10:150]) < 30  # without the text
    assert "dropped to keep up" in demo.stdout


def test_window_of_a_large_picture_fits_a_screen(tmp_path, display, start):
    large = np.tile(numbered_frame(300, 400, 300)[:, :, None], (10, 10, 3))
    cv2.imwrite(str(tmp_path / "large.png"), large)
    demo, window = start("-i", "large.png", "-v", *FAST, "--no-save")
    demo.wait_line(demo.out, "Keys")
    wait_seen(display, window, cv2.resize(large, (960, 720), interpolation=cv2.INTER_AREA))


def test_live_with_a_stale_display_ends_with_one_line_before_connecting(tmp_path):
    with MjpegServer(lambda stream: stream.numbered()) as server:
        said = refusal(run_demo("-i", server.address, cwd=tmp_path, display=":4711"))
        assert server.connected == 0
    assert "no window" in said and "--save" in said


# What a key does and when a frame is shown, without a screen: waiting takes no time here.


class Desk:
    """In place of OpenCV's window and the clock.

    Attributes
    ----------
    seconds : float
        What the clock says.
    keys : list
        Seconds and keys, in order: when each is pressed.
    shown : list
        Seconds and images.
    """

    def __init__(self):
        self.seconds, self.keys, self.shown, self.size, self.is_open = 100.0, [], [], None, True

    def wait_key(self, milliseconds):
        assert milliseconds >= 1  # 0 would wait for ever
        until = self.seconds + milliseconds / 1000
        if self.keys and self.keys[0][0] <= until:
            self.seconds, key = max(self.seconds, self.keys[0][0]), self.keys.pop(0)[1]
            return ord(key)
        self.seconds = until
        return -1

    def look(self, *_):
        return 1.0 if self.is_open else 0.0

    def write(self, window, seconds, value=0, milliseconds=5.0, moving=True, size=(640, 480)):
        """Show a frame of this time in a window; returns what that says."""
        image = np.full((*size[::-1], 3), value, np.uint8)
        frame = Frame("clip", 0, seconds, image, moving=moving)
        return window.write(frame, SimpleNamespace(drawn=image, milliseconds=milliseconds))


@pytest.fixture
def desk(monkeypatch, tmp_path):
    desk = Desk()
    for name, function in (
        ("namedWindow", lambda *_: None),
        ("destroyAllWindows", lambda: setattr(desk, "is_open", False)),
        ("waitKey", desk.wait_key),
        ("getWindowProperty", desk.look),
        ("imshow", lambda _, image: desk.shown.append((desk.seconds, image))),
        ("resizeWindow", lambda _, width, height: setattr(desk, "size", (width, height))),
    ):
        monkeypatch.setattr(cv2, name, function)
    clock = SimpleNamespace(perf_counter=lambda: desk.seconds, strftime=time.strftime)
    monkeypatch.setattr("media.window.time", clock)
    monkeypatch.chdir(tmp_path)
    return desk


@pytest.fixture
def said(desk, monkeypatch):
    """Seconds and lines: what was written on the images shown, whenever that changed."""
    said = []

    def draw_status(image, *lines):
        if not said or said[-1][1] != lines:
            said.append((round(desk.seconds - 100, 1), lines))
        return image

    monkeypatch.setattr("media.window.draw_status", draw_status)
    return said


def times_shown(desk):
    """When each image was first shown, in seconds since the first; told apart by their values."""
    first = {}
    for seconds, image in desk.shown:
        first.setdefault(int(image[-1, -1, 0]), seconds - desk.shown[0][0])
    return list(first.values())


def test_frames_of_a_video_are_shown_at_their_times(desk):
    window, times = Window(paced=True), [0, 0.04, 0.5, 0.54, 3]
    assert all(desk.write(window, seconds, i) for i, seconds in enumerate(times))
    assert times_shown(desk) == pytest.approx(times, abs=0.003)


def test_video_in_a_window_is_as_fast_as_the_video_and_no_faster(desk, tmp_path, monkeypatch):
    monkeypatch.setattr("demo.why_no_window", lambda: "")
    numbered_video(tmp_path / "clip.mp4", 15, size=SIDES, rate=15)
    demo = run_demo("-i", "clip.mp4", "-v", "--no-save", *FAST, cwd=tmp_path)
    assert demo.returncode == 0 and "the window was closed" not in demo.stdout
    first = {}
    for seconds, image in desk.shown:
        first.setdefault(number_of(image), seconds - desk.shown[0][0])
    assert first == pytest.approx({i: i / 15 for i in range(15)}, abs=0.003)


def test_live_frames_are_shown_at_once(desk):
    window = Window()
    assert all(desk.write(window, seconds, seconds) for seconds in (0, 5, 9))
    assert times_shown(desk) == pytest.approx([0, 0, 0], abs=0.01)


def test_video_that_came_late_catches_up_with_a_tenth_of_a_second_and_goes_on_from_there(desk):
    window = Window(paced=True)
    desk.write(window, 0)
    desk.seconds += 2  # the network took so long
    for i, seconds in enumerate((0.5, 0.55, 0.6, 0.7, 0.8)):
        desk.write(window, seconds, 1 + i)
    assert times_shown(desk) == pytest.approx([0, 2, 2, 2, 2.1, 2.2], abs=0.01)


def test_q_ends_while_a_frame_is_not_yet_due(desk):
    window = Window(paced=True)
    desk.write(window, 0)
    desk.keys = [(desk.seconds + 3, "q")]
    assert desk.write(window, 60) is False
    assert (len(desk.shown), desk.seconds) == (1, pytest.approx(103, abs=0.01))


@pytest.mark.parametrize("key", ["q", "\x1b"])
def test_q_or_escape_after_a_frame_ends(desk, key):
    window = Window()
    assert desk.write(window, 0) is True
    desk.keys = [(0, key)]
    assert desk.write(window, 1) is False


def test_window_that_is_closed_ends(desk):
    window = Window()
    desk.is_open = False
    assert desk.write(window, 0) is False


def test_window_that_opencv_no_longer_knows_ends(desk, monkeypatch):
    def unknown(*_):
        raise cv2.error

    window = Window()
    monkeypatch.setattr(cv2, "getWindowProperty", unknown)
    assert desk.write(window, 0) is False


@pytest.mark.parametrize("key", [" ", "x"])
def test_pause_lasts_until_another_key_and_moves_what_comes_later(desk, key):
    window = Window(paced=True)
    desk.write(window, 0)
    desk.keys = [(desk.seconds + 1, " "), (desk.seconds + 5, key)]
    assert desk.write(window, 2, 1)
    assert desk.write(window, 3, 2)
    assert window.paused == pytest.approx(4, abs=0.01)
    assert times_shown(desk) == pytest.approx([0, 6, 7], abs=0.01)


def test_q_ends_a_pause_and_the_run(desk):
    desk.keys = [(0, " "), (desk.seconds + 3, "q")]
    assert desk.write(Window(), 0) is False


def test_s_saves_the_frame_shown_without_what_is_written_on_it(desk, tmp_path, capsys):
    window = Window()
    desk.write(window, 0, value=90)
    desk.keys = [
        (0, " "),
        (desk.seconds + 1, "s"),
        (desk.seconds + 2, "s"),
        (desk.seconds + 3, " "),
    ]
    desk.write(window, 1, value=180)
    assert window.paused == pytest.approx(3, abs=0.01)  # a snapshot ends no pause
    (path,) = tmp_path.iterdir()  # of one second, the same name
    assert re.fullmatch(r"snapshot_\d{8}_\d{6}\.jpg", path.name)
    assert capsys.readouterr().err == 2 * f"saved {path.name}\n"
    assert np.abs(cv2.imread(str(path)).astype(int) - 180).max() < 3
    assert (desk.shown[1][1] != 180).any()


def test_snapshot_that_can_not_be_saved_is_said_and_ends_nothing(
    desk, monkeypatch, tmp_path, capsys
):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    desk.keys = [(0, "s")]
    assert desk.write(Window(), 0) is not False
    name, reason = capsys.readouterr().err.split(": ", 1)
    assert re.fullmatch(r"snapshot_\d{8}_\d{6}\.jpg", name)
    assert reason == "can't be written: Permission denied.\n"
    assert list(tmp_path.iterdir()) == []


def test_status_tells_the_rate_of_frames_and_the_network_s_time(desk, said):
    window = Window()
    for i in range(100):
        desk.seconds += (0.001, 0.195)[i % 2]  # and a key is waited for, for 0.002 s
        desk.write(window, i, milliseconds=12.34)
    assert said[0][1][0] == "network 12.3 ms"  # one frame has no rate
    text = said[-1][1][0]
    assert re.fullmatch(r"\d+\.\d FPS, network 12\.3 ms", text)
    assert float(text.split()[0]) == pytest.approx(10, rel=0.1)


def test_rate_of_frames_leaves_pauses_out(desk, said):
    window = Window()
    for i in range(100):
        desk.seconds += 0.098
        if i == 90:
            desk.keys = [(0, " "), (desk.seconds + 60, " ")]
        desk.write(window, i)
    assert float(said[-1][1][0].split()[0]) == pytest.approx(10, rel=0.1)


def test_pause_is_written_on_the_picture_while_it_lasts(desk, said):
    window = Window(paced=True)
    desk.write(window, 0)
    desk.keys = [(desk.seconds + 10, " "), (desk.seconds + 15, "s"), (desk.seconds + 20, " ")]
    desk.write(window, 30)
    pauses = [(when, "paused" in lines) for when, lines in said]
    assert [pause for pause in pauses if pause[0] >= 10][:2] == [(10, True), (20, False)]


def test_keys_are_written_at_first_for_some_seconds_and_again_by_h(desk, said):
    window = Window()
    desk.write(window, 0, moving=False)
    desk.keys = [(120, "h"), (123, "h"), (140, "q")]
    window.hold()
    assert said == [(0, (window.keys,)), (5, ()), (20, (window.keys,)), (28, ())]
    assert all(word in window.keys for word in ("q or Esc", "s saves", "space pauses", "h shows"))


def test_keys_leave_a_paused_picture_too(desk, said):
    desk.keys = [(0, " "), (120, "q")]
    desk.write(Window(), 0)
    assert (5, ("paused",)) in said


@pytest.mark.parametrize("key", [" ", "n"])
def test_picture_of_a_folder_stays_until_a_key(desk, key):
    window = Window(stepped=True)
    assert "any other key shows the next" in window.keys and "space" not in window.keys
    desk.keys = [(103, "s"), (104, "h"), (110, key), (130, "q")]
    assert desk.write(window, 0, 1, moving=False) is True
    assert desk.write(window, 0, 2, moving=False) is False
    assert times_shown(desk) == pytest.approx([0, 10], abs=0.01)
    assert desk.seconds == pytest.approx(130, abs=0.01)


def test_video_of_a_folder_plays_at_its_pace_after_a_picture(desk):
    window = Window(paced=True, stepped=True)
    desk.keys = [(160, "n")]
    desk.write(window, 0, 1, moving=False)
    for i, seconds in enumerate((0, 0.5, 1)):
        desk.write(window, seconds, 2 + i)
    assert times_shown(desk)[1:] == pytest.approx([60, 60.4, 60.9], abs=0.01)


def test_frame_that_can_not_be_read_is_passed_over(desk):
    assert Window(paced=True).write(Frame("clip", 0, 9.0, None, "damaged", True), None) is True
    assert (desk.shown, desk.seconds) == ([], 100)


@pytest.mark.parametrize(
    "size, shown",
    [
        ((64, 64), (480, 480)),
        ((160, 120), (640, 480)),
        ((100, 2), (640, 13)),
        ((640, 480), (640, 480)),
        ((641, 20), (641, 20)),
        ((1280, 720), (1280, 720)),
        ((4000, 3000), (960, 720)),
        ((5120, 720), (1280, 180)),
        ((9000, 3), (1280, 1)),
        ((3, 9000), (1, 720)),
    ],
)
def test_window_fits_a_screen_in_the_picture_s_shape(desk, size, shown):
    image, window = np.zeros((*size[::-1], 3), np.uint8), Window()
    result = SimpleNamespace(drawn=image, milliseconds=5)
    window.write(Frame("x.png", 0, 0.0, image), result)
    assert desk.size == shown
    desk.size = None  # the user may have made it larger
    window.write(Frame("x.png", 1, 0.0, image), result)
    assert desk.size is None
    desk.write(window, 0, size=(1000, 700))  # the next one of a folder
    assert desk.size == (1000, 700)


def test_small_picture_is_enlarged_before_it_is_written_on(desk, tmp_path):
    window = Window()
    desk.keys = [(0, "s")]
    desk.write(window, 0, 180, size=(64, 64))
    _, shown = desk.shown[0]
    assert shown.shape == (480, 480, 3)
    rows = np.flatnonzero((shown != 180).any(axis=(1, 2)))
    assert rows.max() < 480 / 8  # letters of the size that they have on a large picture
    (path,) = tmp_path.iterdir()
    assert cv2.imread(str(path)).shape == (64, 64, 3)


def test_held_picture_stays_until_q(desk):
    window = Window()
    desk.write(window, 0)
    desk.keys = [(105, "x"), (110, " "), (120, "s"), (125, "h"), (130, "q")]
    window.hold()
    assert desk.seconds == pytest.approx(130, abs=0.01)
    window.close()
    assert not desk.is_open


@pytest.mark.parametrize("doing", ["waiting", "paused", "stepping", "holding"])
def test_run_can_be_ended_while_nothing_new_is_shown(desk, doing):
    def check():
        if desk.seconds > 103:
            raise KeyboardInterrupt

    window = Window(check=check, paced=True, stepped=True)
    desk.write(window, 0)
    if doing == "paused":
        desk.keys = [(0, " ")]
    with pytest.raises(KeyboardInterrupt):
        if doing == "holding":
            window.hold()
        desk.write(window, 60, moving=doing != "stepping")
    assert desk.seconds == pytest.approx(103, abs=0.2)


@pytest.mark.parametrize(("framework", "goes_on"), [("COCOA", True), ("QT5", False)])
def test_minimised_window_of_macos_is_not_a_closed_one(monkeypatch, framework, goes_on):
    monkeypatch.setattr("cv2.currentUIFramework", lambda: framework, raising=False)
    monkeypatch.setattr("cv2.getWindowProperty", lambda *_: 0.0)
    for name in ("namedWindow", "resizeWindow", "imshow"):
        monkeypatch.setattr(f"cv2.{name}", lambda *_: None)
    monkeypatch.setattr("cv2.waitKey", lambda _: -1)
    frame = Frame("camera 0", 0, 0.0, np.zeros((48, 64, 3), np.uint8), moving=True)
    result = SimpleNamespace(drawn=frame.image, milliseconds=1.0)
    assert Window().write(frame, result) is goes_on
