"""Ramachandran plots of the shipped one-step sampler of alanine dipeptide and of reference MD.

python docs/make_ramachandran.py docs/figures/alanine.png [--reference md.npz]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from molsampler import Sampler, export
from molsampler.reference import load_reference
from molsampler.samples import Samples
from molsampler.target import System

NAME = "alanine-dipeptide"
SAMPLES = 20_000
BINS = 60


def angles(samples: Samples, system: System) -> np.ndarray[Any, Any]:
    """Phi and psi in degrees, ``(b, 2)``."""
    import mdtraj

    trajectory = mdtraj.Trajectory(samples.positions.numpy(), system.topology())
    found = [mdtraj.compute_phi(trajectory)[1][:, 0], mdtraj.compute_psi(trajectory)[1][:, 0]]
    return np.degrees(np.stack(found, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--reference", type=Path)
    options = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sampler = Sampler.load(NAME)
    samples = sampler.sample(SAMPLES, seed=1)
    reference = (
        load_reference(NAME) if options.reference is None else export.load(options.reference)
    )
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.3))
    both = [("one-step samples", samples), ("reference Monte Carlo", reference)]
    for axis, (title, one) in zip(axes, both, strict=False):
        phi, psi = angles(one, sampler.system).T
        axis.hist2d(
            phi,
            psi,
            BINS,
            range=[[-180, 180]] * 2,
            density=True,
            norm="log",
            cmap="viridis",
            vmin=1e-6,
            vmax=5e-4,
        )
        axis.set(title=title, xlabel="φ (degrees)", xticks=[-180, -90, 0, 90, 180])
        axis.set(yticks=[-180, -90, 0, 90, 180], aspect="equal")
    axes[0].set_ylabel("ψ (degrees)")
    energies = [one.energies.numpy() for _, one in both]
    bins = np.linspace(*np.quantile(energies[1], [0.0005, 0.9995]), 70)
    axes[2].hist(energies[1], bins, density=True, color="#8a8f98", alpha=0.45, label=both[1][0])
    axes[2].hist(
        energies[0], bins, density=True, histtype="step", color="#1f6f9f", lw=1.6, label=both[0][0]
    )
    axes[2].set(xlabel="reduced energy u (kT)", yticks=[])
    axes[2].set_ylim(top=1.35 * axes[2].get_ylim()[1])
    axes[2].spines[["top", "right", "left"]].set_visible(False)
    axes[2].legend(frameon=False, fontsize=8, loc="upper right")
    figure.tight_layout()
    figure.savefig(options.output, dpi=140)


if __name__ == "__main__":
    main()
