"""Frames in the order of time: what is kept of them, and that errors are then honest."""

from __future__ import annotations

import re

import pytest
import torch
from exact_systems import Springs
from torch import Tensor

from molsampler import Samples
from molsampler.analysis import compare
from molsampler.analysis.correlation import thinned
from molsampler.errors import InputError

SYSTEM = Springs(5, 3)


def run(count: int, memory: float, seed: int) -> Tensor:
    """An autoregressive chain with the law of :data:`SYSTEM`: x_t = m x_(t-1) + sqrt(1 - m^2) noise."""
    noise = SYSTEM.sample(count, seed)
    x = [noise[0]]
    for each in noise[1:]:
        x.append(memory * x[-1] + (1 - memory**2) ** 0.5 * each)
    return torch.stack(x)


def frames(count: int, memory: float, seed: int) -> Samples:
    return Samples.of(SYSTEM, run(count, memory, seed), time_ordered=True)


def test_correlated_frames_are_thinned_by_their_inefficiency() -> None:
    """An observable of second order forgets with m^2: g = (1 + m^2) / (1 - m^2) = 9.5 for m = 0.9."""
    kept, remark = thinned(frames(4000, 0.9, 0), SYSTEM, name="run.xtc", fewest=40)
    found = re.search(r"inefficiency ([\d.]+) frames", remark)
    assert found is not None, remark
    assert 7 < float(found[1]) < 13
    assert 300 < len(kept) < 580
    assert remark.startswith("run.xtc: 4,000 frames are worth")


def test_independent_frames_and_sets_without_an_order_are_left_alone() -> None:
    kept, remark = thinned(frames(2000, 0.0, 0), SYSTEM, name="run", fewest=40)
    assert len(kept) > 900
    unordered = Samples.of(SYSTEM, run(2000, 0.9, 0))
    kept, remark = thinned(unordered, SYSTEM, name="run", fewest=40)
    assert kept is unordered
    assert remark == ""


def test_runs_that_are_too_short_say_how_long_they_should_be() -> None:
    kept, remark = thinned(frames(400, 0.97, 1), SYSTEM, name="run", fewest=40)
    assert 40 <= len(kept) <= 60
    assert "too small by a factor" in remark
    with pytest.raises(InputError, match=r"says nothing of a law; 40 are needed, which takes"):
        thinned(frames(60, 0.998, 1), SYSTEM, name="run", fewest=40)
    # Fewer than are needed, and hardly correlated: all of them, which whoever compares then refuses.
    kept, _ = thinned(frames(19, 0.7, 3), SYSTEM, name="run", fewest=40)
    assert len(kept) <= 19


def test_weighted_frames_keep_their_weights() -> None:
    """And as many more of them as their effective number asks for."""
    weighted = frames(1000, 0.9, 0)
    log_weights = -2 * torch.rand(1000, generator=torch.Generator().manual_seed(0)).double()
    weighted = Samples(weighted.positions, weighted.energies, log_weights, weighted.metadata)
    kept, _ = thinned(weighted, SYSTEM, name="run", fewest=40)
    assert kept.log_weights is not None
    assert kept.ess >= 40
    rows = [int((weighted.energies == u).nonzero()[0]) for u in kept.energies]
    assert torch.equal(kept.log_weights, log_weights[rows])


def test_a_correlated_reference_no_longer_condemns_right_samples() -> None:
    """And the control: taken as independent, it does."""
    samples = Samples.of(SYSTEM, SYSTEM.sample(9000, 5))
    options = {"n": 4000, "monte_carlo": False, "drift_steps": 0, "transport_repeats": 0}
    failed = {True: 0, False: 0}
    for seed in range(3):
        x = run(9000, 0.995, seed)
        for ordered in failed:
            reference = Samples.of(SYSTEM, x, time_ordered=ordered)
            found = compare(samples, reference, SYSTEM, **options)
            failed[ordered] += not found.passed
    assert failed[True] == 0
    assert failed[False] >= 2
    assert not any(text.startswith("reference: ") for text in found.remarks)
    remark = compare(samples, frames(2000, 0.9, 0), SYSTEM, **options).remarks[0]
    assert remark.startswith("reference: 2,000 frames are worth")
