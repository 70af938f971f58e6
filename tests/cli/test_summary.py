"""What commands say of weights that come in blocks."""

from __future__ import annotations

import math

import pytest
import torch

from molsampler.cli.summary import WeightStatistics
from molsampler.estimate import effective_count, log_mean


def test_blocks_say_what_the_whole_says() -> None:
    weights = 700 + 2 * torch.randn(1000, generator=torch.Generator().manual_seed(0)).double()
    weights[3] = -math.inf
    energies = -0.5 * weights + torch.randn(1000, generator=torch.Generator().manual_seed(1))
    # What has no weight may have no energy.
    energies[3] = math.inf
    statistics = WeightStatistics()
    for block, u in zip(weights.split(300), energies.split(300), strict=True):
        statistics.add(block, u)
    found, log_z = statistics.summary(), log_mean(weights)
    assert found["ess"] == pytest.approx(effective_count(weights))
    assert found["log_z"]["value"] == pytest.approx(log_z.value)
    assert found["log_z"]["se"] == pytest.approx(log_z.se)
    assert found["max_weight"] == pytest.approx(float(weights.softmax(0).max()))
    assert statistics.line().startswith("weights: effective number")
    share = weights.softmax(0)
    finite = energies.nan_to_num(posinf=0.0)
    mean = float(share @ finite)
    spread = math.sqrt(float(share @ (finite - mean).square()))
    assert found["weighted_energies"] == pytest.approx({"mean": mean, "standard_deviation": spread})
    # Negative control: the mean without weights is another.
    assert abs(mean - float(finite.mean())) > 1
    said = statistics.energy_line({"minimum": -2.0, "maximum": 1.5e6, "nonfinite": 1})
    assert f"under the weights: mean {mean:.3f}" in said
    assert said.endswith("from -2 to 1.5e+06; 1 not finite")


def test_no_weights_and_no_weight_are_two_things() -> None:
    statistics = WeightStatistics()
    assert (statistics.summary(), statistics.line()) == ({}, "")
    statistics.add(torch.full((5,), -math.inf), torch.full((5,), math.inf))
    known = ("max_weight", "log_z", "weighted_energies")
    assert statistics.summary() == {"ess": 0.0, **dict.fromkeys(known)}
    assert "every one of 5 is zero" in statistics.line()
