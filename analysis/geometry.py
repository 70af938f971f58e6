r"""Torsions, bonds and handedness: the geometry of the molecules that a system's topology names.

A :class:`Molecule` says which atoms make which bond, torsion and chiral centre; a :class:`Geometry` holds
what those measure in a set of configurations. The hand of a centre is the sign of its signed volume (see
:mod:`molsampler.molecule.chirality`). Angles are in degrees, lengths in nm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molsampler.errors import InputError, MissingDependencyError
from molsampler.export.lengths import to_nanometres, topology_of
from molsampler.molecule.chirality import signed_volumes, stereocentres
from molsampler.molecule.graph import neighbours
from molsampler.target import System

if TYPE_CHECKING:
    import mdtraj

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Centre:
    """A chiral centre ``(c, i, j, k)`` and what its hands are called, negative volume first."""

    name: str
    atoms: tuple[int, ...]
    hands: tuple[str, str]


class Molecule:
    """The geometry of a system with a bonded topology: which atoms make which bond and torsion.

    Attributes
    ----------
    bonds : index pairs ``(b, 2)``
    residues : atoms of phi and psi of each residue that has both, by name
    torsions : one torsion about each inner bond ``(t, 4)``
    centres : chiral centres; those of amino acids have hands D and L
    """

    def __init__(self, topology: mdtraj.Topology, length_nm: float):
        from mdtraj.geometry import dihedral

        self.topology = topology
        self.length_nm = length_nm
        atoms = list(topology.atoms)
        bonds = [(int(a.index), int(b.index)) for a, b in topology.bonds]
        self.bonds = np.array(bonds, dtype=np.int64).reshape(-1, 2)
        psi = {int(row[1]): row for row in dihedral.indices_psi(topology)}
        self.residues: dict[str, tuple[Any, Any]] = {}
        for row in dihedral.indices_phi(topology):
            if int(row[2]) in psi:
                self.residues[str(atoms[row[2]].residue)] = (row, psi[int(row[2])])
        torsions = _inner_torsions(len(atoms), bonds)
        self.torsions = np.array(torsions, dtype=np.int64).reshape(-1, 4)
        kinds = [a.name if a.element is None else a.element.symbol for a in atoms]
        self.centres = tuple(_centre(atoms, centre) for centre in stereocentres(kinds, bonds))

    def frames(self, x: Tensor) -> mdtraj.Trajectory:
        """Positions ``(n, N, 3)`` in the system's unit as an MDTraj trajectory."""
        import mdtraj

        return mdtraj.Trajectory(to_nanometres(x, self.length_nm), self.topology)

    def dihedrals(self, x: Tensor, atoms: Any) -> Array:
        """Torsion angles ``(n, t)`` in degrees, [-180, 180), of atom quadruples ``(t, 4)``."""
        import mdtraj

        angles = mdtraj.compute_dihedrals(self.frames(x), np.asarray(atoms), periodic=False)
        degrees: Array = (np.degrees(angles.astype(np.float64)) + 180.0) % 360.0 - 180.0
        return degrees

    def ramachandran(self, x: Tensor) -> Array:
        """(phi, psi) of every residue, ``(n, r, 2)`` in degrees."""
        quadruples = [row for pair in self.residues.values() for row in pair]
        return self.dihedrals(x, quadruples).reshape(len(x), -1, 2)

    def bond_lengths(self, x: Tensor) -> Array:
        """Bond lengths ``(n, b)`` in nm."""
        i, j = torch.as_tensor(self.bonds).T
        lengths: Array = (x[:, i] - x[:, j]).double().norm(dim=-1).numpy() * self.length_nm
        return lengths

    def hands(self, x: Tensor) -> NDArray[np.bool_]:
        """Whether the signed volume at each centre is positive (L at an amino acid), ``(n, c)``."""
        volumes = signed_volumes(x.double(), [centre.atoms for centre in self.centres])
        positive: NDArray[np.bool_] = (volumes > 0).numpy()
        return positive


@dataclass(frozen=True, eq=False)
class Geometry:
    """What a molecule measures in positions ``(n, N, 3)``, each quantity computed when first asked for."""

    molecule: Molecule
    positions: Tensor

    @cached_property
    def ramachandran(self) -> Array:
        """See :meth:`Molecule.ramachandran`."""
        return self.molecule.ramachandran(self.positions)

    @cached_property
    def torsions(self) -> Array:
        """Angles ``(n, t)`` of the torsions about inner bonds, degrees."""
        return self.molecule.dihedrals(self.positions, self.molecule.torsions)

    @cached_property
    def bond_lengths(self) -> Array:
        """See :meth:`Molecule.bond_lengths`."""
        return self.molecule.bond_lengths(self.positions)

    @cached_property
    def hands(self) -> NDArray[np.bool_]:
        """See :meth:`Molecule.hands`."""
        return self.molecule.hands(self.positions)


_molecules: WeakKeyDictionary[System, Molecule | None] = WeakKeyDictionary()


def molecule_of(system: System) -> Molecule | None:
    """The molecular geometry of a system, or None where its topology has no bonds or there is none."""
    if system not in _molecules:
        _molecules[system] = _molecule(system)
    return _molecules[system]


def _molecule(system: System) -> Molecule | None:
    if system.shape[1] != 3:
        return None
    try:
        topology = topology_of(system)
    except (InputError, MissingDependencyError):
        return None
    return Molecule(topology, system.length_nm) if topology.n_bonds else None


def _inner_torsions(n: int, bonds: Sequence[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """One torsion about each bond whose ends have further partners, those of lowest index."""
    partners = neighbours(n, bonds)
    torsions = []
    for j, k in bonds:
        before, after = ([i for i in partners[a] if i != b] for a, b in ((j, k), (k, j)))
        if before and after and before[0] != after[0]:
            torsions.append((before[0], j, k, after[0]))
    return torsions


def _centre(atoms: list[Any], centre: tuple[int, ...]) -> Centre:
    """The centre by name; in an amino acid N, C, CB follow CA, whose volume is positive for L."""
    carbon = atoms[centre[0]]
    named = {atom.name: atom.index for atom in carbon.residue.atoms}
    name = f"{carbon.residue} {carbon.name}"
    if carbon.name == "CA" and {"N", "C", "CB"} <= named.keys():
        return Centre(name, (carbon.index, named["N"], named["C"], named["CB"]), ("D", "L"))
    order = ", ".join(atoms[i].name for i in centre[1:])
    return Centre(f"{name} ({order})", centre, ("left", "right"))
