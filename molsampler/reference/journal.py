"""A folder in which a reference run records what it has done, so that the same call continues it.

A run is a sequence of engines (plain replicas, trials at higher temperatures, an exchange run), each
of which is read in blocks of frames. Everything that the run decides follows from these frames. Every
block is stored with its observables, and beside the blocks the state of the engine after the last
one. A run that finds blocks takes them instead of computing them, decides as it did, and goes on
from the state where they end; it gives the same samples, to the last bit, as one that was never
stopped. ::

    DIR/settings.json                 what is being run
    DIR/01-begin.safetensors          random state before the first engine was made
    DIR/01-00000.safetensors, ...     its blocks
    DIR/01-state.safetensors          the engine after the last of them
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import FileFormatError, InputError, OutputExistsError, RunLockedError
from ..storage.files import atomic_path, read_limited, write_bytes

_SETTINGS = "settings.json"


class Stateful(Protocol):
    """What a journal needs of an engine; ``save`` and ``load`` include its random numbers."""

    steps: int

    def save(self) -> dict[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...


E = TypeVar("E", bound=Stateful)


class Block(NamedTuple):
    """Frames ``(block, replica, n, d)``, observables ``(block, replica)``, and steps done by then."""

    frames: Tensor
    traces: dict[str, Tensor]
    steps: int


class Journal:
    """The folder of one run; a context manager that holds its lock.

    Raises
    ------
    InputError
        The folder holds a run with other settings; the differing ones are named.
    OutputExistsError
        It holds something else.
    RunLockedError
        Another process is at it.
    """

    def __init__(self, folder: Path | str, settings: Mapping[str, Any]):
        self.folder, self.settings = Path(folder), dict(settings)
        self._engines = 0
        self._lock: int | None = None

    def __enter__(self) -> Journal:
        folder, path = self.folder, self.folder / _SETTINGS
        if folder.exists() and (
            not folder.is_dir() or (any(folder.iterdir()) and not path.exists())
        ):
            raise OutputExistsError(f"{folder} exists and is not the checkpoint of a reference run")
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise RunLockedError(f"{folder} is in use by another run") from None
        self._lock = lock
        if not path.exists():
            write_bytes(path, json.dumps(self.settings, indent=2).encode())
        try:
            found = json.loads(read_limited(path, 2**20))
        except ValueError as error:
            raise FileFormatError(f"{path} is not valid JSON: {error}") from None
        changed = [
            f"{key}: {found.get(key)!r} there, {value!r} now"
            for key, value in self.settings.items()
            if found.get(key) != value
        ]
        if changed:
            raise InputError(
                f"{folder} holds a reference run with other settings ({'; '.join(changed)}); continue "
                "with the same ones or name a new folder"
            )
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def engine(self, make: Callable[[], E], generator: torch.Generator) -> tuple[E, Record]:
        """The next engine of the run, made from the random state that it was made from before."""
        self._engines += 1
        stem = self.folder / f"{self._engines:02d}"
        begin = stem.with_name(f"{stem.name}-begin.safetensors")
        if begin.exists():
            generator.set_state(_load(begin)[0]["generator"])
        else:
            _save(begin, {"generator": generator.get_state()}, {})
        return make(), Record(stem, generator)


class Record:
    """The blocks of one engine."""

    def __init__(self, stem: Path, generator: torch.Generator):
        self._stem, self._generator = stem, generator
        self._next = 0
        self._state: dict[str, Tensor] | None = None
        # Blocks beyond the stored state were not completed.
        self._stored = 0
        path = self._path("state")
        if path.exists():
            self._state, metadata = _load(path)
            self._stored = int(metadata["blocks"])

    @property
    def replaying(self) -> bool:
        """Whether a stored block comes next."""
        return self._next < self._stored

    def read(self) -> Block:
        """The next stored block."""
        tensors, metadata = _load(self._path(f"{self._next:05d}"))
        self._next += 1
        frames = tensors["frames"]
        names = json.loads(metadata["names"])
        traces = {name: tensors[f"trace {k}"] for k, name in enumerate(names)}
        return Block(frames, traces, int(metadata["steps"]))

    def restore(self, engine: Stateful) -> None:
        """Bring the engine to where the stored blocks end; does nothing the second time."""
        if self._state is not None:
            generator = self._state.pop("generator")
            engine.load(self._state)
            self._generator.set_state(generator)
            self._state = None

    def write(self, block: Block, engine: Stateful) -> None:
        """Store a block that the engine has just given, and the engine."""
        tensors = {f"trace {k}": value for k, value in enumerate(block.traces.values())}
        metadata = {"names": json.dumps(list(block.traces)), "steps": str(block.steps)}
        _save(self._path(f"{self._next:05d}"), {"frames": block.frames, **tensors}, metadata)
        self._next += 1
        state = {**engine.save(), "generator": self._generator.get_state()}
        _save(self._path("state"), state, {"blocks": str(self._next)})

    def _path(self, part: str) -> Path:
        return self._stem.with_name(f"{self._stem.name}-{part}.safetensors")


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    # Clones: safetensors refuses tensors that share memory.
    own = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(own, temporary, metadata=metadata or None)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return safetensors.torch.load_file(path), metadata
    except (safetensors.SafetensorError, OSError) as error:
        raise FileFormatError(
            f"{path} is damaged ({error}); remove its folder and start the run again"
        ) from None
