r"""Metropolis-adjusted Langevin algorithm (Roberts & Tweedie 1996), with a truncated drift.

Proposal: :math:`x' = x + D_\epsilon(s(x)) + \sqrt{2\epsilon}\,\xi`, with score :math:`s = -\nabla u` and
:math:`D_\epsilon(s) = \epsilon s` shortened, particle by particle, to at most
``DRIFT_LIMIT`` standard deviations of the particle's noise, :math:`\sqrt{2\epsilon d}`. The
truncation acts only where a steep wall would throw a particle across the box; being a function of
``x`` alone it enters both proposal densities and the kernel stays reversible.

With ``scale`` the kernel is that of coordinates measured in those lengths (:mod:`molsampler.mcmc.scale`). On
a space with circular coordinates some of the chains, at random, turn one of those instead
(:mod:`molsampler.mcmc.turn`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..target import Target
from . import turn
from .proposal import Info, accept, as_column, choose, evaluate

__all__ = ["Info", "State", "init", "step"]

#: Longest drift of one particle in units of its noise's root-mean-square length. At a stable step
#: size the equilibrium drift is below one such unit; two leaves it untouched nearly always.
DRIFT_LIMIT = 2.0


class State(NamedTuple):
    """Positions ``(*b, n, d)`` with their reduced energy ``(*b,)`` and score ``(*b, n, d)``."""

    position: Tensor
    energy: Tensor
    score: Tensor


def init(x: Tensor, target: Target) -> State:
    """State at positions ``x``, shape ``(*b, n, d)``."""
    energy, score = target.energy_and_score(x)
    return State(x, energy, score)


def drift(score: Tensor, step: Tensor, scale: Tensor | None = None) -> Tensor:
    """Truncated drift of the proposal, shape ``(*b, n, d)``."""
    move = step * (score if scale is None else scale * score)
    limit = DRIFT_LIMIT * torch.sqrt(2.0 * step * score.shape[-1])
    length: Tensor = move.norm(dim=-1, keepdim=True)
    move = move * (limit / length.clamp(min=1e-30)).clamp(max=1.0)
    return move if scale is None else scale * move


def step(
    state: State,
    target: Target,
    *,
    step_size: float | Tensor,
    generator: torch.Generator | None,
    scale: Tensor | None = None,
) -> tuple[State, Info]:
    """One transition of every chain; ``step_size`` is the epsilon above, scalar or ``(*b,)``.

    ``scale`` ``(n, d)`` are lengths of the coordinates, all one by default.
    """
    x, energy, score = state
    epsilon = as_column(step_size, x)
    space = target.space
    noise = space.randn(*x.shape[:-2], generator=generator, like=x)
    forward = space.project(drift(score, epsilon, scale))
    kick = torch.sqrt(2.0 * epsilon) * noise
    wanted = x + forward + (kick if scale is None else scale * kick)
    turns = turn.proposed(x, space, generator=generator)
    if turns is not None:
        wanted = choose(turns.chosen, turns.position, wanted)
    proposal, new_energy, new_score, absurd = evaluate(target, wanted, x)
    backward = space.project(drift(new_score, epsilon, scale))
    # log q(x | x') - log q(x' | x), with x' - x = forward + sqrt(2 eps) noise.
    residual = proposal - x + backward
    if scale is not None:
        residual = residual / scale
    log_q = 0.5 * (noise.square() - residual.square() / (2.0 * epsilon)).sum(dim=(-2, -1))
    if turns is not None:
        log_q = torch.where(turns.chosen, turns.log_q, log_q)
    info = accept(energy - new_energy + log_q, absurd, generator=generator)
    return (
        State(
            choose(info.accepted, proposal, x),
            choose(info.accepted, new_energy, energy),
            choose(info.accepted, new_score, score),
        ),
        info,
    )
