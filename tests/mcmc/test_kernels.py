"""Every kernel leaves its target invariant and keeps one contract."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import pytest
import torch
from mcmc.densities import Bimodal, Gaussian, Springs, Wall, correlated, moment_z, share_z, standard

from molsampler.errors import InputError
from molsampler.mcmc import adapt, hmc, mala, moves, tempering
from molsampler.mcmc.proposal import Info


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Unadjusted:
    """Langevin without a Metropolis test: the wrong kernel that the gates must catch."""

    init = staticmethod(mala.init)

    @staticmethod
    def step(state, target, *, step_size, generator):
        noise = target.space.randn(*state.energy.shape, generator=generator, like=state.position)
        x = state.position + step_size * state.score + math.sqrt(2 * step_size) * noise
        energy, score = target.energy_and_score(x)
        one = torch.ones_like(energy)
        return mala.State(x, energy, score), Info(one, one.bool(), ~one.bool())


class Case(NamedTuple):
    init: object
    step: object
    step_size: float


class TemperedChains:
    """Parallel tempering under the contract of a kernel: the batch is that of the coldest replica."""

    beta = torch.tensor([1.0, 0.6, 0.35], dtype=torch.float64)

    @classmethod
    def init(cls, x, target):
        return tempering.init(x.expand(3, *x.shape).contiguous(), target, cls.beta)

    step = staticmethod(tempering.step)


def cold(state) -> torch.Tensor:
    return state.position[0] if isinstance(state, tempering.State) else state.position


KERNELS = {
    "mala": Case(mala.init, mala.step, 0.2),
    # 8 leapfrog steps of 0.2 turn a unit oscillator by a quarter period; half a period would not mix.
    "hmc": Case(hmc.init, hmc.step, 0.2),
    "moves": Case(mala.init, partial(moves.step, leapfrog_steps=8), 0.04),
    "tempering": Case(TemperedChains.init, TemperedChains.step, 0.2),
}
SINGLE = ["mala", "hmc", "moves"]


@pytest.fixture(params=KERNELS)
def kernel(request):
    return KERNELS[request.param]


@pytest.fixture(params=SINGLE)
def single(request):
    """Kernels on one density, which accept any batch shape."""
    return KERNELS[request.param]


def run(case, state, target, steps, *, seed, step_size=None):
    g = generator(seed)
    info = None
    step_size = case.step_size if step_size is None else step_size
    for _ in range(steps):
        state, info = case.step(state, target, step_size=step_size, generator=g)
    return state, info


# Laws


@pytest.mark.parametrize("name", ["standard", "correlated"])
def test_moments_of_gaussians(kernel, name):
    target = standard(2, 2) if name == "standard" else correlated()
    start = torch.zeros(3000, 2, 2, dtype=torch.float64)
    step_size = kernel.step_size if name == "standard" or kernel.step is hmc.step else 0.08
    steps = 40 if kernel.step is hmc.step else (60 if name == "standard" else 300)
    state, _ = run(kernel, kernel.init(start, target), target, steps, seed=1, step_size=step_size)
    z = moment_z(cold(state), target.mean, target.covariance)
    assert z.abs().max() < 5


def test_moment_gate_catches_a_missing_metropolis_test():
    target = correlated()
    case = Case(Unadjusted.init, Unadjusted.step, 0.08)
    start = torch.zeros(3000, 2, 2, dtype=torch.float64)
    state, _ = run(case, case.init(start, target), target, 300, seed=1)
    assert moment_z(cold(state), target.mean, target.covariance).abs().max() > 5


def test_mean_free_targets_stay_mean_free(kernel):
    target = Springs(3, 2)
    start = torch.zeros(3000, 3, 2, dtype=torch.float64)
    state, _ = run(kernel, kernel.init(start, target), target, 60, seed=2)
    x = cold(state)
    assert x.mean(-2).abs().max() < 1e-12
    projector = torch.eye(3, dtype=torch.float64) - 1 / 3
    covariance = torch.kron(projector, torch.eye(2, dtype=torch.float64))
    # The first four coordinates span the space; the rest are minus their sums.
    assert moment_z(x[:, :2], torch.zeros(4), covariance[:4, :4]).abs().max() < 5
    # Control: the covariance of a Gaussian that is not confined to the subspace.
    assert moment_z(x[:, :2], torch.zeros(4), torch.eye(4)).abs().max() > 5


STATISTICS = [
    (lambda x: x, lambda x: x**2),
    (lambda x: x, torch.tanh),
    (lambda x: (x < 0.9).double(), lambda x: (x > 1.2).double()),
    (lambda x: (x < 0.85).double(), lambda x: x),
]


def reversal_z(before, after) -> float:
    """Largest violation of E[f(x) g(x')] = E[g(x) f(x')] in standard errors, for exact starts."""
    before, after = before[:, 0, 0], after[:, 0, 0]
    worst = 0.0
    for f, g in STATISTICS:
        difference = f(before) * g(after) - g(before) * f(after)
        error = difference.std() / math.sqrt(len(difference))
        worst = max(worst, abs(float(difference.mean() / error)))
    return worst


@pytest.mark.parametrize("step_size", [0.005, 0.05, 0.3])
def test_mala_with_truncated_drift_obeys_detailed_balance_at_a_wall(step_size):
    target = Wall()
    start = target.sample(100_000, generator(3))
    after, _ = mala.step(
        mala.init(start, target), target, step_size=step_size, generator=generator(4)
    )
    assert reversal_z(start, after.position) < 5
    # The truncation acts: without it the test would say nothing about it.
    score = target.energy_and_score(start)[1]
    epsilon = torch.tensor(step_size, dtype=torch.float64)
    assert (mala.drift(score, epsilon) != epsilon * score).any() or step_size < 0.01


def test_hmc_obeys_detailed_balance_at_a_wall():
    target = Wall()
    start = target.sample(100_000, generator(5))
    after, info = hmc.step(
        hmc.init(start, target), target, step_size=0.15, generator=generator(6), leapfrog_steps=4
    )
    assert info.accepted.double().mean() > 0.3
    assert reversal_z(start, after.position) < 5


def test_balance_gate_catches_a_drift_left_out_of_the_reverse_proposal(monkeypatch):
    """Truncating the drift in one direction only is the error that the gate is for."""
    target = Wall()
    start = target.sample(100_000, generator(3))
    truncated = mala.drift
    calls = []

    def one_sided(score, step, scale=None):
        calls.append(None)
        return truncated(score, step) if len(calls) % 2 else step * score

    monkeypatch.setattr(mala, "drift", one_sided)
    after, _ = mala.step(mala.init(start, target), target, step_size=0.3, generator=generator(4))
    assert reversal_z(start, after.position) > 5


def test_balance_gate_catches_a_missing_metropolis_test():
    target = Wall()
    start = target.sample(100_000, generator(3))
    after, _ = Unadjusted.step(
        mala.init(start, target), target, step_size=0.005, generator=generator(4)
    )
    assert reversal_z(start, after.position) > 5


def test_exact_samples_of_a_wall_stay_exact():
    target = Wall()
    start = target.sample(20_000, generator(7))
    state, _ = run(KERNELS["mala"], mala.init(start, target), target, 50, seed=8, step_size=0.1)
    u = target.uniform(state.position)
    # Moments of a uniform variable: mean 1/2 with variance 1/12, second moment 1/3 with 4/45.
    root = math.sqrt(len(u))
    assert abs(float(u.mean()) - 1 / 2) * root < 5 * math.sqrt(1 / 12)
    assert abs(float((u**2).mean()) - 1 / 3) * root < 5 * math.sqrt(4 / 45)
    assert abs(share_z(u < 0.05, 0.05)) < 5


@pytest.mark.parametrize("name", SINGLE)
def test_exact_samples_of_a_mixture_stay_exact(name):
    target = Bimodal()
    start = target.sample(20_000, generator(9))
    state, info = run(
        KERNELS[name], KERNELS[name].init(start, target), target, 30, seed=10, step_size=0.3
    )
    x = state.position[:, 0, 0]
    assert 0.2 < info.acceptance.mean() < 0.999
    left = x < 0
    assert abs(share_z(left, 0.8)) < 5
    for mode, mean, sd in [(x[left], -4, 1.0), (x[~left], 4, 0.5)]:
        z = moment_z(mode[:, None], torch.tensor([mean]), torch.tensor([[sd**2]]))
        assert z.abs().max() < 5


def test_hmc_with_one_leapfrog_step_is_mala():
    target = correlated()
    start = target.sample(500, generator(11))
    epsilon = 0.3
    by_hmc, info_hmc = hmc.step(
        hmc.init(start, target),
        target,
        step_size=epsilon,
        generator=generator(12),
        leapfrog_steps=1,
    )
    by_mala, info_mala = mala.step(
        mala.init(start, target), target, step_size=epsilon**2 / 2, generator=generator(12)
    )
    # Rows where MALA truncates a drift differ by intention.
    limit = mala.DRIFT_LIMIT * epsilon * math.sqrt(2)
    longest = 0.5 * epsilon**2 * target.energy_and_score(start)[1].norm(dim=-1).amax(-1)
    same = longest < 0.5 * limit
    assert same.sum() > 300
    torch.testing.assert_close(by_hmc.position[same], by_mala.position[same])
    torch.testing.assert_close(info_hmc.acceptance[same], info_mala.acceptance[same])


def test_tempering_finds_mode_weights_where_plain_mala_does_not():
    target = Bimodal()
    chains, replicas = 800, 5
    start = torch.zeros(replicas, chains, 1, 2, dtype=torch.float64)
    beta = tempering.geometric_ladder(replicas, hottest=12).double()
    state = tempering.init(start, target, beta)
    g = generator(13)
    step_size = (0.2 / beta)[:, None]
    for _ in range(400):
        state, info = tempering.step(state, target, step_size=step_size, generator=g)
    assert abs(share_z(state.position[0, :, 0, 0] < 0, 0.8)) < 5
    rates = info.exchanged[~info.exchanged.isnan()]
    assert (rates > 0.1).all()

    plain, _ = run(
        KERNELS["mala"], mala.init(start[0], target), target, 400, seed=13, step_size=0.2
    )
    assert abs(share_z(plain.position[:, 0, 0] < 0, 0.8)) > 5


def test_exchanges_alone_leave_the_ladder_invariant():
    """With a vanishing MALA step only exchanges act; exact starts must stay exact at every rung."""
    beta = torch.tensor([1.0, 0.5, 0.2], dtype=torch.float64)
    target = standard(1, 2)
    exact = torch.stack(
        [standard(1, 2, float(b) ** -0.5).sample(8000, generator(14)) for b in beta]
    )
    exact = exact[:, torch.randperm(8000, generator=generator(15))]
    state = tempering.init(
        torch.stack(
            [
                standard(1, 2, float(b) ** -0.5).sample(8000, generator(16 + k))
                for k, b in enumerate(beta)
            ]
        ),
        target,
        beta,
    )
    moved = 0.0
    g = generator(20)
    for _ in range(6):
        state, info = tempering.step(state, target, step_size=1e-12, generator=g)
        moved += float(info.exchanged.nansum())
    assert moved > 1
    for b, x in zip(beta, state.position, strict=True):
        assert moment_z(x, torch.zeros(2), torch.eye(2) / b).abs().max() < 5


# Contract


@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes_follow_the_positions(single, batch, dtype):
    target = Springs(3, 2)
    x = target.space.randn(*batch, generator=generator(1), like=torch.zeros((), dtype=dtype))
    state = single.init(x, target)
    after, info = single.step(state, target, step_size=0.1, generator=generator(2))
    assert after.position.shape == (*batch, 3, 2)
    assert after.energy.shape == batch
    for part in (after.position, after.energy, after.score, info.acceptance):
        assert part.dtype == dtype
    for field in info:
        assert field.shape == batch
    assert ((info.acceptance >= 0) & (info.acceptance <= 1)).all()


def test_state_matches_a_fresh_evaluation_and_input_is_untouched(kernel):
    target = correlated()
    x = target.sample(50, generator(1))
    state = kernel.init(x, target)
    kept = [part.clone() for part in state if isinstance(part, torch.Tensor)]
    after, _ = run(kernel, state, target, 7, seed=2)
    energy, score = target.energy_and_score(after.position)
    torch.testing.assert_close(after.energy, energy)
    torch.testing.assert_close(after.score, score)
    for old, part in zip(kept, [p for p in state if isinstance(p, torch.Tensor)], strict=True):
        assert torch.equal(old, part)


def test_same_generator_same_chain_and_no_global_state(kernel):
    target = correlated()
    x = target.sample(20, generator(1))
    torch.manual_seed(1)
    first, _ = run(kernel, kernel.init(x, target), target, 5, seed=3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second, _ = run(kernel, kernel.init(x, target), target, 5, seed=3)
    other, _ = run(kernel, kernel.init(x, target), target, 5, seed=4)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.position, second.position)
    assert not torch.equal(first.position, other.position)


def test_step_size_may_differ_between_chains(single):
    """A batch of narrow and wide Gaussians, each with its own step, mixes in one call."""
    scale = torch.tensor([0.01, 1.0, 50.0], dtype=torch.float64).repeat_interleave(1500)

    class Scaled:
        space = standard(1, 2).space

        def energy_and_score(self, x):
            y = x / scale[:, None, None]
            return 0.5 * y.square().sum((-2, -1)), -y / scale[:, None, None]

    power = 1 if single.step is hmc.step else 2
    step_size = single.step_size * scale**power
    x = torch.zeros(4500, 1, 2, dtype=torch.float64)
    state, info = run(single, single.init(x, Scaled()), Scaled(), 50, seed=5, step_size=step_size)
    assert info.accepted.double().mean() > 0.5
    unit = (state.position / scale[:, None, None]).reshape(3, 1500, 2)
    for chains in unit:
        assert moment_z(chains, torch.zeros(2), torch.eye(2)).abs().max() < 5


def test_infinite_starts_leave_at_the_first_finite_proposal(single):
    target = Wall()
    x = torch.full((200, 1, 1), -0.05, dtype=torch.float64)
    state = single.init(x, target)
    assert torch.isinf(state.energy).all()
    after, info = single.step(state, target, step_size=0.2, generator=generator(6))
    finite = torch.isfinite(after.energy)
    assert finite.any()
    # Within the infinite region nothing is accepted; out of it everything is.
    assert torch.equal(info.accepted, finite)
    assert not torch.isnan(after.position).any()
    if single.step is mala.step:
        # The truncated drift then brings every chain to the bulk; HMC needs a smaller step for that.
        state, _ = run(single, after, target, 60, seed=7, step_size=0.2)
        assert state.energy.max() < 50


def test_absurd_proposals_are_rejected_and_never_evaluated(kernel):
    seen = []

    class Watched(Gaussian):
        def energy_and_score(self, x):
            seen.append(float(x.abs().max()))
            return super().energy_and_score(x)

    target = Watched(torch.zeros(2, 2), torch.eye(4))
    x = torch.ones(30, 2, 2, dtype=torch.float64)
    state = kernel.init(x, target)
    for step_size in (1e16, 1e300, math.inf, math.nan):
        after, info = kernel.step(state, target, step_size=step_size, generator=generator(8))
        move = info.move if isinstance(info, tempering.PTInfo) else info
        assert move.divergent.all()
        assert not move.accepted.any()
        assert torch.equal(cold(after), x)
    assert max(seen) <= 1e6


def test_hmc_needs_a_leapfrog_step():
    target = standard(1, 1)
    state = hmc.init(torch.zeros(1, 1, 1), target)
    with pytest.raises(InputError, match="leapfrog_steps"):
        hmc.step(state, target, step_size=0.1, generator=None, leapfrog_steps=0)


def test_tempering_refuses_a_ladder_that_does_not_fit():
    target = standard(1, 2)
    with pytest.raises(InputError, match="beta"):
        tempering.init(torch.zeros(3, 5, 1, 2), target, torch.ones(2))
    with pytest.raises(InputError, match="hottest"):
        tempering.geometric_ladder(3, hottest=0.5)
    ladder = tempering.geometric_ladder(4, hottest=8.0)
    torch.testing.assert_close(ladder, torch.tensor([1.0, 0.5, 0.25, 0.125]))


# Adaptation


@pytest.mark.parametrize("first", [1e-2, 30.0])
def test_adaptation_reaches_the_wanted_acceptance(first):
    target = standard(5, 3)
    state = mala.init(target.sample(300, generator(1)), target)
    state, adaptation = adapt.tuned(
        state, target, steps=150, step_size=first, generator=generator(2)
    )
    step_size = float(adaptation.step_size)
    _, info = run(KERNELS["mala"], state, target, 20, seed=3, step_size=step_size)
    assert abs(float(info.acceptance.mean()) - adapt.MALA_ACCEPTANCE) < 0.06


def test_adaptation_keeps_one_step_per_entry():
    adaptation = adapt.init(torch.tensor([0.1, 0.1]))
    acceptance = torch.tensor([[0.9, 0.1], [1.0, 0.2]])
    adaptation = adapt.update(adaptation, acceptance)
    torch.testing.assert_close(
        adaptation.step_size,
        0.1 * torch.exp(torch.tensor([0.95, 0.15]) - adapt.MALA_ACCEPTANCE),
    )
