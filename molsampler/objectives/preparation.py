"""A population of chains as the preparation of an objective, and how it is kept between its moves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol, Self, cast

import torch
from pydantic import Field
from torch import Tensor

from ..errors import DivergenceError, FileFormatError, InputError
from ..mcmc.ladder import Ladder
from ..mcmc.population import (
    Equilibration,
    Population,
    PopulationConfig,
    Progress,
    refresh,
    refresh_rows,
)
from ..mcmc.replica_exchange import ReplicaExchange
from ..target import CountingTarget
from .base import ObjectiveConfig, Preparation, Problem, State, decay_of_share
from .shards import Shards

#: Energies of moves in a row of which none is finite, from which on this is no chance.
_MANY = 64


class ChainsConfig(PopulationConfig):
    """The population; ``refresh`` of its chains make ``refresh_steps`` moves per iteration."""

    refresh: int = Field(64, ge=0)
    refresh_steps: int = Field(1, ge=1)

    def evaluations_per_iteration(self, *, exchanges: bool) -> int:
        """Energies that the moves of an iteration take, those of an exchange of temperatures included."""
        moves = self.leapfrog_steps * self.refresh_steps + int(exchanges)
        return min(self.refresh, self.size) * moves


def refreshed(
    population: Population,
    plan: ChainsConfig,
    problem: Problem,
    target: CountingTarget,
    *,
    iteration: int,
    generator: torch.Generator,
) -> tuple[Population, float | None]:
    """A population of which the part whose turn ``iteration`` is has moved on; and the share of exchanges
    between temperatures that were accepted, None where it is of one temperature.

    Raises
    ------
    DivergenceError
        No step of many comes to a finite energy, although all begin at equilibrium.
    """
    count = min(plan.refresh, plan.size)
    target.finite, before = 0, target.evaluations
    exchanged: float | None = None
    if problem.temperatures is None or problem.at is None:
        moved = refresh(
            population,
            target,
            start=iteration * plan.refresh,
            count=count,
            steps=plan.refresh_steps,
            generator=generator,
            leapfrog_steps=plan.leapfrog_steps,
        )
    else:
        moved, exchanged = refresh_rows(
            population,
            Ladder(problem.temperatures, plan.nodes, problem.at),
            count_evaluations=target.counting,
            iteration=iteration,
            count=count,
            steps=plan.refresh_steps,
            generator=generator,
            leapfrog_steps=plan.leapfrog_steps,
        )
    target.lost = 0 if target.finite else target.lost + target.evaluations - before
    if target.lost >= _MANY:
        raise DivergenceError(
            f"the last {target.lost:,} energies of chains at equilibrium are infinite or NaN: the energy "
            "function has come to fail; the last good checkpoint is kept"
        )
    return moved, exchanged


class PopulationObjectiveConfig(ObjectiveConfig):
    """Settings of an objective that learns from a ``population`` at a rate that falls from the share
    ``decay_start`` of the iterations on."""

    population: ChainsConfig = ChainsConfig()
    decay_start: float = Field(0.4, ge=0, lt=1)

    @property
    def chains(self) -> int:
        return self.population.size

    def with_chains(self, count: int) -> Self:
        population = self.population.model_copy(update={"size": count})
        return self.model_copy(update={"population": population})

    def shortened(self, iterations: float, warmup: float) -> Self:
        later = decay_of_share(self.decay_start, iterations)
        return self.model_copy(update={"decay_start": later})


class _Chains(Protocol):
    """A population in the making."""

    def flatten(self) -> State: ...


class _Maker(Protocol):
    """What makes a population, one move of all its chains at a time."""

    def init(self, *, generator: torch.Generator, like: Tensor) -> _Chains: ...

    def step(self, state: Any, *, generator: torch.Generator) -> _Chains: ...

    def finished(self, state: Any) -> bool: ...

    def unflatten(self, flat: Mapping[str, Any]) -> _Chains: ...

    def progress(self, state: Any) -> Progress: ...

    def expected_evaluations(self, state: Any, spent: int) -> int: ...

    def population(self, state: Any) -> Population: ...


class PopulationPreparation(Preparation):
    """Makes the population of an objective, with the random stream that training then draws from."""

    def __init__(self, config: PopulationConfig, problem: Problem):
        self.config, self.problem = config, problem
        self.target = CountingTarget(problem.target)
        self.equilibration: _Maker
        if problem.temperatures is not None and problem.at is not None:
            if config.exchange is not None:
                raise InputError(
                    "exchange makes a population of one temperature; over a range neighbours exchange "
                    "anyway, at every exchange_every th move: leave it out"
                )
            at = problem.at
            ladder = Ladder(
                problem.temperatures, config.nodes, lambda rows: self.target.counting(at(rows))
            )
            self.equilibration = Equilibration(
                config,
                self.target,
                molecule=problem.molecule,
                ladder=ladder,
                hurry=problem.hurry,
            )
        elif config.exchange is None:
            self.equilibration = Equilibration(
                config, self.target, molecule=problem.molecule, hurry=problem.hurry
            )
        else:
            self.equilibration = ReplicaExchange(config, self.target, molecule=problem.molecule)

    def init(self) -> State:
        rng = torch.Generator(device=self.problem.device).manual_seed(self.problem.seed)
        self.target.evaluations = 0
        like = torch.empty(0, device=self.problem.device)
        return self._flat(self.equilibration.init(generator=rng, like=like), rng)

    def step(self, state: State) -> State:
        rng = self.random(state)
        self.target.evaluations = int(state["energy_evaluations"])
        chains = self.equilibration.unflatten(state)
        return self._flat(self.equilibration.step(chains, generator=rng), rng)

    def progress(self, state: State) -> Progress | None:
        chains = self.equilibration.unflatten(state)
        return None if self.equilibration.finished(chains) else self.equilibration.progress(chains)

    def expected_evaluations(self, state: State) -> int:
        made = self.equilibration
        return made.expected_evaluations(made.unflatten(state), int(state["energy_evaluations"]))

    def population(self, state: State) -> Population:
        """The population of the last state."""
        return self.equilibration.population(self.equilibration.unflatten(state))

    def random(self, state: State) -> torch.Generator:
        """The random stream, where a state left it.

        Raises
        ------
        FileFormatError
            The state was made on another kind of device.
        """
        rng = torch.Generator(device=self.problem.device)
        try:
            rng.set_state(cast(Tensor, state["rng"]).cpu())
        except (KeyError, RuntimeError, TypeError, AttributeError):
            raise FileFormatError(
                "the checkpoint holds no random stream of this kind of device; resume on the device where "
                "it was made"
            ) from None
        return rng

    def _flat(self, chains: _Chains, rng: torch.Generator) -> State:
        return {
            **chains.flatten(),
            "energy_evaluations": self.target.evaluations,
            "rng": rng.get_state(),
        }


def data_scale(x: Tensor, problem: Problem) -> float:
    """Root-mean-square coordinate of configurations ``(b, n, d)`` about their mean."""
    space = problem.target.space
    centred = space.project(x - x.mean(0))
    rms = centred.square().sum(dim=(-2, -1)).mean() / space.dof
    # Two digits are enough, and survive a change of hardware.
    return float(f"{math.sqrt(float(rms)):.2g}")


class ShardedPreparation(Preparation):
    """Makes the populations of the owned shards, each by itself with its own random stream.

    Shards need other numbers of moves, so one may be finished where another is being annealed.
    """

    def __init__(self, parts: Mapping[int, PopulationPreparation], shards: Shards):
        self.parts, self.shards = parts, shards

    def init(self) -> State:
        return self._joined({shard: part.init() for shard, part in self.parts.items()})

    def step(self, state: State) -> State:
        made = {}
        for shard, part in self.parts.items():
            own = self.part(state, shard)
            made[shard] = own if part.progress(own) is None else part.step(own)
        return self._joined(made)

    def progress(self, state: State) -> Progress | None:
        """That of the owned shard that has most left to do, None when all are finished."""
        found = [part.progress(self.part(state, shard)) for shard, part in self.parts.items()]
        working = [at for at in found if at is not None]
        if not working:
            return None
        early = [at for at in working if at.phase == working[0].phase != "equilibration"]
        return min(early or working, key=lambda at: at.done)

    def whole(self, state: State) -> State:
        merged = self.shards.collected(state)
        counts = [
            merged.get(f"{self.shards.prefix(shard)}energy_evaluations")
            for shard in range(self.shards.count)
        ]
        if self.shards.peers.rank or None in counts:
            return {}
        return {**merged, "energy_evaluations": sum(int(count or 0) for count in counts)}

    def expected_evaluations(self, state: State) -> int:
        return sum(
            part.expected_evaluations(self.part(state, shard)) for shard, part in self.parts.items()
        )

    def part(self, state: State, shard: int) -> State:
        """The state of one shard."""
        prefix = self.shards.prefix(shard)
        return {
            key.removeprefix(prefix): value
            for key, value in state.items()
            if key.startswith(prefix)
        }

    def _joined(self, made: Mapping[int, State]) -> State:
        joined: State = {
            f"{self.shards.prefix(shard)}{key}": value
            for shard, own in made.items()
            for key, value in own.items()
        }
        spent = sum(int(own["energy_evaluations"]) for own in made.values())
        return {**joined, "energy_evaluations": spent}
