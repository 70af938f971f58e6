r"""Parallel tempering (Swendsen & Wang 1986; Geyer 1991): moves on a temperature ladder, with exchanges.

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
from . import mala, moves
from .proposal import Info, choose


class State(NamedTuple):
    """Positions ``(k, b, n, d)``, untempered energies and scores, inverse temperatures ``(k,)``."""

    position: Tensor
    energy: Tensor
    score: Tensor
    beta: Tensor
    sweep: int


class PTInfo(NamedTuple):
    """The moves' info ``(k, b)``, the share of accepted exchanges between neighbours (NaN if untried), and
    the rung ``(k, b)`` from which each configuration came."""

    move: Info
    exchanged: Tensor
    origin: Tensor


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
    scale: Tensor | None = None,
    leapfrog_steps: int = 1,
) -> tuple[State, PTInfo]:
    """One move of every replica (:mod:`molsampler.mcmc.moves`), then one round of exchanges.

    ``step_size`` is a number or one value per replica ``(k, 1)`` or ``(k, b)``, ``scale`` as for MALA.
    """
    beta = state.beta[:, None]
    tempered = Tempered(target, beta)
    current = mala.State(state.position, beta * state.energy, beta[..., None, None] * state.score)
    moved, info = moves.step(
        current,
        tempered,
        step_size=step_size,
        generator=generator,
        scale=scale,
        leapfrog_steps=leapfrog_steps,
    )
    position = moved.position
    # Where nothing moved the old values are kept: multiplying and dividing by beta would erode them.
    energy = choose(info.accepted, moved.energy / beta, state.energy)
    score = choose(info.accepted, moved.score / beta[..., None, None], state.score)

    now, exchanged, origin = exchange(
        State(position, energy, score, state.beta, state.sweep), generator=generator
    )
    return now, PTInfo(info, exchanged, origin)


def exchange(state: State, *, generator: torch.Generator | None) -> tuple[State, Tensor, Tensor]:
    """One round of exchanges: of pairs from even rungs if ``state.sweep`` is even, from odd ones if not.

    Returns the state after it, the share of accepted exchanges ``(k - 1,)`` (NaN if untried), and the
    rung ``(k, b)`` from which each configuration came.
    """
    energy = state.energy
    replicas, chains = energy.shape
    exchanged = energy.new_full((max(replicas - 1, 0),), torch.nan)
    origin = torch.arange(replicas, device=energy.device)[:, None].repeat(1, chains)
    lower = torch.arange(state.sweep % 2, replicas - 1, 2, device=energy.device)
    if len(lower):
        gap = state.beta[lower] - state.beta[lower + 1]
        log_ratio = gap[:, None] * (energy[lower] - energy[lower + 1])
        draw = torch.rand(
            log_ratio.shape, generator=generator, dtype=energy.dtype, device=energy.device
        )
        swap = draw.log() < log_ratio
        origin[lower] = torch.where(swap, origin[lower] + 1, origin[lower])
        origin[lower + 1] = torch.where(swap, origin[lower + 1] - 1, origin[lower + 1])
        exchanged[lower] = swap.to(energy).mean(1)
    chain = torch.arange(chains, device=energy.device)[None].expand(replicas, chains)
    return (
        State(
            state.position[origin, chain],
            energy[origin, chain],
            state.score[origin, chain],
            state.beta,
            state.sweep + 1,
        ),
        exchanged,
        origin,
    )


def rows(state: State) -> tuple[mala.State, Tensor]:
    """All configurations as rows ``(k b, n, d)``, with energies and scores of the target itself, and the
    inverse temperature of each, ``(k b,)``: what ``Tempered(target, beta)`` is a density of."""
    chains = state.energy.shape[1]
    found = mala.State(*(field.flatten(0, 1) for field in state[:3]))
    return found, state.beta.repeat_interleave(chains)


class RoundTrips(NamedTuple):
    """Journeys from the coldest rung to the hottest and back, of the configurations on a ladder.

    ``heading`` ``(k, b)`` is 1 for those that were at the cold end and not at the hot one since, 2 for those
    that were there after it, 0 for those that were not at the cold end yet;
    ``finished`` counts the returns, ``sweeps`` the rounds of exchanges.
    """

    heading: Tensor
    finished: int
    sweeps: int

    @classmethod
    def start(cls, state: State) -> RoundTrips:
        """None made yet."""
        heading = torch.zeros(state.energy.shape, dtype=torch.int8, device=state.energy.device)
        heading[0] = 1
        return cls(heading, 0, 0)

    def after(self, origin: Tensor) -> RoundTrips:
        """Those after a round of exchanges, by what :func:`exchange` says of it."""
        chain = torch.arange(origin.shape[1], device=origin.device)[None].expand(origin.shape)
        heading = self.heading[origin, chain]
        returned = int((heading[0] == 2).sum())
        heading[-1] = torch.where(heading[-1] == 1, 2, heading[-1])
        heading[0] = 1
        return RoundTrips(heading, self.finished + returned, self.sweeps + 1)

    @property
    def rate(self) -> float:
        """Round trips a sweep, in each ladder of replicas."""
        return self.finished / max(self.sweeps * self.heading.shape[1], 1)
