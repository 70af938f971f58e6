"""Log weights of a trajectory ``X.xtc``, in ``X.xtc.log_weights.npy`` beside it.

Data and weights are two files, and no rename replaces two. New weights therefore wait under the name
``X.xtc.log_weights.next.npy`` while the data file is replaced, and readers take whichever of the two
has the SHA-256 that the sidecar records for the data found. What a killed writer left is put in
order by the next one; all of this happens while the folder is locked.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from ..errors import FileFormatError, IntegrityError
from ..storage.files import check_output, fsync_folder, read_limited, sha256
from . import npy
from .sidecar import Record, Weights, check_file, read_sidecar, sidecar_path, update

#: Bytes of a file beyond its numbers that are believed.
_HEADER = 10_100


def weights_path(path: Path) -> Path:
    """``X.xtc.log_weights.npy`` for a trajectory ``X.xtc``."""
    return path.with_name(f"{path.name}.log_weights.npy")


def _next(path: Path) -> Path:
    return path.with_name(f"{path.name}.log_weights.next.npy")


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse to write a trajectory whose log weights would take the place of another file.

    Raises
    ------
    OutputExistsError
        A file is there and ``overwrite`` is false, or a link, folder or device is.
    """
    check_output(weights_path(path), overwrite=overwrite)


def settle(path: Path) -> None:
    """Bring to its end, or undo, what a writer of ``path`` began that was killed."""
    waiting = _next(path)
    sidecar = read_sidecar(sidecar_path(path))
    if not waiting.exists() and (sidecar is None or path.name not in sidecar.pending):
        return
    record = None
    if sidecar is not None and sidecar.records(path.name) and path.is_file():
        # A file that is none of them is about to be replaced.
        with suppress(IntegrityError):
            record = check_file(path, sidecar.records(path.name))
    weights = record.log_weights if record is not None else None
    if waiting.exists() and weights is not None and sha256(waiting) == weights.sha256:
        os.replace(waiting, weights_path(path))
    waiting.unlink(missing_ok=True)
    if sidecar is not None:
        with update(sidecar_path(path)) as sidecar:
            sidecar.pending.pop(path.name, None)
            if record is not None:
                sidecar.files[path.name] = record


def stage(path: Path, spool: IO[bytes], count: int) -> Weights:
    """Write the log weights that wait in ``spool`` under their second name, and read them back.

    Raises
    ------
    IntegrityError
        What is read back is not what was written.
    """
    waiting = _next(path)
    with open(waiting, "xb") as file:
        digest = npy.write_spooled(file, spool, count)
        file.flush()
        os.fsync(file.fileno())
    fsync_folder(path.parent)
    if sha256(waiting) != digest:
        raise IntegrityError(f"{waiting}: log weights read back differ from what was written")
    return Weights(bytes=waiting.stat().st_size, sha256=digest)


def discard(path: Path) -> None:
    """Undo :func:`stage`."""
    _next(path).unlink(missing_ok=True)


def place(path: Path, weights: Weights | None) -> None:
    """Give staged log weights their name; where there are none, earlier ones go."""
    if weights is not None:
        os.replace(_next(path), weights_path(path))
    else:
        weights_path(path).unlink(missing_ok=True)
    fsync_folder(path.parent)


def read(path: Path, record: Record | None, frames: int) -> Tensor | None:
    """Log weights ``(frames,)`` float64 of a trajectory, or None where it has none.

    Without a record the file beside is believed if it fits.

    Raises
    ------
    IntegrityError
        They are missing, or not those that the sidecar records.
    FileFormatError
        The file is no array of that many numbers.
    """
    beside = weights_path(path)
    limit = 8 * frames + _HEADER
    if record is None:
        if not beside.exists():
            return None
        return _parse(beside, read_limited(beside, limit), frames)
    if record.log_weights is None:
        return None
    held = [place for place in (beside, _next(path)) if place.is_file()]
    for place in held:
        content = read_limited(place, limit)
        if hashlib.sha256(content).hexdigest() == record.log_weights.sha256:
            return _parse(place, content, frames)
    if not held:
        raise IntegrityError(
            f"{beside} is missing: {sidecar_path(path).name} records log weights of the samples in "
            f"{path.name}, without which they say something else"
        )
    size = beside.stat().st_size if beside.exists() else 0
    cause = (
        f"it has {size} bytes, {record.log_weights.bytes} were written"
        if size != record.log_weights.bytes
        else f"its SHA-256 is not {record.log_weights.sha256[:12]}..., which was written"
    )
    raise IntegrityError(f"{beside} does not match {sidecar_path(path).name}: {cause}")


def _parse(path: Path, content: bytes, count: int) -> Tensor:
    try:
        values = torch.from_numpy(npy.read_float64(content, count).copy())
    except ValueError as error:
        raise FileFormatError(f"{path} is no file of log weights: {error}") from None
    if not bool((values < torch.inf).all()):
        raise FileFormatError(f"{path} holds log weights that are NaN or +inf")
    return values
