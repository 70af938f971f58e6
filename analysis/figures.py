"""What pages show of a comparison: its plots, and structures to turn.

Both are values for the macros of ``figures.html.j2``.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from . import svg
from .comparison import Comparison
from .page import safe
from .structures import Structure, Structures

if TYPE_CHECKING:
    from .energies import Histogram

#: Free energy at which the colours of a Ramachandran plot end, kT.
RAMACHANDRAN_DEPTH = 7.0

#: Colours of elements, and of particles that are none, one for each name.
ELEMENT_COLOURS = {
    "H": "#dcdfe3", "C": "#717a86", "N": "#3f6fd0", "O": "#d2453b", "S": "#d9ad2b", "P": "#dd8434",
    "F": "#5fae5a", "Cl": "#4f9a49", "Br": "#9a4b32", "I": "#7d4a9a",
}  # fmt: skip
PARTICLE_COLOURS = ("#4d8fc4", "#d58a3d", "#5aa469", "#a56cb5", "#c4534d", "#8a7f57")
OTHER_COLOUR = "#a56cb5"

#: Radii of the balls of molecules and of their sticks, nm.
HYDROGEN, HEAVY, STICK = 0.024, 0.036, 0.013


def plots(comparison: Comparison) -> list[dict[str, Any]]:
    """Histograms of energies and, where there are several particles, of distances."""
    found = [_histogram(comparison, "energy", "Energies", "reduced energy u / kT")]
    if "distance" in comparison.histograms:
        found.append(_histogram(comparison, "distance", "Interatomic distances", "distance"))
    return found


def _histogram(comparison: Comparison, key: str, title: str, label: str) -> dict[str, Any]:
    h: Histogram = comparison.histograms[key]
    caption = f"{title}."
    weighted = [
        name
        for name, side in (("samples", comparison.samples), ("reference", comparison.reference))
        if side.weighted
    ]
    if weighted:
        caption += f" {' and '.join(weighted).capitalize()} count by weight."
    if h.outside > 0:
        caption += f" {100 * h.outside:.3g} % of the samples lie outside the plot."
    name = f"Histogram: {title} of samples and reference"
    return {"svg": safe(svg.histogram(h, label=label, title=name)), "caption": caption}


def modes(comparison: Comparison) -> Any:
    """Bars of the mode weights, None where the system names no modes."""
    if comparison.modes is None:
        return None
    title = "Bar chart: mode weights of samples and reference"
    return safe(svg.bars(comparison.modes, title=title))


def ramachandran(comparison: Comparison) -> list[dict[str, Any]]:
    """Free energies over (phi, psi), reference and samples of each residue."""
    residues = comparison.molecule.residues if comparison.molecule is not None else ()
    found = []
    for residue in residues:
        top = max(residue.reference.max(), residue.samples.max())
        for side, density in (("reference", residue.reference), ("samples", residue.samples)):
            with np.errstate(divide="ignore"):
                energy = -np.log(density / top)
            picture = svg.heat_map(
                energy,
                edges=np.linspace(-180.0, 180.0, len(energy) + 1),
                depth=RAMACHANDRAN_DEPTH,
                labels=("phi / degrees", "psi / degrees"),
                title=f"Ramachandran plot of {residue.name}, {side}",
                unit="kT",
            )
            found.append({"svg": safe(picture), "caption": f"{residue.name}, {side}"})
    return found


def structures(found: Structures | None) -> dict[str, Any] | None:
    """What the macro ``structures`` draws; None where there is nothing to look at."""
    if found is None:
        return None
    sides = (("samples", found.samples), ("reference", found.reference))
    radii = (
        [HYDROGEN if kind == "H" else HEAVY for kind in found.kinds]
        if found.bonds
        else [round(0.5 * found.contact_nm, 4)] * len(found.kinds)
    )
    reaches = [_reach(s) + max(radii) for _, side in sides for s in side if s.title == "typical"]
    common = max(reaches)
    notes = []
    drawn = []
    for side, three in sides:
        for s in three:
            reach = max(common, _reach(s) + max(radii))
            if reach > 1.5 * common:
                notes.append(f"the {s.title} of the {side} {common / reach:.2g} times as large")
            drawn.append(
                {
                    "side": side,
                    "title": s.title,
                    "energy": _energy(s.energy),
                    "positions": json.dumps(
                        [round(float(v), 4) for v in s.positions_nm.ravel()], separators=(",", ":")
                    ),
                    "reach": f"{reach:.4g}",
                }
            )
    shared = {
        "colours": _colours(found),
        "radii": radii,
        "bonds": found.bonds,
        "stick": STICK,
    }
    return {
        "shared": json.dumps(shared, separators=(",", ":")),
        "bonded": bool(found.bonds),
        "drawn": drawn,
        "note": f"Not to the scale of the others: {', '.join(notes)}." if notes else "",
    }


def _reach(structure: Structure) -> float:
    """Distance of the outermost particle from the centre, nm."""
    return float(np.linalg.norm(structure.positions_nm, axis=1).max())


def _colours(found: Structures) -> list[str]:
    if found.bonds:
        return [ELEMENT_COLOURS.get(kind, OTHER_COLOUR) for kind in found.kinds]
    names = list(dict.fromkeys(found.kinds))
    return [PARTICLE_COLOURS[names.index(kind) % len(PARTICLE_COLOURS)] for kind in found.kinds]


def _energy(value: float) -> str:
    if not math.isfinite(value):
        return "u infinite"
    return svg.typeset(f"u = {value:.2f} kT" if abs(value) < 1e5 else f"u = {value:.3g} kT")
