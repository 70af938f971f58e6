r"""A population made by replica exchange: annealed to a high temperature, cooled, and exchanged with it.

Annealing alone leaves modes with the weights that they had where the chains last crossed between them. Here
chains are annealed from a Gaussian to the hottest temperature only, and cooled from there by SMC with
increments of :math:`\beta` that keep the effective share of the incremental weights. Of the levels of
cooling those become the rungs of a ladder that have the wanted overlap: from the coldest on, the next rung
is the hottest level with which exchanges are accepted at the wanted share, estimated from the energies u
of the chains at both,

.. math:: a(\beta, \beta') = E\left[\min\{1, e^{(\beta - \beta')(u - u')}\}\right],

which spaces rungs evenly in thermodynamic length (Kofke, J. Chem. Phys. 117, 6911 (2002); Rathore, Chopra &
de Pablo, J. Chem. Phys. 122, 024111 (2005)). Then all rungs move together
(:mod:`molsampler.mcmc.tempering`), by trajectories where the population is to move by them, pairs from even
and odd rungs in turn, for which round trips are not diffusive (Syed et al., J. R. Stat. Soc. B 84, 321
(2022)). Step sizes of the rungs are tuned over the first half of the sweeps, and the population is gathered
from the coldest rung over the second.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..errors import FileFormatError
from ..molecule.molecule import Molecule
from ..target import Target
from . import adapt, mala, moves, smc, tempering
from .divergence import UNREST, FallWatch, require_finite
from .population import (
    EXPECTED_LEVELS,
    ExchangeConfig,
    Population,
    PopulationConfig,
    Progress,
    annealing_of,
    annealing_progress,
    flat_annealing,
    require_moves,
    require_start,
    start_of,
)

log = logging.getLogger(__name__)

#: Effective share of the incremental weights of cooling, as that of annealing.
_SHARE = 0.7

#: Moves between looks at the median energy.
_WATCH_EVERY = 50


class State(NamedTuple):
    """A population in the making, between two moves of all its chains.

    First ``annealing`` is there; then ``ladder``, which cooling extends by a level at a time, hottest first,
    until ``trips`` are counted: from then on it has the rungs that were chosen, coldest first.
    ``steps`` counts moves at the last level, then sweeps. ``exchanged`` ``(2, k - 1)`` sums the accepted
    shares of each pair and counts the rounds in which it was tried. ``gathered`` are the states of the
    coldest rung that were kept.
    """

    annealing: smc.State | None
    ladder: tempering.State | None
    adaptation: adapt.Adaptation
    steps: int = 0
    trips: tempering.RoundTrips | None = None
    exchanged: Tensor | None = None
    gathered: mala.State | None = None

    def flatten(self) -> dict[str, Tensor | float | int]:
        """Tensors and numbers by name."""
        flat: dict[str, Tensor | float | int] = {**self.adaptation.flatten(), "steps": self.steps}
        if self.annealing is not None:
            flat |= flat_annealing(self.annealing)
        for part in ("ladder", "trips", "gathered"):
            held = cast("tuple[Any, ...] | None", getattr(self, part))
            if held is not None:
                fields = held._asdict()  # type: ignore[attr-defined]
                flat |= {f"{part}/{name}": value for name, value in fields.items()}
        if self.exchanged is not None:
            flat["exchanged"] = self.exchanged
        return flat

    @classmethod
    def unflatten(cls, flat: Mapping[str, Any]) -> State:
        """The state that was flattened.

        Raises
        ------
        FileFormatError
            It is none.
        """

        def part(name: str, kind: Any) -> Any:
            if f"{name}/{kind._fields[0]}" not in flat:
                return None
            return kind(*(flat[f"{name}/{field}"] for field in kind._fields))

        try:
            adaptation = adapt.Adaptation.unflatten(flat)
            annealing = annealing_of(flat, adaptation) if "annealing/position" in flat else None
            ladder = part("ladder", tempering.State)
            if (annealing is None) == (ladder is None):
                raise KeyError("annealing/position or ladder/position")
            return cls(
                annealing,
                ladder,
                adaptation,
                int(flat["steps"]),
                part("trips", tempering.RoundTrips),
                flat.get("exchanged"),
                part("gathered", mala.State),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(
                f"the checkpoint does not hold a population in the making by replica exchange: {error}"
            ) from None


class ReplicaExchange:
    """Makes a population by replica exchange, one move of all chains at a time; see the module.

    Its methods are those of :class:`~molsampler.mcmc.population.Equilibration`.
    """

    def __init__(
        self,
        config: PopulationConfig,
        target: Target,
        *,
        molecule: Molecule | None = None,
    ):
        require_moves(config, target.space)
        self.config, self.target = config, target
        self.plan = config.exchange or ExchangeConfig()
        self.base = start_of(config, target.space, molecule)
        self.hot = tempering.Tempered(target, torch.tensor(1.0 / self.plan.hottest))
        dof = target.space.dof
        self._annealed, self._settled = FallWatch(dof), FallWatch(dof, UNREST)

    @property
    def snapshots(self) -> int:
        """How many times the coldest rung is gathered."""
        return -(-self.config.size // self.plan.chains)

    @property
    def sweeps(self) -> int:
        """Sweeps of the ladder: those asked for, and two at least for every time it is gathered."""
        return max(self.config.equilibration, 2 * self.snapshots)

    def init(self, *, generator: torch.Generator, like: Tensor) -> State:
        """The start; one energy evaluation a chain."""
        x = self.base.sample(self.plan.chains, generator=generator, like=like)
        step_size = 1e-2 * self.config.start_scale**2
        run = smc.init(x, self.base, self.hot, step_size=step_size)
        return State(run, None, run.adaptation)

    def finished(self, state: State) -> bool:
        return state.trips is not None and state.steps >= self.sweeps

    def step(self, state: State, *, generator: torch.Generator) -> State:
        """The state after one more move of all chains; ``state`` itself is left as it is.

        Raises
        ------
        UnboundedEnergyError
            The energies of the chains fall without bound, or most are not finite.
        """
        if state.annealing is not None:
            return self._anneal(state.annealing, generator)
        if state.trips is None:
            return self._cool(state, generator)
        return self._sweep(state, generator)

    def _anneal(self, run: smc.State, generator: torch.Generator) -> State:
        cooling = self.config.anneal_moves
        if run.levels == 0 or run.moved >= cooling:
            require_start(run.particles.energies[1], self.config.start_scale)
            self._annealed(run.particles.energies[1])
        if not smc.finished(run, moves=cooling):
            run = smc.step(run, self.base, self.hot, moves=cooling, generator=generator)
            return State(run, None, run.adaptation)
        done = smc.annealed(run)
        beta = torch.tensor([1.0 / self.plan.hottest], dtype=done.position.dtype)
        ladder = tempering.init(done.position[None], self.target, beta.to(done.position.device))
        require_finite(ladder.energy, "annealed chains")
        self._settled(ladder.energy[0])
        adaptation = adapt.init(torch.tensor([done.step_size]))
        return State(None, ladder, adaptation._replace(scale=run.adaptation.scale), cooling)

    def _cool(self, state: State, generator: torch.Generator) -> State:
        """One move at the last level, after a step down if its moves are made."""
        ladder, adaptation = cast(tempering.State, state.ladder), state.adaptation
        steps = state.steps
        if steps >= self.config.anneal_moves:
            if float(ladder.beta[-1]) >= 1.0:
                return self._chosen(ladder, adaptation)
            ladder = _cooler(ladder, generator)
            last = adaptation.log_step[-1:]
            adaptation = adaptation._replace(
                log_step=torch.cat([adaptation.log_step, last]), updates=3
            )
            adaptation = self._scaled(adaptation, ladder, -1)
            steps = 0
        coldest = _taken(ladder, [-1])
        coldest, info = tempering.step(
            coldest,
            self.target,
            step_size=adaptation.step_size[-1:, None],
            generator=generator,
            scale=adaptation.scale,
        )
        tuned = adapt.update(
            adaptation._replace(log_step=adaptation.log_step[-1:]), info.move.acceptance.T
        )
        moved = _joined(_taken(ladder, list(range(len(ladder.beta) - 1))), coldest)
        log_step = torch.cat([adaptation.log_step[:-1], tuned.log_step])
        return State(None, moved, tuned._replace(log_step=log_step), steps + 1)

    def _chosen(self, ladder: tempering.State, adaptation: adapt.Adaptation) -> State:
        """The rungs of the ladder, coldest first."""
        energy, beta = ladder.energy.flip(0), ladder.beta.flip(0)
        index = [len(beta) - 1 - k for k in rungs(energy, beta, acceptance=self.plan.acceptance)]
        kept = _taken(ladder, index)
        log.info("temperatures over that of the target: %s", _listed(1 / kept.beta))
        return State(
            None,
            kept,
            adaptation._replace(log_step=adaptation.log_step[index], updates=3),
            0,
            tempering.RoundTrips.start(kept),
            kept.energy.new_zeros(2, len(index) - 1),
        )

    def _sweep(self, state: State, generator: torch.Generator) -> State:
        adaptation = state.adaptation
        ladder, info = tempering.step(
            cast(tempering.State, state.ladder),
            self.target,
            step_size=adaptation.step_size[:, None],
            generator=generator,
            scale=adaptation.scale,
            leapfrog_steps=self.config.leapfrog_steps,
        )
        steps, sweeps = state.steps + 1, self.sweeps
        # The first half tunes the kernels; the second half runs fixed ones, so it has a stationary law.
        if 2 * state.steps < sweeps:
            adaptation = moves.adapted(
                adaptation, info.move.acceptance.T, leapfrog_steps=self.config.leapfrog_steps
            )
            adaptation = self._scaled(adaptation, ladder, 0)
        if steps % _WATCH_EVERY == 0 or steps == sweeps:
            self._settled(ladder.energy[0])
        tried = ~info.exchanged.isnan()
        counted = torch.stack([info.exchanged.nan_to_num(), tried.to(info.exchanged)])
        gathered = state.gathered
        held = 0 if gathered is None else len(gathered.energy) // self.plan.chains
        # Evenly over the second half, the last of them at the end.
        due = sweeps - (self.snapshots - 1 - held) * (sweeps - sweeps // 2) // self.snapshots
        if steps >= due:
            cold = mala.State(*(field[0] for field in ladder[:3]))
            gathered = (
                cold
                if gathered is None
                else mala.State(
                    *(torch.cat([old, new]) for old, new in zip(gathered, cold, strict=True))
                )
            )
        return State(
            None,
            ladder,
            adaptation,
            steps,
            cast(tempering.RoundTrips, state.trips).after(info.origin),
            cast(Tensor, state.exchanged) + counted,
            gathered,
        )

    def _scaled(
        self, adaptation: adapt.Adaptation, ladder: tempering.State, rung: int
    ) -> adapt.Adaptation:
        """With the lengths of one rung, which serve all: only their ratios matter."""
        score = ladder.beta[rung] * ladder.score[rung]
        return adaptation.scaled_to(ladder.position[rung], score, self.target.space)

    def population(self, state: State) -> Population:
        """What a finished state holds."""
        rates, trips = self.exchange_rates(state), cast(tempering.RoundTrips, state.trips)
        log.info(
            "exchanges accepted between neighbours: %s; %d round trips, %.3g a replica ladder and thousand "
            "sweeps",
            _listed(rates),
            trips.finished,
            1000 * trips.rate,
        )
        gathered = cast(mala.State, state.gathered)
        kept = mala.State(*(field[-self.config.size :] for field in gathered))
        step_size = float(state.adaptation.step_size[0])
        return Population(kept, step_size, scale=state.adaptation.scale)

    @staticmethod
    def exchange_rates(state: State) -> Tensor:
        """Shares ``(k - 1,)`` of accepted exchanges between neighbours, coldest pair first, so far."""
        accepted, tried = cast(Tensor, state.exchanged).unbind()
        return accepted / tried.clamp(min=1)

    def unflatten(self, flat: Mapping[str, Any]) -> State:
        """See :meth:`State.unflatten`."""
        return State.unflatten(flat)

    def expected_evaluations(self, state: State, spent: int) -> int:
        """An estimate of the energy evaluations of the whole, of which ``spent`` were made."""
        plan, cooling = self.plan, self.config.anneal_moves
        leaps = self.config.leapfrog_steps
        if state.trips is not None:
            replicas = len(cast(tempering.State, state.ladder).beta)
            return spent + plan.chains * replicas * leaps * (self.sweeps - state.steps)
        # Neighbours that exchange at .3 are two to three levels apart.
        levels = EXPECTED_LEVELS // 2
        if state.annealing is None:
            return spent + plan.chains * (levels * cooling + leaps * self.sweeps * (levels // 2))
        annealing = self.progress(state).total or EXPECTED_LEVELS * cooling
        exchanging = leaps * self.sweeps * (levels // 2)
        return int(plan.chains * (2 + annealing + levels * cooling + exchanging))

    def progress(self, state: State) -> Progress:
        """Moves done and to be done in the present phase."""
        if state.annealing is not None:
            return annealing_progress(state.annealing, self.config.anneal_moves)
        ladder = cast(tempering.State, state.ladder)
        if state.trips is None:
            done = (len(ladder.beta) - 1) * self.config.anneal_moves + state.steps
            reached = 1 / float(ladder.beta[-1])
            return Progress("cooling", done, None, f"at {reached:.3g} times the temperature")
        rates = self.exchange_rates(state)
        low = float(rates.min()) if len(rates) else 1.0
        detail = (
            f"{len(ladder.beta)} temperatures, exchanges from {low:.2f}, "
            f"{state.trips.finished} round trips"
        )
        return Progress("exchange", state.steps, self.sweeps, detail)


def overlap(energy: Tensor, other: Tensor, gap: float) -> float:
    """Estimated share of accepted exchanges between chains of energies ``(b,)`` and ``(c,)``.

    ``gap`` is beta of the first minus beta of the second.
    """
    # Every chain meets a few of the others, drawn by shifts so that no random numbers are needed.
    n = min(len(energy), len(other))
    total = 0.0
    shifts = [k * n // 8 for k in range(8)]
    for shift in shifts:
        ratio = gap * (energy[:n] - other[:n].roll(shift))
        total += float(ratio.nan_to_num(nan=-torch.inf).clamp(max=0).exp().mean())
    return total / len(shifts)


def rungs(energy: Tensor, beta: Tensor, *, acceptance: float) -> list[int]:
    """Indices of the levels that make a ladder whose neighbours exchange at least at that share.

    ``energy`` ``(k, b)`` is of chains at ``beta`` ``(k,)``, which falls; the first and the last are in it.
    Neighbours that have less overlap already are taken as they are.
    """
    chosen = [0]
    while chosen[-1] < len(beta) - 1:
        here = following = chosen[-1]
        for k in range(here + 1, len(beta)):
            gap = float(beta[here] - beta[k])
            if k > here + 1 and overlap(energy[here], energy[k], gap) < acceptance:
                break
            following = k
        chosen.append(following)
    return chosen


def _cooler(ladder: tempering.State, generator: torch.Generator) -> tempering.State:
    """The ladder with one more level, of chains resampled from the last."""
    beta, energy = float(ladder.beta[-1]), ladder.energy[-1].double()
    worth = energy.nan_to_num(nan=torch.inf, posinf=torch.inf)

    def share(new: float) -> float:
        weight = -(new - beta) * (worth - worth[worth.isfinite()].min())
        return smc.effective_share(weight)

    new = 1.0
    if share(new) < _SHARE:
        low, high = beta, 1.0
        for _ in range(50):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if share(middle) >= _SHARE else (low, middle)
        new = max(low, beta * (1 + 1e-6))
    weight = -(new - beta) * worth
    index = smc.systematic_resample(weight - weight.max(), generator=generator)
    cooled = tempering.State(
        ladder.position[-1:, index],
        ladder.energy[-1:, index],
        ladder.score[-1:, index],
        ladder.beta.new_tensor([min(new, 1.0)]),
        0,
    )
    return _joined(ladder, cooled)


def _taken(ladder: tempering.State, index: list[int]) -> tempering.State:
    """Some of the rungs, before a first sweep."""
    position, energy, score, beta, _ = ladder
    return tempering.State(position[index], energy[index], score[index], beta[index], 0)


def _joined(ladder: tempering.State, more: tempering.State) -> tempering.State:
    """The rungs of both, before a first sweep."""
    return tempering.State(
        torch.cat([ladder.position, more.position]),
        torch.cat([ladder.energy, more.energy]),
        torch.cat([ladder.score, more.score]),
        torch.cat([ladder.beta, more.beta]),
        0,
    )


def _listed(values: Tensor) -> str:
    return ", ".join(f"{value:.3g}" for value in values.tolist())
