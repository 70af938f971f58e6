"""Lengths of coordinates: what they are, what they keep, and what they are worth."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from molsampler.mcmc import adapt, mala
from molsampler.mcmc.population import (
    Equilibration,
    ExchangeConfig,
    Population,
    PopulationConfig,
    State,
    equilibrate,
    refresh,
)
from molsampler.mcmc.replica_exchange import ReplicaExchange
from molsampler.mcmc.scale import coordinate_scale
from molsampler.space import Euclidean, MeanFree
from molsampler.target import System

WIDTHS = torch.tensor([0.02, 0.3, 1.0, 1.0])


class Uneven(System):
    """Gaussian of unlike widths."""

    name, concurrent = "uneven", True

    def __init__(self, widths: Tensor = WIDTHS) -> None:
        self.space = Euclidean(len(widths), 1)
        self.widths = widths

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        precision = (1 / self.widths.to(x).square())[:, None]
        return 0.5 * (precision * x.square()).sum((1, 2)), -precision * x


def made(config: PopulationConfig, target: System, seed: int = 0) -> Population:
    return equilibrate(
        config,
        target,
        generator=torch.Generator().manual_seed(seed),
        like=torch.empty(0),
        report=lambda phase, share: None,
    )


def draws(n: int, target: Uneven) -> Tensor:
    x: Tensor = torch.randn(n, 4, 1, generator=torch.Generator().manual_seed(1))
    return x * target.widths[:, None]


def test_lengths_of_a_gaussian_are_its_widths() -> None:
    target = Uneven()
    x = draws(20_000, target)
    scale = coordinate_scale(x, target.energy_and_score(x)[1], target.space)
    assert scale is not None
    ratio = scale[:, 0] / WIDTHS
    assert float(ratio.max() / ratio.min()) < 1.05
    assert float(scale.log().mean()) == pytest.approx(0.0, abs=1e-6)


def test_lengths_follow_the_minima_of_a_coordinate_not_their_distance() -> None:
    # Two minima of width 0.05 at -1 and 1: as wide as the other coordinate, twenty times as stiff.
    g = torch.Generator().manual_seed(0)
    sign = torch.randint(2, (20_000,), generator=g) * 2.0 - 1
    narrow = sign + 0.05 * torch.randn(20_000, generator=g)
    wide = torch.randn(20_000, generator=g)
    x = torch.stack([narrow, wide], 1)[..., None]
    score = torch.stack([-(narrow - sign) / 0.05**2, -wide], 1)[..., None]
    scale = coordinate_scale(x, score, Euclidean(2, 1))
    assert scale is not None
    assert float(scale[1] / scale[0]) == pytest.approx(20, rel=0.1)


def test_collisions_and_flat_coordinates_do_not_decide() -> None:
    target = Uneven()
    x = draws(5000, target)
    score = target.energy_and_score(x)[1]
    clean = coordinate_scale(x, score, target.space)
    score[:20] = 1e12
    score[20] = torch.nan
    dirty = coordinate_scale(x, score, target.space)
    assert clean is not None
    assert dirty is not None
    torch.testing.assert_close(dirty, clean, rtol=0.05, atol=0)
    # A coordinate without a force is as long as it is wide.
    score = target.energy_and_score(x)[1]
    score[:, 3] = 0
    flat = coordinate_scale(x, score, target.space)
    assert flat is not None
    assert float(flat[3] / flat[2]) == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("space", [Euclidean(4, 1), MeanFree(4, 2), Euclidean(1, 1)])
def test_alike_and_dependent_coordinates_have_none(space) -> None:
    x = space.randn(1000, generator=torch.Generator().manual_seed(0), like=torch.empty(0))
    assert coordinate_scale(x, -x, space) is None


def test_the_scaled_kernel_leaves_the_target_as_it_is() -> None:
    target = Uneven()
    scale = torch.tensor([0.05, 0.4, 2.0, 0.7])[:, None]
    state = mala.init(draws(4000, target), target)
    g = torch.Generator().manual_seed(3)
    for _ in range(40):
        state, info = mala.step(state, target, step_size=0.3, generator=g, scale=scale)
    assert 0.2 < float(info.acceptance.mean()) < 0.95
    share = state.position.square().mean(0)[:, 0] / WIDTHS.square()
    assert (share - 1).abs().max() < 5 * (2 / 4000) ** 0.5
    # Control: without the Metropolis test the same proposals widen it.
    state = mala.init(draws(4000, target), target)
    for _ in range(40):
        noise = torch.randn(state.position.shape, generator=g)
        moved = mala.drift(state.score, torch.tensor(0.3), scale) + 0.6**0.5 * scale * noise
        state = mala.init(state.position + moved, target)
    share = state.position.square().mean(0)[:, 0] / WIDTHS.square()
    assert (share - 1).abs().max() > 5 * (2 / 4000) ** 0.5


def correlation(population: Population, target: System) -> float:
    """Of the widest coordinate of chains, before and after twenty moves."""
    moved = refresh(
        population,
        target,
        start=0,
        count=len(population.state.energy),
        steps=20,
        generator=torch.Generator().manual_seed(5),
    )
    pair = torch.stack([each.state.position[:, 3, 0] for each in (population, moved)])
    return float(torch.corrcoef(pair)[0, 1])


def test_soft_coordinates_of_a_population_move_at_their_own_pace() -> None:
    target = Uneven()
    population = made(PopulationConfig(size=2000, anneal_moves=5, equilibration=60), target)
    assert population.scale is not None
    assert abs(correlation(population, target)) < 0.2
    share = population.state.position.square().mean(0)[:, 0] / WIDTHS.square()
    assert (share - 1).abs().max() < 5 * (2 / 2000) ** 0.5
    # Control: one length for all, at the step size that this asks for.
    _, adaptation = adapt.tuned(
        population.state,
        target,
        steps=60,
        step_size=1e-3,
        generator=torch.Generator().manual_seed(1),
        lengths=False,
    )
    stiff = population._replace(step_size=float(adaptation.step_size), scale=None)
    assert correlation(stiff, target) > 0.9


def test_lengths_are_kept() -> None:
    target = Uneven()
    population = made(PopulationConfig(size=500, anneal_moves=2, equilibration=20), target)
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, float | int] = {}
    population.put(tensors, numbers)
    again = Population.taken(tensors, numbers)
    assert again.scale is not None
    assert torch.equal(again.scale, population.scale)
    # And so is log Z by their annealing, here that of the Gaussian.
    assert population.log_z is not None
    assert again.log_z == population.log_z
    truth = 2 * math.log(2 * math.pi) + float(WIDTHS.log().sum())
    assert abs(population.log_z.value - truth) < 4 * population.log_z.se
    both = Population.joined([population, again])
    torch.testing.assert_close(both.scale, population.scale)


@pytest.mark.parametrize("exchange", [None, ExchangeConfig(hottest=2.0, chains=100)])
def test_a_population_in_the_making_is_taken_up_bit_for_bit(exchange) -> None:
    target = Uneven()
    config = PopulationConfig(size=200, anneal_moves=2, equilibration=24, exchange=exchange)
    kind = Equilibration if exchange is None else ReplicaExchange
    ends = []
    for stop in (False, True):
        made = kind(config, target)
        g = torch.Generator().manual_seed(2)
        state = made.init(generator=g, like=torch.empty(0))
        while not made.finished(state):
            state = made.step(state, generator=g)
            if stop:
                state = made.unflatten(dict(state.flatten()))
        ends.append(made.population(state))
    assert ends[0].scale is not None
    assert torch.equal(ends[0].scale, ends[1].scale)
    assert torch.equal(ends[0].state.position, ends[1].state.position)


def test_state_without_lengths_has_none() -> None:
    flat = State(None, mala.State(*(torch.zeros(2) for _ in range(3))), adapt.init(0.1)).flatten()
    assert "scale" not in flat
    assert State.unflatten(flat).adaptation.scale is None
