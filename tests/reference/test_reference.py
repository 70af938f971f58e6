"""Reference runs against exact distributions of two particles, and the shipped reference sets."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
import torch

from molsampler.errors import InputError, UnknownNameError
from molsampler.mcmc import convergence
from molsampler.reference import REFERENCE_SETS, load_reference, reference_path, sample_reference
from molsampler.reference.dynamics import LangevinReplicas, highest_frequency, replicate
from molsampler.reference.observables import observables
from molsampler.reference.starts import dispersed_starts
from molsampler.systems import PairPotential, get_system

openmm = pytest.importorskip("openmm")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(barrier: float = 4.4444, d: int = 2) -> PairPotential:
    """Two particles in a double well of the distance, wells at 2.51 and 5.49, barrier in kT."""
    c = barrier / 2.2222**2
    return PairPotential(
        f"pair-barrier-{barrier:g}",
        "c*(x^2 - w)^2; x = r - 4",
        n=2,
        d=d,
        parameters={"c": c, "w": 2.2222},
        length_nm=0.1,
    )


def exact_share(system: PairPotential, cut: float = 4.0) -> float:
    """P(distance > cut) of two particles, density r^(d-1) exp(-u(r))."""
    r = torch.linspace(1e-3, 12, 20_001, dtype=torch.float64)
    x = torch.zeros(len(r), 2, system.shape[1], dtype=torch.float64)
    x[:, 0, 0] = r
    weight = r ** (system.shape[1] - 1) * torch.exp(-system.energy(x))
    return float(weight[r > cut].sum() / weight.sum())


def replica_z(samples, value, expected: float) -> float:
    """Deviation of a mean from its expectation, with the error from independent replicas."""
    replicas = samples.metadata["run"]["replicas"]
    draws = len(samples) // replicas
    means = value[-draws * replicas :].double().reshape(draws, replicas).mean(0)
    return float((means.mean() - expected) / (means.std() / math.sqrt(replicas)))


def distance(samples) -> torch.Tensor:
    return (samples.positions[:, 0] - samples.positions[:, 1]).norm(dim=-1)


# Laws


@pytest.mark.parametrize("d", [2, 3])
@pytest.mark.parametrize("method", ["openmm", "mcmc"])
def test_two_particles_follow_the_exact_distribution(method, d):
    system = pair(2.0, d)
    replicas = 16 if method == "openmm" else 80
    samples = sample_reference(system, 1600, method=method, replicas=replicas, seed=3)
    assert samples.metadata["convergence"]["converged"], samples.metadata
    far = distance(samples) > 4
    expected = exact_share(system)
    assert abs(replica_z(samples, far, expected)) < 5
    # Control: leaving out the volume element, as a twin in the wrong dimension would.
    assert abs(replica_z(samples, far, exact_share(pair(2.0, 5 - d)))) > 5


def test_dynamics_at_a_wrong_temperature_fail_the_gate():
    system = pair(2.0, 3)
    starts = dispersed_starts(system, 200, generator=generator(1))
    squared = {}
    for temperature in (1.0, 1.5):
        engine = LangevinReplicas(system, starts, generator=generator(2), temperature=temperature)
        engine.advance(1500)
        frames = []
        for _ in range(20):
            engine.advance(100)
            frames.append(system.energy(engine.read()[0]))
        squared[temperature] = torch.stack(frames).mean(0)
    r = torch.linspace(1e-3, 12, 20_001, dtype=torch.float64)
    x = torch.zeros(len(r), 2, 3, dtype=torch.float64)
    x[:, 0, 0] = r
    u = system.energy(x)
    weight = r**2 * torch.exp(-u)
    expected = float((weight * u).sum() / weight.sum())
    z = {
        temperature: float((mean.mean() - expected) / (mean.std() / math.sqrt(len(mean))))
        for temperature, mean in squared.items()
    }
    assert abs(z[1.0]) < 5
    assert abs(z[1.5]) > 5


@pytest.mark.parametrize("method", ["openmm", pytest.param("mcmc", marks=pytest.mark.slow)])
def test_modes_that_do_not_mix_are_reached_by_exchange(method, caplog):
    """A barrier of 12 kT: plain replicas keep the basin of their start, and say so."""
    system = pair(12.0, 3)
    expected = exact_share(system)
    plain = sample_reference(
        system, 320, method=method, replicas=16, exchange=False, max_steps=4000, seed=1
    )
    assert not plain.metadata["convergence"]["converged"]
    assert plain.metadata["convergence"]["r_hat"] == "inf" or (
        plain.metadata["convergence"]["r_hat"] > 1.2
    )
    assert any("chains disagree" in text for text in plain.metadata["convergence"]["warnings"])
    assert any("chains disagree" in record.message for record in caplog.records)

    mixed = sample_reference(system, 320, method=method, replicas=16, max_steps=60_000, seed=1)
    assert mixed.metadata["convergence"]["converged"], mixed.metadata
    run = mixed.metadata["run"]
    settings = run["replica_exchange"] if method == "openmm" else run
    assert settings["rungs"] > 2
    assert abs(replica_z(mixed, distance(mixed) > 4, expected)) < 5


def test_replicas_do_not_interact():
    system = get_system("lj13")
    twin, _ = system.openmm_twin()
    merged = replicate(twin, 3)
    x = 1.5 * system.space.randn(3, generator=generator(1), like=torch.zeros(1).double())

    def forces(positions):
        context = openmm.Context(
            merged, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
        )
        context.setPositions((positions.flatten(0, 1) * system.length_nm).numpy())
        state = context.getState(energy=True, forces=True)
        return state.getPotentialEnergy()._value, state.getForces(asNumpy=True)._value

    kt = 8.31446261815324e-3 * 300
    energy, before = forces(x)
    assert energy == pytest.approx(kt * float(system.energy(x).sum()), rel=1e-9)
    moved = x.clone()
    moved[1] += 0.3 * torch.randn(13, 3, generator=generator(2), dtype=torch.float64)
    _, after = forces(moved)
    np.testing.assert_array_equal(before[:13], after[:13])
    np.testing.assert_array_equal(before[26:], after[26:])
    assert np.abs(before[13:26] - after[13:26]).max() > 1


def test_replicate_refuses_what_it_would_copy_wrongly():
    twin, _ = get_system("lj13").openmm_twin()
    twin.addForce(openmm.HarmonicAngleForce())
    with pytest.raises(InputError, match="HarmonicAngleForce"):
        replicate(twin, 2)


def test_planar_systems_stay_in_their_plane():
    system = get_system("dw4")
    engine = LangevinReplicas(
        system, dispersed_starts(system, 8, generator=generator(1)), generator=generator(2)
    )
    engine.advance(500)
    x = engine.contexts[0].getState(positions=True, velocities=True)
    assert np.abs(x.getPositions(asNumpy=True)._value[:, 2]).max() == 0.0
    assert np.abs(x.getVelocities(asNumpy=True)._value[:, 2]).max() == 0.0
    assert np.abs(x.getVelocities(asNumpy=True)._value[:, :2]).min() > 0.0
    assert engine.read().mean(-2).abs().max() < 1e-12


def test_highest_frequency_of_springs():
    # Every pair of n particles joined by a spring k: Hessian n k on the mean-free space.
    springs = PairPotential("springs", "0.5*k*r^2", n=3, d=3, parameters={"k": 7.0})
    x = torch.randn(5, 3, 3, generator=generator(1), dtype=torch.float64)
    assert highest_frequency(springs, x) == pytest.approx(math.sqrt(21.0), rel=1e-5)


def test_observables_have_the_symmetry_of_the_system():
    system = get_system("lj13")
    x = system.space.randn(4, generator=generator(1), like=torch.zeros(1).double())
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator(2), dtype=torch.float64))[0]
    y = (x @ rotation)[:, torch.randperm(13, generator=generator(3))] + 2.0
    before, after = observables(system, x), observables(system, y)
    assert list(before)[:2] == ["energy", "radius of gyration"]
    for name in before:
        torch.testing.assert_close(before[name], after[name])
    coordinates = observables(get_system("mw32"), torch.zeros(2, 1, 32))
    assert len(coordinates) == 33


def test_starts_are_dispersed():
    system = get_system("dw4")
    starts = dispersed_starts(system, 300, generator=generator(1))
    assert starts.mean(1).abs().max() < 1e-12
    sizes = starts.square().sum((1, 2)).sqrt().reshape(100, 3).mean(0)
    assert sizes[0] < 0.8 * sizes[1] < 0.64 * sizes[2]


# Contract


def test_samples_say_what_they_are_and_repeat(caplog):
    seen = []
    system = pair(1.0)
    with caplog.at_level(logging.WARNING):
        samples = sample_reference(
            system, 250, replicas=8, seed=5, progress=lambda *values: seen.append(values)
        )
    assert not caplog.records
    assert samples.positions.shape == (250, 2, 2)
    assert samples.positions.dtype == torch.float32
    assert samples.log_weights is None
    torch.testing.assert_close(
        samples.energies, system.energy(samples.positions.double()), rtol=1e-12, atol=0
    )
    assert samples.positions.mean(1).abs().max() < 1e-6
    metadata = json.loads(json.dumps(samples.metadata))
    assert set(metadata["convergence"]) == {
        "r_hat", "ess", "statistical_inefficiency", "converged", "warnings",
    }  # fmt: skip
    verdict = metadata["convergence"]
    assert verdict["converged"] is True
    assert verdict["warnings"] == []
    assert 1 <= verdict["r_hat"] <= convergence.R_HAT_LIMIT
    assert 50 < verdict["ess"] <= 250
    assert metadata["run"]["thinning_steps"] >= verdict["statistical_inefficiency"]
    assert metadata["run"]["time_step_ps"] > 0
    assert (metadata["method"], metadata["seed"]) == ("openmm", 5)

    assert seen[-1] == (250, 250, "done")
    done = [values[0] for values in seen]
    assert all(0 <= d <= 250 for d in done)
    assert done == sorted(done)

    again = sample_reference(system, 250, replicas=8, seed=5)
    other = sample_reference(system, 250, replicas=8, seed=6)
    assert torch.equal(samples.positions, again.positions)
    assert not torch.equal(samples.positions, other.positions)


def test_references_of_one_seed_are_independent_at_all_temperatures(monkeypatch) -> None:
    """In a trap the same noise makes the same configurations, larger: the negative control."""
    trap = PairPotential("trap", "0.5*x^2/n; x = r", n=2, d=3, length_nm=0.1)

    def correlation() -> float:
        sets = [
            sample_reference(trap.at(t), 256, method="mcmc", replicas=64, exchange=False, seed=4)
            for t in (1.5, 3.0)
        ]
        return float(torch.corrcoef(torch.stack([each.energies for each in sets]))[0, 1])

    assert abs(correlation()) < 5 / 256**0.5
    monkeypatch.setattr("molsampler.reference.run.seed_at", lambda seed, temperature: seed)
    assert correlation() > 0.5


def test_kept_samples_are_nearly_independent():
    samples = sample_reference(pair(1.0), 1600, replicas=16, seed=2)
    trace = distance(samples).reshape(100, 16).T.numpy()
    assert convergence.statistical_inefficiency(trace) < 2


@pytest.mark.parametrize("n", [1, 5, 17])
def test_any_number_of_samples(n):
    samples = sample_reference(pair(1.0), n, method="mcmc", replicas=8)
    assert len(samples) == n
    assert len(samples.positions.unique(dim=0)) == n


def test_an_interrupt_passes_through():
    class StopError(Exception):
        pass

    def stop(done, total, message):
        raise StopError

    with pytest.raises(StopError):
        sample_reference(pair(1.0), 100, replicas=4, progress=stop)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"n": 0}, "n must be"),
        ({"n": 2.5}, "n must be"),
        ({"n": 5, "replicas": 1}, "replicas"),
        ({"n": 5, "method": "gromacs"}, "gromacs"),
        ({"n": 5, "exchange": "sometimes"}, "exchange"),
        ({"n": 5, "max_steps": 3}, "max_steps"),
    ],
)
def test_bad_arguments_are_named(arguments, word):
    with pytest.raises(InputError, match=word):
        sample_reference("dw4", **arguments)


@pytest.mark.parametrize("name", ["mog40", "mw32"])
def test_systems_without_a_twin_name_the_other_method(name):
    with pytest.raises(InputError, match="mcmc"):
        sample_reference(name, 10, method="openmm")


@pytest.mark.slow
def test_many_well_weights_by_tempering():
    samples = sample_reference("mw32", 640, method="mcmc", seed=1)
    x = samples.positions[:, 0, ::2]
    assert abs(replica_z(samples, (x > 0).double().mean(1), 0.84431)) < 5
    assert abs(replica_z(samples, samples.energies, 16 * -8.57490)) < 5


@pytest.mark.slow
def test_mixture_components_by_tempering():
    samples = sample_reference("mog40", 4000, method="mcmc", seed=1)
    assert abs(replica_z(samples, -samples.energies, -6.862)) < 5


# Shipped sets


@pytest.mark.parametrize("name", REFERENCE_SETS)
def test_shipped_sets_load_and_state_their_provenance(name):
    samples = load_reference(name)
    system = get_system(name)
    assert len(samples) >= 8000
    assert samples.positions.shape[1:] == system.shape
    torch.testing.assert_close(
        samples.energies, system.energy(samples.positions.double()), rtol=1e-9, atol=1e-9
    )
    assert samples.metadata["system"] == name
    assert samples.metadata["convergence"]["converged"] is True
    assert {"method", "seed", "version", "run"} <= set(samples.metadata)
    assert reference_path(name).stat().st_size <= 3 * 2**20


def test_shipped_double_well_has_the_known_mode_weights():
    samples = load_reference("dw4")
    i, j = torch.triu_indices(4, 4, 1)
    far = ((samples.positions[:, i] - samples.positions[:, j]).norm(dim=-1) > 4).sum(1)
    for count, share in ((2, 0.41), (3, 0.035), (4, 0.517)):
        found = float((far == count).double().mean())
        # Twice the binomial error for the correlation left, and half a last digit of the literature.
        assert abs(found - share) < 5 * 2 * math.sqrt(share / len(far)) + 0.005
    # Control: the oldest public set has .44 in the largest class.
    assert abs(float((far == 4).double().mean()) - 0.44) > 0.05


def test_unknown_set_lists_what_there_is():
    with pytest.raises(UnknownNameError, match="dw4"):
        load_reference("lj55")
