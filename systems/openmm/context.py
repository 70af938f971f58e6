"""Energies and forces of many configurations from one OpenMM context, and the worker around it.

This module needs numpy and OpenMM alone. A worker runs it as a program (``python -P
context.py``), so it starts in the time that these two take to import, and the caller's main
module is not imported a second time.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Rows to evaluate, first and one past the last, as the parent sends them.
REQUEST = struct.Struct("<QQ")
#: Answers start with one of these; the first is followed by the seconds spent, the second by JSON.
DONE, FAILED = b"d", b"f"
SECONDS = struct.Struct("<d")


class EvaluationError(Exception):
    """OpenMM raised an exception for one row."""

    def __init__(self, row: int, cause: str):
        super().__init__(cause)
        self.row = row


class ContextEvaluator:
    """One context of a serialised ``openmm.System``.

    Rows are evaluated one after the other and do not see each other, so on platforms whose sums have
    a fixed order a row's result is the same whatever its batch.
    """

    def __init__(self, system_xml: str, platform: str, properties: Mapping[str, str]):
        import openmm

        self._exception = openmm.OpenMMException
        # The context does not keep its system and integrator alive.
        self._system = openmm.XmlSerializer.deserialize(system_xml)
        self._integrator = openmm.VerletIntegrator(0.001)
        self._context = openmm.Context(
            self._system,
            self._integrator,
            openmm.Platform.getPlatformByName(platform),
            dict(properties),
        )

    def evaluate(self, positions: Array, energies: Array, forces: Array) -> None:
        """Fill energies ``(b,)`` in kJ/mol and forces ``(b, n, 3)`` in kJ/mol/nm of positions in nm.

        Raises
        ------
        EvaluationError
            OpenMM refused a row.
        """
        context = self._context
        for row, x in enumerate(positions):
            try:
                context.setPositions(x)
                state = context.getState(energy=True, forces=True)
            except self._exception as error:
                raise EvaluationError(row, str(error)) from None
            energies[row] = state.getPotentialEnergy()._value
            forces[row] = state.getForces(asNumpy=True)._value


def shared_arrays(buffer: mmap.mmap, capacity: int, particles: int) -> tuple[Array, Array, Array]:
    """Positions, energies and forces of ``capacity`` rows as views of one block of memory."""
    flat = np.frombuffer(buffer, dtype=np.float64)
    size = capacity * particles * 3
    shape = (capacity, particles, 3)
    return (
        flat[:size].reshape(shape),
        flat[2 * size : 2 * size + capacity],
        flat[size : 2 * size].reshape(shape),
    )


def shared_size(capacity: int, particles: int) -> int:
    """Bytes that :func:`shared_arrays` needs."""
    return 8 * capacity * (6 * particles + 1)


def serve(connection_fd: int, memory_fd: int, specification_path: str) -> None:
    """Answer requests until the parent closes the connection or ends."""
    from multiprocessing.connection import Connection

    # The parent decides when to stop; Ctrl-C and `timeout` reach the whole process group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection: Any = Connection(connection_fd)
    with open(specification_path, "rb") as file:
        specification = json.load(file)
    capacity, particles = specification["capacity"], specification["particles"]
    memory = mmap.mmap(memory_fd, shared_size(capacity, particles))
    positions, energies, forces = shared_arrays(memory, capacity, particles)
    try:
        evaluator = ContextEvaluator(
            specification["system"], specification["platform"], specification["properties"]
        )
    except Exception as error:
        connection.send_bytes(FAILED + json.dumps({"row": None, "cause": str(error)}).encode())
        return
    connection.send_bytes(DONE + SECONDS.pack(0.0))
    while True:
        start, stop = REQUEST.unpack(connection.recv_bytes())
        began = time.perf_counter()
        rows = slice(start, stop)
        try:
            evaluator.evaluate(positions[rows], energies[rows], forces[rows])
        except EvaluationError as error:
            answer = {"row": start + error.row, "cause": str(error)}
            connection.send_bytes(FAILED + json.dumps(answer).encode())
        else:
            connection.send_bytes(DONE + SECONDS.pack(time.perf_counter() - began))


def _end_with_parent() -> None:
    """Exit when standard input ends, which it does when the parent ends, however it ends."""
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    with contextlib.suppress(EOFError, OSError):
        serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    # Leaves without joining the thread that waits for the parent.
    os._exit(0)
