"""Trajectories as the moves of a population."""

from __future__ import annotations

import math

import pytest
import torch
from mcmc.densities import Gaussian

from molsampler.errors import InputError
from molsampler.mcmc import adapt, hmc, mala, moves
from molsampler.mcmc.population import (
    Equilibration,
    PopulationConfig,
    equilibrate,
    refresh,
)
from molsampler.objectives.preparation import ChainsConfig
from molsampler.space import Euclidean, MeanFree
from molsampler.systems import get_system
from molsampler.target import CountingTarget


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def long_and_narrow() -> Gaussian:
    """Standard deviations one and ten."""
    return Gaussian(torch.zeros(1, 2), torch.diag(torch.tensor([1.0, 100.0])))


def memory(leapfrog_steps: int, evaluations: int) -> float:
    """Correlation of the long coordinate with where it was so many energy evaluations before."""
    target = long_and_narrow()
    start = torch.tensor([1.0, 10.0], dtype=torch.float64) * torch.randn(
        4000, 1, 2, generator=random(), dtype=torch.float64
    )
    state = mala.init(start, target)
    rng = random(1)
    for _ in range(evaluations // leapfrog_steps):
        state, _info = moves.step(
            state, target, step_size=0.5, generator=rng, leapfrog_steps=leapfrog_steps
        )
    x, y = start[:, 0, 1], state.position[:, 0, 1]
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])


def test_trajectories_forget_sooner_in_the_same_evaluations():
    assert memory(1, 160) > 0.35
    assert memory(8, 160) < 0.15


def test_one_leapfrog_step_is_mala_itself():
    target = long_and_narrow()
    state = mala.init(torch.randn(50, 1, 2, generator=random(), dtype=torch.float64), target)
    by_move, _ = moves.step(state, target, step_size=0.3, generator=random(1))
    by_mala, _ = mala.step(state, target, step_size=0.3, generator=random(1))
    assert torch.equal(by_move.position, by_mala.position)


def test_lengths_of_coordinates_are_those_of_a_stretched_density():
    """A trajectory in lengths is one of coordinates measured in them."""
    wide, unit = long_and_narrow(), Gaussian(torch.zeros(1, 2), torch.eye(2))
    scale = torch.tensor([[1.0, 10.0]], dtype=torch.float64)
    y = torch.randn(200, 1, 2, generator=random(), dtype=torch.float64)
    scaled, _ = hmc.step(
        hmc.init(scale * y, wide), wide, step_size=0.4, generator=random(1), scale=scale
    )
    plain, _ = hmc.step(hmc.init(y, unit), unit, step_size=0.4, generator=random(1))
    torch.testing.assert_close(scaled.position, scale * plain.position)


@pytest.mark.parametrize("name", ["dw4", "lj13"])
def test_one_step_size_serves_both_moves(name):
    """At the step that MALA is adapted to, trajectories are accepted as they should be, within a tenth."""
    system = get_system(name)
    x = 0.8 * system.space.randn(256, generator=random(), like=torch.zeros(1))
    state, adaptation = adapt.tuned(
        mala.init(x, system), system, steps=600, step_size=1e-3, generator=random(1)
    )
    accepted = []
    for k in range(30):
        state, info = moves.step(
            state,
            system,
            step_size=float(adaptation.step_size),
            generator=random(2 + k),
            leapfrog_steps=8,
        )
        accepted.append(float(info.acceptance.mean()))
    assert sum(accepted) / len(accepted) == pytest.approx(moves.ACCEPTANCE, abs=0.1)


def springs(x: torch.Tensor) -> torch.Tensor:
    return x.square().sum(dim=(-2, -1))


class Springs:
    space = MeanFree(3, 2)

    def energy_and_score(self, x):
        return 0.5 * springs(x), -x


@pytest.mark.parametrize("leapfrog_steps", [1, 6])
def test_a_population_has_its_law_and_costs_what_was_said(leapfrog_steps):
    """Four degrees of freedom: the mean of |x|^2 is four, its variance eight."""
    target = CountingTarget(Springs())
    config = PopulationConfig(
        size=2000, equilibration=40, anneal_moves=2, leapfrog_steps=leapfrog_steps, settle=1
    )
    population = equilibrate(
        config, target, generator=random(), like=torch.empty(0), report=lambda *_: None
    )
    assert float(springs(population.state.position).mean()) == pytest.approx(
        4.0, abs=5 * math.sqrt(8 / 2000)
    )
    made = Equilibration(config, target)
    before = target.evaluations
    state = made.init(generator=random(), like=torch.empty(0))
    while state.chains is None:
        state = made.step(state, generator=random())
    spent = target.evaluations - before
    expected = made.expected_evaluations(state, spent)
    while not made.finished(state):
        state = made.step(state, generator=random())
    assert expected == target.evaluations - before

    plan = ChainsConfig(size=2000, refresh=300, refresh_steps=2, leapfrog_steps=leapfrog_steps)
    before = target.evaluations
    moved = refresh(
        population,
        target,
        start=0,
        count=plan.refresh,
        steps=plan.refresh_steps,
        generator=random(),
        leapfrog_steps=plan.leapfrog_steps,
    )
    assert target.evaluations - before == plan.evaluations_per_iteration(exchanges=False)
    stayed = (moved.state.position == population.state.position).all(dim=(1, 2))
    assert stayed[300:].all()
    assert stayed[:300].double().mean() < 0.5


def test_spaces_that_turn_refuse_trajectories():
    class Torsions:
        space = Euclidean(3, 1, circular=(0,))

    with pytest.raises(InputError, match="leapfrog_steps must be 1 in internal coordinates, got 8"):
        Equilibration(PopulationConfig(leapfrog_steps=8), Torsions())


def test_identical_free_particles_take_trajectories():
    assert moves.usual(MeanFree(4, 2)) == moves.LEAPFROG_STEPS
    assert moves.usual(Euclidean(4, 2)) == 1
