"""How far samples are from a reference: energies, distances, transport, modes, refinement, report.

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
    from .comparison import Comparison, Metric, compare, compare_many, tabulate
    from .distances import distance_total_variation, interatomic_distances
    from .energies import total_variation, trimmed_wasserstein2, wasserstein2_1d
    from .modes import HasModes, mode_weights
    from .refinement import equal_budget_monte_carlo, refinement_drift
    from .report import headline, write_json, write_report
    from .torsions import MoleculeComparison, basin_weights, molecule_of
    from .transport import geometric_wasserstein2, wasserstein2

_LAZY = {
    "Comparison": ".comparison",
    "Metric": ".comparison",
    "compare": ".comparison",
    "compare_many": ".comparison",
    "tabulate": ".comparison",
    "distance_total_variation": ".distances",
    "interatomic_distances": ".distances",
    "total_variation": ".energies",
    "trimmed_wasserstein2": ".energies",
    "wasserstein2_1d": ".energies",
    "HasModes": ".modes",
    "mode_weights": ".modes",
    "equal_budget_monte_carlo": ".refinement",
    "refinement_drift": ".refinement",
    "headline": ".report",
    "write_json": ".report",
    "write_report": ".report",
    "MoleculeComparison": ".torsions",
    "basin_weights": ".torsions",
    "molecule_of": ".torsions",
    "geometric_wasserstein2": ".transport",
    "wasserstein2": ".transport",
}

__all__ = [
    "Comparison",
    "HasModes",
    "Metric",
    "MoleculeComparison",
    "basin_weights",
    "compare",
    "compare_many",
    "distance_total_variation",
    "equal_budget_monte_carlo",
    "geometric_wasserstein2",
    "headline",
    "interatomic_distances",
    "mode_weights",
    "molecule_of",
    "refinement_drift",
    "tabulate",
    "total_variation",
    "trimmed_wasserstein2",
    "wasserstein2",
    "wasserstein2_1d",
    "write_json",
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
