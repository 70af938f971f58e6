"""Steps an objective, judges its generator, and keeps the best: nothing of scores or networks."""

from __future__ import annotations

import copy
import math
import time

import torch

from ..errors import DivergenceError, FileFormatError, UnboundedEnergyError
from ..mcmc.divergence import require_bounded
from ..nn.generators import Generator
from ..objectives import Objective
from ..target import CountingTarget, Target
from .config import TrainConfig
from .criterion import Discrepancy, Evaluation, calibrate, evaluate
from .state import TrainState


class Trainer:
    """Advances a :class:`TrainState`; holds nothing that a resume would need."""

    def __init__(
        self,
        config: TrainConfig,
        target: Target,
        objective: Objective,
        state: TrainState,
        *,
        device: torch.device,
    ):
        self.config, self.objective, self.state, self.device = config, objective, state, device
        self.target = CountingTarget(target, state.judging_evaluations)
        self.total = objective.warmup + config.iterations

    @property
    def finished(self) -> bool:
        return self.state.iteration >= self.total

    @property
    def evaluation_due(self) -> bool:
        """Whether the generator is to be judged after the iteration just done."""
        done = self.state.iteration - self.objective.warmup
        return self.finished or (done > 0 and done % self.config.evaluate_every == 0)

    def step(self) -> dict[str, float]:
        """One iteration; returns what is worth logging.

        Raises
        ------
        DivergenceError
            ``max_bad_steps`` iterations in a row had a non-finite loss or gradient.
        """
        state = self.state
        began = time.perf_counter()
        state.objective, metrics = self.objective.step(state.objective)
        state.seconds += time.perf_counter() - began
        if not metrics.pop("nonfinite"):
            state.bad_in_a_row = 0
            return metrics
        state.skipped += 1
        state.bad_in_a_row += 1
        if state.bad_in_a_row >= self.config.max_bad_steps:
            raise DivergenceError(
                f"{state.bad_in_a_row} iterations in a row had a non-finite loss or gradient "
                f"(last: iteration {state.iteration}); the last good checkpoint is kept"
            )
        return metrics

    def evaluate(self) -> Evaluation:
        """Judge the objective's generator, and select it if none was better.

        Its random stream is its own, so judging more or less often changes nothing else. At the end of
        training the selected generator is calibrated.

        Raises
        ------
        UnboundedEnergyError
            The population or the refined samples are where no energy with a norm goes.
        """
        state = self.state
        candidate = self.objective.generator(state.objective)
        rng = torch.Generator(device=self.device)
        rng.manual_seed(self.config.seed + 7919 * (state.iteration + 1))
        population = self.objective.population(state.objective)
        discrepancy = None
        if population is not None:
            require_bounded(population.state.energy, candidate.space.dof, "chains")
            discrepancy = Discrepancy(population.state, candidate.space)
        step_size = None if population is None else population.step_size or None

        def judge(generator: Generator) -> Evaluation:
            return evaluate(
                generator,
                self.target,
                discrepancy=discrepancy,
                samples=self.config.evaluate_samples,
                steps=self.config.evaluate_steps,
                step_size=step_size,
                rng=rng,
            )

        result = judge(candidate)
        value, error = result.value(self.config.criterion)
        # Ties go to the later iteration: its average is longer and its learning rate lower.
        if value <= state.best + 2 * error:
            self._select(result)
            state.best_iteration = state.iteration
            state.selected = weights_of(candidate)
            if self.finished and not math.isfinite(result.refined_median_energy):
                raise UnboundedEnergyError(
                    "most samples of the trained generator have no finite energy, before and after "
                    f"{self.config.evaluate_steps} Monte Carlo steps: there is nothing to keep"
                )
        state.best = min(state.best, value)
        if self.finished and discrepancy is not None and self.config.calibrate:
            state.calibration = calibrate(
                self.selected(),
                discrepancy,
                self.target,
                samples=self.config.evaluate_samples,
                rng=rng,
            )
            self._select(judge(self.selected()))
        state.judging_evaluations = self.target.evaluations
        return result

    def selected(self) -> Generator:
        """The generator selected so far, calibrated.

        Raises
        ------
        FileFormatError
            The state's weights are of another generator.
        """
        generator = copy.deepcopy(self.objective.generator(self.state.objective))
        try:
            generator.load_state_dict(self.state.selected)
        except RuntimeError as error:
            raise FileFormatError(
                f"the checkpoint does not fit this configuration: {str(error).splitlines()[0]}"
            ) from None
        return generator.calibrated(self.state.calibration) or generator

    def _select(self, result: Evaluation) -> None:
        self.state.best_drift = result.drift
        if result.discrepancy is not None:
            self.state.best_discrepancy = result.discrepancy


def weights_of(generator: Generator) -> dict[str, torch.Tensor]:
    """A copy of a generator's weights."""
    return {key: value.detach().clone() for key, value in generator.state_dict().items()}
