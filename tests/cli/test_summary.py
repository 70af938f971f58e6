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
    statistics = WeightStatistics()
    for block in weights.split(300):
        statistics.add(block)
    found, log_z = statistics.summary(), log_mean(weights)
    assert found["ess"] == pytest.approx(effective_count(weights))
    assert found["log_z"]["value"] == pytest.approx(log_z.value)
    assert found["log_z"]["se"] == pytest.approx(log_z.se)
    assert found["max_weight"] == pytest.approx(float(weights.softmax(0).max()))
    assert statistics.line().startswith("weights: effective number")


def test_no_weights_and_no_weight_are_two_things() -> None:
    statistics = WeightStatistics()
    assert (statistics.summary(), statistics.line()) == ({}, "")
    statistics.add(torch.full((5,), -math.inf))
    assert statistics.summary() == {"ess": 0.0, "max_weight": None, "log_z": None}
    assert "every one of 5 is zero" in statistics.line()
