"""Samples that relax for longer than their sampler does by itself."""

from __future__ import annotations

import pytest
import torch

from molsampler import Sampler
from molsampler.errors import InputError


def test_relaxed_samples_cost_as_many_energies_more_and_say_so():
    sampler = Sampler.load("lj13")
    plain, relaxed = (sampler.sample(64, seed=1, relax=k) for k in (0, 7))
    assert "relax" not in plain.metadata
    assert relaxed.metadata["relax"] == 7
    spent = [each.metadata["energy_evaluations"] for each in (plain, relaxed)]
    # Samples are computed in whole blocks.
    assert (spent[1] - spent[0]) % 7 == 0
    assert spent[1] >= spent[0] + 7 * 64
    assert not torch.equal(plain.positions, relaxed.positions)
    # The sampler itself is as it was.
    assert torch.equal(sampler.sample(64, seed=1).positions, plain.positions)


@pytest.mark.parametrize(
    ("relax", "why"), [(-1, "relax"), (5001, "relax"), (1.5, "relax"), (3, "no Langevin layers")]
)
def test_what_cannot_be_is_refused(relax, why):
    name = "mog40-exact" if relax == 3 else "lj13"
    with pytest.raises(InputError, match=why):
        Sampler.load(name).sample(8, relax=relax)
