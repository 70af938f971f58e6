"""Size and pair structure: formulas, other programs, and the ideal gas to which g(r) refers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from toy_systems import Cluster

from molsampler.errors import InputError, ShapeError
from molsampler.samples import Samples
from molsampler.structure import (
    ball_radius,
    ideal_distribution,
    radial_distribution,
    radius_of_gyration,
)


def even(n: int, particles: int, dimension: int, radius: float, seed: int = 0) -> Tensor:
    """Points spread evenly in a ball or disc, float64."""
    random = torch.Generator().manual_seed(seed)
    shape = (n, particles, dimension)
    direction = torch.randn(shape, generator=random, dtype=torch.float64)
    share = torch.rand(shape[:2], generator=random, dtype=torch.float64) ** (1 / dimension)
    return radius * share[..., None] * direction / direction.norm(dim=-1, keepdim=True)


def test_radius_of_gyration_is_its_formula_and_that_of_mdtraj() -> None:
    mdtraj = pytest.importorskip("mdtraj")
    # Corners of a unit square: every particle stands sqrt(1/2) from the centre, wherever that is.
    square = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]) + 7
    assert float(radius_of_gyration(square)) == pytest.approx(math.sqrt(0.5))
    system = Cluster()
    samples = Samples.of(system, system.grid(20, noise=0.2))
    found = samples.radius_of_gyration()
    theirs = mdtraj.compute_rg(samples.to_mdtraj(system=system))
    assert found.shape == (20,)
    assert found.dtype == torch.float64
    assert np.allclose(found.numpy() * system.length_nm, theirs, rtol=1e-5)


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("particles", [2, 13])
def test_an_ideal_gas_in_a_ball_has_one_everywhere(dimension: int, particles: int) -> None:
    x = even(20_000 if particles == 2 else 3_000, particles, dimension, 2.5)
    for radius in (2.5, None):
        found = radial_distribution(x, bins=25, radius=radius)
        assert found.radius == pytest.approx(2.5, rel=0.02)
        # A pair that never is so near has no error; the first bins may be empty.
        seen = found.se > 0
        assert seen.sum() >= 23
        assert (np.abs(found.g - 1) < 5.5 * found.se)[seen].all()
    assert found.neighbours[-1] == pytest.approx(0.99 * (particles - 1), abs=0.01 * particles)
    # Negative controls: a shell and the gas of another ball are seen at once.
    shell = x / x.norm(dim=-1, keepdim=True)
    wrong = radial_distribution(shell, bins=25)
    assert (np.abs(wrong.g - 1) > 20 * wrong.se)[wrong.se > 0].any()
    wide = radial_distribution(x, bins=25, radius=3.0)
    assert (np.abs(wide.g - 1) > 8 * wide.se)[wide.se > 0].any()


@pytest.mark.parametrize("dimension", [2, 3])
def test_the_law_of_the_ideal_gas_is_a_distribution_with_the_stated_moment(dimension: int) -> None:
    r = np.linspace(0, 3.0, 20_001)
    law = ideal_distribution(r, 1.5, dimension)
    assert law[0] == pytest.approx(0, abs=1e-12)
    assert law[-1] == pytest.approx(1)
    assert (np.diff(law) >= -1e-12).all()
    middle = 0.5 * (r[1:] + r[:-1])
    assert ball_radius(float((np.diff(law) * middle**2).sum()), dimension) == pytest.approx(
        1.5, rel=1e-4
    )


def test_weights_turn_one_law_into_another() -> None:
    """Half of the samples are small clusters without weight: what is left is the gas of the large ones."""
    x = torch.cat([even(4000, 6, 3, 2.0), even(4000, 6, 3, 1.0, seed=1)])
    weights = torch.zeros(8000, dtype=torch.float64)
    weights[4000:] = -math.inf
    found = radial_distribution(x, log_weights=weights, bins=20)
    plain = radial_distribution(x[:4000], bins=20)
    assert np.allclose(found.g, plain.g, rtol=1e-12)
    # The errors know that half of the rows say nothing.
    assert np.allclose(found.se, plain.se, rtol=1e-3)
    unweighted = radial_distribution(x, bins=20)
    assert (np.abs(unweighted.g - 1) > 20 * unweighted.se)[unweighted.se > 0].any()


def test_coordination_numbers_and_chosen_pairs() -> None:
    """A square: two neighbours at distance 1, a third at sqrt 2."""
    square = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    found = radial_distribution(square, bins=40, r_max=2.0)
    assert found.neighbours[int(1.2 / 0.05)] == pytest.approx(2)
    assert found.neighbours[-1] == pytest.approx(3)
    diagonals = radial_distribution(square, bins=40, r_max=2.0, pairs=[(0, 3), (1, 2)])
    assert diagonals.radius == found.radius
    assert diagonals.neighbours[int(1.2 / 0.05)] == 0
    assert diagonals.neighbours[-1] == pytest.approx(2)
    assert np.isnan(radial_distribution(square, bins=4, r_max=9.0).g[-1])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"bins": 0}, "bins must be"),
        ({"r_max": -1.0}, "r_max must be a positive length, got -1.0"),
        ({"radius": math.nan}, "radius must be"),
        ({"pairs": [(0, 0)]}, "two different particles"),
        ({"pairs": [(0, 9)]}, "0 to 3"),
        ({"pairs": []}, "at least one pair"),
    ],
)
def test_what_is_wrong_is_said(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        radial_distribution(torch.randn(3, 4, 3), **arguments)  # type: ignore[arg-type]


def test_shapes_without_pairs_are_refused() -> None:
    for shape in ((0, 4, 3), (3, 1, 3), (3, 4, 1), (4, 3)):
        with pytest.raises(ShapeError, match="radial distribution needs"):
            radial_distribution(torch.zeros(shape))
    with pytest.raises(InputError, match="one place"):
        radial_distribution(torch.zeros(2, 3, 3))
