"""Energy-and-score evaluations per second of an OpenMM system, against OpenMM alone.

    python benchmarks/openmm_rates.py [SYSTEM] [--platform native] [--workers 0 1 2]
        [--batches 1 16 256 2048] [--repeats 9] [--markdown]

The bare loop sets the positions of one context, asks for its energy and forces and reads both, row
after row; it is one of the Reference platform where the system's own is the compiled kernel. Every
measurement is taken next to one of the bare loop on the same rows, and the median of the ratios is
printed: other load on the machine then weighs on both. In this process (workers 0)
processor time is measured, with workers elapsed time, which only an idle machine makes meaningful.
``overhead`` is the time per row beyond the bare loop's, in per cent of it; with several workers, of
the bare loop's divided by their number.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import openmm
import torch

from molsampler.systems import OpenMMSystem, get_system

#: Least seconds of work per measurement.
LEAST = 0.15


def bare_loop(system: OpenMMSystem) -> Callable[[np.ndarray], None]:
    """A function that evaluates rows with one context and nothing else, on OpenMM's own platform."""
    twin, _ = system.openmm_twin()
    context = openmm.Context(
        twin,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName(
            "Reference" if system.platform == "native" else system.platform
        ),
        system.properties,
    )

    def run(rows: np.ndarray) -> None:
        energies, forces = np.empty(len(rows)), np.empty_like(rows)
        for k, x in enumerate(rows):
            context.setPositions(x)
            state = context.getState(energy=True, forces=True)
            energies[k] = state.getPotentialEnergy()._value
            forces[k] = state.getForces(asNumpy=True)._value

    return run


def seconds(
    call: Callable[[], object], count: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    began = clock()
    for _ in range(count):
        call()
    return (clock() - began) / count


def measure(
    system: OpenMMSystem, bare: Callable[[np.ndarray], None], batch: int, repeats: int
) -> tuple[float, float, float]:
    """Rows per second of the bare loop and of the system, and the median ratio of their times."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(batch, *system.shape, generator=generator, dtype=torch.float64)
    x = torch.from_numpy(system.positions) + 0.005 * noise
    rows = x.numpy()
    system.energy_and_score(x)
    bare(rows)
    count = max(1, int(LEAST / max(seconds(lambda: bare(rows), 1), 1e-6)))
    clock = time.perf_counter if system.workers else time.process_time
    plain, ours = [], []
    for _ in range(repeats):
        plain.append(seconds(lambda: bare(rows), count, clock))
        ours.append(seconds(lambda: system.energy_and_score(x), count, clock))
    ratio = statistics.median(b / a for a, b in zip(plain, ours, strict=True))
    return batch / statistics.median(plain), batch / statistics.median(ours), ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("system", nargs="?", default="alanine-dipeptide")
    parser.add_argument("--platform", default=None, help="by default the system's")
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 256, 2048])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    system = get_system(arguments.system)
    if not isinstance(system, OpenMMSystem) or system.positions is None:
        parser.error(f"{arguments.system!r} is not an OpenMM system with positions")
    if arguments.platform is not None:
        # A copy has no evaluator yet.
        system = copy.copy(system)
        system.platform = arguments.platform
        system.properties = {"Threads": "1"} if arguments.platform == "CPU" else {}
    bare = bare_loop(system)
    print(
        f"{system.name}, {system.shape[0]} atoms, platform {system.platform}, OpenMM "
        f"{openmm.Platform.getOpenMMVersion()}, {os.cpu_count()} cores, {platform.machine()}"
    )
    columns = ("workers", "batch", "bare loop, rows/s", "here, rows/s", "time ratio", "overhead")
    if arguments.markdown:
        print("|" + "|".join(columns) + "|\n" + "|---" * len(columns) + "|")
    else:
        print("  ".join(columns))
    for workers in [0] if system.platform == "native" else arguments.workers:
        system.close()
        system.workers = workers
        for batch in arguments.batches:
            plain, ours, ratio = measure(system, bare, batch, arguments.repeats)
            overhead = 100 * (ratio * max(workers, 1) - 1)
            cells = (workers, batch, f"{plain:,.0f}", f"{ours:,.0f}", f"{ratio:.3f}")
            texts = [*map(str, cells), f"{overhead:+.1f} %"]
            print("|" + "|".join(texts) + "|" if arguments.markdown else "  ".join(texts))
    system.close()


if __name__ == "__main__":
    main()
