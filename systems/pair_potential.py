"""Systems whose energy is a sum over pairs of a function of the distance."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from molsampler.errors import InputError, UnknownNameError, nearest
from molsampler.space import MeanFree
from molsampler.target import System
from molsampler.units import TWIN_MASS, TWIN_TEMPERATURE, kT

from .expression import Expression
from .expression_plan import Plan

if TYPE_CHECKING:
    import mdtraj
    import openmm

#: Pair values held per tensor and thread: a few such tensors fit in a core's share of the cache.
_CPU_CHUNK = 80_000
_DEVICE_CHUNK = 8_000_000

#: The batch is padded to a multiple of this, so that every row takes the vectorised path of each
#: kernel: on one thread its result then does not depend, even in the last bit, on the batch.
_LANES = 64

_MAX_PARTICLES = 10_000

#: Names become parts of file names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")


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
    expression : f(r) in units of kT, in OpenMM's syntax, see :mod:`molsampler.systems.expression`;
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
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(
                "name must be up to 64 letters, digits, '_', '.', '+' and '-', starting with a letter "
                f"or digit, got {name!r}"
            )
        if not isinstance(description, str):
            raise InputError(f"description must be text, got {type(description).__name__}")
        n = _integer("n (particles)", n, 2, _MAX_PARTICLES)
        d = _integer("d (dimensions)", d, 1, 3)
        number = isinstance(length_nm, int | float) and not isinstance(length_nm, bool)
        if not number or not 1e-6 <= length_nm <= 1e6:
            raise InputError(
                f"length_nm must be a number of nanometres in 1e-6..1e6, got {length_nm!r}"
            )
        parameters = {} if parameters is None else parameters
        if not isinstance(parameters, Mapping):
            raise InputError(
                f"parameters must map names to numbers, got {type(parameters).__name__}"
            )
        self.name = name
        self.space = MeanFree(n, d)
        self.length_nm = float(length_nm)
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
        """The formula, as :func:`from_mapping` reads it; the name of a registered family's member."""
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
        import mdtraj

        topology = mdtraj.Topology()
        chain = topology.add_chain()
        for index in range(self.shape[0]):
            residue = topology.add_residue("AR", chain, resSeq=index + 1)
            topology.add_atom("AR", mdtraj.element.argon, residue, serial=index + 1)
        return topology

    def openmm_twin(self) -> tuple[openmm.System, openmm.app.Topology]:
        """The same system in OpenMM: an all-pairs ``CustomBondForce`` with the same expression.

        Lengths are ``length_nm`` nanometres per unit, energies ``u * kT`` in kJ/mol at
        ``molsampler.units.TWIN_TEMPERATURE``, masses ``TWIN_MASS`` dalton. Systems in fewer than
        three dimensions keep their unused coordinates at zero: forces along them then vanish, but
        the integrator has to leave them out of the thermal noise. Nothing removes the motion of
        the centre of mass, on which the energy does not depend.
        """
        import openmm
        from openmm import app

        n, _ = self.shape
        text = self.function.openmm_text(length=self.length_nm, energy=kT(TWIN_TEMPERATURE))
        force = openmm.CustomBondForce(text)
        system = openmm.System()
        topology = app.Topology()
        chain = topology.addChain()
        argon = app.Element.getBySymbol("Ar")
        for i in range(n):
            system.addParticle(TWIN_MASS)
            topology.addAtom("AR", argon, topology.addResidue("AR", chain))
            for j in range(i):
                force.addBond(j, i, [])
        system.addForce(force)
        return system, topology

    def _energy(self, x: Tensor) -> Tensor:
        energy = x.new_empty(len(x))
        for part in self._chunks(x):
            pairs = _Pairs(x[part], self.function.value_only)
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
        energy, score = x.new_empty(len(x)), x.new_empty(x.shape)
        for part in self._chunks(x):
            pairs = _Pairs(x[part], self.function.full)
            pairs.evaluate()
            energy[part] = pairs.energy()
            score[part].flatten(1).copy_(pairs.score())
        return energy, score

    def _chunks(self, x: Tensor) -> list[slice]:
        """Slices of the batch small enough for the cache, nearly equal, in whole lanes."""
        n, _ = self.shape
        budget = _DEVICE_CHUNK
        if x.device.type == "cpu":
            budget = _CPU_CHUNK * torch.get_num_threads()
        count = math.ceil(len(x) * n * (n // 2) / budget)
        size = math.ceil(len(x) / max(count, 1) / _LANES) * _LANES
        return [slice(k, min(k + size, len(x))) for k in range(0, len(x), max(size, 1))]


class _Pairs:
    """Pair sums for a chunk of configurations, laid out with the batch last.

    Pairs are enumerated by cyclic shifts k = 1..n//2, pair (k, i) being particles i and i + k mod n.
    Differences are then one subtraction of a strided view, and the force on each particle is two
    sums over k, again of strided views: no gathers, no scatters. For even n the last shift meets
    every pair twice and counts half.
    """

    def __init__(self, x: Tensor, plan: Plan) -> None:
        rows, n, d = x.shape
        batch = -(-rows // _LANES) * _LANES
        shifts = n // 2
        width = n + shifts
        wrapped = x.new_empty(width, d, batch)
        # One matrix transposition brings the positions in, and one takes the forces out.
        coordinates = wrapped[:n].view(n * d, batch)
        coordinates[:, :rows] = x.reshape(rows, n * d).t()
        coordinates[:, rows:] = coordinates[:, rows - 1 : rows]
        # Centred, because the harmonic part is computed from the distances to the mean.
        centred = wrapped[:n].permute(1, 0, 2)
        centred -= centred.mean(1, keepdim=True)
        wrapped[n:] = wrapped[:shifts]
        step = d * batch
        shifted = wrapped.as_strided((d, shifts, n, batch), (batch, step, step, 1), step)
        # The first `shifts` columns are room for a wrapped-around copy when forces are collected.
        self._padded = x.new_empty(d, shifts, width, batch)
        self._difference = self._padded[:, :, shifts:]
        torch.sub(centred[:, None], shifted, out=self._difference)
        self._slots = [x.new_empty(shifts, n, batch) for _ in range(plan.slots)]
        squared = torch.mul(self._difference[0], self._difference[0], out=self._slots[0])
        for k in range(1, d):
            squared.addcmul_(self._difference[k], self._difference[k])
        self._centred = centred
        self._plan = plan
        self._rows = rows

    def touching(self) -> Tensor:
        """Whether two particles coincide, shape ``(b,)``; to be asked before :meth:`evaluate`."""
        return self._slots[0].amin((0, 1))[: self._rows] == 0

    def evaluate(self) -> None:
        """Run the plan, which overwrites the squared distances in slot 0."""
        plan = self._plan
        plan.run(self._slots)
        if self._centred.shape[1] % 2 == 0:
            for slot in {plan.value.slot, plan.slope.slot}:
                if slot is not None:
                    self._slots[slot][-1] *= 0.5

    def energy(self) -> Tensor:
        """Sum over pairs of the function, shape ``(b,)``."""
        form, n = self._plan.value, self._centred.shape[1]
        energy = self._centred.new_full(self._centred.shape[2:], form.constant * n * (n - 1) / 2)
        if form.slot is not None:
            energy.add_(self._slots[form.slot].sum((0, 1)), alpha=form.scale)
        if form.quadratic:
            energy.add_(self._centred.square().sum((0, 1)), alpha=form.quadratic * n)
        return energy[: self._rows]

    def score(self) -> Tensor:
        """Minus the gradient, shape ``(b, n d)``."""
        form = self._plan.slope
        d, n, batch = self._centred.shape
        score = self._centred.new_empty(n, d, batch)
        # A constant u'(r)/r is the force of a harmonic trap about the mean.
        by_dimension = score.permute(1, 0, 2)
        torch.mul(self._centred, -form.constant * n, out=by_dimension)
        if form.slot is not None:
            self._add_pair_forces(by_dimension, self._slots[form.slot], form.scale)
        return score.view(n * d, batch)[:, : self._rows].t()

    def _add_pair_forces(self, score: Tensor, slope: Tensor, scale: float) -> None:
        d, n, batch = score.shape
        self._difference.mul_(slope)
        shifts, width = self._padded.shape[1:3]
        self._padded[:, :, :shifts] = self._padded[:, :, n:]
        partner = self._padded.as_strided(
            (d, shifts, n, batch),
            (shifts * width * batch, (width - 1) * batch, batch, 1),
            (shifts - 1) * batch,
        )
        score.add_(self._difference.sum(1), alpha=-scale)
        score.add_(partner.sum(1), alpha=scale)


def _integer(name: str, value: Any, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name} must be an integer in {least}..{most}, got {value!r}")
    return value


#: Keys of a pair potential's YAML file and the arguments they become.
_KEYS = {
    "name": "name",
    "expression": "expression",
    "particles": "n",
    "dimensions": "d",
    "parameters": "parameters",
    "length_nm": "length_nm",
    "description": "description",
}


def from_mapping(content: Mapping[str, Any], *, source: str) -> PairPotential:
    """Pair potential from the content of a system file::

        name: my7
        expression: 4*eps*((s/r)^12 - (s/r)^6) + 0.5*k*r^2/n
        particles: 7
        dimensions: 3
        parameters: {eps: 1, s: 1, k: 1}
        length_nm: 0.34

    ``parameters``, ``length_nm`` and ``description`` may be left out; ``name`` defaults to the
    file's. ``source`` names the file in error messages.

    Raises
    ------
    UnknownNameError
        A key is unknown.
    InputError
        A key is missing or a value is unusable.
    """
    known = tuple(_KEYS)
    for key in content:
        if key not in _KEYS:
            raise UnknownNameError(
                f"{source}: unknown key {key!r}{nearest(str(key), known)} (known: kind, "
                f"{', '.join(known)})"
            )
    missing = [
        key for key in ("name", "expression", "particles", "dimensions") if key not in content
    ]
    if missing:
        raise InputError(f"{source}: missing key(s) {', '.join(map(repr, missing))}")
    try:
        return PairPotential(**{_KEYS[key]: value for key, value in content.items()})
    except InputError as error:
        raise type(error)(f"{source}: {error}") from None
