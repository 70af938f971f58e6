"""A population of chains as the preparation of an objective, and how it is kept between its moves."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..errors import FileFormatError
from ..mcmc.ladder import Ladder
from ..mcmc.population import Equilibration, Population, PopulationConfig, Progress
from ..mcmc.population import State as Chains
from ..target import CountingTarget
from .base import Preparation, Problem, State

#: Levels of annealing that are expected before the first two are known: five for a mixture, eight for small
#: molecules, twenty for clusters of some ten particles, thirty of fifty.
_LEVELS = 20


class PopulationPreparation(Preparation):
    """Makes the population of an objective, with the random stream that training then draws from."""

    def __init__(self, config: PopulationConfig, problem: Problem):
        self.config, self.problem = config, problem
        self.target = CountingTarget(problem.target)
        self.ladder = None
        if problem.temperatures is not None and problem.at is not None:
            at = problem.at
            self.ladder = Ladder(
                problem.temperatures, config.nodes, lambda rows: self.target.counting(at(rows))
            )
        self.equilibration = Equilibration(
            config, self.target, molecule=problem.molecule, ladder=self.ladder
        )

    def init(self) -> State:
        rng = torch.Generator(device=self.problem.device).manual_seed(self.problem.seed)
        self.target.evaluations = 0
        like = torch.empty(0, device=self.problem.device)
        return self._flat(self.equilibration.init(generator=rng, like=like), rng)

    def step(self, state: State) -> State:
        rng = self.random(state)
        self.target.evaluations = int(state["energy_evaluations"])
        chains = Chains.unflatten(state)
        return self._flat(self.equilibration.step(chains, generator=rng), rng)

    def progress(self, state: State) -> Progress | None:
        chains = Chains.unflatten(state)
        return None if self.equilibration.finished(chains) else self.equilibration.progress(chains)

    def expected_evaluations(self, state: State) -> int:
        config, chains = self.config, Chains.unflatten(state)
        at = self.equilibration.progress(chains)
        if at.phase != "annealing":
            rest = config.equilibration - chains.steps
            return int(state["energy_evaluations"]) + config.size * rest
        annealing = at.total or _LEVELS * config.anneal_moves
        return int(config.size * (2 + annealing + config.equilibration))

    def population(self, state: State) -> Population:
        """The population of the last state."""
        return self.equilibration.population(Chains.unflatten(state))

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

    def _flat(self, chains: Chains, rng: torch.Generator) -> State:
        return {
            **chains.flatten(),
            "energy_evaluations": self.target.evaluations,
            "rng": rng.get_state(),
        }
