"""Systems whose energy is a sum over pairs of a function of the distance."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import Field
from torch import Tensor

from molsampler.compiled import UnavailableError
from molsampler.errors import ExpressionError, InputError
from molsampler.molecule.molecule import Molecule
from molsampler.space import Euclidean, MeanFree
from molsampler.target import System
from molsampler.units import TWIN_MASS, TWIN_TEMPERATURE, kT

from ..arguments import checked_description, checked_length, checked_name, integer
from ..spec import SystemSpec
from ..topology import ARGON, openmm_particles, particles
from .confinement import Confinement
from .expression import Expression
from .external import COORDINATES, ExternalField
from .kinds import PairKinds
from .native import NativePairs, serves
from .particles import Particles
from .sums import PairSums, SortedPairs, VariedPairs, chunks, pair_sums

if TYPE_CHECKING:
    import mdtraj
    import openmm

_MAX_PARTICLES = 10_000

#: Particles that differ need a table of all pairs, and so does the compiled kernel.
_MAX_DIFFERENT = 1_000
_MAX_LISTED = 1_000

#: Held while a system's kernel is made; not in a child that was forked meanwhile.
_NATIVES = threading.RLock()
os.register_at_fork(
    before=_NATIVES.acquire, after_in_parent=_NATIVES.release, after_in_child=_NATIVES.release
)


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
    particle_parameters : for each name a list of the values of all particles, or a mapping of species to
        values. The expression reads the values of ``q`` for the two particles of a pair as ``q1`` and
        ``q2``, and must not change when they are swapped
    species : a name for every particle
    pair_parameters : for each name in the expression the values of pairs of species, such as
        ``{"A-A": 1, "A-B": 0.5, "B-B": 1}``
    external : a field g(x, y, z) that acts on each particle, in units of kT. It reads ``parameters``, and
        ``q`` itself of its particle. Configurations then live in all of space
    confinement : a term g(r) of the distance of each particle from the mean of all, likewise; configurations
        stay in the mean-free space
    length_nm : nanometres per unit of length in trajectories and in the OpenMM twin
    description : one line for listings

    Attributes
    ----------
    particles : what tells the particles apart
    molecule : their types, without bonds; None where nothing tells them apart
    function : the function of all pairs where they are of one kind, else that of the first kind

    Raises
    ------
    ExpressionError
        An expression is malformed, does not match the parameters, or is not symmetric.
    InputError
        Another argument is unusable.
    """

    invariant = True
    exchangeable = True
    concurrent = True
    pairwise = True

    def __init__(
        self,
        name: str,
        expression: str,
        *,
        n: int,
        d: int,
        parameters: Mapping[str, float] | None = None,
        particle_parameters: Mapping[str, Any] | None = None,
        species: Sequence[str] | None = None,
        pair_parameters: Mapping[str, Any] | None = None,
        external: str | None = None,
        confinement: str | None = None,
        length_nm: float = 1.0,
        description: str = "",
    ) -> None:
        self.name = checked_name(name)
        checked_description(description)
        if isinstance(n, int) and not isinstance(n, bool) and n == 1:
            raise InputError(
                "n (particles) must be 2 or more in a potential of pairs, got 1; a particle in a field is a "
                "function of its position (kind: function, FunctionSystem)"
            )
        n = integer("n (particles)", n, 2, _MAX_PARTICLES)
        d = integer("d (dimensions)", d, 1, 3)
        self.length_nm = checked_length(length_nm)
        parameters = {} if parameters is None else parameters
        if not isinstance(parameters, Mapping):
            raise InputError(
                f"parameters must map names to numbers, got {type(parameters).__name__}"
            )
        self.expression = expression
        self.external, self.confinement = external, confinement
        self.parameters = dict(parameters)
        self.description = description or f"{n} particles in {d}-D with a user-defined potential"
        self.particles = Particles.of(
            n,
            particle_parameters=particle_parameters,
            species=species,
            pair_parameters=pair_parameters,
            taken=("n", *self.parameters, *(COORDINATES if external is not None else ())),
        )
        types = self.particles.types
        if types is not None:
            if n > _MAX_DIFFERENT:
                raise InputError(
                    f"n (particles) must be at most {_MAX_DIFFERENT:,} where they differ, got {n:,}"
                )
            self.exchangeable = False
            self.molecule = Molecule.of(types)
        self.space = MeanFree(n, d) if external is None else Euclidean(n, d)
        self.invariant = external is None
        self._compile()

    def _compile(self) -> None:
        """Make of the expressions what evaluates them."""
        n, d = self.shape
        expression, particles, parameters = (
            Expression(self.expression),
            self.particles,
            self.parameters,
        )
        self.terms: list[ExternalField | Confinement] = []
        if self.external is not None:
            clash = [name for name in parameters if name in COORDINATES]
            if clash:
                raise ExpressionError(f"parameter name {clash[0]!r} is taken; choose another")
            self.terms.append(
                ExternalField(
                    self.external, n=n, d=d, parameters=parameters, values=particles.values
                )
            )
        if self.confinement is not None:
            self.terms.append(
                Confinement(self.confinement, n=n, parameters=parameters, values=particles.values)
            )
        # What only these terms read is unknown to the pairs.
        elsewhere = {name for term in self.terms for name in term.expression.names}
        parameters = {
            name: value
            for name, value in parameters.items()
            if name in expression.names or name not in elsewhere
        }
        _check_use(particles, expression, elsewhere)
        self.kinds = None
        self._natives: dict[bool, NativePairs | None] = {}
        if particles.types is None:
            self.function = expression.bind(
                parameters, provided={"n": n, **particles.of_pair(0, 1)}
            )
        else:
            self.kinds = PairKinds.of(expression, parameters, n, particles)
            self.function = self.kinds.functions[0]
            if len(self.kinds.functions) == 1:
                self.kinds = None

    @property
    def units(self) -> str:
        """Units of energy and length, for listings."""
        return f"energy kT, length {self.length_nm:g} nm"

    def __getstate__(self) -> dict[str, Any]:
        # Compiled functions cannot be pickled; they are rebuilt from the expression.
        made = ("function", "kinds", "terms", "_natives")
        return {key: value for key, value in self.__dict__.items() if key not in made}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._compile()

    def _record(self) -> str | dict[str, Any]:
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
            **self.particles.record(),
            **({} if self.external is None else {"external": self.external}),
            **({} if self.confinement is None else {"confinement": self.confinement}),
        }

    @property
    def _hottest(self) -> float:
        # Whoever wrote an expression may have written it in kelvin.
        return math.inf if type(self) is PairPotential else super()._hottest

    def topology(self) -> mdtraj.Topology:
        """MDTraj topology: one chain, each particle its own residue, named by its species.

        Species that are all symbols of elements are drawn as these, others, and particles without a
        species (``AR``), as argon.

        Raises
        ------
        MissingDependencyError
            MDTraj is not installed.
        """
        return particles(self._labels())

    def _labels(self) -> Sequence[str]:
        return self.particles.species or [ARGON] * self.shape[0]

    def openmm_twin(self) -> tuple[openmm.System, openmm.app.Topology]:
        """The same system in OpenMM: an all-pairs ``CustomBondForce`` with the same expression, whose
        values of particles and species are parameters of the bonds, and forces of the field and the
        confinement.

        Lengths are ``length_nm`` nanometres per unit, energies ``u * kT`` in kJ/mol at
        :attr:`twin_temperature`, which changes as u does not, so that the twin is the same at all
        temperatures; masses ``TWIN_MASS`` dalton. Systems in fewer than three dimensions keep their unused
        coordinates at zero: forces along them then vanish, but the integrator has to leave them out of the
        thermal noise. Nothing removes the motion of the centre of mass, on which the energy does not depend.
        """
        import openmm

        n, _ = self.shape
        units = {"length": self.length_nm, "energy": kT(TWIN_TEMPERATURE)}
        own = [name for name in self.particles.pair_names if name in self.function.values]
        same = {name: value for name, value in self.function.values.items() if name not in own}
        force = openmm.CustomBondForce(
            self.function.expression.openmm_text(
                same, length=self.length_nm, energy=kT(TWIN_TEMPERATURE)
            )
        )
        for name in own:
            force.addPerBondParameter(name)
        system = openmm.System()
        for i in range(n):
            system.addParticle(TWIN_MASS)
            for j in range(i):
                values = self.particles.of_pair(j, i) if own else {}
                force.addBond(j, i, [values[name] for name in own])
        system.addForce(force)
        for term in self.terms:
            system.addForce(term.openmm_force(**units))
        return system, openmm_particles(self._labels())

    def _energy(self, x: Tensor) -> Tensor:
        energy = self._pair_energy(x)
        for term in self.terms:
            energy = energy + term.energy(x)
        return energy

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, score = self._pair_energy_and_score(x)
        for term in self.terms:
            more, push = term.energy_and_score(x)
            energy, score = energy + more, score + push
        return energy, score

    def _pair_energy(self, x: Tensor) -> Tensor:
        native = self._native(x, full=False)
        if native is not None:
            energy, _, nearest = native.evaluate(x, score=False, nearest=self._cusps())
            return energy if nearest is None else energy.masked_fill_(nearest == 0, torch.inf)
        energy = x.new_empty(len(x))
        for part in self._chunks(x):
            pairs = self._pairs(x[part], full=False)
            touching = None
            if self._cusps():
                # u(0) is finite but has no slope; the energy must agree with energy_and_score.
                touching = pairs.touching()
            pairs.evaluate()
            energy[part] = pairs.energy()
            if touching is not None:
                energy[part].masked_fill_(touching, torch.inf)
        return energy

    def _pair_energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        native = self._native(x, full=True)
        if native is not None:
            energy, force, _ = native.evaluate(x, score=True)
            return energy, cast(Tensor, force)
        parts = self._chunks(x)
        if len(parts) == 1:
            pairs = self._pairs(x, full=True)
            pairs.evaluate()
            energy, score = pairs.energy(), pairs.score().reshape(x.shape)
        else:
            energy, score = x.new_empty(len(x)), x.new_empty(x.shape)
            for part in parts:
                pairs = self._pairs(x[part], full=True)
                pairs.evaluate()
                energy[part] = pairs.energy()
                score[part].flatten(1).copy_(pairs.score())
        return energy, score

    def _native(self, x: Tensor, *, full: bool) -> NativePairs | None:
        """The compiled kernel where it serves these functions and positions, of energies alone or, with
        ``full``, their slopes too."""
        n, _ = self.shape
        if n > _MAX_LISTED or not serves(x):
            return None
        # Blocks of samples are evaluated by several threads: none may see a kernel in the making.
        with _NATIVES:
            if full not in self._natives:
                functions = (self.function,) if self.kinds is None else self.kinds.functions
                pairs = SortedPairs.all(n) if self.kinds is None else self.kinds.pairs
                made = None
                with contextlib.suppress(UnavailableError):
                    made = NativePairs(
                        self.shape,
                        [each.full if full else each.value_only for each in functions],
                        pairs,
                        cusps=[each.cusp_at_zero for each in functions],
                    )
                self._natives[full] = made
            return self._natives[full]

    def _chunks(self, x: Tensor) -> list[slice]:
        return chunks(x, kinds=1 if self.kinds is None else len(self.kinds.functions))

    def _pairs(self, x: Tensor, *, full: bool) -> PairSums:
        """The sums over pairs of a chunk, of energies and, with ``full``, their slopes."""
        if self.kinds is None:
            return pair_sums(x, self.function.full if full else self.function.value_only)
        functions = self.kinds.functions
        plans = [each.full if full else each.value_only for each in functions]
        return VariedPairs(x, self.kinds.pairs, plans, cusps=[f.cusp_at_zero for f in functions])

    def _cusps(self) -> bool:
        functions = (self.function,) if self.kinds is None else self.kinds.functions
        return any(each.cusp_at_zero for each in functions)


def _check_use(particles: Particles, expression: Expression, outside: Set[str]) -> None:
    """Refuse values that nothing reads, ``outside`` being what terms of single particles read, and those of
    one particle where there are two."""
    for name in particles.values:
        if name in expression.names:
            raise ExpressionError(
                f"{name!r} is a value of each particle, of which a pair has two: write {name}1 and "
                f"{name}2 in {expression.source[:80]!r}"
            )
        if not {f"{name}1", f"{name}2"} & set(expression.names) and name not in outside:
            raise ExpressionError(
                f"particle_parameters {name!r} does not appear in {expression.source[:80]!r}, where it "
                f"is {name}1 and {name}2"
            )
    for name in particles.pairs:
        if name not in expression.names:
            raise ExpressionError(
                f"pair_parameters {name!r} does not appear in {expression.source[:80]!r}"
            )


class PairPotentialSpec(SystemSpec):
    """Keys of a system file of ``kind: pair_potential``, which is also the kind of a file without::

        name: my7
        expression: 4*eps*((s/r)^12 - (s/r)^6) + 0.5*k*r^2/n
        particles: 7
        dimensions: 3
        parameters: {eps: 1, s: 1, k: 1}
        length_nm: 0.34

    They are the arguments of :class:`PairPotential`, whose ``n`` and ``d`` are ``particles`` and
    ``dimensions``. Particles that differ, and a field that holds them::

        expression: q1*q2/r + epsilon*(s/r)^9
        particles: 4
        dimensions: 3
        parameters: {s: 1, k: 0.5}
        species: [Na, Na, Cl, Cl]
        particle_parameters: {q: {Na: 2, Cl: -2}}
        pair_parameters: {epsilon: {Na-Na: 1, Na-Cl: 2, Cl-Cl: 1}}
        external: 0.5*k*(x^2 + y^2 + z^2)

    ``confinement: 50*max(0, r - 2.5)^2`` is a wall about the mean of all particles.
    """

    expression: str
    particles: int
    dimensions: int
    #: The expression says what it makes of a value that is no number.
    parameters: dict[str, Any] = Field(default={}, description="a mapping of names to numbers")
    particle_parameters: dict[str, Any] = Field(
        default={}, description="a mapping of names to lists, one number for each particle"
    )
    #: The system says what it makes of a name that is no text, such as YAML's truth values.
    species: list[Any] | None = Field(
        default=None, description="a list of names, one for each particle"
    )
    pair_parameters: dict[str, Any] = Field(
        default={}, description="a mapping of names to values of pairs of species"
    )
    external: str | None = Field(default=None, description="an expression in x, y and z")
    confinement: str | None = Field(
        default=None, description="an expression in r, the distance from the mean of all particles"
    )
    length_nm: float = Field(default=1.0, description="a number of nanometres")

    def build(self, folder: Path | None) -> PairPotential:
        return PairPotential(
            self.name,
            self.expression,
            n=self.particles,
            d=self.dimensions,
            parameters=self.parameters,
            particle_parameters=self.particle_parameters,
            species=self.species,
            pair_parameters=self.pair_parameters,
            external=self.external,
            confinement=self.confinement,
            length_nm=self.length_nm,
            description=self.description,
        )
