r"""A range of temperatures, and how networks are told of one in it.

A system whose reduced energy is :math:`u_0 = U / kT_0` at its own temperature :math:`T_0` has
:math:`u_T = u_0 T_0 / T` at another. Temperatures are in the system's unit, kelvin for molecules.
Networks read the logarithm, on which equal steps are equal factors, scaled to the range:

.. math:: c(T) = \frac{2 \log(T / T_{mid})}{\log(T_{high} / T_{low})} \in [-1, 1], \qquad
          T_{mid} = \sqrt{T_{low} T_{high}}.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from .errors import InputError
from .frozen import Frozen

#: Relative distance beyond an end of the range that still counts as inside: that of rounded text.
_ROUNDING = 1e-6


def seed_at(seed: int, temperature: float) -> int:
    """A seed for what is drawn at one of several temperatures.

    Sets of one ``seed`` are independent then, as curves through them take them to be; by the same noise they
    would be nearly the same configurations, larger or smaller.
    """
    digest = hashlib.sha256(struct.pack("<Qd", seed % 2**64, temperature)).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class TemperatureRange(Frozen):
    """Temperatures from ``low`` to ``high``."""

    low: float = Field(gt=0, lt=1e9)
    high: float = Field(gt=0, lt=1e9)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        return self

    @classmethod
    def parse(cls, text: str) -> Self:
        """The range written as ``LO:HI``.

        Raises
        ------
        InputError
            It is not written so, or LO is not a positive number below HI.
        """
        match = re.fullmatch(r"\s*([^:\s]+)\s*:\s*([^:\s]+)\s*", text)
        try:
            low, high = (float(part) for part in match.groups()) if match else (math.nan, math.nan)
        except ValueError:
            low = high = math.nan
        if not 0 < low < high < 1e9:
            single = re.fullmatch(r"\s*\d*\.?\d+(e[+-]?\d+)?\s*", text)
            raise InputError(
                f"a range of temperatures must read LO:HI, two positive numbers of which the first is "
                f"smaller, such as 280:450, got {text!r}"
                + (
                    f"; a system at one temperature is written SYSTEM@{text.strip()}"
                    if single
                    else ""
                )
            )
        return cls(low=low, high=high)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"

    def __contains__(self, temperature: float) -> bool:
        reach = 1 + _ROUNDING
        return self.low / reach <= temperature <= self.high * reach

    @property
    def middle(self) -> float:
        """Geometric mean of the two ends."""
        return math.sqrt(self.low * self.high)

    def spread(self, count: int) -> list[float]:
        """``count`` temperatures from one end to the other, each by the same factor above the one before."""
        if count < 2:
            return [self.middle]
        factor = self.high / self.low
        inner = [self.low * factor ** (k / (count - 1)) for k in range(1, count - 1)]
        return [self.low, *inner, self.high]

    def draw(self, n: int, *, generator: torch.Generator | None, like: Tensor) -> Tensor:
        """``n`` temperatures ``(n,)`` whose logarithm is uniform."""
        share = torch.rand(n, generator=generator, dtype=like.dtype, device=like.device)
        return self.low * (self.high / self.low) ** share

    def context(self, temperature: Tensor) -> Tensor:
        """What networks are told of temperatures ``(n,)``: c above, ``(n, 1)``."""
        half = 0.5 * math.log(self.high / self.low)
        return ((temperature / self.middle).log() / half)[:, None]

    def temperature(self, context: Tensor) -> Tensor:
        """The temperatures ``(n,)`` of :meth:`context` ``(n, 1)``."""
        return self.middle * (0.5 * math.log(self.high / self.low) * context[:, 0]).exp()
