r"""Annealed importance sampling (Neal 2001).

Along the geometric path :math:`u_\lambda = (1-\lambda) u_0 + \lambda u_1` the log weight grows by
:math:`(\lambda_k - \lambda_{k+1})(u_1 - u_0)(x_k)`, then a transition invariant for
:math:`u_{\lambda_{k+1}}`, by MALA unless another kernel is given, moves the particle.
:math:`E[e^{\log w}] = Z_1 / Z_0`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..target import Target
from . import mala
from .adapt import Kernel
from .proposal import Info


class State(NamedTuple):
    """Particles ``(*b, n, d)``, log weights ``(*b,)``, and both ends' energies and scores there."""

    position: Tensor
    log_weight: Tensor
    energies: tuple[Tensor, Tensor]
    scores: tuple[Tensor, Tensor]


class Path:
    """Density on the geometric path between two targets at ``lam`` in [0, 1]."""

    def __init__(self, start: Target, end: Target, lam: float):
        self.start, self.end, self.lam = start, end, lam
        self.space = end.space

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy0, score0 = self.start.energy_and_score(x)
        energy1, score1 = self.end.energy_and_score(x)
        return mixed(self.lam, energy0, energy1), mixed(self.lam, score0, score1)


def mixed(lam: float, first: Tensor, second: Tensor) -> Tensor:
    """Energies or scores on the path, of those at both ends."""
    # At the ends the other side is left out: 0 * inf would be NaN. torch.lerp would give inf - inf.
    if lam <= 0.0:
        return first
    if lam >= 1.0:
        return second
    return (1.0 - lam) * first + lam * second


def init(x: Tensor, start: Target, end: Target) -> State:
    """Particles drawn from ``start``, with zero log weight."""
    energy0, score0 = start.energy_and_score(x)
    energy1, score1 = end.energy_and_score(x)
    return State(x, torch.zeros_like(energy0), (energy0, energy1), (score0, score1))


def reweight(state: State, *, from_lam: float, to_lam: float) -> State:
    """Change the density from ``from_lam`` to ``to_lam``; particles of infinite energy get weight 0."""
    increment = (to_lam - from_lam) * (state.energies[0] - state.energies[1])
    increment = increment.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    return state._replace(log_weight=state.log_weight + increment)


def move(
    state: State,
    start: Target,
    end: Target,
    *,
    lam: float,
    step_size: float | Tensor,
    generator: torch.Generator | None,
    kernel: Kernel = mala.step,
) -> tuple[State, Info]:
    """One transition at ``lam``; the weights are unchanged."""
    position, _, energies, scores = state
    current = mala.State(position, mixed(lam, *energies), mixed(lam, *scores))
    ends = _Recording(start, end, lam)
    moved, info = kernel(current, ends, step_size=step_size, generator=generator)
    return (
        State(
            moved.position,
            state.log_weight,
            (
                torch.where(info.accepted, ends.energies[0], energies[0]),
                torch.where(info.accepted, ends.energies[1], energies[1]),
            ),
            (
                torch.where(info.accepted[..., None, None], ends.scores[0], scores[0]),
                torch.where(info.accepted[..., None, None], ends.scores[1], scores[1]),
            ),
        ),
        info,
    )


class _Recording(Path):
    """A path that keeps both ends' last evaluation, so that reweighting costs no further energies."""

    energies: tuple[Tensor, Tensor]
    scores: tuple[Tensor, Tensor]

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy0, score0 = self.start.energy_and_score(x)
        energy1, score1 = self.end.energy_and_score(x)
        self.energies, self.scores = (energy0, energy1), (score0, score1)
        return mixed(self.lam, energy0, energy1), mixed(self.lam, score0, score1)


def run(
    x: Tensor,
    start: Target,
    end: Target,
    *,
    levels: int,
    step_size: float | Tensor,
    generator: torch.Generator | None,
    kernel: Kernel = mala.step,
) -> State:
    """Anneal particles ``x`` drawn from ``start`` to ``end`` in ``levels`` equal increments of lambda.

    One transition follows every increment but the last; ``levels = 1`` is importance sampling.
    """
    state = init(x, start, end)
    for k in range(1, levels + 1):
        state = reweight(state, from_lam=(k - 1) / levels, to_lam=k / levels)
        if k < levels:
            state, _ = move(
                state,
                start,
                end,
                lam=k / levels,
                step_size=step_size,
                generator=generator,
                kernel=kernel,
            )
    return state


def log_normaliser_ratio(log_weight: Tensor) -> Tensor:
    """log(Z_1 / Z_0) from log weights ``(k, *b)``, averaging over the first dimension."""
    count = torch.tensor(log_weight.shape[0], dtype=log_weight.dtype, device=log_weight.device)
    return torch.logsumexp(log_weight, dim=0) - count.log()
