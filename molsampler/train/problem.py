"""What a training asks of its objective, and what has to be so before anything is written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from .. import memory
from ..errors import ResourceError
from ..mcmc.tempering import Tempered
from ..molecule.chart import Chart
from ..nn import pair_layer
from ..objectives import Problem
from ..objectives.shards import Peers
from ..space import Space
from ..target import System, Target
from ..version import __version__
from . import compiler
from . import config as configuration
from .config import TrainConfig


def problem_of(
    config: TrainConfig, system: System, chart: Chart, device: torch.device, peers: Peers
) -> Problem:
    """What an objective is asked to do."""
    known = config.temperatures
    return Problem(
        target=chart.target,
        molecule=system.molecule if chart.internal is None else None,
        generator=config.what_to_train(),
        sampling=config.how_to_sample(),
        iterations=config.iterations,
        seed=config.seed,
        device=device,
        compile=config.compile and _worth_compiling(config, chart.target.space, device),
        temperatures=known,
        hurry=config.within is not None,
        at=None if known is None else _at(system, chart),
        peers=peers,
    )


def _worth_compiling(config: TrainConfig, space: Space, device: torch.device) -> bool:
    """Whether there is a compiler, and something that kernels do not do already."""
    bodies = (*config.generator.bodies, *config.objective.bodies)
    by_kernel = bool(bodies) and all(each.by_kernel(space) for each in bodies)
    return not (by_kernel and device.type == "cpu") and shutil.which("g++") is not None


def _at(system: System, chart: Chart) -> Callable[[Tensor], Target]:
    """The system at temperatures, row by row, in the coordinates of a chart."""

    def at(temperature: Tensor) -> Target:
        return chart.density(Tempered(system, system.temperature / temperature))

    return at


def require_possible(
    config: TrainConfig, system: System, chart: Chart, device: torch.device, peers: Peers
) -> None:
    """Refuse what cannot be built or held, before a folder is written in which only the same configuration
    could go on.

    Raises
    ------
    ResourceError
        The memory could not even hold the positions, let alone the networks' intermediate values.
    InputError
        The networks or the objective are of no use in this space.
    """
    space = chart.target.space
    rows = config.objective.rows
    particles, dimension = space.shape
    memory.require(
        # Positions and scores in float32, before and after a step.
        16 * particles * dimension * max(rows, config.evaluate_samples),
        purpose=f"training on {rows:,} configurations of {particles} x {dimension}",
        remedy="lower batch_size, target_score.size or target_score.particles",
    )
    problem = problem_of(config, system, chart, device, peers)
    config.objective.build(problem).require()
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        problem.generator.build(space, molecule=problem.molecule, sampling=problem.sampling)


def facts(system: System, config: TrainConfig) -> dict[str, str]:
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


@contextmanager
def enough_memory(config: TrainConfig) -> Iterator[None]:
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
