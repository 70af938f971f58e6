"""System files of ``kind: openmm``: a PDB file, a force field and a temperature."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from molsampler.errors import FileFormatError, InputError, UnknownNameError, nearest
from molsampler.storage.files import read_limited

from .probe import require_openmm
from .system import OpenMMSystem

_KEYS = (
    "name",
    "description",
    "pdb",
    "forcefield",
    "implicit_solvent",
    "temperature",
    "nonbonded",
    "platform",
    "workers",
    "timeout",
    "invariant",
)
#: Keys of ``nonbonded`` and the arguments of ``ForceField.createSystem`` that they become.
_NONBONDED = {
    "method": "nonbondedMethod",
    "cutoff_nm": "nonbondedCutoff",
    "switch_distance_nm": "switchDistance",
    "solute_dielectric": "soluteDielectric",
    "solvent_dielectric": "solventDielectric",
}
_METHODS = ("NoCutoff", "CutoffNonPeriodic")
_SOLVENTS = ("hct", "obc1", "obc2", "gbn", "gbn2")

#: Elements of force-field files that run Python code or bring in further files.
_ACTIVE = ("Script", "InitializationScript", "Include")
_PDB_LIMIT, _XML_LIMIT = 2**26, 2**26


def from_mapping(content: Mapping[str, Any], *, source: str) -> OpenMMSystem:
    """OpenMM system from the content of a system file::

        kind: openmm
        name: my-peptide
        pdb: peptide.pdb
        forcefield: [amber14/protein.ff14SB.xml]
        implicit_solvent: gbn2
        temperature: 300
        nonbonded: {method: NoCutoff}

    ``pdb``, ``forcefield`` and ``temperature`` are required. The PDB file has all hydrogens; its first
    model is where reference runs start. ``forcefield`` is one or a list of files, ``implicit_solvent``
    one of hct, obc1, obc2, gbn, gbn2 or a file; files are sought in the folder of the system file,
    then among those of OpenMM. ``nonbonded`` may give ``method`` (NoCutoff or CutoffNonPeriodic),
    ``cutoff_nm``, ``switch_distance_nm``, ``solute_dielectric`` and ``solvent_dielectric``.
    ``platform``, ``workers``, ``timeout``, ``invariant`` and ``description`` are those of
    :class:`~molsampler.systems.openmm.system.OpenMMSystem`. There are no constraints. ``source`` is the path
    of the system file.

    Raises
    ------
    UnknownNameError
        A key is unknown.
    InputError
        A key is missing, a value is unusable, or the force field does not know a residue.
    FileFormatError
        A file is missing or unreadable, or a force field of the user's holds scripts.
    """
    require_openmm()
    from openmm import app

    _check_keys(content, (*_KEYS,), source, "kind")
    missing = [key for key in ("pdb", "forcefield", "temperature") if content.get(key) is None]
    if missing:
        raise InputError(f"{source}: missing key(s) {', '.join(map(repr, missing))}")
    folder = Path(source).parent
    path = folder / _text(content["pdb"], "pdb", source)
    read_limited(path, _PDB_LIMIT)
    try:
        pdb = app.PDBFile(str(path))
    except Exception as error:
        raise FileFormatError(f"{path} is not a usable PDB file: {error}") from None
    names = content["forcefield"]
    files = [names] if isinstance(names, str) else names
    if not isinstance(files, list) or not files:
        raise InputError(f"{source}: forcefield must be a file or a list of files, got {names!r}")
    files = [_forcefield_file(folder, _text(name, "forcefield", source)) for name in files]
    solvent = content.get("implicit_solvent")
    if solvent is not None:
        solvent = _text(solvent, "implicit_solvent", source)
        bundled = f"implicit/{solvent}.xml" if solvent in _SOLVENTS else solvent
        files.append(_forcefield_file(folder, bundled))
    options = _nonbonded(content.get("nonbonded"), source)
    try:
        system = app.ForceField(*files).createSystem(
            pdb.topology, constraints=None, rigidWater=False, removeCMMotion=False, **options
        )
    except Exception as error:
        raise InputError(
            f"{source}: the force field {', '.join(files)} cannot describe {path.name}: {error}"
        ) from None
    direct = ("name", "description", "temperature", "platform", "workers", "timeout", "invariant")
    try:
        return OpenMMSystem(
            system,
            pdb.topology,
            positions=pdb.positions,
            **{key: content[key] for key in direct if content.get(key) is not None},
        )
    except InputError as error:
        raise type(error)(f"{source}: {error}") from None


def _check_keys(
    content: Mapping[str, Any], known: tuple[str, ...], source: str, *also: str
) -> None:
    for key in content:
        if key not in known:
            raise UnknownNameError(
                f"{source}: unknown key {key!r}{nearest(str(key), known)} (known: "
                f"{', '.join((*also, *known))})"
            )


def _text(value: Any, key: str, source: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f"{source}: {key} must be text, got {value!r}")
    return value


def _nonbonded(content: Any, source: str) -> dict[str, Any]:
    from openmm import app

    content = {} if content is None else content
    if not isinstance(content, dict):
        raise InputError(f"{source}: nonbonded must be a mapping, got {content!r}")
    _check_keys(content, tuple(_NONBONDED), f"{source}: nonbonded")
    method = content.get("method", "NoCutoff")
    if method not in _METHODS:
        raise InputError(
            f"{source}: nonbonded.method must be {' or '.join(_METHODS)} (periodic energies have no "
            f"density on free coordinates), got {method!r}"
        )
    options: dict[str, Any] = {"nonbondedMethod": getattr(app, method)}
    for key, value in content.items():
        if key == "method":
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise InputError(f"{source}: nonbonded.{key} must be a positive number, got {value!r}")
        options[_NONBONDED[key]] = value
    return options


def _forcefield_file(folder: Path, name: str) -> str:
    """The path of a user's file, or the name of one of OpenMM's."""
    path = folder / name
    if not path.exists():
        return name
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
