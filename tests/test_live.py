"""Network streams: always the newest frame, lost connections, recordings."""

import json
import signal

import cv2
import pytest
from demo_process import FAST, STREET, Demo, error_of, run_demo
from fault_helpers import broken, signal_in_a_lock, timeouts
from live_helpers import (
    MjpegServer,
    Stream,
    film,
    numbers_of,
    temporary_files,
)

from media.live import is_live
from media.sources import Reading, open_source


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
    assert server.connected >= 2  # more where this machine is too busy for the time-out
    assert "error" not in demo.stderr
    records = demo.records()
    assert [r["frame"] for r in records] == sorted({r["frame"] for r in records})
    assert max(r["frame"] for r in records) >= 29
    assert [r["time"] for r in records] == sorted({r["time"] for r in records})


def gone_after_30(stream):
    stream.numbered(30)
    stream.server.refuse()


@pytest.mark.parametrize("tries", [0, 2])
def test_server_that_stays_away_ends_the_run_after_the_tries_allowed(tmp_path, tries):
    with MjpegServer(gone_after_30) as server:
        args = ("-i", server.address, *FAST, "--reconnect", tries, "--save", "-q", "--json=-")
        demo = run_demo(*args, cwd=tmp_path, script=broken("live.LONGEST_PAUSE = 0.01"))
    assert demo.returncode == 1
    assert server.address in error_of(demo) and "no more frames" in error_of(demo)
    waits = [line for line in demo.err if "trying again" in line]
    assert len(waits) == tries
    # Whatever was dropped, the last frame is not: without what FFmpeg keeps of an open end.
    assert demo.records()[-1]["frame"] >= 28
    assert numbers_of(tmp_path / "result.mp4")[-1] == demo.records()[-1]["frame"]
    assert temporary_files(tmp_path) == []


def test_server_that_refuses_for_a_while_is_found_again(monkeypatch):
    monkeypatch.setattr("media.live.LONGEST_PAUSE", 0.05)
    lines = []

    def some(stream):
        stream.numbered(30)

    def hang_up(stream):
        pass

    with (
        MjpegServer(some, hang_up, hang_up, steady) as server,
        open_source(server.address, Reading(reconnect=3, notify=lines.append)) as live,
    ):
        assert any(frame.index >= 31 for frame in filter(None, live))
        assert [line.rpartition(": ")[2][:4] for line in lines] == ["lost"] * 3 + ["back"]


def test_interrupted_recording_lasts_as_long_as_what_was_recorded(tmp_path):
    with (
        MjpegServer(lambda stream: stream.numbered(rate=25)) as server,
        Demo("-i", server.address, *FAST, "--save", "--json", "-", cwd=tmp_path) as demo,
    ):
        demo.wait_lines(20)
        assert not (tmp_path / "result.mp4").exists()
        demo.send(signal.SIGINT)
        assert demo.finish() == 130
    assert "Traceback" not in demo.stderr
    records, made = demo.records(), film(tmp_path / "result.mp4")
    lasted = records[-1]["time"] - records[0]["time"]
    assert lasted - 0.1 < made["seconds"] < lasted + 0.3  # the last frame is shown for a while
    assert temporary_files(tmp_path) == []
    shown = numbers_of(tmp_path / "result.mp4")
    assert shown == sorted(shown)
    assert f"saved result.mp4, {made['frames']} frame" in demo.stderr


def test_signal_while_a_lock_is_taken_back_ends_as_any_other(tmp_path):
    script = signal_in_a_lock(9)
    with (
        MjpegServer(steady) as server,
        Demo("-i", server.address, *FAST, "--save", cwd=tmp_path, script=script) as demo,
    ):
        assert demo.finish() == 130, demo.stderr
    assert "Traceback" not in demo.stderr
    assert film(tmp_path / "result.mp4")["frames"] >= 8
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


def test_live_without_a_display_does_not_connect(tmp_path):
    with MjpegServer(steady) as server:
        demo = run_demo("-i", server.address, cwd=tmp_path)
        assert (demo.returncode, server.connected) == (2, 0)


@pytest.mark.parametrize("value", ["0", "12", "http://x", "https://x/y.mjpg", "rtsp://u:p@h/s"])
def test_numbers_and_addresses_are_live(value):
    assert is_live(value)


@pytest.mark.parametrize("value", ["clip.mp4", "0.jpg", "./0", "-1", "", "²", "C:/x", "a/b"])
def test_file_names_are_not_live(value):
    assert not is_live(value)
