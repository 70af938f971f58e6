"""Two united-atom butanes in open space, as a user would write them, with or without a restraint."""

from __future__ import annotations

from pathlib import Path

import butane


def _pdb(apart: float) -> str:
    lines, bonds = [], []
    for copy in range(2):
        for line in butane.PDB.splitlines():
            if line.startswith("HETATM"):
                serial, y = 4 * copy + int(line[6:11]), float(line[38:46]) + 10 * apart * copy
                lines.append(
                    f"HETATM{serial:5d}{line[11:22]}{copy + 1:4d}{line[26:38]}{y:8.3f}{line[46:]}"
                )
            elif line.startswith("CONECT"):
                bonds.append(
                    "CONECT" + "".join(f"{int(k) + 4 * copy:5d}" for k in line.split()[1:])
                )
    return "\n".join([*lines, *bonds, "END", ""])


def write(folder: Path, *, restraint: str = "", apart: float = 0.45) -> Path:
    """Write ``butanes.yaml`` and what it needs; ``restraint`` is the value of that key, ``apart`` in nm."""
    (folder / "butanes.pdb").write_text(_pdb(apart))
    (folder / "butane.xml").write_text(butane.FORCE_FIELD)
    path = folder / "butanes.yaml"
    path.write_text(
        "kind: openmm\npdb: butanes.pdb\nforcefield: butane.xml\ntemperature: 300\nplatform: Reference\n"
        + (f"restraint: {restraint}\n" if restraint else "")
    )
    return path
