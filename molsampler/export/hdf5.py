"""HDF5 trajectories in MDTraj's convention: float32 nanometres and the topology, zlib-compressed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FileFormatError
from .lengths import Frames

SIGNATURE = b"\x89HDF\r\n\x1a\n"


@contextmanager
def write(path: Path, topology: Any, count: int) -> Iterator[Any]:
    """Yield a function that appends frames ``(n, N, 3)`` in nm."""
    from mdtraj.formats import HDF5TrajectoryFile

    done = 0
    with HDF5TrajectoryFile(str(path), "w", force_overwrite=True) as file:
        file.topology = topology

        def append(frames: Frames) -> None:
            nonlocal done
            file.write(frames, time=np.arange(done, done + len(frames), dtype=np.float32))
            done += len(frames)

        yield append


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    from mdtraj.formats import HDF5TrajectoryFile

    with open(path, "rb") as plain:
        if plain.read(8) != SIGNATURE:
            raise FileFormatError(f"{path} is not an HDF5 file, or its first bytes are damaged")
    try:
        with HDF5TrajectoryFile(str(path), "r") as file:
            yield file
    except FileFormatError:
        raise
    except Exception as error:  # PyTables and the HDF5 library raise whatever the damage suggests
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise FileFormatError(f"{path} is truncated or damaged: {reason[0].strip()}") from error


def inspect(path: Path) -> tuple[int, int]:
    """Frames and atoms.

    Raises
    ------
    FileFormatError
        The file is not in MDTraj's convention, or damaged, or its topology does not match.
    """
    with _open(path) as file:
        shape = tuple(int(k) for k in file.root.coordinates.shape)
        topology = file.topology
    if len(shape) != 3 or shape[2] != 3:
        raise FileFormatError(f"{path} holds coordinates of shape {shape}, expected (n, N, 3)")
    if topology is not None and topology.n_atoms != shape[1]:
        raise FileFormatError(
            f"{path} holds {shape[1]} atoms a frame and a topology of {topology.n_atoms}"
        )
    return shape[0], shape[1]


def read(path: Path, chunk: int) -> Iterator[Frames]:
    """Frames ``(<= chunk, N, 3)`` in nm, in order."""
    with _open(path) as file:
        total = int(file.root.coordinates.shape[0])
        for start in range(0, total, chunk):
            yield np.asarray(file.root.coordinates[start : start + chunk], dtype=np.float32)
