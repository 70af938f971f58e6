"""A curve against temperature: energy, heat capacity, free energy and populations, with their errors.

:mod:`molsampler.analysis.thermodynamics` finds them, with the equations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from molsampler.errors import FileFormatError, InputError
from molsampler.estimate import Estimate
from molsampler.storage.files import read_limited
from molsampler.storage.sealed_json import parse_json

from .statistics import finite_or_none

#: Largest file that is read as a curve (bytes).
_LIMIT = 16 * 2**20


@dataclass(frozen=True)
class CurvePoint:
    """What is known at one temperature.

    Attributes
    ----------
    temperature : in the system's unit
    energy : mean, in the curve's ``energy_unit``
    heat_capacity : in k
    free_energy : over kT, against the lowest temperature
    populations : of the basins, by name
    n, ess : number of samples of this temperature, and the effective number
    ess_pooled : effective number of the samples of all temperatures at this one; None where they are apart
    """

    temperature: float
    energy: Estimate[float]
    heat_capacity: Estimate[float]
    free_energy: Estimate[float]
    populations: dict[str, Estimate[float]] = field(default_factory=dict)
    n: int = 0
    ess: float = 0.0
    ess_pooled: float | None = None

    def quantities(self) -> dict[str, Estimate[float]]:
        """Every estimate by its name; a population is named by its basin."""
        named = {f"population {name}": each for name, each in self.populations.items()}
        return {
            "energy": self.energy,
            "heat_capacity": self.heat_capacity,
            "free_energy": self.free_energy,
            **named,
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {
            "temperature": self.temperature,
            "energy": _plain(self.energy),
            "heat_capacity": _plain(self.heat_capacity),
            "free_energy": _plain(self.free_energy),
            "populations": {name: _plain(each) for name, each in self.populations.items()},
            "n": self.n,
            "ess": finite_or_none(self.ess),
            "ess_pooled": None if self.ess_pooled is None else finite_or_none(self.ess_pooled),
        }


@dataclass(frozen=True)
class Curve:
    """Thermodynamics against temperature; the equations are in :mod:`molsampler.analysis.thermodynamics`.

    Attributes
    ----------
    system : its name
    temperature_unit, energy_unit : of the rows; heat capacities are in k and free energies in kT
    rows : by rising temperature
    reference : another curve at the same temperatures, None without one
    notes : what a reader must know of single numbers
    pooled : whether samples of each temperature count at all others
    weighted : whether free energies go by the mean weight at each temperature, too
    definition : the system's record but for its temperature; None where a file does not tell
    """

    system: str
    temperature_unit: str
    energy_unit: str
    rows: tuple[CurvePoint, ...]
    reference: Curve | None = None
    notes: tuple[str, ...] = ()
    pooled: bool = False
    weighted: bool = False
    definition: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary, which :func:`read_curve` reads."""
        return {
            "system": self.system,
            "definition": self.definition,
            "temperature_unit": self.temperature_unit,
            "units": {"energy": self.energy_unit, "heat_capacity": "k", "free_energy": "kT"},
            "method": self.method,
            "pooled": self.pooled,
            "weighted": self.weighted,
            "rows": [row.to_dict() for row in self.rows],
            "reference": None if self.reference is None else self.reference.to_dict(),
            "notes": list(self.notes),
        }

    @property
    def method(self) -> str:
        """How the numbers were found, in words."""
        by = ", and by the mean weight at each" if self.weighted else ""
        if self.pooled:
            return (
                f"all temperatures together, by the multistate Bennett acceptance ratio{by}; free energies "
                "against the lowest temperature; errors by the bootstrap"
            )
        return (
            "each temperature by itself; free energies by Bennett's acceptance ratio between neighbouring "
            f"temperatures{by}, against the lowest; errors by the bootstrap"
        )

    def beside(self, reference: Curve) -> Curve:
        """The same curve with another one at its temperatures.

        Free energies of both are against the lowest temperature that this curve has.

        Raises
        ------
        InputError
            The other is of another system or unit, or lacks a temperature.
        """
        reference.require_of(
            {
                "system": self.system,
                "temperature_unit": self.temperature_unit,
                "energy_unit": self.energy_unit,
                "definition": self.definition,
            }
        )
        return replace(self, reference=reference.only([row.temperature for row in self.rows]))

    def require_of(self, subject: Mapping[str, Any]) -> None:
        """Refuse to stand beside a curve of another ``subject``
        (:func:`molsampler.analysis.thermodynamics.subject`).

        Raises
        ------
        InputError
            This curve is of another system or unit.
        """
        for name in ("system", "temperature_unit", "energy_unit"):
            if subject[name] != getattr(self, name):
                raise InputError(
                    f"the reference must have {name} {subject[name]!r}, got {getattr(self, name)!r}"
                )
        known = self.definition, subject["definition"]
        if None not in known and known[0] != known[1]:
            raise InputError(
                f"the reference is of another system called {self.system!r}, of another definition"
            )

    def only(self, temperatures: Sequence[float]) -> Curve:
        """The rows at some of its temperatures, free energies against the lowest of these.

        Raises
        ------
        InputError
            There is no row at one of them.
        """
        rows = []
        for wanted in temperatures:
            near = [r for r in self.rows if math.isclose(r.temperature, wanted, rel_tol=1e-6)]
            if not near:
                raise InputError(f"the curve has no row at temperature {wanted:g}")
            rows.append(near[0])
        zero = rows[0].free_energy
        if zero.value == 0.0:
            return replace(self, rows=tuple(rows))
        moved = [
            replace(
                row, free_energy=_difference(row.free_energy, zero) if k else Estimate(0.0, 0.0)
            )
            for k, row in enumerate(rows)
        ]
        return replace(self, rows=tuple(moved))


def read_curve(path: Path | str) -> Curve:
    """A curve from the JSON file of another one.

    Raises
    ------
    FileFormatError
        It is none.
    """
    path = Path(path)
    values = parse_json(read_limited(path, _LIMIT), path)
    try:
        rows = tuple(
            CurvePoint(
                float(row["temperature"]),
                _estimate(row["energy"]),
                _estimate(row["heat_capacity"]),
                _estimate(row["free_energy"]),
                {str(name): _estimate(each) for name, each in row["populations"].items()},
                int(row.get("n", 0)),
                _number(row.get("ess")) or 0.0,
                _number(row.get("ess_pooled")),
            )
            for row in values["rows"]
        )
        found = Curve(
            str(values["system"]),
            str(values["temperature_unit"]),
            str(values["units"]["energy"]),
            tuple(sorted(rows, key=lambda row: row.temperature)),
            notes=tuple(str(note) for note in values.get("notes", ())),
            pooled=values.get("pooled") is True,
            weighted=values.get("weighted") is True,
            definition=_definition(values.get("definition")),
        )
        _require_sound(found.rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(
            f"{path} is not a curve of `molsampler curve --json`"
            + (f": it has no {error}" if isinstance(error, KeyError) else f": {error}")
        ) from None
    if len(found.rows) < 2:
        raise FileFormatError(f"{path} holds {len(found.rows)} temperatures, at least 2 are needed")
    return found


def _definition(value: Any) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise ValueError("its definition is no mapping")
    return value


def _require_sound(rows: Sequence[CurvePoint]) -> None:
    """Refuse rows that no curve has.

    Raises
    ------
    ValueError
        A temperature is no positive number or given twice, an error is negative, or rows have other basins.
    """
    for row in rows:
        if not 0 < row.temperature < math.inf:
            raise ValueError(f"a row has temperature {row.temperature:g}")
        for name, each in row.quantities().items():
            if each.se < 0:
                raise ValueError(f"{name} at temperature {row.temperature:g} has a negative error")
        if row.populations.keys() != rows[0].populations.keys():
            raise ValueError(f"the row at temperature {row.temperature:g} has other populations")
    for low, high in pairwise(rows):
        if math.isclose(low.temperature, high.temperature, rel_tol=1e-9):
            raise ValueError(f"two rows have temperature {low.temperature:g}")


def _plain(estimate: Estimate[float]) -> dict[str, float | None]:
    return {"value": finite_or_none(estimate.value), "se": finite_or_none(estimate.se)}


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _estimate(values: dict[str, Any]) -> Estimate[float]:
    value, se = values["value"], values["se"]
    return Estimate(
        math.nan if value is None else float(value), math.nan if se is None else float(se)
    )


def _difference(first: Estimate[float], second: Estimate[float]) -> Estimate[float]:
    # Both errors grow from the same end of the curve; their sum of squares bounds that of the difference.
    return Estimate(first.value - second.value, math.hypot(first.se, second.se))
