"""Reference runs of molecules, and runs that are stopped and go on."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import butane
import numpy as np
import pytest
import torch

from molsampler.collective_variables import dihedral
from molsampler.errors import FileFormatError, InputError, OutputExistsError, RunLockedError
from molsampler.reference.dynamics import LangevinReplicas
from molsampler.reference.journal import Journal
from molsampler.reference.observables import _watched_torsions, observables
from molsampler.reference.run import replica_index, sample_reference
from molsampler.reference.starts import dispersed_starts
from molsampler.systems import OpenMMSystem, PairPotential, get_system

pytest.importorskip("openmm")


@pytest.fixture(scope="module")
def molecule(tmp_path_factory: pytest.TempPathFactory) -> OpenMMSystem:
    return get_system(butane.write(tmp_path_factory.mktemp("butane")))


def pair() -> PairPotential:
    return PairPotential(
        "pair", "c*(x^2 - w)^2; x = r - 4", n=2, d=2, parameters={"c": 0.2, "w": 2.2}, length_nm=0.1
    )


def torsion_shares(system: OpenMMSystem, x: torch.Tensor) -> torch.Tensor:
    """Whether the torsion is trans, gauche+ or gauche-, ``(n, 3)``."""
    angle = dihedral(x[:, 0], x[:, 1], x[:, 2], x[:, 3])
    third = math.pi / 3
    wells = (angle.abs() > 2 * third, (angle - third).abs() < third, (angle + third).abs() < third)
    return torch.stack(wells, 1).double()


@pytest.mark.slow
def test_torsions_follow_the_exact_distribution(molecule) -> None:
    samples = sample_reference(molecule, 1600, replicas=16, seed=1)
    assert samples.metadata["convergence"]["converged"], samples.metadata
    assert samples.metadata["temperature"] == "300 K"
    x = samples.positions.double()
    # 1-4 interactions are off, so bonds, angles and torsion are independent of each other.
    grid = torch.linspace(-math.pi, math.pi, 100_001, dtype=torch.float64)[:-1]
    weight = torch.exp(-3.0 * (1 + torch.cos(3 * grid)) / (8.31446261815324e-3 * 300))
    i = replica_index(samples)
    cosine = torch.cos(3 * dihedral(x[:, 0], x[:, 1], x[:, 2], x[:, 3]))
    expected = float((weight * torch.cos(3 * grid)).sum() / weight.sum())
    means = torch.stack([cosine[i == k].mean() for k in range(16)])
    z = float((means.mean() - expected) / (means.std() / 4))
    assert abs(z) < 5
    hot = torch.exp(-3.0 * (1 + torch.cos(3 * grid)) / (8.31446261815324e-3 * 400))
    wrong = float((hot * torch.cos(3 * grid)).sum() / hot.sum())
    assert abs(float((means.mean() - wrong) / (means.std() / 4))) > 5
    shares = torsion_shares(molecule, x)
    error = torch.stack([shares[i == k].mean(0) for k in range(16)]).std(0) / 4
    assert ((shares.mean(0) - 1 / 3).abs() < 5 * error).all()
    # Harmonic bonds: the mean energy of three bonds is 3/2 kT up to curvature.
    bonds = torch.stack([(x[:, k] - x[:, k + 1]).norm(dim=-1) for k in range(3)], 1)
    energy = (0.5 * 50000 * (bonds - 0.153).square() / (8.31446261815324e-3 * 300)).mean()
    assert float(energy) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"method": "openmm", "exchange": True}, id="exchange"),
        pytest.param({"method": "mcmc"}, id="mcmc", marks=pytest.mark.slow),
    ],
)
def test_exchange_and_monte_carlo_agree_with_the_mean_energy(molecule, options) -> None:
    samples = sample_reference(molecule, 400, replicas=8, max_steps=4000, seed=2, **options)
    i = replica_index(samples)
    means = torch.stack([samples.energies[i == k].mean() for k in range(8)])
    # Three bonds and two angles, harmonic up to curvature, and the torsion's own mean.
    grid = torch.linspace(-math.pi, math.pi, 10_001, dtype=torch.float64)[:-1]
    torsion = 3.0 * (1 + torch.cos(3 * grid)) / (8.31446261815324e-3 * 300)
    weight = torch.exp(-torsion)
    expected = 2.5 + float((weight * torsion).sum() / weight.sum())
    assert abs(float(means.mean()) - expected) < 5 * float(means.std()) / math.sqrt(8) + 0.05
    assert float(means.std()) / math.sqrt(8) < 0.3
    if options["method"] == "openmm":
        ladder = samples.metadata["run"]["replica_exchange"]
        assert ladder["accepted_exchanges"] > 0.2
        assert ladder["hottest_kelvin"] in (600.0, 1200.0)


def test_all_three_wells_are_among_the_starts(molecule) -> None:
    generator = torch.Generator().manual_seed(0)
    starts = dispersed_starts(molecule, 60, generator=generator)
    assert (torsion_shares(molecule, starts).sum(0) > 5).all()
    engine = LangevinReplicas(molecule, starts, generator=generator)
    assert len(engine.contexts) == 60
    assert engine.read().shape == (1, 60, 4, 3)
    assert molecule.energy(engine.read()).max() < 40


def test_molecules_are_watched_by_their_torsions(molecule) -> None:
    x = torch.from_numpy(molecule.positions)[None]
    watched = observables(molecule, x)
    assert float(watched["cosine of torsion 0-1-2-3"]) == pytest.approx(-1.0, abs=1e-6)
    alanine = get_system("alanine-dipeptide")
    # Peptide bonds, phi and psi, and no methyl groups.
    assert [(j, k) for _, j, k, _ in _watched_torsions(alanine)] == [
        (4, 6), (6, 8), (8, 10), (10, 16),
    ]  # fmt: skip


def test_dihedral_has_the_sign_of_the_convention() -> None:
    mdtraj = pytest.importorskip("mdtraj")
    x = torch.randn(20, 4, 3, generator=torch.Generator().manual_seed(0))
    topology = mdtraj.Topology()
    residue = topology.add_residue("X", topology.add_chain())
    for _ in range(4):
        topology.add_atom("C", mdtraj.element.carbon, residue)
    expected = mdtraj.compute_dihedrals(
        mdtraj.Trajectory(x.numpy(), topology), [[0, 1, 2, 3]], periodic=False
    )
    np.testing.assert_allclose(dihedral(*x.unbind(1)).numpy(), expected[:, 0], atol=1e-4)


def test_replica_of_each_row(molecule) -> None:
    samples = sample_reference(pair(), 50, method="mcmc", replicas=8, seed=0)
    index = replica_index(samples)
    assert index.tolist() == [(6 + k) % 8 for k in range(50)]
    with pytest.raises(InputError, match="run"):
        replica_index(samples.with_metadata(run=None))


# Runs that are stopped


class StopError(Exception):
    pass


def interrupted(system, folder: Path, after: int, **options) -> None:
    """Run until ``after`` blocks have been recorded."""

    def stop(done: int, total: int, message: str) -> None:
        if len(list(folder.glob("*-0*.safetensors"))) >= after:
            raise StopError

    with pytest.raises(StopError):
        sample_reference(system, checkpoint=folder, progress=stop, **options)


@pytest.mark.parametrize(
    ("which", "options"),
    [
        ("pair", {"method": "mcmc", "replicas": 8}),
        ("pair", {"method": "openmm", "replicas": 8}),
        ("molecule", {"method": "openmm", "replicas": 4}),
        pytest.param(
            "pair",
            {"method": "mcmc", "replicas": 4, "exchange": True, "max_steps": 4000},
            marks=pytest.mark.slow,
        ),
        ("pair", {"method": "openmm", "replicas": 4, "exchange": True, "max_steps": 4000}),
    ],
)
def test_a_stopped_run_gives_the_same_samples(which, options, molecule, tmp_path, monkeypatch):
    # Reported after every frame, so that a run can be stopped anywhere.
    clock = iter(range(10**9))
    monkeypatch.setattr("molsampler.reference.run.time.monotonic", lambda: float(next(clock)))
    system = molecule if which == "molecule" else pair()
    options = {"n": 150, "seed": 4, **options}
    whole = sample_reference(system, **options)
    folder = tmp_path / "state"
    for after in (1, 3):
        interrupted(system, folder, after, **options)
    stored = sorted(path.name for path in folder.glob("*-0*.safetensors"))
    assert stored
    resumed = sample_reference(system, checkpoint=folder, **options)
    assert torch.equal(resumed.positions, whole.positions)
    assert resumed.metadata["convergence"] == whole.metadata["convergence"]
    same = {**resumed.metadata["run"], "seconds": 0} == {**whole.metadata["run"], "seconds": 0}
    assert same
    # All recorded: nothing is computed again.
    again = sample_reference(system, checkpoint=folder, **options)
    assert torch.equal(again.positions, whole.positions)


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    options = {"method": "mcmc", "replicas": 4}
    sample_reference(pair(), 20, checkpoint=folder, seed=1, **options)
    with pytest.raises(InputError, match="seed: 1 there, 2 now"):
        sample_reference(pair(), 20, checkpoint=folder, seed=2, **options)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("x")
    with pytest.raises(OutputExistsError, match="foreign"):
        sample_reference(pair(), 20, checkpoint=foreign, **options)
    with Journal(tmp_path / "busy", {}), pytest.raises(RunLockedError):
        sample_reference(pair(), 20, checkpoint=tmp_path / "busy", **options)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    block = damaged / "01-00000.safetensors"
    block.write_bytes(block.read_bytes()[:40])
    with pytest.raises(FileFormatError, match="01-00000"):
        sample_reference(pair(), 20, checkpoint=damaged, seed=1, **options)
