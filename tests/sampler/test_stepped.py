"""Paths from noise in another number of steps than their sampler takes by itself."""

from __future__ import annotations

import pytest
import torch

from molsampler import Sampler
from molsampler.errors import InputError


def test_more_steps_even_weights_out_and_leave_log_z_where_it_is():
    sampler = Sampler.load("lj13-exact")
    few, more = (sampler.sample(1024, seed=2, steps=steps) for steps in (6, 12))
    assert few.metadata["steps"] == 6
    assert few.ess < more.ess / 2
    assert abs(few.log_z.value - more.log_z.value) < 4 * (few.log_z.se**2 + more.log_z.se**2) ** 0.5
    # An energy a row, however many steps; the sampler itself is as it was.
    assert few.metadata["energy_evaluations"] == more.metadata["energy_evaluations"]
    assert sampler.generator(torch.device("cpu")).sampling.steps == 100


@pytest.mark.parametrize(
    ("name", "steps", "why"),
    [
        ("lj13-exact", 1, "steps must be an integer from 2"),
        ("lj13-exact", 50.0, "steps must be an integer"),
        ("mog40-exact", 50, "draws in one pass"),
        ("lj13", 50, "draws in one pass"),
    ],
)
def test_what_cannot_be_is_refused(name, steps, why):
    with pytest.raises(InputError, match=why):
        Sampler.load(name).sample(8, steps=steps)
