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

#: Spreads below this share of the largest coordinate are those of a coordinate that stands still.
_LEAST = 1e-6


class Frame(nn.Module):
    """Location :math:`\\mu` and spread :math:`\\sigma` of every coordinate, ``(n, d)``; zero and one until
    :meth:`start_from`.

    Raises
    ------
    InputError
        The space has a symmetry or turns that coordinates by themselves would break: particles whose mean is
        held at zero, or angles that go round.
    """

    location: Tensor
    spread: Tensor

    def __init__(self, space: Space):
        super().__init__()
        if space.circular or space.dof != space.shape[0] * space.shape[1]:
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
        least = _LEAST * torch.maximum(spread.max(), mean.abs().max())
        self.location.copy_(mean)
        self.spread.copy_(spread.clamp(min=float(least)))

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
        return _Framed(target, self)


class _Framed:
    """See :meth:`Frame.target`."""

    def __init__(self, target: Target, frame: Frame):
        self.inner, self.frame, self.space = target, frame, target.space

    def energy_and_score(self, u: Tensor) -> tuple[Tensor, Tensor]:
        # A coordinate within the limit may stand for one beyond.
        limit = 0.5 * COORDINATE_LIMIT
        x = self.frame.outward(u).clamp(-limit, limit)
        energy, score = self.inner.energy_and_score(x)
        return energy, self.frame.score(score)
