"""Topologies of particles that are no atoms of a molecule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import mdtraj
    import openmm

#: What a particle without a species is drawn as.
ARGON = "AR"


def particles(labels: Sequence[str]) -> mdtraj.Topology:
    """MDTraj topology: one chain, each particle its own residue, named by its label.

    Where all labels are symbols of elements the atoms are of these, else of argon.

    Raises
    ------
    MissingDependencyError
        MDTraj is not installed.
    """
    import mdtraj

    topology = mdtraj.Topology()
    chain = topology.add_chain()
    lookup = mdtraj.element.get_by_symbol
    symbols = _symbols(labels, lookup)
    for index, (label, symbol) in enumerate(zip(labels, symbols, strict=True), 1):
        residue = topology.add_residue(label.upper()[:3], chain, resSeq=index)
        topology.add_atom(label.upper()[:4], lookup(symbol), residue, serial=index)
    return topology


def openmm_particles(labels: Sequence[str]) -> openmm.app.Topology:
    """The same for OpenMM."""
    from openmm import app

    topology = app.Topology()
    chain = topology.addChain()
    lookup = app.Element.getBySymbol
    for label, symbol in zip(labels, _symbols(labels, lookup), strict=True):
        residue = topology.addResidue(label.upper()[:3], chain)
        topology.addAtom(label.upper()[:4], lookup(symbol), residue)
    return topology


def _symbols(labels: Sequence[str], lookup: Callable[[str], Any]) -> list[str]:
    """The labels where all are symbols that ``lookup`` finds, else argon throughout."""
    try:
        if all(label.istitle() and lookup(label) for label in labels):
            return list(labels)
    except KeyError:
        pass
    return ["Ar"] * len(labels)
