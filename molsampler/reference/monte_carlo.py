"""Reference Monte Carlo: many chains in one batch, plain or with parallel tempering.

Chains of a molecule make steps of MALA in its internal coordinates, each at its own pace
(:mod:`molsampler.mcmc.scale`); those of particles in a mean-free space the trajectories of Hamiltonian Monte
Carlo (:mod:`molsampler.mcmc.moves`). Steps are counted in energy evaluations of a chain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..mcmc import adapt, mala, moves, tempering
from ..mcmc.proposal import Info
from ..mcmc.scale import SCALE_EVERY
from ..molecule.chart import Chart

#: Steps of each round of step-size adaptation; none of them is kept.
ADAPTATION_STEPS = 300


class PlainChains:
    """Chains from ``starts``, shape ``(chain, n, d)``, sharing one adapted kernel, in the coordinates of a
    chart."""

    def __init__(self, chart: Chart, starts: Tensor, *, generator: torch.Generator):
        self.chart, self.replicas, self.generator = chart, len(starts), generator
        self.leapfrog_steps = moves.usual(chart.target.space)
        self.state = mala.init(chart.coordinates(starts.double()), chart.target)
        self.step_size = 0.01
        self.scale: Tensor | None = None
        self.steps, self.stride = 0, _stride(self.leapfrog_steps)
        self._accepted, self._tried = 0.0, 0
        self.retune()

    def retune(self) -> None:
        """Adapt the kernel to where the chains are now, then freeze it.

        Steps of MALA, whose drift is truncated, come first: they leave any start.
        """
        self.state, adaptation = adapt.tuned(
            self.state,
            self.chart.target,
            steps=ADAPTATION_STEPS,
            step_size=self.step_size,
            generator=self.generator,
        )
        self.steps += ADAPTATION_STEPS
        for _ in range(ADAPTATION_STEPS // self.leapfrog_steps if self.leapfrog_steps > 1 else 0):
            self.state, info = self._step(float(adaptation.step_size), adaptation.scale)
            adaptation = moves.adapted(
                adaptation, info.acceptance, leapfrog_steps=self.leapfrog_steps
            )
            self.steps += self.leapfrog_steps
        self.step_size, self.scale = float(adaptation.step_size), adaptation.scale
        self._accepted, self._tried = 0.0, 0

    def _step(self, step_size: float, scale: Tensor | None) -> tuple[mala.State, Info]:
        return moves.step(
            self.state,
            self.chart.target,
            step_size=step_size,
            generator=self.generator,
            scale=scale,
            leapfrog_steps=self.leapfrog_steps,
        )

    def advance(self, steps: int) -> None:
        """Run every chain for ``steps`` energy evaluations, or up to a trajectory more."""
        count = -(-steps // self.leapfrog_steps)
        for _ in range(count):
            self.state, info = self._step(self.step_size, self.scale)
        self._accepted += float(info.acceptance.mean()) if count else 0.0
        self._tried += 1
        self.steps += count * self.leapfrog_steps

    def save(self) -> dict[str, Tensor]:
        """Everything that :meth:`load` needs to continue."""
        counters = [self.step_size, self.steps, self._accepted, self._tried]
        return {
            **self.state._asdict(),
            **({} if self.scale is None else {"scale": self.scale}),
            "counters": torch.tensor(counters, dtype=torch.float64),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what :meth:`save` gave."""
        self.state = mala.State(*(state[name] for name in mala.State._fields))
        step_size, steps, self._accepted, tried = state["counters"].tolist()
        self.step_size, self.steps, self._tried = step_size, int(steps), int(tried)
        self.scale = state.get("scale")

    def read(self) -> Tensor:
        """Positions ``(1, chain, n, d)`` in float64."""
        return _positions(self.chart, self.state.position[None], seed=self.steps)

    def describe(self) -> dict[str, Any]:
        """What was run, for the provenance of the samples."""
        return {
            "kernel": _kernel(self.leapfrog_steps),
            "step_size": self.step_size,
            "acceptance": self._accepted / max(self._tried, 1),
            "energy_evaluations": self.steps * self.replicas,
        }


class TemperedChains:
    """Parallel tempering: ``starts`` ``(chain, n, d)`` on every rung of a ladder.

    Rungs fall geometrically in inverse temperature from 1 to ``1 / hottest``; each has its own
    adapted step size, and all the lengths of coordinates of the coldest.
    """

    def __init__(
        self,
        chart: Chart,
        starts: Tensor,
        *,
        hottest: float,
        rungs: int,
        generator: torch.Generator,
    ):
        self.chart, self.replicas, self.generator = chart, len(starts), generator
        self.hottest, self.rungs = hottest, rungs
        self.leapfrog_steps = moves.usual(chart.target.space)
        beta = tempering.geometric_ladder(rungs, hottest=hottest).double()
        x = chart.coordinates(starts.double())
        x = x.expand(rungs, *x.shape).contiguous()
        self.state = tempering.init(x, chart.target, beta)
        self.step_size = 0.01 / beta
        self.scale: Tensor | None = None
        self.steps, self.stride = 0, _stride(self.leapfrog_steps)
        self._moves: list[Tensor] = []
        self._exchanges: list[Tensor] = []
        self.retune()

    def retune(self) -> None:
        """Adapt every rung's kernel to where its chains are now, then freeze them."""
        target = self.chart.target
        adaptation = adapt.init(self.step_size)
        for k in range(ADAPTATION_STEPS):
            if k % SCALE_EVERY == 0:
                adaptation = adaptation.scaled_to(
                    self.state.position[0], self.state.score[0], target.space
                )
            self.state, info = tempering.step(
                self.state,
                target,
                step_size=adaptation.step_size[:, None],
                generator=self.generator,
                scale=adaptation.scale,
            )
            adaptation = adapt.update(adaptation, info.move.acceptance.T)
        self.step_size, self.scale = adaptation.step_size, adaptation.scale
        self.steps += ADAPTATION_STEPS
        self._moves, self._exchanges = [], []

    def advance(self, steps: int) -> None:
        """Run every chain for ``steps`` energy evaluations, or up to a trajectory more."""
        count = -(-steps // self.leapfrog_steps)
        for _ in range(count):
            self.state, info = tempering.step(
                self.state,
                self.chart.target,
                step_size=self.step_size[:, None],
                generator=self.generator,
                scale=self.scale,
                leapfrog_steps=self.leapfrog_steps,
            )
            self._exchanges.append(info.exchanged)
        if count:
            self._moves.append(info.move.acceptance.mean(1))
        self.steps += count * self.leapfrog_steps

    def save(self) -> dict[str, Tensor]:
        """Everything that :meth:`load` needs to continue."""
        return {
            **{name: torch.as_tensor(value) for name, value in self.state._asdict().items()},
            **({} if self.scale is None else {"scale": self.scale}),
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
        self.scale = state.get("scale")
        self._moves, self._exchanges = list(state["moves"]), list(state["exchanges"])

    def read(self) -> Tensor:
        """Positions ``(rung, chain, n, d)`` in float64, the coldest rung first."""
        return _positions(self.chart, self.state.position, seed=self.steps)

    def describe(self) -> dict[str, Any]:
        """What was run, for the provenance of the samples."""
        moves = torch.stack(self._moves).mean(0).tolist() if self._moves else []
        exchanges = torch.stack(self._exchanges).nanmean(0).tolist() if self._exchanges else []
        return {
            "kernel": f"parallel tempering with {_kernel(self.leapfrog_steps)}",
            "hottest": self.hottest,
            "rungs": self.rungs,
            "step_sizes": self.step_size.tolist(),
            "acceptance": moves,
            "accepted_exchanges": [value if math.isfinite(value) else 0.0 for value in exchanges],
            "energy_evaluations": self.steps * self.replicas * self.rungs,
        }


def _stride(leapfrog_steps: int) -> int:
    """Steps between frames at first."""
    return 10 if leapfrog_steps == 1 else 2 * leapfrog_steps


def _kernel(leapfrog_steps: int) -> str:
    return "MALA" if leapfrog_steps == 1 else f"HMC of {leapfrog_steps} leapfrog steps"


def _positions(chart: Chart, x: Tensor, *, seed: int) -> Tensor:
    """Positions ``(*b, n, d)`` of coordinates ``(*b, ...)`` of a chart, turned at random where it knows no
    orientation; the turns are the same at every reading."""
    flat = chart.positions(x.flatten(0, -3))
    turned = chart.oriented(flat, generator=torch.Generator().manual_seed(seed))
    return turned.reshape(*x.shape[:-2], *turned.shape[1:])
