r"""E(n)-equivariant graph network on dense pairs (Satorras, Hoogeboom & Welling, arXiv 2102.09844).

One layer, with node features :math:`h_i`, positions :math:`x_i` and edge features :math:`e(d_{ij})`:

.. math::
    m_{ij} &= \phi(W_i h_i + W_j h_j + W_e e(d_{ij})), \\
    x_i &\leftarrow x_i + \sum_{j \ne i} \frac{x_i - x_j}{d_{ij} + 1}\,\phi_x(m_{ij}), \\
    h_i &\leftarrow h_i + \phi_h(h_i, \textstyle\sum_{j\ne i} g(m_{ij})\, m_{ij}).

Every system here is a complete graph of a few dozen particles. Inside, tensors are laid out particle
or pair first, batch second: what joins particles to pairs, and sums messages over neighbours, then copies or
adds whole rows of a batch, or is one product with a constant incidence matrix
(:mod:`molsampler.nn.bodies.pairs`). The first edge layer is split into per-particle halves, which makes its
cost linear in the number of particles. With ``unordered=True`` the two halves share their weights, messages
become symmetric (:math:`m_{ij} = m_{ji}`), and each pair is computed once, at half the work.

The displacement output is translation invariant and equivariant under rotation, reflection and
permutation, by construction.

**Molecules.** With :class:`~molsampler.molecule.molecule.Molecule` the first features carry an embedding
of the particle's type, edges carry the distance on the bond graph (1, 2, 3 or more) and the deviation from
a learned reference length, and each layer moves near pairs by learned springs,

.. math:: x_i \leftarrow x_i + \sum_{j\ \mathrm{near}} k_c\,(\ell_c / d_{ij} - 1)\,(x_i - x_j),

one step of the Jacobi iteration that solves bond constraints: lengths whose thermal width is a few
percent are out of reach of smooth radial features alone. Length and stiffness belong to the class c of a
pair, its two types and graph distance, so equivalence of atoms under the graph's automorphisms is kept
and all other permutation symmetry is broken.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, Self, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ...errors import InputError
from ...molecule.molecule import Molecule
from ...space import Space
from .. import pair_layer
from ..linear import Linear, linear
from .base import BODIES, Body, BodyNetwork
from .pairs import Pairs

#: Bond-graph distances that are told apart; pairs further away, or not connected, count as one class.
NEAR = 3

#: Bytes of one tensor of messages in evaluation on a CPU: two of them fit a core's share of the cache.
_PIECE = 5 * 2**18

#: The same of particles, where a kernel has no tensors of messages.
_NODES = 8 * _PIECE

#: Smallest exponent of a radial feature. Beyond it exp is denormal, and every operation on a denormal
#: number takes the slow path of the processor.
_SMALLEST = -80.0

# Keeps d(distance)/dx finite for coincident particles without a visible change elsewhere.
_EPSILON = 1e-8

#: Last layers that move particles from the start on where the others are to learn it later, and what the
#: others do at first, of what they would.
_MOVING, _STILL = 2, 0.01

#: Sharpness of the features of relative deviations from reference lengths: 100 %, 25 % and 6 %.
_SHARPNESS = (1.0, 4.0, 16.0)


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

    def as_settings(self) -> pair_layer.Features:
        """The same for the kernel."""
        return pair_layer.Features(
            self.centres, self.gamma, self.range, self.inverse, _SMALLEST, _EPSILON
        )

    def forward(self, squared: Tensor, distance: Tensor) -> Tensor:
        # log1p tames the square, which at high noise is hundreds of times its value in the data.
        parts = [torch.log1p(squared / self.range**2)]
        if len(self.centres):
            exponent = (distance - self.centres).square() * -self.gamma
            parts.append(torch.exp(exponent.clamp(min=_SMALLEST)))
        if self.inverse:
            parts.append(1.0 / (distance + 0.2 * self.range / 3.0))
        return torch.cat(parts, dim=-1)


class BondFeatures(nn.Module):
    """What the bond graph says of each pair, of distances ``(pairs, b, 1)``: features ``(pairs, b, size)``
    and springs ``(pairs, b, 1)``.

    Pairs are ordered or not, as in :class:`Pairs`. ``length`` is the first guess of the reference lengths.
    """

    classes: Tensor
    steps: Tensor
    near: Tensor

    def __init__(self, molecule: Molecule, *, unordered: bool, length: float):
        super().__init__()
        n = len(molecule)
        distance = molecule.graph_distances()
        # Class of a pair: its types and graph distance; the first class is that of all other pairs.
        names: dict[tuple[int, ...], int] = {(): 0}
        table = [[0] * n for _ in range(n)]
        for i in range(n):
            for j in range(n):
                if 1 <= distance[i, j] <= NEAR:
                    low, high = sorted((molecule.types[i], molecule.types[j]))
                    key = (low, high, int(distance[i, j]))
                    table[i][j] = names.setdefault(key, len(names))
        # Columns: one, two, three bonds apart, further.
        far = np.where((distance < 0) | (distance > NEAR), NEAR + 1, distance)
        steps = (far[..., None] == np.arange(1, NEAR + 2)).astype(float)
        # In the order of Pairs; made by numpy, since torch may be building on the meta device.
        pairs = np.triu_indices(n, 1) if unordered else np.nonzero(~np.eye(n, dtype=bool))
        self.register_buffer(
            "classes", torch.tensor(np.array(table)[pairs].tolist()), persistent=False
        )
        self.register_buffer(
            "steps", torch.tensor(steps[pairs][:, None].tolist()), persistent=False
        )
        self.register_buffer("near", self.steps[..., :NEAR].sum(-1, keepdim=True), persistent=False)
        self.log_length = nn.Parameter(torch.full((len(names),), math.log(length)))
        self.spring = nn.Parameter(torch.zeros(len(names)))
        self.size = NEAR + 1 + len(_SHARPNESS)

    def length(self) -> Tensor:
        """Reference length of every pair; of no meaning for pairs that are not near."""
        return self.log_length.exp()[self.classes][:, None, None]

    def forward(self, distance: Tensor) -> Tensor:
        strain = distance / self.length() - 1.0
        parts = [self.near * torch.tanh(sharpness * strain) for sharpness in _SHARPNESS]
        return torch.cat([*parts, self.steps.expand(-1, distance.shape[1], -1)], dim=-1)

    def pull(self, distance: Tensor) -> Tensor:
        """Coefficient of ``x_i - x_j`` in the springs' displacement of i."""
        spring = self.near * self.spring[self.classes][:, None, None]
        return spring * (self.length() / distance - 1.0)

    def start_from(self, distance: Tensor, spring: float) -> None:
        """Set reference lengths to the means of distances ``(pairs, b, 1)``, and the springs of bonds
        and angles (graph distance 1 and 2) to ``spring``."""
        with torch.no_grad():
            mean = distance.mean(1).flatten()
            index = self.classes
            count = torch.zeros_like(self.log_length).index_add_(0, index, torch.ones_like(mean))
            total = torch.zeros_like(self.log_length).index_add_(0, index, mean)
            stiff = torch.zeros_like(self.spring).index_add_(
                0, index, self.steps[..., :2].sum(-1).flatten()
            )
            self.log_length[1:] = (total / count.clamp(min=1.0))[1:].clamp(min=1e-6).log()
            self.spring[1:] = spring * (stiff > 0)[1:].to(self.spring)


def _silu(x: Tensor) -> Tensor:
    """SiLU of an intermediate result, in its place where no gradient will ask for it."""
    return functional.silu(x, inplace=not torch.is_grad_enabled())


class EGNNLayer(nn.Module):
    """One layer, on features ``(n, b, width)`` and positions ``(n, b, d)``."""

    def __init__(
        self,
        width: int,
        edge: EdgeFeatures,
        bonds: BondFeatures | None,
        *,
        attention: bool,
        unordered: bool,
        deep_head: bool,
        neighbours: int,
    ):
        super().__init__()
        self.edge = edge
        self.bonds = bonds
        self.from_i = Linear(width, width)
        self.from_j = None if unordered else Linear(width, width, bias=False)
        size = edge.size + (0 if bonds is None else bonds.size)
        self.from_edge = Linear(size, width, bias=False)
        self.message = Linear(width, width)
        self.attention = Linear(width, 1) if attention else None
        self.hidden_head = Linear(width, width) if deep_head else None
        self.head = Linear(width, 1, bias=False)
        self.node = Linear(2 * width, width)
        self.node_out = Linear(width, width)
        # Sums over neighbours keep unit scale when the number of particles changes.
        self.scale = neighbours**-0.5

    def forward(
        self, h: Tensor, x: Tensor, pairs: Pairs, *, aggregate: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Sums of messages ``(n, b, width)`` where they are wanted, and moved positions."""
        first = self.from_i(h)
        second = None if self.from_j is None else self.from_j(h)
        springs: Tensor | float = 0.0
        extra = None
        if self.bonds is not None:
            difference = pairs.difference(x)
            distance = torch.sqrt(difference.square().sum(-1, keepdim=True) + _EPSILON)
            extra = self.bonds(distance)
            springs = pairs.sum_vectors(difference * self.bonds.pull(distance))
        given = (x, first, second, extra)
        matrices = self._matrices()
        by_torch = partial(self._by_torch, pairs=pairs, aggregate=aggregate)
        if self.by_kernel(*given, *matrices):
            features = self.edge.as_settings()
            moved, sums = pair_layer.layer(
                *given, features, matrices, aggregate=aggregate, by_torch=by_torch
            )
        else:
            moved, sums = by_torch(*given, matrices)
        return sums, x + self.scale * moved + springs

    def by_kernel(self, x: Tensor, *others: Tensor | None) -> bool:
        """Whether the compiled kernel takes the pairs of such positions, and what goes with them."""
        return self.attention is None and pair_layer.serves(self.message.out_features, x, *others)

    def _matrices(self) -> pair_layer.Matrices:
        hidden = self.hidden_head
        return pair_layer.Matrices(
            self.from_edge.weight,
            self.message.weight,
            self.message.bias,
            None if hidden is None else hidden.weight,
            None if hidden is None else hidden.bias,
            self.head.weight,
        )

    def _by_torch(
        self,
        x: Tensor,
        first: Tensor,
        second: Tensor | None,
        extra: Tensor | None,
        matrices: pair_layer.Matrices,
        *,
        pairs: Pairs,
        aggregate: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """See :func:`molsampler.nn.pair_layer.layer`."""
        difference = pairs.difference(x)
        squared = difference.square().sum(-1, keepdim=True)
        distance = torch.sqrt(squared + _EPSILON)
        edge = self.edge(squared, distance)
        if extra is not None:
            edge = torch.cat([edge, extra], dim=-1)
        message = linear(edge, matrices.edge)
        message = message.add_(pairs.combine(first, first if second is None else second))
        message = _silu(linear(_silu(message), matrices.message, matrices.message_bias))
        if self.attention is not None:
            message = message * torch.sigmoid(self.attention(message))
        coordinate = message
        if matrices.hidden is not None:
            coordinate = _silu(linear(message, matrices.hidden, matrices.hidden_bias))
        weight = linear(coordinate, matrices.head) / (distance + 1.0)
        sums = pairs.sum_messages(message) if aggregate else None
        return pairs.sum_vectors(difference * weight), sums

    def update(self, h: Tensor, messages: Tensor) -> Tensor:
        """Features after the messages; the last layer's positions do without."""
        seen = torch.cat([h, self.scale * messages], dim=-1)
        change: Tensor = self.node_out(_silu(self.node(seen)))
        return h + change


class TypeEmbedding(nn.Module):
    """A learned vector per particle type, ``(n, 1, width)`` for all particles."""

    index: Tensor

    def __init__(self, types: tuple[int, ...], width: int):
        super().__init__()
        kinds = sorted(set(types))
        self.register_buffer(
            "index", torch.tensor([kinds.index(kind) for kind in types]), persistent=False
        )
        self.table = nn.Embedding(len(kinds), width)

    def forward(self) -> Tensor:
        vectors: Tensor = self.table(self.index)[:, None]
        return vectors


class EGNN(BodyNetwork):
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
    molecule : types and bonds that break the symmetry of identical particles; None keeps it

    Raises
    ------
    InputError
        ``molecule`` describes another number of particles.
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
        molecule: Molecule | None = None,
    ):
        super().__init__()
        if molecule is not None and len(molecule) != n:
            raise InputError(f"molecule must describe {n} particles, got {len(molecule)}")
        self.n, self.unordered = n, unordered
        self.embed = Linear(features, width)
        self.types = None if molecule is None else TypeEmbedding(molecule.types, width)
        edge = EdgeFeatures(rbf=rbf, rbf_range=rbf_range, inverse=inverse)

        def bonds() -> BondFeatures | None:
            if molecule is None:
                return None
            return BondFeatures(molecule, unordered=unordered, length=rbf_range / 3.0)

        self.layers = nn.ModuleList(
            EGNNLayer(
                width,
                edge,
                bonds(),
                attention=attention,
                unordered=unordered,
                deep_head=deep_head,
                neighbours=max(n - 1, 1),
            )
            for _ in range(layers)
        )

    def start_from(self, x: Tensor, *, spring: float) -> None:
        """Start reference lengths at the mean geometry of configurations ``(b, n, d)``, and springs of
        bonds and angles at ``spring``; nothing without a molecule."""
        difference = self._pairs(x).difference(x.transpose(0, 1))
        squared = difference.square().sum(-1, keepdim=True)
        for layer in self.layers:
            bonds = cast(EGNNLayer, layer).bonds
            if bonds is not None:
                bonds.start_from(torch.sqrt(squared + _EPSILON), spring)

    def start_late(self) -> None:
        with torch.no_grad():
            for layer in self.layers[:-_MOVING]:
                cast(EGNNLayer, layer).head.weight.mul_(_STILL)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        batch = len(x)
        size = self._piece(x) if batch else 1
        if size >= batch:
            return self._displacement(x, features)
        pieces = zip(torch.split(x, size), torch.split(features, size), strict=True)
        return torch.cat([self._displacement(*piece) for piece in pieces])

    def _piece(self, x: Tensor) -> int:
        """Rows computed at a time: all of them where gradients or a compiler want to see the whole."""
        batch = len(x)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
            return batch
        size = self.embed.out_features * x.element_size()
        if all(cast(EGNNLayer, layer).by_kernel(x) for layer in self.layers):
            # Which cuts pairs itself: what is left are tensors of particles, for its threads to share.
            return max(_NODES // (self.n * size), 1)
        pairs = self.n * (self.n - 1) // (2 if self.unordered else 1)
        return math.ceil(batch / math.ceil(batch * pairs * size / _PIECE))

    def _pairs(self, x: Tensor) -> Pairs:
        return Pairs(self.n, unordered=self.unordered, like=x)

    def _displacement(self, x: Tensor, features: Tensor) -> Tensor:
        pairs = self._pairs(x)
        x, h = x.transpose(0, 1), self.embed(features.transpose(0, 1))
        if self.types is not None:
            h = h + self.types()
        moved = x
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            messages, moved = layer(h, moved, pairs, aggregate=index < last)
            if messages is not None:
                h = cast(EGNNLayer, layer).update(h, messages)
        return (moved - x).transpose(0, 1)


@BODIES.register("egnn")
class EGNNBody(Body):
    """An :class:`EGNN`.

    The upper bounds keep the card of a stranger from asking for a network without end.
    """

    mirror_symmetric = True

    kind: Literal["egnn"] = "egnn"
    width: int = Field(64, ge=1, le=2**14)
    layers: int = Field(4, ge=1, le=256)
    rbf: int = Field(16, ge=0, le=1024)
    rbf_range: float = Field(3.0, gt=0)
    inverse: bool = True
    attention: bool = False
    unordered: bool = False
    deep_head: bool = False

    def scaled(self, length: float) -> Self:
        return self.model_copy(update={"rbf_range": self.rbf_range * length})

    def by_kernel(self, space: Space) -> bool:
        known = not self.attention and space.shape[1] <= pair_layer.DIMENSIONS
        return known and pair_layer.available(self.width)

    def build(self, space: Space, features: int, molecule: Molecule | None) -> BodyNetwork:
        require_pairs(space)
        settings = self.model_dump(exclude={"kind"})
        return EGNN(space.shape[0], features, **settings, molecule=molecule)


def require_pairs(space: Space) -> None:
    """Refuse a space without pairs of particles for an equivariant network to read.

    Raises
    ------
    InputError
        It has a single particle.
    """
    if space.shape[0] < 2:
        raise InputError(
            f"an EGNN moves particles along the lines between them and needs at least two, got a "
            f"system of shape {space.shape}; use a body of kind 'mlp'"
        )
