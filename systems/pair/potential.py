"""Systems whose energy is a sum over pairs of a function of the distance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor

from molsampler.errors import InputError
from molsampler.space import MeanFree
from molsampler.target import System
from molsampler.units import TWIN_MASS, TWIN_TEMPERATURE, kT

from ..arguments import checked_description, checked_length, checked_name, integer
from ..spec import SystemSpec
from ..topology import ARGON, openmm_particles, particles
from .expression import Expression
from .sums import chunks, pair_sums

if TYPE_CHECKING:
    import mdtraj
    import openmm

_MAX_PARTICLES = 10_000


class PairPotential(System):
    r"""Particles whose energy is a sum over unordered pairs of one function of the distance.

    .. math:: u(x) = \sum_{i<j} f(|x_i - x_j|)

    A harmonic trap about the mean is such a sum as well, since
    :math:`\sum_i |x_i - \bar x|^2 = \frac1n \sum_{i<j} |x_i - x_j|^2`; without some such term a
    potential that vanishes at large distances has no normalisable density. Configurations live in
    the mean-free space. ::

        PairPotential(
            "my7", "4*eps*((s/r)^12 - (s/r)^6) + 0.5*k*r^2/n",
            n=7, d=3, parameters={"eps": 1, "s": 1, "k": 1},
        )

    Parameters
    ----------
    name : name of the system, used in files
    expression : f(r) in units of kT, in OpenMM's syntax, see :mod:`molsampler.systems.pair.expression`;
        ``n`` stands for the number of particles
    n, d : particles and dimensions (1 to 3)
    parameters : value of every name in the expression other than ``r`` and ``n``
    length_nm : nanometres per unit of length in trajectories and in the OpenMM twin
    description : one line for listings

    Raises
    ------
    ExpressionError
        The expression is malformed or does not match the parameters.
    InputError
        Another argument is unusable.
    """

    invariant = True
    exchangeable = True
    concurrent = True

    def __init__(
        self,
        name: str,
        expression: str,
        *,
        n: int,
        d: int,
        parameters: Mapping[str, float] | None = None,
        length_nm: float = 1.0,
        description: str = "",
    ) -> None:
        self.name = checked_name(name)
        checked_description(description)
        n = integer("n (particles)", n, 2, _MAX_PARTICLES)
        d = integer("d (dimensions)", d, 1, 3)
        self.length_nm = checked_length(length_nm)
        parameters = {} if parameters is None else parameters
        if not isinstance(parameters, Mapping):
            raise InputError(
                f"parameters must map names to numbers, got {type(parameters).__name__}"
            )
        self.space = MeanFree(n, d)
        self.expression = expression
        self.parameters = dict(parameters)
        self.description = description or f"{n} particles in {d}-D with a user-defined potential"
        self.function = Expression(expression).bind(self.parameters, provided={"n": n})

    @property
    def units(self) -> str:
        """Units of energy and length, for listings."""
        return f"energy kT, length {self.length_nm:g} nm"

    def __getstate__(self) -> dict[str, Any]:
        # Compiled functions cannot be pickled; they are rebuilt from the expression.
        return {key: value for key, value in self.__dict__.items() if key != "function"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        provided = {"n": self.shape[0]}
        self.function = Expression(self.expression).bind(self.parameters, provided=provided)

    def record(self) -> str | dict[str, Any]:
        """The keys of :class:`PairPotentialSpec`; the name of a registered family's member."""
        # Subclasses are the registered families, which their names describe.
        if type(self) is not PairPotential:
            return self.name
        particles, dimensions = self.shape
        return {
            "name": self.name,
            "expression": self.expression,
            "particles": particles,
            "dimensions": dimensions,
            "parameters": dict(self.parameters),
            "length_nm": self.length_nm,
        }

    def topology(self) -> mdtraj.Topology:
        """MDTraj topology: one chain of argon atoms, each its own residue ``AR``.

        Raises
        ------
        MissingDependencyError
            MDTraj is not installed.
        """
        return particles([ARGON] * self.shape[0])

    def openmm_twin(self) -> tuple[openmm.System, openmm.app.Topology]:
        """The same system in OpenMM: an all-pairs ``CustomBondForce`` with the same expression.

        Lengths are ``length_nm`` nanometres per unit, energies ``u * kT`` in kJ/mol at
        ``molsampler.units.TWIN_TEMPERATURE``, masses ``TWIN_MASS`` dalton. Systems in fewer than
        three dimensions keep their unused coordinates at zero: forces along them then vanish, but
        the integrator has to leave them out of the thermal noise. Nothing removes the motion of
        the centre of mass, on which the energy does not depend.
        """
        import openmm

        n, _ = self.shape
        text = self.function.openmm_text(length=self.length_nm, energy=kT(TWIN_TEMPERATURE))
        force = openmm.CustomBondForce(text)
        system = openmm.System()
        for i in range(n):
            system.addParticle(TWIN_MASS)
            for j in range(i):
                force.addBond(j, i, [])
        system.addForce(force)
        return system, openmm_particles([ARGON] * n)

    def _energy(self, x: Tensor) -> Tensor:
        energy = x.new_empty(len(x))
        for part in chunks(x):
            pairs = pair_sums(x[part], self.function.value_only)
            touching = None
            if self.function.cusp_at_zero:
                # u(0) is finite but has no slope; the energy must agree with energy_and_score.
                touching = pairs.touching()
            pairs.evaluate()
            energy[part] = pairs.energy()
            if touching is not None:
                energy[part].masked_fill_(touching, torch.inf)
        return energy

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parts = chunks(x)
        if len(parts) == 1:
            pairs = pair_sums(x, self.function.full)
            pairs.evaluate()
            return pairs.energy(), pairs.score().reshape(x.shape)
        energy, score = x.new_empty(len(x)), x.new_empty(x.shape)
        for part in parts:
            pairs = pair_sums(x[part], self.function.full)
            pairs.evaluate()
            energy[part] = pairs.energy()
            score[part].flatten(1).copy_(pairs.score())
        return energy, score


class PairPotentialSpec(SystemSpec):
    """Keys of a system file of ``kind: pair_potential``, which is also the kind of a file without::

        name: my7
        expression: 4*eps*((s/r)^12 - (s/r)^6) + 0.5*k*r^2/n
        particles: 7
        dimensions: 3
        parameters: {eps: 1, s: 1, k: 1}
        length_nm: 0.34

    They are the arguments of :class:`PairPotential`, whose ``n`` and ``d`` are ``particles`` and
    ``dimensions``.
    """

    expression: str
    particles: int
    dimensions: int
    #: The expression says what it makes of a value that is no number.
    parameters: dict[str, Any] = Field(default={}, description="a mapping of names to numbers")
    length_nm: float = Field(default=1.0, description="a number of nanometres")

    def build(self, folder: Path | None) -> PairPotential:
        return PairPotential(
            self.name,
            self.expression,
            n=self.particles,
            d=self.dimensions,
            parameters=self.parameters,
            length_nm=self.length_nm,
            description=self.description,
        )
