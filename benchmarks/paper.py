"""The presets `paper` and `fast` side by side: quality of trained runs with what they have cost.

    python benchmarks/paper.py mog40 "paper, 1 %=runs/paper-mog40" "fast, whole=mog40"
    python benchmarks/paper.py dw4 "paper=runs/paper-dw4" "fast, whole=dw4" --peer peer_dw4.npz

A run folder, an artifact or the name of a shipped sampler stands after each label; it is sampled without
refinement. MoG-40 is judged against exact draws, DW-4 against the
shipped reference; the last line is the floor, the reference against itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from molsampler import Sampler, Samples
from molsampler.analysis import compare_many, tabulate
from molsampler.reference import load_reference
from molsampler.systems import get_system
from molsampler.target import System


def cost(sampler: Sampler) -> str:
    """Iterations, evaluations and minutes of the training, from the card."""
    if sampler.card.training is None:
        return "training not recorded"
    spent = sampler.card.training.cost
    return (
        f"{spent.iterations:,} iterations, {spent.energy_evaluations:.1e} evaluations, "
        f"{spent.seconds / 60:.0f} min"
    )


def reference(system: System, n: int) -> Samples:
    """Exact draws where there are some, else the shipped reference."""
    exact = getattr(system, "sample", None)
    if exact is None:
        return load_reference(system.name)
    return Samples.of(system, exact(n, generator=torch.Generator().manual_seed(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system")
    parser.add_argument("runs", nargs="+", metavar="LABEL=RUN")
    parser.add_argument("--peer", type=Path, help="samples of others, positions in an .npz")
    parser.add_argument("-n", type=int, default=10_000)
    options = parser.parse_args()
    system = get_system(options.system)
    candidates = {}
    for item in options.runs:
        label, _, folder = item.rpartition("=")
        run = Path(folder) / "artifact"
        sampler = Sampler.load(run if run.is_dir() else folder)
        candidates[f"{label} ({cost(sampler)})"] = sampler.sample(options.n, seed=0)
    if options.peer:
        candidates["released samples"] = Samples.of(system, np.load(options.peer)["positions"])
    truth = reference(system, options.n)
    found = compare_many(
        candidates, truth, system, transport_repeats=3, geometric_n=300, drift_steps=0
    )
    header, rows = tabulate(found)
    header.insert(2, "mean energy")
    sets = [*candidates.values(), truth]
    for row, each in zip(rows, [*sets, None], strict=True):
        row.insert(2, "" if each is None else f"{float(each.energies.mean()):.3g}")
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
