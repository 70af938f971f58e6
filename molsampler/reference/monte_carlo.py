"""Reference Monte Carlo: many MALA chains in one batch, plain or with parallel tempering."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..mcmc import adapt, mala, tempering
from ..target import System

#: Transitions of each round of step-size adaptation; none of them is kept.
ADAPTATION_STEPS = 300


class MalaChains:
    """MALA chains from ``starts``, shape ``(chain, n, d)``, sharing one adapted step size."""

    def __init__(self, system: System, starts: Tensor, *, generator: torch.Generator):
        self.system, self.replicas, self.generator = system, len(starts), generator
        self.state = mala.init(starts.double(), system)
        self.step_size = 0.01
        self.steps, self.stride = 0, 10
        self._accepted, self._tried = 0.0, 0
        self.retune()

    def retune(self) -> None:
        """Adapt the step size to where the chains are now, then freeze it."""
        self.state, self.step_size = adapt.adapt_step_size(
            self.state,
            self.system,
            steps=ADAPTATION_STEPS,
            step_size=self.step_size,
            generator=self.generator,
        )
        self.steps += ADAPTATION_STEPS
        self._accepted, self._tried = 0.0, 0

    def advance(self, steps: int) -> None:
        """Run ``steps`` transitions of every chain."""
        for _ in range(steps):
            self.state, info = mala.step(
                self.state, self.system, step_size=self.step_size, generator=self.generator
            )
        self._accepted += float(info.acceptance.mean()) if steps else 0.0
        self._tried += 1
        self.steps += steps

    def save(self) -> dict[str, Tensor]:
        """Everything that :meth:`load` needs to continue."""
        counters = [self.step_size, self.steps, self._accepted, self._tried]
        return {
            **self.state._asdict(),
            "counters": torch.tensor(counters, dtype=torch.float64),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`save` gave."""
        self.state = mala.State(*(state[name] for name in mala.State._fields))
        step_size, steps, self._accepted, tried = state["counters"].tolist()
        self.step_size, self.steps, self._tried = step_size, int(steps), int(tried)

    def read(self) -> Tensor:
        """Positions ``(1, chain, n, d)`` in float64."""
        return self.state.position[None]

    def describe(self) -> dict[str, Any]:
        """What was run, for the provenance of the samples."""
        return {
            "kernel": "MALA",
            "step_size": self.step_size,
            "acceptance": self._accepted / max(self._tried, 1),
            "energy_evaluations": self.steps * self.replicas,
        }


class TemperedChains:
    """Parallel tempering with MALA: ``starts`` ``(chain, n, d)`` on every rung of a ladder.

    Rungs fall geometrically in inverse temperature from 1 to ``1 / hottest``; each has its own
    adapted step size.
    """

    def __init__(
        self,
        system: System,
        starts: Tensor,
        *,
        hottest: float,
        rungs: int,
        generator: torch.Generator,
    ):
        self.system, self.replicas, self.generator = system, len(starts), generator
        self.hottest, self.rungs = hottest, rungs
        beta = tempering.geometric_ladder(rungs, hottest=hottest).double()
        x = starts.double().expand(rungs, *starts.shape).contiguous()
        self.state = tempering.init(x, system, beta)
        self.step_size = 0.01 / beta
        self.steps, self.stride = 0, 10
        self._moves: list[Tensor] = []
        self._exchanges: list[Tensor] = []
        self.retune()

    def retune(self) -> None:
        """Adapt every rung's step size to where its chains are now, then freeze them."""
        adaptation = adapt.init(self.step_size)
        for _ in range(ADAPTATION_STEPS):
            self.state, info = tempering.step(
                self.state,
                self.system,
                step_size=adaptation.step_size[:, None],
                generator=self.generator,
            )
            adaptation = adapt.update(adaptation, info.move.acceptance.T)
        self.step_size = adaptation.step_size
        self.steps += ADAPTATION_STEPS
        self._moves, self._exchanges = [], []

    def advance(self, steps: int) -> None:
        """Run ``steps`` sweeps of every chain."""
        for _ in range(steps):
            self.state, info = tempering.step(
                self.state,
                self.system,
                step_size=self.step_size[:, None],
                generator=self.generator,
            )
            self._exchanges.append(info.exchanged)
        if steps:
            self._moves.append(info.move.acceptance.mean(1))
        self.steps += steps

    def save(self) -> dict[str, Tensor]:
        """Everything that :meth:`load` needs to continue."""
        return {
            **{name: torch.as_tensor(value) for name, value in self.state._asdict().items()},
            "step_size": self.step_size,
            "steps": torch.tensor(self.steps),
            "moves": torch.stack(self._moves) if self._moves else torch.empty(0),
            "exchanges": torch.stack(self._exchanges) if self._exchanges else torch.empty(0),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`save` gave."""
        position, energy, score, beta = (state[k] for k in ("position", "energy", "score", "beta"))
        self.state = tempering.State(position, energy, score, beta, int(state["sweep"]))
        self.step_size, self.steps = state["step_size"], int(state["steps"])
        self._moves, self._exchanges = list(state["moves"]), list(state["exchanges"])

    def read(self) -> Tensor:
        """Positions ``(rung, chain, n, d)`` in float64, the coldest rung first."""
        return self.state.position

    def describe(self) -> dict[str, Any]:
        """What was run, for the provenance of the samples."""
        moves = torch.stack(self._moves).mean(0).tolist() if self._moves else []
        exchanges = torch.stack(self._exchanges).nanmean(0).tolist() if self._exchanges else []
        return {
            "kernel": "parallel tempering with MALA",
            "hottest": self.hottest,
            "rungs": self.rungs,
            "step_sizes": self.step_size.tolist(),
            "acceptance": moves,
            "accepted_exchanges": [value if math.isfinite(value) else 0.0 for value in exchanges],
            "energy_evaluations": self.steps * self.replicas * self.rungs,
        }
