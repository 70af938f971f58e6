"""The metrics there are, in the order of every table; open to kinds defined elsewhere."""

from __future__ import annotations

from typing import TypeVar

from molsampler.errors import InputError, UnknownNameError

from . import defects, distances, energies, modes, refinement, torsions, transport
from .metric import MetricKind

Kind = TypeVar("Kind", bound=MetricKind)

_kinds: dict[str, MetricKind] = {}


def register_metric(kind: Kind) -> Kind:
    """Let a kind take part in every comparison, after those already registered; returns it.

    Raises
    ------
    InputError
        It is no :class:`MetricKind`, has no key, name or definition, or its key is taken.
    """
    if not isinstance(kind, MetricKind):
        raise InputError(f"kind must be an instance of a MetricKind, got {kind!r}")
    for field, text in (("key", kind.key), ("name", kind.name), ("definition", kind.definition)):
        if not text:
            raise InputError(f"a metric must have a {field}, {type(kind).__name__} has none")
    if kind.key in _kinds:
        raise InputError(
            f"there is a metric {kind.key!r} already; unregister it or take another key"
        )
    _kinds[kind.key] = kind
    return kind


def unregister_metric(key: str) -> None:
    """Leave a kind out of further comparisons.

    Raises
    ------
    UnknownNameError
        There is no metric of that key.
    """
    if key not in _kinds:
        raise UnknownNameError(f"no metric {key!r}; there are {list(_kinds)}")
    del _kinds[key]


def metric_kinds() -> tuple[MetricKind, ...]:
    """All registered kinds, in the order of tables."""
    return tuple(_kinds.values())


for _kind in (
    energies.EnergyTotalVariation(),
    distances.DistanceTotalVariation(),
    energies.EnergyWasserstein2(),
    energies.TrimmedEnergyWasserstein2(),
    modes.ModeTotalVariation(),
    torsions.RamachandranTotalVariation(),
    torsions.BasinTotalVariation(),
    torsions.TorsionTotalVariation(),
    transport.Wasserstein2(),
    transport.GeometricWasserstein2(),
    defects.BrokenBonds(),
    defects.WrongHand(),
    refinement.RefinementDrift(),
):
    register_metric(_kind)
