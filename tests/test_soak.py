"""Leave the demo on a stream that is lost again and again: memory and threads stay flat.

NANODET_SOAK_MINUTES=30 python -m pytest -s tests/test_soak.py
"""

import os
import signal
import time

import pytest
from demo_process import Demo
from fault_helpers import broken, status
from live_helpers import MjpegServer, temporary_files, wait_until

pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux")

SECONDS = 60 * float(os.environ.get("NANODET_SOAK_MINUTES", "0"))
FRAMES = 30  # of a connection, which then breaks
RATE = 100  # frames a second
WARM_UP = 5  # connections until caches are full
GROWTH = 8  # megabytes after that; FFmpeg's and the allocator's own ups and downs are 1 to 3


def breaks(stream):
    """Send some frames, of another size on each connection in turn, and hang up."""
    stream.numbered(FRAMES, RATE, [(64, 48), (160, 120), (320, 240)][stream.server.connected % 3])


def test_lost_and_found_stream_leaks_neither_memory_nor_threads(tmp_path):
    script = broken("live.LONGEST_PAUSE = live.STEADY = 0.05\n")
    arguments = ("--size", "64", "--json", "-", "--quiet", "--reconnect", "9")
    samples = []  # (seconds, connections, frames, megabytes, threads)
    frames = 0
    with (
        MjpegServer(breaks) as server,
        Demo("-i", server.address, *arguments, cwd=tmp_path, script=script) as demo,
    ):
        started = time.monotonic()
        while len(samples) <= 2 * WARM_UP or time.monotonic() - started < SECONDS:
            before = server.connected
            wait_until(
                lambda before=before: server.connected > before and demo.out,
                "a new connection, and a frame",
            )
            lines = len(demo.out)
            del demo.out[:lines]
            frames += lines
            samples.append(
                (time.monotonic() - started, server.connected, frames, *status(demo.pid))
            )
        demo.send(signal.SIGINT)
        assert demo.finish() == 130
    assert "Traceback" not in demo.stderr and "stopped after" not in demo.stderr
    assert demo.stderr.count(": back\n") >= server.connected - 2
    assert temporary_files(tmp_path) == []

    warm = samples[max(WARM_UP, len(samples) // 10) :]
    memory, threads = [sample[3] for sample in warm], [sample[4] for sample in warm]
    part = max(1, len(memory) // 4)
    first, last = sorted(memory[:part])[part // 2], sorted(memory[-part:])[part // 2]
    figures = (
        f"{samples[-1][0]:.0f} s, {server.connected} connections, {server.sent} frames sent, "
        f"{frames} lines; memory {samples[0][3]:.1f} MB at first, {first:.1f} MB warm, "
        f"{last:.1f} MB at the end, {max(memory):.1f} MB at most; "
        f"threads {min(threads)} to {max(threads)}"
    )
    print(figures)
    assert last - first < GROWTH, figures
    assert sorted(threads)[len(threads) // 2] == sorted(threads[-part:])[part // 2], figures
    assert max(threads) - min(threads) <= 2, figures  # of a reader that just ends or begins
