"""The data-free criterion sees what local refinement does not, and calibration finds a known scale."""

from __future__ import annotations

import math

import pytest
import torch

from molsampler.errors import InputError
from molsampler.mcmc import mala
from molsampler.mcmc.population import Gaussian
from molsampler.nn.bodies import MLPBody
from molsampler.nn.generators.implicit import ImplicitConfig
from molsampler.space import Euclidean
from molsampler.systems import get_system
from molsampler.train.criterion import Case, Discrepancy, Evaluation, calibrate, energy_tvd


class Wells:
    """Two narrow wells of weight 1/2 at -3 and 3 along every axis of the plane's first coordinate."""

    space = Euclidean(1, 2)

    def energy_and_score(self, x):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            near = torch.stack([-8 * (x[..., 0, 0] - c).square() for c in (-3.0, 3.0)])
            u = 0.5 * x[..., 0, 1].square() - torch.logsumexp(near, 0)
            (gradient,) = torch.autograd.grad(u.sum(), x)
        return u.detach(), -gradient

    def sample(self, n, share, seed):
        rng = torch.Generator().manual_seed(seed)
        side = torch.where(torch.rand(n, generator=rng) < share, 3.0, -3.0)
        x = torch.randn(n, 1, 2, generator=rng)
        x[:, 0, 0] = side + 0.25 * x[:, 0, 0]
        return x


def test_wrong_weights_of_modes_are_seen_and_local_drift_is_blind():
    target = Wells()
    far = Discrepancy(mala.init(target.sample(4000, 0.5, 0), target), target.space)
    drifts, found = {}, {}
    for share in (0.5, 0.6, 0.8):
        state = mala.init(target.sample(4000, share, 1), target)
        found[share], error = far(state.position, state.energy)
        assert 0 < error < 0.1
        before = state.energy.sort()[0]
        rng = torch.Generator().manual_seed(2)
        for _ in range(20):
            state, _ = mala.step(state, target, step_size=0.03, generator=rng)
        drifts[share] = float((state.energy.sort()[0] - before).square().mean().sqrt())
    # Sampling error of a share of one half among 4000 against 4000: .011.
    assert found[0.5] < 0.15
    assert found[0.5] + 0.1 < found[0.6] < found[0.8] - 0.1
    assert max(drifts.values()) < 0.1


def test_it_does_not_see_rotation_nor_exchange():
    system = get_system("lj7")
    rng = torch.Generator().manual_seed(0)
    x = 0.9 * system.space.randn(600, generator=rng, like=torch.empty(0))
    state = mala.init(x, system)
    far = Discrepancy(state, system.space)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=rng))[0]
    order = torch.randperm(7, generator=rng)
    assert far((x @ turn)[:, order], state.energy)[0] == pytest.approx(
        far(x, state.energy)[0], abs=1e-5
    )
    assert far(x, state.energy)[0] < 1e-6
    # Another size is another shape.
    larger = mala.init(1.1 * x, system)
    assert far(larger.position, state.energy)[0] > 0.1


def test_a_sample_in_collision_costs_but_does_not_decide():
    target = Wells()
    far = Discrepancy(mala.init(target.sample(2000, 0.5, 0), target), target.space)
    state = mala.init(target.sample(2000, 0.5, 1), target)
    clean = far(state.position, state.energy)[0]
    for bad in (1e30, torch.inf, torch.nan):
        energy = state.energy.clone()
        energy[7] = bad
        assert clean < far(state.position, energy)[0] < clean + 1.0


@pytest.mark.parametrize("scale", [0.92, 1.0, 1.03])
def test_calibration_finds_the_scale_of_a_gaussian(scale):
    space = Euclidean(1, 6)
    target = Gaussian(space, 1.0)
    rng = torch.Generator().manual_seed(0)
    like = torch.empty(0)
    population = mala.init(target.sample(16_000, generator=rng, like=like), target)
    config = ImplicitConfig(body=MLPBody(width=4, layers=1), latent_scale=scale)
    generator = config.build(space)
    # A perceptron that does nothing.
    torch.nn.init.zeros_(generator.body.net.out.weight)
    torch.nn.init.zeros_(generator.body.net.out.bias)
    far = Discrepancy(population, space)
    found = calibrate(generator, [Case(target, far)], samples=16_000, rng=rng)
    # Energies have mean 3 and variance 3; the standard error of a scale from 16,000 x 6 numbers is
    # .0023 on either side.
    assert found * scale == pytest.approx(1.0, abs=5 * 2**0.5 * 0.0023)


def test_the_energy_tvd_is_that_of_the_laws_and_one_where_energies_are_lost():
    rng = torch.Generator().manual_seed(0)
    first, second = (3.0 * torch.randn(200_000, generator=rng) - 20.0 for _ in range(2))
    # Between draws of one law: about sqrt(bins / (pi n)) in the bins that it fills.
    assert energy_tvd(first, second) < 0.02
    # Two normal laws a distance d apart differ by erf(d / sqrt(8) s).
    assert energy_tvd(first, second + 3.0) == pytest.approx(math.erf(1 / math.sqrt(8)), abs=0.01)
    lost = torch.where(torch.rand(200_000, generator=rng) < 0.5, 1e5, first)
    assert energy_tvd(lost, second) == 1.0
    few = torch.where(torch.rand(200_000, generator=rng) < 0.1, torch.inf, first)
    assert energy_tvd(few, second) < 0.02


def test_what_selection_goes_by():
    numbers = {"drift": 3.0, "drift_error": 0.1, "energy_tvd": 0.4, "mean_energy": -7.0}
    rest = {"median_energy": 0.0, "refined_median_energy": 0.0, "acceptance": 0.5}
    rest |= {"spread": 1.0, "broken": 0, "samples": 10}
    alone = Evaluation(discrepancy=None, discrepancy_error=None, **numbers, **rest)
    beside = Evaluation(discrepancy=0.2, discrepancy_error=0.01, **numbers, **rest)
    assert alone.value("auto") == alone.value("drift") == (3.0, 0.1)
    assert beside.value("auto") == beside.value("discrepancy") == (0.2, 0.01)
    assert alone.value("energy-tvd") == (0.4, 0.0)
    assert alone.value("mean-energy") == (-7.0, 0.0)
    # All are equal, and ties go to the latest.
    assert alone.value("last") == beside.value("last")
    with pytest.raises(InputError, match="population"):
        alone.value("discrepancy")
