"""What is watched of a system to judge the convergence of a reference run.

The energy and, for invariant systems, the radius of gyration and order statistics of the pair
distances, of each two types of particles apart; for others, the coordinates. Molecules are watched by
their torsions as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..collective_variables import dihedral
from ..molecule.graph import neighbours, pair_types, rotatable_bonds
from ..target import System
from .dynamics import bonds_of

#: Coordinates that are watched one by one in systems without symmetry.
MOST_COORDINATES = 64


def observables(system: System, x: Tensor) -> dict[str, Tensor]:
    """Named observables ``(b,)`` in float64 of positions ``(b, n, d)``, by which convergence is judged."""
    x = x.double()
    watched = {"energy": system.energy(x)}
    n, d = system.shape
    if not system.invariant or n < 2:
        flat = x.flatten(1)
        for k in range(min(n * d, MOST_COORDINATES)):
            watched[f"coordinate {k}"] = flat[:, k]
        return watched
    torsions = _watched_torsions(system)
    for i, j, k, last in torsions:
        angle = dihedral(x[:, i], x[:, j], x[:, k], x[:, last])
        watched[f"cosine of torsion {i}-{j}-{k}-{last}"] = angle.cos()
        watched[f"sine of torsion {i}-{j}-{k}-{last}"] = angle.sin()
    centred = x - x.mean(-2, keepdim=True)
    watched["radius of gyration"] = centred.square().sum(-1).mean(-1).sqrt()
    i, j = torch.triu_indices(n, n, 1)
    distance = (x[:, i] - x[:, j]).norm(dim=-1)
    watched |= _ranked(distance, "")
    alike = system.alike
    if alike is not None and len(set(alike)) > 1:
        for (first, second), pairs in pair_types(alike).items():
            watched |= _ranked(distance[:, pairs], f" of types {first} and {second}")
    if alike is None and not torsions:
        for k in range(min(distance.shape[1], MOST_COORDINATES)):
            watched[f"distance {int(i[k])}-{int(j[k])}"] = distance[:, k]
    return watched


def _ranked(distance: Tensor, which: str) -> dict[str, Tensor]:
    """Order statistics of distances ``(b, pairs)``: extremes, quartiles and the median."""
    ordered = distance.sort(-1).values
    ranks = sorted({round(q * (ordered.shape[1] - 1)) for q in (0.0, 0.25, 0.5, 0.75, 1.0)})
    return {f"pair distance{which} of rank {rank + 1}": ordered[:, rank] for rank in ranks}


def _watched_torsions(system: System) -> list[tuple[int, int, int, int]]:
    """Torsions of rotatable bonds, without those of symmetric rotors such as methyl groups."""
    n, bonds = system.shape[0], bonds_of(system)
    if not bonds or system.molecule is None:
        return []
    types = system.molecule.types
    partners = neighbours(n, bonds)

    def symmetric(end: int, other: int) -> bool:
        kinds = [types[atom] for atom in partners[end] if atom != other]
        return len(kinds) > 1 and len(set(kinds)) == 1

    return [
        torsion
        for torsion, _ in rotatable_bonds(n, bonds)
        if not symmetric(torsion[1], torsion[2]) and not symmetric(torsion[2], torsion[1])
    ]
