r"""Where configurations live: all of :math:`\mathbb{R}^{n d}` or its mean-free subspace.

An energy that does not change under translation has no normalisable density on
:math:`\mathbb{R}^{nd}`; it has one on the :math:`(n-1)d`-dimensional subspace of zero centre of
mass. Gaussian noise, scores and Metropolis proposals must then stay in that subspace. Algorithms
ask their space for ``project``, ``randn`` and ``dof`` instead of branching on the kind of system.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Space(Protocol):
    """A linear space of configurations of shape ``(n, d)``."""

    @property
    def shape(self) -> tuple[int, int]:
        """Particles and dimensions, ``(n, d)``."""

    @property
    def dof(self) -> int:
        """Dimension of the space: the number of independent coordinates."""

    @property
    def circular(self) -> tuple[int, ...]:
        """Coordinates, counted flat, that stand for an angle that goes round: each is the normal quantile
        of its share of a turn."""

    def project(self, x: Tensor) -> Tensor:
        """Orthogonal projection of ``x``, shape ``(*b, n, d)``, onto the space."""

    def randn(self, *batch: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
        """Standard normal draws on the space, shape ``(*batch, n, d)``, dtype and device of ``like``."""


def _randn(shape: tuple[int, ...], generator: torch.Generator | None, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Euclidean:
    """All of R^(n d)."""

    n: int
    d: int
    circular: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, int]:
        return (self.n, self.d)

    @property
    def dof(self) -> int:
        return self.n * self.d

    def project(self, x: Tensor) -> Tensor:
        return x

    def randn(self, *batch: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
        return _randn((*batch, self.n, self.d), generator, like)


@dataclass(frozen=True)
class MeanFree:
    """Configurations whose particle mean is zero; ``dof = (n - 1) d``."""

    n: int
    d: int

    @property
    def circular(self) -> tuple[int, ...]:
        return ()

    @property
    def shape(self) -> tuple[int, int]:
        return (self.n, self.d)

    @property
    def dof(self) -> int:
        return (self.n - 1) * self.d

    def project(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=-2, keepdim=True)

    def randn(self, *batch: int, generator: torch.Generator | None, like: Tensor) -> Tensor:
        return self.project(_randn((*batch, self.n, self.d), generator, like))
