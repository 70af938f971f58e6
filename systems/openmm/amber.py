"""System files of ``kind: amber``: a prmtop and an inpcrd file."""

from __future__ import annotations

from pathlib import Path

from ..spec import FileName
from .molecular import (
    MolecularSpec,
    Nonbonded,
    check_atoms,
    created,
    read_with,
    solvent_option,
)
from .probe import require_openmm
from .system import OpenMMSystem


class AmberSpec(MolecularSpec):
    """Keys of a system file of ``kind: amber``::

        kind: amber
        prmtop: peptide.prmtop
        inpcrd: peptide.inpcrd
        implicit_solvent: obc2
        temperature: 300

    Energies are those of ``openmm.app.AmberPrmtopFile`` without constraints. A box in the files is
    ignored: molecules are sampled in open space. ``implicit_solvent`` is one of hct, obc1, obc2, gbn,
    gbn2; the radii must be those of the prmtop.
    """

    prmtop: FileName
    inpcrd: FileName
    implicit_solvent: str | None = None
    nonbonded: Nonbonded = Nonbonded()

    def build(self, folder: Path | None) -> OpenMMSystem:
        """The system.

        Raises
        ------
        InputError
            A value is unusable, or the files are not of one molecule.
        FileFormatError
            A file is missing or unreadable.
        """
        require_openmm()
        from openmm import app

        folder = Path() if folder is None else folder
        options = {**self.nonbonded.options(), **solvent_option(self.implicit_solvent)}
        prmtop = read_with(app.AmberPrmtopFile, folder / self.prmtop, "an Amber prmtop file")
        inpcrd = read_with(app.AmberInpcrdFile, folder / self.inpcrd, "an Amber inpcrd file")
        atoms = prmtop.topology.getNumAtoms()
        check_atoms(atoms, len(inpcrd.positions), self.prmtop, self.inpcrd)
        system = created(prmtop.createSystem, self.prmtop, **options)
        return self.target(system, prmtop.topology, inpcrd.positions)
