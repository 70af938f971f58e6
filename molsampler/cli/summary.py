"""What commands say about a set of samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .terminal import note, print_json

if TYPE_CHECKING:
    from torch import Tensor

    from ..export.energy_statistics import EnergyStatistics
    from ..samples import Samples


#: Share of one draw in the weight of so many, and effective number of them, that say nothing of the target.
_RULES, _FEWEST, _SEVERAL = 0.5, 2.0, 10


def percent(share: float) -> str:
    """A share in percent, to two digits or whole."""
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 else f"{value:.2g} %"


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


def _with_error(value: float, se: float | None) -> str:
    """A value to the digits that its error has, two of them."""
    if not se:
        return f"{value:.4f}"
    digits = max(0, 1 - math.floor(math.log10(se)))
    return f"{value:.{digits}f} ± {se:.{digits}f}"


def _log_sum(first: float, second: float) -> float:
    """log(exp(first) + exp(second))."""
    high, low = max(first, second), min(first, second)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


class WeightStatistics:
    """Effective number, largest weight, log Z, and mean and spread of the energies under weights that come in
    blocks, which are not kept."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = self._squares = self._largest = -math.inf
        self._mean = self._variance = 0.0

    def add(self, log_weights: Tensor, energies: Tensor) -> None:
        """Count the log weights ``(n,)`` of a block and its reduced energies; what has weight has a finite
        one."""
        import torch

        self.count += len(log_weights)
        logs = log_weights.double()
        block = float(torch.logsumexp(logs, 0))
        if block > -math.inf:
            kept = logs > -math.inf
            share, u = torch.softmax(logs[kept], 0), energies[kept].double()
            mean = float(share @ u)
            part = math.exp(block - _log_sum(self._sum, block))
            shift = mean - self._mean
            own = float(share @ (u - mean).square())
            self._mean += part * shift
            self._variance += part * (own - self._variance + (1 - part) * shift**2)
        self._sum = _log_sum(self._sum, block)
        self._squares = _log_sum(self._squares, float(torch.logsumexp(2 * logs, 0)))
        self._largest = max(self._largest, float(logs.max()))

    def summary(self) -> dict[str, Any]:
        """``ess``, ``max_weight``, ``log_z`` with its standard error and ``weighted_energies``; nothing
        without weights.

        All but the first are None where every weight is zero.
        """
        n = self.count
        if not n:
            return {}
        if self._sum == -math.inf:
            return {"ess": 0.0, "max_weight": None, "log_z": None, "weighted_energies": None}
        ess = math.exp(2 * self._sum - self._squares)
        se = math.sqrt(max(n / ess - 1.0, 0.0) / (n - 1)) if n > 1 else None
        return {
            "ess": ess,
            "max_weight": math.exp(self._largest - self._sum),
            "log_z": {"value": self._sum - math.log(n), "se": se},
            "weighted_energies": {
                "mean": self._mean,
                "standard_deviation": math.sqrt(self._variance),
            },
        }

    def ill(self) -> bool:
        """Whether a single draw, or next to none, has most of the weight of many."""
        known = self.summary()
        return (
            self.count >= _SEVERAL
            and bool(known)
            and (
                known["max_weight"] is None
                or known["max_weight"] > _RULES
                or known["ess"] < _FEWEST
            )
        )

    def energy_line(self, energies: dict[str, Any]) -> str:
        """One line on the energies under the weights, and the range of those of the draws."""
        if self._sum == -math.inf:
            return energy_line(energies)
        line = (
            f"reduced energy u = U/kT under the weights: mean {self._mean:.3f}, standard deviation "
            f"{math.sqrt(self._variance):.3f}; draws from {energies['minimum']:.6g} to "
            f"{energies['maximum']:.6g}"
        )
        if energies["nonfinite"]:
            line += f"; {energies['nonfinite']:,} not finite"
        return line

    def line(self) -> str:
        """One line on the weights, empty without any."""
        known = self.summary()
        if not known:
            return ""
        if known["log_z"] is None:
            return (
                f"weights: every one of {self.count:,} is zero; nothing can be said of the target"
            )
        log_z = _with_error(**known["log_z"])
        return (
            f"weights: effective number {known['ess']:,.0f} of {self.count:,}, largest "
            f"{percent(known['max_weight'])}, log Z {log_z}; averages need them "
            "(molsampler free-energy, samples.expectation)"
        )


class Drawn(NamedTuple):
    """What there is to say of samples that were written."""

    energies: EnergyStatistics
    weights: WeightStatistics
    metadata: dict[str, Any]

    @classmethod
    def none(cls) -> Drawn:
        """Of no samples yet."""
        from ..export.energy_statistics import EnergyStatistics

        return cls(EnergyStatistics(), WeightStatistics(), {})

    @classmethod
    def of(cls, parts: Iterable[Path], metadata: dict[str, Any]) -> Drawn:
        """Of the samples in files of parts, with the metadata of their whole."""
        from ..export import npz

        found = cls.none()._replace(metadata=metadata)
        for part in parts:
            for block in npz.blocks(part):
                found.add(block)
        return found

    def add(self, samples: Samples) -> None:
        self.energies.add(samples.energies)
        if samples.log_weights is not None:
            self.weights.add(samples.log_weights, samples.energies)


def say_written(drawn: Drawn, output: Path, *, json: bool, parts: int | None = None) -> None:
    """Say what was written to a file, from so many parts where it is a merge."""
    statistics, weights, metadata = drawn
    energies = statistics.summary().model_dump()
    if json:
        print_json(
            {
                "file": output,
                "n": statistics.count,
                **({} if parts is None else {"parts": parts}),
                "energies": energies,
                **weights.summary(),
                **metadata,
            }
        )
        return
    record = metadata.get("system")
    system = record if isinstance(record, dict) else {"name": record}
    temperature = system.get("at", system.get("temperature"))
    at = "" if temperature is None else f" at temperature {temperature:g}"
    of = "" if parts is None else f", of {parts} {'part' if parts == 1 else 'parts'}"
    print(f"wrote {output}: {statistics.count:,} samples of {system['name']}{at}{of}")
    print(weights.energy_line(energies))
    if said := weights.line():
        print(said)
    if weights.ill():
        note(
            "warning: hardly a draw has weight, so averages say nothing of the target, and log Z is too low "
            "by an unknown amount; `molsampler free-energy` says why"
        )
    if again := metadata.get("redrawn"):
        print(
            f"drawn again: {again:,} of {statistics.count:,}, whose energies were far outside those of the "
            "training's population"
        )
    if handed := metadata.get("handedness"):
        print(
            f"handedness: {handed['wrong_before_inversion']:,} of {handed['molecules']:,} had a wrong "
            f"centre, {handed['wrong_after_inversion']:,} after inversion"
        )
    if refine := metadata.get("refine"):
        drift = metadata.get("drift")
        print(
            f"refinement: {refine} MALA steps, acceptance {metadata['acceptance']:.3f}, "
            f"step size {metadata['step_size']:.3g}, energy-W2 to the unrefined samples "
            + ("undefined" if drift is None else f"{drift:.3f} kT")
        )
