"""Decoding in a process of its own, for files that nobody vouches for; see :mod:`.decoder`."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import FileFormatError
from . import decoder

#: Seconds without a byte after which the decoder is taken to hang.
SILENCE = 90.0


@contextmanager
def _decoder(path: Path, chunk: int) -> Iterator[IO[bytes]]:
    """The pipe that frames come from; a decoder that ends badly becomes a :class:`FileFormatError`."""
    # -P: a file beside the decoder, or in the working folder, must not pass for a library.
    process = subprocess.Popen(
        [sys.executable, "-P", decoder.__file__, path.suffix, str(path.resolve()), str(chunk)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    )
    said, whole = b"", False
    try:
        if process.stdout is None:
            raise FileFormatError(f"{path} cannot be decoded: there is no pipe to its decoder")
        yield process.stdout
        whole = True
    finally:
        if not whole:
            process.kill()
        said = process.communicate()[1]
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines and process.returncode > 0 else _death(process.returncode)
        raise FileFormatError(f"{path} is truncated or damaged: {reason}")


def _death(code: int) -> str:
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"exit code {code}"
    return f"its decoder ended with {name}"


def _read(pipe: IO[bytes], size: int, path: Path) -> bytes:
    """Up to ``size`` bytes; fewer at the end alone."""
    pieces, held = [], 0
    while held < size:
        if not select.select([pipe], [], [], SILENCE)[0]:
            raise FileFormatError(f"{path} cannot be decoded: no frame in {SILENCE:g} s")
        piece = pipe.read(min(size - held, 2**20))
        if not piece:
            break
        pieces.append(piece)
        held += len(piece)
    return b"".join(pieces)


def items(
    path: Path, chunk: int, pair: tuple[int, int] | None = None
) -> Generator[Any, None, None]:
    """Frames and atoms as a pair, then frames ``(<= chunk, N, 3)`` in nm, in order.

    ``pair`` is for formats whose decoder does not state it.

    Raises
    ------
    FileFormatError
        The file is damaged, or its decoder crashed or hung.
    """
    with _decoder(path, chunk) as pipe:
        line = b""
        while pair is None and (byte := _read(pipe, 1, path)):
            line += byte
            if byte == b"\n":
                frames, atoms = json.loads(line)
                pair = (int(frames), int(atoms))
        if pair is not None:
            yield pair
        size = 12 * pair[1] if pair is not None else 0
        while pair is not None and (content := _read(pipe, chunk * size, path)):
            whole = len(content) // size * size
            yield np.frombuffer(content[:whole], dtype=np.float32).reshape(-1, pair[1], 3)
    if pair is None:
        raise FileFormatError(f"{path} cannot be decoded: its decoder gave no frames")
