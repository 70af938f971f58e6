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

from ..errors import FileFormatError, IntegrityError

SEAL = "digest"


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
    """The fields without their seal, which holds.

    Raises
    ------
    IntegrityError
        The content is not what was sealed, or there is no seal.
    """
    content = dict(fields)
    if content.pop(SEAL, None) != digest(content):
        raise IntegrityError(
            f"{path} is damaged or was edited: its content does not have the SHA-256 that it should "
            f"state under {SEAL!r}"
        )
    return content
