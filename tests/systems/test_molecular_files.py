"""Molecules in the files of Amber, GROMACS, CHARMM and OpenMM: the energies of OpenMM's own readers."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from molsampler.errors import FileFormatError, InputError, MolsamplerError
from molsampler.systems import get_system
from molsampler.units import kT

openmm = pytest.importorskip("openmm")
from openmm import app  # noqa: E402

DATA = Path(__file__).parents[1] / "data" / "nma"

FILES = {
    "amber": "kind: amber\nprmtop: nma.prmtop\ninpcrd: nma.inpcrd\n",
    "gromacs": "kind: gromacs\ntop: nma.top\ngro: nma.gro\ninclude: include\n",
    "charmm": "kind: charmm\npsf: nma.psf\nparameters: [nma.rtf, nma.prm]\ncoordinates: nma.pdb\n",
    "openmm_xml": "kind: openmm_xml\nsystem: nma.xml\npdb: nma.pdb\n",
}


def plain_amber(**options: Any) -> openmm.System:
    prmtop = app.AmberPrmtopFile(str(DATA / "nma.prmtop"))
    return prmtop.createSystem(rigidWater=False, **options)


def plain_gromacs() -> openmm.System:
    top = app.GromacsTopFile(str(DATA / "nma.top"), includeDir=str(DATA / "include"))
    return top.createSystem(rigidWater=False)


def plain_charmm() -> openmm.System:
    parameters = app.CharmmParameterSet(str(DATA / "nma.rtf"), str(DATA / "nma.prm"))
    return app.CharmmPsfFile(str(DATA / "nma.psf")).createSystem(parameters, rigidWater=False)


def plain_openmm_xml() -> openmm.System:
    return openmm.XmlSerializer.deserialize((DATA / "nma.xml").read_text())


PLAIN: dict[str, Callable[[], openmm.System]] = {
    "amber": plain_amber,
    "gromacs": plain_gromacs,
    "charmm": plain_charmm,
    "openmm_xml": plain_openmm_xml,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(DATA, tmp_path, dirs_exist_ok=True)
    return tmp_path


def write(folder: Path, kind: str, more: str = "") -> Path:
    path = folder / "nma.yaml"
    path.write_text(FILES[kind] + "temperature: 300\nplatform: Reference\n" + more)
    return path


def energies(system: openmm.System, x: torch.Tensor) -> np.ndarray:
    """Reduced at 300 K, by a context of the test's own."""
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    found = []
    for row in x.numpy():
        context.setPositions(row)
        found.append(context.getState(energy=True).getPotentialEnergy()._value / kT(300))
    return np.array(found)


def displaced(positions: np.ndarray, count: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, *positions.shape, generator=generator, dtype=torch.float64)
    return torch.from_numpy(positions) + 0.01 * noise


@pytest.mark.parametrize("kind", FILES)
def test_energies_are_those_of_openmms_reader(folder: Path, kind: str, monkeypatch) -> None:
    monkeypatch.chdir("/")
    system = get_system(write(folder, kind))
    x = displaced(system.positions)
    expected = energies(PLAIN[kind](), x)
    np.testing.assert_allclose(system.energy(x).numpy(), expected, rtol=1e-9)
    assert np.abs(expected).min() > 1
    assert (system.name, system.shape, len(system.molecule.bonds)) == ("nma", (12, 3), 11)
    assert [atom.element.symbol for atom in system.topology().atoms] == list("HCHHCONHCHHH")
    assert system.record()["kind"] == "openmm"


def test_one_molecule_in_four_kinds_of_files_has_one_energy(folder: Path) -> None:
    """Up to the digits that the formats keep, and Coulomb's constant, which differs between programs."""
    systems = {kind: get_system(write(folder, kind)) for kind in ("amber", "gromacs", "openmm_xml")}
    x = displaced(systems["openmm_xml"].positions)
    expected = systems["openmm_xml"].energy(x)
    for kind, system in systems.items():
        assert (system.energy(x) - expected).abs().max() < 0.2, kind
        assert system.molecule.types == systems["openmm_xml"].molecule.types
    # Another temperature, and a solvent, are others.
    wet = get_system(write(folder, "amber", "implicit_solvent: gbn2\n"))
    assert (wet.energy(x) - expected).abs().min() > 2
    assert wet.record() != systems["amber"].record()


@pytest.mark.parametrize("kind", ["amber", "charmm"])
def test_implicit_solvents_are_openmms(folder: Path, kind: str) -> None:
    system = get_system(write(folder, kind, "implicit_solvent: obc2\n"))
    x = displaced(system.positions)
    if kind == "amber":
        plain = plain_amber(implicitSolvent=app.OBC2)
    else:
        parameters = app.CharmmParameterSet(str(DATA / "nma.rtf"), str(DATA / "nma.prm"))
        psf = app.CharmmPsfFile(str(DATA / "nma.psf"))
        plain = psf.createSystem(parameters, rigidWater=False, implicitSolvent=app.OBC2)
    np.testing.assert_allclose(system.energy(x).numpy(), energies(plain, x), rtol=1e-9)
    with pytest.raises(InputError, match=r"hct, obc1, obc2, gbn, gbn2, got 'obc3'"):
        get_system(write(folder, kind, "implicit_solvent: obc3\n"))


@pytest.mark.parametrize("kind", FILES)
def test_constraints_are_refused_with_the_reason(folder: Path, kind: str) -> None:
    with pytest.raises(InputError, match=r"constraints must be left out: .*integrator"):
        get_system(write(folder, kind, "constraints: HBonds\n"))
    get_system(write(folder, kind, "constraints: none\n"))


def test_constraints_inside_a_serialised_system_are_refused(folder: Path) -> None:
    system = plain_openmm_xml()
    system.addConstraint(0, 1, 0.109)
    (folder / "nma.xml").write_text(openmm.XmlSerializer.serialize(system))
    with pytest.raises(InputError, match=r"1 constraints.*integrator"):
        get_system(write(folder, "openmm_xml"))


def test_a_serialised_system_that_would_run_code_is_refused(folder: Path) -> None:
    text = (folder / "nma.xml").read_text()
    force = '<Force type="PythonForce" version="0"/></Forces>'
    (folder / "nma.xml").write_text(text.replace("</Forces>", force))
    with pytest.raises(FileFormatError, match="PythonForce, which runs code"):
        get_system(write(folder, "openmm_xml"))
    (folder / "nma.xml").write_text(openmm.XmlSerializer.serialize(openmm.VerletIntegrator(0.001)))
    with pytest.raises(InputError, match="VerletIntegrator; a System is expected"):
        get_system(write(folder, "openmm_xml"))


@pytest.mark.parametrize(
    ("kind", "old", "new", "words"),
    [
        ("amber", "nma.prmtop", "nma.gro", ("nma.gro", "not usable as an Amber prmtop file")),
        ("amber", "nma.prmtop", "none.prmtop", ("none.prmtop", "does not exist")),
        ("amber", "inpcrd: nma.inpcrd\n", "", ("missing", "'inpcrd'")),
        ("gromacs", "nma.gro", "nma.pdb", ("nma.pdb", "not usable as a gro file")),
        ("gromacs", "include: include\n", "", ("nma.top", "nma.itp")),
        ("gromacs", "include: include", "include: there", ("there is not a folder",)),
        ("gromacs", "kind", "nonbonded: {solute_dielectric: 2}\nkind", ("soluteDielectric",)),
        ("charmm", "nma.prm]", "nma.txt]", ("nma.txt", ".prm")),
        ("charmm", ", nma.prm", "", ("nma.psf", "cannot be made a system")),
        ("openmm_xml", "nma.xml", "nma.pdb", ("nma.pdb", "not usable as a serialised")),
        ("openmm_xml", "kind: openmm_xml", "kind: openmm_xlm", ("openmm_xlm", "'openmm_xml'")),
    ],
)  # fmt: skip
def test_faulty_files_name_the_cause(folder: Path, kind, old, new, words) -> None:
    path = write(folder, kind)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(MolsamplerError) as caught:
        get_system(path)
    assert all(word in str(caught.value) for word in words), caught.value


def test_files_of_two_molecules_are_refused_with_both_counts(folder: Path) -> None:
    lines = (folder / "nma.pdb").read_text().splitlines(keepends=True)
    (folder / "nma.pdb").write_text("".join(line for line in lines if " H1  ACE" not in line))
    with pytest.raises(InputError, match=r"nma\.xml has 12 atoms, nma\.pdb has 11"):
        get_system(write(folder, "openmm_xml"))


def test_water_is_refused_with_what_to_do(tmp_path: Path) -> None:
    pdb = "".join(
        f"HETATM{i + 1:5d} {name:<4} HOH A   1    {x:8.3f}{y:8.3f}   0.000  1.00  0.00"
        f"          {name[1]:>2}\n"
        for i, (name, x, y) in enumerate([(" O", 0, 0), (" H1", 0.96, 0), (" H2", -0.24, 0.93)])
    )
    (tmp_path / "w.pdb").write_text(pdb + "END\n")
    path = tmp_path / "w.yaml"
    path.write_text("kind: openmm\npdb: w.pdb\nforcefield: tip3p.xml\ntemperature: 300\n")
    with pytest.raises(InputError, match=r"1 water molecules .*implicit_solvent"):
        get_system(path)


def test_names_that_are_almost_right_are_answered_with_choices(folder: Path) -> None:
    path = folder / "x.yaml"
    text = "kind: openmm\npdb: nma.pdb\nforcefield: {}\ntemperature: 300\n"
    path.write_text(text.format("ff14SB"))
    with pytest.raises(InputError, match=r"'ff14SB' is neither .*amber14/protein\.ff14SB\.xml"):
        get_system(path)
    path.write_text(text.format("amber99sbildn.xml") + "implicit_solvent: obc3\n")
    with pytest.raises(
        InputError, match=r"one of hct, obc1, obc2, gbn, gbn2 or a force-field file, got 'obc3'"
    ):
        get_system(path)


def test_a_prmtop_that_amber_made_gives_its_energy(tmp_path: Path) -> None:
    """Alanine dipeptide with OBC2 as openmmtools distributes it, box and all other things included."""
    testsystems = pytest.importorskip("openmmtools.testsystems")
    made = testsystems.AlanineDipeptideImplicit(constraints=None, hydrogenMass=None)
    source = Path(testsystems.__file__).parent / "data" / "alanine-dipeptide-gbsa"
    for suffix in ("prmtop", "crd"):
        shutil.copy(source / f"alanine-dipeptide.{suffix}", tmp_path)
    path = tmp_path / "ala.yaml"
    path.write_text(
        "kind: amber\nprmtop: alanine-dipeptide.prmtop\ninpcrd: alanine-dipeptide.crd\n"
        "implicit_solvent: obc1\ntemperature: 300\nplatform: Reference\n"
    )
    system = get_system(path)
    x = displaced(system.positions)
    np.testing.assert_allclose(system.energy(x).numpy(), energies(made.system, x), rtol=1e-6)
    assert len(system.molecule.chiral_centres) == 1
