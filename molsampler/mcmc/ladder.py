r"""Replica exchange as a population: every chain keeps its temperature, neighbours exchange configurations.

Rows :math:`i = ck + j` of a population are ``k`` replicas ``j`` of independent ladders ``c``, at
temperatures from one end of a range to the other, each by the same factor above the one before. Every row
moves at its own temperature, with a step in proportion to it. An exchange of neighbours ``i``, ``i + 1``
is accepted with probability

.. math:: \min(1, \exp[u_i(x_i) + u_{i+1}(x_{i+1}) - u_i(x_{i+1}) - u_{i+1}(x_i)])

(Swendsen & Wang 1986; Geyer 1991). The four energies are asked for as they stand, since in curved coordinates
the volume element does not change with the temperature: an exchange costs an evaluation a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..bennett import bennett
from ..estimate import Estimate
from ..target import Target
from ..temperatures import TemperatureRange
from . import mala

#: Least effective share of another temperature's rows for which they count as rows of the one asked for.
_SHARE = 0.2


@dataclass(frozen=True)
class Ladder:
    """Temperatures of the rows of a population.

    Attributes
    ----------
    range : whose ends are the lowest and the highest
    nodes : number of temperatures
    at : the target at temperatures ``(n,)``, row by row, or at one for all
    """

    range: TemperatureRange
    nodes: int
    at: Callable[[Tensor], Target]

    def rows(self, n: int, *, like: Tensor) -> Tensor:
        """Temperatures ``(n,)`` of the rows; n is a multiple of the number of nodes."""
        spread = torch.tensor(
            self.range.spread(self.nodes), dtype=torch.float64, device=like.device
        )
        return spread.to(like.dtype).repeat(n // self.nodes)

    def relative(self, n: int, *, like: Tensor) -> Tensor:
        """Temperatures ``(n,)`` of the rows over the middle of the range."""
        return self.rows(n, like=like) / self.range.middle

    def target(self, n: int, *, like: Tensor) -> Target:
        """The density of a population of n rows."""
        return self.at(self.rows(n, like=like))


def exchange(
    state: mala.State,
    target: Target,
    *,
    nodes: int,
    odd: bool,
    generator: torch.Generator | None,
) -> tuple[mala.State, float]:
    """One round of exchanges, of pairs that begin with an even replica or with an ``odd`` one; and the
    share that was accepted.

    ``target`` is that of the rows ``(n, ...)``, each at its own temperature.
    """
    x, energy, score = state
    n = len(energy)
    row = torch.arange(n, device=x.device)
    replica = row % nodes
    lower = row[(replica % 2 == int(odd)) & (replica < nodes - 1)]
    if not len(lower):
        return state, 0.0
    other = row.clone()
    other[lower], other[lower + 1] = lower + 1, lower
    moved = x[other]
    new_energy, new_score = target.energy_and_score(moved)
    gain = energy - new_energy
    log_ratio = (gain[lower] + gain[lower + 1]).nan_to_num(nan=-torch.inf)
    draw = torch.rand(len(lower), generator=generator, dtype=x.dtype, device=x.device)
    taken = draw.log() < log_ratio
    swapped = torch.zeros(n, dtype=torch.bool, device=x.device)
    swapped[lower], swapped[lower + 1] = taken, taken
    column = swapped[:, None, None]
    return (
        mala.State(
            torch.where(column, moved, x),
            torch.where(swapped, new_energy, energy),
            torch.where(column, new_score, score),
        ),
        float(taken.double().mean()),
    )


def log_z_change(
    state: mala.State, rows: Tensor, at: Callable[[float], Target]
) -> tuple[Estimate[float], int]:
    """Log of Z at the highest of the temperatures ``rows`` ``(n,)`` of a population over that at the lowest,
    by Bennett's acceptance ratio between neighbours, and the energies that it took.

    Rows of infinite energy at a neighbour's temperature are left out.
    """
    temperatures = [float(value) for value in torch.unique(rows)]
    spent, value = 0, 0.0
    # What each row adds to the differences to both its neighbours, by the row's index.
    influence = torch.zeros(len(rows), dtype=torch.float64)
    for pair in pairwise(temperatures):
        sides = []
        for own, other in (pair, pair[::-1]):
            index = (rows == own).nonzero()[:, 0]
            there = at(other).energy_and_score(state.position[index])[0]
            change = (there - state.energy[index]).double()
            finite = torch.isfinite(change)
            sides.append((index[finite].cpu(), change[finite].cpu()))
            spent += len(index)
        counts = [len(index) for index, _ in sides]
        if not all(counts):
            return Estimate(-math.inf, math.inf), spent
        changes = [change.numpy() for _, change in sides]
        ones = [np.ones(count) for count in counts]
        step, _, *parts = bennett(changes[0], changes[1], ones[0], ones[1], counts[0], counts[1])
        value -= step
        for (index, _), part in zip(sides, parts, strict=True):
            influence[index] += torch.from_numpy(part)
    groups = [influence[(rows == own).cpu()] for own in temperatures]
    variance = sum(float(group.var()) / len(group) for group in groups)
    return Estimate(value, math.sqrt(variance)), spent


def at_temperature(
    state: mala.State, rows: Tensor, target: Target, temperature: float, *, nodes: int
) -> mala.State:
    """What rows at temperatures ``rows`` ``(n,)`` say of one temperature, whose density ``target`` is.

    Rows of every replica are weighted by the ratio of the two densities and resampled, as many as they count
    for; replicas too far away are left out. Costs an evaluation a row that is near.
    """
    parts = []
    for replica in range(nodes):
        x, energy = state.position[replica::nodes], state.energy[replica::nodes]
        own = float(rows[replica])
        if abs(own / temperature - 1.0) < 1e-5:
            parts.append(x)
            continue
        change = (energy - target.energy_and_score(x)[0]).double().nan_to_num(nan=-torch.inf)
        weight = torch.softmax(change, 0)
        share = float(1.0 / weight.square().sum() / len(weight))
        if not share >= _SHARE:
            continue
        count = int(share * len(weight))
        # Evenly spaced points and no random ones: looking at a population leaves every stream as it was.
        points = (torch.arange(count, dtype=weight.dtype, device=weight.device) + 0.5) / count
        index = torch.searchsorted(weight.cumsum(0), points).clamp(max=len(weight) - 1)
        parts.append(x[index])
    if not parts:
        nearest = int((rows[:nodes] - temperature).abs().argmin())
        parts.append(state.position[nearest::nodes])
    return mala.init(torch.cat(parts), target)
