r"""How far samples are from the replay: the data-free criterion that selects and calibrates a generator.

The replay is a population of chains of the target, made from the energy alone and kept at equilibrium
(:mod:`molsampler.mcmc.population`). Unlike the drift under local refinement, a comparison with it sees wrong
weights of separated modes and slow coordinates that no local move sets right.

Samples :math:`x` and population :math:`y` are compared through one-dimensional observables
:math:`f_k`, each by its 2-Wasserstein distance in units of the population's standard deviation,

.. math:: D^2 = \tfrac12 z_u^2 + \tfrac12 \operatorname{mean}_k z_k^2, \qquad
   z_k = W_2(f_k(x), f_k(y)) / \operatorname{std} f_k(y).

:math:`u` is the reduced energy. The others are the configuration's own pair distances in order of
length, which do not change under rotation, reflection and permutation, where the space is mean-free,
and the coordinates with as many random projections (sliced Wasserstein) where it is not. D is as good as the
population is: where annealing left its modes with wrong weights, D repeats the error.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ..mcmc import mala
from ..nn.generators.implicit import Generator
from ..space import MeanFree, Space
from ..target import COORDINATE_LIMIT, Target

#: Samples are clamped to this before their energy is asked for.
REACH = 0.5 * COORDINATE_LIMIT

#: Pair distances by rank, coordinates, and projections used at most; more cost time and add little.
_OBSERVABLES = 32

#: Rows of the population compared with at most.
_ROWS = 16384

#: Parts of the samples whose spread is the error.
_PARTS = 5

#: Spacing of the factors tried in calibration, and how often they may move on.
_CALIBRATION_STEP, _CALIBRATION_ROUNDS = 0.02, 4


class Discrepancy:
    """Distance D of samples to a population at equilibrium; the population's side is prepared once.

    Parameters
    ----------
    population : positions ``(m, n, d)`` and energies of the chains
    space : the target's space, which decides the observables
    """

    def __init__(self, population: mala.State, space: Space):
        self.space = space
        # Chains are independent of their index, so a stride is a fair choice.
        stride = max(1, -(-len(population.energy) // _ROWS))
        x, energy = population.position[::stride], population.energy[::stride]
        self.low, self.high = float(energy.min()), float(energy.max())
        observed = self._observe(x, energy)
        self.sorted = observed.sort(dim=0)[0]
        self.scale = observed.std(dim=0).clamp(min=1e-12)

    def __call__(self, x: Tensor, energy: Tensor) -> tuple[float, float]:
        """D of positions ``(b, n, d)`` with reduced energies ``(b,)``, and its standard error."""
        observed = self._observe(x, energy)
        whole = self._distance(observed)
        parts = torch.tensor([self._distance(observed[k::_PARTS]) for k in range(_PARTS)])
        return whole, float(parts.std()) / math.sqrt(_PARTS)

    def _distance(self, observed: Tensor) -> float:
        ordered = observed.sort(dim=0)[0]
        levels = (torch.arange(len(ordered), device=ordered.device) + 0.5) / len(ordered)
        rows = (levels * len(self.sorted)).long().clamp(max=len(self.sorted) - 1)
        gap = ((ordered - self.sorted[rows]) / self.scale).square().mean(dim=0)
        return math.sqrt(0.5 * float(gap[0]) + 0.5 * float(gap[1:].mean()))

    def _observe(self, x: Tensor, energy: Tensor) -> Tensor:
        """Observables ``(b, k)``, the energy first."""
        # One sample in collision must cost, not decide: energies end at the population's range, widened.
        reach = self.high - self.low
        energy = energy.to(x).nan_to_num(nan=math.inf).clamp(max=self.high + reach)
        n = x.shape[1]
        if isinstance(self.space, MeanFree) and n > 1:
            first, second = torch.triu_indices(n, n, 1, device=x.device)
            # A chunk at a time: the distances of a large population need not fit at once.
            shape = torch.cat(
                [
                    (part[:, first] - part[:, second]).norm(dim=-1).sort(dim=-1)[0]
                    for part in torch.split(x, 4096)
                ]
            )
            shape = shape[:, self._spread(shape.shape[1])]
        else:
            flat = x.flatten(1)
            coordinates = flat[:, self._spread(flat.shape[1])]
            # The same projections at every call.
            rng = torch.Generator().manual_seed(0)
            axes = torch.randn(flat.shape[1], _OBSERVABLES, generator=rng, dtype=x.dtype).to(x)
            shape = torch.cat([coordinates, flat @ (axes / axes.norm(dim=0))], dim=1)
        return torch.cat([energy[:, None], shape], dim=1)

    @staticmethod
    def _spread(available: int) -> Tensor:
        """Indices of ``_OBSERVABLES`` columns, evenly spread, or of all if there are fewer."""
        if available <= _OBSERVABLES:
            return torch.arange(available)
        return torch.linspace(0, available - 1, _OBSERVABLES).round().long()


def calibrate(
    generator: Generator,
    discrepancy: Discrepancy,
    target: Target,
    *,
    samples: int,
    rng: torch.Generator,
    like: Tensor,
) -> float:
    """Factor on the generator's latent positions that brings its samples nearest to the population.

    One number tunes the whole: a slightly narrower latent gives slightly denser configurations. All
    factors see the same noise, so D squared is smooth in the factor: a parabola through five values
    has its minimum, and where that lies at the end of the five they move there. The factor found is taken
    if D there is below that at one.
    """
    latent = generator.draw_latent(samples, generator=rng, like=like)

    def distance(factor: float) -> float:
        scaled = latent._replace(position=factor * latent.position)
        with torch.no_grad():
            x = generator(scaled).nan_to_num().clamp(-REACH, REACH)
        return discrepancy(x, target.energy_and_score(x)[0])[0]

    centre, reach = 1.0, 2 * _CALIBRATION_STEP
    uncalibrated = distance(1.0)
    for _ in range(_CALIBRATION_ROUNDS):
        offsets = np.linspace(-reach, reach, 5)
        squares = [distance(centre + offset) ** 2 for offset in offsets]
        curvature, slope, _ = np.polyfit(offsets, squares, 2)
        lowest = -0.5 * slope / curvature if curvature > 0 else offsets[int(np.argmin(squares))]
        move = float(np.clip(lowest, -reach, reach))
        centre += move
        if abs(move) < reach:
            break
    return centre if distance(centre) < uncalibrated else 1.0
