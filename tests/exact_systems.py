"""Systems that can be sampled exactly, so that a comparison knows the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from molsampler.space import MeanFree
from molsampler.target import System


class Springs(System):
    """All pairs joined by springs of stiffness k: a Gaussian on the mean-free space.

    The energy (k/2) sum_{i<j} d_ij^2 is (k n / 2) sum_i |x_i|^2 for centred configurations.
    """

    invariant = True
    exchangeable = True

    def __init__(self, n: int = 4, d: int = 2, k: float = 0.25):
        self.name = f"springs{n}"
        self.space = MeanFree(n, d)
        self.k = k * n

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        centred = self.space.project(x)
        return 0.5 * self.k * centred.square().sum((1, 2)), -self.k * centred

    def sample(self, n: int, seed: int, temperature: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        like = torch.zeros((), dtype=torch.float64)
        noise = self.space.randn(n, generator=generator, like=like)
        return noise * (temperature / self.k) ** 0.5


class Dimer(System):
    """Two particles on a stiff bond: u = (k/2) (r - 1)^2 in three dimensions."""

    name = "dimer"
    invariant = True
    exchangeable = True
    k = 400.0

    def __init__(self) -> None:
        self.space = MeanFree(2, 3)

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        bond = x[:, 0] - x[:, 1]
        r = bond.norm(dim=-1, keepdim=True)
        pull = -self.k * (r - 1) * bond / r
        return 0.5 * self.k * (r[:, 0] - 1).square(), torch.stack((pull, -pull), 1)

    def sample(self, n: int, seed: int, temperature: float = 1.0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        grid = torch.linspace(0.5, 1.5, 20_001, dtype=torch.float64)
        density = grid.square() * torch.exp(-0.5 * self.k * (grid - 1).square() / temperature)
        draw = torch.multinomial(density, n, replacement=True, generator=generator)
        direction = torch.randn(n, 3, generator=generator, dtype=torch.float64)
        bond = grid[draw, None] * direction / direction.norm(dim=-1, keepdim=True)
        return torch.stack((0.5 * bond, -0.5 * bond), 1)


def random_pose(x: Tensor, seed: int, *, permute: bool = True) -> Tensor:
    """Every configuration rotated or reflected, shifted and relabelled at random."""
    generator = torch.Generator().manual_seed(seed)
    b, n, d = x.shape
    rotation, _ = torch.linalg.qr(torch.randn(b, d, d, generator=generator, dtype=x.dtype))
    shift = torch.randn(b, 1, d, generator=generator, dtype=x.dtype)
    if permute:
        order = torch.rand(b, n, generator=generator).argsort(-1)
        x = x.gather(1, order[..., None].expand(-1, -1, d))
    return x @ rotation + shift
