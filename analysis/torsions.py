r"""Torsion angles: Ramachandran plane, its basins, and one torsion about each inner bond.

*Basins* partition the Ramachandran plane into beta (phi < 0, with C7eq and polyproline II), alpha-R
(phi < 0 and psi in [-120°, 50°)) and alpha-L (phi >= 0, with C7ax). Free energies are
:math:`F_k = -\log(p_k / p_{beta})` in kT, with jackknife errors over independent replicas where the
metadata of a reference names their number, over contiguous blocks elsewhere. Angles are in degrees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from molsampler.reference.replicas import replica_of_row
from molsampler.target import System

from .draws import Draw
from .geometry import molecule_of
from .metric import Distance, Value

Array = NDArray[np.float64]

#: Bins of a Ramachandran histogram along each axis.
BINS = 24

#: Bins of the histogram of a single torsion.
TORSION_BINS = 36

#: Basins of the Ramachandran plane; free energies are relative to the first.
BASINS = ("beta", "alpha-R", "alpha-L")

#: Contiguous blocks for the errors of basin weights where no replicas are known.
BLOCKS = 10


@dataclass(frozen=True)
class Basins:
    """Weights of the basins of one residue.

    Attributes
    ----------
    weights, se : probabilities ``(k,)`` and standard errors
    free_energy, free_energy_se : relative to the first basin, kT; infinite for an empty basin
    """

    weights: Array
    se: Array
    free_energy: Array
    free_energy_se: Array


def ramachandran_tvd(a: Array, b: Array) -> float:
    """Mean over residues of the total variation of (phi, psi) ``(n, r, 2)`` on BINS x BINS bins."""
    return float(
        np.mean(
            [
                0.5 * np.abs(ramachandran_shares(a[:, r]) - ramachandran_shares(b[:, r])).sum()
                for r in range(a.shape[1])
            ]
        )
    )


def torsion_tvd(a: Array, b: Array) -> float:
    """Mean over torsions of the total variation of angles ``(n, t)`` on TORSION_BINS bins."""
    edges = np.linspace(-180, 180, TORSION_BINS + 1)
    gaps = [
        0.5 * np.abs(_shares(a[:, t], edges) - _shares(b[:, t], edges)).sum()
        for t in range(a.shape[1])
    ]
    return float(np.mean(gaps))


def _shares(angles: Array, edges: Array) -> Array:
    shares: Array = np.histogram(angles, edges)[0] / len(angles)
    return shares


def ramachandran_shares(angles: Array, weights: Array | None = None) -> Array:
    """Shares ``(BINS, BINS)`` of (phi, psi) ``(n, 2)``."""
    edges = np.linspace(-180, 180, BINS + 1)
    counts, _, _ = np.histogram2d(angles[:, 0], angles[:, 1], [edges, edges], weights=weights)
    shares: Array = counts / counts.sum()
    return shares


def basin_labels(angles: Array) -> NDArray[np.int64]:
    """Index into ``BASINS`` of (phi, psi) ``(*b, 2)`` in degrees."""
    phi, psi = angles[..., 0], angles[..., 1]
    helix = (psi >= -120) & (psi < 50)
    labels: NDArray[np.int64] = np.where(phi >= 0, 2, np.where(helix, 1, 0))
    return labels


def basin_distance(a: Array, b: Array) -> float:
    """Mean over residues of the total variation of the basin weights of (phi, psi) ``(n, r, 2)``."""
    gaps = []
    for r in range(a.shape[1]):
        p, q = (np.bincount(basin_labels(x[:, r]), minlength=len(BASINS)) / len(x) for x in (a, b))
        gaps.append(0.5 * np.abs(p - q).sum())
    return float(np.mean(gaps))


def basin_weights(
    angles: Array, *, weights: Array | None = None, groups: NDArray[np.int64] | None = None
) -> Basins:
    r"""Basin weights and free energies of one residue with jackknife errors over groups.

    With :math:`\theta_g` the estimate without group g of G,
    :math:`se^2 = \frac{G-1}{G} \sum_g (\theta_g - \bar\theta)^2`.

    Parameters
    ----------
    angles : (phi, psi) ``(n, 2)`` in degrees
    weights : importance weights ``(n,)``
    groups : index of the independent replica of each configuration; contiguous blocks by default
    """
    n = len(angles)
    if groups is None:
        groups = np.arange(n) * min(BLOCKS, n) // n
    w = np.ones(n) if weights is None else weights
    count = int(groups.max()) + 1
    table = np.zeros((count, len(BASINS)))
    np.add.at(table, (groups, basin_labels(angles)), w)
    table = table[table.sum(1) > 0]

    def estimate(total: Array) -> tuple[Array, Array]:
        p = total / total.sum(-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            return p, np.log(p[..., :1] / p)

    p, free = estimate(table.sum(0))
    left_p, left_free = estimate(table.sum(0) - table) if len(table) > 1 else (p[None], free[None])
    factor = (len(table) - 1) / len(table)

    def error(values: Array) -> Array:
        with np.errstate(invalid="ignore"):
            result: Array = np.sqrt(factor * np.square(values - values.mean(0)).sum(0))
        return result if len(table) > 1 else np.full(len(BASINS), np.nan)

    return Basins(p, error(left_p), free, error(left_free))


def replica_groups(metadata: Mapping[str, Any], n: int) -> NDArray[np.int64] | None:
    """Replica of each of n configurations where there are enough for a jackknife, else None."""
    groups = replica_of_row(metadata, n)
    if groups is None or not 4 <= metadata["run"]["replicas"] <= n // 2:
        return None
    return groups


class RamachandranTotalVariation(Distance):
    key = "ramachandran_tvd"
    name = "Ramachandran TVD"
    definition = (
        f"Total variation distance between the (phi, psi) histograms of {BINS} x {BINS} bins, the "
        "mean over residues."
    )

    def applies(self, system: System) -> bool:
        molecule = molecule_of(system)
        return molecule is not None and bool(molecule.residues)

    def value(self, samples: Draw, reference: Draw) -> Value:
        a, b = samples.geometry.ramachandran, reference.geometry.ramachandran
        return Value(ramachandran_tvd(a, b))


class BasinTotalVariation(RamachandranTotalVariation):
    key = "basin_tvd"
    name = "basin weights"
    definition = (
        "Total variation distance between the weights of the Ramachandran basins beta, alpha-R "
        "and alpha-L, the mean over residues."
    )

    def value(self, samples: Draw, reference: Draw) -> Value:
        a, b = samples.geometry.ramachandran, reference.geometry.ramachandran
        return Value(basin_distance(a, b))


class TorsionTotalVariation(Distance):
    key = "torsion_tvd"
    name = "torsion TVD"
    definition = (
        "Total variation distance between the histograms of one torsion about each inner bond, "
        f"{TORSION_BINS} bins each, the mean over torsions."
    )

    def applies(self, system: System) -> bool:
        molecule = molecule_of(system)
        return molecule is not None and len(molecule.torsions) > 0

    def value(self, samples: Draw, reference: Draw) -> Value:
        return Value(torsion_tvd(samples.geometry.torsions, reference.geometry.torsions))
