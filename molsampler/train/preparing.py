"""The work before the first step: a population, in pieces, of which what is done is kept."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import FileFormatError
from ..mcmc.population import Progress
from ..objectives import Preparation, State
from ..storage.files import remove
from . import checkpoint, fit
from .estimate import estimate
from .job import Job
from .stop import StopRequestedError

_log = logging.getLogger(__name__)

#: Seconds between checkpoints of a population in the making.
_KEEP_EVERY = 60.0

_PREPARED = "prepared/"


@dataclass
class Preparing:
    """The preparation of a job's objective, as far as it is done in ``state`` after ``seconds``; ``earlier``
    of those were of another command."""

    job: Job
    state: State = field(default_factory=dict)
    seconds: float = 0.0
    earlier: float = 0.0

    def resume(self, tensors: dict[str, Tensor], counters: str) -> bool:
        """Go on from a checkpoint; False where it holds no preparation."""
        kept = _unflattened(tensors, counters)
        if kept is None:
            return False
        self.state, self.seconds = kept
        self.earlier = self.seconds
        return True

    @property
    def stage(self) -> Progress | None:
        """Where it stands, None before it has begun and when it is done."""
        made = self.job.objective.preparation
        return None if made is None or not self.state else made.progress(self.state)

    @property
    def evaluations(self) -> int:
        """Energies so far."""
        return int(self.state.get("energy_evaluations", 0))

    def keep(self) -> None:
        """Checkpoint what is done, if all of it has begun."""
        made = self.job.objective.preparation
        if made is None:
            return
        whole = made.whole(self.state)
        if self.job.first and whole:
            checkpoint.save(self.job.folder.checkpoints, 0, *_flattened(whole, self.seconds))

    def finish(self, preparation: Preparation) -> State:
        """The last state of a preparation; what is done is kept if it is stopped in between."""
        job, teller = self.job, self.job.teller
        kept = time.monotonic()
        if self.state:
            teller.evaluations = self.evaluations
        measured, fewer, fresh_run = _Measured(teller.evaluations), 0, not self.state
        try:
            while True:
                at = preparation.progress(self.state) if self.state else None
                if at is not None:
                    teller.tell(at.phase, at.done, at.total, detail=at.detail)
                working = at is not None or not self.state
                late = job.first and time.monotonic() - kept > _KEEP_EVERY
                stopped, anyone, late, crowded = job.agreed(working, late, fewer > 0)
                if not anyone:
                    return self.state
                if stopped:
                    raise StopRequestedError
                if crowded:
                    preparation = self._with_chains(fewer) or preparation
                    measured, fewer = _Measured(0), 0
                    continue
                if late:
                    self.keep()
                    kept = time.monotonic()
                if not working:
                    continue
                began = time.perf_counter()
                try:
                    with job.stop.abandonable():
                        fresh = preparation.step(self.state) if self.state else preparation.init()
                except StopRequestedError:
                    # All processes end together, at the next look.
                    continue
                spent = time.perf_counter() - began
                self.state = fresh
                if measured.enough(spent, self.evaluations):
                    expected = preparation.expected_evaluations(fresh)
                    if job.first and fresh_run:
                        seconds = expected / measured.rate
                        fewer = fit.chains_that_fit(job.config, seconds=seconds) or 0
                    if not fewer:
                        self._say_estimate(measured.rate, expected)
                self.seconds += spent
                teller.worked("annealing" if at is None else at.phase, spent, self.evaluations)
        except StopRequestedError:
            self.keep()
            raise

    def _with_chains(self, count: int) -> Preparation | None:
        """Begin again with the number of chains that rank 0 names."""
        job = self.job
        count = int(job.problem.peers.gather(torch.tensor([count]))[0])
        objective = job.config.objective.with_chains(count)
        _log.info(
            "a population of %s chains, of %s, fits the time",
            f"{objective.chains:,}",
            f"{job.config.objective.chains:,}",
        )
        job.fitting += self.evaluations
        self.state = {}
        if job.first:
            remove(job.folder.checkpoints)
        job.adopt(job.config.model_copy(update={"objective": objective}))
        return job.objective.preparation

    def _say_estimate(self, rate: float, preparing: int) -> None:
        job = self.job
        drawing = job.energies_a_sample()
        said = estimate(job.config, job.objective, rate=rate, preparing=preparing, drawing=drawing)
        _log.info("%s", said)
        job.teller.evaluating = job.energies_of_judging(drawing) / rate


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
