"""Do dynamics and Monte Carlo give the same samples? Tables and figures of docs/reference-data.md.

    python benchmarks/reference_agreement.py dw4 --md A.npz B.npz --mc C.npz D.npz \\
        [--public PUBLIC.npz] [--exact BATCHES] -o FIGURE.png

The files of --md and --mc come from ``molsampler reference``; those of one option are pooled. Standard
errors are those of the mean over independent replicas. PUBLIC.npz needs an array ``positions`` alone;
its rows are taken as independent, which makes its errors lower bounds. --exact adds importance sampling
(DW-4 only). The last columns are differences in units of their standard error.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from molsampler import Samples, export
from molsampler.systems import get_system
from molsampler.target import System

Column = list[tuple[float, float]]
"""Means and standard errors of the statistics, in order."""


class Part(NamedTuple):
    """Samples and the number of independent replicas; None where rows are taken as independent."""

    samples: Samples
    replicas: int | None

    def mean(self, values: Tensor) -> tuple[float, float]:
        """Mean and standard error of ``values`` ``(n,)``."""
        values = values.double()
        if self.replicas is None:
            return float(values.mean()), float(values.std() / math.sqrt(len(values)))
        draws = len(values) // self.replicas
        means = values[len(values) - draws * self.replicas :].reshape(draws, self.replicas).mean(0)
        return float(values.mean()), float(means.std() / math.sqrt(self.replicas))


def exact(system: System, functions: list[Callable[[Samples], Tensor]], batches: int) -> Column:
    """Means by importance sampling from a Gaussian: independent draws, no chain, no burn-in.

    Feasible in the six dimensions of DW-4 alone (about one effective draw in 1,700). Standard errors
    are those of a jackknife over batches of 500,000 draws.
    """
    width, size = 2.6, 500_000
    generator = torch.Generator().manual_seed(8)
    like = torch.zeros((), dtype=torch.float32)
    sums = []
    for _ in range(batches):
        z = system.space.randn(size, generator=generator, like=like)
        x = width * z
        energy = system.energy(x).double()
        # The constant keeps the exponential within range; it cancels in every mean.
        weight = torch.exp(0.5 * z.square().sum((1, 2)).double() - energy - 30)
        samples = Samples(x, energy)
        columns = [function(samples).double() for function in functions]
        columns += [energy.square()]
        sums.append(torch.stack([weight, *(weight * column for column in columns)]).sum(1))
    parts = torch.stack(sums)
    total = parts.sum(0)

    def means(sums: Tensor) -> Tensor:
        ratio = sums[..., 1:] / sums[..., :1]
        # The variance is not a mean: it comes from those of the energy and its square.
        variance = ratio[..., -1] - ratio[..., 0].square()
        return torch.cat([ratio[..., :1], variance[..., None], ratio[..., 2:-1]], -1)

    value, without = means(total), means(total - parts)
    error = ((without - value).square().sum(0) * (batches - 1) / batches).sqrt()
    return list(zip(value.tolist(), error.tolist(), strict=True))


class Pool(NamedTuple):
    """Independent runs of the same distribution."""

    parts: list[Part]

    def mean(self, function: Callable[[Samples], Tensor]) -> tuple[float, float]:
        """Mean over all rows and its standard error."""
        found = [part.mean(function(part.samples)) for part in self.parts]
        share = [len(part.samples) / len(self) for part in self.parts]
        value = sum(w * m for w, (m, _) in zip(share, found, strict=True))
        return value, math.hypot(*(w * e for w, (_, e) in zip(share, found, strict=True)))

    def rows(self, function: Callable[[Samples], Tensor]) -> np.ndarray:
        return torch.cat([function(part.samples).flatten() for part in self.parts]).numpy()

    def __len__(self) -> int:
        return sum(len(part.samples) for part in self.parts)


def distances(x: Tensor) -> Tensor:
    i, j = torch.triu_indices(x.shape[1], x.shape[1], 1)
    return (x[:, i] - x[:, j]).double().norm(dim=-1)


def statistics(system: System) -> dict[str, Callable[[Samples], Tensor]]:
    """Named functions of samples whose means are compared."""
    rows: dict[str, Callable[[Samples], Tensor]] = {
        "energy": lambda s: s.energies,
        "energy variance": lambda s: (s.energies - s.energies.mean()) ** 2,
        "radius of gyration": lambda s: s.positions.double().square().sum(-1).mean(-1).sqrt(),
        "shortest pair distance": lambda s: distances(s.positions).amin(-1),
        "mean pair distance": lambda s: distances(s.positions).mean(-1),
        "longest pair distance": lambda s: distances(s.positions).amax(-1),
    }
    if system.name == "dw4":
        for k in range(1, 6):
            rows[f"share with {k} pairs d > 4"] = lambda s, k=k: (  # type: ignore[misc]
                (distances(s.positions) > 4).sum(-1) == k
            ).double()
    else:
        rows["share with a particle beyond 2.5 of the centre"] = lambda s: (
            s.positions.double().norm(dim=-1).amax(-1) > 2.5
        ).double()
    return rows


def difference(a: tuple[float, float], b: tuple[float, float]) -> str:
    return f"{(a[0] - b[0]) / math.hypot(a[1], b[1]):+.1f}"


def table(system: System, pools: dict[str, Pool], batches: int) -> str:
    rows = statistics(system)
    columns = {
        f"{label}, n = {len(pool):,}": [pool.mean(function) for function in rows.values()]
        for label, pool in pools.items()
    }
    yardstick = next(label for label in columns if label.startswith("MC"))
    if batches:
        yardstick = "importance sampling"
        columns[yardstick] = exact(system, list(rows.values()), batches)
    short = "IS" if batches else "MC"
    others = [label for label in columns if label != yardstick]
    lines = [
        "| | "
        + " | ".join(columns)
        + "".join(f" | ({label.split(',')[0]} − {short}) / SE" for label in others)
        + " |",
        "|---|" + "---|" * (len(columns) + len(others)),
    ]
    for k, name in enumerate(rows):
        found = {label: column[k] for label, column in columns.items()}
        digits = max(1, 1 - math.floor(math.log10(min(e for _, e in found.values() if e > 0))))
        cells = [f"{value:.{digits}f} ± {error:.{digits}f}" for value, error in found.values()]
        cells += [difference(found[label], found[yardstick]) for label in others]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(system: System, pools: dict[str, Pool], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[str, Callable[[Samples], Tensor]] = {
        "reduced energy u": lambda s: s.energies,
        "pair distance d": lambda s: distances(s.positions),
    }
    page, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    styles = {"MD": ("#0b6fa4", "-"), "MC": ("#d1495b", "--"), "public": ("#6c757d", ":")}
    for axis, (name, function) in zip(axes, panels.items(), strict=True):
        rows = {label: pool.rows(function) for label, pool in pools.items()}
        edges = np.linspace(*np.quantile(rows["MD"], [0.0005, 0.9995]), 61)
        for label, values in rows.items():
            colour, line = styles[label]
            axis.hist(
                values,
                edges,
                density=True,
                histtype="step",
                color=colour,
                linestyle=line,
                label=f"{label}, n = {len(pools[label]):,}",
            )
        axis.set_xlabel(name)
        axis.set_ylabel("density")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    page.suptitle(system.name)
    page.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("system")
    parser.add_argument("--md", type=Path, nargs="+", required=True)
    parser.add_argument("--mc", type=Path, nargs="+", required=True)
    parser.add_argument("--public", type=Path)
    parser.add_argument("--exact", type=int, default=0, metavar="BATCHES")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    system = get_system(arguments.system)
    pools = {}
    for label, paths in (("MD", arguments.md), ("MC", arguments.mc)):
        loaded = [export.load(path) for path in paths]
        pools[label] = Pool([Part(s, s.metadata["run"]["replicas"]) for s in loaded])
    if arguments.public is not None:
        with np.load(arguments.public) as content:
            pools["public"] = Pool([Part(Samples.of(system, content["positions"]), None)])
    print(table(system, pools, arguments.exact))
    figure(system, pools, arguments.output)


if __name__ == "__main__":
    main()
