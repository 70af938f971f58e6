r"""Free-energy difference of two states from samples of both: Bennett's acceptance ratio.

Of :math:`N_k` samples of a state and :math:`N_{k+1}` of another, with :math:`w_k` the other's reduced energy
less the own at the samples of the first, and :math:`w_{k+1}` the first's less the own at those of the other,
the difference :math:`\Delta f = -\log Z_{k+1} / Z_k` is the root of

.. math:: N_k \langle \sigma(\Delta f - w_k - M) \rangle_k =
          N_{k+1} \langle \sigma(M - w_{k+1} - \Delta f) \rangle_{k+1}, \qquad M = \log(N_k / N_{k+1}),

:math:`\sigma(x) = 1 / (1 + e^{-x})` (Bennett 1976, J. Comput. Phys. 22, 245).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Halvings of the bracket in which the root of Bennett's equation lies.
_HALVINGS = 200


def bennett(
    forward: Array, backward: Array, cold: Array, hot: Array, n_cold: float, n_hot: float
) -> tuple[float, float, Array, Array]:
    """Root of Bennett's equation, the number of samples that count for both sides, and each sample's
    influence on the root, for averages under the weights ``cold`` and ``hot``."""
    shift = math.log(n_cold / n_hot)
    p, q = cold / cold.sum(), hot / hot.sum()

    def sides(step: float) -> tuple[Array, Array]:
        return _sigmoid(step - forward - shift), _sigmoid(shift - backward - step)

    reach = 40.0
    low = float(min(forward.min() + shift, shift - backward.max())) - reach
    high = float(max(forward.max() + shift, shift - backward.min())) + reach
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        one, other = sides(middle)
        if n_cold * (p @ one) < n_hot * (q @ other):
            low = middle
        else:
            high = middle
    step = 0.5 * (low + high)
    one, other = sides(step)
    slope = n_cold * (p @ (one * (1 - one))) + n_hot * (q @ (other * (1 - other)))
    slope = max(float(slope), 1e-300)
    return step, float(n_cold * (p @ one)), -n_cold * one / slope, n_hot * other / slope


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))
