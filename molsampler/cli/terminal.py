"""What commands write: results on standard output, progress and log lines on standard error."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TextIO


def print_json(value: Any) -> None:
    """Write ``value`` as JSON; NaN and infinities become null, which every reader accepts."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """``value`` with arrays as lists, scalars as Python numbers and non-finite numbers as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return str(value)


def printable(text: str) -> str:
    """``text`` with control characters escaped, so that no file can send commands to the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
    """A table on standard output: drawn on a terminal, aligned plain text otherwise."""
    if sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=SIMPLE_HEAD, title=title or None, title_justify="left")
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    if title:
        print(title)
    widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def note(text: str) -> None:
    """One line for the reader, on standard error."""
    print(printable(text), file=sys.stderr)


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Send log records of molsampler and Python warnings to standard error, one line each."""
    logger = logging.getLogger("molsampler")
    before = (logger.level, logger.propagate, logger.handlers)
    handler = logging.StreamHandler(_CurrentStderr())
    handler.setFormatter(_OneLine())
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.handlers = [handler]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            yield
    finally:
        logger.level, logger.propagate, logger.handlers = before


class _CurrentStderr:
    # Looks up sys.stderr at each write, so that redirection after set-up is honoured.
    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return prefix + printable(record.getMessage())


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    # Deprecations inside third parties concern no user of a command.
    if not issubclass(category, DeprecationWarning | PendingDeprecationWarning):
        note(f"warning: {' '.join(str(message).split())}")


class Update(Protocol):
    """Callback that long work calls with the work done so far, out of ``total`` where that changes."""

    def __call__(self, done: float, detail: str = "", *, total: float | None = None) -> None: ...


def duration(seconds: float) -> str:
    """``seconds`` as 42 s, 3 min 20 s or 2 h 05 min."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


class Rate:
    """Work per second over a recent window, so that a slow start does not spoil the estimate."""

    def __init__(self, window: float = 30.0) -> None:
        self._window = window
        self._points: deque[tuple[float, float]] = deque()

    def add(self, now: float, done: float) -> None:
        self._points.append((now, done))
        while len(self._points) > 2 and self._points[1][0] < now - self._window:
            self._points.popleft()

    @property
    def per_second(self) -> float | None:
        """The rate, or None before two distinct moments are known."""
        if len(self._points) < 2:
            return None
        (start, first), (end, last) = self._points[0], self._points[-1]
        return (last - first) / (end - start) if end > start and last > first else None

    def remaining(self, total: float | None) -> float | None:
        """Seconds until ``total``, or None while unknown."""
        rate = self.per_second
        if rate is None or total is None:
            return None
        return max(0.0, total - self._points[-1][1]) / rate


@contextmanager
def progress(
    title: str, total: float | None, *, unit: str = "", every: float = 10.0
) -> Iterator[Update]:
    """Show progress, rate and remaining time on standard error while the body runs.

    On a terminal one line is redrawn; otherwise a plain line is written every ``every`` seconds.
    """
    meter = _Meter(title, total, unit)
    started = time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.markup import escape

        with Console(stderr=True).status(escape(title)) as status:

            def redraw(done: float, detail: str = "", *, total: float | None = None) -> None:
                status.update(escape(meter.describe(done, detail, total)))

            yield redraw
    else:
        last = started

        def write(done: float, detail: str = "", *, total: float | None = None) -> None:
            nonlocal last
            line = meter.describe(done, detail, total)
            if time.monotonic() - last >= every:
                last = time.monotonic()
                note(line)

        yield write
    note(f"{title}: {duration(time.monotonic() - started)}")


class _Meter:
    """Work done, rate and remaining time as one line."""

    def __init__(self, title: str, total: float | None, unit: str):
        self.title, self.total, self.unit = title, total, unit
        self.rate = Rate()

    def describe(self, done: float, detail: str, total: float | None) -> str:
        if total is not None and total != self.total:
            # Another stage counts in another measure.
            self.total, self.rate = total, Rate()
        self.rate.add(time.monotonic(), done)
        parts = []
        if self.total is not None:
            parts.append(f"{done:,.0f}/{self.total:,.0f} {self.unit}".rstrip())
            if self.rate.per_second is not None:
                parts.append(f"{self.rate.per_second:,.3g}/s")
            left = self.rate.remaining(self.total)
            if left is not None:
                parts.append(f"{duration(left)} left")
        if detail:
            parts.append(detail)
        return f"{self.title}: {', '.join(parts)}"
