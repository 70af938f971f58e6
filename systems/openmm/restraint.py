r"""A restraint that keeps molecules together.

Molecules in open space have no norm: one may go anywhere, and the energy levels off. The restraint acts on
the centre :math:`c_f` of each molecule f, the mean of its positions, and on that of all particles,

.. math:: U = \sum_f \tfrac{k}{2} \max(0, |c_f - \bar x| - r)^2,

so it does not change under translation, rotation and reflection, depends on no masses, and is zero
while every centre is within r; with r = 0 it is harmonic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from molsampler.errors import InputError
from molsampler.molecule.graph import distances

from ..spec import SystemSpec

if TYPE_CHECKING:
    import openmm

#: Centres may coincide, where a square root has no slope.
_EXPRESSION = "0.5*k*max(0, sqrt(distance(g1,g2)^2 + 1e-12) - r)^2"


class Restraint(BaseModel):
    """``radius_nm`` is r, ``stiffness`` is k in kJ/mol/nm^2."""

    model_config = SystemSpec.model_config

    radius_nm: float = Field(default=1.0, ge=0, description="a number of nanometres, 0 or more")
    stiffness: float = Field(default=100.0, gt=0, description="a positive number of kJ/mol/nm^2")

    def add_to(self, system: openmm.System, topology: openmm.app.Topology) -> None:
        """Add the restraint to a system whose molecules are the connected parts of the topology.

        Raises
        ------
        InputError
            There is one molecule only, which has nothing to be kept with.
        """
        import openmm

        parts = molecules(topology)
        if len(parts) < 2:
            raise InputError("restraint needs two molecules or more, the topology holds one")
        force = openmm.CustomCentroidBondForce(2, _EXPRESSION)
        force.setName("Restraint")
        force.addGlobalParameter("k", self.stiffness)
        force.addGlobalParameter("r", self.radius_nm)
        n = system.getNumParticles()
        # Equal weights: by default centres are those of mass.
        everything = force.addGroup(list(range(n)), [1.0] * n)
        for part in parts:
            force.addBond([force.addGroup(part, [1.0] * len(part)), everything], [])
        system.addForce(force)


def molecules(topology: openmm.app.Topology) -> list[list[int]]:
    """Particles of each connected part of a topology."""
    n = topology.getNumAtoms()
    reach = distances(n, [(bond[0].index, bond[1].index) for bond in topology.bonds()])
    return [
        list(part) for part in sorted({tuple((row >= 0).nonzero()[0].tolist()) for row in reach})
    ]
