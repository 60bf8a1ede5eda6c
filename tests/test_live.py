"""Network streams: always the newest frame, lost connections, recordings."""

import functools
import http.server
import json
import signal
import threading
import time

import cv2
import pytest
from demo_process import DEADLINE, FAST, STREET, Demo, error_of, run_demo
from fault_helpers import signal_in_a_lock, timeouts
from live_helpers import (
    MjpegServer,
    Stream,
    film,
    number_of,
    numbered_frame,
    numbered_video,
    numbers_of,
    temporary_files,
    wait_until,
)

from media.frames import SourceError
from media.live import Live, is_live
from media.sources import Reading, open_source
from media.videos import Video


def steady(stream):
    """Send numbered frames until the end of the test."""
    stream.numbered()


def test_stream_gives_a_line_of_json_for_each_frame_as_it_comes(tmp_path):
    with (
        MjpegServer(steady) as server,
        Demo("-i", server.address, *FAST, "--json", "-", cwd=tmp_path) as demo,
    ):
        demo.wait_lines(10)
        demo.send(signal.SIGINT)
        assert demo.finish() == 130
    assert "lost" not in demo.stderr
    records = demo.records()
    indices = [record["frame"] for record in records]
    assert indices == sorted(set(indices))
    times = [record["time"] for record in records]
    assert times[0] == 0 or indices[0] > 0
    assert times == sorted(set(times))
    assert {(r["source"], r["width"], r["height"]) for r in records} == {(server.address, 64, 48)}
    assert list(tmp_path.iterdir()) == []


def test_objects_of_a_stream_are_found(tmp_path):
    street = cv2.imread(str(STREET))

    def send_street(stream):
        while not stream.server.stopping.wait(0.02):
            stream.send(street)

    with (
        MjpegServer(send_street) as server,
        Demo("-i", server.address, "--json", "-", cwd=tmp_path) as demo,
    ):
        demo.wait_lines(2)
        first = json.loads(demo.out[0])
    assert {found["label"] for found in first["detections"]} >= {"person", "car"}


def test_newest_frame_is_given_and_the_dropped_ones_are_counted():
    def fast(stream):
        stream.numbered(rate=200)

    with MjpegServer(fast) as server, open_source(server.address) as live:
        assert isinstance(live, Live)
        taken, ages = [], []
        for frame in filter(None, live):
            taken.append(frame)
            ages.append(server.sent - number_of(frame.image))
            if len(taken) == 10:
                break
            enough = server.sent + 30
            wait_until(lambda enough=enough: server.sent >= enough, "the server sends")
        indices = [frame.index for frame in taken]
        gaps = [later - earlier for earlier, later in zip(indices, indices[1:], strict=False)]
        assert all(gap > 0 for gap in gaps)
        assert sum(gaps) > 9 * 15  # frames were left out
        assert live.dropped == indices[-1] + 1 - len(taken)
        assert sorted(ages)[5] < 25  # a queue would give number 9 when 270 have been sent
        assert [number_of(frame.image) for frame in taken] == indices
        times = [frame.time for frame in taken]
        assert times == sorted(set(times))


def test_frames_asked_for_in_time_are_all_given():
    def on_demand(stream):
        for number in range(20):
            stream.server.wanted.acquire(timeout=DEADLINE)
            stream.send(numbered_frame(number))

    with MjpegServer(on_demand) as server:
        server.wanted = threading.Semaphore(12)  # what opening takes
        with open_source(server.address, Reading(reconnect=0)) as live:
            indices = []
            for frame in filter(None, live):
                indices.append(frame.index)
                if frame.index >= 11:
                    server.wanted.release()
        assert indices[-9:] == list(range(11, 20))
        assert len(indices) + live.dropped == 20


@pytest.mark.parametrize("then", [lambda stream: None, Stream.silence], ids=["ends", "silent"])
def test_lost_connection_is_told_and_taken_up_again(tmp_path, then):
    def some(stream):
        stream.numbered(30)
        then(stream)

    args = (*FAST, "--json", "-")
    with (
        MjpegServer(some, steady) as server,
        Demo("-i", server.address, *args, cwd=tmp_path, script=timeouts(1)) as demo,
    ):
        demo.wait_line(demo.err, "lost, trying again in 1 s")
        before = len(demo.out)
        demo.wait_line(demo.err, ": back$")
        demo.wait_lines(before + 10)
        demo.send(signal.SIGINT)
        assert demo.finish() == 130
    assert server.connected == 2
    assert "error" not in demo.stderr
    records = demo.records()
    assert [r["frame"] for r in records] == sorted({r["frame"] for r in records})
    assert max(r["frame"] for r in records) >= 30
    assert [r["time"] for r in records] == sorted({r["time"] for r in records})


@pytest.mark.parametrize("tries", [0, 2])
def test_server_that_stays_away_ends_the_run_after_the_tries_allowed(tmp_path, tries):
    with MjpegServer(gone_after_30) as server:
        demo = run_demo("-i", server.address, *FAST, "--reconnect", tries, "--save", cwd=tmp_path)
    assert demo.returncode == 1
    assert server.address in error_of(demo) and "no more frames" in error_of(demo)
    waits = [line for line in demo.err if "trying again" in line]
    assert len(waits) == tries
    assert all(f"in {2**i} s" in line for i, line in enumerate(waits))
    assert film(tmp_path / "result.mp4")["frames"] > 2
    assert temporary_files(tmp_path) == []


def gone_after_30(stream):
    stream.numbered(30)
    stream.server.refuse()


def test_pauses_between_tries_grow_to_a_limit(monkeypatch):
    monkeypatch.setattr("media.live.LONGEST_PAUSE", 0.2)
    lines = []
    with (
        MjpegServer(gone_after_30) as server,
        open_source(server.address, Reading(reconnect=4, notify=lines.append)) as live,
    ):
        assert len(list(live)) >= 1
    assert [line.rpartition("in ")[2] for line in lines] == ["0.2 s"] * 4
    assert "no more frames" in live.error


def test_server_that_refuses_for_a_while_is_found_again(monkeypatch):
    monkeypatch.setattr("media.live.LONGEST_PAUSE", 0.05)
    lines = []

    def some(stream):
        stream.numbered(30)

    def hang_up(stream):
        pass

    with (
        MjpegServer(some, hang_up, hang_up, some) as server,
        open_source(server.address, Reading(reconnect=3, notify=lines.append)) as live,
    ):
        for frame in filter(None, live):
            if frame.index >= 31:
                break
    assert any("back" in line for line in lines)
    assert sum("lost" in line for line in lines) == 3


def test_interrupted_recording_lasts_as_long_as_what_was_recorded(tmp_path):
    with (
        MjpegServer(lambda stream: stream.numbered(rate=12)) as server,
        Demo("-i", server.address, *FAST, "--save", "--json", "-", cwd=tmp_path) as demo,
    ):
        demo.wait_lines(1)
        started = time.monotonic()
        demo.wait_lines(25)
        seconds = time.monotonic() - started
        assert not (tmp_path / "result.mp4").exists()
        demo.send(signal.SIGINT)
        assert demo.finish() == 130
    assert "Traceback" not in demo.stderr
    made = film(tmp_path / "result.mp4")
    assert made["seconds"] == pytest.approx(seconds, abs=0.6)
    assert temporary_files(tmp_path) == []
    shown = numbers_of(tmp_path / "result.mp4")
    assert shown == sorted(shown)
    assert f"saved result.mp4, {made['frames']} frames" in demo.stderr


def test_signal_while_a_lock_is_taken_back_ends_as_any_other(tmp_path):
    script = signal_in_a_lock(9)
    with (
        MjpegServer(steady) as server,
        Demo("-i", server.address, *FAST, "--save", cwd=tmp_path, script=script) as demo,
    ):
        assert demo.finish() == 130, demo.stderr
    assert "Traceback" not in demo.stderr
    assert film(tmp_path / "result.mp4")["frames"] >= 5
    assert temporary_files(tmp_path) == []


def test_recording_keeps_its_pace_through_a_lost_connection(tmp_path):
    def some(stream):
        stream.numbered(20)

    with (
        MjpegServer(some, steady) as server,
        Demo("-i", server.address, *FAST, "--save", "--json", "-", cwd=tmp_path) as demo,
    ):
        demo.wait_line(demo.err, ": back$")
        before = len(demo.out)
        demo.wait_lines(before + 10)
        demo.send(signal.SIGINT)
        assert demo.finish() == 130
    times = [record["time"] for record in demo.records()]
    lasted = times[-1] - times[0]
    assert lasted > 1
    assert film(tmp_path / "result.mp4")["seconds"] == pytest.approx(lasted, abs=0.2)


def test_summary_counts_the_frames_that_were_dropped(tmp_path):
    with (
        MjpegServer(lambda stream: stream.numbered(rate=500)) as server,
        Demo("-i", server.address, "--augment", "--json", "-", cwd=tmp_path) as demo,
    ):
        demo.wait_lines(3)
        demo.send(signal.SIGINT)
        assert demo.finish() == 130
    indices = [record["frame"] for record in demo.records()]
    left_out = indices[-1] + 1 - len(indices)
    assert left_out > 0
    said = demo.wait_line(demo.err, "dropped to keep up").split()
    # One more frame may have been in work, whose line was not written.
    assert left_out <= int(said[said.index("dropped") - 1]) < server.sent
    assert int(said[said.index("frames") - 1]) - len(indices) in (0, 1)


def test_video_file_on_a_server_is_a_video_of_all_its_frames(tmp_path):
    numbered_video(tmp_path / "clip.mp4", 12)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/clip.mp4"
        with open_source(address) as source:
            assert isinstance(source, Video)
            assert [number_of(frame.image) for frame in source] == list(range(12))
        server.shutdown()


@pytest.mark.parametrize("output", [["--json", "-"], ["--save"]])
def test_unreachable_address_is_named_in_one_line_and_exits_2(tmp_path, output):
    with MjpegServer(steady) as server:
        server.refuse()
        demo = run_demo("-i", server.address, *output, cwd=tmp_path)
    assert demo.returncode == 2
    assert server.address in error_of(demo)
    assert all(line.startswith("demo.py: ") for line in demo.err)
    assert demo.out == []
    assert list(tmp_path.iterdir()) == []


def test_page_that_is_no_stream_is_named_and_exits_2(tmp_path):
    def page(stream):
        stream.file.write(b"<html>Not here</html>" * 100)

    with MjpegServer(page) as server:
        demo = run_demo("-i", server.address, "--json", "-", cwd=tmp_path)
    assert demo.returncode == 2
    assert server.address in error_of(demo)


def test_live_without_a_display_does_not_connect(tmp_path):
    with MjpegServer(steady) as server:
        demo = run_demo("-i", server.address, cwd=tmp_path)
        assert (demo.returncode, server.connected) == (2, 0)


def test_open_source_raises_for_what_can_not_be_opened():
    with pytest.raises(SourceError, match="camera 7"):
        open_source("7")


@pytest.mark.parametrize("value", ["0", "12", "http://x", "https://x/y.mjpg", "rtsp://u:p@h/s"])
def test_numbers_and_addresses_are_live(value):
    assert is_live(value)


@pytest.mark.parametrize("value", ["clip.mp4", "0.jpg", "./0", "-1", "", "²", "C:/x", "a/b"])
def test_file_names_are_not_live(value):
    assert not is_live(value)
