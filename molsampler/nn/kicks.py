r"""Gaussian kicks that take noise away: drawn, and weighed by their density.

A step of a path from noise :math:`\sigma_k` to :math:`\sigma_{k-1}` adds, to the mean that the denoiser
tells, a Gaussian of covariance

.. math:: S = a\,1 + b\,C, \qquad a = (1 - r)\,\sigma_{k-1}^2, \quad b = (1 - r)^2,
          \quad r = \sigma_{k-1}^2 / \sigma_k^2,

with the covariance C of clean configurations behind the noisy one.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ..space import Space
from .pair_precision import Precision, cholesky, log_det


class Kick(Protocol):
    """A Gaussian of zero mean on a space, one for each of ``b`` configurations."""

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """Displacements ``(b, n, d)``."""

    def log_density(self, away: Tensor) -> Tensor:
        """Log density ``(b,)`` at displacements, but for the power of two pi of the space's dimension."""


class IsotropicKick:
    """Of one variance ``()`` for all coordinates of ``b`` configurations; noise is drawn in the dtype of
    ``like``."""

    def __init__(self, space: Space, variance: Tensor, b: int, *, like: Tensor):
        self._space, self._variance, self._b, self._like = space, variance, b, like

    def draw(self, generator: torch.Generator | None) -> Tensor:
        noise = self._space.randn(self._b, generator=generator, like=self._like)
        return self._variance.sqrt() * noise

    def log_density(self, away: Tensor) -> Tensor:
        square = away.square().sum(dim=(-2, -1)) / self._variance
        return -0.5 * square - 0.5 * self._space.dof * self._variance.log()


class PairKick:
    r"""Of the covariance a 1 + b A^-1, with the matrices A of a :class:`Precision` (noise is in b).

    A and M = a A + b commute, and S = M A^-1: two Cholesky factors in float64, of A and of M, draw
    and weigh. Where a matrix is not positive definite, as behind an output that is not finite, both are NaN.
    """

    def __init__(self, space: Space, precision: Precision, a: Tensor, b: Tensor):
        self._space, self._a, self._b = space, a, b
        self._matrix = precision.matrix.double()
        beside = precision.beside.double()
        total = a * self._matrix
        total.diagonal(dim1=-2, dim2=-1).add_(b)
        self._factor = cholesky(self._matrix)
        self._total = cholesky(total)
        missing = space.shape[0] * space.shape[1] - space.dof
        volume = log_det(self._total) - log_det(self._factor)
        self._log_det = volume - missing * (a + b / beside).log()

    def draw(self, generator: torch.Generator | None) -> Tensor:
        like = self._matrix
        even = self._space.randn(len(like), generator=generator, like=like)
        # Noise in all directions: projected before, it would not have the covariance of the inverse.
        noise = torch.randn(
            like.shape[:2], generator=generator, dtype=like.dtype, device=like.device
        )
        uneven = torch.linalg.solve_triangular(self._factor.mT, noise[..., None], upper=True)
        uneven = self._space.project(uneven.view_as(even))
        return self._a.sqrt() * even + self._b.sqrt() * uneven

    def log_density(self, away: Tensor) -> Tensor:
        flat = away.flatten(1)[..., None]
        both = torch.cat([flat, self._matrix @ flat], dim=-1)
        both = torch.linalg.solve_triangular(self._total, both, upper=False)
        square: Tensor = both.prod(dim=-1).sum(dim=-1)
        return -0.5 * square - 0.5 * self._log_det
