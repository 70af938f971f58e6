"""A run folder: its lock, its resolved configuration and its log of metrics.

::

    RUN_DIR/config.resolved.yaml   what is being run
    RUN_DIR/metrics.jsonl          one object a line; key ``iteration`` never decreases
    RUN_DIR/checkpoints/           see :mod:`molsampler.train.checkpoint`
    RUN_DIR/artifact/              the sampler selected so far
    RUN_DIR/lock                   held by the running process
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import InputError, OutputExistsError, RunLockedError
from ..files import write_bytes
from . import config as configuration
from .config import TrainConfig


class RunFolder:
    """An opened and locked run folder; a context manager that releases the lock."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._lock: int | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def config(self) -> Path:
        return self.path / "config.resolved.yaml"

    def __enter__(self) -> RunFolder:
        if self.path.exists() and not self.path.is_dir():
            raise OutputExistsError(f"run folder {self.path} exists and is not a folder")
        if self.path.is_dir() and any(self.path.iterdir()) and not self.config.is_file():
            foreign = [item.name for item in self.path.iterdir() if item.name != "lock"]
            if foreign:
                raise OutputExistsError(
                    f"{self.path} is not empty and not a run folder (it holds {foreign[0]!r} but no "
                    f"{self.config.name}); name a new folder"
                )
        self.path.mkdir(parents=True, exist_ok=True)
        # The kernel drops an flock when its process dies, however it dies: a lock is never stale.
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            self._lock = None
            raise RunLockedError(f"{self.path} is in use by another run (PID {holder})") from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def claim(self, config: TrainConfig) -> None:
        """Record the configuration, or check that it is the recorded one.

        Raises
        ------
        InputError
            The folder was started with another configuration; the differing keys are listed.
        """
        if not self.config.is_file():
            write_bytes(self.config, configuration.to_yaml(config).encode())
            return
        changed = configuration.difference(configuration.from_yaml(self.config), config)
        if changed:
            raise InputError(
                f"{self.path} was started with another configuration ({'; '.join(changed)}); "
                "resume with the same one or name a new folder"
            )

    def rewind_metrics(self, size: int) -> None:
        """Cut the log to the length it had at the checkpoint, so that no line comes twice."""
        if self.metrics.exists():
            with open(self.metrics, "r+b") as file:
                file.truncate(min(size, self.metrics.stat().st_size))

    def log(self, record: Mapping[str, Any]) -> int:
        """Append one line; return the length of the log."""
        with open(self.metrics, "ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
            return file.tell()
