"""Samples as an MDAnalysis universe."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from ..errors import MissingDependencyError
from ..target import System
from .lengths import to_nanometres, topology_of

if TYPE_CHECKING:
    from MDAnalysis import Universe


def to_mdanalysis(positions: Tensor, system: System) -> Universe:
    """One frame for each of positions ``(n, N, D)``; see :meth:`molsampler.samples.Samples.to_mdanalysis`."""
    try:
        from MDAnalysis import Universe
        from MDAnalysis.coordinates.memory import MemoryReader
    except ImportError:
        raise MissingDependencyError(
            "MDAnalysis is not installed: pip install 'molsampler[notebook]'"
        ) from None
    topology = topology_of(system)
    atoms, residues = list(topology.atoms), list(topology.residues)
    universe = Universe.empty(
        len(atoms),
        n_residues=len(residues),
        n_segments=topology.n_chains,
        atom_resindex=[atom.residue.index for atom in atoms],
        residue_segindex=[residue.chain.index for residue in residues],
        trajectory=True,
    )
    elements = ["" if atom.element is None else atom.element.symbol for atom in atoms]
    for name, values in {
        "names": [atom.name for atom in atoms],
        "elements": elements,
        "types": elements,
        "masses": [0.0 if atom.element is None else atom.element.mass for atom in atoms],
        "resnames": [residue.name for residue in residues],
        "resids": [residue.index + 1 for residue in residues],
        "segids": [str(k) for k in range(topology.n_chains)],
    }.items():
        universe.add_TopologyAttr(name, values)
    bonds = [(first.index, second.index) for first, second in topology.bonds]
    if bonds:
        universe.add_TopologyAttr("bonds", bonds)
    angstroms = 10.0 * to_nanometres(positions, system.length_nm).astype(np.float64)
    universe.load_new(angstroms.astype(np.float32), format=MemoryReader, order="fac")
    return universe
