"""Samples against a reference: every metric with its standard error and its floor.

What the numbers mean is derived in :mod:`molsampler.analysis.statistics`; what is measured stands beside
each kind of metric, which :mod:`molsampler.analysis.registry` lists.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from molsampler.errors import InputError
from molsampler.samples import Samples
from molsampler.target import System

from . import modes, molecules, structures
from .distances import interatomic_distances
from .draws import Draws, Pool, Settings
from .energies import Histogram, histogram, rounding
from .importance import judge
from .modes import ModeComparison
from .molecules import MoleculeComparison
from .refinement import equal_budget_monte_carlo
from .registry import metric_kinds
from .statistics import GATE_SIGMAS, Metric, finite_or_none
from .structures import Structures

#: Effective samples for one that is drawn, from which on rows hardly come again.
_FRESH = 5


@dataclass(frozen=True)
class Summary:
    """Energies of one side in a few numbers.

    Attributes
    ----------
    n, effective : configurations and effective sample size
    median, median_se : median reduced energy and its bootstrap standard error
    lower, upper : 5 % and 95 % quantiles of the reduced energy
    infinite : number of configurations of infinite energy
    weighted : whether the configurations carry importance weights
    """

    n: int
    effective: float
    median: float
    median_se: float
    lower: float
    upper: float
    infinite: int
    weighted: bool = False

    @classmethod
    def of(cls, pool: Pool, *, generator: torch.Generator) -> Summary:
        """The energies of a pool, by weight."""
        u = pool.energies
        n = len(u)
        w = torch.full((n,), 1.0) if pool.weights is None else pool.weights
        size = max(2, int(pool.effective))
        boot = torch.stack(
            [
                u[torch.multinomial(w, size, replacement=True, generator=generator)].quantile(0.5)
                for _ in range(30)
            ]
        )
        order = u.argsort()
        cumulative = w[order].double().cumsum(0) / w.double().sum()
        low, median, high = (
            float(u[order[min(n - 1, int((cumulative < q).sum()))]]) for q in (0.05, 0.5, 0.95)
        )
        infinite = int(torch.isinf(u).sum())
        weighted = pool.weights is not None
        return cls(n, pool.effective, median, float(boot.std()), low, high, infinite, weighted)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {
            "n": self.n,
            "effective_sample_size": finite_or_none(self.effective),
            "median_energy": finite_or_none(self.median),
            "median_energy_se": finite_or_none(self.median_se),
            "energy_5_percent": finite_or_none(self.lower),
            "energy_95_percent": finite_or_none(self.upper),
            "infinite_energies": self.infinite,
        }


@dataclass(frozen=True)
class Comparison:
    """Everything that is known about one sample set against one reference.

    Attributes
    ----------
    label : name of the sample set
    system : the system's label, its name and the temperature where that is not the default one
    metrics : one of each kind that applies, in the order of the registry
    samples, reference : energy summaries of both sides
    modes : mode weights, or None where the system names no modes
    histograms : ``"energy"`` and, for two or more particles, ``"distance"``
    provenance : metadata of both sides, ``"samples"`` and ``"reference"``
    settings : n, repeats, seed and the like
    baselines : the same metrics for plain Monte Carlo, with what it cost in their provenance
    remarks : reductions and substitutions a reader must know of
    molecule : torsions, bonds and handedness, or None where the topology has no bonds
    structures : single configurations to look at, or None where there are no particles in space;
        in reports, not in JSON
    """

    label: str
    system: str
    metrics: tuple[Metric, ...]
    samples: Summary
    reference: Summary
    modes: ModeComparison | None
    histograms: Mapping[str, Histogram]
    provenance: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    baselines: tuple[Comparison, ...] = ()
    remarks: tuple[str, ...] = ()
    molecule: MoleculeComparison | None = None
    structures: Structures | None = None

    def metric(self, key: str) -> Metric:
        """The metric with identifier ``key``.

        Raises
        ------
        InputError
            It was not computed; the message lists those that were.
        """
        for metric in self.metrics:
            if metric.key == key:
                return metric
        known = [metric.key for metric in self.metrics]
        raise InputError(f"no metric {key!r} in this comparison; there are {known}")

    @property
    def passed(self) -> bool:
        """Whether every metric passes its gate and no mode is missing."""
        missing = self.modes is not None and bool(self.modes.missing)
        return not missing and all(metric.passed() for metric in self.metrics)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary of all numbers, histograms and provenance."""
        return {
            "label": self.label,
            "system": self.system,
            "passed": self.passed,
            "gate_sigmas": GATE_SIGMAS,
            "metrics": [metric.to_dict() for metric in self.metrics],
            "samples": self.samples.to_dict(),
            "reference": self.reference.to_dict(),
            "modes": None if self.modes is None else self.modes.to_dict(),
            "histograms": {name: h.to_dict() for name, h in self.histograms.items()},
            "provenance": {side: dict(data) for side, data in self.provenance.items()},
            "settings": dict(self.settings),
            "baselines": [baseline.to_dict() for baseline in self.baselines],
            "remarks": list(self.remarks),
            "molecule": None if self.molecule is None else self.molecule.to_dict(),
        }


def compare_many(
    candidates: Mapping[str, Samples],
    reference: Samples,
    system: System,
    *,
    n: int = 2000,
    repeats: int = 10,
    transport_repeats: int = 3,
    geometric_n: int | None = None,
    drift_steps: int = 50,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Comparison]:
    """Compare several sample sets with one reference, with floors computed once.

    All candidates meet the same reference draws. N is reduced, and a remark says so, where the
    smallest set holds fewer than 2 n configurations.

    Parameters
    ----------
    candidates : sample sets by label
    n : configurations per draw
    repeats : draws of the cheap metrics
    transport_repeats : draws of W2 and geo-W2; 0 leaves both out
    geometric_n : configurations per draw of geo-W2; by default what takes seconds
    drift_steps : MALA steps of the refinement drift; 0 leaves it out
    seed : of all draws; the same inputs and seed give the same numbers
    progress : called with a line of text as each part begins

    Returns
    -------
    One :class:`Comparison` per label.

    Raises
    ------
    InputError
        A setting is out of range or a set is too small.
    ShapeError, NonFiniteError
        A set does not fit the system or holds NaN.
    """
    settings = Settings(
        n=n,
        repeats=repeats,
        transport_repeats=transport_repeats,
        geometric_n=geometric_n,
        drift_steps=drift_steps,
        seed=seed,
    )
    return _measure(candidates, reference, system, settings, progress or (lambda _: None))


def _measure(
    candidates: Mapping[str, Samples],
    reference: Samples,
    system: System,
    settings: Settings,
    tell: Callable[[str], None],
) -> dict[str, Comparison]:
    draws = Draws(candidates, reference, system, settings)
    metrics: dict[str, list[Metric]] = {label: [] for label in candidates}
    for kind in metric_kinds():
        if kind.applies(system) and kind.repeats(settings):
            tell(kind.name)
            for label, metric in kind.measure(draws).items():
                metrics[label].append(metric)
    tell("summaries")
    base = _summary(draws.reference, settings)
    return {
        label: Comparison(
            label=label,
            system=system.label,
            metrics=tuple(metrics[label]),
            samples=_summary(pool, settings),
            reference=base,
            modes=modes.compare_pools(pool, draws.reference),
            histograms=_histograms(pool, draws.reference),
            provenance={
                "samples": dict(pool.metadata),
                "reference": dict(draws.reference.metadata),
            },
            settings={
                "n": draws.n,
                "requested_n": settings.n,
                "repeats": settings.repeats,
                "transport_repeats": settings.transport_repeats,
                "drift_steps": settings.drift_steps,
                "seed": settings.seed,
            },
            remarks=_remarks(label, pool, draws),
            molecule=molecules.compare_pools(pool, draws.reference),
            structures=structures.choose(pool, draws.reference),
        )
        for label, pool in draws.candidates.items()
    }


def _summary(pool: Pool, settings: Settings) -> Summary:
    return Summary.of(pool, generator=torch.Generator().manual_seed(settings.seed))


def _histograms(pool: Pool, base: Pool) -> dict[str, Histogram]:
    w, v = pool.row_weights, base.row_weights
    found = {"energy": histogram(pool.energies, base.energies, weights=w, reference_weights=v)}
    if base.system.shape[0] > 1:
        a, b = (interatomic_distances(each.positions) for each in (pool, base))
        found["distance"] = histogram(a, b, bins=90, weights=w, reference_weights=v)
    return found


def _remarks(label: str, pool: Pool, draws: Draws) -> tuple[str, ...]:
    remarks = [text for text in (draws.thinning[None], draws.thinning[label]) if text]
    if draws.n < draws.settings.n:
        remarks.append(
            f"N reduced from {draws.settings.n} to {draws.n}: the smallest set has an effective "
            f"size of {draws.smallest:.0f}, and two independent halves are needed."
        )
    for name, each in (("samples", pool), ("reference", draws.reference)):
        if each.weights is None:
            continue
        remarks.append(
            f"Importance weights of the {name} honoured by resampling; effective sample size "
            f"{each.effective:.0f} of {len(each)}."
        )
        if draws.n > each.effective / _FRESH:
            enough = _FRESH * draws.n * len(each) / max(each.effective, 1.0)
            remarks.append(
                f"N is more than a fifth of that: rows come again and again, which lifts values above the "
                f"floor by itself; {enough:,.0f} rows of them would not show it at this N."
            )
        verdict = judge(each.weights.log(), len(each))
        if not verdict.usable:
            remarks.append(f"The weights of the {name} carry no answer: {verdict.reason}.")
    for name, each in (("samples", pool), ("reference", draws.reference)):
        remarks += [f"Of the {name}, {text}." for text in rounding(each.metadata)]
    return tuple(remarks)


def compare(
    samples: Samples,
    reference: Samples,
    system: System,
    *,
    n: int = 2000,
    repeats: int = 10,
    transport_repeats: int = 3,
    geometric_n: int | None = None,
    drift_steps: int = 50,
    seed: int = 0,
    monte_carlo: bool = True,
    time_limit: float = 20.0,
    label: str = "samples",
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Compare samples with a reference, and plain Monte Carlo at equal cost with the same reference.

    Monte Carlo baselines are parallel chains from random starts:

    * with as many energy evaluations as sampling took: ``energy_evaluations`` of the samples'
      metadata per sample, or else one plus the number of refinement steps;
    * where the metadata states ``training_energy_evaluations``, with that budget, ended after
      ``time_limit`` seconds and labelled with what was spent.

    Other parameters, results and errors are those of :func:`compare_many`.
    """
    settings = Settings(
        n=n,
        repeats=repeats,
        transport_repeats=transport_repeats,
        geometric_n=geometric_n,
        drift_steps=drift_steps,
        seed=seed,
    )
    tell = progress or (lambda _: None)
    sets = {label: samples}
    if monte_carlo:
        sets |= _monte_carlo(samples, reference, system, settings, time_limit, tell)
    results = _measure(sets, reference, system, settings, tell)
    own = results.pop(label)
    return replace(own, baselines=tuple(results.values()))


def _monte_carlo(
    samples: Samples,
    reference: Samples,
    system: System,
    settings: Settings,
    time_limit: float,
    tell: Callable[[str], None],
) -> dict[str, Samples]:
    """Plain Monte Carlo at the cost of sampling and, where it is known, of training."""
    pool = Pool.of(reference, system, "reference")
    Pool.of(samples, system, "samples")
    # The scale of the reference is a kind start: it can only help the baseline.
    spread = float(pool.positions.std())
    chains = 2 * min(settings.n, len(samples) // 2, len(reference) // 2)
    metadata = samples.metadata
    per_sample = max(1, round(_budget(metadata, "energy_evaluations") / len(samples)))
    if per_sample == 1:
        per_sample = 1 + int(_budget(metadata, "refine"))
    tell("Monte Carlo at the cost of sampling")
    budgets = {"sampling": per_sample * chains}
    training = int(_budget(metadata, "training_energy_evaluations"))
    if training > chains:
        budgets["training"] = training
    rivals = {}
    for name, budget in budgets.items():
        started = time.perf_counter()
        found = equal_budget_monte_carlo(
            system,
            chains,
            energy_evaluations=budget,
            seed=settings.seed,
            time_limit=time_limit,
            spread=spread,
        )
        spent = int(found.metadata["energy_evaluations"])
        seconds = time.perf_counter() - started
        short = "" if spent > 0.99 * budget else f" (time limit; asked for {budget:.1e})"
        label = f"Monte Carlo at {name} budget, {spent:.1e} evaluations in {seconds:.1f} s{short}"
        rivals[label] = found
    return rivals


def _budget(metadata: Mapping[str, Any], key: str) -> float:
    """A non-negative number from metadata that others wrote, or 0."""
    value = metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if math.isfinite(value) and value >= 0 else 0.0


def tabulate(comparisons: Mapping[str, Comparison]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table with one line per sample set and the floors last.

    A cell reads ``value ± se``; a star marks values beyond the gate.
    """
    if not comparisons:
        raise InputError("comparisons must hold at least one entry, got none")
    first = next(iter(comparisons.values()))
    header = ["samples", "median energy", *(metric.name for metric in first.metrics)]
    rows = []
    for label, comparison in comparisons.items():
        summary = comparison.samples
        rows.append(
            [
                label,
                f"{summary.median:.2f} ± {summary.median_se:.2f}",
                *(
                    format_value(m.value, m.se) + ("" if m.passed() else " *")
                    for m in comparison.metrics
                ),
            ]
        )
    reference = first.reference
    rows.append(
        [
            "floor (reference against itself)",
            f"{reference.median:.2f} ± {reference.median_se:.2f}",
            *(format_value(m.floor, m.floor_se) for m in first.metrics),
        ]
    )
    sizes = [f"{m.n} x {m.repeats}" for m in first.metrics]
    rows.append(["N x repeats", str(reference.n), *sizes])
    return header, rows


def format_value(value: float, se: float) -> str:
    """``value ± se`` with as many digits as the error justifies."""
    if not math.isfinite(value):
        return "infinite"
    if abs(value) >= 1e5:
        return f"{value:.2g}"
    if not math.isfinite(se) or se <= 0:
        return f"{value:.3g}"
    wanted = 1 - math.floor(math.log10(se))
    if wanted > 6:
        # Such as the population of a basin that hardly a draw is in.
        return f"{value:.1e} ± {se:.0e}"
    digits = max(0, min(4, wanted))
    return f"{value:.{digits}f} ± {se:.{digits}f}"
