"""Samples of a system: positions, energies and where they came from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import InputError, NonFiniteError, ShapeError
from .target import COORDINATE_LIMIT, System

if TYPE_CHECKING:
    import mdtraj

#: Rows whose energies are evaluated at once by :meth:`Samples.of`.
ENERGY_BLOCK = 4096


def reduced_energies(system: System, positions: Tensor) -> Tensor:
    """Reduced energies ``(n,)`` in float64 of positions ``(n, N, D)`` of any floating dtype."""
    with torch.no_grad():
        blocks = [system.energy(block.double()) for block in torch.split(positions, ENERGY_BLOCK)]
    return torch.cat(blocks) if blocks else torch.zeros(0, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Samples:
    """Configurations of one system.

    Attributes
    ----------
    positions : ``(n, N, D)`` float32, in the system's unit of length
    energies : ``(n,)`` float64, reduced energies u = U/kT; ``+inf`` marks coincident particles
    weights : importance weights ``(n,)`` float64, or None where every sample counts the same
    metadata : provenance that can be written as JSON (system, artifact, seed, refine, ...)

    Raises
    ------
    ShapeError
        The shapes do not agree.
    NonFiniteError
        A coordinate is not finite, an energy is NaN, or a weight is negative or not finite.
    InputError
        A dtype is wrong, or the metadata cannot be written as JSON.
    """

    positions: Tensor
    energies: Tensor
    weights: Tensor | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positions, energies, weights = self.positions, self.energies, self.weights
        for name, tensor, dtype in (
            ("positions", positions, torch.float32),
            ("energies", energies, torch.float64),
            ("weights", weights, torch.float64),
        ):
            if name == "weights" and tensor is None:
                continue
            if not isinstance(tensor, Tensor) or tensor.dtype != dtype:
                got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise InputError(f"{name} must be a tensor of {dtype}, got {got}")
        if positions.dim() != 3:
            raise ShapeError(
                "positions must have shape (n, N, D) = (sample, particle, dimension), "
                f"got {tuple(positions.shape)}"
            )
        n = len(positions)
        if tuple(energies.shape) != (n,):
            raise ShapeError(f"energies must have shape ({n},), got {tuple(energies.shape)}")
        finite = (positions.abs() <= COORDINATE_LIMIT).flatten(1).all(-1)
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise NonFiniteError(
                f"positions hold NaN, infinite or absurd coordinates in {int((~finite).sum())} "
                f"sample(s), the first is sample {row}"
            )
        if bool(energies.isnan().any()):
            raise NonFiniteError(f"energies hold {int(energies.isnan().sum())} NaN")
        if weights is not None:
            if tuple(weights.shape) != (n,):
                raise ShapeError(f"weights must have shape ({n},), got {tuple(weights.shape)}")
            if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
                raise NonFiniteError("weights must be finite and not negative")
        try:
            json.dumps(self.metadata, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"metadata must be writable as JSON: {error}") from None

    @classmethod
    def of(
        cls,
        system: System | str,
        positions: Any,
        *,
        weights: Any = None,
        **metadata: Any,
    ) -> Samples:
        """Samples at ``positions``, shape ``(n, N, D)``, with energies computed in float64.

        The energies are those of the float32 positions that are kept, so recomputing them from a
        lossless file gives the same numbers.

        Raises
        ------
        ShapeError, NonFiniteError
            See :func:`molsampler.target.check_positions`.
        """
        from .systems import resolve

        system = resolve(system)
        kept = torch.as_tensor(positions).detach().to("cpu", torch.float32).contiguous()
        if kept.dim() != 3:
            raise ShapeError(
                f"positions must have shape (n, {system.shape[0]}, {system.shape[1]}), "
                f"got {tuple(kept.shape)}"
            )
        return cls(
            kept,
            reduced_energies(system, kept),
            None if weights is None else torch.as_tensor(weights).detach().to("cpu", torch.float64),
            {"system": system.record(), **metadata},
        )

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: slice | Tensor) -> Samples:
        """The samples of a slice, a mask or an index tensor; the metadata is shared."""
        if not isinstance(index, slice | Tensor) or (
            isinstance(index, Tensor) and index.dim() != 1
        ):
            raise InputError(
                f"samples are indexed by a slice or a 1-D tensor, got {index!r}; "
                "one sample i is samples[i:i+1]"
            )
        weights = None if self.weights is None else self.weights[index]
        return Samples(self.positions[index], self.energies[index], weights, self.metadata)

    def with_metadata(self, **metadata: Any) -> Samples:
        """The same samples with entries of the metadata replaced or added."""
        return Samples(self.positions, self.energies, self.weights, {**self.metadata, **metadata})

    def system(self) -> System:
        """The system that the metadata names; see :func:`molsampler.systems.resolve_recorded`."""
        from .systems import resolve_recorded

        return resolve_recorded(self.metadata.get("system"), source="the metadata of these samples")

    def to_mdtraj(self, *, system: System | str | None = None) -> mdtraj.Trajectory:
        """MDTraj trajectory in nanometres, one frame a sample; z = 0 for planar systems.

        Lengths are scaled by the system's ``length_nm``. ``system`` is needed where the metadata
        does not name a registered one.

        Raises
        ------
        InputError
            The system has no particles in space, hence no topology.
        """
        import mdtraj

        from .export.lengths import to_nanometres, topology_of
        from .systems import resolve

        resolved = self.system() if system is None else resolve(system)
        return mdtraj.Trajectory(
            to_nanometres(self.positions, resolved.length_nm), topology_of(resolved)
        )

    def save(
        self, path: Path | str, *, overwrite: bool = False, system: System | str | None = None
    ) -> None:
        """Write to ``.npz``, ``.h5``, ``.dcd``, ``.xtc`` or ``.pdb``; see :func:`molsampler.export.save`."""
        from . import export

        export.save(self, path, overwrite=overwrite, system=system)
