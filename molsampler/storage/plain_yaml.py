"""YAML from strangers: plain scalars, lists and mappings, bounded in size and depth."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import FileFormatError
from .files import read_limited

#: Largest YAML document that is parsed; PyYAML takes seconds per 100 kB.
YAML_LIMIT = 100_000

#: Levels of nesting in YAML, far below Python's own limit of recursion.
YAML_DEPTH = 50

_SCIENTIFIC = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


@cache
def _loader() -> Any:
    """PyYAML's safe one, which also reads 1e3 and 1.0e-3 as the numbers that they are in YAML 1.2."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("+-.0123456789"))
    return Loader


def parse_yaml(text: str, source: str) -> Any:
    """The value in YAML text of plain scalars, lists and mappings.

    Raises
    ------
    FileFormatError
        It is not YAML, has tags or aliases, or is too long or too deeply nested.
    """
    import yaml

    if len(text) > YAML_LIMIT:
        raise FileFormatError(
            f"{source} has {len(text)} characters; at most {YAML_LIMIT} are read as YAML"
        )
    depth = 0
    try:
        # Events come without recursion and without building anything.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                # Aliases let a small file describe an enormous object.
                raise FileFormatError(f"{source} uses YAML aliases, which are refused")
            tag = getattr(event, "tag", None)
            if tag is not None:
                raise FileFormatError(f"{source} is not plain YAML: it uses the tag {tag[:60]!r}")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > YAML_DEPTH:
                raise FileFormatError(
                    f"{source} is not plain YAML: it is nested deeper than {YAML_DEPTH} levels"
                )
        loader = _loader()(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except FileFormatError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        # Dates that do not exist and numbers of thousands of digits are ValueErrors.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        mark = getattr(error, "problem_mark", None)
        if mark is not None:
            reason = f"{getattr(error, 'problem', None) or reason} (line {mark.line + 1})"
        raise FileFormatError(f"{source} is not plain YAML: {reason}") from None


def read_yaml(path: Path) -> Any:
    """The value in a YAML file; see :func:`parse_yaml`."""
    try:
        text = read_limited(path, YAML_LIMIT).decode()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not a text file: {error}") from None
    return parse_yaml(text, str(path))
