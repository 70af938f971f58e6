"""Whether a population has come to rest, and what happens where it has not."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from molsampler.mcmc.population import Equilibration, Population, PopulationConfig, State
from molsampler.mcmc.settling import drift, unsettled
from molsampler.space import Euclidean


def normal(n: int, seed: int) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_energies_at_rest_drift_by_their_error() -> None:
    pulls = [drift(normal(2000, 2 * k), normal(2000, 2 * k + 1)) for k in range(50)]
    assert not any(unsettled(found) for found in pulls)
    scatter = torch.tensor([found.value / found.se for found in pulls]).std()
    assert 0.7 < float(scatter) < 1.4
    assert pulls[0].se == pytest.approx(math.sqrt(2 / 2000), rel=0.1)


def test_a_fall_is_seen_in_every_group_by_its_own_spread() -> None:
    before, after = normal(3000, 0), normal(3000, 1) - 0.3
    found = drift(before, after)
    assert unsettled(found)
    assert found.value == pytest.approx(-0.3, abs=0.1)
    # Rows of three temperatures whose energies are of other sizes.
    scale = torch.tensor([1.0, 100.0, 1e4]).double().repeat(1000)
    spread = drift(before * scale, after * scale, groups=3)
    assert spread.value == pytest.approx(found.value, abs=0.02)
    assert unsettled(spread)
    after[3] = math.inf
    assert drift(before, after).value == pytest.approx(-0.3, abs=0.1)
    assert not unsettled(drift(torch.full((9,), math.inf), torch.full((9,), math.inf)))


class Valley:
    """Gaussian: half of the coordinates are a hundredth as wide, so that steps are short."""

    space = Euclidean(8, 2)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        precision = x.new_tensor([1.0, 1e4])
        return 0.5 * (precision * x.square()).sum((1, 2)), -precision * x


def chains(equilibration: int, *, start: float = 0.02, settle: int = 16) -> PopulationConfig:
    """From a start as narrow as the narrow half, the wide one fills by and by."""
    return PopulationConfig(
        size=2000, start_scale=start, anneal_moves=1, equilibration=equilibration, settle=settle
    )


def made(config: PopulationConfig, *, hurry: bool = False) -> State:
    making = Equilibration(config, Valley(), hurry=hurry)
    random = torch.Generator().manual_seed(0)
    state = making.init(generator=random, like=torch.empty(0))
    while not making.finished(state):
        state = making.step(state, generator=random)
    return state


def test_a_population_that_drifts_goes_on_and_ends_at_rest(caplog) -> None:
    with caplog.at_level(logging.INFO, "molsampler"):
        state = made(chains(40, settle=64))
    assert state.steps == state.goal > 40
    assert any("of its spread from step 20 to 40" in text for text in caplog.messages)
    # 16 coordinates of half a kT each; an error of sqrt(8 / 2000).
    assert abs(float(state.chains.energy.mean()) - 8) < 0.4
    # Negative control: what it was when it was to stop.
    early = made(chains(40, settle=1))
    assert (early.steps, early.goal) == (40, 40)
    assert float(early.chains.energy.mean()) < 5


def test_one_that_is_at_rest_takes_no_longer() -> None:
    assert made(chains(100, start=3.0)).goal == 100


def test_where_there_is_no_time_it_says_so(caplog) -> None:
    with caplog.at_level(logging.INFO, "molsampler"):
        assert made(chains(40), hurry=True).goal == 40
    assert any("has not come to rest" in text for text in caplog.messages)


def test_a_population_that_goes_on_is_taken_up_bit_for_bit() -> None:
    ends = []
    for again in (False, True):
        making = Equilibration(chains(60, settle=2), Valley())
        random = torch.Generator().manual_seed(0)
        state = making.init(generator=random, like=torch.empty(0))
        while not making.finished(state):
            state = making.step(state, generator=random)
            if again:
                state = State.unflatten(state.flatten())
        ends.append(state)
    assert ends[0].goal == ends[1].goal == 120
    assert torch.equal(ends[0].chains.position, ends[1].chains.position)


def test_what_still_drifts_is_kept_with_the_population() -> None:
    making = Equilibration(chains(40, settle=1), Valley())
    found = making.population(made(chains(40, settle=1)))
    assert found.drift is not None
    assert found.drift > 0.1
    numbers: dict[str, float | int] = {}
    tensors: dict[str, Tensor] = {}
    found.put(tensors, numbers)
    assert Population.taken(tensors, numbers).drift == found.drift
    calm = found._replace(drift=None)
    assert Population.joined([calm, found._replace(drift=-0.3), found]).drift == -0.3
    assert making.population(made(chains(100, start=3.0))).drift is None
