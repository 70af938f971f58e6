"""Diagnostics against an independent implementation and against chains of known inefficiency."""

from __future__ import annotations

import numpy as np
import pytest

from molsampler.errors import InputError
from molsampler.mcmc import convergence

arviz_stats = pytest.importorskip("arviz_stats.base", reason="arviz-stats is the oracle")


def ar1(chains: int, draws: int, phi: float, seed: int) -> np.ndarray:
    """Stationary AR(1) chains of unit variance, g = (1 + phi) / (1 - phi)."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((chains, draws)) * np.sqrt(1 - phi**2)
    x = np.empty((chains, draws))
    x[:, 0] = rng.standard_normal(chains)
    for t in range(1, draws):
        x[:, t] = phi * x[:, t - 1] + noise[:, t]
    return x


CASES = {
    "independent": ar1(4, 500, 0.0, 1),
    "correlated": ar1(8, 1001, 0.9, 2),
    "antithetic": ar1(4, 1000, -0.4, 3),
    "heavy tails": np.random.default_rng(4).standard_cauchy((4, 600)),
    "ties": np.random.default_rng(5).integers(0, 4, (4, 400)).astype(float),
    "shifted chain": ar1(4, 400, 0.3, 6) + np.array([[0.0], [0.0], [0.0], [3.0]]),
    "scaled chain": ar1(4, 400, 0.3, 7) * np.array([[1.0], [1.0], [1.0], [5.0]]),
}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_arviz(case):
    draws = CASES[case]
    oracle = arviz_stats.array_stats
    assert convergence.split_r_hat(draws) == pytest.approx(oracle.rhat(draws), rel=1e-6)
    # The truncation of the autocorrelation sum differs in its last term.
    assert convergence.effective_sample_size(draws) == pytest.approx(
        oracle.ess(draws, method="bulk"), rel=0.06
    )


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9, 0.97])
def test_inefficiency_of_ar1(phi):
    draws = ar1(16, 4000, phi, seed=11)
    expected = (1 + phi) / (1 - phi)
    g = convergence.statistical_inefficiency(draws)
    # Independent groups of chains give the estimator's own spread.
    parts = [convergence.statistical_inefficiency(draws[i : i + 4]) for i in range(0, 16, 4)]
    error = np.std(parts, ddof=1) / 2 + 0.01 * expected
    assert abs(g - expected) < 5 * error
    # Control: reading the chains as independent draws is refuted wherever they are correlated.
    if phi > 0:
        assert abs(g - 1.0) > 5 * error


def test_inefficiency_predicts_the_variance_of_the_mean():
    draws = ar1(400, 1000, 0.8, seed=12)
    observed = draws.mean(axis=1).var(ddof=1)
    predicted = convergence.statistical_inefficiency(draws[:20]) / 1000
    # Relative error of a variance over 400 chains is sqrt(2/399) = 0.07.
    assert predicted == pytest.approx(observed, rel=5 * 0.09)
    assert pytest.approx(observed, rel=5 * 0.09) != 1 / 1000


def test_decorrelated_draws_are_nearly_independent():
    draws = ar1(8, 8000, 0.9, seed=13)
    index = convergence.decorrelate(draws)
    assert index[-1] == 7999
    (stride,) = set(np.diff(index).tolist())
    assert 17 <= stride <= 22  # g = 19 for phi = 0.9
    kept = draws[:, index]
    lag1 = np.mean(kept[:, 1:] * kept[:, :-1])
    # 0.9**g is what is left after one statistical inefficiency.
    assert abs(lag1 - 0.9**stride) < 5 / np.sqrt(kept.size)
    assert abs(np.mean(draws[:, 1:] * draws[:, :-1]) - 0.9) < 0.05


def test_diagnostics_see_what_they_are_for():
    good = ar1(4, 400, 0.3, seed=14)
    assert convergence.split_r_hat(good) < 1.02
    drift = good + np.linspace(0, 3, 400)
    assert convergence.split_r_hat(drift) > 1.1
    assert convergence.split_r_hat(CASES["shifted chain"]) > 1.1
    assert convergence.split_r_hat(CASES["scaled chain"]) > 1.1
    assert convergence.effective_sample_size(CASES["shifted chain"]) < 20


def test_drift_is_standard_normal_and_sees_what_r_hat_does_not():
    z = [convergence.trend(ar1(64, 100, 0.9, seed)) for seed in range(100, 150)]
    # Mean and variance of 50 normal draws: errors 0.14 and 0.2.
    assert abs(np.mean(z)) < 5 * 0.14
    assert abs(np.var(z) - 1.0) < 5 * 0.2
    shared = ar1(256, 100, 0.5, seed=16) + np.linspace(0, 0.3, 100)
    assert convergence.split_r_hat(shared) < 1.1
    assert convergence.trend(shared) > 5
    assert convergence.trend(np.ones((3, 10))) == 0.0
    assert convergence.trend(np.ones((3, 10)) * np.arange(10)) == np.inf
    with pytest.raises(InputError, match="two chains"):
        convergence.trend(np.ones((1, 10)))


def test_rank_normalisation_ignores_monotone_maps():
    draws = CASES["correlated"]
    assert convergence.split_r_hat(np.sinh(3 * draws)) == pytest.approx(
        convergence.split_r_hat(draws), abs=2e-2
    )
    assert convergence.effective_sample_size(np.sinh(3 * draws)) == pytest.approx(
        convergence.effective_sample_size(draws)
    )


def test_assess_names_the_observable_that_fails():
    good, bad = CASES["independent"], CASES["shifted chain"]
    verdict = convergence.assess({"energy": good, "radius": bad})
    assert not verdict.converged
    assert any("radius" in text for text in verdict.warnings)
    assert not any("energy" in text for text in verdict.warnings)
    assert verdict.r_hat == pytest.approx(convergence.split_r_hat(bad))
    assert verdict.ess == pytest.approx(convergence.effective_sample_size(bad))
    assert convergence.assess({"energy": good}).converged
    # Few draws of a good chain: no disagreement, but too little to rely on.
    few = convergence.assess({"energy": good[:, :40]}, r_hat_limit=1.2)
    assert not few.converged
    assert "effective sample size" in few.warnings[0]


def test_constant_and_stuck_chains():
    constant = np.ones((4, 50))
    assert np.isnan(convergence.split_r_hat(constant))
    assert convergence.effective_sample_size(constant) == 200
    assert convergence.statistical_inefficiency(constant) == 1
    assert convergence.assess({"count": constant}, ess_limit=100).converged
    stuck = np.ones((4, 50)) * np.arange(4)[:, None]
    assert convergence.split_r_hat(stuck) == np.inf
    assert convergence.effective_sample_size(stuck) < 10
    assert not convergence.assess({"count": stuck}).converged


@pytest.mark.parametrize(
    ("draws", "word"),
    [
        (np.ones((2, 3)), "four draws"),
        (np.ones((2, 3, 4)), r"\(2, 3, 4\)"),
        (np.array([[0.0, 1.0, np.nan, 2.0]]), "finite"),
        (np.ones((0, 10)), "chain"),
    ],
)
@pytest.mark.parametrize("function", ["split_r_hat", "effective_sample_size", "decorrelate"])
def test_bad_input_is_named(draws, word, function):
    with pytest.raises(InputError, match=word):
        getattr(convergence, function)(draws)


def test_assess_needs_an_observable():
    with pytest.raises(InputError, match="at least one"):
        convergence.assess({})


def test_one_chain_may_come_flat():
    draws = ar1(1, 300, 0.5, seed=15)
    assert convergence.statistical_inefficiency(draws[0]) == convergence.statistical_inefficiency(
        draws
    )
