"""Alanine dipeptide, the molecule that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from molsampler.target import System

from .probe import require_openmm
from .system import OpenMMSystem


class AlanineDipeptide(OpenMMSystem):
    """Alanine dipeptide, Ace-Ala-Nme: 22 atoms, L configuration, 300 K.

    Force field Amber ff99SB-ILDN (Lindorff-Larsen et al. 2010) with the OBC implicit solvent (Onufriev,
    Bashford & Case 2004) that goes with it in OpenMM (``amber99sbildn.xml``, ``amber99_obc.xml``), no
    cut-off, no constraints. Options are those of :class:`OpenMMSystem`.
    """

    def __init__(self, **options: Any) -> None:
        require_openmm()
        from openmm import app

        pdb = app.PDBFile(str(Path(__file__).parents[1] / "data" / "alanine_dipeptide.pdb"))
        forcefield = app.ForceField("amber99sbildn.xml", "amber99_obc.xml")
        system = forcefield.createSystem(
            pdb.topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False
        )
        super().__init__(
            system,
            pdb.topology,
            **{
                "temperature": 300.0,
                "name": "alanine-dipeptide",
                "positions": pdb.positions,
                "description": "alanine dipeptide, amber99sbildn with OBC implicit solvent, 300 K",
                **options,
            },
        )
        self._standard = not options.keys() & {"temperature", "name"}

    def _move(self, source: System) -> None:
        super()._move(source)
        if self._standard:
            self._made_at = source.default_temperature

    def _record(self) -> str | dict[str, Any]:
        """The registered name, unless the system was made with another temperature or name."""
        return self.name if self._standard else super()._record()
