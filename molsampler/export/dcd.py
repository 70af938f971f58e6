"""DCD trajectories (CHARMM/NAMD): Fortran records of float32 coordinates in angstrom.

Layout, each record between two copies of its byte length: a header of 84 bytes (``CORD`` and 20
integers, the first of which counts the frames), titles, the atom count, then per frame an optional
cell and the x, y and z of all atoms. Every frame has the same size, so a file's length says how
many frames it really holds. The format is written here rather than by MDTraj, whose plugin prints to
standard output, copies uninitialised memory into the header and reports a full disk as TypeError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError
from .lengths import Frames, box_vectors
from .trajectory import CHUNK, Opened, Trajectory

ANGSTROM_PER_NM = np.float32(10.0)
_TITLE = b"REMARKS molsampler; coordinates in angstrom".ljust(80)
#: Longest title block that is believed.
_MAX_TITLES = 1000


class Header(NamedTuple):
    frames: int
    atoms: int
    order: str
    cell: bool
    size: int


def _record(content: bytes) -> bytes:
    marker = struct.pack("<i", len(content))
    return marker + content + marker


def _header(frames: int, atoms: int) -> bytes:
    # frames, first step, steps between frames, steps; the step length sits at word 9, and word 19
    # is the CHARMM version that makes readers look for no more than is there.
    words = [frames, 0, 1, frames, *[0] * 16]
    words[9] = struct.unpack("<i", struct.pack("<f", 1.0))[0]
    words[19] = 24
    return (
        _record(b"CORD" + struct.pack("<20i", *words))
        + _record(struct.pack("<i", 1) + _TITLE)
        + _record(struct.pack("<i", atoms))
    )


def _layout(atoms: int, order: str, *, cell: bool) -> np.dtype[Any]:
    fields: list[tuple[Any, ...]] = []
    if cell:
        fields += [("c0", order + "i4"), ("cell", order + "f8", (6,)), ("c1", order + "i4")]
    for axis in "xyz":
        fields += [
            (axis + "0", order + "i4"),
            (axis, order + "f4", (atoms,)),
            (axis + "1", order + "i4"),
        ]
    return np.dtype(fields)


def _read_header(path: Path) -> Header:
    with open(path, "rb") as file:

        def record(order: str, limit: int) -> bytes:
            start = file.read(4)
            if len(start) < 4:
                raise FileFormatError(f"{path} is truncated inside its header")
            (length,) = struct.unpack(order + "i", start)
            if not 0 < length <= limit:
                raise FileFormatError(f"{path} is not a DCD file: header record of {length} bytes")
            content = file.read(length)
            if len(content) < length or file.read(4) != start:
                raise FileFormatError(f"{path} is truncated or damaged inside its header")
            return content

        order = ">" if file.read(4) == struct.pack(">i", 84) else "<"
        file.seek(0)
        first = record(order, 84)
        if first[:4] != b"CORD" or len(first) != 84:
            raise FileFormatError(f"{path} is not a DCD trajectory of coordinates")
        words = struct.unpack(order + "20i", first[4:])
        record(order, 4 + 80 * _MAX_TITLES)
        content = record(order, 4)
        if len(content) != 4:
            raise FileFormatError(f"{path} is damaged: atom count of {len(content)} bytes")
        (atoms,) = struct.unpack(order + "i", content)
        if words[8] or (words[19] and words[11]):
            raise FileFormatError(f"{path} has fixed atoms or a fourth dimension; not supported")
        if not 1 <= atoms <= path.stat().st_size // 12 or words[0] < 0:
            raise FileFormatError(
                f"{path} is truncated or damaged: its header announces {atoms} atoms, "
                f"{words[0]} frames"
            )
        return Header(words[0], atoms, order, bool(words[19] and words[10]), file.tell())


def _count_frames(path: Path) -> tuple[int, int]:
    """Frames and atoms.

    Raises
    ------
    FileFormatError
        The header is damaged, or the file's length does not hold the frames that it announces.
    """
    header = _read_header(path)
    frame = _layout(header.atoms, header.order, cell=header.cell).itemsize
    held, rest = divmod(path.stat().st_size - header.size, frame)
    # Simulations that are still running announce zero frames.
    if rest or (header.frames and held != header.frames):
        raise FileFormatError(
            f"{path} is truncated or damaged: its header announces {header.frames} frames, "
            f"its length holds {held}{' and a part' if rest else ''}"
        )
    return held, header.atoms


def _read(path: Path, chunk: int) -> Iterator[Frames]:
    """Frames ``(<= chunk, N, 3)`` in nm, in order."""
    header = _read_header(path)
    layout = _layout(header.atoms, header.order, cell=header.cell)
    # numpy allocates what is asked for, not what the file holds.
    chunk = min(chunk, path.stat().st_size // layout.itemsize + 1)
    done = 0
    with open(path, "rb") as file:
        file.seek(header.size)
        while True:
            block = np.fromfile(file, dtype=layout, count=chunk)
            if not len(block):
                return
            for name in layout.names or ():
                expected = 48 if name.startswith("c") else 4 * header.atoms
                if name[1:] in ("0", "1") and np.any(block[name] != expected):
                    raise FileFormatError(
                        f"{path} is damaged between frames {done} and {done + len(block)}: "
                        "a record length is wrong"
                    )
            frames = np.stack([block[axis] for axis in "xyz"], axis=-1).astype(np.float32)
            yield frames / ANGSTROM_PER_NM
            done += len(block)


class DCDFormat(Trajectory):
    """CHARMM's and NAMD's trajectories."""

    suffix = ".dcd"
    description = "DCD, float32 angstrom"

    @contextmanager
    def writer(self, path: Path, topology: Any, count: int) -> Iterator[Any]:
        """Yield a function that appends frames ``(n, N, 3)`` in nm; ``count`` frames will come."""
        atoms = topology.n_atoms
        layout = _layout(atoms, "<", cell=False)
        with open(path, "wb") as file:
            file.write(_header(count, atoms))

            def append(frames: Frames) -> None:
                block = np.zeros(len(frames), dtype=layout)
                for index, axis in enumerate("xyz"):
                    block[axis] = frames[..., index] * ANGSTROM_PER_NM
                    block[axis + "0"] = block[axis + "1"] = 4 * atoms
                file.write(block.tobytes())

            yield append

    def boxes(self, path: Path) -> NDArray[np.float64] | None:
        """Box vectors of the frames; see :meth:`molsampler.export.trajectory.Trajectory.boxes`."""
        header = _read_header(path)
        if not header.cell:
            return None
        layout = _layout(header.atoms, header.order, cell=True)
        frames, _ = _count_frames(path)
        held = np.memmap(path, dtype=layout, mode="r", offset=header.size, shape=(frames,))
        cells = np.array(held["cell"], dtype=np.float64)
        lengths = cells[:, [0, 2, 5]] / ANGSTROM_PER_NM
        # Lengths a, b, c stand at 0, 2, 5; gamma, beta, alpha between them, as cosines or in degrees.
        angles = cells[:, [4, 3, 1]]
        cosines = np.where(np.abs(angles) <= 1, angles, np.cos(np.radians(angles)))
        return box_vectors(lengths, cosines)

    @contextmanager
    def open(self, path: Path, *, trusted: bool = False) -> Iterator[Opened]:
        """Yield frames, atoms and pieces.

        Raises
        ------
        FileFormatError
            A header is damaged, or the file's length does not hold the frames that it announces.
        """
        yield Opened(*_count_frames(path), _read(path, CHUNK))


DCD = DCDFormat()
