"""Processes that torchrun started together: how they meet, talk, and notice that one is lost.

torchrun says in the environment of each process which one it is and where the store is in which they meet.
Work is exchanged through ``torch.distributed``: gloo between processors, NCCL between CUDA devices. Beside it
every process counts up a number in the store once a second, out of a thread of its own. One that no longer
does so is lost, and the others end: after some seconds where the exchange is broken, too, as after a kill,
and later where it only hangs. A process that fails leaves its sentence in the store. Whichever sentence comes
first is said, once.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import torchrun
from ..errors import RankError
from ..objectives.shards import Alone, Peers

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

#: Seconds in which all have to be there, and those that an exchange may take.
_MEETING, _EXCHANGE = 120.0, 3600.0

#: Seconds in which a store answers.
_ANSWER = 10.0

#: Beats missed, of one a second, after which a process is lost: with the exchange broken, and without.
_BROKEN, _SILENT = 6, 20


@contextmanager
def meet(then: str = "") -> Iterator[Peers]:
    """The processes that torchrun started with this one; this one alone where it started no others.

    ``then`` says what to do where one is lost.

    Raises
    ------
    RankError
        One of them fails or is lost, here or elsewhere: the rank is named. Only the first failure is said;
        processes that fail after it exit with code 1.
    """
    if torchrun.count() == 1:
        yield Alone()
        return
    ranks = Ranks(then)
    try:
        ranks.meet()
        yield ranks
    except Exception as error:
        said = " ".join(str(error).split())
        kind = (
            "" if type(error).__module__.startswith("molsampler") else f"{type(error).__name__}: "
        )
        if not ranks.first_to_fail(f"{ranks}: {kind}{said}"):
            raise SystemExit(1) from None
        raise RankError(f"{ranks}: {kind}{said}") from error
    else:
        ranks.part()
    finally:
        ranks.end()


class Ranks:
    """The processes of one torchrun; see :class:`~molsampler.objectives.shards.Peers`.

    Attributes
    ----------
    exchanged : bytes received from others, and seconds spent on it, waiting included
    """

    def __init__(self, then: str = "") -> None:
        self.then = f"; {then}" if then else ""
        self.rank, self.count = torchrun.rank(), torchrun.count()
        self.ended = threading.Event()
        self.exchanged = (0, 0.0)
        self._broken = False
        self._compared = 0
        self._store: Store | None = None
        self._watcher: threading.Thread | None = None
        self._names = dict.fromkeys(range(self.count), "")

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.count}"

    # Meeting and parting

    def meet(self) -> None:
        """Find the others.

        Raises
        ------
        RankError
            The store cannot be reached or made, or not all come.
        """
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        limit = timedelta(seconds=_MEETING)
        try:
            store, _, _ = next(rendezvous("env://", timeout=limit))
        except (RuntimeError, ValueError, OSError) as error:
            raise RankError(
                f"processes cannot meet at {where}: {str(error).splitlines()[0]}; torchrun --standalone "
                "finds a free port on one machine"
            ) from None
        # Torchrun keeps its store when it starts all of them again.
        attempt = f"molsampler/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._beats: Store = dist.PrefixStore(attempt, store.clone())  # type: ignore[attr-defined]
        self._store = store = dist.PrefixStore(attempt, store)  # type: ignore[attr-defined]
        store.set(f"name/{self.rank}", f"process {os.getpid()} on {socket.gethostname()}")
        self.watch()
        names = self._read("name", time.monotonic() + _MEETING)
        self._names = {rank: name.decode() for rank, name in enumerate(names)}
        cuda = torch.cuda.is_available() and dist.is_nccl_available()
        with self._exchange():
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=dist.PrefixStore("group", store),  # type: ignore[attr-defined]
                rank=self.rank,
                world_size=self.count,
                timeout=timedelta(seconds=_EXCHANGE),
            )

    def part(self) -> None:
        """Say that this process has done its work; the one that keeps the store stays until all have."""
        import torch.distributed as dist

        store = self._known_store()
        try:
            store.set(f"done/{self.rank}", "")
            if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                deadline = time.monotonic() + _MEETING
                while time.monotonic() < deadline and not store.check(self._keys("done")):
                    time.sleep(0.1)
        except RuntimeError:
            # The store ends with whoever keeps it, and that may have been first.
            pass
        dist.destroy_process_group()

    def watch(self) -> None:
        """Have a thread tell the others that this process is there, and look whether they are."""
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def end(self) -> None:
        """Have the thread that watches the others end: an interpreter that is left while it asks the store
        aborts."""
        self.ended.set()
        if self._watcher is not None:
            self._watcher.join(_ANSWER)

    def first_to_fail(self, sentence: str) -> bool:
        """Leave a sentence for the others; False if another has failed before."""
        if self._store is None:
            return True
        try:
            held = self._store.compare_set("failed", "", sentence)
        except RuntimeError:
            return True
        return bool(held.decode() == sentence)

    # Exchange

    def gather(self, own: Tensor) -> list[Tensor]:
        import torch.distributed as dist

        own = own.contiguous()
        found = [torch.empty_like(own) for _ in range(self.count)]
        began = time.perf_counter()
        with self._exchange():
            dist.all_gather(found, own)
        size, seconds = self.exchanged
        size += (self.count - 1) * own.numel() * own.element_size()
        self.exchanged = size, seconds + time.perf_counter() - began
        return found

    def collect(self, own: bytes) -> list[bytes]:
        import torch.distributed as dist

        sizes = [int(each) for each in self.gather(torch.tensor([len(own)]))]
        padded = torch.zeros(max(sizes), dtype=torch.uint8)
        padded[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        found = [torch.empty_like(padded) for _ in range(self.count)] if self.rank == 0 else None
        with self._exchange():
            dist.gather(padded, found, dst=0)
        pairs = zip(found or (), sizes, strict=False)
        return [each[:size].numpy().tobytes() for each, size in pairs]

    def tell(self, content: bytes) -> bytes:
        import torch.distributed as dist

        size = int(self.gather(torch.tensor([len(content)]))[0])
        told = torch.zeros(size, dtype=torch.uint8)
        if self.rank == 0 and size:
            told = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        with self._exchange():
            dist.broadcast(told, src=0)
        return told.numpy().tobytes()

    def compare(self, facts: Mapping[str, str]) -> None:
        self._compared += 1
        kind = f"facts{self._compared}"
        self._known_store().set(f"{kind}/{self.rank}", json.dumps(dict(facts)))
        stated = [json.loads(each) for each in self._read(kind)]
        for other, found in enumerate(stated):
            for key in {**stated[0], **found}:
                ours, theirs = stated[0].get(key), found.get(key)
                if ours != theirs:
                    raise RankError(
                        f"rank {other} ({self._names[other]}) is not of the same run as rank 0: its {key} is "
                        f"{theirs}, that of rank 0 {ours}"
                    )

    def _keys(self, kind: str) -> list[str]:
        return [f"{kind}/{rank}" for rank in range(self.count)]

    def _known_store(self) -> Store:
        if self._store is None:
            raise RankError("processes talk before they have met")
        return self._store

    def _read(self, kind: str, deadline: float | None = None) -> list[bytes]:
        """What every rank has put into the store under a key; signals are heard while it waits."""
        store = self._known_store()
        while not store.check(self._keys(kind)):
            if deadline is not None and time.monotonic() > deadline:
                missing = [key for key in self._keys(kind) if not store.check([key])]
                ranks = ", ".join(key.rpartition("/")[2] for key in missing)
                raise RankError(f"rank {ranks} of {self.count} did not come within {_MEETING:g} s")
            time.sleep(0.05)
        return [store.get(key) for key in self._keys(kind)]

    @contextmanager
    def _exchange(self) -> Iterator[None]:
        """Work in which all take part."""
        try:
            yield
        except RuntimeError as error:
            # Whoever watches knows within seconds who is lost, says so and ends this process.
            self._broken = True
            time.sleep(_SILENT + 5)
            raise RankError(
                f"processes can no longer talk to each other: {str(error).splitlines()[0]}"
            ) from None

    # Watching

    def _watch(self) -> None:
        """Count up a number of this process and look at those of the others, once a second."""
        last = dict.fromkeys(range(self.count), b"")
        # Looks and not seconds: where all were suspended for a while nobody is lost.
        missed = dict.fromkeys(range(self.count), 0)
        unreachable = beat = 0
        while not self.ended.wait(1.0):
            beat += 1
            try:
                self._beats.set(f"beat/{self.rank}", str(beat))
                if self._beats.check(["failed"]):
                    self._end("", grace=2.0)
                found = {
                    rank: self._beats.get(key)
                    for rank, key in enumerate(self._keys("beat"))
                    if self._beats.check([key]) and not self._beats.check([f"done/{rank}"])
                }
                unreachable = 0
            except RuntimeError:
                unreachable += 1
                if unreachable >= _BROKEN:
                    self._end(
                        "the store in which processes meet is gone: torchrun or rank 0 has ended"
                    )
                continue
            for rank, value in found.items():
                missed[rank] = 0 if value != last[rank] else missed[rank] + 1
                last[rank] = value
                if missed[rank] >= (_BROKEN if self._broken else _SILENT):
                    self._end(
                        f"rank {rank} of {self.count} ({self._names[rank]}) is lost: nothing was heard of it "
                        f"for {missed[rank]} s{self.then}"
                    )

    def _end(self, sentence: str, *, grace: float = 0.0) -> None:
        """End this process from within its thread, whatever the main one waits for."""
        # One that is failing by itself is let finish.
        if self.ended.wait(grace):
            return
        if sentence and self.first_to_fail(sentence):
            sys.stderr.write(f"error: {sentence}\n")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
