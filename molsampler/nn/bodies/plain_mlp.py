r"""Plain multilayer perceptron of the DiKL paper's code: SiLU layers, no residual, no normalisation.

.. math:: h_0 = (x, f),\quad h_{k+1} = \mathrm{SiLU}(W_k h_k + b_k + e_k(\ell)),\quad F = W h_L + b

The score network reads the noise level :math:`\ell`, a whole number, through a fixed random Fourier
embedding of its own for each layer, :math:`e_k(\ell) = (\sin 2\pi w_k \ell, \cos 2\pi w_k \ell)` with
:math:`w_k \sim N(0, 30^2)`, added before the activation (arXiv 2410.12456, released code). The generator
has no level.
"""

from __future__ import annotations

import itertools
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

#: Standard deviation of the random frequencies.
_FREQUENCY = 30.0


class PlainMLP(BodyNetwork):
    """Positions ``(b, n, d)`` and features ``(b, n, f)`` to ``(b, n, d)``.

    With ``levels`` the single feature per particle is the noise level; without, features are left out.
    """

    frequencies: Tensor

    def __init__(self, shape: tuple[int, int], *, width: int, layers: int, levels: bool):
        super().__init__()
        size = shape[0] * shape[1]
        sizes = [size, *[width] * layers]
        self.hidden = nn.ModuleList(
            Linear(first, second) for first, second in itertools.pairwise(sizes)
        )
        self.out = Linear(width, size)
        self.levels = levels
        # Fixed, and part of the weights: they are drawn once.
        self.register_buffer(
            "frequencies", _FREQUENCY * torch.randn(layers if levels else 0, width // 2)
        )

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        h = x.flatten(1)
        for index, layer in enumerate(self.hidden):
            h = layer(h)
            if self.levels:
                phase = 2 * math.pi * features[:, 0, :1] * self.frequencies[index]
                h = h + torch.cat([phase.sin(), phase.cos()], dim=-1)
            h = functional.silu(h)
        out: Tensor = self.out(h)
        return out.reshape(x.shape)


@BODIES.register("plain-mlp")
class PlainMLPBody(Body):
    """A :class:`PlainMLP`."""

    kind: Literal["plain-mlp"] = "plain-mlp"
    width: int = Field(400, ge=2, le=2**14, multiple_of=2)
    layers: int = Field(4, ge=1, le=256)
    levels: bool = False

    def build(self, space: Space, features: int, molecule: Molecule | None) -> BodyNetwork:
        return PlainMLP(space.shape, width=self.width, layers=self.layers, levels=self.levels)
