"""Free energies from weighted samples against exact values; what ill weights lead to."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from weighted import Harmonic, TwoWells, proposed

from molsampler.analysis import FreeEnergy, free_energy, judge, mbar_arrays
from molsampler.analysis.bootstrap import blocks_of
from molsampler.errors import InputError, NonFiniteError, ShapeError, UnknownNameError
from molsampler.samples import Samples

QUANTITIES = ("log_z", "F", "U", "S", "C")


def scores(found: FreeEnergy, truth: dict[str, float]) -> dict[str, float]:
    """How many standard errors each quantity is from the truth."""
    result = {}
    for name, true in truth.items():
        estimate = getattr(found, name)
        assert estimate is not None
        result[name] = (estimate.value - true) / estimate.se
    return result


def with_weights(samples: Samples, log_weights: Any) -> Samples:
    return Samples(samples.positions, samples.energies, log_weights, samples.metadata)


def test_a_bad_proposal_gives_the_exact_thermodynamics() -> None:
    system = Harmonic()
    found = free_energy(proposed(system, 20_000, seed=0, width=1.1, centre=0.5), system)
    assert found.usable
    assert found.verdict.ess < 10_000
    z = scores(found, system.truth)
    assert max(map(abs, z.values())) < 5, z
    assert found.F is not None
    assert found.F.se < 0.05


def test_plain_averages_over_the_proposal_are_wrong() -> None:
    """Negative control: without the weights the same samples miss U and C by far."""
    system = Harmonic()
    plain = with_weights(proposed(system, 20_000, seed=0, width=1.1, centre=0.5), None)
    found = free_energy(plain, system)
    z = scores(found, {name: system.truth[name] for name in ("U", "C")})
    assert min(map(abs, z.values())) > 20


def test_errors_cover_the_truth_as_they_say() -> None:
    """Over 200 small sets the variance of the scores is one within five of its own errors."""
    system, wells = Harmonic(d=2), TwoWells(share=0.4)
    truth = {**system.truth, "population": 0.4, "difference": math.log(0.6 / 0.4)}
    found: dict[str, list[float]] = {name: [] for name in truth}
    for seed in range(200):
        one = free_energy(proposed(system, 500, seed=seed, width=0.95, centre=0.2), repeats=100)
        for name, z in scores(one, system.truth).items():
            found[name].append(z)
        two = free_energy(proposed(wells, 500, seed=seed, width=3.0), wells, repeats=100)
        basin = next(b for b in two.basins if b.name == "right")
        other = next(b for b in two.basins if b.name == "left")
        found["population"].append((basin.population.value - 0.4) / basin.population.se)
        moving = basin if basin.free_energy and basin.free_energy.se else other
        assert moving.free_energy is not None
        sign = 1 if moving is basin else -1
        gap = moving.free_energy.value - sign * truth["difference"]
        found["difference"].append(gap / moving.free_energy.se)
    for name, z in found.items():
        assert abs(float(np.mean(z))) < 5 / math.sqrt(200) + 0.1, (name, np.mean(z))
        assert 0.6 < float(np.var(z)) < 1.5, (name, np.var(z))


def test_basins_have_their_exact_weights() -> None:
    system = TwoWells(share=0.2)
    found = free_energy(proposed(system, 20_000, seed=1, width=3.0), system)
    left, right = found.basins
    assert (left.name, right.name, right.reference) == ("left", "right", "left")
    assert abs(right.population.value - 0.2) < 5 * right.population.se
    assert right.free_energy is not None
    assert abs(right.free_energy.value - math.log(4)) < 5 * right.free_energy.se
    assert (left.free_energy, right.free_energy.se < 0.1) == ((0.0, 0.0), True)


def test_a_density_off_by_a_factor_in_one_half_shows() -> None:
    """Negative control: basin and log Z move by what the factor says, well beyond the errors."""
    system = TwoWells(share=0.2)
    good, bad = (
        free_energy(proposed(system, 20_000, seed=1, width=3.0, wrong=wrong), system)
        for wrong in (0.0, math.log(2))
    )
    before, after = good.basins[1].free_energy, bad.basins[1].free_energy
    assert before is not None
    assert after is not None
    assert before.value - after.value == pytest.approx(math.log(2), abs=1e-6)
    assert abs(after.value - math.log(4)) > 5 * after.se
    assert good.log_z is not None
    assert bad.log_z is not None
    assert bad.log_z.value - system.log_z > 5 * bad.log_z.se


def test_weights_cannot_see_a_mode_that_the_proposal_misses() -> None:
    """log Z lacks exactly the missed share, and nothing in the verdict says so."""
    system = TwoWells(share=0.2, half=8.0)
    found = free_energy(proposed(system, 20_000, seed=2, width=1.1, centre=-8.0), system)
    assert found.usable
    assert found.log_z is not None
    assert found.log_z.value == pytest.approx(system.log_z + math.log(0.8), abs=5 * found.log_z.se)
    right = found.basins[1]
    assert (right.population.value, right.free_energy) == (0.0, None)


def ill(case: str) -> Samples:
    samples = proposed(Harmonic(), 2_000, seed=3, width=0.8)
    assert samples.log_weights is not None
    log_weights = samples.log_weights.clone()
    if case == "one rules":
        log_weights[7] += 20
    elif case == "all zero":
        log_weights[:] = -math.inf
    elif case == "few count":
        log_weights[50:] = -math.inf
    elif case == "heavy tail":
        log_weights = torch.distributions.Exponential(1.0).sample((2_000,)).double()
    elif case == "infinite energy":
        energies = samples.energies.clone()
        energies[5] = math.inf
        return Samples(samples.positions, energies, log_weights)
    return with_weights(samples, log_weights)


CASES = {
    "one rules": "one sample has",
    "all zero": "every one of the 2,000 weights is zero",
    "few count": "effective number of samples is",
    "heavy tail": "Pareto k is",
    "infinite energy": "infinite energy",
}


@pytest.mark.parametrize("case", CASES)
def test_ill_weights_end_in_a_statement_and_no_number(case: str) -> None:
    torch.manual_seed(0)
    found = free_energy(ill(case))
    assert not found.usable
    assert CASES[case] in found.verdict.reason
    data = found.to_dict()
    assert all(data[name] is None for name in QUANTITIES)
    assert (data["basins"], data["along"], data["usable"]) == ([], None, False)
    json.dumps(data, allow_nan=False)


def test_the_sound_version_of_the_ill_weights_is_usable() -> None:
    """Negative control: it is the change that makes them ill."""
    assert free_energy(ill("")).usable


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(bad: float) -> None:
    samples = proposed(Harmonic(), 200, seed=0)
    assert samples.log_weights is not None
    log_weights = samples.log_weights.clone()
    log_weights[3] = bad
    with pytest.raises(NonFiniteError, match="the first is sample 3"):
        with_weights(samples, log_weights)


def test_samples_without_weight_may_have_any_energy() -> None:
    system = Harmonic()
    samples = proposed(system, 5_000, seed=4, width=0.8)
    assert samples.log_weights is not None
    energies, log_weights = samples.energies.clone(), samples.log_weights.clone()
    energies[:100], log_weights[:100] = math.inf, -math.inf
    found = free_energy(Samples(samples.positions, energies, log_weights), system)
    # Zero weights are part of the mean: a hundredth of the proposal is said to be outside.
    truth = {**system.truth, "log_z": system.truth["log_z"] + math.log(0.98)}
    z = scores(found, {name: truth[name] for name in ("log_z", "U", "C")})
    assert max(map(abs, z.values())) < 5, z


def test_equal_weights_have_no_tail_and_are_usable() -> None:
    samples = proposed(Harmonic(width=1.0), 500, seed=0, width=1.0)
    found = free_energy(samples)
    assert found.usable
    assert found.log_z is not None
    assert found.log_z.value == pytest.approx(Harmonic(width=1.0).truth["log_z"], abs=1e-6)
    assert judge(torch.zeros(500, dtype=torch.float64), 500).pareto_k is None


def test_unweighted_samples_give_plain_averages_and_say_so() -> None:
    system = Harmonic()
    random = torch.Generator().manual_seed(5)
    exact = Samples.of(system, system.width * torch.randn(4_000, 1, 4, generator=random))
    found = free_energy(exact, system)
    assert (found.log_z, found.F, found.S) == (None, None, None)
    assert found.verdict.reason.startswith("unweighted")
    z = scores(found, {name: system.truth[name] for name in ("U", "C")})
    assert max(map(abs, z.values())) < 5
    assert found.usable


def test_resampled_copies_count_once() -> None:
    """Copies of 20,000 rows of which some hundreds count: their error is that of the weights."""
    system = Harmonic()
    weighted = proposed(system, 5_000, seed=6, width=1.3, centre=1.0)
    drawn = weighted.resample(20_000, seed=1)
    first, second = free_energy(weighted, system).U, free_energy(drawn, system).U
    naive = free_energy(Samples(drawn.positions, drawn.energies), system).U
    assert first is not None
    assert second is not None
    assert naive is not None
    assert second.se == pytest.approx(first.se, rel=0.3)
    # Negative control: taken as independent the copies seem several times better.
    assert naive.se < 0.5 * first.se


def test_rows_of_a_chain_are_taken_by_block() -> None:
    """AR(1) with rho = .95: the error of U grows by sqrt(g), g being 1 + 2 rho^2 / (1 - rho^2)."""
    system, n, rho = Harmonic(d=1), 20_000, 0.95
    noise = np.random.default_rng(0).standard_normal(n)
    x = np.empty(n)
    x[0] = noise[0]
    for i in range(1, n):
        x[i] = rho * x[i - 1] + math.sqrt(1 - rho**2) * noise[i]
    chain = Samples.of(system, torch.from_numpy(system.width * x).reshape(n, 1, 1))
    shuffled = chain[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
    found, naive = free_energy(chain, system), free_energy(shuffled, system)
    assert "one chain" in found.rule
    assert "without correlation" in naive.rule
    assert found.U is not None
    assert naive.U is not None
    growth = math.sqrt(1 + 2 * rho**2 / (1 - rho**2))
    assert found.U.se / naive.U.se == pytest.approx(growth, rel=0.25)
    assert abs(found.U.value - system.truth["U"]) < 5 * found.U.se


def test_replicas_of_a_reference_are_chains_of_their_own() -> None:
    """Eight replicas that never mix, interleaved row by row, are eight blocks."""
    n, replicas = 800, 8
    where = torch.arange(n) % replicas
    positions = where.double().reshape(n, 1, 1) + 0.0
    samples = Samples.of(Harmonic(d=1), positions, run={"replicas": replicas})
    found = blocks_of(samples, samples.energies.numpy()[:, None])
    assert found.count == replicas
    assert all(len(set(found.index[where == r])) == 1 for r in range(replicas))


def test_units_are_those_of_the_temperature() -> None:
    samples = proposed(Harmonic(), 2_000, seed=0, width=0.8)
    plain = free_energy(samples)
    found = free_energy(samples, unit="kJ/mol", temperature=300.0)
    calories = free_energy(samples, unit="kcal/mol", temperature=300.0)
    assert plain.F is not None
    assert found.F is not None
    assert calories.F is not None
    assert plain.C is not None
    assert found.C is not None
    assert found.F.value / plain.F.value == pytest.approx(8.31446261815324e-3 * 300)
    assert found.F.value / calories.F.value == pytest.approx(4.184)
    assert found.C.value / plain.C.value == pytest.approx(8.31446261815324e-3)
    assert (plain.entropy_unit, found.entropy_unit) == ("k", "kJ/(mol K)")


def test_units_without_a_temperature_are_refused() -> None:
    samples = proposed(Harmonic(), 200, seed=0)
    with pytest.raises(InputError, match="needs a temperature"):
        free_energy(samples, unit="kJ/mol")
    with pytest.raises(UnknownNameError, match="did you mean 'kJ/mol'"):
        free_energy(samples, unit="kJ/mole")
    system = Harmonic()
    system.temperature, system.in_kelvin = 310.0, True
    with pytest.raises(InputError, match="those of 310 K"):
        free_energy(samples, system, temperature=300.0)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"edges": [0.0]}, InputError, "pass along="),
        ({"bins": 2}, InputError, "bins must be"),
        ({"repeats": 3}, InputError, "repeats must be"),
        ({"system": "mw32"}, ShapeError, "samples must have shape"),
        ({"temperature": -1.0}, InputError, "positive number of kelvin"),
    ],
)
def test_unusable_arguments_are_named(arguments, error, said) -> None:
    with pytest.raises(error, match=said):
        free_energy(proposed(Harmonic(), 200, seed=0), **arguments)


def test_json_holds_what_scripts_expect() -> None:
    system = TwoWells()
    data = free_energy(proposed(system, 5_000, seed=0, width=3.0), system).to_dict()
    keys = {"n", "ess", "max_weight", "pareto_k", "usable", "reason", *QUANTITIES, "basins"}
    assert keys <= data.keys()
    assert all(set(data[name]) == {"value", "se"} for name in QUANTITIES)
    for basin in data["basins"]:
        assert set(basin["population"]) == set(basin["free_energy"]) == {"value", "se"}
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_pymbar_agrees() -> None:
    pymbar = pytest.importorskip("pymbar")
    system = Harmonic()
    samples = proposed(system, 4_000, seed=7, width=0.9, centre=0.3)
    u_kn, n_k = mbar_arrays(samples)
    found = pymbar.MBAR(u_kn, n_k).compute_free_energy_differences()
    estimate = free_energy(samples, system).log_z
    assert estimate is not None
    assert found["Delta_f"][0, 1] == pytest.approx(-estimate.value, abs=1e-8)
    assert found["dDelta_f"][0, 1] == pytest.approx(estimate.se, rel=0.15)
    exp = pymbar.other_estimators.exp(u_kn[1] - u_kn[0])
    assert exp["Delta_f"] == pytest.approx(-estimate.value, abs=1e-8)


def test_mbar_arrays_keep_zero_weights_and_refuse_none() -> None:
    samples = proposed(Harmonic(), 300, seed=7)
    assert samples.log_weights is not None
    log_weights = samples.log_weights.clone()
    log_weights[:30] = -math.inf
    u_kn, n_k = mbar_arrays(with_weights(samples, log_weights))
    assert list(n_k) == [300, 0]
    assert not np.isnan(u_kn).any()
    weights = np.exp(u_kn[0] - u_kn[1])
    assert np.allclose(weights, log_weights.exp().numpy())
    with pytest.raises(InputError, match="must carry log weights"):
        mbar_arrays(with_weights(samples, None))


def test_samples_of_a_function_need_it_for_basins_only() -> None:
    kind = {
        "kind": "function",
        "name": "own",
        "particles": 1,
        "dimensions": 1,
        "function": "own.py:u",
    }
    samples = proposed(TwoWells(), 4000, seed=2)
    own = Samples(
        samples.positions,
        samples.energies,
        samples.log_weights,
        {**samples.metadata, "system": kind},
    )
    found = free_energy(own)
    known = free_energy(samples, TwoWells())
    assert found.system is None
    assert found.basins == ()
    assert found.F == known.F
    with pytest.raises(InputError, match="must be one of torsion"):
        free_energy(own, along="wells")
