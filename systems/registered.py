"""System files that put a registered system at a temperature of their own."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from molsampler.target import System

from .registry import get_system
from .spec import SystemSpec


class RegisteredSpec(SystemSpec):
    """Keys of a system file of ``kind: registered``, which is also the kind of a file with ``system`` alone::

        system: lj13
        temperature: 0.3

    The system keeps its name. Files record ``{name: lj13, temperature: 0.3}``.
    """

    system: str = Field(
        pattern=r"^[A-Za-z0-9_+-]{1,100}$", description="the name of a registered system"
    )

    def build(self, folder: Path | None) -> System:
        return get_system(self.system)
