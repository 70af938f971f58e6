"""What the Metropolis kernels share: broadcasting step sizes, refusing absurd proposals, accepting."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..target import COORDINATE_LIMIT, Target


class Info(NamedTuple):
    """What one transition did, per chain; every field has shape ``(*b,)``."""

    acceptance: Tensor
    """Metropolis acceptance probability."""
    accepted: Tensor
    """Whether the proposal was taken."""
    divergent: Tensor
    """Whether the proposal left the coordinate limit or had non-finite energy."""


def as_column(step_size: float | Tensor, like: Tensor) -> Tensor:
    """Step size as a tensor that broadcasts over positions ``(*b, n, d)``."""
    step = torch.as_tensor(step_size, dtype=like.dtype, device=like.device)
    return step[..., None, None] if step.dim() else step


def evaluate(target: Target, x: Tensor, fallback: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Evaluate a proposal, replacing rows outside the coordinate limit by ``fallback``.

    Returns positions, energy, score, and a mask of rows that were replaced.
    """
    absurd = ~(x.abs().flatten(-2).amax(-1) <= COORDINATE_LIMIT)
    x = torch.where(absurd[..., None, None], fallback, x)
    energy, score = target.energy_and_score(x)
    return x, energy, score, absurd


def accept(log_ratio: Tensor, absurd: Tensor, *, generator: torch.Generator | None) -> Info:
    """Metropolis test. A NaN ratio (both energies infinite) and an absurd proposal are rejections."""
    divergent = absurd | ~(log_ratio > -torch.inf)
    log_ratio = log_ratio.nan_to_num(nan=-torch.inf).masked_fill(absurd, -torch.inf)
    probability = log_ratio.clamp(max=0.0).exp()
    draw = torch.rand(
        log_ratio.shape, generator=generator, dtype=log_ratio.dtype, device=log_ratio.device
    )
    return Info(probability, draw < probability, divergent)


def choose(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """``new`` where accepted, else ``old``; ``accepted`` has the batch shape of both."""
    return torch.where(
        accepted.reshape(accepted.shape + (1,) * (new.dim() - accepted.dim())), new, old
    )
