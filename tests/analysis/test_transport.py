"""Wasserstein distances of configurations: closed forms, symmetries and exhaustive search."""

from __future__ import annotations

import itertools

import numpy as np
import ot
import pytest
import torch
from exact_systems import Springs, random_pose
from torch import Tensor

from molsampler.analysis.transport import _nuclear_norm, geometric_wasserstein2, wasserstein2
from molsampler.errors import InputError


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exhaustive(
    x: Tensor, y: Tensor, *, permute: bool = True, types: tuple[int, ...] | None = None
) -> float:
    """Geo-W2 by trying every permutation with the best rotation or reflection of each."""
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    n = x.shape[1]
    orders = list(itertools.permutations(range(n))) if permute else [tuple(range(n))]
    if types is not None:
        orders = [
            order for order in orders if all(types[i] == types[j] for i, j in enumerate(order))
        ]
    overlap = torch.stack(
        [
            torch.linalg.svdvals(torch.einsum("ipa,jpb->ijab", x, y[:, list(order)])).sum(-1)
            for order in orders
        ]
    ).amax(0)
    norms = x.square().sum((1, 2))[:, None] + y.square().sum((1, 2))
    cost = (norms - 2 * overlap).clamp_min(0).numpy()
    return float(np.sqrt(ot.emd2([], [], cost)))


def test_identical_sets_are_at_distance_zero_in_any_order() -> None:
    x = draw(40, 3, 2, seed=0)
    assert wasserstein2(x, x.flip(0)) == pytest.approx(0.0, abs=1e-9)


def test_a_translated_set_is_as_far_as_the_translation() -> None:
    x, shift = draw(50, 3, 2, seed=1), draw(3, 2, seed=2)
    assert wasserstein2(x, x + shift) == pytest.approx(float(shift.norm()), rel=1e-9)


def test_symmetry_and_unequal_sizes() -> None:
    x, y = draw(20, 2, 3, seed=3), draw(20, 2, 3, seed=4)
    assert wasserstein2(x, y) == pytest.approx(wasserstein2(y, x))
    # Every point twice is the same measure.
    assert wasserstein2(x, torch.cat((y, y))) == pytest.approx(wasserstein2(x, y), rel=1e-6)


CASES = [(2, 2), (3, 2), (4, 2), (2, 3), (3, 3), (4, 3), (5, 3), (3, 1)]


@pytest.mark.parametrize(("n", "d"), CASES)
def test_geometric_distance_equals_exhaustive_search(n: int, d: int) -> None:
    x, y = draw(12, n, d, seed=5), 1.3 * draw(12, n, d, seed=6)
    found = geometric_wasserstein2(x, y)
    assert found.value == pytest.approx(exhaustive(x, y), rel=1e-5)
    assert found.exact == (d < 3 or n < 4)


def test_an_iterated_value_is_an_upper_bound_near_the_optimum() -> None:
    x, y = draw(40, 5, 3, seed=7), draw(40, 5, 3, seed=8)
    found = geometric_wasserstein2(x, y, neighbours=4, rounds=20)
    best = exhaustive(x, y)
    assert found.evaluated < 1.0
    assert best - 1e-9 <= found.value < 1.05 * best


@pytest.mark.parametrize(("n", "d"), [(4, 2), (4, 3), (7, 3)])
def test_geometric_distance_ignores_pose_and_labels(n: int, d: int) -> None:
    x = draw(15, n, d, seed=9)
    assert geometric_wasserstein2(x, random_pose(x, seed=10)).value < 2e-3
    assert wasserstein2(x, random_pose(x, seed=10)) > 0.5


def test_labelled_particles_are_superposed_but_not_relabelled() -> None:
    x, y = draw(20, 4, 3, seed=11), draw(20, 4, 3, seed=12)
    found = geometric_wasserstein2(x, y, exchangeable=False)
    assert found.exact
    assert found.value == pytest.approx(exhaustive(x, y, permute=False), rel=1e-6)
    assert geometric_wasserstein2(
        x, random_pose(x, seed=1, permute=False), exchangeable=False
    ).value == pytest.approx(0.0, abs=1e-5)
    assert geometric_wasserstein2(x, random_pose(x, seed=1), exchangeable=False).value > 0.3


@pytest.mark.parametrize(
    ("types", "d"), [((0, 0, 1, 1), 2), ((0, 1, 2), 3), ((0, 0, 1, 1), 3), ((0, 1, 1, 0, 1), 3)]
)
def test_particles_of_equal_type_are_relabelled_and_no_others(types, d: int) -> None:
    n = len(types)
    x, y = draw(12, n, d, seed=13), 1.3 * draw(12, n, d, seed=14)
    best, found = exhaustive(x, y, types=types), geometric_wasserstein2(x, y, types=types)
    assert best - 1e-4 <= found.value < best * (1.0 + (1e-4 if found.exact else 0.02))
    assert geometric_wasserstein2(x, y).value < best - 1e-3
    alike, mixed = list(range(n)), [*range(1, n), 0]
    ends = [k for k in range(n) if types[k] == types[0]]
    alike[ends[0]], alike[ends[-1]] = ends[-1], ends[0]
    assert geometric_wasserstein2(x, x[:, alike], types=types).value < 2e-3
    # The negative control exchanges what is not alike.
    assert geometric_wasserstein2(x, x[:, mixed], types=types).value > 0.2


def test_geometric_distance_is_at_most_the_raw_one_and_deterministic() -> None:
    x, y = Springs(6, 3).sample(30, seed=1), Springs(6, 3).sample(30, seed=2)
    found = geometric_wasserstein2(x, y)
    assert found.value < wasserstein2(x, y)
    assert geometric_wasserstein2(x, y) == found


def test_degenerate_configurations_do_not_break_the_frames() -> None:
    line = torch.zeros(4, 6, 3, dtype=torch.float64)
    line[..., 0] = torch.arange(6)
    point = torch.zeros(4, 6, 3, dtype=torch.float64)
    assert geometric_wasserstein2(line, line.flip(1)).value == pytest.approx(0.0, abs=1e-6)
    expected = float((line - line.mean(1, keepdim=True))[0].norm())
    assert geometric_wasserstein2(line, point).value == pytest.approx(expected)


def test_unusable_sets_are_refused() -> None:
    x = draw(5, 3, 2, seed=0)
    for bad in (x[:0], x[0], x * torch.nan, draw(5, 4, 2, seed=0)):
        with pytest.raises(InputError):
            wasserstein2(x, bad)
        with pytest.raises(InputError):
            geometric_wasserstein2(x, bad)
    with pytest.raises(InputError, match="d = 4"):
        geometric_wasserstein2(draw(3, 3, 4, seed=0), draw(3, 3, 4, seed=1))
    with pytest.raises(InputError, match="starts"):
        geometric_wasserstein2(x, x, starts=0)


def test_nuclear_norms_are_the_sums_of_singular_values() -> None:
    """Of random matrices of both hands, of planar and collinear ones, and of zero."""
    m = torch.randn(500, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flat = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    line = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    for each in (m, -m, m * flat, m * line, 1e-9 * m, torch.zeros_like(m[:1])):
        expected = torch.linalg.svdvals(each).sum(-1)
        torch.testing.assert_close(_nuclear_norm(each), expected, rtol=1e-9, atol=1e-18)
