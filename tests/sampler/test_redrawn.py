"""Draws far outside the energies of the population that training had are drawn again, and counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from molsampler import Sampler
from molsampler.export.parts import merge, save_stream
from molsampler.sampler.card import EnergyBounds
from molsampler.train.verdict import BROKEN_GOAL, REDRAWN_GOAL, by_broken

N = 3000


@pytest.fixture(scope="module")
def free() -> Sampler:
    sampler = Sampler.load("dw4")
    assert sampler.card.energy_bounds is not None
    return bounded_by(sampler, None)


def within(sampler: Sampler, low: float, high: float) -> Sampler:
    return bounded_by(sampler, (low, high))


def bounded_by(sampler: Sampler, bounds: tuple[float, float] | None) -> Sampler:
    card = sampler.card.model_copy(update={"energy_bounds": bounds})
    return Sampler(
        card, sampler.system, sampler.generator(torch.device("cpu")), sampler.path, "0" * 64
    )


def test_rows_out_of_bounds_and_no_others_are_replaced(free) -> None:
    plain = free.sample(N, seed=3)
    assert "redrawn" not in plain.metadata
    low, high = (float(plain.energies.quantile(q)) for q in (0.001, 0.98))
    bounded = within(free, low, high).sample(N, seed=3)
    # float32 rounding of a position moves its energy by some 1e-5.
    assert float(bounded.energies.max()) < high + 1e-3
    assert float(bounded.energies.min()) > low - 1e-3
    inside = (plain.energies > low + 1e-3) & (plain.energies < high - 1e-3)
    assert torch.equal(plain.positions[inside], bounded.positions[inside])
    outside = (plain.energies < low - 1e-3) | (plain.energies > high + 1e-3)
    assert int(outside.sum()) <= bounded.metadata["redrawn"] <= int((~inside).sum())
    assert not torch.isclose(plain.positions[outside], bounded.positions[outside]).any()
    # What takes their place is drawn as the others were.
    kept = plain.energies[inside]
    fresh = bounded.energies[outside]
    assert abs(float(fresh.mean() - kept.mean())) < 5 * float(kept.std()) / len(fresh) ** 0.5
    assert bounded.metadata["energy_evaluations"] > plain.metadata["energy_evaluations"]


def test_samples_do_not_depend_on_how_many_are_asked_for(free) -> None:
    bounded = within(free, -100.0, -22.0)
    whole, part = bounded.sample(N, seed=4), bounded.sample(1500, seed=4)
    assert torch.equal(whole.positions[:1500], part.positions)


def test_parts_add_up(free, tmp_path: Path) -> None:
    bounded = within(free, -100.0, -22.0)
    for name, blocks in (("whole", None), ("a", slice(0, 1)), ("b", slice(1, None))):
        stream = bounded.stream(N, seed=5, blocks=blocks)
        save_stream(stream, stream.blocks(), tmp_path / f"{name}.npz")
    merge([tmp_path / "a.npz", tmp_path / "b.npz"], tmp_path / "merged.npz")
    assert (tmp_path / "merged.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_refined_samples_are_repaired_and_not_replaced(free) -> None:
    plain = free.sample(500, seed=6, refine=3)
    bounded = within(free, -100.0, -22.0).sample(500, seed=6, refine=3)
    assert "redrawn" not in bounded.metadata
    assert torch.equal(plain.positions, bounded.positions)


def test_bounds_that_nothing_meets_end_in_what_was_drawn(free) -> None:
    plain, hopeless = free.sample(100, seed=7), within(free, 500.0, 600.0).sample(100, seed=7)
    assert hopeless.metadata["redrawn"] == 100
    assert torch.equal(plain.positions, hopeless.positions)


def test_a_sampler_of_a_range_has_bounds_at_every_temperature_of_it() -> None:
    ranged = Sampler.load("dw4-range")
    assert [each.temperature for each in ranged.card.energy_bounds][::2] == [0.7, 1.5]
    free = ranged.sample(N, seed=8, temperature=1.0)
    assert free.metadata.get("redrawn", 0) == 0
    # Halfway in the inverse temperature, the middle of what the ends have.
    cold, hot = 0.8, 1 / (2 - 1 / 0.8)
    high = float(free.energies.quantile(0.97))
    rows = [
        EnergyBounds(temperature=hot, low=-90.0, high=high + 5),
        EnergyBounds(temperature=cold, low=-110.0, high=high - 5),
    ]
    card = ranged.card.model_copy(update={"energy_bounds": rows})
    assert card.bounds_at(1.0) == pytest.approx((-100.0, high))
    assert card.bounds_at(0.1) == (-110.0, high - 5)
    bounded = Sampler(
        card, ranged.system, ranged.generator(torch.device("cpu")), ranged.path, "0" * 64
    )
    found = bounded.sample(N, seed=8, temperature=1.0)
    assert float(found.energies.max()) < high + 1e-3 < float(free.energies.max())
    assert found.metadata["redrawn"] >= 0.02 * N
    # At the colder end the bound is another.
    colder = bounded.sample(500, seed=8, temperature=cold)
    assert float(colder.energies.max()) < high - 5 + 1e-3


def test_weights_are_those_of_all_draws() -> None:
    exact = Sampler.load("mog40-exact")
    bounded = within(exact, -1.0, 1.0).sample(500, seed=0)
    assert "redrawn" not in bounded.metadata
    assert torch.equal(bounded.positions, exact.sample(500, seed=0).positions)


def test_a_verdict_allows_what_can_be_drawn_again() -> None:
    few = int(REDRAWN_GOAL * 10_000)
    assert by_broken(few, 10_000, redrawn=True).usable
    assert "drawn again" in str(by_broken(few, 10_000, redrawn=True))
    assert not by_broken(few + 1, 10_000, redrawn=True).usable
    assert not by_broken(1, 10_000).usable
    assert BROKEN_GOAL == 0.0
