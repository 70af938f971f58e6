"""Alanine dipeptide from internal coordinates of known law: 22 atoms in Amber's order, no force field.

Bond lengths, angles and torsions are drawn independently, (phi, psi) from a mixture of three Gaussians,
so that the truth about every torsion and bond is known.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from molsampler.space import MeanFree
from molsampler.target import System

NAMES = (
    *(("ACE", name) for name in ("H1", "CH3", "H2", "H3", "C", "O")),
    *(("ALA", name) for name in ("N", "H", "CA", "HA", "CB", "HB1", "HB2", "HB3", "C", "O")),
    *(("NME", name) for name in ("N", "H", "C", "H1", "H2", "H3")),
)

# atom, bonded to, angle with, torsion with, length nm, angle, torsion in degrees or a key and an offset
_ROWS: tuple[tuple[int, int, int, int, float, float, str, float], ...] = (
    (1, 4, 6, 8, 0.152, 116.6, "omega", 0.0),
    (5, 4, 6, 8, 0.123, 122.9, "omega", 180.0),
    (0, 1, 4, 6, 0.109, 109.5, "methyl1", 0.0),
    (2, 1, 4, 6, 0.109, 109.5, "methyl1", 120.0),
    (3, 1, 4, 6, 0.109, 109.5, "methyl1", 240.0),
    (7, 6, 4, 1, 0.101, 119.8, "", 0.0),
    (14, 8, 6, 4, 0.152, 111.0, "phi", 0.0),
    (10, 8, 6, 4, 0.153, 110.0, "phi", -120.0),
    (9, 8, 6, 4, 0.109, 109.0, "phi", 120.0),
    (16, 14, 8, 6, 0.1335, 116.6, "psi", 0.0),
    (15, 14, 8, 6, 0.123, 120.5, "psi", 180.0),
    (17, 16, 14, 8, 0.101, 119.8, "", 0.0),
    (18, 16, 14, 8, 0.1449, 122.0, "omega", 0.0),
    *((11 + k, 10, 8, 6, 0.109, 109.5, "methyl2", 120.0 * k) for k in range(3)),
    *((19 + k, 18, 16, 14, 0.109, 109.5, "methyl3", 120.0 * k) for k in range(3)),
)

BONDS = ((4, 6), (6, 8), *((row[0], row[1]) for row in _ROWS))

#: Weight, centre (phi, psi) and width in degrees of beta, alpha-R and alpha-L.
BASINS = ((0.55, (-110.0, 140.0), 20.0), (0.35, (-75.0, -40.0), 15.0), (0.10, (55.0, 45.0), 10.0))

BOND_DEVIATION = 0.003


class Peptide(System):
    """Alanine dipeptide with harmonic bonds as energy; its samples come from :meth:`sample`."""

    name = "toy-peptide"
    invariant = True

    def __init__(self) -> None:
        self.space = MeanFree(22, 3)
        lengths = {(4, 6): 0.1335, (6, 8): 0.1449, **{(r[0], r[1]): r[4] for r in _ROWS}}
        self._pairs = torch.tensor(BONDS).T
        self._lengths = torch.tensor([lengths[bond] for bond in BONDS], dtype=torch.float64)

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        i, j = self._pairs
        bond = x[:, i] - x[:, j]
        r = bond.norm(dim=-1)
        stretch = r - self._lengths.to(x)
        k = BOND_DEVIATION**-2
        pull = -k * (stretch / r)[..., None] * bond
        score = torch.zeros_like(x).index_add_(1, i, pull).index_add_(1, j, pull, alpha=-1)
        return 0.5 * k * stretch.square().sum(-1), score

    def topology(self) -> Any:
        import mdtraj

        topology = mdtraj.Topology()
        chain = topology.add_chain()
        residues: dict[str, Any] = {}
        for residue, name in NAMES:
            if residue not in residues:
                residues[residue] = topology.add_residue(residue, chain, resSeq=len(residues) + 1)
            element = mdtraj.element.get_by_symbol(name[0])
            topology.add_atom(name, element, residues[residue])
        atoms = list(topology.atoms)
        for i, j in BONDS:
            topology.add_bond(atoms[i], atoms[j])
        return topology

    def sample(self, n: int, seed: int, *, shift: float = 0.0, basins: Any = BASINS) -> Tensor:
        """``n`` L-alanine dipeptides; phi is moved by ``shift`` degrees."""
        rng = torch.Generator().manual_seed(seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        weight = torch.tensor([basin[0] for basin in basins])
        chosen = torch.multinomial(weight, n, replacement=True, generator=rng)
        centre = torch.tensor([basin[1] for basin in basins], dtype=torch.float64)
        width = torch.tensor([basin[2] for basin in basins], dtype=torch.float64)
        phi, psi = (centre[chosen] + width[chosen, None] * randn(n, 2)).T
        angles = {
            "": torch.zeros(n, dtype=torch.float64),
            "phi": phi + shift,
            "psi": psi,
            "omega": 180.0 + 6.0 * randn(n),
            **{f"methyl{k}": 60.0 + 20.0 * randn(n) for k in (1, 2, 3)},
        }
        x = torch.zeros(n, 22, 3, dtype=torch.float64)
        first = 0.1335 + BOND_DEVIATION * randn(n)
        second = 0.1449 + BOND_DEVIATION * randn(n)
        x[:, 6, 0] = first
        bend = torch.deg2rad(122.0 + 3.0 * randn(n))
        x[:, 8, 0] = first - second * bend.cos()
        x[:, 8, 1] = second * bend.sin()
        for atom, a, b, c, length, angle, key, offset in _ROWS:
            r = length + BOND_DEVIATION * randn(n)
            theta = torch.deg2rad(angle + 2.0 * randn(n))
            x[:, atom] = _place(
                x[:, a], x[:, b], x[:, c], r, theta, torch.deg2rad(angles[key] + offset)
            )
        return self.space.project(x)


def _place(a: Tensor, b: Tensor, c: Tensor, r: Tensor, theta: Tensor, chi: Tensor) -> Tensor:
    """The point at distance r from a, angle theta with b and torsion chi with c, each ``(n, 3)``."""
    u = torch.nn.functional.normalize(a - b, dim=-1)
    normal = torch.nn.functional.normalize(torch.linalg.cross(b - c, u, dim=-1), dim=-1)
    m = torch.linalg.cross(normal, u, dim=-1)
    local = torch.stack(
        [-r * theta.cos(), r * theta.sin() * chi.cos(), r * theta.sin() * chi.sin()], dim=-1
    )
    return a + local[:, :1] * u + local[:, 1:2] * m + local[:, 2:] * normal
