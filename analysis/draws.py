"""Draws: which configurations of samples and reference a metric sees, repeat by repeat.

See :mod:`molsampler.analysis.statistics` for what the repeats say. Draws depend on the seed and the number
of the repeat alone, so that every metric and every candidate meets the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molsampler.errors import InputError, NonFiniteError, ShapeError
from molsampler.samples import Samples
from molsampler.systems.resolve import resolve_recorded
from molsampler.target import System

from .correlation import thinned
from .geometry import Geometry, molecule_of
from .statistics import effective_sample_size

#: Fewest configurations per draw for which the metrics are computed.
SMALLEST_DRAW = 20


@dataclass(frozen=True, eq=False)
class Draw:
    """Configurations of one law, all of which count the same.

    Attributes
    ----------
    system : of the configurations
    positions : ``(n, N, D)`` float64 on the system's space, system length unit
    energies : ``(n,)`` float64, reduced energies of the exact target
    """

    system: System
    positions: Tensor
    energies: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def geometry(self) -> Geometry:
        """Torsions, bonds and hands of the configurations.

        Raises
        ------
        InputError
            The system has no bonds; a metric that needs them says so by its ``applies``.
        """
        molecule = molecule_of(self.system)
        if molecule is None:
            raise InputError(f"system {self.system.name!r} has no bonds, hence no geometry")
        return Geometry(molecule, self.positions)


@dataclass(frozen=True, eq=False)
class Pool(Draw):
    """All configurations of one side, with their weights and provenance.

    Attributes
    ----------
    weights : importance weights ``(n,)``, or None where all count the same
    metadata : of the samples
    """

    weights: Tensor | None
    metadata: Mapping[str, Any]

    @classmethod
    def of(cls, samples: Samples, system: System, name: str) -> Self:
        """The pool of a sample set that errors call ``name``.

        Raises
        ------
        ShapeError, NonFiniteError, InputError
            The samples do not fit the system, record another one, hold NaN, or are too few.
        """
        if not isinstance(samples, Samples):
            raise InputError(f"{name} must be Samples, got {type(samples).__name__}")
        if tuple(samples.positions.shape[1:]) != tuple(system.shape):
            raise ShapeError(
                f"{name} must hold configurations of shape {tuple(system.shape)} for system "
                f"{system.name!r}, got {tuple(samples.positions.shape[1:])}"
            )
        record = samples.metadata.get("system")
        if record is not None:
            resolve_recorded(record, given=system, source=name)
        for part, values in (("positions", samples.positions), ("energies", samples.energies)):
            if bool(torch.isnan(values).any()):
                rows = int(torch.isnan(values).reshape(len(values), -1).any(-1).sum())
                raise NonFiniteError(f"{name}.{part} hold NaN in {rows} of {len(values)} rows")
        if len(samples) < 2 * SMALLEST_DRAW:
            raise InputError(
                f"{name} must hold at least {2 * SMALLEST_DRAW} configurations, got {len(samples)}"
            )
        positions = system.space.project(samples.positions.detach().cpu().double())
        energies = samples.energies.detach().cpu()
        if not samples.ess:
            raise InputError(f"{name} carry no weight at all: every log weight is -inf")
        weights = None if samples.log_weights is None else samples.log_weights.softmax(0)
        return cls(system, positions, energies, weights, samples.metadata)

    @cached_property
    def effective(self) -> float:
        """Effective sample size."""
        return effective_sample_size(self.weights, len(self))

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Weights ``(n,)`` that sum to one."""
        w = torch.ones(len(self)) if self.weights is None else self.weights
        normalised: NDArray[np.float64] = (w.double() / w.double().sum()).numpy()
        return normalised

    @property
    def row_weights(self) -> NDArray[np.float64] | None:
        """:attr:`probabilities` where there are weights, None where all count the same."""
        return None if self.weights is None else self.probabilities

    def take(self, rows: Tensor) -> Draw:
        """The configurations of the given rows."""
        return Draw(self.system, self.positions[rows], self.energies[rows])

    def draw(self, n: int, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Indices of n configurations out of ``rows``, by weight if there are weights."""
        if self.weights is None:
            return rows[:n]
        weights = self.weights[rows]
        return rows[torch.multinomial(weights, n, replacement=True, generator=generator)]

    def split(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """Indices of two disjoint draws of n."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self), generator=generator)
        half = len(order) // 2
        return self.draw(n, order[:half], generator), self.draw(n, order[half:], generator)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is computed; see :func:`molsampler.analysis.comparison.compare_many`.

    Raises
    ------
    InputError
        A setting is out of range.
    """

    n: int = 2000
    repeats: int = 10
    transport_repeats: int = 3
    geometric_n: int | None = None
    drift_steps: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < SMALLEST_DRAW:
            raise InputError(f"n must be an integer >= {SMALLEST_DRAW}, got {self.n!r}")
        if self.repeats < 2:
            raise InputError(f"repeats must be an integer >= 2, got {self.repeats!r}")
        if self.transport_repeats == 1 or self.transport_repeats < 0:
            raise InputError(
                "transport_repeats must be 0 (leave transport out) or >= 2, "
                f"got {self.transport_repeats!r}"
            )


class Draws:
    """Reference and candidates of one comparison, and their draws.

    Attributes
    ----------
    system, settings : of the comparison
    reference : all of the reference
    candidates : all of each sample set, by label
    n : configurations per draw, ``settings.n`` or what the smallest set allows
    smallest : effective size of the smallest set
    thinning : what was said of correlated frames, by label, None for the reference; empty texts too

    Raises
    ------
    InputError
        There is no candidate, or a set is too small.
    ShapeError, NonFiniteError
        A set does not fit the system, or the reference is not finite.
    """

    def __init__(
        self,
        candidates: Mapping[str, Samples],
        reference: Samples,
        system: System,
        settings: Settings,
    ):
        if not candidates:
            raise InputError("candidates must hold at least one sample set, got none")
        self.system, self.settings = system, settings
        reference, remark = thinned(reference, system, name="reference", fewest=2 * SMALLEST_DRAW)
        self.thinning: dict[str | None, str] = {None: remark}
        self.reference = Pool.of(reference, system, "reference")
        if bool(torch.isinf(self.reference.energies).any()):
            raise NonFiniteError(
                "reference.energies hold infinite values; a reference must be finite"
            )
        self.candidates: dict[str, Pool] = {}
        for label, samples in candidates.items():
            kept, self.thinning[label] = thinned(
                samples, system, name=label, fewest=2 * SMALLEST_DRAW
            )
            self.candidates[label] = Pool.of(kept, system, f"samples {label!r}")
        self.smallest = min(pool.effective for pool in (self.reference, *self.candidates.values()))
        self.n = min(settings.n, int(self.smallest) // 2)
        if self.n < SMALLEST_DRAW:
            raise InputError(
                f"the smallest set has an effective size of {self.smallest:.1f}; at least "
                f"{2 * SMALLEST_DRAW} are needed"
            )
        self._rows: dict[tuple[str | None, int], tuple[Tensor, Tensor]] = {}

    def of_reference(self, repeat: int, n: int) -> tuple[Draw, Draw]:
        """The reference draw A of n configurations, and the independent one B that gives the floor."""
        a, b = self._split(None, self.reference, repeat, 0)
        return self.reference.take(a[:n]), self.reference.take(b[:n])

    def of_candidate(self, label: str, repeat: int, n: int) -> Draw:
        """The draw S of n configurations of a sample set."""
        pool = self.candidates[label]
        # The same seed for every candidate: a value does not depend on its neighbours.
        return pool.take(self._split(label, pool, repeat, 500_000)[0][:n])

    def _split(
        self, label: str | None, pool: Pool, repeat: int, offset: int
    ) -> tuple[Tensor, Tensor]:
        if (label, repeat) not in self._rows:
            seed = self.settings.seed * 1_000_003 + repeat + offset
            self._rows[label, repeat] = pool.split(self.n, seed)
        return self._rows[label, repeat]
