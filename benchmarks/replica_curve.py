"""Replica exchange over a range of temperatures: the curve that a sampler's is to be held against.

    python benchmarks/replica_curve.py SYSTEM LO:HI FOLDER [--nodes 24] [--ladders 64] [--frames 200]

For systems without bonds. Every ladder is annealed and equilibrated by itself, so that ladders tell of
convergence: R-hat of the energy at each temperature is printed. FOLDER gets a file of samples for each
temperature, and the curve of all of them together:

    molsampler curve ARTIFACT --reference FOLDER/curve.json
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

from molsampler.analysis import curve_through, write_json
from molsampler.export import save
from molsampler.mcmc import moves
from molsampler.mcmc.convergence import effective_sample_size, split_r_hat
from molsampler.mcmc.ladder import Ladder
from molsampler.mcmc.population import Equilibration, PopulationConfig, refresh_rows
from molsampler.mcmc.tempering import Tempered
from molsampler.samples import Samples
from molsampler.systems import get_system
from molsampler.target import CountingTarget, Target
from molsampler.temperatures import TemperatureRange


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("system")
    parser.add_argument("range", type=TemperatureRange.parse)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=24)
    parser.add_argument("--ladders", type=int, default=64)
    parser.add_argument(
        "--frames", type=int, default=200, help="of each ladder at each temperature"
    )
    parser.add_argument(
        "--between", type=int, default=100, help="energies of a replica between frames"
    )
    parser.add_argument(
        "--sweep", type=int, default=5, help="the same between exchanges, a move at least"
    )
    parser.add_argument(
        "--equilibration", type=int, default=5000, help="the same before the first frame"
    )
    parser.add_argument("--start-scale", type=float, default=1.0)
    parser.add_argument("--along")
    parser.add_argument("--edges", type=lambda text: [float(part) for part in text.split(",")])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    system = get_system(options.system)
    leaps = moves.usual(system.space)
    sweep = max(options.sweep // leaps, 1)
    between = max(options.between // (sweep * leaps), 1)
    target = CountingTarget(system)

    def target_at(rows: torch.Tensor) -> Target:
        return target.counting(Tempered(system, system.temperature / rows))

    ladder = Ladder(options.range, options.nodes, target_at)
    config = PopulationConfig(
        size=options.nodes * options.ladders,
        nodes=options.nodes,
        start_scale=options.start_scale,
        equilibration=options.equilibration // leaps,
        leapfrog_steps=leaps,
        exchange_every=sweep,
    )
    made = Equilibration(config, target, molecule=system.molecule, ladder=ladder)
    random = torch.Generator().manual_seed(options.seed)
    began = time.perf_counter()
    state = made.init(generator=random, like=torch.empty(0))
    while not made.finished(state):
        state = made.step(state, generator=random)
    chains = made.population(state)
    print(
        f"equilibrated: {target.evaluations:.2e} energies, {time.perf_counter() - began:.0f} s",
        file=sys.stderr,
    )
    positions, energies, rates = [], [], []
    for frame in range(options.frames):
        for between_frames in range(between):
            chains, rate = refresh_rows(
                chains,
                ladder,
                count_evaluations=lambda each: each,
                iteration=frame * between + between_frames,
                count=made.size,
                steps=sweep,
                generator=random,
                leapfrog_steps=leaps,
            )
            rates.append(rate)
        positions.append(chains.state.position.clone())
        energies.append(chains.state.energy.clone())
    x = torch.stack(positions).reshape(
        options.frames, options.ladders, options.nodes, *system.shape
    )
    u = torch.stack(energies).reshape(options.frames, options.ladders, options.nodes)
    seconds = time.perf_counter() - began
    options.folder.mkdir(parents=True, exist_ok=True)
    sets, lines = [], []
    for node, temperature in enumerate(options.range.spread(options.nodes)):
        trace = u[:, :, node].T.double().numpy()
        worst, count = split_r_hat(trace), effective_sample_size(trace)
        lines.append(f"{temperature:.4g}: R-hat {worst:.3f}, {count:.0f} of {trace.size} effective")
        samples = Samples.of(
            system.at(temperature),
            x[:, :, node].flatten(0, 1),
            run={"replicas": options.ladders, "method": "replica exchange"},
        )
        save(samples, options.folder / f"{node:02d}.npz", overwrite=True)
        sets.append(samples)
    found = curve_through(sets, system, along=options.along, edges=options.edges, pool=True)
    write_json(found, options.folder / "curve.json", overwrite=True)
    print("\n".join(lines))
    print(
        f"{target.evaluations:.2e} energies, {seconds:.0f} s, exchange rate {np.mean(rates):.2f}, "
        f"heat capacity highest at {_peak(found):.4g}"
    )


def _peak(found) -> float:
    """Where a parabola through the three highest neighbours of the heat capacity is highest."""
    rows = found.rows
    k = int(np.argmax([row.heat_capacity.value for row in rows]))
    near = rows[max(k - 1, 0) : k + 2]
    a, b, _ = np.polyfit(
        [r.temperature for r in near], [r.heat_capacity.value for r in near], len(near) - 1
    )
    return float(-b / (2 * a)) if len(near) == 3 else rows[k].temperature


if __name__ == "__main__":
    main()
