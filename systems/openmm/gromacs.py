"""System files of ``kind: gromacs``: a topology and a gro file."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from molsampler.errors import FileFormatError, InputError

from ..spec import FileName
from .molecular import MolecularSpec, Nonbonded, check_atoms, created, read_with
from .probe import require_openmm
from .system import OpenMMSystem


class GromacsSpec(MolecularSpec):
    """Keys of a system file of ``kind: gromacs``::

        kind: gromacs
        top: butane.top
        gro: butane.gro
        include: /usr/local/gromacs/share/gromacs/top
        defines: {FLEXIBLE: ""}
        temperature: 300

    Energies are those of ``openmm.app.GromacsTopFile`` without constraints. ``include`` is the folder
    in which ``#include`` looks after that of the topology. The box of the gro file is ignored:
    molecules are sampled in open space.
    """

    top: FileName
    gro: FileName
    include: FileName | None = None
    defines: dict[str, str] = Field(default={}, description="a mapping of names to text")
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
        include = None if self.include is None else folder / self.include
        if include is not None and not include.is_dir():
            raise FileFormatError(f"include {include} is not a folder")

        def read(path: str) -> app.GromacsTopFile:
            return app.GromacsTopFile(
                path,
                includeDir=None if include is None else str(include),
                defines=dict(self.defines),
            )

        options = self.nonbonded.options()
        if dielectrics := [key for key in options if key.endswith("Dielectric")]:
            raise InputError(
                f"nonbonded has {', '.join(dielectrics)}, which belong to implicit solvents; there are "
                "none with GROMACS files"
            )
        gro = read_with(app.GromacsGroFile, folder / self.gro, "a gro file")
        top = read_with(read, folder / self.top, "a GROMACS topology")
        atoms = top.topology.getNumAtoms()
        check_atoms(atoms, len(gro.positions), self.top, self.gro)
        system = created(top.createSystem, self.top, **options)
        return self.target(system, top.topology, gro.positions)
