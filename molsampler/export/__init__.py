"""Samples in files that viewers and analysis packages open, written whole or not at all.

======== ============================================== ==========================================
suffix   content                                        error of a coordinate
======== ============================================== ==========================================
``.npz`` positions, energies, log weights, metadata     none
``.h5``  HDF5 in MDTraj's convention, with topology     float32 rounding
``.dcd`` DCD                                            float32 rounding
``.xtc`` XTC                                            5e-4 nm (none up to nine atoms)
``.pdb`` PDB, one model a sample                        5e-5 nm
======== ============================================== ==========================================

More can be added with :func:`register_format`.

Trajectories are in nanometres (angstrom where the format says so): reduced lengths are multiplied by
the system's ``length_nm``, planar systems get z = 0. They store no energies; reading recomputes them
in float64 from the coordinates found, so their error is the force times the coordinate's error, and
a steep potential makes much of the 5e-4 nm of XTC. ``.npz`` alone returns the energies that were
saved, bit for bit.

Beside a trajectory ``X.xtc`` lie its topology ``X.pdb`` and a sidecar ``X.json`` with provenance,
frame count and SHA-256, shared by all trajectories ``X.*`` of the folder (see ``sidecar``). Weighted
samples also leave ``X.xtc.log_weights.npy`` there, vouched for by the sidecar (see ``log_weights``).
``.npz`` files carry all of this inside and need nothing beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileFormatError, InputError, MolsamplerError
from ..storage.files import check_output, sha256
from ..systems import resolve, resolve_recorded
from ..target import System
from .format import FORMATS, Format, Output, format_of, register_format
from .topology import is_left_topology

if TYPE_CHECKING:
    from torch import Tensor

    from ..samples import Samples

__all__ = [
    "FORMATS",
    "Format",
    "Output",
    "check_destination",
    "convert",
    "describe",
    "format_of",
    "load",
    "register_format",
    "save",
    "save_blocks",
]


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
    save_blocks(
        [samples],
        path,
        count=len(samples),
        system=samples.metadata.get("system") if system is None else resolve(system),
        metadata=lambda: samples.metadata,
        overwrite=overwrite,
    )


def check_destination(path: Path | str, *, overwrite: bool) -> bool:
    """Refuse a destination that may not be written; return whether a file there may be replaced.

    It may with ``overwrite``, and where it is no more than the topology ``X.pdb`` that a trajectory ``X.*``
    left: a PDB file of samples names the same atoms, or is refused when it is written.

    Raises
    ------
    InputError, OutputExistsError, StorageError
        The suffix is no format, the file exists, or its folder does not.
    """
    path = Path(path)
    format_of(path)
    overwrite = overwrite or is_left_topology(path)
    check_output(path, overwrite=overwrite)
    return overwrite


def save_blocks(
    blocks: Iterable[Samples],
    path: Path | str,
    *,
    count: int,
    system: Any,
    metadata: Callable[[], dict[str, Any]],
    overwrite: bool = False,
    extras: Callable[[], dict[str, Tensor]] = dict,
) -> None:
    """Write ``count`` samples that arrive in blocks, in memory that does not grow with ``count``.

    ``metadata`` is called after the last block, so it may report on the whole run. ``system`` is a
    system or what a file records of one. Some formats keep a second copy of the samples in an
    unnamed file beside ``path`` until the output has been compared with it. ``extras`` are the arrays beside
    the samples of :class:`Output`, which only formats that need no file beside them keep.

    Raises
    ------
    OutputExistsError, InputError, StorageError
        See :func:`save`.
    """
    path = Path(path)
    form = format_of(path)
    if count < 1:
        raise InputError(f"there are {count} samples to write to {path}; at least one is needed")
    overwrite = check_destination(path, overwrite=overwrite)
    if not (system is None or isinstance(system, System)):
        # A format that needs no system can hold samples of one that is not registered.
        system = None if form.complete else resolve_recorded(system, source="the metadata")
    form.write(path, Output(blocks, count, system, metadata, overwrite, extras))


def load(path: Path | str, *, system: System | str | None = None) -> Samples:
    """Read samples in the format of the path's suffix.

    Where a sidecar describes the file, its length, SHA-256 and frame count must hold. Energies are
    those stored in an ``.npz``, else recomputed in float64. ``system`` is needed where the file does
    not name a registered one.

    Raises
    ------
    IntegrityError
        The file or its log weights are not those that the sidecar describes.
    FileFormatError
        It is missing, truncated, damaged or of an unsupported kind.
    ShapeError
        Its particles are not those of the system; both counts are given.
    InputError
        The suffix is unknown, or no system is known, or two are.
    """
    path = Path(path)
    form = format_of(path)
    _check_regular(path)
    return form.load(path, system)


def convert(
    source: Path | str,
    destination: Path | str,
    *,
    overwrite: bool = False,
    system: System | str | None = None,
    resample: int | None = None,
    seed: int = 0,
) -> None:
    """Rewrite samples in another format; provenance is kept.

    With ``resample`` so many of them are drawn by their weights, to count the same
    (:meth:`molsampler.Samples.resample`).

    Raises
    ------
    OutputExistsError, FileFormatError, InputError, StorageError
        See :func:`load` and :func:`save`.
    """
    check_destination(destination, overwrite=overwrite)
    if Path(source).is_dir():
        raise InputError(
            f"{source} is a folder, and samples are files; molsampler sample draws them from a sampler"
        )
    samples = load(source, system=system)
    if resample is not None:
        samples = samples.resample(resample, seed=seed)
    save(samples, destination, overwrite=overwrite, system=system)


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
    form = format_of(path)
    _check_regular(path)
    report: dict[str, Any] = {
        "path": str(path),
        "format": form.suffix[1:],
        "description": form.description,
        "bytes": path.stat().st_size,
        "sha256": sha256(path),
        "intact": None,
        "problem": None,
    }
    try:
        report.update(form.inspect(path))
    except MolsamplerError as error:
        report.update(intact=False, problem=str(error))
    return report


def _check_regular(path: Path) -> None:
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist or is not a regular file")
