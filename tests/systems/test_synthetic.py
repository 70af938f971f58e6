"""The two synthetic densities, whose normalisation, samples and mode weights are known."""

from __future__ import annotations

import math

import pytest
import torch

from molsampler.errors import InputError
from molsampler.systems import GaussianMixture, ManyWell, get_system

#: Of mog40, by quadrature.
MEAN_LOG_DENSITY = -6.859468854971567


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_published_densities_of_the_mixture() -> None:
    mixture = GaussianMixture()
    assert mixture.means.shape == (40, 2)
    assert mixture.sigma == pytest.approx(1.3132616875, abs=5e-11)
    x = torch.tensor([[[0.0, 0.0]], [[10.0, -10.0]]], dtype=torch.float64)
    # The means are published with six decimals, which leaves a few units in the sixth here.
    assert mixture.log_prob(x).tolist() == pytest.approx([-23.316348, -54.442286], abs=5e-6)
    # The same sums in 30-digit arithmetic.
    assert mixture.log_prob(x).tolist() == pytest.approx(
        [-23.31634693398559, -54.44228242964542], abs=1e-12
    )


def test_the_mixture_is_normalised_and_has_the_published_mean_log_density() -> None:
    # On a smooth density that vanishes at the border the plain sum is exact to rounding.
    mixture = GaussianMixture()
    axis = torch.arange(-55, 55, 0.25, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)[:, None]
    log_prob = mixture.log_prob(points)
    cell = 0.25**2
    assert (log_prob.exp().sum() * cell).item() == pytest.approx(1, abs=1e-9)
    mean = (log_prob.exp() * log_prob).sum().item() * cell
    assert mean == pytest.approx(MEAN_LOG_DENSITY, abs=1e-7)
    # Published as a Monte Carlo estimate, hence good to its third decimal only.
    assert mean == pytest.approx(-6.862, abs=4e-3)


def test_mixture_samples_follow_the_density() -> None:
    mixture = GaussianMixture()
    n = 40_000
    x = mixture.sample(n, generator=generator())
    assert x.shape == (n, 1, 2)
    log_prob = mixture.log_prob(x)
    error = log_prob.std().item() / math.sqrt(n)
    assert abs(log_prob.mean().item() - MEAN_LOG_DENSITY) < 5.5 * error
    # E[score] = 0 and E[x . score] = -dimensions, by integration by parts.
    _, score = mixture.energy_and_score(x)
    products = (x * score).sum((-1, -2))
    assert abs(products.mean().item() + 2) < 5.5 * products.std().item() / math.sqrt(n)
    assert torch.equal(x, mixture.sample(n, generator=generator()))


def test_every_component_is_drawn_equally_often() -> None:
    # Components overlap, so the shares of the nearest mean are compared with those of a lattice sum.
    mixture = GaussianMixture()
    n = 40_000
    counts = torch.bincount(
        mixture.component(mixture.sample(n, generator=generator(1))), minlength=40
    )
    axis = torch.arange(-55, 55, 0.25, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)[:, None]
    expected = torch.zeros(40, dtype=torch.float64).index_add_(
        0, mixture.component(points), mixture.log_prob(points).exp() * 0.25**2
    )
    error = (expected * (1 - expected) / n).sqrt()
    assert ((counts / n - expected).abs() < 5.5 * error + 2e-4).all()


def test_published_values_of_the_many_well() -> None:
    system = get_system("mw32")
    assert isinstance(system, ManyWell)
    assert system.energy(torch.ones(1, 32, dtype=torch.float64)).item() == pytest.approx(-80)
    x = torch.tensor([1.7, 0.3] * 16, dtype=torch.float64)[None]
    # -0.85 - 17.34 + 8.3521 + 0.045 a pair; published from single precision as -156.686401.
    assert system.energy(x).item() == pytest.approx(16 * -9.7929, abs=1e-12)
    assert system.energy(x).item() == pytest.approx(-156.686401, abs=2e-6)
    assert system.log_z / 16 == pytest.approx(
        math.log(11784.50927) + 0.5 * math.log(2 * math.pi), abs=1e-9
    )
    assert system.positive_weight == pytest.approx(0.84431, abs=5e-6)
    assert system.mean_energy / 16 == pytest.approx(-8.57490, abs=5e-6)


def test_exact_statistics_agree_with_adaptive_quadrature() -> None:
    from scipy.integrate import quad

    def density(d: float) -> float:
        return math.exp(0.5 * d + 6 * d**2 - d**4)

    left, right = quad(density, -5, 0, epsabs=0)[0], quad(density, 0, 5, epsabs=0)[0]
    system = ManyWell(1)
    assert system.log_z == pytest.approx(math.log((left + right) * math.sqrt(2 * math.pi)))
    assert system.positive_weight == pytest.approx(right / (left + right), abs=1e-10)


def test_many_well_samples_have_the_exact_statistics() -> None:
    system = ManyWell(16)
    n = 4_000
    x = system.sample(n, generator=generator())
    assert x.shape == (n, 1, 32)
    d, v = x[..., 0::2], x[..., 1::2]
    share = (d > 0).double().mean().item()
    p = system.positive_weight
    assert abs(share - p) < 5.5 * math.sqrt(p * (1 - p) / (16 * n))
    energy = system.energy(x)
    assert abs(energy.mean().item() - system.mean_energy) < 5.5 * energy.std().item() / math.sqrt(n)
    _, score = system.energy_and_score(x)
    for part, force in ((d, score[..., 0::2]), (v, score[..., 1::2])):
        products = (part * force).reshape(-1)
        error = products.std().item() / math.sqrt(len(products))
        assert abs(products.mean().item() + 1) < 5.5 * error
    assert torch.equal(x, system.sample(n, generator=generator()))


def test_the_statistics_see_a_symmetric_well() -> None:
    x = ManyWell(16).sample(4_000, generator=generator())
    x[..., 0::2] *= torch.randint(2, x[..., 0::2].shape, generator=generator(3)) * 2.0 - 1
    share = (x[..., 0::2] > 0).double().mean().item()
    p = ManyWell(16).positive_weight
    assert abs(share - p) > 5.5 * math.sqrt(p * (1 - p) / 64_000)


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="n_pairs"):
        ManyWell(0)
    with pytest.raises(InputError, match="non-negative"):
        ManyWell(2).sample(-1, generator=None)
    with pytest.raises(InputError, match="non-negative"):
        GaussianMixture().sample(-1, generator=None)
