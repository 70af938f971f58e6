"""A molecule whose log Z is known: what a trained exact sampler's weights say of it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from butane import write

from molsampler import Sampler
from molsampler.errors import InputError
from molsampler.estimate import log_mean
from molsampler.molecule.internal_coordinates import random_rotations
from molsampler.systems import get_system
from molsampler.train import load_config, train

SETTINGS = (
    "iterations=150",
    "generator.layers=2",
    "generator.width=16",
    "objective.batch_size=128",
    "objective.draws=64",
    "objective.population.size=1024",
    "objective.population.anneal_moves=5",
    "objective.population.equilibration=60",
    "objective.population.refresh=64",
    "evaluate_every=150",
    "evaluate_samples=1000",
)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Sampler:
    folder = tmp_path_factory.mktemp("exact")
    system = get_system(write(folder))
    config = load_config("exact", system.name, overrides=SETTINGS, molecule=True)
    result = train(system, folder / "run", config)
    assert result.artifact is not None
    return Sampler.load(result.artifact, system=system)


def truth(temperature: float) -> float:
    """log Z by quadrature: bonds, angles and torsion of united-atom butane know nothing of each other."""
    kt = 8.31446261815324e-3 * temperature
    r = np.linspace(0.05, 0.3, 20001)
    bond = np.trapezoid(r**2 * np.exp(-0.5 * 50000 * (r - 0.153) ** 2 / kt), r)
    theta = np.linspace(0, np.pi, 20001)
    angle = np.trapezoid(np.sin(theta) * np.exp(-0.5 * 400 * (theta - 1.95) ** 2 / kt), theta)
    phi = np.linspace(0, 2 * np.pi, 20001)
    torsion = np.trapezoid(np.exp(-3 * (1 + np.cos(3 * phi)) / kt), phi)
    return 3 * math.log(bond) + 2 * math.log(angle) + math.log(torsion)


def test_log_z_is_that_of_the_stated_measure(exact) -> None:
    samples = exact.sample(8000, seed=1)
    assert samples.log_weights is not None
    assert samples.ess > 0.5 * len(samples)
    log_z = samples.log_z
    assert log_z is not None
    assert samples.metadata["coordinates"] == "internal"
    expected = truth(exact.system.temperature)
    assert abs(log_z.value - expected) < 5 * log_z.se < 0.1
    # Negative control: a length unit missed, or the constant of the free torsion.
    for error in (math.log(10.0) * 9, 0.5 * math.log(2 * math.pi)):
        assert abs(log_z.value + error - expected) > 5 * log_z.se


def test_the_density_of_positions_is_that_of_their_weights(exact) -> None:
    samples = exact.sample(500, seed=2)
    x = samples.positions.double()
    turn = random_rotations(len(x), generator=torch.Generator().manual_seed(0), like=x)
    moved = x @ turn + 0.3
    log_prob = exact.log_prob(moved)
    weights = -exact.system.energy(x).double() - log_prob
    assert samples.log_weights is not None
    # float32 positions of a bond of relative width 2 % are known to some 1e-5 of it.
    torch.testing.assert_close(weights, samples.log_weights, rtol=0, atol=0.02)
    # Negative control: configurations that are none of the sampler's.
    stretched = -exact.system.energy(1.02 * x).double() - exact.log_prob(1.02 * x)
    assert float((stretched - samples.log_weights).abs().median()) > 0.02


def test_averages_under_weights_are_the_truth_for_a_poor_sampler(exact) -> None:
    """Draws thinned by a wrong law: their corrected weights give the same averages."""
    samples = exact.sample(8000, seed=3)
    ends = (samples.positions[:, 0] - samples.positions[:, 3]).double().norm(dim=-1)
    kept = torch.rand(len(ends), generator=torch.Generator().manual_seed(0)) < torch.sigmoid(
        (ends - 0.32) / 0.03
    )
    assert samples.log_weights is not None
    thinned = samples.log_weights[kept] - torch.nn.functional.logsigmoid((ends[kept] - 0.32) / 0.03)
    from molsampler.estimate import mean

    whole, part = (
        samples.expectation(lambda x: (x[:, 0] - x[:, 3]).norm(dim=-1)),
        mean(ends[kept], thinned),
    )
    error = math.hypot(float(whole.se), float(part.se))
    assert abs(float(whole.value - part.value)) < 5 * error
    assert abs(float(ends[kept].mean() - whole.value)) > 10 * error
    assert math.isfinite(log_mean(thinned).value)


def test_samplers_without_a_density_say_so() -> None:
    sampler = Sampler.load("mog40")
    with pytest.raises(InputError, match="'implicit' does not know its density"):
        sampler.log_prob(torch.zeros(2, 1, 2))
    assert sampler.sample(8).log_weights is None


def test_the_run_selects_by_the_effective_share(exact) -> None:
    quality = {row["metric"]: row for row in exact.card.quality}
    assert quality["effective share of weights"]["value"] > 0.3


def test_files_keep_the_weights(exact, tmp_path: Path) -> None:
    from molsampler.export import load

    samples = exact.sample(64)
    samples.save(tmp_path / "x.npz")
    again = load(tmp_path / "x.npz")
    assert again.log_weights is not None
    assert torch.equal(again.log_weights, samples.log_weights)
