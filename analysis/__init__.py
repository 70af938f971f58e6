"""How far samples are from a reference, and what weighted samples say of free energies.

Every metric comes with its standard error and its floor, the same metric between two independent
halves of the reference.
"""

from __future__ import annotations

if __name__ != "molsampler.analysis":
    raise ImportError(
        f"this package is imported as 'molsampler.analysis', not {__name__!r}: "
        "the folder analysis/ of the repository installs inside molsampler"
    )

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import Comparison, compare, compare_many, format_value, tabulate
    from .curve import Curve, CurvePoint, read_curve
    from .curve_plot import write_curve
    from .distances import distance_total_variation, interatomic_distances
    from .draws import Draw, Draws, Pool, Settings
    from .energies import total_variation, trimmed_wasserstein2, wasserstein2_1d
    from .free_energies import BasinFreeEnergy, FreeEnergy, free_energy
    from .geometry import molecule_of
    from .importance import Verdict, judge
    from .mbar import mbar_arrays
    from .metric import Distance, MetricKind, Share, Shares, Value
    from .modes import HasModes, mode_weights
    from .molecules import MoleculeComparison
    from .profile import Profile, write_profile
    from .refinement import equal_budget_monte_carlo, refinement_drift
    from .registry import metric_kinds, register_metric, unregister_metric
    from .report import describe_report, headline, write_json, write_report
    from .statistics import GATE_SIGMAS, Metric
    from .thermodynamics import curve_of, curve_through
    from .torsions import basin_weights
    from .transport import geometric_wasserstein2, wasserstein2

_LAZY = {
    "Comparison": ".comparison",
    "compare": ".comparison",
    "compare_many": ".comparison",
    "format_value": ".comparison",
    "Curve": ".curve",
    "CurvePoint": ".curve",
    "curve_of": ".thermodynamics",
    "curve_through": ".thermodynamics",
    "read_curve": ".curve",
    "write_curve": ".curve_plot",
    "tabulate": ".comparison",
    "distance_total_variation": ".distances",
    "interatomic_distances": ".distances",
    "Draw": ".draws",
    "Draws": ".draws",
    "Pool": ".draws",
    "Settings": ".draws",
    "total_variation": ".energies",
    "trimmed_wasserstein2": ".energies",
    "wasserstein2_1d": ".energies",
    "BasinFreeEnergy": ".free_energies",
    "FreeEnergy": ".free_energies",
    "free_energy": ".free_energies",
    "molecule_of": ".geometry",
    "Verdict": ".importance",
    "judge": ".importance",
    "mbar_arrays": ".mbar",
    "Distance": ".metric",
    "MetricKind": ".metric",
    "Share": ".metric",
    "Shares": ".metric",
    "Value": ".metric",
    "HasModes": ".modes",
    "mode_weights": ".modes",
    "MoleculeComparison": ".molecules",
    "Profile": ".profile",
    "write_profile": ".profile",
    "equal_budget_monte_carlo": ".refinement",
    "refinement_drift": ".refinement",
    "metric_kinds": ".registry",
    "register_metric": ".registry",
    "unregister_metric": ".registry",
    "describe_report": ".report",
    "headline": ".report",
    "write_json": ".report",
    "write_report": ".report",
    "GATE_SIGMAS": ".statistics",
    "Metric": ".statistics",
    "basin_weights": ".torsions",
    "geometric_wasserstein2": ".transport",
    "wasserstein2": ".transport",
}

__all__ = [
    "BasinFreeEnergy",
    "Comparison",
    "Curve",
    "CurvePoint",
    "Distance",
    "Draw",
    "Draws",
    "FreeEnergy",
    "GATE_SIGMAS",
    "HasModes",
    "Metric",
    "MetricKind",
    "MoleculeComparison",
    "Pool",
    "Profile",
    "Settings",
    "Share",
    "Shares",
    "Value",
    "Verdict",
    "basin_weights",
    "compare",
    "compare_many",
    "curve_of",
    "curve_through",
    "describe_report",
    "distance_total_variation",
    "equal_budget_monte_carlo",
    "format_value",
    "free_energy",
    "geometric_wasserstein2",
    "headline",
    "interatomic_distances",
    "judge",
    "mbar_arrays",
    "metric_kinds",
    "mode_weights",
    "molecule_of",
    "read_curve",
    "refinement_drift",
    "register_metric",
    "tabulate",
    "total_variation",
    "trimmed_wasserstein2",
    "unregister_metric",
    "wasserstein2",
    "wasserstein2_1d",
    "write_curve",
    "write_json",
    "write_profile",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
