"""Targets whose log Z, U, S and C are known, and proposals that are bad but overlap them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from molsampler.samples import Samples
from molsampler.space import Euclidean
from molsampler.target import System


class Harmonic(System):
    """u = |x|^2 / (2 s^2) + offset in d dimensions: log Z = d/2 log(2 pi s^2) - offset, U = d/2 + offset."""

    name = "harmonic"

    def __init__(self, d: int = 4, width: float = 0.7, offset: float = -2.0):
        self.space, self.width, self.offset = Euclidean(1, d), width, offset

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * x.square().sum((1, 2)) / self.width**2 + self.offset, -x / self.width**2

    @property
    def truth(self) -> dict[str, float]:
        """Exact values."""
        d = self.space.dof
        log_z = 0.5 * d * math.log(2 * math.pi * self.width**2) - self.offset
        mean = 0.5 * d + self.offset
        return {"log_z": log_z, "F": -log_z, "U": mean, "S": mean + log_z, "C": 0.5 * d}


class TwoWells(System):
    """Two Gaussians at -half and half on the first of two axes, the right one of weight ``share``."""

    name = "two-wells"
    log_z = 1.3

    def __init__(self, share: float = 0.2, half: float = 3.0):
        self.space, self.share, self.half = Euclidean(1, 2), share, half

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            centres = x.new_tensor([[-self.half, 0.0], [self.half, 0.0]])
            weights = x.new_tensor([1 - self.share, self.share])
            log = -0.5 * (x - centres).square().sum(-1) - math.log(2 * math.pi)
            energy = -(log + weights.log()).logsumexp(-1) - self.log_z
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return energy.detach(), -gradient

    def mode_labels(self, x: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Left and right."""
        return (x[..., 0, 0] >= 0).long(), ("left", "right")


def proposed(
    system: System,
    n: int,
    *,
    seed: int,
    width: float = 1.0,
    centre: float = 0.0,
    wrong: float = 0.0,
) -> Samples:
    """Samples of a Gaussian, displaced along the first axis; log weights off by ``wrong`` right of zero."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, *system.shape, generator=random, dtype=torch.float64) * width
    x[:, 0, 0] += centre
    x = x.float().double()  # the density is that of the positions that are kept
    shifted = x.clone()
    shifted[:, 0, 0] -= centre
    constant = math.log(width) + 0.5 * math.log(2 * math.pi)
    log_q = -0.5 * (shifted / width).square().sum((1, 2)) - system.space.dof * constant
    log_weights = -system.energy(x) - log_q + wrong * (x[:, 0, 0] > 0)
    return Samples(x.float(), system.energy(x), log_weights, {})
