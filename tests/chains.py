"""Small molecules of a few lines: harmonic bonds and angles, a torsion, a soft repulsion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from molsampler.molecule.molecule import Molecule
from molsampler.space import MeanFree
from molsampler.target import System


class Chain(System):
    r"""A bonded molecule in units of its bond length and kT.

    .. math:: u = \tfrac{k_b}{2} \sum (r - 1)^2 + \tfrac{k_a}{2} \sum (\cos\theta - \cos\theta_0)^2
              + k_t \sum (1 + \cos 3\chi) + \epsilon \sum_{far} (\sigma / r)^{12}
    """

    invariant = True

    def __init__(
        self,
        types: Sequence[int] = (0, 1, 2, 1, 0),
        bonds: Sequence[tuple[int, int]] = ((0, 1), (1, 2), (2, 3), (3, 4)),
        *,
        chiral_centres: Sequence[tuple[int, int, int, int]] = (),
        cosine: float = -0.342,
        name: str = "toy-chain",
    ):
        n = len(types)
        self.name = name
        self.space = MeanFree(n, 3)
        self.molecule = None
        if bonds or len(set(types)) > 1:
            self.molecule = Molecule.of(types, bonds, chiral_centres=chiral_centres)
        self.cosine = cosine
        near: list[list[int]] = [[] for _ in range(n)]
        for i, j in bonds:
            near[i].append(j)
            near[j].append(i)
        angles = [(i, c, j) for c in range(n) for i in near[c] for j in near[c] if i < j]
        torsions = [
            (i, a, b, j) for a, b in bonds for i in near[a] for j in near[b] if i != b and j != a
        ]
        close = {frozenset(pair) for pair in bonds} | {frozenset((i, j)) for i, _, j in angles}
        far = [(i, j) for i in range(n) for j in range(i) if frozenset((i, j)) not in close]
        self._bonds = torch.tensor(bonds).reshape(-1, 2)
        self._angles = torch.tensor(angles).reshape(-1, 3)
        self._torsions = torch.tensor(torsions, dtype=torch.long).reshape(-1, 4)
        self._far = torch.tensor(far, dtype=torch.long).reshape(-1, 2)

    def lengths(self, x: Tensor) -> Tensor:
        """Bond lengths ``(b, bonds)``."""
        return (x[:, self._bonds[:, 0]] - x[:, self._bonds[:, 1]]).norm(dim=-1)

    def torsions(self, x: Tensor) -> Tensor:
        """Torsion angles in radians, ``(b, torsions)``."""
        a, b, c, d = (x[:, self._torsions[:, k]] for k in range(4))
        first = torch.linalg.cross(b - a, c - b, dim=-1)
        second = torch.linalg.cross(c - b, d - c, dim=-1)
        axis = torch.nn.functional.normalize(c - b, dim=-1)
        sine = (torch.linalg.cross(first, second, dim=-1) * axis).sum(-1)
        return torch.atan2(sine, (first * second).sum(-1))

    def _formula(self, x: Tensor) -> Tensor:
        i, c, j = (x[:, self._angles[:, k]] for k in range(3))
        cosine = torch.cosine_similarity(i - c, j - c, dim=-1)
        distance = (x[:, self._far[:, 0]] - x[:, self._far[:, 1]]).norm(dim=-1)
        return (
            200.0 * (self.lengths(x) - 1.0).square().sum(-1)
            + 20.0 * (cosine - self.cosine).square().sum(-1)
            + 1.5 * (1.0 + (3.0 * self.torsions(x)).cos()).sum(-1)
            + (1.2 / distance.clamp(min=0.3)).pow(12).sum(-1)
        )

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            u = self._formula(x)
            (gradient,) = torch.autograd.grad(u.sum(), x)
        return u.detach(), -gradient


def methane() -> Chain:
    """A centre with four different neighbours: the smallest chiral molecule."""
    bonds = ((0, 1), (0, 2), (0, 3), (0, 4))
    return Chain(
        (0, 1, 2, 3, 4), bonds, chiral_centres=((0, 1, 2, 3),), cosine=-1 / 3, name="toy-methane"
    )
