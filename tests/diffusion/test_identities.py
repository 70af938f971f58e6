"""The three score identities, and posterior sampling, against a Gaussian mixture solved by hand."""

import math
from functools import partial

import pytest
import torch

from molsampler.diffusion import identities
from molsampler.diffusion.posterior import GaussianFactor, posterior_score, start_chains
from molsampler.diffusion.schedule import LinearBeta, LogUniformSigma, Scales
from molsampler.errors import InputError
from molsampler.mcmc import hmc, mala
from molsampler.space import Euclidean

SIGMAS = 6.0


class Mixture:
    """Uneven mixture of two isotropic Gaussians in the plane, every diffused quantity in closed form."""

    def __init__(self):
        self.space = Euclidean(1, 2)
        self.means = torch.tensor([[-1.5, 0.0], [1.0, 1.0]], dtype=torch.float64)
        self.weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
        self.variance = 0.25

    def _log_terms(self, x, means, variance):
        gap = x[..., None, :] - means
        return (
            self.weights.log()
            - gap.square().sum(-1) / (2 * variance)
            - math.log(2 * math.pi * variance)
        )

    def energy_and_score(self, x):
        flat = x[..., 0, :]
        return self._energy_and_score(flat, self.means, self.variance)

    def _energy_and_score(self, flat, means, variance):
        terms = self._log_terms(flat, means, variance)
        share = terms.softmax(-1)
        score = (share[..., None] * (means - flat[..., None, :])).sum(-2) / variance
        return -terms.logsumexp(-1), score[..., None, :]

    def diffused_score(self, x_t, alpha, sigma):
        variance = alpha**2 * self.variance + sigma**2
        return self._energy_and_score(x_t[..., 0, :], alpha * self.means, variance)[1]

    def posterior_draws(self, x_t, alpha, sigma, k, rng):
        """Exact draws (k, b, 1, 2) of x_0 given x_t (b, 1, 2)."""
        flat = x_t[:, 0]
        total = alpha**2 * self.variance + sigma**2
        share = self._log_terms(flat, alpha * self.means, total).softmax(-1)
        which = torch.multinomial(share, k, replacement=True, generator=rng).T
        precision = 1 / self.variance + alpha**2 / sigma**2
        mean = (self.means[which] / self.variance + alpha * flat / sigma**2) / precision
        noise = torch.randn(mean.shape, generator=rng, dtype=mean.dtype)
        return (mean + noise / math.sqrt(precision))[:, :, None]


@pytest.mark.parametrize("name", ["denoising", "target", "mixed"])
@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.3), (1.0, 2.0), (0.8, 0.6), (0.3, 0.954)])
def test_identity_is_unbiased_under_the_exact_posterior(name, alpha, sigma):
    mixture = Mixture()
    rng = torch.Generator().manual_seed(3)
    x_t = torch.randn(6, 1, 2, generator=rng, dtype=torch.float64)
    draws = 250_000
    x_0 = mixture.posterior_draws(x_t, alpha, sigma, draws, rng)
    scales = Scales(
        torch.full((6,), alpha, dtype=torch.float64), torch.full((6,), sigma, dtype=torch.float64)
    )
    score_0 = mixture.energy_and_score(x_0)[1]
    estimates = identities.estimate(name, x_t, x_0, score_0, scales)
    truth = mixture.diffused_score(x_t, alpha, sigma)
    error = estimates.std(0) / math.sqrt(draws)
    assert ((estimates.mean(0) - truth).abs() / error).max() < SIGMAS
    # Negative control: the score of a target at 1.1 times the temperature is outside the gate.
    wrong = identities.estimate(name, x_t, x_0, score_0 / 1.1, scales)
    if name == "target":
        assert ((wrong.mean(0) - truth).abs() / error).max() > SIGMAS


def test_variance_ranks_as_documented():
    mixture = Mixture()
    rng = torch.Generator().manual_seed(0)
    x_t = torch.randn(50, 1, 2, generator=rng, dtype=torch.float64)

    def variance(name, sigma):
        scales = Scales(torch.ones(50).double(), torch.full((50,), sigma).double())
        x_0 = mixture.posterior_draws(x_t, 1.0, sigma, 2000, rng)
        score_0 = mixture.energy_and_score(x_0)[1]
        return float(identities.estimate(name, x_t, x_0, score_0, scales).var(0).mean())

    assert variance("target", 0.05) < variance("denoising", 0.05)
    assert variance("denoising", 3.0) < variance("target", 3.0)


def test_unknown_identity_is_refused():
    with pytest.raises(InputError, match="denoising"):
        identities.estimate(
            "tweedie",
            torch.ones(1),
            torch.ones(1),
            torch.ones(1),
            Scales(torch.ones(1), torch.ones(1)),
        )


@pytest.mark.parametrize(("levels", "particles"), [(1, 64), (10, 16)])
@pytest.mark.parametrize("sigma", [0.3, 1.5])
@pytest.mark.parametrize(
    ("kernel", "box"), [(mala.step, None), (partial(hmc.step, leapfrog_steps=1), 50.0)]
)
def test_posterior_chains_reproduce_the_diffused_score(levels, particles, sigma, kernel, box):
    """AIS (or importance) starts and MALA, on 400 copies of three conditions."""
    mixture = Mixture()
    rng = torch.Generator().manual_seed(5)
    copies = 400
    base = torch.tensor([[-0.5, 0.2], [1.2, 0.3], [0.0, 2.0]], dtype=torch.float64)[:, None]
    x_t = base.repeat(copies, 1, 1)
    scales = Scales(torch.ones(len(x_t)).double(), torch.full((len(x_t),), sigma).double())
    chain = start_chains(
        x_t,
        scales,
        mixture,
        particles=particles,
        levels=levels,
        step_size=0.05,
        generator=rng,
        kernel=kernel,
        box=box,
    )
    result = posterior_score(
        x_t,
        scales,
        mixture,
        chain,
        steps=60,
        average=20,
        identity="mixed",
        step_size=0.05,
        generator=rng,
    )
    estimates = result.score.reshape(copies, 3, 1, 2)
    truth = mixture.diffused_score(base, 1.0, sigma)
    error = estimates.std(0) / math.sqrt(copies)
    assert ((estimates.mean(0) - truth).abs() / error).max() < SIGMAS
    assert 0.3 < result.acceptance < 0.99


def test_a_box_truncates_the_gaussian_factor():
    """Means and spreads are those of a truncated normal, also where the mean lies far outside."""
    x_t = torch.tensor([[0.5, -40.0]], dtype=torch.float64)[:, None]
    scales = Scales(torch.ones(1).double(), torch.full((1,), 2.0).double())
    factor = GaussianFactor(x_t, scales, Euclidean(1, 2))
    rng = torch.Generator().manual_seed(0)
    x = factor.sample(200_000, generator=rng, box=1.0)[:, 0, 0]
    assert float(x.abs().max()) <= 1.0
    low, high, density = -0.75, 0.25, torch.distributions.Normal(0.0, 1.0)
    mass = density.cdf(torch.tensor(high)) - density.cdf(torch.tensor(low))
    rise = density.log_prob(torch.tensor(low)).exp() - density.log_prob(torch.tensor(high)).exp()
    expected = 0.5 + 2.0 * float(rise / mass)
    assert abs(float(x[:, 0].mean()) - expected) < SIGMAS * float(x[:, 0].std()) / math.sqrt(len(x))
    # Its scale at the face is std^2 over the distance, a tenth.
    assert abs(float(x[:, 1].mean()) + 1.0 - 4 / 39) < 0.01
    beyond = GaussianFactor(x_t - 1e4, scales, Euclidean(1, 2)).sample(9, generator=rng, box=1.0)
    assert float(beyond.max()) == -1.0
    # Negative control: the factor without its box.
    assert float(factor.sample(1000, generator=rng).abs().max()) > 1.0


def test_training_times_may_leave_out_the_first_levels():
    schedule = LinearBeta(1e-4, 0.7, 30, first=1)
    rng = torch.Generator().manual_seed(0)
    t = schedule.times(20_000, generator=rng, like=torch.empty(0, dtype=torch.float64))
    assert schedule.level(t).unique().tolist() == list(range(1, 30))
    with pytest.raises(ValueError, match="first"):
        LinearBeta(1e-4, 0.7, 30, first=30)


def test_linear_beta_matches_the_product_formula():
    schedule = LinearBeta(1e-6, 0.05, 30)
    beta = torch.linspace(1e-6, 0.05, 30, dtype=torch.float64)
    alpha2 = (1 - beta).cumprod(0)
    scales = schedule(torch.linspace(0, 1, 30, dtype=torch.float64))
    assert torch.allclose(scales.alpha**2, alpha2, rtol=1e-12)
    assert torch.allclose(scales.alpha**2 + scales.sigma**2, torch.ones(30).double(), rtol=1e-12)
    # The smallest level has sigma^2 = 1e-6, which 1 - alpha^2 in float32 would round to 0.95e-6.
    assert math.isclose(float(schedule(torch.zeros(1)).sigma) ** 2, 1e-6, rel_tol=1e-5)


def test_log_uniform_times_are_uniform_in_log_sigma():
    schedule = LogUniformSigma(0.01, 10.0)
    rng = torch.Generator().manual_seed(0)
    t = schedule.times(20_000, generator=rng, like=torch.empty(0, dtype=torch.float64))
    share = float((schedule(t).sigma < math.sqrt(0.1)).double().mean())
    assert abs(share - 0.5) < SIGMAS * 0.5 / math.sqrt(20_000)


@pytest.mark.parametrize("bad", [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_schedules_refuse_bad_bounds(bad):
    with pytest.raises(ValueError, match="sigma_min"):
        LogUniformSigma(*bad)
