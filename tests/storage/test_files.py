"""Files are the old or the new content, whatever goes wrong in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from molsampler.errors import FileFormatError, OutputExistsError, StorageError
from molsampler.storage.files import atomic_path, check_output, read_limited, sha256, write_bytes


def leftovers(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if ".tmp" in entry.name]


def test_sha256_is_the_published_value(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_failure_keeps_the_old_file_and_no_temporary(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_bytes(path, b"old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        write_half()
    assert path.read_bytes() == b"old"
    assert not leftovers(tmp_path)


def test_success_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in (b"old", b"new"):
        write_bytes(path, content)
        assert path.read_bytes() == content
    assert not leftovers(tmp_path)


def test_writer_that_produces_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no file"), atomic_path(tmp_path / "a"):
        pass


def test_full_disk_is_named_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys\n"
        "from molsampler.storage.files import write_bytes\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_bytes(sys.argv[1], bytes(5000))\n"
        "except OSError as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("StorageError no space left"), done
    assert path.read_bytes() == b"old"
    assert not leftovers(tmp_path)


def test_kill_at_any_moment_leaves_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    old, new = b"o" * 1_000_000, b"n" * 1_000_000
    write_bytes(path, old)
    code = (
        "import sys\nfrom molsampler.storage.files import write_bytes\n"
        "print('go', flush=True)\n"
        "while True:\n"
        "    write_bytes(sys.argv[1], b'n' * 1_000_000)\n"
        "    write_bytes(sys.argv[1], b'o' * 1_000_000)\n"
    )
    for delay in (0.0, 0.003, 0.02):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            try:
                child.wait(delay)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
        assert path.read_bytes() in (old, new)


def test_only_regular_files_are_written(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    link = tmp_path / "link"
    link.symlink_to(target)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (link, dangling, fifo, tmp_path, Path(os.devnull)):
        with pytest.raises(OutputExistsError, match="regular"):
            check_output(path, overwrite=True)
    assert target.read_bytes() == b"precious"


def test_existing_file_needs_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert check_output(path, overwrite=False) == path
    path.touch()
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_output(path, overwrite=False)
    assert check_output(path, overwrite=True) == path
    with pytest.raises(StorageError, match="does not exist"):
        check_output(tmp_path / "no" / "a", overwrite=False)


def test_reading_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_limited(path, 5) == b"12345"
    with pytest.raises(FileFormatError, match="5 bytes; at most 4"):
        read_limited(path, 4)
    for bad in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileFormatError, match="regular file"):
            read_limited(bad, 5)
