"""Samples of a system: positions, energies and where they came from."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from .errors import InputError, NonFiniteError, ShapeError
from .estimate import Estimate, effective_count, log_mean, mean
from .target import COORDINATE_LIMIT, System
from .verbs import VERBS

if TYPE_CHECKING:
    import ase
    import mdtraj

log = logging.getLogger("molsampler.samples")

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
    log_weights : ``(n,)`` float64, log of target over proposal; ``-inf`` marks a weight of zero; or
        None where every sample counts the same
    metadata : provenance that can be written as JSON (system, artifact, seed, refine, ...)

    Raises
    ------
    ShapeError
        The shapes do not agree.
    NonFiniteError
        A coordinate is not finite, an energy is NaN, or a log weight is NaN or ``+inf``.
    InputError
        A dtype is wrong, or the metadata cannot be written as JSON.
    """

    positions: Tensor
    energies: Tensor
    log_weights: Tensor | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positions, energies, log_weights = self.positions, self.energies, self.log_weights
        for name, tensor, dtype in (
            ("positions", positions, torch.float32),
            ("energies", energies, torch.float64),
            ("log_weights", log_weights, torch.float64),
        ):
            if name == "log_weights" and tensor is None:
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
        if log_weights is not None:
            if tuple(log_weights.shape) != (n,):
                raise ShapeError(
                    f"log_weights must have shape ({n},), got {tuple(log_weights.shape)}"
                )
            # Not "== inf or isnan": one comparison that NaN fails as well.
            bad = ~(log_weights < torch.inf)
            if bool(bad.any()):
                row = int(bad.nonzero()[0])
                raise NonFiniteError(
                    f"log_weights hold NaN or +inf in {int(bad.sum())} sample(s), the first is "
                    f"sample {row} ({float(log_weights[row])})"
                )
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
        log_weights: Any = None,
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
        known: System = VERBS["resolve"](system)
        kept = torch.as_tensor(positions).detach().to("cpu", torch.float32).contiguous()
        if kept.dim() != 3:
            raise ShapeError(
                f"positions must have shape (n, {known.shape[0]}, {known.shape[1]}), "
                f"got {tuple(kept.shape)}"
            )
        return cls(
            kept,
            reduced_energies(known, kept),
            None
            if log_weights is None
            else torch.as_tensor(log_weights).detach().to("cpu", torch.float64),
            {"system": known.record(), **metadata},
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
        log_weights = None if self.log_weights is None else self.log_weights[index]
        return Samples(self.positions[index], self.energies[index], log_weights, self.metadata)

    def with_metadata(self, **metadata: Any) -> Samples:
        """The same samples with entries of the metadata replaced or added."""
        return Samples(
            self.positions, self.energies, self.log_weights, {**self.metadata, **metadata}
        )

    @property
    def ess(self) -> float:
        r"""Effective number of samples: Kish's :math:`(\sum w)^2 / \sum w^2`, n without weights.

        0 where every weight is zero. It knows of the weights that are there: a mode that the
        proposal never visits does not lower it.
        """
        return float(len(self)) if self.log_weights is None else effective_count(self.log_weights)

    @property
    def log_z(self) -> Estimate[float] | None:
        """Estimate of log Z, the log of the mean weight; None without weights.

        It is the target's log Z where the proposal's density in the weights is normalised. The value
        is ``-inf`` and its error infinite where every weight is zero.
        """
        return None if self.log_weights is None else log_mean(self.log_weights)

    def expectation(self, f: Callable[[Tensor], Tensor]) -> Estimate[Tensor]:
        """Mean of ``f`` under the target with its standard error, each of shape ``(...)`` float64.

        ``f`` takes the positions ``(n, N, D)`` float32 and gives ``(n, ...)``. Without weights it is
        the plain mean of samples taken as independent; with them see :func:`molsampler.estimate.mean`.

        Raises
        ------
        InputError
            There are no samples, or every weight is zero.
        ShapeError, NonFiniteError
            ``f`` does not give one finite value (or array) for each sample of non-zero weight.
        """
        with torch.no_grad():
            values = torch.as_tensor(f(self.positions))
        if values.dim() < 1 or len(values) != len(self):
            raise ShapeError(
                f"f must give one value (or array) a sample, {len(self)} in all, got shape "
                f"{tuple(values.shape)}"
            )
        return mean(values, self.log_weights)

    def resample(self, n: int, seed: int = 0) -> Samples:
        """``n`` samples that count the same, drawn by their weights, in random order.

        Systematic resampling: a sample of share p of the weight comes floor(n p) or ceil(n p) times.
        The metadata records it under ``resampled``; log Z does not survive.

        Raises
        ------
        InputError
            ``n`` is no positive integer, there are no samples, or every weight is zero.
        """
        if not isinstance(n, int) or n < 1:
            raise InputError(f"n must be a positive integer, got {n!r}")
        if not self.ess:
            raise InputError(f"{len(self)} samples with no weight in all cannot be resampled")
        random = torch.Generator().manual_seed(seed)
        log_weights = self.log_weights
        if log_weights is None:
            log_weights = torch.zeros(len(self), dtype=torch.float64)
        cumulative = (log_weights - log_weights.max()).exp().cumsum(0)
        start = torch.rand((), generator=random, dtype=torch.float64)
        points = (torch.arange(n, dtype=torch.float64) + start) / n * cumulative[-1]
        # Rounding may take the last point to the end, beyond what has weight.
        last = int((log_weights > -torch.inf).nonzero()[-1])
        rows = torch.searchsorted(cumulative, points, right=True).clamp(max=last)
        rows = rows[torch.randperm(n, generator=random)]
        drawn = {"method": "systematic", "of": len(self), "ess": self.ess, "seed": seed}
        return Samples(
            self.positions[rows], self.energies[rows], None, {**self.metadata, "resampled": drawn}
        )

    def system(self) -> System:
        """The system that the metadata names; see :func:`molsampler.systems.resolve_recorded`."""
        return cast(
            System,
            VERBS["resolve_recorded"](
                self.metadata.get("system"), source="the metadata of these samples"
            ),
        )

    def to_mdtraj(self, *, system: System | str | None = None) -> mdtraj.Trajectory:
        """MDTraj trajectory in nanometres, one frame a sample; z = 0 for planar systems.

        Lengths are scaled by the system's ``length_nm``. ``system`` is needed where the metadata
        does not name a registered one. MDTraj has no place for weights; a warning says so.

        Raises
        ------
        InputError
            The system has no particles in space, hence no topology.
        """
        resolved = self.system() if system is None else VERBS["resolve"](system)
        if self.log_weights is not None:
            log.warning(
                "an MDTraj trajectory has no weights: keep log_weights, or resample() first"
            )
        return cast("mdtraj.Trajectory", VERBS["to_mdtraj"](self.positions, resolved))

    def to_ase(self, *, system: System | str | None = None) -> list[ase.Atoms]:
        """ASE atoms, one object a sample: angstroms, and the energy in eV as a single-point result.

        The energy is ``u kT`` at the system's temperature, or at the 300 K of OpenMM twins for systems that
        have none; ``info`` holds ``reduced_energy`` and, where there are weights, ``log_weight``.
        ``system`` is as in :meth:`to_mdtraj`.

        Raises
        ------
        InputError
            The system has no particles in space, hence no atoms.
        MissingDependencyError
            ASE is not installed.
        """
        resolved = self.system() if system is None else VERBS["resolve"](system)
        return cast("list[ase.Atoms]", VERBS["to_ase"](self, resolved))

    def save(
        self, path: Path | str, *, overwrite: bool = False, system: System | str | None = None
    ) -> None:
        """Write in the format of the path's suffix; see :func:`molsampler.export.save`."""
        VERBS["save"](self, path, overwrite=overwrite, system=system)
