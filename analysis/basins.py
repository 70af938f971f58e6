r"""Basins of a system: which configurations are in each, and what its free energy is measured against.

A basin's free energy is :math:`-\log(p / p_{ref})` in kT. Of basins that exclude each other the reference is
the first of those within ``NEAR`` kT of the deepest (of many equal ones, the deepest by estimate would be one
that is estimated too deep); a statement that holds or not is measured against its contrary; those of a
Ramachandran plane against its beta.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molsampler.collective_variables import Intervals
from molsampler.target import System

from .geometry import molecule_of
from .modes import Members, mode_members, modes_of
from .torsions import BASINS, basin_labels

Array = NDArray[np.float64]

#: Free energy in kT above the deepest basin up to which the first one is the reference.
NEAR = 1.0


class Basin(NamedTuple):
    """A basin, and the one that its free energy is measured against.

    Attributes
    ----------
    name, reference_name : in words
    member, reference : whether each configuration is in it ``(n,)``, and in the reference
    """

    name: str
    member: NDArray[np.bool_]
    reference: NDArray[np.bool_]
    reference_name: str


def basins_of(system: System, positions: Tensor, probabilities: Array) -> list[Basin]:
    """The basins that a system has: its modes, else those of its Ramachandran planes, else none.

    Parameters
    ----------
    positions : ``(n, N, D)``
    probabilities : of the configurations ``(n,)``
    """
    modes = modes_of(system)
    x = system.space.project(positions.double())
    if modes is not None:
        return _basins(mode_members(x, modes), probabilities)
    molecule = molecule_of(system)
    if molecule is None:
        return []
    found = []
    angles = molecule.ramachandran(x) if molecule.residues else np.zeros((len(x), 0, 2))
    for r, residue in enumerate(molecule.residues):
        labels = basin_labels(angles[:, r])
        for k, name in enumerate(BASINS):
            beta = f"{residue} {BASINS[0]}"
            found.append(Basin(f"{residue} {name}", labels == k, labels == 0, beta))
    return found


def basins_along(values: Tensor, intervals: Intervals, probabilities: Array) -> list[Basin]:
    """The basins that edges cut along a collective variable of values ``(n,)``."""
    member = torch.nn.functional.one_hot(intervals.labels(values), len(intervals.names)).bool()
    return _basins(Members(intervals.names, member, True), probabilities)


def _basins(members: Members, probabilities: Array) -> list[Basin]:
    member = members.member.cpu().numpy()
    if not members.exclusive:
        return [
            Basin(name, inside, ~inside, f"not {name}")
            for name, inside in zip(members.names, member.T, strict=True)
        ]
    shares = probabilities @ member
    first = int(np.argmax(shares >= np.exp(-NEAR) * shares.max()))
    return [
        Basin(name, inside, member[:, first], members.names[first])
        for name, inside in zip(members.names, member.T, strict=True)
    ]
