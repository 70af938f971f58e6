"""A pool of processes that evaluate configurations in OpenMM.

Workers are new interpreters, never forks: a fork would copy the locks of torch's and OpenMM's
threads in whatever state they are. Positions, energies and forces lie in memory that parent and
workers share; what passes through the connections is row numbers. Each block of rows must be
answered within a time-out. A worker that dies, or does not answer, ends the pool with an error that
names its exit code; the next evaluation starts a new pool. Workers end when their parent does, even
if that is killed.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe, wait
from typing import NoReturn, cast

from molsampler.errors import SimulationError

from . import context
from .context import Array

#: Bytes of memory shared with the workers; larger batches pass in several rounds.
_SHARED = 2**24
#: Seconds of work handed out at a time: long against the exchange of messages, short enough that
#: workers finish together.
_BLOCK_SECONDS = 0.05
#: Rows in the first block of each worker, when the cost of a row is not known yet.
_FIRST_BLOCK = 4
#: Seconds within which a worker must have imported OpenMM and made its context.
_START_SECONDS = 120.0


class _Worker:
    """A process, the parent's end of its connection, and what it is doing."""

    def __init__(self, index: int, memory: int, specification: str):
        self.index = index
        self.rows: tuple[int, int] | None = None
        self.deadline = time.monotonic() + _START_SECONDS
        self.connection, theirs = Pipe()
        try:
            fds = (theirs.fileno(), memory)
            program = (sys.executable, "-P", context.__file__)
            self.process = subprocess.Popen(
                [*program, *map(str, fds), specification], stdin=subprocess.PIPE, pass_fds=fds
            )
        finally:
            theirs.close()

    def __str__(self) -> str:
        task = (
            "starting"
            if self.rows is None
            else f"evaluating rows {self.rows[0]} to {self.rows[1] - 1}"
        )
        return f"OpenMM worker {self.index} (process {self.process.pid}), {task},"


@contextmanager
def _shared_file(size: int) -> Iterator[int]:
    """Descriptor of a nameless file of ``size`` bytes, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("molsampler")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
        yield descriptor
    finally:
        os.close(descriptor)


def _stop(workers: list[_Worker], owner: int) -> None:
    """Kill and reap; safe to call again."""
    if os.getpid() != owner:
        # The copy of the pool in a forked child: the workers are still its parent's.
        return
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.wait()
        worker.connection.close()
        if worker.process.stdin is not None:
            worker.process.stdin.close()
    workers.clear()


class WorkerPool:
    """Processes that each hold a context of the same system.

    Parameters
    ----------
    system_xml : the serialised system
    platform, properties : as of ``openmm.Context``
    particles : particles of the system
    workers : number of processes
    timeout : seconds within which a worker must answer a block of rows

    Raises
    ------
    SimulationError
        A worker did not come up.
    """

    def __init__(
        self,
        system_xml: str,
        platform: str,
        properties: Mapping[str, str],
        *,
        particles: int,
        workers: int,
        timeout: float,
    ):
        self.capacity = max(workers, _SHARED // context.shared_size(1, particles))
        self.timeout = timeout
        self.owner = os.getpid()
        self._seconds_per_row: float | None = None
        self._workers: list[_Worker] = []
        self._finalizer = weakref.finalize(self, _stop, self._workers, self.owner)
        size = context.shared_size(self.capacity, particles)
        specification = {
            "system": system_xml,
            "platform": platform,
            "properties": dict(properties),
            "capacity": self.capacity,
            "particles": particles,
        }
        with _shared_file(size) as memory, tempfile.NamedTemporaryFile("w") as file:
            shared = mmap.mmap(memory, size)
            json.dump(specification, file)
            file.flush()
            try:
                for index in range(workers):
                    self._workers.append(_Worker(index, memory, file.name))
                pending = list(self._workers)
                while pending:
                    for worker in self._answered(pending, _START_SECONDS):
                        pending.remove(worker)
            except BaseException:
                self.close()
                raise
        self._positions, self._energies, self._forces = context.shared_arrays(
            shared, self.capacity, particles
        )

    @property
    def processes(self) -> list[int]:
        """Process ids of the living workers."""
        return [worker.process.pid for worker in self._workers]

    @property
    def closed(self) -> bool:
        """Whether the workers have been stopped, by :meth:`close` or by an error."""
        return not self._workers

    def close(self) -> None:
        """Stop the workers; none is left when this returns."""
        self._finalizer()

    def evaluate(self, positions: Array, energies: Array, forces: Array) -> None:
        """As :meth:`~molsampler.systems.openmm.context.ContextEvaluator.evaluate`, in parallel.

        Raises
        ------
        EvaluationError
            OpenMM refused a row.
        SimulationError
            A worker died or did not answer in time.
        """
        for start in range(0, len(positions), self.capacity):
            rows = slice(start, start + self.capacity)
            count = len(positions[rows])
            self._positions[:count] = positions[rows]
            try:
                self._run(count, start)
            except context.EvaluationError as error:
                self.close()
                raise context.EvaluationError(start + error.row, str(error)) from None
            except BaseException:
                # Answers that are still under way would be taken for those of the next batch.
                self.close()
                raise
            energies[rows] = self._energies[:count]
            forces[rows] = self._forces[:count]

    def _run(self, count: int, offset: int) -> None:
        given = 0
        idle = list(self._workers)
        busy: list[_Worker] = []
        while given < count or busy:
            while idle and given < count:
                worker = idle.pop()
                stop = given + self._block(count - given)
                worker.rows = (offset + given, offset + stop)
                worker.deadline = time.monotonic() + self.timeout
                try:
                    worker.connection.send_bytes(context.REQUEST.pack(given, stop))
                except OSError:
                    self._died(worker)
                busy.append(worker)
                given = stop
            for worker in self._answered(busy, self.timeout):
                busy.remove(worker)
                idle.append(worker)

    def _block(self, remaining: int) -> int:
        if self._seconds_per_row is None:
            return min(remaining, _FIRST_BLOCK)
        size = int(_BLOCK_SECONDS / max(self._seconds_per_row, 1e-9))
        return max(1, min(size, -(-remaining // len(self._workers))))

    def _answered(self, waiting: list[_Worker], timeout: float) -> list[_Worker]:
        """Workers that have answered, at least one."""
        by_connection = {worker.connection: worker for worker in waiting}
        patience = min(worker.deadline for worker in waiting) - time.monotonic()
        ready = wait(list(by_connection), timeout=max(0.0, patience))
        answered = []
        for connection in ready:
            worker = by_connection[cast(Connection, connection)]
            try:
                message = worker.connection.recv_bytes()
            except (EOFError, OSError):
                self._died(worker)
            self._read(worker, message)
            answered.append(worker)
        if not answered:
            late = min(waiting, key=lambda worker: worker.deadline)
            late.process.kill()
            raise SimulationError(
                f"{late} did not answer within {timeout:g} s and was killed (exit code "
                f"{_code(late.process.wait())}); all workers were stopped, nothing was returned"
            )
        return answered

    def _read(self, worker: _Worker, message: bytes) -> None:
        kind, body = message[:1], message[1:]
        if kind == context.FAILED:
            content = json.loads(body)
            if content["row"] is None:
                raise SimulationError(f"{worker} failed: {content['cause']}")
            raise context.EvaluationError(content["row"], content["cause"])
        if worker.rows is not None:
            (seconds,) = context.SECONDS.unpack(body)
            self._seconds_per_row = seconds / (worker.rows[1] - worker.rows[0])

    def _died(self, worker: _Worker) -> NoReturn:
        # The connection closes a moment before the process is gone.
        try:
            code = worker.process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            worker.process.kill()
            code = worker.process.wait()
        raise SimulationError(
            f"{worker} ended with exit code {_code(code)}; all workers were stopped, nothing was "
            "returned"
        )


def _code(code: int) -> str:
    if code >= 0:
        return str(code)
    try:
        return f"{code}, {signal.Signals(-code).name}"
    except ValueError:
        return str(code)
