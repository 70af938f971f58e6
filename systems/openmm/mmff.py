r"""MMFF94 as an OpenMM system, with the parameters that RDKit assigns.

The energy is the sum of these terms (Halgren, J. Comput. Chem. 17, 490-641, 1996; lengths in angstrom,
angles in degrees, energies in kcal/mol):

.. math::

    \text{bond:}\quad & 71.96625\, k\, \Delta r^2 (1 - 2 \Delta r + \tfrac{7}{3} \Delta r^2) \\
    \text{angle:}\quad & 0.021922\, k\, \Delta\theta^2 (1 - 0.006981317\, \Delta\theta),
        \quad 143.9325\, k\, (1 + \cos\theta)\ \text{at linear centres} \\
    \text{stretch-bend:}\quad & 2.51210\, (k_{ij} \Delta r_{ij} + k_{kj} \Delta r_{kj})\, \Delta\theta \\
    \text{out of plane:}\quad & 0.021922\, k\, \chi^2 \\
    \text{torsion:}\quad & \tfrac12 [V_1 (1 + \cos\phi) + V_2 (1 - \cos 2\phi) + V_3 (1 + \cos 3\phi)] \\
    \text{van der Waals:}\quad & \epsilon \Bigl(\frac{1.07 R}{r + 0.07 R}\Bigr)^7
        \Bigl(\frac{1.12 R^7}{r^7 + 0.12 R^7} - 2\Bigr) \\
    \text{charges:}\quad & 332.0716\, q_i q_j / (r + 0.05)

The last two act on pairs that are three bonds apart or more; charges three bonds apart count 3/4. Nothing
is cut off. The variant MMFF94s holds delocalised nitrogens planar (Halgren, J. Comput. Chem. 20, 720,
1999).
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from molsampler.molecule.graph import distances, neighbours

if TYPE_CHECKING:
    import openmm

VARIANTS = ("MMFF94", "MMFF94s")

#: kcal/mol per mdyn angstrom.
MDYN = 143.9325
_DEGREE = math.pi / 180
#: Anharmonicity of angles, per rad.
ANGLE_CUBIC = 0.006981317 / _DEGREE
BOND = f"4.184*{MDYN / 2}*k*d^2*(1-2*d+7/3*d^2); d=10*r-r0"
ANGLE = f"4.184*{MDYN / 2}*k*d^2*(1-{ANGLE_CUBIC}*d); d=theta-theta0"
LINEAR = f"4.184*{MDYN}*k*(1+cos(theta))"
STRETCH_BEND = (
    f"4.184*{MDYN}*(k1*(10*distance(p1,p2)-r1)+k2*(10*distance(p3,p2)-r2))*(angle(p1,p2,p3)-theta0)"
)
#: The angle between the bond from p2 to p4 and the plane of p1, p2, p3.
OUT_OF_PLANE = (
    f"4.184*{MDYN / 2}*k*chi^2;"
    "chi=asin(min(1,max(-1,(nx*dx+ny*dy+nz*dz)/sqrt((nx^2+ny^2+nz^2)*(dx^2+dy^2+dz^2)))));"
    "nx=ay*bz-az*by; ny=az*bx-ax*bz; nz=ax*by-ay*bx;"
    "ax=x1-x2; ay=y1-y2; az=z1-z2; bx=x3-x2; by=y3-y2; bz=z3-z2; dx=x4-x2; dy=y4-y2; dz=z4-z2"
)
TORSION = "4.184*0.5*(v1*(1+cos(theta))+v2*(1-cos(2*theta))+v3*(1+cos(3*theta)))"
PAIR = (
    "4.184*(epsilon*(1.07*R/(d+0.07*R))^7*(1.12*R^7/(d^7+0.12*R^7)-2)+332.0716*qq/(d+0.05)); d=10*r"
)


def mmff_system(molecule: Any, properties: Any) -> openmm.System:
    """The energy of an RDKit molecule with all its hydrogens.

    ``properties`` are what ``rdkit.Chem.AllChem.MMFFGetMoleculeProperties`` makes of it. Forces are in
    kJ/mol/nm, as always in OpenMM.
    """
    import openmm

    n = molecule.GetNumAtoms()
    bonds = sorted(
        tuple(sorted((b.GetBeginAtomIdx(), b.GetEndAtomIdx()))) for b in molecule.GetBonds()
    )
    partners = neighbours(n, bonds)
    system = openmm.System()
    for atom in molecule.GetAtoms():
        system.addParticle(atom.GetMass())

    stretch = openmm.CustomBondForce(BOND)
    _parameters(stretch.addPerBondParameter, "k", "r0")
    lengths: dict[tuple[int, int], float] = {}
    for i, j in bonds:
        _, k, r0 = properties.GetMMFFBondStretchParams(molecule, i, j)
        lengths[i, j] = lengths[j, i] = r0
        stretch.addBond(i, j, [k, r0])

    bend, linear = openmm.CustomAngleForce(ANGLE), openmm.CustomAngleForce(LINEAR)
    _parameters(bend.addPerAngleParameter, "k", "theta0")
    _parameters(linear.addPerAngleParameter, "k")
    both = openmm.CustomCompoundBondForce(3, STRETCH_BEND)
    _parameters(both.addPerBondParameter, "k1", "k2", "r1", "r2", "theta0")
    plane = openmm.CustomCompoundBondForce(4, OUT_OF_PLANE)
    _parameters(plane.addPerBondParameter, "k")
    for j, near in enumerate(partners):
        straight = len(near) == 2 and _is_linear(properties.GetMMFFAtomType(j))
        for i, k in itertools.combinations(near, 2):
            found = properties.GetMMFFAngleBendParams(molecule, i, j, k)
            if found is None:
                continue
            _, force, theta = found
            if straight:
                linear.addAngle(i, j, k, [force])
                continue
            bend.addAngle(i, j, k, [force, theta * _DEGREE])
            mixed = properties.GetMMFFStretchBendParams(molecule, i, j, k)
            if mixed is not None:
                values = [mixed[1], mixed[2], lengths[i, j], lengths[k, j], theta * _DEGREE]
                both.addBond([i, j, k], values)
        if len(near) == 3:
            for i, k, out in (near, (near[0], near[2], near[1]), (near[1], near[2], near[0])):
                force = properties.GetMMFFOopBendParams(molecule, i, j, k, out)
                if force:
                    plane.addBond([i, j, k, out], [force])

    turn = openmm.CustomTorsionForce(TORSION)
    _parameters(turn.addPerTorsionParameter, "v1", "v2", "v3")
    for j, k in bonds:
        for i, end in itertools.product(partners[j], partners[k]):
            if len({i, j, k, end}) < 4:
                continue
            found = properties.GetMMFFTorsionParams(molecule, i, j, k, end)
            if found is not None and any(found[1:]):
                turn.addTorsion(i, j, k, end, list(found[1:]))

    pairs = openmm.CustomBondForce(PAIR)
    _parameters(pairs.addPerBondParameter, "R", "epsilon", "qq")
    steps = distances(n, bonds)
    charges = [properties.GetMMFFPartialCharge(i) for i in range(n)]
    for i, j in itertools.combinations(range(n), 2):
        if 0 <= steps[i, j] < 3:
            continue
        _, _, radius, depth = properties.GetMMFFVdWParams(i, j)
        share = 0.75 if steps[i, j] == 3 else 1.0
        pairs.addBond(i, j, [radius, depth, share * charges[i] * charges[j]])

    for force in (stretch, bend, linear, both, plane, turn, pairs):
        if _terms(force):
            system.addForce(force)
    return system


def _parameters(add: Any, *names: str) -> None:
    for name in names:
        add(name)


def _terms(force: Any) -> int:
    for count in ("getNumBonds", "getNumAngles", "getNumTorsions"):
        if hasattr(force, count):
            return int(getattr(force, count)())
    return 0


def _is_linear(atom_type: int) -> bool:
    """Whether MMFF94 calls two-coordinate atoms of this type linear: CSP, =N=, NR%."""
    return atom_type in (4, 53, 61)
