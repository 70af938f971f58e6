r"""Whether the chains of a population have come to rest.

Of the same chains, the energies at a time and as much later again: at equilibrium their mean does not change.
In standard deviations of the energy and with the error of the mean over chains, the drift is

.. math:: \delta = \frac{\langle u' - u \rangle}{\sigma(u')}, \qquad
          \Delta\delta = \frac{\sigma(u' - u)}{\sigma(u') \sqrt{n}} .

Chains that were all caught in the same place drift no more and are not found out by this.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..estimate import Estimate

#: Least drift, in standard deviations and in its own errors, that counts as one.
_LEAST, _ERRORS = 0.05, 5.0


def drift(before: Tensor, after: Tensor, *, groups: int = 1) -> Estimate[float]:
    """The drift between energies ``(n,)`` of the same chains, in standard deviations.

    ``groups`` is the number of temperatures of rows that take turns; each has a spread of its own. Chains of
    infinite energy are left out.
    """
    change = (after - before).double()
    moved = []
    for group in range(groups):
        own, later = change[group::groups], after[group::groups].double()
        known = torch.isfinite(own) & torch.isfinite(later)
        if int(known.sum()) < 2:
            continue
        spread = float(later[known].std())
        if spread > 0:
            moved.append(own[known] / spread)
    if not moved:
        return Estimate(0.0, math.inf)
    values = torch.cat(moved)
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def unsettled(found: Estimate[float]) -> bool:
    """Whether a drift is one."""
    return abs(found.value) > max(_LEAST, _ERRORS * found.se)
