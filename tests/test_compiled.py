"""What threads that share a kernel promise their caller."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from molsampler.compiled import shared


class Interrupted(BaseException):
    """What the handler of a signal raises."""


def test_blocks_cover_the_rows_and_end_at_multiples() -> None:
    for rows, threads, multiple in ((100, 3, 32), (7, 4, 1), (64, 2, 32), (5, 3, 8), (0, 3, 1)):
        blocks = shared(lambda start, stop: (start, stop), rows, threads=threads, multiple=multiple)
        assert [start for start, _ in blocks] == [0, *(stop for _, stop in blocks[:-1])]
        assert blocks[-1][1] == rows
        assert all(stop % multiple == 0 for _, stop in blocks[:-1])


def test_a_signal_waits_for_what_still_writes() -> None:
    """Alarm after alarm comes while two threads work; none is left at work when the exception arrives."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are handled in the main thread")
    done = []

    def work(start: int, stop: int) -> None:
        time.sleep(0.5)
        done.append((start, stop))

    def alarm(number: int, frame: object) -> None:
        raise Interrupted

    old = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
    try:
        with pytest.raises(Interrupted):
            shared(work, 2, threads=2)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        assert sorted(done) == [(0, 1), (1, 2)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, old)


def test_an_error_of_one_block_is_the_caller_s() -> None:
    def work(start: int, stop: int) -> None:
        if start:
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        shared(work, 2, threads=2)
