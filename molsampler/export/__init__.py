"""Samples in files that viewers and analysis packages open, written whole or not at all.

======== ============================================== ==========================================
suffix   content                                        error of a coordinate
======== ============================================== ==========================================
``.npz`` positions, energies, weights, metadata         none
``.h5``  HDF5 in MDTraj's convention, with topology     float32 rounding
``.dcd`` DCD                                            float32 rounding
``.xtc`` XTC                                            5e-4 nm (none up to nine atoms)
``.pdb`` PDB, one model a sample                        5e-5 nm
======== ============================================== ==========================================

Trajectories are in nanometres (angstrom where the format says so): reduced lengths are multiplied by
the system's ``length_nm``, planar systems get z = 0. They store no energies; reading recomputes them
in float64 from the coordinates found, so their error is the force times the coordinate's error, and
a steep potential makes much of the 5e-4 nm of XTC. ``.npz`` alone returns the energies that were
saved, bit for bit.

Beside a trajectory ``X.xtc`` lie its topology ``X.pdb`` and a sidecar ``X.json`` with provenance,
frame count and SHA-256, shared by all trajectories ``X.*`` of the folder (see ``sidecar``). ``.npz``
files carry provenance and checksums inside and need neither.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ..errors import (
    FileFormatError,
    InputError,
    MolsamplerError,
    NonFiniteError,
    ShapeError,
    nearest,
)
from ..storage.files import atomic_path, check_output, check_space, sha256
from ..target import System
from . import npz
from .sidecar import check_file, read_sidecar, sidecar_path
from .trajectory import (
    TRAJECTORIES,
    EnergyStatistics,
    load_trajectory,
    save_trajectory,
    translated,
)

if TYPE_CHECKING:
    from ..samples import Samples

__all__ = ["FORMATS", "convert", "describe", "load", "save", "save_blocks"]

#: Suffix -> what the format is.
FORMATS: dict[str, str] = {
    ".npz": "numpy arrays: positions float32, energies float64, metadata; lossless",
    **{suffix: form.description for suffix, form in TRAJECTORIES.items()},
}


def _suffix(path: Path) -> str:
    if path.suffix not in FORMATS:
        raise InputError(
            f"{path.name!r} has suffix {path.suffix!r}; expected one of {', '.join(FORMATS)}"
            f"{nearest(path.suffix, list(FORMATS))}"
        )
    return path.suffix


def save(
    samples: Samples,
    path: Path | str,
    *,
    overwrite: bool = False,
    system: System | str | None = None,
) -> None:
    """Write samples in the format of the path's suffix.

    ``system`` is needed for trajectories whose metadata does not name a registered system.

    Raises
    ------
    OutputExistsError
        The file exists and ``overwrite`` is false, or something other than a regular file is there.
    InputError
        The suffix is unknown, there are no samples, or a coordinate does not fit the format.
    StorageError
        There is no space, or what was written does not read back; the previous file is intact.
    """
    from ..systems import resolve

    save_blocks(
        [samples],
        path,
        count=len(samples),
        system=samples.metadata.get("system") if system is None else resolve(system),
        metadata=lambda: samples.metadata,
        overwrite=overwrite,
    )


def save_blocks(
    blocks: Iterable[Samples],
    path: Path | str,
    *,
    count: int,
    system: Any,
    metadata: Callable[[], dict[str, Any]],
    overwrite: bool = False,
) -> None:
    """Write ``count`` samples that arrive in blocks, in memory that does not grow with ``count``.

    ``metadata`` is called after the last block, so it may report on the whole run. Blocks of a
    generator are also kept in an unnamed file beside ``path`` until the output has been compared
    with them.

    Raises
    ------
    OutputExistsError, InputError, StorageError
        See :func:`save`.
    """
    from ..systems import resolve_recorded

    path = Path(path)
    suffix = _suffix(path)
    if count < 1:
        raise InputError(f"there are {count} samples to write to {path}; at least one is needed")
    check_output(path, overwrite=overwrite)
    if suffix in TRAJECTORIES:
        if system is None:
            raise InputError(f"{path.name}: a trajectory needs to know its system; pass system=")
        known = (
            system
            if isinstance(system, System)
            else resolve_recorded(system, source="the metadata")
        )
        save_trajectory(
            path,
            blocks,
            count=count,
            system=known,
            metadata=metadata,
            overwrite=overwrite,
        )
        return
    _save_npz(path, blocks, count, metadata, overwrite=overwrite)


def _save_npz(
    path: Path,
    blocks: Iterable[Samples],
    count: int,
    metadata: Callable[[], dict[str, Any]],
    *,
    overwrite: bool,
) -> None:
    remaining = iter(blocks)
    first = next(remaining, None)
    if first is None:
        raise InputError(f"no blocks to write to {path}, {count} samples were announced")
    particles, dimension = first.positions.shape[1:]
    expected = 2**12 + count * (4 * particles * dimension + 24)
    # Energies and weights wait in files of their own.
    check_space(path, expected + 16 * count)
    with (
        atomic_path(path, overwrite=overwrite) as temporary,
        translated(path, temporary, expected),
    ):
        npz.write(
            temporary,
            itertools.chain([first], remaining),
            count=count,
            shape=(particles, dimension),
            weighted=first.weights is not None,
            metadata=metadata,
        )


def load(path: Path | str, *, system: System | str | None = None) -> Samples:
    """Read samples in the format of the path's suffix.

    Where a sidecar describes the file, its length, SHA-256 and frame count must hold. Energies are
    those stored in an ``.npz``, else recomputed in float64. ``system`` is needed where the file does
    not name a registered one.

    Raises
    ------
    IntegrityError
        The file is not the one that its sidecar describes.
    FileFormatError
        It is missing, truncated, damaged or of an unsupported kind.
    ShapeError
        Its particles are not those of the system; both counts are given.
    InputError
        The suffix is unknown, or no system is known, or two are.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist or is not a regular file")
    if suffix in TRAJECTORIES:
        return load_trajectory(path, system)
    return _load_npz(path, system)


def _load_npz(path: Path, system: System | str | None) -> Samples:
    from ..samples import Samples, reduced_energies
    from ..systems import resolve_recorded

    content = npz.read(path)
    positions = torch.from_numpy(content.positions)
    recorded = content.metadata.get("system")
    energies = None if content.energies is None else torch.from_numpy(content.energies)
    resolved = None
    # A file with energies can be read where its system is not registered.
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
        weights = None if content.weights is None else torch.from_numpy(content.weights)
        return Samples(positions, energies, weights, metadata)
    except NonFiniteError as error:
        raise FileFormatError(f"{path}: {error}") from None


def convert(
    source: Path | str,
    destination: Path | str,
    *,
    overwrite: bool = False,
    system: System | str | None = None,
) -> None:
    """Rewrite samples in another format; provenance is kept.

    Raises
    ------
    OutputExistsError, FileFormatError, InputError, StorageError
        See :func:`load` and :func:`save`.
    """
    _suffix(Path(destination))
    check_output(destination, overwrite=overwrite)
    save(load(source, system=system), destination, overwrite=overwrite, system=system)


def describe(path: Path | str) -> dict[str, Any]:
    """What a sample file is, from what, and whether it is intact, as a JSON object.

    ``intact`` is True where hash or checksums hold, False where they do not (``problem`` says how),
    and None where nothing is recorded to compare with and the structure alone was checked.

    Raises
    ------
    FileFormatError
        There is no such file.
    InputError
        The suffix is unknown.
    """
    path = Path(path)
    suffix = _suffix(path)
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist or is not a regular file")
    report: dict[str, Any] = {
        "path": str(path),
        "format": suffix[1:],
        "description": FORMATS[suffix],
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "intact": None,
        "problem": None,
    }
    try:
        report.update(_contents(path, suffix))
    except MolsamplerError as error:
        report.update(intact=False, problem=str(error))
    return report


def _contents(path: Path, suffix: str) -> dict[str, Any]:
    if suffix == ".npz":
        content = npz.read(path)
        statistics = EnergyStatistics()
        if content.energies is not None:
            statistics.add(torch.from_numpy(content.energies))
        return {
            "frames": len(content.positions),
            "particles": content.positions.shape[1],
            "dimension": content.positions.shape[2],
            "energies": statistics.summary().model_dump(),
            "provenance": content.metadata,
            "intact": True,
        }
    sidecar = read_sidecar(sidecar_path(path))
    records = sidecar.records(path.name) if sidecar is not None else []
    record = check_file(path, records) if records else None
    frames, particles = TRAJECTORIES[suffix].inspect(path)
    report: dict[str, Any] = {"frames": frames, "particles": particles}
    topology = sidecar.topology if sidecar is not None and record is None else None
    if topology is not None and topology.file == path.name:
        report["description"] = "topology of the trajectories that its sidecar lists"
        report["sidecar"] = str(sidecar_path(path))
        report["intact"] = topology.sha256 == sha256(path)
        if not report["intact"]:
            report["problem"] = f"{path} is not the topology that its sidecar records"
    if record is not None:
        report["intact"] = True
        report["sidecar"] = str(sidecar_path(path))
        report.update(
            record.model_dump(
                include={
                    "dimension",
                    "length_nm",
                    "precision_nm",
                    "energies",
                    "provenance",
                    "version",
                }
            )
        )
    return report
