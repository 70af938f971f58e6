"""Physical systems: analytic pair potentials, synthetic densities and any OpenMM system.

The source folder is ``systems/``; the import name is ``molsampler.systems``.
"""

from __future__ import annotations

if __name__ == "systems":
    raise ImportError(
        "this folder is the package 'molsampler.systems'; install molsampler "
        "(pip install -e .) and import molsampler.systems instead of 'systems'"
    )

import importlib
from typing import TYPE_CHECKING, Any

from .registry import get_system, list_systems, register_system, register_system_kind
from .resolve import resolve, resolve_recorded
from .spec import SystemSpec

if TYPE_CHECKING:
    from .ase import ASESystem
    from .function import FunctionSystem
    from .many_well import ManyWell
    from .mixture import GaussianMixture
    from .openmm.alanine_dipeptide import AlanineDipeptide
    from .openmm.smiles import SmilesSystem
    from .openmm.system import OpenMMSystem
    from .pair.double_well import DoubleWell
    from .pair.lennard_jones import LennardJones
    from .pair.potential import PairPotential

__all__ = [
    "ASESystem",
    "AlanineDipeptide",
    "DoubleWell",
    "FunctionSystem",
    "GaussianMixture",
    "LennardJones",
    "ManyWell",
    "OpenMMSystem",
    "PairPotential",
    "SmilesSystem",
    "SystemSpec",
    "get_system",
    "list_systems",
    "register_system",
    "register_system_kind",
    "resolve",
    "resolve_recorded",
]

_LAZY = {
    "ASESystem": ".ase",
    "AlanineDipeptide": ".openmm",
    "DoubleWell": ".pair.double_well",
    "FunctionSystem": ".function",
    "GaussianMixture": ".mixture",
    "LennardJones": ".pair.lennard_jones",
    "ManyWell": ".many_well",
    "OpenMMSystem": ".openmm",
    "PairPotential": ".pair.potential",
    "SmilesSystem": ".openmm",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
