"""Quality table: how far samples are from a reference, every value beside its floor.

For each system one table with a line per sample set: shipped samples, raw and refined, peer samples
from a folder, and plain Monte Carlo at equal energy evaluations, at equal seconds, and at the energy
evaluations that the training took. Run with one
thread per library on a quiet machine where the seconds matter.

    python benchmarks/quality.py --peers DATA [--systems dw4 lj13] [--markdown] [--json FILE]

The peer folder holds ``peer_<system>.npz`` and ``reference_<system>*.npz`` with key ``positions``;
``--references`` names a folder of reference files ``<system>*.npz`` to use instead. Without either
the reference is an exact draw where the system can be sampled exactly, else the installed one. A
system is skipped, and the reason printed, where samples or a reference are missing.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import molsampler.systems
from molsampler.analysis.comparison import Comparison, compare_many, tabulate
from molsampler.analysis.refinement import equal_budget_monte_carlo, refinement_drift
from molsampler.analysis.statistics import GATE_SIGMAS
from molsampler.errors import MolsamplerError
from molsampler.samples import Samples
from molsampler.systems import GaussianMixture, ManyWell, get_system, list_systems
from molsampler.target import System


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def load(path: Path, system: System) -> Samples:
    """Positions of an ``.npz`` file; energies are recomputed on the exact target."""
    with np.load(path, allow_pickle=False) as file:
        return Samples.of(system, file["positions"], file=path.name)


def find_reference(name: str, system: System, folders: list[Path], seed: int) -> Samples | None:
    """A reference from the folders, an exact draw, or the one installed with the library."""
    installed = Path(molsampler.systems.__file__).parent / "data"
    for folder in (*folders, None, installed):
        if folder is None:
            if isinstance(system, GaussianMixture | ManyWell):
                draw = system.sample(10_000, generator=torch.Generator().manual_seed(seed + 1))
                return Samples.of(system, draw, method="exact")
            continue
        found = sorted([*folder.glob(f"reference_{name}*.npz"), *folder.glob(f"{name}*.npz")])
        if found:
            return load(found[0], system)
    return None


def refined(samples: Samples, system: System, *, steps: int, seed: int) -> tuple[Samples, float]:
    """Samples after a few MALA steps, and the seconds that took."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    drift = refinement_drift(samples.positions, system, steps=steps, generator=generator)
    done = Samples.of(system, drift.positions).with_metadata(
        **{
            **samples.metadata,
            "refined_steps": steps,
            "acceptance": drift.acceptance,
            "energy_evaluations": drift.energy_evaluations,
        }
    )
    return done, time.perf_counter() - started


def shipped(name: str, n: int, seed: int, refine: int) -> list[tuple[Samples, float]] | None:
    """Raw and refined samples of the shipped artifact and the seconds they took; None if none ships."""
    from molsampler import Sampler

    try:
        sampler = Sampler.load(name)
    except (MolsamplerError, FileNotFoundError) as error:
        log(f"{name}: no shipped sampler ({error})")
        return None
    sampler.sample(64, seed=seed)
    found = []
    for steps in (0, refine):
        started = time.perf_counter()
        samples = sampler.sample(n, seed=seed, refine=steps)
        found.append((samples, time.perf_counter() - started))
    return found


def run_system(name: str, options: argparse.Namespace) -> dict[str, Comparison] | None:
    system = get_system(name)
    folders = [folder for folder in (options.references, options.peers) if folder is not None]
    reference = find_reference(name, system, folders, options.seed)
    if reference is None:
        log(f"{name}: skipped, no reference")
        return None
    sets: dict[str, Samples] = {}
    seconds: dict[str, float] = {}

    ours = shipped(name, options.n_samples, options.seed, options.refine)
    if ours is not None:
        for label, (samples, spent) in zip(
            ("molsampler, raw", f"molsampler, {options.refine} MALA steps"), ours, strict=True
        ):
            sets[label], seconds[label] = samples, spent
    peer_path = None if options.peers is None else options.peers / f"peer_{name}.npz"
    if peer_path is not None and peer_path.is_file():
        sets["peer, raw"] = load(peer_path, system)
        label = f"peer, {options.refine} MALA steps"
        sets[label], seconds[label] = refined(
            sets["peer, raw"], system, steps=options.refine, seed=options.seed
        )
    if not sets:
        log(f"{name}: skipped, neither a shipped sampler nor peer samples")
        return None

    chains = 2 * options.n
    spread = float(system.space.project(reference.positions.double()).std())
    refining = max(
        (
            int(s.metadata["energy_evaluations"]) / len(s)
            for s in sets.values()
            if s.metadata.get("refine") or "refined_steps" in s.metadata
        ),
        default=1.0,
    )
    # One second at least, so that a fast sampler does not turn the line into bare random starts.
    limit = max([1.0, *seconds.values()])
    lines: list[tuple[str, int, float | None]] = [
        ("Monte Carlo, equal evaluations", round(refining * chains), None),
        ("Monte Carlo, equal seconds", 10**12, limit),
    ]
    if ours is not None and "training_energy_evaluations" in ours[0][0].metadata:
        training = int(ours[0][0].metadata["training_energy_evaluations"])
        lines.append(("Monte Carlo, the training's evaluations", training, options.longest))
    for label, budget, ceiling in lines:
        log(f"{name}: {label}")
        found = equal_budget_monte_carlo(
            system,
            chains,
            energy_evaluations=budget,
            seed=options.seed,
            time_limit=ceiling,
            spread=spread,
        )
        # A line that the clock ended must not pass for the budget in its name.
        if ceiling == options.longest and found.metadata["energy_evaluations"] < 0.99 * budget:
            label = f"{label}, cut at {ceiling:.0f} s"
        spent_text = (
            f"{found.metadata['energy_evaluations']:.1e} in {found.metadata['seconds']:.0f} s"
        )
        sets[f"{label} ({spent_text})"] = found
    return compare_many(
        sets,
        reference,
        system,
        n=options.n,
        repeats=options.repeats,
        transport_repeats=options.transport_repeats,
        seed=options.seed,
        progress=lambda text: log(f"{name}: {text}"),
    )


def plain(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *rows]
    )


def markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n", 1)[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--systems", nargs="+", default=list(list_systems()), metavar="NAME")
    parser.add_argument("--peers", type=Path, help="folder of peer and reference files")
    parser.add_argument(
        "--references", type=Path, help="folder of reference files, looked at first"
    )
    parser.add_argument("--n", type=int, default=2000, help="configurations per draw")
    parser.add_argument(
        "--n-samples", type=int, default=5000, help="samples of the shipped sampler"
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--transport-repeats", type=int, default=3)
    parser.add_argument("--refine", type=int, default=20, help="MALA steps of the refined lines")
    parser.add_argument(
        "--longest", type=float, default=120.0, help="seconds a Monte Carlo line may take"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true", help="print Markdown tables")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    results: dict[str, Any] = {
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
        "systems": {},
    }
    show = markdown if options.markdown else plain
    for name in options.systems:
        started = time.perf_counter()
        comparisons = run_system(name, options)
        if comparisons is None:
            continue
        print(f"\n{'## ' if options.markdown else ''}{name}\n")
        print(show(*tabulate(comparisons)), flush=True)
        log(f"{name}: {time.perf_counter() - started:.0f} s")
        results["systems"][name] = {k: c.to_dict() for k, c in comparisons.items()}
    print(
        f"\nvalue ± standard error; * above the floor by more than {GATE_SIGMAS:g} standard errors"
    )
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
