"""PDB and force-field files as system files name them, with what is wrong with them said."""

from __future__ import annotations

import difflib
import warnings
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from molsampler.errors import FileFormatError, InputError, nearest
from molsampler.storage.files import read_limited

from .molecular import SOLVENTS

if TYPE_CHECKING:
    from openmm import app

_PDB_LIMIT = 2**26

#: Names shown where none is near.
_SHOWN = ("amber14-all.xml", "amber14/protein.ff14SB.xml", "amber99sbildn.xml", "charmm36.xml")


def read_pdb(path: Path) -> app.PDBFile:
    """A PDB file.

    Raises
    ------
    FileFormatError
        It is missing, malformed, or writes an atom twice.
    """
    from openmm import app

    read_limited(path, _PDB_LIMIT)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            pdb = app.PDBFile(str(path))
    except Exception as error:
        raise FileFormatError(f"{path} is not a usable PDB file: {error}") from None
    for warning in said:
        text = str(warning.message)
        if "duplicate atom" in text:
            atom = text.partition("(")[2].partition(",")[0].strip()
            raise FileFormatError(
                f"{path} writes an atom twice, of one residue and one name: {atom!r}; remove one, or "
                "rename it"
            )
    return pdb


def require_bundled(name: str, folder: Path) -> str:
    """``name`` if it is one of OpenMM's force-field files, or of a package that brings more of them.

    Raises
    ------
    InputError
        It is not; near ones are named.
    """
    known = bundled()
    if name in known:
        return name
    near = [each for each in known if name.lower() in each.lower()][:3]
    near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    listed = ", ".join(repr(each) for each in near)
    hint = f"; did you mean {listed}?" if near else f" (such as {', '.join(_SHOWN)})"
    raise InputError(
        f"forcefield {name!r} is neither a file in {folder.resolve()} nor one of OpenMM's{hint}"
    )


def bundled() -> list[str]:
    """Names of the force-field files that OpenMM finds by itself."""
    from openmm import app

    folders = [Path(app.__file__).parent / "data"]
    for entry in entry_points(group="openmm.forcefielddir"):
        try:
            folders.append(Path(entry.load()()))
        except Exception:
            # Another package's fault, and one folder less to look in.
            continue
    return sorted({str(path.relative_to(each)) for each in folders for path in each.rglob("*.xml")})


def solvent_file(name: str, folder: Path) -> str:
    """The force-field file of an implicit solvent.

    Raises
    ------
    InputError
        It is neither one that OpenMM has nor a file.
    """
    if name in SOLVENTS:
        return f"implicit/{name}.xml"
    if (folder / name).is_file() or name in bundled():
        return name
    raise InputError(
        f"implicit_solvent must be one of {', '.join(SOLVENTS)} or a force-field file, got {name!r}"
        f"{nearest(name, list(SOLVENTS))}"
    )
