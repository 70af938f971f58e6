"""The ``.npz`` format: ``positions``, ``energies``, ``metadata`` and, where there are any,
``log_weights``.

It is a zip archive of ``.npy`` members that needs no library but numpy and loads with
``allow_pickle=False``. Each member carries a CRC-32 that is checked on reading, and the provenance is
a member too, so these files have no sidecar. Every number keeps every bit.

    positions    (n, N, D) float32, the system's unit of length
    energies     (n,) float64, reduced
    log_weights  (n,) float64, log of target over proposal
    metadata     JSON text

A part of a run (:mod:`molsampler.export.parts`) has one more array, which other readers leave alone. Files of
other origin may hold ``positions`` alone, in float32 or float64.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray

from .. import memory
from ..errors import (
    FileFormatError,
    InputError,
    IntegrityError,
    MolsamplerError,
    NonFiniteError,
    ShapeError,
)
from ..estimate import effective_count
from ..systems import resolve_recorded
from ..target import System
from . import npy
from .energy_statistics import EnergyStatistics
from .format import Output
from .new_file import new_file

if TYPE_CHECKING:
    from ..samples import Samples

#: Members that are read; archives with others are accepted and those are left alone.
MEMBERS = ("positions", "energies", "log_weights", "metadata")
#: Bounds on what a file may make its reader do.
MAX_MEMBERS = 64
MAX_HEADER = 10_000
MAX_METADATA = 2**20
MAX_EXPANSION = 1000
_PIECE = 2**22


class Content(NamedTuple):
    """Arrays of a file; energies and log weights are None where it has none."""

    positions: NDArray[np.float32]
    energies: NDArray[np.float64] | None
    log_weights: NDArray[np.float64] | None
    metadata: dict[str, Any]


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    # A fixed date makes equal samples equal files.
    info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    return archive.open(info, "w", force_zip64=True)


def _write(path: Path, output: Output, shape: tuple[int, int]) -> None:
    """Write the archive and read it back.

    Energies wait in an unnamed file beside ``path``, as zip members are written one after another.

    Raises
    ------
    IntegrityError
        What is read back is not what was written.
    """
    count = output.count
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive,
        tempfile.TemporaryFile(dir=path.parent) as energies,
        tempfile.TemporaryFile(dir=path.parent) as log_weights,
    ):
        spools = {"energies": energies}
        with _member(archive, "positions") as member:
            npy.write_header(member, "<f4", (count, *shape))
            for block in output.checked(shape):
                member.write(block.positions.numpy().astype("<f4").tobytes())
                energies.write(npy.float64(block.energies))
                if block.log_weights is not None:
                    spools["log_weights"] = log_weights
                    log_weights.write(npy.float64(block.log_weights))
        for name, spool in spools.items():
            with _member(archive, name) as member:
                npy.write_spooled(member, spool, count)
        for name, values in output.extras().items():
            with _member(archive, name) as member:
                npy.write_header(member, "<f8", tuple(values.shape))
                member.write(npy.float64(values))
        with _member(archive, "metadata") as member:
            text = np.array(json.dumps(output.metadata(), allow_nan=False))
            np.lib.format.write_array(member, text, allow_pickle=False)
    _verify(path, (count, *shape))


def _layout(
    member: IO[bytes], info: zipfile.ZipInfo, path: Path
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, dtype and bytes of the array in an open member, which is left at the array's start."""
    name = info.filename
    try:
        version = np.lib.format.read_magic(member)
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = reader(member, max_header_size=MAX_HEADER)
    except (ValueError, KeyError, SyntaxError, TypeError, EOFError, TokenError) as error:
        raise FileFormatError(f"{path}: member {name} is not a plain array: {error}") from None
    if dtype.hasobject:
        raise FileFormatError(f"{path}: member {name} holds pickled objects; refused")
    if dtype.kind not in "fU" or fortran or min(shape, default=0) < 0 or len(shape) > 3:
        raise FileFormatError(
            f"{path}: member {name} has dtype {dtype}, shape {shape}, Fortran order {fortran}; "
            "C-ordered numbers or text are expected"
        )
    size = math.prod(int(k) for k in shape) * dtype.itemsize
    if size != info.file_size - member.tell():
        raise FileFormatError(
            f"{path}: member {name} announces an array of {size} bytes and holds "
            f"{info.file_size - member.tell()}"
        )
    if size == 0:
        raise FileFormatError(f"{path}: member {name} is empty, shape {shape}")
    if dtype.kind == "U" and size > 4 * MAX_METADATA:
        raise FileFormatError(f"{path}: member {name} has {size} bytes of text; refused")
    return shape, dtype, size


def _pieces(
    member: IO[bytes], size: int, name: str, path: Path, *, whole: bool = True
) -> Iterator[bytes]:
    """The array's bytes; reading on to the end of the ``whole`` makes zipfile compare the CRC-32."""
    done = 0
    while done < size:
        piece = member.read(min(_PIECE, size - done))
        if not piece:
            raise FileFormatError(f"{path}: member {name} ends after {done} of {size} bytes")
        yield piece
        done += len(piece)
    if whole and member.read(1):
        raise FileFormatError(f"{path}: member {name} is longer than announced")


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> NDArray[Any]:
    """One member in memory; header, size and CRC-32 are checked before and while it is read."""
    with archive.open(info) as member:
        shape, dtype, size = _layout(member, info, path)
        memory.require(
            size, purpose=f"reading {path}", remedy="read it where there is more, or in parts"
        )
        buffer = bytearray(size)
        view, done = memoryview(buffer), 0
        for piece in _pieces(member, size, info.filename, path):
            view[done : done + len(piece)] = piece
            done += len(piece)
    return np.frombuffer(buffer, dtype=dtype).reshape(shape)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, its table of members checked; whatever damage provokes becomes FileFormatError."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive.infolist(), path)
            yield archive
    except MolsamplerError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise FileFormatError(
            f"{path} is not an .npz file, or truncated or damaged: {error}"
        ) from error
    except (OSError, RuntimeError, ValueError, IndexError, struct.error) as error:
        # Damaged offsets make zipfile seek and index out of bounds, or ask for a password.
        raise FileFormatError(f"{path} is damaged: {error}") from error


def _verify(path: Path, shape: tuple[int, ...]) -> None:
    """Read everything back, without holding it in memory.

    The CRC-32 of a member is that of the bytes that were handed over for it, so reading to the end
    compares those with the file.
    """
    found = {}
    with _opened(path) as archive:
        for info in archive.infolist():
            with archive.open(info) as member:
                found[info.filename], _, size = _layout(member, info, path)
                for _ in _pieces(member, size, info.filename, path):
                    pass
    if found["positions.npy"] != shape:
        raise IntegrityError(f"{path}: positions of shape {shape} read back as {found}")


def read(path: Path) -> Content:
    """Read and check a file.

    Raises
    ------
    FileFormatError
        It is not an archive of plain arrays, is truncated or damaged, or asks for more than its
        size can hold.
    ResourceError
        Its arrays would not fit in memory.
    """
    with _opened(path) as archive:
        arrays = {}
        for info in archive.infolist():
            if info.filename == "weights.npy":
                raise FileFormatError(
                    f"{path} holds 'weights'; only their logarithms, 'log_weights', are read, and "
                    "weights are never left out"
                )
            if info.filename.endswith(".npy") and info.filename[:-4] in MEMBERS:
                arrays[info.filename[:-4]] = _array(archive, info, path)
            else:
                # A member is named twice; opening compares, so damage cannot make one disappear.
                archive.open(info).close()
    return _content(arrays, path)


def head(path: Path, *names: str) -> tuple[tuple[int, ...], dict[str, Any], list[NDArray[Any]]]:
    """Shape of the positions, metadata, and the arrays of other members of those names that are there.

    Raises
    ------
    FileFormatError
        See :func:`read`.
    """
    with _opened(path) as archive:
        infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if not {"positions", "metadata"} <= infos.keys():
            raise FileFormatError(f"{path}: arrays 'positions' and 'metadata' are expected")
        with archive.open(infos["positions"]) as member:
            shape, _, _ = _layout(member, infos["positions"], path)
        others = [_array(archive, infos[name], path) for name in names if name in infos]
        metadata = _metadata(_array(archive, infos["metadata"], path), path)
    return shape, metadata, others


class _Column:
    """A member that is read some rows at a time."""

    def __init__(self, member: IO[bytes], info: zipfile.ZipInfo, path: Path, descr: str):
        self.member, self.name, self.path = member, info.filename, path
        self.shape, self.dtype, _ = _layout(member, info, path)
        if self.dtype != np.dtype(descr):
            raise FileFormatError(f"{path}: member {self.name} must be {descr}, got {self.dtype}")

    def take(self, rows: int) -> torch.Tensor:
        """The next rows."""
        shape = (rows, *self.shape[1:])
        buffer = bytearray(math.prod(shape) * self.dtype.itemsize)
        view, done = memoryview(buffer), 0
        for piece in _pieces(self.member, len(buffer), self.name, self.path, whole=False):
            view[done : done + len(piece)] = piece
            done += len(piece)
        return torch.from_numpy(np.frombuffer(buffer, dtype=self.dtype).reshape(shape))

    def end(self) -> None:
        """Read on to the end, where zipfile compares the CRC-32."""
        if self.member.read(1):
            raise FileFormatError(f"{self.path}: member {self.name} is longer than announced")


def blocks(path: Path, *, rows: int = 2**13) -> Generator[Samples, None, None]:
    """The samples of a file, ``rows`` at a time, without metadata, in memory that does not grow with it.

    A file that does not keep its checksums is told when its last rows are asked for, before they are given.

    Raises
    ------
    FileFormatError
        See :func:`read`; or positions are not float32, or there are no energies of float64.
    """
    from ..samples import Samples

    with _opened(path) as archive, ExitStack() as stack:
        infos = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        columns = {}
        for name, descr in (("positions", "<f4"), ("energies", "<f8"), ("log_weights", "<f8")):
            if name in infos:
                member = stack.enter_context(archive.open(infos[name]))
                columns[name] = _Column(member, infos[name], path, descr)
            elif name != "log_weights":
                raise FileFormatError(f"{path}: an array {name!r} is expected, got none")
        count = columns["positions"].shape[0]
        for name, column in columns.items():
            if column.shape[0] != count or len(column.shape) != (3 if name == "positions" else 1):
                raise FileFormatError(f"{path}: member {name} has the shape {column.shape}")
        for start in range(0, count, rows):
            size = min(rows, count - start)
            taken = {name: column.take(size) for name, column in columns.items()}
            if start + size == count:
                for column in columns.values():
                    column.end()
            try:
                samples = Samples(taken["positions"], taken["energies"], taken.get("log_weights"))
            except NonFiniteError as error:
                raise FileFormatError(f"{path}: {error}") from None
            yield samples


def _check_members(infos: list[zipfile.ZipInfo], path: Path) -> None:
    names = [info.filename for info in infos]
    if len(infos) > MAX_MEMBERS or len(set(names)) != len(names):
        raise FileFormatError(f"{path} has {len(names)} members, some perhaps twice; refused")
    size = path.stat().st_size
    if sum(info.compress_size for info in infos) > size:
        raise FileFormatError(f"{path} has members that overlap; refused")
    for info in infos:
        if info.flag_bits & 1 or info.compress_type not in (
            zipfile.ZIP_STORED,
            zipfile.ZIP_DEFLATED,
        ):
            raise FileFormatError(
                f"{path}: member {info.filename!r} is encrypted or of an odd kind"
            )
        stored = info.compress_type == zipfile.ZIP_STORED
        if info.file_size > (1 if stored else MAX_EXPANSION) * info.compress_size:
            raise FileFormatError(
                f"{path}: member {info.filename!r} claims to expand from {info.compress_size} to "
                f"{info.file_size} bytes; refused"
            )


def _content(arrays: dict[str, NDArray[Any]], path: Path) -> Content:
    positions = arrays.get("positions")
    if positions is None or positions.ndim != 3 or positions.dtype.kind != "f":
        got = "none" if positions is None else f"{positions.dtype} {positions.shape}"
        raise FileFormatError(
            f"{path}: an array 'positions' of shape (n, N, D) is expected, got {got}"
        )
    for name in ("energies", "log_weights"):
        array = arrays.get(name)
        if array is not None and (array.dtype.kind != "f" or array.shape != positions.shape[:1]):
            raise FileFormatError(
                f"{path}: {name} of shape ({len(positions)},) expected, "
                f"got {array.dtype} {array.shape}"
            )
    text = arrays.get("metadata")
    metadata = {} if text is None else _metadata(text, path)
    # Energies of less than float64 are recomputed where the system is known.
    energies = arrays.get("energies")
    if energies is not None and energies.dtype.itemsize < 8:
        energies = None
    with np.errstate(over="ignore"):  # an overflow becomes inf, which the caller refuses by name
        return Content(
            positions.astype("<f4", copy=False),
            energies.astype("<f8", copy=False) if energies is not None else None,
            None
            if "log_weights" not in arrays
            else arrays["log_weights"].astype("<f8", copy=False),
            metadata,
        )


def _metadata(text: NDArray[Any], path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(str(text[()]))
    except (ValueError, RecursionError, TypeError, IndexError) as error:
        raise FileFormatError(f"{path}: metadata is not JSON text: {error}") from None
    if not isinstance(metadata, dict):
        raise FileFormatError(f"{path}: metadata must be a JSON object")
    return metadata


class NPZFormat:
    """Everything that samples have, in one file."""

    suffix = ".npz"
    description = "numpy arrays: positions float32, energies float64, metadata; lossless"
    precision_nm = 0.0
    complete = True

    def write(self, path: Path, output: Output) -> None:
        """Write a file; see :meth:`molsampler.export.format.Format.write`."""
        blocks = iter(output.blocks)
        first = next(blocks, None)
        if first is None:
            raise InputError(f"0 samples came where {output.count} were announced")
        particles, dimension = first.positions.shape[1:]
        output = replace(output, blocks=itertools.chain([first], blocks))
        with new_file(
            path,
            expected=2**12 + output.count * (4 * particles * dimension + 24),
            # Energies and log weights wait in files of their own.
            spooled=16 * output.count,
            overwrite=output.overwrite,
        ) as temporary:
            _write(temporary, output, (particles, dimension))

    def inspect(self, path: Path) -> dict[str, Any]:
        """What a file holds; see :meth:`molsampler.export.format.Format.inspect`."""
        content = read(path)
        statistics = EnergyStatistics()
        if content.energies is not None:
            statistics.add(torch.from_numpy(content.energies))
        log_weights = content.log_weights
        return {
            "frames": len(content.positions),
            "particles": content.positions.shape[1],
            "dimension": content.positions.shape[2],
            "energies": statistics.summary().model_dump(),
            "provenance": content.metadata,
            "ess": None if log_weights is None else effective_count(torch.from_numpy(log_weights)),
            "intact": True,
        }

    def load(self, path: Path, system: System | str | None) -> Samples:
        """The samples of a file, whose system need not be known where it holds energies."""
        from ..samples import Samples, reduced_energies

        content = read(path)
        positions = torch.from_numpy(content.positions)
        recorded = content.metadata.get("system")
        energies = None if content.energies is None else torch.from_numpy(content.energies)
        resolved = None
        if system is not None or energies is None:
            resolved = resolve_recorded(recorded, given=system, source=path)
        if resolved is not None and tuple(positions.shape[1:]) != resolved.shape:
            raise ShapeError(
                f"{path} holds positions of shape {tuple(positions.shape)}, system {resolved.name!r} "
                f"has shape (n, {resolved.shape[0]}, {resolved.shape[1]})"
            )
        try:
            if energies is None:
                energies = reduced_energies(cast(System, resolved), positions)
            metadata = dict(content.metadata)
            if resolved is not None:
                metadata.setdefault("system", resolved.record())
            log_weights = content.log_weights
            return Samples(
                positions,
                energies,
                None if log_weights is None else torch.from_numpy(log_weights),
                metadata,
            )
        except NonFiniteError as error:
            raise FileFormatError(f"{path}: {error}") from None


NPZ = NPZFormat()
