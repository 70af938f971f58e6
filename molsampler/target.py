r"""What a sampler needs to know of physics, and the base class that physical systems share.

A target is an unnormalised density :math:`p(x) \propto \exp(-u(x))` with reduced energy
:math:`u = U / kT` (dimensionless) and score :math:`-\nabla u`. Algorithms see only
:class:`Target`; concrete systems derive from :class:`System`, which owns the contract on shapes,
bad coordinates and differentiation, so that a subclass writes nothing but its formula.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, Self, cast, runtime_checkable

import torch
from torch import Tensor

from . import notebook
from .collective_variables import Intervals
from .errors import InputError, NonFiniteError, ShapeError
from .molecule.molecule import Molecule
from .space import Space
from .units import TWIN_TEMPERATURE

if TYPE_CHECKING:
    import mdtraj
    import openmm

#: Coordinates beyond this magnitude (in the system's length unit) are refused as absurd: squared
#: distances, let alone their sixth powers, would overflow float32.
COORDINATE_LIMIT = 1e6

#: Multiples of its default temperature beyond which a reduced system takes a number for kelvin, and the
#: kelvin below which others take one for reduced.
_REDUCED_LIMIT = 100.0
_KELVIN_LIMIT = 1.0


@runtime_checkable
class Target(Protocol):
    """The whole of physics as the method sees it."""

    @property
    def space(self) -> Space:
        """Where configurations live."""

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reduced energy ``(*b,)`` and score ``-grad u`` ``(*b, n, d)`` at positions ``(*b, n, d)``."""


class CountingTarget:
    """A target that counts its energy-and-score evaluations, the unit in which training cost is stated, and
    in ``finite`` those of them that gave a finite energy since it was last set to zero; ``lost`` is for
    whoever looks at these."""

    def __init__(self, target: Target, evaluations: int = 0):
        self.target = target
        self.space = target.space
        self.evaluations = evaluations
        self.finite = self.lost = 0

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, score = self.target.energy_and_score(x)
        self.count(energy)
        return energy, score

    def count(self, energy: Tensor) -> None:
        """Count evaluations by the energies that they gave."""
        self.evaluations += energy.numel()
        self.finite += int(energy.isfinite().sum())

    def counting(self, target: Target) -> Target:
        """Another target, whose evaluations this one counts."""
        return _CountedBy(self, target)


class _CountedBy:
    """A target that adds its evaluations to those of another one."""

    def __init__(self, counter: CountingTarget, target: Target):
        self.counter, self.target, self.space = counter, target, target.space

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, score = self.target.energy_and_score(x)
        self.counter.count(energy)
        return energy, score


def check_positions(x: Any, shape: tuple[int, int], *, name: str = "x") -> Tensor:
    """Return ``x`` as a floating tensor of shape ``(*b, n, d)`` or raise an error that says what is wrong.

    Raises
    ------
    ShapeError
        The trailing two dimensions are not ``shape``.
    NonFiniteError
        A coordinate is NaN, infinite or beyond ``COORDINATE_LIMIT``; row and particle are named.
    """
    try:
        tensor = torch.as_tensor(x)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} must be an array of positions (*batch, {shape[0]}, {shape[1]}), "
            f"got {type(x).__name__}: {error}"
        ) from None
    if not tensor.is_floating_point():
        if tensor.is_complex() or tensor.dtype == torch.bool:
            raise InputError(f"{name} must hold real numbers, got {tensor.dtype}")
        tensor = tensor.to(torch.get_default_dtype())
    if tensor.dim() < 2 or tuple(tensor.shape[-2:]) != tuple(shape):
        raise ShapeError(
            f"{name} must have shape (*batch, {shape[0]}, {shape[1]}) = (*batch, particle, dimension), "
            f"got {tuple(tensor.shape)}"
        )
    with torch.no_grad():
        if tensor.numel() and not _within_limit(tensor):
            bad = ~(tensor.abs() <= COORDINATE_LIMIT)
            row, particle, axis = bad.reshape(-1, *shape).nonzero()[0].tolist()
            value = tensor.reshape(-1, *shape)[row, particle, axis].item()
            rows = int(bad.reshape(-1, shape[0] * shape[1]).any(-1).sum())
            raise NonFiniteError(
                f"{name} holds unusable coordinates in {rows} row(s); the first is {value!r} at "
                f"row {row}, particle {particle}, axis {axis} "
                f"(finite values within ±{COORDINATE_LIMIT:g} are expected)"
            )
    return tensor


def _within_limit(x: Tensor) -> bool:
    """Whether no coordinate is NaN or beyond the limit, by one pass over them."""
    least, most = torch.aminmax(x)
    # NaN, which both of them pass on, compares false.
    return least.item() >= -COORDINATE_LIMIT and most.item() <= COORDINATE_LIMIT


class _Energy(torch.autograd.Function):
    """Energy whose backward is the analytic score."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, system: System) -> Tensor:
        if ctx.needs_input_grad[0]:
            energy, score = system._batched_energy_and_score(x)
            ctx.save_for_backward(score)
            return energy
        return system._batched_energy(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (score,) = ctx.saved_tensors
        return -grad[..., None, None] * score, None


class System:
    r"""Base of all physical systems: a :class:`Target` with a name, a length scale and a topology.

    A subclass sets ``name``, ``space`` and ``length_nm`` and implements ``_energy_and_score`` on a
    flat batch ``(b, n, d)``; ``_energy`` may be overridden where the energy alone is cheaper.
    Everything else (shapes, bad coordinates, autograd) is settled here once. So is temperature: a
    subclass writes its energies at the temperature at which it is made, and :meth:`at` gives the system at
    others, of energies :math:`u_T = u_{T_0} T_0 / T` and scores likewise.

    Attributes
    ----------
    name : registered name, or the name a user gave
    space : the space of configurations
    length_nm : nanometres per unit of length, used when writing trajectories
    temperature : at which energies are reduced: kelvin, or a multiple of an energy of the system's own
    in_kelvin : whether temperatures are in kelvin
    invariant : whether the energy is unchanged by rotation, reflection and translation
    exchangeable : whether the energy is unchanged by permuting the particles
    concurrent : whether several threads may ask for energies at once
    pairwise : whether the energy is a sum over pairs, cheap beside a network
    molecule : what tells its particles apart, None for identical ones
    collective_variables : texts of the collective variables that the system's file names
    basins : the basins that the system's file defines, None where it defines none
    description : one line for listings
    """

    name: str
    space: Space
    length_nm: float = 1.0
    temperature: float = 1.0
    in_kelvin: bool = False
    invariant: bool = False
    exchangeable: bool = False
    concurrent: bool = False
    pairwise: bool = False
    molecule: Molecule | None = None
    description: str = ""
    collective_variables: Mapping[str, str] = MappingProxyType({})
    basins: Intervals | None = None
    #: Where :meth:`at` has moved the system: the temperature at which it was made, and that over its own.
    _made_at: float | None = None
    _beta: float = 1.0

    @property
    def default_temperature(self) -> float:
        """The temperature of the system that its name alone stands for."""
        return self.temperature if self._made_at is None else self._made_at

    def at(self, temperature: float) -> Self:
        r"""The same system at another temperature: :math:`u_{T'} = u_T\, T / T'`, and scores likewise.

        It shares whatever computes energies, so that many temperatures cost no more than one. What files
        record of it names the temperature where that is not the default one.

        Raises
        ------
        InputError
            ``temperature`` is no positive finite number, is by its size of the other unit (kelvin for a
            reduced system, or the reverse), or the class records nothing of the temperature.
        """
        temperature = self._checked_temperature(temperature)
        if temperature == self.temperature:
            return self
        moved = object.__new__(type(self))
        moved.__dict__.update(self.__dict__)
        moved.temperature = temperature
        moved._move(self)
        if type(self).record is not System.record and moved.record() == self.record():
            raise InputError(
                f"system {self.name!r} cannot be put at another temperature: record() of "
                f"{type(self).__name__} says nothing of it; rename the method to _record()"
            )
        return moved

    @property
    def label(self) -> str:
        """The name, with ``@`` and the temperature behind it where that is not the default one."""
        if self.temperature == self.default_temperature:
            return self.name
        return f"{self.name}@{repr(self.temperature).removesuffix('.0')}"

    def _move(self, source: System) -> None:
        """Make a copy of ``source`` that differs in ``temperature`` alone one at that temperature."""
        self._made_at = source.default_temperature
        self._beta = self._made_at / self.temperature

    def _checked_temperature(self, temperature: Any) -> float:
        unit = (
            "kelvin"
            if self.in_kelvin
            else f"units of the system, {self.default_temperature:g} by default"
        )
        number = isinstance(temperature, numbers.Real) and not isinstance(temperature, bool)
        if not number or not 0 < temperature < 1e9:
            raise InputError(
                f"temperature of {self.name!r} must be a number above 0 and below 1e9, in {unit}, got "
                f"{temperature!r}"
            )
        value = float(temperature)
        if self.in_kelvin and value < _KELVIN_LIMIT:
            raise InputError(
                f"temperatures of {self.name!r} are in kelvin, and {value:g} is less than one; was a "
                "reduced temperature meant?"
            )
        if not self.in_kelvin and value > self._hottest:
            raise InputError(
                f"temperatures of {self.name!r} are in {unit}, and {value:g} is more than "
                f"{_REDUCED_LIMIT:g} times that; were kelvin meant?"
            )
        return value

    @property
    def _hottest(self) -> float:
        return _REDUCED_LIMIT * self.default_temperature

    @property
    def units(self) -> str:
        """Units of energy and length, for listings."""
        return f"energy kT, length {self.length_nm:g} nm"

    @property
    def shape(self) -> tuple[int, int]:
        """Particles and dimensions, ``(n, d)``."""
        return self.space.shape

    @property
    def alike(self) -> tuple[int, ...] | None:
        """Equal numbers for particles that may be exchanged for each other; None where that is not known.

        Bonds tell particles of one type apart, so a molecule with bonds gives None.
        """
        if self.exchangeable:
            return (0,) * self.shape[0]
        return None if self.molecule is None or self.molecule.bonds else self.molecule.types

    def energy(self, x: Any) -> Tensor:
        """Reduced energy u(x) = U(x)/kT, dimensionless, shape ``(*b,)``, of positions ``(*b, n, d)``.

        Differentiable by autograd; the backward pass is the analytic score. Coincident particles
        give ``+inf``.

        Raises
        ------
        ShapeError, NonFiniteError
            See :func:`check_positions`.
        """
        x = check_positions(x, self.shape)
        return cast(Tensor, _Energy.apply(x, self))  # type: ignore[no-untyped-call]

    def energy_and_score(self, x: Any) -> tuple[Tensor, Tensor]:
        """Reduced energy ``(*b,)`` and score ``-grad u`` ``(*b, n, d)`` of positions ``(*b, n, d)``.

        Rows with coincident particles get energy ``+inf`` and score zero. No autograd graph is
        built; use :meth:`energy` to differentiate.

        Raises
        ------
        ShapeError, NonFiniteError
            See :func:`check_positions`.
        """
        x = check_positions(x, self.shape)
        with torch.no_grad():
            return self._batched_energy_and_score(x)

    def unguarded_energy_and_score(self, x: Any) -> tuple[Tensor, Tensor]:
        """As :meth:`energy_and_score`, with NaN and infinities as the formula gives them.

        What :mod:`molsampler.wellposed` looks at; methods that sample should not see it.
        """
        x = check_positions(x, self.shape)
        with torch.no_grad():
            energy, score = self._scaled_energy_and_score(x.reshape(-1, *self.shape))
        return energy.reshape(x.shape[:-2]), score.reshape(x.shape)

    def topology(self) -> mdtraj.Topology:
        """MDTraj topology with one atom per particle."""
        raise InputError(
            f"system {self.name!r} has no particles in space, hence no topology and "
            "no trajectory; .npz holds its samples"
        )

    def openmm_twin(self) -> tuple[openmm.System, openmm.app.Topology]:
        """The same system in OpenMM, as ``(openmm.System, openmm.app.Topology)``.

        Lengths are ``length_nm`` nanometres per unit and energies are ``u * kT`` at
        :attr:`twin_temperature`.
        """
        raise InputError(f"system {self.name!r} has no OpenMM twin")

    @property
    def twin_temperature(self) -> float:
        """Temperature of the twin in kelvin: the system's, or one chosen for reduced systems, at their
        default temperature, and in proportion at others: their twin is the same at all."""
        if self.in_kelvin:
            return self.temperature
        return TWIN_TEMPERATURE * (self.temperature / self.default_temperature)

    def record(self) -> str | dict[str, Any]:
        """What files record of the system: a registered name, or a mapping that can be written as JSON.

        At another temperature than the default one it is a mapping that holds ``temperature``.
        """
        found = self._record()
        if self.temperature == self.default_temperature:
            return found
        return {
            **({"name": found} if isinstance(found, str) else found),
            "temperature": self.temperature,
        }

    def _record(self) -> str | dict[str, Any]:
        """What files record of the system at its default temperature."""
        return self.name

    def starts(self, count: int, *, generator: torch.Generator | None) -> Tensor | None:
        """Configurations ``(count, n, d)`` in float64 where chains may start, None if none are known."""
        return None

    def _batched_energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        batch = x.shape[:-2]
        energy, score = self._scaled_energy_and_score(x.reshape(-1, *self.shape))
        # One sum tells the common case, in a tenth of the time of a test row by row.
        if not math.isfinite((energy.sum() + score.sum()).item()):
            bad = ~torch.isfinite(energy) | ~torch.isfinite(score).flatten(1).all(-1)
            energy = energy.masked_fill(bad, torch.inf)
            score = score.masked_fill(bad[:, None, None], 0.0)
        return energy.reshape(batch), score.reshape(*batch, *self.shape)

    def _batched_energy(self, x: Tensor) -> Tensor:
        energy = self._energy(x.reshape(-1, *self.shape))
        if self._beta != 1.0:
            energy = energy * self._beta
        return energy.masked_fill(~torch.isfinite(energy), torch.inf).reshape(x.shape[:-2])

    def _scaled_energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, score = self._energy_and_score(x)
        return (energy, score) if self._beta == 1.0 else (energy * self._beta, score * self._beta)

    def _energy(self, x: Tensor) -> Tensor:
        return self._energy_and_score(x)[0]

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def __repr__(self) -> str:
        moved = self.temperature != self.default_temperature
        where = f" temperature={self.temperature:g}" if moved else ""
        return f"<{type(self).__name__} {self.name!r} shape={self.shape}{where}>"

    def _repr_html_(self) -> str:
        n, d = self.shape
        same = (
            "translation, rotation and reflection" * self.invariant,
            "exchange of particles" * self.exchangeable,
        )
        facts = [
            ("kind", type(self).__name__),
            ("configurations", f"{n} particle{'s' * (n > 1)} in {d} dimension{'s' * (d > 1)}"),
            ("units", self.units),
            ("temperature", f"{self.temperature:g}{' K' if self.in_kelvin else ', reduced'}"),
            ("energy unchanged by", "; ".join(filter(None, same)) or "nothing that is known"),
        ]
        if self.description:
            facts.insert(0, ("description", self.description))
        if (molecule := self.molecule) is not None:
            turning = len(molecule.turning_bonds or ())
            facts.append(
                (
                    "molecule",
                    f"{len(molecule.bonds)} bonds, {turning} of them turning, "
                    f"{len(molecule.chiral_centres)} chiral centre(s)",
                )
            )
        if self.collective_variables:
            facts.append(("collective variables", ", ".join(self.collective_variables)))
        return notebook.card(f"System {self.name}", facts)
