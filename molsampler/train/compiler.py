"""What becomes of a compiler that fails: one line, and its words in a file."""

from __future__ import annotations

import logging
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path

from ..storage.files import write_bytes

_log = logging.getLogger(__name__)

#: Packages whose errors are those of compilation.
_COMPILERS = ("torch._dynamo", "torch._inductor", "torch._functorch")


def failed(error: BaseException) -> bool:
    """Whether an error comes from compiling a network rather than from running it."""
    return any(
        type(each).__module__.startswith(_COMPILERS)
        or isinstance(each, subprocess.CalledProcessError)
        for each in _chain(error)
    )


def report(error: BaseException, log: Path) -> None:
    """Put the whole of a failure into a file, and one line into the log."""
    write_bytes(log, "".join(traceback.format_exception(error)).encode("utf-8", "replace"))
    _log.warning(
        "the networks could not be compiled (%s; all of it is in %s); training goes on without, slower",
        type(error).__name__,
        log,
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__cause__, each.__context__]
