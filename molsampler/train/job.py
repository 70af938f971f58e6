"""What the parts of a training have in common: its folder, what is asked, and what has become of that."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass, field

import torch

from ..errors import ResourceError
from ..molecule.chart import Chart
from ..objectives import Objective, Problem
from ..objectives.shards import Peers
from ..target import System
from . import checkpoint, compiler
from . import config as configuration
from .config import TrainConfig
from .folder import RunFolder
from .progress import Teller
from .state import TrainState
from .stop import Stop
from .trainer import Trainer

_log = logging.getLogger(__name__)


@dataclass
class Job:
    """A call to :func:`molsampler.train.train`.

    ``config`` is what became of the one that was ``asked`` for: a run that is to fit a time changes it, and
    ``problem`` and ``objective`` with it. ``fitting`` counts the energies that this took.
    """

    folder: RunFolder
    asked: TrainConfig
    config: TrainConfig
    system: System
    chart: Chart
    problem: Problem
    command: str
    stop: Stop
    teller: Teller
    objective: Objective = field(init=False)
    fitting: int = 0

    def __post_init__(self) -> None:
        self.objective = self.config.objective.build(self.problem)

    @property
    def first(self) -> bool:
        """Whether this process is the one that reads, writes and judges."""
        return self.problem.peers.rank == 0

    @property
    def alone(self) -> bool:
        """Whether no other process works on this."""
        return self.problem.peers.count == 1

    def agreed(self, *flags: bool) -> list[bool]:
        """Whether any process has to end, and which flags any has set; all then end for one reason."""
        found = self.problem.peers.gather(torch.tensor([self.stop.code, *flags]))
        code, *others = torch.stack(found).amax(0).tolist()
        self.stop.adopt(code)
        return [bool(code), *map(bool, others)]

    def adopt(self, config: TrainConfig) -> None:
        """Go on with another configuration, from the beginning."""
        self.config = config
        if self.first:
            self.folder.record(config)
        self.problem = dataclasses.replace(self.problem, iterations=config.iterations)
        self.objective = config.objective.build(self.problem)

    def without_compiler(self, error: Exception, *, possible: bool) -> None:
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

    def trainer(self, state: TrainState, config: TrainConfig | None = None) -> Trainer:
        """What steps the objective from a state on."""
        return Trainer(
            config or self.config,
            self.chart.target,
            self.objective,
            state,
            device=self.problem.device,
            at=self.problem.at,
        )

    def checkpoint(self, state: TrainState) -> None:
        """Keep a state, if it is one worth going back to: the last good one stays the newest."""
        if state.bad_in_a_row:
            return
        whole = self.objective.whole(state.objective)
        if self.first:
            self.folder.sync_metrics()
            kept = dataclasses.replace(state, objective=whole)
            checkpoint.save(self.folder.checkpoints, state.steps, *kept.flatten())

    def energies_of_judging(self, drawing: int | None = None) -> int:
        """Of an evaluation, where a sample takes so many."""
        drawing = self.energies_a_sample() if drawing is None else drawing
        return self.config.evaluate_samples * (self.config.evaluate_steps + 1 + drawing)

    def energies_a_sample(self) -> int:
        """Of the generator as it will be sampled."""
        kind, problem = self.problem.generator, self.problem
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            built = kind.build(
                problem.target.space,
                molecule=problem.molecule,
                sampling=kind.sampling(self.config.sampling),
            )
        return built.evaluations_per_sample


def of_rank_0(peers: Peers, config: TrainConfig) -> TrainConfig:
    """What rank 0 made of a configuration that is to fit a time; that of all is the same otherwise."""
    if config.within is None or peers.count == 1:
        return config
    told = peers.tell(json.dumps(config.model_dump(mode="json")).encode())
    return configuration.validate(json.loads(told))
