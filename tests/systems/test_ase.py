"""ASE's atoms and calculators: units, molecules, what is refused, and samples as atoms again."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from molsampler import Samples
from molsampler.errors import (
    InputError,
    MissingDependencyError,
    MolsamplerError,
    SimulationError,
)
from molsampler.systems import ASESystem, get_system, resolve_recorded

ase = pytest.importorskip("ase")
from ase.build import molecule  # noqa: E402
from ase.calculators.calculator import Calculator, SCFError, all_changes  # noqa: E402
from ase.calculators.emt import EMT  # noqa: E402
from ase.constraints import FixAtoms  # noqa: E402
from ase.units import kB  # noqa: E402


class Springs(Calculator):
    """E = k/2 sum of (d - 1.5)^2 over all pairs, in eV and angstroms, shifted far down."""

    implemented_properties = ("energy", "forces")
    fails = False

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        if self.fails:
            raise self.fails
        x = atoms.get_positions()
        difference = x[:, None] - x
        d = np.sqrt((difference**2).sum(-1)) + np.eye(len(x))
        stretch = (d - 1.5) * (1 - np.eye(len(x)))
        forces = -2.0 * (stretch / d)[..., None] * difference
        self.results = {"energy": 0.5 * (stretch**2).sum() - 1e5, "forces": forces.sum(1)}


def cluster(symbols: str = "Cu4", calculator=None, **options):
    """Atoms in a tetrahedron or more, 2.5 angstroms apart."""
    atoms = ase.Atoms(symbols)
    grid = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1], [2, 0, 0], [0, 2, 0]])
    atoms.set_positions(1.8 * grid[: len(atoms)])
    atoms.calc = EMT() if calculator is None else calculator
    return ASESystem(atoms, **{"temperature": 300, "name": "cluster", **options})


def alcohol(**options) -> ASESystem:
    atoms = molecule("CH3CH2OH")
    atoms.calc = EMT()
    return ASESystem(atoms, temperature=300, name="ethanol", **options)


def test_energies_are_electronvolts_over_kT_and_lengths_nanometres() -> None:
    system = cluster(restraint=3.0)
    atoms = system._atoms.copy()
    atoms.calc = EMT()
    x = system.starts(3, generator=torch.Generator().manual_seed(0))
    assert x is not None
    u, score = system.energy_and_score(x)
    for row in range(3):
        atoms.set_positions(10 * x[row].numpy())
        trap = 1.5 * float(x[row].square().sum())
        expected = (atoms.get_potential_energy() - system.offset) / (kB * 300) + trap
        # ASE's Boltzmann constant is that of an older CODATA.
        assert float(u[row]) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        forces = 10 * atoms.get_forces() / (kB * 300) - 3.0 * x[row].numpy()
        np.testing.assert_allclose(score[row].numpy(), forces, rtol=1e-5, atol=1e-4)


def test_single_precision_survives_total_energies() -> None:
    system = cluster(calculator=Springs())
    assert system.offset == pytest.approx(-1e5, abs=30)
    x = system.starts(5, generator=torch.Generator().manual_seed(0))
    exact = system.energy(x)
    assert (system.energy(x.float()).double() - exact).abs().max() < 1e-4 * (1 + exact.abs().max())


def test_molecules_by_covalent_radii() -> None:
    system = alcohol()
    assert system.molecule is not None
    assert not system.exchangeable
    bonded = {frozenset((system._atoms[i].symbol, system._atoms[j].symbol))
              for i, j in system.molecule.bonds}  # fmt: skip
    assert len(system.molecule.bonds) == 8
    assert bonded == {frozenset("C"), frozenset("CO"), frozenset("CH"), frozenset("OH")}
    # The hydroxyl turns and the methyl group; hydrogens of one group are alike.
    assert system.molecule.turning_bonds is not None
    assert len(system.molecule.turning_bonds) == 2
    hydrogens = [system.molecule.types[a.index] for a in system._atoms if a.symbol == "H"]
    assert sorted(hydrogens.count(t) for t in set(hydrogens)) == [1, 2, 3]
    topology = system.topology()
    assert (topology.n_atoms, topology.n_bonds) == (9, 8)
    assert alcohol(bonds=None).molecule.bonds == ()


def test_clusters_have_no_bonds_and_elements_are_types() -> None:
    copper, alloy = cluster(), cluster("Cu2Au2")
    assert copper.exchangeable
    assert copper.molecule is None
    assert alloy.molecule is not None
    assert (alloy.molecule.types, alloy.molecule.bonds) == ((0, 0, 1, 1), ())
    assert alloy.alike == (0, 0, 1, 1)


@pytest.mark.parametrize(
    ("name", "turning"),
    [("trans-butane", 3), ("C2H4", 0), ("HCOOH", 0), ("CH3CONH2", 1), ("C6H6", 0), ("H2O2", 1)],
)
def test_double_bonds_amides_and_rings_do_not_turn(name: str, turning: int) -> None:
    atoms = molecule(name)
    atoms.calc = EMT()
    found = ASESystem(atoms, temperature=300).molecule
    assert found is not None
    assert found.turning_bonds is not None
    assert len(found.turning_bonds) == turning


def broken(change):
    atoms = ase.Atoms("Cu4", positions=cluster()._atoms.get_positions())
    atoms.calc = EMT()
    change(atoms)
    return atoms


class Uphill(Springs):
    """A field along x besides."""

    def calculate(self, *arguments, **options):
        super().calculate(*arguments, **options)
        self.results["energy"] += 100 * self.atoms.get_positions()[:, 0].sum()
        self.results["forces"][:, 0] -= 100


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: setattr(a, "calc", None), "atoms have no calculator"),
        (lambda a: a.set_pbc(True), "atoms are periodic. Their energy repeats"),
        (lambda a: a.set_constraint(FixAtoms([0])), "atoms have 1 constraint(s)"),
        (lambda a: a.__delitem__([0, 1, 2]), "atoms must be at least two, got 1"),
        (lambda a: a.set_atomic_numbers([26] * 4), "EMT fails for the given atoms"),
        (lambda a: setattr(a, "calc", Uphill()), "when all atoms are moved or turned together"),
        (lambda a: a.set_positions(0 * a.get_positions()), "no finite energy and forces"),
    ],
)
def test_what_has_no_density_is_refused_with_the_reason(change, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        ASESystem(broken(change), temperature=300)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"temperature": 0}, "temperature must be a positive number"),
        ({"restraint": -1}, "restraint must be a number"),
        ({"name": "a/b"}, "name must be"),
        ({"offset": "x"}, "offset must be"),
        ({"bonds": "all"}, "bonds must be 'auto'"),
        ({"bonds": [(0, 9)]}, "bond (0, 9) must name different particles"),
    ],
)
def test_arguments_are_checked(options, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        cluster(**options)
    assert sentence in str(caught.value)


def test_a_calculation_that_fails_is_no_energy_and_a_broken_calculator_an_error() -> None:
    springs = Springs()
    system = cluster(calculator=springs)
    x = system.starts(1, generator=None)
    springs.reset()
    springs.fails = SCFError("no convergence")
    u, score = system.energy_and_score(1.01 * x)
    assert float(u) == torch.inf
    assert not bool(score.any())
    springs.fails = KeyError("lost")
    with pytest.raises(SimulationError, match="Springs fails at row 0: KeyError"):
        system.energy(1.02 * x)


def test_files_ask_for_the_system_and_know_it() -> None:
    system = cluster()
    record = system.record()
    assert resolve_recorded(record, given=system) is system
    with pytest.raises(
        InputError, match="of ASE, whose calculator files do not hold; pass system="
    ):
        resolve_recorded(record, source="a.npz")
    with pytest.raises(InputError, match=r"at temperature 300 K, not 310 K"):
        resolve_recorded(record, given=cluster(temperature=310))


COPPER = """\
4
charge=0
Cu 0.0 0.0 0.0
Cu 1.8 1.8 0.0
Cu 1.8 0.0 1.8
Cu 0.0 1.8 1.8
"""
CODE = "from ase.calculators.emt import EMT\n\n\ndef make(atoms):\n    return EMT()\n"


def written(folder, *, extra: str = "", code: str = CODE, atoms: str = "copper.xyz"):
    (folder / "copper.xyz").write_text(COPPER)
    (folder / "emt.py").write_text(code)
    path = folder / "cluster.yaml"
    path.write_text(
        f"kind: ase\natoms: {atoms}\ncalculator: emt.py:make\ntemperature: 300\n{extra}"
    )
    return path


def test_a_file_is_the_system_of_python(tmp_path) -> None:
    path = written(tmp_path, extra="restraint: 3.0\n")
    with pytest.raises(InputError, match=r"runs Python code, here 'emt.py:make'.*--trust-code"):
        get_system(path)
    found, made = get_system(path, trust_code=True), cluster(restraint=3.0)
    assert found.record() == made.record()
    x = made.starts(3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.energy(x), made.energy(x))
    assert found.at(600).energy(x)[0] == pytest.approx(float(made.energy(x)[0]) / 2)
    # Artifacts and samples are read with the file.
    assert resolve_recorded(found.record(), given=found) is found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code": "def make(atoms):\n    raise ValueError('no such method')\n"}, "no such method"),
        ({"code": "def other(atoms): ...\n"}, "no function 'make'"),
        ({"code": "def make(atoms):\n    return None\n"}, "atoms have no calculator"),
        ({"atoms": "copper.cif"}, r"must be a file that ends in .xyz, .pdb, .sdf, .mol"),
        ({"atoms": "iron.xyz"}, "does not exist|no such file|not found"),
        ({"atoms": "emt.xyz"}, "ASE cannot read .*emt.xyz|emt.xyz holds 0 structures"),
        ({"atoms": "empty.xyz"}, "empty.xyz"),
        ({"atoms": "two.xyz"}, "two.xyz holds 2 structures with 8 atoms"),
        ({"atoms": "far.xyz"}, r"far.xyz: atom 1 is at \[1e\+20, 1.8, 0.0\] angstroms"),
        ({"atoms": "nan.xyz"}, r"nan.xyz: atom 1 is at \[nan, 1.8, 0.0\] angstroms"),
        ({"extra": "numbers: [1, 2]\n"}, "leave the key out"),
        ({"extra": "bonds: [[0, 9]]\n"}, "bond"),
        ({"extra": "offset: a\n"}, "offset"),
    ],
)
def test_files_that_are_refused(tmp_path, change, message) -> None:
    (tmp_path / "emt.xyz").write_text("three atoms\n")
    (tmp_path / "empty.xyz").write_text("")
    (tmp_path / "two.xyz").write_text(COPPER + COPPER)
    (tmp_path / "far.xyz").write_text(COPPER.replace("1.8 1.8 0.0", "1e20 1.8 0.0"))
    (tmp_path / "nan.xyz").write_text(COPPER.replace("1.8 1.8 0.0", "nan 1.8 0.0"))
    with pytest.raises(MolsamplerError, match=message):
        get_system(written(tmp_path, **change), trust_code=True)


def test_a_record_in_place_of_a_file_says_what_is_needed(tmp_path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("kind: ase\ncalculator: EMT\nnumbers: [29]\ntemperature: 300\n")
    with pytest.raises(InputError, match=r"needs atoms.*ASESystem\(atoms, temperature"):
        get_system(path)


def test_samples_are_atoms_again() -> None:
    system = cluster("Cu2Au2")
    x = system.starts(2, generator=torch.Generator().manual_seed(1))
    weighted = Samples.of(system, x, log_weights=torch.tensor([0.0, -1.0]).double())
    frames = weighted.to_ase(system=system)
    assert [f.get_chemical_formula() for f in frames] == ["Au2Cu2"] * 2
    for k, frame in enumerate(frames):
        stored = frame.get_potential_energy()
        np.testing.assert_allclose(frame.get_positions(), 10 * x[k].numpy(), atol=1e-5)
        frame.calc = EMT()
        assert stored == pytest.approx(frame.get_potential_energy() - system.offset, abs=1e-4)
        assert frame.info["log_weight"] == -float(k)
    # A reduced system: its own length, argon, and kT at 300 K.
    lj = get_system("lj7")
    (frame,) = Samples.of(lj, torch.randn(1, 7, 3)).to_ase()
    assert frame.get_chemical_formula() == "Ar7"
    assert frame.get_potential_energy() == pytest.approx(
        frame.info["reduced_energy"] * kB * 300, rel=1e-5
    )
    with pytest.raises(InputError, match="no particles in space"):
        Samples.of("mog40", torch.randn(1, 1, 2)).to_ase()


def test_without_ase_the_extra_is_named(monkeypatch) -> None:
    samples = Samples.of("lj7", torch.randn(1, 7, 3))
    monkeypatch.setitem(sys.modules, "ase", None)
    for call in (lambda: ASESystem(None, temperature=300), samples.to_ase):
        with pytest.raises(MissingDependencyError, match=r"pip install 'molsampler\[ase\]'"):
            call()
