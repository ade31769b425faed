from __future__ import annotations

import threading
import time

import pytest

from fathom.data.prefetch import Prefetcher


def _until(condition: object, seconds: float = 5.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.001)


def test_batches_come_in_order_and_only_so_many_are_made_ahead() -> None:
    made: list[int] = []
    with Prefetcher(lambda step: made.append(step) or step * 10, depth=3) as ahead:  # type: ignore[func-returns-value]
        _until(lambda: made == [0, 1, 2])
        assert [ahead.get(step) for step in range(5)] == [0, 10, 20, 30, 40]
        _until(lambda: made == list(range(8)))
        time.sleep(0.02)
        assert made == list(range(8))


def test_nothing_is_made_beyond_the_last_step() -> None:
    made: list[int] = []
    with Prefetcher(lambda step: made.append(step) or step, start=4, stop=6, depth=4) as ahead:  # type: ignore[func-returns-value]
        assert [ahead.get(4), ahead.get(5)] == [4, 5]
        time.sleep(0.02)
        assert made == [4, 5]
        assert ahead.get(6) == 6


def test_a_jump_is_answered() -> None:
    with Prefetcher(lambda step: step, start=0, depth=2) as ahead:
        assert [ahead.get(step) for step in (0, 1, 500, 501, 7, 8, 7)] == [0, 1, 500, 501, 7, 8, 7]


def test_what_the_thread_raises_is_raised_at_its_step_and_may_be_tried_again() -> None:
    trouble = {2}

    def make(step: int) -> int:
        if step in trouble:
            raise OSError("the disk is gone")
        return step

    with Prefetcher(make) as ahead:
        assert [ahead.get(0), ahead.get(1)] == [0, 1]
        with pytest.raises(OSError, match="the disk is gone"):
            ahead.get(2)
        trouble.clear()
        assert [ahead.get(2), ahead.get(3)] == [2, 3]


def test_waiting_is_measured_and_not_waiting_is_not() -> None:
    gate = threading.Event()

    def make(step: int) -> int:
        if step == 1:
            gate.wait(5)
        return step

    with Prefetcher(make, depth=1) as ahead:
        _until(lambda: 0 in ahead._ready)
        ahead.get(0)
        assert ahead.wait_s < 0.05
        threading.Timer(0.15, gate.set).start()
        ahead.get(1)
        assert 0.1 < ahead.wait_s < 2


def test_closing_ends_the_thread_and_further_asking_fails() -> None:
    ahead = Prefetcher(lambda step: step)
    assert ahead.get(0) == 0
    ahead.close()
    ahead.close()
    assert not ahead._thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        ahead.get(1)


def test_closing_frees_whoever_waits() -> None:
    gate = threading.Event()
    ahead = Prefetcher(lambda step: gate.wait(5))
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            ahead.get(0)
        except ValueError as error:
            caught.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    _until(lambda: ahead._waited_for)
    closer = threading.Thread(target=ahead.close)
    closer.start()
    waiter.join(5)
    gate.set()
    closer.join(5)
    assert len(caught) == 1 and not closer.is_alive()


def test_a_depth_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="depth"):
        Prefetcher(lambda step: step, depth=0)
