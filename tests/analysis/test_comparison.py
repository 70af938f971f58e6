"""The gates: samples of the same law pass, and every kind of wrong sample fails."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from exact_systems import Dimer, Springs
from torch import Tensor

from molsampler.analysis.comparison import Comparison, compare, compare_many, tabulate
from molsampler.analysis.statistics import GATE_SIGMAS
from molsampler.errors import InputError, NonFiniteError, ShapeError
from molsampler.samples import Samples
from molsampler.systems.many_well import ManyWell
from molsampler.systems.mixture import GaussianMixture
from molsampler.target import System

CHEAP = {"transport_repeats": 0, "drift_steps": 0}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def judge(samples: Samples, reference: Samples, system: System, **settings: int) -> Comparison:
    return compare_many({"samples": samples}, reference, system, **{**CHEAP, **settings})["samples"]


def mixture(n: int, seed: int) -> Tensor:
    return GaussianMixture().sample(n, generator=generator(seed))


def wells(n: int, seed: int) -> Tensor:
    return ManyWell().sample(n, generator=generator(seed))


# system, reference, samples of the same law
LAWS: dict[str, tuple[System, Tensor, Tensor]] = {
    "mixture": (GaussianMixture(), mixture(8000, 1), mixture(6000, 2)),
    "many well": (ManyWell(), wells(8000, 1), wells(6000, 2)),
    "springs": (Springs(), Springs().sample(8000, 1), Springs().sample(6000, 2)),
    "dimer": (Dimer(), Dimer().sample(8000, 1), Dimer().sample(6000, 2)),
    "thirteen": (Springs(13, 3), Springs(13, 3).sample(3000, 1), Springs(13, 3).sample(3000, 2)),
}


@pytest.mark.parametrize("law", LAWS)
def test_samples_of_the_same_law_pass_every_gate(law: str) -> None:
    system, reference, samples = LAWS[law]
    comparison = judge(
        Samples.of(system, samples),
        Samples.of(system, reference),
        system,
        drift_steps=10,
        n=1000,
    )
    failed = [(m.name, m.z) for m in comparison.metrics if not m.passed()]
    assert not failed
    assert comparison.passed


def test_a_comparison_says_the_temperature() -> None:
    plain, warm = ManyWell(), ManyWell().at(1.5)
    names = []
    for system in (plain, warm):
        sets = [Samples.of(system, system.sample(400, generator=generator(k))) for k in (1, 2)]
        names.append(judge(*sets, system, n=100).system)
    assert names == ["mw32", "mw32@1.5"]


def test_transport_gates_pass_the_same_law_and_see_a_scale() -> None:
    system = Springs()
    reference = Samples.of(system, system.sample(2000, 1))
    found = compare_many(
        {
            "right": Samples.of(system, system.sample(2000, 2)),
            "wide": Samples.of(system, 1.3 * system.sample(2000, 2)),
        },
        reference,
        system,
        n=300,
        transport_repeats=5,
        drift_steps=0,
    )
    for key in ("w2", "geo_w2"):
        assert found["right"].metric(key).z < GATE_SIGMAS
        assert found["wide"].metric(key).z > GATE_SIGMAS
        assert found["right"].metric(key).floor == found["wide"].metric(key).floor
    # The energy leaves the pose open, and with it what W2 says.
    assert found["wide"].metric("w2").passed()
    assert not found["wide"].metric("geo_w2").passed()
    assert found["right"].metric("geo_w2").value < found["right"].metric("w2").value


def without_component(x: Tensor) -> Tensor:
    return x[GaussianMixture().component(x) != 3]


def one_sided_well(x: Tensor) -> Tensor:
    return x[x[:, 0, 0] > 0]


CONTROLS: dict[str, tuple[str, Callable[[Tensor], Tensor], str | None]] = {
    "temperature 10 % too high": (
        "thirteen",
        lambda x: Springs(13, 3).sample(len(x), 3, temperature=1.1),
        "energy_w2",
    ),
    "temperature 10 % too low": (
        "thirteen",
        lambda x: Springs(13, 3).sample(len(x), 3, temperature=0.9),
        "energy_w2",
    ),
    "a component dropped": ("mixture", without_component, None),
    "one well of one pair dropped": ("many well", one_sided_well, "mode_tvd"),
    "distances 2 % too long": ("dimer", lambda x: 1.02 * x, "tvd_distance"),
    "temperature 30 % too high": (
        "dimer",
        lambda x: Dimer().sample(len(x), 3, temperature=1.3),
        "energy_w2",
    ),
    "a few samples on a wall": (
        "dimer",
        lambda x: torch.cat((3 * x[:20], x[20:])),
        "energy_w2",
    ),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_wrong_samples_fail_their_gate(control: str) -> None:
    law, spoil, key = CONTROLS[control]
    system, reference, samples = LAWS[law]
    comparison = judge(
        Samples.of(system, spoil(samples)), Samples.of(system, reference), system, n=2500, repeats=6
    )
    assert not comparison.passed
    if key is not None:
        assert not comparison.metric(key).passed(), comparison.metric(key)
    else:
        assert comparison.modes is not None
        assert comparison.modes.missing == ("component 4",)


def test_energies_shifted_by_one_kt_fail() -> None:
    system, reference, samples = LAWS["many well"]
    right = Samples.of(system, samples)
    shifted = Samples(right.positions, right.energies + 1.0, None, right.metadata)
    comparison = judge(shifted, Samples.of(system, reference), system)
    for key in ("energy_w2", "energy_w2_trimmed"):
        assert not comparison.metric(key).passed()
    assert comparison.metric("energy_w2").value == pytest.approx(1.0, abs=0.3)
    assert comparison.samples.median - comparison.reference.median == pytest.approx(1.0, abs=0.4)


def test_mirror_images_are_not_seen() -> None:
    # Stated as a limit of the report: nothing here depends on handedness.
    system, reference, samples = LAWS["springs"]
    mirrored = samples * torch.tensor([-1.0, 1.0], dtype=torch.float64)
    assert judge(Samples.of(system, mirrored), Samples.of(system, reference), system).passed


def test_floors_cover_the_truth_over_many_pairs_of_sets() -> None:
    system = Springs()
    z = []
    for seed in range(25):
        reference = Samples.of(system, system.sample(900, 2 * seed))
        samples = Samples.of(system, system.sample(700, 2 * seed + 1))
        comparison = judge(samples, reference, system, n=300, repeats=8)
        z += [m.z for m in comparison.metrics if m.key != "energy_w2_trimmed"]
    assert max(z) < GATE_SIGMAS
    assert abs(np.mean(z)) < 5 / math.sqrt(25) + 0.2


def test_standard_errors_match_the_spread_over_independent_sets() -> None:
    system = Springs()
    found = [
        judge(
            Samples.of(system, 1.2 * system.sample(600, 2 * s)),
            Samples.of(system, system.sample(600, 2 * s + 1)),
            system,
            n=200,
            repeats=8,
        ).metric("energy_w2")
        for s in range(40)
    ]
    spread = np.std([m.value for m in found], ddof=1)
    stated = math.sqrt(np.mean([m.se**2 for m in found]))
    assert 0.6 < stated / spread < 1.6


def test_importance_weights_are_honoured() -> None:
    system = Springs()
    wide = system.sample(12_000, 5, temperature=1.5)
    raw = Samples.of(system, wide)
    weighted = Samples.of(system, wide, log_weights=-raw.energies * (1 - 1 / 1.5))
    found = compare_many(
        {"raw": raw, "weighted": weighted},
        Samples.of(system, system.sample(8000, 6)),
        system,
        n=1000,
        **CHEAP,
    )
    assert found["weighted"].passed
    assert not found["raw"].passed
    assert found["weighted"].samples.effective < 12_000
    assert any("effective" in remark for remark in found["weighted"].remarks)


def test_few_weighted_rows_are_said_to_come_again() -> None:
    """Exact weights, and yet above the floor where hardly more rows are effective than are drawn."""
    system = Springs()
    wide = system.sample(24_000, 5, temperature=1.5)
    energies = Samples.of(system, wide).energies
    whole = Samples.of(system, wide, log_weights=-energies * (1 - 1 / 1.5))
    reference = Samples.of(system, system.sample(8000, 6))
    many, few = (
        compare_many({"weighted": each}, reference, system, n=400, **CHEAP)["weighted"]
        for each in (whole, whole[:2000])
    )
    assert few.samples.effective < 5 * 400 < many.samples.effective
    said = [remark for remark in few.remarks if "rows come again" in remark]
    assert len(said) == 1
    assert not any("rows come again" in remark for remark in many.remarks)
    # So many rows as it asks for have five effective ones for each of N.
    enough = int(said[0].split("by itself; ")[1].split(" ")[0].replace(",", ""))
    assert enough == pytest.approx(5 * 400 * 2000 / few.samples.effective, rel=0.01)
    assert few.metric("tvd_energy").value > many.metric("tvd_energy").value


def test_histograms_are_those_of_the_weighted_law() -> None:
    system = Springs()
    wide = system.sample(12_000, 5, temperature=1.5)
    raw = Samples.of(system, wide)
    weighted = Samples.of(system, wide, log_weights=-raw.energies * (1 - 1 / 1.5))
    exact = Samples.of(system, system.sample(8000, 6))
    found = compare_many({"raw": raw, "weighted": weighted}, exact, system, **CHEAP)
    other = compare_many({"exact": exact}, weighted, system, **CHEAP)["exact"]

    def gap(comparison: Comparison, name: str) -> float:
        h = comparison.histograms[name]
        return 0.5 * float((abs(h.samples - h.reference) * np.diff(h.edges)).sum())

    for name in ("energy", "distance"):
        # 60 to 90 bins of some thousand rows scatter by a few per cent.
        assert gap(found["weighted"], name) < 0.05
        assert gap(other, name) < 0.05
        # Negative control: the proposal's own histogram is another one.
        assert gap(found["raw"], name) > 0.08


def test_a_weighted_reference_judges_as_an_independent_one_does() -> None:
    """Draws of the wrong law that carry weights, as an exact sampler's: the same order, the same gates."""
    system = Springs()
    wide = system.sample(12_000, 5, temperature=1.5)
    raw = Samples.of(system, wide)
    weighted = Samples.of(system, wide, log_weights=-raw.energies * (1 - 1 / 1.5))
    judged = {
        str(temperature): Samples.of(system, system.sample(8000, 7, temperature=temperature))
        for temperature in (1.0, 1.15, 1.5)
    }
    found, truth, wrong = (
        compare_many(judged, reference, system, n=1000, **CHEAP)
        for reference in (weighted, Samples.of(system, system.sample(8000, 6)), raw)
    )

    def distances(table: dict[str, Comparison]) -> list[float]:
        return [each.metric("energy_w2").value for each in table.values()]

    assert distances(found) == sorted(distances(found))
    assert distances(truth) == sorted(distances(truth))
    assert [each.passed for each in found.values()] == [True, False, False]
    assert [each.passed for each in truth.values()] == [True, False, False]
    # Negative control: with its weights left out the same reference calls the truth wrong.
    assert not wrong["1.0"].passed
    assert wrong["1.5"].passed


@pytest.mark.parametrize(("rule", "said"), [(5.7, True), (0.0, False)])
def test_weights_that_carry_nothing_are_said_so(rule: float, said: bool) -> None:
    system = Springs()
    log_weights = torch.zeros(4000, dtype=torch.float64)
    log_weights[0] = rule
    found = compare_many(
        {"samples": Samples.of(system, system.sample(4000, 5), log_weights=log_weights)},
        Samples.of(system, system.sample(4000, 6)),
        system,
        **CHEAP,
    )["samples"]
    assert any("carry no answer: one sample has" in remark for remark in found.remarks) is said


def test_small_sets_reduce_the_draw_and_say_so() -> None:
    system = Springs()
    comparison = judge(
        Samples.of(system, system.sample(300, 1)), Samples.of(system, system.sample(500, 2)), system
    )
    assert comparison.settings["n"] == 150
    assert comparison.metrics[0].n == 150
    assert "reduced from 2000 to 150" in comparison.remarks[0]


def test_numbers_depend_on_the_seed_alone() -> None:
    system, reference, samples = LAWS["springs"]
    a, b = Samples.of(system, samples[:200]), Samples.of(system, reference[:200])
    settings = {"transport_repeats": 2, "drift_steps": 5, "n": 100, "repeats": 3}
    first = judge(a, b, system, **settings).to_dict()
    assert judge(a, b, system, **settings).to_dict() == first
    assert judge(a, b, system, **settings, seed=1).to_dict()["metrics"] != first["metrics"]
    # A candidate's numbers do not depend on its neighbours.
    both = compare_many({"other": b, "samples": a}, b, system, **settings)
    assert both["samples"].to_dict()["metrics"] == first["metrics"]


def test_infinite_energies_are_counted_and_written_as_null() -> None:
    system = Springs()
    x = system.sample(400, 1)
    right = Samples.of(system, x)
    energies = right.energies.clone()
    energies[:30] = math.inf
    broken = Samples(right.positions, energies, None, {})
    comparison = judge(broken, Samples.of(system, system.sample(400, 2)), system)
    assert comparison.samples.infinite == 30
    assert comparison.metric("energy_w2").value == math.inf
    assert not comparison.metric("energy_w2").passed()
    written = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert next(m for m in written["metrics"] if m["key"] == "energy_w2")["value"] is None
    assert math.isfinite(comparison.metric("energy_w2_trimmed").value)


def test_compare_adds_monte_carlo_lines_that_say_what_they_cost() -> None:
    system = Dimer()
    samples = Samples.of(
        system, system.sample(400, 1), refine=4, training_energy_evaluations=40_000
    )
    comparison = compare(
        samples,
        Samples.of(system, system.sample(600, 2)),
        system,
        n=200,
        repeats=3,
        transport_repeats=0,
        drift_steps=5,
    )
    sampling, training = comparison.baselines
    assert sampling.provenance["samples"]["energy_evaluations"] == 5 * 400
    assert training.provenance["samples"]["energy_evaluations"] == 40_000
    assert "4.0e+04 evaluations" in training.label
    assert [m.key for m in training.metrics] == [m.key for m in comparison.metrics]
    assert training.metric("energy_w2").z < sampling.metric("energy_w2").z
    header, rows = tabulate({"own": comparison, **{b.label: b for b in comparison.baselines}})
    assert {len(row) for row in rows} == {len(header)}
    assert "*" in " ".join(rows[1])


def test_unusable_input_is_refused() -> None:
    system = Springs()
    good = Samples.of(system, system.sample(100, 1))
    with pytest.raises(ShapeError, match="reference"):
        judge(good, Samples.of(Dimer(), Dimer().sample(100, 1)), system)
    with pytest.raises(InputError, match="at least 40"):
        judge(good[:30], good, system)
    for settings in ({"n": 5}, {"repeats": 1}, {"transport_repeats": 1}):
        with pytest.raises(InputError, match=next(iter(settings))):
            judge(good, good, system, **settings)
    with pytest.raises(InputError, match="candidates"):
        compare_many({}, good, system)
    with pytest.raises(InputError, match="tvd_energy"):
        judge(good, good, system).metric("tvd")
    infinite = good.energies.clone()
    infinite[0] = math.inf
    with pytest.raises(NonFiniteError, match="reference"):
        judge(good, Samples(good.positions, infinite, None, {}), system)


def test_nan_that_slips_past_construction_is_refused() -> None:
    system = Springs()
    good = Samples.of(system, system.sample(100, 1))
    spoiled = Samples.of(system, system.sample(100, 2))
    spoiled.positions[7, 0, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"positions.*1 of 100"):
        judge(spoiled, good, system)
