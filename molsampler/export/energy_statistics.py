"""Mean, spread and range of energies that come in blocks."""

from __future__ import annotations

import math

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor


class EnergySummary(BaseModel):
    """Statistics of the float64 energies at export; non-finite ones are counted, not averaged.

    Trajectories store no energies: readers recompute them from the positions of the file.
    """

    model_config = ConfigDict(extra="forbid")

    count: int
    nonfinite: int
    minimum: float | None
    maximum: float | None
    mean: float | None
    standard_deviation: float | None


class EnergyStatistics:
    """Running mean and variance over blocks (Chan, Golub & LeVeque 1983)."""

    def __init__(self) -> None:
        self.count = self.finite = 0
        self.mean = self.squares = 0.0
        self.minimum, self.maximum = math.inf, -math.inf

    def add(self, energies: Tensor) -> None:
        self.count += len(energies)
        kept = energies[torch.isfinite(energies)]
        if not len(kept):
            return
        mean, total = float(kept.mean()), self.finite + len(kept)
        shift = mean - self.mean
        self.squares += float((kept - mean).square().sum())
        self.squares += shift * shift * self.finite * len(kept) / total
        self.mean += shift * len(kept) / total
        self.finite = total
        self.minimum = min(self.minimum, float(kept.min()))
        self.maximum = max(self.maximum, float(kept.max()))

    def summary(self) -> EnergySummary:
        some = self.finite > 0
        return EnergySummary(
            count=self.count,
            nonfinite=self.count - self.finite,
            minimum=self.minimum if some else None,
            maximum=self.maximum if some else None,
            mean=self.mean if some else None,
            standard_deviation=(
                math.sqrt(self.squares / (self.finite - 1)) if self.finite > 1 else None
            ),
        )
