"""A sampler that is not usable as trained may be with kinetic layers, and they become part of it."""

from __future__ import annotations

import pytest

from molsampler import Sampler
from molsampler.systems import PairPotential
from molsampler.train import load_config, train, trainer

#: Three particles on springs after a few iterations: as good as untrained.
SETTINGS = (
    "compile=false", "iterations=2", "batch_size=16", "evaluate_every=2", "evaluate_samples=600",
    "generator.body.width=8", "generator.body.layers=1", "denoiser.width=8", "denoiser.layers=1",
    "target_score.warmup=2", "target_score.size=1024", "target_score.equilibration=100",
    "target_score.refresh=16", "sampling.kinetic=null",
)  # fmt: skip


def springs() -> PairPotential:
    return PairPotential("springs", "10*(r - 1.5)^2", n=3, d=2)


@pytest.fixture(autouse=True)
def affordable(monkeypatch):
    """Tries are bounded by the energies of the training, which this one hardly has."""
    monkeypatch.setattr(trainer, "_TRY_SHARE", 100.0)
    monkeypatch.setattr(trainer, "_RELAXATIONS", (4, 128))


@pytest.mark.parametrize("asked", [0, 1])
def test_layers_that_make_a_sampler_usable_are_part_of_it(tmp_path, asked):
    more = (f"sampling.kinetic.steps={asked}",) if asked else ()
    config = load_config("fast", springs(), overrides=(*SETTINGS, *more))
    train(springs(), tmp_path / "run", config)
    sampler = Sampler.load(tmp_path / "run" / "artifact")
    kinetic = sampler.card.sampling["kinetic"]
    assert kinetic["steps"] - asked in trainer._RELAXATIONS
    assert sampler.card.verdict.usable
    assert f"with {kinetic['steps'] - asked} kinetic layers more" in sampler.card.verdict.sentence
    samples = sampler.sample(100, seed=0)
    layers = config.generator.langevin_layers + kinetic["steps"]
    assert samples.metadata["energy_evaluations"] >= 100 * layers


def test_without_calibration_the_sampler_is_left_as_it_is(tmp_path):
    """And the same training is not usable: layers are what the other test sees."""
    config = load_config("fast", springs(), overrides=(*SETTINGS, "calibrate=false"))
    train(springs(), tmp_path / "run", config)
    card = Sampler.load(tmp_path / "run" / "artifact").card
    assert not card.verdict.usable
    assert card.sampling["kinetic"] is None


def test_tries_take_no_more_than_their_share_of_the_energies(tmp_path, monkeypatch):
    """Two numbers of layers, of which the last is judged twice if it passes."""
    spent = {}
    for share in (0.0, 0.5):
        monkeypatch.setattr(trainer, "_TRY_SHARE", share)
        run = tmp_path / f"share-{share}"
        train(springs(), run, load_config("fast", springs(), overrides=SETTINGS))
        card = Sampler.load(run / "artifact").card
        spent[share] = card.training.cost.energy_evaluations
    assert spent[0.0] < spent[0.5] <= (1 + 3 * 0.5) * spent[0.0]


def test_tries_that_do_not_help_leave_no_trace(tmp_path, monkeypatch):
    # As many as would do are not tried after one that did not help enough.
    monkeypatch.setattr(trainer, "_RELAXATIONS", (1, 128))
    monkeypatch.setattr(trainer, "_HELPED", 0.3)
    train(springs(), tmp_path / "tried", load_config("fast", springs(), overrides=SETTINGS))
    monkeypatch.setattr(trainer, "_RELAXATIONS", ())
    train(springs(), tmp_path / "plain", load_config("fast", springs(), overrides=SETTINGS))
    cards = [Sampler.load(tmp_path / run / "artifact").card for run in ("tried", "plain")]
    assert not cards[0].verdict.usable
    assert cards[0].verdict == cards[1].verdict
    assert cards[0].sampling == cards[1].sampling
    assert cards[0].quality == cards[1].quality
    assert cards[0].training.cost.energy_evaluations > cards[1].training.cost.energy_evaluations
