r"""A population of Markov chains at equilibrium, made from the energy alone.

Chains are annealed from a Gaussian by SMC, equilibrated by MALA or by the trajectories of Hamiltonian Monte
Carlo (:mod:`molsampler.mcmc.moves`), and moved on while training goes. A pair
(clean state, its noised copy) is then an exact draw of :math:`(x_0, x_t)`.

How long equilibration takes is not known before. It goes on, to twice its length and twice again, while the
mean energy of the chains drifts over its second half (:mod:`molsampler.mcmc.settling`).

Over a range of temperatures every row has one, and neighbours exchange (:mod:`molsampler.mcmc.ladder`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..errors import FileFormatError, InputError, UnboundedEnergyError
from ..estimate import Estimate, log_of_mean
from ..frozen import Frozen
from ..molecule.molecule import Molecule
from ..space import Space
from ..target import Target
from . import adapt, ais, mala, moves, smc
from .divergence import UNREST, FallWatch, require_finite
from .ladder import Ladder, at_temperature, exchange
from .scale import SCALE_EVERY
from .settling import drift, unsettled

log = logging.getLogger(__name__)

#: Levels of annealing that are expected before the first two are known: five for a mixture, eight for small
#: molecules, twenty for clusters of some ten particles, thirty of fifty.
EXPECTED_LEVELS = 20

#: Transitions of the equilibration between looks at the median energy.
_WATCH_EVERY = 50


class Gaussian:
    """Isotropic Gaussian on a space, the start of the annealing path."""

    def __init__(self, space: Space, std: float):
        self.space, self.std = space, std

    @property
    def log_normaliser(self) -> float:
        """In orthonormal coordinates of the space."""
        return 0.5 * self.space.dof * math.log(2 * math.pi * self.std**2)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return 0.5 * (x / self.std).square().sum(dim=(-2, -1)), -x / self.std**2

    def sample(self, n: int, *, generator: torch.Generator, like: Tensor) -> Tensor:
        return self.std * self.space.randn(n, generator=generator, like=like)


class GaussianChain(Gaussian):
    """Gaussian chain on a molecule's bond graph, of the same mean variance: bonds start out short."""

    def __init__(self, space: Space, std: float, molecule: Molecule):
        super().__init__(space, std)
        root = molecule.chain_root() + 1.0 / space.shape[0]
        self.root, self.precision = root, np.linalg.inv(root @ root)

    @property
    def log_normaliser(self) -> float:
        # Along the mean, which a space may leave out, the root is one.
        return super().log_normaliser + self.space.shape[1] * float(np.linalg.slogdet(self.root)[1])

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        precision = torch.as_tensor(self.precision, dtype=x.dtype, device=x.device)
        score = -(precision @ x) / self.std**2
        return -0.5 * (x * score).sum(dim=(-2, -1)), score

    def sample(self, n: int, *, generator: torch.Generator, like: Tensor) -> Tensor:
        root = torch.as_tensor(self.root, dtype=like.dtype, device=like.device)
        return root @ super().sample(n, generator=generator, like=like)


class ExchangeConfig(Frozen):
    """Replica exchange up to ``hottest`` times the temperature of the target, by ``chains`` ladders side by
    side; neighbours exchange at least the share ``acceptance`` of the times they try
    (:mod:`molsampler.mcmc.replica_exchange`)."""

    hottest: float = Field(4.0, gt=1)
    acceptance: float = Field(0.3, gt=0, lt=1)
    chains: int = Field(512, ge=2)


class PopulationConfig(Frozen):
    """``size`` chains start from a Gaussian of ``start_scale`` (in the system's length unit), are annealed
    by SMC with ``anneal_moves`` MALA steps per level and equilibrated by ``equilibration`` moves, up to
    ``settle`` times as many while their mean energy drifts: steps of MALA, or trajectories of
    ``leapfrog_steps`` energy evaluations. With ``exchange`` these are sweeps, as many as
    asked for, of a ladder of temperatures, from whose coldest rung the population is gathered over the second
    half of them. Over a range of temperatures the rows have ``nodes`` of them, and neighbours exchange at
    every ``exchange_every`` th move."""

    size: int = Field(8192, ge=2)
    start_scale: float = Field(1.0, gt=0)
    anneal_moves: int = Field(5, ge=1)
    equilibration: int = Field(1000, ge=0)
    leapfrog_steps: int = Field(1, ge=1, le=1000)
    settle: int = Field(16, ge=1)
    exchange: ExchangeConfig | None = None
    nodes: int = Field(9, ge=3)
    exchange_every: int = Field(5, ge=1)


class Population(NamedTuple):
    """Chains at equilibrium, and the step size of the moves by which they were equilibrated
    (:mod:`molsampler.mcmc.moves`), in lengths of the coordinates ``scale`` ``(n, d)`` where these are unlike
    (:mod:`molsampler.mcmc.scale`).

    Over a range of temperatures ``temperature`` ``(n,)`` has those of the rows, whose energies and scores are
    those at it, and the step size is that at the middle of the range.

    ``log_z`` is log Z by the annealing that made them, None where it is not known. ``drift`` is by how much
    of its spread their mean energy still changed over the second half of the equilibration, None where it was
    at rest.
    """

    state: mala.State
    step_size: float
    temperature: Tensor | None = None
    scale: Tensor | None = None
    log_z: Estimate[float] | None = None
    drift: float | None = None

    def at(self, temperature: float, target: Target) -> Population:
        """What a population over temperatures says of one of them, whose density ``target`` is."""
        rows = cast(Tensor, self.temperature)
        nodes = len(torch.unique(rows))
        state = at_temperature(self.state, rows, target, temperature, nodes=nodes)
        return Population(state, self.step_size, scale=self.scale, drift=self.drift)

    @classmethod
    def joined(cls, parts: Sequence[Population]) -> Population:
        """One population of several, in their order; step size, lengths and Z are their means."""
        if len(parts) == 1:
            return parts[0]
        fields = zip(*(part.state for part in parts), strict=True)
        rows = [part.temperature for part in parts if part.temperature is not None]
        scales = [part.scale for part in parts if part.scale is not None]
        found = [part.log_z for part in parts if part.log_z is not None]
        return cls(
            mala.State(*(torch.cat(field) for field in fields)),
            sum(part.step_size for part in parts) / len(parts),
            torch.cat(rows) if rows else None,
            torch.stack(scales).mean(0) if scales else None,
            log_of_mean(found) if len(found) == len(parts) else None,
            max((part.drift for part in parts if part.drift is not None), key=abs, default=None),
        )

    def put(
        self, tensors: dict[str, Tensor], numbers: dict[str, float | int], prefix: str = ""
    ) -> None:
        """Enter the chains into a flat mapping of tensors and one of numbers, under a prefix."""
        for key, value in self.state._asdict().items():
            tensors[f"{prefix}population/{key}"] = value
        numbers[f"{prefix}population_step"] = self.step_size
        if self.log_z is not None:
            numbers[f"{prefix}population_log_z"] = self.log_z.value
            numbers[f"{prefix}population_log_z_error"] = self.log_z.se
        if self.drift is not None:
            numbers[f"{prefix}population_drift"] = self.drift
        for name in ("temperature", "scale"):
            held = getattr(self, name)
            if held is not None:
                tensors[f"{prefix}population/{name}"] = held

    @classmethod
    def taken(
        cls, tensors: Mapping[str, Any], numbers: Mapping[str, Any], prefix: str = ""
    ) -> Population:
        """The chains of such mappings.

        Raises
        ------
        FileFormatError
            They hold none.
        """
        try:
            fields = {key: tensors[f"{prefix}population/{key}"] for key in mala.State._fields}
            known = numbers.get(f"{prefix}population_log_z")
            error = numbers.get(f"{prefix}population_log_z_error", math.inf)
            drifted = numbers.get(f"{prefix}population_drift")
            return cls(
                mala.State(**fields),
                float(numbers[f"{prefix}population_step"]),
                tensors.get(f"{prefix}population/temperature"),
                tensors.get(f"{prefix}population/scale"),
                None if known is None else Estimate(float(known), float(error)),
                None if drifted is None else float(drifted),
            )
        except KeyError as error:
            raise FileFormatError(f"the checkpoint does not hold {error}") from None


class Progress(NamedTuple):
    """Where the making of a population stands: ``done`` moves of about ``total``, None where unknown."""

    phase: str
    done: int
    total: float | None
    detail: str = ""


class State(NamedTuple):
    """A population in the making, between two moves of all its chains.

    First ``annealing`` is there, then ``chains``, of which ``steps`` moves of ``goal`` have been made, and
    ``log_z`` by the annealing. ``halfway`` has the energies that the chains had after half of the goal.
    """

    annealing: smc.State | None
    chains: mala.State | None
    adaptation: adapt.Adaptation
    steps: int = 0
    log_z: Estimate[float] | None = None
    goal: int = 0
    halfway: Tensor | None = None

    def flatten(self) -> dict[str, Tensor | float | int]:
        """Tensors and numbers by name."""
        flat: dict[str, Tensor | float | int] = {
            **self.adaptation.flatten(),
            "steps": self.steps,
            "goal": self.goal,
        }
        if self.annealing is not None:
            flat |= flat_annealing(self.annealing)
        if self.chains is not None:
            for name, value in self.chains._asdict().items():
                flat[f"chains/{name}"] = value
        if self.log_z is not None:
            flat |= {"log_z": self.log_z.value, "log_z_error": self.log_z.se}
        if self.halfway is not None:
            flat["halfway"] = self.halfway
        return flat

    @classmethod
    def unflatten(cls, flat: Mapping[str, Any]) -> State:
        """The state that was flattened.

        Raises
        ------
        FileFormatError
            It is none.
        """
        try:
            adaptation = adapt.Adaptation.unflatten(flat)
            annealing = chains = None
            if "annealing/position" in flat:
                annealing = annealing_of(flat, adaptation)
            else:
                chains = mala.State(*(flat[f"chains/{name}"] for name in mala.State._fields))
            log_z = None
            if "log_z" in flat:
                log_z = Estimate(float(flat["log_z"]), float(flat["log_z_error"]))
            return cls(
                annealing,
                chains,
                adaptation,
                int(flat["steps"]),
                log_z,
                int(flat["goal"]),
                flat.get("halfway"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"the checkpoint does not hold a population in the making: {error}"
            ) from None


#: The numbers of a state of annealing.
_ANNEALING = ("lam", "last_lam", "log_normaliser_ratio", "levels", "moved")


def flat_annealing(run: smc.State) -> dict[str, Tensor | float | int]:
    """Tensors and numbers of a state of annealing by name, without its adaptation."""
    flat: dict[str, Tensor | float | int] = {
        f"annealing/{name}": getattr(run, name) for name in _ANNEALING
    }
    particles = run.particles
    flat["annealing/position"] = particles.position
    flat["annealing/log_weight"] = particles.log_weight
    flat["annealing/ancestor"] = run.ancestor
    for end in (0, 1):
        flat[f"annealing/energy{end}"] = particles.energies[end]
        flat[f"annealing/score{end}"] = particles.scores[end]
    return flat


def annealing_of(flat: Mapping[str, Any], adaptation: adapt.Adaptation) -> smc.State:
    """The state of annealing that was flattened; a key that is missing is a KeyError."""
    particles = ais.State(
        flat["annealing/position"],
        flat["annealing/log_weight"],
        (flat["annealing/energy0"], flat["annealing/energy1"]),
        (flat["annealing/score0"], flat["annealing/score1"]),
    )
    return smc.State(
        particles,
        adaptation,
        flat["annealing/ancestor"],
        **{name: flat[f"annealing/{name}"] for name in _ANNEALING},
    )


def start_of(config: PopulationConfig, space: Space, molecule: Molecule | None) -> Gaussian:
    """Where chains start: a Gaussian, or a Gaussian chain on the bond graph of a molecule with bonds."""
    if molecule is not None and molecule.bonds:
        return GaussianChain(space, config.start_scale, molecule)
    return Gaussian(space, config.start_scale)


def require_start(energy: Tensor, start_scale: float) -> None:
    """Refuse energies ``(b,)`` of annealed chains of which none is finite.

    Raises
    ------
    UnboundedEnergyError
        They are.
    """
    if not torch.isfinite(energy).any():
        raise UnboundedEnergyError(
            f"none of {len(energy):,} chains has a finite energy in a Gaussian of "
            f"start_scale={start_scale:g}: the energy is infinite or NaN there; give "
            "target_score.start_scale the size of a configuration"
        )


def require_moves(config: PopulationConfig, space: Space) -> None:
    """Refuse trajectories on a space with circular coordinates, which they do not turn.

    Raises
    ------
    InputError
        They are asked for.
    """
    if config.leapfrog_steps > 1 and space.circular:
        raise InputError(
            "trajectories do not turn circular coordinates: leapfrog_steps must be 1 in internal "
            f"coordinates, got {config.leapfrog_steps}"
        )


class Equilibration:
    """Makes a population, from the energy alone, one move of all its chains at a time.

    Chains are annealed from a Gaussian, or from a Gaussian chain on the bond graph of a ``molecule``
    with bonds, and then run on under a kernel whose step size is tuned over the first half. With
    ``hurry`` they are not run on for longer than asked for, though they drift.
    """

    def __init__(
        self,
        config: PopulationConfig,
        target: Target,
        *,
        molecule: Molecule | None = None,
        ladder: Ladder | None = None,
        hurry: bool = False,
    ):
        require_moves(config, target.space)
        self.config, self.target, self.ladder = config, target, ladder
        self.settle = 1 if hurry else config.settle
        self.groups, self.size = 1, config.size
        if ladder is not None:
            self.groups = ladder.nodes
            self.size = max(config.size // ladder.nodes, 2) * ladder.nodes
        self.base = start_of(config, target.space, molecule)
        dof = target.space.dof
        self._annealed, self._settled = FallWatch(dof), FallWatch(dof, UNREST)

    def init(self, *, generator: torch.Generator, like: Tensor) -> State:
        """The start; one energy evaluation a chain."""
        config = self.config
        x = self.base.sample(self.size, generator=generator, like=like)
        run = smc.init(x, self.base, self._rows(x), step_size=1e-2 * config.start_scale**2)
        return State(run, None, run.adaptation)

    def _rows(self, like: Tensor) -> Target:
        """The target, row by row at the temperatures of the ladder where there is one."""
        return self.target if self.ladder is None else self.ladder.target(self.size, like=like)

    def finished(self, state: State) -> bool:
        return state.chains is not None and state.steps >= state.goal

    def step(self, state: State, *, generator: torch.Generator) -> State:
        """The state after one more move of all chains; ``state`` itself is left as it is.

        Raises
        ------
        UnboundedEnergyError
            The energies of the chains fall without bound, or most are not finite.
        """
        config = self.config
        if state.annealing is not None:
            run = state.annealing
            if run.levels == 0 or run.moved >= config.anneal_moves:
                self._watch(run.particles.energies[1])
            if not smc.finished(run, moves=config.anneal_moves):
                run = smc.step(
                    run,
                    self.base,
                    self._rows(run.particles.position),
                    moves=config.anneal_moves,
                    generator=generator,
                    groups=self.groups,
                )
                return State(run, None, run.adaptation)
            done = smc.annealed(run)
            chains = mala.init(done.position, self._rows(done.position))
            require_finite(chains.energy, "annealed chains")
            self._settled(chains.energy)
            adaptation = adapt.init(done.step_size)._replace(scale=run.adaptation.scale)
            log_z = None
            if self.ladder is None:
                ratio = smc.log_normaliser_ratio(run)
                log_z = Estimate(ratio.value + self.base.log_normaliser, ratio.se)
            return State(None, chains, adaptation, log_z=log_z, goal=config.equilibration)
        adaptation = state.adaptation
        chains = cast(mala.State, state.chains)
        target = self._rows(chains.position)
        step_size: float | Tensor = float(adaptation.step_size)
        if self.ladder is not None:
            step_size = step_size * self.ladder.relative(self.size, like=chains.energy)
        chains, info = moves.step(
            chains,
            target,
            step_size=step_size,
            generator=generator,
            scale=adaptation.scale,
            leapfrog_steps=config.leapfrog_steps,
        )
        if self.ladder is not None and (state.steps + 1) % config.exchange_every == 0:
            odd = (state.steps + 1) // config.exchange_every % 2 == 1
            chains, _ = exchange(chains, target, nodes=self.groups, odd=odd, generator=generator)
        # The first half tunes the kernel; the second half runs a fixed one, so it has a stationary law.
        if 2 * state.steps < config.equilibration:
            adaptation = moves.adapted(
                adaptation, info.acceptance, leapfrog_steps=config.leapfrog_steps
            )
            if state.steps % SCALE_EVERY == 0:
                adaptation = adaptation.scaled_to(chains.position, chains.score, self.target.space)
        steps = state.steps + 1
        if steps % _WATCH_EVERY == 0 or steps == state.goal:
            self._settled(chains.energy)
        state = state._replace(chains=chains, adaptation=adaptation, steps=steps)
        if steps == state.goal // 2:
            state = state._replace(halfway=chains.energy.clone())
        return self._rested(state) if steps == state.goal else state

    def _rested(self, state: State) -> State:
        """A state at its goal, with one twice as far where the chains still drift."""
        found = self._drift(state)
        if not unsettled(found):
            return state
        way = "falls" if found.value < 0 else "rises"
        seen = (
            f"the mean energy of the population {way} by {abs(found.value):.2g} of its spread from step "
            f"{state.goal // 2:,} to {state.goal:,} of the equilibration"
        )
        if 2 * state.goal > self.settle * self.config.equilibration:
            log.warning(
                "%s: it has not come to rest, and what is learned from it is off by as much and more; give "
                "it a longer equilibration",
                seen,
            )
            return state
        log.info("%s: it goes on to %s", seen, f"{2 * state.goal:,}")
        energy = cast(mala.State, state.chains).energy
        return state._replace(goal=2 * state.goal, halfway=energy.clone())

    def _drift(self, state: State) -> Estimate[float]:
        """Of the energies over the second half; none where there was no half."""
        if state.halfway is None:
            return Estimate(0.0, math.inf)
        energy = cast(mala.State, state.chains).energy
        return drift(state.halfway, energy, groups=self.groups)

    def _watch(self, energy: Tensor) -> None:
        """Look at the target's energies ``(b,)`` of chains that are being annealed."""
        require_start(energy, self.config.start_scale)
        self._annealed(energy)

    def population(self, state: State) -> Population:
        """What a finished state holds."""
        chains, step_size = cast(mala.State, state.chains), float(state.adaptation.step_size)
        rows = None if self.ladder is None else self.ladder.rows(self.size, like=chains.energy)
        found = self._drift(state)
        moved = found.value if unsettled(found) else None
        return Population(chains, step_size, rows, state.adaptation.scale, state.log_z, moved)

    def unflatten(self, flat: Mapping[str, Any]) -> State:
        """See :meth:`State.unflatten`."""
        return State.unflatten(flat)

    def expected_evaluations(self, state: State, spent: int) -> int:
        """An estimate of the energy evaluations of the whole, of which ``spent`` were made."""
        config, at = self.config, self.progress(state)
        if at.phase != "annealing":
            left = config.leapfrog_steps * (state.goal - state.steps)
            return spent + config.size * left
        annealing = at.total or EXPECTED_LEVELS * config.anneal_moves
        after = config.leapfrog_steps * config.equilibration
        return int(config.size * (2 + annealing + after))

    def progress(self, state: State) -> Progress:
        """Moves done and to be done in the present phase."""
        if state.annealing is None:
            return Progress("equilibration", state.steps, state.goal)
        return annealing_progress(state.annealing, self.config.anneal_moves)


def annealing_progress(run: smc.State, moves: int) -> Progress:
    """Moves done and to be done; the number of levels is an estimate."""
    done = max(run.levels - 1, 0) * moves + run.moved
    levels = smc.expected_levels(run)
    if levels is None:
        return Progress("annealing", done, None, f"level {run.levels}")
    return Progress("annealing", done, levels * moves, f"level {run.levels} of about {levels:.0f}")


def equilibrate(
    config: PopulationConfig,
    target: Target,
    *,
    generator: torch.Generator,
    like: Tensor,
    report: Callable[[str, float], None],
    molecule: Molecule | None = None,
) -> Population:
    """A population at equilibrium, from the energy alone; see :class:`Equilibration`.

    ``report(phase, share)`` is called between moves and may raise to interrupt.
    """
    made = Equilibration(config, target, molecule=molecule)
    report("annealing", 0.0)
    state = made.init(generator=generator, like=like)
    while not made.finished(state):
        at = made.progress(state)
        report(at.phase, at.done / at.total if at.total else 0.0)
        state = made.step(state, generator=generator)
    return made.population(state)


def refresh(
    population: Population,
    target: Target,
    *,
    start: int,
    count: int,
    steps: int,
    generator: torch.Generator,
    leapfrog_steps: int = 1,
) -> Population:
    """Move ``count`` chains, from index ``start`` and wrapping round, ``steps`` moves on."""
    state = population.state
    index = (torch.arange(count, device=state.energy.device) + start) % len(state.energy)
    part = mala.State(*(field[index] for field in state))
    for _ in range(steps):
        part, _ = moves.step(
            part,
            target,
            step_size=population.step_size,
            generator=generator,
            scale=population.scale,
            leapfrog_steps=leapfrog_steps,
        )
    moved = mala.State(
        *(field.index_copy(0, index, new) for field, new in zip(state, part, strict=True))
    )
    return population._replace(state=moved)


def refresh_rows(
    population: Population,
    ladder: Ladder,
    *,
    count_evaluations: Callable[[Target], Target],
    iteration: int,
    count: int,
    steps: int,
    generator: torch.Generator,
    leapfrog_steps: int = 1,
) -> tuple[Population, float]:
    """:func:`refresh` of a population over temperatures: whole ladders of about ``count`` rows, which then
    exchange once; and the share of exchanges that were accepted."""
    state, base, scale = population.state, population.step_size, population.scale
    n, nodes = len(state.energy), ladder.nodes
    count = max(count // nodes, 1) * nodes
    index = (torch.arange(count, device=state.energy.device) + iteration * count) % n
    part = mala.State(*(field[index] for field in state))
    target = count_evaluations(ladder.target(count, like=state.energy))
    step_size = base * ladder.relative(count, like=state.energy)
    for _ in range(steps):
        part, _ = moves.step(
            part,
            target,
            step_size=step_size,
            generator=generator,
            scale=scale,
            leapfrog_steps=leapfrog_steps,
        )
    # Every visit to a row tries the other pairs: n / count iterations lie between them.
    odd = iteration * count // n % 2 == 1
    part, rate = exchange(part, target, nodes=nodes, odd=odd, generator=generator)
    moved = mala.State(
        *(field.index_copy(0, index, new) for field, new in zip(state, part, strict=True))
    )
    return population._replace(state=moved), rate
