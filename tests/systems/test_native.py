"""The compiled kernel of molecules: OpenMM's energies and forces to rounding, or OpenMM itself."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from molsampler import compiled
from molsampler.compiled import UnavailableError
from molsampler.errors import InputError
from molsampler.systems import OpenMMSystem, get_system
from molsampler.systems.openmm.context import ContextEvaluator
from molsampler.systems.openmm.native import kernel, tables

openmm = pytest.importorskip("openmm")
app = pytest.importorskip("openmm.app")

PDB = Path(tables.__file__).parents[2] / "data" / "alanine_dipeptide.pdb"
SOLVENTS = ["hct", "obc1", "obc2", "gbn", "gbn2"]
#: Nitrile and alkyne have linear centres, the amide and the ring planes, the others elements of their own.
SMILES = ["CCCC", "CC#N", "CC(=O)NC", "c1ccsc1", "CS(=O)(=O)C", "OCC#CCl", "C1CCCCC1", "CP(C)C"]


def peptide(*files: str, **options) -> tuple[object, np.ndarray, object]:
    pdb = app.PDBFile(str(PDB))
    system = app.ForceField(*files).createSystem(
        pdb.topology, constraints=None, rigidWater=False, removeCMMotion=False, **options
    )
    x = np.array(pdb.positions.value_in_unit(openmm.unit.nanometer))
    return system, x, pdb.topology


def compared(
    system, positions: np.ndarray, *, noise: float = 0.01, share: float = 1e-10, rows: int = 37
) -> None:
    """Energies and forces of thermal and of badly strained configurations are OpenMM's, forces to a share of
    the largest."""
    xml = openmm.XmlSerializer.serialize(system)
    random = np.random.default_rng(0)
    scale = noise * np.linspace(0, 3, rows)[:, None, None]
    x = positions + scale * random.normal(size=(rows, *positions.shape))
    found = []
    for evaluator in (kernel.NativeEvaluator(xml), ContextEvaluator(xml, "Reference", {})):
        energies, forces = np.empty(rows), np.empty_like(x)
        evaluator.evaluate(x, energies, forces)
        found.append((energies, forces))
    (u, f), (right_u, right_f) = found
    np.testing.assert_allclose(u, right_u, rtol=1e-11, atol=1e-9)
    np.testing.assert_allclose(f, right_f, rtol=1e-8, atol=share * np.abs(right_f).max())


@pytest.mark.parametrize("solvent", [None, *SOLVENTS])
def test_peptides_have_openmms_energies(solvent) -> None:
    extra = [] if solvent is None else [f"implicit/{solvent}.xml"]
    system, x, _ = peptide("amber14/protein.ff14SB.xml", *extra)
    compared(system, x)


@pytest.mark.parametrize("options", [{}, {"soluteDielectric": 2.0, "solventDielectric": 40.0}])
def test_the_shipped_peptide_has_openmms_energies(options) -> None:
    system, x, _ = peptide("amber99sbildn.xml", "amber99_obc.xml", **options)
    assert any(isinstance(force, openmm.GBSAOBCForce) for force in system.getForces())
    compared(system, x)
    # Spheres within spheres, which this model corrects for.
    compared(system, 0.6 * x)


@pytest.mark.parametrize("smiles", SMILES)
def test_molecules_of_smiles_have_openmms_energies(smiles) -> None:
    pytest.importorskip("rdkit")
    from molsampler.systems import SmilesSystem

    target = SmilesSystem(smiles, 300)
    assert target.platform == "native"
    # OpenMM loses digits where three atoms are on a line.
    compared(target.openmm_twin()[0], target.positions, share=1e-7 if "#" in smiles else 1e-10)


def test_torsions_of_both_kinds_add_up() -> None:
    system = openmm.System()
    for _ in range(4):
        system.addParticle(12.0)
    periodic, powers = openmm.PeriodicTorsionForce(), openmm.RBTorsionForce()
    for order in range(1, 7):
        periodic.addTorsion(0, 1, 2, 3, order, 0.3 * order, 5.0 - order)
    powers.addTorsion(0, 1, 2, 3, 1.0, -2.0, 3.0, 0.5, -1.5, 2.5)
    powers.addTorsion(3, 2, 0, 1, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    system.addForce(periodic)
    system.addForce(powers)
    compared(system, 0.2 * np.random.default_rng(1).normal(size=(4, 3)), noise=0.05)


def test_a_row_is_the_same_to_the_last_bit_in_any_batch() -> None:
    target = get_system("alanine-dipeptide")
    assert target.platform == "native"
    noise = torch.randn(600, 22, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(target.positions) + 0.005 * noise
    u, score = target.energy_and_score(x)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            again, other = target.energy_and_score(x)
            assert torch.equal(u, again)
            assert torch.equal(score, other)
    finally:
        torch.set_num_threads(threads)
    for rows in (slice(5, 6), slice(1, 4), slice(7, 300)):
        assert torch.equal(target.energy(x[rows]), u[rows])


def test_several_threads_may_ask_at_once() -> None:
    target = get_system("alanine-dipeptide")
    assert target.concurrent
    assert not type(target)(platform="Reference").concurrent
    noise = torch.randn(64, 22, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(target.positions) + 0.005 * noise
    alone = target.energy_and_score(x)
    fresh = type(target)()
    with ThreadPoolExecutor(4) as pool:
        for u, score in pool.map(lambda _: fresh.energy_and_score(x), range(40)):
            assert torch.equal(u, alone[0])
            assert torch.equal(score, alone[1])


def test_particles_that_meet_have_no_finite_energy() -> None:
    target = get_system("alanine-dipeptide")
    x = torch.from_numpy(target.positions).repeat(3, 1, 1)
    x[1, 4] = x[1, 17]
    x[2, 4] = x[2, 17] + 1e-200
    u, score = target.energy_and_score(x)
    assert torch.isfinite(u).tolist() == [True, False, False]
    assert torch.isfinite(score).all()


# What it does not know


def other_systems():
    field = openmm.CustomExternalForce("10*z^2")
    field.addParticle(0, [])
    salty = peptide("amber14/protein.ff14SB.xml", "implicit/gbn2.xml", implicitSolventKappa=1.0)
    far = peptide(
        "amber14/protein.ff14SB.xml",
        nonbondedMethod=app.CutoffNonPeriodic,
        nonbondedCutoff=0.8 * openmm.unit.nanometer,
    )
    plain = peptide("amber14/protein.ff14SB.xml")
    plain[0].addForce(field)
    quartic = openmm.CustomBondForce("100*(r-0.15)^4")
    quartic.addBond(0, 1, [])
    bonded = peptide("amber14/protein.ff14SB.xml")
    bonded[0].addForce(quartic)
    return {
        "a field": (plain, "CustomExternalForce"),
        "salt": (salty, "CustomGBForce"),
        "a cut-off": (far, "cut-off"),
        "a bond of its own": (bonded, "CustomBondForce"),
    }


@pytest.mark.parametrize("which", ["a field", "salt", "a cut-off", "a bond of its own"])
def test_other_terms_are_left_to_openmm(which) -> None:
    (system, x, topology), reason = other_systems()[which]
    target = OpenMMSystem(system, topology, 300, positions=x)
    assert target.platform != "native"
    with pytest.raises(InputError, match=reason):
        OpenMMSystem(system, topology, 300, positions=x, platform="native")


def test_charmms_maps_are_not_known() -> None:
    system = openmm.System()
    system.addForce(openmm.CMAPTorsionForce())
    with pytest.raises(tables.UnknownTermError, match="a CMAPTorsionForce"):
        tables.tables(system)


def test_a_kernel_that_disagrees_is_not_used(monkeypatch) -> None:
    system, x, topology = peptide("amber14/protein.ff14SB.xml")
    monkeypatch.setattr(tables, "_COULOMB", tables._COULOMB * 1.0001)
    target = OpenMMSystem(system, topology, 300, positions=x)
    assert target.platform == "Reference"
    with pytest.raises(InputError, match="differ from OpenMM's"):
        OpenMMSystem(system, topology, 300, positions=x, platform="native")


# The compiler


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch):
    """An empty cache, and a process that has not loaded the kernel."""
    monkeypatch.setenv("MOLSAMPLER_CACHE", str(tmp_path / "cache"))
    kernel._library.cache_clear()
    compiled._made.cache_clear()
    yield tmp_path / "cache"
    kernel._library.cache_clear()
    compiled._made.cache_clear()


def test_without_a_compiler_openmm_evaluates(fresh, monkeypatch) -> None:
    right = get_system("alanine-dipeptide").energy(get_system("alanine-dipeptide").positions)
    kernel._library.cache_clear()
    compiled._made.cache_clear()
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("MOLSAMPLER_CACHE", str(fresh / "another"))
    system, x, topology = peptide("amber99sbildn.xml", "amber99_obc.xml")
    target = OpenMMSystem(system, topology, 300, positions=x)
    assert target.platform == "Reference"
    torch.testing.assert_close(target.energy(x), right, rtol=1e-11, atol=0)
    with pytest.raises(InputError, match=r"no C\+\+ compiler"):
        OpenMMSystem(system, topology, 300, positions=x, platform="native")


def test_a_compiler_that_fails_is_named(fresh, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(UnavailableError, match="false does not compile it"):
        kernel._library()
    assert not list(fresh.iterdir())


def test_a_failure_is_remembered(fresh, monkeypatch, tmp_path) -> None:
    calls = tmp_path / "calls"
    script = tmp_path / "compiler"
    script.write_text(f"#!/bin/sh\necho x >> {calls}\nexit 1\n")
    script.chmod(0o700)
    monkeypatch.setenv("CXX", str(script))
    for _ in range(3):
        with pytest.raises(UnavailableError, match="does not compile it"):
            kernel._library()
    once = len(calls.read_text().split())
    assert once <= 2 * len(compiled._FLAGS)


def test_what_cannot_be_read_as_a_compiler_is_no_crash(fresh, monkeypatch) -> None:
    monkeypatch.setenv("CXX", "g++ -I'x")
    with pytest.raises(UnavailableError, match="cannot be read"):
        kernel._library()


def test_a_user_without_a_home_has_a_kernel(fresh, monkeypatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("MOLSAMPLER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    kernel._library()


def test_the_kernel_is_kept_and_a_damaged_one_made_again(fresh) -> None:
    kernel._library()
    (kept,) = fresh.iterdir()
    assert fresh.stat().st_mode & 0o077 == 0
    made = kept.stat().st_mtime_ns

    def another_process() -> None:
        code = f"from {kernel.__name__} import _library; _library()"
        subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))

    another_process()
    assert kept.stat().st_mtime_ns == made
    # A new file in its place: the one that is loaded here must not be written to.
    kept.unlink()
    kept.write_bytes(b"not a library")
    another_process()
    assert kept.read_bytes()[:4] == b"\x7fELF"
    assert list(fresh.iterdir()) == [kept]


def test_workers_and_properties_are_openmms() -> None:
    system, x, topology = peptide("amber99sbildn.xml")
    for options in ({"workers": 1}, {"properties": {"Threads": "1"}}):
        with pytest.raises(InputError, match="workers and properties"):
            OpenMMSystem(system, topology, 300, positions=x, platform="native", **options)
    with pytest.raises(InputError, match="there are none"):
        OpenMMSystem(system, topology, 300, platform="native")
