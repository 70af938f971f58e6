"""Processes that work together: under torchrun, and as threads that stand for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

ROOT = Path(__file__).parents[1]


class Threads:
    """Ranks of one process: each is a thread, and they exchange through memory."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.barrier = threading.Barrier(count, timeout=60)
        self.held: list[object] = [None] * count

    def peer(self, rank: int) -> ThreadPeer:
        return ThreadPeer(self, rank)

    def run(self, work: Callable[[ThreadPeer], object]) -> list[object]:
        """What ``work`` returns or raises in each of the threads."""
        results: list[object] = [None] * self.count

        def one(rank: int) -> None:
            try:
                results[rank] = work(self.peer(rank))
            except BaseException as error:
                results[rank] = error
                # Those that are just leaving the last exchange are let go.
                time.sleep(0.2)
                self.barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


class ThreadPeer:
    def __init__(self, all_of_them: Threads, rank: int) -> None:
        self.all, self.rank, self.count = all_of_them, rank, all_of_them.count

    def _exchange(self, own: object) -> list[object]:
        self.all.held[self.rank] = own
        self.all.barrier.wait()
        found = list(self.all.held)
        self.all.barrier.wait()
        return found

    def gather(self, own: Tensor) -> list[Tensor]:
        found = self._exchange(own.clone())
        assert len({(each.shape, each.dtype) for each in found}) == 1
        return found

    def collect(self, own: bytes) -> list[bytes]:
        found = self._exchange(own)
        return found if self.rank == 0 else []

    def tell(self, content: bytes) -> bytes:
        return self._exchange(content)[0]

    def compare(self, facts: Mapping[str, str]) -> None:
        self._exchange(facts)


class Launched:
    """A command under torchrun on this machine."""

    def __init__(
        self,
        ranks: int,
        *arguments: str | Path,
        log: Path,
        program: Sequence[str | Path] = ("-m", "molsampler"),
    ) -> None:
        self.log = log
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        with open(log, "wb") as file:
            self.agent = subprocess.Popen(
                [sys.executable, *torchrun, *map(str, (*program, *arguments))],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def rank(self, number: int) -> int:
        """The PID of a rank."""
        pid = self.agent.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if f"RANK={number}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(
                b"\0"
            ):
                return int(child)
        raise LookupError(f"rank {number} is not there")

    def wait(self, timeout: float = 120.0) -> int:
        """The exit code of torchrun."""
        try:
            return self.agent.wait(timeout)
        finally:
            if self.agent.poll() is None:
                os.killpg(self.agent.pid, signal.SIGKILL)
                self.agent.wait()

    def wait_for(self, happened: Callable[[], bool], timeout: float = 60.0) -> None:
        deadline = time.monotonic() + timeout
        while not happened():
            assert self.agent.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.02)

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    @property
    def errors(self) -> list[str]:
        """The lines in which molsampler says why it failed."""
        return [line for line in self.said.splitlines() if line.startswith("error: ")]
