r"""E(n)-equivariant graph network on dense pairs (Satorras, Hoogeboom & Welling, arXiv 2102.09844).

One layer, with node features :math:`h_i`, positions :math:`x_i` and edge features :math:`e(d_{ij})`:

.. math::
    m_{ij} &= \phi(W_i h_i + W_j h_j + W_e e(d_{ij})), \\
    x_i &\leftarrow x_i + \sum_{j \ne i} \frac{x_i - x_j}{d_{ij} + 1}\,\phi_x(m_{ij}), \\
    h_i &\leftarrow h_i + \phi_h(h_i, \textstyle\sum_{j\ne i} g(m_{ij})\, m_{ij}).

Every system here is a complete graph of a few dozen particles, so pairs are dense tensors: no
gather or scatter by index. The first edge layer is split into per-particle halves, which makes its
cost linear in the number of particles. With ``unordered=True`` the two halves share their weights,
messages become symmetric (:math:`m_{ij} = m_{ji}`), and each pair is computed once, at half the work.

The displacement output is translation invariant and equivariant under rotation, reflection and
permutation, by construction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# Keeps d(distance)/dx finite for coincident particles without a visible change elsewhere.
_EPSILON = 1e-8


class EdgeFeatures(nn.Module):
    """Features of a distance: Gaussian radial basis functions, and 1/d where asked for.

    ``(*, 1)`` squared distances to ``(*, size)``. Centres are equally spaced on
    ``[0, rbf_range]`` with a width of one spacing; the square and a damped inverse complete them.
    """

    centres: Tensor

    def __init__(self, *, rbf: int, rbf_range: float, inverse: bool):
        super().__init__()
        self.inverse = inverse
        self.size = 1 + rbf + int(inverse)
        spacing = rbf_range / max(rbf - 1, 1)
        self.range = rbf_range
        self.gamma = 0.5 / spacing**2
        self.register_buffer("centres", torch.linspace(0, rbf_range, rbf), persistent=False)

    def forward(self, squared: Tensor, distance: Tensor) -> Tensor:
        # log1p tames the square, which at high noise is hundreds of times its value in the data.
        parts = [torch.log1p(squared / self.range**2)]
        if len(self.centres):
            parts.append(torch.exp(-self.gamma * (distance - self.centres).square()))
        if self.inverse:
            parts.append(1.0 / (distance + 0.2 * self.range / 3.0))
        return torch.cat(parts, dim=-1)


class DensePairs:
    """All ordered pairs as an ``(n, n)`` block, the diagonal masked out of every sum."""

    def __init__(self, n: int, like: Tensor):
        self.mask = 1.0 - torch.eye(n, dtype=like.dtype, device=like.device)[:, :, None]

    def difference(self, x: Tensor) -> Tensor:
        return x[:, :, None] - x[:, None]

    def combine(self, first: Tensor, second: Tensor) -> Tensor:
        return first[:, :, None] + second[:, None]

    def sum_messages(self, message: Tensor) -> Tensor:
        return (message * self.mask).sum(2)

    def sum_vectors(self, vector: Tensor) -> Tensor:
        # The diagonal is zero already: the difference of a particle with itself.
        return vector.sum(2)


class UnorderedPairs:
    """Each pair ``i < j`` once; sums over neighbours are products with the incidence matrix."""

    def __init__(self, n: int, like: Tensor):
        i, j = torch.triu_indices(n, n, offset=1, device=like.device)
        eye = torch.eye(n, dtype=like.dtype, device=like.device)
        self.signed = eye[i] - eye[j]
        self.unsigned = eye[i] + eye[j]

    def difference(self, x: Tensor) -> Tensor:
        return self.signed @ x

    def combine(self, first: Tensor, second: Tensor) -> Tensor:
        return self.unsigned @ first

    def sum_messages(self, message: Tensor) -> Tensor:
        return self.unsigned.T @ message

    def sum_vectors(self, vector: Tensor) -> Tensor:
        return self.signed.T @ vector


Pairs = DensePairs | UnorderedPairs


class EGNNLayer(nn.Module):
    """One layer: features ``(b, n, width)`` and positions ``(b, n, d)`` to the same."""

    def __init__(
        self,
        width: int,
        edge: EdgeFeatures,
        *,
        attention: bool,
        unordered: bool,
        deep_head: bool,
        neighbours: int,
    ):
        super().__init__()
        self.edge = edge
        self.from_i = nn.Linear(width, width)
        self.from_j = None if unordered else nn.Linear(width, width, bias=False)
        self.from_edge = nn.Linear(edge.size, width, bias=False)
        self.message = nn.Linear(width, width)
        self.attention = nn.Linear(width, 1) if attention else None
        self.hidden_head = nn.Linear(width, width) if deep_head else None
        self.head = nn.Linear(width, 1, bias=False)
        self.node = nn.Linear(2 * width, width)
        self.node_out = nn.Linear(width, width)
        # Sums over neighbours keep unit scale when the number of particles changes.
        self.scale = neighbours**-0.5

    def forward(self, h: Tensor, x: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        difference = pairs.difference(x)
        squared = difference.square().sum(-1, keepdim=True)
        distance = torch.sqrt(squared + _EPSILON)
        first = self.from_i(h)
        second = first if self.from_j is None else self.from_j(h)
        message = pairs.combine(first, second) + self.from_edge(self.edge(squared, distance))
        message = functional.silu(self.message(functional.silu(message)))
        if self.attention is not None:
            message = message * torch.sigmoid(self.attention(message))
        coordinate = (
            message if self.hidden_head is None else functional.silu(self.hidden_head(message))
        )
        weight = self.head(coordinate) / (distance + 1.0)
        x = x + self.scale * pairs.sum_vectors(difference * weight)
        update = torch.cat([h, self.scale * pairs.sum_messages(message)], dim=-1)
        return h + self.node_out(functional.silu(self.node(update))), x


class EGNN(nn.Module):
    """Stack of layers; positions ``(b, n, d)`` and features ``(b, n, f)`` to a displacement ``(b, n, d)``.

    Parameters
    ----------
    n : particles
    features : size of the input features per particle
    width : size of node features and messages
    layers : number of layers
    rbf, rbf_range, inverse : see :class:`EdgeFeatures`
    attention : gate every message by a learned scalar
    unordered : symmetric messages, each pair computed once
    deep_head : a hidden layer between message and coordinate weight, as in the original
    """

    def __init__(
        self,
        n: int,
        features: int,
        *,
        width: int,
        layers: int,
        rbf: int,
        rbf_range: float,
        inverse: bool,
        attention: bool,
        unordered: bool,
        deep_head: bool,
    ):
        super().__init__()
        self.n, self.unordered = n, unordered
        self.embed = nn.Linear(features, width)
        edge = EdgeFeatures(rbf=rbf, rbf_range=rbf_range, inverse=inverse)
        self.layers = nn.ModuleList(
            EGNNLayer(
                width,
                edge,
                attention=attention,
                unordered=unordered,
                deep_head=deep_head,
                neighbours=max(n - 1, 1),
            )
            for _ in range(layers)
        )

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        pairs: Pairs = UnorderedPairs(self.n, x) if self.unordered else DensePairs(self.n, x)
        h, moved = self.embed(features), x
        for layer in self.layers:
            h, moved = layer(h, moved, pairs)
        return moved - x
