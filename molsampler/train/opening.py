"""How a run begins: where its newest intact checkpoint ends, or afresh, its schedule fitted to its time."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..objectives import State
from ..objectives.shards import pack, unpack
from . import checkpoint, fit
from .job import Job, of_rank_0
from .preparing import Preparing
from .state import LOG_FORMAT, TrainState
from .stop import StopRequestedError
from .trainer import weights_of

_log = logging.getLogger(__name__)


@dataclass
class Opening:
    """The beginning of a job, of which ``preparing`` is a part; ``weights`` are those of the generator to
    start from, None for its own."""

    job: Job
    preparing: Preparing
    weights: dict[str, Tensor] | None = None

    def state(self) -> TrainState:
        """The state to go on from.

        Raises
        ------
        StopRequestedError
            Time or patience ended before it was there; what is done is kept.
        """
        job, preparing = self.job, self.preparing
        found = self._found()
        if found is not None:
            tensors, counters, path = found
            # The state of a random stream stays on the host.
            tensors = {
                key: value if key.endswith("rng") else value.to(job.problem.device)
                for key, value in tensors.items()
            }
            _log.info("resuming from %s", path)
            if not preparing.resume(tensors, counters):
                return self._resumed(TrainState.unflatten(tensors, counters))
        if job.first:
            job.folder.rewind_metrics(0)
        fresh = self._fresh()
        if self.weights is not None:
            fresh = job.objective.with_generator(fresh, self.weights)
        state = TrainState(fresh, weights_of(job.objective.generator(fresh)))
        state.seconds = preparing.seconds
        if job.config.within is not None:
            state = self._fitted(state, job.config.within)
        job.checkpoint(state)
        return state

    def _found(self) -> tuple[dict[str, Tensor], str, Path] | None:
        """The newest intact checkpoint, which rank 0 reads and tells."""
        job, peers = self.job, self.job.problem.peers
        found = checkpoint.load_latest(job.folder.checkpoints) if job.first else None
        if job.alone:
            return found
        said = b"" if found is None else pack({**found[0], "counters": found[1]})
        if not (told := peers.tell(said)):
            return None
        tensors = unpack(told)
        return (
            tensors,
            tensors.pop("counters"),
            job.folder.checkpoints if found is None else found[2],
        )

    def _resumed(self, state: TrainState) -> TrainState:
        job = self.job
        job.objective.generator(state.objective)
        if not job.first:
            return state
        if state.log_format < LOG_FORMAT:
            aside = job.folder.set_metrics_aside("before")
            _log.warning("the log counted warm-up and training together; it is kept as %s", aside)
        elif job.folder.rewind_metrics(state.log_bytes, state.log_sha256):
            return state
        state.log_bytes, state.log_sha256, state.log_format = 0, "", LOG_FORMAT
        return state

    def _fresh(self) -> State:
        """The objective's first state."""
        job = self.job
        preparation = job.objective.preparation
        if preparation is not None:
            prepared = self.preparing.finish(preparation)
            try:
                with job.stop.abandonable() if job.alone else nullcontext():
                    return job.objective.start(prepared)
            except StopRequestedError:
                self.preparing.keep()
                raise
        job.stop.check()

        def report(phase: str, share: float) -> None:
            job.stop.check()
            job.teller.tell(phase, int(100 * share), 100)

        with job.stop.abandonable():
            return job.objective.init(report=report)

    def _fitted(self, state: TrainState, within: float) -> TrainState:
        """The state to train from, its schedule cut to what fits ``within`` seconds."""
        job = self.job
        copy = state.flatten()
        job.teller.tell("training", detail="timing a step of each kind")
        try:
            # Processes that work together finish their steps, as in training.
            with job.stop.abandonable() if job.alone else nullcontext():
                pace = self._pace(copy)
        except StopRequestedError:
            self.preparing.keep()
            raise
        except Exception as error:
            job.without_compiler(error, possible=job.alone)
            return self._fitted(TrainState.unflatten(*copy), within)
        config = job.asked
        if job.config.objective.chains is not None:
            objective = config.objective.with_chains(job.config.objective.chains)
            config = config.model_copy(update={"objective": objective})
        left = within - self.preparing.earlier - (time.monotonic() - job.teller.began)
        warmup = job.asked.objective.build(job.problem).warmup
        config = fit.schedule_that_fits(config, pace, warmup=warmup, left=left)
        job.adopt(of_rank_0(job.problem.peers, config))
        _log.info(
            "%s of %s iterations fit the time, at %.3g s each",
            f"{job.config.iterations:,}",
            f"{job.asked.iterations:,}",
            pace.training,
        )
        state = TrainState.unflatten(*copy)
        state.judging_evaluations += job.fitting
        return state

    def _pace(self, copy: tuple[dict[str, Tensor], str]) -> fit.Pace:
        """How long steps and an evaluation take, on copies of a state; their energies are counted."""
        job = self.job
        trainer = job.trainer(TrainState.unflatten(*copy))
        whole = job.objective.whole(trainer.state.objective)
        began = time.perf_counter()
        if job.first:
            trainer.evaluate(whole)
        judging = time.perf_counter() - began
        job.fitting += trainer.state.judging_evaluations

        def timed(iteration: int) -> float:
            state = TrainState.unflatten(*copy)
            spent, evaluations = fit.seconds_of_step(job.objective, state.objective, iteration)
            job.fitting += evaluations
            return spent

        warmup = job.objective.warmup
        warming = timed(0) if warmup else 0.0
        return fit.Pace(warming, timed(warmup + job.config.iterations // 2), judging)
