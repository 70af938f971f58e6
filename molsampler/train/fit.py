"""A training that fits a time: how many chains it takes, and how long its schedule is.

A schedule that is cut short is one to go on with later; one that is as long as the time allows ends by then,
its learning rate fallen and its sampler judged. It is no better for that in the first few hundred steps, of
which what counts is how many there are (docs/research-log.md). The number of chains is chosen once the rate
of energies is known, the iterations once a step of each kind and an evaluation have been timed. From then on
the run is that of these settings, whatever the machine: they are in its configuration, and give the same
sampler without a time.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

from ..objectives import Objective, State
from .config import TrainConfig

#: Share of the time that the population may take, and chains that it has at least.
_POPULATION, _LEAST_CHAINS = 0.35, 512

#: Share of the time that the warm-up may take.
_WARMUP = 0.35

#: Share of the time for evaluations, which are two at least, and what the end costs in those: calibration,
#: and the verdict.
_JUDGING, _LEAST_JUDGED, _END = 0.1, 2, 10

#: Share of the time that is left over: machines have other work, too.
_RESERVE = 0.07

#: Steps of each kind that are timed, after one in which networks may be compiled. The slower half is left
#: out: a machine that is busy for a second is no measure of the next minutes.
_TIMED = 10

#: Iterations that are made however late it is.
_LEAST_ITERATIONS = 20

#: What fitting decides; a run that is resumed has the values that were found when it began.
FITTED = (
    "iterations",
    "evaluate_every",
    "objective.decay_start",
    "objective.population.size",
    "objective.target_score.size",
    "objective.target_score.warmup",
)


@dataclass(frozen=True)
class Pace:
    """Seconds that a step of the warm-up, one of training and an evaluation take."""

    warmup: float
    training: float
    evaluation: float


def chains_that_fit(config: TrainConfig, *, seconds: float) -> int | None:
    """Chains for which a population that would take ``seconds`` has its share of the time, None where those
    that are configured fit, or there are none to choose."""
    now, within = config.objective.chains, config.within
    if now is None or within is None or seconds <= _POPULATION * within:
        return None
    fewer = max(int(now * _POPULATION * within / seconds), _LEAST_CHAINS)
    return fewer if fewer < now else None


def schedule_that_fits(config: TrainConfig, pace: Pace, *, warmup: int, left: float) -> TrainConfig:
    """The configuration with its schedule cut to what can be done in ``left`` seconds, the same where all of
    it can. The warm-up is left as it is if it has its share of the time."""
    left *= 1 - _RESERVE
    usual = math.ceil(config.iterations / config.evaluate_every)
    work = warmup * pace.warmup + config.iterations * pace.training
    if work <= left - (usual + _END) * pace.evaluation:
        return config
    judged = max(_LEAST_JUDGED, min(usual, int(_JUDGING * left / pace.evaluation)))
    left -= (judged + _END) * pace.evaluation
    warming = min(warmup * pace.warmup, max(_WARMUP * left, 0.0))
    iterations = int((left - warming) / pace.training)
    iterations = min(max(iterations, _LEAST_ITERATIONS), config.iterations)
    kept = warming / (warmup * pace.warmup) if warmup else 1.0
    objective = config.objective.shortened(iterations / config.iterations, kept)
    return config.model_copy(
        update={
            "iterations": iterations,
            "evaluate_every": math.ceil(iterations / judged),
            "objective": objective,
        }
    )


def seconds_of_step(objective: Objective, state: State, iteration: int) -> tuple[float, int]:
    """Seconds that a step takes at an iteration, and the energies that finding out took; ``state`` is of no
    use afterwards."""
    state = {**state, "iteration": iteration}
    before = int(state["energy_evaluations"])
    spent = []
    for _ in range(1 + _TIMED):
        began = time.perf_counter()
        state, _metrics = objective.step(state)
        spent.append(time.perf_counter() - began)
    faster = sorted(spent[1:])[: _TIMED // 2]
    return statistics.median(faster), int(state["energy_evaluations"]) - before
