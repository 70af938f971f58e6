"""What the system files of all molecules share: temperature, evaluation, solvent, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, Field, field_validator

from molsampler.errors import FileFormatError, InputError, MolsamplerError, nearest
from molsampler.storage.files import read_limited

from ..spec import SystemSpec
from .restraint import Restraint
from .system import OpenMMSystem

T = TypeVar("T")

#: Implicit solvents by the names that OpenMM gives them.
SOLVENTS = {"hct": "HCT", "obc1": "OBC1", "obc2": "OBC2", "gbn": "GBn", "gbn2": "GBn2"}
#: Residue names of water in the files of common programs.
_WATER = {
    *("HOH", "WAT", "SOL", "H2O", "DOD", "TIP", "TIP2", "TIP3", "TIP4", "TIP5"),
    *("TP3", "TP4", "TP5", "SPC", "SPCE", "OPC", "OPC3"),
}
_FILE_LIMIT = 2**26

Positive = Annotated[float | None, Field(gt=0, description="a positive number")]


class Nonbonded(BaseModel):
    """Options of ``createSystem`` of OpenMM's readers; lengths in nm."""

    model_config = SystemSpec.model_config

    method: Literal["NoCutoff", "CutoffNonPeriodic"] = Field(
        default="NoCutoff",
        description="NoCutoff or CutoffNonPeriodic (periodic energies have no density on free "
        "coordinates)",
    )
    cutoff_nm: Positive = None
    switch_distance_nm: Positive = None
    solute_dielectric: Positive = None
    solvent_dielectric: Positive = None

    def options(self) -> dict[str, Any]:
        """The arguments of ``createSystem``."""
        from openmm import app

        methods = {"NoCutoff": app.NoCutoff, "CutoffNonPeriodic": app.CutoffNonPeriodic}
        options = {
            "nonbondedMethod": methods[self.method],
            "nonbondedCutoff": self.cutoff_nm,
            "switchDistance": self.switch_distance_nm,
            "soluteDielectric": self.solute_dielectric,
            "solventDielectric": self.solvent_dielectric,
        }
        return {key: value for key, value in options.items() if value is not None}


class MolecularSpec(SystemSpec):
    """Keys of all system files that end as an :class:`~molsampler.systems.openmm.system.OpenMMSystem`.

    ``restraint`` keeps several molecules together, see :mod:`molsampler.systems.openmm.restraint`.
    ``platform``, ``workers``, ``timeout`` and ``invariant`` are its arguments. There are no constraints;
    ``constraints: none`` may be written.
    """

    elsewhere: ClassVar[str] = "an OpenMM system, which is defined elsewhere"

    temperature: float = Field(description="a positive number of kelvin")
    constraints: str | None = None
    restraint: Restraint | None = Field(
        default=None, description="a mapping such as {radius_nm: 1.0, stiffness: 100}"
    )
    platform: str | None = None
    workers: int | None = None
    timeout: float | None = None
    invariant: bool | None = None

    @field_validator("constraints", mode="before")
    @classmethod
    def _free(cls, value: Any) -> None:
        if value not in (None, False, "none", "None"):
            raise ValueError(
                "must be left out: a constrained length is held by an integrator and not by the energy, "
                "so exp(-u) over free coordinates does not keep it; systems are built with flexible bonds"
            )

    def target(self, system: Any, topology: Any, positions: Any, **options: Any) -> OpenMMSystem:
        """The system with what the file says of it; ``options`` are further arguments.

        Raises
        ------
        InputError
            It has water molecules, or is refused by :class:`OpenMMSystem`.
        """
        _refuse_water(topology)
        if self.restraint is not None:
            self.restraint.add_to(system, topology)
        given = {"name", "description", "platform", "workers", "timeout", "invariant"}
        return OpenMMSystem(
            system,
            topology,
            self.temperature,
            positions=positions,
            **{**options, **self.model_dump(include=given, exclude_none=True)},
        )


def solvent_option(name: str | None) -> dict[str, Any]:
    """The argument ``implicitSolvent`` of readers that take OpenMM's own solvents.

    Raises
    ------
    InputError
        There is no such solvent.
    """
    if name is None:
        return {}
    from openmm import app

    if name not in SOLVENTS:
        raise InputError(
            f"implicit_solvent must be one of {', '.join(SOLVENTS)}, got {name!r}"
            f"{nearest(name, list(SOLVENTS))}"
        )
    return {"implicitSolvent": getattr(app, SOLVENTS[name])}


def read_with(reader: Callable[[str], T], path: Path, what: str) -> T:
    """What one of OpenMM's readers makes of a file that is ``what``, such as ``"an Amber prmtop file"``.

    Raises
    ------
    FileFormatError
        The file is missing, too large, or the reader fails.
    """
    read_limited(path, _FILE_LIMIT)
    try:
        return reader(str(path))
    except MolsamplerError:
        raise
    except Exception as error:
        raise FileFormatError(f"{path} is not usable as {what}: {_said(error)}") from None


def created(create: Callable[..., Any], source: str, **options: Any) -> Any:
    """``create(**options)`` without constraints.

    Raises
    ------
    InputError
        OpenMM cannot make a system of the files; ``source`` names them.
    """
    try:
        return create(constraints=None, rigidWater=False, removeCMMotion=False, **options)
    except Exception as error:
        raise InputError(f"{source} cannot be made a system: {_said(error)}") from None


def check_atoms(expected: int, found: int, first: str, second: str) -> None:
    """Refuse a pair of files that are not of the same molecule."""
    if expected != found:
        raise InputError(f"{first} has {expected} atoms, {second} has {found}")


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text else type(error).__name__


def _refuse_water(topology: Any) -> None:
    water = [r for r in topology.residues() if r.name.upper() in _WATER]
    if water:
        others = sum(1 for _ in topology.residues()) - len(water)
        raise InputError(
            f"there are {len(water)} water molecules (residue {water[0].name!r}) beside {others} other "
            "residues: explicit solvent fills a periodic box, and the density sampled here is one of free "
            "coordinates. Remove the water and name an implicit_solvent"
        )
