"""Do proposals mend the weights of modes? Populations with a mode emptied or at half weight, and the truth.

    python benchmarks/repair.py [mog40] [mw32] [--iterations 300] [--seed 0] [--markdown]

The chains of one mode, or half of them, are moved to where others are, before the generator sees any: it
starts from that population and learns from it, while its draws are proposed to the chains. Lines have the
weight of the mode among the chains before and after, in fresh draws, and in those under their weights, each
with its standard error (rows taken as independent, as chains long after the start are). The control has
``propose: false`` and stays wrong.

The mode of MoG-40 is its first component, of weight 1/40; that of MW-32 the right well of the first
coordinate, whose weight is known by quadrature.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch
from quality import markdown, plain
from torch import Tensor

from molsampler.estimate import mean
from molsampler.mcmc import mala
from molsampler.mcmc.population import Population
from molsampler.nn.generators.density import DensityGenerator
from molsampler.objectives import Problem
from molsampler.objectives.exact import Exact
from molsampler.systems import get_system
from molsampler.systems.many_well import ManyWell
from molsampler.target import System
from molsampler.train import load_config

#: Fresh draws that are looked at.
DRAWS = 20_000

#: Smaller than what ``--preset exact`` has, so that a run takes a minute.
SETTINGS = (
    "probe=false", "generator.layers=6", "generator.width=64", "objective.batch_size=512",
    "objective.draws=512", "objective.draw_from=0", "objective.population.size=4096",
    "objective.population.refresh=256", "objective.population.refresh_steps=1",
)  # fmt: skip

#: Share of the mode's chains that are left, and whether draws are proposed.
CASES = {
    "emptied": (0.0, True),
    "half weight": (0.5, True),
    "emptied, propose: false": (0.0, False),
    "half weight, propose: false": (0.5, False),
}


def inside(system: System, x: Tensor) -> Tensor:
    """Which rows ``(n, 1, d)`` are in the mode."""
    if isinstance(system, ManyWell):
        return x[:, 0, 0] > 0
    labels, _ = system.mode_labels(x)
    return labels == 0


def tampered(population: Population, system: System, left: float) -> Population:
    """All but the share ``left`` of the mode's chains are copies of others."""
    state = population.state
    within = inside(system, state.position)
    away = within.nonzero()[:, 0]
    away = away[int(left * len(away)) :]
    others = (~within).nonzero()[:, 0]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(1))
    # Of a mode that most chains are in there are more to replace than others: these come again and again.
    chosen = others[order[torch.arange(len(away)) % len(others)]]
    return population._replace(
        state=mala.State(*(field.index_copy(0, away, field[chosen]) for field in state))
    )


def share(values: Tensor, log_weights: Tensor | None = None) -> str:
    found = mean(values.double(), log_weights)
    # None seen is less than about one.
    error = max(float(found.se), 1 / len(values))
    return f"{float(found.value):.4f} ± {error:.4f}"


def lines(name: str, iterations: int, seed: int) -> Iterator[list[str]]:
    """Those of one system, as they are measured."""
    system = get_system(name)
    truth = system.positive_weight if isinstance(system, ManyWell) else 1 / 40
    for case, (left, propose) in CASES.items():
        config = load_config(
            "exact",
            name,
            overrides=(*SETTINGS, f"iterations={iterations}", f"objective.propose={propose}"),
            invariant=False,
        )
        problem = Problem(
            target=system,
            molecule=None,
            generator=config.generator,
            sampling=config.how_to_sample(),
            iterations=iterations,
            seed=seed,
            device=torch.device("cpu"),
        )
        objective = config.objective.build(problem)
        if not isinstance(objective, Exact):
            raise SystemExit("the preset has another objective")
        work = objective.adopted(objective.init(report=lambda *_: None))
        population = tampered(Population.taken(work.tensors, work.numbers), system, left)
        for module in work.modules.values():
            module.start_from(population.state.position)
        population.put(work.tensors, work.numbers)
        state = objective.flat(work)
        for _ in range(iterations):
            state, _ = objective.step(state)
        generator = objective.generator(state)
        if not isinstance(generator, DensityGenerator):
            raise SystemExit("the generator knows no density")
        rng = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            draw = generator.draw(DRAWS, system, generator=rng)
        within = inside(system, draw.x)
        proposed = int(state["proposed"])
        yield [
            name,
            case,
            f"{truth:.4f}",
            share(inside(system, population.state.position)),
            share(inside(system, objective.population(state).state.position)),
            share(within),
            share(within, draw.log_weight),
            f"{int(state['accepted']) / proposed:.2f}" if proposed else "",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("systems", nargs="*", default=["mog40", "mw32"])
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    header = [
        "system", "population", "truth", "chains before", "chains after", "draws", "draws, weighted",
        "accepted",
    ]  # fmt: skip
    rows = []
    for name in options.systems:
        for line in lines(name, options.iterations, options.seed):
            print(" | ".join(line), file=sys.stderr, flush=True)
            rows.append(line)
    print((markdown if options.markdown else plain)(header, rows))


if __name__ == "__main__":
    main()
