r"""Averages at each of several temperatures from the samples of all: the multistate Bennett acceptance ratio.

Of sets of samples at temperatures :math:`T_1 \dots T_K`, with weights :math:`\bar w_i` of sum one in each,
an effective number :math:`N_k` and energies :math:`E_i`, reduced :math:`E_i / T`, every sample says
something of every temperature, by

.. math:: W_{ik} = \frac{e^{f_k - E_i / T_k}}{\sum_l N_l\, e^{f_l - E_i / T_l}}, \qquad
          \sum_i \omega_i W_{ik} = 1, \quad \omega_i = N_{k(i)} \bar w_i, \qquad
          \langle A \rangle_k = \sum_i \omega_i W_{ik} A_i .

The equations in the middle give the free energies :math:`f_k = -\log Z_k` up to a constant (Shirts &
Chodera 2008, J. Chem. Phys. 129, 124105, of which this is the case of weighted samples): the estimator of
least variance for samples that are independent and equally worth. Weighted averages of each temperature are
those of it whatever the network learned, so that taking them together is consistent.

Errors linearise all averages in the sums over samples, f included: :meth:`Pool.influence` is what a sample
adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Newton steps, and halvings of each.
_STEPS = 100
_HALVINGS = 40

#: Deviation of sums of shares from one at which Newton's method ends, and the largest that counts as solved.
_TOLERANCE, _SOLVED = 1e-10, 1e-6


@dataclass(frozen=True)
class Pool:
    """Samples of K temperatures taken together.

    Attributes
    ----------
    temperatures : ``(K,)``
    energies : of all samples ``(n,)``, those of the first temperature first, in the unit of the temperatures
    counts : what each sample counts for in the temperature that it was drawn at, omega ``(n,)``
    effective : effective number of samples of each temperature ``(K,)``
    free : f, zero at the first temperature ``(K,)``
    shares : W ``(n, K)``
    solved : whether the equations hold
    """

    temperatures: Array
    energies: Array
    counts: Array
    effective: Array
    free: Array
    shares: Array
    solved: bool

    @classmethod
    def of(
        cls,
        temperatures: Sequence[float],
        energies: Sequence[Array],
        weights: Sequence[Array],
        *,
        start: Sequence[float],
    ) -> Pool:
        """The solution for samples of each temperature, from first values of f: Newton's method on the convex
        function whose gradient the equations are."""
        t = np.asarray(temperatures, dtype=np.float64)
        effective = np.array([w.sum() ** 2 / np.square(w).sum() for w in weights])
        each = [n * w / w.sum() for n, w in zip(effective, weights, strict=True)]
        counts, energy = np.concatenate(each), np.concatenate(energies)
        reduced = energy[:, None] / t

        def shares(f: Array) -> tuple[Array, float]:
            """W, and the function that is to be least."""
            exponent = np.log(effective) + f - reduced
            top = exponent.max(1, keepdims=True)
            log_d = top[:, 0] + np.log(np.exp(exponent - top).sum(1))
            w = np.exp(f - reduced - log_d[:, None])
            return w, float(counts @ (log_d + reduced.min(1)) - effective @ f)

        free = np.asarray(start, dtype=np.float64) - start[0]
        w, value = shares(free)
        for _ in range(_STEPS):
            total = counts @ w
            if np.abs(total - 1).max() < _TOLERANCE:
                break
            gradient = effective * (total - 1)
            curvature = np.diag(effective * total)
            curvature -= effective[:, None] * (w.T @ (counts[:, None] * w)) * effective
            # A constant in f changes nothing: the first stays.
            move = np.zeros_like(free)
            move[1:] = np.linalg.lstsq(curvature[1:, 1:], -gradient[1:], rcond=None)[0]
            for halving in range(_HALVINGS):
                trial = free + move * 0.5**halving
                after, lower = shares(trial)
                if lower <= value:
                    break
            else:
                break
            free, w, value = trial, after, lower
        solved = bool(np.abs(counts @ w - 1).max() < _SOLVED)
        return cls(t, energy, counts, effective, free, w, solved)

    def weights(self) -> Array:
        """Weights of every sample at each temperature ``(n, K)``, of sum one."""
        counted = self.counts[:, None] * self.shares
        weights: Array = counted / counted.sum(0)
        return weights

    def influence(self, values: Array, means: Array) -> Array:
        """What a sample of count one adds to averages, ``(n, K)``.

        Parameters
        ----------
        values : ``(n, K)``, of each sample at each temperature
        means : their averages ``(K,)``
        """
        away = self.shares * (values - means)
        by_free = -(away.T @ (self.counts[:, None] * self.shares)) * self.effective
        added: Array = away + self.influence_on_free @ by_free.T
        return added

    @cached_property
    def influence_on_free(self) -> Array:
        """What a sample of count one adds to f ``(n, K)``, whose first is fixed."""
        overlap = self.shares.T @ (self.counts[:, None] * self.shares)
        slope = np.eye(len(self.free)) - overlap * self.effective
        added = np.zeros_like(self.shares)
        added[:, 1:] = -np.linalg.lstsq(slope[1:, 1:], self.shares[:, 1:].T, rcond=None)[0].T
        return added
