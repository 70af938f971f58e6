"""Verdicts: a generator that draws from the target is usable, each way of being wrong is named."""

from __future__ import annotations

import pytest
import torch

from molsampler.estimate import Estimate
from molsampler.mcmc import mala
from molsampler.nn.generators import Draw, Sampling
from molsampler.sampler.verdict import Verdict
from molsampler.space import Euclidean
from molsampler.train.criterion import Discrepancy, evaluate
from molsampler.train.verdict import verdict_of, with_annealing


class Normal:
    """Independent normal coordinates, of variance one."""

    space = Euclidean(1, 4)

    def energy_and_score(self, x):
        return 0.5 * x.square().sum((-2, -1)), -x


class Drawing:
    """Draws of the target, changed by a function."""

    def __init__(self, change):
        self.change, self.sampling = change, Sampling()

    def draw(self, n, target, *, context=None, generator):
        return Draw(self.change(torch.randn(n, 1, 4, generator=generator)), None, 0)


def judged(change, *, population=True):
    target = Normal()
    chains = torch.randn(8192, 1, 4, generator=torch.Generator().manual_seed(5))
    found = evaluate(
        Drawing(change),
        target,
        discrepancy=Discrepancy(mala.init(chains, target), target.space) if population else None,
        samples=10_000,
        steps=20,
        step_size=0.3,
        rng=torch.Generator().manual_seed(1),
    )
    return verdict_of(found)


def one_far(x):
    x = x.clone()
    x[17] = 5.0
    return x


def one_nan(x):
    x = x.clone()
    x[17, 0, 0] = torch.nan
    return x


def test_draws_of_the_target_are_usable():
    verdict = judged(lambda x: x)
    assert verdict.usable, verdict
    assert verdict.advice is None
    assert verdict.value < 0.06
    assert "population" in verdict.sentence
    assert "0 of 10,000" in verdict.sentence
    assert judged(lambda x: x, population=False).usable


@pytest.mark.parametrize(
    ("change", "measure"),
    [
        (lambda x: 1.3 * x, "discrepancy from the population"),
        (lambda x: x + 0.5, "discrepancy from the population"),
        (torch.zeros_like, "discrepancy from the population"),
        (one_far, "share of broken samples"),
        (one_nan, "share of broken samples"),
    ],
)
def test_what_is_wrong_is_named_with_advice(change, measure):
    verdict = judged(change)
    assert not verdict.usable
    assert verdict.measure == measure, verdict
    assert verdict.advice
    assert str(verdict).startswith("not usable: ")


def test_without_a_population_energies_still_decide():
    assert not judged(lambda x: 1.5 * x, population=False).usable


BY_WEIGHTS = Verdict(usable=True, measure="share", value=0.8, goal=0.1, sentence="80 % effective")


def test_two_routes_to_log_z_agree_disagree_or_are_not_decided() -> None:
    own = Estimate(3.0, 0.01)
    agree = with_annealing(BY_WEIGHTS, own, Estimate(3.1, 0.05))
    assert agree.usable
    assert agree.value == 0.8
    assert agree.sentence.endswith("is +0.100 ± 0.051 from that by weights: two routes agree")
    above = with_annealing(BY_WEIGHTS, own, Estimate(3.7, 0.05))
    assert not above.usable
    assert above.measure == "log Z by weights and by annealing"
    assert "two routes disagree" in above.sentence
    assert "the draws miss" in above.advice
    below = with_annealing(BY_WEIGHTS, own, Estimate(2.3, 0.05))
    assert not below.usable
    assert "the annealing misses" in below.advice
    for unknown in (
        Estimate(9.0, 0.5),
        Estimate(-float("inf"), float("inf")),
        Estimate(float("nan"), float("nan")),
    ):
        found = with_annealing(BY_WEIGHTS, own, unknown)
        assert found.usable
        assert "not decided" in found.sentence
    # A sampler that failed by its weights still says that first.
    failed = BY_WEIGHTS.model_copy(update={"usable": False, "value": 0.01, "advice": "longer"})
    both = with_annealing(failed, own, Estimate(3.7, 0.05))
    assert (both.measure, both.value, both.advice) == ("share", 0.01, "longer")
