r"""Standardised coordinates of a vector: :math:`x = \mu + \sigma u`, for each coordinate by itself.

Networks, noise and Langevin steps are isotropic and centred, while a user's coordinates may be a length of a
hundred beside an angle of a tenth, and their modes far from the origin. In coordinates of zero mean and unit
spread one setting serves all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..space import Space
from ..target import COORDINATE_LIMIT, Target

#: Least spread of a coordinate, in its mean: beyond, single precision does not tell its values apart.
_LEAST = 1e-6


def standardises(space: Space) -> bool:
    """Whether coordinates of the space can be standardised by themselves: not where the mean of particles is
    held at zero, nor where angles go round."""
    return not space.circular and space.dof == space.shape[0] * space.shape[1]


class Frame(nn.Module):
    r"""Location :math:`\mu` and spread :math:`\sigma` of every coordinate, ``(n, d)``, those of
    :meth:`start_from`.

    Raises
    ------
    InputError
        The space is none whose coordinates can be standardised (:func:`standardises`).
    """

    location: Tensor
    spread: Tensor

    def __init__(self, space: Space):
        super().__init__()
        if not standardises(space):
            raise InputError(
                "standardised coordinates are those of plain vectors; the coordinates of this system are "
                "angles that go round, or positions whose mean is held at zero: leave out "
                "generator.standardised"
            )
        self.register_buffer("location", torch.zeros(space.shape))
        self.register_buffer("spread", torch.ones(space.shape))

    def start_from(self, x: Tensor) -> None:
        """Mean and standard deviation of configurations ``(b, n, d)``."""
        mean, spread = x.double().mean(0), x.double().std(0)
        spread = torch.maximum(spread, _LEAST * mean.abs()).to(self.spread)
        self.location.copy_(mean)
        # One that stands still at zero.
        self.spread.copy_(torch.where(spread > 0, spread, 1.0))

    def inward(self, x: Tensor) -> Tensor:
        """Standardised coordinates of positions."""
        return (x - self.location) / self.spread

    def outward(self, u: Tensor) -> Tensor:
        """Positions of standardised coordinates."""
        return self.location + self.spread * u

    def score(self, score: Tensor) -> Tensor:
        """Gradient of the log density in standardised coordinates, from that in positions."""
        return self.spread * score

    def target(self, target: Target) -> Target:
        """A target of positions as one of standardised coordinates; energies are the same, for the constant
        volume element moves no sample."""
        return Stretched(target, self.spread, self.location)


class Stretched:
    """A target of positions as one of u, where positions are ``location + spread * u``."""

    def __init__(self, target: Target, spread: Tensor, location: Tensor | None = None):
        self.inner, self.spread, self.location, self.space = target, spread, location, target.space

    def energy_and_score(self, u: Tensor) -> tuple[Tensor, Tensor]:
        x = self.spread * u if self.location is None else self.location + self.spread * u
        # A coordinate within the limit may stand for one beyond.
        limit = 0.5 * COORDINATE_LIMIT
        energy, score = self.inner.energy_and_score(x.clamp(-limit, limit))
        return energy, self.spread * score
