"""When the command began, imports included: what time limits count from."""

from __future__ import annotations

import os
import time

_began: float | None = None


def start(*, of_process: bool) -> None:
    """Note the beginning of a command: now, or where it is all that the process does, the process's."""
    global _began
    _began = time.monotonic() - (_age() if of_process else 0.0)


def began() -> float:
    """Value of ``time.monotonic`` at the beginning of the command."""
    return time.monotonic() if _began is None else _began


def _age() -> float:
    """Seconds since this process started, 0 where the system does not tell."""
    try:
        with open("/proc/self/stat", "rb") as file:
            # The second field, a name in brackets, may hold spaces; the start is the 22nd, in ticks.
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0
