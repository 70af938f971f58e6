"""Many independent double wells: exponentially many modes with exact statistics."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from molsampler.errors import InputError
from molsampler.space import Euclidean
from molsampler.target import System, check_positions

_GRID = 40_001


def _edge(beta: float) -> float:
    """Where the d-coordinate's density exp(-beta (d^4 - 6 d^2 - d/2)) is below 1e-30 of its peak."""
    return max(4.0, math.sqrt(3 + math.sqrt(9 + 90 / beta)))


@cache
def _well(beta: float) -> tuple[Tensor, Tensor, float, float, float]:
    """Grid, cumulative distribution on it, log Z, P(d > 0) and E[u] of one d-coordinate, energies beta u.

    The trapezoidal rule on a smooth function that vanishes at both ends converges faster than any
    power of the step, so these are exact to rounding.
    """
    edge = _edge(beta)
    d = torch.linspace(-edge, edge, _GRID, dtype=torch.float64)
    step = 2 * edge / (_GRID - 1)
    energy = beta * (-0.5 * d - 6 * d.square() + d.pow(4))
    density = torch.exp(-energy)
    z = density.sum() * step
    # Simpson's rule on each side of zero, where the density does not vanish.
    middle = _GRID // 2
    right = density[middle:]
    simpson = right[0] + right[-1] + 4 * right[1:-1:2].sum() + 2 * right[2:-1:2].sum()
    weight = simpson * step / 3 / z
    panels = 0.5 * (density[1:] + density[:-1]) * step
    cumulative = torch.cat([torch.zeros(1, dtype=torch.float64), panels.cumsum(0)])
    mean = (density * energy).sum() * step / z
    return (
        d,
        cumulative / cumulative[-1],
        math.log(z.item()),
        weight.item(),
        mean.item(),
    )


class ManyWell(System):
    r"""Independent pairs (d_k, v_k) of a tilted double well and a harmonic coordinate.

    .. math:: u(x) = \sum_k \left[ -\tfrac12 d_k - 6 d_k^2 + d_k^4 + \tfrac12 v_k^2 \right]

    ``mw32`` has 16 pairs, interleaved as (d_1, v_1, d_2, v_2, ...), shape ``(1, 32)``, and 2^16
    modes (Midgley et al., FAB, arXiv 2208.01893; after Noé et al., Science 365, 2019).

    Attributes
    ----------
    n_pairs : number of pairs
    log_z : logarithm of the normalising constant of ``exp(-u)``, exact
    positive_weight : P(d_k > 0), the same for every pair, exact
    mean_energy : expectation of u, exact
    """

    units = "energy kT, length arbitrary"

    concurrent = True

    def __init__(self, n_pairs: int = 16) -> None:
        if isinstance(n_pairs, bool) or not isinstance(n_pairs, int) or n_pairs < 1:
            raise InputError(f"n_pairs must be a positive integer, got {n_pairs!r}")
        self.n_pairs = n_pairs
        self.name = f"mw{2 * n_pairs}"
        self.description = f"{n_pairs} independent double wells, {2 * n_pairs}-D, 2^{n_pairs} modes"
        self.space = Euclidean(1, 2 * n_pairs)
        self._find_truth()

    def _find_truth(self) -> None:
        _, _, log_z, weight, mean = _well(self._beta)
        self.log_z = self.n_pairs * (log_z + 0.5 * math.log(2 * math.pi / self._beta))
        self.positive_weight = weight
        self.mean_energy = self.n_pairs * (mean + 0.5)

    def _move(self, source: System) -> None:
        super()._move(source)
        self._find_truth()

    def _energy(self, x: Tensor) -> Tensor:
        d, v = x[..., 0::2], x[..., 1::2]
        square = d.square()
        return (-0.5 * d + (square - 6) * square + 0.5 * v.square()).sum((-1, -2))

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        d, v = x[..., 0::2], x[..., 1::2]
        score = torch.empty_like(x)
        score[..., 0::2] = 0.5 + d * (12 - 4 * d.square())
        score[..., 1::2] = -v
        return self._energy(x), score

    def mode_labels(self, x: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Whether each d-coordinate is positive, booleans ``(*b, n_pairs)``, and their names.

        Raises
        ------
        ShapeError, NonFiniteError
            As :meth:`energy`.
        """
        x = check_positions(x, self.shape)
        names = tuple(f"d{k} > 0" for k in range(1, self.n_pairs + 1))
        return x[..., 0, 0::2] > 0, names

    def sample(self, n: int, *, generator: torch.Generator | None) -> Tensor:
        """``n`` independent draws, float64, shape ``(n, 1, 2 n_pairs)``, on the generator's device.

        The d-coordinates come from the inverse of the cumulative distribution, interpolated
        linearly on a grid of step 2e-4: within each cell the density is taken as constant, an error
        in the moments of the order of 1e-8.

        Raises
        ------
        InputError
            ``n`` is negative.
        """
        if n < 0:
            raise InputError(f"n must be a non-negative number of samples, got {n}")
        device = "cpu" if generator is None else generator.device
        shape = (n, self.n_pairs)
        grid, cumulative = (part.to(device) for part in _well(self._beta)[:2])
        level = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
        cell = torch.searchsorted(cumulative, level, right=True).clamp(1, _GRID - 1)
        low, high = cumulative[cell - 1], cumulative[cell]
        share = (level - low) / (high - low).clamp_min(torch.finfo(torch.float64).tiny)
        x = torch.empty(n, 2 * self.n_pairs, dtype=torch.float64, device=device)
        x[:, 0::2] = grid[cell - 1] + share * (grid[cell] - grid[cell - 1])
        noise = torch.randn(shape, generator=generator, device=device, dtype=torch.float64)
        x[:, 1::2] = noise / math.sqrt(self._beta)
        return x[:, None]
