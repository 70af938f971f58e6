"""Curves against temperature: exact laws, their errors, files and plots."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from molsampler import Samples
from molsampler.analysis import Curve, curve_through, read_curve, write_curve, write_json
from molsampler.errors import FileFormatError, InputError
from molsampler.space import Euclidean
from molsampler.target import System

TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0)


class Wells(System):
    """Two harmonic wells of one particle, the right one higher by 1 and wider, and springs along y and z.

    Where the wells do not overlap, p(right) / p(left) = 2 exp(-1 / T).
    """

    name = "two-wells"

    def __init__(self) -> None:
        self.space = Euclidean(1, 3)

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, rest = x[:, 0, 0], x[:, 0, 1:]
        right = a > 0
        stiffness = torch.where(right, 1.0, 4.0).to(x)
        away = a - torch.where(right, 20.0, -20.0).to(x)
        energy = 0.5 * stiffness * away.square() + right.to(x) + 0.5 * rest.square().sum(-1)
        return energy, -torch.cat([(stiffness * away)[:, None], rest], 1)[:, None]

    def mode_labels(self, x: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        return (x[:, 0, 0] > 0).long(), ("left", "right")


def right(temperature: float) -> float:
    odds = 2 * math.exp(-1 / temperature)
    return odds / (1 + odds)


def truth(temperature: float) -> dict[str, float]:
    p = right(temperature)
    z, lowest = ((t**1.5) * (1 + 2 * math.exp(-1 / t)) for t in (temperature, TEMPERATURES[0]))
    return {
        "energy": 1.5 * temperature + p,
        "heat_capacity": 1.5 + p * (1 - p) / temperature**2,
        "free_energy": -math.log(z / lowest),
        "population left": 1 - p,
        "population right": p,
    }


def drawn(temperature: float, n: int, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, 1, 3, generator=random, dtype=torch.float64) * temperature**0.5
    share = torch.rand(n, generator=random, dtype=torch.float64)
    noise[:, 0, 0] = torch.where(
        share < right(temperature), 20 + noise[:, 0, 0], -20 + noise[:, 0, 0] / 2
    )
    return noise


def sets(n: int = 4000, seed: int = 0) -> list[Samples]:
    system = Wells()
    return [
        Samples.of(system.at(t), drawn(t, n, 100 * seed + k)) for k, t in enumerate(TEMPERATURES)
    ]


def found(n: int = 4000, seed: int = 0) -> Curve:
    return curve_through(sets(n, seed), Wells())


def test_every_number_is_exact_within_its_error() -> None:
    pulls: dict[str, list[float]] = {}
    for seed in range(8):
        for row in found(seed=seed).rows:
            expected = truth(row.temperature)
            for key, (value, se) in row.quantities().items():
                if se > 0:
                    pulls.setdefault(key, []).append((value - expected[key]) / se)
                else:
                    assert (key, value) == ("free_energy", 0.0)
    assert pulls.keys() == truth(1.0).keys()
    for key, values in pulls.items():
        assert max(map(abs, values)) < 5, key
        # Errors are neither too small nor too large: of some 8 independent curves with correlated rows.
        assert 0.6 < float(np.sqrt(np.mean(np.square(values)))) < 1.6, key


def test_weights_are_used() -> None:
    """Draws of a wider law with weights, and, the negative control, without."""
    system, weighted, plain = Wells(), [], []
    for k, t in enumerate(TEMPERATURES):
        x = drawn(1.5 * t, 20_000, k)
        u = system.at(t).energy(x)
        samples = Samples.of(system.at(t), x, log_weights=-u + u / 1.5)
        weighted.append(samples)
        plain.append(Samples(samples.positions, samples.energies, None, samples.metadata))
    for row in curve_through(weighted, system).rows:
        expected = truth(row.temperature)
        for key, (value, se) in row.quantities().items():
            assert abs(value - expected[key]) <= 5 * se
        assert row.ess < row.n
    row = curve_through(plain, system).rows[2]
    assert abs(row.energy.value - truth(1.0)["energy"]) > 20 * row.energy.se


def weighted(n: int, seed: int, *, wide: float = 1.5) -> list[Samples]:
    """Draws of a wider law with weights."""
    system, made = Wells(), []
    for k, t in enumerate(TEMPERATURES):
        x = drawn(wide * t, n, 100 * seed + k)
        u = system.at(t).energy(x)
        made.append(Samples.of(system.at(t), x, log_weights=-u + u / wide))
    return made


def test_pooled_numbers_are_exact_within_their_errors_and_these_are_smaller() -> None:
    pulls: dict[str, list[float]] = {}
    gains: dict[str, list[float]] = {}
    for seed in range(12):
        sets = weighted(3000, seed)
        pooled, apart = curve_through(sets, Wells()), curve_through(sets, Wells(), pool=False)
        assert (pooled.pooled, apart.pooled) == (True, False)
        for row, alone in zip(pooled.rows, apart.rows, strict=True):
            expected = truth(row.temperature)
            assert (row.n, row.ess, alone.ess_pooled) == (alone.n, alone.ess, None)
            assert row.ess_pooled is not None
            assert row.ess_pooled > alone.ess
            for key, (value, se) in row.quantities().items():
                if se > 0:
                    pulls.setdefault(key, []).append((value - expected[key]) / se)
                    gains.setdefault(key, []).append(se / alone.quantities()[key].se)
                else:
                    assert (key, value, row.temperature) == ("free_energy", 0.0, 0.5)
    assert pulls.keys() == truth(1.0).keys()
    for key, values in pulls.items():
        assert max(map(abs, values)) < 5, key
        assert 0.7 < float(np.sqrt(np.mean(np.square(values)))) < 1.4, key
        assert float(np.mean(gains[key])) < (0.95 if key == "free_energy" else 0.85), key


def draws(n: int, seed: int, temperatures: tuple[float, ...] = TEMPERATURES) -> list[Samples]:
    """Those of a generator that knows its density: the mean weight is Z, up to one factor for all."""
    system, wide, made = Wells(), 1.5, []
    for k, t in enumerate(temperatures):
        x = drawn(wide * t, n, 100 * seed + k)
        u = system.at(t).energy(x)
        log_z = 1.5 * math.log(wide * t) + math.log(1 + 2 * math.exp(-1 / (wide * t)))
        log_weights = -u + u / wide + log_z
        made.append(Samples.of(system.at(t), x, log_weights=log_weights, artifact_hash="drawn"))
    return made


def without_scale(sets: list[Samples]) -> list[Samples]:
    """The same, of weights that may have any scale at each temperature."""
    return [
        Samples(each.positions, each.energies, each.log_weights + k, {"system": "two-wells"})
        for k, each in enumerate(sets)
    ]


@pytest.mark.parametrize("pool", [False, True])
def test_log_z_by_weights_makes_free_energies_surer(pool: bool) -> None:
    pulls, gains = [], []
    for seed in range(24):
        sets = draws(1000, seed)
        known = {"pool": pool, "temperatures": TEMPERATURES}
        both, overlap = (
            curve_through(each, Wells(), **known) for each in (sets, without_scale(sets))
        )
        assert (both.weighted, overlap.weighted) == (True, False)
        for row, alone in zip(both.rows[1:], overlap.rows[1:], strict=True):
            # Negative control: a scale that is not Z moves nothing where it is not taken for Z.
            expected = truth(row.temperature)["free_energy"]
            assert abs(alone.free_energy.value - expected) < 5 * alone.free_energy.se
            pulls.append((row.free_energy.value - expected) / row.free_energy.se)
            gains.append(row.free_energy.se / alone.free_energy.se)
    assert 0.75 < float(np.sqrt(np.mean(np.square(pulls)))) < 1.3
    assert float(np.mean(gains)) < 0.95
    assert max(gains) < 1.05


def test_log_z_by_weights_needs_no_overlap() -> None:
    sets = draws(2000, 0, (0.02, 2.0))
    apart = curve_through(without_scale(sets), Wells(), temperatures=(0.02, 2.0))
    assert any("neighbouring temperatures" in note for note in apart.notes)
    found = curve_through(sets, Wells())
    assert not any("neighbouring temperatures" in note for note in found.notes)
    z = [t**1.5 * (1 + 2 * math.exp(-1 / t)) for t in (0.02, 2.0)]
    value, se = found.rows[1].free_energy
    assert abs(value + math.log(z[1] / z[0])) < 5 * se < 0.3


def test_pooled_samples_without_weights_are_those_of_pymbar() -> None:
    pymbar = pytest.importorskip("pymbar")
    made, system = sets(500), Wells()
    assert not curve_through(made, system).pooled
    found = curve_through(made, system, pool=True)
    energies = np.concatenate(
        [s.energies.numpy() * t for s, t in zip(made, TEMPERATURES, strict=True)]
    )
    u_kn = energies / np.array(TEMPERATURES)[:, None]
    theirs = pymbar.MBAR(u_kn, [500] * 5)
    free = theirs.compute_free_energy_differences()
    mean = theirs.compute_expectations(u_kn, state_dependent=True)
    for k, row in enumerate(found.rows):
        assert row.free_energy.value == pytest.approx(free["Delta_f"][0, k], abs=1e-6)
        assert row.energy.value / row.temperature == pytest.approx(mean["mu"][k], abs=1e-6)
        # Theirs is the asymptotic covariance, ours a bootstrap of 200 replicates.
        assert row.free_energy.se == pytest.approx(free["dDelta_f"][0, k], rel=0.25, abs=1e-9)
        assert row.energy.se / row.temperature == pytest.approx(mean["sigma"][k], rel=0.25)


def test_one_set_that_is_wrong_spoils_its_neighbours() -> None:
    """What pooling trusts: every set to be of its temperature."""
    system, made = Wells(), weighted(3000, 0)
    made[2] = Samples.of(
        system.at(1.0), drawn(2.0, 3000, 9), log_weights=torch.zeros(3000).double()
    )
    off = {
        pool: [
            abs(row.energy.value - truth(row.temperature)["energy"]) / row.energy.se
            for row in curve_through(made, system, pool=pool).rows
        ]
        for pool in (True, False)
    }
    assert min(off[True][1], off[True][3]) > 5
    assert max(off[False][1], off[False][3]) < 5
    assert off[False][2] > 5


def test_samples_without_weight_may_have_any_energy() -> None:
    made = weighted(400, 0)
    spoiled = []
    for each in made:
        energies, log_weights = each.energies.clone(), each.log_weights.clone()
        energies[7], log_weights[7] = 1e30, -math.inf
        spoiled.append(Samples(each.positions, energies, log_weights, each.metadata))
    for pool in (True, False):
        for row in curve_through(spoiled, Wells(), pool=pool).rows:
            for key, (value, se) in row.quantities().items():
                assert math.isfinite(se)
                assert abs(value - truth(row.temperature)[key]) <= 5 * se


def test_a_set_of_one_weight_keeps_temperatures_apart() -> None:
    made = weighted(400, 0)
    log_weights = torch.full((400,), -math.inf, dtype=torch.float64)
    log_weights[3] = 0.0
    made[1] = Samples(made[1].positions, made[1].energies, log_weights, made[1].metadata)
    curve = curve_through(made, Wells())
    assert not curve.pooled
    assert any("temperatures are kept apart" in note for note in curve.notes)
    assert all(math.isfinite(curve.rows[k].energy.se) for k in (0, 2, 3, 4))
    assert not math.isfinite(curve.rows[1].energy.se)


def test_few_samples_of_equal_weight_are_not_said_to_vary() -> None:
    made = [
        Samples.of(Wells().at(t), drawn(t, 40, k), log_weights=torch.zeros(40).double())
        for k, t in enumerate(TEMPERATURES)
    ]
    assert not any("effective" in note for note in curve_through(made, Wells()).notes)


def test_few_and_heavy_weights_are_said() -> None:
    """However few the samples; one heavy draw beside thousands is not a matter of number."""
    small = weighted(64, 0, wide=4.0)
    assert all(float(each.ess) < 60 for each in small)
    notes = curve_through(small, Wells()).notes
    assert any("few samples are effective" in note for note in notes)
    made = weighted(3000, 0)
    assert not any("one sample has much" in note for note in curve_through(made, Wells()).notes)
    log_weights = made[2].log_weights.clone()
    log_weights[5] = log_weights.logsumexp(0) - math.log(5)
    made[2] = Samples(made[2].positions, made[2].energies, log_weights, made[2].metadata)
    notes = curve_through(made, Wells()).notes
    assert any(
        "one sample has much of the weight at temperature 1 (0.17)" in note for note in notes
    )


def test_a_basin_that_no_sample_is_in_has_a_bound() -> None:
    made = sets(200)
    x = made[0].positions.double()
    made[0] = Samples.of(Wells().at(0.5), torch.where(x[..., :1] > 0, -x, x))
    notes = curve_through(made, Wells()).notes
    assert any(
        "no sample is in 'right' at temperature 0.5 (below 0.015), with 95 % confidence" in note
        for note in notes
    )
    assert not any("no sample is in" in note for note in curve_through(sets(200), Wells()).notes)


def test_sets_that_record_no_temperature_are_of_the_one_that_is_told() -> None:
    made = sets(200)
    bare = Samples(made[1].positions, made[1].energies, None, {})
    told = curve_through([made[0], bare], Wells().at(0.7))
    assert [row.temperature for row in told.rows] == [0.5, 0.7]
    assert abs(told.rows[1].energy.value - truth(0.7)["energy"]) < 5 * told.rows[1].energy.se
    listed = curve_through([bare, made[0]], Wells(), temperatures=[0.7, 0.5])
    assert [row.energy for row in listed.rows] == [row.energy for row in told.rows]


def test_a_generator_that_ignores_the_temperature_is_seen() -> None:
    """Energies of the same configurations at every temperature: the curve is flat, and far off."""
    system = Wells()
    fixed = [Samples.of(system.at(t), drawn(1.0, 4000, k)) for k, t in enumerate(TEMPERATURES)]
    far = [
        abs(row.energy.value - truth(row.temperature)["energy"]) / row.energy.se
        for row in curve_through(fixed, system).rows
        if row.temperature != 1.0
    ]
    assert min(far) > 15


def test_reweighting_to_another_temperature_agrees() -> None:
    system, source = Wells(), drawn(1.0, 40_000, 3)
    u = system.energy(source)
    moved = Samples.of(system.at(0.7), source, log_weights=u - u / 0.7)
    row = found(40_000).rows[1]
    mean = moved.expectation(lambda x: system.energy(x.double()))
    assert abs(float(mean.value) - row.energy.value) < 5 * math.hypot(float(mean.se), row.energy.se)


def test_files_are_read_again_and_foreign_ones_refused(tmp_path) -> None:
    curve = found(500)
    write_json(curve, tmp_path / "curve.json")
    again = read_curve(tmp_path / "curve.json")
    assert again.to_dict()["rows"] == curve.to_dict()["rows"]
    pooled = curve_through(sets(500), Wells(), pool=True)
    write_json(pooled, tmp_path / "pooled.json")
    assert read_curve(tmp_path / "pooled.json").to_dict() == pooled.to_dict()
    values = json.loads((tmp_path / "curve.json").read_text())
    assert values["units"]["heat_capacity"] == "k"
    keys = {"temperature", "energy", "heat_capacity", "free_energy", "populations"}
    assert keys <= values["rows"][0].keys()
    for text in ("{}", '{"rows": [1]}', "[]"):
        (tmp_path / "other.json").write_text(text)
        with pytest.raises(FileFormatError, match="not a curve"):
            read_curve(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[1].update(temperature=-1.0), "temperature -1"),
        (lambda rows: rows[1].update(temperature=rows[0]["temperature"]), "two rows have temperature 0.5"),
        (lambda rows: rows[1]["energy"].update(se=-0.1), "energy at temperature 0.7 has a negative"),
        (lambda rows: rows[1]["populations"].pop("left"), "temperature 0.7 has other populations"),
    ],
)  # fmt: skip
def test_rows_that_no_curve_has_are_refused(tmp_path, spoil, message) -> None:
    values = found(50).to_dict()
    spoil(values["rows"])
    (tmp_path / "spoiled.json").write_text(json.dumps(values))
    with pytest.raises(FileFormatError, match=message):
        read_curve(tmp_path / "spoiled.json")


def test_a_reference_of_another_definition_is_refused() -> None:
    curve = found(50)
    other = replace(curve, definition={"name": "two-wells", "depth": 2})
    with pytest.raises(InputError, match="another system called 'two-wells'"):
        curve.beside(other)
    # Files of old do not tell.
    assert curve.beside(replace(curve, definition=None)).reference is not None


def test_a_reference_at_more_temperatures_stands_beside(tmp_path) -> None:
    whole = found(500, seed=1)
    part = curve_through(sets(500)[1:], Wells())
    both = part.beside(whole)
    assert both.reference is not None
    assert [row.temperature for row in both.reference.rows] == list(TEMPERATURES[1:])
    # Both against the lowest of the temperatures that are compared.
    assert both.reference.rows[0].free_energy == (0.0, 0.0)
    moved = both.reference.rows[2].free_energy
    expected = truth(1.4)["free_energy"] - truth(0.7)["free_energy"]
    assert abs(moved.value - expected) < 6 * moved.se
    write_curve(both, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000
    with pytest.raises(InputError, match=r"no row at temperature 0\.5"):
        whole.beside(part)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[:1], "two or more temperatures, got 1"),
        (lambda s: [s[0], s[0]], r"two sets of samples are of temperature 0\.5"),
    ],
)
def test_unusable_sets_are_refused(change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        curve_through(change(sets(50)), Wells())


def test_neighbours_that_share_nothing_are_noted() -> None:
    system = Wells()
    far = [Samples.of(system.at(t), drawn(t, 300, k)) for k, t in enumerate((1e-4, 2.0))]
    for pool in (True, False):
        curve = curve_through(far, system, pool=pool)
        assert any("count for both" in note for note in curve.notes)
        assert curve.rows[1].free_energy.se == math.inf
        assert curve.rows[1].energy.se < 0.5
        assert curve.to_dict()["rows"][1]["free_energy"]["se"] is None
    assert not any("count for both" in note for note in found(1000).notes)


def test_infinite_energies_are_left_out_and_counted() -> None:
    first, *rest = sets(300)
    energies = first.energies.clone()
    energies[3] = math.inf
    broken = Samples(first.positions, energies, None, first.metadata)
    curve = curve_through([broken, *rest], Wells())
    assert any("1 samples of infinite energy" in note for note in curve.notes)
    assert curve.rows[0].n == 299
