"""Populations by replica exchange: what the ladder is, what the population is, and that it resumes."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from mcmc.densities import Bimodal, share_z, standard

from molsampler.errors import FileFormatError, InputError, UnboundedEnergyError
from molsampler.mcmc import population, replica_exchange
from molsampler.mcmc.population import ExchangeConfig, PopulationConfig
from molsampler.mcmc.replica_exchange import ReplicaExchange, overlap, rungs
from molsampler.target import CountingTarget
from molsampler.train import load_config


def made(config, target, seed=0, *, kept=False):
    maker = ReplicaExchange(config, target)
    rng = torch.Generator().manual_seed(seed)
    state = maker.init(generator=rng, like=torch.empty(0, dtype=torch.float64))
    phases = []
    while not maker.finished(state):
        if kept:
            state = replica_exchange.State.unflatten(state.flatten())
        at = maker.progress(state)
        if at.phase not in phases:
            phases.append(at.phase)
        state = maker.step(state, generator=rng)
    return maker, state, phases


def small(**keys):
    exchange = {"hottest": 12.0, "chains": 256, **keys.pop("exchange", {})}
    return PopulationConfig(**{"size": 1024, "equilibration": 300, **keys}, exchange=exchange)


def test_it_finds_mode_weights_from_a_start_in_one_mode():
    """All chains begin in the lesser mode, where annealing alone leaves many of them."""

    class OneSided(population.Gaussian):
        def sample(self, n, *, generator, like):
            return super().sample(n, generator=generator, like=like) + torch.tensor([4.0, 0.0])

    target = CountingTarget(Bimodal())
    maker = ReplicaExchange(small(start_scale=0.5), target)
    maker.base = OneSided(target.space, 0.5)
    rng = torch.Generator().manual_seed(1)
    state = maker.init(generator=rng, like=torch.empty(0, dtype=torch.float64))
    while not maker.finished(state):
        state = maker.step(state, generator=rng)
    found = maker.population(state)
    assert found.state.position.shape == (1024, 1, 2)
    # The four states of a chain are correlated, so errors are those of the 256 chains.
    assert abs(share_z(found.state.position[-256:, 0, 0] < 0, 0.8)) < 5
    assert state.trips.finished > 256
    # Negative control: annealing and as many moves at the temperature of the target.
    plain = population.Equilibration(
        PopulationConfig(size=1024, start_scale=0.5, equilibration=300), target
    )
    plain.base = maker.base
    chains = plain.init(generator=rng, like=torch.empty(0, dtype=torch.float64))
    while not plain.finished(chains):
        chains = plain.step(chains, generator=rng)
    assert abs(share_z(chains.chains.position[:, 0, 0] < 0, 0.8)) > 5


@pytest.mark.parametrize("leapfrog_steps", [1, 4])
def test_a_sweep_costs_the_moves_of_the_population(leapfrog_steps):
    target = CountingTarget(standard(5, 3))
    maker = ReplicaExchange(small(leapfrog_steps=leapfrog_steps), target)
    rng = torch.Generator().manual_seed(1)
    state = maker.init(generator=rng, like=torch.empty(0, dtype=torch.float64))
    while state.trips is None:
        state = maker.step(state, generator=rng)
    before = target.evaluations
    expected = maker.expected_evaluations(state, before)
    replicas = state.ladder.energy.numel()
    state = maker.step(state, generator=rng)
    assert target.evaluations - before == leapfrog_steps * replicas
    assert expected == before + leapfrog_steps * replicas * maker.sweeps


@pytest.mark.parametrize("leapfrog_steps", [1, 3])
def test_every_rung_is_at_equilibrium_at_its_temperature(leapfrog_steps):
    target = standard(5, 3)
    config = small(exchange={"hottest": 9.0, "acceptance": 0.25}, leapfrog_steps=leapfrog_steps)
    maker, state, phases = made(config, target)
    assert phases == ["annealing", "cooling", "exchange"]
    ladder = state.ladder
    assert float(ladder.beta[0]) == 1.0
    assert float(ladder.beta[-1]) == pytest.approx(1 / 9)
    assert (ladder.beta.diff() < 0).all()
    # The mean energy of a Gaussian of 15 dimensions at beta is 7.5 / beta, the spread a square root of it.
    mean = (ladder.energy * ladder.beta[:, None]).mean(1)
    assert ((mean - 7.5).abs() < 5 * (7.5 / 256) ** 0.5).all()
    rates = maker.exchange_rates(state)
    assert (rates > 0.2).all()
    assert (rates[:-1] < 0.5).all()
    population = maker.population(state)
    assert len(population.state.energy) == 1024
    energy, score = target.energy_and_score(population.state.position)
    torch.testing.assert_close(energy, population.state.energy)
    torch.testing.assert_close(score, population.state.score)


def test_overlap_is_that_of_gaussian_energies():
    """For energies of spread s about beta s^2 the accepted share is erfc(d s / 2) at a gap d of beta."""
    rng = torch.Generator().manual_seed(2)
    spread, gap = 3.0, 0.4
    cold = spread * torch.randn(40_000, generator=rng, dtype=torch.float64)
    hot = spread * torch.randn(40_000, generator=rng, dtype=torch.float64) + gap * spread**2
    expected = float(torch.erfc(torch.tensor(gap * spread / 2)))
    assert overlap(cold, hot, gap) == pytest.approx(expected, abs=0.01)
    assert overlap(cold, torch.full_like(hot, torch.inf), gap) == 0.0


def test_rungs_are_the_sparsest_that_exchange_often_enough():
    rng = torch.Generator().manual_seed(3)
    beta = torch.linspace(1, 0, 21, dtype=torch.float64)
    energy = 3 * torch.randn(21, 4000, generator=rng, dtype=torch.float64) + (1 - beta[:, None]) * 9
    chosen = rungs(energy, beta, acceptance=0.3)
    assert chosen[0] == 0
    assert chosen[-1] == 20
    gaps = [b - a for a, b in pairwise(chosen)]
    # erfc(x) = .3 at x = .733: a gap in beta of .49, between nine steps of a twentieth and ten.
    assert set(gaps[:-1]) <= {9}
    assert rungs(energy, beta, acceptance=0.999) == list(range(21))


def test_a_state_survives_flattening_at_every_move():
    config = small(size=64, equilibration=6, anneal_moves=2, exchange={"chains": 32})
    results = []
    for kept in (False, True):
        maker, state, _ = made(config, Bimodal(), seed=4, kept=kept)
        results.append(maker.population(state))
    assert results[0].step_size == results[1].step_size
    for a, b in zip(results[0].state, results[1].state, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(FileFormatError, match="replica exchange"):
        replica_exchange.State.unflatten({"steps": 1})


def test_evaluations_are_estimated_and_counted():
    target = CountingTarget(standard(5, 3))
    config = small()
    maker, state, _ = made(config, target)
    assert maker.expected_evaluations(state, target.evaluations) == target.evaluations
    replicas = len(state.ladder.beta)
    assert target.evaluations > 300 * 256 * replicas
    # However few the sweeps, the population has its size.
    maker, state, _ = made(small(size=1000, equilibration=1, anneal_moves=1), target)
    assert len(maker.population(state).state.energy) == 1000


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="hottest"):
        load_config("fast", "dw4", overrides=["target_score.exchange={hottest: 1}"])
    chosen = load_config(
        "fast", "dw4", overrides=["target_score.exchange={hottest: 3, chains: 64}"]
    )
    assert chosen.objective.target_score.exchange == ExchangeConfig(hottest=3, chains=64)
    assert load_config("fast", "dw4").objective.target_score.exchange is None

    class Nowhere:
        space = standard(1, 2).space

        def energy_and_score(self, x):
            return x.new_full(x.shape[:-2], torch.inf), torch.zeros_like(x)

    with pytest.raises(UnboundedEnergyError, match="start_scale"):
        made(small(), Nowhere())
