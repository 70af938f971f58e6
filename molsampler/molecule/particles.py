r"""What tells the particles of a molecule apart: their types, the bonds between them, and handedness.

A cluster's particles are identical. A molecule's are not, but some are equivalent: the hydrogens of a
methyl group can be exchanged, the energy and the bond graph staying as they are. :class:`Particles` is the
little that a network needs to know so that its permutation symmetry is exactly that of the molecule, in a
form that a card can hold.

**Handedness.** The signed volume of a centre and three of its neighbours,

.. math:: V = (x_i - x_c) \cdot [(x_j - x_c) \times (x_k - x_c)],

changes sign in the mirror and under no rotation. A chiral centre is written ``(c, i, j, k)`` in the order
that makes V positive in the molecule that is meant; for an L-amino acid that is (CA, N, C, CB).

**Mirror images.** An E(3)-equivariant generator with a symmetric latent gives a configuration and its
mirror image with equal density, and common force fields give both the same energy. Training is therefore
blind to handedness and in no need of it: model, scores and target are those of the mirror-symmetric law
throughout. Only a sample has to choose, and :meth:`Particles.right_handed` chooses by inverting wrong-handed
ones as a whole. That is exact: if the symmetric law is right, so is its half with the right hand, and
the other half maps onto it at equal energy. An SE(3) network would have to learn from data what one
inversion does, and would still get it wrong sometimes. What inversion cannot repair is a molecule with
some centres right and some wrong (a diastereomer); these are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor

from ..errors import InputError

#: Bond-graph distances that are told apart; pairs further away, or not connected, count as one class.
NEAR = 3


class Handedness(NamedTuple):
    """Configurations ``(b, n, 3)`` after inversion, and the number of wrong centres of each before and
    after it, ``(b,)``."""

    positions: Tensor
    wrong_before: Tensor
    wrong_after: Tensor


class Particles(BaseModel):
    """Types, bonds and chiral centres of the particles of one molecule.

    Attributes
    ----------
    types : one integer per particle; equal ones can only be told apart by their bonds
    bonds : pairs of indices
    chiral_centres : ``(c, i, j, k)`` with positive signed volume in the molecule that is meant
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    types: tuple[int, ...]
    bonds: tuple[tuple[int, int], ...] = ()
    chiral_centres: tuple[tuple[int, int, int, int], ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        n = len(self.types)
        if n and min(self.types) < 0:
            raise ValueError(f"types must not be negative, got {min(self.types)}")
        for what, groups in (("bond", self.bonds), ("chiral centre", self.chiral_centres)):
            for group in groups:
                if len(set(group)) != len(group) or not all(0 <= i < n for i in group):
                    raise ValueError(
                        f"{what} {group} must name different particles of 0 to {n - 1}"
                    )
        return self

    @classmethod
    def of(cls, target: Any) -> Particles | None:
        """What a target says of its particles in ``atom_types``, ``bonds`` and ``chiral_centres``.

        None where it says nothing, or one type and no bonds: its particles are identical. Centres are
        kept only where the target says that it is ``invariant``, which includes reflections; otherwise
        its score knows handedness.

        Raises
        ------
        InputError
            The attributes do not fit each other or the number of particles.
        """
        types = getattr(target, "atom_types", None)
        bonds = getattr(target, "bonds", None)
        if types is None and bonds is None:
            return None
        n = target.space.shape[0]
        kinds = [0] * n if types is None else [int(kind) for kind in types]
        centres = (
            getattr(target, "chiral_centres", ()) if getattr(target, "invariant", False) else ()
        )
        if len(kinds) != n:
            raise InputError(
                f"atom_types must hold {n} integers, one per particle, got {len(kinds)}"
            )
        if not bonds and len(set(kinds)) == 1:
            return None
        try:
            return cls(
                types=tuple(kinds),
                bonds=tuple(sorted((min(i, j), max(i, j)) for i, j in _integers(bonds or ()))),
                chiral_centres=tuple((c, i, j, k) for c, i, j, k in _integers(centres or ())),
            )
        except (TypeError, ValueError) as error:
            raise InputError(
                "bonds must be pairs, chiral_centres 4-tuples of particle indices in "
                f"0 to {n - 1}: {error}"
            ) from None

    def graph_distances(self) -> NDArray[np.int64]:
        """Number of bonds on the shortest path between particles ``(n, n)``; -1 where there is none."""
        n = len(self.types)
        distance = np.full((n, n), -1)
        np.fill_diagonal(distance, 0)
        reached = np.eye(n, dtype=bool)
        bonded = np.zeros((n, n), dtype=bool)
        for i, j in self.bonds:
            bonded[i, j] = bonded[j, i] = True
        for step in range(1, n):
            reached = (reached @ bonded) & (distance < 0)
            if not reached.any():
                break
            distance[reached] = step
        return distance

    def latent_root(self) -> NDArray[np.float64]:
        r"""Symmetric root ``(n, n)`` of the covariance of a Gaussian chain on the bond graph.

        Bonded particles are joined by ideal springs, all others by a weak one, so that
        :math:`C \propto (L + (I - 11^T / n) / n)^+` with the graph Laplacian L: neighbours start close
        (the harmonic prior of EigenFold, arXiv 2304.02198). The mean variance on the mean-free space is
        one; without bonds C is the projection onto it.
        """
        n = len(self.types)
        laplacian = (np.eye(n) - 1.0 / n) / n
        for i, j in self.bonds:
            laplacian[[i, j], [i, j]] += 1.0
            laplacian[[i, j], [j, i]] -= 1.0
        value, vector = np.linalg.eigh(laplacian)
        variance = np.where(value > 1e-9, 1.0 / np.maximum(value, 1e-9), 0.0)
        variance *= max(n - 1, 1) / variance.sum() if n > 1 else 0.0
        root: NDArray[np.float64] = (vector * np.sqrt(variance)) @ vector.T
        return root

    def right_handed(self, x: Tensor) -> Handedness:
        """Invert configurations ``(b, n, 3)`` that have more wrong centres than right ones."""
        if not self.chiral_centres:
            none = torch.zeros(len(x), dtype=torch.long, device=x.device)
            return Handedness(x, none, none)
        wrong = (signed_volumes(x, self.chiral_centres) <= 0).sum(-1)
        inverted = 2 * wrong > len(self.chiral_centres)
        return Handedness(
            torch.where(inverted[:, None, None], -x, x),
            wrong,
            torch.where(inverted, len(self.chiral_centres) - wrong, wrong),
        )


def _integers(groups: Iterable[Iterable[Any]]) -> list[tuple[int, ...]]:
    return [tuple(int(index) for index in group) for group in groups]


def signed_volumes(x: Tensor, centres: Sequence[Sequence[int]]) -> Tensor:
    """Signed volumes ``(*b, k)`` of k centres ``(c, i, j, k)`` at positions ``(*b, n, 3)``, cubic length."""
    index = torch.as_tensor(centres, device=x.device).reshape(-1, 4)
    edges = x[..., index[:, 1:], :] - x[..., index[:, :1], :]
    volumes: Tensor = torch.linalg.det(edges)
    return volumes


def stereocentres(kinds: Sequence[Any], bonds: Iterable[Iterable[int]]) -> list[tuple[int, ...]]:
    """Particles with four bonds to pairwise different branches, as ``(c, i, j, k)``, lowest index first.

    Branches differ where colour refinement of the bond graph tells the neighbours apart, which is exact
    on trees. ``kinds`` are the particles' elements or types; hydrogens of a methyl group come out alike.
    The order says nothing of handedness; see :func:`oriented`.
    """
    neighbours: list[list[int]] = [[] for _ in kinds]
    for i, j in _integers(bonds):
        neighbours[i].append(j)
        neighbours[j].append(i)
    colour = _ranks([str(kind) for kind in kinds])
    while True:
        finer = _ranks(
            [(colour[i], *sorted(colour[j] for j in near)) for i, near in enumerate(neighbours)]
        )
        if len(set(finer)) == len(set(colour)):
            break
        colour = finer
    return [
        (i, *sorted(near)[:3])
        for i, near in enumerate(neighbours)
        if len(near) == 4 and len({colour[j] for j in near}) == 4
    ]


def _ranks(keys: Sequence[Any]) -> list[int]:
    order = {key: rank for rank, key in enumerate(sorted(set(keys)))}
    return [order[key] for key in keys]


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
