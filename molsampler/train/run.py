"""Run or resume a training in a folder: the function behind ``molsampler train``."""

from __future__ import annotations

import logging
import math
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .. import memory
from ..errors import MolsamplerError, ResourceError, UnboundedEnergyError
from ..molecule.chart import Chart, chart_of
from ..molecule.chirality import right_handed
from ..molecule.z_matrix import internal_coordinates
from ..nn.generators import Generator
from ..objectives import Objective, Problem
from ..sampler import store
from ..sampler.card import Cost, Training
from ..sampler.sampler import Sampler, check_device
from ..storage.files import remove
from ..target import System, Target
from ..wellposed import require_well_posed
from . import checkpoint
from .config import TrainConfig
from .folder import RunFolder
from .state import TrainState
from .trainer import Trainer, weights_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What a progress display needs.

    ``stage`` is ``annealing``, ``equilibrating`` (``iteration`` then counts percent), ``warm-up`` or
    ``training``.
    """

    stage: str
    iteration: int
    total: int
    seconds: float
    evaluations: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class TrainResult:
    """How a call to :func:`train` ended.

    ``status`` is ``completed``, ``out of time`` (``max_time`` reached) or ``interrupted`` (by
    ``signal``); in the last two the same call resumes.
    """

    status: Literal["completed", "out of time", "interrupted"]
    run_dir: Path
    artifact: Path | None
    iteration: int
    total: int
    evaluations: int
    seconds: float
    drift: float
    skipped: int
    signal: int | None = None


class StopRequestedError(Exception):
    """Raised between transitions of the equilibration when the run has to end."""


def train(
    target: System,
    run_dir: Path | str,
    config: TrainConfig,
    *,
    max_time: float | None = None,
    device: str | torch.device | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    command: str = "",
) -> TrainResult:
    """Train a one-step sampler of ``target`` in ``run_dir``, or resume the training found there.

    Parameters
    ----------
    max_time : seconds after which the run checkpoints and returns
    device : torch device, the CPU where None
    on_progress : called about once a second
    command : recorded in the artifact's card

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
    """
    place = check_device("cpu" if device is None else device)
    if config.probe and not checkpoint.checkpoints(Path(run_dir) / "checkpoints"):
        require_well_posed(target, regardless="--set probe=false trains regardless")
    chart = chart_of(
        target, internal_coordinates(target) if config.coordinates == "internal" else None
    )
    _require_memory(config, chart.target)
    began = time.monotonic()
    say = _throttled(on_progress)
    with (
        RunFolder(run_dir) as folder,
        _no_artifact_of_an_unbounded_energy(folder),
        _signals() as received,
    ):
        folder.claim(config)

        def out_of_time() -> bool:
            return max_time is not None and time.monotonic() - began > max_time

        def report(stage: str, share: float) -> None:
            if received or out_of_time():
                raise StopRequestedError
            say(Progress(stage, int(100 * share), 100, 0.0, 0, {}))

        objective = config.objective.build(
            Problem(
                target=chart.target,
                molecule=target.molecule if chart.internal is None else None,
                generator=config.generator,
                sampling=config.how_to_sample(),
                iterations=config.iterations,
                seed=config.seed,
                device=place,
                compile=config.compile,
            )
        )
        try:
            with _enough_memory(config):
                state = _open(folder, objective, place, report)
        except StopRequestedError:
            # Equilibration takes minutes at most and is deterministic: it starts again on resume.
            return TrainResult(
                "interrupted" if received else "out of time",
                folder.path,
                None,
                0,
                config.iterations,
                0,
                0.0,
                float("inf"),
                0,
                received[0] if received else None,
            )
        trainer = Trainer(config, chart.target, objective, state, device=place)
        run = _Run(folder, config, target, chart, trainer, command)
        status: Literal["completed", "out of time", "interrupted"] = "completed"
        while not trainer.finished:
            with _enough_memory(config):
                values = trainer.step()
                _record(folder, trainer, values)
            stopping = bool(received) or out_of_time()
            # The artifact comes first: a run that is killed in between repeats the iteration.
            if trainer.evaluation_due:
                run.export()
            if stopping or _due(state.iteration, config.checkpoint_every, trainer):
                _checkpoint(folder, state)
            stage = "training" if state.iteration > objective.warmup else "warm-up"
            say(
                Progress(
                    stage,
                    state.iteration,
                    trainer.total,
                    state.seconds,
                    state.evaluations,
                    state.recent,
                )
            )
            if stopping and not trainer.finished:
                status = "interrupted" if received else "out of time"
                break
        if status == "completed" and not run.exported():
            run.export()
        return TrainResult(
            status,
            folder.path,
            folder.artifact if folder.artifact.exists() else None,
            state.iteration,
            trainer.total,
            state.evaluations,
            state.seconds,
            state.best_drift,
            state.skipped,
            received[0] if status == "interrupted" else None,
        )


def _open(
    folder: RunFolder,
    objective: Objective,
    device: torch.device,
    report: Callable[[str, float], None],
) -> TrainState:
    """The state to continue from: the newest intact checkpoint, or a fresh one."""
    found = checkpoint.load_latest(folder.checkpoints)
    if found is None:
        folder.rewind_metrics(0)
        fresh = objective.init(report=report)
        state = TrainState(fresh, weights_of(objective.generator(fresh)))
        _checkpoint(folder, state)
        return state
    tensors, counters, path = found
    # The state of a random stream stays on the host.
    tensors = {
        key: value if key.endswith("rng") else value.to(device) for key, value in tensors.items()
    }
    state = TrainState.unflatten(tensors, counters)
    objective.generator(state.objective)
    if not folder.rewind_metrics(state.log_bytes, state.log_sha256):
        state.log_bytes, state.log_sha256 = 0, ""
    _log.info("resuming from %s", path)
    return state


def _due(iteration: int, every: int, trainer: Trainer) -> bool:
    return iteration % every == 0 or trainer.finished


def _record(folder: RunFolder, trainer: Trainer, values: dict[str, float]) -> None:
    """Evaluate where it is time, and log."""
    state, config = trainer.state, trainer.config
    if trainer.evaluation_due:
        result = trainer.evaluate()
        far = {"discrepancy": result.discrepancy, "discrepancy_error": result.discrepancy_error}
        values = {
            **values,
            **{key: value for key, value in far.items() if value is not None},
            "drift": result.drift,
            "drift_error": result.drift_error,
            "energy_tvd": result.energy_tvd,
            "mean_energy": result.mean_energy,
            "median_energy": result.median_energy,
            "refined_median_energy": result.refined_median_energy,
            "acceptance": result.acceptance,
        }
    if trainer.evaluation_due or state.iteration % config.log_every == 0:
        state.recent = {**state.recent, **values}
        state.log_bytes, state.log_sha256 = folder.log(
            {
                "iteration": state.iteration,
                **values,
                "energy_evaluations": state.evaluations,
                "skipped": state.skipped,
            }
        )


def _checkpoint(folder: RunFolder, state: TrainState) -> None:
    if state.bad_in_a_row:
        # A checkpoint is a state worth going back to; the last good one stays the newest.
        return
    folder.sync_metrics()
    checkpoint.save(folder.checkpoints, state.iteration, *state.flatten())


@dataclass(frozen=True)
class _Run:
    """What writing the artifact of a run needs."""

    folder: RunFolder
    config: TrainConfig
    system: System
    chart: Chart
    trainer: Trainer
    command: str

    def export(self) -> None:
        """Write the generator selected so far as an artifact."""
        config, state = self.config, self.trainer.state
        generator = self.trainer.selected()
        store.save(
            self.folder.artifact,
            generator,
            system=self.system,
            coordinates=self.chart.internal,
            training=Training(
                config=config.model_dump(mode="json"),
                command=self.command or f"molsampler train {config.system} RUN_DIR",
                seed=config.seed,
                cost=Cost(
                    energy_evaluations=state.evaluations,
                    seconds=round(state.seconds, 1),
                    iterations=state.iteration,
                    machine=f"{platform.machine()}, {torch.get_num_threads()} thread(s), "
                    f"{self.trainer.device.type}",
                ),
            ),
            quality=[
                *self._discrepancy(),
                {
                    "metric": "refinement drift (energy-W2, kT)",
                    "value": state.best_drift,
                    "n": config.evaluate_samples,
                    "steps": config.evaluate_steps,
                    "iteration": state.best_iteration,
                },
                *self._handedness(generator),
            ],
            overwrite=True,
        )

    def exported(self) -> bool:
        """Whether the run's artifact is there and whole."""
        if not self.folder.artifact.exists():
            return False
        try:
            Sampler.load(self.folder.artifact, system=self.system)
        except MolsamplerError as error:
            _log.warning("the artifact is written again: %s", error)
            return False
        return True

    def _discrepancy(self) -> list[dict[str, Any]]:
        """Distance of the selected generator's samples to the population, where there is one."""
        config, state = self.config, self.trainer.state
        if not math.isfinite(state.best_discrepancy):
            return []
        return [
            {
                "metric": "discrepancy from the replay (standard deviations)",
                "value": state.best_discrepancy,
                "n": config.evaluate_samples,
                "iteration": state.best_iteration,
                "latent calibration": state.calibration,
            }
        ]

    def _handedness(self, generator: Generator) -> list[dict[str, Any]]:
        """Share of wrong-handed molecules that the selected generator makes, before they are inverted."""
        molecule = self.system.molecule if self.chart.internal is None else None
        if molecule is None or not molecule.chiral_centres or not generator.mirror_symmetric:
            return []
        rng = torch.Generator(device=self.trainer.device).manual_seed(self.config.seed)
        # The bare target: counted evaluations are those that a resumed run repeats to the last one.
        with torch.no_grad():
            x = generator.draw(self.config.evaluate_samples, self.system, generator=rng).x
        found = right_handed(x, molecule.chiral_centres)
        shares = [float((wrong > 0).double().mean()) for wrong in found[1:]]
        return [
            {
                "metric": "share of molecules with a wrong-handed centre, before inversion",
                "value": shares[0],
                "after inversion": shares[1],
                "n": self.config.evaluate_samples,
            }
        ]


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
        if not lacking and "allocate memory" not in str(error):
            raise
        raise ResourceError(
            f"the device has too little memory for batch_size={config.objective.batch_size}; "
            f"try --set batch_size={max(config.objective.batch_size // 2, 1)} in a new run folder "
            "(the checkpoint is intact)"
        ) from None


def _throttled(on_progress: Callable[[Progress], None] | None) -> Callable[[Progress], None]:
    last = 0.0

    def say(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if on_progress is not None and (now - last > 1.0 or progress.iteration == progress.total):
            last = now
            on_progress(progress)

    return say


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; restores the handlers on leaving."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: object) -> None:
        received.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
