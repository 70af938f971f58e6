"""Densities with exact samples, moments and normalising constants, as stand-ins for physics."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from molsampler.space import Euclidean, MeanFree


class Gaussian:
    """N(mean, covariance) on R^(n d); ``Z = (2 pi)^(nd/2) sqrt(det covariance)``."""

    def __init__(self, mean: Tensor, covariance: Tensor):
        self.mean, self.covariance = mean.double(), covariance.double()
        self.space = Euclidean(*mean.shape)
        self.precision = torch.linalg.inv(self.covariance)
        self.log_z = 0.5 * float(torch.logdet(2 * math.pi * self.covariance))

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = (x - self.mean.to(x)).flatten(-2)
        force = -(y @ self.precision.to(x))
        return -0.5 * (y * force).sum(-1), force.reshape(x.shape)

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        z = torch.randn(size, self.mean.numel(), generator=generator, dtype=torch.float64)
        y = z @ torch.linalg.cholesky(self.covariance).T
        return y.reshape(size, *self.mean.shape) + self.mean


def standard(n: int, d: int, scale: float = 1.0) -> Gaussian:
    return Gaussian(torch.zeros(n, d), scale**2 * torch.eye(n * d))


def correlated() -> Gaussian:
    """Two particles in two dimensions, correlations up to 0.9, variances from 0.25 to 4."""
    scale = torch.tensor([2.0, 1.0, 0.5, 1.0], dtype=torch.float64)
    corr = torch.eye(4, dtype=torch.float64)
    corr[0, 1] = corr[1, 0] = 0.9
    corr[2, 3] = corr[3, 2] = -0.6
    mean = torch.tensor([[1.0, -1.0], [0.5, 3.0]])
    return Gaussian(mean, corr * scale[:, None] * scale)


class Springs:
    """All pairs of particles joined by springs: Gaussian on the mean-free space, variance 1 - 1/n."""

    def __init__(self, n: int, d: int):
        self.space = MeanFree(n, d)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.space.project(x)
        return 0.5 * y.square().sum((-2, -1)), -y


class Bimodal:
    """0.8 N(-4, 1) + 0.2 N(4, 0.25) in each of one particle's first coordinate; others N(0, 1)."""

    share = 0.8

    def __init__(self, d: int = 2):
        self.space = Euclidean(1, d)
        self.log_z = 0.5 * d * math.log(2 * math.pi)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, rest = x[..., 0, 0], x[..., 0, 1:]
        logs = torch.stack(
            [
                math.log(self.share) - 0.5 * (first + 4) ** 2,
                math.log(1 - self.share) + math.log(2) - 2 * (first - 4) ** 2,
            ]
        )
        weight = torch.softmax(logs, 0)
        slope = -weight[0] * (first + 4) - 4 * weight[1] * (first - 4)
        energy = -torch.logsumexp(logs, 0) + 0.5 * rest.square().sum(-1)
        return energy, torch.cat([slope[..., None], -rest], -1)[..., None, :]

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(size, 1, self.space.d, generator=generator, dtype=torch.float64)
        left = torch.rand(size, generator=generator, dtype=torch.float64) < self.share
        x[:, 0, 0] = torch.where(left, x[:, 0, 0] - 4, 0.5 * x[:, 0, 0] + 4)
        return x


class Wall:
    """u = x^-12 + x^2 / 2 on x > 0, infinite elsewhere: the steepness of a Lennard-Jones core."""

    space = Euclidean(1, 1)

    def __init__(self) -> None:
        self.grid = torch.linspace(0.3, 8.0, 40_001, dtype=torch.float64)
        energy, _ = self.energy_and_score(self.grid[:, None, None])
        cdf = torch.cumulative_trapezoid(torch.exp(-energy), self.grid)
        self.cdf = torch.cat([torch.zeros(1, dtype=torch.float64), cdf / cdf[-1]])

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = x > 0.01
        y = torch.where(inside, x, 1.0)
        energy = torch.where(inside, y**-12 + 0.5 * y**2, torch.inf)
        score = torch.where(inside, 12 * y**-13 - y, 0.0)
        return energy[..., 0, 0], score

    def sample(self, size: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(size, generator=generator, dtype=torch.float64)
        index = torch.searchsorted(self.cdf, u).clamp(1, len(self.grid) - 1)
        low, high = self.cdf[index - 1], self.cdf[index]
        part = (u - low) / (high - low)
        x = self.grid[index - 1] + part * (self.grid[index] - self.grid[index - 1])
        return x[:, None, None]

    def uniform(self, x: Tensor) -> Tensor:
        """The distribution function: uniform on [0, 1] for exact samples."""
        where = ((x.flatten() - self.grid[0]) / (self.grid[1] - self.grid[0])).clamp(0, 40_000)
        index = where.long().clamp(max=39_999)
        return torch.lerp(self.cdf[index], self.cdf[index + 1], where - index)


def moment_z(x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Deviations of all first and second moments of independent draws, in standard errors."""
    y = x.flatten(1).double() - mean.flatten().double()
    row, column = torch.triu_indices(y.shape[1], y.shape[1])
    products = y[:, row] * y[:, column]
    statistics = torch.cat([y, products - covariance.double()[row, column]], 1)
    return statistics.mean(0) / (statistics.std(0) / math.sqrt(len(statistics)))


def share_z(indicator: Tensor, share: float) -> float:
    """Deviation of a frequency over independent draws from its expectation, in standard errors."""
    error = math.sqrt(share * (1 - share) / indicator.numel())
    return (float(indicator.double().mean()) - share) / error
