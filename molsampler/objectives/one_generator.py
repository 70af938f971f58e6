"""What objectives have in common that train one generator from one population kept at equilibrium."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from typing import cast

from ..errors import NonFiniteError
from ..mcmc.population import Population
from ..nn.generators import Generator
from ..target import CountingTarget
from .base import Metrics, Problem, State
from .optimisers import OptimiserName, optimiser_of
from .preparation import PopulationObjectiveConfig, PopulationPreparation, refreshed
from .workspace import NetworkObjective, Workspace

log = logging.getLogger(__name__)


class OneGenerator(NetworkObjective):
    """A generator, its running average, which is the one that is judged, and a population."""

    def __init__(self, plan: PopulationObjectiveConfig, problem: Problem):
        super().__init__(problem)
        self.plan = plan.population
        self.space = problem.target.space
        self.target = CountingTarget(problem.target)
        self._preparation = PopulationPreparation(self.plan, problem)

    @property
    def preparation(self) -> PopulationPreparation:
        return self._preparation

    def begun(self, work: Workspace, prepared: State) -> Workspace:
        """A workspace that begins with the population of a preparation, which the generator starts from."""
        population = self.preparation.population(prepared)
        work.rng = self.preparation.random(prepared)
        context = self.problem.context(population.temperature)
        for name in ("generator", "ema"):
            network = cast(Generator, work.modules[name])
            network.start_from(population.state.position, context=context)
        population.put(work.tensors, work.numbers)
        work.numbers.update(iteration=0, energy_evaluations=int(prepared["energy_evaluations"]))
        return work

    def with_average(
        self, generator: Generator, *, optimiser: OptimiserName, lr: float
    ) -> Workspace:
        """The workspace of a generator."""
        averaged = copy.deepcopy(generator).requires_grad_(False)
        return Workspace(
            {"generator": generator, "ema": averaged},
            {"generator": optimiser_of(optimiser, generator, lr=lr)},
            rng=self.random(),
        )

    @abstractmethod
    def learn(self, work: Workspace, iteration: int) -> tuple[Metrics, bool]:
        """A step of the generator; what to log, and whether it was taken or there was none to take.

        Raises
        ------
        NonFiniteError
            The networks threw a particle where no energy is.
        """

    def step(self, state: State) -> tuple[State, Metrics]:
        work = self.adopted(state)
        self.target.evaluations = int(work.numbers["energy_evaluations"])
        iteration = int(work.numbers["iteration"])
        metrics: Metrics = {}
        try:
            metrics, sound = self.learn(work, iteration)
        except NonFiniteError as error:
            log.warning("iteration %d: %s", iteration + 1, error)
            sound = False
        if self.plan.refresh:
            population, exchanged = refreshed(
                Population.taken(work.tensors, work.numbers),
                self.plan,
                self.problem,
                self.target,
                iteration=iteration,
                generator=work.rng,
            )
            population.put(work.tensors, work.numbers)
            if exchanged is not None:
                metrics["exchanged"] = exchanged
        work.numbers["iteration"] = iteration + 1
        work.numbers["energy_evaluations"] = self.target.evaluations
        return self.flat(work), {**metrics, "nonfinite": float(not sound)}

    def generator(self, state: State) -> Generator:
        averaged = cast(Generator, self.adopted(state).modules["ema"])
        return averaged.with_sampling(self.problem.sampling)

    def population(self, state: State) -> Population:
        work = self.adopted(state)
        return Population.taken(work.tensors, work.numbers)
