r"""Estimates with standard errors from samples that may carry importance weights.

Weights are kept as logarithms :math:`\ell_i = \log w_i`, target over proposal. Where the proposal's
density is normalised, the mean of w estimates the target's normalising constant Z, and averages
under the target are self-normalised (Owen 2013, *Monte Carlo theory, methods and examples*, ch. 9):

.. math:: \hat Z = \frac1n \sum_i w_i, \qquad
          \hat\mu = \sum_i \bar w_i f_i, \quad \bar w_i = \frac{w_i}{\sum_j w_j}

Standard errors are those of the delta method. They know of the weights that were drawn: a region that
the proposal misses is in none of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from .errors import InputError, NonFiniteError, ShapeError

T = TypeVar("T", float, Tensor)


class Estimate(NamedTuple, Generic[T]):
    """A value and its standard error; the error is infinite where one sample is all there is."""

    value: T
    se: T


def effective_count(log_weights: Tensor) -> float:
    r"""Kish's effective number of samples :math:`(\sum w)^2 / \sum w^2` of log weights ``(n,)``.

    0 where all weights are zero.
    """
    if not len(log_weights) or bool((log_weights == -math.inf).all()):
        return 0.0
    weights = _scaled(log_weights)
    return min(float(weights.sum().square() / weights.square().sum()), float(len(weights)))


def log_mean(log_weights: Tensor) -> Estimate[float]:
    r"""Log of the mean weight of log weights ``(n,)``, an estimate of log Z.

    The value is ``-inf`` and its error infinite where all weights are zero.

    Raises
    ------
    InputError
        There are no weights.
    """
    n = len(log_weights)
    if not n:
        raise InputError("log Z needs at least one sample, there are none")
    value = float(torch.logsumexp(log_weights, 0)) - math.log(n)
    if value == -math.inf or n == 1:
        return Estimate(value, math.inf)
    relative = _scaled(log_weights)
    relative = relative / relative.mean() - 1
    return Estimate(value, math.sqrt(float(relative.square().sum()) / (n * (n - 1))))


def log_of_mean(parts: Sequence[Estimate[float]]) -> Estimate[float]:
    """Log of the mean of independent positive numbers, of which logarithms with their errors are given."""
    logs = torch.tensor([part.value for part in parts], dtype=torch.float64)
    errors = torch.tensor([part.se for part in parts], dtype=torch.float64)
    value = float(torch.logsumexp(logs, 0)) - math.log(len(parts))
    return Estimate(value, float((logs.softmax(0) * errors).square().sum().sqrt()))


def mean(values: Tensor, log_weights: Tensor | None = None) -> Estimate[Tensor]:
    r"""Mean of ``values`` ``(n, ...)`` under the weights, each ``(...)`` float64.

    The standard error is :math:`\sqrt{\frac{n}{n-1} \sum_i \bar w_i^2 (f_i - \hat\mu)^2}`, without
    weights that of a plain mean. Values of zero weight do not count, whatever they are.

    Raises
    ------
    InputError
        There are no samples, or every weight is zero.
    ShapeError
        There is not one value (or array of values) a weight.
    NonFiniteError
        A value of some weight is not finite.
    """
    values = values.detach().to("cpu", torch.float64)
    n = len(values) if values.dim() else 0
    if not n:
        raise InputError(f"a mean needs at least one value, got shape {tuple(values.shape)}")
    if log_weights is None:
        log_weights = torch.zeros(n, dtype=torch.float64)
    if tuple(log_weights.shape) != (n,):
        raise ShapeError(f"{n} values have log weights of shape {tuple(log_weights.shape)}")
    kept = log_weights > -math.inf
    if not bool(kept.any()):
        raise InputError(f"every one of the {n} weights is zero: they say nothing of the target")
    weights, values = _scaled(log_weights[kept]), values[kept]
    finite = torch.isfinite(values).reshape(len(values), -1).all(-1)
    if not bool(finite.all()):
        raise NonFiniteError(
            f"the values of {int((~finite).sum())} samples of non-zero weight are not finite, the "
            f"first is that of sample {int(kept.nonzero()[~finite][0])}"
        )
    weights = (weights / weights.sum()).reshape(-1, *[1] * (values.dim() - 1))
    value = (weights * values).sum(0)
    if n == 1:
        return Estimate(value, torch.full_like(value, math.inf))
    square = (weights * (values - value)).square().sum(0) * n / (n - 1)
    return Estimate(value, square.sqrt())


def _scaled(log_weights: Tensor) -> Tensor:
    """Weights of which the largest is one."""
    return (log_weights.double() - log_weights.max()).exp()
