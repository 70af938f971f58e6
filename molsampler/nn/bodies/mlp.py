r"""Residual multilayer perceptron for targets without particle symmetry (mixtures, many-well).

Inputs are of unit scale. Beside the raw coordinates the network may read, and write through, a
local basis :math:`\phi_k` of every coordinate:

.. math:: F_i(x) = A_i h(x) + \sum_k C_{ik}(h(x))\, \phi_k(x_i).

``bumps`` Gaussians resolve structure finer than a perceptron finds by itself. ``bins`` indicators of
the equiprobable intervals of a standard normal make the map piecewise: a generator that reads
normal noise through them can jump from one mode to the next instead of drawing a bridge.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ...molecule.molecule import Molecule
from ...space import Space
from ..linear import Linear
from .base import BODIES, Body, BodyNetwork

#: The Gaussians cover this many standard deviations either side of zero.
_REACH = 3.0


class LocalBasis(nn.Module):
    """Gaussian bumps and equiprobable-bin indicators of each coordinate, ``(b, f)`` to ``(b, f, k)``."""

    centres: Tensor

    def __init__(self, bumps: int, bins: int):
        super().__init__()
        self.bins = bins
        self.size = bumps + bins
        self.spacing = 2 * _REACH / max(bumps - 1, 1)
        self.register_buffer("centres", torch.linspace(-_REACH, _REACH, bumps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        bumps = torch.exp(-0.5 * ((x[..., None] - self.centres) / self.spacing).square())
        if not self.bins:
            return bumps
        quantile = 0.5 * (1.0 + torch.erf(x.detach() / math.sqrt(2.0)))
        index = (quantile * self.bins).long().clamp(0, self.bins - 1)
        indicator = index[..., None] == torch.arange(self.bins, device=x.device)
        return torch.cat([bumps, indicator.to(x)], dim=-1)


class MLP(nn.Module):
    """Positions ``(b, n, d)`` and conditioning ``(b, f)`` to a displacement ``(b, n, d)``."""

    def __init__(
        self,
        shape: tuple[int, int],
        features: int,
        *,
        width: int,
        layers: int,
        bumps: int = 0,
        bins: int = 0,
    ):
        super().__init__()
        size = shape[0] * shape[1]
        self.basis = LocalBasis(bumps, bins) if bumps + bins else None
        local = self.basis.size if self.basis else 0
        self.embed = Linear(size * (1 + local) + features, width)
        self.hidden = nn.ModuleList(Linear(width, width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.out = Linear(width, size)
        self.local = Linear(width, size * local) if local else None

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        flat = x.flatten(1)
        basis = self.basis(flat) if self.basis is not None else None
        inputs = [flat, features] if basis is None else [flat, features, basis.flatten(1)]
        h = self.embed(torch.cat(inputs, dim=-1))
        for norm, hidden in zip(self.norms, self.hidden, strict=True):
            h = h + functional.silu(hidden(norm(h)))
        out: Tensor = self.out(h)
        if self.local is not None and basis is not None:
            out = out + (self.local(h).reshape(basis.shape) * basis).sum(-1)
        return out.reshape(x.shape)


class Flat(BodyNetwork):
    """A network of flat vectors in the interface of a body: features per particle are flattened."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        displacement: Tensor = self.net(x, features.flatten(1))
        return displacement


@BODIES.register("mlp")
class MLPBody(Body):
    """An :class:`MLP`."""

    unit_inputs = True

    kind: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=1, le=2**14)
    layers: int = Field(4, ge=1, le=256)
    bumps: int = Field(0, ge=0, le=1024)
    bins: int = Field(0, ge=0, le=1024)

    def build(self, space: Space, features: int, molecule: Molecule | None) -> BodyNetwork:
        settings = self.model_dump(exclude={"kind"})
        return Flat(MLP(space.shape, space.shape[0] * features, **settings))
