"""Samples of a system: positions, energies and where they came from."""

from __future__ import annotations

import json
import logging
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from . import notebook
from .errors import InputError, NonFiniteError, RowError, ShapeError
from .estimate import Estimate, effective_count, log_mean, mean
from .structure import RadialDistribution, radial_distribution, radius_of_gyration
from .target import COORDINATE_LIMIT, System
from .verbs import VERBS

if TYPE_CHECKING:
    import ase
    import MDAnalysis
    import mdtraj
    import pandas
    import py3Dmol
    from matplotlib.figure import Figure

log = logging.getLogger("molsampler.samples")

#: Bars of the histogram that notebooks show.
SPARKS = 40

#: Ends of the names of metadata whose first characters identify them.
DIGESTS = ("_hash", "_sha256")

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

    def __getitem__(self, index: Any) -> Samples:
        """The samples of a number, a slice, a mask ``(n,)`` or a list of numbers; the metadata is shared.

        One number gives samples of length one. Tensors, NumPy arrays and lists will do.

        Raises
        ------
        RowError
            There is no such sample.
        InputError
            The index is of none of these forms, or a mask has not one entry a sample.
        """
        rows = self._rows(index)
        log_weights = None if self.log_weights is None else self.log_weights[rows]
        return Samples(self.positions[rows], self.energies[rows], log_weights, self.metadata)

    def __iter__(self) -> Iterator[Samples]:
        """The samples one by one, each as samples of length one."""
        return (self[row] for row in range(len(self)))

    def _rows(self, index: Any) -> slice | Tensor:
        if isinstance(index, slice):
            if index.step is not None and operator.index(index.step) < 0:
                return torch.tensor(range(*index.indices(len(self))), dtype=torch.long)
            return index
        form = "samples are indexed by a number, a slice, a mask or a list of numbers"
        try:
            rows = torch.as_tensor(index)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"{form}, got {index!r:.80}") from None
        if rows.dtype == torch.bool:
            if tuple(rows.shape) != (len(self),):
                raise InputError(f"a mask must have shape ({len(self)},), got {tuple(rows.shape)}")
            return rows
        if not rows.numel():
            rows = rows.reshape(-1).long()
        if rows.dim() > 1 or rows.is_floating_point() or rows.is_complex():
            raise InputError(f"{form}, got {index!r:.80}")
        rows = rows.reshape(-1).long()
        outside = (rows < -len(self)) | (rows >= len(self))
        if bool(outside.any()):
            raise RowError(f"there are {len(self)} samples, no sample {int(rows[outside][0])}")
        return rows

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

    @property
    def positions_nm(self) -> Tensor:
        """Positions ``(n, N, D)`` float32 in nanometres, by the ``length_nm`` of :meth:`system`."""
        return (self.positions.double() * self.system().length_nm).float()

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
        resolved = self._resolved(system)
        self._warn_of_weights("an MDTraj trajectory")
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
        return cast("list[ase.Atoms]", VERBS["to_ase"](self, self._resolved(system)))

    def to_mdanalysis(self, *, system: System | str | None = None) -> MDAnalysis.Universe:
        """MDAnalysis universe with one frame a sample, in angstroms; z = 0 for planar systems.

        ``system`` is as in :meth:`to_mdtraj`, and so is the warning about weights.

        Raises
        ------
        InputError
            The system has no particles in space.
        MissingDependencyError
            MDAnalysis is not installed.
        """
        resolved = self._resolved(system)
        universe = VERBS["to_mdanalysis"](self.positions, resolved)
        self._warn_of_weights("an MDAnalysis universe")
        return cast("MDAnalysis.Universe", universe)

    def to_pandas(self, *variables: str, system: System | str | None = None) -> pandas.DataFrame:
        """One row a sample: ``energy`` in kT, ``log_weight`` where there are weights, collective variables.

        ``variables`` are texts such as ``"torsion:4,6,8,10"`` or ``"distance:0,1"``
        (:mod:`molsampler.collective_variables`), or names that the system's file defines. ``attrs`` of the
        table holds the metadata.

        Raises
        ------
        InputError
            A variable is of no known form, or does not fit the positions.
        MissingDependencyError
            pandas is not installed.
        """
        named = {} if system is None else VERBS["resolve"](system).collective_variables
        if system is None and variables and self.metadata.get("system") is not None:
            named = self.system().collective_variables
        return cast("pandas.DataFrame", VERBS["to_pandas"](self, variables, named))

    def plot(self, *, system: System | str | None = None) -> Figure:
        """Matplotlib figure of the distributions of energies, distances and torsions, by the weights.

        Distances are those of all pairs, in the system's unit of length; torsions are those about inner
        bonds, where the system has a topology with bonds. Samples of infinite energy are counted in the
        title.
        ``system`` is needed where the metadata does not name a registered one.

        Raises
        ------
        InputError
            There are no samples, or every weight is zero.
        """
        return cast("Figure", VERBS["plot"](self, self._resolved(system)))

    def view(
        self,
        frames: int = 10,
        *,
        system: System | str | None = None,
        width: int = 480,
        height: int = 360,
    ) -> py3Dmol.view:
        """Structures to turn in a notebook: the first ``frames`` samples, played one after the other.

        With weights the frames are drawn by them (:meth:`resample`, seed 0). The widget loads 3Dmol.js from
        the network.

        Raises
        ------
        InputError
            The system has no particles in space, or there are no samples.
        MissingDependencyError
            py3Dmol is not installed.
        """
        return VERBS["view"](self, self._resolved(system), frames, width, height)

    def radius_of_gyration(self) -> Tensor:
        """Radius of gyration ``(n,)`` float64 of each sample, in the system's unit of length; see
        :func:`molsampler.structure.radius_of_gyration`."""
        return radius_of_gyration(self.positions)

    def rdf(
        self,
        *,
        bins: int = 60,
        r_max: float | None = None,
        radius: float | None = None,
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> RadialDistribution:
        """Radial distribution function of the cluster, by the weights, in the system's unit of length.

        There is no cell: pair distances are divided by those of an ideal gas in a ball of the same mean
        square pair distance, so that g = 1 for points spread evenly in a ball. See
        :func:`molsampler.structure.radial_distribution` for arguments and errors.
        """
        return radial_distribution(
            self.positions,
            log_weights=self.log_weights,
            bins=bins,
            r_max=r_max,
            radius=radius,
            pairs=pairs,
        )

    def save(
        self, path: Path | str, *, overwrite: bool = False, system: System | str | None = None
    ) -> None:
        """Write in the format of the path's suffix; see :func:`molsampler.export.save`."""
        VERBS["save"](self, path, overwrite=overwrite, system=system)

    def _resolved(self, system: System | str | None) -> System:
        return self.system() if system is None else cast(System, VERBS["resolve"](system))

    def _warn_of_weights(self, form: str) -> None:
        if self.log_weights is not None:
            log.warning("%s has no weights: keep log_weights, or resample() first", form)

    def _name(self) -> str:
        """What the metadata calls the system."""
        system = self.metadata.get("system")
        name = system.get("name") if isinstance(system, Mapping) else system
        return "an unnamed system" if name is None else str(name)

    def _mean_energy(self) -> str:
        """Mean and standard deviation of the finite energies, by the weights."""
        finite = torch.isfinite(self.energies)
        weights = self._shares()[finite]
        if not bool(weights.sum() > 0):
            return "none finite"
        u, weights = self.energies[finite], weights / weights.sum()
        middle = float((weights * u).sum())
        if len(u) == 1:
            return f"{middle:.2f} kT"
        return f"{middle:.2f} ± {math.sqrt(float((weights * (u - middle).square()).sum())):.2f} kT"

    def _shares(self) -> Tensor:
        """Share ``(n,)`` of each sample in the sum of the weights; zero where every weight is."""
        if self.log_weights is None:
            return torch.full((len(self),), 1 / max(len(self), 1), dtype=torch.float64)
        return torch.softmax(self.log_weights, 0).nan_to_num()

    def __repr__(self) -> str:
        n, particles, dimension = self.positions.shape
        weighted = "" if self.log_weights is None else f", ESS {self.ess:.0f}"
        return (
            f"<Samples of {self._name()!r} n={n} shape=({particles}, {dimension}), "
            f"energy {self._mean_energy()}{weighted}>"
        )

    def _repr_html_(self) -> str:
        n, particles, dimension = self.positions.shape
        facts = [
            ("samples", f"{n:,} of {particles} × {dimension} coordinates"),
            ("energy, mean ± spread", self._mean_energy()),
        ]
        if infinite := int(torch.isinf(self.energies).sum()):
            facts.append(("infinite energies", f"{infinite:,}"))
        if self.log_weights is None:
            facts.append(("weights", "none, every sample counts the same"))
        elif n:
            share = self.ess / n
            facts.append(("weights", f"effective number {self.ess:,.0f} ({100 * share:.3g} %)"))
            facts.append(("largest weight", f"{100 * float(self._shares().max()):.3g} %"))
            if (log_z := self.log_z) is not None:
                facts.append(("log Z", f"{log_z.value:.3f} ± {log_z.se:.3f}"))
        facts += [
            (name.replace("_", " "), f"{value:.12}" if name.endswith(DIGESTS) else str(value))
            for name, value in self.metadata.items()
            if name != "system" and isinstance(value, str | int | float)
        ]
        return notebook.card(f"Samples of {self._name()}", facts, picture=self._sparkline())

    def _sparkline(self) -> str:
        """Histogram of the middle 99.8 % of the finite energies, by the weights."""
        finite = torch.isfinite(self.energies) & (self._shares() > 0)
        u, weights = self.energies[finite], self._shares()[finite]
        if not len(u):
            return ""
        order = u.argsort()
        below = weights[order].cumsum(0) / weights.sum()
        low = float(u[order][int((below < 0.001).sum())])
        high = float(u[order][min(int((below < 0.999).sum()), len(u) - 1)])
        index = ((u - low) / ((high - low) or 1.0) * SPARKS).floor().long()
        inside = (u >= low) & (u <= high)
        heights = torch.zeros(SPARKS, dtype=torch.float64)
        heights.index_add_(0, index[inside].clamp(max=SPARKS - 1), weights[inside])
        return notebook.bars(heights.tolist(), f"{low:.4g}", f"{high:.4g}", label="energy / kT")
