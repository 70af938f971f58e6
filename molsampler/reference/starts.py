"""Where the replicas of a reference run start: spread wider than they will settle."""

from __future__ import annotations

import torch
from torch import Tensor

from ..target import System


def dispersed_starts(system: System, count: int, *, generator: torch.Generator) -> Tensor:
    """Starts ``(count, n, d)``: the system's own where it knows some, else Gaussians.

    Gaussians have three widths in turn, around the width of lowest energy.
    """
    own = system.starts(count, generator=generator)
    if own is not None:
        return own
    like = torch.zeros((), dtype=torch.float64)
    draws = system.space.randn(64, generator=generator, like=like)
    scales = torch.logspace(-1, 2, 31, dtype=torch.float64)
    medians = torch.stack([system.energy(scale * draws).median() for scale in scales])
    best = float(scales[medians.argmin()])
    width = best * torch.tensor([0.7, 1.0, 1.5], dtype=torch.float64)[torch.arange(count) % 3]
    return width[:, None, None] * system.space.randn(count, generator=generator, like=like)
