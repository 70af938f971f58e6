"""How much memory there is, asked before a request that might not fit."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import ResourceError

#: Share of the free memory that one request may take.
SHARE = 0.8


def available() -> int | None:
    """Bytes this process may still allocate, or ``None`` where the system does not say.

    The smaller of the kernel's estimate and what the control group leaves (containers).
    """
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        try:
            limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (OSError, ValueError):
            return None
    try:
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            limits.append(int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return max(0, min(limits)) if limits else None


def require(size: int, *, purpose: str, remedy: str) -> None:
    """Refuse a request of ``size`` bytes that exceeds ``SHARE`` of the available memory.

    Raises
    ------
    ResourceError
        The message holds the estimate, what is available and the remedy.
    """
    free = available()
    if free is not None and size > SHARE * free:
        raise ResourceError(
            f"{purpose} needs about {size / 2**30:.1f} GiB of memory and {free / 2**30:.1f} GiB are "
            f"available; {remedy}"
        )
