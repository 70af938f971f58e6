"""Exchanges between temperatures: detailed balance, rows, round trips."""

from __future__ import annotations

import pytest
import torch
from mcmc.densities import Bimodal, standard
from torch import Tensor

from molsampler.mcmc import adapt, mala, tempering


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at_equilibrium(beta: Tensor, chains: int, seed: int) -> tempering.State:
    """Exact draws of a Gaussian at every temperature."""
    x = torch.stack(
        [
            standard(1, 2, float(b) ** -0.5).sample(chains, random(seed + k))
            for k, b in enumerate(beta)
        ]
    )
    return tempering.init(x, standard(1, 2), beta)


def flux_z(before: tempering.State, after: tempering.State) -> float:
    """How many standard errors the flow between two sets of states differs from the flow back.

    Under detailed balance E[f(X) g(Y) - g(X) f(Y)] = 0 for any f and g of the whole ladder.
    """

    def f(state: tempering.State) -> Tensor:
        return state.energy[0]

    def g(state: tempering.State) -> Tensor:
        return (state.energy[1] > 1.5).to(state.energy)

    flow = f(before) * g(after) - g(before) * f(after)
    return float(flow.mean() / flow.std() * len(flow) ** 0.5)


def test_exchanges_satisfy_detailed_balance() -> None:
    beta = torch.tensor([1.0, 0.4, 0.2], dtype=torch.float64)
    state = at_equilibrium(beta, 100_000, seed=1)
    for sweep in (0, 1):
        now = state._replace(sweep=sweep)
        after, exchanged, origin = tempering.exchange(now, generator=random(9))
        assert 0.05 < float(exchanged[sweep]) < 0.95
        assert exchanged[1 - sweep].isnan()
        assert abs(flux_z(now, after)) < 5
        # Configurations keep their energies, and are where they say they came from.
        chain = torch.arange(origin.shape[1])[None]
        assert torch.equal(after.position, state.position[origin, chain])
        torch.testing.assert_close(after.energy, standard(1, 2).energy_and_score(after.position)[0])


@pytest.mark.parametrize("wrong", [0.5, 2.0, -1.0])
def test_another_acceptance_does_not(wrong: float) -> None:
    """Negative control: the exponent of the acceptance is wrong by a factor."""
    beta = torch.tensor([1.0, 0.4], dtype=torch.float64)
    state = at_equilibrium(beta, 100_000, seed=1)
    after, _, _ = tempering.exchange(state._replace(beta=wrong * beta), generator=random(9))
    assert abs(flux_z(state, after)) > 8


def test_rows_are_of_a_temperature_each() -> None:
    beta = torch.tensor([1.0, 0.4, 0.2], dtype=torch.float64)
    state = at_equilibrium(beta, 40_000, seed=3)
    x, own = tempering.rows(state)
    assert x.position.shape == (120_000, 1, 2)
    assert own.shape == (120_000,)
    # MALA on rows, with a step size for each, leaves every temperature as it is.
    target = tempering.Tempered(standard(1, 2), own)
    chains, g = mala.init(x.position, target), random(4)
    for _ in range(5):
        chains, info = mala.step(chains, target, step_size=0.4 / own, generator=g)
    assert 0.2 < float(info.acceptance.mean()) < 0.99
    for b in beta:
        u = chains.energy[own == b]
        # The reduced energy of a Gaussian in the plane is exponential of mean 1 at every temperature.
        assert abs(float(u.mean()) - 1) < 5 * len(u) ** -0.5
    assert abs(float((chains.energy / own)[own == beta[1]].mean()) - 1) > 50 * 40_000**-0.5


def test_step_sizes_follow_the_temperature_of_their_rung() -> None:
    beta = torch.tensor([1.0, 0.25, 0.0625], dtype=torch.float64)
    state = at_equilibrium(beta, 500, seed=5)
    adaptation = adapt.init(torch.full((3,), 0.1, dtype=torch.float64))
    g = random(6)
    for _ in range(300):
        state, info = tempering.step(
            state, standard(1, 2), step_size=adaptation.step_size[:, None], generator=g
        )
        adaptation = adapt.update(adaptation, info.move.acceptance.T)
    # On a Gaussian of variance 1 / beta the step that gives one acceptance is in proportion to it.
    found = adaptation.step_size.double() * beta
    torch.testing.assert_close(found, found[0].expand(3), rtol=0.15, atol=0)


def test_round_trips_are_counted_as_they_are_made() -> None:
    target = Bimodal()
    beta = tempering.geometric_ladder(4, hottest=12).double()
    state = tempering.init(torch.zeros(4, 6, 1, 2, dtype=torch.float64), target, beta)
    trips = tempering.RoundTrips.start(state)
    walker = torch.arange(24).reshape(4, 6)
    visited = {int(w): ["cold"] for w in walker[0]}
    expected = 0
    g = random(7)
    for _ in range(200):
        state, info = tempering.step(state, target, step_size=(0.2 / beta)[:, None], generator=g)
        trips = trips.after(info.origin)
        walker = walker.gather(0, info.origin)
        for w in walker[0].tolist():
            if visited.get(w, [""])[-1] == "hot":
                expected += 1
            visited.setdefault(w, []).append("cold")
        for w in walker[-1].tolist():
            if visited.get(w, [""])[-1] == "cold":
                visited[w].append("hot")
    assert expected > 20
    assert trips.finished == expected
    assert trips.sweeps == 200
    assert trips.rate == expected / 200 / 6
