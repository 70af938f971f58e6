"""What to say of keys that people write in system files and that the file's kind has not."""

from __future__ import annotations

from collections.abc import Iterable

from .spec import SystemSpec

_FREE = (
    "a constrained length is held by the integrator, not by the energy, so exp(-u) over free coordinates "
    "does not keep it. Molecules are built without constraints; leave the key out"
)
_SMILES = "write the molecule as 'kind: smiles', or make a PDB file with all hydrogens (docs/molecules.md)"
_PERIODIC = (
    "a periodic energy repeats in every image of the box, so exp(-u) has no norm; implicit solvent "
    "takes the place of water"
)

#: Keys of other programs' inputs.
_KNOWN = {
    "constraints": _FREE,
    "rigid_water": _FREE,
    "rigidWater": _FREE,
    "shake": _FREE,
    "sdf": _SMILES,
    "mol2": _SMILES,
    "box": _PERIODIC,
    "water": _PERIODIC,
    "timestep": "the density does not depend on how dynamics is integrated; leave the key out",
    "hydrogen_mass": "configurations do not depend on masses; leave the key out",
}


def pointer(key: str, kinds: Iterable[tuple[str, type[SystemSpec]]]) -> str:
    """Where else a key belongs, or why no kind has it; empty where nothing is known of it.

    ``kinds`` are all registered kinds but the file's own, by name.
    """
    having = [name for name, spec in kinds if key in spec.model_fields]
    if having:
        written = " or ".join(f"'kind: {name}'" for name in having)
        return f"it is a key of {written}"
    return _KNOWN.get(key, "")
