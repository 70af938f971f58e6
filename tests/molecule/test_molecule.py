"""Bond graphs, chiral centres and inversion: laws, with negative controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from chains import Chain, methane
from peptides import BONDS, NAMES, Peptide
from torch import Tensor

from molsampler.errors import InputError
from molsampler.molecule.chirality import oriented, right_handed, signed_volumes, stereocentres
from molsampler.molecule.molecule import Molecule
from molsampler.systems import get_system


def rotation(seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=random, dtype=torch.float64))
    q[:, 0] *= torch.linalg.det(q).sign()
    return q


def test_identical_particles_have_no_description() -> None:
    assert get_system("lj13").molecule is None
    assert Chain((7, 7, 7), ()).molecule is None
    assert Chain((7, 7, 8), ()).molecule is not None


def test_a_molecule_is_a_value_that_json_keeps() -> None:
    found = methane().molecule
    assert found is not None
    assert len(found) == 5
    assert found.types == (0, 1, 2, 3, 4)
    assert found.bonds == ((0, 1), (0, 2), (0, 3), (0, 4))
    assert found.chiral_centres == ((0, 1, 2, 3),)
    assert (found.turning_bonds, found.geometry) == (None, None)
    whole = Molecule.of(
        np.array([1, 1]), [(1, 0)], turning_bonds=[(0, 1)], geometry=torch.arange(6).reshape(2, 3)
    )
    assert whole.bonds == ((0, 1),)
    for molecule in (found, whole):
        assert Molecule.model_validate(molecule.model_dump(mode="json")) == molecule


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bonds": [(0, 5)]}, "0 to 4"),
        ({"bonds": [(1, 1)]}, "different"),
        ({"bonds": [(0, 1, 2)]}, "bonds must be pairs"),
        ({"chiral_centres": [(0, 1, 2)]}, "4-tuples"),
        ({"turning_bonds": [(0, 7)]}, "0 to 4"),
        ({"types": [0, 0, 0, 0, -1]}, "negative"),
        ({"geometry": [[0.0, 0.0, 0.0]]}, "5 positions"),
        ({"geometry": [[0.0, 0.0]] * 5}, "unpack"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(changes: dict, message: str) -> None:
    fitting = {"types": [0, 1, 2, 3, 4], "bonds": [(0, 1)], "chiral_centres": [(0, 1, 2, 3)]}
    Molecule.of(**fitting)
    with pytest.raises(InputError, match=message):
        Molecule.of(**{**fitting, **changes})


def test_graph_distances_are_shortest_paths() -> None:
    ring = Molecule(types=(0,) * 7, bonds=((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5)))
    expected = np.full((7, 7), -1)
    for i in range(6):
        for j in range(6):
            expected[i, j] = min((i - j) % 6, (j - i) % 6)
    expected[6, 6] = 0
    assert np.array_equal(ring.graph_distances(), expected)


def test_the_latent_chain_has_springs_along_bonds() -> None:
    """Ideal springs on a tree: mean squared distance grows linearly with the number of bonds."""
    chain = Molecule(types=(0,) * 5, bonds=((0, 1), (1, 2), (2, 3), (3, 4)))
    root = chain.chain_root()
    covariance = root @ root
    assert np.trace(covariance) == pytest.approx(4.0)
    assert np.abs(root.sum(0)).max() < 1e-12
    squared = np.add.outer(np.diag(covariance), np.diag(covariance)) - 2 * covariance
    # The weak springs between all pairs shorten long distances a little.
    assert squared[0, 4] / squared[0, 1] == pytest.approx(4.0, rel=0.35)
    assert (np.diff(squared[0]) > 0).all()
    free = Molecule(types=(0,) * 5).chain_root()
    np.testing.assert_allclose(free, np.eye(5) - 0.2, atol=1e-12)


def test_signed_volumes_change_sign_in_the_mirror_alone() -> None:
    x = Peptide().sample(50, 0)
    centres = [(8, 6, 14, 10)]
    volumes = signed_volumes(x, centres)
    assert (volumes > 0).all()
    moved = x @ rotation(1).T + torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(signed_volumes(moved, centres), volumes)
    torch.testing.assert_close(signed_volumes(-x, centres), -volumes)
    torch.testing.assert_close(signed_volumes(x, [(8, 14, 6, 10)]), -volumes)
    assert oriented([(8, 14, 6, 10)], x[0]) == [(8, 6, 14, 10)]
    assert oriented([(8, 6, 14, 10)], x[0]) == [(8, 6, 14, 10)]
    assert oriented([], x[0]) == []


def test_stereocentres_are_where_four_branches_differ() -> None:
    elements = [name[0] for _, name in NAMES]
    assert [centre[0] for centre in stereocentres(elements, BONDS)] == [8]
    # 3-methylhexane has one, 3-methylpentane none: the ethyl groups are alike.
    hexane = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (2, 6)]
    for carbons, bonds, expected in ((7, hexane, [2]), (6, [*hexane[:4], (2, 5)], [])):
        kinds, edges = ["C"] * carbons, list(bonds)
        for carbon in range(carbons):
            for _ in range(4 - sum(carbon in bond for bond in bonds)):
                edges.append((carbon, len(kinds)))
                kinds.append("H")
        assert [centre[0] for centre in stereocentres(kinds, edges)] == expected


def test_wrong_hands_are_inverted_and_nothing_else_changes() -> None:
    system = Peptide()
    right = system.sample(40, 0)
    mixed = torch.cat([right[:20], -right[20:]])
    found = right_handed(mixed, [(8, 6, 14, 10)])
    assert torch.equal(found.positions, right)
    assert found.wrong_before.sum() == 20
    assert found.wrong_after.sum() == 0
    torch.testing.assert_close(system.energy(found.positions), system.energy(mixed))
    # Negative control: without centres the mirror images stay.
    assert torch.equal(right_handed(mixed, ()).positions, mixed)


def test_diastereomers_cannot_be_repaired_and_are_counted() -> None:
    x = torch.randn(200, 9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centres = ((0, 1, 2, 3), (4, 5, 6, 7), (8, 1, 5, 2))
    found = right_handed(x, centres)
    recount = (signed_volumes(found.positions, centres) < 0).sum(-1)
    assert torch.equal(found.wrong_after, recount)
    assert (found.wrong_after <= 1).all()
    assert found.wrong_after.sum() > 0


def test_chain_forces_are_the_derivative_of_its_energy() -> None:
    """The toy that training is tested on."""
    system = Chain()
    x = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5 * torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    change = (system.energy(x + step) - system.energy(x - step)) / 2
    slope = -(system.energy_and_score(x)[1] * step).sum((1, 2))
    torch.testing.assert_close(change, slope, rtol=1e-5, atol=1e-8)
