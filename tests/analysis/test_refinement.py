"""Refinement drift and the Monte Carlo baseline on systems with exact samples."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from exact_systems import Dimer, Springs

from molsampler.analysis.refinement import equal_budget_monte_carlo, refinement_drift
from molsampler.errors import InputError
from molsampler.molecule.chirality import signed_volumes
from molsampler.systems import get_system


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_exact_samples_keep_their_energies_and_hot_ones_do_not() -> None:
    system = Springs()
    exact = refinement_drift(system.sample(2000, 1), system, steps=30, generator=generator())
    hot = refinement_drift(
        system.sample(2000, 1, temperature=1.5), system, steps=30, generator=generator()
    )
    # Energy of six degrees of freedom: mean 3, standard deviation sqrt(3).
    error = math.sqrt(3 / 2000)
    assert abs(float(exact.after.mean()) - 3) < 5 * error
    assert abs(float(hot.before.mean()) - 4.5) < 5 * 1.5 * error
    assert abs(float(hot.after.mean()) - 3) < 0.5 * abs(float(hot.before.mean()) - 3)
    assert hot.value > 5 * exact.value
    assert 0.3 < exact.acceptance < 0.9
    assert exact.energy_evaluations == 2000 * 31 + 256 * 51


def test_a_strained_bond_is_repaired() -> None:
    system = Dimer()
    drift = refinement_drift(1.5 * system.sample(500, 2), system, steps=60, generator=generator())
    assert float(drift.before.median()) > 40
    assert float(drift.after.median()) < 2
    again = refinement_drift(1.5 * system.sample(500, 2), system, steps=60, generator=generator())
    assert again.value == drift.value


def test_monte_carlo_keeps_its_budget_and_finds_the_right_energy() -> None:
    system = Springs()
    samples = equal_budget_monte_carlo(system, 1000, energy_evaluations=300_500, seed=1)
    assert samples.metadata["energy_evaluations"] == 300_000
    assert samples.metadata["requested_energy_evaluations"] == 300_500
    assert len(samples) == 1000
    assert abs(float(samples.energies.mean()) - 3) < 5 * math.sqrt(3 / 1000)
    again = equal_budget_monte_carlo(system, 1000, energy_evaluations=300_500, seed=1)
    assert torch.equal(samples.positions, again.positions)


def test_monte_carlo_without_budget_returns_its_starts() -> None:
    system = Springs()
    samples = equal_budget_monte_carlo(system, 500, energy_evaluations=500, seed=1, spread=4.0)
    # Starts of variance 16 in six degrees of freedom under u = |x|^2 / 2.
    assert float(samples.energies.mean()) == pytest.approx(48, rel=0.2)


def test_monte_carlo_stops_at_its_time_limit() -> None:
    samples = equal_budget_monte_carlo(
        Springs(), 50, energy_evaluations=10**9, seed=1, time_limit=0.1
    )
    assert samples.metadata["seconds"] < 5
    assert samples.metadata["energy_evaluations"] < 10**9


def test_unusable_settings_are_refused() -> None:
    system = Springs()
    with pytest.raises(InputError, match="energy_evaluations"):
        equal_budget_monte_carlo(system, 10, energy_evaluations=9, seed=0)
    with pytest.raises(InputError, match="steps"):
        refinement_drift(system.sample(10, 1), system, steps=0, generator=generator())


def test_monte_carlo_of_a_molecule_moves_in_internal_coordinates() -> None:
    """It relaxes bonds from a random start, which Cartesian steps of any size would take far longer for."""
    pytest.importorskip("openmm")
    system: Any = get_system("alanine-dipeptide")
    found = equal_budget_monte_carlo(system, 20, energy_evaluations=20 * 150, seed=0)
    assert found.metadata["energy_evaluations"] == 20 * 150
    # The mean at 300 K is -23.8 kT with a standard deviation of 5.4; the start is tens of kT above.
    assert float(found.energies.median()) < -10
    assert abs(float(found.positions.mean(1).abs().max())) < 1e-6
    hands = signed_volumes(found.positions, system.molecule.chiral_centres)
    assert (hands > 0).all()
