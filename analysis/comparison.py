r"""Samples against a reference: every metric with its standard error and its floor.

**Draws.** For each of R repeats the reference is split at random in two; N configurations of the
first half, A, are the reference draw, N of the second half, B, an independent draw of the same law.
With N samples S the *value* of a metric m is the mean of m(S, A) and its *floor* the mean of
m(B, A). A metric of finite samples is positive even when both laws agree, so a value means something
only against its floor.

**Standard errors.** Repeats share configurations, so s / sqrt(R) would be too small. For N draws
without replacement out of n, two draws of a linear statistic correlate by f = N / n; with s^2 the
variance between repeats, the variance of their mean is taken as

.. math:: se^2 = s^2 \left(\frac1R + \frac{f}{1-f}\right), \qquad f = \tfrac12 (f_S + f_A).

Where both laws agree, a distance has no linear part (it is quadratic in the fluctuations of either
set), two draws correlate by f^2, and f^2 replaces f in the error of the floor.

**Gate.** The hypothesis tested is that both laws agree. Under it the spread between repeats is the
floor's, so the gate uses the floor's s^2 on both sides: a value that fluctuates wildly, as energy-W2
does when a few samples sit on a wall, must not excuse itself by its own error. A quarter of the
variance of a squared distance of two equal laws comes from A, which value and floor share, hence

.. math:: null\_se^2 = \tfrac34 s^2 \left(\frac1R + \frac1{R_0} + \frac{2 f^2}{1-f^2}\right)

with R and R_0 the repeats of value and floor, and a metric passes when
value <= floor + k null_se, k = ``GATE_SIGMAS``. A distance near zero scatters more upwards than
downwards and the error is itself estimated, hence six. Over hundreds of pairs of sets of known law the
standard deviation of (value - floor) / null_se was .7 to 1 for the total variations and 1 to 1.3 for
energy-W2, W2 and geo-W2.

**Weights.** Importance weights are honoured by drawing with replacement in proportion to them; then
n in the above is the effective sample size. Energies are those of the exact target at the positions
given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from molsampler.errors import InputError, NonFiniteError, ShapeError
from molsampler.samples import Samples
from molsampler.target import System

from . import energies, modes, torsions, transport
from .distances import interatomic_distances
from .energies import Histogram
from .modes import HasModes, ModeComparison
from .refinement import equal_budget_monte_carlo, refinement_drift
from .torsions import Molecule, MoleculeComparison

#: Standard errors above the floor at which a metric no longer passes.
GATE_SIGMAS = 6.0

#: Fewest draws of a floor, whose spread decides the gate.
FLOOR_REPEATS = 6

#: Samples refined for the drift.
DRIFT_SAMPLES = 2000

#: Disjoint parts they are split into, whose spread gives the standard error.
DRIFT_PARTS = 8

#: Fewest configurations per draw for which the metrics are computed.
SMALLEST_DRAW = 20


@dataclass(frozen=True)
class Metric:
    """One distance between samples and reference.

    Attributes
    ----------
    key, name : identifier and display name
    value, se : mean over the repeats and its standard error
    floor, floor_se : the same between two independent halves of the reference
    null_se : standard error that value minus floor would have if both laws agreed
    n, repeats : configurations per draw and number of draws
    floor_repeats : number of draws of the floor
    unit : of value and floor, empty if dimensionless
    note : what a reader must know to use the number
    """

    key: str
    name: str
    value: float
    se: float
    floor: float
    floor_se: float
    null_se: float
    n: int
    repeats: int
    floor_repeats: int
    unit: str = ""
    note: str = ""

    @property
    def ratio(self) -> float:
        """Value over floor; NaN where the floor is zero."""
        return self.value / self.floor if self.floor > 0 else math.nan

    @property
    def z(self) -> float:
        """Excess over the floor in standard errors of the difference if both laws agreed."""
        error = self.null_se
        excess = self.value - self.floor
        if math.isinf(excess):
            return math.inf
        if error == 0 or math.isnan(error):
            return 0.0 if excess <= 0 else math.inf
        return excess / error

    def passed(self, sigmas: float = GATE_SIGMAS) -> bool:
        """Whether the value lies within ``sigmas`` standard errors of the floor."""
        return self.z <= sigmas

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary; numbers that are not finite become None."""
        return {
            "key": self.key,
            "name": self.name,
            "value": _number(self.value),
            "se": _number(self.se),
            "floor": _number(self.floor),
            "floor_se": _number(self.floor_se),
            "null_se": _number(self.null_se),
            "ratio": _number(self.ratio),
            "z": _number(self.z),
            "passed": self.passed(),
            "n": self.n,
            "repeats": self.repeats,
            "floor_repeats": self.floor_repeats,
            "unit": self.unit,
            "note": self.note,
        }


@dataclass(frozen=True)
class Summary:
    """Energies of one side in a few numbers.

    Attributes
    ----------
    n, effective : configurations and effective sample size
    median, median_se : median reduced energy and its bootstrap standard error
    lower, upper : 5 % and 95 % quantiles of the reduced energy
    infinite : number of configurations of infinite energy
    """

    n: int
    effective: float
    median: float
    median_se: float
    lower: float
    upper: float
    infinite: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {
            "n": self.n,
            "effective_sample_size": _number(self.effective),
            "median_energy": _number(self.median),
            "median_energy_se": _number(self.median_se),
            "energy_5_percent": _number(self.lower),
            "energy_95_percent": _number(self.upper),
            "infinite_energies": self.infinite,
        }


@dataclass(frozen=True)
class Comparison:
    """Everything that is known about one sample set against one reference.

    Attributes
    ----------
    label : name of the sample set
    system : the system's name
    metrics : the distances, in a fixed order
    samples, reference : energy summaries of both sides
    modes : mode weights, or None where the system names no modes
    histograms : ``"energy"`` and, for two or more particles, ``"distance"``
    provenance : metadata of both sides, ``"samples"`` and ``"reference"``
    settings : n, repeats, seed and the like
    baselines : the same metrics for plain Monte Carlo, with what it cost in their provenance
    remarks : reductions and substitutions a reader must know of
    molecule : torsions, bonds and handedness, or None where the topology has no bonds
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
        result: dict[str, Any] = {
            "label": self.label,
            "system": self.system,
            "passed": self.passed,
            "gate_sigmas": GATE_SIGMAS,
            "metrics": [metric.to_dict() for metric in self.metrics],
            "samples": self.samples.to_dict(),
            "reference": self.reference.to_dict(),
            "modes": None,
            "histograms": {
                name: {
                    "edges": h.edges.tolist(),
                    "samples": h.samples.tolist(),
                    "reference": h.reference.tolist(),
                    "outside": h.outside,
                }
                for name, h in self.histograms.items()
            },
            "provenance": {side: dict(data) for side, data in self.provenance.items()},
            "settings": dict(self.settings),
            "baselines": [baseline.to_dict() for baseline in self.baselines],
            "remarks": list(self.remarks),
            "molecule": None if self.molecule is None else self.molecule.to_dict(),
        }
        if self.modes is not None:
            m = self.modes
            result["modes"] = {
                "names": list(m.samples.names),
                "exclusive": m.samples.exclusive,
                "samples": m.samples.weights.tolist(),
                "samples_se": m.samples.se.tolist(),
                "reference": m.reference.weights.tolist(),
                "reference_se": m.reference.se.tolist(),
                "difference": m.difference.tolist(),
                "difference_se": m.difference_se.tolist(),
                "distance": m.distance,
                "hit": m.hit,
                "present": m.present,
                "missing": list(m.missing),
            }
        return result


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


@dataclass
class _Pool:
    """One side: positions in float64 on the system's space, energies and weights."""

    positions: Tensor
    energies: Tensor
    weights: Tensor | None
    metadata: Mapping[str, Any]
    effective: float = field(init=False)

    def __post_init__(self) -> None:
        self.effective = modes.effective_sample_size(self.weights, len(self.positions))

    @classmethod
    def of(cls, samples: Samples, system: System, name: str) -> _Pool:
        if not isinstance(samples, Samples):
            raise InputError(f"{name} must be Samples, got {type(samples).__name__}")
        if tuple(samples.positions.shape[1:]) != tuple(system.shape):
            raise ShapeError(
                f"{name} must hold configurations of shape {tuple(system.shape)} for system "
                f"{system.name!r}, got {tuple(samples.positions.shape[1:])}"
            )
        for part, values in (("positions", samples.positions), ("energies", samples.energies)):
            if bool(torch.isnan(values).any()):
                rows = int(torch.isnan(values).reshape(len(values), -1).any(-1).sum())
                raise NonFiniteError(f"{name}.{part} hold NaN in {rows} of {len(values)} rows")
        if len(samples) < 2 * SMALLEST_DRAW:
            raise InputError(
                f"{name} must hold at least {2 * SMALLEST_DRAW} configurations, got {len(samples)}"
            )
        positions = system.space.project(samples.positions.detach().cpu().double())
        log_weights = samples.log_weights
        weights = None if log_weights is None else torch.softmax(log_weights, 0)
        return cls(positions, samples.energies.detach().cpu(), weights, samples.metadata)

    def side(self, molecule: Molecule) -> torsions.Side:
        return torsions.Side(molecule, self.positions, self.weights, self.metadata)

    def draw(self, n: int, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Indices of n configurations out of ``rows``, by weight if there are weights."""
        if self.weights is None:
            return rows[:n]
        weights = self.weights[rows]
        return rows[torch.multinomial(weights, n, replacement=True, generator=generator)]

    def split(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Two disjoint draws of n."""
        order = torch.randperm(len(self.positions), generator=generator)
        half = len(order) // 2
        return self.draw(n, order[:half], generator), self.draw(n, order[half:], generator)

    def summary(self, generator: torch.Generator) -> Summary:
        u = self.energies
        n = len(u)
        w = torch.full((n,), 1.0) if self.weights is None else self.weights
        size = max(2, int(self.effective))
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
        return Summary(
            n, self.effective, median, float(boot.std()), low, high, int(torch.isinf(u).sum())
        )


@dataclass(frozen=True)
class _Recipe:
    """How one metric is computed from two draws."""

    key: str
    name: str
    unit: str
    n: int
    repeats: int
    # (positions, energies) of a sample draw and of a reference draw to (value, share set aside)
    measure: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[float, float]]
    share: str = ""
    note: str = ""


def _geometric_size(shape: tuple[int, int], exchangeable: bool) -> int:
    """Configurations per draw that keep geo-W2 within seconds."""
    n, d = shape
    if not exchangeable or transport.enumerable(n, d):
        return 1000
    return 300 if n <= 20 else 100


def _recipes(
    system: System,
    molecule: Molecule | None,
    n: int,
    repeats: int,
    transport_repeats: int,
    geometric_n: int | None,
) -> list[_Recipe]:
    particles, dimension = system.shape

    def tvd_energy(_: Tensor, u: Tensor, __: Tensor, v: Tensor) -> tuple[float, float]:
        result = energies.total_variation(u, v)
        return result.value, result.outside

    def tvd_distance(x: Tensor, _: Tensor, y: Tensor, __: Tensor) -> tuple[float, float]:
        result = energies.total_variation(interatomic_distances(x), interatomic_distances(y))
        return result.value, result.outside

    def energy_w2(_: Tensor, u: Tensor, __: Tensor, v: Tensor) -> tuple[float, float]:
        return energies.wasserstein2_1d(u, v), 0.0

    def energy_w2_trimmed(_: Tensor, u: Tensor, __: Tensor, v: Tensor) -> tuple[float, float]:
        result = energies.trimmed_wasserstein2(u, v)
        return result.value, result.share

    def w2(x: Tensor, _: Tensor, y: Tensor, __: Tensor) -> tuple[float, float]:
        return transport.wasserstein2(x, y), 0.0

    def geo_w2(x: Tensor, _: Tensor, y: Tensor, __: Tensor) -> tuple[float, float]:
        found = transport.geometric_wasserstein2(x, y, exchangeable=system.exchangeable)
        return found.value, 0.0

    recipes = [
        _Recipe("tvd_energy", "TVD-E", "", n, repeats, tvd_energy, "outside the reference's range")
    ]
    if particles > 1:
        recipes.append(
            _Recipe(
                "tvd_distance",
                "TVD-D",
                "",
                n,
                repeats,
                tvd_distance,
                "outside the reference's range",
            )
        )
    recipes += [
        _Recipe("energy_w2", "energy-W2", "kT", n, repeats, energy_w2),
        _Recipe(
            "energy_w2_trimmed",
            "energy-W2, trimmed",
            "kT",
            n,
            repeats,
            energy_w2_trimmed,
            "trimmed",
        ),
    ]
    if isinstance(system, HasModes):

        def mode_tvd(x: Tensor, _: Tensor, y: Tensor, __: Tensor) -> tuple[float, float]:
            a, b = (modes.mode_weights(z, system) for z in (x, y))
            return modes.mode_distance(a, b), 0.0

        recipes.append(_Recipe("mode_tvd", "mode weights", "", n, repeats, mode_tvd))
    if molecule is not None:
        recipes += _torsion_recipes(molecule, n, repeats)
    if transport_repeats:
        note = "poses and labels of the reference decide it" if system.invariant else ""
        recipes.append(_Recipe("w2", "W2", "length", n, transport_repeats, w2, note=note))
        if system.invariant and particles > 1 and dimension <= 3:
            limit = geometric_n or _geometric_size(system.shape, system.exchangeable)
            exact = not system.exchangeable or transport.enumerable(particles, dimension)
            recipes.append(
                _Recipe(
                    "geo_w2",
                    "geo-W2",
                    "length",
                    min(n, limit),
                    transport_repeats,
                    geo_w2,
                    note="exact" if exact else "upper bound, as is its floor",
                )
            )
    return recipes


def _torsion_recipes(molecule: Molecule, n: int, repeats: int) -> list[_Recipe]:
    def ramachandran(x: Tensor, _: Tensor, y: Tensor, __: Tensor) -> tuple[float, float]:
        a, b = molecule.ramachandran(x), molecule.ramachandran(y)
        return torsions.ramachandran_tvd(a, b), 0.0

    def basins(x: Tensor, _: Tensor, y: Tensor, __: Tensor) -> tuple[float, float]:
        a, b = molecule.ramachandran(x), molecule.ramachandran(y)
        return torsions.basin_distance(a, b), 0.0

    def torsion(x: Tensor, _: Tensor, y: Tensor, __: Tensor) -> tuple[float, float]:
        a, b = (molecule.dihedrals(z, molecule.torsions) for z in (x, y))
        return torsions.torsion_tvd(a, b), 0.0

    recipes = []
    if molecule.residues:
        recipes += [
            _Recipe("ramachandran_tvd", "Ramachandran TVD", "", n, repeats, ramachandran),
            _Recipe("basin_tvd", "basin weights", "", n, repeats, basins),
        ]
    if len(molecule.torsions):
        recipes.append(_Recipe("torsion_tvd", "torsion TVD", "", n, repeats, torsion))
    return recipes


def _molecule_metrics(samples: torsions.Side, reference: torsions.Side) -> list[Metric]:
    """Shares of molecules that are wrong as such, over all configurations of both sides."""

    def metric(key: str, name: str, share: torsions.Share, null_se: float, note: str) -> Metric:
        return Metric(
            key,
            name,
            share.value,
            share.error(share.value),
            share.floor,
            math.sqrt(share.floor * (1 - share.floor) / share.reference_n),
            null_se,
            len(samples.x),
            1,
            1,
            note=note,
        )

    share = torsions.broken_share(samples, reference)
    count = round(share.value * len(samples.x))
    note = f"{count:,} of {len(samples.x):,} molecules"
    metrics = [
        metric("broken_bonds", "broken molecules", share, share.null_error(unanimous=False), note)
    ]
    if samples.molecule.centres:
        share = torsions.wrong_hand_share(samples, reference)
        note = "" if share.floor else "no wrong hand in the reference, so none may occur"
        metrics.append(
            metric("wrong_hand", "wrong-handed", share, share.null_error(unanimous=True), note)
        )
    return metrics


def _standard_error(values: list[float], overlap: float) -> float:
    if not all(map(math.isfinite, values)):
        return math.nan
    return float(np.std(values, ddof=1) * math.sqrt(1 / len(values) + overlap / (1 - overlap)))


def _null_error(floors: list[float], repeats: int, overlap: float) -> float:
    """Standard error of value minus floor where both laws agree; see the module's text."""
    shared = overlap**2 / (1 - overlap**2)
    factor = 0.75 * (1 / repeats + 1 / len(floors) + 2 * shared)
    return float(np.std(floors, ddof=1) * math.sqrt(factor))


def _check_settings(n: int, repeats: int, transport_repeats: int) -> None:
    if n < SMALLEST_DRAW:
        raise InputError(f"n must be an integer >= {SMALLEST_DRAW}, got {n!r}")
    if repeats < 2:
        raise InputError(f"repeats must be an integer >= 2, got {repeats!r}")
    if transport_repeats == 1 or transport_repeats < 0:
        raise InputError(
            f"transport_repeats must be 0 (leave transport out) or >= 2, got {transport_repeats!r}"
        )


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
    _check_settings(n, repeats, transport_repeats)
    if not candidates:
        raise InputError("candidates must hold at least one sample set, got none")
    tell = progress or (lambda _: None)
    base = _Pool.of(reference, system, "reference")
    if bool(torch.isinf(base.energies).any()):
        raise NonFiniteError("reference.energies hold infinite values; a reference must be finite")
    pools = {
        label: _Pool.of(samples, system, f"samples {label!r}")
        for label, samples in candidates.items()
    }
    smallest = min([base.effective, *(pool.effective for pool in pools.values())])
    size = min(n, int(smallest) // 2)
    if size < SMALLEST_DRAW:
        raise InputError(
            f"the smallest set has an effective size of {smallest:.1f}; at least "
            f"{2 * SMALLEST_DRAW} are needed"
        )
    remarks: list[str] = []
    if size < n:
        remarks.append(
            f"N reduced from {n} to {size}: the smallest set has an effective size of "
            f"{smallest:.0f}, and two independent halves are needed."
        )
    molecule = torsions.molecule_of(system)
    recipes = _recipes(system, molecule, size, repeats, transport_repeats, geometric_n)
    floors: dict[str, list[float]] = {r.key: [] for r in recipes}
    values: dict[str, dict[str, list[float]]] = {
        label: {r.key: [] for r in recipes} for label in pools
    }
    shares: dict[str, dict[str, list[float]]] = {
        label: {r.key: [] for r in recipes} for label in pools
    }
    rounds = max(repeats, transport_repeats, FLOOR_REPEATS)
    for repeat in range(rounds):
        tell(f"repeat {repeat + 1} of {rounds}")
        a, b = base.split(size, torch.Generator().manual_seed(seed * 1_000_003 + repeat))
        draws = {}
        for label, pool in pools.items():
            # The same generator for every candidate: a value does not depend on its neighbours.
            generator = torch.Generator().manual_seed(seed * 1_000_003 + repeat + 500_000)
            draws[label] = pool.split(size, generator)[0]
        for recipe in recipes:
            if repeat >= max(recipe.repeats, FLOOR_REPEATS):
                continue
            first, second = a[: recipe.n], b[: recipe.n]
            x, u = base.positions[first], base.energies[first]
            floors[recipe.key].append(
                recipe.measure(base.positions[second], base.energies[second], x, u)[0]
            )
            for label, pool in pools.items() if repeat < recipe.repeats else ():
                rows = draws[label][: recipe.n]
                value, share = recipe.measure(pool.positions[rows], pool.energies[rows], x, u)
                values[label][recipe.key].append(value)
                shares[label][recipe.key].append(share)

    tell("refinement drift" if drift_steps else "summaries")
    part = min(DRIFT_SAMPLES, int(smallest)) // DRIFT_PARTS
    drift_floor = _drifts(base, system, part, drift_steps, seed) if drift_steps else []
    base_summary = base.summary(torch.Generator().manual_seed(seed))
    base_modes = _mode_weights(base, system)
    base_side = None if molecule is None else base.side(molecule)
    results = {}
    for label, pool in pools.items():
        metrics = []
        for recipe in recipes:
            overlap = 0.5 * (recipe.n / pool.effective + recipe.n / base.effective)
            mean_share = float(np.mean(shares[label][recipe.key]))
            note = recipe.note
            if recipe.share and mean_share > 0:
                note = f"{100 * mean_share:.2g} % {recipe.share}"
            found, floor = values[label][recipe.key], floors[recipe.key]
            metrics.append(
                Metric(
                    recipe.key,
                    recipe.name,
                    float(np.mean(found)),
                    _standard_error(found, overlap),
                    float(np.mean(floor)),
                    _standard_error(floor, (recipe.n / base.effective) ** 2),
                    _null_error(floor, len(found), overlap),
                    recipe.n,
                    recipe.repeats,
                    len(floor),
                    recipe.unit,
                    note,
                )
            )
        side = None if molecule is None else pool.side(molecule)
        if side is not None and base_side is not None:
            metrics += _molecule_metrics(side, base_side)
        if drift_steps:
            drift = _drifts(pool, system, part, drift_steps, seed)
            # The parts of a drift are disjoint, so their spread needs no overlap term.
            metrics.append(
                Metric(
                    "refinement_drift",
                    f"refinement drift, {drift_steps} steps",
                    float(np.mean([d[0] for d in drift])),
                    _standard_error([d[0] for d in drift], 0.0),
                    float(np.mean([d[0] for d in drift_floor])),
                    _standard_error([d[0] for d in drift_floor], 0.0),
                    math.sqrt(2) * _standard_error([d[0] for d in drift_floor], 0.0),
                    drift[0][2],
                    len(drift),
                    len(drift_floor),
                    "kT",
                    f"acceptance {np.mean([d[1] for d in drift]):.2f}",
                )
            )
        histograms = {"energy": energies.histogram(pool.energies, base.energies)}
        if system.shape[0] > 1:
            histograms["distance"] = energies.histogram(
                interatomic_distances(pool.positions),
                interatomic_distances(base.positions),
                bins=90,
            )
        own_modes = _mode_weights(pool, system)
        own_remarks = list(remarks)
        if pool.weights is not None:
            own_remarks.append(
                f"Importance weights honoured by resampling; effective sample size "
                f"{pool.effective:.0f} of {len(pool.positions)}. Histograms are unweighted."
            )
        results[label] = Comparison(
            label=label,
            system=system.name,
            metrics=tuple(metrics),
            samples=pool.summary(torch.Generator().manual_seed(seed)),
            reference=base_summary,
            modes=(
                modes.compare_modes(own_modes, base_modes, n_samples=pool.effective)
                if own_modes is not None and base_modes is not None
                else None
            ),
            histograms=histograms,
            provenance={"samples": dict(pool.metadata), "reference": dict(base.metadata)},
            settings={
                "n": size,
                "requested_n": n,
                "repeats": repeats,
                "transport_repeats": transport_repeats,
                "drift_steps": drift_steps,
                "seed": seed,
            },
            remarks=tuple(own_remarks),
            molecule=(
                torsions.compare_molecules(side, base_side)
                if side is not None and base_side is not None
                else None
            ),
        )
    return results


def _mode_weights(pool: _Pool, system: System) -> modes.ModeWeights | None:
    if not isinstance(system, HasModes):
        return None
    return modes.mode_weights(pool.positions, system, weights=pool.weights)


def _drifts(
    pool: _Pool, system: System, size: int, steps: int, seed: int
) -> list[tuple[float, float, int]]:
    """Drift, acceptance and size of disjoint parts of a pool."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool.positions), generator=generator)
    result = []
    for rows in order.chunk(DRIFT_PARTS):
        x = pool.positions[pool.draw(size, rows, generator)]
        drift = refinement_drift(x, system, steps=steps, generator=generator)
        result.append((drift.value, drift.acceptance, size))
    return result


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

    Monte Carlo baselines are parallel MALA chains from random starts:

    * with as many energy evaluations as sampling took: ``energy_evaluations`` of the samples'
      metadata per sample, or else one plus the number of refinement steps;
    * where the metadata states ``training_energy_evaluations``, with that budget, ended after
      ``time_limit`` seconds and labelled with what was spent.

    Other parameters, results and errors are those of :func:`compare_many`.
    """
    _check_settings(n, repeats, transport_repeats)
    tell = progress or (lambda _: None)
    sets = {label: samples}
    if monte_carlo:
        pool = _Pool.of(reference, system, "reference")
        _Pool.of(samples, system, "samples")
        # The scale of the reference is a kind start: it can only help the baseline.
        spread = float(pool.positions.std())
        chains = 2 * min(n, len(samples) // 2, len(reference) // 2)
        metadata = samples.metadata
        per_sample = max(1, round(_budget(metadata, "energy_evaluations") / len(samples)))
        if per_sample == 1:
            per_sample = 1 + int(_budget(metadata, "refine"))
        tell("Monte Carlo at the cost of sampling")
        budgets: list[tuple[str, int, float]] = [("sampling", per_sample * chains, time_limit)]
        training = int(_budget(metadata, "training_energy_evaluations"))
        if training > chains:
            budgets.append(("training", training, time_limit))
        for name, budget, limit in budgets:
            started = time.perf_counter()
            found = equal_budget_monte_carlo(
                system,
                chains,
                energy_evaluations=budget,
                seed=seed,
                time_limit=limit,
                spread=spread,
            )
            spent = int(found.metadata["energy_evaluations"])
            seconds = time.perf_counter() - started
            short = "" if spent > 0.99 * budget else f" (time limit; asked for {budget:.1e})"
            sets[
                f"Monte Carlo at {name} budget, {spent:.1e} evaluations in {seconds:.1f} s{short}"
            ] = found
    results = compare_many(
        sets,
        reference,
        system,
        n=n,
        repeats=repeats,
        transport_repeats=transport_repeats,
        geometric_n=geometric_n,
        drift_steps=drift_steps,
        seed=seed,
        progress=progress,
    )
    own = results.pop(label)
    return Comparison(**{**vars(own), "baselines": tuple(results.values())})


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
    digits = max(0, min(4, 1 - math.floor(math.log10(se))))
    return f"{value:.{digits}f} ± {se:.{digits}f}"
