"""The time left falls evenly: compilation, evaluations and a noisy machine do not make it jump."""

from __future__ import annotations

import torch

from molsampler.cli.train import described
from molsampler.nn.generators.direct import DirectConfig
from molsampler.space import Euclidean
from molsampler.systems import FunctionSystem
from molsampler.train.criterion import evaluate
from molsampler.train.progress import Pace, Teller


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run(*, pause):
    """A run of 1,000 steps of .1 s, the first of 40 s, judged for 5 s every 100: (time, left) of each."""
    clock, said = Clock(), []
    teller = Teller(lambda state: said.append((clock.now, state)), began=0.0, clock=clock)
    teller.evaluating = 5.0
    for done in range(1, 1001):
        compiles = done == 1
        seconds = 40.0 if compiles else 0.1 + 0.05 * (-1) ** done
        clock.now += seconds
        teller.worked("training", seconds, 100 * done, pause=compiles and pause)
        if done % 100 == 0:
            clock.now += 5.0
            teller.evaluated(5.0, 100 * done)
        teller.tell("training", done, 1000, evaluations_left=10 - done // 100, last=True, now=True)
    return clock.now, said


def test_time_left_is_right_from_the_first_steps_on():
    end, said = run(pause=True)
    known = [(now, state) for now, state in said if state.left is not None]
    assert len(known) > 990
    for now, state in known:
        assert abs(now + state.left - end) < 0.1 * end
        assert state.left_of_run == state.left
    assert known[-1][1].left == 0.0


def test_the_check_sees_compilation_that_enters_the_rate():
    """Negative control."""
    end, said = run(pause=False)
    wrong = [abs(now + state.left - end) for now, state in said if state.left is not None]
    assert max(wrong) > end


def test_a_rate_forgets_the_distant_past_and_is_unknown_at_first():
    pace = Pace(window=10.0)
    assert pace.rate is None
    for _ in range(20):
        pace.add(1, 1.0)
    for _ in range(200):
        pace.add(1, 0.1)
    assert abs(pace.rate - 10.0) < 1e-6


def test_phases_are_told_when_they_begin_and_have_rates_of_their_own():
    clock, said = Clock(), []
    teller = Teller(said.append, began=-2.0, clock=clock)
    teller.tell("annealing", 0, None)
    for _ in range(5):
        teller.worked("annealing", 1.0, teller.evaluations + 100)
    clock.now = 0.5
    teller.tell("annealing", 5, 20)
    teller.tell("equilibration", 0, 10)
    assert [state.phase for state in said] == ["annealing", "equilibration"]
    assert said[-1].rate is None
    assert said[-1].evaluations == 500
    assert said[-1].seconds == 2.5


def test_an_evaluation_says_how_many_of_its_draws_there_are():
    said = []
    teller = Teller(said.append, began=0.0, clock=Clock())
    teller.tell("training", 10, 100, last=True)
    teller.tell("evaluation", 512, 2048, rate=128.0, now=True)
    assert (said[-1].rate, said[-1].left, said[-1].left_of_run) == (128.0, 12.0, None)
    assert described(said[-1]) == "evaluation: 512 of 2,048 draws, 128/s, 12 s left"
    # It is a pause of the phase that it stands in, whose rates are kept.
    assert teller.phase == "training"


def test_draws_that_are_judged_are_counted_as_they_come():
    space, counted = Euclidean(1, 2), []
    generator = DirectConfig().build(space)
    generator.at_once = 8
    target = FunctionSystem("well", lambda x: x.square().sum((1, 2)), shape=(1, 2))
    evaluate(
        generator,
        target,
        discrepancy=None,
        samples=100,
        steps=1,
        rng=torch.Generator().manual_seed(0),
        on_drawn=lambda done, seconds: counted.append((done, seconds)),
    )
    assert [done for done, _ in counted] == [32, 64, 96, 100]
    assert sorted(seconds for _, seconds in counted) == [seconds for _, seconds in counted]
