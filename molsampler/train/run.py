"""Run or resume a training in a folder: the function behind ``molsampler train``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .. import memory
from ..errors import (
    FileFormatError,
    InputError,
    MolsamplerError,
    ResourceError,
    UnboundedEnergyError,
)
from ..mcmc.tempering import Tempered
from ..molecule.chart import Chart, chart_of
from ..molecule.z_matrix import internal_coordinates
from ..nn import pair_layer
from ..objectives import Preparation, Problem, State
from ..objectives.shards import Alone, Peers, pack, unpack
from ..sampler.sampler import Sampler, check_device
from ..sampler.verdict import Verdict
from ..space import Space
from ..storage.files import remove
from ..target import System, Target
from ..version import __version__
from ..wellposed import require_well_posed
from . import artifact, checkpoint, compiler, fit
from . import config as configuration
from .config import TrainConfig
from .criterion import Evaluation
from .early import Early
from .estimate import estimate
from .folder import RunFolder
from .progress import Progress, Teller
from .start import coordinates_of, start_of
from .state import LOG_FORMAT, TrainState
from .stop import Stop, StopRequestedError
from .trainer import Trainer, weights_of

_log = logging.getLogger(__name__)

#: Seconds between checkpoints of a population in the making.
_KEEP_EVERY = 60.0

#: Seconds that a step takes from which on it may be abandoned, for the price of a copy of the state.
_SLOW = 0.25

#: Iterations from which on the time that is left is known well enough to speak of.
_KNOWN_FROM = 20

Status = Literal["completed", "out of time", "interrupted"]


@dataclass(frozen=True)
class TrainResult:
    """How a call to :func:`train` ended.

    ``status`` is ``completed``, ``out of time`` (``max_time`` reached) or ``interrupted`` (by
    ``signal``); in the last two the same call resumes. ``phase`` is the one that was reached, ``iteration``
    counts the generator's steps, of ``total``. ``verdict`` is that on the generator selected so far, None
    before the first evaluation.
    """

    status: Status
    run_dir: Path
    artifact: Path | None
    iteration: int
    total: int
    evaluations: int
    seconds: float
    drift: float
    skipped: int
    signal: int | None = None
    phase: str = "training"
    verdict: Verdict | None = None


def train(
    target: System,
    run_dir: Path | str,
    config: TrainConfig,
    *,
    max_time: float | None = None,
    device: str | torch.device | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    command: str = "",
    began: float | None = None,
    peers: Peers | None = None,
) -> TrainResult:
    """Train a one-step sampler of ``target`` in ``run_dir``, or resume the training found there.

    Parameters
    ----------
    max_time : seconds after which the run checkpoints and returns, in whatever phase it is
    device : torch device, the CPU where None
    on_progress : called about once a second, and at the beginning of each phase
    command : recorded in the artifact's card
    began : value of ``time.monotonic`` from which ``max_time`` counts, that of the call where None
    peers : the processes that call this together (:func:`molsampler.train.ranks.meet`), this one alone where
        None. Rank 0 reads and writes the run folder, judges, and tells ``on_progress``.

    Raises
    ------
    IllPosedError
        A fresh run is asked for of an energy from which nothing can be sampled; nothing is written.
    InputError
        ``run_dir`` holds a run of another configuration; the differing keys are named.
    RunLockedError
        Another process is training there.
    UnboundedEnergyError
        Chains or samples fall to where no energy with a norm goes; no artifact is left.
    DivergenceError
        Too many non-finite iterations in a row; the last good checkpoint is kept.
    ResourceError
        The device does not exist, or its memory is too small for the batch.
    RankError
        One of the processes is not of the same run, or fails.
    """
    peers = Alone() if peers is None else peers
    first = peers.rank == 0
    began = time.monotonic() if began is None else began
    teller = Teller(on_progress if first else None, began=began)
    teller.tell("starting")
    place = check_device("cpu" if device is None else device)
    deadline = None if max_time is None else began + max_time
    most = config.objective.most_ranks
    if peers.count > most:
        raise InputError(
            f"{peers.count} processes cannot train an objective of kind {config.objective.kind!r} with "
            f"{most} shard(s) together: start at most {most}, or give kind 'dikl-replay' more with "
            f"--set shards={peers.count}"
        )
    if peers.count > 1:
        peers.compare(_facts(target, config))
    with Stop(deadline) as stop:
        stopped = False
        if first and config.probe and not checkpoint.checkpoints(Path(run_dir) / "checkpoints"):
            teller.tell("probing the energy")
            try:
                with stop.abandonable():
                    require_well_posed(target, regardless="--set probe=false trains regardless")
            except StopRequestedError:
                stopped = True
        if peers.gather(torch.tensor([stopped]))[0]:
            return _before_anything(Path(run_dir), config, stop)
    if config.temperatures is not None:
        # Whether the system can be had there, in the unit that it has.
        target.at(config.temperatures.low)
        target.at(config.temperatures.high)
    coordinates = internal_coordinates(target) if config.coordinates == "internal" else None
    weights = None
    if config.start is not None:
        card, weights = start_of(config.start, target)
        coordinates = coordinates_of(card, coordinates, config.start)
    chart = chart_of(target, coordinates)
    _require_memory(config, chart.target)
    _require_networks(config, _problem(config, target, chart, place, peers))
    folder = RunFolder(run_dir)
    with (
        folder if first else nullcontext(),
        _no_artifact_of_an_unbounded_energy(folder),
        Stop(deadline) as stop,
    ):
        asked = config
        if first:
            config = folder.claim(asked, fitted=() if asked.within is None else fit.FITTED)
        config = _of_rank_0(peers, config)
        problem = _problem(config, target, chart, place, peers)
        run = _Run(folder, asked, config, target, chart, problem, command, stop, teller, weights)
        return run.run()


def _problem(
    config: TrainConfig, target: System, chart: Chart, device: torch.device, peers: Peers
) -> Problem:
    """What an objective is asked to do."""
    known = config.temperatures
    return Problem(
        target=chart.target,
        molecule=target.molecule if chart.internal is None else None,
        generator=config.what_to_train(),
        sampling=config.how_to_sample(),
        iterations=config.iterations,
        seed=config.seed,
        device=device,
        compile=config.compile and _worth_compiling(config, chart.target.space, device),
        temperatures=known,
        hurry=config.within is not None,
        at=None if known is None else _at(target, chart),
        peers=peers,
    )


def _worth_compiling(config: TrainConfig, space: Space, device: torch.device) -> bool:
    """Whether there is a compiler, and something that kernels do not do already."""
    bodies = (*config.generator.bodies, *config.objective.bodies)
    by_kernel = bool(bodies) and all(each.by_kernel(space) for each in bodies)
    return not (by_kernel and device.type == "cpu") and shutil.which("g++") is not None


def _facts(system: System, config: TrainConfig) -> dict[str, str]:
    """What processes that train together have to have in common."""
    record = json.dumps(system.record(), sort_keys=True).encode()
    return {
        "version of molsampler": __version__,
        "version of torch": torch.__version__,
        "definition of the system": f"{system.label} ({hashlib.sha256(record).hexdigest()[:12]})",
        "number of threads": str(torch.get_num_threads()),
        "compiler": "there" if shutil.which("g++") else "missing",
        "kernel of pairs": pair_layer.described(),
        **{key: repr(value) for key, value in configuration.leaves(config).items()},
    }


def _of_rank_0(peers: Peers, config: TrainConfig) -> TrainConfig:
    """What rank 0 made of a configuration that is to fit a time; that of all is the same otherwise."""
    if config.within is None or peers.count == 1:
        return config
    told = peers.tell(json.dumps(config.model_dump(mode="json")).encode())
    return configuration.validate(json.loads(told))


def _agreed(peers: Peers, stop: Stop, *flags: bool) -> list[bool]:
    """Whether any process has to end, and which flags any has set; all of them then end for one reason."""
    found = peers.gather(torch.tensor([stop.code, *flags]))
    code, *others = torch.stack(found).amax(0).tolist()
    stop.adopt(code)
    return [bool(code), *map(bool, others)]


def _at(system: System, chart: Chart) -> Callable[[Tensor], Target]:
    """The system at temperatures, row by row, in the coordinates of a chart."""

    def at(temperature: Tensor) -> Target:
        return chart.density(Tempered(system, system.temperature / temperature))

    return at


def _before_anything(run_dir: Path, config: TrainConfig, stop: Stop) -> TrainResult:
    """The result of a run that was stopped before anything was written."""
    return TrainResult(
        "interrupted" if stop.received else "out of time",
        run_dir,
        None,
        0,
        config.iterations,
        0,
        0.0,
        math.inf,
        0,
        stop.signal,
        "starting",
    )


@dataclass
class _Run:
    """A call to :func:`train`; ``config`` is what became of the one that was ``asked`` for."""

    folder: RunFolder
    asked: TrainConfig
    config: TrainConfig
    system: System
    chart: Chart
    problem: Problem
    command: str
    stop: Stop
    teller: Teller
    weights: dict[str, Tensor] | None

    @property
    def first(self) -> bool:
        """Whether this process is the one that reads, writes and judges."""
        return self.problem.peers.rank == 0

    def run(self) -> TrainResult:
        """Prepare and train, or go on with either, to the end or until stopped."""
        self.objective = self.config.objective.build(self.problem)
        self.prepared: State = {}
        self.preparing = self.earlier = 0.0
        self.fitting = 0
        self.warned = self.config.within is not None
        try:
            with _enough_memory(self.config):
                state = self._opened()
        except StopRequestedError:
            return self._stopped_early()
        self.trainer = self._trainer(state)
        self.early = Early(self.stop.deadline)
        status = self._train()
        if status == "completed" and self.first and not self._exported():
            self._export()
        return self._result(status)

    # Before the first step

    def _opened(self) -> TrainState:
        """The state to continue from: that of the newest intact checkpoint, or a fresh one."""
        found = self._found()
        if found is not None:
            tensors, counters, path = found
            # The state of a random stream stays on the host.
            tensors = {
                key: value if key.endswith("rng") else value.to(self.problem.device)
                for key, value in tensors.items()
            }
            _log.info("resuming from %s", path)
            kept = _unflattened(tensors, counters)
            if kept is None:
                return self._resumed(TrainState.unflatten(tensors, counters))
            self.prepared, self.preparing = kept
            self.earlier = self.preparing
        if self.first:
            self.folder.rewind_metrics(0)
        fresh = self._fresh()
        if self.weights is not None:
            fresh = self.objective.with_generator(fresh, self.weights)
        state = TrainState(fresh, weights_of(self.objective.generator(fresh)))
        state.seconds = self.preparing
        if self.config.within is not None:
            state = self._fitted(state, self.config.within)
        self._checkpoint(state)
        return state

    def _found(self) -> tuple[dict[str, Tensor], str, Path] | None:
        """The newest intact checkpoint, which rank 0 reads and tells."""
        peers = self.problem.peers
        found = checkpoint.load_latest(self.folder.checkpoints) if self.first else None
        if peers.count == 1:
            return found
        said = b"" if found is None else pack({**found[0], "counters": found[1]})
        if not (told := peers.tell(said)):
            return None
        tensors = unpack(told)
        return (
            tensors,
            tensors.pop("counters"),
            self.folder.checkpoints if found is None else found[2],
        )

    def _resumed(self, state: TrainState) -> TrainState:
        self.objective.generator(state.objective)
        if not self.first:
            return state
        if state.log_format < LOG_FORMAT:
            aside = self.folder.set_metrics_aside("before")
            _log.warning("the log counted warm-up and training together; it is kept as %s", aside)
        elif self.folder.rewind_metrics(state.log_bytes, state.log_sha256):
            return state
        state.log_bytes, state.log_sha256, state.log_format = 0, "", LOG_FORMAT
        return state

    def _fresh(self) -> State:
        preparation = self.objective.preparation
        if preparation is not None:
            prepared = self._finished(preparation)
            alone = self.problem.peers.count == 1
            try:
                with self.stop.abandonable() if alone else nullcontext():
                    return self.objective.start(prepared)
            except StopRequestedError:
                self._keep(preparation)
                raise
        self.stop.check()

        def report(phase: str, share: float) -> None:
            self.stop.check()
            self.teller.tell(phase, int(100 * share), 100)

        with self.stop.abandonable():
            return self.objective.init(report=report)

    def _finished(self, preparation: Preparation) -> State:
        """The last state of a preparation; what is done is kept if it is stopped in between."""
        kept = time.monotonic()
        if self.prepared:
            self.teller.evaluations = int(self.prepared["energy_evaluations"])
        measured, fewer, fresh_run = _Measured(self.teller.evaluations), 0, not self.prepared
        try:
            while True:
                at = preparation.progress(self.prepared) if self.prepared else None
                if at is not None:
                    self.teller.tell(at.phase, at.done, at.total, detail=at.detail)
                working = at is not None or not self.prepared
                late = self.first and time.monotonic() - kept > _KEEP_EVERY
                stopped, anyone, late, crowded = _agreed(
                    self.problem.peers, self.stop, working, late, fewer > 0
                )
                if not anyone:
                    return self.prepared
                if stopped:
                    raise StopRequestedError
                if crowded:
                    preparation = self._with_chains(fewer) or preparation
                    measured, fewer = _Measured(0), 0
                    continue
                if late:
                    self._keep(preparation)
                    kept = time.monotonic()
                if not working:
                    continue
                began = time.perf_counter()
                try:
                    with self.stop.abandonable():
                        fresh = (
                            preparation.step(self.prepared) if self.prepared else preparation.init()
                        )
                except StopRequestedError:
                    # All processes end together, at the next look.
                    continue
                spent = time.perf_counter() - began
                evaluations = int(fresh["energy_evaluations"])
                self.prepared = fresh
                if measured.enough(spent, evaluations):
                    expected = preparation.expected_evaluations(fresh)
                    if self.first and fresh_run:
                        seconds = expected / measured.rate
                        fewer = fit.chains_that_fit(self.config, seconds=seconds) or 0
                    if not fewer:
                        self._say_estimate(measured.rate, expected)
                self.preparing += spent
                self.teller.worked("annealing" if at is None else at.phase, spent, evaluations)
        except StopRequestedError:
            self._keep(preparation)
            raise

    def _keep(self, preparation: Preparation) -> None:
        """Checkpoint the preparation, if all of it has begun."""
        whole = preparation.whole(self.prepared)
        if self.first and whole:
            checkpoint.save(self.folder.checkpoints, 0, *_flattened(whole, self.preparing))

    def _adopt(self, config: TrainConfig) -> None:
        """Go on with another configuration, from the beginning."""
        self.config = config
        if self.first:
            self.folder.record(config)
        self.problem = dataclasses.replace(self.problem, iterations=config.iterations)
        self.objective = config.objective.build(self.problem)

    def _with_chains(self, count: int) -> Preparation | None:
        """Begin again with the number of chains that rank 0 names."""
        count = int(self.problem.peers.gather(torch.tensor([count]))[0])
        objective = self.config.objective.with_chains(count)
        _log.info(
            "a population of %s chains, of %s, fits the time",
            f"{objective.chains:,}",
            f"{self.config.objective.chains:,}",
        )
        self.fitting += int(self.prepared["energy_evaluations"])
        self.prepared = {}
        if self.first:
            remove(self.folder.checkpoints)
        self._adopt(self.config.model_copy(update={"objective": objective}))
        return self.objective.preparation

    def _fitted(self, state: TrainState, within: float) -> TrainState:
        """The state to train from, its schedule cut to what fits ``within`` seconds."""
        copy = state.flatten()
        self.teller.tell("training", detail="timing a step of each kind")
        alone = self.problem.peers.count == 1
        try:
            # Processes that work together finish their steps, as in training.
            with self._abandonable(copy if alone else None):
                pace = self._pace(copy)
        except StopRequestedError:
            if self.objective.preparation is not None:
                self._keep(self.objective.preparation)
            raise
        except Exception as error:
            self._without_compiler(error, possible=alone)
            return self._fitted(TrainState.unflatten(*copy), within)
        config = self.asked
        if self.config.objective.chains is not None:
            objective = config.objective.with_chains(self.config.objective.chains)
            config = config.model_copy(update={"objective": objective})
        left = within - self.earlier - (time.monotonic() - self.teller.began)
        config = fit.schedule_that_fits(
            config, pace, warmup=self.asked.objective.build(self.problem).warmup, left=left
        )
        self._adopt(_of_rank_0(self.problem.peers, config))
        _log.info(
            "%s of %s iterations fit the time, at %.3g s each",
            f"{self.config.iterations:,}",
            f"{self.asked.iterations:,}",
            pace.training,
        )
        state = TrainState.unflatten(*copy)
        state.judging_evaluations += self.fitting
        return state

    def _pace(self, copy: tuple[dict[str, Tensor], str]) -> fit.Pace:
        """How long steps and an evaluation take, on copies of a state; their energies are counted."""
        trainer = self._trainer(TrainState.unflatten(*copy))
        whole = self.objective.whole(trainer.state.objective)
        began = time.perf_counter()
        if self.first:
            trainer.evaluate(whole)
        judging = time.perf_counter() - began
        self.fitting += trainer.state.judging_evaluations

        def timed(iteration: int) -> float:
            state = TrainState.unflatten(*copy)
            spent, evaluations = fit.seconds_of_step(self.objective, state.objective, iteration)
            self.fitting += evaluations
            return spent

        warmup = self.objective.warmup
        warming = timed(0) if warmup else 0.0
        return fit.Pace(warming, timed(warmup + self.config.iterations // 2), judging)

    def _without_compiler(self, error: Exception, *, possible: bool) -> None:
        """Build the objective anew, uncompiled, where that is what failed.

        Raises
        ------
        ResourceError
            The state from before the failure is not to be had.
        """
        if not (self.problem.compile and compiler.failed(error)):
            raise error
        if not possible:
            raise ResourceError(
                f"the networks could not be compiled ({type(error).__name__}); train with --set "
                "compile=false in a new run folder"
            ) from error
        compiler.report(error, self.folder.compiler_log)
        self.problem = dataclasses.replace(self.problem, compile=False)
        self.objective = self.config.objective.build(self.problem)

    def _say_estimate(self, rate: float, preparing: int) -> None:
        drawing = self._energies_a_sample()
        said = estimate(
            self.config, self.objective, rate=rate, preparing=preparing, drawing=drawing
        )
        _log.info("%s", said)
        self.teller.evaluating = self._energies_of_judging(drawing) / rate

    def _energies_of_judging(self, drawing: int | None = None) -> int:
        """Of an evaluation, where a sample takes so many."""
        drawing = self._energies_a_sample() if drawing is None else drawing
        return self.config.evaluate_samples * (self.config.evaluate_steps + 1 + drawing)

    def _energies_a_sample(self) -> int:
        """Of the generator as it will be sampled."""
        kind, problem = self.problem.generator, self.problem
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            built = kind.build(
                problem.target.space,
                molecule=problem.molecule,
                sampling=kind.sampling(self.config.sampling),
            )
        return built.evaluations_per_sample

    # Steps

    def _trainer(self, state: TrainState, config: TrainConfig | None = None) -> Trainer:
        return Trainer(
            config or self.config,
            self.chart.target,
            self.objective,
            state,
            device=self.problem.device,
            at=self.problem.at,
        )

    def _train(self) -> Status:
        """Step to the end or until stopped; what is left of the state is in the trainer."""
        self.teller.evaluations = self.trainer.state.evaluations
        met: set[str] = set()
        spent = 0.0
        alone = self.problem.peers.count == 1
        while not self.trainer.finished:
            if alone:
                self._export_in_time(spent)
            if _agreed(self.problem.peers, self.stop)[0]:
                return self._interrupted()
            trainer = self.trainer
            phase = "warm-up" if trainer.warmup < self.objective.warmup else "training"
            compiles = self.problem.compile and phase not in met
            self._tell(phase, now=compiles, detail="compiling" if compiles else "")
            met.add(phase)
            copy = None
            # Processes that work together finish their steps: none can give one up by itself.
            if alone and (compiles or trainer.evaluation_next or spent > _SLOW):
                copy = trainer.state.flatten()
            began = time.perf_counter()
            try:
                with _enough_memory(self.config), self._abandonable(copy):
                    values = trainer.step()
                    spent = time.perf_counter() - began
                    self.teller.worked(phase, spent, trainer.state.evaluations, pause=compiles)
                    judged = self._judged()
                    if judged is not None:
                        self.early.trainer = None
            except StopRequestedError:
                self._back_to(copy)
                return self._interrupted()
            except Exception as error:
                if compiler.failed(error) and copy is not None and self.stop.requested():
                    # Ctrl-C reaches the compiler, too.
                    self._back_to(copy)
                    return self._interrupted()
                self._without_compiler(error, possible=copy is not None)
                self._back_to(copy)
                continue
            self._record(values, judged)
            # The artifact comes first: a run that is killed in between repeats the iteration.
            if judged is not None:
                self._export()
            if trainer.state.steps % self.config.checkpoint_every == 0 or trainer.finished:
                self._checkpoint(trainer.state)
            self._tell(phase, now=trainer.finished)
        return "completed"

    def _abandonable(self, copy: object) -> AbstractContextManager[None]:
        return nullcontext() if copy is None else self.stop.abandonable()

    def _judged(self) -> Evaluation | None:
        """The evaluation of the generator where it is time for one."""
        trainer, peers = self.trainer, self.problem.peers
        if not trainer.evaluation_due:
            return None
        whole = self.objective.whole(trainer.state.objective)
        result = None
        if self.first:
            self.teller.tell("evaluation", now=(self.teller.evaluating or 0.0) > 2.0)
            began = time.perf_counter()

            def drawn(done: int, total: int, rate: float) -> None:
                self.teller.tell("evaluation", done, total, rate=rate)

            result = trainer.evaluate(whole, on_drawn=drawn)
            self.teller.evaluated(time.perf_counter() - began, trainer.state.evaluations)
        reached = peers.gather(torch.tensor([trainer.state.reached]))
        trainer.state.reached = bool(reached[0])
        return result

    def _back_to(self, copy: tuple[dict[str, Tensor], str] | None) -> None:
        """Forget the step that was given up."""
        if copy is not None:
            self.trainer = self._trainer(TrainState.unflatten(*copy))

    def _export_in_time(self, step: float) -> None:
        """Write what there is as an artifact where the time limit comes before the first evaluation; a step
        takes ``step`` seconds.

        A copy of the state is judged: the run that goes on is the one that was never judged here, nor are
        the energies counted in it that this took.
        """
        trainer = self.trainer
        if trainer.state.verdict or not self.early.due(
            trainer.iteration, step=step, expected=self._seconds_of_judging()
        ):
            return
        self._checkpoint(trainer.state)
        self.teller.tell("evaluation", now=True)
        # Reaching a goal is the end of a run, which this is not.
        config = self.config.model_copy(update={"until_ess": None})
        copy = self._trainer(TrainState.unflatten(*trainer.state.flatten()), config)
        try:
            with _enough_memory(self.config), self.stop.abandonable():
                self.early.judge(copy)
            self._export()
        except StopRequestedError:
            if not self.stop.received:
                _log.info("the time was too short to judge what there is after these iterations")
        except UnboundedEnergyError:
            raise
        except MolsamplerError as error:
            _log.warning("what there is could not be judged before the time limit: %s", error)

    def _seconds_of_judging(self) -> float | None:
        """What an evaluation is expected to take, by the last one or the rate of energies."""
        rate = self.teller.energies.rate
        if self.teller.evaluating is not None or not rate:
            return self.teller.evaluating
        return self._energies_of_judging() / rate

    def _interrupted(self) -> Status:
        self._checkpoint(self.trainer.state)
        return "interrupted" if self.stop.received else "out of time"

    def _tell(self, phase: str, *, now: bool = False, detail: str = "") -> None:
        trainer = self.trainer
        warming = phase == "warm-up"
        self.teller.tell(
            phase,
            trainer.warmup if warming else trainer.iteration,
            self.objective.warmup if warming else self.config.iterations,
            evaluations_left=0 if warming else trainer.evaluations_left,
            last=not warming,
            now=now,
            detail=detail,
            metrics=trainer.state.recent,
        )
        if trainer.iteration >= _KNOWN_FROM and not self.warned:
            self._warn_of_the_limit(self.teller.left_of_run)

    def _warn_of_the_limit(self, left: float | None) -> None:
        """Say once that the time limit comes before the end of the schedule, where it does."""
        deadline, trainer = self.stop.deadline, self.trainer
        if left is None or deadline is None:
            return
        self.warned = True
        share = (deadline - time.monotonic()) / left
        if share < 1:
            whole = self.config.iterations
            end = trainer.iteration + share * (whole - trainer.iteration)
            _log.info(
                "--max-time ends at about iteration %s of %s, from where the same command goes on; "
                "--within in a new run folder has a schedule that ends in time",
                f"{end:,.0f}",
                f"{whole:,}",
            )

    # Files

    def _record(self, values: dict[str, float], judged: Evaluation | None) -> None:
        trainer = self.trainer
        state = trainer.state
        if not self.first:
            return
        if judged is not None:
            known = {
                "discrepancy": judged.discrepancy,
                "discrepancy_error": judged.discrepancy_error,
                "ess": judged.ess,
                "ess_error": judged.ess_error,
                "ess_trimmed": judged.ess_trimmed,
                "log_z": artifact.log_z(self.chart, judged.log_z),
                "log_z_error": judged.log_z_error,
            }
            values = {
                **values,
                **{key: value for key, value in known.items() if value is not None},
                "drift": judged.drift,
                "drift_error": judged.drift_error,
                "energy_tvd": judged.energy_tvd,
                "mean_energy": judged.mean_energy,
                "median_energy": judged.median_energy,
                "refined_median_energy": judged.refined_median_energy,
                "acceptance": judged.acceptance,
                "broken": judged.broken,
            }
        if judged is not None or state.steps % self.config.log_every == 0:
            state.recent = {**state.recent, **values}
            where = {} if trainer.iteration else {"warmup": trainer.warmup}
            state.log_bytes, state.log_sha256 = self.folder.log(
                {
                    "iteration": trainer.iteration,
                    **where,
                    **values,
                    "energy_evaluations": state.evaluations,
                    "skipped": state.skipped,
                }
            )

    def _checkpoint(self, state: TrainState) -> None:
        if state.bad_in_a_row:
            # A checkpoint is a state worth going back to; the last good one stays the newest.
            return
        whole = self.objective.whole(state.objective)
        if self.first:
            self.folder.sync_metrics()
            kept = dataclasses.replace(state, objective=whole)
            checkpoint.save(self.folder.checkpoints, state.steps, *kept.flatten())

    def _export(self) -> None:
        """Write the generator selected so far as an artifact."""
        artifact.save(
            self.folder.artifact,
            self.early.trainer or self.trainer,
            system=self.system,
            chart=self.chart,
            command=self.command,
            ranks=self.problem.peers.count,
        )

    def _exported(self) -> bool:
        """Whether the run's artifact is there and whole."""
        if not self.folder.artifact.exists():
            return False
        try:
            Sampler.load(self.folder.artifact, system=self.system)
        except MolsamplerError as error:
            _log.warning("the artifact is written again: %s", error)
            return False
        return True

    # Results

    def _stopped_early(self) -> TrainResult:
        """The result of a run that was stopped before its first step."""
        made = self.objective.preparation
        at = None if made is None or not self.prepared else made.progress(self.prepared)
        return TrainResult(
            "interrupted" if self.stop.received else "out of time",
            self.folder.path,
            None,
            0,
            self.config.iterations,
            int(self.prepared.get("energy_evaluations", 0)),
            self.preparing,
            float("inf"),
            0,
            self.stop.signal,
            "starting" if at is None else at.phase,
        )

    def _result(self, status: Status) -> TrainResult:
        trainer = self.trainer
        state = trainer.state
        return TrainResult(
            status,
            self.folder.path,
            self.folder.artifact if self.folder.artifact.exists() else None,
            trainer.iteration,
            self.config.iterations,
            state.evaluations,
            state.seconds,
            state.best_drift,
            state.skipped,
            self.stop.signal if status == "interrupted" else None,
            "training" if trainer.iteration or not self.objective.warmup else "warm-up",
            self._verdict(),
        )

    def _verdict(self) -> Verdict | None:
        """That on what the artifact holds: of an earlier command, if this one has judged nothing."""
        found = artifact.verdict(self.early.trainer or self.trainer)
        if found is not None or not self.first or not self.folder.artifact.exists():
            return found
        try:
            return Sampler.load(self.folder.artifact, system=self.system).card.verdict
        except MolsamplerError:
            return None


@dataclass
class _Measured:
    """The rate of energy evaluations over the first few pieces of work."""

    begun: int
    pieces: int = 0
    seconds: float = 0.0
    rate: float = math.nan

    def enough(self, seconds: float, evaluations: int) -> bool:
        """Take in one more piece; whether the rate is now known, said once."""
        if math.isfinite(self.rate):
            return False
        self.pieces += 1
        self.seconds += seconds
        if self.pieces < 3 and self.seconds < 1.0:
            return False
        self.rate = (evaluations - self.begun) / max(self.seconds, 1e-9)
        return True


_PREPARED = "prepared/"


def _flattened(prepared: State, seconds: float) -> tuple[dict[str, Tensor], str]:
    """A state of preparation as a checkpoint holds it."""
    tensors, numbers = {}, {}
    for key, value in prepared.items():
        if isinstance(value, Tensor):
            # Clones: safetensors refuses tensors that share memory.
            tensors[f"{_PREPARED}{key}"] = value.detach().clone().contiguous()
        else:
            numbers[key] = value
    return tensors, json.dumps({"preparation": numbers, "seconds": seconds})


def _unflattened(tensors: dict[str, Tensor], counters: str) -> tuple[State, float] | None:
    """The state of preparation in a checkpoint and the seconds spent on it, None if it holds another.

    Raises
    ------
    FileFormatError
        It holds a damaged one.
    """
    try:
        values = json.loads(counters)
        if "preparation" not in values:
            return None
        state: State = dict(values["preparation"])
        state.update({key.removeprefix(_PREPARED): value for key, value in tensors.items()})
        return state, float(values["seconds"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileFormatError(f"the counters of the checkpoint are unusable: {error}") from None


def _require_memory(config: TrainConfig, target: Target) -> None:
    """Refuse what could not even hold its positions, let alone the networks' intermediate values."""
    rows = config.objective.rows
    particles, dimension = target.space.shape
    memory.require(
        # Positions and scores in float32, before and after a step.
        16 * particles * dimension * max(rows, config.evaluate_samples),
        purpose=f"training on {rows:,} configurations of {particles} x {dimension}",
        remedy="lower batch_size, target_score.size or target_score.particles",
    )


def _require_networks(config: TrainConfig, problem: Problem) -> None:
    """Refuse what cannot be built for this space before a folder is written, in which only the same
    configuration could go on."""
    space = problem.target.space
    config.objective.build(problem).require()
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        problem.generator.build(space, molecule=problem.molecule, sampling=problem.sampling)


@contextmanager
def _no_artifact_of_an_unbounded_energy(folder: RunFolder) -> Iterator[None]:
    """What was selected before the fall was noticed is a sampler of nothing."""
    try:
        yield
    except UnboundedEnergyError:
        remove(folder.artifact)
        raise


@contextmanager
def _enough_memory(config: TrainConfig) -> Iterator[None]:
    """Say what to change where an allocation fails."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch has no class of its own for a failure on the CPU.
        lacking = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not lacking and ("allocate memory" not in str(error) or compiler.failed(error)):
            raise
        raise ResourceError(
            f"the device has too little memory for batch_size={config.objective.batch_size}; "
            f"try --set batch_size={max(config.objective.batch_size // 2, 1)} in a new run folder "
            "(the checkpoint is intact)"
        ) from None
