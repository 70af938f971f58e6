"""Populations over temperatures: the law of every row, and what exchanges do to it."""

from __future__ import annotations

import torch
from torch import Tensor

from molsampler.mcmc import mala, smc
from molsampler.mcmc.ladder import Ladder, at_temperature, exchange
from molsampler.mcmc.population import Equilibration, PopulationConfig, refresh_rows
from molsampler.mcmc.tempering import Tempered
from molsampler.space import Euclidean
from molsampler.target import Target
from molsampler.temperatures import TemperatureRange

RANGE = TemperatureRange(low=0.4, high=2.0)


class Wells:
    """Two wells along x of depths that differ by about one, a spring along y."""

    def __init__(self) -> None:
        self.space = Euclidean(1, 2)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x[..., 0, 0], x[..., 0, 1]
        energy = (a * a - 2).square() + 0.4 * a + 0.5 * b * b
        return energy, torch.stack([-4 * a * (a * a - 2) - 0.4, -b], -1)[..., None, :]


def at(temperature: Tensor) -> Target:
    return Tempered(Wells(), 1 / temperature)


def exact(temperature: float) -> tuple[float, float]:
    """Mean of U and share of the right well, by quadrature."""
    a = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
    energy = (a * a - 2).square() + 0.4 * a
    weight = torch.softmax(-energy / temperature, 0)
    return float(weight @ energy) + temperature / 2, float(weight[a > 0].sum())


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_row_of_a_population_has_the_law_of_its_temperature() -> None:
    config = PopulationConfig(
        size=6000, start_scale=1.5, anneal_moves=3, equilibration=150, nodes=5
    )
    ladder = Ladder(RANGE, config.nodes, at)
    made = Equilibration(config, Wells(), ladder=ladder)
    generator = random()
    state = made.init(generator=generator, like=torch.empty(0))
    while not made.finished(state):
        state = made.step(state, generator=generator)
    population = made.population(state)
    for iteration in range(5):
        population, rate = refresh_rows(
            population,
            ladder,
            count_evaluations=lambda target: target,
            iteration=iteration,
            count=6000,
            steps=2,
            generator=generator,
        )
        assert 0.2 < rate < 1.0
    x, energy = population.state.position, population.state.energy
    assert population.temperature is not None
    torch.testing.assert_close(energy, at(population.temperature).energy_and_score(x)[0])
    for node, temperature in enumerate(RANGE.spread(5)):
        mean, right = exact(temperature)
        u = temperature * energy[node::5].double()
        # Chains of one ladder are related by exchanges: twice the error of independent ones, times six.
        assert abs(float(u.mean()) - mean) < 12 * float(u.std()) / len(u) ** 0.5
        share = float((x[node::5, 0, 0] > 0).double().mean())
        assert abs(share - right) < 12 * (right * (1 - right) / len(u)) ** 0.5
        # Negative control: the law of the temperature beside.
        other = exact(RANGE.spread(5)[node - 1])[0]
        assert abs(float(u.mean()) - other) > 12 * float(u.std()) / len(u) ** 0.5


def test_a_population_says_what_holds_between_its_temperatures() -> None:
    nodes, n = 5, 20_000
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    parts = []
    for node, temperature in enumerate(RANGE.spread(nodes)):
        weight = torch.softmax(-((grid**2 - 2).square() + 0.4 * grid) / temperature, 0)
        a = grid[torch.multinomial(weight, n, replacement=True, generator=random(node))]
        b = temperature**0.5 * torch.randn(n, generator=random(10 + node), dtype=torch.float64)
        parts.append(torch.stack([a, b], -1)[:, None])
    x = torch.stack(parts, 1).reshape(nodes * n, 1, 2)
    rows = torch.tensor(RANGE.spread(nodes), dtype=torch.float64).repeat(n)
    state = mala.init(x, at(rows))
    for temperature in (0.4, 0.5, 1.1, 2.0):
        target = at(torch.tensor(temperature))
        found = at_temperature(state, rows, target, temperature, nodes=nodes)
        u = temperature * found.energy
        assert len(u) > n / 2
        # Resampled rows repeat: errors of half the count, times six.
        error = float(u.std()) / (0.5 * len(u)) ** 0.5
        assert abs(float(u.mean()) - exact(temperature)[0]) < 6 * error
    # Negative control: the rows of the nearest temperature as they are.
    u = 0.5 * (rows[0::nodes] / 0.5) * state.energy[0::nodes]
    assert abs(float(u.mean()) - exact(0.5)[0]) > 6 * float(u.std()) / n**0.5


def test_exchanges_are_reversible() -> None:
    """Of pairs at equilibrium as many go from any state to any other as come back."""
    n = 200_000
    temperature = torch.tensor([0.5, 1.0], dtype=torch.float64)
    levels = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)

    class Levels:
        space = Euclidean(1, 1)

        def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return levels[x[..., 0, 0].long()], torch.zeros_like(x)

    drawn = [
        torch.multinomial(
            torch.softmax(-levels / t, 0), n, replacement=True, generator=random(int(10 * t))
        )
        for t in temperature
    ]
    x = torch.stack(drawn, 1).reshape(2 * n, 1, 1).double()
    target = Tempered(Levels(), 1 / temperature.repeat(n))
    after, rate = exchange(mala.init(x, target), target, nodes=2, odd=False, generator=random(99))
    before, behind = (each.reshape(n, 2).long() for each in (x, after.position))
    assert 0.5 < rate < 1.0
    flow = torch.zeros(9, 9, dtype=torch.float64)
    pairs = [3 * each[:, 0] + each[:, 1] for each in (before, behind)]
    flow.index_put_((pairs[0], pairs[1]), torch.ones(n, dtype=torch.float64), accumulate=True)
    net = (flow - flow.T).abs()
    assert bool((net <= 6 * (flow + flow.T).sqrt() + 1e-9).all())
    torch.testing.assert_close(after.energy, target.energy_and_score(after.position)[0])
    # Negative control: taking every exchange is not reversible.
    swapped = torch.zeros_like(flow)
    other = 3 * before[:, 1] + before[:, 0]
    swapped.index_put_((pairs[0], other), torch.ones(n, dtype=torch.float64), accumulate=True)
    assert bool(((swapped - swapped.T).abs() > 6 * (swapped + swapped.T).sqrt() + 1).any())


def test_groups_are_resampled_among_themselves() -> None:
    log_weight = torch.zeros(12)
    log_weight[0], log_weight[1] = 50.0, -50.0
    index = smc.grouped_resample(log_weight, 3, generator=random())
    assert index[0::3].tolist() == [0, 0, 0, 0]
    assert set(index[1::3].tolist()) <= {4, 7, 10}
    assert sorted(index[2::3].tolist()) == [2, 5, 8, 11]
