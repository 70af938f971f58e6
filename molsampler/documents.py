"""JSON and YAML documents, from this project or from strangers: plain, bounded, and sealed.

A sealed document carries the SHA-256 of its own content under the key ``digest``, so that a flipped
bit in a number is found although the text still parses. The seal is a checksum, not a signature: it
finds damage, not forgery.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import FileFormatError, IntegrityError
from .files import read_limited

SEAL = "digest"
#: Largest YAML document that is parsed; PyYAML takes seconds per 100 kB.
YAML_LIMIT = 100_000
#: Levels of nesting in YAML, far below Python's own limit of recursion.
YAML_DEPTH = 50


def digest(fields: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object's content, which order of keys and white space do not change."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sealed(text: str) -> bytes:
    """The JSON object in ``text``, indented, with its seal in front."""
    fields = json.loads(text)
    fields.pop(SEAL, None)
    return (json.dumps({SEAL: digest(fields), **fields}, indent=2) + "\n").encode()


def _unusable(value: str) -> float:
    raise ValueError(f"{value} is not a JSON number")


def parse_json(content: bytes, path: Path) -> Any:
    """The value in JSON text; ``path`` names it in errors.

    Raises
    ------
    FileFormatError
        It is not JSON, or too deeply nested.
    """
    try:
        return json.loads(content, parse_constant=_unusable)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is not valid JSON: {error}") from None


def unsealed(fields: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields without their seal, which holds; files of earlier versions may have none.

    Raises
    ------
    IntegrityError
        The content is not what was sealed.
    """
    content = dict(fields)
    seal = content.pop(SEAL, None)
    if seal is not None and seal != digest(content):
        raise IntegrityError(
            f"{path} is damaged or was edited: its content does not have the SHA-256 that it states "
            f"under {SEAL!r}"
        )
    return content


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
        return yaml.safe_load(text)
    except FileFormatError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        # Dates that do not exist and numbers of thousands of digits are ValueErrors.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FileFormatError(f"{source} is not plain YAML: {reason}") from None


def read_yaml(path: Path) -> Any:
    """The value in a YAML file; see :func:`parse_yaml`."""
    try:
        text = read_limited(path, YAML_LIMIT).decode()
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is not a text file: {error}") from None
    return parse_yaml(text, str(path))
