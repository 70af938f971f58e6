"""What is counted on samples while they are drawn, and how the counts of parts make those of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor

from ..frozen import Frozen
from ..wasserstein import wasserstein2_1d

#: Samples on which the drift is measured at most: the first of a run.
DRIFT_SAMPLES = 2**17


class Part(Frozen):
    """Which blocks of a run a file holds, under ``part`` in its metadata, and the counts that add up.

    ``blocks`` is half-open and counted from zero, of a run of ``of`` samples in blocks of ``block_size``.
    ``pilot_evaluations`` are the energy evaluations of the pilot run of a refinement: every part makes it for
    itself, the whole counts it once. ``accepted`` of ``moves`` are those of the refinement.
    """

    of: int = Field(ge=1)
    block_size: int = Field(ge=1)
    blocks: tuple[int, int]
    pilot_evaluations: int = Field(ge=0)
    accepted: int = Field(ge=0)
    moves: int = Field(ge=0)

    @property
    def rows(self) -> int:
        """Samples of the part."""
        first, last = self.blocks
        return min(last * self.block_size, self.of) - first * self.block_size


@dataclass
class Tally:
    """Counts over the blocks of a run that are done.

    Attributes
    ----------
    step_size : that of the refinement, None without one
    evaluations, pilot : energy evaluations of the blocks, and of the pilot run of the refinement
    nonfinite : samples of non-finite energy
    redrawn : draws of energies out of bounds that were drawn again, None where there are no bounds
    accepted, moves : accepted moves of the refinement, of how many
    handed : molecules with chiral centres; of the wrong hand before and after inversion
    before, after : energies of the first samples before and after refinement
    """

    step_size: float | None = None
    evaluations: int = 0
    pilot: int = 0
    nonfinite: int = 0
    redrawn: int | None = None
    accepted: int = 0
    moves: int = 0
    handed: tuple[int, ...] = (0, 0, 0)
    before: list[Tensor] = field(default_factory=list)
    after: list[Tensor] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """The counts as a file of samples holds them."""
        result: dict[str, Any] = {
            "energy_evaluations": self.evaluations + self.pilot,
            "nonfinite_energies": self.nonfinite,
        }
        if self.redrawn is not None:
            result["redrawn"] = self.redrawn
        molecules, wrong_before, wrong_after = self.handed
        if molecules:
            result["handedness"] = {
                "molecules": molecules,
                "wrong_before_inversion": wrong_before,
                "wrong_after_inversion": wrong_after,
            }
        if self.moves:
            result.update(acceptance=self.accepted / self.moves, step_size=self.step_size)
        if self.before:
            before, after = torch.cat(self.before), torch.cat(self.after)
            result.update(drift=energy_drift(before, after), drift_samples=len(before))
        return result

    @classmethod
    def total(cls, records: Sequence[tuple[dict[str, Any], Part]]) -> Self:
        """The counts of a whole run from the records of its parts, without ``before`` and ``after``."""
        first, part = records[0]
        handed = [_handed(record) for record, _ in records]
        return cls(
            step_size=first.get("step_size"),
            evaluations=sum(r["energy_evaluations"] - p.pilot_evaluations for r, p in records),
            pilot=part.pilot_evaluations,
            nonfinite=sum(record["nonfinite_energies"] for record, _ in records),
            redrawn=sum(r["redrawn"] for r, _ in records) if "redrawn" in first else None,
            accepted=sum(part.accepted for _, part in records),
            moves=sum(part.moves for _, part in records),
            handed=tuple(sum(each) for each in zip(*handed, strict=True)),
        )


#: Keys of :meth:`Tally.record` that differ between the parts of a run.
COUNTED = (
    "energy_evaluations",
    "nonfinite_energies",
    "redrawn",
    "handedness",
    "acceptance",
    "drift",
    "drift_samples",
)


def _handed(record: dict[str, Any]) -> tuple[int, int, int]:
    counts = record.get("handedness")
    if counts is None:
        return (0, 0, 0)
    return (counts["molecules"], counts["wrong_before_inversion"], counts["wrong_after_inversion"])


def energy_drift(before: Tensor, after: Tensor) -> float | None:
    """1-D 2-Wasserstein distance between two equally long sets of reduced energies.

    Rows that are not finite in either set are left out; None if none remain.
    """
    kept = torch.isfinite(before) & torch.isfinite(after)
    if not bool(kept.any()):
        return None
    return wasserstein2_1d(before[kept], after[kept])
