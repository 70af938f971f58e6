r"""Torsions, bonds and handedness of molecules: what energies and distances do not show.

* *Ramachandran TVD*: :math:`\tfrac12\sum_b|p_b-q_b|` over ``BINS`` x ``BINS`` bins of each residue's
  (phi, psi), the mean over residues; *torsion TVD*: the same for one torsion about each inner bond, on
  ``TORSION_BINS`` bins, the mean over torsions.
* *Basins* of the Ramachandran plane partition it into beta (phi < 0, with C7eq and polyproline II),
  alpha-R (phi < 0 and psi in [-120°, 50°)) and alpha-L (phi >= 0, with C7ax). Free energies are
  :math:`F_k = -\log(p_k / p_{beta})` in kT, with jackknife errors over independent replicas where the
  metadata of a reference names their number, over contiguous blocks elsewhere.
* *Bonds*: :math:`z = (r - \mu) / s` with mean and standard deviation of the reference. A molecule with
  any \|z\| > ``BROKEN`` is broken.
* *Handedness*: the sign of the signed volume at each chiral centre (see
  :mod:`molsampler.molecule.chirality`). An E(3)-equivariant generator produces mirror images at the same
  energy and with the same distances.

Angles are in degrees, lengths in nm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molsampler.errors import InputError, MissingDependencyError
from molsampler.export.lengths import to_nanometres, topology_of
from molsampler.molecule.chirality import signed_volumes, stereocentres
from molsampler.target import System

if TYPE_CHECKING:
    import mdtraj

Array = NDArray[np.float64]

#: Bins of a Ramachandran histogram along each axis.
BINS = 24

#: Bins of the histogram of a single torsion.
TORSION_BINS = 36

#: Standard deviations beyond which a bond counts as broken.
BROKEN = 5.0

#: Least standard deviation of a bond length in nm: what rounding to 1e-3 nm, as .xtc does, gives it.
ROUNDING = 5e-4

#: Basins of the Ramachandran plane; free energies are relative to the first.
BASINS = ("beta", "alpha-R", "alpha-L")

#: Contiguous blocks for the errors of basin weights where no replicas are known.
BLOCKS = 10


@dataclass(frozen=True)
class Centre:
    """A chiral centre ``(c, i, j, k)`` and what its hands are called, negative volume first."""

    name: str
    atoms: tuple[int, ...]
    hands: tuple[str, str]


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
    """How many configurations of each side have each hand at a centre; ``hands`` names the two."""

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
    broken, n : molecules with a bond beyond ``BROKEN`` standard deviations, out of n samples
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


class Molecule:
    """The geometry of a system with a bonded topology: which atoms make which bond and torsion.

    Attributes
    ----------
    bonds : index pairs ``(b, 2)``
    residues : atoms of phi and psi of each residue that has both, by name
    torsions : one torsion about each inner bond ``(t, 4)``
    centres : chiral centres; those of amino acids have hands D and L
    """

    def __init__(self, topology: mdtraj.Topology, length_nm: float):
        from mdtraj.geometry import dihedral

        self.topology = topology
        self.length_nm = length_nm
        atoms = list(topology.atoms)
        self.bonds = np.array([[a.index, b.index] for a, b in topology.bonds]).reshape(-1, 2)
        psi = {int(row[1]): row for row in dihedral.indices_psi(topology)}
        self.residues: dict[str, tuple[Any, Any]] = {}
        for row in dihedral.indices_phi(topology):
            if int(row[2]) in psi:
                self.residues[str(atoms[row[2]].residue)] = (row, psi[int(row[2])])
        self.torsions = np.array(_inner_torsions(self.bonds.tolist(), len(atoms))).reshape(-1, 4)
        kinds = [a.name if a.element is None else a.element.symbol for a in atoms]
        self.centres = tuple(
            _centre(atoms, centre) for centre in stereocentres(kinds, self.bonds.tolist())
        )

    def frames(self, x: Tensor) -> mdtraj.Trajectory:
        """Positions ``(n, N, 3)`` in the system's unit as an MDTraj trajectory."""
        import mdtraj

        return mdtraj.Trajectory(to_nanometres(x, self.length_nm), self.topology)

    def dihedrals(self, x: Tensor, atoms: Any) -> Array:
        """Torsion angles ``(n, t)`` in degrees, [-180, 180), of atom quadruples ``(t, 4)``."""
        import mdtraj

        angles = mdtraj.compute_dihedrals(self.frames(x), np.asarray(atoms), periodic=False)
        degrees: Array = (np.degrees(angles.astype(np.float64)) + 180.0) % 360.0 - 180.0
        return degrees

    def ramachandran(self, x: Tensor) -> Array:
        """(phi, psi) of every residue, ``(n, r, 2)`` in degrees."""
        quadruples = [row for pair in self.residues.values() for row in pair]
        return self.dihedrals(x, quadruples).reshape(len(x), -1, 2)

    def bond_lengths(self, x: Tensor) -> Array:
        """Bond lengths ``(n, b)`` in nm."""
        i, j = torch.as_tensor(self.bonds).T
        lengths: Array = (x[:, i] - x[:, j]).double().norm(dim=-1).numpy() * self.length_nm
        return lengths

    def hands(self, x: Tensor) -> NDArray[np.bool_]:
        """Whether the signed volume at each centre is positive (L at an amino acid), ``(n, c)``."""
        volumes = signed_volumes(x.double(), [centre.atoms for centre in self.centres])
        positive: NDArray[np.bool_] = (volumes > 0).numpy()
        return positive


def molecule_of(system: System) -> Molecule | None:
    """The molecular geometry of a system, or None where its topology has no bonds or there is none."""
    if system.shape[1] != 3:
        return None
    try:
        topology = topology_of(system)
    except (InputError, MissingDependencyError):
        return None
    return Molecule(topology, system.length_nm) if topology.n_bonds else None


def _inner_torsions(bonds: list[list[int]], n: int) -> list[list[int]]:
    near: list[list[int]] = [[] for _ in range(n)]
    for i, j in bonds:
        near[i].append(j)
        near[j].append(i)
    torsions = []
    for i, j in bonds:
        before, after = ([k for k in sorted(near[a]) if k != b] for a, b in ((i, j), (j, i)))
        if before and after and before[0] != after[0]:
            torsions.append([before[0], i, j, after[0]])
    return torsions


def _centre(atoms: list[Any], centre: tuple[int, ...]) -> Centre:
    """The centre by name; in an amino acid N, C, CB follow CA, whose volume is positive for L."""
    carbon = atoms[centre[0]]
    named = {atom.name: atom.index for atom in carbon.residue.atoms}
    name = f"{carbon.residue} {carbon.name}"
    if carbon.name == "CA" and {"N", "C", "CB"} <= named.keys():
        return Centre(name, (carbon.index, named["N"], named["C"], named["CB"]), ("D", "L"))
    order = ", ".join(atoms[i].name for i in centre[1:])
    return Centre(f"{name} ({order})", centre, ("left", "right"))


# Distances between draws


def ramachandran_tvd(a: Array, b: Array) -> float:
    """Mean over residues of the total variation of (phi, psi) ``(n, r, 2)`` on BINS x BINS bins."""
    return float(
        np.mean(
            [
                0.5 * np.abs(_plane(a[:, r], None) - _plane(b[:, r], None)).sum()
                for r in range(a.shape[1])
            ]
        )
    )


def torsion_tvd(a: Array, b: Array) -> float:
    """Mean over torsions of the total variation of angles ``(n, t)`` on TORSION_BINS bins."""
    edges = np.linspace(-180, 180, TORSION_BINS + 1)
    gaps = [
        0.5 * np.abs(_line(a[:, t], edges) - _line(b[:, t], edges)).sum() for t in range(a.shape[1])
    ]
    return float(np.mean(gaps))


def _line(angles: Array, edges: Array) -> Array:
    shares: Array = np.histogram(angles, edges)[0] / len(angles)
    return shares


def _plane(angles: Array, weights: Array | None) -> Array:
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
    """Replica of each of n configurations of a reference run, which interleaves them; None elsewhere."""
    run = metadata.get("run")
    replicas = run.get("replicas") if isinstance(run, Mapping) else None
    if isinstance(replicas, bool) or not isinstance(replicas, int) or not 4 <= replicas <= n // 2:
        return None
    # A first, incomplete draw may have been cut; the last one is whole.
    return (np.arange(n) - n) % replicas


def bond_scale(lengths: Array) -> tuple[Array, Array]:
    """Mean and standard deviation ``(b,)`` of bond lengths ``(n, b)``, nm, the latter not below ROUNDING."""
    return lengths.mean(0), np.maximum(lengths.std(0), ROUNDING)


def broken(lengths: Array, scale: tuple[Array, Array]) -> NDArray[np.bool_]:
    """Whether any bond of lengths ``(n, b)`` lies more than BROKEN standard deviations from the mean."""
    mean, deviation = scale
    result: NDArray[np.bool_] = np.any(np.abs(lengths - mean) > BROKEN * deviation, axis=1)
    return result


@dataclass(frozen=True)
class Share:
    """A share of wrong configurations in samples and in reference, and their effective numbers."""

    value: float
    floor: float
    n: float
    reference_n: float

    def error(self, p: float) -> float:
        return math.sqrt(max(p * (1 - p), 0.0) / self.n)

    def null_error(self, *, unanimous: bool) -> float:
        """Standard error of value minus floor if both laws agree.

        Where the reference shows none, one in its number is assumed, unless ``unanimous``: then what
        never happens in the reference must not happen at all.
        """
        p = self.floor if unanimous else max(self.floor, 1 / self.reference_n)
        return math.sqrt(p * (1 - p) * (1 / self.n + 1 / self.reference_n))


class Side:
    """One set of configurations: positions ``(n, N, 3)``, weights and metadata, seen as molecules."""

    def __init__(
        self, molecule: Molecule, x: Tensor, weights: Tensor | None, metadata: Mapping[str, Any]
    ):
        self.molecule, self.x, self.metadata = molecule, x, metadata
        w = torch.ones(len(x)) if weights is None else weights
        self.weights: Array = (w.double() / w.double().sum()).numpy()

    @property
    def effective(self) -> float:
        return float(1.0 / np.square(self.weights).sum())

    @cached_property
    def lengths(self) -> Array:
        return self.molecule.bond_lengths(self.x)

    @cached_property
    def angles(self) -> Array:
        return self.molecule.ramachandran(self.x)

    @cached_property
    def hands(self) -> NDArray[np.bool_]:
        return self.molecule.hands(self.x)

    @cached_property
    def broken_by_halves(self) -> NDArray[np.bool_]:
        """Broken by the scale of the other half of the same set, the floor of the broken share."""
        even, odd = self.lengths[::2], self.lengths[1::2]
        result = np.zeros(len(self.x), dtype=bool)
        result[::2], result[1::2] = broken(even, bond_scale(odd)), broken(odd, bond_scale(even))
        return result

    def basins(self, residue: int) -> Basins:
        weights = self.weights * len(self.x)
        groups = replica_groups(self.metadata, len(self.x))
        return basin_weights(self.angles[:, residue], weights=weights, groups=groups)


def broken_share(samples: Side, reference: Side) -> Share:
    """Share of broken molecules; the floor is that of either half of the reference by the other."""
    return Share(
        float(samples.weights @ broken(samples.lengths, bond_scale(reference.lengths))),
        float(reference.weights @ reference.broken_by_halves),
        samples.effective,
        reference.effective,
    )


def wrong_hand_share(samples: Side, reference: Side) -> Share:
    """Share of the hand that is the reference's rarer one, at the centre where it differs most."""
    usual = reference.weights @ reference.hands > 0.5
    wrong, rare = (side.weights @ (side.hands != usual) for side in (samples, reference))
    worst = int(np.argmax(np.abs(wrong - rare)))
    # Too little of the rare hand is as wrong as too much, so that a racemic reference is no excuse.
    value = float(rare[worst] + abs(wrong[worst] - rare[worst]))
    return Share(value, float(rare[worst]), samples.effective, reference.effective)


def compare_molecules(samples: Side, reference: Side) -> MoleculeComparison:
    """Everything of both sides that a table or a plot shows."""
    molecule = samples.molecule
    atoms = list(molecule.topology.atoms)
    scale = bond_scale(reference.lengths)
    sample_scale = samples.lengths.mean(0), samples.lengths.std(0)
    worst = (np.abs(samples.lengths - scale[0]) / scale[1]).max(0)
    area = (360.0 / BINS) ** 2

    def counts(side: Side, k: int) -> tuple[int, int]:
        positive = int(side.hands[:, k].sum())
        return len(side.x) - positive, positive

    return MoleculeComparison(
        residues=tuple(
            ResidueComparison(
                name,
                _plane(samples.angles[:, r], samples.weights) / area,
                _plane(reference.angles[:, r], reference.weights) / area,
                samples.basins(r),
                reference.basins(r),
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
        broken=int(broken(samples.lengths, scale).sum()),
        n=len(samples.x),
        reference_broken=int(reference.broken_by_halves.sum()),
        reference_n=len(reference.x),
    )
