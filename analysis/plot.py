"""The distributions of one set of samples as a figure."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from molsampler.errors import InputError
from molsampler.samples import Samples
from molsampler.structure import interatomic_distances
from molsampler.target import System

from .geometry import molecule_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[np.float64]

BINS, TORSION_BINS = 60, 36

#: Samples that are drawn at most, the first ones; more would not change what is seen.
MOST = 50_000

#: Torsions that are drawn at most, the first ones.
TORSIONS = 7

#: Panels in a row.
ROW = 3

COLOUR = "#1f6f9f"


def plot(samples: Samples, system: System) -> Figure:
    """Panels of energies, distances and torsions; see :meth:`molsampler.samples.Samples.plot`."""
    if not samples.ess:
        raise InputError(f"{len(samples)} samples with no weight in all cannot be drawn")
    drawn = samples[:MOST]
    weights = np.full(len(drawn), 1 / len(drawn))
    if drawn.log_weights is not None:
        weights = torch.softmax(drawn.log_weights, 0).numpy()
    panels = _panels(drawn, system, weights)
    rows = -(-len(panels) // ROW)
    figure = _figure(min(len(panels), ROW), rows)
    for k, (label, edges, shares) in enumerate(panels):
        axes = figure.add_subplot(rows, min(len(panels), ROW), k + 1)
        axes.stairs(shares / np.diff(edges), edges, fill=True, alpha=0.35, color=COLOUR)
        axes.stairs(shares / np.diff(edges), edges, color=COLOUR, linewidth=1.4)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylim(bottom=0)
        axes.set_yticks([])
        axes.set_xlabel(label.replace("$", r"\$"))
        if edges[0] == -180 and edges[-1] == 180:
            axes.set_xticks([-180, -90, 0, 90, 180])
    infinite = int(torch.isinf(samples.energies).sum())
    title = f"{system.name}, {len(samples):,} samples".replace("$", r"\$")
    if samples.log_weights is not None:
        title += f", effective {samples.ess:,.0f}"
    figure.suptitle(title + (f", {infinite:,} of infinite energy" if infinite else ""), fontsize=11)
    return figure


def _panels(samples: Samples, system: System, weights: Array) -> list[tuple[str, Array, Array]]:
    """Label, edges of the bins and shares of each panel."""
    energies = samples.energies.numpy()
    finite = np.isfinite(energies) & (weights > 0)
    found = []
    if finite.any():
        found.append(("energy / kT", *_histogram(energies[finite], weights[finite])))
    x = samples.positions
    if system.shape[0] > 1:
        distances = interatomic_distances(x).numpy()
        each = np.repeat(weights, distances.shape[1])
        found.append(("distance of pairs", *_histogram(distances.ravel(), each)))
    molecule = molecule_of(system)
    if molecule is not None and len(molecule.torsions):
        named = list(molecule.topology.atoms)
        edges = np.linspace(-180, 180, TORSION_BINS + 1)
        quadruples = molecule.torsions[:TORSIONS]
        for atoms, angles in zip(quadruples, molecule.dihedrals(x, quadruples).T, strict=True):
            label = "-".join(named[i].name for i in atoms) + " / degrees"
            shares = np.histogram(angles, edges, weights=weights)[0]
            found.append((label, edges, shares / shares.sum()))
    return found


def _histogram(values: Array, weights: Array) -> tuple[Array, Array]:
    """Edges around the middle 99.8 % of the weight, and shares."""
    order = np.argsort(values)
    below = np.cumsum(weights[order]) / weights.sum()
    low, high = values[order][np.searchsorted(below, [0.001, 0.999]).clip(max=len(values) - 1)]
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    return edges, np.histogram(values, edges, weights=weights)[0] / weights.sum()


def _figure(columns: int, rows: int) -> Figure:
    """An empty figure that notebooks show without pyplot, whose state is the process's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Shown(Figure):
        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=110)
            return buffer.getvalue()

    size: dict[str, Any] = {"figsize": (3.3 * columns, 2.5 * rows), "layout": "constrained"}
    figure = Shown(**size)
    FigureCanvasAgg(figure)
    return figure
