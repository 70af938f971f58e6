"""Energies of chains and samples that have fallen, and energies that are merely low or high."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from molsampler.errors import UnboundedEnergyError
from molsampler.mcmc.divergence import FallWatch, require_bounded, require_finite


def energies(median: float, spread: float = 3.0, *, size: int = 1000) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return median + spread * torch.randn(size, generator=rng, dtype=torch.float64)


def test_a_median_that_falls_is_refused_and_one_that_settles_is_not() -> None:
    watch = FallWatch(dof=10)
    for median in (1e12, 1e3, -50.0, -2e5):
        watch(energies(median))
    with pytest.raises(UnboundedEnergyError, match=r"has fallen from 0 to -2e\+07 kT.*no norm"):
        watch(energies(-2e7))


def test_what_begins_low_may_stay_there() -> None:
    watch = FallWatch(dof=10, depth=1e3)
    watch(energies(-1e9))
    watch(energies(-1e9 - 5e3))
    with pytest.raises(UnboundedEnergyError):
        watch(energies(-1e9 - 2e4))


def test_one_fallen_chain_is_enough() -> None:
    u = energies(5.0)
    require_bounded(u, 10, "samples")
    u[17] = -1e15
    with pytest.raises(UnboundedEnergyError, match=r"1 of 1,000 samples have fallen.* -1e"):
        require_bounded(u, 10, "samples")
    watch = FallWatch(dof=10)
    watch(energies(5.0))
    with pytest.raises(UnboundedEnergyError):
        watch(u)


@pytest.mark.parametrize(
    "u",
    [
        energies(-1e9),
        energies(1e30, 1e29),
        torch.cat([energies(-44.0), torch.full((2000,), torch.inf, dtype=torch.float64)]),
        energies(0.0, 1e5),
    ],
)
def test_low_high_and_broken_energies_are_no_fall(u: Tensor) -> None:
    require_bounded(u, 39, "samples")


def test_a_minority_without_energy_is_left_to_the_criteria() -> None:
    u = energies(0.0)
    u[:500] = torch.inf
    require_finite(u, "chains")
    u[500] = torch.inf
    with pytest.raises(UnboundedEnergyError, match="501 of 1,000 chains have no finite energy"):
        require_finite(u, "chains")
