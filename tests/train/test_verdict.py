"""Verdicts: a generator that draws from the target is usable, each way of being wrong is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from molsampler.estimate import Estimate
from molsampler.mcmc import mala
from molsampler.mcmc.refine import Tuning
from molsampler.nn.generators import Draw, Sampling
from molsampler.nn.generators.density import log_weight as log_weight_of
from molsampler.nn.generators.spline import SplineConfig
from molsampler.sampler.verdict import Verdict
from molsampler.space import Euclidean
from molsampler.target import System
from molsampler.train.criterion import Discrepancy, evaluate
from molsampler.train.verdict import verdict_of, with_annealing, with_unrest


class Normal:
    """Independent normal coordinates, of variance one."""

    space = Euclidean(1, 4)

    def energy_and_score(self, x):
        return 0.5 * x.square().sum((-2, -1)), -x


class Drawing:
    """Draws of the target, changed by a function."""

    at_once = 16384

    def __init__(self, change, log_weight=None):
        self.change, self.log_weight, self.sampling = change, log_weight, Sampling()

    def draw(self, n, target, *, context=None, generator):
        x = self.change(torch.randn(n, 1, 4, generator=generator))
        weight = None if self.log_weight is None else self.log_weight(torch.zeros(n).double())
        return Draw(x, weight, 0)


def judged(change, *, population=True, log_weight=None):
    target = Normal()
    chains = torch.randn(8192, 1, 4, generator=torch.Generator().manual_seed(5))
    found = evaluate(
        Drawing(change, log_weight),
        target,
        discrepancy=Discrepancy(mala.init(chains, target), target.space) if population else None,
        samples=10_000,
        steps=20,
        tuning=Tuning(0.3),
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


def test_a_population_that_had_not_come_to_rest_is_told_of() -> None:
    good = judged(lambda x: x)
    little, much = with_unrest(good, -0.08), with_unrest(good, -0.4)
    assert little.usable
    assert "its mean energy changed by -0.08 of its spread" in little.sentence
    assert (much.usable, much.measure, much.value) == (False, "drift of the population", 0.4)
    assert "equilibration" in str(much.advice)
    # Weights mend what a population has wrong; what was not usable stays so, by its own measure.
    weighed = judged(lambda x: x, log_weight=lambda zeros: zeros)
    assert weighed.usable
    assert with_unrest(weighed, -0.4).usable
    far = judged(lambda x: 1.3 * x)
    assert with_unrest(far, -0.4).measure == far.measure


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


def one_rules(weight):
    weight[3] = 12.0
    return weight


@pytest.mark.parametrize(
    ("log_weight", "said"),
    [
        (lambda weight: weight - torch.inf, "10,000 fresh draws has weight zero"),
        (one_rules, "the largest weight is 0.94 of their sum (goal 0.05)"),
    ],
    ids=["all zero", "one that rules"],
)
def test_ill_weights_are_not_usable_and_say_why(log_weight, said) -> None:
    found = judged(lambda x: x, log_weight=log_weight)
    assert not found.usable
    assert said in found.sentence
    assert found.value < 0.01
    assert "nan" not in str(found)
    # Negative control: the same draws with even weights.
    assert judged(lambda x: x, log_weight=lambda weight: weight).usable


@pytest.mark.parametrize("fill", [torch.nan, torch.inf, -torch.inf])
def test_draws_of_no_finite_energy_have_no_weight(fill) -> None:
    energy = torch.tensor([1.0, fill, 2.0])
    assert log_weight_of(energy, torch.zeros(3)).tolist() == [-1.0, -torch.inf, -2.0]
    assert log_weight_of(torch.ones(3), torch.tensor([0.0, fill, 0.0]))[1] == -torch.inf


class TwoModes(System):
    """Equal mixture of unit Gaussians at the origin and at (9, 0, 0, 0)."""

    name, concurrent = "two-modes", True

    def __init__(self) -> None:
        self.space = Euclidean(1, 4)

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        centres = torch.zeros(2, 1, 4, dtype=x.dtype)
        centres[1, 0, 0] = 9.0
        away = x[:, None] - centres
        log_part = -0.5 * away.square().sum((2, 3))
        share = log_part.softmax(1)[..., None, None]
        return -torch.logsumexp(log_part, 1), -(share * away).sum(1)


@pytest.mark.parametrize("missed", [False, True])
def test_a_mode_that_only_the_chains_are_in_is_noticed(missed) -> None:
    target = TwoModes()
    g = torch.Generator().manual_seed(0)
    chains = torch.randn(8192, 1, 4, generator=g)
    near = chains[:4096].clone()
    chains[4096:, 0, 0] += 9.0
    flow = SplineConfig(layers=1, width=4, bins=4, marginal_bins=24).build(target.space)
    flow.start_from(near if missed else chains)
    found = evaluate(
        flow,
        target,
        discrepancy=None,
        samples=10_000,
        steps=2,
        tuning=Tuning(0.3),
        chains=mala.init(chains, target),
        rng=g,
    )
    verdict = verdict_of(found)
    # Where the flow has one mode its own draws say that all is well.
    assert found.ess is not None
    assert found.ess > 0.5
    assert verdict.usable is not missed
    assert ("hardly a draw is where a part of the chains are" in verdict.sentence) is missed
    if not missed:
        # Two ways to the same number.
        assert found.ess_of_chains == pytest.approx(found.ess, rel=0.2)


def test_selection_does_not_turn_on_one_heavy_draw() -> None:
    """Two sets of weights, alike but for one draw: raw shares are apart, what selection goes by is not."""

    def found(outlier: float):
        def weights(like):
            g = torch.Generator().manual_seed(2)
            drawn = 0.5 * torch.randn(len(like), generator=g, dtype=torch.float64)
            drawn[7] = outlier
            return drawn

        target = Normal()
        return evaluate(
            Drawing(lambda x: x, weights),
            target,
            discrepancy=None,
            samples=10_000,
            steps=2,
            tuning=Tuning(0.3),
            rng=torch.Generator().manual_seed(1),
        )

    calm, spoilt = found(0.0), found(9.0)
    assert calm.ess > 0.75
    assert spoilt.ess < 0.4 * calm.ess
    (first, error), (second, _) = calm.value("auto"), spoilt.value("auto")
    assert first == 1.0 - calm.ess_trimmed
    assert abs(first - second) < 1e-3
    # Not blind: weights that are wide everywhere are told from narrow ones.
    assert 0 < error < 0.05
    assert calm.ess_trimmed > calm.ess
