r"""Free-energy profiles along a collective variable, and the basins that their barriers separate.

With :math:`p_j` the probability of bin j and :math:`\Delta` its width,
:math:`F_j = -\log (p_j / \Delta)` in kT, shifted so that the least is zero. It belongs to the density of the
variable itself: along a distance r, the volume :math:`4\pi r^2` is part of it.

Basins are found on the profile smoothed over ``WINDOW`` bins. A minimum is one of its own where the way to a
deeper one leads over a barrier of at least ``BARRIER`` kT that is no accident: the masses in the windows of
minimum and barrier differ by ``BARRIER_ERRORS`` standard errors. Others are joined to the basin beyond their
lowest barrier, the shallowest first (0-dimensional persistence). On a circle the last bin is the first one's
neighbour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from molsampler.collective_variables import CollectiveVariable, Intervals
from molsampler.storage.files import atomic_path

from .figure_file import check_plot
from .statistics import finite_or_none

Array = NDArray[np.float64]

#: Bins of a profile.
BINS = 60

#: Share of the weight beyond either end of the bins of a variable on a line.
TAIL = 5e-4

#: Bins over which a profile is smoothed to find its basins.
WINDOW = 5

#: Least barrier in kT between basins, and in standard errors.
BARRIER, BARRIER_ERRORS = 1.0, 3.0


@dataclass(frozen=True)
class Profile:
    """Free energy along a collective variable.

    Attributes
    ----------
    variable, variable_unit : what it is along
    period : of the variable, or None
    edges : of the bins ``(b + 1,)``
    free_energy, se : of each bin against the least ``(b,)``; infinite and NaN where a bin is empty
    unit : of the free energies
    basin_edges : where basins along the variable begin
    """

    variable: str
    variable_unit: str
    period: float | None
    edges: Array
    free_energy: Array
    se: Array
    unit: str
    basin_edges: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary; None for empty bins."""
        return {
            "variable": self.variable,
            "variable_unit": self.variable_unit,
            "period": self.period,
            "edges": self.edges.tolist(),
            "free_energy": [finite_or_none(value) for value in self.free_energy],
            "se": [finite_or_none(value) for value in self.se],
            "unit": self.unit,
            "basin_edges": list(self.basin_edges),
        }


@dataclass(frozen=True)
class Binning:
    """Values of a collective variable in bins.

    Attributes
    ----------
    values : ``(n,)``
    edges : of the bins ``(b + 1,)``: the whole period, or what holds all but ``TAIL`` of the weight at
        either end
    index : bin of each value ``(n,)``, -1 outside
    """

    variable: CollectiveVariable
    values: Tensor
    edges: Array
    index: NDArray[np.int64]

    @classmethod
    def of(
        cls, variable: CollectiveVariable, positions: Tensor, probabilities: Array, bins: int
    ) -> Binning:
        """Bins for positions ``(n, N, D)`` of the given probabilities ``(n,)``."""
        found = variable(positions)
        values = found.numpy()
        if variable.period is not None:
            low, high = -variable.period / 2, variable.period / 2
        else:
            order = np.argsort(values)
            cumulative = np.cumsum(probabilities[order])
            ends = np.searchsorted(cumulative, [TAIL, 1 - TAIL]).clip(max=len(values) - 1)
            low, high = values[order][ends]
            if not high > low:
                low, high = low - 0.5, high + 0.5
        edges = np.linspace(low, high, bins + 1)
        index = np.searchsorted(edges, values, side="right") - 1
        index[values == edges[-1]] = bins - 1
        index[index >= bins] = -1
        return cls(variable, found, edges, index)

    @property
    def bins(self) -> int:
        """Number of bins."""
        return len(self.edges) - 1

    def sums(self, values: Array) -> Array:
        """Sums ``(b,)`` of values ``(n,)`` in each bin."""
        inside = self.index >= 0
        sums = np.bincount(self.index[inside], values[inside], self.bins)
        return sums.astype(np.float64)

    def basins(self, weights: Array) -> Intervals | None:
        """The basins that barriers of the profile separate, None where there is one."""
        shares, squares = self.sums(weights), self.sums(np.square(weights))
        counts = np.divide(shares**2, squares, out=np.zeros_like(shares), where=squares > 0)
        periodic = self.variable.period is not None
        cut = basin_edges(shares, counts, self.edges, periodic=periodic)
        return Intervals(self.variable, cut) if cut else None


def basin_edges(
    probabilities: Array, counts: Array, edges: Array, *, periodic: bool
) -> tuple[float, ...]:
    """Edges between the basins of a histogram, none where there is one basin.

    Parameters
    ----------
    probabilities : of the bins ``(b,)``, up to a factor
    counts : effective number of samples in each bin ``(b,)``, of which the errors are made
    edges : of the bins ``(b + 1,)``
    """
    variances = np.divide(probabilities**2, counts, out=np.zeros_like(counts), where=counts > 0)
    mass, variance, size = (
        _windowed(each, periodic=periodic)
        for each in (probabilities, variances, np.ones_like(counts))
    )
    # An empty window is as deep as half a sample would make it.
    least = 0.5 * probabilities.sum() / counts.sum()
    energy = -np.log(np.where(mass > 0, mass, least) / size)
    b = len(energy)
    owner = np.full(b, -1)
    bottom: dict[int, int] = {}
    joined: dict[int, int] = {}

    def root(basin: int) -> int:
        while basin in joined:
            basin = joined[basin]
        return basin

    for at in np.argsort(energy, kind="stable"):
        beside = (
            [(at - 1) % b, (at + 1) % b]
            if periodic
            else [k for k in (at - 1, at + 1) if 0 <= k < b]
        )
        near = sorted(
            {root(owner[k]) for k in beside if owner[k] >= 0}, key=lambda k: energy[bottom[k]]
        )
        if not near:
            owner[at] = at
            bottom[int(at)] = int(at)
            continue
        owner[at] = near[0]
        for shallow in near[1:]:
            low = bottom[shallow]
            error = math.sqrt(variance[low] + variance[at])
            high = energy[at] - energy[low] >= BARRIER
            if not high or mass[low] - mass[at] < BARRIER_ERRORS * error:
                joined[shallow] = near[0]
    basin = np.array([root(k) for k in owner])
    starts = np.flatnonzero(basin != np.roll(basin, 1))
    if not periodic:
        starts = starts[starts > 0]
    return tuple(float(edge) for edge in edges[starts])


def _windowed(values: Array, *, periodic: bool) -> Array:
    """Sums ``(b,)`` over windows of WINDOW bins, cut at the ends of a line."""
    reach = WINDOW // 2
    padded = np.pad(values, reach, mode="wrap" if periodic else "constant")
    return np.convolve(padded, np.ones(WINDOW), mode="valid")


def write_profile(profile: Profile, path: Path | str, *, overwrite: bool = False) -> None:
    """Draw a profile with its standard errors; the suffix says the format.

    Raises
    ------
    InputError, OutputExistsError, StorageError
        See :func:`molsampler.analysis.figure_file.check_plot`.
    """
    target = check_plot(path, overwrite=overwrite)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.4), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    middle = 0.5 * (profile.edges[1:] + profile.edges[:-1])
    low, high = (profile.free_energy + sign * profile.se for sign in (-1, 1))
    axes.fill_between(middle, low, high, alpha=0.3, linewidth=0)
    axes.plot(middle, profile.free_energy, linewidth=1.6)
    for edge in profile.basin_edges:
        axes.axvline(edge, color="#9aa0a6", linestyle=":", linewidth=1)
    unit = f" / {profile.variable_unit}" if profile.variable_unit else ""
    axes.set_xlabel(f"{profile.variable}{unit}".replace("$", r"\$"))
    axes.set_ylabel(f"free energy / {profile.unit}")
    axes.set_xlim(profile.edges[0], profile.edges[-1])
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format=target.suffix[1:].lower(), dpi=150)
