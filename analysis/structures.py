r"""Single configurations to look at: of each side the one of lowest energy, a typical one and the worst.

The typical one is the weighted median of the energies. Configurations of zero weight are none of the law and
are left out. Each is turned, which changes no distance: molecules onto the reference's typical one by the
rotation that minimises :math:`\sum_a |R x_a - y_a|^2` (Kabsch, Acta Cryst. A32, 922, 1976), clusters,
whose particles have no names, with their principal axes along those of the page.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from molsampler.errors import InputError, MissingDependencyError
from molsampler.export.lengths import to_nanometres, topology_of
from molsampler.target import System

from .draws import Pool

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Structure:
    """One configuration.

    Attributes
    ----------
    title : ``"lowest"``, ``"typical"`` or ``"worst"``
    energy : reduced energy, which may be infinite
    positions_nm : ``(N, 3)`` nm, centred
    """

    title: str
    energy: float
    positions_nm: Array


@dataclass(frozen=True, eq=False)
class Structures:
    """What is drawn of both sides.

    Attributes
    ----------
    kinds : element of each particle of a molecule, name of each particle of a cluster
    bonds : pairs of indices; none in clusters
    contact_nm : distance of the closest two particles of the reference's typical configuration
    samples, reference : three of each side
    """

    kinds: tuple[str, ...]
    bonds: tuple[tuple[int, int], ...]
    contact_nm: float
    samples: tuple[Structure, ...]
    reference: tuple[Structure, ...]


def choose(samples: Pool, reference: Pool) -> Structures | None:
    """The configurations to look at, None where the system has no particles in three dimensions."""
    system = reference.system
    found = _particles(system)
    if found is None:
        return None
    kinds, bonds = found
    trusted, own = (
        {name: _frame(pool, row) for name, row in _rows(pool).items()}
        for pool in (reference, samples)
    )
    model = trusted["typical"] = along_axes(trusted["typical"])

    def turned(frame: Array) -> Array:
        return onto(frame, model) if bonds else along_axes(frame)

    def side(pool: Pool, frames: dict[str, Array]) -> tuple[Structure, ...]:
        return tuple(
            Structure(name, float(pool.energies[row]), turned(frames[name]))
            for name, row in _rows(pool).items()
        )

    gaps = np.linalg.norm(model[:, None] - model, axis=-1)
    between = gaps[~np.eye(len(gaps), dtype=bool)]
    return Structures(
        kinds,
        bonds,
        float(between.min()) if between.size else 1.0,
        side(samples, own),
        side(reference, trusted),
    )


def _particles(system: System) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]] | None:
    if system.shape[1] != 3:
        return None
    try:
        topology = topology_of(system)
    except (InputError, MissingDependencyError):
        return None
    bonds = tuple((int(a.index), int(b.index)) for a, b in topology.bonds)
    kinds = tuple(
        str(atom.element.symbol) if bonds and atom.element is not None else str(atom.name)
        for atom in topology.atoms
    )
    return kinds, bonds


def _rows(pool: Pool) -> dict[str, int]:
    """Rows of the configurations of lowest, median and highest energy."""
    p = pool.probabilities
    order = np.argsort(pool.energies.numpy(), kind="stable")
    order = order[p[order] > 0]
    typical = min(int((p[order].cumsum() < 0.5).sum()), len(order) - 1)
    return {
        "lowest": int(order[0]),
        "typical": int(order[typical]),
        "worst": int(order[-1]),
    }


def _frame(pool: Pool, row: int) -> Array:
    nm = to_nanometres(pool.positions[row : row + 1], pool.system.length_nm)[0].astype(np.float64)
    centred: Array = nm - nm.mean(0)
    return centred


def along_axes(frame: Array) -> Array:
    """A centred configuration ``(N, 3)`` with its principal axes along x, y and z, the longest first."""
    _, _, axes = np.linalg.svd(frame)
    if np.linalg.det(axes) < 0:
        axes[2] *= -1
    turned: Array = frame @ axes.T
    return turned


def onto(frame: Array, model: Array) -> Array:
    """A centred configuration ``(N, 3)`` turned, never mirrored, onto another."""
    u, _, v = np.linalg.svd(frame.T @ model)
    proper = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ v)) or 1.0])
    turned: Array = frame @ u @ proper @ v
    return turned
