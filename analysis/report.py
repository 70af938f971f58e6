"""A comparison as one self-contained HTML page: numbers with floors and errors, plots, provenance.

Plots are SVG images embedded as data; the page loads nothing and runs no script. All text that comes
from files is escaped.
"""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from molsampler.storage.files import atomic_path, check_output

from .comparison import Comparison, format_value
from .defects import BROKEN
from .statistics import GATE_SIGMAS, Metric
from .torsions import BASINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLES_COLOUR = "#1f6f9f"
REFERENCE_COLOUR = "#8a8f98"

#: More modes than this are drawn without their names.
NAMED_BARS = 20

#: Free energy at which the colours of a Ramachandran plot end, kT.
RAMACHANDRAN_DEPTH = 7.0

#: Bonds listed, those with the largest deviation first.
LISTED_BONDS = 8


def headline(comparison: Comparison) -> str:
    """One or two plain sentences that say how the samples compare."""
    s, r = comparison.samples, comparison.reference
    gap = s.median - r.median
    error = math.hypot(s.median_se, r.median_se)
    first = (
        f"Median energy {_energy(s.median)} kT against {_energy(r.median)} kT in the reference"
        f" (difference {_typeset(f'{gap:+.2f}')} ± {error:.2f})."
        if math.isfinite(gap)
        else f"More than half of the samples have infinite energy; the reference's median is "
        f"{_energy(r.median)} kT."
    )
    if comparison.modes is not None and comparison.modes.missing:
        missing = comparison.modes.missing
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        first += f" The samples miss {len(missing)} mode(s) of the reference: {listed}."
    judged = [metric for metric in comparison.metrics if metric.judged]
    passed = sum(metric.passed() for metric in judged)
    total = len(judged)
    if passed == total and not comparison.passed:
        return (
            f"{first} All {total} metrics lie within {GATE_SIGMAS:g} standard errors of the floor."
        )
    if passed == total:
        return (
            f"{first} All {total} metrics lie within {GATE_SIGMAS:g} standard errors of their floors: "
            "at this sample size the samples cannot be told from the reference."
        )
    failed = [m for m in judged if not m.passed()]
    worst = max(failed, key=lambda m: m.ratio if not math.isnan(m.ratio) else math.inf)
    excess = f"{_ratio(worst)} times its floor" if math.isfinite(worst.ratio) else "infinite"
    verb = "lies" if passed == 1 else "lie"
    return (
        f"{first} {passed} of {total} metrics {verb} within {GATE_SIGMAS:g} standard errors of the "
        f"floor; the largest excess is in {worst.name}, {excess}."
    )


def _energy(value: float) -> str:
    return _typeset(f"{value:.2f}" if abs(value) < 1e5 else f"{value:.3g}")


def _typeset(number: str) -> str:
    """A formatted number with a minus sign instead of hyphens."""
    return number.replace("-", "\N{MINUS SIGN}")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#9aa0a6")
    axes.tick_params(colors="#3c4043", labelsize=9, length=3)
    return figure, axes


def _svg(figure: Figure) -> str:
    """The figure as a data URI; reproducible, with text as outlines so no font is needed."""
    import matplotlib as mpl

    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "molsampler", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def _histogram_plot(comparison: Comparison, key: str, label: str) -> str:
    h = comparison.histograms[key]
    figure, axes = _figure(5.6, 3.1)
    axes.stairs(
        h.reference, h.edges, fill=True, color=REFERENCE_COLOUR, alpha=0.45, label="reference"
    )
    axes.stairs(h.samples, h.edges, color=SAMPLES_COLOUR, linewidth=1.8, label="samples")
    axes.set_xlabel(label, fontsize=10)
    axes.set_ylabel("probability density", fontsize=10)
    axes.set_xlim(h.edges[0], h.edges[-1])
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    return _svg(figure)


def _modes_plot(comparison: Comparison) -> str | None:
    m = comparison.modes
    if m is None:
        return None
    k = len(m.samples.names)
    figure, axes = _figure(min(11.4, max(5.6, 1.5 + 0.55 * k)), 3.1)
    at = range(k)
    width = 0.38
    style: dict[str, Any] = {"error_kw": {"elinewidth": 1, "ecolor": "#3c4043"}}
    axes.bar(
        [i - width / 2 for i in at],
        m.reference.weights,
        width,
        yerr=m.reference.se,
        color=REFERENCE_COLOUR,
        alpha=0.7,
        label="reference",
        **style,
    )
    axes.bar(
        [i + width / 2 for i in at],
        m.samples.weights,
        width,
        yerr=m.samples.se,
        color=SAMPLES_COLOUR,
        label="samples",
        **style,
    )
    if k <= NAMED_BARS:
        long = max(map(len, m.samples.names)) * k > 70
        axes.set_xticks(
            list(at),
            [_plain(name) for name in m.samples.names],
            rotation=30 if long else 0,
            ha="right" if long else "center",
        )
    else:
        axes.set_xlabel("mode", fontsize=10)
    axes.set_ylabel("probability", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    return _svg(figure)


def _ramachandran_plot(comparison: Comparison) -> str | None:
    """Free energies over (phi, psi), one row per residue, reference left and samples right."""
    import numpy as np
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    residues = comparison.molecule.residues if comparison.molecule is not None else ()
    if not residues:
        return None
    figure = Figure(figsize=(8.2, 4.0 * len(residues)), layout="constrained")
    FigureCanvasSVG(figure)
    grid = figure.subplots(len(residues), 2, squeeze=False, sharex=True, sharey=True)
    for row, residue in zip(grid, residues, strict=True):
        top = max(residue.reference.max(), residue.samples.max())
        for axes, density, side in zip(
            row, (residue.reference, residue.samples), ("reference", "samples"), strict=True
        ):
            with np.errstate(divide="ignore"):
                energy = -np.log(density / top)
            picture = axes.imshow(
                np.ma.masked_invalid(energy).T,
                origin="lower",
                extent=(-180, 180, -180, 180),
                vmin=0,
                vmax=RAMACHANDRAN_DEPTH,
                cmap="viridis_r",
            )
            axes.set_title(_plain(f"{residue.name}, {side}"), fontsize=10)
            axes.set_xticks(range(-180, 181, 90))
            axes.set_yticks(range(-180, 181, 90))
            axes.set_xlabel("phi / degrees", fontsize=10)
        row[0].set_ylabel("psi / degrees", fontsize=10)
        figure.colorbar(picture, ax=list(row), label="free energy / kT", shrink=0.9)
    return _svg(figure)


def _basin_rows(comparison: Comparison) -> list[dict[str, str]]:
    residues = comparison.molecule.residues if comparison.molecule is not None else ()
    return [
        {
            "name": f"{residue.name} {basin}",
            **{
                f"{side}_{what}": _typeset(format_value(value[k], se[k]))
                for side, b in (
                    ("samples", residue.sample_basins),
                    ("reference", residue.reference_basins),
                )
                for what, value, se in (
                    ("weight", b.weights, b.se),
                    ("free", b.free_energy, b.free_energy_se),
                )
            },
        }
        for residue in residues
        for k, basin in enumerate(BASINS)
    ]


def _bond_rows(comparison: Comparison) -> list[dict[str, str]]:
    """The bonds that stray furthest."""
    bonds = comparison.molecule.bonds if comparison.molecule is not None else ()
    worst = sorted(bonds, key=lambda bond: -bond.worst)[:LISTED_BONDS]
    return [
        {
            "name": bond.name,
            "samples": f"{bond.samples[0]:.4f} ± {bond.samples[1]:.4f}",
            "reference": f"{bond.reference[0]:.4f} ± {bond.reference[1]:.4f}",
            "shift": _typeset(f"{(bond.samples[0] - bond.reference[0]) / bond.reference[1]:+.2f}"),
            "worst": f"{bond.worst:.1f}" if bond.worst < 1e4 else f"{bond.worst:.1e}",
        }
        for bond in worst
    ]


def _plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics."""
    return text.replace("$", r"\$")


def _ratio(metric: Metric) -> str:
    if not math.isfinite(metric.ratio):
        return "–"
    if metric.ratio < 100:
        return f"{metric.ratio:.2f}" if metric.ratio < 10 else f"{metric.ratio:.1f}"
    return f"{metric.ratio:,.0f}" if metric.ratio < 1e6 else f"{metric.ratio:.1e}"


def _metric_row(metric: Metric) -> dict[str, Any]:
    return {
        "name": metric.name,
        "unit": metric.unit,
        "value": _typeset(format_value(metric.value, metric.se)),
        "floor": _typeset(format_value(metric.floor, metric.floor_se)),
        "ratio": _ratio(metric),
        "z": _typeset(f"{metric.z:.1f}") if abs(metric.z) < 1000 else "> 1000",
        "passed": metric.passed(),
        "judged": metric.judged,
        "size": f"{metric.n:,} × {metric.repeats}",
        "note": metric.note,
    }


def _flat(data: Any) -> list[tuple[str, str]]:
    """Key and value lines of a metadata dictionary; nested values as JSON."""
    lines = []
    for key, value in dict(data).items():
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        lines.append((str(key), text))
    return lines


def _mode_rows(comparison: Comparison) -> list[dict[str, str]]:
    m = comparison.modes
    if m is None:
        return []
    rows = []
    for i, name in enumerate(m.samples.names):
        error = float(m.difference_se[i])
        gap = float(m.difference[i])
        rows.append(
            {
                "name": name,
                "samples": f"{m.samples.weights[i]:.4f} ± {m.samples.se[i]:.4f}",
                "reference": f"{m.reference.weights[i]:.4f} ± {m.reference.se[i]:.4f}",
                "difference": _typeset(f"{gap:+.4f}"),
                "z": _typeset(f"{gap / error:+.1f}") if error > 0 else "–",
            }
        )
    return rows


def _baseline_table(comparison: Comparison) -> dict[str, Any] | None:
    """One line per metric, one column per sample set, the floor last."""
    if not comparison.baselines:
        return None
    sides = (comparison, *comparison.baselines)
    median = [{"text": _energy(one.samples.median), "passed": True} for one in sides]
    rows = [
        {
            "name": "median energy",
            "cells": [*median, {"text": _energy(comparison.reference.median), "passed": True}],
        }
    ]
    for metric in comparison.metrics:
        cells = [
            {"text": _typeset(format_value(m.value, m.se)), "passed": m.passed()}
            for m in (one.metric(metric.key) for one in sides)
        ]
        floor = {"text": _typeset(format_value(metric.floor, metric.floor_se)), "passed": True}
        rows.append({"name": metric.name, "cells": [*cells, floor]})
    return {"header": [*(one.label for one in sides), "floor"], "rows": rows}


def render(comparison: Comparison) -> str:
    """The report as HTML text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    plots = [
        {
            "title": "Energies",
            "image": _histogram_plot(comparison, "energy", "reduced energy u / kT"),
            "outside": comparison.histograms["energy"].outside,
        }
    ]
    if "distance" in comparison.histograms:
        plots.append(
            {
                "title": "Interatomic distances",
                "image": _histogram_plot(comparison, "distance", "distance"),
                "outside": comparison.histograms["distance"].outside,
            }
        )
    return environment.get_template("report.html.j2").render(
        comparison=comparison,
        headline=headline(comparison),
        sigmas=f"{GATE_SIGMAS:g}",
        metrics=[_metric_row(metric) for metric in comparison.metrics],
        plots=plots,
        modes_plot=_modes_plot(comparison),
        mode_rows=_mode_rows(comparison),
        ramachandran_plot=_ramachandran_plot(comparison),
        basin_rows=_basin_rows(comparison),
        bond_rows=_bond_rows(comparison),
        broken=f"{BROKEN:g}",
        baselines=_baseline_table(comparison),
        provenance={side: _flat(data) for side, data in comparison.provenance.items()},
        settings=_flat(comparison.settings),
        definitions=[(metric.name, metric.definition) for metric in comparison.metrics],
        energy=_energy,
    )


def write_report(comparison: Comparison, path: Path | str, *, overwrite: bool = False) -> None:
    """Write the report as one HTML file.

    Raises
    ------
    OutputExistsError
        ``path`` exists and ``overwrite`` is false, or it is not a regular file.
    StorageError
        The folder is missing or the file system refuses the write; an old file is kept.
    """
    target = check_output(path, overwrite=overwrite)
    text = render(comparison)
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


class HasNumbers(Protocol):
    """A result that JSON can hold."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""


def write_json(result: HasNumbers, path: Path | str, *, overwrite: bool = False) -> None:
    """Write all numbers of a comparison or of free energies as JSON; errors as :func:`write_report`."""
    target = check_output(path, overwrite=overwrite)
    text = json.dumps(result.to_dict(), indent=1, allow_nan=False)
    with atomic_path(target) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
