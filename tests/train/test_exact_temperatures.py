"""A flow with exact weights over a range of temperatures: its weights, log Z and card at each of them."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from molsampler import Sampler
from molsampler.analysis import curve_of, curve_through
from molsampler.cli import main
from molsampler.errors import InputError
from molsampler.estimate import Estimate
from molsampler.nn.generators.density import log_weight
from molsampler.space import Euclidean
from molsampler.systems import register_system
from molsampler.target import System
from molsampler.temperatures import TemperatureRange
from molsampler.train import checkpoint, load_config, train
from molsampler.train.criterion import Evaluation
from molsampler.train.trainer import Trainer, _least_share
from molsampler.train.verdict import verdict_of, verdict_over, with_bridge

RANGE = TemperatureRange(low=0.5, high=2.0)

#: Temperatures that are no node of the ladder, 0.5 * 4 ** (k / 4).
BETWEEN = (0.6, 0.85, 1.2, 1.7)


class Soft(System):
    """u = (x^4 + y^2 / 2) / T: widths grow as the fourth and the square root of T."""

    name, concurrent = "soft", True

    def __init__(self) -> None:
        self.space = Euclidean(1, 2)

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        square = x.square()
        powers = x.new_tensor([1.0, 0.0])
        energy = (square.square() * powers + 0.5 * square * (1 - powers)).sum((1, 2))
        return energy, -(4 * x * square * powers + x * (1 - powers))


register_system("soft", Soft)


def log_z(temperature: float) -> float:
    """2 Gamma(5/4) T^(1/4) (2 pi T)^(1/2)."""
    return (
        math.log(2)
        + math.lgamma(1.25)
        + 0.25 * math.log(temperature)
        + 0.5 * math.log(2 * math.pi * temperature)
    )


SETTINGS = (
    "compile=false", "probe=false", "iterations=120", "evaluate_every=60", "evaluate_samples=1500",
    "batch_size=256", "draws=90", "order=2", "log_every=20", "lr=0.003",
    "generator={kind: spline, layers: 4, width: 24, bins: 8, marginal_bins: 16, reach: 5}",
    "population={size: 2000, start_scale: 1.0, anneal_moves: 2, equilibration: 60, refresh: 200, nodes: 5}",
)  # fmt: skip


def config(*extra: str):
    return load_config("exact", Soft(), overrides=(*SETTINGS, *extra), temperatures=RANGE)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    result = train(Soft(), tmp_path_factory.mktemp("ranged") / "run", config())
    assert result.status == "completed"
    return result.artifact


def test_log_z_and_energies_are_exact_at_temperatures_that_were_no_nodes(artifact) -> None:
    sampler = Sampler.load(artifact)
    for temperature in BETWEEN:
        drawn = sampler.sample(4000, temperature=temperature, seed=3)
        assert drawn.ess > 0.9 * len(drawn)
        found = drawn.log_z
        assert found is not None
        assert found.se < 0.01
        assert abs(found.value - log_z(temperature)) < 5 * found.se
        density = sampler.log_prob(drawn.positions, temperature=temperature)
        torch.testing.assert_close(-drawn.energies - density, drawn.log_weights, rtol=0, atol=1e-4)
        # Equipartition: 1/4 + 1/2.
        u = drawn.expectation(lambda x: x[:, 0, 0] ** 4 + 0.5 * x[:, 0, 1] ** 2)
        assert abs(float(u.value) - 0.75 * temperature) < 5 * float(u.se)


def test_a_density_is_asked_for_at_a_temperature_of_the_range(artifact) -> None:
    sampler, x = Sampler.load(artifact), torch.zeros(1, 1, 2)
    assert torch.equal(sampler.log_prob(x), sampler.log_prob(x, temperature=1.0))
    assert float(sampler.log_prob(x, temperature=0.5)) > float(sampler.log_prob(x)) + 0.3
    with pytest.raises(InputError, match=r"from 0\.5 to 2"):
        sampler.log_prob(x, temperature=3.0)


def test_a_flow_that_is_not_told_has_poor_weights(artifact) -> None:
    """Negative control: draws of the middle, weighed by the density of the middle."""
    generator = Sampler.load(artifact).generator(torch.device("cpu"))
    middle = RANGE.context(torch.full((4000,), RANGE.middle))
    for temperature in (0.5, 2.0):
        random = torch.Generator().manual_seed(3)
        target = Soft().at(temperature)
        with torch.no_grad():
            told = generator.at(temperature).draw(4000, target, generator=random)
            x, log_prob = generator.sample(4000, context=middle, generator=random)
        blind = log_weight(target.energy_and_score(x.double())[0], log_prob)
        share = [
            float(torch.softmax(each, 0).square().sum().reciprocal()) / 4000
            for each in (told.log_weight, blind)
        ]
        assert share[0] > 0.9
        assert share[1] < 0.85


def test_annealed_draws_of_a_temperature_keep_their_mean_weight(artifact) -> None:
    sampler = Sampler.load(artifact)
    found = sampler.sample(1000, temperature=0.6, anneal=3, seed=1).log_z
    assert found is not None
    assert abs(found.value - log_z(0.6)) < 5 * found.se
    with pytest.raises(
        InputError, match=r"annealed draws are of one temperature.*at\(temperature\)"
    ):
        sampler.generator(torch.device("cpu")).annealed(3).draw(
            2, Soft(), context=torch.zeros(2, 1), generator=None
        )


def test_the_curve_of_weighted_draws_is_the_exact_one(artifact) -> None:
    sampler = Sampler.load(artifact)
    found = curve_of(sampler, BETWEEN, n=3000)
    for row in found.rows:
        assert abs(row.energy.value - 0.75 * row.temperature) < 5 * row.energy.se
        assert abs(row.heat_capacity.value - 0.75) < 5 * row.heat_capacity.se
        expected = log_z(BETWEEN[0]) - log_z(row.temperature)
        assert abs(row.free_energy.value - expected) <= 5 * row.free_energy.se
        assert row.ess > 0.8 * row.n
    assert found.notes == ()
    few = sampler.sample(3000, temperature=0.6)
    noise = torch.randn(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    poor = replace(few, log_weights=few.log_weights + 5 * noise)
    two = [poor, sampler.sample(3000, temperature=0.85)]
    told = "few samples are effective at temperature 0.6 ("
    for pool in (True, False):
        assert any(note.startswith(told) for note in curve_through(two, pool=pool).notes)
    # Those of the other temperature make up for it.
    pooled = curve_through(two)
    assert abs(pooled.rows[0].energy.value - 0.75 * 0.6) < 5 * pooled.rows[0].energy.se


def test_the_command_pools_or_does_not(artifact, capsys) -> None:
    command = ["curve", str(artifact), "-n", "600", "--points", "4", "--json", "-"]
    found = {}
    for option in ([], ["--no-pool"]):
        assert main([*command, *option]) == 0
        found[bool(option)] = json.loads(capsys.readouterr().out)
    assert [found[apart]["pooled"] for apart in (False, True)] == [True, False]
    for pooled, alone in zip(found[False]["rows"], found[True]["rows"], strict=True):
        assert pooled["heat_capacity"]["se"] < alone["heat_capacity"]["se"]


def test_free_energies_are_those_of_the_temperature_asked_for(artifact, capsys) -> None:
    command = ["free-energy", str(artifact), "-n", "2000", "--json", "-"]
    found = {}
    for temperature in (0.6, 1.7):
        assert main([*command, "--temperature", str(temperature)]) == 0
        values = json.loads(capsys.readouterr().out)
        found[temperature] = values["log_z"]["value"]
        assert abs(found[temperature] - log_z(temperature)) < 5 * values["log_z"]["se"]
        assert abs(values["U"]["value"] - 0.75) < 5 * values["U"]["se"]
    assert found[1.7] > found[0.6] + 0.5
    assert main([*command, "--temperature", "3"]) == 1
    assert "from 0.5 to 2" in capsys.readouterr().err
    assert main([*command, "--unit", "kJ/mol"]) == 2
    assert "draw first" in " ".join(capsys.readouterr().err.split())


def test_the_card_has_the_weights_of_each_temperature(artifact) -> None:
    card = Sampler.load(artifact).card
    assert card.verdict is not None
    assert card.verdict.usable
    assert card.verdict.sentence.startswith("judged at temperatures 0.5, 1, 2, worst at ")
    rows = [row for row in card.quality if str(row["metric"]).startswith("at temperature")]
    assert [row["temperature"] for row in rows] == pytest.approx([0.5, 1.0, 2.0])
    shares = [row["effective share of weights"] for row in rows]
    assert card.verdict.value == pytest.approx(min(shares))
    for row in rows:
        assert row["measure"] == "effective share of weights"
        assert abs(row["log_z"] - log_z(row["temperature"])) < 5 * row["log_z_error"]
    # What draws are worth without their weights is not on the card.
    assert not any("drift (" in str(row["metric"]) for row in card.quality)
    (whole,) = (row for row in card.quality if row["metric"] == "effective share of weights")
    assert whole["value"] == pytest.approx(sum(shares) / 3)
    assert whole["log_z"] is None
    # The second route: the chains of neighbouring temperatures.
    expected = log_z(2.0) - log_z(0.5)
    assert abs(whole["change of log_z over the range"] - expected) < 0.05
    assert 0 < whole["by the chains, error"] < 0.2
    assert abs(whole["by the chains"] - expected) < 5 * whole["by the chains, error"]
    assert "change of log Z from 0.5 to 2 by the population's chains" in card.verdict.sentence
    assert card.verdict.sentence.endswith("two routes agree")


def test_widths_start_with_the_powers_of_the_population() -> None:
    random = torch.Generator().manual_seed(0)
    temperature = torch.tensor(RANGE.spread(5)).repeat_interleave(4000)
    x = torch.randn(20_000, 1, 2, generator=random)
    x[:, 0] *= temperature[:, None] ** torch.tensor([0.5, 0.25])
    flow = config("generator.axes=own").what_to_train().build(Euclidean(1, 2))
    flow.start_from(x, context=RANGE.context(temperature))
    assert flow.flow.growth.tolist() == pytest.approx([0.5, 0.25], abs=0.02)
    # A row whose temperature is off by rounding is none of its own.
    off = temperature.clone()
    off[3] = torch.nextafter(off[3], torch.tensor(9.0))
    flow.start_from(x, context=RANGE.context(off))
    assert flow.flow.growth.tolist() == pytest.approx([0.5, 0.25], abs=0.02)
    # Rows of one temperature tell nothing of others.
    flow.start_from(x[:4000], context=RANGE.context(temperature[:4000]))
    assert flow.flow.growth.tolist() == [0.0, 0.0]


QUICK = (
    "iterations=4", "batch_size=16", "draws=8", "evaluate_every=2", "evaluate_samples=60",
    "evaluate_steps=2", "checkpoint_every=2", "log_every=1", "draw_from=0.0",
    "population={size: 30, anneal_moves: 1, equilibration: 6, refresh: 10, nodes: 3}",
)  # fmt: skip


def test_a_run_that_is_stopped_goes_on_bit_for_bit(tmp_path, monkeypatch) -> None:
    whole = train(Soft(), tmp_path / "whole", config(*QUICK))
    step = Trainer.step

    def interrupting(self):
        if self.state.steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self)

    monkeypatch.setattr(Trainer, "step", interrupting)
    assert train(Soft(), tmp_path / "parts", config(*QUICK)).status == "interrupted"
    monkeypatch.setattr(Trainer, "step", step)
    assert train(Soft(), tmp_path / "parts", config(*QUICK)).status == whole.status
    first, second = (
        checkpoint.load_latest(tmp_path / name / "checkpoints")[0] for name in ("whole", "parts")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines if "log_likelihood" in line]
    assert len(steps) == 4
    assert all("exchanged" in step for step in steps)
    # log Z is another at each temperature.
    assert not any("log_z" in json.loads(line) for line in lines)


@pytest.mark.parametrize("estimator", ["path", "total", "score"])
def test_every_loss_runs_over_a_range(tmp_path, estimator) -> None:
    settings = ("reverse_from=0.0", "weighted=0.5", f"estimator={estimator}", "forward_later=1")
    result = train(
        Soft(), tmp_path / "run", config("iterations=30", "evaluate_every=30", *settings)
    )
    found = Sampler.load(result.artifact).sample(4000, temperature=0.7, seed=1)
    assert found.ess > 0.5 * len(found)
    assert abs(found.log_z.value - log_z(0.7)) < 5 * found.log_z.se


def test_training_stops_when_every_temperature_has_the_share_asked_for(tmp_path) -> None:
    result = train(Soft(), tmp_path / "run", config("until_ess=0.9", "evaluate_every=20"))
    assert result.verdict is not None
    assert result.verdict.usable
    assert result.verdict.value >= 0.9


def test_evaluations_at_several_temperatures_make_one() -> None:
    parts = [
        Evaluation.mean([_judged(0.8), _judged(0.95)]),
        Evaluation.mean([_judged(0.95), _judged(0.95)]),
    ]
    assert [part.ess for part in parts] == pytest.approx([0.875, 0.95])
    # What --until-ess asks is the least of them, not the mean, nor that of the first.
    assert _least_share([_judged(0.95), _judged(0.8)]) == 0.8
    assert _least_share([_judged(0.95), replace(_judged(0.8), ess=None)]) == 0.0
    assert parts[0].log_z is None
    assert parts[0].max_weight == pytest.approx(0.2)
    found = verdict_over(
        [_judged(0.2), _judged(0.05), _judged(0.08)], [1.0, 2.0, 3.0], ess_goal=0.1
    )
    assert not found.usable
    assert "worst at 2" in found.sentence


def test_routes_that_disagree_over_a_range_are_not_usable() -> None:
    good = verdict_of(_judged(0.96))
    assert good.usable
    own, other = Estimate(2.0, 0.01), Estimate(2.2, 0.02)
    found = with_bridge(good, own, other, ends="1 to 2")
    assert not found.usable
    assert "+0.200 ± 0.022 from that by weights: the two routes disagree" in found.sentence
    assert str(found.advice).startswith("draws or chains miss a part of the density")
    assert with_bridge(good, own, Estimate(2.05, 0.02), ends="1 to 2").usable
    undecided = with_bridge(good, own, Estimate(-math.inf, math.inf), ends="1 to 2")
    assert undecided.usable
    assert "is not decided" in undecided.sentence


def _judged(ess: float) -> Evaluation:
    known = dict.fromkeys(
        ("discrepancy", "discrepancy_error", "drift", "drift_error", "energy_tvd", "mean_energy",
         "median_energy", "refined_median_energy", "acceptance", "spread"), 0.0
    )  # fmt: skip
    return Evaluation(
        **known, broken=0, samples=100, ess=ess, ess_error=0.0, log_z=1.0, max_weight=1 - ess
    )


def test_a_spline_flow_starts_over_a_range_under_the_other_objective_too(tmp_path) -> None:
    settings = (*QUICK[:1], "batch_size=16", "compile=false", "probe=false", "evaluate_every=4",
                "evaluate_samples=60", "calibrate=false", "generator={kind: spline, layers: 2, width: 8}",
                "target_score={size: 60, equilibration: 6, refresh: 10, warmup: 3, nodes: 3}",
                "denoiser={kind: mlp, width: 8, layers: 1}")  # fmt: skip
    loaded = load_config("fast", Soft(), overrides=settings, temperatures=RANGE)
    assert train(Soft(), tmp_path / "run", loaded).status == "completed"


def test_a_range_of_the_generator_alone_is_refused() -> None:
    with pytest.raises(InputError, match=r"the range of a training is the key temperatures"):
        load_config("exact", Soft(), overrides=["generator.temperatures={low: 1, high: 2}"])
    with pytest.raises(InputError, match=r"trains at one temperature; take --preset fast or --pre"):
        load_config("paper", "lj13", temperatures=RANGE)
