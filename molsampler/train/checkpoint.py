"""Checkpoints that are whole or absent, and say when they are damaged.

One file per checkpoint: ``<iteration>-<digest>.safetensors``, written to a temporary name, flushed
and renamed. The digest of the content is part of the name, so a flipped bit is found before a
tensor is used, and the previous checkpoint, which is kept, takes over.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from ..errors import FileFormatError
from ..files import atomic_path, fsync_folder, sha256

KEEP = 2
_NAME = re.compile(r"(\d{9})-([0-9a-f]{32})\.safetensors")
_log = logging.getLogger(__name__)


def save(folder: Path, iteration: int, tensors: dict[str, Tensor], counters: str) -> Path:
    """Write a checkpoint and drop all but the newest ``KEEP``."""
    folder.mkdir(exist_ok=True)
    staged = folder / "staged.safetensors"
    with atomic_path(staged) as temporary:
        safetensors.torch.save_file(
            {key: value.cpu() for key, value in tensors.items()},
            temporary,
            metadata={"counters": counters},
        )
    path = folder / f"{iteration:09d}-{sha256(staged)[:32]}.safetensors"
    staged.replace(path)
    fsync_folder(folder)
    for old in checkpoints(folder)[KEEP:]:
        old.unlink()
    return path


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
        match = _NAME.fullmatch(path.name)
        if match is None or sha256(path)[:32] != match[2]:
            _log.warning("checkpoint %s is damaged (SHA-256 mismatch); trying the one before", path)
            continue
        with safetensors.safe_open(path, framework="pt") as file:
            counters = (file.metadata() or {}).get("counters", "{}")
        return safetensors.torch.load_file(path), counters, path
    if paths:
        raise FileFormatError(f"every checkpoint in {folder} is damaged; start a new run folder")
    return None
