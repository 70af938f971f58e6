"""Topologies of particles that are no atoms of a molecule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mdtraj
    import openmm

#: What a particle without a species is drawn as.
ARGON = "AR"


def particles(labels: Sequence[str]) -> mdtraj.Topology:
    """MDTraj topology: one chain, each particle its own residue, named by its label.

    Raises
    ------
    MissingDependencyError
        MDTraj is not installed.
    """
    import mdtraj

    topology = mdtraj.Topology()
    chain = topology.add_chain()
    for index, label in enumerate(labels, 1):
        residue = topology.add_residue(label, chain, resSeq=index)
        topology.add_atom(label, mdtraj.element.argon, residue, serial=index)
    return topology


def openmm_particles(labels: Sequence[str]) -> openmm.app.Topology:
    """The same for OpenMM."""
    from openmm import app

    topology = app.Topology()
    chain = topology.addChain()
    argon = app.Element.getBySymbol("Ar")
    for label in labels:
        topology.addAtom(label, argon, topology.addResidue(label, chain))
    return topology
