r"""Interoperability with bgflow (https://github.com/noegroup/bgflow), both ways and by structure.

* :class:`BgflowSystem` makes a system of any object with bgflow's ``energy(x)``, which returns reduced
  energies ``(b, 1)`` for states ``(b, n d)`` or ``(b, n, d)``, and ``force(x)`` of the states' shape.
* :func:`to_bgflow` makes a real ``bgflow.Energy`` of any target.
* :func:`draw` makes :class:`~molsampler.samples.Samples` of a ``BoltzmannGenerator`` or of anything else
  with ``.sample(n)``, to be compared in the same table as others.

Only :func:`to_bgflow` needs bgflow. Its energies disagree about several batch dimensions, so they are
given exactly one. Its OpenMM, ASE and xTB energies are refused: they recognise a batch by a hash of its
abbreviated print-out and return stale energies for another one that prints alike.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from molsampler.errors import InputError, MissingDependencyError, ShapeError
from molsampler.space import Euclidean, MeanFree, Space
from molsampler.target import System, Target

from .symmetry import probe, probe_positions

if TYPE_CHECKING:
    import bgflow
    import mdtraj

    from molsampler.samples import Samples

#: Relative change of the energy that still counts as none when invariance is probed in float64.
_SAME = 1e-8


class BgflowSystem(System):
    """A system whose energy is an object with bgflow's interface.

    Scores are the object's ``force`` where it has one, else the derivative of its energy.

    Parameters
    ----------
    energy : object whose ``energy(x)`` returns reduced energies ``(b, 1)`` or ``(b,)``
    shape : particles and dimensions ``(n, d)``; needed unless ``energy.event_shape`` is just that
    space : by default :class:`~molsampler.space.MeanFree` where probing finds that a translation does
        not change the energy, else :class:`~molsampler.space.Euclidean`
    invariant : whether rotation, reflection and translation leave the energy unchanged; by default
        probed. Declare both for an energy that rounds to float32, which probing finds not invariant
    exchangeable : whether permutations of the particles do
    topology : MDTraj topology with one atom per particle, for trajectories

    Raises
    ------
    InputError
        ``energy`` has no such method, caches by print-out (see the module), or ``shape`` is missing.
    ShapeError
        ``shape`` does not fit the object's event shape, or what it returns does not fit the batch.
    """

    def __init__(
        self,
        energy: Any,
        shape: tuple[int, int] | None = None,
        *,
        name: str = "bgflow",
        space: Space | None = None,
        invariant: bool | None = None,
        exchangeable: bool = False,
        length_nm: float = 1.0,
        topology: mdtraj.Topology | None = None,
    ):
        if not callable(getattr(energy, "energy", None)):
            raise InputError(f"energy must have a method energy(x), got {type(energy).__name__}")
        if hasattr(energy, "bridge"):
            raise InputError(
                f"{type(energy).__name__} caches energies by a hash of the abbreviated print-out of a "
                "batch and can return those of another; for OpenMM, make the system from the "
                "openmm.System itself"
            )
        event = tuple(getattr(energy, "event_shape", ()))
        if shape is None:
            if len(event) != 2:
                raise InputError(
                    "shape must be given as (particles, dimensions): the energy's event shape is "
                    f"{event or 'unknown'}"
                )
            shape = event
        n, d = shape
        if event not in ((), (n, d), (n * d,)):
            raise ShapeError(f"shape {(n, d)} does not fit the energy's event shape {event}")
        self.name = name
        self.description = f"{type(energy).__name__} with bgflow's interface"
        self.length_nm = length_nm
        self.exchangeable = exchangeable
        self._source = energy
        self._event = event or (n * d,)
        self._topology = topology
        self.space = Euclidean(n, d)
        moved, turned = False, False
        if space is None or invariant is None:
            places = probe_positions(self.space)
            moved, turned = probe(self._energy, places, tolerance=_SAME)
        if space is not None or moved:
            self.space = MeanFree(n, d) if space is None else space
        self.invariant = (moved and turned) if invariant is None else invariant

    def topology(self) -> mdtraj.Topology:
        return super().topology() if self._topology is None else self._topology

    def _state(self, x: Tensor) -> Tensor:
        # A copy: bgflow's force() switches requires_grad of its argument on and off.
        return x.detach().clone(memory_format=torch.contiguous_format).reshape(-1, *self._event)

    def _checked(self, values: Any, size: int, what: str) -> Tensor:
        if not isinstance(values, Tensor) or values.numel() != size:
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ShapeError(f"{what} of {self.name!r} must hold {size} numbers, got {got}")
        return values

    def _energy(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            u = self._checked(self._source.energy(self._state(x)), len(x), "the energy")
        return u.reshape(len(x)).to(x)

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state = self._state(x)
        if callable(getattr(self._source, "force", None)):
            force = self._checked(self._source.force(state), x.numel(), "the force").detach()
            return self._energy(x), force.reshape(x.shape).to(x)
        with torch.enable_grad():
            state.requires_grad_(True)
            u = self._checked(self._source.energy(state), len(x), "the energy")
            (gradient,) = torch.autograd.grad(u.sum(), state)
        return u.detach().reshape(len(x)).to(x), -gradient.reshape(x.shape).to(x)


class _Energy(torch.autograd.Function):
    """Energy of any target; backward is the analytic score."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Target) -> Tensor:
        energy, score = target.energy_and_score(x)
        ctx.save_for_backward(score)
        return energy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (score,) = ctx.saved_tensors
        return -grad[:, None, None] * score, None


@functools.cache
def _subclass(base: type) -> type:
    class TargetEnergy(base):  # type: ignore[misc]
        """A molsampler target as a bgflow energy; ``target`` is the target."""

        def __init__(self, target: Target, event_shape: list[int]):
            super().__init__(event_shape)
            self.target = target

        def _energy(self, x: Tensor) -> Tensor:
            batch = x.shape[: -len(self.event_shape)]
            flat = x.reshape(-1, *self.target.space.shape)
            energy: Tensor = _Energy.apply(flat, self.target)  # type: ignore[no-untyped-call]
            return energy.reshape(*batch, 1)

    return TargetEnergy


def to_bgflow(target: Target, *, flat: bool = True) -> bgflow.Energy:
    """The target as a ``bgflow.Energy``: reduced energies ``(*b, 1)``, ``force`` the analytic score.

    States are ``(*b, n d)``, or ``(*b, n, d)`` with ``flat=False``. Forces cannot be differentiated
    again. On a mean-free target bgflow's samplers let the centre of mass diffuse, which :func:`draw`
    removes; a flow needs a prior on the same space, ``bgflow.MeanFreeNormalDistribution``.

    Raises
    ------
    MissingDependencyError
        bgflow cannot be imported.
    """
    n, d = target.space.shape
    base = _import_bgflow().Energy
    return _subclass(base)(target, [n * d] if flat else [n, d])


def _import_bgflow() -> Any:
    try:
        return importlib.import_module("bgflow")
    except ImportError as error:
        raise MissingDependencyError(
            f"bgflow cannot be imported ({error}): it is not on PyPI, so install it with "
            "pip install git+https://github.com/noegroup/bgflow and what it needs with "
            "pip install 'molsampler[bgflow]'"
        ) from None
    except AttributeError as error:
        raise MissingDependencyError(
            f"bgflow cannot be imported ({error}): it expects numpy.infty, which numpy 2 has not; "
            "run 'import numpy; numpy.infty = numpy.inf' first, or install numpy<2. "
            "pip install 'molsampler[bgflow]' brings what else it needs"
        ) from None


def draw(sampler: Any, system: System, n: int, *, seed: int = 0, reweight: bool = False) -> Samples:
    r"""Samples of ``system`` from anything with ``sample(n)``, such as a ``bgflow.BoltzmannGenerator``.

    The sampler may return a tensor, or a tuple that begins with it, of states ``(*b, n d)`` or
    ``(*b, n, d)`` in the system's unit of length. All leading dimensions count as samples, and the
    centre of mass is removed where the system has none. Energies are the system's own.

    Parameters
    ----------
    n : passed to ``sample``; Markov chains with several walkers return as many times more
    seed : of torch's global generator during the call, which is restored afterwards
    reweight : ask for ``sample(n, with_energy=True)``, the states and their generator energies
        :math:`-\log q`, and weight samples by :math:`e^{-u} / q`. On a mean-free system q must be a
        density on the mean-free subspace

    Raises
    ------
    InputError
        There is no method ``sample``, or with ``reweight`` it gives no energies.
    ShapeError, NonFiniteError
        What it returns does not fit the system or is not finite.
    """
    from molsampler.samples import Samples

    if not callable(getattr(sampler, "sample", None)):
        raise InputError(f"sampler must have a method sample(n), got {type(sampler).__name__}")
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        found = sampler.sample(n, with_energy=True) if reweight else sampler.sample(n)
    parts = found if isinstance(found, tuple | list) else (found,)
    positions = _positions(parts[0] if parts else None, system)
    log_weights = None
    if reweight:
        if len(parts) != 2 or cast(Tensor, parts[1]).numel() != len(positions):
            raise InputError(
                "reweight needs sample(n, with_energy=True) to return states and one energy each"
            )
        log_weights = parts[1].double().reshape(-1) - system.energy(positions.double())
    return Samples.of(
        system, positions, log_weights=log_weights, sampler=type(sampler).__name__, seed=seed
    )


def _positions(states: Any, system: System) -> Tensor:
    n, d = system.shape
    if isinstance(states, Tensor):
        for event in ((n, d), (n * d,)):
            if states.dim() > len(event) and tuple(states.shape[-len(event) :]) == event:
                return system.space.project(states.detach().reshape(-1, n, d))
    got = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
    raise ShapeError(
        f"sample(n) must return states (*b, {n * d}) or (*b, {n}, {d}) of system {system.name!r}, "
        f"got {got}"
    )
