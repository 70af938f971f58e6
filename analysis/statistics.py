r"""Standard errors, floors and the gate: what a number measured on finite samples means.

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
n in the above is the effective sample size.

**Shares.** A share p of wrong configurations, counted over all n of one side, has the standard error
:math:`\sqrt{p(1-p)/n}`. If both laws agree, value minus floor has
:math:`null\_se^2 = p_0 (1-p_0) (1/n + 1/n_0)` with the reference's share p_0; where the reference shows
none, one in its number is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from molsampler.errors import InputError

#: Standard errors above the floor at which a metric no longer passes.
GATE_SIGMAS = 6.0

#: Fewest draws of a floor, whose spread decides the gate.
FLOOR_REPEATS = 6


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One measured number of samples against a reference.

    Attributes
    ----------
    key, name, definition : identifier, display name and what is measured, in words
    value, se : mean over the repeats and its standard error
    floor, floor_se : the same between two independent halves of the reference
    null_se : standard error that value minus floor would have if both laws agreed
    n, repeats : configurations per draw and number of draws
    floor_repeats : number of draws of the floor
    unit : of value and floor, empty if dimensionless
    note : what a reader must know to use the number
    judged : whether the gate applies. Some numbers say nothing of the law for a given system, such as
        distances between raw coordinates where the energy leaves the pose open
    """

    key: str
    name: str
    definition: str
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
    judged: bool = True

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
        """Whether the value lies within ``sigmas`` standard errors of the floor, or is not judged."""
        return not self.judged or self.z <= sigmas

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary; numbers that are not finite become None."""
        return {
            "key": self.key,
            "name": self.name,
            "value": finite_or_none(self.value),
            "se": finite_or_none(self.se),
            "floor": finite_or_none(self.floor),
            "floor_se": finite_or_none(self.floor_se),
            "null_se": finite_or_none(self.null_se),
            "ratio": finite_or_none(self.ratio),
            "z": finite_or_none(self.z),
            "judged": self.judged,
            "passed": self.passed(),
            "n": self.n,
            "repeats": self.repeats,
            "floor_repeats": self.floor_repeats,
            "unit": self.unit,
            "note": self.note,
        }


def finite_or_none(value: float) -> float | None:
    """The number as JSON can hold it."""
    return float(value) if math.isfinite(value) else None


def effective_sample_size(weights: Tensor | None, n: int) -> float:
    r"""Kish's effective sample size :math:`(\sum w)^2 / \sum w^2` of importance weights."""
    if weights is None:
        return float(n)
    total = weights.double().sum()
    if not bool(total > 0):
        raise InputError("weights must have a positive sum, got all zeros")
    return float(total**2 / weights.double().square().sum())


def standard_error(values: Sequence[float], overlap: float) -> float:
    """Standard error of the mean of repeats that correlate by ``overlap``; NaN if one is not finite."""
    if not all(map(math.isfinite, values)):
        return math.nan
    return float(np.std(values, ddof=1) * math.sqrt(1 / len(values) + overlap / (1 - overlap)))


def null_error(floors: Sequence[float], repeats: int, overlap: float) -> float:
    """Standard error of value minus floor where both laws agree; see the module's text."""
    shared = overlap**2 / (1 - overlap**2)
    factor = 0.75 * (1 / repeats + 1 / len(floors) + 2 * shared)
    return float(np.std(floors, ddof=1) * math.sqrt(factor))


def share_error(p: float, n: float) -> float:
    """Standard error of a share p of n configurations."""
    return math.sqrt(max(p * (1 - p), 0.0) / n)


def share_null_error(floor: float, n: float, reference_n: float, *, unanimous: bool) -> float:
    """Standard error of a share minus its floor if both laws agree.

    Where the reference shows none, one in its number is assumed, unless ``unanimous``: then what
    never happens in the reference must not happen at all.
    """
    p = floor if unanimous else max(floor, 1 / reference_n)
    return math.sqrt(p * (1 - p) * (1 / n + 1 / reference_n))
