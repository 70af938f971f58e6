"""Noise schedules as settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ..diffusion.schedule import LinearBeta, LogUniformSigma
from ..frozen import Frozen


class LinearBetaConfig(Frozen):
    """:class:`~molsampler.diffusion.schedule.LinearBeta`."""

    kind: Literal["linear-beta"] = "linear-beta"
    beta_min: float
    beta_max: float
    levels: int = 30
    first: int = Field(0, ge=0)

    def build(self, data_scale: float) -> LinearBeta:
        return LinearBeta(self.beta_min, self.beta_max, self.levels, self.first)


class LogUniformConfig(Frozen):
    """:class:`~molsampler.diffusion.schedule.LogUniformSigma`, in units of the data scale."""

    kind: Literal["log-uniform"] = "log-uniform"
    sigma_min: float = Field(0.02, gt=0)
    sigma_max: float = Field(3.0, gt=0)

    def build(self, data_scale: float) -> LogUniformSigma:
        return LogUniformSigma(self.sigma_min * data_scale, self.sigma_max * data_scale)


AnySchedule = Annotated[LinearBetaConfig | LogUniformConfig, Field(discriminator="kind")]
