"""What tells the particles of a molecule apart, as one value that a system has or has not.

A cluster's particles are identical. A molecule's are not, but some are equivalent: the hydrogens of a
methyl group can be exchanged, the energy and the bond graph staying as they are. :class:`Molecule` is
what networks, coordinates and reference runs need to know of that, in a form that a card can hold.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ..errors import InputError
from .graph import distances


class Molecule(BaseModel):
    """Types, bonds, handedness and geometry of the particles of one molecule.

    Attributes
    ----------
    types : one integer per particle; equal ones can only be told apart by their bonds
    bonds : pairs of indices, ascending
    chiral_centres : ``(c, i, j, k)`` with positive signed volume in the molecule that is meant; stated
        only where reflection leaves the energy unchanged, since otherwise the score knows the hand
    turning_bonds : pairs ``(j, k)`` of bonds that turn freely, None where that is not known
    geometry : one sensible configuration ``(n, 3)`` in the system's length unit, or None
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    types: tuple[int, ...]
    bonds: tuple[tuple[int, int], ...] = ()
    chiral_centres: tuple[tuple[int, int, int, int], ...] = ()
    turning_bonds: tuple[tuple[int, int], ...] | None = None
    geometry: tuple[tuple[float, float, float], ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        n = len(self.types)
        if n and min(self.types) < 0:
            raise ValueError(f"types must not be negative, got {min(self.types)}")
        for what, groups in (
            ("bond", (*self.bonds, *(self.turning_bonds or ()))),
            ("chiral centre", self.chiral_centres),
        ):
            for group in groups:
                if len(set(group)) != len(group) or not all(0 <= i < n for i in group):
                    raise ValueError(
                        f"{what} {group} must name different particles of 0 to {n - 1}"
                    )
        if self.geometry is not None and len(self.geometry) != n:
            raise ValueError(f"geometry must hold {n} positions, got {len(self.geometry)}")
        return self

    @classmethod
    def of(
        cls,
        types: Iterable[Any],
        bonds: Iterable[Iterable[Any]] = (),
        *,
        chiral_centres: Iterable[Iterable[Any]] = (),
        turning_bonds: Iterable[Iterable[Any]] | None = None,
        geometry: Any = None,
    ) -> Self:
        """A molecule from any sequences or arrays of integers; ``geometry`` is ``(n, 3)``.

        Raises
        ------
        InputError
            They do not fit each other.
        """
        try:
            return cls(
                types=tuple(int(kind) for kind in types),
                bonds=tuple(sorted((min(i, j), max(i, j)) for i, j in _integers(bonds))),
                chiral_centres=tuple((c, i, j, k) for c, i, j, k in _integers(chiral_centres)),
                turning_bonds=(
                    None
                    if turning_bonds is None
                    else tuple((j, k) for j, k in _integers(turning_bonds))
                ),
                geometry=(
                    None
                    if geometry is None
                    else tuple((float(x), float(y), float(z)) for x, y, z in geometry)
                ),
            )
        except ValidationError as error:
            raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None
        except (TypeError, ValueError) as error:
            raise InputError(
                f"bonds must be pairs, chiral_centres 4-tuples of particle indices: {error}"
            ) from None

    def __len__(self) -> int:
        """Number of particles."""
        return len(self.types)

    def graph_distances(self) -> NDArray[np.int64]:
        """Number of bonds on the shortest path between particles ``(n, n)``; -1 where there is none."""
        return distances(len(self), self.bonds)

    def chain_root(self) -> NDArray[np.float64]:
        r"""Symmetric root ``(n, n)`` of the covariance of a Gaussian chain on the bond graph.

        Bonded particles are joined by ideal springs, all others by a weak one, so that
        :math:`C \propto (L + (I - 11^T / n) / n)^+` with the graph Laplacian L: neighbours start close
        (the harmonic prior of EigenFold, arXiv 2304.02198). The mean variance on the mean-free space is
        one; without bonds C is the projection onto it.
        """
        n = len(self)
        laplacian = (np.eye(n) - 1.0 / n) / n
        for i, j in self.bonds:
            laplacian[[i, j], [i, j]] += 1.0
            laplacian[[i, j], [j, i]] -= 1.0
        value, vector = np.linalg.eigh(laplacian)
        variance = np.where(value > 1e-9, 1.0 / np.maximum(value, 1e-9), 0.0)
        variance *= max(n - 1, 1) / variance.sum() if n > 1 else 0.0
        root: NDArray[np.float64] = (vector * np.sqrt(variance)) @ vector.T
        return root


def _integers(groups: Iterable[Iterable[Any]]) -> list[tuple[int, ...]]:
    return [tuple(int(index) for index in group) for group in groups]
