"""From the last evaluation of a generator to its verdict: one function for each measure.

Goals are in units that do not depend on the system. They come from docs/research-log.md: the five samplers
that ship, at or near the floor of every metric against references, have discrepancies of .04 to .12, the
``morse8`` whose distances were visibly off has .21.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ..estimate import Estimate
from ..sampler.verdict import Verdict
from .criterion import Evaluation

#: Largest discrepancy D, in standard deviations: between the worst that ships, .12, and ``morse8``, .21.
DISCREPANCY_GOAL = 0.15

#: Largest drift of the energies under twenty exact steps, in standard deviations of the energy. What ships
#: has .07 to .16 (alanine dipeptide .75 kT of 5.4); runs that were given up, .35 and more (``dw4-c``).
DRIFT_GOAL = 0.3

#: Least effective share of weights: ten draws for one that counts. Flows that had missed a tail, or were
#: fitted to too few chains, had .01 to .05 (docs/research-log.md).
ESS_GOAL = 0.1

#: Largest share of one draw in the sum of weights: beyond it errors of averages are not to be believed.
WEIGHT_GOAL = 0.05

#: Part of the effective share, or of its goal, that the weights of the chains must bear out: draws that miss
#: a mode leave far less (one of alanine dipeptide lost to reverse KL: .34 by draws, .02 with more of them).
_MISSED = 0.5

#: Largest share of broken rows: none may be seen. One in 30,000 spoils a mean of energies, since a collision
#: costs as much as it likes; none in 10,000 rows means less than 3 in 10,000 with 95 % confidence.
BROKEN_GOAL = 0.0

#: The same of a sampler that draws such rows again: what it leaves out must not be missed.
REDRAWN_GOAL = 0.005

#: Largest error of log Z by annealing from which the routes are compared: eleven effective draws. With fewer
#: the mean weight tends to be too low by more than its error says.
ANNEALING_ERROR = 0.3

#: Combined standard errors beyond which two routes to log Z disagree.
_APART = 4.0

_LONGER = (
    "train longer (more iterations, or a longer --within) or with more chains (target_score.size) in a new "
    "run folder, or take --preset exact, whose draws carry weights that correct them"
)
_MORE_LAYERS = (
    "sample with --refine 50, which repairs single rows, or use more layers (sampling.layers, "
    "sampling.kinetic.steps) or more iterations in a new run folder"
)


def by_discrepancy(value: float) -> Verdict:
    """Distance D to the population (:class:`~molsampler.train.criterion.Discrepancy`)."""
    return Verdict(
        usable=value <= DISCREPANCY_GOAL,
        measure="discrepancy from the population",
        value=_finite(value),
        goal=DISCREPANCY_GOAL,
        sentence=f"samples are {value:.3f} standard deviations from the training's own Monte Carlo "
        f"population (goal {DISCREPANCY_GOAL:g})",
        advice=_LONGER,
    )


def by_drift(drift: float, spread: float) -> Verdict:
    """Drift of the energies under exact steps, kT, against their standard deviation ``spread``."""
    value = drift / spread if spread > 0 else math.inf
    return Verdict(
        usable=value <= DRIFT_GOAL,
        measure="refinement drift",
        value=_finite(value),
        goal=DRIFT_GOAL,
        sentence=f"exact Monte Carlo steps move their energies by {drift:.3g} kT, {value:.2f} of the spread "
        f"(goal {DRIFT_GOAL:g})",
        advice=_MORE_LAYERS,
    )


def by_broken(broken: int, count: int, *, redrawn: bool = False) -> Verdict:
    """Rows that are not finite, or whose energy is beyond the population's range by more than its width, and
    which a sampler may draw again."""
    goal = REDRAWN_GOAL if redrawn else BROKEN_GOAL
    again = ", and drawn again" if redrawn and broken else ""
    return Verdict(
        usable=broken <= goal * count,
        measure="share of broken samples",
        value=broken / count,
        goal=goal,
        sentence=f"{broken:,} of {count:,} samples are broken (energies far outside the population's{again})",
        advice=_MORE_LAYERS,
    )


def by_weights(evaluation: Evaluation, goal: float = ESS_GOAL) -> Verdict:
    """Effective share and largest weight of fresh draws."""
    share, largest = evaluation.ess or 0.0, evaluation.max_weight or 0.0
    chains = evaluation.ess_of_chains
    missed = chains is not None and chains < _MISSED * min(share, goal)
    usable = share >= goal and largest <= WEIGHT_GOAL and not missed
    sentence = (
        f"{share:.3f} of {evaluation.samples:,} fresh draws are effective (goal {goal:g}), the largest "
        f"weight is {largest:.2g} of their sum (goal {WEIGHT_GOAL:g})"
        if share
        else f"every one of {evaluation.samples:,} fresh draws has weight zero: none has a finite energy and "
        "density"
    )
    if missed:
        sentence += (
            f"; by the weights of the population's chains it is {chains:.2g}: hardly a draw is where a part "
            "of the chains are"
        )
    good_for = (
        "; averages under the weights are exact to their errors, of what the draws reach: weights do not see "
        "a mode that no draw is in"
    )
    return Verdict(
        usable=usable,
        measure="effective share of weights",
        value=_finite(share),
        goal=goal,
        sentence=sentence + good_for if usable else sentence,
        advice=None
        if usable
        else "spend more on a draw, which evens weights out (flows: sample --anneal 20; clusters: "
        "sample --steps 400); or train longer (more iterations), with a larger network or more chains "
        "(population.size) in a new run folder",
    )


def with_unrest(verdict: Verdict, drift: float) -> Verdict:
    """A verdict on what learned from a population that had not come to rest, whose mean energy changed by
    ``drift`` of its spread over the second half of its equilibration: not usable beyond the goal of the
    discrepancy, unless it was judged by weights, which mend that."""
    said = (
        "the population that it learned from had not come to rest (its mean energy changed by "
        f"{drift:+.2g} of its spread over the second half of the equilibration)"
    )
    weighed = verdict.measure.startswith("effective share")
    if not verdict.usable or weighed or abs(drift) <= DISCREPANCY_GOAL:
        return verdict.model_copy(update={"sentence": f"{verdict.sentence}; {said}"})
    return Verdict(
        usable=False,
        measure="drift of the population",
        value=abs(drift),
        goal=DISCREPANCY_GOAL,
        sentence=f"{verdict.sentence}; {said}",
        advice="equilibrate for longer (target_score.equilibration) in a new run folder",
    )


def with_annealing(
    verdict: Verdict, weights: Estimate[float], annealing: Estimate[float]
) -> Verdict:
    """A verdict by weights after log Z was also had by annealing from a Gaussian: it says whether the two
    routes agree, and is not usable where they do not."""
    route = _Route(
        "log Z", "annealing from a Gaussian", "annealing", "the draws miss", "the annealing misses"
    )
    return _with_route(verdict, weights, annealing, route)


def with_bridge(
    verdict: Verdict, weights: Estimate[float], chains: Estimate[float], *, ends: str
) -> Verdict:
    """The same over a range of temperatures, of the change of log Z between its ``ends``, by Bennett's ratio
    between the chains of neighbouring temperatures."""
    missing = "draws or chains miss"
    route = _Route(
        f"the change of log Z from {ends}", "the population's chains", "chains", missing, missing
    )
    return _with_route(verdict, weights, chains, route)


class _Route(NamedTuple):
    """What is had by a second route, which, that route in short, and what is wrong where it finds more than
    the weights do, or less."""

    what: str
    by: str
    short: str
    more: str
    less: str


def _with_route(
    verdict: Verdict, weights: Estimate[float], second: Estimate[float], route: _Route
) -> Verdict:
    if not (math.isfinite(weights.value) and second.se <= ANNEALING_ERROR):
        said = f"{route.what} by {route.by} is not decided: too few of its draws are effective"
        return verdict.model_copy(update={"sentence": f"{verdict.sentence}; {said}"})
    gap = second.value - weights.value
    error = math.hypot(second.se, weights.se)
    difference = f"{route.what} by {route.by} is {gap:+.3f} ± {error:.3f} from that by weights"
    if abs(gap) <= _APART * error:
        said = f"{difference}: two routes agree"
        return verdict.model_copy(update={"sentence": f"{verdict.sentence}; {said}"})
    return Verdict(
        usable=False,
        measure=f"{route.what} by weights and by {route.short}"
        if verdict.usable
        else verdict.measure,
        value=abs(gap) if verdict.usable else verdict.value,
        goal=_APART * error if verdict.usable else verdict.goal,
        sentence=f"{verdict.sentence}; {difference}: the two routes disagree",
        advice=verdict.advice
        or f"{route.more if gap > 0 else route.less} a part of the density, or a density is wrong: compare "
        "with a reference (molsampler reference, molsampler compare), and start the population wider "
        "(population.start_scale)",
    )


def verdict_of(
    evaluation: Evaluation, *, ess_goal: float | None = None, redrawn: bool = False
) -> Verdict:
    """The verdict on a generator: by its weights where it knows its density, whose effective share has to
    reach ``ess_goal``; for others every measure has to reach its goal, that for broken draws as they are
    ``redrawn`` or not.

    Those are measured against the training's own population, and see no error of that.
    """
    if evaluation.ess is not None:
        return by_weights(evaluation, ESS_GOAL if ess_goal is None else ess_goal)
    measures = [
        by_drift(evaluation.drift, evaluation.spread),
        by_broken(evaluation.broken, evaluation.samples, redrawn=redrawn),
    ]
    if evaluation.discrepancy is not None:
        measures.insert(0, by_discrepancy(evaluation.discrepancy))
    return joined(measures)


def verdict_over(
    evaluations: Sequence[Evaluation],
    temperatures: Sequence[float | None],
    *,
    ess_goal: float | None = None,
    redrawn: bool = False,
) -> Verdict:
    """The verdict on a generator that was judged at several temperatures: that on the one with the largest
    distance or the least effective share, of those where it failed if there are any. ``redrawn`` as in
    :func:`by_broken`."""
    verdicts = [verdict_of(each, ess_goal=ess_goal, redrawn=redrawn) for each in evaluations]
    if len(verdicts) == 1:
        return verdicts[0]
    named = list(zip(verdicts, temperatures, strict=True))
    failed = [each for each in named if not each[0].usable]
    sign = 1.0 if evaluations[0].ess is not None else -1.0
    worst, temperature = min(failed or named, key=lambda each: sign * (each[0].value or 0.0))
    places = ", ".join(f"{each:.4g}" for each in temperatures if each is not None)
    return worst.model_copy(
        update={
            "sentence": f"judged at temperatures {places}, worst at {temperature:.4g}: {worst.sentence}"
        }
    )


def joined(measures: list[Verdict]) -> Verdict:
    """One verdict of several: the first that failed decides, else the first."""
    failed = [each for each in measures if not each.usable]
    decides = (failed or measures)[0]
    said = ", ".join(each.sentence for each in (failed or measures))
    if failed:
        return decides.model_copy(update={"sentence": said})
    return decides.model_copy(update={"sentence": f"{said}; {_good_for(measures)}", "advice": None})


def _good_for(measures: list[Verdict]) -> str:
    distance = measures[0].value if measures[0].measure.startswith("discrepancy") else None
    if distance is None:
        return (
            "good for local averages; weights of separate modes were not tested, so compare with a "
            "reference (molsampler reference, molsampler compare)"
        )
    return (
        f"good for means of energies and distances to about {distance:.2g} of their spread; errors of the "
        "population itself are not seen, so compare with a reference (molsampler reference, molsampler "
        "compare)"
    )


def _finite(value: float) -> float | None:
    """Cards hold no infinities."""
    return value if math.isfinite(value) else None
