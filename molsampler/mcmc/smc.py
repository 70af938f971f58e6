r"""Annealed sequential Monte Carlo (Del Moral, Doucet & Jasra 2006).

AIS whose increments are chosen so that the effective sample size of the incremental weights stays
at a given share, with systematic resampling after each and a few MALA steps whose step size follows
the acceptance. It turns draws of a broad Gaussian into a population with nearly right mode weights,
and estimates the normalising constant on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..target import Target
from . import adapt, ais


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
    watch: Callable[[Tensor], None] | None = None,
) -> Annealed:
    """Carry particles ``x`` ``(b, n, d)``, drawn from ``start``, to ``end``.

    ``moves`` MALA steps follow each increment of lambda; each increment keeps the effective share of
    the incremental weights at ``share``. After ``max_levels`` increments the rest of the path is
    taken in one. ``watch`` sees the particles' energies ``(b,)`` under ``end`` at the beginning of each,
    and may raise.
    """
    state = ais.init(x, start, end)
    lam, log_ratio, level = 0.0, 0.0, 0
    adaptation = adapt.init(step_size)
    while lam < 1.0:
        if watch is not None:
            watch(state.energies[1])
        level += 1
        new_lam = 1.0 if level >= max_levels else _next_lam(state, lam, share)
        state = ais.reweight(state, from_lam=lam, to_lam=new_lam)
        log_ratio += float(ais.log_normaliser_ratio(state.log_weight))
        index = systematic_resample(state.log_weight, generator=generator)
        state = ais.State(
            state.position[index],
            torch.zeros_like(state.log_weight),
            (state.energies[0][index], state.energies[1][index]),
            (state.scores[0][index], state.scores[1][index]),
        )
        lam = new_lam
        for _ in range(moves):
            state, info = ais.move(
                state, start, end, lam=lam, step_size=adaptation.step_size, generator=generator
            )
            adaptation = adapt.update(adaptation, info.acceptance)
        # The density changes with every level, so the adaptation must stay responsive.
        adaptation = adaptation._replace(updates=min(adaptation.updates, 3))
    return Annealed(state.position, log_ratio, level, float(adaptation.step_size))


def _next_lam(state: ais.State, lam: float, share: float) -> float:
    difference = (state.energies[0] - state.energies[1]).double()
    difference = difference.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)

    def share_at(new_lam: float) -> float:
        return effective_share((new_lam - lam) * difference)

    if share_at(1.0) >= share:
        return 1.0
    low, high = lam, 1.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if share_at(middle) >= share else (low, middle)
    # A tiny positive increment keeps the loop moving where even one bisection interval is too long.
    return max(low, lam + 1e-12)
