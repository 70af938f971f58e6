"""The base of every configuration."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A configuration: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def model_of(cls, values: Any) -> type[BaseModel]:
        """The model that describes these values: this one, or a kind of it that they name.

        Raises
        ------
        UnknownNameError
            No kind has that name.
        """
        return cls
