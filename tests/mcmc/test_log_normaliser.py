"""log Z by annealing from a Gaussian, on targets whose normaliser is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from molsampler.estimate import log_mean
from molsampler.mcmc.log_normaliser import PILOT, annealing_weights, evaluations
from molsampler.mcmc.population import Gaussian
from molsampler.space import Euclidean, MeanFree
from molsampler.target import CountingTarget, Target


class Stretched:
    """A Gaussian of widths 0.01 and 3 about (5, -2)."""

    space = Euclidean(2, 1)
    log_z = math.log(2 * math.pi * 0.01 * 3)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        width, centre = x.new_tensor([[0.01], [3.0]]), x.new_tensor([[5.0], [-2.0]])
        gap = (x - centre) / width
        return 0.5 * gap.square().sum(dim=(-2, -1)), -gap / width

    def sample(self, n: int, *, generator: torch.Generator, like: Tensor) -> Tensor:
        noise = torch.randn(n, 2, 1, generator=generator, dtype=like.dtype)
        return noise * like.new_tensor([[0.01], [3.0]]) + like.new_tensor([[5.0], [-2.0]])


class Turning:
    """An angle of density exp(2 cos 3 t), beside a Gaussian of width one half."""

    space = Euclidean(2, 1, circular=(0,))
    log_z = math.log(2 * math.pi * float(torch.special.i0(torch.tensor(2.0).double()))) + math.log(
        0.5 * math.sqrt(2 * math.pi)
    )

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        angle, line = x[:, 0, 0], x[:, 1, 0]
        energy = -2 * (3 * angle).cos() + 2 * line.square()
        return energy, torch.stack([-6 * (3 * angle).sin(), -4 * line], -1)[..., None]

    def sample(self, n: int, *, generator: torch.Generator, like: Tensor) -> Tensor:
        # Two modes of three: the start of the annealing owes them nothing.
        x = 0.5 * torch.randn(n, 2, 1, generator=generator, dtype=like.dtype)
        return x.abs()


CLUSTER = Gaussian(MeanFree(4, 2), 0.3)
TARGETS = {
    "two scales": (Stretched(), Stretched.log_z),
    "an angle": (Turning(), Turning.log_z),
    "mean-free": (CLUSTER, 3 * math.log(2 * math.pi * 0.3**2)),
}


@pytest.mark.parametrize("name", list(TARGETS))
def test_the_mean_weight_is_the_normaliser(name) -> None:
    target, truth = TARGETS[name]
    rng = torch.Generator().manual_seed(3)
    x = target.sample(500, generator=rng, like=torch.empty(0, dtype=torch.float64))
    weights = annealing_weights(target, x, n=1000, levels=20, generator=rng)
    found = log_mean(weights)
    assert abs(found.value - truth) < max(5 * found.se, 0.01)
    assert found.se < 0.1
    # Negative control: a normaliser twice as large is not within the errors.
    assert abs(found.value - math.log(2) - truth) > 5 * found.se


def test_energies_are_as_many_as_stated() -> None:
    target: Target = Gaussian(Euclidean(1, 2), 1.0)
    counted = CountingTarget(target)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(100, 1, 2, generator=rng)
    annealing_weights(counted, x, n=64, levels=7, generator=rng)
    assert (
        counted.evaluations == evaluations(64, 7) == 64 * 7 + PILOT[0] * (1 + PILOT[1] * PILOT[2])
    )
