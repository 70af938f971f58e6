r"""Annealed sequential Monte Carlo (Del Moral, Doucet & Jasra 2006).

AIS whose increments are chosen so that the effective sample size of the incremental weights stays
at a given share, with systematic resampling after each and a few MALA steps whose step size follows
the acceptance. It turns draws of a broad Gaussian into a population with nearly right mode weights,
and estimates the normalising constant on the way.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..estimate import Estimate
from ..target import Target
from . import adapt, ais, mala


class Annealed(NamedTuple):
    """Equally weighted particles ``(b, n, d)`` of the end density."""

    position: Tensor
    log_normaliser_ratio: float
    levels: int
    step_size: float


def effective_share(log_weight: Tensor) -> float:
    """Kish effective sample size over the number of particles, in (0, 1]."""
    log_weight = log_weight.double()
    total = torch.logsumexp(log_weight, 0)
    return float(torch.exp(2 * total - torch.logsumexp(2 * log_weight, 0)) / len(log_weight))


def systematic_resample(log_weight: Tensor, *, generator: torch.Generator | None) -> Tensor:
    """Indices ``(b,)`` drawn by systematic resampling from log weights ``(b,)``."""
    weight = torch.softmax(log_weight.double(), 0)
    size = len(weight)
    offset = torch.rand(1, generator=generator, dtype=weight.dtype, device=weight.device)
    points = (torch.arange(size, dtype=weight.dtype, device=weight.device) + offset) / size
    return torch.searchsorted(weight.cumsum(0), points).clamp(max=size - 1)


def grouped_resample(
    log_weight: Tensor, groups: int, *, generator: torch.Generator | None
) -> Tensor:
    """Indices ``(b,)`` by :func:`systematic_resample` within each of the groups ``i, i + groups, ...``."""
    if groups == 1:
        return systematic_resample(log_weight, generator=generator)
    index = torch.empty(len(log_weight), dtype=torch.long, device=log_weight.device)
    for group in range(groups):
        drawn = systematic_resample(log_weight[group::groups], generator=generator)
        index[group::groups] = drawn * groups + group
    return index


class State(NamedTuple):
    """A run between two transitions: ``moved`` of them have been made at the level of ``lam``.

    ``ancestor`` ``(b,)`` is the particle of the start from which each descends; ``last_lam`` is the lambda of
    the level before; ``log_normaliser_ratio`` that of the path so far.
    """

    particles: ais.State
    adaptation: adapt.Adaptation
    ancestor: Tensor
    lam: float = 0.0
    last_lam: float = 0.0
    log_normaliser_ratio: float = 0.0
    levels: int = 0
    moved: int = 0


def init(x: Tensor, start: Target, end: Target, *, step_size: float) -> State:
    """Particles ``x`` ``(b, n, d)`` drawn from ``start``, before the first increment."""
    ancestor = torch.arange(len(x), device=x.device)
    return State(ais.init(x, start, end), adapt.init(step_size), ancestor)


def finished(state: State, *, moves: int) -> bool:
    """Whether the particles have arrived at the end density and made their ``moves`` there."""
    return state.lam >= 1.0 and state.moved >= moves


def step(
    state: State,
    start: Target,
    end: Target,
    *,
    moves: int,
    generator: torch.Generator | None,
    share: float = 0.7,
    max_levels: int = 1000,
    groups: int = 1,
) -> State:
    """One MALA step of all particles, after an increment of lambda if ``moves`` were made at the last.

    Particles ``i, i + groups, ...`` are one population, of an end density of their own: they are resampled
    among themselves, and an increment is as long as the one that bears it least allows.
    """
    if state.levels == 0 or state.moved >= moves:
        state = _next_level(
            state, generator=generator, share=share, max_levels=max_levels, groups=groups
        )
        particles = state.particles
        score = ais.mixed(state.lam, *particles.scores)
        state = state._replace(
            adaptation=state.adaptation.scaled_to(particles.position, score, end.space)
        )
    if not moves:
        return state
    particles, info = ais.move(
        state.particles,
        start,
        end,
        lam=state.lam,
        step_size=state.adaptation.step_size,
        generator=generator,
        kernel=partial(mala.step, scale=state.adaptation.scale),
    )
    adaptation = adapt.update(state.adaptation, info.acceptance)
    moved = state.moved + 1
    if moved == moves:
        # The density changes with every level, so the adaptation must stay responsive.
        adaptation = adaptation._replace(updates=min(adaptation.updates, 3))
    return state._replace(particles=particles, adaptation=adaptation, moved=moved)


def expected_levels(state: State) -> float | None:
    r"""How many levels the whole path will have, None before the second one.

    Levels of equal effective share are about equally far apart in :math:`\lambda^{1/4}`: from the
    collisions of a Gaussian start at 1e-8 to one, for clusters as for molecules.
    """
    if state.levels < 2:
        return None
    done, last = math.sqrt(math.sqrt(state.lam)), math.sqrt(math.sqrt(state.last_lam))
    return state.levels + (1.0 - done) / max(done - last, 1e-3)


def run(
    x: Tensor,
    start: Target,
    end: Target,
    *,
    moves: int,
    step_size: float,
    generator: torch.Generator | None,
    share: float = 0.7,
    max_levels: int = 1000,
) -> Annealed:
    """Carry particles ``x`` ``(b, n, d)``, drawn from ``start``, to ``end``.

    ``moves`` MALA steps follow each increment of lambda; each increment keeps the effective share of
    the incremental weights at ``share``. After ``max_levels`` increments the rest of the path is
    taken in one.
    """
    state = init(x, start, end, step_size=step_size)
    while not finished(state, moves=moves):
        state = step(
            state,
            start,
            end,
            moves=moves,
            generator=generator,
            share=share,
            max_levels=max_levels,
        )
    return annealed(state)


def log_normaliser_ratio(state: State) -> Estimate[float]:
    r"""log(Z_1 / Z_0) of a run that has finished, whose increments are the estimate, and its error.

    Families are what is left of independence: the relative variance of Z_1 / Z_0 is about
    :math:`\sum_a (n_a / n)^2` with :math:`n_a` particles that descend from particle a of the start (Chan &
    Lai, Ann. Stat. 41, 2877 (2013); Lee & Whiteley, arXiv 1509.00394). With systematic resampling that is
    rather too much; where it comes from few families, from .1 on, the error is not to be believed.
    """
    share = torch.bincount(state.ancestor).double() / len(state.ancestor)
    return Estimate(state.log_normaliser_ratio, float(share.square().sum().sqrt()))


def annealed(state: State) -> Annealed:
    """The result of a run that has finished."""
    return Annealed(
        state.particles.position,
        state.log_normaliser_ratio,
        state.levels,
        float(state.adaptation.step_size),
    )


def _next_level(
    state: State,
    *,
    generator: torch.Generator | None,
    share: float,
    max_levels: int,
    groups: int,
) -> State:
    level = state.levels + 1
    new_lam = 1.0 if level >= max_levels else _next_lam(state.particles, state.lam, share, groups)
    particles = ais.reweight(state.particles, from_lam=state.lam, to_lam=new_lam)
    log_ratio = float(ais.log_normaliser_ratio(particles.log_weight))
    index = grouped_resample(particles.log_weight, groups, generator=generator)
    particles = ais.State(
        particles.position[index],
        torch.zeros_like(particles.log_weight),
        (particles.energies[0][index], particles.energies[1][index]),
        (particles.scores[0][index], particles.scores[1][index]),
    )
    return state._replace(
        particles=particles,
        ancestor=state.ancestor[index],
        lam=new_lam,
        last_lam=state.lam,
        log_normaliser_ratio=state.log_normaliser_ratio + log_ratio,
        levels=level,
        moved=0,
    )


def _next_lam(state: ais.State, lam: float, share: float, groups: int) -> float:
    difference = (state.energies[0] - state.energies[1]).double()
    difference = difference.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)

    def share_at(new_lam: float) -> float:
        weight = (new_lam - lam) * difference
        return min(effective_share(weight[group::groups]) for group in range(groups))

    if share_at(1.0) >= share:
        return 1.0
    low, high = lam, 1.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share_at(middle) >= share else (low, middle)
    # A tiny positive increment keeps the loop moving where even one bisection interval is too long.
    return max(low, lam + 1e-12)
