r"""Reference dynamics in OpenMM: Langevin replicas of a system's twin, and replica exchange.

Replicas of a pair potential are placed side by side in one ``openmm.System``. All-pairs bonds act only
within a replica, so replicas are independent wherever they are, and one context advances all of them
without Python between steps. Replicas of other systems have a context each. OpenMM's Reference platform
is used: double precision, one thread, deterministic given the seed, and faster than the CPU platform on
so few particles.

All particles get one mass. The distribution of configurations does not depend on masses; with equal
ones the stiffness of the potential alone sets the time step, so hydrogens do not shorten it.

Both integrators below split a step the same way ("middle" scheme, Zhang et al. 2019, J. Phys. Chem. A
123, 6056, the one of ``LangevinMiddleIntegrator``),

.. math:: v \leftarrow v + \tfrac{f}{m} \Delta t,\quad x \leftarrow x + \tfrac{\Delta t}{2} v,\quad
          v \leftarrow a v + \sqrt{1 - a^2}\sqrt{\tfrac{kT}{m}}\,\xi,\quad
          x \leftarrow x + \tfrac{\Delta t}{2} v,\qquad a = e^{-\gamma \Delta t},

whose configurations are exact for harmonic forces at any stable step; on anharmonic walls an error of
second order in :math:`\omega\Delta t` remains, with :math:`\omega` the highest frequency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..target import System
from ..units import GAS_CONSTANT, TWIN_MASS, kT

if TYPE_CHECKING:
    import openmm

#: Time step times the highest angular frequency of thermal configurations (stability ends at 2).
STEP_OVER_PERIOD = 0.4

#: Collision rate over the highest angular frequency: weak damping, so that slow motions stay fast.
FRICTION_OVER_FREQUENCY = 0.1

#: The same for molecules, whose bonds are far stiffer than the torsions that have to move.
MOLECULE_FRICTION = 0.02

#: Scores that :func:`highest_frequency` may ask for; it looks at fewer configurations if need be.
HESSIAN_SCORES = 50_000

#: Steps between two looks at the interpreter, so that an interrupt is seen at once.
CHUNK = 100


def _seed(generator: torch.Generator) -> int:
    # OpenMM takes zero as "choose one yourself".
    return int(torch.randint(1, 2**31 - 1, (), generator=generator))


def replicate(system: openmm.System, copies: int) -> openmm.System:
    """``copies`` of a system of ``CustomBondForce`` forces side by side, without interaction.

    Raises
    ------
    InputError
        The system has constraints, virtual sites, or a force of another class.
    """
    import openmm

    count = system.getNumParticles()
    if system.getNumConstraints() or any(system.isVirtualSite(i) for i in range(count)):
        raise InputError("replicate takes systems without constraints and virtual sites")
    merged = openmm.System()
    for _ in range(copies):
        for i in range(count):
            merged.addParticle(system.getParticleMass(i))
    for force in system.getForces():
        if not isinstance(force, openmm.CustomBondForce) or force.usesPeriodicBoundaryConditions():
            raise InputError(
                "replicate takes systems whose forces are non-periodic CustomBondForce, got "
                f"{type(force).__name__}"
            )
        copy = openmm.CustomBondForce(force.getEnergyFunction())
        for k in range(force.getNumGlobalParameters()):
            copy.addGlobalParameter(
                force.getGlobalParameterName(k), force.getGlobalParameterDefaultValue(k)
            )
        for k in range(force.getNumPerBondParameters()):
            copy.addPerBondParameter(force.getPerBondParameterName(k))
        bonds = [force.getBondParameters(k) for k in range(force.getNumBonds())]
        for r in range(copies):
            for i, j, values in bonds:
                copy.addBond(r * count + i, r * count + j, values)
        merged.addForce(copy)
    return merged


def highest_frequency(system: System, x: Tensor) -> float:
    r"""Highest angular frequency :math:`\omega` of unit masses at positions ``(b, n, d)``, reduced.

    :math:`\omega^2` is the largest eigenvalue of the Hessian of u, by central differences of the
    score; the 90 % quantile over the batch is returned.
    """
    size = x[0].numel()
    x = x[:: max(1, math.ceil(2 * size * len(x) / HESSIAN_SCORES))].double()
    step = 1e-5
    shift = step * torch.eye(size, dtype=x.dtype).reshape(size, 1, *x.shape[1:])
    plus, minus = (system.energy_and_score(x + s)[1] for s in (shift, -shift))
    hessian = ((minus - plus) / (2 * step)).flatten(2).transpose(0, 1)
    largest = torch.linalg.eigvalsh(0.5 * (hessian + hessian.mT))[:, -1]
    return math.sqrt(max(float(largest.quantile(0.9)), 1e-12))


def integrator(
    dimension: int, *, temperature: float, friction: float, time_step: float, seed: int
) -> openmm.Integrator:
    """Langevin integrator of the module's scheme; for planar systems z gets no noise and stays put.

    ``temperature`` in K, ``friction`` in 1/ps, ``time_step`` in ps. A twin's forces have no
    component along z while all z are equal, so withholding the noise freezes it exactly.
    """
    import openmm

    if dimension == 3:
        native = openmm.LangevinMiddleIntegrator(temperature, friction, time_step)
        native.setRandomNumberSeed(seed)
        return native
    planar = openmm.CustomIntegrator(time_step)
    # The name that OpenMM's replica exchange looks for.
    planar.addGlobalVariable("temperature", temperature)
    planar.addGlobalVariable("a", math.exp(-friction * time_step))
    planar.addPerDofVariable("free", 0.0)
    planar.addUpdateContextState()
    planar.addComputePerDof("v", "v + dt*f/m")
    planar.addComputePerDof("x", "x + 0.5*dt*v")
    planar.addComputePerDof(
        "v", f"a*v + free*gaussian*sqrt((1 - a*a)*{GAS_CONSTANT!r}*temperature/m)"
    )
    planar.addComputePerDof("x", "x + 0.5*dt*v")
    planar.setRandomNumberSeed(seed)
    return planar


class LangevinReplicas:
    """Independent Langevin trajectories of ``starts``, shape ``(replica, n, d)``, in one context.

    Starts are minimised, heated for a short while at a cautious time step, and then run at the step
    that the stiffness of those thermal configurations allows. ``temperature`` is relative to the
    twin's: 2 samples exp(-u/2).

    Raises
    ------
    InputError
        The system has no OpenMM twin.
    """

    def __init__(
        self,
        system: System,
        starts: Tensor,
        *,
        generator: torch.Generator,
        temperature: float = 1.0,
        step_over_period: float = STEP_OVER_PERIOD,
    ):
        self.system, self.replicas = system, len(starts)
        self.twin, self.topology = system.openmm_twin()
        self.mass = TWIN_MASS
        for i in range(self.twin.getNumParticles()):
            self.twin.setParticleMass(i, self.mass)
        self.kelvin = temperature * system.twin_temperature
        # Systems of one context each, and how many replicas every context holds.
        self._systems, self._held = [self.twin] * self.replicas, 1
        if all(type(force).__name__ == "CustomBondForce" for force in self.twin.getForces()):
            self._systems, self._held = [replicate(self.twin, self.replicas)], self.replicas
        self.steps, self.stride = 0, 10
        # Time in which a particle at thermal speed (at the twin's temperature) moves one unit of length.
        self.tau = system.length_nm * math.sqrt(self.mass / kT(system.twin_temperature))

        minimised = self._minimised(starts)
        omega = highest_frequency(system, minimised)
        for _ in range(2):
            # The first round is cautious: thermal walls are stiffer than minima.
            self._prepare(minimised, omega, step_over_period, generator)
            self.advance(int(20 / step_over_period))
            omega = highest_frequency(system, self.read()[0])
        self._prepare(self.read()[0], omega, step_over_period, generator)
        self.steps = 0

    def _make_contexts(
        self, x: Tensor, make_integrator: Callable[[], openmm.Integrator]
    ) -> list[openmm.Context]:
        """Contexts at positions ``(replica, n, d)``."""
        import openmm

        n, d = self.system.shape
        place = torch.zeros(self.replicas, n, 3, dtype=torch.float64)
        place[..., :d] = x.double() * self.system.length_nm
        contexts = []
        for each, start in zip(self._systems, torch.split(place, self._held), strict=True):
            context = openmm.Context(
                each, make_integrator(), openmm.Platform.getPlatformByName("Reference")
            )
            context.setPositions(start.flatten(0, 1).numpy())
            contexts.append(context)
        return contexts

    def _minimised(self, starts: Tensor) -> Tensor:
        import openmm

        contexts = self._make_contexts(starts, lambda: openmm.VerletIntegrator(0.001))
        for context in contexts:
            openmm.LocalEnergyMinimizer.minimize(context, 10.0, 200)
        return self._positions(contexts)

    def _prepare(
        self, x: Tensor, omega: float, step_over_period: float, generator: torch.Generator
    ) -> None:
        n, d = self.system.shape
        frequency = omega / self.tau
        self.time_step = step_over_period / frequency
        damping = MOLECULE_FRICTION if bonds_of(self.system) else FRICTION_OVER_FREQUENCY
        self.friction = damping * frequency
        self.contexts = self._make_contexts(
            x,
            lambda: integrator(
                d,
                temperature=self.kelvin,
                friction=self.friction,
                time_step=self.time_step,
                seed=_seed(generator),
            ),
        )
        free = torch.zeros(self._held * n, 3, dtype=torch.float64)
        free[:, :d] = 1.0
        speed = math.sqrt(kT(self.kelvin) / self.mass)
        for context in self.contexts:
            if d < 3:
                context.getIntegrator().setPerDofVariableByName("free", free.numpy())
            noise = torch.randn(free.shape, generator=generator, dtype=torch.float64)
            context.setVelocities((speed * free * noise).numpy())

    def advance(self, steps: int) -> None:
        """Integrate ``steps`` time steps."""
        for done in range(0, steps, CHUNK):
            for context in self.contexts:
                context.getIntegrator().step(min(CHUNK, steps - done))
        self.steps += steps

    def retune(self) -> None:
        """Nothing to tune: the time step is fixed by the stiffness."""

    def read(self) -> Tensor:
        """Positions on the system's space, ``(1, replica, n, d)`` in float64."""
        return self._positions(self.contexts)[None]

    def _positions(self, contexts: list[openmm.Context]) -> Tensor:
        n, d = self.system.shape
        arrays = [c.getState(positions=True).getPositions(asNumpy=True)._value for c in contexts]
        x = torch.from_numpy(np.array(arrays)).reshape(self.replicas, n, 3)
        return self.system.space.project(x[..., :d] / self.system.length_nm)

    def save(self) -> dict[str, Tensor]:
        """Positions, velocities and the platform's random state, as :meth:`load` takes them."""
        return {
            "steps": torch.tensor(self.steps),
            **{f"context {k}": _bytes(c.createCheckpoint()) for k, c in enumerate(self.contexts)},
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`save` gave, on the same version of OpenMM."""
        self.steps = int(state["steps"])
        for k, context in enumerate(self.contexts):
            context.loadCheckpoint(state[f"context {k}"].numpy().tobytes())

    def describe(self) -> dict[str, Any]:
        """What was run, for the provenance of the samples."""
        import openmm

        return {
            "integrator": "Langevin, middle scheme",
            "time_step_ps": self.time_step,
            "friction_per_ps": self.friction,
            "temperature_kelvin": self.kelvin,
            "platform": "Reference",
            "openmm": openmm.Platform.getOpenMMVersion(),
        }


class ReplicaExchange:
    """Several independent runs of ``openmm.app.ReplicaExchangeSampler`` on one temperature ladder.

    ``starts`` has shape ``(run, n, d)``; every rung of a run starts there. ``hottest`` is the ladder's
    upper end in units of the twin's temperature, ``rungs`` its length. Time step and friction are
    those of ``plain``, a finished :class:`LangevinReplicas` on the same system.
    """

    #: Time steps between two rounds of exchanges.
    steps_per_round = 100

    def __init__(
        self,
        plain: LangevinReplicas,
        starts: Tensor,
        *,
        hottest: float,
        rungs: int,
        generator: torch.Generator,
    ):
        import openmm
        from openmm import app, unit

        self.system, self.replicas = plain.system, len(starts)
        self.plain, self.hottest, self.rungs = plain, hottest, rungs
        self.steps, self.stride = 0, self.steps_per_round
        n, d = self.system.shape
        # Hot rungs climb walls: frequencies there grow by about the square root of the temperature.
        time_step = plain.time_step / math.sqrt(hottest) ** 0.5
        self.time_step = time_step
        moves = integrator(
            d,
            temperature=self.system.twin_temperature,
            friction=plain.friction,
            time_step=time_step,
            seed=_seed(generator),
        )
        simulation = app.Simulation(
            plain.topology, plain.twin, moves, openmm.Platform.getPlatformByName("Reference")
        )
        self._simulation = simulation
        free = torch.zeros(n, 3, dtype=torch.float64)
        free[:, :d] = 1.0
        if d < 3:
            moves.setPerDofVariableByName("free", free.numpy())
        temperatures = self.system.twin_temperature * torch.logspace(0, 1, rungs, base=hottest)
        states = [{"temperature": float(t) * unit.kelvin} for t in temperatures]
        speed = math.sqrt(kT(self.system.twin_temperature) / plain.mass)
        exchanger = _exchanger()
        self._samplers = []
        for x in starts.double():
            flat = torch.zeros(n, 3, dtype=torch.float64)
            flat[:, :d] = x * self.system.length_nm
            simulation.context.setPositions(flat.numpy())
            noise = torch.randn(n, 3, generator=generator, dtype=torch.float64)
            simulation.context.setVelocities((speed * free * noise).numpy())
            self._samplers.append(exchanger(states, simulation, self.steps_per_round, generator))

    def advance(self, steps: int) -> None:
        """Rounds of ``steps_per_round`` time steps of every rung of every run, rounded up."""
        rounds = math.ceil(steps / self.steps_per_round)
        for sampler in self._samplers:
            sampler.simulate(rounds)
        self.steps += rounds * self.steps_per_round

    def retune(self) -> None:
        """Nothing to tune: the ladder is fixed."""

    def save(self) -> dict[str, Tensor]:
        """Replicas, their rungs and the platform's random state, as :meth:`load` takes them."""
        from openmm import XmlSerializer

        state = {
            "steps": torch.tensor(self.steps),
            "random": _bytes(self._simulation.context.createCheckpoint()),
        }
        for k, sampler in enumerate(self._samplers):
            state[f"sampler {k}"] = torch.tensor(
                [
                    *(sampler.currentIteration, sampler.tried, sampler.accepted),
                    *sampler.replicaStateIndex,
                    *sampler._previousReplicaStateIndex,
                ]
            )
            for i, conformation in enumerate(sampler.replicaConformation):
                text = XmlSerializer.serialize(conformation)
                state[f"sampler {k} replica {i}"] = _bytes(text.encode())
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`save` gave, on the same version of OpenMM."""
        from openmm import XmlSerializer

        self.steps = int(state["steps"])
        for k, sampler in enumerate(self._samplers):
            iteration, tried, accepted, *rungs = state[f"sampler {k}"].tolist()
            sampler.currentIteration, sampler.tried, sampler.accepted = iteration, tried, accepted
            sampler.replicaStateIndex = rungs[: self.rungs]
            sampler._previousReplicaStateIndex = rungs[self.rungs :]
            sampler.replicaConformation = [
                XmlSerializer.deserialize(
                    state[f"sampler {k} replica {i}"].numpy().tobytes().decode()
                )
                for i in range(self.rungs)
            ]
        self._simulation.context.loadCheckpoint(state["random"].numpy().tobytes())

    def read(self) -> Tensor:
        """Mean-free positions ``(rung, run, n, d)`` in float64, the coldest rung first."""
        frames = [
            [
                sampler.replicaConformation[sampler.replicaStateIndex.index(k)]
                .getPositions(asNumpy=True)
                ._value[:, : self.system.shape[1]]
                for sampler in self._samplers
            ]
            for k in range(self.rungs)
        ]
        x = torch.from_numpy(np.array(frames))
        return self.system.space.project(x / self.system.length_nm)

    def describe(self) -> dict[str, Any]:
        """What was run, for the provenance of the samples."""
        tried = sum(sampler.tried for sampler in self._samplers)
        accepted = sum(sampler.accepted for sampler in self._samplers)
        return {
            **self.plain.describe(),
            "time_step_ps": self.time_step,
            "temperature_kelvin": self.system.twin_temperature,
            "replica_exchange": {
                "hottest_kelvin": self.hottest * self.system.twin_temperature,
                "rungs": self.rungs,
                "steps_per_round": self.steps_per_round,
                "accepted_exchanges": accepted / max(tried, 1),
            },
        }


def _exchanger() -> Any:
    """OpenMM's sampler with exchanges drawn from a ``torch.Generator``.

    The original draws from the global ``random`` and raises OverflowError where an exchange lowers
    the total reduced energy by more than 709.
    """
    from openmm import app, unit

    class Exchanger(app.ReplicaExchangeSampler):  # type: ignore[misc]
        def __init__(
            self, states: Any, simulation: Any, steps: int, generator: torch.Generator
        ) -> None:
            super().__init__(states, simulation, steps)
            self.generator = generator
            self.tried = self.accepted = 0
            self.beta = [
                1.0 / kT(state["temperature"].value_in_unit(unit.kelvin)) for state in states
            ]

        def exchangeReplicas(self) -> None:
            energy = [
                row[0].value_in_unit(unit.kilojoules_per_mole) for row in self.replicaStateEnergy
            ]
            holder = [self.replicaStateIndex.index(k) for k in range(len(self.states))]
            for k in range(self.currentIteration % 2, len(self.states) - 1, 2):
                i, j = holder[k], holder[k + 1]
                log_ratio = (self.beta[k] - self.beta[k + 1]) * (energy[i] - energy[j])
                draw = float(torch.rand((), generator=self.generator, dtype=torch.float64))
                self.tried += 1
                if draw < math.exp(min(log_ratio, 0.0)):
                    self.accepted += 1
                    self.replicaStateIndex[i], self.replicaStateIndex[j] = k + 1, k

    return Exchanger


def bonds_of(system: System) -> Sequence[tuple[int, int]]:
    """Bonds of a molecule, none for systems that do not say."""
    return () if system.molecule is None else system.molecule.bonds


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
