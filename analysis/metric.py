"""What a metric is: a definition, the systems it is for, and how it is measured, in one place.

A comparison knows :class:`MetricKind` only: a kind measures all candidates against one reference and says
how sure the numbers are. Most kinds are distances between two draws (:class:`Distance`) and write nothing
but their ``value``; some count wrong configurations (:class:`Share`); others measure in their own way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from molsampler.target import System

from .draws import Draw, Draws, Pool, Settings
from .statistics import (
    FLOOR_REPEATS,
    Metric,
    null_error,
    share_error,
    share_null_error,
    standard_error,
)


class MetricKind(ABC):
    """One kind of metric.

    Attributes
    ----------
    key, name : identifier in files and display name
    definition : what is measured, in words that a report prints
    unit : of the values, empty if dimensionless
    """

    key: str = ""
    name: str = ""
    definition: str = ""
    unit: str = ""

    def applies(self, system: System) -> bool:
        """Whether it can be computed for the system."""
        return True

    def repeats(self, settings: Settings) -> int:
        """Number of draws it takes; 0 leaves it out."""
        return settings.repeats

    def judges(self, system: System) -> bool:
        """Whether the number tells samples of the law from others, and so counts in gate and headline."""
        return True

    @abstractmethod
    def measure(self, draws: Draws) -> dict[str, Metric]:
        """The metric of every candidate, by label."""


class Value(NamedTuple):
    """A distance between two draws, the share of samples set aside, and what a reader must know."""

    value: float
    set_aside: float = 0.0
    note: str = ""


class Distance(MetricKind):
    """A distance between a draw of samples and one of the reference, averaged over repeats.

    Attributes
    ----------
    aside : what the share set aside is, as in ``2 % outside the reference's range``
    """

    aside: str = "set aside"

    def size(self, draws: Draws) -> int:
        """Configurations per draw."""
        return draws.n

    @abstractmethod
    def value(self, samples: Draw, reference: Draw) -> Value:
        """The distance between two draws, not negative."""

    def measure(self, draws: Draws) -> dict[str, Metric]:
        n, repeats = self.size(draws), self.repeats(draws.settings)
        floors: list[float] = []
        found: dict[str, list[Value]] = {label: [] for label in draws.candidates}
        for repeat in range(max(repeats, FLOOR_REPEATS)):
            first, second = draws.of_reference(repeat, n)
            floors.append(self.value(second, first).value)
            for label, values in found.items() if repeat < repeats else ():
                values.append(self.value(draws.of_candidate(label, repeat, n), first))
        return {
            label: self._metric(values, floors, n, draws.candidates[label], draws.reference)
            for label, values in found.items()
        }

    def _metric(
        self, found: list[Value], floors: list[float], n: int, pool: Pool, reference: Pool
    ) -> Metric:
        overlap = 0.5 * (n / pool.effective + n / reference.effective)
        values = [each.value for each in found]
        aside = float(np.mean([each.set_aside for each in found]))
        return Metric(
            key=self.key,
            name=self.name,
            definition=self.definition,
            value=float(np.mean(values)),
            se=standard_error(values, overlap),
            floor=float(np.mean(floors)),
            floor_se=standard_error(floors, (n / reference.effective) ** 2),
            null_se=null_error(floors, len(values), overlap),
            n=n,
            repeats=len(values),
            floor_repeats=len(floors),
            unit=self.unit,
            note=f"{100 * aside:.3g} % {self.aside}" if aside > 0 else found[0].note,
            judged=self.judges(pool.system),
        )


class Shares(NamedTuple):
    """Shares of wrong configurations in samples and in reference, and what a reader must know."""

    samples: float
    reference: float
    note: str = ""


class Share(MetricKind):
    """A share of configurations that are wrong as such, over all configurations of both sides.

    Attributes
    ----------
    unanimous : whether what never happens in the reference must not happen at all
    """

    unanimous: bool = False

    def repeats(self, settings: Settings) -> int:
        return 1

    @abstractmethod
    def shares(self, samples: Pool, reference: Pool) -> Shares:
        """The share of each side, by weight; the reference's is the floor."""

    def measure(self, draws: Draws) -> dict[str, Metric]:
        return {
            label: self._metric(pool, draws.reference) for label, pool in draws.candidates.items()
        }

    def _metric(self, pool: Pool, reference: Pool) -> Metric:
        value, floor, note = self.shares(pool, reference)
        n, reference_n = pool.effective, reference.effective
        return Metric(
            key=self.key,
            name=self.name,
            definition=self.definition,
            value=value,
            se=share_error(value, n),
            floor=floor,
            floor_se=share_error(floor, reference_n),
            null_se=share_null_error(floor, n, reference_n, unanimous=self.unanimous),
            n=len(pool),
            repeats=1,
            floor_repeats=1,
            unit=self.unit,
            note=note,
        )
