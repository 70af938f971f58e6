"""Checkpoints that are whole or absent, and say when they are damaged.

One file per checkpoint: ``<iteration>-<digest>.safetensors``, written to a temporary name, flushed
and renamed. The digest of the content is part of the name, so a flipped bit is found before a
tensor is used, and the previous checkpoint, which is kept, takes over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import struct
from pathlib import Path

import safetensors.torch
from torch import Tensor

from ..errors import FileFormatError
from ..storage.files import read_limited, write_bytes

KEEP = 2
#: Bounds on what a file may make its reader do.
_LIMIT = 2**34
_NAME = re.compile(r"(\d{9})-([0-9a-f]{32})\.safetensors")
_log = logging.getLogger(__name__)


def save(folder: Path, iteration: int, tensors: dict[str, Tensor], counters: str) -> Path:
    """Write a checkpoint and drop all but the newest ``KEEP``.

    Those of later iterations are dropped as well: there are none unless they were damaged and an
    earlier one took over.
    """
    folder.mkdir(exist_ok=True)
    content = safetensors.torch.save(
        {key: value.cpu() for key, value in tensors.items()}, metadata={"counters": counters}
    )
    path = folder / f"{iteration:09d}-{_digest(content)}.safetensors"
    write_bytes(path, content)
    others = [other for other in checkpoints(folder) if other != path]
    earlier = [other for other in others if other.name < f"{iteration:09d}"]
    for other in others:
        if other not in earlier[: KEEP - 1]:
            other.unlink()
    return path


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files, newest first."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)


def load_latest(folder: Path) -> tuple[dict[str, Tensor], str, Path] | None:
    """The newest intact checkpoint as ``(tensors, counters, path)``, or None where there is none.

    A damaged one is reported and passed over.

    Raises
    ------
    FileFormatError
        There are checkpoints, and all are damaged.
    """
    paths = checkpoints(folder)
    for path in paths:
        found = read(path)
        if found is not None:
            return *found, path
        _log.warning("checkpoint %s is damaged (SHA-256 mismatch); trying the one before", path)
    if paths:
        raise FileFormatError(f"every checkpoint in {folder} is damaged; start a new run folder")
    return None


def read(path: Path) -> tuple[dict[str, Tensor], str] | None:
    """Tensors and counters of a checkpoint, or None if its content is not what its name says.

    Raises
    ------
    FileFormatError
        It is what its name says, and not a checkpoint.
    """
    match = _NAME.fullmatch(path.name)
    # Hashed and parsed are the same bytes, whatever happens to the file meanwhile.
    content = read_limited(path, _LIMIT)
    if match is None or _digest(content) != match[2]:
        return None
    try:
        tensors = safetensors.torch.load(content)
        (size,) = struct.unpack("<Q", content[:8])
        counters = json.loads(content[8 : 8 + size])["__metadata__"]["counters"]
    except Exception as error:  # the header can ask torch for anything
        raise FileFormatError(f"{path} is not a checkpoint: {error}") from None
    return tensors, counters
