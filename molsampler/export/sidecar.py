"""The JSON file beside trajectories: hashes, frame counts and provenance.

Trajectories of one stem share one sidecar: ``lj13.json`` describes ``lj13.xtc``, ``lj13.dcd`` and
``lj13.h5`` under the key ``files``, and ``lj13.pdb`` is their common topology. A record is announced
under ``pending`` before its file is renamed into place and moved to ``files`` afterwards, so whatever
interrupts a replacement, the file found is the one that ``files`` or ``pending`` describes. A record
also tells the log weights of the samples, which lie in a file of their own (see ``log_weights``).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ..errors import FileFormatError, InputError, IntegrityError, OutputExistsError
from ..storage.files import read_limited, sha256, write_bytes
from ..storage.sealed_json import SEAL, parse_json, sealed, unsealed
from ..storage.validation import validated
from .energy_statistics import EnergySummary

#: Largest sidecar that is believed (bytes).
SIZE_LIMIT = 16 * 2**20


class Weights(BaseModel):
    """The file of log weights that belongs to a data file."""

    model_config = ConfigDict(extra="forbid")

    bytes: int
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Record(BaseModel):
    """What is known of one data file."""

    model_config = ConfigDict(extra="forbid")

    format: str
    frames: int = Field(ge=1)
    particles: int = Field(ge=1)
    dimension: int = Field(ge=1)
    length_nm: float = Field(gt=0)
    precision_nm: float | None
    bytes: int
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    energies: EnergySummary
    log_weights: Weights | None = None
    provenance: dict[str, Any]
    version: str


class Topology(BaseModel):
    """The PDB file that names the atoms of every trajectory of the stem."""

    model_config = ConfigDict(extra="forbid")

    file: str
    atoms: int
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Sidecar(BaseModel):
    """Content of ``X.json``."""

    model_config = ConfigDict(extra="forbid")

    molsampler_sidecar: int = 1
    topology: Topology | None = None
    files: dict[str, Record] = Field(default_factory=dict)
    pending: dict[str, Record] = Field(default_factory=dict)

    def records(self, name: str) -> list[Record]:
        """The descriptions of a data file, one of which it must meet."""
        return [records[name] for records in (self.files, self.pending) if name in records]


def sidecar_path(path: Path) -> Path:
    """``X.json`` for a trajectory ``X.xtc``."""
    return path.with_suffix(".json")


def topology_path(path: Path) -> Path:
    """``X.pdb`` for a trajectory ``X.xtc``."""
    return path.with_suffix(".pdb")


def read_sidecar(path: Path) -> Sidecar | None:
    """The sidecar at ``path``, or None if there is no such file or it is some other JSON file.

    Raises
    ------
    FileFormatError
        It says that it is a sidecar, and is damaged, edited or of another version.
    """
    if not path.is_file():
        return None
    content = parse_json(read_limited(path, SIZE_LIMIT), path)
    if not isinstance(content, dict) or not content.keys() & {"molsampler_sidecar", SEAL}:
        return None
    version = content.get("molsampler_sidecar")
    if version != 1:
        raise FileFormatError(
            f"{path} is a sidecar of version {version!r}; this molsampler reads version 1"
        )
    try:
        return validated(Sidecar, unsealed(content, path))
    except InputError as error:
        raise FileFormatError(f"{path}: {error}") from None


def check_free(path: Path) -> None:
    """Refuse a sidecar path that holds anything but a sidecar.

    Raises
    ------
    OutputExistsError
        A JSON file of another origin would be destroyed.
    """
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OutputExistsError(f"{path} is a link, folder or device; the sidecar would go there")
    if path.exists():
        try:
            found = read_sidecar(path)
        except FileFormatError as error:
            raise OutputExistsError(
                f"the sidecar would replace an unreadable file: {error}"
            ) from None
        if found is None:
            raise OutputExistsError(
                f"{path} exists and is not a sidecar of molsampler; the sidecar would go there, "
                "choose another file name"
            )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder's sidecars, so that exports that run at the same time lose nothing."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def update(path: Path) -> Iterator[Sidecar]:
    """Yield the sidecar at ``path`` (a new one if there is none) and write it back atomically.

    Its folder must be locked.
    """
    check_free(path)
    sidecar = read_sidecar(path) or Sidecar()
    yield sidecar
    write_bytes(path, sealed(sidecar.model_dump_json()))


def check_file(path: Path, records: list[Record]) -> Record:
    """The record that the file meets.

    Raises
    ------
    IntegrityError
        Its length or hash is not the recorded one.
    """
    size = path.stat().st_size
    digest = sha256(path)
    for record in records:
        if record.sha256 == digest and record.bytes == size:
            return record
    expected = records[0]
    cause = (
        f"it has {size} bytes, {expected.bytes} were written"
        if size != expected.bytes
        else f"its SHA-256 is {digest[:12]}..., {expected.sha256[:12]}... was written"
    )
    raise IntegrityError(
        f"{path} does not match its sidecar {sidecar_path(path).name}: {cause} "
        f"({expected.frames} frames of {expected.particles} particles)"
    )
