"""Checks of arguments that systems of several kinds share."""

from __future__ import annotations

import re
from typing import Any

from molsampler.errors import InputError

#: Names become parts of file names.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")


def checked_name(name: Any) -> str:
    """``name``, if it can be part of a file name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            "name must be up to 64 letters, digits, '_', '.', '+' and '-', starting with a letter "
            f"or digit, got {name!r}"
        )
    return name


def checked_description(description: Any) -> str:
    """``description``, if it is text."""
    if not isinstance(description, str):
        raise InputError(f"description must be text, got {type(description).__name__}")
    return description


def integer(name: str, value: Any, least: int, most: int) -> int:
    """``value``, if it is an integer in ``least..most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name} must be an integer in {least}..{most}, got {value!r}")
    return value


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number; truth values are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def checked_length(length_nm: Any) -> float:
    """``length_nm``, if it is a sensible number of nanometres."""
    if not is_number(length_nm) or not 1e-6 <= length_nm <= 1e6:
        raise InputError(
            f"length_nm must be a number of nanometres in 1e-6..1e6, got {length_nm!r}"
        )
    return float(length_nm)
