r"""Atoms with any ASE calculator (https://ase-lib.org) as a reduced energy.

.. math:: u(x) = (E(x) - E_0) / kT + \tfrac{k}{2} \sum_i |x_i - \bar x|^2,
    \qquad -\nabla u(x) = F(x) / kT - k (x_i - \bar x)

ASE's electronvolts and angstroms become kT at the given temperature and nanometres. The offset
:math:`E_0` keeps total energies of thousands of electronvolts out of float32.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from molsampler.errors import (
    FileFormatError,
    InputError,
    MissingDependencyError,
    SimulationError,
)
from molsampler.molecule.chirality import oriented, stereocentres
from molsampler.molecule.graph import distances, equivalence_classes, neighbours, rotatable_bonds
from molsampler.molecule.molecule import Molecule
from molsampler.space import MeanFree
from molsampler.storage.files import read_limited
from molsampler.target import COORDINATE_LIMIT, System
from molsampler.units import ELECTRONVOLT, kT

from .arguments import checked_description, checked_name, is_number
from .function import load_function
from .spec import FileName, SystemSpec
from .symmetry import probe

if TYPE_CHECKING:
    import mdtraj
    from ase import Atoms

#: Angstroms in a nanometre.
ANGSTROM = 10.0

#: Sum of covalent radii, times this, up to which two atoms count as bonded.
_BOND = 1.25
#: Most bonds of the atoms that make molecules; others, metals above all, are in no bonds of their own.
_VALENCE = {"H": 1, "B": 4, "C": 4, "N": 4, "O": 3, "F": 1, "Si": 4, "P": 5, "S": 6, "Cl": 1,
            "Se": 6, "Br": 1, "I": 1}  # fmt: skip
#: Bonds of carbon and its like that has no double bond left.
_SATURATED = {"C": 4, "Si": 4, "N": 3, "O": 2, "S": 2}

#: Spread in nm of starts about the given positions, and of the configurations that are tried.
_SPREAD = 0.005
#: Change of the energy, in units of 1 + |u|, that calculators in single precision make of none.
_SAME = 1e-2


class ASESystem(System):
    """A free cluster or molecule of ``ase.Atoms``; positions in nm, energies in kT. ::

        atoms = ase.build.molecule("CH3CH2OH")
        atoms.calc = XTB(method="GFN2-xTB")
        ASESystem(atoms, temperature=300)

    Rows are evaluated one after the other by the calculator of ``atoms``. Where it says that a calculation
    failed, as of a geometry for which none converges, the energy counts as ``+inf``. Files do not hold the
    calculator: samples and artifacts are read with ``system=``. :class:`ASESpec` has the keys of a file that
    names one.

    Parameters
    ----------
    atoms : ``ase.Atoms`` with a calculator, without periodic boundaries and constraints. Its positions are
        where reference runs start, and have the handedness that is meant
    temperature : kelvin
    name : used in files
    bonds : pairs of indices; ``"auto"`` takes those within 1.25 times the sum of covalent radii where they
        make one molecule of nonmetals with usual valences, and none otherwise; None for none
    restraint : k, in kT per square nanometre, of springs to the mean position. Atoms that can evaporate have
        no normalisable density without it
    offset : the energy E_0 in eV, by default that of ``atoms`` to two decimals
    description : one line for listings

    Attributes
    ----------
    molecule : None for atoms of one element without bonds; types are of equal element, initial charge,
        magnetic moment and tag, and where there are bonds, of equal place among them

    Raises
    ------
    InputError
        An argument is unusable; the calculator gives no finite energy and forces for ``atoms``, or an
        energy that depends on place or orientation.
    MissingDependencyError
        ASE is not installed.
    """

    length_nm = 1.0
    invariant = True
    in_kelvin = True

    def __init__(
        self,
        atoms: Atoms,
        *,
        temperature: float,
        name: str = "ase",
        bonds: Literal["auto"] | Iterable[Sequence[int]] | None = "auto",
        restraint: float = 0.0,
        offset: float | None = None,
        description: str = "",
    ) -> None:
        ase = require_ase()
        if not isinstance(atoms, ase.Atoms):
            raise InputError(f"atoms must be ase.Atoms, got {type(atoms).__name__}")
        self.name = checked_name(name)
        _check_atoms(atoms)
        if not is_number(temperature) or not 0 < temperature < 1e9:
            raise InputError(
                f"temperature must be a positive number of kelvin, got {temperature!r}"
            )
        if not is_number(restraint) or not 0 <= restraint < 1e9:
            raise InputError(
                f"restraint must be a number of kT per square nanometre, at least 0, got {restraint!r}"
            )
        if offset is not None and not is_number(offset):
            raise InputError(f"offset must be a number of electronvolts, got {offset!r}")
        self.temperature = float(temperature)
        self.restraint = self._springs = float(restraint)
        self.space = MeanFree(len(atoms), 3)
        self._lock = threading.Lock()
        self._atoms = atoms.copy()
        self._atoms.calc = atoms.calc
        self.positions = torch.from_numpy(atoms.get_positions() / ANGSTROM)
        self.calculator = type(atoms.calc).__name__
        self.description = checked_description(description) or (
            f"{atoms.get_chemical_formula()} with ASE's {self.calculator}"
        )
        self.offset = 0.0 if offset is None else float(offset)
        self._try_out(offset is None)
        self._find_molecule(bonds)

    def _try_out(self, free_offset: bool) -> None:
        """Refuse a calculator without energies here, or with ones that know place or orientation."""
        with self._lock:
            try:
                energy, forces = self._calculated(self.positions.numpy())
            except Exception as error:
                raise InputError(
                    f"the calculator {self.calculator} fails for the given atoms: "
                    f"{type(error).__name__}: {error}"
                ) from error
        if not np.isfinite(energy) or not np.isfinite(forces).all():
            raise InputError(
                f"the calculator {self.calculator} gives no finite energy and forces for the given "
                f"atoms: {energy} eV"
            )
        if free_offset:
            self.offset = round(energy, 2)
        rng = torch.Generator().manual_seed(0)
        like = self.positions
        x = like + _SPREAD * self.space.randn(2, generator=rng, like=like)
        found = probe(self._energy, x, tolerance=_SAME)
        if not (found.translation and found.rotation):
            raise InputError(
                f"the energy of the calculator {self.calculator} changes when all atoms are moved or "
                "turned together; only free clusters without fields are taken"
            )

    def _find_molecule(self, bonds: Literal["auto"] | Iterable[Sequence[int]] | None) -> None:
        atoms = self._atoms
        symbols, n = atoms.get_chemical_symbols(), len(atoms)
        labels = list(
            zip(
                symbols,
                atoms.get_initial_charges().tolist(),
                map(str, atoms.get_initial_magnetic_moments().tolist()),
                atoms.get_tags().tolist(),
                strict=True,
            )
        )
        if isinstance(bonds, str):
            if bonds != "auto":
                raise InputError(f"bonds must be 'auto', pairs of indices or None, got {bonds!r}")
            pairs = _covalent_bonds(atoms)
        else:
            pairs = list(Molecule.of(range(n), bonds or ()).bonds)
        types = equivalence_classes(labels, pairs)
        self.exchangeable = not pairs and len(set(types)) == 1
        if self.exchangeable:
            return
        if not pairs:
            self.molecule = Molecule.of(types)
            return
        self.molecule = Molecule.of(
            types,
            pairs,
            chiral_centres=oriented(stereocentres(types, pairs), self.positions),
            turning_bonds=_turning_bonds(symbols, pairs),
            geometry=self.positions.tolist() if n > 2 else None,
        )

    def _move(self, source: System) -> None:
        # The calculator's part follows the temperature by itself, the springs do here.
        self._made_at = source.default_temperature
        self.restraint = self._springs * (self._made_at / self.temperature)

    def _record(self) -> dict[str, Any]:
        """What tells the system from others; the calculator by its name alone."""
        return {
            "kind": "ase",
            "name": self.name,
            "calculator": self.calculator,
            "numbers": self._atoms.get_atomic_numbers().tolist(),
            "temperature": self.temperature,
            "restraint": self.restraint,
            "offset": self.offset,
        }

    def topology(self) -> mdtraj.Topology:
        """MDTraj topology: one residue ``MOL`` with the atoms and their bonds."""
        import mdtraj

        topology = mdtraj.Topology()
        residue = topology.add_residue("MOL", topology.add_chain())
        atoms = [
            topology.add_atom(f"{symbol}{k}", mdtraj.element.get_by_symbol(symbol), residue)
            for k, symbol in enumerate(self._atoms.get_chemical_symbols(), 1)
        ]
        for i, j in () if self.molecule is None else self.molecule.bonds:
            topology.add_bond(atoms[i], atoms[j])
        return topology

    def starts(self, count: int, *, generator: torch.Generator | None) -> Tensor | None:
        """The given positions, each coordinate moved by 0.005 nm."""
        kicks = self.space.randn(count, generator=generator, like=self.positions)
        return self.space.project(self.positions + _SPREAD * kicks)

    def _calculated(self, positions: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        """Energy in eV and forces in eV per angstrom at one configuration in nm."""
        self._atoms.set_positions(positions * ANGSTROM)
        with np.errstate(all="ignore"):
            return float(self._atoms.get_potential_energy()), self._atoms.get_forces()

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        from ase.calculators.calculator import CalculationFailed, SCFError

        positions = x.detach().to("cpu", torch.float64)
        energies = torch.empty(len(x), dtype=torch.float64)
        forces = torch.zeros_like(positions)
        with self._lock:
            for row, place in enumerate(positions):
                if bool((torch.pdist(place) == 0).any()):
                    energies[row] = torch.inf
                    continue
                try:
                    energy, force = self._calculated(place.numpy())
                except (CalculationFailed, SCFError):
                    energies[row] = torch.inf
                    continue
                except Exception as error:
                    raise SimulationError(
                        f"the calculator {self.calculator} fails at row {row}: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                energies[row] = energy - self.offset
                forces[row] = torch.from_numpy(np.asarray(force, dtype=np.float64))
        per_kT = ELECTRONVOLT / kT(self.temperature)
        energies *= per_kT
        forces *= per_kT * ANGSTROM
        if self.restraint:
            centred = positions - positions.mean(1, keepdim=True)
            energies += 0.5 * self.restraint * centred.square().sum((1, 2))
            forces -= self.restraint * centred
        return energies.to(x), forces.to(x)


def require_ase() -> Any:
    """ASE, imported.

    Raises
    ------
    MissingDependencyError
        It is not installed.
    """
    try:
        import ase
    except ImportError:
        raise MissingDependencyError(
            "ASE is not installed: pip install 'molsampler[ase]'"
        ) from None
    return ase


def _check_atoms(atoms: Atoms) -> None:
    if len(atoms) < 2:
        raise InputError(f"atoms must be at least two, got {len(atoms)}: one alone has no density")
    if atoms.calc is None:
        raise InputError("atoms have no calculator; set one, as in atoms.calc = EMT()")
    if np.any(atoms.get_pbc()):
        raise InputError(
            "atoms are periodic. Their energy repeats in every image of the cell, so exp(-u) has no norm "
            "over free coordinates; free clusters are sampled: set atoms.pbc = False, for a file in the "
            "function that makes the calculator"
        )
    if atoms.constraints:
        raise InputError(
            f"atoms have {len(atoms.constraints)} constraint(s). What a constraint holds is no part of the "
            "energy, so samples would not keep it; remove it: atoms.set_constraint()"
        )


def _covalent_bonds(atoms: Atoms) -> list[tuple[int, int]]:
    """Bonds by covalent radii, none where they do not make one molecule of usual valences."""
    from ase.data import covalent_radii

    symbols = atoms.get_chemical_symbols()
    if not set(symbols) <= set(_VALENCE):
        return []
    radii = covalent_radii[atoms.get_atomic_numbers()]
    near = atoms.get_all_distances() < _BOND * (radii[:, None] + radii)
    pairs = [(int(i), int(j)) for i, j in np.argwhere(np.triu(near, 1))]
    partners = neighbours(len(symbols), pairs)
    usual = all(len(near) <= _VALENCE[s] for near, s in zip(partners, symbols, strict=True))
    return pairs if usual and bool((distances(len(symbols), pairs) >= 0).all()) else []


def _turning_bonds(
    symbols: Sequence[str], bonds: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Rotatable bonds that are single: an end is a saturated carbon, or both ends are saturated."""
    partners = neighbours(len(symbols), bonds)
    full = [len(near) >= _SATURATED.get(s, 99) for near, s in zip(partners, symbols, strict=True)]
    return [
        (j, k)
        for (_, j, k, _), _ in rotatable_bonds(len(symbols), bonds)
        if (full[j] and full[k]) or any(full[end] and symbols[end] in ("C", "Si") for end in (j, k))
    ]


class ASESpec(SystemSpec):
    """Keys of a system file of ``kind: ase``::

        kind: ase
        atoms: ethanol.xyz
        calculator: gfn2.py:calculator
        temperature: 300

    ``atoms`` is a file of one structure in the folder of the system file, .xyz, .pdb, .sdf or .mol.
    ``calculator`` is a Python file there and a function in it, from the atoms, an ``ase.Atoms`` that it may
    change, to their calculator. The file is run, which has to be allowed by ``--trust-code``; it stands
    alone, without imports from its folder. ``bonds: []`` stands for none; the other keys are the arguments of
    :class:`ASESystem`.

    Samples and artifacts record the class of the calculator and ``numbers``, the elements, instead; they are
    read with the file. Another method of the same class is noticed by the energy ``offset`` alone.
    """

    elsewhere: ClassVar[str] = "of ASE, whose calculator files do not hold"

    atoms: FileName | None = None
    calculator: str = Field(
        description="a Python file and a function in it, such as gfn2.py:calculator"
    )
    numbers: list[int] | None = None
    temperature: float = Field(description="a number of kelvin")
    bonds: Literal["auto"] | list[list[int]] | None = Field(
        default="auto", description="auto, or a list of pairs of indices"
    )
    restraint: float = 0.0
    offset: float | None = Field(default=None, description="a number of electronvolts")

    def runs(self) -> str:
        return "" if self.atoms is None else self.calculator

    def placed(self, system: System) -> System:
        # Built at its temperature.
        return system

    def build(self, folder: Path | None) -> ASESystem:
        """The system.

        Raises
        ------
        InputError
            See :class:`ASESystem`; or the function fails.
        FileFormatError
            A file is missing or unreadable.
        """
        if self.atoms is None:
            raise InputError(
                "a system of kind 'ase' needs atoms, the name of a file, beside calculator: FILE.py:NAME; in "
                "Python it is ASESystem(atoms, temperature=...)"
            )
        if self.numbers is not None:
            raise InputError("numbers are what records have in place of atoms; leave the key out")
        require_ase()
        path = Path(self.atoms) if folder is None else folder / self.atoms
        atoms = _read_atoms(path)
        make, _ = load_function(self.calculator, folder, key="calculator")
        try:
            atoms.calc = make(atoms)
        except Exception as error:
            raise InputError(
                f"{self.calculator} fails for the atoms of {path}: {type(error).__name__}: {error}"
            ) from error
        return ASESystem(
            atoms,
            temperature=self.temperature,
            name=self.name,
            bonds=self.bonds,
            restraint=self.restraint,
            offset=self.offset,
            description=self.description,
        )


#: Names of the formats of structures, as ASE has them, by suffix.
_FORMATS = {".xyz": "extxyz", ".pdb": "proteindatabank", ".sdf": "sdf", ".mol": "mol"}
_FILE_LIMIT = 2**26


def _read_atoms(path: Path) -> Atoms:
    """The structure of a file.

    Raises
    ------
    InputError
        The file's suffix is of no known format, or an atom is nowhere.
    FileFormatError
        The file is missing or unreadable, or does not hold one structure.
    """
    from ase.io import read

    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        raise InputError(
            f"atoms must be a file that ends in {', '.join(_FORMATS)}, got {path.name!r}"
        )
    text = read_limited(path, _FILE_LIMIT)
    try:
        found = read(io.StringIO(text.decode()), index=":", format=form)
    except Exception as error:
        raise FileFormatError(
            f"ASE cannot read {path} as {form}: {type(error).__name__}: {error}"
        ) from error
    if len(found) != 1 or not len(found[0]):
        raise FileFormatError(
            f"{path} holds {len(found)} structures with {sum(map(len, found))} atoms; one is needed"
        )
    (atoms,) = found
    away = ~(np.abs(atoms.get_positions()) < ANGSTROM * COORDINATE_LIMIT).all(1)
    if away.any():
        atom = int(np.flatnonzero(away)[0])
        raise InputError(
            f"{path}: atom {atom} is at {atoms.get_positions()[atom].tolist()} angstroms"
        )
    atoms.calc = None
    return atoms
