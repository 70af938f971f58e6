"""Run or resume a training in a folder: the function behind ``molsampler train``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import InputError, UnboundedEnergyError
from ..molecule.chart import chart_of
from ..molecule.z_matrix import internal_coordinates
from ..objectives.shards import Alone, Peers
from ..sampler.sampler import check_device
from ..sampler.verdict import Verdict
from ..storage.files import remove
from ..target import System
from ..wellposed import require_well_posed
from . import checkpoint, fit
from .config import TrainConfig
from .folder import RunFolder
from .job import Job, of_rank_0
from .loop import Loop, Status
from .opening import Opening
from .preparing import Preparing
from .problem import enough_memory, facts, problem_of, require_possible
from .progress import Progress, Teller
from .start import coordinates_of, start_of
from .stop import Stop, StopRequestedError


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
        kind = config.objective.kind
        raise InputError(
            f"the objective {kind!r} trains on one process: leave out torchrun"
            if most == 1 and "shards" not in type(config.objective).model_fields
            else f"{peers.count} processes cannot share {most} {'shard' if most == 1 else 'shards'}: start "
            f"at most {most}, or give the training more with --set shards={peers.count}"
        )
    if peers.count > 1:
        peers.compare(facts(target, config))
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
    require_possible(config, target, chart, place, peers)
    folder = RunFolder(run_dir)
    with (
        folder if first else nullcontext(),
        _no_artifact_of_an_unbounded_energy(folder),
        Stop(deadline) as stop,
    ):
        asked = config
        if first:
            config = folder.claim(asked, fitted=() if asked.within is None else fit.FITTED)
        config = of_rank_0(peers, config)
        problem = problem_of(config, target, chart, place, peers)
        job = Job(folder, asked, config, target, chart, problem, command, stop, teller)
        preparing = Preparing(job)
        try:
            with enough_memory(job.config):
                state = Opening(job, preparing, weights).state()
        except StopRequestedError:
            return _before_the_first_step(preparing)
        loop = Loop(job, state)
        return _result(loop.run(), loop)


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


def _before_the_first_step(preparing: Preparing) -> TrainResult:
    """The result of a run that was stopped while it was prepared."""
    job, stage = preparing.job, preparing.stage
    return TrainResult(
        "interrupted" if job.stop.received else "out of time",
        job.folder.path,
        None,
        0,
        job.config.iterations,
        preparing.evaluations,
        preparing.seconds,
        math.inf,
        0,
        job.stop.signal,
        "starting" if stage is None else stage.phase,
    )


def _result(status: Status, loop: Loop) -> TrainResult:
    job, trainer, state = loop.job, loop.trainer, loop.trainer.state
    return TrainResult(
        status,
        job.folder.path,
        job.folder.artifact if job.folder.artifact.exists() else None,
        trainer.iteration,
        job.config.iterations,
        state.evaluations,
        state.seconds,
        state.best_drift,
        state.skipped,
        job.stop.signal if status == "interrupted" else None,
        loop.phase,
        loop.verdict(),
    )


@contextmanager
def _no_artifact_of_an_unbounded_energy(folder: RunFolder) -> Iterator[None]:
    """What was selected before the fall was noticed is a sampler of nothing."""
    try:
        yield
    except UnboundedEnergyError:
        remove(folder.artifact)
        raise
