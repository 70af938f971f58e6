"""Samplers with exact weights: effective samples, log Z, and annealed importance sampling beside them.

    python benchmarks/exact.py [SAMPLER ...] [--n 10000 100000] [--seeds 3] [--levels 100] [--markdown]

A sampler is a shipped name ending in ``-exact`` or a run's artifact. ESS is Kish's effective number over the
number of draws; "trimmed" the same after the largest thousandth of the weights is cut to its least, which
flatters by what it hides; "largest" the share of one draw in the sum. Three seeds give each line; the error
of log Z is that of its own weights. The annealing starts from a Gaussian as wide as the samples, along the
geometric path with one Metropolis-adjusted Langevin step a level, and needs as many energies a sample as it
has levels.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from quality import markdown, plain
from torch import Tensor

from molsampler import Sampler
from molsampler.estimate import effective_count, log_mean
from molsampler.mcmc import adapt, ais, mala
from molsampler.mcmc.population import Gaussian
from molsampler.sampler.store import list_pretrained
from molsampler.target import Target

#: log Z where it is known.
TRUTH = {"mog40": 0.0, "mw32": 164.696}

#: Share of weights that trimming cuts.
CUT = 1e-3


def row(name: str, weights: list[Tensor], evaluations: float, seconds: float) -> list[str]:
    """One line of the table, from the log weights of each seed."""
    shares = [effective_count(each) / len(each) for each in weights]
    trimmed = [each.clamp(max=float(each.quantile(1 - CUT))) for each in weights]
    flattered = [effective_count(each) / len(each) for each in trimmed]
    largest = max(float((each.max() - torch.logsumexp(each, 0)).exp()) for each in weights)
    log_z = [log_mean(each) for each in weights]
    return [
        name,
        f"{len(weights[0]):,}",
        " ".join(f"{share:.3f}" for share in shares),
        " ".join(f"{share:.3f}" for share in flattered),
        f"{largest:.1e}",
        " ".join(f"{each.value:.3f} ± {each.se:.3f}" for each in log_z),
        f"{evaluations:g}",
        f"{sum(shares) / len(shares) * len(weights[0]) / seconds:,.0f}",
    ]


def annealed(target: Target, x: Tensor, *, n: int, levels: int, seed: int) -> Tensor:
    """Log weights of annealed importance sampling from a Gaussian as wide as draws ``x``."""
    space = target.space
    centred = space.project(x - x.mean(0))
    std = math.sqrt(float(centred.square().sum(dim=(-2, -1)).mean()) / space.dof)
    base, rng = Gaussian(space, std), torch.Generator().manual_seed(seed)
    like = torch.empty(0, dtype=torch.float64)
    # One step size for all levels, tuned half way on chains of their own.
    middle = ais.Path(base, target, 0.5)
    pilot = mala.init(base.sample(256, generator=rng, like=like), middle)
    _, step = adapt.adapt_step_size(
        pilot, middle, steps=200, step_size=1e-2 * std**2, generator=rng
    )
    start = base.sample(n, generator=rng, like=like)
    state = ais.run(start, base, target, levels=levels, step_size=step, generator=rng)
    return state.log_weight + 0.5 * space.dof * math.log(2 * math.pi * std**2)


def lines(name: str, sizes: list[int], seeds: int, levels: int) -> list[list[str]]:
    """Those of one sampler."""
    sampler = Sampler.load(name)
    found = []
    for n in sizes:
        began = time.perf_counter()
        draws = [sampler.sample(n, seed=seed) for seed in range(seeds)]
        seconds = (time.perf_counter() - began) / seeds
        weights = [each.log_weights for each in draws if each.log_weights is not None]
        if not weights:
            raise SystemExit(f"{name} knows no weights")
        found.append(row(name, weights, 1, seconds))
    x = sampler.chart.coordinates(draws[0].positions[:4096].double())
    began = time.perf_counter()
    weights = [
        annealed(sampler.chart.target, x, n=sizes[0], levels=levels, seed=seed)
        + sampler.chart.log_constant
        for seed in range(seeds)
    ]
    seconds = (time.perf_counter() - began) / seeds
    found.append(row(f"annealing, {levels} levels", weights, levels, seconds))
    system = sampler.system.name
    if system in TRUTH:
        found.append(["truth", "", "", "", "", f"{TRUTH[system]:.3f}", "", ""])
    cost = sampler.card.training.cost if sampler.card.training else None
    if cost is not None:
        spent = f"{cost.energy_evaluations:.2g} evaluations, {cost.seconds / 60:.0f} min"
        found.append([f"training: {spent}", *[""] * 7])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shipped = [name for name in list_pretrained() if name.endswith("-exact")]
    parser.add_argument("samplers", nargs="*", default=shipped)
    parser.add_argument("--n", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--levels", type=int, default=100)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    header = [
        "sampler", "n", "ESS / n", "trimmed", "largest", "log Z", "energies a sample",
        "effective samples/s",
    ]  # fmt: skip
    rows = [
        line
        for name in options.samplers
        for line in lines(name, options.n, options.seeds, options.levels)
    ]
    print((markdown if options.markdown else plain)(header, rows))


if __name__ == "__main__":
    main()
