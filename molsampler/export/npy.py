"""Arrays in numpy's ``.npy`` layout, written from what waits in a file."""

from __future__ import annotations

import hashlib
from typing import IO

import numpy as np

_PIECE = 2**22


def write_header(file: IO[bytes], descr: str, shape: tuple[int, ...]) -> None:
    """Magic number and header of a C-ordered array, whose bytes are to follow."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )


def write_spooled(file: IO[bytes], spool: IO[bytes], count: int) -> str:
    """Write the ``count`` float64 numbers that wait in ``spool``; the SHA-256 of their bytes."""
    digest = hashlib.sha256()
    write_header(file, "<f8", (count,))
    spool.seek(0)
    while piece := spool.read(_PIECE):
        digest.update(piece)
        file.write(piece)
    return digest.hexdigest()
