"""What torchrun says to a process in its environment: which one it is, and of how many."""

from __future__ import annotations

import os


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdigit() else default


def count() -> int:
    """How many processes were started together; one where torchrun started none."""
    return max(1, _number("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def rank() -> int:
    """The number of this process among them, from zero."""
    return _number("RANK", 0) if count() > 1 else 0


def on_this_machine() -> int:
    """How many of them run on this machine."""
    return max(1, _number("LOCAL_WORLD_SIZE", 1)) if count() > 1 else 1


def own_device(device: str | None) -> str | None:
    """The device of this process where ``cuda`` is asked for without a number."""
    return f"cuda:{_number('LOCAL_RANK', 0)}" if count() > 1 and device == "cuda" else device
