r"""Reference dynamics in OpenMM: Langevin replicas of a system's twin, and replica exchange.

Replicas of a small system are placed side by side in one ``openmm.System``. All-pairs bonds act only
within a replica, so replicas are independent wherever they are, and one context advances all of them
without Python between steps. OpenMM's Reference platform is used: double precision, one thread,
deterministic given the seed, and faster than the CPU platform on so few particles.

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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from molsampler.errors import InputError
from molsampler.target import System
from molsampler.units import GAS_CONSTANT, TWIN_TEMPERATURE, kT

if TYPE_CHECKING:
    import openmm

#: Time step times the highest angular frequency of thermal configurations (stability ends at 2).
STEP_OVER_PERIOD = 0.4

#: Collision rate over the highest angular frequency: weak damping, so that slow motions stay fast.
FRICTION_OVER_FREQUENCY = 0.1

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
    x = x.double()
    size = x[0].numel()
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
        The system has no OpenMM twin, or one that :func:`replicate` does not take.
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
        twin, _ = system.openmm_twin()
        self.mass = _common_mass(twin)
        self.kelvin = temperature * TWIN_TEMPERATURE
        self.merged = replicate(twin, self.replicas)
        self.steps, self.stride = 0, 10
        # Time in which a particle at thermal speed (at the twin's temperature) moves one unit of length.
        self.tau = system.length_nm * math.sqrt(self.mass / kT(TWIN_TEMPERATURE))

        minimised = self._minimised(starts)
        omega = highest_frequency(system, minimised)
        for _ in range(2):
            # The first round is cautious: thermal walls are stiffer than minima.
            self._prepare(minimised, omega, step_over_period, generator)
            self.advance(int(20 / step_over_period))
            omega = highest_frequency(system, self.read()[0])
        self._prepare(self.read()[0], omega, step_over_period, generator)
        self.steps = 0

    def _context(self, integrator: openmm.Integrator, x: Tensor) -> openmm.Context:
        import openmm

        context = openmm.Context(
            self.merged, integrator, openmm.Platform.getPlatformByName("Reference")
        )
        flat = torch.zeros(self.replicas * self.system.shape[0], 3, dtype=torch.float64)
        flat[:, : self.system.shape[1]] = x.flatten(0, 1).double() * self.system.length_nm
        context.setPositions(flat.numpy())
        return context

    def _minimised(self, starts: Tensor) -> Tensor:
        import openmm

        context = self._context(openmm.VerletIntegrator(0.001), starts)
        openmm.LocalEnergyMinimizer.minimize(context, 10.0, 200)
        return self._positions(context)

    def _prepare(
        self, x: Tensor, omega: float, step_over_period: float, generator: torch.Generator
    ) -> None:
        frequency = omega / self.tau
        self.time_step = step_over_period / frequency
        self.friction = FRICTION_OVER_FREQUENCY * frequency
        self._integrator = integrator(
            self.system.shape[1],
            temperature=self.kelvin,
            friction=self.friction,
            time_step=self.time_step,
            seed=_seed(generator),
        )
        self.context = self._context(self._integrator, x)
        free = torch.zeros(self.replicas * self.system.shape[0], 3, dtype=torch.float64)
        free[:, : self.system.shape[1]] = 1.0
        if self.system.shape[1] < 3:
            self._integrator.setPerDofVariableByName("free", free.numpy())
        speed = math.sqrt(kT(self.kelvin) / self.mass)
        noise = torch.randn(free.shape, generator=generator, dtype=torch.float64)
        self.context.setVelocities((speed * free * noise).numpy())

    def advance(self, steps: int) -> None:
        """Integrate ``steps`` time steps."""
        for done in range(0, steps, CHUNK):
            self._integrator.step(min(CHUNK, steps - done))
        self.steps += steps

    def retune(self) -> None:
        """Nothing to tune: the time step is fixed by the stiffness."""

    def read(self) -> Tensor:
        """Mean-free positions ``(1, replica, n, d)`` in float64."""
        return self._positions(self.context)[None]

    def _positions(self, context: openmm.Context) -> Tensor:
        array = context.getState(positions=True).getPositions(asNumpy=True)._value
        x = torch.from_numpy(array).reshape(self.replicas, self.system.shape[0], 3)
        return self.system.space.project(x[..., : self.system.shape[1]] / self.system.length_nm)

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
        twin, topology = self.system.openmm_twin()
        n, d = self.system.shape
        # Hot rungs climb walls: frequencies there grow by about the square root of the temperature.
        time_step = plain.time_step / math.sqrt(hottest) ** 0.5
        self.time_step = time_step
        moves = integrator(
            d,
            temperature=TWIN_TEMPERATURE,
            friction=plain.friction,
            time_step=time_step,
            seed=_seed(generator),
        )
        simulation = app.Simulation(
            topology, twin, moves, openmm.Platform.getPlatformByName("Reference")
        )
        free = torch.zeros(n, 3, dtype=torch.float64)
        free[:, :d] = 1.0
        if d < 3:
            moves.setPerDofVariableByName("free", free.numpy())
        temperatures = TWIN_TEMPERATURE * torch.logspace(0, 1, rungs, base=hottest)
        states = [{"temperature": float(t) * unit.kelvin} for t in temperatures]
        speed = math.sqrt(kT(TWIN_TEMPERATURE) / plain.mass)
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
            "temperature_kelvin": TWIN_TEMPERATURE,
            "replica_exchange": {
                "hottest_kelvin": self.hottest * TWIN_TEMPERATURE,
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


def _common_mass(twin: openmm.System) -> float:
    from openmm import unit

    masses = {
        twin.getParticleMass(i).value_in_unit(unit.dalton) for i in range(twin.getNumParticles())
    }
    if len(masses) != 1 or min(masses) <= 0:
        raise InputError(f"a twin needs one positive mass for all particles, got {sorted(masses)}")
    return float(masses.pop())
