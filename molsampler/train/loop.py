"""The steps of a training: judged, kept and logged, until they are done or have to end."""

from __future__ import annotations

import logging
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from ..errors import MolsamplerError, UnboundedEnergyError
from ..sampler.sampler import Sampler
from ..sampler.verdict import Verdict
from . import artifact, compiler
from .criterion import Evaluation
from .early import Early
from .job import Job
from .problem import enough_memory
from .state import TrainState
from .stop import StopRequestedError
from .trainer import Trainer

_log = logging.getLogger(__name__)

#: Seconds that a step takes from which on it may be abandoned, for the price of a copy of the state.
_SLOW = 0.25

#: Iterations from which on the time that is left is known well enough to speak of.
_KNOWN_FROM = 20

Status = Literal["completed", "out of time", "interrupted"]


class Loop:
    """Steps a job from a state on; what is left of the state is in ``trainer``."""

    def __init__(self, job: Job, state: TrainState):
        self.job = job
        self.trainer = job.trainer(state)
        self.early = Early(job.stop.deadline)
        # A schedule that fits its time ends in time.
        self._warned = job.config.within is not None

    def run(self) -> Status:
        """Step to the end or until stopped, and leave an artifact of what is done."""
        status = self._steps()
        if status == "completed" and self.job.first and not self._exported():
            self._export()
        return status

    @property
    def status_if_stopped(self) -> Status:
        return "interrupted" if self.job.stop.received else "out of time"

    @property
    def phase(self) -> str:
        """The one that was reached."""
        return "training" if self.trainer.iteration or not self.job.objective.warmup else "warm-up"

    def verdict(self) -> Verdict | None:
        """That on what the artifact holds: of an earlier command, if this one has judged nothing."""
        folder = self.job.folder
        found = artifact.verdict(self._judged_last)
        if found is not None or not self.job.first or not folder.artifact.exists():
            return found
        try:
            return Sampler.load(folder.artifact, system=self.job.system).card.verdict
        except MolsamplerError:
            return None

    def _steps(self) -> Status:
        job = self.job
        job.teller.evaluations = self.trainer.state.evaluations
        met: set[str] = set()
        spent = 0.0
        while not self.trainer.finished:
            if job.alone:
                self._export_in_time(spent)
            if job.agreed()[0]:
                return self._stopped()
            trainer = self.trainer
            phase = "warm-up" if trainer.warmup < job.objective.warmup else "training"
            compiles = job.problem.compile and phase not in met
            self._tell(phase, now=compiles, detail="compiling" if compiles else "")
            met.add(phase)
            copy = None
            # Processes that work together finish their steps: none can give one up by itself.
            if job.alone and (compiles or trainer.evaluation_next or spent > _SLOW):
                copy = trainer.state.flatten()
            began = time.perf_counter()
            try:
                with enough_memory(job.config), self._abandonable(copy):
                    values = trainer.step()
                    spent = time.perf_counter() - began
                    job.teller.worked(phase, spent, trainer.state.evaluations, pause=compiles)
                    judged = self._judged()
                    if judged is not None:
                        self.early.trainer = None
            except StopRequestedError:
                self._back_to(copy)
                return self._stopped()
            except Exception as error:
                if compiler.failed(error) and copy is not None and job.stop.requested():
                    # Ctrl-C reaches the compiler, too.
                    self._back_to(copy)
                    return self._stopped()
                job.without_compiler(error, possible=copy is not None)
                self._back_to(copy)
                continue
            if job.first:
                self._log(values, judged)
            # The artifact comes first: a run that is killed in between repeats the iteration.
            if judged is not None:
                self._export()
            if trainer.state.steps % job.config.checkpoint_every == 0 or trainer.finished:
                job.checkpoint(trainer.state)
            self._tell(phase, now=trainer.finished)
        return "completed"

    def _abandonable(self, copy: object) -> AbstractContextManager[None]:
        return nullcontext() if copy is None else self.job.stop.abandonable()

    def _back_to(self, copy: tuple[dict[str, torch.Tensor], str] | None) -> None:
        """Forget the step that was given up."""
        if copy is not None:
            self.trainer = self.job.trainer(TrainState.unflatten(*copy))

    def _stopped(self) -> Status:
        self.job.checkpoint(self.trainer.state)
        return self.status_if_stopped

    # Judging

    def _judged(self) -> Evaluation | None:
        """The evaluation of the generator where it is time for one."""
        job, trainer, teller = self.job, self.trainer, self.job.teller
        if not trainer.evaluation_due:
            return None
        whole = job.objective.whole(trainer.state.objective)
        result = None
        if job.first:
            teller.tell("evaluation", now=(teller.evaluating or 0.0) > 2.0)
            began = time.perf_counter()

            def drawn(done: int, total: int, rate: float) -> None:
                teller.tell("evaluation", done, total, rate=rate)

            result = trainer.evaluate(whole, on_drawn=drawn)
            teller.evaluated(time.perf_counter() - began, trainer.state.evaluations)
        reached = job.problem.peers.gather(torch.tensor([trainer.state.reached]))
        trainer.state.reached = bool(reached[0])
        return result

    def _export_in_time(self, step: float) -> None:
        """Write what there is as an artifact where the time limit comes before the first evaluation; a step
        takes ``step`` seconds.

        A copy of the state is judged: the run that goes on is the one that was never judged here, nor are
        the energies counted in it that this took.
        """
        job, trainer = self.job, self.trainer
        if trainer.state.verdict or not self.early.due(
            trainer.iteration, step=step, expected=self._seconds_of_judging()
        ):
            return
        job.checkpoint(trainer.state)
        job.teller.tell("evaluation", now=True)
        # Reaching a goal is the end of a run, which this is not.
        config = job.config.model_copy(update={"until_ess": None})
        copy = job.trainer(TrainState.unflatten(*trainer.state.flatten()), config)
        try:
            with enough_memory(job.config), job.stop.abandonable():
                self.early.judge(copy)
            self._export()
        except StopRequestedError:
            if not job.stop.received:
                _log.info("the time was too short to judge what there is after these iterations")
        except UnboundedEnergyError:
            raise
        except MolsamplerError as error:
            _log.warning("what there is could not be judged before the time limit: %s", error)

    def _seconds_of_judging(self) -> float | None:
        """What an evaluation is expected to take, by the last one or the rate of energies."""
        teller = self.job.teller
        rate = teller.energies.rate
        if teller.evaluating is not None or not rate:
            return teller.evaluating
        return self.job.energies_of_judging() / rate

    # Files

    @property
    def _judged_last(self) -> Trainer:
        return self.early.trainer or self.trainer

    def _export(self) -> None:
        """Write the generator selected so far as an artifact."""
        job = self.job
        artifact.save(
            job.folder.artifact,
            self._judged_last,
            system=job.system,
            chart=job.chart,
            command=job.command,
            ranks=job.problem.peers.count,
        )

    def _exported(self) -> bool:
        """Whether the run's artifact is there and whole."""
        folder = self.job.folder
        if not folder.artifact.exists():
            return False
        try:
            Sampler.load(folder.artifact, system=self.job.system)
        except MolsamplerError as error:
            _log.warning("the artifact is written again: %s", error)
            return False
        return True

    def _log(self, values: dict[str, float], judged: Evaluation | None) -> None:
        """What the last step found, where it is worth a line."""
        job, trainer, state = self.job, self.trainer, self.trainer.state
        if judged is not None:
            log_z = artifact.log_z(job.chart, judged.log_z)
            values = {**values, **judged.values(log_z=log_z)}
        elif state.steps % job.config.log_every:
            return
        state.recent = {**state.recent, **values}
        where = {} if trainer.iteration else {"warmup": trainer.warmup}
        state.log_bytes, state.log_sha256 = job.folder.log(
            {
                "iteration": trainer.iteration,
                **where,
                **values,
                "energy_evaluations": state.evaluations,
                "skipped": state.skipped,
            }
        )

    # Words

    def _tell(self, phase: str, *, now: bool = False, detail: str = "") -> None:
        job, trainer = self.job, self.trainer
        warming = phase == "warm-up"
        job.teller.tell(
            phase,
            trainer.warmup if warming else trainer.iteration,
            job.objective.warmup if warming else job.config.iterations,
            evaluations_left=0 if warming else trainer.evaluations_left,
            last=not warming,
            now=now,
            detail=detail,
            metrics=trainer.state.recent,
        )
        if trainer.iteration >= _KNOWN_FROM and not self._warned:
            self._warn_of_the_limit(job.teller.left_of_run)

    def _warn_of_the_limit(self, left: float | None) -> None:
        """Say once that the time limit comes before the end of the schedule, where it does."""
        deadline, trainer = self.job.stop.deadline, self.trainer
        if left is None or deadline is None:
            return
        self._warned = True
        share = (deadline - time.monotonic()) / left
        if share < 1:
            whole = self.job.config.iterations
            end = trainer.iteration + share * (whole - trainer.iteration)
            _log.info(
                "--max-time ends at about iteration %s of %s, from where the same command goes on; "
                "--within in a new run folder has a schedule that ends in time",
                f"{end:,.0f}",
                f"{whole:,}",
            )
