r"""E(n)-equivariant graph network as the DiKL paper's code has it (after arXiv 2102.09844).

On the complete graph of ordered pairs, with the squared distances :math:`d^2_{ij}` now and
:math:`a_{ij}` at the input,

.. math::
    m_{ij} &= g(\phi(h_i, h_j, d^2_{ij}, a_{ij})),\qquad g(m) = m\,\sigma(w_g \cdot m + b_g), \\
    x_i &\leftarrow x_i + \sum_{j \ne i} \frac{x_i - x_j}{d_{ij} + 1}\,
        \frac{R}{L} \tanh(w \cdot \mathrm{ReLU}(W m_{ij} + b)), \\
    h_i &\leftarrow h_i + \psi(h_i, \textstyle\sum_{j \ne i} m_{ij}),

with two-layer ReLU networks :math:`\phi, \psi`, L layers and a range of :math:`R = 15`. The output is the
displacement. Distances enter as they are and sums are not normalised, unlike in
:class:`~molsampler.nn.bodies.egnn.EGNN`, which this project trains by default.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ...errors import InputError
from ...molecule.molecule import Molecule
from ...space import Space
from ..linear import Linear, linear
from .base import BODIES, Body, BodyNetwork
from .egnn import require_pairs

_EPSILON = 1e-8

#: Gain of the first weights of the coordinate head.
_HEAD_GAIN = 1e-3


class SatorrasLayer(nn.Module):
    """One layer, on features ``(b, n, width)`` and positions ``(b, n, d)``."""

    def __init__(self, width: int, reach: float):
        super().__init__()
        self.edge = Linear(2 * width + 2, width)
        self.edge_out = Linear(width, width)
        self.gate = Linear(width, 1)
        self.head = Linear(width, width)
        self.head_out = Linear(width, 1, bias=False)
        nn.init.xavier_uniform_(self.head_out.weight, gain=_HEAD_GAIN)
        self.node = Linear(2 * width, width)
        self.node_out = Linear(width, width)
        self.reach = reach

    def forward(
        self, h: Tensor, x: Tensor, pairs: tuple[Tensor, Tensor], initial: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Features and positions after the layer; ``initial`` ``(b, pairs, 1)`` are squared distances."""
        i, j = pairs
        difference = x[:, i] - x[:, j]
        squared = difference.square().sum(-1, keepdim=True)
        # The first edge layer by its parts, so that particles go through it once and not once a pair.
        own, other, lengths = torch.split(self.edge.weight, [h.shape[-1], h.shape[-1], 2], dim=1)
        message = linear(h, own, self.edge.bias)[:, i]
        message = message + linear(h, other)[:, j]
        message = message + linear(torch.cat([squared, initial], -1), lengths)
        message = functional.relu(message)
        message = functional.relu(self.edge_out(message))
        message = message * torch.sigmoid(self.gate(message))
        weight = self.reach * torch.tanh(self.head_out(functional.relu(self.head(message))))
        move = difference / (torch.sqrt(squared + _EPSILON) + 1.0) * weight
        seen = _summed(message, x.shape[1])
        h = h + self.node_out(functional.relu(self.node(torch.cat([h, seen], -1))))
        return h, x + _summed(move, x.shape[1])


def _summed(pairs: Tensor, n: int) -> Tensor:
    """Sum over the pairs of each particle, ``(b, n, f)``; pairs are ordered by their first particle."""
    return pairs.reshape(len(pairs), n, n - 1, pairs.shape[-1]).sum(2)


class SatorrasEGNN(BodyNetwork):
    """Positions ``(b, n, d)`` and one feature per particle ``(b, n, 1)`` to a displacement ``(b, n, d)``."""

    first: Tensor
    second: Tensor

    def __init__(self, n: int, features: int, *, width: int, layers: int, reach: float):
        super().__init__()
        i, j = (~torch.eye(n, dtype=torch.bool, device="cpu")).nonzero().T
        self.register_buffer("first", i, persistent=False)
        self.register_buffer("second", j, persistent=False)
        self.embed = Linear(features, width)
        self.layers = nn.ModuleList(SatorrasLayer(width, reach / layers) for _ in range(layers))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        initial = (x[:, self.first] - x[:, self.second]).square().sum(-1, keepdim=True)
        h, moved = self.embed(features), x
        for layer in self.layers:
            h, moved = layer(h, moved, (self.first, self.second), initial)
        displacement: Tensor = moved - x
        return displacement


@BODIES.register("satorras")
class SatorrasBody(Body):
    """A :class:`SatorrasEGNN`; it knows identical particles only."""

    mirror_symmetric = True

    kind: Literal["satorras"] = "satorras"
    width: int = Field(144, ge=1, le=2**14)
    layers: int = Field(8, ge=1, le=256)
    reach: float = Field(15.0, gt=0)

    def build(self, space: Space, features: int, molecule: Molecule | None) -> BodyNetwork:
        require_pairs(space)
        if molecule is not None and len(set(molecule.types)) > 1:
            raise InputError(
                "a body of kind 'satorras' takes all particles for identical, and those of this system are "
                "not; use one of kind 'egnn'"
            )
        return SatorrasEGNN(
            space.shape[0], features, width=self.width, layers=self.layers, reach=self.reach
        )
