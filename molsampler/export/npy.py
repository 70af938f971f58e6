"""Columns of numbers in numpy's ``.npy`` layout, written from what waits in a file."""

from __future__ import annotations

import hashlib
import io
from tokenize import TokenError
from typing import IO

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_PIECE = 2**22


def write_header(file: IO[bytes], descr: str, shape: tuple[int, ...]) -> None:
    """Magic number and header of a C-ordered array, whose bytes are to follow."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": descr, "fortran_order": False, "shape": shape}
    )


def write_spooled(file: IO[bytes], spool: IO[bytes], count: int) -> str:
    """Write the ``count`` float64 numbers that wait in ``spool``; the SHA-256 of what was written."""
    header = io.BytesIO()
    write_header(header, "<f8", (count,))
    spool.seek(0)
    digest = hashlib.sha256()
    piece = header.getvalue()
    while piece:
        digest.update(piece)
        file.write(piece)
        piece = spool.read(_PIECE)
    return digest.hexdigest()


def float64(values: Tensor) -> bytes:
    """The bytes of numbers, little-endian."""
    return values.numpy().astype("<f8").tobytes()


def read_float64(content: bytes, count: int) -> NDArray[np.float64]:
    """The ``count`` numbers of a file's content, of which nothing is believed.

    Raises
    ------
    ValueError
        It is anything but a plain array of float64 of that length.
    """
    file = io.BytesIO(content)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not of version 1.0 of numpy's format")
    try:
        shape, _, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=10_000)
    except (SyntaxError, TypeError, KeyError, RecursionError, MemoryError, TokenError) as error:
        raise ValueError(f"its header cannot be read: {error}") from None
    held = len(content) - file.tell()
    if dtype != np.dtype("<f8") or shape != (count,) or held != 8 * count:
        raise ValueError(
            f"an array of {dtype}, shape {shape}, in {held} bytes; {count} numbers of float64 are "
            "expected"
        )
    return np.frombuffer(content, dtype="<f8", offset=file.tell())
