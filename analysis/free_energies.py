r"""Free energies, entropies and basins from samples that carry importance weights.

With reduced energies :math:`u_i` and weights :math:`w_i`, target over proposal density, of n samples:

.. math:: \log Z = \log \frac1n \sum_i w_i, \quad F = -\log Z, \quad
          U = \sum_i \bar w_i u_i, \quad S = U - F, \quad
          C = \frac{\sum_i \bar w_i (u_i - U)^2}{1 - \sum_i \bar w_i^2}, \quad
          p_b = \sum_{i \in b} \bar w_i, \quad \Delta F_b = -\log(p_b / p_{ref}),

:math:`\bar w_i = w_i / \sum_j w_j`. F, U and :math:`\Delta F` are in kT, S and C in k. They are
configurational: momenta are in none of them. Samples without weights give U, C and the basins as plain
averages, and no log Z, F and S. Errors are those of :mod:`molsampler.analysis.bootstrap`; where
:mod:`molsampler.analysis.importance` finds that the weights do not carry an answer, there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from molsampler.collective_variables import (
    CollectiveVariable,
    Intervals,
    collective_variable,
)
from molsampler.errors import (
    InputError,
    ShapeError,
    SystemNeededError,
    UnknownNameError,
    nearest,
)
from molsampler.estimate import Estimate
from molsampler.samples import Samples
from molsampler.space import MeanFree
from molsampler.systems import resolve
from molsampler.target import System
from molsampler.units import GAS_CONSTANT, KILOCALORIE

from . import importance
from .basins import Basin, basins_along, basins_of
from .bootstrap import FEWEST_BLOCKS, Blocks, Bootstrap, blocks_of
from .energies import rounding
from .importance import VARIANCE_LIMIT, Verdict
from .profile import BINS, Binning, Profile
from .statistics import finite_or_none

Array = NDArray[np.float64]

#: Bootstrap replicates.
REPEATS = 400

#: Effective samples in a basin, or in what it is measured against, below which no difference is given.
FEWEST_IN_BASIN = 10.0

#: Basins whose populations are looked at for correlation between rows, the largest first.
TRACED_BASINS = 8

#: Units of energy, and kJ/mol in one of them; the thermal energy is what it is at a temperature.
UNITS: dict[str, float | None] = {"kT": None, "kJ/mol": 1.0, "kcal/mol": KILOCALORIE}


@dataclass(frozen=True)
class BasinFreeEnergy:
    """A basin's share of the target and its free energy against another basin.

    Attributes
    ----------
    name, reference : of the basin, and of what it is measured against
    population : probability
    free_energy : difference to the reference; None where one of the two has too few samples
    ess : effective number of samples in the basin
    """

    name: str
    reference: str
    population: Estimate[float]
    free_energy: Estimate[float] | None
    ess: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {
            "name": self.name,
            "reference": self.reference,
            "population": _plain(self.population),
            "free_energy": _plain(self.free_energy),
            "ess": self.ess,
        }


@dataclass(frozen=True)
class FreeEnergy:
    """What samples say of a target's thermodynamics; see the module's text for the equations.

    Attributes
    ----------
    verdict : whether the weights carry an answer; every quantity is None where they do not
    weighted : whether there are weights
    system : name of the system, None where it is not known
    unit, entropy_unit : of F, U and the basins' free energies; of S and C
    temperature, temperature_unit : in ``K``, or ``reduced`` (that of the system); None where it is not known
    measure : what volume log Z, F and S refer to
    log_z, F, U, S, C : estimates, or None
    basins : of the system, or along the collective variable
    along : the profile along the collective variable, or None
    blocks, rule : number of blocks of the bootstrap and how they were made
    notes : what a reader must know of single numbers
    """

    verdict: Verdict
    weighted: bool
    system: str | None
    unit: str
    entropy_unit: str
    temperature: float | None
    measure: str
    log_z: Estimate[float] | None = None
    F: Estimate[float] | None = None
    U: Estimate[float] | None = None
    S: Estimate[float] | None = None
    C: Estimate[float] | None = None
    basins: tuple[BasinFreeEnergy, ...] = ()
    along: Profile | None = None
    temperature_unit: str | None = None
    blocks: int = 0
    rule: str = ""
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether the numbers mean something."""
        return self.verdict.usable

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary; an error that is not known is None."""
        v = self.verdict
        return {
            "n": v.n,
            "ess": v.ess,
            "max_weight": v.max_weight,
            "pareto_k": v.pareto_k,
            "usable": v.usable,
            "reason": v.reason,
            "weighted": self.weighted,
            "system": self.system,
            "temperature": self.temperature,
            "temperature_unit": self.temperature_unit,
            "unit": self.unit,
            "entropy_unit": self.entropy_unit,
            "measure": self.measure,
            **{name: _plain(getattr(self, name)) for name in ("log_z", "F", "U", "S", "C")},
            "basins": [basin.to_dict() for basin in self.basins],
            "along": None if self.along is None else self.along.to_dict(),
            "blocks": {"count": self.blocks, "rule": self.rule},
            "notes": list(self.notes),
        }


def _plain(estimate: Estimate[float] | None) -> dict[str, float | None] | None:
    if estimate is None or not math.isfinite(estimate.value):
        return None
    return {"value": estimate.value, "se": finite_or_none(estimate.se)}


class _Scale(NamedTuple):
    """Units of energy and entropy, and what a kT and a k are in them."""

    unit: str
    entropy_unit: str
    energy: float
    entropy: float
    temperature: float | None


def _scale(unit: str, temperature: float | None, system: System | None) -> _Scale:
    if unit not in UNITS:
        raise UnknownNameError(
            f"unit must be one of {', '.join(UNITS)}, got {unit!r}{nearest(str(unit), tuple(UNITS))}"
        )
    own = system.temperature if system is not None and system.in_kelvin else None
    if temperature is not None:
        if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
            raise InputError(
                f"temperature must be a positive number of kelvin, got {temperature!r}"
            )
        if own is not None and not math.isclose(own, temperature, rel_tol=1e-6):
            raise InputError(
                f"temperature says {temperature:g} K, the energies of system "
                f"{'' if system is None else repr(system.name)} are those of {own:g} K"
            )
    kelvin = own if temperature is None else float(temperature)
    kilojoules = UNITS[unit]
    if kilojoules is None and own is None and temperature is not None:
        raise InputError(
            "temperature is in kelvin and turns kT into unit kJ/mol or kcal/mol; in kT it changes nothing, "
            "and samples have the temperature that they were drawn at"
        )
    if kilojoules is None:
        return _Scale(unit, "k", 1.0, 1.0, kelvin)
    if kelvin is None:
        name = "of unknown origin" if system is None else f"of {system.name!r}, a reduced system,"
        raise InputError(
            f"unit {unit!r} needs a temperature: samples {name} have energies in kT and none of their "
            "own; pass temperature= in kelvin (--temperature), or unit 'kT'"
        )
    k = GAS_CONSTANT / kilojoules
    return _Scale(unit, unit.replace("/mol", "/(mol K)"), k * kelvin, k, kelvin)


def free_energy(
    samples: Samples,
    system: System | str | None = None,
    *,
    along: str | None = None,
    edges: Sequence[float] | None = None,
    unit: str = "kT",
    temperature: float | None = None,
    bins: int = BINS,
    repeats: int = REPEATS,
    seed: int = 0,
) -> FreeEnergy:
    """Log Z, F, mean energy, entropy, heat capacity and basins, each with a bootstrap error.

    ::

        found = free_energy(Samples(...), along="torsion:4,6,8,14")
        found.usable, found.F, found.basins[0].free_energy

    Parameters
    ----------
    system : by default the one that the samples name; basins need it
    along : collective variable, see :mod:`molsampler.collective_variables`, or a name from the system's file
    edges : where basins along it begin; by default those of the system's file, or the barriers of the
        profile
    unit : kT, kJ/mol or kcal/mol
    temperature : kelvin, for reduced systems in other units than kT
    bins : of the profile
    repeats : bootstrap replicates
    seed : of the bootstrap

    Raises
    ------
    InputError
        There are no samples, an argument is unusable, or the unit needs a temperature that is not known.
    ShapeError, NonFiniteError
        The samples do not fit the system, or the collective variable is not finite.
    MissingDependencyError
        arviz-stats is not installed.
    """
    if not isinstance(samples, Samples):
        raise InputError(f"samples must be Samples, got {type(samples).__name__}")
    known = _system(samples, system)
    if not isinstance(bins, int) or bins < 4:
        raise InputError(f"bins must be an integer >= 4, got {bins!r}")
    if not isinstance(repeats, int) or repeats < 20:
        raise InputError(f"repeats must be an integer >= 20, got {repeats!r}")
    shape = (samples.positions.shape[1], samples.positions.shape[2])
    scale, variable, given = _question(known, shape, along, edges, unit, temperature)

    verdict = _judge(samples)
    at, temperature_unit = scale.temperature, "K"
    if at is None and known is not None:
        at, temperature_unit = known.temperature, "reduced"
    result = FreeEnergy(
        verdict,
        samples.log_weights is not None,
        None if known is None else known.name,
        scale.unit,
        scale.entropy_unit,
        at,
        measure(known, samples.metadata.get("coordinates")),
        temperature_unit=None if at is None else temperature_unit,
    )
    if not verdict.usable:
        return result
    rows = _Rows.of(samples)
    binning, cut, basins = None, None, []
    if variable is not None:
        binning = Binning.of(variable, samples.positions, rows.probabilities, bins)
        cut = given or binning.basins(rows.weights)
        if cut is not None:
            basins = basins_along(binning.values, cut, rows.probabilities)
    elif known is not None:
        basins = basins_of(known, samples.positions, rows.probabilities)
    bootstrap = Bootstrap(blocks_of(samples, rows.traces(basins)), repeats=repeats, seed=seed)
    return replace(
        result,
        **_averages(rows, bootstrap, scale, weighted=result.weighted),
        basins=tuple(_basin(basin, rows, bootstrap, scale) for basin in basins),
        along=None if binning is None else _profile(binning, cut, rows, bootstrap, scale),
        blocks=bootstrap.blocks.count,
        rule=bootstrap.blocks.rule,
        notes=(
            *_notes(verdict, rows, bootstrap.blocks, variable, cut),
            *_missing(samples, known),
            *rounding(samples.metadata),
        ),
    )


class _Question(NamedTuple):
    """Units, the collective variable, and basins along it that are not left to its profile."""

    scale: _Scale
    variable: CollectiveVariable | None
    given: Intervals | None


def _question(
    known: System | None,
    shape: tuple[int, int],
    along: str | None,
    edges: Sequence[float] | None,
    unit: str,
    temperature: float | None,
) -> _Question:
    scale = _scale(unit, temperature, known)
    if edges is not None and along is None:
        raise InputError("edges cut a collective variable; pass along= as well")
    named = None if known is None else known.collective_variables
    variable = None if along is None else collective_variable(along, shape, named=named)
    given = None
    if variable is not None and edges is not None:
        given = Intervals(variable, tuple(float(edge) for edge in edges))
    elif known is not None and known.basins is not None and known.basins.variable.name == along:
        given = known.basins
    return _Question(scale, variable, given)


def check_question(
    system: System,
    *,
    along: str | None = None,
    edges: Sequence[float] | None = None,
    unit: str = "kT",
    temperature: float | None = None,
) -> None:
    """Refuse what :func:`free_energy` would refuse of samples of a system, before they are drawn.

    Raises
    ------
    InputError
        An argument is unusable, or the unit needs a temperature that is not known.
    """
    _question(system, system.shape, along, edges, unit, temperature)


def _missing(samples: Samples, known: System | None) -> list[str]:
    """What samples of a system that their file does not hold go without."""
    if known is not None or samples.metadata.get("system") is None:
        return []
    return ["the file does not hold its system: basins need it (--system FILE.yaml)"]


def _system(samples: Samples, system: System | str | None) -> System | None:
    if system is None and samples.metadata.get("system") is None:
        return None
    try:
        known = samples.system() if system is None else resolve(system)
    except SystemNeededError:
        # What is asked of weights and energies needs none.
        return None
    if tuple(samples.positions.shape[1:]) != tuple(known.shape):
        raise ShapeError(
            f"samples must have shape (n, {known.shape[0]}, {known.shape[1]}) for system "
            f"{known.name!r}, got {tuple(samples.positions.shape)}"
        )
    return known


def _judge(samples: Samples) -> Verdict:
    """The verdict on the weights; samples of infinite energy must have none."""
    verdict = importance.judge(samples.log_weights, len(samples))
    if samples.log_weights is None or not verdict.usable:
        return verdict
    odd = (samples.log_weights > -math.inf) & ~samples.energies.isfinite()
    if not bool(odd.any()):
        return verdict
    reason = (
        f"{int(odd.sum()):,} samples of infinite energy have weight, the first is sample "
        f"{int(odd.nonzero()[0])}: the weights are not those of these energies"
    )
    return verdict._replace(usable=False, reason=reason)


def measure(system: System | None, coordinates: Any = None) -> str:
    """The volume that log Z of a system refers to, in words.

    ``coordinates`` is what the samples record: ``internal`` where the proposal's density is one of bond
    lengths, angles and torsions, ``cartesian`` or nothing where it is one of positions.
    """
    if coordinates == "internal":
        return (
            "r^2 sin(theta) dr dtheta dphi of every atom's bond length, angle and torsion, in nm and rad, "
            "of the given isomer, without overall translation and rotation; all constants included"
        )
    if system is None:
        return "that of the proposal's density, which the samples do not record"
    unit = "nm" if system.in_kelvin else "length units of the system"
    if isinstance(system.space, MeanFree):
        n, d = system.shape
        text = (
            f"Lebesgue in {unit}, in orthonormal coordinates of the {system.space.dof} = ({n} - 1) x {d} "
            "mean-free dimensions, particles labelled"
        )
    else:
        text = f"Lebesgue in {unit} in {system.space.dof} dimensions"
    if system.molecule is not None and coordinates is None:
        text += ", if the proposal's density is one of positions (the samples do not record it)"
    return text


@dataclass(frozen=True)
class _Rows:
    """Weights, of which the largest is one, and energies about their mean, row by row.

    Attributes
    ----------
    weights, probabilities, energies : ``(n,)``; energies are zero where there is no weight
    largest : log of the largest weight
    centre : mean energy
    infinite : number of rows of weight and infinite energy
    """

    weights: Array
    probabilities: Array
    energies: Array
    largest: float
    centre: float
    infinite: int

    @classmethod
    def of(cls, samples: Samples) -> _Rows:
        log_weights, u = samples.log_weights, samples.energies.numpy()
        largest = 0.0 if log_weights is None else float(log_weights.max())
        w = np.ones(len(u)) if log_weights is None else (log_weights - largest).exp().numpy()
        p = w / w.sum()
        counted = (w > 0) & np.isfinite(u)
        u = np.where(counted, u, 0.0)
        centre = float(p @ u)
        infinite = int(((w > 0) & ~counted).sum())
        return cls(w, p, np.where(counted, u - centre, 0.0), largest, centre, infinite)

    def traces(self, basins: Sequence[Basin]) -> Array:
        """What each row adds to log Z, U and the largest populations ``(n, t)``."""
        shares = [float(self.probabilities @ basin.member) for basin in basins]
        largest = sorted(range(len(basins)), key=lambda k: -shares[k])[:TRACED_BASINS]
        members = [basins[k].member - shares[k] for k in largest]
        return np.stack([self.weights, *(self.weights * f for f in (self.energies, *members))], 1)


def _averages(
    rows: _Rows, bootstrap: Bootstrap, scale: _Scale, *, weighted: bool
) -> dict[str, Any]:
    """Log Z, F, U, S and C."""
    w, u = rows.weights, rows.energies
    # Unbiased where all weights are equal.
    unbiased = 1 / (1 - float(np.square(rows.probabilities).sum())) if len(w) > 1 else math.nan

    def statistic(total: Array) -> Array:
        count, mass, first, second = total.T
        log_z, mean = np.log(mass / count), first / mass
        return np.stack([log_z, mean, mean + log_z, unbiased * (second / mass - mean**2)], 1)

    sums = bootstrap.blocks.sums(np.ones_like(w), w, w * u, w * u**2)
    log_z, mean, entropy, variance = bootstrap(sums, statistic)
    finite = not rows.infinite
    return {
        "log_z": _shifted(log_z, rows.largest) if weighted else None,
        "F": _shifted(log_z, rows.largest, -scale.energy) if weighted else None,
        "U": _shifted(mean, rows.centre, scale.energy) if finite else None,
        "S": _shifted(entropy, rows.centre + rows.largest, scale.entropy)
        if weighted and finite
        else None,
        "C": _shifted(variance, 0.0, scale.entropy) if finite else None,
    }


def _shifted(estimate: Estimate[float], by: float, factor: float = 1.0) -> Estimate[float]:
    return Estimate(factor * (estimate.value + by), abs(factor) * estimate.se)


def _basin(basin: Basin, rows: _Rows, bootstrap: Bootstrap, scale: _Scale) -> BasinFreeEnergy:
    w = rows.weights

    def statistic(total: Array) -> Array:
        mass, inside, reference = total.T
        return np.stack([inside / mass, np.log(reference / inside)], 1)

    sums = bootstrap.blocks.sums(w, w * basin.member, w * basin.reference)
    population, difference = bootstrap(sums, statistic)
    ess = _effective(w[basin.member])
    if min(ess, _effective(w[basin.reference])) < FEWEST_IN_BASIN:
        found = None
    elif basin.name == basin.reference_name:
        found = Estimate(0.0, 0.0)
    else:
        found = _shifted(difference, 0.0, scale.energy)
    return BasinFreeEnergy(basin.name, basin.reference_name, population, found, ess)


def _effective(weights: Array) -> float:
    """Kish's effective number of samples."""
    square = float(np.square(weights).sum())
    return float(weights.sum()) ** 2 / square if square > 0 else 0.0


def _profile(
    binning: Binning, cut: Intervals | None, rows: _Rows, bootstrap: Bootstrap, scale: _Scale
) -> Profile:
    sums = bootstrap.blocks.histograms(binning.index, rows.weights, binning.bins)
    deepest = int(np.argmax(sums.sum(0)))
    found = bootstrap(sums, lambda total: np.log(total[:, [deepest]] / total))
    return Profile(
        binning.variable.name,
        binning.variable.unit,
        binning.variable.period,
        binning.edges,
        scale.energy * np.array([each.value for each in found]),
        scale.energy * np.array([each.se for each in found]),
        scale.unit,
        () if cut is None else cut.edges,
    )


def _notes(
    verdict: Verdict,
    rows: _Rows,
    blocks: Blocks,
    variable: CollectiveVariable | None,
    cut: Intervals | None,
) -> Iterator[str]:
    if verdict.pareto_k is not None and verdict.pareto_k > VARIANCE_LIMIT:
        yield (
            f"Pareto k is {verdict.pareto_k:.2f}, above {VARIANCE_LIMIT:g}: the weights' variance may be "
            "infinite, and the errors are too small"
        )
    if rows.infinite:
        yield f"{rows.infinite:,} samples have infinite energy: U and C are not given"
    if blocks.count < FEWEST_BLOCKS:
        yield (
            f"the samples make {blocks.count} independent blocks, fewer than {FEWEST_BLOCKS}: errors are "
            "uncertain"
        )
    if variable is not None and cut is None:
        yield f"no barrier divides {variable.name} into basins"
