r"""Energy, heat capacity, free energy and populations against temperature.

Of samples at temperatures :math:`T_1 < \dots < T_K`, with reduced energies :math:`u = U / kT` and, where
there are weights, :math:`\bar w_i = w_i / \sum_j w_j`,

.. math:: U = kT \sum_i \bar w_i u_i, \quad
          C / k = \frac{\sum_i \bar w_i (u_i - \bar u)^2}{1 - \sum_i \bar w_i^2}, \quad
          f(T) = -\log \frac{Z(T)}{Z(T_1)}, \quad p_b = \sum_{i \in b} \bar w_i.

f is the free energy over kT, of configurations alone, as U and C are. Its difference between neighbours is
Bennett's acceptance ratio (Bennett 1976, J. Comput. Phys. 22), the root of

.. math:: N_k \langle \sigma(\Delta f - w_k - M) \rangle_k =
          N_{k+1} \langle \sigma(M - w_{k+1} - \Delta f) \rangle_{k+1}, \qquad
          w_k = u_k \left(\frac{T_k}{T_{k+1}} - 1\right), \quad
          w_{k+1} = u_{k+1} \left(\frac{T_{k+1}}{T_k} - 1\right),

:math:`\sigma(x) = 1 / (1 + e^{-x})` and :math:`M = \log(N_k / N_{k+1})`, N the effective numbers of
samples: an energy at one temperature is that at another times a factor, so that nothing is computed again.
Where samples are draws of a generator that knows its density, the mean weight is Z at each temperature by
itself, which does not ask whether neighbours overlap: both routes are combined to the least variance, their
covariance included.

Errors are by the bootstrap over blocks of each temperature's samples (:mod:`molsampler.analysis.bootstrap`);
those of f linearise Bennett's equation in the averages, and count that neighbouring differences share
samples.

Sets that all carry weights are taken together: samples of each temperature count at all others for what they
are worth there (:mod:`molsampler.analysis.pooled`), which makes errors smaller at no cost. Samples without
weights may be those of a network that is wrong by another amount at every temperature, and stay apart unless
asked to be pooled.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from molsampler.bennett import bennett
from molsampler.collective_variables import Intervals, collective_variable
from molsampler.errors import InputError
from molsampler.estimate import Estimate
from molsampler.sampler import Sampler
from molsampler.samples import Samples
from molsampler.systems import resolve
from molsampler.target import System
from molsampler.units import GAS_CONSTANT

from .basins import Basin, basins_along, basins_of
from .bootstrap import Bootstrap, blocks_of
from .curve import Curve, CurvePoint
from .pooled import Pool

Array = NDArray[np.float64]

#: Bootstrap replicates.
REPEATS = 200

#: Expected number of samples that count for both of two neighbours, below which their difference is flagged.
FEWEST_SHARED = 25.0

#: The same below which nothing is known of the difference.
_LOST = 1.0

#: Effective number of samples at a temperature below which it is flagged.
FEWEST_EFFECTIVE = 100.0

#: Share of the weight of one sample above which it is.
HEAVIEST = 0.05


def curve_through(
    sets: Sequence[Samples],
    system: System | str | None = None,
    *,
    temperatures: Sequence[float] | None = None,
    along: str | None = None,
    edges: Sequence[float] | None = None,
    pool: bool | None = None,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Curve:
    """The curve through samples at several temperatures.

    Parameters
    ----------
    sets : the samples of one temperature each, drawn independently of each other
    system : by default the one that the first samples name
    temperatures : of the sets, by default those that the samples record
    along, edges : a collective variable and where the basins along it begin, in place of the system's basins
    pool : take the samples of all temperatures together; None does where all sets carry weights
    repeats : bootstrap replicates
    seed : of the bootstrap

    Raises
    ------
    InputError
        There are fewer than two temperatures, two are equal, a set has too few samples of finite energy, or
        samples record another system.
    """
    if len(sets) < 2:
        raise InputError(f"a curve needs samples at two or more temperatures, got {len(sets)}")
    known = sets[0].system() if system is None else resolve(system)
    if temperatures is None:
        temperatures = [
            _recorded(k, samples, known, told=system is not None)
            for k, samples in enumerate(sets, 1)
        ]
    if len(temperatures) != len(sets):
        raise InputError(f"{len(sets)} sets of samples have {len(temperatures)} temperatures")
    order = sorted(range(len(sets)), key=lambda k: temperatures[k])
    ordered = [float(temperatures[k]) for k in order]
    for low, high in pairwise(ordered):
        if math.isclose(low, high, rel_tol=1e-9):
            raise InputError(f"two sets of samples are of temperature {low:g}")
    about = subject(known)
    for index, samples in enumerate(sets, 1):
        record = samples.metadata.get("system")
        if record is not None and _untempered(record) != about["definition"]:
            raise InputError(
                f"set {index} of samples is of another system than {known.name!r}, or of another definition"
            )
    cut = _cut(known, along, edges)
    nodes = [
        _Node.of(sets[k], known, ordered[i], cut=cut, repeats=repeats, seed=seed + i)
        for i, k in enumerate(order)
    ]
    per_temperature = GAS_CONSTANT if known.in_kelvin else 1.0
    weighted = all(node.log_z is not None for node in nodes)
    free, notes = _free_energies(nodes, weighted=weighted)
    if pool is None:
        pool = all(samples.log_weights is not None for samples in sets)
    rows = [
        node.point(f, per_temperature * node.temperature)
        for node, f in zip(nodes, free, strict=True)
    ]
    if pool:
        together = _pooled(nodes, rows, per_temperature, weighted=weighted)
        if together is None:
            notes.append(
                "temperatures are kept apart: at one of them too few samples have weight to take all together"
            )
        else:
            rows = together
        pool = together is not None
    notes += [*_few_effective(rows), *_heavy(nodes), *_unseen(rows)]
    if any(samples.log_weights is None for samples in sets):
        notes.append(
            "samples carry no weights: errors are those of their number, and do not hold what the sampler "
            "or the run that they come from is off by"
        )
    for node in nodes:
        if node.left_out:
            notes.append(
                f"at temperature {node.temperature:g}, {node.left_out:,} samples of infinite energy are "
                "left out"
            )
    return Curve(rows=tuple(rows), notes=tuple(notes), pooled=pool, weighted=weighted, **about)


def subject(system: System) -> dict[str, Any]:
    """What a curve says of its system: ``system``, its name, the units ``temperature_unit`` and
    ``energy_unit``, and ``definition``, its record but for the temperature."""
    return {
        "system": system.name,
        "temperature_unit": "K" if system.in_kelvin else "reduced",
        "energy_unit": "kJ/mol" if system.in_kelvin else _REDUCED,
        "definition": _untempered(system.record()),
    }


def _untempered(record: Any) -> Any:
    """What a record says of a system but for its temperature."""
    plain = json.loads(json.dumps(record))
    if not isinstance(plain, dict):
        plain = {"name": plain}
    return {key: value for key, value in plain.items() if key not in ("temperature", "at")}


#: Unit of the energies of reduced systems.
_REDUCED = "unit of the system in which kT is the temperature"


def curve_of(
    sampler: Sampler,
    temperatures: Sequence[float],
    *,
    n: int = 4000,
    refine: int = 0,
    steps: int | None = None,
    seed: int = 0,
    device: str | None = None,
    along: str | None = None,
    edges: Sequence[float] | None = None,
    pool: bool | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Curve:
    """The curve of a sampler of a range of temperatures, from ``n`` samples at each of some; see
    :func:`curve_through`, and :meth:`molsampler.Sampler.sample` for ``refine`` and ``steps``.

    Samples of one seed are independent at all temperatures, as Bennett's equation and the errors take them
    to be.

    Raises
    ------
    InputError
        The sampler is one of a single temperature, or a temperature is outside its range.
    """
    sampler.require_range()
    sets = []
    for k, temperature in enumerate(temperatures):
        sets.append(
            sampler.sample(
                n, temperature=temperature, refine=refine, steps=steps, seed=seed, device=device
            )
        )
        if on_progress is not None:
            on_progress((k + 1) * n)
    return curve_through(
        sets,
        sampler.system,
        temperatures=temperatures,
        along=along,
        edges=edges,
        pool=pool,
        seed=seed,
    )


def _recorded(index: int, samples: Samples, system: System, *, told: bool) -> float:
    """The temperature of a set of samples: the one that they record, which is the default one where they
    record but the system, else that of the system that the caller ``told``."""
    record = samples.metadata.get("system")
    if isinstance(record, dict):
        value = record.get("at", record.get("temperature"))
        if isinstance(value, int | float) and value > 0:
            return float(value)
    if record is not None:
        return float(system.default_temperature)
    if not told:
        raise InputError(
            f"set {index} of samples does not say of which system and temperature it is; pass the system at "
            "its temperature (--system NAME@T), or temperatures= for several such sets"
        )
    return float(system.temperature)


def _cut(system: System, along: str | None, edges: Sequence[float] | None) -> Intervals | None:
    if along is None:
        if edges is not None:
            raise InputError("edges cut a collective variable; pass along= as well")
        return None
    variable = collective_variable(along, system.shape, named=system.collective_variables)
    if edges is not None:
        return Intervals(variable, tuple(float(edge) for edge in edges))
    if system.basins is not None and system.basins.variable.name == along:
        return system.basins
    raise InputError(
        f"along={along!r} needs edges, where basins begin: the same ones at every temperature"
    )


class _Node(NamedTuple):
    """The samples of one temperature: weights of which the largest is one, and reduced energies; log Z by the
    mean weight, None where weights do not give it."""

    temperature: float
    weights: Array
    energies: Array
    basins: list[Basin]
    bootstrap: Bootstrap
    left_out: int
    log_z: float | None

    @classmethod
    def of(
        cls,
        samples: Samples,
        system: System,
        temperature: float,
        *,
        cut: Intervals | None,
        repeats: int,
        seed: int,
    ) -> _Node:
        # Of other weights than those of a generator's draws the scale may be any.
        drawn = "artifact_hash" in samples.metadata and "resampled" not in samples.metadata
        log_z = samples.log_z if drawn else None
        finite = samples.energies.isfinite()
        left_out = int((~finite).sum())
        if left_out:
            samples = samples[finite]
        if len(samples) < 2 or not samples.ess:
            raise InputError(
                f"the samples at temperature {temperature:g} must be two or more of finite energy and some "
                f"weight, got {len(samples)}"
            )
        log_weights, u = samples.log_weights, samples.energies.numpy()
        w = np.ones(len(u))
        if log_weights is not None:
            w = (log_weights - log_weights.max()).exp().numpy()
            # Energies of samples without weight say nothing, and may be of any size.
            u = np.where(w > 0, u, u[w.argmax()])
        p = w / w.sum()
        if cut is None:
            basins = basins_of(system, samples.positions, p)
        else:
            basins = basins_along(cut.variable(samples.positions), cut, p)
        traces = np.stack([w, w * u, *(w * basin.member for basin in basins[:8])], 1)
        blocks = blocks_of(samples, traces)
        return cls(
            temperature,
            w,
            u,
            basins,
            Bootstrap(blocks, repeats=repeats, seed=seed),
            left_out,
            None if log_z is None else log_z.value,
        )

    @property
    def ess(self) -> float:
        """Kish's effective number of samples."""
        return float(self.weights.sum() ** 2 / np.square(self.weights).sum())

    def point(self, free_energy: Estimate[float], kT: float) -> CurvePoint:
        """The averages, with the thermal energy in the curve's unit."""
        w = self.weights
        centre = float(w @ self.energies / w.sum())
        u = self.energies - centre
        sums = self.bootstrap.blocks.sums(w, w * w, w * u, w * u * u)

        def averages(total: Array) -> Array:
            mass, square, first, second = total.T
            mean = first / mass
            variance = (second / mass - mean**2) / (1 - square / mass**2)
            return np.stack([mean, variance], 1)

        mean, variance = self.bootstrap(sums, averages)
        shares = self.bootstrap.blocks.sums(w, *(w * basin.member for basin in self.basins))
        populations = self.bootstrap(shares, lambda total: total[:, 1:] / total[:, :1])
        return CurvePoint(
            self.temperature,
            Estimate(kT * (centre + mean.value), kT * mean.se),
            variance,
            free_energy,
            {b.name: each for b, each in zip(self.basins, populations, strict=True)},
            len(w),
            self.ess,
        )


def _few_effective(rows: Sequence[CurvePoint]) -> list[str]:
    """A note on the temperatures at which few samples are effective."""
    few = [row for row in rows if row.ess < min(FEWEST_EFFECTIVE, 0.9 * row.n)]
    if not few:
        return []
    where = ", ".join(f"{row.temperature:.4g} ({row.ess:.0f} of {row.n:,})" for row in few)
    return [
        f"few samples are effective at temperature {where}, and errors are larger than stated below "
        f"{FEWEST_EFFECTIVE:.0f}: draw more, or spend more on a draw (docs/exact-weights.md)"
    ]


def _heavy(nodes: Sequence[_Node]) -> list[str]:
    """A note on the temperatures at which single samples have much of the weight."""
    # Of few samples each has much, which is said already.
    found = [
        (node.temperature, float(node.weights.max() / node.weights.sum()))
        for node in nodes
        if len(node.weights) > 2 / HEAVIEST
    ]
    heavy = [(t, share) for t, share in found if share > HEAVIEST]
    if not heavy:
        return []
    where = ", ".join(f"{t:.4g} ({share:.2g})" for t, share in heavy)
    return [
        f"one sample has much of the weight at temperature {where}: there are states that few draws reach, "
        "values and errors there may be off by more than is stated; draw more"
    ]


def _unseen(rows: Sequence[CurvePoint]) -> list[str]:
    """Notes on basins that no sample is in, whose error the samples cannot tell."""
    notes = []
    for name in rows[0].populations:
        empty = [row for row in rows if row.populations[name].value == 0.0]
        if empty:
            where = ", ".join(f"{row.temperature:.4g} (below {3 / row.ess:.2g})" for row in empty)
            notes.append(f"no sample is in {name!r} at temperature {where}, with 95 % confidence")
    return notes


def _pooled(
    nodes: Sequence[_Node],
    apart: Sequence[CurvePoint],
    per_temperature: float,
    *,
    weighted: bool,
) -> list[CurvePoint] | None:
    """The averages at every temperature from the samples of all, by what they are ``apart``; None where they
    have none or no error, as of a set in which one sample has all the weight."""
    temperatures = [node.temperature for node in nodes]
    energies = [node.energies * node.temperature for node in nodes]
    start = [row.free_energy.value for row in apart]
    pool = Pool.of(temperatures, energies, [node.weights for node in nodes], start=start)
    if not pool.solved:
        return None
    weights = pool.weights()
    centre = np.einsum("ik,i->k", weights, pool.energies) / pool.temperatures
    u = pool.energies[:, None] / pool.temperatures
    square = np.square(u - centre)
    correction = 1 - np.square(weights).sum(0)
    spread = np.einsum("ik,ik->k", weights, square)
    # Values and what each sample adds to them; basins are the same at every temperature.
    found = [(centre, pool.influence(u, centre)), (pool.free, pool.influence_on_free)]
    found.append((spread / correction, pool.influence(square, spread) / correction))
    for b in range(len(nodes[0].basins)):
        member = np.concatenate([node.basins[b].member for node in nodes]).astype(np.float64)
        share = member @ weights
        every = np.broadcast_to(member[:, None], u.shape)
        found.append((share, pool.influence(every, share)))
    ends = np.cumsum([len(node.weights) for node in nodes])
    variance = np.zeros((len(found), len(nodes)))
    for node, end, effective in zip(nodes, ends, pool.effective, strict=True):
        rows = slice(end - len(node.weights), end)
        columns = [added[rows, k] for _, added in found for k in range(len(nodes))]
        w = node.weights
        sums = node.bootstrap.blocks.sums(w, *(w * column for column in columns))
        parts = node.bootstrap(sums, lambda total: total[:, 1:] / total[:, :1])
        variance += np.square(effective * np.array([each.se for each in parts])).reshape(
            variance.shape
        )
    if not np.isfinite(variance).all():
        return None
    free_energies = [
        # Without overlap f has no error that can be known.
        Estimate(
            float(value), float(np.sqrt(part)) if math.isfinite(row.free_energy.se) else math.inf
        )
        for value, part, row in zip(pool.free, variance[1], apart, strict=True)
    ]
    if weighted:
        starts = [0, *ends[:-1]]
        influences = [
            pool.influence_on_free[start:end] * effective
            for start, end, effective in zip(starts, ends, pool.effective, strict=True)
        ]
        free_energies = _with_weights(free_energies, nodes, influences)
    points = []
    for k, node in enumerate(nodes):
        energy, _, heat, *shares = (
            Estimate(float(value[k]), float(np.sqrt(part[k])))
            for (value, _), part in zip(found, variance, strict=True)
        )
        kT = per_temperature * node.temperature
        points.append(
            CurvePoint(
                node.temperature,
                Estimate(kT * energy.value, kT * energy.se),
                heat,
                free_energies[k] if k else Estimate(0.0, 0.0),
                {b.name: each for b, each in zip(node.basins, shares, strict=True)},
                len(node.weights),
                node.ess,
                float(1 / np.square(weights[:, k]).sum()),
            )
        )
    return points


def _free_energies(
    nodes: Sequence[_Node], *, weighted: bool
) -> tuple[list[Estimate[float]], list[str]]:
    """f of every node against the first, with errors; and notes on neighbours that share too little."""
    steps, apart, lost = [], [], []
    # Of each node: what its averages add to the difference before it and to that behind it.
    before: list[Array | None] = [None] * len(nodes)
    behind: list[Array | None] = [None] * len(nodes)
    for k, (cold, hot) in enumerate(pairwise(nodes)):
        forward = cold.energies * (cold.temperature / hot.temperature - 1.0)
        backward = hot.energies * (hot.temperature / cold.temperature - 1.0)
        step, shared, one, other = bennett(
            forward, backward, cold.weights, hot.weights, cold.ess, hot.ess
        )
        steps.append(step)
        lost.append(shared < _LOST)
        behind[k], before[k + 1] = one, other
        if shared < FEWEST_SHARED:
            apart.append(f"{shared:.0f} between {cold.temperature:.4g} and {hot.temperature:.4g}")
    values = np.concatenate([[0.0], np.cumsum(steps)])
    # The variance of f at node m: over nodes, that of what each adds to the differences up to m.
    variance = np.zeros(len(nodes))
    for k, node in enumerate(nodes):
        w = node.weights
        first, second = (
            np.zeros(len(w)) if side is None else side for side in (before[k], behind[k])
        )
        columns = [w, w * first, w * (first + second)]
        sums = node.bootstrap.blocks.sums(*columns)
        last, through = node.bootstrap(sums, lambda total: total[:, 1:] / total[:, :1])
        variance[k] += last.se**2
        variance[k + 1 :] += through.se**2
    notes = []
    if apart:
        notes.append(
            f"few samples count for both of two neighbouring temperatures ({', '.join(apart)}): differences "
            "of free energies are uncertain, more temperatures or samples help"
        )
    variance[1:][np.cumsum(lost) > 0] = math.inf
    found = [Estimate(float(v), math.sqrt(e)) for v, e in zip(values, variance, strict=True)]
    found[0] = Estimate(0.0, 0.0)
    if not weighted:
        return found, notes
    influences = []
    for k, node in enumerate(nodes):
        first, second = (
            np.zeros(len(node.weights)) if side is None else side for side in (before[k], behind[k])
        )
        added = np.zeros((len(node.weights), len(nodes)))
        added[:, k] = first
        added[:, k + 1 :] = (first + second)[:, None]
        influences.append(added)
    return _with_weights(found, nodes, influences), []


def _with_weights(
    found: Sequence[Estimate[float]], nodes: Sequence[_Node], influences: Sequence[Array]
) -> list[Estimate[float]]:
    """f combined with its value by log Z of the weights, to the least variance; ``influences (n, K)`` are
    what the samples of each node add to f, in their average."""
    count = len(nodes)
    variance = np.zeros((3, count))
    for m, (node, added) in enumerate(zip(nodes, influences, strict=True)):
        w = node.weights
        # log Z of the first node less that of node k.
        sign = np.array([float(m == 0) - float(m == k) for k in range(count)])

        def both(total: Array, sign: Array = sign) -> Array:
            by_overlap = total[:, 2:] / total[:, 1:2]
            by_weights = np.log(total[:, 1:2] / total[:, :1]) * sign
            return np.concatenate([by_overlap, by_weights, by_overlap - by_weights], 1)

        sums = node.bootstrap.blocks.sums(np.ones(len(w)), w, *(w * each for each in added.T))
        parts = node.bootstrap(sums, both)
        variance += np.square([each.se for each in parts]).reshape(3, count)
    combined = [Estimate(0.0, 0.0)]
    log_z = [node.log_z or 0.0 for node in nodes]
    for k in range(1, count):
        by_weights = log_z[0] - log_z[k]
        one, other, apart = variance[:, k]
        if not math.isfinite(found[k].se):
            combined.append(Estimate(by_weights, math.sqrt(other)))
            continue
        covariance = 0.5 * (one + other - apart)
        share = min(max((one - covariance) / apart, 0.0), 1.0) if apart > 0 else 0.0
        value = found[k].value + share * (by_weights - found[k].value)
        left = (1 - share) ** 2 * one + share**2 * other + 2 * share * (1 - share) * covariance
        combined.append(Estimate(value, math.sqrt(max(left, 0.0))))
    return combined
