r"""Weighted samples as pymbar takes them: reduced potentials ``u_kn`` and counts ``N_k``.

Two states: the proposal, from which all samples are, and the target, from which none is. With the proposal's
density q normalised, :math:`u_0 = -\log q = \log w + u` and :math:`u_1 = u`, so that the free energy of the
target against the proposal is :math:`-\log Z`. ::

    u_kn, N_k = mbar_arrays(samples)
    mbar = pymbar.MBAR(u_kn, N_k)
    mbar.compute_free_energy_differences()["Delta_f"][0, 1]  # -samples.log_z.value
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from molsampler.errors import InputError
from molsampler.samples import Samples


def mbar_arrays(samples: Samples) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """``u_kn`` ``(2, n)`` of proposal and target and ``N_k`` ``(2,) = (n, 0)``; see the module's text.

    Of a sample whose weight is zero the weight says nothing of q; it gets 0 in the proposal and an infinite
    potential in the target, which gives it the weight that it has.

    Raises
    ------
    InputError
        There are no weights, all are zero, or one belongs to an infinite energy.
    """
    if samples.log_weights is None:
        raise InputError(
            "samples must carry log weights: the proposal's potential is u + log weight"
        )
    if not samples.ess:
        raise InputError(f"every one of the {len(samples)} weights is zero")
    log_weights, energies = samples.log_weights.numpy(), samples.energies.numpy()
    counted = log_weights > -np.inf
    if not np.isfinite(energies[counted]).all():
        row = int(np.flatnonzero(counted & ~np.isfinite(energies))[0])
        raise InputError(f"sample {row} has infinite energy and a weight that is not zero")
    target = np.where(counted, energies, np.inf)
    proposal = np.where(counted, np.where(counted, energies, 0.0) + log_weights, 0.0)
    return np.stack([proposal, target]), np.array([len(samples), 0])
