r"""How far a set of Markov chains can be trusted: R-hat, effective sample size, decorrelation.

Every function takes the trace of one observable as an array ``(chain, draw)``; one chain may be
given as ``(draw,)``. With :math:`\rho_t` the autocorrelation at lag ``t`` estimated over all chains,

.. math:: g = 1 + 2 \sum_{t \ge 1} \rho_t, \qquad \mathrm{ESS} = \frac{\text{chains} \times \text{draws}}{g}.

The sum is cut by Geyer's (1992) initial monotone sequence: pair sums
:math:`\rho_{2k} + \rho_{2k+1}` of a reversible chain are positive and fall, so the first negative one
ends the sum and a later rise is noise. :math:`\rho_t` is measured against the variance between chains
as well as within (Vehtari et al. 2021, Bayesian Analysis 16, eq. 10), so chains that sit in different
modes give a small ESS even if each one decorrelates fast around its own mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError

FloatArray = npt.NDArray[np.float64]

#: R-hat above which chains are called different; 1.01 is the recommendation for a final answer on a
#: few long chains (Vehtari et al. 2021), 1.05 what many short chains of a reference run can attain.
R_HAT_LIMIT = 1.05

#: Least bulk effective sample size for which mean and error are called reliable (Vehtari et al. 2021).
ESS_LIMIT = 400.0


class Convergence(NamedTuple):
    """Worst diagnostics over several observables, and what is wrong in words."""

    r_hat: float
    ess: float
    statistical_inefficiency: float
    converged: bool
    warnings: list[str]


def split_r_hat(draws: npt.ArrayLike) -> float:
    r"""Rank-normalised split R-hat (Vehtari et al. 2021), 1 for chains that agree.

    Each chain is cut in halves and draws are replaced by the normal scores of their ranks. With
    :math:`W` the mean variance within the half chains of length ``m`` and :math:`B/m` the variance of
    their means, :math:`\hat R = \sqrt{(m-1)/m + B/(m W)}`. The larger of two values is returned, for
    the draws and for their distances from the median; the second notices chains that agree in location
    and differ in scale.

    Returns NaN where all draws are equal, and infinity where each chain is stuck at its own value.

    Raises
    ------
    InputError
        Fewer than four draws in a chain, a wrong shape, or a value that is not finite.
    """
    halves = _split(_traces(draws))
    folded = np.abs(halves - np.median(halves))
    # Python's max would drop a NaN that comes second.
    return float(np.fmax(_r_hat(_normal_scores(halves)), _r_hat(_normal_scores(folded))))


def effective_sample_size(draws: npt.ArrayLike) -> float:
    """Bulk effective sample size: ESS of the rank-normalised split chains (Vehtari et al. 2021).

    Finite also for observables without variance, and unchanged by any monotone transformation.
    Draws that are all equal carry no sign of correlation and count in full.

    Raises
    ------
    InputError
        Fewer than four draws in a chain, a wrong shape, or a value that is not finite.
    """
    halves = _split(_traces(draws))
    return halves.size / _autocorrelation_time(_normal_scores(halves))


def statistical_inefficiency(draws: npt.ArrayLike) -> float:
    """Statistical inefficiency ``g >= 1``: draws per independent draw, as for the variance of the mean.

    Raises
    ------
    InputError
        Fewer than four draws in a chain, a wrong shape, or a value that is not finite.
    """
    return max(1.0, _autocorrelation_time(_traces(draws)))


def decorrelate(draws: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Indices of draws spaced by the statistical inefficiency, rounded up; the last draw is kept.

    Raises
    ------
    InputError
        As :func:`statistical_inefficiency`.
    """
    traces = _traces(draws)
    stride = math.ceil(statistical_inefficiency(traces))
    return np.arange(traces.shape[1] - 1, -1, -stride, dtype=np.int64)[::-1].copy()


def trend(draws: npt.ArrayLike) -> float:
    """Difference of the means over the halves of the chains, in standard errors over chains.

    Chains that share a drift agree with each other, so R-hat sees it only once it is as large as the
    spread of the draws; many independent chains together resolve far less. Standard normal for
    stationary chains; at least two are needed. Zero where no chain changes.

    Raises
    ------
    InputError
        Fewer than two chains or four draws, or a value that is not finite.
    """
    traces = _traces(draws)
    chains, half = traces.shape[0], traces.shape[1] // 2
    if chains < 2:
        raise InputError("a trend needs at least two chains to know its standard error, got one")
    change = traces[:, -half:].mean(axis=1) - traces[:, :half].mean(axis=1)
    error = float(change.std(ddof=1)) / math.sqrt(chains)
    mean = float(change.mean())
    if error == 0.0:
        return 0.0 if mean == 0.0 else math.copysign(math.inf, mean)
    return mean / error


def assess(
    observables: Mapping[str, npt.ArrayLike],
    *,
    r_hat_limit: float = R_HAT_LIMIT,
    ess_limit: float = ESS_LIMIT,
) -> Convergence:
    """Worst R-hat, ESS and inefficiency over named observables ``(chain, draw)``, with a verdict.

    An observable that never changes in any chain says nothing and is left out of the verdict.

    Raises
    ------
    InputError
        No observable is given, or one is unusable as in :func:`split_r_hat`.
    """
    if not observables:
        raise InputError("assess needs at least one observable (chain, draw), got none")
    warnings = []
    worst_r_hat, least_ess, worst_g = 1.0, math.inf, 1.0
    for name, values in observables.items():
        traces = _traces(values)
        if np.ptp(traces) == 0.0:
            least_ess = min(least_ess, float(traces.size))
            continue
        r_hat = split_r_hat(traces)
        ess = effective_sample_size(traces)
        worst_r_hat = max(worst_r_hat, r_hat)
        least_ess = min(least_ess, ess)
        worst_g = max(worst_g, statistical_inefficiency(traces))
        if not r_hat <= r_hat_limit:
            warnings.append(
                f"R-hat of {name} is {r_hat:.3f}, above {r_hat_limit:g}: the chains disagree"
            )
        if not ess >= ess_limit:
            warnings.append(
                f"effective sample size of {name} is {ess:.0f}, below {ess_limit:g}: "
                "its mean and quantiles are uncertain"
            )
    return Convergence(worst_r_hat, least_ess, worst_g, not warnings, warnings)


def _traces(draws: Any) -> FloatArray:
    traces = np.asarray(draws, dtype=np.float64)
    if traces.ndim == 1:
        traces = traces[None]
    if traces.ndim != 2 or traces.shape[0] < 1 or traces.shape[1] < 4:
        raise InputError(
            "draws must have shape (chain, draw) with at least one chain of four draws, "
            f"got {np.shape(draws)}"
        )
    if not np.isfinite(traces).all():
        raise InputError("draws must be finite, got NaN or infinite values")
    return traces


def _split(traces: FloatArray) -> FloatArray:
    """Half chains ``(2 chain, draw // 2)``; an odd draw in the middle is left out."""
    half = traces.shape[1] // 2
    return np.concatenate([traces[:, :half], traces[:, -half:]])


def _normal_scores(values: FloatArray) -> FloatArray:
    """Normal quantiles of the ranks over all entries; ties share their mean rank (Blom's offsets)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_rank = counts.cumsum() - 0.5 * (counts - 1)
    probability = (mean_rank - 0.375) / (values.size + 0.25)
    score: FloatArray = torch.special.ndtri(torch.from_numpy(probability)).numpy()
    return score[inverse].reshape(values.shape)


def _r_hat(chains: FloatArray) -> float:
    length = chains.shape[1]
    within = float(chains.var(axis=1, ddof=1).mean())
    between = float(chains.mean(axis=1).var(ddof=1))
    if within == 0.0:
        return math.inf if between > 0.0 else math.nan
    return math.sqrt((length - 1) / length + between / within)


def _autocovariance(chains: FloatArray) -> FloatArray:
    """Autocovariance ``(chain, lag)`` with the biased 1/draws normalisation, by FFT."""
    length = chains.shape[1]
    centred = chains - chains.mean(axis=1, keepdims=True)
    spectrum = np.fft.rfft(centred, 2 * length, axis=1)
    product = np.fft.irfft(spectrum * spectrum.conj(), 2 * length, axis=1)
    return np.asarray(product[:, :length] / length, dtype=np.float64)


def _autocorrelation_time(chains: FloatArray) -> float:
    """g of the module docstring, without its floor at one."""
    count, length = chains.shape
    if np.ptp(chains) == 0.0:
        return 1.0
    covariance = _autocovariance(chains).mean(axis=0)
    within = covariance[0] * length / (length - 1)
    between = float(chains.mean(axis=1).var(ddof=1)) if count > 1 else 0.0
    total = covariance[0] + between
    rho = 1.0 - (within - covariance) / total
    rho[0] = 1.0
    pairs = rho[: length // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs < 0.0)
    if len(negative):
        pairs = pairs[: negative[0]]
    tau = 2.0 * float(np.minimum.accumulate(pairs).sum()) - 1.0 if len(pairs) else 0.0
    # Antithetic chains may beat independent draws; the bound keeps an estimate from running to zero.
    return max(tau, 1.0 / math.log10(max(count * length, 10)))
