r"""Reference samples of a system from OpenMM dynamics or Monte Carlo, with a verdict on convergence.

Both methods run many replicas from dispersed starts and are read by the same rules:

1. *Burn-in.* The run doubles until its second half agrees between replicas (R-hat at most
   ``BURN_IN_R_HAT`` for every observable) and stands still (its two halves, averaged over all
   replicas, differ by at most ``DRIFT_LIMIT`` standard errors); the first half is then discarded.
   Starts of three kinds (contracted, medium, expanded) make the disagreement of slow runs visible.
   With exchange, means of the observables over the rungs of the ladder are watched too: exchanges
   leave them alone, so they show the slow relaxation that swaps hide from a single rung.
2. *Thinning.* Frames are kept at intervals of the largest statistical inefficiency of any observable.
3. *Exchange.* Where doubling the run of plain replicas hardly lowers R-hat, or they do not agree
   within a share of the allowed steps, the modes do not mix, and replica exchange takes over. Its
   hottest temperature is the lowest of a doubling sequence at which the exchange itself (Monte
   Carlo) or a plain run at that temperature (OpenMM) converges.

What is watched stands in :mod:`molsampler.reference.observables`, where the replicas start in
:mod:`molsampler.reference.starts`.

A run given a folder for its checkpoint records its frames there and, stopped at any moment, goes on
from them when it is called again; see :mod:`molsampler.reference.journal`.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from .. import memory
from ..errors import InputError
from ..mcmc import convergence, moves
from ..molecule.z_matrix import chart_to_move_in
from ..target import System
from ..temperatures import seed_at
from ..wellposed import require_well_posed
from .dynamics import bonds_of
from .journal import Block, Journal, Record
from .observables import observables
from .replicas import replica_of_row
from .starts import dispersed_starts

if TYPE_CHECKING:
    from ..samples import Samples

logger = logging.getLogger(__name__)

#: Replicas that run beside each other unless told otherwise. Burn-in costs each of them ten
#: decorrelation times, which favours few; a batch of 256 Monte Carlo chains costs little more than 64.
REPLICAS = {"openmm": 64, "mcmc": 256}

#: Chains of parallel tempering unless told otherwise; each brings a ladder of replicas.
TEMPERED_CHAINS = 64

#: R-hat at which burn-in ends. Over a window of w decorrelation times, agreeing chains show about
#: sqrt(1 + 2 / w), so this asks for ten of them; the samples themselves face the stricter limit.
BURN_IN_R_HAT = 1.1

#: Times its due length, in frames, that a run goes on for when its replicas are not yet seen to agree.
PATIENCE = 4

#: Largest drift between the halves of a burnt-in window, in standard errors over replicas. A window is
#: judged on some ten to forty observables, so four is passed by nearly every stationary run.
DRIFT_LIMIT = 4.0

#: Plain replicas are stuck if two doublings of the run leave more than this share of R-hat - 1.
STUCK = 0.8

#: Name of the trace that averages an observable over the rungs of a ladder.
LADDER_MEAN = "ladder mean of "

#: Runs of OpenMM's replica exchange, each with a whole ladder.
EXCHANGE_RUNS = 8

#: Frames after which the first look at convergence is taken; the second half of them is examined.
FIRST_LOOK = 128

#: Frames read before their observables are computed together.
FRAME_BLOCK = 32

#: Statistical inefficiency in frames above which every second frame is dropped: a finer record of
#: slow observables costs time and tells no more.
FINEST_RECORD = 16

#: Observables that are named in the warnings; systems without symmetry watch one per coordinate.
MOST_WARNINGS = 5

#: Temperatures, in units of the target's, that a ladder may reach; molecules only the first two, as
#: beyond some 1200 K they would change handedness.
HOTTEST = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

Progress = Callable[[int, int, str], None]


class Engine(Protocol):
    """Replicas that can be advanced and read."""

    replicas: int
    steps: int
    stride: int

    def advance(self, steps: int) -> None: ...
    def retune(self) -> None: ...
    def read(self) -> Tensor:
        """Positions ``(rung, replica, n, d)``, the target's temperature first."""

    def save(self) -> dict[str, Tensor]: ...
    def load(self, state: Mapping[str, Tensor]) -> None: ...
    def describe(self) -> dict[str, Any]: ...


def sample_reference(
    system: System | str,
    n: int,
    *,
    method: Literal["openmm", "mcmc"] = "openmm",
    seed: int = 0,
    replicas: int | None = None,
    exchange: bool | Literal["auto"] = "auto",
    max_steps: int = 1_000_000,
    checkpoint: Path | str | None = None,
    progress: Progress | None = None,
    probe: bool = True,
) -> Samples:
    r"""``n`` decorrelated samples of :math:`\exp(-u)` and what is known of their convergence.

    Parameters
    ----------
    system : a system or the name of one
    n : number of samples
    method : ``openmm``, Langevin dynamics of the OpenMM twin; ``mcmc``, Monte Carlo of the exact energy
        (Hamiltonian for identical particles, Metropolis-adjusted Langevin otherwise)
    seed : starts, velocities and noise all follow from it; same seed and versions, same samples
    replicas : independent trajectories or chains
    exchange : replica exchange (OpenMM) or parallel tempering (Monte Carlo) always, never, or where
        plain replicas disagree
    max_steps : steps per replica after which the search for convergence ends; the samples are then
        returned with a warning in the log and in the metadata
    checkpoint : folder that the run is recorded in; the same call continues one that was stopped
    progress : called as ``progress(samples done, n, message)``
    probe : look first whether there is anything to sample (:mod:`molsampler.wellposed`)

    Returns
    -------
    Samples
        Rows are ordered by draw, then by replica. ``metadata["convergence"]`` has the keys ``r_hat``
        and ``ess`` (worst over observables; ``ess`` of the returned samples),
        ``statistical_inefficiency`` (in steps), ``converged`` and ``warnings``. ``metadata["run"]``
        has steps, thinning and the engine's settings; :func:`replica_index` tells the replica of
        each row.

    Raises
    ------
    IllPosedError
        The energy has no norm, is NaN, or its score is not its gradient.
    InputError
        An argument is unusable, the system has no OpenMM twin and ``method`` is ``openmm``, or the
        checkpoint is of a run with other settings.
    OutputExistsError, RunLockedError
        ``checkpoint`` is a folder of another kind, or in use.
    ResourceError
        The samples would not fit in memory.
    """
    from ..samples import Samples
    from ..systems import resolve
    from ..version import __version__

    system = resolve(system)
    if method not in REPLICAS:
        raise InputError(f"method must be 'openmm' or 'mcmc', got {method!r}")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"n must be a positive number of samples, got {n!r}")
    replicas = REPLICAS[method] if replicas is None else replicas
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 2:
        raise InputError(f"replicas must be at least 2, for R-hat compares them, got {replicas!r}")
    if exchange not in (True, False, "auto"):
        raise InputError(f"exchange must be True, False or 'auto', got {exchange!r}")
    if max_steps < 1000:
        raise InputError(f"max_steps must be at least 1000, got {max_steps}")
    particles, dimension = system.shape
    # Frames are kept until all have been judged; more are recorded than returned.
    memory.require(
        2 * n * (4 * particles * dimension + 8),
        purpose=f"a reference of {n:,} samples of {particles} x {dimension}",
        remedy="ask for fewer: a reference needs no more than some thousands",
    )
    if method == "openmm":
        _require_twin(system)
    if probe:
        require_well_posed(system, regardless="probe=False, --no-probe, goes on regardless")
    report: Progress = progress if progress is not None else lambda done, total, message: None

    started = time.monotonic()
    settings = {
        "system": system.record(),
        "n": n,
        "method": method,
        "seed": seed,
        "replicas": replicas,
        "exchange": exchange,
        "max_steps": max_steps,
        "version": __version__,
    }
    if method == "mcmc":
        settings["leapfrog_steps"] = moves.usual(chart_to_move_in(system).target.space)
    with nullcontext() if checkpoint is None else Journal(checkpoint, settings) as journal:
        own = system.temperature == system.default_temperature
        generator = torch.Generator().manual_seed(
            seed if own else seed_at(seed, system.temperature)
        )
        request = _Request(system, n, replicas, max_steps, generator, report, journal)
        run = (_openmm if method == "openmm" else _mcmc)(request, exchange)

    positions, verdict = run.select(n)
    for text in verdict.warnings:
        logger.warning("reference of %s by %s: %s", system.name, method, text)
    report(n, n, "done")
    return Samples.of(
        system,
        positions,
        method=method,
        source="reference",
        seed=seed,
        version=__version__,
        temperature=(f"{system.temperature:g} K" if system.in_kelvin else _reduced(system)),
        convergence={
            "r_hat": _finite(verdict.r_hat),
            "ess": verdict.ess,
            "statistical_inefficiency": verdict.statistical_inefficiency,
            "converged": verdict.converged,
            "warnings": verdict.warnings,
        },
        run={
            "replicas": run.engine.replicas,
            "first_replica": -n % run.engine.replicas if n > run.engine.replicas else 0,
            "steps_per_replica": run.engine.steps,
            "burn_in_steps": run.burn_in_steps,
            "thinning_steps": run.thinning * run.engine.stride,
            "seconds": round(time.monotonic() - started, 2),
            **run.engine.describe(),
        },
    )


def replica_index(samples: Samples) -> Tensor:
    """Replica of each row of a reference set, ``(n,)`` integers.

    Replicas are independent, so their means give standard errors without a correlation time.

    Raises
    ------
    InputError
        The metadata does not tell.
    """
    found = replica_of_row(samples.metadata, len(samples))
    if found is None:
        raise InputError("these samples are not of a reference run: metadata holds no 'run'")
    return torch.from_numpy(found)


def _finite(value: float) -> float | str:
    # JSON has no infinity.
    return value if math.isfinite(value) else "inf"


def _require_twin(system: System) -> None:
    if type(system).openmm_twin is System.openmm_twin:
        raise InputError(
            f"system {system.name!r} has no OpenMM twin; use method='mcmc' (--method mcmc)"
        )


class _Request(NamedTuple):
    """What a run has to deliver and may spend."""

    system: System
    n: int
    replicas: int
    max_steps: int
    generator: torch.Generator
    report: Progress
    journal: Journal | None = None


class _Run:
    """Frames of an engine, with burn-in and thinning decided from the observables."""

    def __init__(self, request: _Request, make: Callable[[], Engine]):
        self.request = request
        self.engine: Engine
        self._record: Record | None = None
        if request.journal is None:
            self.engine = make()
        else:
            self.engine, self._record = request.journal.engine(make, request.generator)
        self.frames: list[Tensor] = []
        self.traces: dict[str, list[Tensor]] = {}
        self.burn_in = 0
        self.burn_in_steps = 0
        self.thinning = 1
        self.equilibrated = False

    def _extend(self, count: int, message: str, done: int) -> None:
        """Run until ``count`` frames exist."""
        told = time.monotonic()
        while len(self.frames) < count:
            if self._record is not None and self._record.replaying:
                block = self._record.read()
                self.engine.steps = block.steps
            else:
                frames = []
                if self._record is not None:
                    self._record.restore(self.engine)
                # Observables of many frames at once cost little more than those of one.
                for _ in range(min(FRAME_BLOCK, count - len(self.frames))):
                    self.engine.advance(self.engine.stride)
                    frames.append(self.engine.read())
                    if time.monotonic() - told > 0.2:
                        told = time.monotonic()
                        steps = f"{message}, {self.engine.steps:,} steps"
                        self.request.report(done, self.request.n, steps)
                block = self._block(torch.stack(frames))
                if self._record is not None:
                    self._record.write(block, self.engine)
            self.frames.extend(block.frames)
            for name, value in block.traces.items():
                self.traces.setdefault(name, []).extend(value)

    def _block(self, x: Tensor) -> Block:
        """Frames ``(block, rung, replica, n, d)`` with their observables."""
        traces = {}
        for name, value in observables(self.request.system, x.flatten(0, 2)).items():
            rungs = value.reshape(x.shape[:3])
            traces[name] = rungs[:, 0]
            if x.shape[1] > 1:
                traces[LADDER_MEAN + name] = rungs.mean(1)
        return Block(x[:, 0].to(torch.float32), traces, self.engine.steps)

    def _retune(self) -> None:
        # A stored block that follows was made after this was done.
        if self._record is not None:
            if self._record.replaying:
                return
            self._record.restore(self.engine)
        self.engine.retune()

    def _coarsen(self) -> None:
        """Drop every second frame and look half as often from now on."""
        self.frames = self.frames[1::2]
        self.traces = {name: values[1::2] for name, values in self.traces.items()}
        self.burn_in //= 2
        self.thinning = max(1, self.thinning // 2)
        self.engine.stride *= 2

    def _window(
        self, start: int, stride: int = 1, *, ladder: bool = False
    ) -> dict[str, np.ndarray[Any, Any]]:
        """Traces ``(replica, draw)`` from frame ``start`` on, at most every ``stride``-th, to the last."""
        window = {}
        for name, values in self.traces.items():
            if name.startswith(LADDER_MEAN) and not ladder:
                continue
            trace = torch.stack(values[start:], 1)
            trace = trace[:, (trace.shape[1] - 1) % stride :: stride]
            # A start of infinite energy may survive into a run that did not equilibrate.
            window[name] = trace.nan_to_num(posinf=1e30).numpy()
        return window

    def _judge(
        self, start: int, *, r_hat_limit: float = convergence.R_HAT_LIMIT, ladder: bool = True
    ) -> convergence.Convergence:
        window = self._window(start, ladder=ladder)
        # How many samples there are is the caller's wish; only disagreement and drift count here.
        verdict = convergence.assess(window, r_hat_limit=r_hat_limit, ess_limit=0.0)
        warnings = list(verdict.warnings)
        for name, trace in window.items():
            z = convergence.trend(trace)
            if not abs(z) <= DRIFT_LIMIT:
                warnings.append(
                    f"{name} drifts: the halves of the run differ by {abs(z):.1f} standard errors"
                )
        return verdict._replace(converged=not warnings, warnings=warnings)

    def equilibrate(self, max_steps: int, *, patient: bool = True) -> bool:
        """Double the run until its second half is stationary; whether it came to that.

        Impatient runs give up as soon as further doubling does not help.
        """
        begun = self.engine.steps
        length = FIRST_LOOK
        message = "equilibrating"
        excess: list[float] = []
        while True:
            self._extend(length, message, 0)
            verdict = self._judge(length // 2, r_hat_limit=BURN_IN_R_HAT)
            message = f"equilibrating, R-hat {verdict.r_hat:.2f}"
            self.equilibrated = verdict.converged
            excess.append(verdict.r_hat - 1.0)
            # An infinite excess compares false with everything, as NaN does after division.
            stuck = len(excess) > 3 and not excess[-1] <= STUCK * excess[-3]
            if (
                verdict.converged
                or 2 * (self.engine.steps - begun) > max_steps
                or (stuck and not patient and verdict.r_hat > BURN_IN_R_HAT)
            ):
                break
            while verdict.statistical_inefficiency > FINEST_RECORD and length >= 2 * FIRST_LOOK:
                self._coarsen()
                length //= 2
                verdict = self._judge(length // 2)
            # Frames up to here will be discarded, so the step size may follow the chains to them.
            self._retune()
            length *= 2
        self.burn_in = length // 2
        self.burn_in_steps = self.engine.steps - self.burn_in * self.engine.stride
        return self.equilibrated

    def collect(self) -> None:
        """Run on until ``n`` samples spaced by the statistical inefficiency exist, and replicas that came to
        rest agree as well as a converged run has it: few samples are soon there, too soon to tell."""
        draws = math.ceil(self.request.n / self.engine.replicas)
        while True:
            verdict = self._judge(self.burn_in, ladder=False)
            self.thinning = math.ceil(verdict.statistical_inefficiency)
            if self.engine.steps > self.request.max_steps:
                # Out of budget: what was recorded is spread evenly over the draws.
                self.thinning = max(
                    1, min(self.thinning, (len(self.frames) - self.burn_in) // draws)
                )
            needed = self.burn_in + (draws - 1) * self.thinning + 1
            have = len(self.frames)
            doubtful = self.equilibrated and not verdict.converged
            longest = PATIENCE * max(needed, 2 * self.burn_in)
            if have >= needed and not (
                doubtful and have < longest and self.engine.steps <= self.request.max_steps
            ):
                return
            # A longer record refines the inefficiency, so the goal is approached in parts.
            double = max(have + 1, self.burn_in + 2 * (have - self.burn_in))
            goal = double if have >= needed else min(needed, double)
            done = (have - self.burn_in) // self.thinning * self.engine.replicas
            self._extend(goal, f"sampling, R-hat {verdict.r_hat:.3f}", min(done, self.request.n))
            if self.thinning > FINEST_RECORD:
                self._coarsen()

    def resumed(self) -> Engine:
        """The engine as it is after the last frame."""
        if self._record is not None:
            self._record.restore(self.engine)
        return self.engine

    def select(self, n: int) -> tuple[Tensor, convergence.Convergence]:
        """The last ``n`` decorrelated samples ``(n, N, D)``, and the verdict on them."""
        replicas = self.engine.replicas
        draws = math.ceil(n / replicas)
        last = len(self.frames) - 1
        index = [last - k * self.thinning for k in reversed(range(draws))]
        positions = torch.stack([self.frames[k] for k in index])
        whole = self._judge(self.burn_in, ladder=False)
        # Ladder means vouch for the burn-in alone, so its limit is theirs.
        hidden = self._judge(self.burn_in, r_hat_limit=BURN_IN_R_HAT).warnings
        warnings = whole.warnings + [text for text in hidden if LADDER_MEAN in text]
        if len(warnings) > MOST_WARNINGS:
            more = len(warnings) - MOST_WARNINGS
            warnings = [*warnings[:MOST_WARNINGS], f"{more} further observables fail likewise"]
        if not self.equilibrated and not warnings:
            warnings.append("the replicas disagreed when the search for convergence ended")
        if self.thinning < math.ceil(whole.statistical_inefficiency):
            warnings.append(
                f"samples are correlated: they are {self.thinning * self.engine.stride} steps apart, "
                f"the statistical inefficiency is "
                f"{whole.statistical_inefficiency * self.engine.stride:.0f} steps"
            )
        ess = whole.ess
        if draws >= 8:
            ess = convergence.assess(self._window(index[0], self.thinning)).ess
        verdict = convergence.Convergence(
            whole.r_hat,
            min(float(n), ess),
            whole.statistical_inefficiency * self.engine.stride,
            not warnings,
            warnings,
        )
        surplus = replicas * draws - n
        if draws == 1:
            # Fewer samples than replicas: all kinds of starts are represented.
            chosen = torch.linspace(0, replicas - 1, n).round().long()
            return positions[0, chosen], verdict
        return positions.flatten(0, 1)[surplus:], verdict


def _rungs(system: System, hottest: float) -> int:
    """Rungs of a ladder on which neighbours overlap: energies fluctuate by about sqrt(dof / 2) kT."""
    return 2 + math.ceil(math.log(hottest) * math.sqrt(system.space.dof / 2))


def _openmm(request: _Request, exchange: bool | str) -> _Run:
    from .dynamics import LangevinReplicas, ReplicaExchange

    starts = dispersed_starts(request.system, request.replicas, generator=request.generator)
    request.report(0, request.n, "minimising the starts")

    def replicas(temperature: float = 1.0) -> LangevinReplicas:
        return LangevinReplicas(
            request.system, starts, generator=request.generator, temperature=temperature
        )

    run = _Run(request, replicas)
    if exchange is not True:
        patient = exchange is False
        budget = request.max_steps if patient else request.max_steps // 2
        if run.equilibrate(budget, patient=patient) or patient:
            run.collect()
            return run
        logger.info("plain replicas of %s disagree: replica exchange", request.system.name)

    plain = cast("LangevinReplicas", run.resumed())
    hottest = HOTTEST[0]
    for hottest in HOTTEST[:2] if bonds_of(request.system) else HOTTEST:
        request.report(0, request.n, f"trying {hottest:g} times the temperature")
        hot = _Run(request, partial(replicas, hottest))
        if hot.equilibrate(request.max_steps // 20):
            break
    chosen = torch.linspace(0, request.replicas - 1, min(EXCHANGE_RUNS, request.replicas)).long()
    run = _Run(
        request,
        lambda: ReplicaExchange(
            plain,
            plain.read()[0][chosen],
            hottest=hottest,
            rungs=_rungs(request.system, hottest),
            generator=request.generator,
        ),
    )
    run.equilibrate(request.max_steps)
    run.collect()
    return run


def _mcmc(request: _Request, exchange: bool | str) -> _Run:
    from .monte_carlo import PlainChains, TemperedChains

    starts = dispersed_starts(request.system, request.replicas, generator=request.generator)
    chart = chart_to_move_in(request.system)
    if exchange is not True:
        run = _Run(request, lambda: PlainChains(chart, starts, generator=request.generator))
        patient = exchange is False
        budget = request.max_steps if patient else request.max_steps // 5
        if run.equilibrate(budget, patient=patient) or patient:
            run.collect()
            return run
        logger.info("plain chains of %s disagree: parallel tempering", request.system.name)
    ladder = HOTTEST[:2] if bonds_of(request.system) else HOTTEST[1::2]
    for hottest in ladder:
        make = partial(
            TemperedChains,
            chart,
            starts[: min(request.replicas, TEMPERED_CHAINS)],
            hottest=hottest,
            rungs=_rungs(request.system, hottest),
            generator=request.generator,
        )
        run = _Run(request, make)
        last = hottest == ladder[-1]
        if run.equilibrate(request.max_steps // (1 if last else 10), patient=last):
            break
    run.collect()
    return run


def _reduced(system: System) -> str:
    moved = system.temperature != system.default_temperature
    return (
        f"reduced: {system.temperature:g}, energies in kT" if moved else "reduced: energies in kT"
    )
