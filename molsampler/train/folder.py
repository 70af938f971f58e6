"""A run folder: its lock, its resolved configuration and its log of metrics.

::

    RUN_DIR/config.resolved.yaml   what is being run
    RUN_DIR/metrics.jsonl          one object a line; key ``iteration``, 0 in warm-up, never decreases
    RUN_DIR/checkpoints/           see :mod:`molsampler.train.checkpoint`
    RUN_DIR/artifact/              the sampler selected so far
    RUN_DIR/compiler.log           what a compiler said that failed
    RUN_DIR/lock                   held by the running process
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import InputError, OutputExistsError, RunLockedError, StorageError
from ..storage.files import remove, write_bytes
from . import config as configuration
from .config import TrainConfig

_log = logging.getLogger(__name__)

#: Keys in which configurations differ that are listed at most.
_LISTED = 6


class RunFolder:
    """An opened and locked run folder; a context manager that releases the lock."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._lock: int | None = None
        self._logged = hashlib.sha256()

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def artifact(self) -> Path:
        return self.path / "artifact"

    @property
    def compiler_log(self) -> Path:
        return self.path / "compiler.log"

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
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # The kernel drops an flock when its process dies, however it dies: no lock is ever stale.
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StorageError(f"cannot use run folder {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._lock)
            self._lock = None
            raise RunLockedError(f"{self.path} is in use by another run (PID {holder})") from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)
        # Nobody else writes here, so temporary files are those of runs that were killed.
        for leftover in [*self.path.glob(".*.tmp*"), *self.path.glob("*/.*.tmp*")]:
            remove(leftover)
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

    def claim(self, config: TrainConfig, *, fitted: Collection[str] = ()) -> TrainConfig:
        """Record the configuration, or check that it is the recorded one, which is returned; it may differ in
        the keys ``fitted``.

        Raises
        ------
        InputError
            The folder was started with another configuration; the differing keys are listed.
        """
        if not self.config.is_file():
            self.record(config)
            return config
        recorded = configuration.from_yaml(self.config)
        changed = [
            line
            for line in configuration.difference(recorded, config)
            if line.partition(":")[0] not in fitted
        ]
        if changed:
            raise InputError(
                f"{self.path} was started with another configuration ({_listed(changed)}); "
                "resume with the same one or name a new folder"
            )
        return recorded

    def record(self, config: TrainConfig) -> None:
        """Write the configuration over the one that is there."""
        write_bytes(self.config, configuration.to_yaml(config).encode())

    def rewind_metrics(self, size: int, digest: str = "") -> bool:
        """Cut the log to the ``size`` it had at the checkpoint, so that no line comes twice.

        Where its beginning no longer has the SHA-256 ``digest`` of that time, the file is set aside,
        said to be damaged, and the log begins anew; the result is then False.
        """
        self._logged = hashlib.sha256()
        if not self.metrics.exists():
            content = b""
        else:
            with open(self.metrics, "r+b") as file:
                content = file.read(size)
                self._logged.update(content)
                if len(content) == size and digest in ("", self._logged.hexdigest()):
                    file.truncate(size)
                    return True
        if size == 0:
            return True
        aside = self.set_metrics_aside("damaged")
        _log.warning(
            "%s is not the log that the checkpoint continues (%d of %d bytes found); %s, and a new log "
            "begins",
            self.metrics,
            len(content),
            size,
            f"it is kept as {aside.name}" if aside.exists() else "it is missing",
        )
        return False

    def set_metrics_aside(self, why: str) -> Path:
        """Keep the log under another name, if there is one, and begin a new one; the name."""
        self._logged = hashlib.sha256()
        aside = self.path / f"metrics.{why}-{secrets.token_hex(4)}.jsonl"
        if self.metrics.exists():
            self.metrics.rename(aside)
        return aside

    def log(self, record: Mapping[str, Any]) -> tuple[int, str]:
        """Append one line; return the length of the log and its SHA-256."""
        line = json.dumps(record).encode() + b"\n"
        try:
            with open(self.metrics, "ab") as file:
                file.write(line)
                size = file.tell()
        except OSError as error:
            raise StorageError(f"cannot write {self.metrics}: {error.strerror}") from error
        self._logged.update(line)
        return size, self._logged.hexdigest()

    def sync_metrics(self) -> None:
        """Put the log on the device, before a checkpoint that counts on it."""
        if self.metrics.exists():
            with open(self.metrics, "rb") as file:
                os.fsync(file.fileno())


def _listed(changed: list[str]) -> str:
    """What differs, the first few of many."""
    more = len(changed) - _LISTED
    return "; ".join(changed[:_LISTED]) + (f"; and {more} more keys" if more > 0 else "")
