"""Files that are either the old or the new content, never something between.

Every writer of the project goes through :func:`atomic_path` or :func:`write_bytes`: content goes to
a temporary file in the same folder, is flushed to the device, checked by the caller, and renamed
over the target in one step.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import FileFormatError, OutputExistsError, StorageError


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


def _owner(pid: str) -> str:
    # Processes of another machine that shares the folder must not pass for dead ones of this.
    machine = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return f"{machine}-{pid}"


def temporary_path(path: Path) -> Path:
    """A fresh name beside ``path`` with the same suffix, which tells whose it is.

    What processes that were killed left there for the same ``path`` is removed.
    """
    stem = path.stem[:100]
    name = re.compile(
        rf"\.{re.escape(stem)}\.{_owner('([0-9]+)')}-[0-9a-f]{{8}}\.tmp{re.escape(path.suffix)}"
    )
    for entry in path.parent.iterdir() if path.parent.is_dir() else ():
        match = name.fullmatch(entry.name)
        if match and not _alive(int(match[1])):
            remove(entry)
    owner = _owner(str(os.getpid()))
    return path.with_name(f".{stem}.{owner}-{secrets.token_hex(4)}.tmp{path.suffix}")


def remove(path: Path) -> None:
    """Remove a temporary file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _amount(size: int) -> str:
    """A number of bytes in the unit that fits it."""
    amount, units = float(size), iter(("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"))
    unit = next(units)
    while amount >= 1000 and unit != "PiB":
        amount, unit = amount / 1024, next(units)
    return f"{amount:.3g} {unit}"


def check_space(path: Path, size: int) -> None:
    """Refuse to begin a file of about ``size`` bytes where the disk has no room for it.

    Raises
    ------
    StorageError
        The message holds the estimate and the free space.
    """
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise StorageError(
            f"no space left to write {path}: about {_amount(size)} are needed while it is "
            f"written and {_amount(free)} are free"
        )


@contextmanager
def atomic_path(path: Path | str, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` with the same suffix; on success it becomes ``path``.

    If the body raises, the temporary file is removed and ``path`` keeps its old content. A full
    disk or quota becomes a :class:`StorageError` that names the file. With ``overwrite`` false, a
    file that has appeared meanwhile is kept.
    """
    path = Path(path)
    temporary = temporary_path(path)
    try:
        yield temporary
        if not temporary.is_file():
            raise StorageError(f"cannot write {path}: the writer produced no file")
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if overwrite:
            os.replace(temporary, path)
        else:
            _place(temporary, path)
        fsync_folder(path.parent)
    except OSError as error:
        if isinstance(error, StorageError | OutputExistsError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(f"no space left to write {path}{kept(path)}") from error
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def kept(path: Path) -> str:
    """What to add to a failure to write a file: that an earlier one is still there."""
    return "; the previous file is intact" if path.exists() else ""


def _place(temporary: Path, path: Path) -> None:
    """Give ``temporary`` the name ``path``, unless something has it."""
    try:
        # Unlike a rename, a link never replaces.
        os.link(temporary, path)
    except OSError as error:
        if path.exists() or path.is_symlink():
            raise OutputExistsError(
                f"{path} has appeared since the work began and is kept; pass --overwrite "
                "(overwrite=True) to replace it"
            ) from None
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        os.replace(temporary, path)  # a file system without links


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
    if size <= limit:
        with open(path, "rb") as file:
            # Not trusting the size: files grow, and those of the kernel have none.
            content = file.read(limit + 1)
        if len(content) <= limit:
            return content
        size = len(content)
    raise FileFormatError(f"{path} has {size} bytes; at most {limit} are expected here")
