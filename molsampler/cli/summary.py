"""What commands say about a set of samples."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..samples import Samples


def energy_summary(samples: Samples) -> dict[str, Any]:
    """Statistics of the reduced energies, as in sidecars."""
    from ..export.energy_statistics import EnergyStatistics

    statistics = EnergyStatistics()
    statistics.add(samples.energies)
    return statistics.summary().model_dump()


def energy_line(energies: dict[str, Any]) -> str:
    """One line on the reduced energies of :func:`energy_summary`."""
    if energies["mean"] is None:
        return f"reduced energy u = U/kT: none of {energies['count']:,} is finite"
    line = f"reduced energy u = U/kT: mean {energies['mean']:.3f}"
    if energies["standard_deviation"] is not None:
        line += f", standard deviation {energies['standard_deviation']:.3f}"
    line += f", from {energies['minimum']:.3f} to {energies['maximum']:.3f}"
    if energies["nonfinite"]:
        line += f"; {energies['nonfinite']:,} not finite"
    return line
