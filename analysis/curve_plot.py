"""Curves against temperature as a figure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from molsampler.storage.files import atomic_path

from .curve import Curve
from .figure_file import check_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Mean population below which populations are drawn on a logarithmic axis.
RARE = 0.1


def write_curve(found: Curve, path: Path | str, *, overwrite: bool = False) -> None:
    """Draw a curve with its errors, the reference beside it; the suffix says the format.

    Raises
    ------
    InputError, OutputExistsError, StorageError
        See :func:`molsampler.analysis.figure_file.check_plot`.
    """
    target = check_plot(path, overwrite=overwrite)
    from matplotlib.figure import Figure

    unit = "" if found.temperature_unit != "K" else " / K"
    energy = found.energy_unit if found.temperature_unit == "K" else "unit of the system"
    panels = [
        ("energy", f"mean energy / {energy}"),
        ("heat_capacity", "heat capacity / k"),
        ("free_energy", "free energy / kT"),
    ]
    names = list(found.rows[0].populations)
    figure = Figure(figsize=(3.4 * (3 + bool(names)), 3.2), layout="constrained")
    axes = figure.subplots(1, 3 + bool(names), squeeze=False)[0]
    for ax, (key, label) in zip(axes, panels, strict=False):
        _draw(ax, found, key, label="curve", beside="reference")
        ax.set_ylabel(label)
    if found.reference is not None:
        axes[0].legend(fontsize="small", frameon=False)
    if names:
        for name in names:
            _draw(axes[-1], found, f"population {name}", label=name.replace("$", r"\$"))
        axes[-1].set_ylabel("population")
        least = [min(row.populations[name].value for row in found.rows) for name in names]
        if 0 < min(least) < RARE:
            axes[-1].set_yscale("log")
        axes[-1].legend(fontsize="small", frameon=False)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_xlabel(f"temperature{unit}")
    with atomic_path(target) as temporary:
        figure.savefig(temporary, format=target.suffix[1:].lower(), dpi=150)


def _draw(
    ax: Axes, found: Curve, key: str, *, label: str | None = None, beside: str | None = None
) -> None:
    """One quantity: a line with its errors, and the reference as points, with their names in a legend."""

    def columns(of: Curve) -> tuple[list[float], list[float], list[float]]:
        points = [(row.temperature, row.quantities()[key]) for row in of.rows]
        errors = [each.se if math.isfinite(each.se) else 0.0 for _, each in points]
        return [t for t, _ in points], [each.value for _, each in points], errors

    t, value, se = columns(found)
    drawn = ax.errorbar(t, value, yerr=se, linewidth=1.4, label=label)
    if found.reference is not None and key in found.reference.rows[0].quantities():
        t, value, se = columns(found.reference)
        colour = drawn.lines[0].get_color()
        points = ax.errorbar(
            t, value, yerr=se, fmt="o", markersize=3.5, color=colour, fillstyle="none"
        )
        if beside is not None:
            points.set_label(beside)
