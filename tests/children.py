"""Children that are killed, limited or interrupted: forked, so that libraries are loaded once."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

#: What the kernel is asked for when files are written, as Python audits it.
FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


class Ended(NamedTuple):
    code: int
    """Exit code, or minus the signal that ended the child."""
    said: str
    """What it wrote, on both streams."""


def start(work: Callable[[], object], log: Path) -> int:
    """Fork a child that runs ``work`` and exits with the integer that it returns, else 0; its PID."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        # Not those that pytest has put in their place.
        sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        # The pool of threads does not survive a fork.
        torch.set_num_threads(1)
        result = work()
        code = result if isinstance(result, int) else 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        # Not the exit of a test session: no fixtures, no reports.
        os._exit(code)


def wait(pid: int, log: Path, timeout: float = 120.0) -> Ended:
    """How a child ended; one that does not is killed and reported as such."""
    deadline = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return Ended(
                -999, f"still running after {timeout} s\n" + log.read_text("utf-8", "replace")
            )
        time.sleep(0.001)
    said = log.read_text("utf-8", "replace") if log.exists() else ""
    return Ended(os.waitstatus_to_exitcode(status), said)


def run(work: Callable[[], object], log: Path, timeout: float = 120.0) -> Ended:
    return wait(start(work, log), log, timeout)


def killed_at(event: int, work: Callable[[], object], folder: Path) -> Callable[[], object]:
    """``work``, killed by ``kill -9`` before its ``event``-th request that concerns ``folder``."""

    def doomed() -> object:
        left = event

        def hook(name: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if name in FILE_EVENTS and any(str(folder) in str(item) for item in arguments):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        return work()

    return doomed


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders below ``folder``."""
    return [path for path in folder.rglob("*") if ".tmp" in path.name]
