"""Charts: the coordinates in which a generator and a Markov chain work, and the density there.

A chart maps its coordinates to positions and back, and its ``target`` is the system's density in them,
volume element included. The method sees the target alone; whoever hands out positions asks the chart.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from ..target import System, Target
from .internal_coordinates import InternalCoordinates, InternalTarget, random_rotations


class Chart(Protocol):
    """Coordinates of a system."""

    @property
    def target(self) -> Target:
        """The density in these coordinates."""

    @property
    def internal(self) -> InternalCoordinates | None:
        """What a card records of the chart; None where coordinates are the positions themselves."""

    @property
    def log_constant(self) -> float:
        """What the target leaves out of :meth:`log_volume`; log weights of draws lack it as well."""

    def density(self, target: Target) -> Target:
        """Another density of the same positions, in these coordinates."""

    def log_volume(self, x: Tensor) -> Tensor:
        """Log of the chart's measure over that of its coordinates ``(b,)``, constants included."""

    def positions(self, x: Tensor) -> Tensor:
        """Positions ``(b, n, d)`` of coordinates ``x``, in an orientation of the chart's own."""

    def oriented(self, positions: Tensor, *, generator: torch.Generator | None) -> Tensor:
        """Positions of the chart turned at random where the chart knows no orientation."""

    def coordinates(self, positions: Tensor) -> Tensor:
        """Coordinates of positions ``(b, n, d)``."""


class CartesianChart:
    """The system's own positions; the measure is Lebesgue's in the system's length unit, on a mean-free
    space in orthonormal coordinates of it, particles labelled."""

    internal = None
    log_constant = 0.0

    def __init__(self, system: System):
        self.target: Target = system

    def density(self, target: Target) -> Target:
        return target

    def positions(self, x: Tensor) -> Tensor:
        return x

    def log_volume(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x))

    def oriented(self, positions: Tensor, *, generator: torch.Generator | None) -> Tensor:
        return positions

    def coordinates(self, positions: Tensor) -> Tensor:
        return positions


class InternalChart:
    r"""Bond lengths, angles and torsions of a molecule, ``(b, 3n - 6, 1)``.

    The measure is :math:`\prod r^2 \sin\theta\, dr\, d\theta\, d\phi`, lengths in nm and angles in rad, of
    the given isomer, without the rotation of the whole.
    """

    def __init__(self, system: System, internal: InternalCoordinates):
        self.internal = internal
        # Every placement but those of the first three atoms brings dx = r^2 sin dr dtheta dphi; the
        # first three r^2 dr, and r^2 sin dr dtheta: one length cubed for each of n - 1 bonds.
        lengths = 3 * (len(internal.placements) - 1)
        self.log_constant = internal.log_constant + lengths * math.log(system.length_nm)
        self.target: Target = InternalTarget(system, internal)
        self._space = system.space

    def density(self, target: Target) -> Target:
        return InternalTarget(target, self.internal)

    def positions(self, x: Tensor) -> Tensor:
        """Positions in float64: a torsion far from the root of the tree has a long lever."""
        return self._space.project(self.internal.to_cartesian(x[..., 0].double()).position)

    def log_volume(self, x: Tensor) -> Tensor:
        return self.internal.to_cartesian(x[..., 0].double()).log_volume + self.log_constant

    def oriented(self, positions: Tensor, *, generator: torch.Generator | None) -> Tensor:
        return positions @ random_rotations(len(positions), generator=generator, like=positions)

    def coordinates(self, positions: Tensor) -> Tensor:
        return self.internal.from_cartesian(positions)[..., None]


def chart_of(system: System, internal: InternalCoordinates | None) -> Chart:
    """The chart that a card describes."""
    return CartesianChart(system) if internal is None else InternalChart(system, internal)
