"""HDF5 trajectories in MDTraj's convention: float32 nanometres and the topology, zlib-compressed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FileFormatError
from . import decoder, isolated
from .lengths import Frames
from .trajectory import CHUNK, Opened, Trajectory

SIGNATURE = b"\x89HDF\r\n\x1a\n"


def _check_signature(path: Path) -> None:
    with open(path, "rb") as plain:
        if plain.read(8) != SIGNATURE:
            raise FileFormatError(f"{path} is not an HDF5 file, or its first bytes are damaged")


class HDF5Format(Trajectory):
    """MDTraj's HDF5 files."""

    suffix = ".h5"
    description = "HDF5 in MDTraj's convention, float32 nm"

    @contextmanager
    def writer(self, path: Path, topology: Any, count: int) -> Iterator[Any]:
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
    def open(self, path: Path, *, trusted: bool = False) -> Iterator[Opened]:
        """Yield frames, atoms and pieces; strangers' files are decoded in a process of their own.

        Raises
        ------
        FileFormatError
            The file is not in MDTraj's convention, or damaged, or its topology does not match.
        """
        _check_signature(path)
        decode = decoder.hdf5(str(path), CHUNK) if trusted else isolated.items(path, CHUNK)
        with closing(decode) as items:
            frames, atoms = next(items)
            yield Opened(frames, atoms, items)


HDF5 = HDF5Format()
