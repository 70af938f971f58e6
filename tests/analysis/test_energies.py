"""Total variation and 1-D Wasserstein distances against closed forms and a transport solver."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from molsampler.analysis.distances import distance_total_variation, interatomic_distances
from molsampler.analysis.energies import (
    histogram,
    total_variation,
    trimmed_wasserstein2,
    wasserstein2_1d,
)
from molsampler.errors import InputError, NonFiniteError, ShapeError

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=30)


@given(VALUES, VALUES)
@settings(max_examples=60, deadline=None)
def test_wasserstein_equals_the_transport_solver_and_is_symmetric(
    a: list[float], b: list[float]
) -> None:
    cost = (np.asarray(a)[:, None] - np.asarray(b)) ** 2
    # of squares: the solver rounds the cost, and a root near zero would magnify that
    exact = pytest.approx(ot.emd2([], [], cost), rel=1e-6, abs=1e-12 * cost.max())
    assert wasserstein2_1d(a, b) ** 2 == exact
    assert wasserstein2_1d(a, b) == pytest.approx(wasserstein2_1d(b, a), rel=1e-12, abs=1e-12)


@given(VALUES, st.floats(-50, 50))
@settings(max_examples=40, deadline=None)
def test_wasserstein_of_a_shifted_set_is_the_shift(a: list[float], shift: float) -> None:
    moved = np.asarray(a) + shift
    assert wasserstein2_1d(a, moved) == pytest.approx(abs(shift), abs=1e-9)
    assert wasserstein2_1d(a, a) == 0.0


def test_wasserstein_of_two_gaussians() -> None:
    random = np.random.default_rng(0)
    n = 200_000
    a, b = random.normal(0, 1, n), random.normal(0.5, 1.5, n + 7)
    # W2^2 = (difference of means)^2 + (difference of standard deviations)^2
    assert wasserstein2_1d(a, b) == pytest.approx(math.hypot(0.5, 0.5), abs=5 * 2 / math.sqrt(n))


@given(VALUES, VALUES)
@settings(max_examples=60, deadline=None)
def test_total_variation_is_in_the_unit_interval_and_zero_on_itself(
    a: list[float], b: list[float]
) -> None:
    found = total_variation(a, b)
    assert 0.0 <= found.value <= 1.0
    assert found.outside <= 2 * found.value + 1e-12
    assert total_variation(b, b).value == 0.0


def test_total_variation_on_known_bins() -> None:
    reference = np.concatenate([np.full(50, 0.0), np.full(50, 1.0)])
    samples = np.concatenate([np.full(70, 0.0), np.full(20, 1.0), np.full(10, 5.0)])
    found = total_variation(samples, reference, bins=2)
    # |.7 - .5| + |.2 - .5| inside and .1 that the reference has nowhere
    assert found.value == pytest.approx(0.5 * (0.2 + 0.3 + 0.1))
    assert found.outside == pytest.approx(0.1)


def test_mass_outside_the_range_is_missing_mass() -> None:
    reference = np.linspace(0, 1, 100)
    assert total_variation(reference + 10, reference).value == pytest.approx(1.0)
    assert total_variation(np.full(5, np.inf), reference).value == pytest.approx(1.0)


def test_infinite_energies_are_outside_trimmed_and_infinitely_far() -> None:
    reference = np.linspace(0, 1, 100)
    samples = np.append(reference, [np.inf, 1e9])
    assert wasserstein2_1d(samples, reference) == math.inf
    trimmed = trimmed_wasserstein2(samples, reference)
    assert trimmed.value == 0.0
    assert trimmed.share == pytest.approx(2 / 102)
    assert trimmed_wasserstein2([np.inf], reference).value == math.inf


def test_trimming_keeps_half_a_width_on_each_side() -> None:
    reference = np.array([0.0, 10.0])
    assert trimmed_wasserstein2([-5.0, 15.0], reference).share == 0.0
    assert trimmed_wasserstein2([-5.01, 15.0], reference).share == 0.5


def test_histogram_densities_hold_the_share_inside() -> None:
    random = np.random.default_rng(1)
    reference, samples = random.normal(size=4000), random.normal(3.0, 1.0, 4000)
    h = histogram(samples, reference)
    assert (h.samples * np.diff(h.edges)).sum() == pytest.approx(1 - h.outside)
    assert (h.reference * np.diff(h.edges)).sum() == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("bad", [[], [0.0, math.nan]])
def test_empty_and_nan_sets_are_refused(bad: list[float]) -> None:
    for function in (total_variation, wasserstein2_1d, trimmed_wasserstein2, histogram):
        with pytest.raises(InputError):
            function(bad, [0.0, 1.0])
        with pytest.raises(InputError):
            function([0.0, 1.0], bad)


def test_an_infinite_reference_is_refused() -> None:
    with pytest.raises(NonFiniteError, match="reference"):
        total_variation([0.0], [0.0, math.inf])


def test_distances_of_a_right_triangle() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert interatomic_distances(x).tolist() == [3.0, 4.0, 5.0]
    with pytest.raises(ShapeError, match="two or more"):
        interatomic_distances(torch.zeros(5, 1, 2))


def test_distance_variation_ignores_pose_and_sees_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 5, 3, generator=generator, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    # Rounding may move a distance across a bin edge; each such move counts 1 / 5000.
    assert distance_total_variation(x.flip(1) @ rotation, x).value < 0.01
    assert distance_total_variation(1.5 * x, x).value > 0.2
