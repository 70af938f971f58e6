"""The base of every configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
