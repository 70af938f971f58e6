"""A file that a writer of any library fills: room checked first, failures told in one sentence."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import FileFormatError, InputError, MolsamplerError, StorageError
from ..storage.files import atomic_path, check_space, kept

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_file(path: Path, *, expected: int, spooled: int, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` unless the body raises.

    ``expected`` and ``spooled`` are the bytes of the file and of what waits beside it meanwhile.

    Raises
    ------
    StorageError
        There is no space, or the writer or its read-back failed with anything but an
        :class:`InputError`.
    """
    check_space(path, expected + spooled)
    with atomic_path(path, overwrite=overwrite) as temporary:
        try:
            yield temporary
        except InputError:
            raise
        except Exception as error:
            if isinstance(error, MolsamplerError) and not isinstance(error, FileFormatError):
                raise
            full = isinstance(error, OSError) and error.errno in _FULL
            if full or _no_space(temporary, expected):
                raise StorageError(f"no space left to write {path}{kept(path)}") from error
            raise StorageError(f"cannot write {path}: {error}") from error


def _no_space(path: Path, expected: int) -> bool:
    """Whether the file system would refuse a file of ``expected`` bytes at ``path``.

    Libraries report a full disk as success, RuntimeError or TypeError; asking again is reliable.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    except OSError:
        return False
    try:
        size = os.fstat(descriptor).st_size
        os.posix_fallocate(descriptor, size, max(expected - size, 0) + 2**16)
    except OSError as error:
        return error.errno in _FULL
    finally:
        os.close(descriptor)
    return False
