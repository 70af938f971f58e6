"""A run that is stopped inside its population goes on there, to the same bits."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch

from molsampler.errors import FileFormatError
from molsampler.mcmc import mala, population
from molsampler.objectives.preparation import PopulationPreparation
from molsampler.systems import get_system
from molsampler.target import System
from molsampler.train import checkpoint, load_config, train

SETTINGS = (
    "compile=false", "iterations=2", "batch_size=8", "score_steps=1", "evaluate_samples=20",
    "evaluate_steps=2", "log_every=1", "generator.body.width=4", "generator.body.layers=1",
    "denoiser.width=4", "denoiser.layers=1",
    "target_score={size: 24, anneal_moves: 2, equilibration: 6, refresh: 8, warmup: 2}",
)  # fmt: skip


def config(name="dw4", *extra):
    return load_config("fast", name, overrides=(*SETTINGS, *extra))


def same(first, second):
    a, b = (checkpoint.load_latest(folder / "checkpoints")[0] for folder in (first, second))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()


def test_stopped_after_every_move_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch):
    system = get_system("dw4")
    whole = train(system, tmp_path / "whole", config())
    assert whole.status == "completed"
    step, phases = PopulationPreparation.step, []
    with monkeypatch.context() as patch:

        def interrupted(self, state):
            os.kill(os.getpid(), signal.SIGTERM)
            return step(self, state)

        patch.setattr(PopulationPreparation, "step", interrupted)
        while (stopped := train(system, tmp_path / "parts", config())).status == "interrupted":
            phases.append(stopped.phase)
            assert stopped.evaluations > 0
            if stopped.phase not in ("annealing", "equilibration"):
                break
    assert set(phases) >= {"annealing", "equilibration"}
    assert len(phases) > 10
    result = train(system, tmp_path / "parts", config())
    assert result.status == "completed"
    assert result.evaluations == whole.evaluations
    same(tmp_path / "whole", tmp_path / "parts")
    # Negative control: another seed ends elsewhere.
    train(system, tmp_path / "other", config("dw4", "seed=1"))
    with pytest.raises(AssertionError):
        same(tmp_path / "whole", tmp_path / "other")


def test_so_does_one_that_is_stopped_in_replica_exchange(tmp_path, monkeypatch):
    exchange = "target_score.exchange={hottest: 2, chains: 8}"
    system = get_system("dw4")
    train(system, tmp_path / "whole", config("dw4", exchange))
    step, phases = PopulationPreparation.step, []
    with monkeypatch.context() as patch:

        def interrupted(self, state):
            os.kill(os.getpid(), signal.SIGTERM)
            return step(self, state)

        patch.setattr(PopulationPreparation, "step", interrupted)
        for _ in range(60):
            stopped = train(system, tmp_path / "parts", config("dw4", exchange))
            phases.append(stopped.phase)
            if stopped.phase not in ("annealing", "cooling", "exchange"):
                break
    assert set(phases) >= {"annealing", "cooling", "exchange"}
    assert train(system, tmp_path / "parts", config("dw4", exchange)).status == "completed"
    same(tmp_path / "whole", tmp_path / "parts")


def test_a_state_in_the_making_survives_flattening_at_every_move():
    system = get_system("dw4")
    made = population.Equilibration(
        population.PopulationConfig(size=16, anneal_moves=2, equilibration=4), system
    )
    results = []
    for kept in (False, True):
        rng = torch.Generator().manual_seed(3)
        state = made.init(generator=rng, like=torch.empty(0))
        while not made.finished(state):
            if kept:
                state = population.State.unflatten(state.flatten())
            state = made.step(state, generator=rng)
        results.append(made.population(state))
    rng = torch.Generator().manual_seed(3)
    results.append(
        population.equilibrate(
            made.config, system, generator=rng, like=torch.empty(0), report=lambda *_: None
        )
    )
    for other in results[1:]:
        assert other.step_size == results[0].step_size
        for a, b in zip(results[0].state, other.state, strict=True):
            assert torch.equal(a, b)
    with pytest.raises(FileFormatError, match="population"):
        population.State.unflatten({"steps": 1})


class Slow(System):
    """Harmonic particles whose energy takes a set time, with a pause between rows."""

    name = "slow"
    invariant = True

    def __init__(self, seconds):
        from molsampler.space import MeanFree

        self.space, self.seconds = MeanFree(3, 2), seconds

    def _energy_and_score(self, x):
        for _ in x:
            time.sleep(self.seconds)
        return 0.5 * x.square().sum((-2, -1)), -x


def test_a_move_that_takes_long_is_given_up_and_made_again(tmp_path):
    """An evaluation of all chains takes 24 x .2 = 5 s; the limit of 1 s is kept in the middle of it."""
    began = time.monotonic()
    result = train(Slow(0.2), tmp_path / "run", config("slow"), max_time=1.0)
    assert time.monotonic() - began < 4.0
    assert (result.status, result.evaluations) == ("out of time", 0)
    fast = Slow(0.0)
    assert train(fast, tmp_path / "run", config("slow")).status == "completed"
    train(fast, tmp_path / "whole", config("slow"))
    same(tmp_path / "whole", tmp_path / "run")


def test_a_signal_in_the_middle_of_a_move_loses_that_move_alone(tmp_path, monkeypatch):
    system = get_system("dw4")
    train(system, tmp_path / "whole", config())
    original, calls = mala.step, 0

    def hanging(*arguments, **keywords):
        nonlocal calls
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGINT)
            while True:
                time.sleep(0.05)
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(mala, "step", hanging)
        began = time.monotonic()
        stopped = train(system, tmp_path / "run", config())
    assert (stopped.status, stopped.signal) == ("interrupted", signal.SIGINT)
    assert time.monotonic() - began < 5.0
    assert train(system, tmp_path / "run", config()).status == "completed"
    same(tmp_path / "whole", tmp_path / "run")
