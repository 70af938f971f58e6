"""Samplers with exact weights: effective samples, log Z, and annealed importance sampling beside them.

    python benchmarks/exact.py [SAMPLER ...] [--n 10000 100000] [--seeds 3] [--anneal 10 20] [--levels 100]
        [--markdown]

A sampler is a shipped name ending in ``-exact`` or a run's artifact. ESS is Kish's effective number over the
number of draws; "trimmed" the same after the largest thousandth of the weights is cut to its least, which
flatters by what it hides; "largest" the share of one draw in the sum. Three seeds give each line; the error
of log Z is that of its own weights. The annealing starts from a Gaussian as wide as the samples, along the
geometric path with one Metropolis-adjusted Langevin step a level, and needs as many energies a sample as it
has levels. "anneal K" are the sampler's own draws, annealed along K levels in the noise, of the first --n.

Langevin's lines are 200 Metropolis-adjusted chains from the same Gaussian: as many energies as the longest
annealed line took, and as many seconds as the first line. The first half is left out, hence two energies a
row; effective numbers are by the statistical inefficiency of the energy, which is blind to modes of like
energies: chains that stay in the one where they started look as good as those that travel.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator

import torch
from quality import markdown, plain
from torch import Tensor

from molsampler import Sampler, Samples
from molsampler.errors import InputError
from molsampler.estimate import effective_count, log_mean
from molsampler.mcmc import adapt, mala
from molsampler.mcmc.convergence import statistical_inefficiency
from molsampler.mcmc.log_normaliser import annealing_weights
from molsampler.sampler.store import list_pretrained
from molsampler.target import Target

#: log Z where it is known.
TRUTH = {"mog40": 0.0, "mw32": 164.696}

#: Share of weights that trimming cuts.
CUT = 1e-3

#: Chains of Langevin's lines.
CHAINS = 200


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


def langevin(
    target: Target,
    x: Tensor,
    *,
    seed: int,
    evaluations: float = math.inf,
    seconds: float = math.inf,
) -> tuple[Tensor, float]:
    """Energies ``(chain, step)`` of the second half of chains from ``x`` ``(chain, n, d)`` that stop at a
    number of energies or seconds, and the seconds that it took."""
    rng = torch.Generator().manual_seed(seed)
    began = time.perf_counter()
    state, trace = mala.init(x, target), []
    tuned = adapt.init(1e-2 * float(x.var()))
    steps = evaluations / len(x) - 1
    while len(trace) < steps and time.perf_counter() - began < seconds:
        state, info = mala.step(state, target, step_size=tuned.step_size, generator=rng)
        trace.append(state.energy)
        # The half that is kept ran at a frozen step.
        done = max(len(trace) / steps, (time.perf_counter() - began) / seconds)
        if done < 0.4:
            tuned = adapt.update(tuned, info.acceptance)
    kept = torch.stack(trace[len(trace) // 2 :], 1)
    return kept, time.perf_counter() - began


def langevin_row(name: str, runs: list[tuple[Tensor, float]]) -> list[str]:
    """One line of the table from chains of each seed: rows kept, one in g of which is independent."""
    shares = [1 / statistical_inefficiency(kept.numpy()) for kept, _ in runs]
    rows = [kept.numel() for kept, _ in runs]
    rates = [share * n / seconds for share, n, (_, seconds) in zip(shares, rows, runs, strict=True)]
    return [
        name,
        f"{sum(rows) // len(rows):,}",
        " ".join(f"{share:.3f}" for share in shares),
        "",
        "",
        "",
        "2",
        f"{sum(rates) / len(rates):,.0f}",
    ]


def drawn(
    name: str, sampler: Sampler, n: int, seeds: int, anneal: int
) -> tuple[list[str], list[Samples], float]:
    """The line of a sampler's draws, the draws and the seconds that a seed took."""
    began = time.perf_counter()
    draws = [sampler.sample(n, seed=seed, anneal=anneal) for seed in range(seeds)]
    seconds = (time.perf_counter() - began) / seeds
    weights = [each.log_weights for each in draws if each.log_weights is not None]
    if not weights:
        raise SystemExit(f"{name} knows no weights")
    return row(name, weights, anneal, seconds), draws, seconds


def lines(
    name: str, sizes: list[int], seeds: int, levels: int, anneal: list[int]
) -> Iterator[list[str]]:
    """Those of one sampler, as they are measured."""
    sampler = Sampler.load(name)
    first, draws, second = drawn(name, sampler, sizes[0], seeds, 1)
    yield first
    for n in sizes[1:]:
        yield drawn(name, sampler, n, seeds, 1)[0]
    for each in anneal:
        try:
            yield drawn(f"{name}, anneal {each}", sampler, sizes[0], seeds, each)[0]
        except InputError as error:
            print(f"{name}: {error}", file=sys.stderr)
            break
    target = sampler.chart.target
    x = sampler.chart.coordinates(draws[0].positions[:4096].double())
    began = time.perf_counter()
    weights = [
        annealing_weights(
            target, x, n=sizes[0], levels=levels, generator=torch.Generator().manual_seed(seed)
        )
        + sampler.chart.log_constant
        for seed in range(seeds)
    ]
    seconds = (time.perf_counter() - began) / seeds
    yield row(f"annealing, {levels} levels", weights, levels, seconds)
    spread = target.space.project(x - x.mean(0))
    std = math.sqrt(float(spread.square().sum(dim=(-2, -1)).mean()) / target.space.dof)
    starts = [
        std * target.space.randn(CHAINS, generator=torch.Generator().manual_seed(seed), like=x)
        for seed in range(seeds)
    ]
    longest = sizes[0] * max(anneal, default=20)
    runs = [
        langevin(target, start, seed=seed, evaluations=longest) for seed, start in enumerate(starts)
    ]
    yield langevin_row(f"Langevin, {longest:,} energies", runs)
    runs = [langevin(target, start, seed=seed, seconds=second) for seed, start in enumerate(starts)]
    yield langevin_row(f"Langevin, {second:.1f} s", runs)
    system = sampler.system.name
    if system in TRUTH:
        yield ["truth", "", "", "", "", f"{TRUTH[system]:.3f}", "", ""]
    cost = sampler.card.training.cost if sampler.card.training else None
    if cost is not None:
        spent = f"{cost.energy_evaluations:.2g} evaluations, {cost.seconds / 60:.0f} min"
        yield [f"training: {spent}", *[""] * 7]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shipped = [name for name in list_pretrained() if name.endswith("-exact")]
    parser.add_argument("samplers", nargs="*", default=shipped)
    parser.add_argument("--n", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--anneal", type=int, nargs="*", default=[10, 20])
    parser.add_argument("--levels", type=int, default=100)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    header = [
        "sampler", "n", "ESS / n", "trimmed", "largest", "log Z", "energies a sample",
        "effective samples/s",
    ]  # fmt: skip
    rows = []
    for name in options.samplers:
        for line in lines(name, options.n, options.seeds, options.levels, options.anneal):
            print(" | ".join(line), file=sys.stderr, flush=True)
            rows.append(line)
    print((markdown if options.markdown else plain)(header, rows))


if __name__ == "__main__":
    main()
