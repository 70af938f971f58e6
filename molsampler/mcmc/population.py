r"""Replay of equilibrated chains, and the amortised target score fitted to it.

The DiKL gradient needs :math:`\nabla\log p_t(x_t)` at every step. Fresh posterior chains give one noisy
estimate and forget it. Here a population of chains, made from the energy alone, is kept at
equilibrium: annealed from a Gaussian by SMC, equilibrated by MALA, moved on while training goes.
A pair (clean state, its noised copy) is then an exact draw of :math:`(x_0, x_t)`, that is, of the
posterior at :math:`x_t`, and a denoiser regressed on the score identities averages them over the
whole of training.

Any mixture of the target and denoising identities is unbiased here. Per noise level the one of
least variance is used: with residuals :math:`r_A` (denoising) and :math:`r_B` (target) of the current
denoiser,

.. math:: \lambda = \frac{E[r_A \cdot (r_A - r_B)]}{E|r_A - r_B|^2}

minimises :math:`E|(1-\lambda) r_A + \lambda r_B|^2`; the denoiser's own error is common to both and
drops out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..molecule.particles import Particles
from ..space import Space
from ..target import Target
from ..train.config import ReplayConfig
from . import adapt, mala, smc


class Gaussian:
    """Isotropic Gaussian on a space, the start of the annealing path."""

    def __init__(self, space: Space, std: float):
        self.space, self.std = space, std

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * (x / self.std).square().sum(dim=(-2, -1)), -x / self.std**2

    def sample(self, n: int, *, generator: torch.Generator, like: Tensor) -> Tensor:
        return self.std * self.space.randn(n, generator=generator, like=like)


class GaussianChain(Gaussian):
    """Gaussian chain on a molecule's bond graph, of the same mean variance: bonds start out short."""

    def __init__(self, space: Space, std: float, particles: Particles):
        super().__init__(space, std)
        root = particles.latent_root() + 1.0 / space.shape[0]
        self.root, self.precision = root, np.linalg.inv(root @ root)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        precision = torch.as_tensor(self.precision, dtype=x.dtype, device=x.device)
        score = -(precision @ x) / self.std**2
        return -0.5 * (x * score).sum(dim=(-2, -1)), score

    def sample(self, n: int, *, generator: torch.Generator, like: Tensor) -> Tensor:
        root = torch.as_tensor(self.root, dtype=like.dtype, device=like.device)
        return root @ super().sample(n, generator=generator, like=like)


class _Watched:
    """A target that calls ``watch``, which may raise to interrupt, before every evaluation."""

    def __init__(self, target: Target, watch: Callable[[], None]):
        self.target, self.space, self.watch = target, target.space, watch

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.watch()
        return self.target.energy_and_score(x)


def equilibrate(
    config: ReplayConfig,
    target: Target,
    *,
    generator: torch.Generator,
    like: Tensor,
    report: Callable[[str, float], None],
    particles: Particles | None = None,
) -> tuple[mala.State, float]:
    """A population at equilibrium and its MALA step size, from the energy alone.

    With bonded ``particles`` the annealing starts from a Gaussian chain on their bond graph.
    ``report(stage, share)`` is called between transitions and may raise to interrupt.
    """
    space = target.space
    base = Gaussian(space, config.start_scale)
    if particles is not None and particles.bonds:
        base = GaussianChain(space, config.start_scale, particles)
    x = base.sample(config.size, generator=generator, like=like)
    population = smc.run(
        x,
        base,
        _Watched(target, lambda: report("annealing", 0.0)),
        moves=config.anneal_moves,
        step_size=1e-2 * config.start_scale**2,
        generator=generator,
    )
    state = mala.init(population.position, target)
    adaptation = adapt.init(population.step_size)
    for k in range(config.equilibration):
        report("equilibrating", k / config.equilibration)
        state, info = mala.step(
            state, target, step_size=float(adaptation.step_size), generator=generator
        )
        # The first half tunes the step; the second half runs a fixed kernel, so it has a stationary law.
        if 2 * k < config.equilibration:
            adaptation = adapt.update(adaptation, info.acceptance)
    return state, float(adaptation.step_size)


def refresh(
    state: mala.State,
    target: Target,
    *,
    start: int,
    count: int,
    steps: int,
    step_size: float,
    generator: torch.Generator,
) -> mala.State:
    """Move ``count`` chains, from index ``start`` and wrapping round, ``steps`` MALA steps on."""
    size = len(state.energy)
    index = (torch.arange(count, device=state.energy.device) + start) % size
    part = mala.State(*(field[index] for field in state))
    for _ in range(steps):
        part, _ = mala.step(part, target, step_size=step_size, generator=generator)
    return mala.State(
        *(field.index_copy(0, index, new) for field, new in zip(state, part, strict=True))
    )
