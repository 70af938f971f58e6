"""A training that is to fit a time: fewer chains, a shorter schedule, and otherwise an ordinary run."""

from __future__ import annotations

import logging
import os
import signal
import time

import pytest
import torch

from molsampler.errors import InputError
from molsampler.systems import get_system
from molsampler.target import System
from molsampler.train import checkpoint, load_config, train
from molsampler.train.config import from_yaml
from molsampler.train.fit import Pace, chains_that_fit, schedule_that_fits
from molsampler.train.trainer import Trainer

SETTINGS = (
    "compile=false", "batch_size=8", "score_steps=1", "evaluate_samples=20",
    "evaluate_steps=2", "log_every=1", "generator.body.width=4", "generator.body.layers=1",
    "denoiser.width=4", "denoiser.layers=1",
    "target_score={size: 24, anneal_moves: 2, equilibration: 6, refresh: 8, warmup: 500}",
)  # fmt: skip
PROMPT = "target_score.warmup=2"
PACE = Pace(warmup=0.01, training=0.1, evaluation=1.0)


def config(*extra):
    return load_config("fast", "dw4", overrides=(*SETTINGS, *extra))


def cost(settings, pace):
    judged = -(-settings.iterations // settings.evaluate_every)
    steps = settings.objective.target_score.warmup * pace.warmup
    return steps + settings.iterations * pace.training + judged * pace.evaluation


@pytest.mark.parametrize("left", [30.0, 100.0, 400.0, 1e4])
def test_a_schedule_takes_no_longer_than_is_left(left):
    whole = config("iterations=5000", "within=1e4")
    found = schedule_that_fits(whole, PACE, warmup=500, left=left)
    assert cost(found, PACE) <= left
    # It uses the time, apart from what the end of a training costs and a reserve.
    assert found == whole or cost(found, PACE) >= 0.8 * left - 11 * PACE.evaluation
    assert (found == whole) == (left == 1e4)


def test_the_warm_up_is_cut_where_it_is_more_than_its_share():
    whole = config("iterations=5000")
    left_alone = {"iterations": 5000, "evaluate_every": 250, "objective": whole.objective}
    for left, warmup in ((100.0, 500), (20.0, 231)):
        found = schedule_that_fits(whole, PACE, warmup=500, left=left)
        assert found.objective.target_score.warmup == pytest.approx(warmup, abs=3)
        assert found.iterations < 5000
        assert found.model_copy(update=left_alone) == whole


@pytest.mark.parametrize("kind", ["fast", "exact"])
def test_a_short_schedule_keeps_its_rate_for_longer(kind):
    for system in ("dw4", "lj13"):
        whole = load_config(kind, system).objective
        starts = [whole.shortened(share, 1.0).decay_start for share in (1.0, 0.5, 0.1)]
        assert starts[0] == pytest.approx(whole.decay_start)
        assert starts[0] < starts[1] < starts[2] < 0.9


def test_evaluations_are_as_many_as_their_share_of_the_time_allows():
    whole = config("iterations=5000")
    dear = schedule_that_fits(whole, Pace(0.01, 0.1, 20.0), warmup=500, left=400.0)
    cheap = schedule_that_fits(whole, Pace(0.01, 0.1, 0.01), warmup=500, left=400.0)
    assert -(-dear.iterations // dear.evaluate_every) == 2
    assert -(-cheap.iterations // cheap.evaluate_every) == 20


def test_without_time_a_few_iterations_are_made_all_the_same():
    assert schedule_that_fits(config(), PACE, warmup=500, left=-5.0).iterations == 20


def test_chains_have_their_share_of_the_time():
    many = config("within=100", "target_score.size=8192")
    assert chains_that_fit(many, seconds=35.0) is None
    assert chains_that_fit(many, seconds=70.0) == 4096
    assert chains_that_fit(many, seconds=1e6) == 512
    assert chains_that_fit(config("target_score.size=8192"), seconds=1e6) is None
    assert chains_that_fit(config("within=100"), seconds=1e6) is None


@pytest.mark.parametrize("kind", ["fast", "exact"])
def test_objectives_tell_and_take_their_number_of_chains(kind):
    for system in ("dw4", "lj13"):
        objective = load_config(kind, system).objective
        assert objective.with_chains(640).chains == 640
        assert objective.with_chains(objective.chains) == objective


def test_a_fitted_run_ends_in_time_and_is_the_run_of_its_settings(tmp_path):
    system = get_system("dw4")
    began = time.monotonic()
    fitted = train(system, tmp_path / "fitted", config("iterations=100000", "within=3"))
    # It ends by itself, and a machine with other work is given its due.
    assert time.monotonic() - began < 10
    assert fitted.status == "completed"
    found = from_yaml(tmp_path / "fitted" / "config.resolved.yaml")
    assert 20 <= fitted.iteration == fitted.total == found.iterations < 100000
    settings = found.model_copy(update={"within": None})
    train(system, tmp_path / "plain", settings)
    kept = [
        checkpoint.load_latest(tmp_path / name / "checkpoints")[0] for name in ("fitted", "plain")
    ]
    assert all(torch.equal(kept[0][key], kept[1][key]) for key in kept[0].keys() | kept[1].keys())


def test_a_fitted_run_that_is_stopped_goes_on_with_what_was_found(tmp_path, monkeypatch):
    system, asked = get_system("dw4"), config("iterations=100000", "within=4")
    step = Trainer.step

    def interrupting(self):
        if self.state.steps == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupting)
        stopped = train(system, tmp_path, asked)
    assert stopped.status == "interrupted"
    before = from_yaml(tmp_path / "config.resolved.yaml")
    with pytest.raises(InputError, match="within: 4"):
        train(system, tmp_path, config("iterations=100000", "within=5"))
    result = train(system, tmp_path, asked)
    assert result.status == "completed"
    assert result.total == stopped.total == before.iterations
    assert from_yaml(tmp_path / "config.resolved.yaml") == before


class Slow(System):
    """Another system, of which an energy takes a while."""

    def __init__(self, seconds):
        self.inner, self.seconds = get_system("dw4"), seconds
        self.space, self.name = self.inner.space, "dw4"
        self.invariant = self.exchangeable = True

    def _energy_and_score(self, x):
        time.sleep(self.seconds * len(x))
        return self.inner.energy_and_score(x)

    def topology(self):
        return self.inner.topology()


def test_a_population_that_would_take_too_long_has_fewer_chains(tmp_path, caplog):
    # Forty moves of 4,096 chains: 33 s at 5,000 energies a second.
    plan = "target_score={size: 4096, anneal_moves: 1, equilibration: 20, refresh: 8, warmup: 2}"
    with caplog.at_level(logging.INFO):
        result = train(
            Slow(2e-4),
            tmp_path,
            config(plan, "iterations=100000", "within=6", "evaluate_steps=1", "probe=false"),
        )
    found = from_yaml(tmp_path / "config.resolved.yaml")
    assert result.status == "completed"
    assert 512 <= found.objective.target_score.size < 3000
    assert "chains, of 4,096, fits the time" in caplog.text


def test_a_time_limit_that_cuts_a_schedule_is_told(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        result = train(
            get_system("dw4"), tmp_path, config("iterations=100000", PROMPT), max_time=4.0
        )
    assert result.status == "out of time"
    assert caplog.text.count("--within") == 1
    caplog.clear()
    with caplog.at_level(logging.INFO):
        train(get_system("dw4"), tmp_path / "short", config("iterations=30", PROMPT), max_time=60.0)
    assert "--within" not in caplog.text
