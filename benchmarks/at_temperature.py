"""Samplers side by side at one temperature: those of a range and the one that was trained there.

    python benchmarks/at_temperature.py SAMPLER SAMPLER ... [--temperature T] [--references FOLDER]

A sampler is an artifact, or the name of one that ships, whose draws are not weighted. Distances to a
reference, found as in ``quality.py``, are means over sampling seeds, with the standard deviation of one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from quality import find_reference, markdown, plain
from seeds import distances

from molsampler import Sampler


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("samplers", nargs="+", metavar="SAMPLER")
    parser.add_argument("--temperature", type=float, help="the system's own by default")
    parser.add_argument("--references", type=Path, help="folder of reference files")
    parser.add_argument("--n", type=int, default=20_000, help="samples of each seed")
    parser.add_argument("--seeds", type=int, default=3, help="sampling seeds")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)

    samplers = [Sampler.load(name) for name in options.samplers]
    system = samplers[0].system
    if options.temperature is not None:
        system = system.at(options.temperature)
    folders = [] if options.references is None else [options.references]
    reference = find_reference(system.name, system, folders, seed=0)
    if reference is None:
        parser.error(f"no reference of {system.label} in {folders}")
    rows = []
    for name, sampler in zip(options.samplers, samplers, strict=True):
        found = []
        for seed in range(options.seeds):
            samples = sampler.sample(
                options.n,
                seed=seed,
                temperature=None if sampler.temperatures is None else system.temperature,
            )
            if samples.log_weights is not None:
                parser.error(f"{name} has weighted draws, which these distances do not know")
            found.append(distances(samples, reference, system))
        spent = round(samples.metadata["energy_evaluations"] / options.n)
        row = {"sampler": name, "energies a draw": str(spent)}
        for metric in found[0]:
            values = [each[metric] for each in found]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            row[metric] = f"{statistics.mean(values):.4f} ± {spread:.4f}"
        rows.append(row)
    show = markdown if options.markdown else plain
    print(show(list(rows[0]), [list(row.values()) for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
