"""How a run stands: phases, rates and the time that is left.

Rates are those of the recent past and of work alone: pauses for an evaluation, a checkpoint or a compiler
do not enter, so the time left falls evenly. Evaluations still to come are added at what the last one took.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

#: Seconds of work over which rates are taken, and pieces of work below which there is no rate.
_WINDOW, _LEAST = 60.0, 3


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes
    ----------
    phase : ``starting``, ``annealing``, ``equilibration`` (or ``cooling`` and ``exchange``), ``warm-up``,
        ``training`` or ``evaluation``
    done, total : steps of this phase; the total is an estimate in annealing, None where it is not known
    rate : steps a second
    left, left_of_run : seconds to the end of the phase and of the run, None where they are not known
    evaluations, evaluations_per_second : energy evaluations of the run so far, and their rate
    seconds : since the run, or the command that started it, began
    detail : what is being done, where that takes long
    metrics : the last ones logged
    """

    phase: str
    done: int = 0
    total: float | None = None
    rate: float | None = None
    left: float | None = None
    left_of_run: float | None = None
    evaluations: int = 0
    evaluations_per_second: float | None = None
    seconds: float = 0.0
    detail: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


class Pace:
    """Units a second over the recent past, from pieces of work; what is not added is a pause."""

    def __init__(self, window: float = _WINDOW):
        self.window = window
        self._pieces: deque[tuple[float, float]] = deque()
        self._units = self._seconds = 0.0

    def add(self, units: float, seconds: float) -> None:
        """A piece of work of ``units`` that took ``seconds``."""
        self._pieces.append((units, seconds))
        self._units += units
        self._seconds += seconds
        while len(self._pieces) > _LEAST and self._seconds - self._pieces[0][1] > self.window:
            old = self._pieces.popleft()
            self._units -= old[0]
            self._seconds -= old[1]

    @property
    def rate(self) -> float | None:
        """Units a second, None before there is enough to tell."""
        if len(self._pieces) < _LEAST or self._units <= 0 or self._seconds <= 0:
            return None
        return self._units / self._seconds


class Teller:
    """Keeps the rates of a run and tells ``listener`` about once a second, and at every change of phase.

    ``began`` is the value of ``clock`` at which the run, or its command, began; ``left_of_run`` are the
    seconds that were left of it last, None where that is not known.
    """

    def __init__(
        self,
        listener: Callable[[Progress], None] | None,
        *,
        began: float,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.listener, self.began, self.clock = listener, began, clock
        self.phase = ""
        self.evaluations = 0
        self.steps, self.energies = Pace(), Pace()
        self.evaluating: float | None = None
        self.left_of_run: float | None = None
        self._last = -float("inf")

    def worked(self, phase: str, seconds: float, evaluations: int, *, pause: bool = False) -> None:
        """A step of a phase took ``seconds`` and brought the run to ``evaluations``.

        A ``pause`` is a step that is no measure of the next, such as one in which networks were compiled.
        """
        self._enter(phase)
        spent, self.evaluations = evaluations - self.evaluations, evaluations
        if not pause:
            self.steps.add(1, seconds)
            self.energies.add(spent, seconds)

    def evaluated(self, seconds: float, evaluations: int) -> None:
        """An evaluation of the generator took ``seconds``."""
        self.evaluating, self.evaluations = seconds, evaluations

    def tell(
        self,
        phase: str,
        done: int = 0,
        total: float | None = None,
        *,
        rate: float | None = None,
        evaluations_left: int = 0,
        last: bool = False,
        now: bool = False,
        detail: str = "",
        metrics: dict[str, float] | None = None,
    ) -> None:
        """Say where the run stands.

        ``rate`` is that of an evaluation's draws, of steps it is known. ``evaluations_left`` of the generator
        are still to come in this phase, which is the ``last`` one or not; ``now`` says it even if something
        was said a moment ago.
        """
        changed = self._enter(phase)
        moment = self.clock()
        rate, left = rate if phase == "evaluation" else self.steps.rate, None
        if rate is not None and total is not None:
            left = max(0.0, total - done) / rate + evaluations_left * (self.evaluating or 0.0)
        self.left_of_run = left if last else None
        if self.listener is None or not (now or changed or moment - self._last >= 1.0):
            return
        self._last = moment
        self.listener(
            Progress(
                phase,
                done,
                total,
                rate,
                left,
                self.left_of_run,
                self.evaluations,
                self.energies.rate,
                moment - self.began,
                detail,
                metrics or {},
            )
        )

    def _enter(self, phase: str) -> bool:
        if phase == self.phase or phase == "evaluation":
            return False
        self.phase = phase
        self.steps, self.energies = Pace(), Pace()
        return True
