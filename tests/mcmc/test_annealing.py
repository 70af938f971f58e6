"""AIS and SMC against analytic normalising constants and mode weights."""

from __future__ import annotations

import math

import pytest
import torch
from mcmc.densities import Bimodal, Gaussian, Wall, correlated, moment_z, standard

from molsampler.mcmc import ais, mala, population, smc
from molsampler.molecule.molecule import Molecule
from molsampler.space import Euclidean, MeanFree


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight_z(log_weight, expected) -> float:
    """Deviation of the mean weight from a ratio of normalising constants, in standard errors."""
    weight = torch.exp(log_weight - expected)
    return float((weight.mean() - 1) / (weight.std() / math.sqrt(len(weight))))


@pytest.mark.parametrize("levels", [1, 3, 20])
def test_ais_normalising_constant(levels):
    start, end = standard(2, 2, 3.0), correlated()
    state = ais.run(
        start.sample(20_000, generator(1)),
        start,
        end,
        levels=levels,
        step_size=0.1,
        generator=generator(2),
    )
    expected = end.log_z - start.log_z
    assert abs(weight_z(state.log_weight, expected)) < 5
    assert abs(float(ais.log_normaliser_ratio(state.log_weight)) - expected) < 0.2
    # Control: a constant that is wrong by a temperature of 10 %, in four degrees of freedom.
    if levels == 20:
        assert abs(weight_z(state.log_weight, expected - 2 * math.log(1.1))) > 5


def test_ais_weights_correct_the_moments():
    start, end = standard(2, 2), Gaussian(0.5 * torch.ones(2, 2), 0.6 * torch.eye(4))
    state = ais.run(
        start.sample(20_000, generator(3)),
        start,
        end,
        levels=8,
        step_size=0.1,
        generator=generator(4),
    )
    assert smc.effective_share(state.log_weight) > 0.2
    index = torch.multinomial(
        torch.softmax(state.log_weight, 0), 1000, replacement=True, generator=generator(5)
    )
    assert moment_z(state.position[index], end.mean, end.covariance).abs().max() < 5
    # Control: without their weights the particles lag behind the path.
    assert moment_z(state.position[:1000], end.mean, end.covariance).abs().max() > 5


def test_reweight_alone_changes_weights_and_move_alone_positions():
    start, end = standard(2, 2, 2.0), correlated()
    x = start.sample(100, generator(6))
    state = ais.init(x, start, end)
    heavier = ais.reweight(state, from_lam=0.2, to_lam=0.7)
    difference = start.energy_and_score(x)[0] - end.energy_and_score(x)[0]
    torch.testing.assert_close(heavier.log_weight, 0.5 * difference)
    assert torch.equal(heavier.position, x)
    moved, info = ais.move(heavier, start, end, lam=0.7, step_size=0.1, generator=generator(7))
    assert torch.equal(moved.log_weight, heavier.log_weight)
    assert torch.equal((moved.position != x).flatten(1).any(1), info.accepted)
    for target, energy, score in zip((start, end), moved.energies, moved.scores, strict=True):
        fresh_energy, fresh_score = target.energy_and_score(moved.position)
        torch.testing.assert_close(energy, fresh_energy)
        torch.testing.assert_close(score, fresh_score)


def test_move_is_mala_on_the_path():
    start, end = standard(2, 2, 2.0), correlated()
    x = start.sample(100, generator(8))
    by_ais, _ = ais.move(
        ais.init(x, start, end), start, end, lam=0.4, step_size=0.1, generator=generator(9)
    )
    path = ais.Path(start, end, 0.4)
    by_mala, _ = mala.step(mala.init(x, path), path, step_size=0.1, generator=generator(9))
    torch.testing.assert_close(by_ais.position, by_mala.position)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_path_keeps_infinite_energies_infinite(lam):
    path = ais.Path(standard(1, 1), Wall(), lam)
    energy, score = path.energy_and_score(torch.tensor([[[-1.0]], [[1.0]]]))
    assert energy[0] == (torch.inf if lam > 0 else 0.5)
    assert torch.isfinite(energy[1])
    assert torch.isfinite(score).all()


def test_infinite_energy_means_no_weight():
    start, end = standard(1, 1), Wall()
    x = start.sample(20_000, generator(10))
    state = ais.run(x, start, end, levels=1, step_size=0.1, generator=None)
    outside = x[:, 0, 0] <= 0.01
    assert torch.equal(state.log_weight[outside], torch.full_like(x[outside, 0, 0], -torch.inf))
    z_end = float(
        torch.trapezoid(torch.exp(-end.energy_and_score(end.grid[:, None, None])[0]), end.grid)
    )
    assert abs(weight_z(state.log_weight, math.log(z_end) - start.log_z)) < 5


class Population(list):
    """Mean and standard error over independent SMC runs."""

    def z(self, expected: float) -> float:
        values = torch.tensor(self, dtype=torch.float64)
        return float((values.mean() - expected) / (values.std() / math.sqrt(len(values))))

    def error(self) -> float:
        return float(torch.tensor(self, dtype=torch.float64).std() / math.sqrt(len(self)))


def test_smc_mode_weights_and_normalising_constant():
    start, end = standard(1, 2, 5.0), Bimodal()
    shares, ratios, plain = Population(), Population(), Population()
    for seed in range(20):
        x = start.sample(400, generator(100 + seed))
        result = smc.run(
            x, start, end, moves=3, step_size=0.3, generator=generator(200 + seed), share=0.8
        )
        assert 1 < result.levels < 40
        assert result.position.shape == x.shape
        shares.append(float((result.position[:, 0, 0] < 0).double().mean()))
        ratios.append(math.exp(result.log_normaliser_ratio - end.log_z + start.log_z))
        state = mala.init(x, end)
        g = generator(300 + seed)
        for _ in range(100):
            state, _ = mala.step(state, end, step_size=0.2, generator=g)
        plain.append(float((state.position[:, 0, 0] < 0).double().mean()))
    assert abs(shares.z(0.8)) < 5
    assert shares.error() < 0.01
    assert abs(ratios.z(1.0)) < 5
    assert ratios.error() < 0.03
    # Control: MALA from the same starts leaves the basins' shares of the broad Gaussian.
    assert abs(plain.z(0.8)) > 5


def test_smc_moments_on_a_mean_free_or_correlated_end():
    start, end = standard(2, 2, 3.0), correlated()
    means = Population()
    for seed in range(12):
        result = smc.run(
            start.sample(400, generator(seed)),
            start,
            end,
            moves=5,
            step_size=0.1,
            generator=generator(50 + seed),
        )
        means.append(float((result.position[:, 0, 0] ** 2).mean()))
    assert abs(means.z(4.0 + 1.0)) < 5
    assert means.error() < 0.2


def test_smc_takes_one_level_when_nothing_changes():
    target = standard(1, 2)
    result = smc.run(
        target.sample(100, generator(1)),
        target,
        target,
        moves=1,
        step_size=0.3,
        generator=generator(2),
    )
    assert result.levels == 1
    assert result.log_normaliser_ratio == pytest.approx(0.0, abs=1e-9)


def test_smc_is_bounded_in_levels_and_survives_infinite_starts():
    start, end = standard(1, 1), Wall()
    # Half of these particles start where the end density is zero.
    x = start.sample(2000, generator(3))
    result = smc.run(x, start, end, moves=3, step_size=0.05, generator=generator(4))
    energy, _ = end.energy_and_score(result.position)
    assert torch.isfinite(energy).all()
    narrow = Gaussian(torch.full((1, 1), 3.0), torch.tensor([[1e-6]]))
    result = smc.run(
        x, start, narrow, moves=1, step_size=0.05, generator=generator(5), max_levels=3
    )
    assert result.levels == 3


def test_systematic_resampling_keeps_expected_counts():
    weight = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    log_weight = weight.log().repeat(25) + 700.0
    for seed in range(20):
        index = smc.systematic_resample(log_weight, generator=generator(seed))
        assert len(index) == 100
        # Systematic resampling deviates from the expected count by less than one per particle.
        counts = torch.bincount(index, minlength=100).double()
        assert ((counts - weight.repeat(25) * 4).abs() < 1).all()


def test_effective_share_bounds():
    assert smc.effective_share(torch.zeros(10)) == pytest.approx(1.0)
    one = torch.full((10,), -torch.inf)
    one[3] = 5.0
    assert smc.effective_share(one) == pytest.approx(0.1)


def test_the_increments_of_smc_are_log_z_within_an_error_from_families() -> None:
    """Ratio of normalisers of Gaussians of width 1 and 0.2 in three dimensions: 3 log 0.2."""
    space = Euclidean(3, 1)
    start, end = population.Gaussian(space, 1.0), population.Gaussian(space, 0.2)
    truth = end.log_normaliser - start.log_normaliser
    assert truth == pytest.approx(3 * math.log(0.2))
    gaps = []
    for seed in range(40):
        g = generator(seed)
        x = start.sample(500, generator=g, like=torch.empty(0))
        state = smc.init(x, start, end, step_size=0.1)
        while not smc.finished(state, moves=3):
            state = smc.step(state, start, end, moves=3, generator=g)
        found = smc.log_normaliser_ratio(state)
        gaps.append((found.value - truth) / found.se)
    spread = torch.tensor(gaps)
    # The error is rather too large, and not by much.
    assert 0.4 < float(spread.std()) < 1.1
    assert abs(float(spread.mean())) < 4 * float(spread.std()) / 40**0.5
    # Control: a ratio off by a third of a unit.
    assert abs(float((spread + 0.33 / found.se).mean())) > 1


def test_the_normaliser_of_a_gaussian_chain_is_that_of_its_covariance() -> None:
    molecule = Molecule(types=(0, 0, 1), bonds=((0, 1), (1, 2)))
    space = MeanFree(3, 3)
    chain = population.GaussianChain(space, 0.4, molecule)
    x = chain.sample(200_000, generator=generator(0), like=torch.empty(0, dtype=torch.float64))
    # Orthonormal coordinates of the mean-free space, of one dimension: the three are alike.
    basis = torch.linalg.qr(torch.tensor([[1.0, 1, 1], [1, 0, 0], [0, 1, 0]]).double().T)[0][:, 1:]
    y = torch.einsum("ij,bid->bdj", basis, x).flatten(0, 1)
    log_z = 3 * 0.5 * (2 * math.log(2 * math.pi) + float(torch.logdet(torch.cov(y.T))))
    assert chain.log_normaliser == pytest.approx(log_z, abs=0.02)
