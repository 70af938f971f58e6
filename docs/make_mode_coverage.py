"""DiKL beside plain reverse KL on four separated modes: the figure of docs/method.md.

Both train the same perceptron from the same start with the same estimator of the target score
(posterior chains); the only difference is the noise range. Run from the repository's root:

    python docs/make_mode_coverage.py docs/figures/mode_coverage.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from molsampler.objectives import Problem
from molsampler.space import Euclidean
from molsampler.target import System
from molsampler.train import load_config


class FourModes(System):
    """Gaussians of standard deviation 0.4 at four places, with unequal weights."""

    name = "four-modes"
    means = torch.tensor([[0.0, 0.0], [4.0, 0.5], [-1.0, 4.0], [-3.0, -3.0]])
    weights = torch.tensor([0.3, 0.3, 0.2, 0.2])
    std = 0.4

    def __init__(self) -> None:
        self.space = Euclidean(1, 2)

    def _energy_and_score(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gap = self.means.to(x) - x
        log = self.weights.to(x).log() - gap.square().sum(-1) / (2 * self.std**2)
        score = (log.softmax(-1)[..., None] * gap).sum(1, keepdim=True) / self.std**2
        return -log.logsumexp(-1), score

    def mode_shares(self, x: torch.Tensor) -> torch.Tensor:
        """Share of samples ``(n, 1, 2)`` nearest to each mode."""
        nearest = (x - self.means.to(x)).norm(dim=-1).argmin(-1)
        return torch.bincount(nearest, minlength=4) / len(x)


def train(sigma_max: float, *, iterations: int = 600, seed: int = 0) -> torch.Tensor:
    """Samples ``(4000, 1, 2)`` of a generator trained with noise up to ``sigma_max``."""
    config = load_config(
        "fast",
        FourModes.name,
        invariant=False,
        overrides=(
            "objective={kind: dikl-posterior, score_form: denoiser}",
            f"iterations={iterations}",
            f"seed={seed}",
            "data_scale=1.0",
            "batch_size=256",
            "generator.body.width=64",
            "generator.body.layers=3",
            "generator.latent_scale=1.0",
            "generator.langevin_layers=0",
            "generator.standardised=false",
            "clip=10",
            "weighting=denoiser",
            "score={kind: mlp, width: 64, layers: 3, bumps: 48}",
            "generator_lr=0.002",
            "score_lr=0.002",
            "score_steps=3",
            f"schedule={{kind: log-uniform, sigma_min: 0.1, sigma_max: {sigma_max}}}",
            "target_score.particles=16",
            "target_score.levels=3",
            "target_score.steps=6",
            "target_score.average=4",
            "ema=0.98",
        ),
    )
    target = FourModes()
    objective = config.objective.build(
        Problem(
            target=target,
            molecule=None,
            generator=config.generator,
            sampling=config.how_to_sample(),
            iterations=config.iterations,
            seed=config.seed,
            device=torch.device("cpu"),
        )
    )
    state = objective.init(report=lambda *_: None)
    for _ in range(config.iterations):
        state, _ = objective.step(state)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return objective.generator(state).draw(4000, target, generator=random).x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    target = FourModes()
    figure, axes = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True)
    grid = torch.linspace(-6, 6, 121)
    mesh = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), -1).reshape(-1, 1, 2)
    density = torch.exp(-target.energy(mesh)).reshape(121, 121)
    for axis, (title, sigma) in zip(
        axes, (("reverse KL (σ ≤ 0.12)", 0.12), ("DiKL (σ ≤ 5)", 5.0)), strict=True
    ):
        samples = train(sigma)
        shares = ", ".join(f"{share:.2f}" for share in target.mode_shares(samples).tolist())
        print(f"{title}: mode shares {shares} (truth 0.30, 0.30, 0.20, 0.20)")
        levels = density.max() * torch.linspace(0.1, 0.9, 5)
        axis.contour(grid, grid, density, levels=levels, colors="0.6", linewidths=0.7)
        axis.plot(*samples[:1500, 0].T, ".", ms=1.5, color="#c1440e", alpha=0.5)
        axis.set_title(f"{title}\nmode shares {shares}", fontsize=9)
        axis.set_aspect("equal")
    figure.tight_layout()
    figure.savefig(output, dpi=130)


if __name__ == "__main__":
    main()
