"""The window, on a real X server."""

import contextlib
from itertools import accumulate
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

from media.window import FrameRate

SIDES = (320, 240)  # large enough to be read from a screenshot


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


def test_frames_a_second_are_frames_over_time(monkeypatch):
    times = accumulate((0.001, 0.199) * 50)
    clock = SimpleNamespace(perf_counter=times.__next__)
    monkeypatch.setattr("media.window.time", clock)
    rate = FrameRate()
    assert [rate.tick() for _ in range(100)][-1] == pytest.approx(10, rel=0.1)


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


def test_other_keys_do_not_end_the_window(display, start):
    demo, window = start("-i", STREET, "-v", "--no-save")
    demo.wait_line(demo.out, "Keys")
    press(display, window, "x")
    press(display, window, "space")
    save_snapshot(demo, display, window)  # answered after the others
    assert demo.running()


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


@pytest.mark.parametrize("how", ["q", "cross"])
def test_key_or_cross_ends_a_video_early_and_keeps_what_was_done(how, tmp_path, display, start):
    numbered_video(tmp_path / "long.mp4", 600, size=SIDES)
    demo, window = start("-i", "long.mp4", "-v", "--json", "-", "--confidence", "1")
    demo.wait_lines(3)
    end(how, demo, display, window)
    made = film(tmp_path / "result.mp4")
    assert 1 < made["frames"] < 600
    assert f"saved result.mp4, {made['frames']} frames" in demo.stderr


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


def test_cross_ends_a_live_stream_and_its_recording(tmp_path, display, start):
    with MjpegServer(lambda stream: stream.numbered(size=SIDES)) as server:
        demo, window = start("-i", server.address, *FAST, "-s", "--json", "-")
        demo.wait_lines(2)
        end("cross", demo, display, window)
    assert film(tmp_path / "result.mp4")["frames"] >= 1


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


def rate_of(lines):
    """Frames a second, as a run says them."""
    return float(next(line for line in lines if "a second" in line).split()[-3])


def test_video_plays_at_its_pace_and_q_is_answered_between_two_frames(tmp_path, display, start):
    # Half a second a frame: the network is far quicker.
    numbered_video(tmp_path / "slow.mp4", 20, size=SIDES, rate=2)
    demo, window = start("-i", "slow.mp4", "-v", "--json", "-", *FAST)
    demo.wait_lines(6)
    end("q", demo, display, window)
    seen = len(demo.records())
    assert 6 <= seen < 20
    made = film(tmp_path / "result.mp4")
    assert f"the window was closed after {made['frames']} of 20 frames of slow.mp4" in demo.stderr
    assert rate_of(demo.err) < 2 * seen / (seen - 2)  # the last one was told, but not yet due


def test_video_in_a_window_is_as_fast_as_the_video_and_no_faster(tmp_path, start):
    numbered_video(tmp_path / "clip.mp4", 30, size=SIDES, rate=15)
    demo, _ = start("-i", "clip.mp4", "-v", "--no-save", *FAST)
    assert demo.finish() == 0
    assert "the window was closed" not in demo.stdout
    assert rate_of(demo.out) < 16  # 29 intervals of 1/15 s
