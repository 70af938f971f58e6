r"""Posterior samples :math:`x_0 \sim p(x_0 | x_t) \propto e^{-u(x_0)} N(x_t; \alpha_t x_0, \sigma_t^2 I)`.

The recipe of DiKL (arXiv 2410.12456): particles from the Gaussian factor,
:math:`N(x_t / \alpha_t, \sigma_t^2 / \alpha_t^2)`, are annealed to the posterior (AIS; one level is
plain importance sampling), one is drawn by its weight, and a MALA chain is started there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from ..mcmc import ais, mala
from ..mcmc.adapt import Kernel
from ..space import Space
from ..target import Target
from . import identities
from .schedule import Scales


class GaussianFactor:
    """The factor N(x_t; alpha x, sigma^2) as a density in ``x``; conditions have batch shape ``(*b,)``."""

    def __init__(self, x_t: Tensor, scales: Scales, space: Space):
        self.space = space
        self.mean = x_t / scales.alpha[..., None, None]
        self.std = scales.sigma / scales.alpha

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual = (self.mean - x) / self.std[..., None, None] ** 2
        energy = 0.5 * (residual.square().sum(dim=(-2, -1)) * self.std**2)
        return energy, residual

    def sample(
        self, k: int, *, generator: torch.Generator | None, box: float | None = None
    ) -> Tensor:
        """``k`` draws for each condition, ``(k, *b, n, d)``; with ``box``, of coordinates within it."""
        std = self.std[..., None, None]
        if box is None:
            noise = self.space.randn(k, *self.mean.shape[:-2], generator=generator, like=self.mean)
            return self.mean + std * noise
        # Mirrored so that the mean is not negative: the lower tail of the normal keeps its digits.
        mean, side = self.mean.abs(), torch.where(self.mean < 0, -1.0, 1.0)
        # By erfc: torch's ndtr loses the far tail.
        reach = torch.stack([box + mean, mean - box]) / (math.sqrt(2.0) * std)
        low, high = 0.5 * torch.special.erfc(reach)
        share = torch.rand(k, *mean.shape, generator=generator, dtype=low.dtype, device=low.device)
        drawn = mean + std * torch.special.ndtri(low + (high - low) * share)
        # So far outside that no probability is left, the nearest face stands for all of it.
        drawn = drawn.nan_to_num(neginf=box).clamp(-box, box)
        return self.space.project(side * drawn)


class Posterior:
    """The posterior density of clean positions given noisy ones."""

    def __init__(self, target: Target, factor: GaussianFactor):
        self.target, self.factor, self.space = target, factor, target.space

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, score = self.target.energy_and_score(x)
        factor_energy, factor_score = self.factor.energy_and_score(x)
        return energy + factor_energy, score + factor_score


def start_chains(
    x_t: Tensor,
    scales: Scales,
    target: Target,
    *,
    particles: int,
    levels: int,
    step_size: float | Tensor,
    generator: torch.Generator | None,
    kernel: Kernel = mala.step,
    box: float | None = None,
) -> mala.State:
    """One posterior starting point per row of ``x_t`` ``(b, n, d)``, by AIS and a draw by weight.

    Costs ``particles * levels`` energy evaluations per row; particles of no weight are never drawn
    unless a row has no others.
    """
    factor = GaussianFactor(x_t, scales, target.space)
    posterior = Posterior(target, factor)
    particle = ais.run(
        factor.sample(particles, generator=generator, box=box),
        factor,
        posterior,
        levels=levels,
        step_size=step_size,
        generator=generator,
        kernel=kernel,
    )
    # Gumbel-max: a draw by weight that also works where all weights underflow to one survivor.
    uniform = torch.rand(
        particle.log_weight.shape, generator=generator, dtype=x_t.dtype, device=x_t.device
    )
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
    weight = particle.log_weight.nan_to_num(nan=-1e30, neginf=-1e30)
    index = (weight + gumbel).argmax(dim=0)
    row = torch.arange(len(x_t), device=x_t.device)
    return mala.State(
        particle.position[index, row],
        particle.energies[1][index, row],
        particle.scores[1][index, row],
    )


class PosteriorScore(NamedTuple):
    """Estimated diffused target score ``(b, n, d)``, the chains, and their mean acceptance."""

    score: Tensor
    chain: mala.State
    acceptance: float


def posterior_score(
    x_t: Tensor,
    scales: Scales,
    target: Target,
    chain: mala.State,
    *,
    steps: int,
    average: int,
    identity: identities.Identity,
    step_size: float | Tensor,
    generator: torch.Generator | None,
) -> PosteriorScore:
    """Run ``steps`` MALA steps and average the identity over the last ``average`` states.

    Raises
    ------
    InputError
        ``average`` is not one of 1 to ``steps``.
    """
    if not 1 <= average <= steps:
        raise InputError(f"average must be 1 to {steps} steps, got {average}")
    factor = GaussianFactor(x_t, scales, target.space)
    posterior = Posterior(target, factor)
    total = torch.zeros_like(x_t)
    acceptance = 0.0
    for k in range(steps):
        chain, info = mala.step(chain, posterior, step_size=step_size, generator=generator)
        acceptance += float(info.acceptance.mean()) / steps
        if k >= steps - average:
            # The chain carries the posterior's score; subtracting the Gaussian factor's leaves -grad u.
            clean = chain.score - factor.energy_and_score(chain.position)[1]
            total = total + identities.estimate(identity, x_t, chain.position, clean, scales)
    return PosteriorScore(total / average, chain, acceptance)
