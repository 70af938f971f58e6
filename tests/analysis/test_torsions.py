"""Torsions, bonds and handedness: right molecules pass, and every kind of wrong one fails its gate."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from exact_systems import Springs
from peptides import BASINS, Peptide
from torch import Tensor

from molsampler.analysis import torsions
from molsampler.analysis.comparison import Comparison, compare_many
from molsampler.analysis.defects import bond_scale, broken
from molsampler.analysis.geometry import Molecule, molecule_of
from molsampler.analysis.report import render
from molsampler.cli.compare import print_comparison
from molsampler.samples import Samples
from molsampler.systems import get_system

PEPTIDE = Peptide()
REFERENCE = Samples.of(PEPTIDE, PEPTIDE.sample(8000, 1))
SAMPLES = PEPTIDE.sample(6000, 2)


def judge(x: Tensor, reference: Samples = REFERENCE, **weights: Tensor) -> Comparison:
    return compare_many(
        {"samples": Samples.of(PEPTIDE, x, **weights)},
        reference,
        PEPTIDE,
        n=600,
        repeats=3,
        transport_repeats=0,
        drift_steps=0,
    )["samples"]


@pytest.fixture(scope="module")
def right() -> Comparison:
    return judge(SAMPLES)


def failed(comparison: Comparison) -> set[str]:
    return {metric.key for metric in comparison.metrics if not metric.passed()}


def test_angles_and_lengths_are_those_that_were_drawn() -> None:
    molecule = molecule_of(PEPTIDE)
    assert molecule is not None
    narrow = PEPTIDE.sample(500, 3, basins=((1.0, (-63.0, 170.0), 1e-6),))
    angles = molecule.ramachandran(narrow)
    np.testing.assert_allclose(angles, np.broadcast_to([-63.0, 170.0], angles.shape), atol=1e-2)
    lengths = molecule.bond_lengths(SAMPLES)
    # Six standard errors of a mean and of a standard deviation.
    expected = PEPTIDE._lengths.numpy()
    order = {frozenset(bond): k for k, bond in enumerate(PEPTIDE._pairs.T.tolist())}
    column = [order[frozenset(bond)] for bond in molecule.bonds.tolist()]
    assert np.abs(lengths.mean(0) - expected[column]).max() < 6 * 0.003 / math.sqrt(6000)
    assert np.abs(lengths.std(0) / 0.003 - 1).max() < 6 / math.sqrt(12_000)


def test_weights_reach_hands_and_bonds() -> None:
    """Mirror images and stretched molecules of no weight are none; without weights they are half."""
    wrong = 1.05 * SAMPLES * torch.tensor([1.0, 1.0, -1.0])
    both = torch.cat([SAMPLES, wrong])
    log_weights = torch.zeros(len(both), dtype=torch.float64)
    log_weights[len(SAMPLES) :] = -math.inf
    weighted, plain = judge(both, log_weights=log_weights), judge(both)
    assert failed(weighted) == set()
    assert {"broken_bonds", "wrong_hand"} <= failed(plain)
    assert weighted.molecule is not None
    assert plain.molecule is not None
    assert weighted.molecule.centres[0].samples == (0, len(both))
    assert plain.molecule.centres[0].samples == (len(SAMPLES), len(SAMPLES))
    assert weighted.molecule.broken < 0.02 * len(both)
    for bond in weighted.molecule.bonds:
        assert bond.samples == pytest.approx(bond.reference, rel=0.1)
    # The same as a reference: its scale is that of the molecules that count.
    mixed = Samples.of(PEPTIDE, both, log_weights=log_weights)
    assert failed(judge(SAMPLES, mixed)) == set()


def test_molecules_of_the_same_law_pass(right: Comparison) -> None:
    assert failed(right) == set()
    keys = {metric.key for metric in right.metrics}
    expected = {"ramachandran_tvd", "basin_tvd", "torsion_tvd", "broken_bonds", "wrong_hand"}
    assert expected <= keys
    assert right.molecule is not None
    (centre,) = right.molecule.centres
    assert centre.name == "ALA2 CA"
    assert dict(zip(centre.hands, centre.samples, strict=True)) == {"D": 0, "L": 6000}


def test_mirrored_molecules_fail_the_chirality_gate_and_no_distance_sees_them() -> None:
    mirrored = judge(-SAMPLES)
    blind = {"tvd_energy", "tvd_distance", "energy_w2", "energy_w2_trimmed", "broken_bonds"}
    assert "wrong_hand" in failed(mirrored)
    assert mirrored.metric("wrong_hand").value == pytest.approx(1.0)
    assert not blind & failed(mirrored)
    assert mirrored.molecule is not None
    assert mirrored.molecule.centres[0].samples == (6000, 0)


def test_a_single_wrong_hand_fails_where_the_reference_has_none() -> None:
    one = judge(torch.cat([-SAMPLES[:1], SAMPLES[1:]]))
    assert failed(one) == {"wrong_hand"}
    assert one.metric("wrong_hand").value == pytest.approx(1 / 6000)


def test_racemic_sets_agree_with_each_other_but_not_with_one_hand() -> None:
    def racemic(x: Tensor) -> Tensor:
        return torch.cat([x[::2], -x[1::2]])

    reference = Samples.of(PEPTIDE, racemic(REFERENCE.positions))
    assert "wrong_hand" not in failed(judge(racemic(SAMPLES), reference))
    assert "wrong_hand" in failed(judge(SAMPLES, reference))
    assert "wrong_hand" in failed(judge(-SAMPLES, reference))


def test_shifted_phi_fails_the_torsion_gates() -> None:
    shifted = judge(PEPTIDE.sample(6000, 2, shift=15.0))
    assert {"ramachandran_tvd", "torsion_tvd"} <= failed(shifted)
    assert "wrong_hand" not in failed(shifted)


def test_a_basin_of_wrong_weight_fails_and_its_free_energy_is_the_logarithm() -> None:
    basins = tuple(
        (weight, centre, width)
        for weight, (_, centre, width) in zip((0.75, 0.15, 0.10), BASINS, strict=True)
    )
    wrong = judge(PEPTIDE.sample(6000, 2, basins=basins))
    assert "basin_tvd" in failed(wrong)
    assert wrong.molecule is not None
    (residue,) = wrong.molecule.residues
    for found, truth in (
        (residue.sample_basins, math.log(0.75 / 0.15)),
        (residue.reference_basins, math.log(0.55 / 0.35)),
    ):
        # The basins' borders cut a few percent off their Gaussians.
        assert abs(found.free_energy[1] - truth) < 6 * found.free_energy_se[1] + 0.1


@pytest.mark.parametrize(("count", "passes"), [(1, True), (60, False)])
def test_stretched_bonds_are_counted(count: int, passes: bool) -> None:
    x = SAMPLES.clone()
    # The oxygen of the acetyl group, moved away along its bond by ten standard deviations.
    bond = x[:count, 5] - x[:count, 4]
    x[:count, 5] += 0.03 * bond / bond.norm(dim=-1, keepdim=True)
    stretched = judge(x)
    assert stretched.molecule is not None
    assert stretched.molecule.broken == count
    assert ("broken_bonds" not in failed(stretched)) == passes
    worst = max(stretched.molecule.bonds, key=lambda bond: bond.worst)
    assert worst.name == "ACE1-C - ACE1-O"


def test_rounding_of_a_trajectory_file_breaks_nothing() -> None:
    rounded = REFERENCE.positions.double().mul(1000).round().div(1000)
    stiff = rounded.mean(0, keepdim=True).expand(500, -1, -1)
    # A reference of rigid bonds has no width of its own.
    noise = 5e-4 * (2 * torch.rand(500, 22, 3, generator=torch.Generator().manual_seed(0)) - 1)
    molecule = molecule_of(PEPTIDE)
    assert molecule is not None
    lengths = molecule.bond_lengths(stiff + noise)
    assert not broken(lengths, bond_scale(molecule.bond_lengths(stiff))).any()


def test_errors_of_free_energies_match_the_spread_over_sets() -> None:
    molecule = molecule_of(PEPTIDE)
    assert molecule is not None
    found = [
        torsions.basin_weights(molecule.ramachandran(PEPTIDE.sample(600, seed))[:, 0])
        for seed in range(40)
    ]
    for k in (1, 2):
        spread = np.std([b.free_energy[k] for b in found], ddof=1)
        stated = math.sqrt(np.mean([b.free_energy_se[k] ** 2 for b in found]))
        assert 0.6 < stated / spread < 1.6


def test_correlated_replicas_widen_the_error() -> None:
    """Eight replicas, each stuck in one basin: the error must be that of eight, not of 4,000."""
    rng = np.random.default_rng(0)
    stuck = np.where(np.arange(8) < 5, 0, 1)
    centre = np.array([b[1] for b in BASINS])
    angles = np.tile(centre[stuck], (500, 1)) + rng.normal(size=(4000, 2))
    groups = torsions.replica_groups({"run": {"replicas": 8}}, 4000)
    by_replica = torsions.basin_weights(angles, groups=groups)
    by_block = torsions.basin_weights(angles)
    assert by_replica.se[0] == pytest.approx(math.sqrt(5 / 8 * 3 / 8 / 7))
    assert by_block.se[0] < 0.01
    assert torsions.replica_groups({"run": {"replicas": True}}, 4000) is None
    assert torsions.replica_groups({}, 4000) is None


def test_an_empty_basin_has_infinite_free_energy_and_null_in_json() -> None:
    one = judge(PEPTIDE.sample(1200, 4, basins=((1.0, (-110.0, 140.0), 8.0),)))
    assert one.molecule is not None
    basins = one.molecule.residues[0].sample_basins
    assert basins.free_energy[2] == math.inf
    written = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    assert written["molecule"]["residues"][0]["sample_basins"]["free_energy"][2] is None
    assert "infinite" in render(one)


def test_importance_weights_are_honoured() -> None:
    basins = tuple((weight, *b[1:]) for weight, b in zip((0.4, 0.4, 0.2), BASINS, strict=True))
    x = PEPTIDE.sample(12_000, 5, basins=basins)
    molecule = molecule_of(PEPTIDE)
    assert molecule is not None
    label = torsions.basin_labels(molecule.ramachandran(x)[:, 0])
    weights = torch.tensor([0.55 / 0.4, 0.35 / 0.4, 0.1 / 0.2], dtype=torch.float64)[label]
    assert "basin_tvd" in failed(judge(x))
    weighted = judge(x, log_weights=weights.log())
    assert "basin_tvd" not in failed(weighted)
    assert weighted.molecule is not None
    (residue,) = weighted.molecule.residues
    gap = residue.sample_basins.weights - residue.reference_basins.weights
    error = np.hypot(residue.sample_basins.se, residue.reference_basins.se)
    assert (np.abs(gap) < 6 * error + 0.02).all()


def test_tables_and_report_show_the_molecule(
    right: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    print_comparison(right)
    text = capsys.readouterr().out
    assert "Ramachandran TVD" in text
    assert "handedness at ALA2 CA: 0 D, 6,000 L (reference 0 D, 8,000 L)" in text
    assert "broken molecules" in text
    page = render(right)
    assert page == render(right)
    # Energies, distances, and one plane of torsions a side.
    assert page.count("<svg ") == 4
    for words in ("Molecular geometry", "Ramachandran", "chiral centre", "6,000 L", "alpha-R"):
        assert words in page
    assert re.findall(r"(?:src|href)=", page) == []
    assert replace(right, molecule=None).to_dict()["molecule"] is None


@pytest.mark.parametrize("system", [Springs(), Springs(4, 3), get_system("lj13")])
def test_systems_without_bonds_have_no_molecule(system: object) -> None:
    assert molecule_of(system) is None  # type: ignore[arg-type]


@pytest.mark.slow
def test_molecular_dynamics_of_a_real_molecule() -> None:
    """Hands and bonds of alanine dipeptide under Amber, from a structure that others made."""
    openmm = pytest.importorskip("openmm")
    testsystems = pytest.importorskip("openmmtools.testsystems")
    mdtraj = pytest.importorskip("mdtraj")
    made = testsystems.AlanineDipeptideVacuum(constraints=None, hydrogenMass=None)
    integrator = openmm.LangevinMiddleIntegrator(300, 5, 0.001)
    integrator.setRandomNumberSeed(1)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(made.system, integrator, platform)
    context.setPositions(made.positions)
    openmm.LocalEnergyMinimizer.minimize(context)
    frames = []
    for _ in range(400):
        integrator.step(20)
        positions = context.getState(getPositions=True).getPositions(asNumpy=True)
        frames.append(torch.from_numpy(np.asarray(positions._value)))
    molecule = Molecule(mdtraj.Topology.from_openmm(made.topology), 1.0)
    x = torch.stack(frames[100:])
    assert molecule.hands(x).all()
    assert not molecule.hands(-x).any()
    lengths = molecule.bond_lengths(x)
    assert broken(lengths, bond_scale(lengths)).mean() < 0.02
    ours = {frozenset(bond) for bond in PEPTIDE._pairs.T.tolist()}
    assert {frozenset(bond) for bond in molecule.bonds.tolist()} == ours
    assert np.abs(lengths.mean(0) - 0.12).max() < 0.04
