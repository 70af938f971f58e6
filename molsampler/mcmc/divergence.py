"""When chains have left what an energy with a norm can have.

Probes before a run (:mod:`molsampler.wellposed`) look along a few directions; chains look everywhere that
the energy leads. Where it falls without bound they follow, and their energies with them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UnboundedEnergyError

#: Energy in kT per degree of freedom that no matter has at a temperature at which it is sampled: a
#: chemical bond has some hundred kT, and at a hundredth of room temperature some ten thousand.
DEPTH = 1e6

#: What the median of annealed chains may still fall, in kT per degree of freedom: at equilibrium energies
#: spread by a square root of half the degrees of freedom.
UNREST = 1e3

_REASON = (
    "the energy falls without bound, so exp(-u) has no norm. Add what bounds it, such as a core where "
    "particles meet or a term that grows outwards"
)


class FallWatch:
    """Refuses energies whose median falls by ``depth``, or any by ``DEPTH``, per degree of freedom.

    The fall is counted from where the median began, or from zero if that was higher: where energies are
    counted from the separated electrons they are low from the beginning.
    """

    def __init__(self, dof: int, depth: float = DEPTH):
        self.dof, self.depth = dof, depth
        self._began: float | None = None

    def __call__(self, energy: Tensor) -> None:
        """Look at the energies ``(b,)`` of all chains.

        Raises
        ------
        UnboundedEnergyError
            They have fallen too far.
        """
        median = float(energy.median())
        if self._began is None:
            self._began = min(0.0, median)
        elif median < self._began - self.depth * self.dof:
            raise UnboundedEnergyError(
                f"the median energy of the chains has fallen from {self._began:.2g} to {median:.2g} kT: "
                f"{_REASON}"
            )
        else:
            _require_above(energy, self._began - DEPTH * self.dof, "chains")


def require_bounded(energy: Tensor, dof: int, of: str) -> None:
    """Refuse energies ``(b,)`` of which any is ``DEPTH`` per degree of freedom below zero and the median.

    Raises
    ------
    UnboundedEnergyError
        They are; ``of`` says whose they are.
    """
    _require_above(energy, min(0.0, float(energy.median())) - DEPTH * dof, of)


def require_finite(energy: Tensor, of: str) -> None:
    """Refuse energies ``(b,)`` of which more than half are not finite.

    Raises
    ------
    UnboundedEnergyError
        They are; ``of`` says whose they are.
    """
    lost = int((~torch.isfinite(energy)).sum())
    if 2 * lost > len(energy):
        raise UnboundedEnergyError(
            f"{lost:,} of {len(energy):,} {of} have no finite energy: it is infinite or NaN almost "
            "everywhere they can go"
        )


def _require_above(energy: Tensor, least: float, of: str) -> None:
    lowest = float(energy.min())
    if lowest < least:
        fallen = int((energy < least).sum())
        raise UnboundedEnergyError(
            f"{fallen:,} of {len(energy):,} {of} have fallen to energies as low as {lowest:.2g} kT, where "
            f"the median is {float(energy.median()):.2g}: {_REASON}"
        )
