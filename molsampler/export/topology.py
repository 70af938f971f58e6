"""The PDB text that names the atoms of a trajectory, and the file ``X.pdb`` that holds it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FileFormatError, OutputExistsError, StorageError
from ..storage.files import sha256
from .lengths import Frames
from .sidecar import Sidecar, read_sidecar, sidecar_path, topology_path

#: What fits the eight columns of a coordinate (angstrom).
LOWEST, HIGHEST = -999.999, 9999.999


def template(topology: Any) -> tuple[str, str]:
    """One model as a %-format over its coordinates, and what follows the last model."""
    from mdtraj.formats import PDBTrajectoryFile

    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pdb"
            with PDBTrajectoryFile(str(path), "w") as file:
                file.write(np.zeros((topology.n_atoms, 3)), topology, modelIndex=1)
            lines = path.read_text("ascii").splitlines()
    except OSError as error:
        raise StorageError(
            f"no space left to write a temporary file in {tempfile.gettempdir()}"
        ) from error
    start = next(i for i, line in enumerate(lines) if line.startswith("MODEL"))
    end = next(i for i, line in enumerate(lines) if line.startswith("ENDMDL"))
    model = []
    for line in lines[start + 1 : end]:
        if line.startswith(("ATOM", "HETATM")):
            head, tail = (part.replace("%", "%%") for part in (line[:30], line[54:]))
            model.append(head + "%8.3f%8.3f%8.3f" + tail)
        else:
            model.append(line.replace("%", "%%"))
    return "\n".join(model) + "\n", "\n".join([*lines[end + 1 :], ""])


def one_model(topology: Any, frame: Frames) -> str:
    """A PDB text of one frame ``(N, 3)`` in nm, for use as topology.

    A frame that does not fit the columns is drawn with all atoms at the origin: it is the atoms that
    a topology is read for.
    """
    model, footer = template(topology)
    angstrom = frame.astype(np.float64) * 10.0
    if np.any((angstrom < LOWEST) | (angstrom > HIGHEST)):
        angstrom = np.zeros_like(angstrom)
    return f"MODEL        1\n{model % tuple(angstrom.ravel().tolist())}ENDMDL\n{footer}"


def _atoms(text: str) -> list[str]:
    """Serial number, names and element of each atom of a PDB text's first model."""
    lines = text.split("ENDMDL", 1)[0].splitlines()
    return [line[:30] + line[76:78] for line in lines if line.startswith(("ATOM", "HETATM"))]


def is_left_topology(path: Path) -> bool:
    """Whether a file is the ``X.pdb`` that a trajectory's sidecar records as its topology, and no samples."""
    if path != topology_path(path) or not path.is_file() or path.is_symlink():
        return False
    try:
        sidecar = read_sidecar(sidecar_path(path))
    except FileFormatError:
        return False
    return (
        sidecar is not None
        and sidecar.topology is not None
        and sidecar.topology.file == path.name
        and not sidecar.records(path.name)
        and sidecar.topology.sha256 == sha256(path)
    )


def check_topology(data: Path, wanted: str, *, overwrite: bool) -> bool:
    """Whether the ``X.pdb`` of a trajectory already names the right atoms and is left alone.

    Raises
    ------
    OutputExistsError
        It names others, and is neither the file being replaced nor the topology of that file alone.
    """
    path = topology_path(data)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OutputExistsError(f"{path} is a link, folder or device; the topology would go there")
    if not path.exists():
        return False
    with open(path, encoding="ascii", errors="replace") as file:
        held = _atoms(file.read(len(wanted) + 2**16))
    if held == _atoms(wanted):
        return True
    sidecar = read_sidecar(sidecar_path(path)) or Sidecar()
    ours = path == data or (
        sidecar.topology is not None and sidecar.topology.sha256 == sha256(path)
    )
    if overwrite and ours and set(sidecar.files) <= {data.name}:
        return False
    raise OutputExistsError(
        f"{path} exists and names {len(held)} atoms that do not match the {len(_atoms(wanted))} "
        f"particles of {data.name}; choose another file name"
    )
