"""Atoms of two molecules are matched by their bonds, and equivalent ones by where they lie."""

from __future__ import annotations

import numpy as np
import pytest

from molsampler.errors import InputError
from molsampler.molecule.matching import first_difference, match, placement

#: Chloroethanol-like chain: two methylene groups, in the plane but for their hydrogens.
LABELS = list("ClCHHCHHOH".replace("Cl", "X"))
BONDS = [(0, 1), (1, 2), (1, 3), (1, 4), (4, 5), (4, 6), (4, 7), (7, 8)]
GEOMETRY = np.array(
    [[-1.5, -1, 0], [0, 0, 0], [0, 0.6, 0.9], [0, 0.6, -0.9], [1.3, -0.8, 0],
     [1.3, -1.4, 0.9], [1.3, -1.4, -0.9], [2.5, 0, 0], [3.3, -0.5, 0.1]]
)  # fmt: skip


def permuted(order: list[int]) -> tuple[list[str], list[tuple[int, int]], np.ndarray]:
    """The molecule with atom k of the new one being ``order[k]`` of the old one."""
    place = {atom: k for k, atom in enumerate(order)}
    bonds = [(place[i], place[j]) for i, j in BONDS]
    return [LABELS[i] for i in order], bonds, GEOMETRY[order]


@pytest.mark.parametrize("seed", range(12))
def test_any_order_is_undone_to_the_place_of_each_hydrogen(seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(LABELS)).tolist()
    labels, bonds, geometry = permuted(order)
    found = match(LABELS, BONDS, labels, bonds, geometry=GEOMETRY, other_geometry=geometry)
    assert [order[k] for k in found] == list(range(len(LABELS)))


def test_without_geometries_equivalent_atoms_stay_open_and_bonds_decide() -> None:
    labels, bonds, _ = permuted([8, 7, 6, 5, 4, 3, 2, 1, 0])
    found = match(LABELS, BONDS, labels, bonds)
    assert [labels[k] for k in found] == LABELS
    theirs = {frozenset(bond) for bond in bonds}
    assert all(frozenset((found[i], found[j])) in theirs for i, j in BONDS)


def test_equivalent_branches_are_told_apart_by_the_hand_of_their_centre() -> None:
    """The two methyls (here with one hydrogen each) of an isopropyl group."""
    labels, bonds = list("XCHCCHH"), [(0, 1), (1, 2), (1, 3), (1, 4), (3, 5), (4, 6)]
    geometry = np.array(
        [
            [0, 0, 1.5],
            [0, 0, 0],
            [-1, 0, -0.4],
            [0.5, 1, -0.4],
            [0.5, -1, -0.4],
            [1.0, 1.8, 0],
            [1, -1.8, 0],
        ]
    )
    # Branches exchanged as wholes: an isomorphism, but not the same molecule in space.
    order = [0, 1, 2, 4, 3, 6, 5]
    found = match(labels, bonds, labels, bonds, geometry=geometry, other_geometry=geometry[order])
    assert found == order
    assert placement(geometry[order], labels, bonds)[1] == -placement(geometry, labels, bonds)[1]


def test_the_sides_of_a_planar_group_are_kept() -> None:
    """Formamide: the amide's hydrogens, cis and trans to the oxygen."""
    labels, bonds = list("OCHNHH"), [(0, 1), (1, 2), (1, 3), (3, 4), (3, 5)]
    geometry = np.array(
        [[-0.6, 1.0, 0], [0, 0, 0], [-0.6, -0.9, 0], [1.3, 0, 0], [1.9, 0.9, 0], [1.9, -0.9, 0]]
    )
    swapped = [0, 1, 2, 3, 5, 4]
    found = match(labels, bonds, labels, bonds, geometry=geometry, other_geometry=geometry[swapped])
    assert found == swapped


def test_other_molecules_are_refused_with_the_first_difference() -> None:
    others = list(LABELS)
    others[7] = "S"
    with pytest.raises(InputError, match="the atoms are C2 H5 S1 X1, expected are C2 H5 O1 X1"):
        match(LABELS, BONDS, others, BONDS)
    # The same atoms, another isomer: oxygen between the carbons.
    isomer = [(0, 1), (1, 2), (1, 3), (1, 7), (7, 4), (4, 5), (4, 6), (4, 8)]
    with pytest.raises(InputError, match=r"atom 1 \(C, bonded to H, H, O, X\) has no partner"):
        match(LABELS, BONDS, LABELS, isomer)
    assert first_difference(LABELS, BONDS, LABELS, BONDS) == ""


def test_graphs_that_colours_do_not_tell_apart_are_searched_and_refused() -> None:
    """A ring of six and two rings of three have the same colours, and no isomorphism."""
    ring = [(k, (k + 1) % 6) for k in range(6)]
    triangles = [(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)]
    with pytest.raises(InputError, match="joined in another way"):
        match("C" * 6, ring, "C" * 6, triangles)
    assert sorted(match("C" * 6, ring, "C" * 6, ring)) == list(range(6))
