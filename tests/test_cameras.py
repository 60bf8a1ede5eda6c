"""Cameras: the newest frame, bad reads, lost and found again. And bad parts of a stream."""

import itertools
import queue
import threading
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from demo_process import DEADLINE, run_demo
from live_helpers import MjpegServer, number_of, numbered_frame, wait_until

from media.frames import CameraMode, SourceError
from media.live import is_live
from media.sources import Reading, open_source

IMAGE = np.zeros((48, 64, 3), np.uint8)


@pytest.fixture
def cameras(monkeypatch):
    """Put made-up cameras in place of OpenCV's; pauses take no time.

    Gets a text for each opening: "+" reads well, "!" fails, "x" raises, at its end it is lost;
    None can't be opened. The last one serves all further openings. `gives`: values of properties,
    whatever is asked for. Returns what was opened, and asked of it, in order.
    """

    class Event(threading.Event):
        def wait(self, timeout=None):
            return self.is_set()

    monkeypatch.setattr(
        "media.live.threading", SimpleNamespace(**vars(threading) | {"Event": Event})
    )
    monkeypatch.setattr("sys.platform", "linux")  # how cameras are opened there, unless told
    opened = []

    def connect(*texts, gives=None):
        class Capture:
            def __init__(self, *arguments):
                self._text = texts[min(len(opened), len(texts) - 1)]
                self._reads = iter(self._text or "")
                opened.append(arguments)

            def isOpened(self):
                return self._text is not None

            def get(self, name):
                return (gives or {}).get(name, 30.0)

            def set(self, name, value):
                opened.append((name, value))
                return name in (gives or {})

            def grab(self):
                read = next(self._reads, "!")
                if read == "x":
                    raise cv2.error("no picture")
                return read == "+"

            def read(self):
                return (True, IMAGE) if self.grab() else (False, None)

            def release(self):
                pass

        monkeypatch.setattr("cv2.VideoCapture", Capture)
        return opened

    return connect


def watch(value, **options):
    """Go through a live source to its end: index of its last frame, what was told, its error."""
    told = []
    with open_source(value, Reading(notify=told.append, **options)) as live:
        frames = list(filter(None, live))
    return frames[-1].index, told, live.error


# The newest frame.


class Fed:
    """A camera whose next numbered frames come when it is fed."""

    def __init__(self):
        self._asked, self._frames, self._fed = threading.Semaphore(0), queue.SimpleQueue(), 0

    def feed(self, frames):
        """Let so many frames come; returns when all have been read, and put where a loop looks."""
        for _ in range(frames):
            assert self._asked.acquire(timeout=DEADLINE)
            self._frames.put(numbered_frame(self._fed))
            self._fed += 1
        assert self._asked.acquire(timeout=DEADLINE)
        self._asked.release()

    def end(self):
        """No more frames come."""
        self._frames.put(None)

    def isOpened(self):
        return True

    def get(self, name):
        return 30.0

    def read(self):
        self._asked.release()
        image = self._frames.get()
        if image is None:
            self.end()
        return image is not None, image

    def release(self):
        pass


@pytest.fixture
def fed(monkeypatch):
    """A camera to feed, and its source."""
    camera = Fed()
    monkeypatch.setattr("cv2.VideoCapture", lambda *_: camera)
    with open_source("0", Reading(reconnect=0)) as live:
        yield camera, live
        camera.end()


def test_newest_frame_is_given_and_the_dropped_ones_are_counted(fed):
    camera, live = fed
    frames, taken = iter(live), []
    for number in (10, 1, 5):
        camera.feed(number)
        taken.append(next(frames))
    assert [frame.index for frame in taken] == [9, 10, 15]
    assert [number_of(frame.image) for frame in taken] == [9, 10, 15]
    assert 0 < taken[0].time < taken[1].time < taken[2].time
    assert live.dropped == 9 + 0 + 4
    assert live.summary(3) == "3 frames shown or written, 13 dropped to keep up"


def test_frames_asked_for_in_time_are_all_given(fed):
    camera, live = fed
    frames, taken = iter(live), []
    for _ in range(5):
        camera.feed(1)
        taken.append(next(frames))
    assert [frame.index for frame in taken] == [0, 1, 2, 3, 4]
    assert taken[0].time == 0
    assert live.dropped == 0


def test_frames_have_times_of_a_clock_that_counts_single_frames(fed, monkeypatch):
    # As on Windows up to Python 3.12, where this one goes on every 15.6 ms.
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    camera, live = fed
    frames, taken = iter(live), []
    for _ in range(4):
        camera.feed(1)
        taken.append(next(frames))
    assert len({frame.time for frame in taken}) == len({frame.read_at for frame in taken}) == 4


def test_loop_gets_none_while_nothing_new_comes(fed):
    camera, live = fed
    frames = iter(live)
    assert next(frames) is None
    camera.feed(1)
    assert next(frames).index == 0
    assert next(frames) is None
    camera.feed(1)
    assert next(frames).index == 1


def test_last_frame_is_given_before_the_end(fed):
    camera, live = fed
    camera.feed(7)
    camera.end()
    (last,) = filter(None, live)
    assert last.index == 6 and last.moving
    assert live.error == live.fault(1, 0, ended=True) == "camera 0: gives no more frames"


def test_camera_says_what_it_is(fed):
    _, live = fed
    assert (live.kind, live.live, live.unit, live.name) == ("video", True, "frames", "camera 0")
    assert (live.length, live.root, live.sound, live.left_out) == (None, None, None, "")
    assert live.paths == ["camera 0"] and live.moving == {"camera 0"}


class Endless:
    def __iter__(self):
        return itertools.repeat("+")


def test_closed_camera_is_read_no_more_and_is_no_fault(cameras):
    cameras(Endless())
    before = set(threading.enumerate())
    with open_source("0", Reading(reconnect=0)) as live:
        next(filter(None, live))
        reader = set(threading.enumerate()) - before
    assert live.fault(1, 0, ended=False) == ""
    assert len(list(filter(None, live))) <= 1  # the last one that was read
    wait_until(lambda: not reader & set(threading.enumerate()), "the thread ends")


# What is asked of a camera.

MJPG = cv2.VideoWriter_fourcc(*"MJPG")
LARGE = {
    cv2.CAP_PROP_FRAME_WIDTH: 1280.0,
    cv2.CAP_PROP_FRAME_HEIGHT: 720.0,
    cv2.CAP_PROP_FPS: 30.0,
    cv2.CAP_PROP_FOURCC: float(MJPG),
}


def test_large_size_is_asked_for_in_mjpg_and_what_the_camera_gives_is_told(cameras):
    opened = cameras("+", gives=LARGE)
    _, told, _ = watch("0", reconnect=0, camera=CameraMode((1920, 1080), 60))
    assert opened[1:] == [
        (cv2.CAP_PROP_FOURCC, MJPG),
        (cv2.CAP_PROP_FRAME_WIDTH, 1920),
        (cv2.CAP_PROP_FRAME_HEIGHT, 1080),
        (cv2.CAP_PROP_FPS, 60),
    ]
    assert told == ["camera 0: gives 1280x720 at 30 frames a second as MJPG"]


def test_small_size_is_asked_for_in_the_camera_s_own_format(cameras):
    opened = cameras("+", gives=LARGE | {cv2.CAP_PROP_FOURCC: 0.0})
    _, told, _ = watch("/dev/video0", reconnect=0, camera=CameraMode((640, 480)))
    assert opened[1:] == [(cv2.CAP_PROP_FRAME_WIDTH, 640), (cv2.CAP_PROP_FRAME_HEIGHT, 480)]
    assert told == ["/dev/video0: gives 1280x720 at 30 frames a second"]


def test_directshow_is_asked_for_the_format_last_as_size_and_rate_reset_it(cameras, monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    opened = cameras("+", gives=LARGE)
    watch("0", reconnect=0, camera=CameraMode((1920, 1080), 60))
    assert opened == [
        (0, cv2.CAP_DSHOW),
        (cv2.CAP_PROP_FPS, 60),
        (cv2.CAP_PROP_FRAME_WIDTH, 1920),
        (cv2.CAP_PROP_FRAME_HEIGHT, 1080),
        (cv2.CAP_PROP_FOURCC, MJPG),
    ]


def test_camera_without_directshow_is_opened_by_media_foundation(cameras, monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    opened = cameras(None, "+", gives=LARGE)
    watch("1", reconnect=0, camera=CameraMode((1920, 1080)))
    assert opened[:3] == [
        (1, cv2.CAP_DSHOW),
        (1, cv2.CAP_MSMF),
        (cv2.CAP_PROP_FOURCC, MJPG),
    ]


def test_frames_are_skipped_by_reading_on_windows_as_grab_does_not_wait_there(monkeypatch):
    class DirectShow(Fed):
        def grab(self):
            return True

    monkeypatch.setattr("sys.platform", "win32")
    camera = DirectShow()
    monkeypatch.setattr("cv2.VideoCapture", lambda *_: camera)
    with open_source("0", Reading(reconnect=0, every=3)) as live:
        camera.feed(5)
        frame = next(iter(live))
        camera.end()
    assert (frame.index, number_of(frame.image)) == (3, 3)


@pytest.mark.parametrize(
    ("system", "setting"),
    [
        ("win32", "Settings > Privacy & security > Camera"),
        ("darwin", "System Settings > Privacy & Security > Camera"),
    ],
)
def test_camera_that_may_be_refused_names_the_setting_that_allows_it(
    cameras, monkeypatch, system, setting
):
    monkeypatch.setattr("sys.platform", system)
    cameras(None)
    with pytest.raises(SourceError) as caught:
        open_source("0")
    assert f"({setting}), or give another camera" in str(caught.value)
    cameras("")  # as Media Foundation opens one that is refused
    told = []
    with open_source("0", Reading(reconnect=1, notify=told.append)) as live:
        assert list(filter(None, live)) == []
    assert told == ["camera 0: gives no frame, trying again in 1 s", "camera 0: back"]
    assert live.error.startswith("camera 0: gives no frame. Plug it in, ")
    assert live.error.endswith(f"({setting}), or give another camera with -i.")


def test_camera_that_comes_back_is_asked_again(cameras):
    opened = cameras("+", "+", gives=LARGE)
    watch("0", reconnect=1, camera=CameraMode(None, 15))
    assert [asked[-1] for asked in opened if asked[0] == cv2.CAP_PROP_FPS] == [15, 15]


def test_frame_rate_of_a_camera_is_chosen_without_a_size(cameras):
    opened = cameras("+", gives={})
    _, told, _ = watch("0", reconnect=0, camera=CameraMode(None, 15))
    assert opened[1:] == [(cv2.CAP_PROP_FPS, 15)]
    assert told == ["camera 0: gives 30x30 at 30 frames a second"]


@pytest.mark.parametrize(
    ("size", "format_"), [((640, 480), []), ((641, 480), [(cv2.CAP_PROP_FOURCC, MJPG)])]
)
def test_sizes_above_vga_are_asked_for_in_mjpg(cameras, size, format_):
    opened = cameras("+", gives=LARGE)
    watch("0", reconnect=0, camera=CameraMode(size))
    assert opened[1:-2] == format_


@pytest.mark.parametrize(
    ("rate", "code", "said"),
    [
        (0.0, MJPG, "gives 1280x720 as MJPG"),
        (29.97, -1, "gives 1280x720 at 29.97 frames a second"),
        (30.0, cv2.VideoWriter_fourcc(*"Y16 "), "gives 1280x720 at 30 frames a second as Y16"),
        (1.0, MJPG - (1 << 32), "gives 1280x720 at 1 frames a second as MJPG"),
    ],
)
def test_what_a_camera_does_not_tell_is_left_out(cameras, rate, code, said):
    cameras("+", gives=LARGE | {cv2.CAP_PROP_FPS: rate, cv2.CAP_PROP_FOURCC: float(code)})
    _, told, _ = watch("0", reconnect=0, camera=CameraMode((1280, 720)))
    assert told == [f"camera 0: {said}"]


def test_camera_that_is_asked_for_nothing_tells_nothing(cameras):
    opened = cameras("+", gives=LARGE)
    assert watch("0", reconnect=0)[1] == []
    assert len(opened) == 1


def test_every_third_frame_of_a_camera_has_its_own_number(cameras):
    cameras("++++!+x++++")  # 9 frames
    with open_source("0", Reading(reconnect=0, every=3)) as live:
        frames = list(filter(None, live))
        assert live.even_rate() == 10
    assert {frame.index for frame in frames} <= {0, 3, 6}
    assert frames[-1].index == 6
    assert len(frames) + live.dropped == 3


# Bad reads, lost and found again.


@pytest.mark.parametrize("bad", ["!", "!" * 29, "x"])
def test_camera_goes_on_after_some_bad_reads(cameras, bad):
    opened = cameras("+++" + bad + "++" + bad + "+")
    last, told, error = watch("0", reconnect=0)
    assert (last, told, len(opened)) == (5, [], 1)
    assert "camera 0" in error and "no more frames" in error


@pytest.mark.parametrize("value", ["0", "/dev/video0"])
def test_vanished_camera_is_tried_again_and_found(cameras, value):
    opened = cameras("+++", None, "++", None)
    last, told, error = watch(value, reconnect=3)
    name = "camera 0" if value == "0" else value
    assert last == 4
    assert [line.partition(":")[0] for line in told] == [name] * 4
    assert [line.partition(": ")[2][:4] for line in told] == ["lost", "lost", "back", "lost"]
    assert error == f"{name}: gives no more frames"
    assert len(opened) == 4 and len(set(opened)) == 1


def test_thirty_bad_reads_in_a_row_are_a_lost_camera(cameras):
    cameras("+++" + "!" * 30 + "++")
    assert watch("0", reconnect=0)[0] == 2


def test_pauses_double_from_try_to_try_up_to_half_a_minute(cameras):
    cameras("+", None)
    _, told, _ = watch("0", reconnect=7)
    assert told == [f"camera 0: lost, trying again in {s} s" for s in (1, 2, 4, 8, 16, 30, 30)]


def test_lost_camera_is_tried_five_times_unless_told_otherwise(cameras):
    cameras("+", None)
    assert len(watch("0")[1]) == 5


@pytest.mark.parametrize("again", ["", "+", "++++"])
def test_connections_that_end_at_once_are_tries(cameras, again):
    opened = cameras("++++", again)
    _, told, error = watch("0", reconnect=3)
    assert len(opened) == 4
    assert sum("lost" in line for line in told) == 3
    assert "no more frames" in error


def test_connection_that_lasted_starts_the_count_again(cameras, monkeypatch):
    monkeypatch.setattr("media.live.STEADY", -1)  # every connection lasts long enough
    opened = cameras("+", "+", "+", "+", None)
    watch("0", reconnect=2)
    assert len(opened) == 4 + 2


def test_camera_that_stays_silent_is_lost_at_its_first_time_out(cameras, monkeypatch):
    monkeypatch.setattr("media.videos.READ_TIMEOUT", 0)  # the first failed read took too long
    cameras("+!++++")
    last, _, error = watch("0", reconnect=0)
    assert last == 0
    assert "no more frames" in error


@pytest.mark.parametrize("value", ["/dev/video0", "/dev/video12", "/dev/v4l/by-id/usb-Cam-index0"])
def test_device_paths_are_cameras(cameras, value):
    opened = cameras("+")
    assert is_live(value)
    with open_source(value, Reading(reconnect=0)) as live:
        assert live.name == value
    assert opened[0][:2] == (value, cv2.CAP_V4L2)


@pytest.mark.parametrize("value", ["/dev/null", "/dev/zero", "/dev/video\0", "dev/video0"])
def test_other_paths_are_not_cameras(value):
    assert not is_live(value)


@pytest.mark.parametrize("value", ["/dev/video77", "/dev/v4l/by-id/usb-none"])
def test_device_that_is_not_there_is_named_in_one_line_and_exits_2(tmp_path, value):
    demo = run_demo("-i", value, "--json", "-", cwd=tmp_path)
    assert demo.returncode == 2
    assert f"error: {value}: can't be opened. Plug it in" in demo.err[-1]
    assert all(line.startswith("demo.py: ") for line in demo.err)


def test_device_without_a_display_ends_before_opening(tmp_path):
    demo = run_demo("-i", "/dev/video77", cwd=tmp_path)
    assert demo.returncode == 2
    assert "no window" in demo.stderr and "can't be opened" not in demo.stderr


def test_camera_that_can_not_be_opened_says_what_to_do(cameras):
    cameras(None)
    with pytest.raises(SourceError, match="Plug it in, close other programs"):
        open_source("0")


def test_number_of_a_camera_may_be_as_large_as_opencv_s(cameras):
    opened = cameras("+")
    with open_source("2147483647", Reading(reconnect=0)) as live:
        assert live.name == "camera 2147483647"
    with pytest.raises(SourceError, match="^camera 2147483648: can't be opened"):
        open_source("2147483648")
    assert [arguments[0] for arguments in opened] == [2147483647, -1]


@pytest.mark.parametrize("bad", [b"", b"x" * 300, b"\xff\xd8\xff\xd9", b"<html>busy</html>"])
def test_bad_picture_in_a_stream_is_left_out_and_the_stream_goes_on(bad):
    def serve(stream):
        for number in range(30):
            stream.send(numbered_frame(number))
            if number == 15:
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(bad)}\r\n\r\n"
                stream.file.write(head.encode() + bad + b"\r\n")

    told = []
    with (
        MjpegServer(serve) as server,
        open_source(server.address, Reading(reconnect=0, notify=told.append)) as live,
    ):
        *_, last = filter(None, live)
        assert number_of(last.image) == last.index == 29
        assert server.connected == 1
    assert told == []
