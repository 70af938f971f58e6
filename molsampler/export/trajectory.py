"""Trajectories with their topology and sidecar: written whole and checked, or not at all.

A trajectory format is a :class:`Trajectory` that says how frames in nanometres enter and leave its
file. Everything else is done here: lengths, the topology ``X.pdb``, the sidecar ``X.json``, log
weights, atomic replacement, and comparison of what was written with what should have been.
"""

from __future__ import annotations

import logging
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from .. import memory
from ..errors import FileFormatError, InputError, IntegrityError, ShapeError
from ..estimate import effective_count
from ..storage.files import sha256, write_bytes
from ..systems import resolve_recorded
from ..target import COORDINATE_LIMIT, System
from ..version import __version__
from . import log_weights, npy
from .energy_statistics import EnergyStatistics, EnergySummary
from .format import Output
from .lengths import Frames, from_nanometres, to_nanometres, topology_of
from .new_file import new_file
from .sidecar import (
    Record,
    Topology,
    check_file,
    check_free,
    locked,
    read_sidecar,
    sidecar_path,
    topology_path,
    update,
)
from .topology import check_topology, one_model

if TYPE_CHECKING:
    from ..samples import Samples

log = logging.getLogger("molsampler.export")

#: Frames that are converted, written and compared at once.
CHUNK = 4096
#: Relative error of a coordinate in a float32 file: two roundings.
FLOAT32 = 2.0**-22


class Opened(NamedTuple):
    """A trajectory that is being read."""

    frames: int
    atoms: int
    #: Frames ``(<= CHUNK, N, 3)`` float32 in nm, in order.
    pieces: Iterator[Frames]


class Trajectory(ABC):
    """A format of frames in nanometres; see :class:`molsampler.export.format.Format`."""

    suffix: str
    description: str
    precision_nm: float = 0.0
    complete: bool = False
    #: Bytes that an atom takes in a frame, for an estimate of the file.
    bytes_per_atom: int = 12

    @abstractmethod
    def writer(
        self, path: Path, topology: Any, count: int
    ) -> AbstractContextManager[Callable[[Frames], None]]:
        """Yield a function that appends frames ``(n, N, 3)`` in nm; ``count`` will come in all.

        ``topology`` is MDTraj's. Whatever it raises is reported as a :class:`StorageError`, but for
        the :class:`InputError` of a coordinate that does not fit.
        """

    @abstractmethod
    def open(self, path: Path, *, trusted: bool = False) -> AbstractContextManager[Opened]:
        """Yield the number of frames and atoms, and the frames in pieces.

        ``trusted`` files were written by this process just now; libraries that a damaged file could
        crash open others in a process of their own.

        Raises
        ------
        FileFormatError
            The file is damaged, or not of this format.
        """

    def boxes(self, path: Path) -> NDArray[np.float64] | None:
        """Box vectors ``(frames, 3, 3)`` in nm, rows a, b, c, zero where a frame has none; None where the
        format holds none or they are not read."""
        return None

    def write(self, path: Path, output: Output) -> None:
        """Write a trajectory and record it; see :meth:`molsampler.export.format.Format.write`."""
        system, count = output.system, output.count
        if system is None:
            raise InputError(f"{path.name}: a trajectory needs to know its system; pass system=")
        topology = topology_of(system)
        atoms, dimension = system.shape
        if dimension > 3:
            raise InputError(f"a trajectory has three dimensions, {system.name!r} has {dimension}")
        model = one_model(topology, np.zeros((atoms, 3), dtype=np.float32))
        beside = sidecar_path(path)
        check_free(beside)
        named = check_topology(path, model, overwrite=output.overwrite)
        if self.precision_nm >= 1e-3:
            log.warning(
                "%s keeps coordinates to %g nm only (%.2g of the length unit of %s): energies "
                "recomputed from it will differ; .h5, .dcd and .npz keep float32",
                path.name,
                self.precision_nm,
                self.precision_nm / system.length_nm,
                system.name,
            )
        log_weights.check_free(path, overwrite=output.overwrite)
        with ExitStack() as lock:
            with (
                new_file(
                    path,
                    expected=2**12 + count * (100 + atoms * self.bytes_per_atom),
                    spooled=count * (12 * atoms + 16),
                    overwrite=output.overwrite,
                ) as temporary,
                tempfile.TemporaryFile(dir=path.parent) as originals,
                tempfile.TemporaryFile(dir=path.parent) as weights,
            ):
                with self.writer(temporary, topology, count) as append:
                    energies = _fill(append, originals, weights, output, system)
                _verify(self, temporary, originals, count, atoms)
                record = Record(
                    format=self.suffix[1:],
                    frames=count,
                    particles=atoms,
                    dimension=dimension,
                    length_nm=system.length_nm,
                    precision_nm=self.precision_nm or None,
                    bytes=temporary.stat().st_size,
                    sha256=sha256(temporary),
                    energies=energies,
                    provenance=output.metadata(),
                    version=__version__,
                )
                if path != topology_path(path) and not named:
                    first = next(_spooled(originals, atoms))[0]
                    write_bytes(topology_path(path), one_model(topology, first).encode("ascii"))
                # Held until the data file has its name and what lies beside it is in order.
                lock.enter_context(locked(path.parent))
                log_weights.settle(path)
                try:
                    if weights.tell():
                        record.log_weights = log_weights.stage(path, weights, count)
                    with update(beside) as sidecar:
                        sidecar.pending[path.name] = record
                except BaseException:
                    log_weights.discard(path)
                    raise
            with update(beside) as sidecar:
                sidecar.files[path.name] = record
                sidecar.pending.pop(path.name, None)
                pdb = topology_path(path)
                sidecar.topology = Topology(file=pdb.name, atoms=atoms, sha256=sha256(pdb))
            log_weights.place(path, record.log_weights)

    def inspect(self, path: Path) -> dict[str, Any]:
        """What a trajectory holds; see :meth:`molsampler.export.format.Format.inspect`."""
        sidecar = read_sidecar(sidecar_path(path))
        records = sidecar.records(path.name) if sidecar is not None else []
        record = check_file(path, records) if records else None
        with self.open(path) as (frames, atoms, _):
            weights = log_weights.read(path, record, frames)
        report: dict[str, Any] = {
            "frames": frames,
            "particles": atoms,
            "ess": None if weights is None else effective_count(weights),
        }
        if record is not None:
            kept = {"dimension", "length_nm", "precision_nm", "energies", "provenance", "version"}
            return {
                **report,
                "intact": True,
                "sidecar": str(sidecar_path(path)),
                **record.model_dump(include=kept),
            }
        topology = sidecar.topology if sidecar is not None else None
        if topology is not None and topology.file == path.name:
            report["description"] = "topology of the trajectories that its sidecar lists"
            report["sidecar"] = str(sidecar_path(path))
            report["intact"] = topology.sha256 == sha256(path)
            if not report["intact"]:
                report["problem"] = f"{path} is not the topology that its sidecar records"
        return report

    def load(self, path: Path, system: System | str | None) -> Samples:
        """The samples of a trajectory; see :func:`molsampler.export.load`."""
        from ..samples import Samples

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
        with self.open(path) as (frames, atoms, chunks):
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
                frames * (atoms * (12 + 4 * dimension) + 32),
                purpose=f"reading {frames} frames from {path}",
                remedy="read it where there is more memory",
            )
            weights = log_weights.read(path, record, frames)
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
        if self.precision_nm:
            provenance["precision_nm"] = self.precision_nm
            log.warning(
                "%s keeps coordinates to %g nm only: energies recomputed from it are approximate",
                path.name,
                self.precision_nm,
            )
        provenance.setdefault("system", resolved.record())
        samples = Samples.of(resolved, torch.cat(pieces))
        written = None if record is None else record.energies.mean
        if self.precision_nm and written is not None:
            # What rounding has added to the energies.
            known = samples.energies[samples.energies.isfinite()]
            provenance["energy_shift"] = float(known.mean()) - written if len(known) else None
        return Samples(samples.positions, samples.energies, weights, provenance)


def _fill(
    append: Callable[[Frames], None],
    originals: IO[bytes],
    weights: IO[bytes],
    output: Output,
    system: System,
) -> EnergySummary:
    """Append all frames; keep them once more for comparison, and the log weights, in two files."""
    statistics = EnergyStatistics()
    for block in output.checked(system.shape):
        statistics.add(block.energies)
        if block.log_weights is not None:
            weights.write(npy.float64(block.log_weights))
        for positions in torch.split(block.positions, CHUNK):
            frames = to_nanometres(positions, system.length_nm)
            originals.write(frames.tobytes())
            append(frames)
    return statistics.summary()


def _rechunked(pieces: Iterable[Frames], size: int) -> Iterator[Frames]:
    """The same frames in pieces of ``size``, the last one shorter."""
    held: Frames | None = None
    for piece in pieces:
        held = piece if held is None else np.concatenate([held, piece])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if held is not None and len(held):
        yield held


def _spooled(file: IO[bytes], atoms: int) -> Iterator[Frames]:
    file.seek(0)
    while content := file.read(CHUNK * atoms * 12):
        yield np.frombuffer(content, dtype=np.float32).reshape(-1, atoms, 3)


def _verify(form: Trajectory, path: Path, originals: IO[bytes], count: int, atoms: int) -> None:
    """Read a file back and compare frames, atoms and coordinates with the originals."""
    done = 0
    with form.open(path, trusted=True) as (*found, pieces):
        if found != [count, atoms]:
            raise IntegrityError(
                f"{path} holds {found[0]} frames of {found[1]} atoms after writing {count} of {atoms}"
            )
        for expected, read in zip(
            _spooled(originals, atoms), _rechunked(pieces, CHUNK), strict=True
        ):
            allowed = form.precision_nm / 2 * 1.001 + FLOAT32 * np.abs(expected)
            # Not "error > allowed": a NaN must fail.
            if expected.shape != read.shape or not np.all(np.abs(read - expected) <= allowed):
                raise IntegrityError(
                    f"{path}: frames {done} to {done + len(expected)} read back differ from what was "
                    "written"
                )
            done += len(expected)
