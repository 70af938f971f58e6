r"""How good a generator is, without data: the criteria that select and calibrate it.

**Discrepancy** compares samples with a population of chains of the target, made from the energy alone and
kept at equilibrium (:mod:`molsampler.mcmc.population`). Unlike the drift under local refinement it sees wrong
weights of separated modes and slow coordinates that no local move sets right. Samples :math:`x` and
population :math:`y` are compared through one-dimensional observables :math:`f_k`, each by its 2-Wasserstein
distance in units of the population's standard deviation,

.. math:: D^2 = \tfrac12 z_u^2 + \tfrac12 \operatorname{mean}_k z_k^2, \qquad
   z_k = W_2(f_k(x), f_k(y)) / \operatorname{std} f_k(y).

:math:`u` is the reduced energy. The others are the configuration's own pair distances in order of
length, which do not change under rotation, reflection and permutation, where the space is mean-free,
and the coordinates with as many random projections (sliced Wasserstein) where it is not. D is as good as the
population is: where annealing left its modes with wrong weights, D repeats the error.

**Drift** is the 2-Wasserstein distance between the energies of samples and of the same samples after a few
MALA steps. It is zero in local equilibrium and blind to the weights of modes and to slow coordinates.

**Energy TVD** and **mean energy** are what the code of the DiKL paper selects by: the total variation between
the energies before and after the steps on 500 bins of [-100, 100], one where fewer than 60 % fall inside;
and the mean of the energies below 300. **Last** takes the latest.

A generator of a range of temperatures is judged at several (:class:`Case`), from one end to the other; what
it is selected by is the mean over them.

**ESS** is the effective share of the weights of a generator that knows its density. It needs no population
and sees what the draws themselves reach; the same share by the weights of the chains
(:attr:`Evaluation.ess_of_chains`) is for the verdict, for it sees where chains are and no draw is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..estimate import effective_count, log_mean
from ..mcmc import mala
from ..mcmc.divergence import require_bounded
from ..mcmc.refine import Tuning, refine
from ..nn.generators import Generator
from ..nn.generators.density import DensityGenerator
from ..space import MeanFree, Space
from ..target import COORDINATE_LIMIT, Target

#: Samples are clamped to this before their energy is asked for.
REACH = 0.5 * COORDINATE_LIMIT

#: Pair distances by rank, coordinates, and projections used at most; more cost time and add little.
_OBSERVABLES = 32

#: Rows of the population compared with at most.
_ROWS = 16384

#: Chains at most whose density is asked for.
_CHAINS = 8192

#: Draws computed at once at most, and in blocks of what the generator asks for.
_AT_ONCE, _BLOCKS = 16384, 4

#: Share of the draws whose weights are cut down for the criterion.
_HEAVIEST = 0.01

#: Parts of the samples whose spread is the error.
_PARTS = 5

#: Energies of which the mean energy is taken; range, bins and least share inside of the energy TVD.
_CALM, _TVD_RANGE, _TVD_BINS, _TVD_SHARE = 300.0, (-100.0, 100.0), 500, 0.6

#: Spacing of the factors tried in calibration, and how often they may move on.
_CALIBRATION_STEP, _CALIBRATION_ROUNDS = 0.02, 4


class Discrepancy:
    """Distance D of samples to a population at equilibrium; the population's side is prepared once.

    Parameters
    ----------
    population : positions ``(m, n, d)`` and energies of the chains
    space : the target's space, which decides the observables
    """

    def __init__(self, population: mala.State, space: Space):
        self.space = space
        # Chains are independent of their index, so a stride is a fair choice.
        stride = max(1, -(-len(population.energy) // _ROWS))
        x, energy = population.position[::stride], population.energy[::stride]
        self.low, self.high = float(energy.min()), float(energy.max())
        observed = self._observe(x, energy)
        self.sorted = observed.sort(dim=0)[0]
        self.scale = observed.std(dim=0).clamp(min=1e-12)

    @property
    def bounds(self) -> tuple[float, float]:
        """The range of the population's energies, longer by its width at either end: beyond is no state that
        the density knows."""
        return _widened(self.low, self.high)

    def __call__(self, x: Tensor, energy: Tensor) -> tuple[float, float]:
        """D of positions ``(b, n, d)`` with reduced energies ``(b,)``, and its standard error."""
        observed = self._observe(x, energy)
        whole = self._distance(observed)
        parts = torch.tensor([self._distance(observed[k::_PARTS]) for k in range(_PARTS)])
        return whole, float(parts.std()) / math.sqrt(_PARTS)

    def _distance(self, observed: Tensor) -> float:
        ordered = observed.sort(dim=0)[0]
        levels = (torch.arange(len(ordered), device=ordered.device) + 0.5) / len(ordered)
        rows = (levels * len(self.sorted)).long().clamp(max=len(self.sorted) - 1)
        gap = ((ordered - self.sorted[rows]) / self.scale).square().mean(dim=0)
        return math.sqrt(0.5 * float(gap[0]) + 0.5 * float(gap[1:].mean()))

    def _observe(self, x: Tensor, energy: Tensor) -> Tensor:
        """Observables ``(b, k)``, the energy first."""
        # One sample in collision must cost, not decide: energies end at the population's range, widened.
        reach = self.high - self.low
        energy = energy.to(x).nan_to_num(nan=math.inf).clamp(max=self.high + reach)
        n = x.shape[1]
        if isinstance(self.space, MeanFree) and n > 1:
            first, second = torch.triu_indices(n, n, 1, device=x.device)
            # A chunk at a time: the distances of a large population need not fit at once.
            shape = torch.cat(
                [
                    (part[:, first] - part[:, second]).norm(dim=-1).sort(dim=-1)[0]
                    for part in torch.split(x, 4096)
                ]
            )
            shape = shape[:, self._spread(shape.shape[1])]
        else:
            flat = x.flatten(1)
            coordinates = flat[:, self._spread(flat.shape[1])]
            # The same projections at every call.
            rng = torch.Generator().manual_seed(0)
            axes = torch.randn(flat.shape[1], _OBSERVABLES, generator=rng, dtype=x.dtype).to(x)
            shape = torch.cat([coordinates, flat @ (axes / axes.norm(dim=0))], dim=1)
        return torch.cat([energy[:, None], shape], dim=1)

    @staticmethod
    def _spread(available: int) -> Tensor:
        """Indices of ``_OBSERVABLES`` columns, evenly spread, or of all if there are fewer."""
        if available <= _OBSERVABLES:
            return torch.arange(available)
        return torch.linspace(0, available - 1, _OBSERVABLES).round().long()


def _widened(low: float, high: float) -> tuple[float, float]:
    return 2 * low - high, 2 * high - low


@dataclass(frozen=True)
class Case:
    """What a generator is judged at: its one temperature, or one of its range.

    Attributes
    ----------
    target : the density there
    discrepancy : from the population there, None without one
    temperature : None for generators of one
    tuning : first guess of the MALA kernel, None where nothing is known
    chains : the population there, None without one
    unrest : by how much of its spread that population still drifted, None where it was at rest
    """

    target: Target
    discrepancy: Discrepancy | None
    temperature: float | None = None
    tuning: Tuning | None = None
    chains: mala.State | None = None
    unrest: float | None = None

    def of(self, generator: Generator) -> Generator:
        """The generator at the case's temperature."""
        return generator if self.temperature is None else generator.at(self.temperature)


@dataclass(frozen=True)
class Evaluation:
    """What can be known of a generator without data."""

    discrepancy: float | None
    """Distance to the population, None without one."""
    discrepancy_error: float | None
    drift: float
    """Mean over parts of the samples, kT."""
    drift_error: float
    energy_tvd: float
    mean_energy: float
    median_energy: float
    refined_median_energy: float
    acceptance: float
    spread: float
    """Standard deviation of the refined energies."""
    broken: int
    """Rows that are not finite, or whose energy lies outside the range of the population's (without one, of
    the refined energies) by more than its width."""
    samples: int
    ess: float | None = None
    """Effective share of the draws' weights, None where they carry none."""
    ess_error: float | None = None
    ess_trimmed: float | None = None
    """The same with the heaviest one per cent of the weights cut down to the least of them."""
    ess_trimmed_error: float | None = None
    log_z: float | None = None
    """Log of the mean weight."""
    log_z_error: float | None = None
    max_weight: float | None = None
    """Largest share that one draw has in the sum of weights."""
    ess_of_chains: float | None = None
    """Effective share of weights by those of the population's chains, which sees modes that no draw is in;
    None where it is not known."""

    @classmethod
    def mean(cls, parts: Sequence[Evaluation]) -> Evaluation:
        """The evaluation of a generator that was judged at several temperatures: means with their errors,
        sums of counts, the largest weight. Of log Z, another at each, there is no mean."""
        if len(parts) == 1:
            return parts[0]

        def over(name: str) -> float | None:
            given: list[float | None] = [getattr(part, name) for part in parts]
            values = [value for value in given if value is not None]
            if len(values) < len(given) or name.startswith("log_z"):
                return None
            if name == "max_weight":
                return max(values)
            if name.endswith("_error"):
                return math.sqrt(sum(value**2 for value in values)) / len(values)
            whole = sum(values)
            return whole if name in ("broken", "samples") else whole / len(values)

        return cls(**{each.name: over(each.name) for each in fields(cls)})  # type: ignore[arg-type]

    def values(self, *, log_z: float | None) -> dict[str, float]:
        """What is worth logging, ``log_z`` being that of the measure that is stated."""
        known = {
            "discrepancy": self.discrepancy,
            "discrepancy_error": self.discrepancy_error,
            "ess": self.ess,
            "ess_error": self.ess_error,
            "ess_trimmed": self.ess_trimmed,
            "log_z": log_z,
            "log_z_error": self.log_z_error,
        }
        return {
            **{key: value for key, value in known.items() if value is not None},
            "drift": self.drift,
            "drift_error": self.drift_error,
            "energy_tvd": self.energy_tvd,
            "mean_energy": self.mean_energy,
            "median_energy": self.median_energy,
            "refined_median_energy": self.refined_median_energy,
            "acceptance": self.acceptance,
            "broken": self.broken,
        }

    def value(self, criterion: str) -> tuple[float, float]:
        """What selection goes by, the less the better, and its standard error."""
        if criterion == "auto":
            criterion = "drift" if self.discrepancy is None else "discrepancy"
            criterion = criterion if self.ess is None else "ess"
        if criterion == "ess":
            if self.ess_trimmed is None or self.ess_trimmed_error is None:
                raise InputError("criterion: ess needs a generator that knows its density")
            # Whether one draw in ten thousand has fallen where weights are hundreds is a lottery.
            return 1.0 - self.ess_trimmed, self.ess_trimmed_error
        if criterion == "discrepancy":
            if self.discrepancy is None or self.discrepancy_error is None:
                raise InputError("criterion: discrepancy needs an objective with a population")
            return self.discrepancy, self.discrepancy_error
        if criterion == "drift":
            return self.drift, self.drift_error
        if criterion == "energy-tvd":
            return self.energy_tvd, 0.0
        if criterion == "mean-energy":
            return self.mean_energy, 0.0
        return 0.0, 0.0


def evaluate(
    generator: Generator,
    target: Target,
    *,
    discrepancy: Discrepancy | None,
    samples: int,
    steps: int,
    rng: torch.Generator,
    tuning: Tuning | None = None,
    chains: mala.State | None = None,
    on_drawn: Callable[[int, float], None] | None = None,
) -> Evaluation:
    """Judge a generator by ``samples`` draws and the same after ``steps`` MALA steps.

    ``tuning`` is a first guess of their kernel, by default from the spread of the samples; ``chains`` are the
    population, for the density of a generator that knows it. ``on_drawn`` is told the number of draws as they
    come, and the seconds that they have taken.

    Raises
    ------
    UnboundedEnergyError
        The refined samples are where no energy with a norm goes.
    """
    with torch.no_grad():
        drawn, weights = _drawn(generator, target, samples, rng, on_drawn)
    x = drawn.nan_to_num().clamp(-REACH, REACH)
    chain = mala.init(x, target)
    before = chain.energy
    far, far_error = (None, None) if discrepancy is None else discrepancy(x, before)
    guess = tuning or Tuning(max(1e-3 * float(x.var()), 1e-8))
    refined = refine(chain, target, steps=steps, tuning=guess, generator=rng, adaptive=True)
    after = refined.state.energy
    require_bounded(after, x[0].numel(), "refined samples")
    # One sample in collision must cost, not decide: energies end at the refined range, widened.
    low, high = after.min(), after.max()
    ceiling = high + (high - low)
    least, most = _widened(float(low), float(high)) if discrepancy is None else discrepancy.bounds
    inside = (before >= least) & (before <= most)
    whole = inside & torch.isfinite(drawn).flatten(1).all(1)
    moved = torch.stack(
        [
            (first.clamp(max=ceiling).sort()[0] - second.sort()[0]).square().mean().sqrt()
            for first, second in zip(before.chunk(_PARTS), after.chunk(_PARTS), strict=True)
        ]
    )
    calm = before[before < _CALM]
    return Evaluation(
        discrepancy=far,
        discrepancy_error=far_error,
        drift=float(moved.mean()),
        drift_error=float(moved.std()) / math.sqrt(_PARTS),
        energy_tvd=energy_tvd(before, after),
        mean_energy=float(calm.mean()) if len(calm) else math.inf,
        median_energy=float(before.median()),
        refined_median_energy=float(after.median()),
        acceptance=refined.acceptance,
        spread=float(after.std()),
        broken=int((~whole).sum()),
        samples=samples,
        **_of_weights(weights),
        ess_of_chains=_ess_of_chains(generator, chains, weights),
    )


def _drawn(
    generator: Generator,
    target: Target,
    samples: int,
    rng: torch.Generator,
    on_drawn: Callable[[int, float], None] | None,
) -> tuple[Tensor, Tensor | None]:
    """Draws and their log weights, a bounded number at a time."""
    draws, began = [], time.perf_counter()
    most = min(_AT_ONCE, _BLOCKS * generator.at_once)
    for done in range(0, samples, most):
        count = min(most, samples - done)
        draws.append(generator.draw(count, target, generator=rng))
        if on_drawn is not None:
            on_drawn(done + count, time.perf_counter() - began)
    x = torch.cat([draw.x for draw in draws])
    weights = [draw.log_weight for draw in draws if draw.log_weight is not None]
    return x, torch.cat(weights).cpu() if weights else None


def _of_weights(weights: Tensor | None) -> dict[str, float | None]:
    """What log weights ``(n,)`` say of a generator."""
    if weights is None:
        names = (
            "ess",
            "ess_error",
            "ess_trimmed",
            "ess_trimmed_error",
            "log_z",
            "log_z_error",
            "max_weight",
        )
        return dict.fromkeys(names)
    share, share_error = _share(weights)
    trimmed, trimmed_error = _share(_trimmed(weights))
    log_z = log_mean(weights)
    return {
        "ess": share,
        "ess_error": share_error,
        "ess_trimmed": trimmed,
        "ess_trimmed_error": trimmed_error,
        "log_z": log_z.value,
        "log_z_error": log_z.se,
        "max_weight": float((weights.max() - torch.logsumexp(weights, 0)).exp()) if share else None,
    }


def _share(weights: Tensor) -> tuple[float, float]:
    """Effective share of log weights, and its standard error."""
    parts = torch.tensor([effective_count(part) / len(part) for part in weights.chunk(_PARTS)])
    return effective_count(weights) / len(weights), float(parts.std()) / math.sqrt(_PARTS)


def _trimmed(weights: Tensor) -> Tensor:
    """Log weights with the largest cut down."""
    count = max(int(_HEAVIEST * len(weights)), 1)
    return weights.clamp(max=float(weights.topk(count).values[-1]))


def energy_tvd(before: Tensor, after: Tensor) -> float:
    """Total variation between two sets of reduced energies ``(b,)``, as the paper's code has it."""
    low, high = _TVD_RANGE
    first, second = (
        torch.histc(energy.float(), bins=_TVD_BINS, min=low, max=high) for energy in (before, after)
    )
    if float(first.sum()) < _TVD_SHARE * len(before) or float(second.sum()) == 0:
        return 1.0
    return float(0.5 * (first / first.sum() - second / second.sum()).abs().sum())


def calibrate(
    generator: Generator,
    cases: Sequence[Case],
    *,
    samples: int,
    rng: torch.Generator,
) -> float:
    """Factor of :meth:`~molsampler.nn.generators.base.Generator.calibrated` that brings a generator's samples
    nearest to the population, in the mean square over the cases that have one; one for kinds without such a
    number.

    All factors see the same noise, so D squared is smooth in the factor: a parabola through five values
    has its minimum, and where that lies at the end of the five they move there. The factor found is taken
    if D there is below that at one.
    """
    if generator.calibrated(1.0) is None or all(case.discrepancy is None for case in cases):
        return 1.0
    noise = rng.get_state()

    def distance(factor: float) -> float:
        scaled = generator.calibrated(factor)
        if scaled is None:
            return math.inf
        rng.set_state(noise)
        squares = []
        for case in cases:
            if case.discrepancy is None:
                continue
            with torch.no_grad():
                x = case.of(scaled).draw(samples, case.target, generator=rng).x
                x = x.nan_to_num().clamp(-REACH, REACH)
            squares.append(case.discrepancy(x, case.target.energy_and_score(x)[0])[0] ** 2)
        return math.sqrt(sum(squares) / max(len(squares), 1))

    centre, reach = 1.0, 2 * _CALIBRATION_STEP
    uncalibrated = distance(1.0)
    for _ in range(_CALIBRATION_ROUNDS):
        offsets = np.linspace(-reach, reach, 5)
        squares = [distance(centre + offset) ** 2 for offset in offsets]
        curvature, slope, _ = np.polyfit(offsets, squares, 2)
        lowest = -0.5 * slope / curvature if curvature > 0 else offsets[int(np.argmin(squares))]
        move = float(np.clip(lowest, -reach, reach))
        centre += move
        if abs(move) < reach:
            break
    return centre if distance(centre) < uncalibrated else 1.0


def _ess_of_chains(
    generator: Generator, chains: mala.State | None, weights: Tensor | None
) -> float | None:
    r"""Effective share of weights by chains of the target, :math:`Z / E_p[w]`, with Z by the draws.

    The mean square of the weights over draws is Z times their mean over the target; chains have weights where
    no draw falls. The largest thousandth of those is cut, so that more than a chain has to say so.
    """
    if chains is None or weights is None or not isinstance(generator, DensityGenerator):
        return None
    if generator.evaluations_per_sample > 1:
        return None
    stride = max(1, -(-len(chains.energy) // _CHAINS))
    x, energy = chains.position[::stride], chains.energy[::stride]
    with torch.no_grad():
        density = torch.cat([generator.log_prob(part) for part in torch.split(x, 1024)])
    theirs = -(energy.double() + density.double().nan_to_num(nan=-math.inf)).cpu()
    highest = theirs.sort()[0][int(0.999 * (len(theirs) - 1))]
    if not math.isfinite(highest):
        return 0.0
    mean = log_mean(theirs.clamp(max=highest)).value
    return min(1.0, math.exp(min(0.0, log_mean(weights).value - mean)))
