"""System files of ``kind: openmm``: a PDB file, a force field and a temperature."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from molsampler.errors import FileFormatError, InputError
from molsampler.storage.files import read_limited

from ..spec import FileName
from .inputs import read_pdb, require_bundled, solvent_file
from .molecular import MolecularSpec, Nonbonded
from .probe import require_openmm
from .system import OpenMMSystem

#: Elements of force-field files that run Python code or bring in further files.
_ACTIVE = ("Script", "InitializationScript", "Include")
_XML_LIMIT = 2**26


class OpenMMSpec(MolecularSpec):
    """Keys of a system file of ``kind: openmm``::

        kind: openmm
        name: my-peptide
        pdb: peptide.pdb
        forcefield: [amber14/protein.ff14SB.xml]
        implicit_solvent: gbn2
        temperature: 300
        nonbonded: {method: NoCutoff}
        restraint: {radius_nm: 1.0, stiffness: 100}

    The PDB file has all hydrogens; its first model is where reference runs start. ``forcefield`` is
    one or a list of files, ``implicit_solvent`` one of hct, obc1, obc2, gbn, gbn2 or a file; files are
    sought in the folder of the system file, then among those of OpenMM. The other keys are those of
    :class:`~molsampler.systems.openmm.molecular.MolecularSpec`.
    """

    pdb: FileName
    forcefield: list[FileName] = Field(min_length=1, description="a file or a list of files")
    implicit_solvent: FileName | None = None
    nonbonded: Nonbonded = Nonbonded()

    @field_validator("forcefield", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def build(self, folder: Path | None) -> OpenMMSystem:
        """The system.

        Raises
        ------
        InputError
            A value is unusable, or the force field does not know a residue.
        FileFormatError
            A file is missing or unreadable, or a force field of the user's holds scripts.
        """
        require_openmm()
        from openmm import app

        folder = Path() if folder is None else folder
        path = folder / self.pdb
        pdb = read_pdb(path)
        names = list(self.forcefield)
        if self.implicit_solvent is not None:
            names.append(solvent_file(self.implicit_solvent, folder))
        files = [_forcefield_file(folder, name) for name in names]
        try:
            system = app.ForceField(*files).createSystem(
                pdb.topology,
                constraints=None,
                rigidWater=False,
                removeCMMotion=False,
                **self.nonbonded.options(),
            )
        except Exception as error:
            raise InputError(
                f"the force field {', '.join(files)} cannot describe {path.name}: {error}"
            ) from None
        return self.target(system, pdb.topology, pdb.positions)


def _forcefield_file(folder: Path, name: str) -> str:
    """The path of a user's file, or the name of one of OpenMM's.

    Raises
    ------
    InputError
        There is neither; names of OpenMM's files that hold the same word are listed.
    FileFormatError
        A user's file is no XML, or holds scripts.
    """
    path = folder / name
    if not path.is_file():
        return require_bundled(name, folder)
    try:
        tree = ElementTree.fromstring(read_limited(path, _XML_LIMIT))
    except ElementTree.ParseError as error:
        raise FileFormatError(f"{path} is not an XML file: {error}") from None
    for element in tree.iter():
        if element.tag in _ACTIVE:
            raise FileFormatError(
                f"{path} holds <{element.tag}>, which runs code or loads further files; pass an "
                "openmm.System from Python instead"
            )
    return str(path)
