"""The step at which a wanted share of moves is accepted, from whatever first guess."""

from __future__ import annotations

import pytest
import torch

from molsampler.mcmc import adapt, mala

from .densities import Gaussian, standard


def acceptance(target: Gaussian, found: adapt.Adaptation) -> float:
    random = torch.Generator().manual_seed(1)
    state = mala.init(target.sample(4000, random), target)
    return float(adapt.step(state, target, found, generator=random)[1].acceptance.mean())


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
@pytest.mark.parametrize("d", [1, 2, 30])
def test_the_step_is_found_from_any_guess(d: int, scale: float) -> None:
    target = standard(1, d, scale)
    random = torch.Generator().manual_seed(0)
    state = mala.init(target.sample(128, random), target)
    for wanted in (0.6, 0.8):
        found = adapt.found(state, target, step_size=1e-3, acceptance=wanted, generator=random)
        assert acceptance(target, found) == pytest.approx(wanted, abs=0.06)


def test_unlike_coordinates_have_lengths() -> None:
    widths = torch.tensor([1.0, 0.01], dtype=torch.float64)
    target = Gaussian(torch.zeros(1, 2), torch.diag(widths**2))
    random = torch.Generator().manual_seed(0)
    state = mala.init(target.sample(500, random), target)
    found = adapt.found(state, target, step_size=1e-3, acceptance=0.8, generator=random)
    assert found.scale is not None
    flat = found.scale.flatten()
    assert float(flat[1] / flat[0]) == pytest.approx(0.01, rel=0.2)
    assert acceptance(target, found) == pytest.approx(0.8, abs=0.06)
