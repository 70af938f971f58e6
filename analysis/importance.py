r"""What importance weights can carry: effective size, the largest weight, and the tail of their law.

The variance of an estimate from weights :math:`w` is finite where :math:`E[w^2]` is. Samples alone cannot
show that, but the largest weights show the law's tail: a generalised Pareto distribution is fitted to them,
whose shape k says how many moments there are (:math:`k < 1/2`: the variance). Above :math:`k = 0.7` estimates
converge too slowly to be of use and their errors mean nothing (Vehtari, Simpson, Gelman, Yao & Gabry,
*Pareto smoothed importance sampling*, JMLR 25, 2024). The fit is that of arviz-stats.

None of this knows of regions that the proposal never visits: a missed mode leaves ESS and k as they are.
"""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from molsampler.errors import InputError, MissingDependencyError
from molsampler.estimate import effective_count

#: Pareto k above which weights are not usable.
PARETO_LIMIT = 0.7

#: Pareto k above which the variance of the weights is infinite, so that errors are too small.
VARIANCE_LIMIT = 0.5

#: Least effective number of samples.
ESS_LIMIT = 100.0

#: Largest share of the total that one sample may have.
SHARE_LIMIT = 0.05

#: Fewest samples of non-zero weight from which a tail is fitted; PSIS needs five in the tail's fifth.
FEWEST = 25

#: Relative spread of the largest weights below which they are all the same, and have no tail.
_EQUAL = 1e-9


class Verdict(NamedTuple):
    """Whether weights can be used, by what they look like.

    Attributes
    ----------
    n : number of samples
    ess : Kish's effective number of samples
    max_weight : largest share of the total weight, None where all weights are zero
    pareto_k : shape of the weights' tail; None without weights, and where there is none to fit: too few
        weights, or the largest are all the same
    usable : whether estimates from the weights mean something
    reason : why not; what is to be known where they do
    """

    n: int
    ess: float
    max_weight: float | None
    pareto_k: float | None
    usable: bool
    reason: str


def judge(log_weights: Tensor | None, n: int) -> Verdict:
    """The verdict on log weights ``(n,)``, or on n samples that count the same.

    Raises
    ------
    InputError
        There is no sample.
    MissingDependencyError
        arviz-stats is not installed.
    """
    if n < 1:
        raise InputError("a verdict needs at least one sample, there are none")
    if log_weights is None:
        reason = "unweighted: averages are plain ones; log Z, F and S need weights"
        return Verdict(n, float(n), 1 / n, None, True, reason)
    ess = effective_count(log_weights)
    if not ess:
        return Verdict(n, 0.0, None, None, False, f"every one of the {n:,} weights is zero")
    share = float(log_weights.softmax(0).max())
    k = pareto_k(log_weights)
    problems = []
    if share > SHARE_LIMIT:
        problems.append(f"one sample has {100 * share:.3g} % of the weight")
    if ess < ESS_LIMIT:
        problems.append(
            f"the effective number of samples is {ess:.3g} of {n:,}; {ESS_LIMIT:g} are needed"
        )
    if k is not None and k > PARETO_LIMIT:
        problems.append(
            f"Pareto k is {k:.2f}, above {PARETO_LIMIT:g}: the weights have no mean that so many samples "
            "would show"
        )
    return Verdict(
        n,
        ess,
        share,
        k,
        not problems,
        "; ".join(problems),
    )


def pareto_k(log_weights: Tensor) -> float | None:
    """Shape k of the tail of log weights ``(n,)``; None where it cannot be fitted.

    Raises
    ------
    MissingDependencyError
        arviz-stats is not installed.
    """
    values = np.sort(log_weights[log_weights > -math.inf].double().numpy())
    n = len(values)
    if n < FEWEST or values[-1] - values[-min(n // 5, math.ceil(3 * math.sqrt(n)))] < _EQUAL:
        return None
    array_stats = _array_stats()
    with np.errstate(all="ignore"):  # ties at the start of the tail
        # The fit takes log likelihoods, whose negative are the log weights.
        k = float(array_stats.psislw(-values)[1])
    return k if math.isfinite(k) else None


def _array_stats() -> Any:
    try:
        return importlib.import_module("arviz_stats.base").array_stats
    except ImportError:
        raise MissingDependencyError(
            "the tail of the weights is fitted by arviz-stats, which is not installed: "
            "pip install arviz-stats"
        ) from None
