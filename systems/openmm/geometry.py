"""Whether positions that a user gives are those of the system: atoms apart, lengths in nanometres."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from molsampler.errors import InputError

from .context import Array

if TYPE_CHECKING:
    import openmm

#: Distance in nm below which two particles are one written twice: a PDB file resolves a hundred times more.
_COINCIDENT = 1e-5
#: Bond lengths over those of the force field, in the median, beyond which the unit is another.
_LONG, _SHORT = 4.0, 0.25


def require_sane(positions: Array, system: openmm.System) -> None:
    """Refuse positions ``(n, 3)`` in nm of which two coincide, or with bonds of the wrong order of magnitude.

    Raises
    ------
    InputError
        They do.
    """
    difference = positions[:, None] - positions[None]
    near = np.triu((difference**2).sum(-1) < _COINCIDENT**2, k=1)
    if near.any():
        i, j = np.argwhere(near)[0]
        raise InputError(
            f"positions holds particles {i} and {j} at the same place (and {int(near.sum())} such pair(s) in "
            "all): an atom may be written twice"
        )
    ratios = _bond_ratios(positions, system)
    if not len(ratios):
        return
    ratio = float(np.median(ratios))
    if ratio > _LONG:
        raise InputError(
            f"bonds in positions are {ratio:.3g} times as long as in the force field: coordinates in "
            "Angstrom may have been given as nanometres, the unit of positions; divide them by 10"
        )
    if ratio < _SHORT:
        raise InputError(
            f"bonds in positions are {ratio:.3g} times as long as in the force field: coordinates in "
            "nanometres may have been written to a PDB file, which holds Angstrom; multiply them by 10"
        )


def _bond_ratios(positions: Array, system: openmm.System) -> Array:
    """Length of each harmonic bond over its length at rest."""
    found = []
    for force in system.getForces():
        if type(force).__name__ != "HarmonicBondForce":
            continue
        for k in range(force.getNumBonds()):
            i, j, rest, _ = force.getBondParameters(k)
            if rest._value > 0:
                found.append(float(np.linalg.norm(positions[i] - positions[j])) / rest._value)
    return np.array(found)
