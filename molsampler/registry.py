"""Names and what they stand for, open to code outside the package."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Generic, TypeVar, cast, overload

from .errors import InputError, UnknownNameError, nearest

T = TypeVar("T")
V = TypeVar("V")


class Registry(Generic[T]):
    """The members of one idea by name, imported when they are first asked for. ::

        OBJECTIVES: Registry[type[Objective]] = Registry("objective")
        OBJECTIVES.register("reverse-kl", "molsampler.objectives.reverse_kl:ReverseKL")


        @OBJECTIVES.register("mine")
        class Mine: ...

    Parameters
    ----------
    idea : what a member is called in messages, such as "generator kind"
    """

    def __init__(self, idea: str) -> None:
        self.idea = idea
        self._members: dict[str, T | str] = {}

    @overload
    def register(self, name: str, value: T | str) -> None: ...

    @overload
    def register(self, name: str) -> Callable[[V], V]: ...

    def register(self, name: str, value: T | str | None = None) -> Callable[[V], V] | None:
        """Add a member: a value, or the text "module:attribute" of where it stands.

        Without a value, a decorator that adds what it decorates.

        Raises
        ------
        InputError
            The name is taken, or the text is not of that form.
        """
        if not isinstance(name, str) or not name:
            raise InputError(f"the name of a {self.idea} must be text, got {name!r}")
        if value is None:

            def decorate(member: V) -> V:
                self.register(name, cast(T, member))
                return member

            return decorate
        if name in self._members:
            raise InputError(f"there is a {self.idea} {name!r} already")
        if isinstance(value, str):
            module, _, attribute = value.partition(":")
            if not module or not attribute:
                raise InputError(
                    f"{self.idea} {name!r} must be an object or 'module:attribute', got {value!r}"
                )
        self._members[name] = value
        return None

    def unregister(self, name: str) -> None:
        """Take a member out again; unknown names are refused as by ``[]``."""
        self._require(name)
        del self._members[name]

    def names(self) -> tuple[str, ...]:
        """The registered names, in the order of registration; nothing is imported."""
        return tuple(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> T:
        """The member of that name.

        Raises
        ------
        UnknownNameError
            There is none; the message names the nearest and all that are known.
        """
        self._require(name)
        member = self._members[name]
        if isinstance(member, str):
            module, _, attribute = member.partition(":")
            member = cast(T, getattr(importlib.import_module(module), attribute))
            self._members[name] = member
        return member

    def _require(self, name: object) -> None:
        known = self.names()
        if not isinstance(name, str) or name not in self._members:
            raise UnknownNameError(
                f"no {self.idea} {name!r}{nearest(str(name), known)} (known: {', '.join(known)})"
            )
