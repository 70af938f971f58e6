"""What follows from the bonds of a molecule alone: distances, equivalent atoms, rotatable bonds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Bonds = Sequence[Sequence[int]]


def neighbours(n: int, bonds: Bonds) -> list[list[int]]:
    """Bonded partners of each of ``n`` atoms, ascending."""
    partners: list[set[int]] = [set() for _ in range(n)]
    for i, j in bonds:
        partners[i].add(j)
        partners[j].add(i)
    return [sorted(each) for each in partners]


def distances(n: int, bonds: Bonds) -> NDArray[np.int64]:
    """Number of bonds on the shortest path between atoms ``(n, n)``; -1 where there is none."""
    partners = neighbours(n, bonds)
    found = np.full((n, n), -1)
    for start in range(n):
        shell, steps = {start}, 0
        while shell:
            found[start, sorted(shell)] = steps
            shell = {b for a in shell for b in partners[a] if found[start, b] < 0}
            steps += 1
    return found


def equivalence_classes(labels: Sequence[Hashable], bonds: Bonds) -> tuple[int, ...]:
    """Class of each atom, numbered in order of first appearance.

    Atoms start in the class of their label and stay together while the classes of their bonded
    partners agree, counted with multiplicity, to any number of bonds (colour refinement, Weisfeiler
    & Leman 1968). The hydrogens of a methyl group share a class; so do mirror-image positions, which
    bonds do not tell apart.
    """
    partners = neighbours(len(labels), bonds)
    classes = _numbered(labels)
    while True:
        refined = _numbered(
            [
                (classes[i], tuple(sorted(classes[j] for j in partners[i])))
                for i in range(len(labels))
            ]
        )
        if max(refined, default=0) == max(classes, default=0):
            return tuple(refined)
        classes = refined


def _numbered(keys: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]


def pair_types(types: Sequence[int]) -> dict[tuple[int, int], list[int]]:
    """For each two types, the positions of their pairs in the row-major order of pairs ``i < j``."""
    found: dict[tuple[int, int], list[int]] = {}
    n, position = len(types), 0
    for i in range(n):
        for j in range(i + 1, n):
            low, high = sorted((types[i], types[j]))
            found.setdefault((low, high), []).append(position)
            position += 1
    return found


def rotatable_bonds(n: int, bonds: Bonds) -> list[tuple[tuple[int, int, int, int], list[int]]]:
    """One torsion ``(i, j, k, l)`` for each bond ``j-k`` that can turn, and the atoms that turn with k.

    These are the bonds in no ring whose ends both have further partners; ``i`` and ``l`` are the
    partners of lowest index.
    """
    partners = neighbours(n, bonds)
    found = []
    for j, k in sorted({(min(pair), max(pair)) for pair in bonds}):
        if len(partners[j]) < 2 or len(partners[k]) < 2:
            continue
        side, frontier = {k}, [k]
        while frontier:
            atom = frontier.pop()
            fresh = [a for a in partners[atom] if a not in side and (atom, a) != (k, j)]
            side.update(fresh)
            frontier.extend(fresh)
        if j in side:
            continue
        i = next(a for a in partners[j] if a != k)
        last = next(a for a in partners[k] if a != j)
        found.append(((i, j, k, last), sorted(side - {k})))
    return found


def within_bonds(n: int, bonds: Bonds, reach: int) -> set[tuple[int, int]]:
    """Pairs ``(i, j)``, i < j, that at most ``reach`` bonds connect."""
    steps = distances(n, bonds)
    i, j = np.nonzero(np.triu((steps > 0) & (steps <= reach)))
    return set(zip(i.tolist(), j.tolist(), strict=True))
