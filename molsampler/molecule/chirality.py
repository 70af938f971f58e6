r"""Handedness: chiral centres of a molecule, and which mirror image a configuration is.

The signed volume of a centre and three of its neighbours,

.. math:: V = (x_i - x_c) \cdot [(x_j - x_c) \times (x_k - x_c)],

changes sign in the mirror and under no rotation. A chiral centre is written ``(c, i, j, k)`` in the order
that makes V positive in the molecule that is meant; for an L-amino acid that is (CA, N, C, CB).

**Mirror images.** An E(3)-equivariant generator with a symmetric latent gives a configuration and its
mirror image with equal density, and common force fields give both the same energy. Training is therefore
blind to handedness and in no need of it: model, scores and target are those of the mirror-symmetric law
throughout. Only a sample has to choose, and :func:`right_handed` chooses by inverting wrong-handed
ones as a whole. That is exact: if the symmetric law is right, so is its half with the right hand, and
the other half maps onto it at equal energy. An SE(3) network would have to learn from data what one
inversion does, and would still get it wrong sometimes. What inversion cannot repair is a molecule with
some centres right and some wrong (a diastereomer); these are counted.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .graph import Bonds, equivalence_classes, neighbours


class Handedness(NamedTuple):
    """Configurations ``(b, n, 3)`` after inversion, and the number of wrong centres of each before and
    after it, ``(b,)``."""

    positions: Tensor
    wrong_before: Tensor
    wrong_after: Tensor


def right_handed(x: Tensor, centres: Sequence[Sequence[int]]) -> Handedness:
    """Invert configurations ``(b, n, 3)`` that have more wrong centres than right ones."""
    if not centres:
        none = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return Handedness(x, none, none)
    wrong = (signed_volumes(x, centres) <= 0).sum(-1)
    inverted = 2 * wrong > len(centres)
    return Handedness(
        torch.where(inverted[:, None, None], -x, x),
        wrong,
        torch.where(inverted, len(centres) - wrong, wrong),
    )


def signed_volumes(x: Tensor, centres: Sequence[Sequence[int]]) -> Tensor:
    """Signed volumes ``(*b, k)`` of k centres ``(c, i, j, k)`` at positions ``(*b, n, 3)``, cubic length."""
    index = torch.as_tensor(centres, device=x.device).reshape(-1, 4)
    edges = x[..., index[:, 1:], :] - x[..., index[:, :1], :]
    volumes: Tensor = torch.linalg.det(edges)
    return volumes


def stereocentres(kinds: Sequence[Hashable], bonds: Bonds) -> list[tuple[int, ...]]:
    """Particles with four bonds to pairwise different branches, as ``(c, i, j, k)``, lowest index first.

    Branches differ where colour refinement of the bond graph tells the neighbours apart, which is exact
    on trees. ``kinds`` are the particles' elements or types; hydrogens of a methyl group come out alike.
    The order says nothing of handedness; see :func:`oriented`.
    """
    classes = equivalence_classes(kinds, bonds)
    return [
        (i, *near[:3])
        for i, near in enumerate(neighbours(len(kinds), bonds))
        if len(near) == 4 and len({classes[j] for j in near}) == 4
    ]


def oriented(centres: Iterable[Sequence[int]], x: Tensor) -> list[tuple[int, int, int, int]]:
    """Centres with two neighbours exchanged where needed, so that signed volumes at ``x`` ``(n, 3)`` are
    positive: ``chiral_centres`` of the molecule whose structure is ``x``."""
    found = [tuple(centre) for centre in centres]
    if not found:
        return []
    positive = (signed_volumes(x, found) > 0).tolist()
    return [
        (c, i, j, k) if good else (c, j, i, k)
        for (c, i, j, k), good in zip(found, positive, strict=True)
    ]
