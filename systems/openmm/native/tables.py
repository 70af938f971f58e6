r"""What an ``openmm.System`` is made of, as tables of terms.

Known are bonds, angles and torsions, harmonic and of MMFF94 (:mod:`systems.openmm.mmff`), Lennard-Jones and
Coulomb pairs without a cut-off, and the generalised Born models that come with OpenMM: HCT (Hawkins, Cramer
& Truhlar 1995), OBC (Onufriev, Bashford & Case 2004), GBn (Mongan et al. 2007) and GBn2 (Nguyen, Roe &
Simmerling 2013). With :math:`\rho_i` a radius less its offset and :math:`s_j` a scaled one,

.. math::

    I_i &= \tfrac12 \sum_j \Bigl[ \tfrac1L - \tfrac1U + \tfrac14 (r - s_j^2/r)(U^{-2} - L^{-2})
        + \tfrac{1}{2r} \ln \tfrac{L}{U} \Bigr], \quad U = r + s_j,\ L = \max(\rho_i, |r - s_j|), \\
    B_i^{-1} &= \rho_i^{-1} - R_i^{-1} \tanh(\alpha \psi - \beta \psi^2 + \gamma \psi^3),
        \quad \psi = I_i \rho_i, \\
    U &= -\tfrac12 C \Bigl(\tfrac1{\epsilon_{in}} - \tfrac1{\epsilon_{out}}\Bigr) \sum_{ij}
        \frac{q_i q_j}{\sqrt{r^2 + B_i B_j \exp(-r^2 / 4 B_i B_j)}}
        + \sum_i 4 \pi\, a\, (R_i + 0.14)^2 (R_i / B_i)^6,

to which GBn and GBn2 add the necks :math:`m_0 / (1 + 100 (r - d_0)^2 + 3 \cdot 10^5 (r - d_0)^6)` to I.
Units are nm, rad, kJ/mol and elementary charges.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import mmff

#: Coulomb's constant in kJ nm / mol, as OpenMM has it.
_COULOMB = 138.93545764438198
#: The same in the texts of OpenMM's CustomGBForces.
_COULOMB_IN_TEXT = 138.935485
#: Highest order of a torsion.
_ORDERS = 6

Floats = NDArray[np.float64]


class UnknownTermError(Exception):
    """A system has a term that no table holds."""


@dataclass
class Terms:
    """Particles and parameters of terms of one kind."""

    particles: list[Sequence[int]] = field(default_factory=list)
    parameters: list[Sequence[float]] = field(default_factory=list)

    def add(self, particles: Sequence[int], *parameters: float) -> None:
        self.particles.append(particles)
        self.parameters.append(parameters)


@dataclass(frozen=True)
class Born:
    """A generalised Born model.

    ``particles`` ``(n, 8)`` hold offset radius, scaled radius, radius, alpha, beta, gamma, charge and surface
    term; necks are ``(n, n)``.
    """

    particles: Floats
    coulomb: float
    inside: bool = False
    plain: bool = False
    neck_depth: Floats | None = None
    neck_distance: Floats | None = None
    neck_cut: float = 0.0


@dataclass(frozen=True)
class Tables:
    """All terms of a system; names of the lists and their columns are those of ``kernel.cpp``."""

    particles: int
    lists: dict[str, Terms]
    born: Born | None


def tables(system: Any) -> Tables:
    """The terms of an ``openmm.System``.

    Raises
    ------
    UnknownTermError
        It has others; the message names them.
    """
    lists: dict[str, Terms] = defaultdict(Terms)
    torsions: dict[tuple[int, ...], Floats] = {}
    born: list[Born] = []
    for force in system.getForces():
        kind = type(force).__name__
        if kind in _SOLVENTS:
            born.append(_SOLVENTS[kind](force, system.getNumParticles()))
        elif kind in _TORSIONS:
            for quad, series in _TORSIONS[kind](force):
                torsions[quad] = torsions.get(quad, np.zeros(2 * _ORDERS + 1)) + series
        elif kind in _READERS:
            _READERS[kind](force, lists)
        else:
            raise UnknownTermError(f"a {kind}")
    if len(born) > 1:
        raise UnknownTermError("two implicit solvents")
    for quad, series in torsions.items():
        lists["torsions"].add(quad, *series)
    return Tables(system.getNumParticles(), dict(lists), born[0] if born else None)


def _numbers(values: Sequence[Any]) -> list[float]:
    """Plain numbers, of quantities in OpenMM's own units."""
    return [float(getattr(value, "_value", value)) for value in values]


def _custom(
    force: Any, *, count: str, get: str, particles: int
) -> list[tuple[list[int], list[float]]]:
    """Particles and parameters of each term of a custom force without global parameters."""
    if force.getNumGlobalParameters():
        raise UnknownTermError(f"a {type(force).__name__} with global parameters")
    terms = []
    for k in range(getattr(force, count)()):
        *first, values = getattr(force, get)(k)
        group = first[0] if isinstance(first[0], tuple) else first
        terms.append(([int(i) for i in group][:particles], _numbers(values)))
    return terms


# Bonds and angles


def _harmonic_bonds(force: Any, lists: dict[str, Terms]) -> None:
    for k in range(force.getNumBonds()):
        i, j, *values = force.getBondParameters(k)
        length, stiffness = _numbers(values)
        lists["bonds"].add((i, j), stiffness / 2, length, 0.0, 0.0)


def _harmonic_angles(force: Any, lists: dict[str, Terms]) -> None:
    for t in range(force.getNumAngles()):
        i, j, k, *values = force.getAngleParameters(t)
        angle, stiffness = _numbers(values)
        lists["angles"].add((i, j, k), stiffness / 2, angle, 0.0)


def _custom_bonds(force: Any, lists: dict[str, Terms]) -> None:
    text = force.getEnergyFunction()
    if text not in (mmff.BOND, mmff.PAIR):
        raise UnknownTermError("a CustomBondForce")
    for pair, values in _custom(force, count="getNumBonds", get="getBondParameters", particles=2):
        if text == mmff.BOND:
            k, r0 = values
            # Lengths of MMFF94 are in angstrom: d = 10 (r - r0 / 10).
            lists["bonds"].add(pair, 100 * 4.184 * mmff.MDYN / 2 * k, r0 / 10, -20.0, 700 / 3)
        else:
            radius, depth, charges = (values[0] / 10, 4.184 * values[1], values[2])
            lists["buffered"].add(
                pair,
                *(depth, 1.07 * radius, 0.07 * radius, 1.12 * radius**7, 0.12 * radius**7),
                *(4.184 * 332.0716 * charges / 10, 0.005),
            )


def _custom_angles(force: Any, lists: dict[str, Terms]) -> None:
    text = force.getEnergyFunction()
    if text not in (mmff.ANGLE, mmff.LINEAR):
        raise UnknownTermError("a CustomAngleForce")
    for triple, values in _custom(
        force, count="getNumAngles", get="getAngleParameters", particles=3
    ):
        if text == mmff.ANGLE:
            k, theta0 = values
            lists["angles"].add(triple, 4.184 * mmff.MDYN / 2 * k, theta0, -mmff.ANGLE_CUBIC)
        else:
            lists["linear"].add(triple, 4.184 * mmff.MDYN * values[0])


def _compound_bonds(force: Any, lists: dict[str, Terms]) -> None:
    text = force.getEnergyFunction()
    if text not in (mmff.STRETCH_BEND, mmff.OUT_OF_PLANE):
        raise UnknownTermError("a CustomCompoundBondForce")
    size = force.getNumParticlesPerBond()
    for group, values in _custom(
        force, count="getNumBonds", get="getBondParameters", particles=size
    ):
        if text == mmff.STRETCH_BEND:
            k1, k2, r1, r2, theta0 = values
            scale = 10 * 4.184 * mmff.MDYN
            lists["stretch_bends"].add(group, scale * k1, scale * k2, r1 / 10, r2 / 10, theta0)
        else:
            lists["planes"].add(group, 4.184 * mmff.MDYN / 2 * values[0])


# Torsions: a Fourier series a1 b1 ... a6 b6 and a constant

Torsion = tuple[tuple[int, ...], Floats]


def _series(terms: Sequence[tuple[int, float, float]]) -> Floats:
    r"""The series of :math:`\sum k (1 + \cos(n \phi - \phi_0))` over ``(n, phi0, k)``."""
    series = np.zeros(2 * _ORDERS + 1)
    for order, phase, k in terms:
        if not 0 < order <= _ORDERS:
            raise UnknownTermError(f"a torsion of order {order}")
        series[2 * order - 2] += k * math.cos(phase)
        series[2 * order - 1] += k * math.sin(phase)
        series[-1] += k
    return series


def _periodic_torsions(force: Any) -> list[Torsion]:
    found = []
    for k in range(force.getNumTorsions()):
        *quad, order, phase, barrier = force.getTorsionParameters(k)
        found.append((tuple(quad), _series([(order, *_numbers([phase, barrier]))])))
    return found


def _ryckaert_bellemans(force: Any) -> list[Torsion]:
    r"""Of :math:`\sum_n c_n \cos^n(\phi - \pi)`."""
    found = []
    for k in range(force.getNumTorsions()):
        *quad, c0, c1, c2, c3, c4, c5 = force.getTorsionParameters(k)
        values = _numbers([c0, c1, c2, c3, c4, c5])
        powers = np.polynomial.Polynomial([c * (-1) ** n for n, c in enumerate(values)])
        waves = np.polynomial.chebyshev.poly2cheb(powers.coef)
        series = np.zeros(2 * _ORDERS + 1)
        series[-1] = waves[0]
        series[0 : 2 * (len(waves) - 1) : 2] = waves[1:]
        found.append((tuple(quad), series))
    return found


def _custom_torsions(force: Any) -> list[Torsion]:
    if force.getEnergyFunction() != mmff.TORSION:
        raise UnknownTermError("a CustomTorsionForce")
    terms = _custom(force, count="getNumTorsions", get="getTorsionParameters", particles=4)
    return [
        (
            tuple(quad),
            _series([(1, 0.0, 2.092 * v1), (2, math.pi, 2.092 * v2), (3, 0.0, 2.092 * v3)]),
        )
        for quad, (v1, v2, v3) in terms
    ]


# Pairs


def _nonbonded(force: Any, lists: dict[str, Terms]) -> None:
    offsets = force.getNumParticleParameterOffsets() + force.getNumExceptionParameterOffsets()
    if force.getNonbondedMethod() != force.NoCutoff or offsets:
        raise UnknownTermError("a NonbondedForce with a cut-off or with offsets")
    n = force.getNumParticles()
    charge, sigma, depth = np.array(
        [_numbers(force.getParticleParameters(i)) for i in range(n)]
    ).T.reshape(3, n)
    pairs = {
        (i, j): (charge[i] * charge[j], (sigma[i] + sigma[j]) / 2, math.sqrt(depth[i] * depth[j]))
        for i in range(n)
        for j in range(i + 1, n)
    }
    for k in range(force.getNumExceptions()):
        i, j, *values = force.getExceptionParameters(k)
        product, length, epsilon = _numbers(values)
        pairs[min(i, j), max(i, j)] = product, length, epsilon
    for pair, (product, length, epsilon) in pairs.items():
        if product or epsilon:
            lists["pairs"].add(pair, 4 * epsilon, length**2, _COULOMB * product)


# Implicit solvents


def _obc(force: Any, n: int) -> Born:
    if force.getNonbondedMethod() != force.NoCutoff:
        raise UnknownTermError("a GBSAOBCForce with a cut-off")
    charge, radius, scale = np.array(
        [_numbers(force.getParticleParameters(i)) for i in range(n)]
    ).T.reshape(3, n)
    offset = radius - 0.009
    tension = 4 * math.pi * _numbers([force.getSurfaceAreaEnergy()])[0]
    rows = _born_rows(offset, scale * offset, radius, (1.0, 0.8, 4.85), charge, tension)
    dielectric = 1 / force.getSoluteDielectric() - 1 / force.getSolventDielectric()
    return Born(rows, _COULOMB * dielectric, inside=True)


def _born_rows(
    offset: Floats, scaled: Floats, radius: Floats, shape: Any, charge: Floats, tension: float
) -> Floats:
    alpha, beta, gamma = (np.broadcast_to(value, offset.shape) for value in shape)
    surface = tension * (radius + 0.14) ** 2
    return np.stack([offset, scaled, radius, alpha, beta, gamma, charge, surface], axis=1)


_NUMBER = r"[0-9.]+(?:e[-+]?[0-9]+)?"
_CONTACT = (
    "select(step(r+sr2-or1), 0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r), 0);"
    "U=r+sr2;L=max(or1, D);D=abs(r-sr2)"
)
_NECK = re.compile(
    re.escape(
        "Ivdw+neckScale*Ineck;Ineck=step(radius1+radius2+neckCut-r)*getm0(radindex1,radindex2)"
        "/(1+100*(r-getd0(radindex1,radindex2))^2+0.3*1000000*(r-getd0(radindex1,radindex2))^6);Ivdw="
        + _CONTACT
        + ";radius1=or1+offset; radius2=or2+offset;"
    )
    + rf"neckScale=({_NUMBER}); neckCut=({_NUMBER}); offset=({_NUMBER})"
)
_RADIUS = re.compile(
    r"1/\(1/or-tanh\((.*)\)/radius\);psi=I\*or; radius=or\+offset; offset=(" + _NUMBER + ")"
)
_SHAPE = re.compile(
    rf"({_NUMBER}\*|alpha\*)?psi(?:-({_NUMBER}|beta)\*psi\^2)?\+({_NUMBER}|gamma)\*psi\^3"
)
_CONSTANTS = (
    rf"; solventDielectric=({_NUMBER}); soluteDielectric=({_NUMBER}); kappa=0; offset=({_NUMBER})"
)
_SELF = re.compile(
    re.escape(f"-0.5*{_COULOMB_IN_TEXT}*(1/soluteDielectric-1/solventDielectric)*charge^2/B")
    + _CONSTANTS
)
_SURFACE = re.compile(
    rf"({_NUMBER})" + re.escape("*(radius+0.14)^2*(radius/B)^6; radius=or+offset") + _CONSTANTS
)
_CROSS = re.compile(
    re.escape(
        f"-{_COULOMB_IN_TEXT}*(1/soluteDielectric-1/solventDielectric)*charge1*charge2/f;"
        "f=sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))"
    )
    + _CONSTANTS
)


def _custom_born(force: Any, n: int) -> Born:
    """The models that OpenMM writes as a CustomGBForce, by their texts."""
    other = UnknownTermError("a CustomGBForce that is none of HCT, OBC, GBn and GBn2 without salt")
    if (
        force.getNonbondedMethod() != force.NoCutoff
        or force.getNumExclusions()
        or force.getNumGlobalParameters()
        or force.getNumComputedValues() != 2
    ):
        raise other
    integral, _ = force.getComputedValueParameters(0)[1:]
    radius_text, _ = force.getComputedValueParameters(1)[1:]
    columns = dict(
        zip(
            [
                force.getPerParticleParameterName(k)
                for k in range(force.getNumPerParticleParameters())
            ],
            np.array([_numbers(force.getParticleParameters(i)) for i in range(n)]).T,
            strict=True,
        )
    )
    coulomb, tension, surface_offset = _born_energy(force, other)
    necks: dict[str, Any] = {}
    if found := _NECK.fullmatch(integral):
        scale, cut, _ = map(float, found.groups())
        index = columns["radindex"].astype(int)
        function = {
            force.getTabulatedFunctionName(k): force.getTabulatedFunction(k) for k in range(2)
        }
        depth, distance = (
            _table(function[name])[index[:, None], index] for name in ("getm0", "getd0")
        )
        necks = {"neck_depth": scale * depth, "neck_distance": distance, "neck_cut": cut}
    elif integral != _CONTACT:
        raise other
    plain = radius_text == "1/(1/or-I)"
    shape: Any = (0.0, 0.0, 0.0)
    offset = surface_offset
    if not plain:
        outer = _RADIUS.fullmatch(radius_text)
        inner = None if outer is None else _SHAPE.fullmatch(outer[1])
        if outer is None or inner is None:
            raise other
        offset = float(outer[2])
        parts = [(inner[1] or "1").rstrip("*"), inner[2] or "0", inner[3]]
        shape = [columns[part] if part in columns else float(part) for part in parts]
    own = columns["or"]
    rows = _born_rows(own, columns["sr"], own + offset, shape, columns["charge"], tension)
    return Born(rows, coulomb, plain=plain, **necks)


def _born_energy(force: Any, other: UnknownTermError) -> tuple[float, float, float]:
    """Coulomb's constant with the dielectric factor, surface tension and offset of the energy terms."""
    texts = [force.getEnergyTermParameters(k)[0] for k in range(force.getNumEnergyTerms())]
    own = [found for text in texts if (found := _SELF.fullmatch(text))]
    cross = [found for text in texts if (found := _CROSS.fullmatch(text))]
    surface = [found for text in texts if (found := _SURFACE.fullmatch(text))]
    if len(own) != 1 or len(cross) != 1 or len(own) + len(cross) + len(surface) != len(texts):
        raise other
    solvent, solute, offset = map(float, own[0].groups())
    if own[0].groups() != cross[0].groups() or len(surface) > 1:
        raise other
    tension = float(surface[0][1]) if surface else 0.0
    return _COULOMB_IN_TEXT * (1 / solute - 1 / solvent), tension, offset


def _table(function: Any) -> Floats:
    columns, rows, values = function.getFunctionParameters()
    # The first index is the fastest.
    return np.array(values, dtype=float).reshape(rows, columns).T


_READERS: dict[str, Callable[[Any, dict[str, Terms]], None]] = {
    "HarmonicBondForce": _harmonic_bonds,
    "HarmonicAngleForce": _harmonic_angles,
    "NonbondedForce": _nonbonded,
    "CustomBondForce": _custom_bonds,
    "CustomAngleForce": _custom_angles,
    "CustomCompoundBondForce": _compound_bonds,
}
_TORSIONS: dict[str, Callable[[Any], list[Torsion]]] = {
    "PeriodicTorsionForce": _periodic_torsions,
    "RBTorsionForce": _ryckaert_bellemans,
    "CustomTorsionForce": _custom_torsions,
}
_SOLVENTS: dict[str, Callable[[Any, int], Born]] = {
    "GBSAOBCForce": _obc,
    "CustomGBForce": _custom_born,
}
