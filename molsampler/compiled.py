"""C++ sources of the package, compiled once by the machine's own compiler and kept.

A source is compiled at first use with ``CXX`` (else ``c++``, ``g++`` or ``clang++``) for this processor,
and kept in ``MOLSAMPLER_CACHE``, else in the user's cache folder, under a name made of source, headers beside
it, compiler, flags and processor.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Flags, in the order in which they are tried; vector functions are those of glibc.
_FLAGS = (
    "-O3 -march=native -DVECTOR_MATH -lmvec -lm",
    "-O3 -march=native -lm",
    "-O3 -lm",
)
_COMMON = "-std=c++17 -shared -fPIC -fno-math-errno -fno-trapping-math -ffp-contract=fast -w"
_COMPILATION_SECONDS = 120


#: Variable of the environment that turns off the kernels that torch can do without.
SWITCH = "MOLSAMPLER_NATIVE"


_MAKING = threading.RLock()
os.register_at_fork(
    before=_MAKING.acquire, after_in_parent=_MAKING.release, after_in_child=_MAKING.release
)


class UnavailableError(Exception):
    """What was to be compiled cannot be made or does not serve; the message says why."""


def library(source: Path) -> ctypes.CDLL:
    """The library of a source file, compiled where it is not kept; a failure is remembered and logged once.

    Raises
    ------
    UnavailableError
        There is no compiler, or it fails.
    """
    # Threads that ask first would compile it once each.
    with _MAKING:
        made = _made(source)
    if isinstance(made, str):
        raise UnavailableError(made)
    return made


def require_native() -> None:
    """Refuse where ``MOLSAMPLER_NATIVE=0``.

    Raises
    ------
    UnavailableError
        It is.
    """
    if os.environ.get(SWITCH, "1") == "0":
        raise UnavailableError(f"{SWITCH}=0")


def shared(
    call: Callable[[int, int], Result], rows: int, *, threads: int, multiple: int = 1
) -> list[Result]:
    """Call a kernel on blocks of ``rows``, from start to stop, one for each of ``threads``; all but the last
    end at a ``multiple``.

    Kernels know addresses only: an exception that a signal raises here waits until the last of them is done,
    or they would go on writing to what their caller gives back.
    """
    units = -(-rows // multiple)
    ends = [min(units * k // threads * multiple, rows) for k in range(threads + 1)]
    blocks = [(start, stop) for start, stop in pairwise(ends) if start < stop]
    if len(blocks) < 2:
        return [call(*block) for block in blocks or [(0, rows)]]
    started: list[Future[Result]] = []
    try:
        started.extend(_pool().submit(call, *block) for block in blocks)
        return [each.result() for each in started]
    finally:
        _finish(started)


def _finish(started: Sequence[Future[Result]]) -> None:
    """Wait for all, through whatever signals raise meanwhile."""
    raised = None
    while True:
        try:
            wait(started)
            break
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count())


# A forked child has the pool and none of its threads.
os.register_at_fork(after_in_child=_pool.cache_clear)


@cache
def _made(source: Path) -> ctypes.CDLL | str:
    """The library, or why there is none."""
    try:
        return _first(source)
    except UnavailableError as error:
        log.info("%s is not used, and what it does takes longer: %s", source.name, error)
        return str(error)


def _first(source: Path) -> ctypes.CDLL:
    """The library by the first flags that serve."""
    compiler = _compiler()
    errors = []
    for flags in _FLAGS:
        for path in _places(source, compiler, flags):
            try:
                return _kept(path) or ctypes.CDLL(str(_compiled(source, compiler, flags, path)))
            except subprocess.TimeoutExpired:
                raise UnavailableError(
                    f"{compiler[0]} takes longer than {_COMPILATION_SECONDS} s to compile it"
                ) from None
            except (OSError, subprocess.SubprocessError) as error:
                errors.append(f"{type(error).__name__}: {error}")
    raise UnavailableError(f"{compiler[0]} does not compile it ({errors[0][:200]})")


def _compiler() -> list[str]:
    for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        try:
            words = shlex.split(name)
        except ValueError as error:
            raise UnavailableError(f"CXX={name!r} cannot be read: {error}") from None
        if words and shutil.which(words[0]):
            return words
    raise UnavailableError("there is no C++ compiler (c++, g++, clang++, or CXX)")


def _places(source: Path, compiler: list[str], flags: str) -> Iterator[Path]:
    """Files for a library: in the cache, else a temporary one."""
    texts = [path.read_text() for path in (source, *sorted(source.parent.glob("*.h")))]
    parts = [*texts, *compiler, flags, _COMMON, _processor()]
    name = f"{source.stem}-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:20]}.so"
    try:
        named = os.environ.get("MOLSAMPLER_CACHE")
        folder = Path(named) if named else _cache() / "molsampler"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # What is loaded is run: only from a folder of one's own.
        if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK):
            yield folder / name
    except (OSError, RuntimeError):
        # A user without a home folder is a RuntimeError.
        pass
    with tempfile.TemporaryDirectory(prefix="molsampler-") as temporary:
        yield Path(temporary) / name


def _cache() -> Path:
    """The user's cache folder."""
    named = os.environ.get("XDG_CACHE_HOME")
    return Path(named) if named else Path.home() / ".cache"


def _processor() -> str:
    """What tells processors apart, for ``-march=native``."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.lower().startswith(("flags", "features"))), "")


def _compiled(source: Path, compiler: list[str], flags: str, path: Path) -> Path:
    # Libraries come behind the source that needs them.
    libraries = [flag for flag in flags.split() if flag.startswith("-l")]
    others = [flag for flag in flags.split() if not flag.startswith("-l")]
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        subprocess.run(
            [*compiler, *_COMMON.split(), *others, str(source), "-o", str(made), *libraries],
            check=True,
            capture_output=True,
            timeout=_COMPILATION_SECONDS,
        )
        os.replace(made, path)
    return path


def _kept(path: Path) -> ctypes.CDLL | None:
    """The library that an earlier process left; None where there is none, or what is there is damaged."""
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None
