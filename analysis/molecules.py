"""Torsions, bonds and handedness of samples and reference side by side: what tables and plots show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .defects import BROKEN, bond_scale, broken, broken_by_halves, weighted_moments
from .draws import Pool
from .geometry import molecule_of
from .torsions import BASINS, BINS, Basins, basin_weights, ramachandran_shares, replica_groups

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ResidueComparison:
    """Ramachandran densities ``(BINS, BINS)``, phi along the first axis, and basins of both sides."""

    name: str
    samples: Array
    reference: Array
    sample_basins: Basins
    reference_basins: Basins


@dataclass(frozen=True)
class CentreComparison:
    """How many configurations of each side have each hand at a centre, by weight; ``hands`` names the two."""

    name: str
    hands: tuple[str, str]
    samples: tuple[int, int]
    reference: tuple[int, int]


@dataclass(frozen=True)
class BondComparison:
    """Mean and standard deviation of a bond length, nm, and the largest \\|z\\| of the samples."""

    name: str
    samples: tuple[float, float]
    reference: tuple[float, float]
    worst: float


@dataclass(frozen=True)
class MoleculeComparison:
    """Torsions, bonds and handedness of samples and reference side by side.

    Attributes
    ----------
    residues, centres, bonds : one entry each
    broken, n : molecules with a bond beyond ``BROKEN`` standard deviations, out of n samples, by weight
    reference_broken, reference_n : the same of the reference
    """

    residues: tuple[ResidueComparison, ...]
    centres: tuple[CentreComparison, ...]
    bonds: tuple[BondComparison, ...]
    broken: int
    n: int
    reference_broken: int
    reference_n: int

    def lines(self) -> list[str]:
        """Counts and basin free energies as text, one statement a line."""
        result = []
        for c in self.centres:
            counts = [
                ", ".join(f"{count:,} {hand}" for count, hand in zip(side, c.hands, strict=True))
                for side in (c.samples, c.reference)
            ]
            result.append(f"handedness at {c.name}: {counts[0]} (reference {counts[1]})")
        result.append(
            f"broken molecules (a bond beyond {BROKEN:g} standard deviations): {self.broken:,} of "
            f"{self.n:,} (reference {self.reference_broken:,} of {self.reference_n:,})"
        )
        for r in self.residues:
            for k, basin in enumerate(BASINS[1:], 1):
                texts = [
                    f"{side.free_energy[k]:.2f} ± {side.free_energy_se[k]:.2f}"
                    for side in (r.sample_basins, r.reference_basins)
                ]
                result.append(
                    f"{r.name} F({basin}) - F({BASINS[0]}): {texts[0]} kT (reference {texts[1]})"
                )
        return result

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary; numbers that are not finite become None."""

        def basins(b: Basins) -> dict[str, Any]:
            return {name: _finite(getattr(b, name)) for name in Basins.__dataclass_fields__}

        edges = np.linspace(-180, 180, BINS + 1).tolist()
        return {
            "basins": list(BASINS),
            "residues": [
                {
                    "name": r.name,
                    "edges_degrees": edges,
                    "samples": r.samples.tolist(),
                    "reference": r.reference.tolist(),
                    "sample_basins": basins(r.sample_basins),
                    "reference_basins": basins(r.reference_basins),
                }
                for r in self.residues
            ],
            "chiral_centres": [
                {
                    "name": c.name,
                    "samples": dict(zip(c.hands, c.samples, strict=True)),
                    "reference": dict(zip(c.hands, c.reference, strict=True)),
                }
                for c in self.centres
            ],
            "bonds": [
                {
                    "name": b.name,
                    "samples_nm": list(b.samples),
                    "reference_nm": list(b.reference),
                    "worst_z": b.worst,
                }
                for b in self.bonds
            ],
            "broken": {
                "sigmas": BROKEN,
                "samples": self.broken,
                "n": self.n,
                "reference": self.reference_broken,
                "reference_n": self.reference_n,
            },
        }


def _finite(values: Array) -> list[float | None]:
    return [float(v) if math.isfinite(v) else None for v in values]


def compare_pools(samples: Pool, reference: Pool) -> MoleculeComparison | None:
    """Everything of both sides that a table or a plot shows; None where the system has no bonds."""
    molecule = molecule_of(samples.system)
    if molecule is None:
        return None
    atoms = list(molecule.topology.atoms)
    own, trusted = samples.geometry.bond_lengths, reference.geometry.bond_lengths
    scale = bond_scale(trusted, reference.row_weights)
    sample_scale = weighted_moments(own, samples.row_weights)
    worst = (np.abs(own - scale[0]) / scale[1]).max(0)
    area = (360.0 / BINS) ** 2

    def density(pool: Pool, r: int) -> Array:
        return ramachandran_shares(pool.geometry.ramachandran[:, r], pool.probabilities) / area

    def basins(pool: Pool, r: int) -> Basins:
        return basin_weights(
            pool.geometry.ramachandran[:, r],
            weights=pool.probabilities * len(pool),
            groups=replica_groups(pool.metadata, len(pool)),
        )

    def counts(pool: Pool, k: int) -> tuple[int, int]:
        positive = round(len(pool) * float(pool.probabilities @ pool.geometry.hands[:, k]))
        return len(pool) - positive, positive

    return MoleculeComparison(
        residues=tuple(
            ResidueComparison(
                name,
                density(samples, r),
                density(reference, r),
                basins(samples, r),
                basins(reference, r),
            )
            for r, name in enumerate(molecule.residues)
        ),
        centres=tuple(
            CentreComparison(c.name, c.hands, counts(samples, k), counts(reference, k))
            for k, c in enumerate(molecule.centres)
        ),
        bonds=tuple(
            BondComparison(
                f"{atoms[i]} - {atoms[j]}",
                (float(sample_scale[0][b]), float(sample_scale[1][b])),
                (float(scale[0][b]), float(scale[1][b])),
                float(worst[b]),
            )
            for b, (i, j) in enumerate(molecule.bonds)
        ),
        broken=round(len(samples) * float(samples.probabilities @ broken(own, scale))),
        n=len(samples),
        reference_broken=round(
            len(reference)
            * float(reference.probabilities @ broken_by_halves(trusted, reference.row_weights))
        ),
        reference_n=len(reference),
    )
