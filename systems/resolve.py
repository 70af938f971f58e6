"""Which system a user means, and which one a file is of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from typing import Any

from molsampler.errors import FileFormatError, InputError, SystemNeededError, UnknownNameError
from molsampler.target import System

from .registry import PLAIN_NAME, SYSTEM_KINDS, build_system, get_system, kind_of


def resolve(system: System | str | PathLike[str], *, trust_code: bool = False) -> System:
    """The system that a user means: itself, or what :func:`get_system` makes of a name or path."""
    return system if isinstance(system, System) else get_system(system, trust_code=trust_code)


def resolve_recorded(
    reference: Any, *, given: System | str | None = None, source: object = "the file"
) -> System:
    """The system that a file is of, by what it records and by what its reader gives.

    ``reference`` is what :meth:`molsampler.target.System.record` returned, or None; ``given`` must be
    the same system; ``source`` names the file in messages.

    Raises
    ------
    FileFormatError
        The reference is neither a plain name nor a mapping; paths in particular are refused, as a
        file must not make its reader open others.
    UnknownNameError
        No system has that name; whoever has the system can give it.
    InputError
        Neither says which system it is, they are of different names, definitions or temperatures, or
        files do not hold all that makes the system.
    """
    if given is not None:
        system = resolve(given)
        name = reference.get("name") if isinstance(reference, Mapping) else reference
        if name is not None and name != system.name:
            raise InputError(f"{source} is of {name!r}, system= says {system.name!r}")
        moved = system.temperature != system.default_temperature
        if isinstance(reference, Mapping) or (name is not None and moved):
            recorded, own = _plain(reference), _plain(system.record())
            if recorded != own:
                raise InputError(
                    _of_two_temperatures(recorded, own, source, system)
                    or f"{source} is of another definition or temperature of {name!r} than the one asked for"
                    f"{_difference(recorded, own)}"
                )
        return system
    if reference is None:
        raise InputError(f"{source} does not say which system it is of; pass system=")
    if not isinstance(reference, Mapping) and not (
        isinstance(reference, str) and PLAIN_NAME.fullmatch(reference)
    ):
        raise FileFormatError(
            f"{source} must name its system by a plain name or a specification, got {reference!r}"
        )
    try:
        if isinstance(reference, str):
            return get_system(reference)
        if reference.keys() == {"name", "temperature"}:
            reference = {"system": reference["name"], **reference}
        elsewhere = SYSTEM_KINDS[kind_of(reference)].elsewhere
    except UnknownNameError as error:
        raise UnknownNameError(
            f"{source}: {error}; if the system is your own, pass system="
        ) from None
    if elsewhere:
        raise SystemNeededError(
            f"{source} is of {reference.get('name')!r}, {elsewhere}; "
            "pass system= (--system FILE.yaml)"
        )
    return build_system(reference, source=f"{source}: the recorded system", folder=None)


def _plain(record: Any) -> Any:
    """A record as it comes back from a file, with lists for tuples."""
    return json.loads(json.dumps(record))


def _of_two_temperatures(recorded: Any, own: Any, source: object, system: System) -> str | None:
    """What is wrong where two records of a system differ in its temperature alone, None where they do not."""
    # The hash of a molecule's energy is that of the reduced one.
    keys = ("temperature", "at", "sha256")
    plain = [each if isinstance(each, dict) else {"name": each} for each in (recorded, own)]
    rest = [{key: value for key, value in each.items() if key not in keys} for each in plain]
    if rest[0] != rest[1]:
        return None
    there, here = (
        each.get("at", each.get("temperature", system.default_temperature)) for each in plain
    )
    if there == here:
        return None
    unit = " K" if system.in_kelvin else ""
    return (
        f"{source} is of {system.name} at temperature {there:g}{unit}, not {here:g}{unit}; both have to be "
        "of one temperature"
    )


def _difference(recorded: Any, own: Any) -> str:
    """The keys in which two records differ, with the values of the first."""
    recorded, own = (each if isinstance(each, dict) else {"name": each} for each in (recorded, own))
    keys = [key for key in {**recorded, **own} if recorded.get(key) != own.get(key)]
    first, *others = keys
    missing = "the default" if first == "temperature" else "none"
    then, now = (
        missing if each.get(first) is None else f"{json.dumps(each[first]):.40}"
        for each in (recorded, own)
    )
    rest = f"; also {', '.join(others)}" if others else ""
    return f": {first} is {then} there and {now} here{rest}"
