"""Training seeds side by side, and whether the data-free criterion ranks them as a reference does.

    python benchmarks/seeds.py RUN RUN RUN [--references FOLDER] [--n 20000] [--markdown]

The runs are finished ones of one system (``molsampler train SYSTEM RUN --set seed=1``). The criterion is
:class:`molsampler.train.criterion.Discrepancy`: as recorded, against the run's own replay, and against the
replays of all runs together, which are independent of each other and were made from the energy alone. The
seed to ship is the one with the least pooled criterion. Distances to a reference stand beside it; they
choose nothing. The reference is found as in ``quality.py``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from quality import find_reference, markdown, plain
from torch import Tensor

from molsampler import Sampler
from molsampler.analysis.distances import distance_total_variation
from molsampler.analysis.energies import total_variation, wasserstein2_1d
from molsampler.analysis.geometry import molecule_of
from molsampler.analysis.modes import mode_distance, mode_weights
from molsampler.analysis.torsions import ramachandran_tvd
from molsampler.mcmc import mala
from molsampler.samples import Samples
from molsampler.target import System
from molsampler.train import checkpoint
from molsampler.train.criterion import Discrepancy


def population(run: Path) -> mala.State:
    """The replay in a run's newest checkpoint, of all its shards."""
    found = checkpoint.load_latest(run / "checkpoints")
    tensors = {} if found is None else found[0]
    ends = sorted(key for key in tensors if key.endswith("population/energy"))
    if not ends:
        raise SystemExit(f"{run} holds no checkpoint with a replay")
    places = [key.removesuffix("energy") for key in ends]
    return mala.State(
        *(torch.cat([tensors[f"{place}{key}"] for place in places]) for key in mala.State._fields)
    )


def pooled(parts: list[mala.State]) -> mala.State:
    """Populations interleaved, as many chains of each."""
    size = min(len(part.energy) for part in parts)
    return mala.State(
        *(
            torch.stack([f[:size] for f in fields], 1).flatten(0, 1)
            for fields in zip(*parts, strict=True)
        )
    )


def working(sampler: Sampler, samples: Samples) -> tuple[Tensor, Tensor]:
    """Samples and energies in the coordinates that the sampler works in."""
    x = sampler.chart.coordinates(samples.positions.double()).float()
    return x, sampler.chart.target.energy_and_score(x)[0]


def distances(samples: Samples, reference: Samples, system: System) -> dict[str, float]:
    """Distances to a reference, all samples at once."""
    x, r = samples.positions, reference.positions
    energies, truth = samples.energies, reference.energies
    found = {
        "energy-W2": wasserstein2_1d(energies, truth),
        "TVD-E": float(total_variation(energies, truth).value),
    }
    if system.shape[0] > 1:
        found["TVD-D"] = float(distance_total_variation(x, r).value)
    if hasattr(system, "mode_labels"):
        found["mode weights"] = mode_distance(mode_weights(x, system), mode_weights(r, system))
    molecule = molecule_of(system)
    if molecule is not None and molecule.residues:
        found["Ramachandran TVD"] = ramachandran_tvd(
            molecule.ramachandran(x), molecule.ramachandran(r)
        )
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--references", type=Path, help="folder of reference files")
    parser.add_argument("--n", type=int, default=20_000, help="samples of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args(arguments)

    samplers = [Sampler.load(run / "artifact") for run in options.runs]
    system = samplers[0].system
    folders = [] if options.references is None else [options.references]
    reference = find_reference(system.name, system, folders, options.seed)
    populations = [population(run) for run in options.runs]
    space = samplers[0].chart.target.space
    together = Discrepancy(pooled(populations), space)
    rows: list[dict[str, Any]] = []
    for sampler, own in zip(samplers, populations, strict=True):
        samples = sampler.sample(options.n, seed=options.seed)
        x, energy = working(sampler, samples)
        training = sampler.card.training
        value, error = together(x, energy)
        row: dict[str, Any] = {
            "seed": "" if training is None else training.seed,
            "evaluations": "" if training is None else f"{training.cost.energy_evaluations:.1e}",
            "minutes": "" if training is None else f"{training.cost.seconds / 60:.0f}",
            "criterion, own replay": f"{Discrepancy(own, space)(x, energy)[0]:.4f}",
            "criterion, all replays": f"{value:.4f} ± {error:.4f}",
        }
        if reference is not None:
            row |= {k: f"{v:.4f}" for k, v in distances(samples, reference, system).items()}
        rows.append(row)
    show = markdown if options.markdown else plain
    print(show(list(rows[0]), [[str(cell) for cell in row.values()] for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
