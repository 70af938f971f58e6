"""Files that are either the old or the new content, never something between.

Every writer of the project goes through :func:`atomic_path` or :func:`write_bytes`: content goes to
a temporary file in the same folder, is flushed to the device, checked by the caller, and renamed
over the target in one step.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import FileFormatError, OutputExistsError, StorageError


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 digest of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output(path: Path | str, *, overwrite: bool) -> Path:
    """Return ``path`` if a regular file may be written there.

    Raises
    ------
    OutputExistsError
        It exists and ``overwrite`` is false, or it is a link, folder or device.
    StorageError
        The folder that would hold it does not exist.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OutputExistsError(
            f"{path} is a link, folder or device; only regular files are written"
        )
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists; pass --overwrite (overwrite=True) to replace it")
    if not path.parent.is_dir():
        raise StorageError(f"cannot write {path}: folder {path.parent} does not exist")
    return path


def fsync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` with the same suffix; on success it replaces ``path``.

    If the body raises, the temporary file is removed and ``path`` keeps its old content. A full
    disk or quota becomes a :class:`StorageError` that names the file.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        if not temporary.is_file():
            raise StorageError(f"cannot write {path}: the writer produced no file")
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        if isinstance(error, StorageError | OutputExistsError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"no space left to write {path}; the previous file is intact"
            ) from error
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, content: bytes) -> None:
    """Write ``content`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_limited(path: Path | str, limit: int) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises
    ------
    FileFormatError
        It is missing, not a regular file, or larger.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist or is not a regular file")
    size = path.stat().st_size
    if size > limit:
        raise FileFormatError(f"{path} has {size} bytes; at most {limit} are expected here")
    return path.read_bytes()
