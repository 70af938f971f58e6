"""Stopping a run on a signal or at a time limit, at once where the work can be given up.

Short pieces of work are finished first. A piece that takes longer than ``GRACE`` seconds (a slow energy, a
compiler, an evaluation) is abandoned by an exception out of the handler of an alarm, if it stands in
:meth:`Stop.abandonable`: whoever writes that promises to hold the state from before the piece.
"""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

#: Seconds that a piece of work may still take once the run has to end.
GRACE = 1.0


class StopRequestedError(BaseException):
    """The run has to end. No :class:`Exception`, which compilers and callbacks catch."""


class Stop:
    """Collects SIGINT and SIGTERM instead of dying of them, and watches the time limit.

    A context manager that restores the handlers on leaving. Outside the main thread, which alone may
    handle signals, the time limit is watched between pieces of work only.

    Parameters
    ----------
    deadline : value of ``time.monotonic`` at which the run has to end, None for no limit
    """

    def __init__(self, deadline: float | None = None):
        self.deadline = deadline
        self.received: list[int] = []
        self._overdue = self._abandonable = False
        self._old: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    @property
    def signal(self) -> int | None:
        """The first signal received."""
        return self.received[0] if self.received else None

    def requested(self) -> bool:
        """Whether the run has to end."""
        late = self.deadline is not None and time.monotonic() > self.deadline
        return bool(self.received) or late

    @property
    def code(self) -> int:
        """Zero, or why the run has to end as a number: the signal, or one above all of them for the time."""
        return self.signal or (signal.NSIG if self.requested() else 0)

    def adopt(self, code: int) -> None:
        """Have the run end for the reason of another process."""
        if code == signal.NSIG:
            self.deadline = -math.inf
        elif code and not self.received:
            self.received.append(code)

    def check(self) -> None:
        """Raise if the run has to end.

        Raises
        ------
        StopRequestedError
            It has.
        """
        if self.requested():
            raise StopRequestedError

    @contextmanager
    def abandonable(self) -> Iterator[None]:
        """Work that may be given up in the middle, with :class:`StopRequestedError`."""
        self._abandonable = True
        try:
            if self._overdue:
                raise StopRequestedError
            yield
        finally:
            self._abandonable = False

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
            self._old[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._alarm)
            # An alarm inside a callback that cannot raise is printed there, and rings again.
            self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
            if self.deadline is not None:
                self._arm(max(0.0, self.deadline - time.monotonic()) + GRACE)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._old:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            sys.unraisablehook = self._hook
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _unraisable(self, lost: Any) -> None:
        if not isinstance(lost.exc_value, StopRequestedError):
            self._hook(lost)

    def _arm(self, seconds: float) -> None:
        # Again and again: an exception that a destructor or a callback swallows must not be the last.
        signal.setitimer(signal.ITIMER_REAL, seconds, GRACE)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) == 1:
            self._arm(GRACE)

    def _alarm(self, number: int, frame: FrameType | None) -> None:
        self._overdue = True
        if self._abandonable:
            raise StopRequestedError
