"""Two at once: one works, the other is told; the dead hold no lock."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from children import leftovers, run, start, wait

from molsampler import export
from molsampler.errors import OutputExistsError, RunLockedError
from molsampler.samples import Samples
from molsampler.train import load_config
from molsampler.train.folder import RunFolder

Tally = Callable[[str, int, int], None]


def hold(folder: Path, log: Path) -> int:
    """A child that holds the run folder's lock; its PID."""

    def work() -> None:
        with RunFolder(folder) as run_folder:
            run_folder.claim(load_config("fast", "dw4"))
            print("held", flush=True)
            time.sleep(600)

    pid = start(work, log)
    while not log.exists() or "held" not in log.read_text():
        time.sleep(0.005)
    return pid


def test_live_lock_names_its_holder_and_a_killed_one_leaves_none(
    tmp_path: Path, tally: Tally
) -> None:
    for k in range(3):
        log = tmp_path / f"log{k}"
        pid = hold(tmp_path / "run", log)
        with pytest.raises(RunLockedError, match=f"PID {pid}"):
            RunFolder(tmp_path / "run").__enter__()
        # A SIGSTOP is not a death: the run may go on.
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(RunLockedError, match=f"PID {pid}"):
            RunFolder(tmp_path / "run").__enter__()
        os.kill(pid, signal.SIGKILL)
        wait(pid, log)
        assert (tmp_path / "run" / "lock").read_text() == f"{pid}\n"
        with RunFolder(tmp_path / "run"):
            pass
    tally("stale and live locks of a run folder", 9, 9)


@pytest.mark.parametrize("content", [b"", b"1\n", b"\xff\x00" * 100, b"99999999999999999999\n"])
def test_a_lock_file_is_no_lock(content: bytes, tmp_path: Path) -> None:
    """Whatever a lock file says, the kernel knows whether somebody holds it."""
    (tmp_path / "lock").write_bytes(content)
    with RunFolder(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_exports_of_one_stem_at_the_same_time_lose_no_record(
    tmp_path: Path, samples: Samples, system: object, tally: Tally
) -> None:
    samples.save(tmp_path / "a.pdb", system=system)
    names = ["a.dcd", "a.xtc", "a.dcd", "a.xtc"]

    def work(name: str) -> Callable[[], None]:
        return lambda: samples.save(tmp_path / name, system=system, overwrite=True)

    logs = [tmp_path / f"log{k}" for k in range(len(names))]
    children = [start(work(name), log) for name, log in zip(names, logs, strict=True)]
    assert [wait(pid, log).code for pid, log in zip(children, logs, strict=True)] == [0] * 4
    for name in ("a.pdb", "a.dcd", "a.xtc"):
        assert export.describe(tmp_path / name)["intact"] is True
    assert not leftovers(tmp_path)
    tally("exports of one stem at the same time", 4, 4)


@pytest.mark.parametrize("suffix", [".npz", ".dcd"])
def test_a_file_that_appears_meanwhile_is_kept(
    suffix: str, tmp_path: Path, samples: Samples, system: object
) -> None:
    """It was not there when the work began; without --overwrite it is not replaced at its end."""
    path = tmp_path / f"a{suffix}"

    def blocks() -> object:
        path.write_bytes(b"precious")
        yield samples

    with pytest.raises(OutputExistsError, match="has appeared since the work began"):
        export.save_blocks(blocks(), path, count=len(samples), system=system, metadata=dict)
    assert path.read_bytes() == b"precious"
    assert not leftovers(tmp_path)


def test_a_child_reports_its_failures(tmp_path: Path) -> None:
    """A negative control of the machinery itself: an exception in a child is not a success."""

    def fail() -> None:
        raise ValueError("seen")

    ended = run(fail, tmp_path / "log")
    assert ended.code == 99
    assert "ValueError: seen" in ended.said
