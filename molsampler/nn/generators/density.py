"""Generators that know their density: every draw has an exact weight."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from ...target import Target
from .base import Draw, Generator


class Drawn(NamedTuple):
    """Configurations and their log density under the generator that drew them."""

    x: Tensor
    """``(n, *shape)``"""
    log_prob: Tensor
    """``(n,)``"""


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

    @property
    def evaluations_per_sample(self) -> int:
        return 1

    def draw(
        self,
        n: int,
        target: Target,
        *,
        context: Tensor | None = None,
        generator: torch.Generator | None,
    ) -> Draw:
        x, log_prob = self.sample(n, context=context, generator=generator)
        # Energies of float32 positions in float64: rounding never enters weights.
        energy, _ = target.energy_and_score(x.detach().double())
        return Draw(x, log_weight(energy, log_prob), n)


def log_weight(energy: Tensor, log_prob: Tensor) -> Tensor:
    """Log of target over proposal ``(n,)`` float64, of reduced energies and log densities ``(n,)``.

    What has no finite energy, or no finite density, has no weight.
    """
    result = -energy.double() - log_prob.double()
    return result.masked_fill(~torch.isfinite(result), -torch.inf)
