"""What commands write: results on standard output, progress and log lines on standard error."""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID


def print_json(value: Any) -> None:
    """Write ``value`` as JSON; NaN and infinities become null, which every reader accepts."""
    print(json.dumps(plain(value), indent=2, allow_nan=False))


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
    columns = [printable(column) for column in columns]
    rows = [[printable(cell) for cell in row] for row in rows]
    title = printable(title)
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


def file_size(path: Path) -> str:
    """The size of a file as 84 kB or 1.2 MB."""
    size = path.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(1, round(size / 1e3))} kB"


class Show(Protocol):
    """Callback that long work of several phases calls with what to say and how far it is."""

    def __call__(self, text: str, *, done: float = 0.0, total: float | None = None) -> None: ...


@contextmanager
def phases(title: str, *, every: float = 10.0) -> Iterator[Show]:
    """Show on standard error what work of several phases says of itself.

    On a terminal a bar is redrawn; otherwise a plain line is written at once when the first word of the
    text changes, which names the phase, and else every ``every`` seconds, also while the work says nothing.
    """
    with _bar(title, None) as (bars, shown):
        title, latest = printable(title), ""
        started = last = time.monotonic()
        ended = threading.Event()
        lock = threading.Lock()

        def write(line: str) -> None:
            nonlocal last
            with lock:
                last = time.monotonic()
                note(f"{title}: {line}")

        def remind() -> None:
            while not ended.wait(0.5):
                if time.monotonic() - last >= every + 1.0:
                    write(f"{latest}; {duration(time.monotonic() - started)} so far")

        def show(text: str, *, done: float = 0.0, total: float | None = None) -> None:
            nonlocal latest
            changed = text.split(":")[0] != latest.split(":")[0]
            latest = text
            bars.update(shown, completed=done, total=total, state=printable(text))
            if bars.disable and (changed or time.monotonic() - last >= every):
                write(text)

        reminder = threading.Thread(target=remind, daemon=True)
        if bars.disable:
            reminder.start()
        try:
            yield show
        finally:
            ended.set()
            if bars.disable:
                reminder.join()
    note(f"{title}: {duration(time.monotonic() - started)}")


@contextmanager
def quiet() -> Iterator[Show]:
    """:func:`phases` of a process beside the one that speaks for all; records and warnings say nothing."""

    def show(text: str, *, done: float = 0.0, total: float | None = None) -> None:
        pass

    logger = logging.getLogger("molsampler")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield show
    finally:
        logger.setLevel(before)


@contextmanager
def progress(title: str, total: float | None, *, every: float = 10.0) -> Iterator[Update]:
    """Show progress, rate, remaining and elapsed time on standard error while the body runs.

    On a terminal a bar is redrawn; otherwise a plain line is written every ``every`` seconds. Rate
    and remaining time are those of the last half minute, and of the current ``total`` alone.
    """
    started = last = time.monotonic()
    with _bar(title, total) as (bars, shown):
        title = printable(title)

        def update(done: float, detail: str = "", *, total: float | None = None) -> None:
            nonlocal last
            bars.update(shown, completed=done, total=total)
            state = printable(_state(bars.tasks[0], detail))
            bars.update(shown, state=state)
            if bars.disable and time.monotonic() - last >= every:
                last = time.monotonic()
                note(f"{title}: {state}")

        yield update
    note(f"{title}: {duration(time.monotonic() - started)}")


@contextmanager
def _bar(title: str, total: float | None) -> Iterator[tuple[Progress, TaskID]]:
    """A bar of rich, disabled where standard error is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
        get_time=time.monotonic,
    ) as bars:
        yield bars, bars.add_task(printable(title), total=total, state="")


def _state(task: Task, detail: str) -> str:
    parts = []
    if task.total is not None:
        parts.append(f"{task.completed:,.0f}/{task.total:,.0f}")
        if task.speed is not None:
            parts.append(f"{task.speed:,.3g}/s")
            parts.append(f"{duration(max(0.0, task.total - task.completed) / task.speed)} left")
    return ", ".join([*parts, *([detail] if detail else [])])
