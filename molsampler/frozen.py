"""The base of every configuration, and of those of which there are several kinds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast

from pydantic import BaseModel, ConfigDict

from .registry import Registry


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


class Kind(Frozen):
    """A configuration that names its kind; ``kinds`` holds those there are.

    A field of any kind is ``Annotated[SerializeAsAny[Base], PlainValidator(Base.parse)]``.
    """

    kinds: ClassVar[Registry[Any]]
    default: ClassVar[str]

    kind: str

    @classmethod
    def model_of(cls, values: Any) -> type[Self]:
        named = values.get("kind") if isinstance(values, Mapping) else None
        return cast(type[Self], cls.kinds[cls.default if named is None else named])

    @classmethod
    def parse(cls, value: Any) -> Self:
        """The configuration of the kind that a mapping names under ``kind``."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise ValueError("must be a mapping with a kind")
        return cls.model_of(value).model_validate(value)
