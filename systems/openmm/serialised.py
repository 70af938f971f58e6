"""System files of ``kind: openmm_xml``: a serialised ``openmm.System`` and a PDB file."""

from __future__ import annotations

from pathlib import Path

from molsampler.errors import FileFormatError, InputError

from ..spec import FileName
from .molecular import MolecularSpec, check_atoms, read_with
from .probe import require_openmm
from .system import OpenMMSystem


class SerialisedSpec(MolecularSpec):
    """Keys of a system file of ``kind: openmm_xml``::

        kind: openmm_xml
        system: s.xml
        pdb: s.pdb
        temperature: 300

    ``system`` is what ``openmm.XmlSerializer.serialize(system)`` gave, from whatever program made the
    system; ``pdb`` names the atoms, in the same order, and is where reference runs start.
    """

    system: FileName
    pdb: FileName

    def build(self, folder: Path | None) -> OpenMMSystem:
        """The system.

        Raises
        ------
        InputError
            The files are not of one molecule, or the system has constraints or a box.
        FileFormatError
            A file is missing or unreadable.
        """
        require_openmm()
        import openmm
        from openmm import app

        folder = Path() if folder is None else folder

        def read(path: str) -> object:
            text = Path(path).read_text()
            # Its serialised form holds a pickle, which runs code.
            if "PythonForce" in text:
                raise FileFormatError(
                    f"{path} holds a PythonForce, which runs code; pass an openmm.System from Python"
                )
            return openmm.XmlSerializer.deserialize(text)

        system = read_with(read, folder / self.system, "a serialised OpenMM system")
        if not isinstance(system, openmm.System):
            raise InputError(
                f"{self.system} holds a serialised {type(system).__name__}; a System is expected"
            )
        pdb = read_with(app.PDBFile, folder / self.pdb, "a PDB file")
        check_atoms(system.getNumParticles(), pdb.topology.getNumAtoms(), self.system, self.pdb)
        return self.target(system, pdb.topology, pdb.positions)
