"""Samples as ``ase.Atoms``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import MissingDependencyError
from ..samples import Samples
from ..target import System
from ..units import ELECTRONVOLT, kT
from .lengths import to_nanometres, topology_of

if TYPE_CHECKING:
    from ase import Atoms


def to_ase(samples: Samples, system: System) -> list[Atoms]:
    """One ``Atoms`` a sample; see :meth:`molsampler.samples.Samples.to_ase`."""
    try:
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator
    except ImportError:
        raise MissingDependencyError(
            "ASE is not installed: pip install 'molsampler[ase]'"
        ) from None
    symbols = [
        "X" if atom.element is None or not atom.element.atomic_number else atom.element.symbol
        for atom in topology_of(system).atoms
    ]
    angstroms = 10.0 * to_nanometres(samples.positions, system.length_nm).astype(float)
    unit = kT(system.twin_temperature) / ELECTRONVOLT
    found = []
    for k, (place, u) in enumerate(zip(angstroms, samples.energies.tolist(), strict=True)):
        info = {"reduced_energy": u}
        if samples.log_weights is not None:
            info["log_weight"] = float(samples.log_weights[k])
        atoms = Atoms(symbols, positions=place, info=info)
        atoms.calc = SinglePointCalculator(atoms, energy=u * unit)
        found.append(atoms)
    return found
