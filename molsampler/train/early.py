"""When to judge ahead of the schedule, so that a time limit before the first evaluation leaves a sampler."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .trainer import Trainer

#: Seconds kept for what surrounds judging, and how much longer than expected it may take.
_MARGIN, _LONGER = 2.0, 1.25

#: Share of the time that judging may take.
_SHARE = 1 / 3

#: Judgements at most: a second where the first took less than was expected, and there is more to judge.
_MOST = 2


@dataclass
class Early:
    """Judging ahead of the schedule, before ``deadline`` on ``clock``; never without one.

    ``trainer`` holds what was judged last, ``took`` is what it took.
    """

    deadline: float | None
    clock: Callable[[], float] = time.monotonic
    trainer: Trainer | None = None
    took: float | None = None
    count: int = 0
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def due(self, iteration: int, *, step: float, expected: float | None) -> bool:
        """Whether what there is after an iteration has to be judged now, another step and judging being
        expected to take so many seconds."""
        expected = expected if self.took is None else self.took
        if self.deadline is None or expected is None or not iteration or self.count >= _MOST:
            return False
        if self.trainer is not None and self.trainer.iteration == iteration:
            return False
        left = self.deadline - self.clock()
        affordable = expected < _SHARE * (self.deadline - self.began)
        return affordable and expected < left < _LONGER * expected + step + _MARGIN

    def judge(self, trainer: Trainer) -> None:
        """Judge a trainer that nobody else goes on with."""
        self.count += 1
        began = self.clock()
        trainer.evaluate()
        self.took, self.trainer = self.clock() - began, trainer
