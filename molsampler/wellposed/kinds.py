"""Which particles are alike, and which move as one."""

from __future__ import annotations

from itertools import combinations
from typing import TypeVar

from ..target import System

T = TypeVar("T")

#: Particles among which pairs are sought where each is of its own kind.
_SOUGHT = 200


def kinds(system: System) -> list[int]:
    """A number for each particle, equal for those that the system does not tell apart."""
    n = system.shape[0]
    if system.molecule is not None:
        return list(system.molecule.types)
    return [0] * n if system.exchangeable else list(range(n))


def pairs_of_kinds(system: System, most: int) -> list[tuple[int, int]]:
    """A pair of particles more than three bonds apart for each pair of kinds, ``most`` at most."""
    kind, n = kinds(system), system.shape[0]
    distance = None
    if system.molecule is not None and system.molecule.bonds:
        distance = system.molecule.graph_distances()
    found: dict[tuple[int, int], tuple[int, int]] = {}
    chosen = _few_of_each(kind) if distance is None else range(n)
    for i, j in combinations(chosen, 2):
        key = (min(kind[i], kind[j]), max(kind[i], kind[j]))
        if key not in found and (distance is None or not 0 <= distance[i, j] <= 3):
            found[key] = (i, j)
    return spread(list(found.values()), most)


def _few_of_each(kind: list[int]) -> list[int]:
    """Two particles of each kind, ascending, and not too many in all."""
    seen: dict[int, int] = {}
    chosen = []
    for index, each in enumerate(kind):
        seen[each] = seen.get(each, 0) + 1
        if seen[each] <= 2:
            chosen.append(index)
    return spread(chosen, _SOUGHT)


def fragments(system: System, most: int) -> list[list[int]]:
    """Groups of particles that may leave the others: molecules, or one particle of each kind.

    None of a single molecule, which its bonds hold together.
    """
    n, molecule = system.shape[0], system.molecule
    if molecule is not None and molecule.bonds:
        reach = molecule.graph_distances()
        parts = sorted({tuple(j for j in range(n) if reach[i, j] >= 0) for i in range(n)})
        if len(parts) == 1:
            return []
        # The smallest first: where there are two, one leaving is the other leaving.
        return [list(part) for part in sorted(parts, key=len)][: 1 if len(parts) == 2 else most]
    kind = kinds(system)
    return [[kind.index(each)] for each in spread(sorted(set(kind)), most)]


def spread(items: list[T], most: int) -> list[T]:
    """At most ``most`` of the items, evenly spread."""
    if len(items) <= most:
        return items
    return [items[k * len(items) // most] for k in range(most)]
