"""Steps an objective, judges its generator, and keeps the best: nothing of scores or networks."""

from __future__ import annotations

import copy
import functools
import logging
import math
import time
from collections.abc import Callable, Sequence

import torch

from ..errors import DivergenceError, FileFormatError, UnboundedEnergyError
from ..estimate import Estimate, log_mean
from ..mcmc import log_normaliser
from ..mcmc.divergence import require_bounded
from ..mcmc.ladder import log_z_change
from ..mcmc.population import Population
from ..mcmc.refine import Tuning
from ..nn.generators import Generator
from ..objectives import Objective, State
from ..sampler.verdict import Verdict
from ..target import CountingTarget, Target
from .config import TrainConfig
from .criterion import Case, Discrepancy, Evaluation, calibrate, evaluate
from .state import TrainState
from .verdict import verdict_over, with_annealing, with_bridge, with_unrest

log = logging.getLogger(__name__)

#: Samples of the verdict, in those of an evaluation: ten thousand for the four thousand that are usual.
_FINAL = 2.5

#: Largest error of log Z by the annealing of the population that is taken: a hundred families. From fewer
#: LJ-13 had 56.1 ± .24 where 59.9 is right.
_FAMILIES = 0.1

#: Share of a training's energies that a second route to log Z may take, its rows, and levels at most.
_SECOND_ROUTE = 0.03
_SECOND_ROWS = 256
_SECOND_LEVELS = 1000

#: Layers by which samples relax where those of the training are not usable, in the order in which they are
#: tried; share of a training's energies that judging one may take, and of one that has to fit into a time;
#: least samples that tell; what must be left of the discrepancy at most for more layers to be tried.
_RELAXATIONS = (32, 128, 512)
_TRY_SHARE, _HURRIED_SHARE = 0.05, 0.02
_LEAST_SAMPLES = 500
_HELPED = 0.9

#: Temperatures of a range at which a generator is judged: the lowest, the middle and the highest.
JUDGED = 3


#: What judging a selected generator sets.
_JUDGED_FIELDS = (
    "best_drift", "best_discrepancy", "judged", "bounds", "verdict", "by_temperature",
)  # fmt: skip


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
        at: Callable[[torch.Tensor], Target] | None = None,
    ):
        self.at = at
        self.config, self.objective, self.state, self.device = config, objective, state, device
        self.target = CountingTarget(target, state.judging_evaluations)
        self.total = objective.warmup + config.iterations

    @property
    def where(self) -> str:
        """The last step in words."""
        if self.iteration:
            return f"iteration {self.iteration:,} of {self.config.iterations:,}"
        return f"warm-up step {self.warmup:,} of {self.objective.warmup:,}"

    @property
    def finished(self) -> bool:
        return self.state.steps >= self.total or self.state.reached

    @property
    def warmup(self) -> int:
        """Steps of the warm-up that are done."""
        return min(self.state.steps, self.objective.warmup)

    @property
    def iteration(self) -> int:
        """Steps of the generator that are done, of ``config.iterations``."""
        return self.state.steps - self.warmup

    @property
    def best_iteration(self) -> int:
        """That of the generator selected so far."""
        return max(0, self.state.best_iteration - self.objective.warmup)

    @property
    def evaluation_due(self) -> bool:
        """Whether the generator is to be judged after the iteration just done."""
        return self._due(self.iteration)

    @property
    def evaluation_next(self) -> bool:
        """Whether it is to be judged after the next one."""
        in_training = self.warmup == self.objective.warmup
        return in_training and self._due(self.iteration + 1)

    @property
    def evaluations_left(self) -> int:
        """How often it is still to be judged."""
        every, whole = self.config.evaluate_every, self.config.iterations
        return whole // every - self.iteration // every + (whole % every > 0)

    def _due(self, iteration: int) -> bool:
        every, whole = self.config.evaluate_every, self.config.iterations
        return iteration > 0 and (iteration % every == 0 or iteration == whole)

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
                f"(last: {self.where}); the last good checkpoint is kept"
            )
        return metrics

    def evaluate(
        self,
        whole: State | None = None,
        on_drawn: Callable[[int, int, float], None] | None = None,
    ) -> Evaluation:
        """Judge the objective's generator, and select it if none was better.

        ``whole`` is the objective's state with what other processes hold of it, where there are any.
        ``on_drawn`` is told how many draws there are of how many that are judged together, and how many come
        a second.

        Its random stream is its own, so judging more or less often changes nothing else. At the end of
        training the selected generator is calibrated.

        Raises
        ------
        UnboundedEnergyError
            The population or the refined samples are where no energy with a norm goes.
        """
        state = self.state
        began = time.perf_counter()
        state.relaxation = 0
        candidate = self.objective.generator(state.objective)
        rng = torch.Generator(device=self.device)
        rng.manual_seed(self.config.seed + 7919 * (state.steps + 1))
        whole = state.objective if whole is None else whole
        cases = self._cases(whole)

        def judge(
            generator: Generator, samples: int = self.config.evaluate_samples
        ) -> list[Evaluation]:
            each = max(10, samples // len(cases))

            def told(before: int, drawn: int, seconds: float) -> None:
                if on_drawn is not None:
                    on_drawn(before + drawn, each * len(cases), drawn / seconds)

            return [
                evaluate(
                    case.of(generator),
                    case.target,
                    discrepancy=case.discrepancy,
                    samples=each,
                    steps=self.config.evaluate_steps,
                    tuning=case.tuning,
                    chains=case.chains,
                    rng=rng,
                    on_drawn=functools.partial(told, each * index),
                )
                for index, case in enumerate(cases)
            ]

        parts = judge(candidate)
        result = Evaluation.mean(parts)
        value, error = result.value(self.config.criterion)
        # Ties go to the later iteration: its average is longer and its learning rate lower.
        if value <= state.best + 2 * error:
            self._select(parts, cases)
            state.best_iteration = state.steps
            state.selected = weights_of(candidate)
            if self.finished:
                self._require_finite(parts)
        state.best = min(state.best, value)
        compared = any(case.discrepancy is not None for case in cases)
        if self.finished and compared and self.config.calibrate:
            state.calibration = calibrate(
                self.selected(), cases, samples=self.config.evaluate_samples, rng=rng
            )
            self._select(judge(self.selected()), cases)
        goal = self.config.until_ess
        hopeful = goal is not None and _least_share(parts) >= goal
        if self.finished or hopeful:
            # Fresh draws, more of them: the selected generator was the best of many on its own.
            final = judge(self.selected(), int(_FINAL * self.config.evaluate_samples))
            state.reached = hopeful and _least_share(final) >= (goal or 0.0)
            if self.finished:
                self._require_finite(final)
                self._judge(final, cases)
                self._relax(judge, cases)
                self._anneal(whole, cases, rng)
        state.seconds += time.perf_counter() - began
        state.judging_evaluations = self.target.evaluations
        return result

    def _require_finite(self, parts: list[Evaluation]) -> None:
        if not math.isfinite(Evaluation.mean(parts).refined_median_energy):
            raise UnboundedEnergyError(
                "most samples of the trained generator have no finite energy, before and after "
                f"{self.config.evaluate_steps} Monte Carlo steps: there is nothing to keep"
            )

    def selected(self) -> Generator:
        """The generator selected so far, calibrated and, where that makes it usable, relaxed.

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
        generator = generator.calibrated(self.state.calibration) or generator
        layers = self.state.relaxation
        return (generator.relaxed(layers) if layers else None) or generator

    def _cases(self, whole: State) -> list[Case]:
        """What a generator is judged at."""
        population = self.objective.population(whole)
        space, known = self.target.space, self.config.temperatures
        if population is not None:
            require_bounded(population.state.energy, space.dof, "chains")
        if known is None or self.at is None:
            discrepancy = None if population is None else Discrepancy(population.state, space)
            if population is None:
                return [Case(self.target, None)]
            tuning = (
                Tuning(population.step_size, population.scale) if population.step_size else None
            )
            return [
                Case(
                    self.target,
                    discrepancy,
                    tuning=tuning,
                    chains=population.state,
                    unrest=population.drift,
                )
            ]
        cases = []
        for temperature in known.spread(JUDGED):
            target = self.target.counting(self.at(torch.tensor(temperature)))
            discrepancy = tuning = chains = unrest = None
            if population is not None:
                there = population.at(temperature, target)
                chains, unrest = there.state, there.drift
                discrepancy = Discrepancy(there.state, space)
                step_size = there.step_size * temperature / known.middle
                tuning = Tuning(step_size, there.scale) if step_size else None
            cases.append(Case(target, discrepancy, temperature, tuning, chains, unrest))
        return cases

    def _select(self, parts: list[Evaluation], cases: list[Case]) -> None:
        result = Evaluation.mean(parts)
        self.state.best_drift = result.drift
        self.state.judged = sum(part.samples for part in parts)
        self._judge(parts, cases)
        if result.discrepancy is not None:
            self.state.best_discrepancy = result.discrepancy

    def _judge(self, parts: list[Evaluation], cases: list[Case]) -> None:
        result = Evaluation.mean(parts)
        # The population bounds the energies of draws; weights are those of all draws.
        ends = [case.discrepancy.bounds for case in cases if case.discrepancy is not None]
        bounds = [end for pair in ends for end in pair]
        known = result.ess is None and len(ends) == len(cases) and all(map(math.isfinite, bounds))
        self.state.bounds = bounds if known else []
        found = verdict_over(
            parts,
            [case.temperature for case in cases],
            ess_goal=self.config.until_ess,
            redrawn=bool(self.state.bounds),
        )
        if cases[0].unrest is not None:
            found = with_unrest(found, cases[0].unrest)
        self.state.verdict = found.model_dump()
        self.state.by_temperature = [
            {
                "temperature": case.temperature,
                "discrepancy": part.discrepancy,
                "drift": part.drift,
                "broken": part.broken,
                "n": part.samples,
                **_weights_in(part),
            }
            for part, case in zip(parts, cases, strict=True)
            if case.temperature is not None
        ]
        if result.ess is not None:
            self.state.weights = {
                "value": result.ess,
                "n": result.samples,
                "largest weight": result.max_weight,
                "log_z": result.log_z,
                "log_z_error": result.log_z_error,
            }

    def _relax(
        self, judge: Callable[[Generator, int], list[Evaluation]], cases: list[Case]
    ) -> None:
        """As few more layers as make a sampler usable that is not, where the kind has such: they cost an
        energy a sample each, set stiff coordinates right and let slow ones follow."""
        state, config = self.state, self.config
        compared = all(case.discrepancy is not None for case in cases)
        # What a population in motion has taught is not mended by layers.
        moving = any(case.unrest is not None for case in cases)
        if Verdict(**state.verdict).usable or not compared or moving or not config.calibrate:
            return
        before = {name: getattr(state, name) for name in _JUDGED_FIELDS}
        spent = int(state.objective["energy_evaluations"]) + self.target.evaluations
        affordable = (_TRY_SHARE if config.within is None else _HURRIED_SHARE) * spent
        for layers in _RELAXATIONS:
            generator = self.selected().relaxed(layers)
            if generator is None:
                break
            each = generator.evaluations_per_sample + config.evaluate_steps + 1
            samples = min(int(affordable / each), int(_FINAL * config.evaluate_samples))
            if samples < _LEAST_SAMPLES * len(cases):
                break
            last = state.best_discrepancy
            self._select(judge(generator, samples), cases)
            if Verdict(**state.verdict).usable:
                # Fresh draws: these were the first of several that passed.
                self._select(judge(generator, samples), cases)
            found = Verdict(**state.verdict)
            said = "usable" if found.usable else found.sentence
            log.info("with %d kinetic layers more: %s", layers, said)
            if found.usable:
                state.relaxation = layers
                sentence = f"with {layers} kinetic layers more, {found.sentence}"
                state.verdict = found.model_copy(update={"sentence": sentence}).model_dump()
                return
            if state.best_discrepancy > _HELPED * last:
                break
        for name, value in before.items():
            setattr(state, name, value)

    def _anneal(self, whole: State, cases: list[Case], rng: torch.Generator) -> None:
        """log Z by a second route, where draws have weights: the annealing of the population, or where that
        does not tell an annealing for a small share of the training's energies; over a range its change, by
        the chains."""
        state = self.state
        if not state.weights:
            return
        population = self.objective.population(whole)
        if population is None:
            return
        if population.temperature is not None:
            self._bridge(population)
            return
        found, spent = population.log_z or Estimate(-math.inf, math.inf), 0
        if found.se > _FAMILIES:
            found, spent = self._annealed(population, cases[0].target, rng)
        own = Estimate(state.weights["log_z"], state.weights["log_z_error"])
        state.verdict = with_annealing(Verdict(**state.verdict), own, found).model_dump()
        known = math.isfinite(found.value)
        state.weights |= {
            "log_z by annealing": found.value if known else None,
            "log_z by annealing, error": found.se if known else None,
            "energies of the annealing": spent,
        }

    def _bridge(self, population: Population) -> None:
        """The change of log Z from the lowest temperature to the highest, by weights and by the chains."""
        state, at = self.state, self.at
        if at is None or population.temperature is None:
            return
        found, spent = log_z_change(
            population.state,
            population.temperature,
            lambda temperature: self.target.counting(at(torch.tensor(temperature))),
        )
        low, high = state.by_temperature[0], state.by_temperature[-1]
        own = Estimate(
            high["log_z"] - low["log_z"], math.hypot(high["log_z_error"], low["log_z_error"])
        )
        ends = f"{low['temperature']:.4g} to {high['temperature']:.4g}"
        state.verdict = with_bridge(Verdict(**state.verdict), own, found, ends=ends).model_dump()
        state.weights |= {
            "change of log_z over the range": own.value if math.isfinite(own.value) else None,
            "by the chains": found.value if math.isfinite(found.value) else None,
            "by the chains, error": found.se if math.isfinite(found.se) else None,
            "energies of the chains": spent,
        }

    def _annealed(
        self, population: Population, target: Target, rng: torch.Generator
    ) -> tuple[Estimate[float], int]:
        """log Z by annealing from a Gaussian, and the energies that it took."""
        state = self.state
        spent_so_far = int(state.objective["energy_evaluations"]) + self.target.evaluations
        left = _SECOND_ROUTE * spent_so_far - log_normaliser.evaluations(0, 2)
        levels = min(int(left / _SECOND_ROWS), _SECOND_LEVELS)
        if levels <= 1:
            return Estimate(-math.inf, math.inf), 0
        weights = log_normaliser.annealing_weights(
            target, population.state.position, n=_SECOND_ROWS, levels=levels, generator=rng
        )
        return log_mean(weights.cpu()), log_normaliser.evaluations(_SECOND_ROWS, levels)


def _least_share(parts: Sequence[Evaluation]) -> float:
    """The least effective share of weights over temperatures, zero where there are none."""
    return min(part.ess or 0.0 for part in parts)


def _weights_in(evaluation: Evaluation) -> dict[str, float | None]:
    """What weights say at a temperature, where there are any."""
    if evaluation.ess is None:
        return {}
    return {
        "effective share of weights": evaluation.ess,
        "largest weight": evaluation.max_weight,
        "log_z": evaluation.log_z,
        "log_z_error": evaluation.log_z_error,
    }


def weights_of(generator: Generator) -> dict[str, torch.Tensor]:
    """A copy of a generator's weights."""
    return {key: value.detach().clone() for key, value in generator.state_dict().items()}
