"""The objective of generators with a density: its gradients, its proposals, and what they mend."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from molsampler.errors import InputError
from molsampler.estimate import log_mean
from molsampler.mcmc import mala
from molsampler.mcmc.population import Gaussian, Population
from molsampler.nn.generators import GeneratorConfig
from molsampler.nn.generators.density import DensityGenerator
from molsampler.objectives import Objective, ObjectiveConfig, Problem, State
from molsampler.objectives.exact import Exact, emphasis, levelled
from molsampler.space import Euclidean
from molsampler.target import Target
from molsampler.temperatures import TemperatureRange

SPACE = Euclidean(1, 2)
POPULATION = {"size": 512, "start_scale": 4.0, "anneal_moves": 2, "equilibration": 20, "refresh": 0}


class TwoModes:
    """An even mixture of unit Gaussians at (-4, 0) and (4, 0); log Z = 0."""

    space = SPACE

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        centres = x.new_tensor([[-4.0, 0.0], [4.0, 0.0]])
        gap = x - centres
        log_parts = -0.5 * gap.square().sum(-1)
        energy = math.log(4 * math.pi) - torch.logsumexp(log_parts, -1)
        share = torch.softmax(log_parts, -1)
        return energy, -(share[..., None] * gap).sum(-2, keepdim=True)


class Half(TwoModes):
    """A Gaussian about the origin, of which one half has no energy once it is told so."""

    halved = False

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, score = 0.5 * x.square().sum(dim=(-2, -1)), -x
        if not self.halved:
            return energy, score
        return energy.masked_fill(x[:, 0, 0] < 0, torch.inf), score


def problem(target: Target, iterations: int = 100, **generator: Any) -> Problem:
    config = GeneratorConfig.parse({"kind": "spline", "layers": 4, "width": 32, **generator})
    return Problem(
        target=target,
        molecule=None,
        generator=config,
        sampling=config.sampling(),
        iterations=iterations,
        seed=0,
        device=torch.device("cpu"),
    )


def made(target: Target, settings: dict[str, Any], **keywords: Any) -> Exact:
    config = ObjectiveConfig.parse(
        {"kind": "exact", "estimator": "path", "population": POPULATION, **settings}
    )
    objective = config.build(problem(target, **keywords))
    assert isinstance(objective, Exact)
    return objective


def begun(objective: Objective) -> State:
    return objective.init(report=lambda *_: None)


def gradient_of(objective: Exact, state: State, rounds: int) -> tuple[Tensor, Tensor]:
    """Mean gradient of the loss on draws over rounds, and its standard error, all parameters in one."""
    work = objective.adopted(state)
    module = work.modules["generator"]
    rows = []
    for _ in range(rounds):
        loss, _, _ = objective._draws(work, objective.population(state), learn=True)
        gradients = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True)
        rows.append(
            torch.cat(
                [
                    torch.zeros(p.numel()) if g is None else g.flatten()
                    for g, p in zip(gradients, module.parameters(), strict=True)
                ]
            ).double()
        )
    stacked = torch.stack(rows)
    return stacked.mean(0), stacked.std(0) / math.sqrt(rounds)


@pytest.mark.parametrize("estimator", ["path", "score"])
def test_the_gradient_is_that_of_the_reverse_kl(estimator) -> None:
    """Against the plain derivative of E[log q + u] over the same number of draws."""
    settings = {
        "estimator": estimator,
        "trim": 0.0,
        "clip": 1e9,
        "draws": 512,
        "forward": 0.0,
        "forward_later": 0.0,
        "draw_from": 0.0,
        "reverse_from": 0.0,
    }
    target = Gaussian(SPACE, 1.5)
    objective = made(target, settings)
    state = begun(objective)
    with torch.no_grad():
        for value in objective.adopted(state).modules["generator"].parameters():
            value += 0.02 * torch.randn(
                value.shape, generator=torch.Generator().manual_seed(value.numel())
            )
    mean, error = gradient_of(objective, state, 60)
    work = objective.adopted(state)
    generator = work.modules["generator"]
    assert isinstance(generator, DensityGenerator)
    rows = []
    for _ in range(60):
        x, log_prob = generator.sample(512, generator=work.rng)
        loss = (log_prob + 0.5 * (x / 1.5).square().sum(dim=(-2, -1))).mean()
        gradients = torch.autograd.grad(loss, list(generator.parameters()), allow_unused=True)
        rows.append(
            torch.cat(
                [
                    torch.zeros(p.numel()) if g is None else g.flatten()
                    for g, p in zip(gradients, generator.parameters(), strict=True)
                ]
            ).double()
        )
    plain, plain_error = torch.stack(rows).mean(0), torch.stack(rows).std(0) / math.sqrt(60)
    spread = (error.square() + plain_error.square()).sqrt()
    known = spread > 0
    z = ((mean - plain) / spread.clamp(min=1e-30))[known]
    assert float(z.square().mean()) < 1.3
    # Negative control: with the sign turned they are far apart.
    assert float((((mean + plain) / spread.clamp(min=1e-30))[known]).square().mean()) > 2
    # Near the optimum the path gradient has less noise; far from it, more.
    assert estimator == "score" or float(error.norm()) < 0.9 * float(plain_error.norm())


@pytest.mark.parametrize("estimator", ["path", "score"])
def test_the_gradient_vanishes_draw_by_draw_where_the_generator_is_right(estimator) -> None:
    settings = {
        "estimator": estimator,
        "draw_from": 0.0,
        "reverse_from": 0.0,
        "forward_later": 0.0,
        "clip": 1e9,
        "trim": 0.0,
    }
    objective = made(Gaussian(SPACE, 1.0), settings, axes="own")
    state = begun(objective)
    generator = objective.adopted(state).modules["generator"]
    with torch.no_grad():
        # An identity: couplings are so at first, the affine map and the marginals by hand.
        generator.flow.mean.zero_()
        generator.flow.mixing.copy_(torch.eye(2))
        generator.flow.line_marginals.zero_()
    mean, _ = gradient_of(objective, state, 2)
    assert float(mean.abs().max()) < 1e-5
    with torch.no_grad():
        generator.flow.mean += 0.1
    off, _ = gradient_of(objective, state, 2)
    assert float(off.abs().max()) > 1e-3


@pytest.mark.parametrize("order", [1.0, 1.5, 2.0])
def test_the_weighed_likelihood_descends_the_renyi_divergence(order: float) -> None:
    """Frames of N(0, 1), a proposal N(m, s): D has the closed form of two Gaussians."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(400_000, generator=random, dtype=torch.float64)
    m = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    s = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    log_q = torch.distributions.Normal(m, s).log_prob(x)
    energy = 0.5 * x.square() + math.log(2 * math.pi) / 2
    share = emphasis(energy, log_q.detach(), order=order, cap=math.inf)
    found = torch.stack(torch.autograd.grad(-(share * log_q).mean(), (m, s), retain_graph=True))
    if order == 1:
        divergence = s.log() + (1 + m**2) / (2 * s**2)
    else:
        mixed = order * s**2 + 1 - order
        divergence = order * m**2 / (2 * mixed) + s.log() + (s**2 / mixed).log() / (2 * (order - 1))
    expected = torch.stack(torch.autograd.grad(divergence, (m, s)))
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.01)
    # Negative control: frames that count alike follow the Kullback-Leibler divergence.
    alike = torch.stack(torch.autograd.grad(-log_q.mean(), (m, s)))
    assert torch.allclose(found, alike, rtol=0.03, atol=0.01) == (order == 1)


def test_frames_count_at_most_the_cap_and_one_without_density_counts_most() -> None:
    energy = torch.zeros(5)
    log_prob = torch.tensor([0.0, 0.0, 0.0, -1.0, -torch.inf])
    share = emphasis(energy, log_prob, order=2, cap=10)
    assert torch.allclose(share / share[0], share.new_tensor([1, 1, 1, math.e, 10]))
    assert float(share.mean()) == pytest.approx(1)
    assert torch.equal(
        emphasis(energy, log_prob, order=1, cap=10), torch.ones(5, dtype=torch.float64)
    )


def emptied(state: State, share: float) -> State:
    """The chains with all but a share of those at x > 0 thrown over to the mode at x < 0."""
    position = state["population/position"].clone()
    right = (position[:, 0, 0] > 0).nonzero()[:, 0]
    over = right[: int(len(right) * (1 - share))]
    position[over, 0, 0] -= 8.0
    energy, score = TwoModes().energy_and_score(position)
    return {
        **state,
        "population/position": position,
        "population/energy": energy,
        "population/score": score,
    }


def right_share(state: State) -> float:
    return float((state["population/position"][:, 0, 0] > 0).double().mean())


@pytest.mark.parametrize("share", [0.5, 0.0], ids=["half weight", "emptied"])
def test_proposals_mend_the_weights_of_modes(share) -> None:
    """The generator still reaches both modes; the population, and then the generator, follow the energy."""
    settings = {
        "batch_size": 256,
        "draws": 256,
        "draw_from": 0.0,
        "reverse_from": 0.0,
        "forward_later": 1.0,
    }
    objective = made(TwoModes(), settings, iterations=60)
    state = emptied(begun(objective), share)
    assert right_share(state) < 0.3
    accepted = []
    for _ in range(60):
        state, metrics = objective.step(state)
        accepted.append(metrics["proposal_acceptance"])
    # 512 chains: the standard error of a share of one half is .022.
    assert abs(right_share(state) - 0.5) < 0.12
    assert sum(accepted[-20:]) / 20 > 0.4
    assert state["proposed"] == 60 * 256
    assert state["accepted"] == pytest.approx(256 * sum(accepted))
    draw = objective.generator(state).draw(
        4000, TwoModes(), generator=torch.Generator().manual_seed(5)
    )
    assert draw.log_weight is not None
    log_z = log_mean(draw.log_weight)
    assert abs(log_z.value) < 5 * log_z.se < 0.2


def test_proposals_mend_what_the_generator_itself_started_from() -> None:
    """It learned the wrong weights first; its own are mended with those of the chains."""
    settings = {"batch_size": 256, "draws": 512, "draw_from": 0.0, "reverse_from": 1.0}
    objective = made(TwoModes(), settings, iterations=40)
    state = emptied(begun(objective), 0.4)
    work = objective.adopted(state)
    for module in work.modules.values():
        module.start_from(state["population/position"])
    state = objective.flat(work)
    assert right_share(state) < 0.3
    for _ in range(40):
        state, _ = objective.step(state)
    assert abs(right_share(state) - 0.5) < 0.12


def test_without_proposals_the_weights_stay_as_wrong_as_they_were() -> None:
    """Negative control of the test above."""
    settings = {"batch_size": 256, "draws": 256, "propose": False, "reverse_from": 1.0}
    objective = made(TwoModes(), settings, iterations=60)
    state = emptied(begun(objective), 0.5)
    before = right_share(state)
    for _ in range(60):
        state, _ = objective.step(state)
    assert right_share(state) == before < 0.3


def test_proposals_leave_the_target_as_it_is() -> None:
    """Exact chains stay exact under a poor generator's proposals."""
    target = Gaussian(SPACE, 1.0)
    settings = {
        "population": {**POPULATION, "size": 4000},
        "draws": 4000,
        "draw_from": 0.0,
        "reverse_from": 0.0,
        "forward_later": 0.0,
        "reverse": 0.0,
    }
    objective = made(target, settings)
    state = begun(objective)
    work = objective.adopted(state)
    with torch.no_grad():
        # Wider than the target, and aside.
        work.modules["generator"].flow.mixing.mul_(1.7)
        work.modules["generator"].flow.mean.add_(0.5)
    x = torch.randn(4000, 1, 2, generator=torch.Generator().manual_seed(1))
    population = Population(mala.init(x, target), 0.1)
    moved = 0.0
    for _ in range(8):
        _, population, metrics = objective._draws(work, population, learn=True)
        moved += metrics["proposal_acceptance"]
    assert 1.0 < moved < 7.0
    y = population.state.position[:, 0].double()
    error = 1 / math.sqrt(4000)
    assert float(y.mean(0).abs().max()) < 5 * error
    assert float((y.var(0) - 1).abs().max()) < 5 * math.sqrt(2) * error
    # Negative control: the proposals themselves are far from it.
    with torch.no_grad():
        drawn = work.modules["generator"].configurations(4000, generator=work.rng)[:, 0]
    assert float((drawn.var(0) - 1).abs().min()) > 1


class Harmonic:
    """u = r^2 / 2T in the plane, rows at temperatures of their own."""

    space = SPACE

    def __init__(self, temperature: Tensor):
        self.temperature = temperature

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        temperature = self.temperature.to(x).reshape(-1, 1, 1)
        return 0.5 * (x.square() / temperature).sum((1, 2)), -x / temperature


@pytest.mark.parametrize("right", [True, False])
def test_proposals_over_temperatures_leave_every_one_as_it_is(right: bool) -> None:
    """A chain is offered draws at its own temperature; negative control: at that of another."""
    known = TemperatureRange(low=0.5, high=2.0)
    settings = {
        "population": {**POPULATION, "size": 6000, "nodes": 3},
        "draws": 6000,
        "draw_from": 0.0,
        "reverse_from": 0.0,
        "forward_later": 0.0,
        "reverse": 0.0,
    }
    config = ObjectiveConfig.parse({"kind": "exact", **settings})
    plain = problem(Harmonic(torch.tensor(1.0)))
    objective = config.build(
        dataclasses.replace(
            plain, generator=plain.generator.conditioned(known), temperatures=known, at=Harmonic
        )
    )
    assert isinstance(objective, Exact)
    temperature = torch.tensor(known.spread(3)).repeat(2000)
    x = torch.randn(6000, 1, 2, generator=torch.Generator().manual_seed(1))
    x = x * temperature.sqrt()[:, None, None]
    work = objective.build({})
    for module in work.modules.values():
        module.start_from(x, context=known.context(temperature))
        with torch.no_grad():
            module.flow.mean.add_(0.5)
            module.flow.mixing.mul_(1.3)
    told = temperature if right else temperature.roll(1)
    population = Population(mala.init(x, Harmonic(told)), 0.1, told)
    work.numbers.update(proposed=0, accepted=0)
    moved = 0.0
    for _ in range(8):
        _, population, metrics = objective._draws(work, population, learn=True)
        moved += metrics["proposal_acceptance"]
    assert 1.0 < moved < 7.9
    error = math.sqrt(2 / 4000)
    ratios = [
        float(population.state.position[temperature == value].double().var()) / value
        for value in known.spread(3)
    ]
    assert all(abs(ratio - 1) < 6 * error for ratio in ratios) == right


def test_weights_of_several_temperatures_stand_against_their_own_medians() -> None:
    """Z of a temperature, whatever it is, drops out."""
    random = torch.Generator().manual_seed(0)
    log_prob = torch.randn(300, generator=random, dtype=torch.float64)
    temperature = torch.tensor([0.5, 1.0, 2.0]).repeat(100)
    energy = torch.zeros(300, dtype=torch.float64)
    options: dict[str, Any] = {"order": 2, "cap": 20}
    first = emphasis(energy, log_prob, temperature=temperature, **options)
    shifted = emphasis(energy + 50 * temperature, log_prob, temperature=temperature, **options)
    torch.testing.assert_close(first, shifted)
    # Negative control: without the temperature, the hottest frames count for nothing.
    assert float(first[2::3].mean()) > 0.5
    assert float(emphasis(energy + 50 * temperature, log_prob, **options)[2::3].mean()) < 1e-6
    lost = levelled(torch.tensor([-torch.inf, 1.0, 3.0]), torch.ones(3))
    assert lost.tolist() == [-math.inf, 0.0, 2.0]


def test_a_chain_without_energy_takes_the_first_draw_and_draws_without_energy_are_none() -> None:
    settings = {"draw_from": 0.0, "reverse_from": 0.0, "draws": 64, "estimator": "total"}
    target = Half()
    objective = made(target, settings)
    state = begun(objective)
    target.halved = True
    work = objective.adopted(state)
    population = objective.population(state)
    lost = population.state.energy.clone()
    lost[:64] = torch.inf
    broken = population._replace(state=population.state._replace(energy=lost))
    loss, moved, metrics = objective._draws(work, broken, learn=True)
    assert math.isfinite(float(loss.detach()))
    # Of the draws, those at x > 0 alone have an energy; every chain that was offered one took it.
    offered = moved.state.energy[:64]
    taken = torch.isfinite(offered)
    assert 8 < int(taken.sum()) < 56
    assert metrics["proposal_acceptance"] == int(taken.sum()) / 64
    assert float(moved.state.position[:64][taken][:, 0, 0].min()) > 0


def test_generators_without_a_density_are_refused() -> None:
    config = ObjectiveConfig.parse({"kind": "exact", "population": POPULATION})
    implicit = GeneratorConfig.parse({"kind": "implicit", "body": {"kind": "mlp", "width": 8}})
    wrong = Problem(
        target=TwoModes(),
        molecule=None,
        generator=implicit,
        sampling=implicit.sampling(),
        iterations=1,
        seed=0,
        device=torch.device("cpu"),
    )
    with pytest.raises(InputError, match=r"knows its density.*'implicit' does not"):
        begun(config.build(wrong))
