"""Frames through several detectors at once: order, bounds, errors and ends."""

import itertools
import threading
import time
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from media.pipeline import in_order

DEADLINE = 60


@pytest.fixture(autouse=True)
def no_thread_stays():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("length", [0, 1, 2, 7, 100])
def test_each_frame_comes_out_once_in_order_with_its_own_result(workers, length):
    results = list(in_order(iter(range(length)), lambda number: number**2, workers))
    assert results == [(i, i**2) for i in range(length)]


@pytest.mark.parametrize("seed", range(5))
def test_results_come_in_order_whatever_the_order_the_work_ends_in(seed):
    workers, length = 3, 60
    done = [threading.Event() for _ in range(length)]
    before, ended, random = {}, [], np.random.default_rng(seed)
    for block in range(0, length, workers):  # those that are in work together
        order = (block + random.permutation(workers)).tolist()
        before |= dict(itertools.pairwise(reversed(order)))

    def work(number):
        if number in before:
            assert done[before[number]].wait(DEADLINE)
        ended.append(number)
        done[number].set()
        return -number

    assert list(in_order(range(length), work, workers)) == [(i, -i) for i in range(length)]
    assert ended != sorted(ended)


def test_all_workers_work_at_once_and_no_more_than_they():
    workers = 3
    together = threading.Barrier(workers)
    lock, running, most = threading.Lock(), 0, 0

    def work(_):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(DEADLINE)  # never passed by fewer
        with lock:
            running -= 1

    assert len(list(in_order(range(10 * workers), work, workers))) == 10 * workers
    assert most == workers


def test_work_goes_on_while_the_caller_uses_a_result():
    second_started, first_held, second_done = (threading.Event() for _ in range(3))

    def work(number):
        if number == 0:
            assert second_started.wait(DEADLINE)
        elif number == 1:
            second_started.set()
            assert first_held.wait(DEADLINE)
            second_done.set()

    results = in_order(range(9), work, workers=2)
    assert next(results)[0] == 0
    first_held.set()
    assert second_done.wait(DEADLINE)
    results.close()


class Frame:
    """A frame whose end can be watched."""


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("slow", ["caller", "work"])
def test_frames_held_at_a_time_are_few_however_long_the_source(workers, slow):
    alive, most = weakref.WeakSet(), 0

    def frames():
        nonlocal most
        for _ in range(300):
            frame = Frame()
            alive.add(frame)
            most = max(most, len(alive))
            yield frame
            del frame

    def pause(part):
        if part == slow:
            time.sleep(0.001)  # enough for a reader without bounds to read them all

    for _ in in_order(frames(), lambda _: pause("work"), workers):
        pause("caller")
    # in_order's promise, and those in the hands of the reader, of the caller and between them
    assert most <= 3 * workers + 3


def test_error_of_reading_comes_after_the_results_before_it():
    def frames():
        yield from range(5)
        raise OSError("the disk is gone")

    got = []
    with pytest.raises(OSError, match="the disk is gone"):
        for frame, _ in in_order(frames(), str, workers=2):
            got.append(frame)
    assert got == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_error_of_work_comes_in_its_frame_s_place_and_ends_all(workers):
    read = []

    def frames():
        for number in itertools.count():
            read.append(number)
            yield number

    def work(number):
        if number >= 6:
            raise ZeroDivisionError(f"frame {number}")
        return number

    got, results = [], in_order(frames(), work, workers)
    with pytest.raises(ZeroDivisionError, match="frame 6$"):
        for frame, _ in results:
            got.append(frame)
    assert got == list(range(6))
    assert next(results, "ended") == "ended"
    assert len(read) <= 6 + 3 * workers + 2


def test_first_of_two_errors_is_the_one_reported():
    second_failed = threading.Event()

    def work(number):
        if number == 1:
            second_failed.set()
        else:
            assert second_failed.wait(DEADLINE)
        raise RuntimeError(f"frame {number}")

    with pytest.raises(RuntimeError, match="frame 0"):
        list(in_order(range(2), work, workers=2))


def test_leaving_early_stops_an_endless_reader_and_drops_the_rest():
    worked = []
    results = in_order(itertools.count(), worked.append, workers=2)
    assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
    leaving = threading.Thread(target=results.close, daemon=True)
    leaving.start()
    leaving.join(DEADLINE)
    assert not leaving.is_alive()
    assert len(worked) <= 3 + 3 * 2


def test_leaving_by_an_error_of_the_caller_stops_the_reader():
    with pytest.raises(KeyboardInterrupt):
        for frame, _ in in_order(itertools.count(), str, workers=2):
            if frame == 3:
                raise KeyboardInterrupt


def test_leaving_waits_for_work_that_is_under_way():
    second_started, leaving, second_done = (threading.Event() for _ in range(3))

    def work(number):
        if number == 0:
            assert second_started.wait(DEADLINE)
        else:
            second_started.set()
            assert leaving.wait(DEADLINE)
            second_done.set()

    results = in_order(range(2), work, workers=2)
    next(results)
    threading.Timer(0.05, leaving.set).start()
    results.close()
    assert second_done.is_set()


def test_nothing_is_read_before_the_first_result_is_asked_for():
    read = []
    in_order((read.append(i) for i in range(3)), str, workers=2)
    assert read == []


def test_few_large_images_are_held_at_a_time(monkeypatch):
    monkeypatch.setattr("media.pipeline.HEAVY", 10)
    monkeypatch.setattr("media.pipeline.HELD", 25)
    large = [SimpleNamespace(image=np.zeros(20, np.uint8)) for _ in range(30)]
    held, most = set(), []

    def frames():
        for number, frame in enumerate(large):
            held.add(number)
            most.append(len(held))
            yield frame

    for number, (frame, result) in enumerate(in_order(frames(), lambda frame: frame, 4)):
        assert frame is result is large[number]
        held.discard(number)
    # One is read, one waits, one is too many and has to be done, one is with the caller.
    assert max(most) <= 4
