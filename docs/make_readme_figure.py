"""The picture in the README: one-step samples of the shipped samplers beside reference MD.

Run from the repository's root:

    python docs/make_readme_figure.py docs/figures/shipped.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from molsampler import Sampler
from molsampler.analysis import interatomic_distances
from molsampler.reference import load_reference

SAMPLES = 20_000
SAMPLES_COLOUR, REFERENCE_COLOUR = "#1f6f9f", "#8a8f98"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(8.6, 5.0))
    for row, name in zip(axes, ("dw4", "lj13"), strict=True):
        samples = Sampler.load(name).sample(SAMPLES, seed=1, device="cpu")
        reference = load_reference(name)
        energies = samples.energies.numpy(), reference.energies.numpy()
        distances = (
            interatomic_distances(samples.positions).flatten().numpy(),
            interatomic_distances(reference.positions).flatten().numpy(),
        )
        for axis, (ours, theirs), label in (
            (row[0], energies, "reduced energy u (kT)"),
            (row[1], distances, "interatomic distance"),
        ):
            low, high = np.quantile(theirs, [0.0002, 0.9998])
            width = high - low
            bins = np.linspace(low - 0.08 * width, high + 0.15 * width, 90)
            axis.hist(
                theirs,
                bins,
                density=True,
                color=REFERENCE_COLOUR,
                alpha=0.45,
                label="OpenMM reference",
            )
            axis.hist(
                ours,
                bins,
                density=True,
                histtype="step",
                color=SAMPLES_COLOUR,
                lw=1.6,
                label="one-step samples",
            )
            axis.set_xlabel(label)
            axis.set_yticks([])
            axis.spines[["top", "right", "left"]].set_visible(False)
        row[0].set_title(
            name.upper().replace("4", "-4").replace("13", "-13"), loc="left", fontsize=11
        )
    axes[0, 0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(output, dpi=140)


if __name__ == "__main__":
    main()
