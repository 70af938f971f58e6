"""System files of ``kind: charmm``: a psf file, parameters and coordinates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from molsampler.errors import FileFormatError, InputError
from molsampler.storage.files import read_limited

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

#: What ``CharmmParameterSet`` reads.
_PARAMETERS = (".rtf", ".par", ".prm", ".top", ".str", ".inp")


class CharmmSpec(MolecularSpec):
    """Keys of a system file of ``kind: charmm``::

        kind: charmm
        psf: peptide.psf
        parameters: [top_all36_prot.rtf, par_all36m_prot.prm]
        coordinates: peptide.pdb
        implicit_solvent: gbn2
        temperature: 300

    Energies are those of ``openmm.app.CharmmPsfFile`` without constraints. ``coordinates`` are a PDB or
    a CHARMM crd file with the atoms in the order of the psf.
    """

    psf: FileName
    parameters: list[FileName] = Field(min_length=1, description="a file or a list of files")
    coordinates: FileName
    implicit_solvent: str | None = None
    nonbonded: Nonbonded = Nonbonded()

    @field_validator("parameters", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

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
        for name in self.parameters:
            if not name.endswith(_PARAMETERS):
                raise InputError(
                    f"parameters must end in one of {', '.join(_PARAMETERS)}, got {name!r}"
                )
            read_limited(folder / name, 2**26)
        try:
            parameters = app.CharmmParameterSet(*(str(folder / name) for name in self.parameters))
        except Exception as error:
            raise FileFormatError(
                f"{', '.join(self.parameters)} are not usable as CHARMM parameters: {error}"
            ) from None
        psf = read_with(app.CharmmPsfFile, folder / self.psf, "a CHARMM psf file")
        place = folder / self.coordinates
        if place.suffix.lower() == ".pdb":
            positions = read_with(app.PDBFile, place, "a PDB file").positions
        else:
            positions = read_with(app.CharmmCrdFile, place, "a CHARMM crd file").positions
        atoms = psf.topology.getNumAtoms()
        check_atoms(atoms, len(positions), self.psf, self.coordinates)

        def create(**wanted: Any) -> Any:
            return psf.createSystem(parameters, **wanted)

        return self.target(created(create, self.psf, **options), psf.topology, positions)
