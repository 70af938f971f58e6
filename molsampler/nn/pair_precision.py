r"""Precision matrices built from pairs of particles, for Gaussians that turn with what they are about.

Behind a configuration of noise :math:`\sigma` lie clean ones whose coordinates are known unequally well:
along a stiff pair to a hundredth of what they are known across it. Their covariance is modelled as
:math:`C = \sigma^2 A^{-1}` with

.. math:: v^T A v = \Big(1 + \tau\,\frac{\sigma^2}{\ell^2}\Big) |v|^2
                    + g \sum_{i<j} \beta_{ij}\,|v_{ij}^\parallel|^2 + \gamma_{ij}\,|v_{ij}^\perp|^2, \qquad
          g = \frac{\sigma^2}{\sigma^2 + (\ell / 10)^2}

:math:`\beta, \gamma, \tau \ge 0` are small networks of noise, the first two of distance, too; the differences
:math:`v_i - v_j` of displacements v have a part along the line between i and j in the denoised configuration,
and a part across it; :math:`\ell` is the data scale. This is the shape of a Hessian of pair potentials in a
trap, so that :math:`A = 1 + \sigma^2 \nabla^2 u`, Laplace's approximation for low noise, is within reach;
with :math:`\tau = 1` and no pairs it is that of the best linear denoiser. A is positive definite whatever the
networks say, turns, reflects and permutes with the configuration, and leaves translations to themselves, so
that on a mean-free space it works as it is.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..molecule.molecule import Molecule
from ..space import Space
from .linear import Linear

_WIDTH = 48

#: Bumps in the logarithm of noise, and that of the first and the last, in data scales: what the networks
#: say of one noise is not to depend on what they learn of another.
_BUMPS = 16
_LEAST, _MOST = 0.01, 8.0

#: Radial basis functions, and the distance, in data scales, up to which they reach.
_CENTRES = 32
_REACH = 3.0

#: A network's one, in units of the reduced precision: that of a pair known ten times as well as its noise
#: says is about a hundred.
_STIFF = 30.0


class Precision(NamedTuple):
    """Matrices A ``(b, n d, n d)`` of a space's configurations, and what each does ``(b,)`` to the directions
    that the space lacks: multiplication by a number."""

    matrix: Tensor
    beside: Tensor

    def solved(self, x: Tensor) -> Tensor:
        """A^-1 x for ``x`` ``(b, n, d)``, without a gradient."""
        factor = cholesky(self.matrix.detach())
        return torch.cholesky_solve(x.detach().flatten(1)[..., None], factor).view_as(x)

    def negative_log_likelihood(self, x: Tensor, dof: int) -> Tensor:
        """Of ``x`` ``(b, n, d)`` drawn with covariance A^-1 in ``dof`` dimensions, per dimension and but for
        half the log of two pi, ``(b,)``."""
        flat = x.flatten(1)[..., None]
        square = (flat.mT @ self.matrix @ flat).flatten()
        missing = flat.shape[1] - dof
        volume = log_det(cholesky(self.matrix)) - missing * self.beside.log()
        likelihood: Tensor = (square - volume) / (2 * dof)
        return likelihood


def cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factors ``(b, k, k)``; NaN where a matrix is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    found: Tensor = factor.masked_fill((failed != 0)[:, None, None], torch.nan)
    return found


def log_det(factor: Tensor) -> Tensor:
    """Log determinant ``(b,)`` of matrices, of their Cholesky factors."""
    diagonal: Tensor = factor.diagonal(dim1=-2, dim2=-1)
    return 2 * diagonal.log().sum(-1)


class PairPrecision(nn.Module):
    """The networks behind A.

    Parameters
    ----------
    space : of two particles or more
    data_scale : root-mean-square coordinate of the clean data
    molecule : what tells the particles apart, None for identical ones
    context : number of features that a row is told of beside its noise
    """

    centres: Tensor
    bumps: Tensor
    classes: Tensor
    first: Tensor
    second: Tensor

    def __init__(
        self, space: Space, *, data_scale: float, molecule: Molecule | None = None, context: int = 0
    ):
        super().__init__()
        self.n, self.d = space.shape
        self.data_scale = float(data_scale)
        told = _BUMPS + context
        names, classes = _classes(self.n, molecule)
        self.embed = nn.Embedding(names, _WIDTH)
        self.into_pairs = Linear(_CENTRES + 1 + told, _WIDTH)
        self.of_pairs = nn.Sequential(nn.SiLU(), Linear(_WIDTH, _WIDTH), nn.SiLU())
        self.head = Linear(_WIDTH, 2)
        last = Linear(24, 1)
        self.of_trap = nn.Sequential(Linear(told, 24), nn.SiLU(), last)
        with torch.no_grad():
            # At first a trap, and pairs that are hardly stiff.
            self.embed.weight.mul_(0.1)
            self.head.weight.mul_(0.1)
            self.head.bias.fill_(-5.0)
            last.weight.zero_()
            last.bias.zero_()
        for name, value in (
            ("centres", torch.linspace(0, _REACH, _CENTRES)),
            ("bumps", torch.linspace(math.log(_LEAST), math.log(_MOST), _BUMPS)),
            ("classes", torch.tensor(classes)),
        ):
            self.register_buffer(name, value, persistent=False)
        first, second = np.triu_indices(self.n, 1)
        self.register_buffer("first", torch.tensor(first.tolist()), persistent=False)
        self.register_buffer("second", torch.tensor(second.tolist()), persistent=False)

    def forward(self, clean: Tensor, sigma: Tensor, context: Tensor | None = None) -> Precision:
        """A at denoised configurations ``(b, n, d)``, noise ``(b,)`` and the context ``(b, c)``."""
        b, n, d = clean.shape
        apart = (clean[:, self.first] - clean[:, self.second]) / self.data_scale
        distance = apart.norm(dim=-1, keepdim=True)
        along = apart / distance.clamp(min=1e-6)
        log_sigma = (sigma / self.data_scale).log()[:, None]
        spacing = math.log(_MOST / _LEAST) / (_BUMPS - 1)
        told = torch.exp(-0.5 * ((log_sigma - self.bumps) / spacing).square())
        if context is not None:
            told = torch.cat([told, context], dim=-1)
        away = (distance - self.centres) * ((_CENTRES - 1) / _REACH)
        seen = torch.cat(
            [
                torch.exp(-0.5 * away.square().clamp(max=160.0)),
                torch.log1p(distance.square()),
                told[:, None].expand(-1, apart.shape[1], -1),
            ],
            dim=-1,
        )
        hidden = self.of_pairs(self.into_pairs(seen) + self.embed(self.classes))
        gain = _STIFF * sigma.square() / (sigma.square() + (0.1 * self.data_scale) ** 2)
        stiffness = gain[:, None, None] * functional.softplus(self.head(hidden))
        rise = functional.softplus(self.of_trap(told)[:, 0]) / math.log(2)
        trap = 1.0 + rise * (sigma / self.data_scale).square()
        if not torch.is_grad_enabled():
            # Sums in float64 keep translations apart however stiff a pair is: weights rest on that.
            stiffness, trap, along = stiffness.double(), trap.double(), along.double()
        eye = torch.eye(d, dtype=along.dtype, device=clean.device)
        outer = along[..., :, None] * along[..., None, :]
        block = stiffness[..., :1, None] * outer + stiffness[..., 1:, None] * (eye - outer)
        matrix = along.new_zeros(b, n, n, d, d)
        matrix[:, self.first, self.second] = -block
        matrix[:, self.second, self.first] = -block
        each = torch.arange(n, device=clean.device)
        matrix[:, each, each] = trap[:, None, None, None] * eye - matrix.sum(2)
        return Precision(matrix.transpose(2, 3).reshape(b, n * d, n * d), trap)


def _classes(n: int, molecule: Molecule | None) -> tuple[int, list[int]]:
    """Number of classes of pairs, and that of each: by the kinds of both ends and the bonds between them."""
    first, second = np.triu_indices(n, 1)
    if molecule is None:
        return 1, [0] * len(first)
    distance = molecule.graph_distances()
    names: dict[tuple[int, ...], int] = {}
    found = []
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        low, high = sorted((molecule.types[i], molecule.types[j]))
        bonds = int(distance[i, j])
        found.append(names.setdefault((low, high, bonds if 1 <= bonds <= 3 else 4), len(names)))
    return len(names), found
