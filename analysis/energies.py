r"""Distances between distributions of one number: histograms, total variation, 1-D Wasserstein.

Energies are reduced, ``u = U/kT``, so every energy distance here is in units of kT.

* Total variation on bins, :math:`\tfrac12\sum_b |p_b - q_b|` over ``BINS`` equal bins spanning the
  reference's range. Sample mass outside that range is missing from :math:`p` and counts in full as
  one more bin where :math:`q = 0`.
* 2-Wasserstein distance in one dimension,
  :math:`W_2^2 = \int_0^1 (F_a^{-1}(s) - F_b^{-1}(s))^2\,ds`, exact for any two sample sizes.
* The trimmed distance drops samples outside the reference's range widened by half its width **on
  each side**, that is outside :math:`[lo - w/2, hi + w/2]` with :math:`w = hi - lo`. One sample on
  a steep wall otherwise outweighs everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molsampler.errors import InputError, NonFiniteError
from molsampler.wasserstein import values_of
from molsampler.wasserstein import wasserstein2_1d as wasserstein2_1d

from .draws import Draw
from .metric import Distance, Value

Array = NDArray[np.float64]

#: Bins of the total variation distances.
BINS = 200

#: The trimmed range is widened by this share of its width on each side.
TRIM_MARGIN = 0.5


@dataclass(frozen=True)
class Binned:
    """A total variation distance on bins and the sample share outside the reference's range."""

    value: float
    outside: float


@dataclass(frozen=True)
class Trimmed:
    """A trimmed Wasserstein distance and the sample share that was left out."""

    value: float
    share: float


@dataclass(frozen=True)
class Histogram:
    """Densities of samples and reference on common bins, for plots.

    Attributes
    ----------
    edges : bin edges ``(b + 1,)``
    samples, reference : probability densities ``(b,)``; shares outside the edges are missing
    outside : share of the samples outside the edges
    """

    edges: Array
    samples: Array
    reference: Array
    outside: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {
            "edges": self.edges.tolist(),
            "samples": self.samples.tolist(),
            "reference": self.reference.tolist(),
            "outside": self.outside,
        }


def _reference(values: Any) -> Array:
    array = values_of(values, "reference")
    if not np.isfinite(array).all():
        raise NonFiniteError(
            f"reference holds {int((~np.isfinite(array)).sum())} infinite of {array.size} values; "
            "a reference must be finite"
        )
    return array


def _shares(values: Array, edges: Array, weights: Array | None = None) -> Array:
    """Share of the total in each bin."""
    if weights is None:
        return np.histogram(values[np.isfinite(values)], edges)[0] / values.size
    finite = np.isfinite(values)
    counts = np.histogram(values[finite], edges, weights=weights[finite])[0]
    return np.asarray(counts / weights.sum(), dtype=np.float64)


def total_variation(samples: Any, reference: Any, *, bins: int = BINS) -> Binned:
    r"""Total variation distance :math:`\tfrac12\sum_b|p_b-q_b|` on bins of the reference's range.

    Parameters
    ----------
    samples, reference : numbers of any shape, flattened; samples may be infinite

    Returns
    -------
    The distance in [0, 1], where mass outside the range counts as missing, and that mass.

    Raises
    ------
    InputError
        A set is empty, holds NaN, the reference is not finite, or ``bins`` is not positive.
    """
    a, b = values_of(samples, "samples"), _reference(reference)
    if bins < 1:
        raise InputError(f"bins must be a positive integer, got {bins!r}")
    edges = np.histogram_bin_edges(b, bins)
    p, q = _shares(a, edges), _shares(b, edges)
    # Counted from the values, not as 1 - sum(p), whose rounding would show as a distance.
    outside = float(np.mean((a < edges[0]) | (a > edges[-1])))
    return Binned(min(1.0, 0.5 * (float(np.abs(p - q).sum()) + outside)), outside)


def trimmed_wasserstein2(samples: Any, reference: Any, *, margin: float = TRIM_MARGIN) -> Trimmed:
    """1-D 2-Wasserstein distance of the samples within the reference's range widened by ``margin``.

    The range is widened by ``margin`` times its width on each side. If nothing is left, the
    distance is infinite.

    Raises
    ------
    InputError
        A set is empty or holds NaN, the reference is not finite, or ``margin`` is negative.
    """
    a, b = values_of(samples, "samples"), _reference(reference)
    if not margin >= 0:
        raise InputError(f"margin must be a number >= 0, got {margin!r}")
    low, high = float(b.min()), float(b.max())
    reach = margin * (high - low)
    kept = a[(a >= low - reach) & (a <= high + reach)]
    if kept.size == 0:
        return Trimmed(float("inf"), 1.0)
    return Trimmed(wasserstein2_1d(kept, b), 1.0 - kept.size / a.size)


class EnergyTotalVariation(Distance):
    key = "tvd_energy"
    name = "TVD-E"
    definition = (
        f"Total variation distance between the reduced energies on {BINS} bins spanning the "
        "reference draw's range: half the sum of the absolute differences of the bin probabilities. "
        "Samples outside the range count as missing mass. 0 is identical, 1 is disjoint."
    )
    aside = "outside the reference's range"

    def value(self, samples: Draw, reference: Draw) -> Value:
        found = total_variation(samples.energies, reference.energies)
        return Value(found.value, found.outside)


class EnergyWasserstein2(Distance):
    key = "energy_w2"
    name = "energy-W2"
    definition = (
        "2-Wasserstein distance between the energies in kT: the root-mean-square change of "
        "energy when both sets are sorted. A single strained sample can dominate it."
    )
    unit = "kT"

    def value(self, samples: Draw, reference: Draw) -> Value:
        return Value(wasserstein2_1d(samples.energies, reference.energies))


class TrimmedEnergyWasserstein2(Distance):
    key = "energy_w2_trimmed"
    name = "energy-W2, trimmed"
    definition = (
        "The same without samples outside the reference's energy range widened by "
        "half its width on each side."
    )
    unit = "kT"
    aside = "trimmed"

    def value(self, samples: Draw, reference: Draw) -> Value:
        found = trimmed_wasserstein2(samples.energies, reference.energies)
        return Value(found.value, found.share)


def histogram(
    samples: Any,
    reference: Any,
    *,
    bins: int = 60,
    tail: float = 0.001,
    weights: Array | None = None,
    reference_weights: Array | None = None,
) -> Histogram:
    """Densities of both sets on common bins for a plot.

    The bins span the central ``1 - 2 * tail`` of the reference, widened by a quarter of that width
    on each side, so that a shifted sample set stays in view and one outlier does not set the scale.

    Parameters
    ----------
    samples, reference : values ``(n, ...)``, all of a row with its weight
    weights, reference_weights : importance weights ``(n,)`` of the rows
    """
    a, b = values_of(samples, "samples"), _reference(reference)
    w, v = (
        None if each is None else np.repeat(each, values.size // each.size)
        for each, values in ((weights, a), (reference_weights, b))
    )
    low, high = _quantiles(b, v, tail)
    reach = 0.25 * (high - low) or 0.5
    edges = np.linspace(low - reach, high + reach, bins + 1)
    width = np.diff(edges)
    outside = float(np.average((a < edges[0]) | (a > edges[-1]), weights=w))
    return Histogram(edges, _shares(a, edges, w) / width, _shares(b, edges, v) / width, outside)


def _quantiles(values: Array, weights: Array | None, tail: float) -> tuple[float, float]:
    """The quantiles ``tail`` and ``1 - tail``."""
    if weights is None:
        low, high = np.quantile(values, [tail, 1 - tail])
    else:
        low, high = np.quantile(values, [tail, 1 - tail], weights=weights, method="inverted_cdf")
    return float(low), float(high)


def rounding(metadata: Mapping[str, Any]) -> list[str]:
    """What to say of samples whose energies are recomputed from rounded coordinates; nothing of others."""
    precision, shift = metadata.get("precision_nm"), metadata.get("energy_shift")
    if not precision:
        return []
    by = "" if shift is None else f", which changed their mean by {shift:+.2g} kT"
    return [
        f"energies are recomputed from coordinates kept to {precision:g} nm{by}; .npz files keep energies"
    ]
