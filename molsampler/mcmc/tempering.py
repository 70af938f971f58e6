r"""Parallel tempering (Swendsen & Wang 1986; Geyer 1991): MALA on a temperature ladder with exchanges.

Replica ``k`` samples :math:`\exp(-\beta_k u)`, with :math:`\beta_0 = 1` the target. After each sweep,
neighbours ``k, k+1`` (even and odd pairs in turn) exchange positions with probability
:math:`\min(1, \exp[(\beta_k - \beta_{k+1})(u_k - u_{k+1})])`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..target import Target
from . import mala
from .proposal import Info, choose


class State(NamedTuple):
    """Positions ``(k, b, n, d)``, untempered energies and scores, inverse temperatures ``(k,)``."""

    position: Tensor
    energy: Tensor
    score: Tensor
    beta: Tensor
    sweep: int


class PTInfo(NamedTuple):
    """MALA's info ``(k, b)`` and the share of accepted exchanges between neighbours (NaN if untried)."""

    move: Info
    exchanged: Tensor


class Tempered:
    """The density exp(-beta u) of a target; ``beta`` broadcasts over the energy's batch shape."""

    def __init__(self, target: Target, beta: Tensor):
        self.target, self.beta = target, beta
        self.space = target.space

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, score = self.target.energy_and_score(x)
        beta = self.beta.to(energy)
        return beta * energy, beta[..., None, None] * score


def geometric_ladder(replicas: int, *, hottest: float) -> Tensor:
    """Inverse temperatures ``(replicas,)`` falling geometrically from 1 to ``1 / hottest``."""
    if replicas < 1 or hottest < 1:
        raise InputError(
            f"a ladder needs replicas >= 1 and hottest >= 1, got {replicas} and {hottest}"
        )
    return torch.logspace(0, -1, replicas, base=hottest)


def init(x: Tensor, target: Target, beta: Tensor) -> State:
    """Start from positions ``(k, b, n, d)`` for inverse temperatures ``beta`` ``(k,)``."""
    if beta.dim() != 1 or x.dim() != 4 or len(beta) != len(x):
        raise InputError(
            "tempering needs positions (k, b, n, d) and beta (k,), got "
            f"{tuple(x.shape)} and {tuple(beta.shape)}"
        )
    energy, score = target.energy_and_score(x)
    return State(x, energy, score, beta.to(x), 0)


def step(
    state: State,
    target: Target,
    *,
    step_size: float | Tensor,
    generator: torch.Generator | None,
) -> tuple[State, PTInfo]:
    """One MALA step of every replica, then one round of exchanges.

    ``step_size`` is a number or one value per replica ``(k, 1)`` or ``(k, b)``.
    """
    beta = state.beta[:, None]
    tempered = Tempered(target, beta)
    current = mala.State(state.position, beta * state.energy, beta[..., None, None] * state.score)
    moved, info = mala.step(current, tempered, step_size=step_size, generator=generator)
    position = moved.position
    # Where nothing moved the old values are kept: multiplying and dividing by beta would erode them.
    energy = choose(info.accepted, moved.energy / beta, state.energy)
    score = choose(info.accepted, moved.score / beta[..., None, None], state.score)

    replicas, chains = energy.shape
    exchanged = energy.new_full((max(replicas - 1, 0),), torch.nan)
    index = torch.arange(replicas, device=energy.device)[:, None].repeat(1, chains)
    lower = torch.arange(state.sweep % 2, replicas - 1, 2, device=energy.device)
    if len(lower):
        gap = state.beta[lower] - state.beta[lower + 1]
        log_ratio = gap[:, None] * (energy[lower] - energy[lower + 1])
        draw = torch.rand(
            log_ratio.shape, generator=generator, dtype=energy.dtype, device=energy.device
        )
        swap = draw.log() < log_ratio
        index[lower] = torch.where(swap, index[lower] + 1, index[lower])
        index[lower + 1] = torch.where(swap, index[lower + 1] - 1, index[lower + 1])
        exchanged[lower] = swap.to(energy).mean(1)
    chain = torch.arange(chains, device=energy.device)[None].expand(replicas, chains)
    return (
        State(
            position[index, chain],
            energy[index, chain],
            score[index, chain],
            state.beta,
            state.sweep + 1,
        ),
        PTInfo(info, exchanged),
    )
