"""Trajectories with their topology and sidecar: written whole and checked, or not at all."""

from __future__ import annotations

import errno
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from .. import __version__, memory
from ..errors import (
    FileFormatError,
    InputError,
    IntegrityError,
    MolsamplerError,
    OutputExistsError,
    ShapeError,
    StorageError,
)
from ..storage.files import atomic_path, check_output, check_space, sha256, write_bytes
from ..target import COORDINATE_LIMIT, System
from . import dcd, hdf5, pdb, xtc
from .lengths import Frames, from_nanometres, to_nanometres, topology_of
from .sidecar import (
    EnergySummary,
    Record,
    Sidecar,
    Topology,
    check_file,
    check_free,
    read_sidecar,
    sidecar_path,
    topology_path,
    update,
)

if TYPE_CHECKING:
    from ..samples import Samples

log = logging.getLogger("molsampler.export")

#: Frames that are converted, written and compared at once.
CHUNK = 4096
#: Relative error of a coordinate in a float32 file: two roundings.
FLOAT32 = 2.0**-22


@dataclass(frozen=True)
class Format:
    """A trajectory format: its module, and the spacing of its coordinates in nm (0: float32)."""

    description: str
    module: ModuleType
    spacing_nm: float
    bytes_per_atom: int

    @contextmanager
    def open(self, path: Path, *, trusted: bool = False) -> Iterator[tuple[int, int, Any]]:
        """Yield frames, atoms and an iterator over pieces of ``CHUNK`` frames.

        C libraries open in this process what is ``trusted`` alone.

        Raises
        ------
        FileFormatError
            The file is damaged, or not of this format.
        """
        with closing(self.module.items(path, CHUNK, trusted=trusted)) as items:
            frames, atoms = next(items)
            yield frames, atoms, items

    def inspect(self, path: Path) -> tuple[int, int]:
        """Frames and atoms."""
        with self.open(path) as (frames, atoms, _):
            return frames, atoms

    def write(
        self, path: Path, topology: Any, count: int
    ) -> AbstractContextManager[Callable[[Frames], None]]:
        return cast(
            AbstractContextManager[Callable[[Frames], None]],
            self.module.write(path, topology, count),
        )


TRAJECTORIES = {
    ".h5": Format("HDF5 in MDTraj's convention, float32 nm", hdf5, 0.0, 12),
    ".dcd": Format("DCD, float32 angstrom", dcd, 0.0, 12),
    ".xtc": Format("XTC, rounded to 1e-3 nm", xtc, 1e-3, 12),
    ".pdb": Format("PDB, rounded to 1e-3 angstrom", pdb, 1e-4, 81),
}


class EnergyStatistics:
    """Running mean and variance over blocks (Chan, Golub & LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = self.finite = 0
        self.mean = self.squares = 0.0
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, energies: Tensor) -> None:
        self.count += len(energies)
        kept = energies[torch.isfinite(energies)]
        if not len(kept):
            return
        mean, total = float(kept.mean()), self.finite + len(kept)
        shift = mean - self.mean
        self.squares += float((kept - mean).square().sum())
        self.squares += shift * shift * self.finite * len(kept) / total
        self.mean += shift * len(kept) / total
        self.finite = total
        self.minimum = min(self.minimum, float(kept.min()))
        self.maximum = max(self.maximum, float(kept.max()))

    def summary(self) -> EnergySummary:
        some = self.finite > 0
        return EnergySummary(
            count=self.count,
            nonfinite=self.count - self.finite,
            minimum=self.minimum if some else None,
            maximum=self.maximum if some else None,
            mean=self.mean if some else None,
            standard_deviation=(
                math.sqrt(self.squares / (self.finite - 1)) if self.finite > 1 else None
            ),
        )


def no_space(path: Path, expected: int) -> bool:
    """Whether the file system would refuse a file of ``expected`` bytes at ``path``.

    Libraries report a full disk as success, RuntimeError or TypeError; asking again is reliable.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    except OSError:
        return False
    try:
        size = os.fstat(descriptor).st_size
        os.posix_fallocate(descriptor, size, max(expected - size, 0) + 2**16)
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    finally:
        os.close(descriptor)
    return False


@contextmanager
def translated(path: Path, temporary: Path, expected: int) -> Iterator[None]:
    """Turn whatever a writer raises, or a failed read-back, into a :class:`StorageError`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, MolsamplerError) and not isinstance(error, FileFormatError):
            raise
        full = isinstance(error, OSError) and error.errno in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
        )
        if full or no_space(temporary, expected):
            raise StorageError(
                f"no space left to write {path}; the previous file is intact"
            ) from error
        raise StorageError(f"cannot write {path}: {error}") from error


class _Originals:
    """The frames once more, for comparison with what was written.

    Blocks that can be iterated twice are; those of a generator are kept in an unnamed file beside
    the output.
    """

    def __init__(self, blocks: Iterable[Samples], system: System, count: int, folder: Path) -> None:
        self.blocks = blocks
        self.length_nm = system.length_nm
        self.system = system
        self.count = count
        self.atoms = system.shape[0]
        self.frame: Frames = np.zeros((self.atoms, 3), dtype=np.float32)
        once = iter(blocks) is blocks
        self.spool = tempfile.TemporaryFile(dir=folder) if once else None  # noqa: SIM115

    def first(self, energies: EnergyStatistics) -> Iterator[Frames]:
        done = 0
        for block in self.blocks:
            if tuple(block.positions.shape[1:]) != self.system.shape:
                raise ShapeError(
                    f"samples of shape {tuple(block.positions.shape)} do not match system "
                    f"{self.system.name!r} with {self.system.shape[0]} particles in "
                    f"{self.system.shape[1]} dimensions"
                )
            energies.add(block.energies)
            if energies.count > self.count:
                raise InputError(f"more samples came than the {self.count} announced")
            for positions in torch.split(block.positions, CHUNK):
                frames = to_nanometres(positions, self.length_nm)
                if not done:
                    self.frame = frames[0]
                done += len(frames)
                if self.spool is not None:
                    self.spool.write(frames.tobytes())
                yield frames
        if energies.count != self.count:
            raise InputError(f"{energies.count} samples came where {self.count} were announced")

    def again(self) -> Iterator[Frames]:
        """The frames in pieces of ``CHUNK``."""
        if self.spool is not None:
            self.spool.seek(0)
            while content := self.spool.read(CHUNK * self.atoms * 12):
                yield np.frombuffer(content, dtype=np.float32).reshape(-1, self.atoms, 3)
            return
        held = np.empty((0, self.atoms, 3), dtype=np.float32)
        for block in self.blocks:
            for positions in torch.split(block.positions, CHUNK):
                held = np.concatenate([held, to_nanometres(positions, self.length_nm)])
                if len(held) >= CHUNK:
                    yield held[:CHUNK]
                    held = held[CHUNK:]
        if len(held):
            yield held

    def close(self) -> None:
        if self.spool is not None:
            self.spool.close()


def _verify(path: Path, form: Format, originals: Iterator[Frames], count: int, atoms: int) -> None:
    """Read a file back and compare frames, atoms and coordinates with the originals."""
    done = 0
    with form.open(path, trusted=True) as (*found, pieces):
        if found != [count, atoms]:
            raise IntegrityError(
                f"{path} holds {found[0]} frames of {found[1]} atoms after writing {count} of {atoms}"
            )
        for expected, read in zip(originals, pieces, strict=True):
            allowed = form.spacing_nm / 2 * 1.001 + FLOAT32 * np.abs(expected)
            # Not "error > allowed": a NaN must fail.
            if expected.shape != read.shape or not np.all(np.abs(read - expected) <= allowed):
                raise IntegrityError(
                    f"{path}: frames {done} to {done + len(expected)} read back differ from what was "
                    "written"
                )
            done += len(expected)


def _atoms(text: str) -> list[str]:
    """Serial number, names and element of each atom of a PDB text's first model."""
    lines = text.split("ENDMDL", 1)[0].splitlines()
    return [line[:30] + line[76:78] for line in lines if line.startswith(("ATOM", "HETATM"))]


def _check_topology(path: Path, data: Path, wanted: str, *, overwrite: bool) -> bool:
    """Whether ``X.pdb`` already names the right atoms, so that it is left alone.

    Raises
    ------
    OutputExistsError
        It names others, and is neither the file being replaced nor the topology of that file alone.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OutputExistsError(f"{path} is a link, folder or device; the topology would go there")
    if not path.exists():
        return False
    with open(path, encoding="ascii", errors="replace") as file:
        held = _atoms(file.read(len(wanted) + 2**16))
    if held == _atoms(wanted):
        return True
    sidecar = read_sidecar(sidecar_path(path)) or Sidecar()
    ours = path == data or (
        sidecar.topology is not None and sidecar.topology.sha256 == sha256(path)
    )
    if overwrite and ours and set(sidecar.files) <= {data.name}:
        return False
    raise OutputExistsError(
        f"{path} exists and names {len(held)} atoms that do not match the {len(_atoms(wanted))} "
        f"particles of {data.name}; choose another file name"
    )


def save_trajectory(
    path: Path,
    blocks: Iterable[Samples],
    *,
    count: int,
    system: System,
    metadata: Callable[[], dict[str, Any]],
    overwrite: bool,
) -> None:
    """Write ``count`` samples that arrive in blocks; see :func:`molsampler.export.save_blocks`."""
    form = TRAJECTORIES[path.suffix]
    check_output(path, overwrite=overwrite)
    topology = topology_of(system)
    atoms, dimension = system.shape
    if dimension > 3:
        raise InputError(f"a trajectory has three dimensions, {system.name!r} has {dimension}")
    model = pdb.one_model(topology, np.zeros((atoms, 3), dtype=np.float32))
    beside = sidecar_path(path)
    check_free(beside)
    named = _check_topology(topology_path(path), path, model, overwrite=overwrite)
    if form.spacing_nm >= 1e-3:
        log.warning(
            "%s keeps coordinates to %g nm only (%.2g of the length unit of %s): energies "
            "recomputed from it will differ; .h5, .dcd and .npz keep float32",
            path.name,
            form.spacing_nm,
            form.spacing_nm / system.length_nm,
            system.name,
        )
    expected = 2**12 + count * (100 + atoms * form.bytes_per_atom)
    # The frames are kept twice until they have been compared.
    check_space(path, expected + 12 * count * atoms)
    statistics = EnergyStatistics()
    originals = _Originals(blocks, system, count, path.parent)
    try:
        with atomic_path(path, overwrite=overwrite) as temporary:
            with translated(path, temporary, expected):
                with form.write(temporary, topology, count) as append:
                    for frames in originals.first(statistics):
                        append(frames)
                _verify(temporary, form, originals.again(), count, atoms)
            record = Record(
                format=path.suffix[1:],
                frames=count,
                particles=atoms,
                dimension=dimension,
                length_nm=system.length_nm,
                precision_nm=form.spacing_nm or None,
                bytes=temporary.stat().st_size,
                sha256=sha256(temporary),
                energies=statistics.summary(),
                provenance=metadata(),
                version=__version__,
            )
            if path.suffix != ".pdb" and not named:
                model = pdb.one_model(topology, originals.frame)
                write_bytes(topology_path(path), model.encode("ascii"))
            with update(beside) as sidecar:
                sidecar.pending[path.name] = record
        with update(beside) as sidecar:
            sidecar.files[path.name] = record
            sidecar.pending.pop(path.name, None)
            pdb_file = topology_path(path)
            sidecar.topology = Topology(file=pdb_file.name, atoms=atoms, sha256=sha256(pdb_file))
    finally:
        originals.close()


def load_trajectory(path: Path, system: System | str | None) -> Samples:
    """Read a trajectory; see :func:`molsampler.export.load`."""
    from ..samples import Samples
    from ..systems import resolve_recorded

    form = TRAJECTORIES[path.suffix]
    sidecar = read_sidecar(sidecar_path(path))
    records = sidecar.records(path.name) if sidecar is not None else []
    record = check_file(path, records) if records else None
    if record is None:
        log.warning(
            "nothing records the SHA-256 of %s (no sidecar %s describes it): damage inside its "
            "coordinates would go unnoticed",
            path,
            sidecar_path(path).name,
        )
    provenance = dict(record.provenance) if record is not None else {}
    resolved = resolve_recorded(provenance.get("system"), given=system, source=path)
    particles, dimension = resolved.shape
    length = record.length_nm if record is not None else resolved.length_nm
    with form.open(path) as (frames, atoms, chunks):
        if not frames:
            raise FileFormatError(f"{path} holds no frames")
        if atoms != particles:
            raise ShapeError(
                f"{path} has {atoms} atoms a frame, system {resolved.name!r} has {particles} particles"
            )
        if record is not None and record.frames != frames:
            raise IntegrityError(
                f"{path} holds {frames} frames, its sidecar records {record.frames}"
            )
        memory.require(
            frames * atoms * (12 + 4 * dimension) + 16 * frames,
            purpose=f"reading {frames} frames from {path}",
            remedy="read it where there is more memory",
        )
        pieces, done = [], 0
        for chunk in chunks:
            if not np.all(np.abs(chunk) <= COORDINATE_LIMIT * length):
                bad = ~(np.abs(chunk) <= COORDINATE_LIMIT * length)
                raise FileFormatError(
                    f"{path} is damaged: frame {done + int(np.argwhere(bad)[0][0])} has NaN, infinite "
                    "or absurd coordinates"
                )
            pieces.append(from_nanometres(chunk, length, dimension, source=str(path)))
            done += len(chunk)
    if done != frames:
        raise FileFormatError(f"{path} announces {frames} frames and gives {done}")
    if form.spacing_nm:
        provenance["precision_nm"] = form.spacing_nm
        log.warning(
            "%s keeps coordinates to %g nm only: energies recomputed from it are approximate",
            path.name,
            form.spacing_nm,
        )
    provenance.setdefault("system", resolved.record())
    samples = Samples.of(resolved, torch.cat(pieces))
    return Samples(samples.positions, samples.energies, None, provenance)
