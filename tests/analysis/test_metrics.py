"""The contract of every registered metric: zero for equal draws, its floor for one law, more for another."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from exact_systems import Dimer, Springs
from peptides import BASINS, Peptide
from torch import Tensor

from molsampler.analysis import Distance, MetricKind, compare, headline, metric_kinds
from molsampler.analysis.draws import Draw, Draws, Settings
from molsampler.errors import InputError
from molsampler.samples import Samples
from molsampler.systems.many_well import ManyWell
from molsampler.systems.mixture import GaussianMixture
from molsampler.target import System

SETTINGS = Settings(n=400, repeats=3, transport_repeats=3, geometric_n=300, drift_steps=10)

SPRINGS, WELLS, DIMER, PEPTIDE = Springs(), ManyWell(), Dimer(), Peptide()


class Case(NamedTuple):
    """A system, samples of its law by seed, and samples of another law that the metric must see."""

    system: System
    right: Callable[[int], Tensor]
    wrong: Callable[[int], Tensor]


def wells(seed: int) -> Tensor:
    return WELLS.sample(3000, generator=torch.Generator().manual_seed(seed))


def right_hand_wells(seed: int) -> Tensor:
    return wells(seed).abs()


def springs(seed: int) -> Tensor:
    return SPRINGS.sample(1000, seed)


def molecules(seed: int) -> Tensor:
    return PEPTIDE.sample(2000, seed)


def stretched(seed: int) -> Tensor:
    x = molecules(seed)
    bond = x[:40, 5] - x[:40, 4]
    x[:40, 5] += 0.03 * bond / bond.norm(dim=-1, keepdim=True)
    return x


def other_basins(seed: int) -> Tensor:
    weights = (0.2, 0.6, 0.2)
    basins = tuple((w, *basin[1:]) for w, basin in zip(weights, BASINS, strict=True))
    return PEPTIDE.sample(2000, seed, basins=basins)


HOT = Case(SPRINGS, springs, lambda seed: SPRINGS.sample(1000, seed, temperature=2.5))
SHIFTED = Case(PEPTIDE, molecules, lambda seed: PEPTIDE.sample(2000, seed, shift=30.0))

CASES = {
    "tvd_energy": HOT,
    "tvd_distance": Case(
        DIMER, lambda seed: DIMER.sample(1000, seed), lambda seed: 1.05 * DIMER.sample(1000, seed)
    ),
    "energy_w2": HOT,
    "energy_w2_trimmed": HOT,
    "mode_tvd": Case(WELLS, wells, right_hand_wells),
    "ramachandran_tvd": SHIFTED,
    "basin_tvd": Case(PEPTIDE, molecules, other_basins),
    "torsion_tvd": SHIFTED,
    # Judged only where the energy knows the pose.
    "w2": Case(WELLS, wells, right_hand_wells),
    "geo_w2": HOT,
    "broken_bonds": Case(PEPTIDE, molecules, stretched),
    "wrong_hand": Case(PEPTIDE, molecules, lambda seed: -molecules(seed)),
    "refinement_drift": HOT,
}

every_metric = pytest.mark.parametrize("kind", metric_kinds(), ids=lambda kind: kind.key)


def draw(system: System, x: Tensor) -> Draw:
    return Draw(system, x, system.energy(x))


@every_metric
def test_it_says_what_it_is(kind: MetricKind) -> None:
    assert kind.key.isidentifier()
    assert kind.name
    assert kind.definition.endswith(".")
    assert len(kind.definition) > 30
    others = [other for other in metric_kinds() if other is not kind]
    assert kind.key not in {other.key for other in others}
    assert kind.name not in {other.name for other in others}


@every_metric
def test_one_law_is_at_the_floor_and_another_is_not(kind: MetricKind) -> None:
    system, right, wrong = CASES[kind.key]
    assert kind.applies(system)
    found = kind.measure(
        Draws(
            {"right": Samples.of(system, right(1)), "wrong": Samples.of(system, wrong(1))},
            Samples.of(system, right(2)),
            system,
            SETTINGS,
        )
    )
    assert list(found) == ["right", "wrong"]
    assert found["right"].passed(), found["right"]
    assert not found["wrong"].passed(), found["wrong"]
    for metric in found.values():
        assert (metric.key, metric.definition, metric.unit) == (
            kind.key,
            kind.definition,
            kind.unit,
        )
        assert metric.name.startswith(kind.name)
        assert metric.repeats == kind.repeats(SETTINGS)
        assert metric.value >= 0
        assert metric.floor >= 0
    # Floors are the reference's own; only an error may count the candidate's number.
    assert kind.key == "wrong_hand" or found["right"].floor == found["wrong"].floor


@pytest.mark.parametrize(
    "kind", [k for k in metric_kinds() if isinstance(k, Distance)], ids=lambda kind: kind.key
)
def test_a_draw_is_at_no_distance_from_itself(kind: Distance) -> None:
    system, right, wrong = CASES[kind.key]
    a, b = draw(system, right(1)[:200]), draw(system, wrong(1)[:200])
    # Ground costs of geo-W2 are formed in float32, whose root is 3e-4 of the size of a configuration.
    assert kind.value(a, a).value < 1e-3
    assert kind.value(a, a).set_aside == 0
    assert kind.value(b, a).value > 1e-2
    assert 0 <= kind.value(b, a).set_aside < 1


EVERYWHERE = {"tvd_energy", "energy_w2", "energy_w2_trimmed", "w2", "refinement_drift"}
POSELESS = EVERYWHERE | {"tvd_distance", "geo_w2"}
MOLECULAR = {"ramachandran_tvd", "basin_tvd", "torsion_tvd", "broken_bonds", "wrong_hand"}


@pytest.mark.parametrize(
    ("system", "keys"),
    [
        (GaussianMixture(), EVERYWHERE | {"mode_tvd"}),
        (SPRINGS, POSELESS),
        (Springs(4, 5), POSELESS - {"geo_w2"}),
        (PEPTIDE, POSELESS | MOLECULAR),
    ],
)
def test_it_applies_where_it_can_be_computed(system: System, keys: set[str]) -> None:
    assert {kind.key for kind in metric_kinds() if kind.applies(system)} == keys


@pytest.mark.parametrize("key", ["mode_tvd", "ramachandran_tvd", "torsion_tvd"])
def test_it_is_refused_where_it_does_not_apply(key: str) -> None:
    (kind,) = (k for k in metric_kinds() if k.key == key)
    assert isinstance(kind, Distance)
    one = draw(SPRINGS, springs(1)[:50])
    with pytest.raises(InputError, match="springs4"):
        kind.value(one, one)


def test_no_repeats_leave_transport_and_drift_out() -> None:
    settings = Settings(transport_repeats=0, drift_steps=0)
    left_out = {kind.key for kind in metric_kinds() if not kind.repeats(settings)}
    assert left_out == {"w2", "geo_w2", "refinement_drift"}


def test_raw_distances_are_not_judged_where_the_energy_leaves_the_pose_open() -> None:
    """All frames of one orientation against all orientations: far in W2, one law all the same."""
    found = compare(
        Samples.of(SPRINGS, springs(1)),
        Samples.of(SPRINGS, posed(springs(2))),
        SPRINGS,
        n=200,
        monte_carlo=False,
        drift_steps=0,
    )
    w2 = found.metric("w2")
    assert w2.z > 10
    assert not w2.judged
    assert found.passed
    assert "W2" not in headline(found).replace("energy-W2", "").replace("geo-W2", "")
    assert found.to_dict()["metrics"][[m.key for m in found.metrics].index("w2")]["judged"] is False
    # The others are, and see another law.
    hot = Samples.of(SPRINGS, HOT.wrong(1))
    assert not compare(
        hot, Samples.of(SPRINGS, springs(2)), SPRINGS, n=200, monte_carlo=False, drift_steps=0
    ).passed


def posed(x: Tensor) -> Tensor:
    """Each configuration turned so that its first particle lies on the first axis."""
    first = x[:, 0] / x[:, 0].norm(dim=-1, keepdim=True)
    axis = torch.zeros_like(first)
    axis[:, 0] = 1
    # A reflection that takes one unit vector to the other.
    normal = first - axis
    normal = normal / normal.norm(dim=-1, keepdim=True)
    return x - 2 * (x * normal[:, None]).sum(-1, keepdim=True) * normal[:, None]
