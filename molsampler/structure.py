r"""Size and pair structure of free clusters and molecules, which no periodic cell holds.

The radial distribution function divides the pair distances by those of an ideal gas. A cell's gas has one
density; a cluster has none, so the gas here fills a ball (in the plane a disc) whose mean square pair
distance is that of the samples:

.. math:: g(r) = \frac{\langle c_k \rangle}{P\,[F(r_{k+1}) - F(r_k)]}, \qquad
          R^2 = \tfrac56 \langle r^2 \rangle \;(d = 3), \quad R^2 = \langle r^2 \rangle \;(d = 2)

with the mean number :math:`\langle c_k \rangle` of the P pairs in bin k and the distribution function F of
the distance of two points drawn evenly from the ball (Kendall and Moran 1963, *Geometrical Probability*):

.. math:: F(r) = s^3 - \tfrac{9}{16} s^4 + \tfrac{1}{32} s^6, \quad s = r / R \le 2 \qquad (d = 3)

Points spread evenly in a ball have g = 1 at all r below 2 R, whatever their number and density.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import InputError, ShapeError
from .estimate import mean

Array = NDArray[np.float64]

#: Default range of a radial distribution in units of R.
REACH = 1.8

#: Configurations whose distances are held at once.
BLOCK = 4096


def interatomic_distances(x: Tensor) -> Tensor:
    r"""Distances :math:`|x_i - x_j|` of all pairs ``i < j``, shape ``(*b, n (n - 1) / 2)``.

    Parameters
    ----------
    x : positions ``(*b, n, d)`` with at least two particles, system length unit

    Raises
    ------
    ShapeError
        ``x`` has fewer than two dimensions or fewer than two particles.
    """
    if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[-2] < 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(
            f"x must be a tensor (*batch, particle, dimension) of two or more particles, got {got}"
        )
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2], 1, device=x.device)
    distances: Tensor = torch.linalg.vector_norm(x[..., i, :] - x[..., j, :], dim=-1)
    return distances


def radius_of_gyration(x: Tensor) -> Tensor:
    r"""Radius of gyration :math:`\sqrt{\frac1N \sum_i |x_i - \bar x|^2}`, shape ``(*b,)`` float64.

    All particles count the same, whatever their mass.

    Parameters
    ----------
    x : positions ``(*b, n, d)``; the result is in their unit of length
    """
    x = x.double()
    square: Tensor = (x - x.mean(-2, keepdim=True)).square().sum(-1).mean(-1)
    return square.sqrt()


@dataclass(frozen=True, eq=False)
class RadialDistribution:
    """Radial distribution function of a cluster; arrays over bins ``(k,)`` float64.

    Attributes
    ----------
    edges : of the bins ``(k + 1,)``, in the unit of the positions
    g, se : g(r) and its standard error; NaN where the ideal gas has no pairs, at r >= 2 ``radius``
    neighbours : mean number of other particles nearer than the upper edge of the bin; with ``pairs``, mean
        number of those pairs
    radius : R of the ball of the ideal gas
    """

    edges: Array
    g: Array
    se: Array
    neighbours: Array
    radius: float

    @property
    def r(self) -> Array:
        """Middles of the bins."""
        middle: Array = 0.5 * (self.edges[1:] + self.edges[:-1])
        return middle


def ball_radius(square: float, dimension: int) -> float:
    """Radius of the ball (disc) in which the mean square distance of two even points is ``square``."""
    return math.sqrt(5 * square / 6 if dimension == 3 else square)


def ideal_distribution(r: Array, radius: float, dimension: int) -> Array:
    """Share F(r) of pairs of even points in a ball (dimension 3) or disc (2) that are nearer than ``r``."""
    s = np.clip(np.asarray(r, dtype=np.float64) / radius, 0, 2)
    if dimension == 3:
        ball: Array = s**3 - 9 / 16 * s**4 + s**6 / 32
        return ball
    chord = np.sqrt(1 - s**2 / 4)
    disc: Array = 1 + 2 / np.pi * ((s**2 - 1) * np.arccos(s / 2) - s / 2 * (1 + s**2 / 2) * chord)
    return disc


def radial_distribution(
    x: Tensor,
    *,
    log_weights: Tensor | None = None,
    bins: int = 60,
    r_max: float | None = None,
    radius: float | None = None,
    pairs: Sequence[tuple[int, int]] | None = None,
) -> RadialDistribution:
    """Radial distribution function of positions ``(n, N, D)``, D of 2 or 3; see the module.

    Errors take the samples as independent.

    Parameters
    ----------
    log_weights : ``(n,)``, see :mod:`molsampler.estimate`
    bins, r_max : bins of equal width from 0 to ``r_max``, by default 1.8 R, below which the gas has 99 % of
        its pairs; a cluster without a sharp edge has g > 1 beyond
    radius : R, where the samples' own is not wanted
    pairs : pairs of particles ``(i, j)`` that are counted; the samples' R is that of all pairs

    Raises
    ------
    ShapeError
        There are no samples, fewer than two particles, or another number of dimensions.
    InputError
        ``bins``, ``r_max``, ``radius`` or ``pairs`` is out of range.
    """
    if x.dim() != 3 or not len(x) or x.shape[1] < 2 or x.shape[2] not in (2, 3):
        raise ShapeError(
            "a radial distribution needs positions (n, N, D) of at least one sample, N > 1 particles in "
            f"D = 2 or 3 dimensions, got {tuple(x.shape)}"
        )
    _, particles, dimension = x.shape
    if not isinstance(bins, int) or not 1 <= bins <= 10_000:
        raise InputError(f"bins must be an integer from 1 to 10000, got {bins!r}")
    chosen = _chosen(pairs, particles)
    if radius is None:
        square = torch.cat([_distances(part).square().mean(-1) for part in torch.split(x, BLOCK)])
        radius = ball_radius(float(mean(square, log_weights).value), dimension)
        if radius == 0:
            raise InputError("all particles stand at one place: there is no radius to compare with")
    reach = _positive("radius", radius) * REACH if r_max is None else _positive("r_max", r_max)
    edges = np.linspace(0, reach, bins + 1)
    counts = torch.cat([_counts(part, chosen, reach, bins) for part in torch.split(x, BLOCK)])
    found = mean(counts, log_weights)
    held = found.value.numpy()
    number = particles * (particles - 1) // 2 if chosen is None else chosen.shape[1]
    expected = number * np.diff(ideal_distribution(edges, radius, dimension))
    with np.errstate(divide="ignore", invalid="ignore"):
        g, se = (
            np.where(expected > 1e-12 * number, each / expected, np.nan)
            for each in (held, found.se.numpy())
        )
    # Every pair is two neighbourhoods.
    share = 2.0 / particles if chosen is None else 1.0
    return RadialDistribution(edges, g, se, share * np.cumsum(held), float(radius))


def _positive(name: str, value: Any) -> float:
    if isinstance(value, int | float) and 0 < value < math.inf:
        return float(value)
    raise InputError(f"{name} must be a positive length, got {value!r}")


def _chosen(pairs: Sequence[tuple[int, int]] | None, particles: int) -> Tensor | None:
    """Pairs as indices ``(2, p)``, None for all."""
    if pairs is None:
        return None
    found = [tuple(int(i) for i in pair) for pair in pairs]
    for pair in found:
        if len(pair) != 2 or pair[0] == pair[1] or not all(0 <= i < particles for i in pair):
            raise InputError(
                f"pairs must name two different particles of 0 to {particles - 1} each, got {pair}"
            )
    if not found:
        raise InputError("pairs must hold at least one pair of particles, got none")
    return torch.tensor(found).T


def _distances(x: Tensor, chosen: Tensor | None = None) -> Tensor:
    x = x.double()
    if chosen is None:
        return interatomic_distances(x)
    distance: Tensor = (x[:, chosen[0]] - x[:, chosen[1]]).norm(dim=-1)
    return distance


def _counts(x: Tensor, chosen: Tensor | None, reach: float, bins: int) -> Tensor:
    """Pairs in each bin of each configuration, ``(b, bins)`` float64."""
    index = (_distances(x, chosen) / reach * bins).long().clamp(max=bins)
    counts = torch.zeros(len(x), bins + 1, dtype=torch.float64)
    counts.scatter_add_(1, index, torch.ones_like(index, dtype=torch.float64))
    return counts[:, :bins]
