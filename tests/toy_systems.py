"""A cluster and a planar system of a few lines, so that file tests depend on no catalogue."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from molsampler.space import MeanFree
from molsampler.target import System


class Cluster(System):
    """Lennard-Jones particles in a harmonic trap; every pair counted twice."""

    invariant = True
    exchangeable = True
    concurrent = True
    length_nm = 0.34

    def __init__(self, n: int = 13, d: int = 3, name: str = "toy-cluster"):
        self.space = MeanFree(n, d)
        self.name = name
        self._pairs = torch.triu_indices(n, n, 1)

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        i, j = self._pairs
        difference = x[:, i] - x[:, j]
        square = difference.square().sum(-1)
        inverse = square.reciprocal() ** 3
        energy = 2 * (inverse.square() - 2 * inverse) + 0.5 * square / x.shape[1]
        slope = 24 * (inverse - inverse.square()) / square + 1 / x.shape[1]
        pull = slope[..., None] * difference
        score = torch.zeros_like(x).index_add_(1, i, pull, alpha=-1).index_add_(1, j, pull)
        return energy.sum(-1), score

    def topology(self) -> Any:
        import mdtraj

        topology = mdtraj.Topology()
        chain = topology.add_chain()
        for _ in range(self.shape[0]):
            residue = topology.add_residue("AR", chain)
            topology.add_atom("Ar", mdtraj.element.argon, residue)
        return topology

    def grid(self, n: int, *, seed: int = 0, noise: float = 0.03) -> Tensor:
        """``n`` configurations ``(n, N, D)`` near a cubic grid of spacing 1."""
        particles, dimension = self.shape
        index = torch.arange(particles)
        axes = [index // 9, index // 3 % 3, index % 3]
        points = torch.stack(axes[-dimension:], dim=-1).float()
        random = torch.Generator().manual_seed(seed)
        x = points + noise * torch.randn(n, particles, dimension, generator=random)
        return self.space.project(x)
