"""The point of DiKL: the same training covers separated modes with wide noise and drops them without."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "make_mode_coverage.py"


@pytest.fixture(scope="module")
def toy():
    spec = importlib.util.spec_from_file_location("make_mode_coverage", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _least_covered(toy, sigma_max: float, iterations: int) -> float:
    target = toy.FourModes()
    shares = target.mode_shares(toy.train(sigma_max, iterations=iterations))
    return float((shares / target.weights).min())


def test_wide_noise_covers_every_mode(toy):
    assert _least_covered(toy, 5.0, 140) > 0.3


def test_reverse_kl_drops_modes(toy):
    assert _least_covered(toy, 0.12, 60) < 0.01
