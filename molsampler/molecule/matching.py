"""Which atom of one molecule is which of another, by their bonds.

Atoms of equal label correspond where the bonds around them do: an isomorphism of the labelled bond graphs,
found by colour refinement of both at once and search within its classes. Equivalent atoms leave it open;
what then decides is that labels keep their place in space. A methylene's two hydrogens, say, are equivalent
and never change places in a simulation: the sign of the volume that a centre's neighbours span, and at planar
centres the side of a torsion, stay as they are (:func:`placement`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .graph import Bonds, equivalence_classes, neighbours

#: Isomorphisms that are looked at before the best one so far is taken.
_TRIED = 500


def match(
    labels: Sequence[Hashable],
    bonds: Bonds,
    other_labels: Sequence[Hashable],
    other_bonds: Bonds,
    *,
    geometry: Any = None,
    other_geometry: Any = None,
) -> list[int]:
    """For each atom the index of the atom of the other molecule that it is.

    ``geometry`` and ``other_geometry`` are configurations ``(n, 3)`` of the two, by which equivalent atoms
    are told apart; without them any isomorphism is returned.

    Raises
    ------
    InputError
        They are not one molecule; the message names the first atom that has no partner.
    """
    difference = first_difference(labels, bonds, other_labels, other_bonds)
    if difference:
        raise InputError(difference)
    best: list[int] | None = None
    least = len(labels) + 1
    wanted = None if geometry is None else placement(geometry, labels, bonds)
    for tried, order in enumerate(_isomorphisms(labels, bonds, other_labels, other_bonds)):
        if wanted is None or other_geometry is None:
            return order
        x = np.asarray(other_geometry, dtype=np.float64)
        order = with_leaves_in_place(order, x, geometry, labels, bonds)
        wrong = int((placement(x[order], labels, bonds) != wanted).sum())
        if wrong < least:
            best, least = order, wrong
        if not wrong or tried == _TRIED:
            break
    if best is None:
        raise InputError("the two molecules have the same atoms, joined in another way")
    return best


def first_difference(
    labels: Sequence[Hashable],
    bonds: Bonds,
    other_labels: Sequence[Hashable],
    other_bonds: Bonds,
) -> str:
    """What the first molecule does not have of the second, in words; empty where nothing is found."""
    mine, others = Counter(labels), Counter(other_labels)
    if mine != others:
        return f"the atoms are {_formula(others)}, expected are {_formula(mine)}"
    around = _surroundings(labels, bonds), _surroundings(other_labels, other_bonds)
    # Direct neighbours first: they are what a reader can look up.
    pairs: list[tuple[Sequence[Hashable], Sequence[Hashable]]] = [
        around,
        _shared_classes(labels, bonds, other_labels, other_bonds),
    ]
    for kinds, other_kinds in pairs:
        spare = Counter(kinds)
        for i, kind in enumerate(other_kinds):
            spare[kind] -= 1
            if spare[kind] < 0:
                near = ", ".join(around[1][i][1]) or "nothing"
                return (
                    f"atom {i} ({other_labels[i]}, bonded to {near}) has no partner with the same "
                    "surroundings: the atoms are the same, joined in another way"
                )
    return ""


def with_leaves_in_place(
    order: Sequence[int],
    x: NDArray[np.float64],
    geometry: Any,
    labels: Sequence[Hashable],
    bonds: Bonds,
) -> list[int]:
    """``order`` with two equivalent end atoms of a centre exchanged where :func:`placement` of ``x[order]``
    differs from that of ``geometry`` there."""
    order = list(order)
    wanted = placement(geometry, labels, bonds)
    partners = neighbours(len(labels), bonds)
    classes = equivalence_classes(labels, bonds)
    wrong = np.flatnonzero(placement(x[order], labels, bonds) != wanted)
    for centre in wrong.tolist():
        ends = [b for b in partners[centre] if len(partners[b]) == 1]
        alike = [(a, b) for a in ends for b in ends if a < b and classes[a] == classes[b]]
        if alike:
            a, b = alike[0]
            order[a], order[b] = order[b], order[a]
    return order


def placement(geometry: Any, labels: Sequence[Hashable], bonds: Bonds) -> NDArray[np.int64]:
    """How the neighbours of each atom lie, ``(n,)``: the sign of a volume, of a torsion's cosine, or 0.

    At four neighbours or more, which no rotation of a bond changes, it is the sign of the volume of the
    three of lowest index. At three, where two of them are equivalent, it says on which side of the bond
    to the third the first of the two lies.
    """
    x = np.asarray(geometry, dtype=np.float64)
    classes = equivalence_classes(labels, bonds)
    partners = neighbours(len(labels), bonds)
    found = np.zeros(len(labels), dtype=np.int64)
    for centre, near in enumerate(partners):
        if len(near) >= 4:
            edges = x[near[:3]] - x[centre]
            found[centre] = int(np.sign(np.linalg.det(edges)))
        elif len(near) == 3:
            alike = [b for b in near if sum(classes[b] == classes[c] for c in near) == 2]
            rest = [b for b in near if b not in alike]
            if not alike or not rest:
                continue
            beyond = [b for b in partners[rest[0]] if b != centre]
            if beyond:
                axis = x[rest[0]] - x[centre]
                u = np.cross(axis, x[alike[0]] - x[centre])
                v = np.cross(axis, x[beyond[0]] - x[rest[0]])
                found[centre] = int(np.sign(u @ v))
    return found


def _surroundings(
    labels: Sequence[Hashable], bonds: Bonds
) -> list[tuple[Hashable, tuple[str, ...]]]:
    partners = neighbours(len(labels), bonds)
    return [
        (label, tuple(sorted(str(labels[j]) for j in partners[i])))
        for i, label in enumerate(labels)
    ]


def _shared_classes(
    labels: Sequence[Hashable], bonds: Bonds, other_labels: Sequence[Hashable], other_bonds: Bonds
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    n = len(labels)
    shifted = [(i + n, j + n) for i, j in other_bonds]
    both = equivalence_classes([*labels, *other_labels], [*bonds, *shifted])
    return both[:n], both[n:]


def _isomorphisms(
    labels: Sequence[Hashable], bonds: Bonds, other_labels: Sequence[Hashable], other_bonds: Bonds
) -> Iterator[list[int]]:
    """Isomorphisms, those that differ in the order of equivalent end atoms of one centre once."""
    n = len(labels)
    classes, other_classes = _shared_classes(labels, bonds, other_labels, other_bonds)
    partners, other_partners = neighbours(n, bonds), neighbours(n, other_bonds)
    joined = {frozenset(bond) for bond in other_bonds}
    sizes = Counter(classes)
    # Rare classes first, then along the bonds: most choices are forced.
    order: list[int] = []
    seen: set[int] = set()
    for start in sorted(range(n), key=lambda i: (sizes[classes[i]], i)):
        queue = [start]
        while queue:
            atom = queue.pop(0)
            if atom not in seen:
                seen.add(atom)
                order.append(atom)
                queue.extend(sorted(partners[atom], key=lambda i: (sizes[classes[i]], i)))
    place = {atom: k for k, atom in enumerate(order)}

    def candidates(k: int, image: dict[int, int], used: set[int]) -> Iterator[int]:
        atom = order[k]
        before = [b for b in partners[atom] if place[b] < k]
        pool = other_partners[image[before[0]]] if before else range(n)
        fits = [
            c
            for c in pool
            if c not in used
            and other_classes[c] == classes[atom]
            and all(frozenset((c, image[b])) in joined for b in before)
        ]
        # Equivalent ends of one centre in one order only.
        yield from fits[:1] if len(partners[atom]) == 1 and before else fits

    stack = [candidates(0, {}, set())]
    image: dict[int, int] = {}
    while stack:
        k = len(stack) - 1
        image.pop(order[k], None)
        choice = next(stack[-1], None)
        if choice is None:
            stack.pop()
            continue
        image[order[k]] = choice
        if k == n - 1:
            yield [image[i] for i in range(n)]
        else:
            stack.append(candidates(k + 1, image, set(image.values())))


def _formula(counts: Counter[Hashable]) -> str:
    return " ".join(f"{label}{number}" for label, number in sorted(counts.items(), key=str))
