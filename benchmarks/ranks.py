"""What a step of training costs a process of several: time, processor time, exchange and memory.

    torchrun --standalone --nproc-per-node K benchmarks/ranks.py [--system dw4] [--shards 4] [--steps 20]

prints a line of the means over processes. ``exchange`` includes waiting for the slowest; ``bare`` is what the
same messages take where nobody has anything else to do.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time

import torch

from molsampler.objectives import Problem
from molsampler.objectives.shards import Alone
from molsampler.systems import get_system
from molsampler.train import load_config
from molsampler.train.ranks import meet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", default="dw4")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    torch.set_num_threads(1)
    system = get_system(options.system)
    quick = ("target_score.equilibration=2", "target_score.anneal_moves=1", "target_score.warmup=1")
    config = load_config(
        "fast",
        system.label,
        overrides=("compile=false", f"shards={options.shards}", *quick, *options.overrides),
    )
    with meet() as peers:
        problem = Problem(
            target=system,
            molecule=system.molecule,
            generator=config.what_to_train(),
            sampling=config.how_to_sample(),
            iterations=config.iterations,
            seed=0,
            device=torch.device("cpu"),
            peers=peers,
        )
        objective = config.objective.build(problem)
        state = objective.init(report=lambda stage, share: None)
        for _ in range(3):
            state, _ = objective.step(state)
        peers.gather(torch.zeros(1))
        before = (0, 0.0) if isinstance(peers, Alone) else peers.exchanged  # type: ignore[attr-defined]
        wall, busy = [], time.process_time()
        for _ in range(options.steps):
            began = time.perf_counter()
            state, _ = objective.step(state)
            wall.append(time.perf_counter() - began)
        busy = (time.process_time() - busy) / options.steps
        after = before if isinstance(peers, Alone) else peers.exchanged  # type: ignore[attr-defined]
        size, waited = ((b - a) / options.steps for a, b in zip(before, after, strict=True))
        bare = 0.0
        if peers.count > 1:
            messages = config.objective.model_dump()["score_steps"] + 2
            rows = -(-options.shards // peers.count)
            part = torch.zeros(rows, max(1, int(size) // (4 * messages * rows * (peers.count - 1))))
            peers.gather(part)
            began = time.perf_counter()
            for _ in range(options.steps * messages):
                peers.gather(part)
            bare = (time.perf_counter() - began) / options.steps
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        mine = torch.tensor(
            [statistics.median(wall), busy, waited, bare, memory], dtype=torch.float64
        )
        step, busy, waited, bare, memory = torch.stack(peers.gather(mine)).mean(0).tolist()
        if peers.rank == 0:
            print(
                f"{options.system}, {options.shards} shards, {peers.count} process(es): step "
                f"{1e3 * step:.0f} ms, processor {1e3 * busy:.0f} ms, exchange {1e3 * waited:.1f} ms "
                f"(bare {1e3 * bare:.1f} ms), {size / 1e6:.2f} MB received, {memory:.0f} MB memory",
                flush=True,
            )


main()
