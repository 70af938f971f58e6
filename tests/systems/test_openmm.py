"""OpenMM systems against OpenMM itself, their symmetries, faults, and the files that define them."""

from __future__ import annotations

import copy
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from molsampler.errors import (
    FileFormatError,
    InputError,
    NonFiniteError,
    SimulationError,
    UnknownNameError,
)
from molsampler.molecule.chirality import right_handed
from molsampler.molecule.graph import equivalence_classes, rotatable_bonds, within_bonds
from molsampler.space import Euclidean, MeanFree
from molsampler.systems import OpenMMSystem, get_system
from molsampler.systems.openmm import alanine_dipeptide as module
from molsampler.units import TWIN_TEMPERATURE, kT

openmm = pytest.importorskip("openmm")
app = pytest.importorskip("openmm.app")
unit = openmm.unit

ALANINE = "alanine-dipeptide"


@pytest.fixture(scope="module")
def alanine() -> OpenMMSystem:
    return get_system(ALANINE)


def near(system: OpenMMSystem, *batch: int, noise: float = 0.005, seed: int = 0) -> torch.Tensor:
    """Positions ``(*batch, n, 3)`` near the given configuration."""
    generator = torch.Generator().manual_seed(seed)
    kicks = torch.randn(*batch, *system.shape, generator=generator, dtype=torch.float64)
    return torch.from_numpy(system.positions) + noise * kicks


def direct(system, x, platform="Reference"):
    """Potential energies and forces from OpenMM alone, in kJ/mol and nm."""
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform)
    )
    energies, forces = [], []
    for row in x.reshape(-1, *x.shape[-2:]):
        context.setPositions(row.numpy())
        state = context.getState(energy=True, forces=True)
        energies.append(state.getPotentialEnergy().value_in_unit(unit.kilojoules_per_mole))
        forces.append(state.getForces(asNumpy=True)._value.copy())
    return torch.tensor(energies, dtype=torch.float64), torch.from_numpy(np.array(forces))


def chain(n: int = 2, *, field: float = 0.0, mass: float = 10.0):
    """Atoms joined by springs of 0.2 nm, optionally in a harmonic field; system and topology."""
    system, topology = openmm.System(), app.Topology()
    place = topology.addChain()
    bonds = openmm.HarmonicBondForce()
    carbon = app.Element.getBySymbol("C")
    atoms = []
    for i in range(n):
        system.addParticle(mass)
        atoms.append(topology.addAtom(f"C{i}", carbon, topology.addResidue("UNK", place)))
        if i:
            bonds.addBond(i - 1, i, 0.2, 5000.0)
            topology.addBond(atoms[i - 1], atoms[i])
    system.addForce(bonds)
    if field:
        force = openmm.CustomExternalForce(f"0.5*{field}*(x^2+y^2+z^2)")
        for i in range(n):
            force.addParticle(i, [])
        system.addForce(force)
    return system, topology


# Energies and forces


def test_alanine_dipeptide_is_what_openmm_says(alanine) -> None:
    x = near(alanine, 8, noise=0.02)
    twin, _ = alanine.openmm_twin()
    energies, forces = direct(twin, x)
    u, score = alanine.energy_and_score(x)
    beta = 1 / kT(300.0)
    torch.testing.assert_close(u, beta * energies, rtol=1e-12, atol=0)
    torch.testing.assert_close(score, beta * forces, rtol=1e-12, atol=1e-12)
    # Control: another temperature is another density.
    assert (u - energies / kT(310.0)).abs().min() > 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("HarmonicOscillator", {}),
        ("PowerOscillator", {}),
        ("HarmonicOscillatorArray", {}),
        ("Diatom", {}),
        ("LennardJonesCluster", {}),
        ("LennardJonesPair", {}),
        ("WaterCluster", {"n_waters": 4, "constrained": False}),
        ("AlanineDipeptideVacuum", {"constraints": None}),
        ("AlanineDipeptideImplicit", {"constraints": None}),
        ("TolueneVacuum", {"constraints": None}),
        ("TolueneImplicitOBC2", {"constraints": None}),
        ("HostGuestVacuum", {"constraints": None}),
        ("HostGuestImplicit", {"constraints": None}),
    ],
)
def test_openmmtools_systems_are_what_openmm_says(name: str, options) -> None:
    testsystems = pytest.importorskip("openmmtools.testsystems")
    test = getattr(testsystems, name)(**options)
    system = OpenMMSystem(
        test.system, test.topology, 300, positions=test.positions, platform="Reference"
    )
    x = near(system, 3, noise=0.003)
    energies, forces = direct(test.system, x)
    u, score = system.energy_and_score(x)
    torch.testing.assert_close(u * kT(300.0), energies, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(score * kT(300.0), forces, rtol=1e-9, atol=1e-9)
    in_field = name in (
        "HarmonicOscillator", "PowerOscillator", "HarmonicOscillatorArray", "LennardJonesCluster",
        "WaterCluster",
    )  # fmt: skip
    assert isinstance(system.space, Euclidean if in_field else MeanFree)
    assert system.invariant is not in_field


def test_periodic_test_systems_are_refused_with_the_reason() -> None:
    testsystems = pytest.importorskip("openmmtools.testsystems")
    test = testsystems.LennardJonesFluid(nparticles=64)
    with pytest.raises(InputError, match=r"periodic.*normalised"):
        OpenMMSystem(test.system, test.topology, 300)


def test_cluster_through_openmm_equals_the_analytic_one() -> None:
    lj13 = get_system("lj13")
    twin = OpenMMSystem(*lj13.openmm_twin(), TWIN_TEMPERATURE, name="lj13-openmm")
    index = torch.arange(13)
    grid = torch.stack([index // 9, index // 3 % 3, index % 3], -1).double()
    noise = torch.randn(20, 13, 3, generator=torch.Generator().manual_seed(0)).double()
    x = grid + 0.1 * noise
    u, score = lj13.energy_and_score(x)
    v, force = twin.energy_and_score(lj13.length_nm * x)
    torch.testing.assert_close(v, u, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(force * lj13.length_nm, score, rtol=1e-9, atol=1e-9)
    assert twin.energy(lj13.length_nm * grid) == pytest.approx(-38.865221378814, abs=1e-9)
    assert twin.invariant
    assert twin.exchangeable
    assert isinstance(twin.space, MeanFree)


def test_score_by_finite_differences_and_by_autograd(alanine) -> None:
    x = near(alanine)
    _, score = alanine.energy_and_score(x)
    step = 1e-6
    for particle, axis in [(0, 0), (6, 1), (8, 2), (13, 0), (21, 2)]:
        shift = torch.zeros_like(x)
        shift[particle, axis] = step
        slope = (alanine.energy(x + shift) - alanine.energy(x - shift)) / (2 * step)
        assert -float(slope) == pytest.approx(float(score[particle, axis]), rel=1e-5, abs=1e-2)
    z = near(alanine, 2, 2).requires_grad_()
    weight = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    (weight * alanine.energy(z)).sum().backward()
    expected = -weight[..., None, None] * alanine.energy_and_score(z)[1]
    torch.testing.assert_close(z.grad, expected)


def test_temperature_and_positions_with_and_without_units() -> None:
    system, topology = chain()
    x = torch.tensor([[0.0, 0, 0], [0.3, 0, 0]], dtype=torch.float64)
    plain = OpenMMSystem(system, topology, 200, positions=x)
    units = OpenMMSystem(
        system, topology, 200 * unit.kelvin, positions=(10 * x.numpy()) * unit.angstrom
    )
    assert plain.energy(x) == units.energy(x) == pytest.approx(25.0 / kT(200.0))
    np.testing.assert_allclose(plain.positions, units.positions)
    assert plain.temperature == units.temperature == plain.twin_temperature == 200.0
    for wrong in (0, -3, math.nan, "300", None, True, 3 * unit.nanometer):
        with pytest.raises(InputError, match="temperature"):
            OpenMMSystem(system, topology, wrong)


def test_later_changes_of_the_users_objects_change_nothing() -> None:
    system, topology = chain()
    target = OpenMMSystem(system, topology, 300)
    x = torch.tensor([[0.0, 0, 0], [0.3, 0, 0]])
    before = target.energy(x)
    system.getForce(0).setBondParameters(0, 0, 1, 0.1, 1.0)
    assert target.energy(x) == before


# Symmetry


def test_a_field_is_found_and_is_not_projected_away() -> None:
    free, bound = (OpenMMSystem(*chain(3, field=k), 300) for k in (0.0, 0.01))
    assert (free.invariant, free.translation_invariant, free.exchangeable) == (True, True, False)
    assert isinstance(free.space, MeanFree)
    assert not bound.invariant
    assert not bound.translation_invariant
    assert isinstance(bound.space, Euclidean)
    x = torch.randn(4, 3, 3, dtype=torch.float64) + 5.0
    assert torch.equal(bound.space.project(x), x)


def test_fields_that_no_probe_meets_still_count() -> None:
    system, topology = chain(3)
    # Zero to rounding wherever the probe looks.
    well = openmm.CustomExternalForce("-100*exp(-1000*((x-77)^2+y^2+z^2))")
    well.addParticle(0, [])
    system.addForce(well)
    assert not OpenMMSystem(system, topology, 300).translation_invariant
    assert OpenMMSystem(system, topology, 300, invariant=True).translation_invariant


def test_a_field_along_one_axis_breaks_rotation_and_translation() -> None:
    system, topology = chain(2)
    drawn = openmm.CustomCompoundBondForce(2, "0.1*(x1 - x2)^2")
    drawn.addBond([0, 1], [])
    system.addForce(drawn)
    target = OpenMMSystem(system, topology, 300)
    assert target.translation_invariant
    assert not target.rotation_invariant
    assert not target.invariant
    assert isinstance(target.space, MeanFree)


def test_handedness_in_the_energy_breaks_reflection_alone() -> None:
    system, topology = chain(4)
    twist = openmm.PeriodicTorsionForce()
    twist.addTorsion(0, 1, 2, 3, 1, 0.5, 5.0)
    system.addForce(twist)
    target = OpenMMSystem(system, topology, 300)
    assert target.translation_invariant
    assert target.rotation_invariant
    assert not target.reflection_invariant
    assert not target.invariant


def test_amber_does_not_tell_mirror_images(alanine) -> None:
    assert alanine.invariant
    assert alanine.reflection_invariant
    assert isinstance(alanine.space, MeanFree)
    x = near(alanine, 3)
    torch.testing.assert_close(alanine.energy(-x), alanine.energy(x))
    # Shipped as L: N, C' and CB run round the alpha carbon as in natural amino acids.
    n, ca, c, cb = (alanine.positions[i] for i in (6, 8, 10, 12))
    assert [a.name for a in alanine.topology().atoms][6:13:2] == ["N", "CA", "C", "CB"]
    assert np.dot(np.cross(n - ca, c - ca), cb - ca) > 0.002


# Contract


@pytest.mark.parametrize("batch", [(), (0,), (3,), (2, 0), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shapes_and_dtypes(alanine, batch, dtype) -> None:
    x = near(alanine, *batch).to(dtype)
    u, score = alanine.energy_and_score(x)
    assert u.shape == alanine.energy(x).shape == batch
    assert score.shape == x.shape
    assert u.dtype == score.dtype == dtype
    # Rows are evaluated in double precision at the positions they have.
    exact = alanine.energy(x.double()).to(dtype)
    assert torch.equal(u, exact)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e20])
def test_unusable_coordinates_are_named_on_every_platform(platform, bad) -> None:
    system = OpenMMSystem(*chain(3), 300, platform=platform)
    x = torch.zeros(4, 3, 3)
    x[2, 1, 0] = bad
    with pytest.raises(NonFiniteError, match="row 2, particle 1, axis 0"):
        system.energy_and_score(x)


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_coincident_particles_spoil_their_own_row_only(platform) -> None:
    system = get_system(ALANINE).__class__(platform=platform)
    x = near(system, 5)
    clean, clean_score = system.energy_and_score(x)
    # Bonded, and far apart in the graph: a bond of no length has an energy, a contact has none.
    x[1, 1] = x[1, 0]
    x[3, 21] = x[3, 2]
    u, score = system.energy_and_score(x)
    assert torch.isinf(u[[1, 3]]).all()
    assert (u[[1, 3]] > 0).all()
    assert torch.count_nonzero(score[[1, 3]]) == 0
    assert torch.equal(u[[0, 2, 4]], clean[[0, 2, 4]])
    assert torch.equal(score[[0, 2, 4]], clean_score[[0, 2, 4]])
    assert torch.equal(system.energy(x), u)


def test_particles_that_meet_in_a_field_only_may_coincide() -> None:
    system, topology = openmm.System(), app.Topology()
    place = topology.addChain()
    force = openmm.CustomExternalForce("x^2+y^2+z^2")
    for i in range(2):
        system.addParticle(1.0)
        force.addParticle(i, [])
        topology.addAtom("X", None, topology.addResidue("UNK", place))
    system.addForce(force)
    target = OpenMMSystem(system, topology, 300)
    assert target.energy(torch.ones(2, 3)) == pytest.approx(6.0 / kT(300.0))
    assert target.exchangeable


def test_random_configurations_never_give_nan(alanine) -> None:
    generator = torch.Generator().manual_seed(2)
    for scale in (1e-30, 1e-8, 1e-3, 1.0, 1e3, 1e5):
        u, score = alanine.energy_and_score(scale * torch.randn(10, 22, 3, generator=generator))
        assert not u.isnan().any()
        assert score.isfinite().all()


def test_copies_and_pickles_evaluate_alike(alanine) -> None:
    x = near(alanine, 2)
    for other in (copy.deepcopy(alanine), pickle.loads(pickle.dumps(alanine))):
        assert torch.equal(other.energy(x), alanine.energy(x))
        assert other.topology() == alanine.topology()
        assert other.record() == alanine.record()


# What is refused


def test_systems_without_a_density_on_free_coordinates_are_refused() -> None:
    def refused(change, match: str) -> None:
        system, topology = chain(3)
        change(system)
        with pytest.raises(InputError, match=match):
            OpenMMSystem(system, topology, 300)

    refused(lambda s: s.addConstraint(0, 1, 0.2), "1 constraints.*free coordinates")
    refused(lambda s: s.setParticleMass(1, 0.0), "particle 1.*no mass")

    def site(system) -> None:
        system.setParticleMass(2, 0.0)
        system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))

    refused(site, "virtual sites")
    refused(lambda s: s.addForce(openmm.MonteCarloBarostat(1, 300)), "MonteCarloBarostat.*volume")

    def periodic(system) -> None:
        force = openmm.NonbondedForce()
        force.setNonbondedMethod(force.PME)
        for _ in range(3):
            force.addParticle(0, 0.3, 0.1)
        system.addForce(force)

    refused(periodic, "NonbondedForce of system is periodic")
    refused(lambda s: s.addParticle(1.0), "topology has 3 atoms, system has 4")


def test_thermostats_and_centre_of_mass_removal_are_left_out() -> None:
    system, topology = chain(2)
    system.addForce(openmm.CMMotionRemover())
    system.addForce(openmm.AndersenThermostat(300, 1))
    twin, _ = OpenMMSystem(system, topology, 300).openmm_twin()
    assert [type(force).__name__ for force in twin.getForces()] == ["HarmonicBondForce"]
    assert system.getNumForces() == 3


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"platform": "Referense"}, "Reference"),
        ({"workers": -1}, "workers"),
        ({"timeout": 0}, "timeout"),
        ({"name": "../x"}, "name"),
        ({"invariant": "yes"}, "invariant"),
        ({"positions": np.zeros((3, 3))}, "positions"),
        ({"positions": np.full((2, 3), np.nan)}, "positions"),
    ],
)
def test_bad_arguments_are_named(options, word) -> None:
    with pytest.raises(InputError, match=word):
        OpenMMSystem(*chain(), 300, **options)
    with pytest.raises(InputError, match=r"openmm\.System"):
        OpenMMSystem("system", chain()[1], 300)
    with pytest.raises(InputError, match="topology"):
        OpenMMSystem(chain()[0], "topology", 300)


# Workers


@pytest.fixture(scope="module")
def pooled() -> OpenMMSystem:
    system = get_system(ALANINE).__class__(workers=2, timeout=20.0)
    yield system
    system.close()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_results_are_bitwise_the_same_with_any_number_of_workers(pooled) -> None:
    alone = get_system(ALANINE).__class__(platform="Reference")
    x = near(alone, 301, noise=0.01)
    u, score = alone.energy_and_score(x)
    for _ in range(2):
        v, other = pooled.energy_and_score(x)
        assert torch.equal(u, v)
        assert torch.equal(score, other)
    assert torch.equal(pooled.energy(x[:1]), u[:1])
    assert pooled.energy(x[:0]).shape == (0,)
    # More rows than fit the shared memory pass in rounds.
    pooled._pool.capacity = 100
    assert torch.equal(pooled.energy(x), u)


def evaluate_often(system: OpenMMSystem, x: torch.Tensor) -> None:
    for _ in range(100):
        system.energy(x)


def test_a_killed_worker_is_an_error_that_names_its_exit_code(pooled) -> None:
    x = near(pooled, 3000)
    pooled.energy(x[:1])
    victims = pooled._pool.processes
    killer = threading.Timer(0.1, os.kill, (victims[0], signal.SIGKILL))
    killer.start()
    began = time.monotonic()
    with pytest.raises(SimulationError, match="exit code -9, SIGKILL") as caught:
        evaluate_often(pooled, x)
    killer.join()
    assert time.monotonic() - began < 20.0
    assert str(victims[0]) in str(caught.value)
    assert not any(alive(pid) for pid in victims)
    # The next evaluation has workers of its own.
    assert torch.isfinite(pooled.energy(x[:5])).all()
    assert not set(pooled._pool.processes) & set(victims)


def test_a_worker_that_hangs_is_killed_within_the_time_out(pooled) -> None:
    x = near(pooled, 50)
    pooled.energy(x)
    victims = pooled._pool.processes
    pooled._pool.timeout = 1.0
    os.kill(victims[1], signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(SimulationError, match=r"within 1 s.*exit code -9"):
        evaluate_often(pooled, x)
    assert time.monotonic() - began < 5.0
    assert not any(alive(pid) for pid in victims)


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    # No guard around the main module: workers do not import it again.
    script = tmp_path / "user_script.py"
    script.write_text(
        "import time, torch\n"
        "from molsampler.systems import AlanineDipeptide\n"
        "system = AlanineDipeptide(workers=2)\n"
        "system.energy(torch.from_numpy(system.positions).repeat(4, 1, 1))\n"
        "print(*system._pool.processes, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        assert all(alive(pid) for pid in workers)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10.0
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


def test_a_forked_child_leaves_its_parents_workers_alone(pooled) -> None:
    x = near(pooled, 3)
    before = pooled.energy(x)
    workers = pooled._pool.processes
    child = os.fork()
    if child == 0:
        # Only what a child may do: drop the inherited pool.
        pooled._pool = None
        os._exit(0)
    os.waitpid(child, 0)
    assert all(alive(pid) for pid in workers)
    assert torch.equal(pooled.energy(x), before)
    assert pooled._pool.processes == workers


def test_a_worker_that_cannot_start_says_why() -> None:
    system = OpenMMSystem(*chain(), 300, platform="CPU", workers=1)
    system.properties = {"Nonsense": "1"}
    with pytest.raises(SimulationError, match="Nonsense"):
        system.energy(torch.randn(1, 2, 3))
    with pytest.raises(SimulationError, match="Nonsense"):
        OpenMMSystem(*chain(), 300, platform="CPU", properties={"Nonsense": "1"})


# Molecular graphs


def test_equivalent_atoms_share_a_type(alanine) -> None:
    names = [f"{a.residue.name}:{a.name}" for a in alanine.topology().atoms]
    groups: dict[int, set[str]] = {}
    for name, kind in zip(names, alanine.molecule.types, strict=True):
        groups.setdefault(kind, set()).add(name)
    assert {frozenset(group) for group in groups.values() if len(group) > 1} == {
        frozenset({"ACE:H1", "ACE:H2", "ACE:H3"}),
        frozenset({"ALA:HB1", "ALA:HB2", "ALA:HB3"}),
        frozenset({"NME:H1", "NME:H2", "NME:H3"}),
    }
    assert len(alanine.molecule.bonds) == 21
    # Exchanging equivalent hydrogens leaves the energy alone; others do not.
    x = near(alanine)
    swapped, wrong = x.clone(), x.clone()
    swapped[[13, 14]] = x[[14, 13]]
    wrong[[9, 13]] = x[[13, 9]]
    assert alanine.energy(swapped) == pytest.approx(float(alanine.energy(x)), abs=1e-9)
    assert abs(alanine.energy(wrong) - alanine.energy(x)) > 100


def test_graph_functions() -> None:
    butane = [(0, 1), (1, 2), (2, 3)]
    assert equivalence_classes("CCCC", butane) == (0, 1, 1, 0)
    assert equivalence_classes("CCCO", butane) == (0, 1, 2, 3)
    assert equivalence_classes("AB", []) == (0, 1)
    assert rotatable_bonds(4, butane) == [((0, 1, 2, 3), [3])]
    ring = [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (3, 5)]
    assert rotatable_bonds(6, ring) == [((0, 2, 3, 4), [4, 5])]
    assert within_bonds(4, butane, 2) == {(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)}


def test_starts_turn_torsions_and_nothing_else(alanine) -> None:
    import mdtraj

    starts = alanine.starts(60, generator=torch.Generator().manual_seed(1))
    trajectory = mdtraj.Trajectory(starts.numpy(), alanine.topology())
    phi = mdtraj.compute_phi(trajectory)[1]
    omega = mdtraj.compute_dihedrals(trajectory, [[0, 4, 6, 8], [8, 10, 16, 18]])
    assert (phi > 0).any()
    assert (phi < 0).any()
    assert np.abs(omega).min() > 2.5
    i, j = np.array(alanine.molecule.bonds).T
    lengths = (starts[:, i] - starts[:, j]).norm(dim=-1)
    torch.testing.assert_close(lengths, lengths[:1].expand(60, -1))
    n, ca, c, cb = (starts[:, k] for k in (6, 8, 10, 12))
    assert (torch.linalg.cross(n - ca, c - ca) * (cb - ca)).sum(-1).min() > 0.002
    assert OpenMMSystem(*chain(3), 300).starts(2, generator=None) is None


# System files


@pytest.fixture
def peptide(tmp_path: Path) -> Path:
    source = Path(module.__file__).parents[1] / "data" / "alanine_dipeptide.pdb"
    (tmp_path / "ala.pdb").write_text(source.read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(
        "kind: openmm\npdb: ala.pdb\nforcefield: [amber99sbildn.xml, amber99_obc.xml]\n"
        "temperature: 300\nplatform: Reference\n"
    )
    return path


def test_a_system_file_gives_the_same_energies(alanine, peptide, monkeypatch) -> None:
    monkeypatch.chdir("/")
    system = get_system(peptide)
    assert (system.name, system.temperature) == ("mine", 300.0)
    assert system.platform == "Reference"
    x = near(alanine, 3)
    torch.testing.assert_close(system.energy(x), alanine.energy(x), rtol=1e-12, atol=1e-9)
    assert system.record()["kind"] == "openmm"
    hot = get_system_from(peptide, "temperature: 300", "temperature: 400")
    assert system.record()["sha256"] != hot.record()["sha256"]
    torch.testing.assert_close(hot.energy(x) * 4 / 3, system.energy(x))


def get_system_from(path: Path, old: str, new: str) -> OpenMMSystem:
    content = path.read_text()
    assert old in content
    changed = path.with_name("changed.yaml")
    changed.write_text(content.replace(old, new))
    return get_system(changed)


def test_implicit_solvent_and_nonbonded_options(alanine, peptide) -> None:
    x = near(alanine, 2)
    forcefield = "forcefield: [amber99sbildn.xml, amber99_obc.xml]"
    vacuum = get_system_from(peptide, forcefield, "forcefield: amber99sbildn.xml")
    solvated = get_system_from(
        peptide, forcefield, "forcefield: amber99sbildn.xml\nimplicit_solvent: gbn2"
    )
    cut = get_system_from(
        peptide, forcefield,
        "forcefield: amber99sbildn.xml\nnonbonded: {method: CutoffNonPeriodic, cutoff_nm: 0.4}",
    )  # fmt: skip
    energies = [system.energy(x) for system in (vacuum, solvated, cut)]
    assert (energies[1] - energies[0]).max() < -10
    assert (energies[2] - energies[0]).abs().min() > 1


@pytest.mark.parametrize(
    ("old", "new", "error", "words"),
    [
        ("temperature", "temperatur", UnknownNameError, ("temperatur", "'temperature'")),
        ("kind: openmm", "kind: opnmm", UnknownNameError, ("opnmm", "'openmm'")),
        ("pdb: ala.pdb\n", "", InputError, ("missing", "'pdb'")),
        ("ala.pdb", "none.pdb", FileFormatError, ("none.pdb",)),
        ("300", "warm", InputError, ("temperature", "warm")),
        ("amber99_obc.xml", "amber99_obx.xml", InputError, ("amber99_obx.xml",)),
        ("Reference", "Referense", InputError, ("Referense", "'Reference'")),
        ("300", "300\nnonbonded: {metod: NoCutoff}", UnknownNameError, ("metod", "'method'")),
        ("300", "300\nnonbonded: {method: PME}", InputError, ("PME", "CutoffNonPeriodic")),
        ("300", "300\nnonbonded: {cutoff_nm: -1}", InputError, ("cutoff_nm", "-1")),
        ("300", "!!python/name:os.system", FileFormatError, ("YAML",)),
        ("[amber99sbildn.xml, amber99_obc.xml]", "tip3p.xml", InputError, ("cannot describe",)),
    ],
)
def test_faulty_system_files_name_the_cause(peptide, old, new, error, words) -> None:
    with pytest.raises(error) as caught:
        get_system_from(peptide, old, new)
    assert all(word in str(caught.value) for word in words)


def test_force_fields_with_scripts_are_refused(peptide) -> None:
    evil = peptide.with_name("evil.xml")
    evil.write_text("<ForceField><Script>import os</Script></ForceField>")
    with pytest.raises(FileFormatError, match="Script"):
        get_system_from(peptide, "amber99_obc.xml", "evil.xml")


def test_alanine_dipeptide_declares_its_one_chiral_centre(alanine):
    """Its alpha carbon, of L handedness: a mirror image is inverted back, the molecule itself is not."""
    (centre,) = alanine.molecule.chiral_centres
    residue = alanine.topology().residue(1)
    alpha, *arms = (residue.atom(name).index for name in ("CA", "N", "C", "CB"))
    assert centre[0] == alpha
    x = torch.from_numpy(alanine.positions).float()[None]
    kept, wrong_before, _ = right_handed(torch.cat([x, -x]), [centre])
    assert wrong_before.tolist() == [0, 1]
    assert torch.equal(kept[0], kept[1])
    # L: seen from the hydrogen, carbonyl, side chain and nitrogen follow one another clockwise.
    assert np.linalg.det(alanine.positions[arms] - alanine.positions[alpha]) > 0
