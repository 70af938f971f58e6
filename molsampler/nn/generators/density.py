r"""Generators that know their density: every draw has an exact weight.

A draw of noise z, carried to :math:`x(z)`, has weight :math:`w(z) = e^{-u(x)} / q(x)`. Weights that vary are
evened out by annealing in the space of the noise, from its density :math:`\rho_0` along

.. math:: \rho_\lambda(z) \propto \rho_0(z)\, w(z)^\lambda, \qquad \lambda = 0 \dots 1,

with a Metropolis-adjusted Langevin step a level (annealed importance sampling,
:mod:`molsampler.mcmc.ais`). The weights that come out are exact again, with the same mean, whatever the flow
and however few the levels; each level costs an energy and its score. What is stiff or curved in x is near a
standard normal in z, so that steps are long (Hoffman et al., arXiv 1903.03704).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor

from ...errors import InputError
from ...mcmc import ais
from ...space import Euclidean
from ...target import Target
from .base import Draw, Generator, Sampling


class Drawn(NamedTuple):
    """Configurations and their log density under the generator that drew them."""

    x: Tensor
    """``(n, *shape)``"""
    log_prob: Tensor
    """``(n,)``"""


class DensitySampling(Sampling):
    """Annealing of ``levels`` levels (one is none), by Langevin steps of size ``step`` in noise of unit
    variance."""

    levels: int = Field(1, ge=1, le=10_000)
    step: float = Field(0.1, gt=0)


class DensityGenerator(Generator):
    r"""A generator whose density :math:`q` is known, normalised, for what it draws and anywhere else.

    The weight of a draw is :math:`w = e^{-u(x)} / q(x)`, whose mean estimates the normalising constant of
    :math:`e^{-u}` with respect to the measure of q: Lebesgue's, in orthonormal coordinates of the space.
    A draw of infinite energy has weight zero.
    """

    @abstractmethod
    def configurations(
        self, n: int, *, context: Tensor | None = None, generator: torch.Generator | None
    ) -> Tensor:
        """``n`` configurations, in the graph of the parameters where gradients are enabled.

        Raises
        ------
        InputError
            See :meth:`~molsampler.nn.generators.base.Generator.draw`.
        """

    def sample(
        self, n: int, *, context: Tensor | None = None, generator: torch.Generator | None
    ) -> Drawn:
        """``n`` configurations with their log density."""
        x = self.configurations(n, context=context, generator=generator)
        return Drawn(x, self.log_prob(x, context=context))

    @abstractmethod
    def noise(self, n: int, *, generator: torch.Generator | None) -> Tensor:
        """Draws ``(n, k)`` of the noise, each coordinate of unit variance."""

    @abstractmethod
    def noise_energy(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the log density ``(b,)`` of noise ``(b, k)``, less a constant, and its score; coordinates
        that go round may have gone on."""

    @abstractmethod
    def carried(self, z: Tensor, *, generator: torch.Generator | None) -> Drawn:
        """The configurations of noise ``(b, k)``, in the graph of z where gradients are enabled. What is
        random beside z comes from ``generator``, the same where it stands the same."""

    @property
    def evaluations_per_sample(self) -> int:
        return self.levels

    @property
    def levels(self) -> int:
        """Levels of annealing, one without any."""
        return self.sampling.levels if isinstance(self.sampling, DensitySampling) else 1

    def annealed(self, levels: int) -> Self:
        return self.with_sampling(
            DensitySampling.model_validate({**self.sampling.model_dump(), "levels": levels})
        )

    def draw(
        self,
        n: int,
        target: Target,
        *,
        context: Tensor | None = None,
        generator: torch.Generator | None,
    ) -> Draw:
        if self.levels > 1:
            if context is not None:
                raise InputError(
                    "annealed draws are of one temperature, got a context: take at(temperature)"
                )
            return self._annealed(n, target, generator)
        x, log_prob = self.sample(n, context=context, generator=generator)
        # Energies of float32 positions in float64: rounding never enters weights.
        energy, _ = target.energy_and_score(x.detach().double())
        return Draw(x, log_weight(energy, log_prob), n)

    def _annealed(self, n: int, target: Target, generator: torch.Generator | None) -> Draw:
        step = DensitySampling.model_validate(self.sampling.model_dump()).step
        z = self.noise(n, generator=generator)[..., None]
        # Labels and angles are drawn once for a row, so that the path is one density.
        seed = int(torch.randint(2**62, (), generator=generator, device=z.device))

        def fixed() -> torch.Generator:
            return torch.Generator(z.device).manual_seed(seed)

        start = _Noise(self, z.shape[1])
        state = ais.run(
            z,
            start,
            _Weighted(self, target, start, fixed),
            levels=self.levels,
            step_size=step,
            generator=generator,
        )
        with torch.no_grad():
            x, _ = self.carried(state.position[..., 0], generator=fixed())
        weight = state.log_weight
        return Draw(x, weight.masked_fill(~torch.isfinite(weight), -torch.inf), n * self.levels)


class _Noise:
    """The density of the noise as a target on ``(b, k, 1)``."""

    def __init__(self, generator: DensityGenerator, size: int):
        self.generator, self.space = generator, Euclidean(size, 1)

    def energy_and_score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        energy, score = self.generator.noise_energy(z[..., 0])
        return energy.double(), score[..., None]


class _Weighted:
    """The density of the noise times the weight of what it is carried to."""

    def __init__(
        self,
        generator: DensityGenerator,
        target: Target,
        start: _Noise,
        random: Callable[[], torch.Generator],
    ):
        self.generator, self.target, self.start, self.random = generator, target, start, random
        self.space = start.space

    def energy_and_score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            at = z.detach()[..., 0].requires_grad_()
            x, log_prob = self.generator.carried(at, generator=self.random())
        u, pull = self.target.energy_and_score(x.detach().double())
        with torch.enable_grad():
            along = (x * pull.nan_to_num().to(x)).sum() - log_prob.sum()
            (slope,) = torch.autograd.grad(along, at)
        energy, score = self.start.energy_and_score(z)
        weight = log_weight(u, log_prob.detach())
        return energy - weight, score + slope.nan_to_num()[..., None]


def log_weight(energy: Tensor, log_prob: Tensor) -> Tensor:
    """Log of target over proposal ``(n,)`` float64, of reduced energies and log densities ``(n,)``.

    What has no finite energy, or no finite density, has no weight.
    """
    result = -energy.double() - log_prob.double()
    return result.masked_fill(~torch.isfinite(result), -torch.inf)
