"""What a file format of samples is, and the formats there are; open to code outside the package."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ..errors import InputError, ShapeError, nearest
from ..registry import Registry
from ..target import System

if TYPE_CHECKING:
    from ..samples import Samples


@dataclass(frozen=True)
class Output:
    """Samples on their way to a file, in blocks.

    Attributes
    ----------
    blocks : the samples in order; an iterator is read once
    count : how many will come
    system : whose samples they are, where that is known
    metadata : called after the last block, so that it may report on the whole run
    overwrite : whether an existing file may be replaced
    extras : arrays of float64 that stand beside the samples, by name, called after the last block; for
        :attr:`Format.complete` formats alone
    """

    blocks: Iterable[Samples]
    count: int
    system: System | None
    metadata: Callable[[], dict[str, Any]]
    overwrite: bool = False
    extras: Callable[[], dict[str, Tensor]] = dict

    def checked(self, shape: tuple[int, ...]) -> Iterator[Samples]:
        """The blocks, all of samples of ``shape`` (N, D), and all with log weights or none.

        Raises
        ------
        ShapeError
            A block is of another shape, or has log weights where others have none.
        InputError
            Fewer or more samples come than were announced.
        """
        done, weighted = 0, False
        for block in self.blocks:
            if tuple(block.positions.shape[1:]) != tuple(shape):
                name = "" if self.system is None else f" of system {self.system.name!r}"
                raise ShapeError(
                    f"samples of shape {tuple(block.positions.shape)} do not match {shape[0]} "
                    f"particles in {shape[1]} dimensions{name}"
                )
            if done and (block.log_weights is not None) is not weighted:
                raise ShapeError("some blocks have log weights, some have none")
            weighted = block.log_weights is not None
            done += len(block)
            if done > self.count:
                raise InputError(f"more samples came than the {self.count} announced")
            yield block
        if done != self.count:
            raise InputError(f"{done} samples came where {self.count} were announced")


class Format(Protocol):
    """A file format of samples.

    A trajectory, which holds frames alone, is written more easily as a
    :class:`molsampler.export.trajectory.Trajectory`: topology, provenance, hash and read-back come
    with it.
    """

    #: With its dot; what a path's suffix must be.
    suffix: str
    #: One line for readers.
    description: str
    #: Spacing of the stored coordinates in nm; 0 where they keep float32.
    precision_nm: float
    #: Whether energies, log weights and metadata are inside, so that nothing lies beside a file.
    complete: bool

    def write(self, path: Path, output: Output) -> None:
        """Write a file whole, checked and atomically, or not at all; ``path`` may be written.

        Raises
        ------
        InputError
            Something does not fit the format; log weights in particular are kept or refused.
        StorageError
            There is no space, or what was written does not read back.
        """

    def inspect(self, path: Path) -> dict[str, Any]:
        """What an existing file holds, as JSON: ``frames``, ``particles``, ``intact``, ``provenance``,
        and ``ess``, the effective number of samples where there are log weights.

        Raises
        ------
        FileFormatError
            It is damaged, or not of this format.
        """

    def load(self, path: Path, system: System | str | None) -> Samples:
        """The samples of an existing file; see :func:`molsampler.export.load`."""


FORMATS: Registry[Format] = Registry("file format")
for _suffix, _place in {
    ".npz": "npz:NPZ",
    ".h5": "hdf5:HDF5",
    ".dcd": "dcd:DCD",
    ".xtc": "xtc:XTC",
    ".pdb": "pdb:PDB",
}.items():
    FORMATS.register(_suffix, f"molsampler.export.{_place}")


#: Formats that others read and write.
_FOREIGN = (
    ".xyz", ".trr", ".nc", ".netcdf", ".gro", ".mdcrd", ".lammpstrj", ".gsd", ".binpos", ".dtr", ".arc",
)  # fmt: skip


def register_format(form: Format) -> None:
    """Add a format under its suffix; save, load, convert, describe and the commands then know it.

    Raises
    ------
    InputError
        The suffix is taken or not of the form ``.xyz``, or a part of :class:`Format` is missing.
    """
    parts = (*Format.__annotations__, "write", "inspect", "load")
    if missing := [part for part in parts if not hasattr(form, part)]:
        raise InputError(f"{form!r} is no file format: it has no {', '.join(missing)}")
    if not re.fullmatch(r"\.[A-Za-z0-9_]+", form.suffix) or form.suffix == ".json":
        raise InputError(f"a format's suffix is of the form '.xyz', got {form.suffix!r}")
    FORMATS.register(form.suffix, form)


def format_of(path: Path, *, argument: str | None = None) -> Format:
    """The format of a path's suffix; ``argument`` names what the path was given as.

    Raises
    ------
    InputError
        No format has it.
    """
    if path.suffix in FORMATS:
        return FORMATS[path.suffix]
    known = FORMATS.names()
    found = (
        f"{path.name!r} has suffix {path.suffix!r}; expected"
        if argument is None
        else f"{argument} {path.name!r} must end in"
    )
    hint = nearest(path.suffix, known)
    if path.suffix.lower() in _FOREIGN:
        hint = "; MDTraj converts others, as in mdtraj.load('X.dcd', top='X.pdb').save('X.xyz')"
    raise InputError(f"{found} one of {', '.join(known)}{hint}")
