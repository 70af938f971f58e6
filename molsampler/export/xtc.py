"""XTC trajectories (GROMACS), written and decoded by MDTraj.

XTC rounds coordinates to multiples of 1e-3 nm (files of at most nine atoms keep float32). Its frames
carry no index; walking the frame headers before decoding finds a file that ends inside a frame, which
decoders may miss. One that ends between frames is whole to the format; only a sidecar knows better.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import FileFormatError, InputError
from . import decoder, isolated
from .lengths import Frames
from .trajectory import CHUNK, Opened, Trajectory

#: Coordinates beyond this overflow the format's 32-bit integers (nm).
LIMIT_NM = 1e6
_MAGIC = 1995
#: Up to this many atoms the coordinates are stored as plain float32.
_PLAIN_ATOMS = 9
#: Entries of the table of sizes for small differences that are not zero.
_FIRST_INDEX, _LAST_INDEX = 9, 72


def count_frames(path: Path) -> tuple[int, int]:
    """Frames and atoms, by walking the headers of all frames.

    Raises
    ------
    FileFormatError
        A frame header is damaged or the file ends inside a frame.
    """
    frames, atoms, _ = _walk(path)
    return frames, atoms


def _walk(path: Path) -> tuple[int, int, list[tuple[float, ...]]]:
    """Frames, atoms and the nine box entries of each frame."""
    boxes: list[tuple[float, ...]] = []
    size = path.stat().st_size
    frames, atoms, offset = 0, 0, 0
    with open(path, "rb") as file:
        while offset < size:
            file.seek(offset)
            # magic, atoms, step, time, nine box entries, atoms again; then, compressed: precision,
            # three smallest and three largest integers, index, byte count.
            head = file.read(92)
            where = f"{path} is truncated or damaged at frame {frames} (byte {offset})"
            if len(head) < 56:
                raise FileFormatError(where)
            magic, count = struct.unpack(">ii", head[:8])
            (again,) = struct.unpack(">i", head[52:56])
            if magic != _MAGIC:
                raise FileFormatError(where if frames else f"{path} is not an XTC trajectory")
            if count < 1 or count != again or (frames and count != atoms):
                raise FileFormatError(where)
            atoms = count
            boxes.append(struct.unpack(">9f", head[16:52]))
            if atoms <= _PLAIN_ATOMS:
                offset += 56 + 12 * atoms
            else:
                if len(head) < 92:
                    raise FileFormatError(where)
                least, most = struct.unpack(">3i", head[60:72]), struct.unpack(">3i", head[72:84])
                index, held = struct.unpack(">ii", head[84:92])
                # What a decoder in C takes on trust: ranges, an index of its table, and a length
                # that must fit a buffer of 1.2 integers a coordinate.
                if (
                    any(low > high for low, high in zip(least, most, strict=True))
                    or not _FIRST_INDEX <= index <= _LAST_INDEX
                    or not 0 <= held <= 4 * int(3.6 * atoms) - 12
                ):
                    raise FileFormatError(where)
                offset += 92 + (held + 3) // 4 * 4
            if offset > size:
                raise FileFormatError(where)
            frames += 1
    return frames, atoms, boxes


class XTCFormat(Trajectory):
    """GROMACS' compressed trajectories."""

    suffix = ".xtc"
    description = "XTC, rounded to 1e-3 nm"
    precision_nm = 1e-3

    @contextmanager
    def writer(self, path: Path, topology: Any, count: int) -> Iterator[Any]:
        """Yield a function that appends frames ``(n, N, 3)`` in nm."""
        from mdtraj.formats import XTCTrajectoryFile

        done = 0
        with XTCTrajectoryFile(str(path), "w", force_overwrite=True) as file:

            def append(frames: Frames) -> None:
                nonlocal done
                if float(np.abs(frames).max()) > LIMIT_NM:
                    raise InputError(
                        f"a coordinate of {float(np.abs(frames).max()):.3g} nm does not fit an XTC file "
                        f"(at most {LIMIT_NM:g} nm); choose .h5, .dcd or .npz"
                    )
                index = np.arange(done, done + len(frames))
                # A zero box says that there is none.
                box = np.zeros((len(frames), 3, 3), dtype=np.float32)
                file.write(
                    np.ascontiguousarray(frames),
                    time=index.astype(np.float32),
                    step=index.astype(np.int32),
                    box=box,
                )
                done += len(frames)

            yield append

    def boxes(self, path: Path) -> NDArray[np.float64] | None:
        """Box vectors of the frames; see :meth:`Trajectory.boxes`."""
        return np.array(_walk(path)[2], dtype=np.float64).reshape(-1, 3, 3)

    @contextmanager
    def open(self, path: Path, *, trusted: bool = False) -> Iterator[Opened]:
        """Yield frames, atoms and pieces; strangers' files are decoded in a process of their own.

        Raises
        ------
        FileFormatError
            See :func:`count_frames`; or what lies between the headers cannot be decoded.
        """
        pair = count_frames(path)
        decode = decoder.xtc(str(path), CHUNK) if trusted else isolated.items(path, CHUNK, pair)
        with closing(decode) as items:
            if not trusted:
                next(items)
            yield Opened(*pair, items)


XTC = XTCFormat()
