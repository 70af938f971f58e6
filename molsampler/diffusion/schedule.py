r"""Noise schedules: how time maps to the Gaussian kernel :math:`x_t = \alpha_t x + \sigma_t \varepsilon`.

A schedule is a frozen value, owned by no network. Time runs over :math:`t \in [0, 1]`, from the
least to the most noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import InputError


class Scales(NamedTuple):
    """Signal scale and noise scale at some times; both have the shape of ``t``."""

    alpha: Tensor
    sigma: Tensor


class Schedule(Protocol):
    """Map from time to noise scales, and the distribution of training times."""

    def level(self, t: Tensor) -> Tensor:
        """What a network is told of times ``t``: the number of a discrete level, or the time itself."""

    def __call__(self, t: Tensor) -> Scales:
        """Scales at times ``t`` in [0, 1], shape ``(*b,)``."""

    def times(self, n: int, *, generator: torch.Generator | None, like: Tensor) -> Tensor:
        """Draw ``n`` training times, shape ``(n,)``."""


@dataclass(frozen=True)
class LinearBeta:
    r"""Variance-preserving discrete schedule of the DiKL paper (arXiv 2410.12456, after DDPM).

    :math:`\beta_k` is linear in ``k = 1..levels``, :math:`\alpha_k^2 = \prod_{j\le k}(1-\beta_j)` and
    :math:`\sigma_k^2 = 1 - \alpha_k^2`. Times are rounded to the nearest level; training times begin at
    the level ``first``, counted from zero.
    """

    beta_min: float
    beta_max: float
    levels: int
    first: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.beta_min <= self.beta_max < 1) or self.levels < 1:
            raise InputError(
                "LinearBeta needs 0 < beta_min <= beta_max < 1 and levels >= 1, got "
                f"beta_min={self.beta_min}, beta_max={self.beta_max}, levels={self.levels}"
            )
        if not 0 <= self.first < self.levels:
            raise InputError(f"first must be a level of 0 to {self.levels - 1}, got {self.first}")

    def level(self, t: Tensor) -> Tensor:
        """Level of times ``t``, whole numbers from zero."""
        return (t * (self.levels - 1)).round().long().clamp(0, self.levels - 1)

    def __call__(self, t: Tensor) -> Scales:
        # float64 here: with beta_min = 1e-6, sigma^2 = 1 - alpha^2 would lose all its digits in float32.
        beta = torch.linspace(
            self.beta_min, self.beta_max, self.levels, dtype=torch.float64, device=t.device
        )
        log_alpha2 = torch.log1p(-beta).cumsum(0)
        k = self.level(t)
        alpha = torch.exp(0.5 * log_alpha2)[k].to(t.dtype)
        sigma = torch.sqrt(-torch.expm1(log_alpha2))[k].to(t.dtype)
        return Scales(alpha, sigma)

    def times(self, n: int, *, generator: torch.Generator | None, like: Tensor) -> Tensor:
        k = torch.randint(self.first, self.levels, (n,), generator=generator, device=like.device)
        return k.to(like.dtype) / max(self.levels - 1, 1)


@dataclass(frozen=True)
class LogUniformSigma:
    r"""Variance-exploding schedule: :math:`\alpha = 1` and :math:`\log\sigma` uniform between two bounds.

    Bounds are in the units of the positions. The upper one should reach the distance between modes:
    only there does the diffused target connect them.
    """

    sigma_min: float
    sigma_max: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise InputError(
                "LogUniformSigma needs 0 < sigma_min < sigma_max, got "
                f"sigma_min={self.sigma_min}, sigma_max={self.sigma_max}"
            )

    def level(self, t: Tensor) -> Tensor:
        return t

    def __call__(self, t: Tensor) -> Scales:
        sigma = self.sigma_min * (self.sigma_max / self.sigma_min) ** t
        return Scales(torch.ones_like(sigma), sigma)

    def times(self, n: int, *, generator: torch.Generator | None, like: Tensor) -> Tensor:
        return torch.rand(n, generator=generator, dtype=like.dtype, device=like.device)
