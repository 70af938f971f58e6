"""A comparison as one self-contained HTML page: numbers with floors and errors, plots, provenance.

The page loads nothing and runs no script but its own; see :mod:`molsampler.analysis.page`. All text that
comes from files is escaped.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Protocol

from molsampler.errors import FileFormatError
from molsampler.storage.files import atomic_path, check_output
from molsampler.storage.sealed_json import parse_json
from molsampler.version import __version__

from . import figures, page
from .comparison import Comparison, format_value
from .defects import BROKEN
from .statistics import GATE_SIGMAS, Metric, finite_or_none
from .svg import HEAT, typeset
from .torsions import BASINS

#: Bonds listed, those with the largest deviation first.
LISTED_BONDS = 8


def headline(comparison: Comparison) -> str:
    """One or two plain sentences that say how the samples compare."""
    s, r = comparison.samples, comparison.reference
    gap = s.median - r.median
    error = math.hypot(s.median_se, r.median_se)
    first = (
        f"Median energy {_energy(s.median)} kT against {_energy(r.median)} kT in the reference"
        f" (difference {typeset(f'{gap:+.2f}')} ± {error:.2f})."
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
    return typeset(f"{value:.2f}" if abs(value) < 1e5 else f"{value:.3g}")


def _basin_rows(comparison: Comparison) -> list[dict[str, str]]:
    residues = comparison.molecule.residues if comparison.molecule is not None else ()
    return [
        {
            "name": f"{residue.name} {basin}",
            **{
                f"{side}_{what}": typeset(format_value(value[k], se[k]))
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
            "shift": typeset(f"{(bond.samples[0] - bond.reference[0]) / bond.reference[1]:+.2f}"),
            "worst": f"{bond.worst:.1f}" if bond.worst < 1e4 else f"{bond.worst:.1e}",
        }
        for bond in worst
    ]


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
        "value": typeset(format_value(metric.value, metric.se)),
        "floor": typeset(format_value(metric.floor, metric.floor_se)),
        "ratio": _ratio(metric),
        "z": typeset(f"{metric.z:.1f}") if abs(metric.z) < 1000 else "> 1000",
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
                "difference": typeset(f"{gap:+.4f}"),
                "z": typeset(f"{gap / error:+.1f}") if error > 0 else "–",
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
            {"text": typeset(format_value(m.value, m.se)), "passed": m.passed()}
            for m in (one.metric(metric.key) for one in sides)
        ]
        floor = {"text": typeset(format_value(metric.floor, metric.floor_se)), "passed": True}
        rows.append({"name": metric.name, "cells": [*cells, floor]})
    return {"header": [*(one.label for one in sides), "floor"], "rows": rows}


def render(comparison: Comparison) -> str:
    """The report as HTML text."""
    return page.render(
        Path(__file__).parent / "report.html.j2",
        record=json.dumps(_record(comparison), sort_keys=True),
        comparison=comparison,
        headline=headline(comparison),
        sigmas=f"{GATE_SIGMAS:g}",
        metrics=[_metric_row(metric) for metric in comparison.metrics],
        structures=figures.structures(comparison.structures),
        plots=figures.plots(comparison),
        modes_plot=figures.modes(comparison),
        mode_rows=_mode_rows(comparison),
        ramachandran_plots=figures.ramachandran(comparison),
        heat=", ".join(HEAT),
        depth=f"{figures.RAMACHANDRAN_DEPTH:g}",
        basin_rows=_basin_rows(comparison),
        bond_rows=_bond_rows(comparison),
        broken=f"{BROKEN:g}",
        baselines=_baseline_table(comparison),
        provenance={side: _flat(data) for side, data in comparison.provenance.items()},
        settings=_flat(comparison.settings),
        definitions=[(metric.name, metric.definition) for metric in comparison.metrics],
        energy=_energy,
    )


def _record(comparison: Comparison) -> dict[str, Any]:
    """What the page's head says of it to :func:`describe_report`."""
    return {
        "version": __version__,
        "system": comparison.system,
        "label": comparison.label,
        "samples": comparison.samples.n,
        "reference": comparison.reference.n,
        "passed": comparison.passed,
        "headline": headline(comparison),
        "metrics": {
            metric.key: {
                name: finite_or_none(getattr(metric, name)) for name in ("value", "se", "floor")
            }
            for metric in comparison.metrics
        },
    }


def describe_report(path: Path | str) -> dict[str, Any]:
    """What a report says of itself, and whether it is as it was written (``intact``).

    Raises
    ------
    FileFormatError
        The file is no report of molsampler.
    """
    path = Path(path)
    found = page.read_meta(path, "molsampler-report")
    if found is None:
        raise FileFormatError(f"{path} is not a report that molsampler compare wrote")
    record = parse_json(found[0].encode(), path)
    if not isinstance(record, dict):
        raise FileFormatError(f"{path} holds no record of a comparison")
    if found[1]:
        return {**record, "intact": True}
    problem = f"{path} is damaged or was edited: its text does not have the SHA-256 that it states"
    return {**record, "intact": False, "problem": problem}


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
