"""Short Metropolis runs: how far they carry samples, and how far they get from nothing.

MALA leaves the exact target invariant, so correct samples keep their energy distribution while
wrong ones drift towards it. The drift after k steps needs no reference data. It sees what local
moves can repair (strained bonds, overlapping particles) and is blind to wrong mode weights.

The same kernel started from random configurations is the baseline that a trained sampler must be
compared with: plain Monte Carlo at an equal number of energy evaluations.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from molsampler.errors import InputError
from molsampler.mcmc import adapt, mala, moves
from molsampler.mcmc.refine import FIRST_STEP, refine, tuned
from molsampler.mcmc.scale import SCALE_EVERY
from molsampler.molecule.z_matrix import chart_to_move_in
from molsampler.samples import Samples
from molsampler.target import System
from molsampler.wasserstein import wasserstein2_1d

from .draws import Draws, Pool, Settings
from .metric import MetricKind
from .statistics import Metric, standard_error

#: Samples refined for the drift.
DRIFT_SAMPLES = 2000

#: Disjoint parts they are split into, whose spread gives the standard error.
DRIFT_PARTS = 8


@dataclass(frozen=True)
class Drift:
    """Energy change of samples under a short Metropolis run.

    Attributes
    ----------
    value : energy-W2 between the samples before and after, in kT
    before, after : reduced energies ``(n,)``
    positions : positions after the run ``(n, N, D)``
    steps, step_size, acceptance : the run; the step size was adapted on a copy and then frozen
    energy_evaluations : of the run and of the adaptation together
    """

    value: float
    before: Tensor
    after: Tensor
    positions: Tensor
    steps: int
    step_size: float
    acceptance: float
    energy_evaluations: int


def refinement_drift(
    positions: Tensor,
    system: System,
    *,
    steps: int,
    generator: torch.Generator,
    adaptation_steps: int = 50,
    adaptation_chains: int = 256,
) -> Drift:
    r"""Run ``steps`` MALA steps on the exact target and measure the change of the energies.

    The value is :math:`W_2` between the energies of ``positions`` and of the positions reached. The
    step size is adapted on a copy of the first ``adaptation_chains`` samples, so the run itself is
    a fixed reversible kernel from its first step. Molecules move in internal coordinates.

    Parameters
    ----------
    positions : ``(n, N, D)``
    steps : number of MALA steps, at least 1

    Raises
    ------
    InputError
        ``steps`` is not positive or there are no samples.
    ShapeError, NonFiniteError
        See :func:`molsampler.target.check_positions`.
    """
    if steps < 1 or len(positions) == 0:
        raise InputError(
            f"steps and the number of samples must be positive, got {steps} and {len(positions)}"
        )
    x = system.space.project(positions.double())
    before = system.energy(x)
    chart = chart_to_move_in(system)
    x = chart.coordinates(x)
    tuning = tuned(x[:adaptation_chains], chart.target, steps=adaptation_steps, generator=generator)
    refined = refine(
        mala.init(x, chart.target),
        chart.target,
        steps=steps,
        tuning=tuning,
        generator=generator,
    )
    reached = chart.oriented(chart.positions(refined.state.position), generator=generator)
    after = system.energy(reached)
    return Drift(
        wasserstein2_1d(before, after),
        before,
        after,
        reached,
        steps,
        tuning.step_size,
        refined.acceptance,
        len(x) * (steps + 1) + len(x[:adaptation_chains]) * (adaptation_steps + 1),
    )


def equal_budget_monte_carlo(
    system: System,
    n: int,
    *,
    energy_evaluations: int,
    seed: int,
    time_limit: float | None = None,
    spread: float = 1.0,
) -> Samples:
    """Plain Monte Carlo from random starts within a budget of energy evaluations.

    ``n`` independent chains start from normal draws of standard deviation ``spread`` and run for
    ``energy_evaluations / n`` evaluations: the first half by MALA, whose step size is adapted meanwhile, the
    second by what serves the space best, trajectories of identical particles and MALA of others
    (:mod:`molsampler.mcmc.moves`). Their last states are the samples. A gradient counts as one energy
    evaluation. A molecule's chains move in internal coordinates, where it is nearly a product, and start from
    standard normal draws of those: in Cartesian coordinates its bonds would hold them still, and the rival be
    a straw man.

    Parameters
    ----------
    system : the exact target
    n : number of chains, hence of samples
    energy_evaluations : budget; at least ``n``, since starts must be evaluated
    time_limit : seconds after which the run stops early
    spread : standard deviation of the starts, system length unit

    Returns
    -------
    Samples whose metadata states the budget asked for and what was spent
    (``requested_energy_evaluations``, ``energy_evaluations``, ``seconds``, ``acceptance``).

    Raises
    ------
    InputError
        ``n`` is not positive, or the budget is smaller than ``n``.
    """
    if n < 1 or energy_evaluations < n:
        raise InputError(
            f"n must be positive and energy_evaluations at least n, got {n} and {energy_evaluations}"
        )
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    like = torch.zeros((), dtype=torch.float64)
    chart = chart_to_move_in(system)
    target = chart.target
    scale = spread if chart.internal is None else 1.0
    state = mala.init(scale * target.space.randn(n, generator=generator, like=like), target)
    adaptation = adapt.init(FIRST_STEP)
    total = energy_evaluations // n - 1
    done = 0
    acceptance = 0.0
    adapting = True
    while done < total:
        leaps = 1 if adapting else min(moves.usual(target.space), total - done)
        state, info = moves.step(
            state,
            target,
            step_size=float(adaptation.step_size),
            generator=generator,
            scale=adaptation.scale,
            leapfrog_steps=leaps,
        )
        acceptance = float(info.acceptance.mean())
        elapsed = time.perf_counter() - started
        done += leaps
        # Under a time limit the first half is half of whichever budget ends first.
        adapting = done < total / 2 and (time_limit is None or elapsed < time_limit / 2)
        if adapting:
            adaptation = adapt.update(adaptation, info.acceptance)
            if done % SCALE_EVERY == 0:
                adaptation = adaptation.scaled_to(state.position, state.score, target.space)
        if time_limit is not None and elapsed > time_limit:
            break
    return Samples.of(
        system,
        chart.oriented(chart.positions(state.position), generator=generator),
        method="parallel Monte Carlo from random starts",
        chains=n,
        steps=done,
        seed=seed,
        requested_energy_evaluations=energy_evaluations,
        energy_evaluations=n * (done + 1),
        seconds=round(time.perf_counter() - started, 3),
        acceptance=acceptance,
        step_size=float(adaptation.step_size),
    )


class RefinementDrift(MetricKind):
    """The mean drift of disjoint parts of a set, whose spread gives the error without an overlap."""

    key = "refinement_drift"
    name = "refinement drift"
    definition = (
        "Energy-W2 between samples and the same samples after some Metropolis-adjusted "
        "Langevin steps on the exact target. It needs no reference; its floor is the drift of the "
        "reference's own configurations, which is not zero because the moves decorrelate energies."
    )
    unit = "kT"

    def repeats(self, settings: Settings) -> int:
        return DRIFT_PARTS if settings.drift_steps else 0

    def measure(self, draws: Draws) -> dict[str, Metric]:
        size = min(DRIFT_SAMPLES, int(draws.smallest)) // DRIFT_PARTS
        floors, _ = _drifts(draws.reference, size, draws.settings)
        floor_se = standard_error(floors, 0.0)
        result = {}
        for label, pool in draws.candidates.items():
            values, acceptance = _drifts(pool, size, draws.settings)
            result[label] = Metric(
                key=self.key,
                name=f"{self.name}, {draws.settings.drift_steps} steps",
                definition=self.definition,
                value=float(np.mean(values)),
                se=standard_error(values, 0.0),
                floor=float(np.mean(floors)),
                floor_se=floor_se,
                null_se=math.sqrt(2) * floor_se,
                n=size,
                repeats=len(values),
                floor_repeats=len(floors),
                unit=self.unit,
                note=f"acceptance {np.mean(acceptance):.2f}",
            )
        return result


def _drifts(pool: Pool, size: int, settings: Settings) -> tuple[list[float], list[float]]:
    """Drift and acceptance of disjoint parts of a pool."""
    generator = torch.Generator().manual_seed(settings.seed)
    found = []
    for rows in torch.randperm(len(pool), generator=generator).chunk(DRIFT_PARTS):
        x = pool.positions[pool.draw(size, rows, generator)]
        found.append(
            refinement_drift(x, pool.system, steps=settings.drift_steps, generator=generator)
        )
    return [drift.value for drift in found], [drift.acceptance for drift in found]
