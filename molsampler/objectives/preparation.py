"""A population of chains as the preparation of an objective, and how it is kept between its moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..errors import FileFormatError
from ..mcmc.population import Equilibration, Population, PopulationConfig, Progress
from ..mcmc.replica_exchange import ReplicaExchange
from ..target import CountingTarget
from .base import Preparation, Problem, State


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
        kind = Equilibration if config.exchange is None else ReplicaExchange
        self.equilibration: _Maker = kind(config, self.target, molecule=problem.molecule)

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
