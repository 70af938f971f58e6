"""One training over a range of temperatures: what it samples, records, refuses and resumes."""

from __future__ import annotations

import json
import math
import os
import signal

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from molsampler import Sampler, export
from molsampler.analysis import curve_of
from molsampler.cli import main
from molsampler.errors import FileFormatError, InputError
from molsampler.sampler.store import save
from molsampler.space import Euclidean
from molsampler.systems import get_system, register_system
from molsampler.target import System
from molsampler.temperatures import TemperatureRange
from molsampler.train import checkpoint, load_config, train
from molsampler.train.trainer import Trainer

RANGE = TemperatureRange(low=0.5, high=2.0)

#: Temperatures that are no node of the ladder, 0.5 * 4 ** (k / 4).
BETWEEN = (0.6, 0.85, 1.2, 1.7)


class Quartic(System):
    """u = r^4 / (4 T) in the plane: <U> = T / 2, C = k / 2, Z in proportion to the root of T."""

    name, concurrent = "quartic", True

    def __init__(self) -> None:
        self.space = Euclidean(1, 2)

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        square = x.square().sum((1, 2))
        return 0.25 * square.square(), -square[:, None, None] * x


register_system("quartic", Quartic)

SETTINGS = (
    "compile=false", "probe=false", "iterations=250", "batch_size=128", "evaluate_every=120",
    "calibrate=false", "generator_lr=0.003", "score_lr=0.003", "decay_start=0.3",
    "evaluate_samples=3000", "evaluate_steps=5", "score_steps=4", "log_every=20",
    "generator={kind: implicit, body: {kind: mlp, width: 32, layers: 2}, noise_features: 0, "
    "langevin_layers: 6, langevin_step: 0.1, langevin_last_step: 0.05, "
    "langevin_scheme: leimkuhler-matthews, langevin_fixed: true, langevin_hessian: false}",
    "denoiser={kind: mlp, width: 32, layers: 2}", "noise_annealing=0", "ema=0.95",
    "target_score={size: 1000, anneal_moves: 1, equilibration: 40, refresh: 100, refresh_steps: 1, "
    "warmup: 120, nodes: 5}",
)  # fmt: skip


def config(*extra: str, temperatures: TemperatureRange | None = RANGE):
    return load_config(
        "fast", "quartic", overrides=(*SETTINGS, *extra), invariant=False, temperatures=temperatures
    )


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    result = train(Quartic(), tmp_path_factory.mktemp("ranged") / "run", config())
    assert result.status == "completed"
    return result.artifact


def energies(sampler: Sampler, temperature: float, n: int = 4000) -> Tensor:
    """U, of the positions."""
    drawn = sampler.sample(n, temperature=temperature, seed=3)
    return 0.25 * drawn.positions.double().square().sum((1, 2)).square()


def test_mean_energies_are_those_of_temperatures_that_were_no_nodes(artifact) -> None:
    sampler = Sampler.load(artifact)
    for temperature in BETWEEN:
        u = energies(sampler, temperature)
        error = 5 * float(u.std()) / len(u) ** 0.5
        # A training of seconds: a tenth of the value beside the Monte Carlo error.
        assert abs(float(u.mean()) - temperature / 2) < error + 0.05 * temperature


def test_a_generator_that_is_not_told_fails_the_same_test(artifact) -> None:
    generator = Sampler.load(artifact).generator(torch.device("cpu"))
    middle = RANGE.context(torch.full((4000,), RANGE.middle))
    for temperature in (BETWEEN[0], BETWEEN[-1]):
        random = torch.Generator().manual_seed(3)
        with torch.no_grad():
            # Its layers are not told either: they see the energy of the middle.
            x = generator.draw(4000, Quartic(), context=middle, generator=random).x
        u = 0.25 * x.double().square().sum((1, 2)).square()
        error = 5 * float(u.std()) / len(u) ** 0.5
        assert abs(float(u.mean()) - temperature / 2) > error + 0.05 * temperature


def test_samples_record_their_temperature_and_have_its_energies(artifact, tmp_path) -> None:
    sampler = Sampler.load(artifact)
    drawn = sampler.sample(100, temperature=1.7, seed=3)
    assert drawn.metadata["system"] == {"name": "quartic", "temperature": 1.7}
    assert drawn.system().temperature == 1.7
    u = 0.25 * drawn.positions.double().square().sum((1, 2)).square()
    torch.testing.assert_close(drawn.energies, u / 1.7)
    sampler.sample_to_file(tmp_path / "hot.npz", 100, temperature=1.7, seed=3)
    again = export.load(tmp_path / "hot.npz")
    assert torch.equal(again.positions, drawn.positions)
    assert again.system().temperature == 1.7
    # Its own temperature is one of the range, and what is drawn without another one.
    own = sampler.sample(100, seed=3)
    assert torch.equal(own.positions, sampler.sample(100, temperature=1.0, seed=3).positions)
    assert own.metadata["system"] == "quartic"


def test_sets_of_one_seed_are_independent_at_all_temperatures(artifact) -> None:
    """As curves take them to be; the negative control is the generator itself, on the same noise."""
    sampler = Sampler.load(artifact)
    sets = [sampler.sample(2000, temperature=each, seed=3).energies for each in (0.8, 1.2)]
    assert abs(float(torch.corrcoef(torch.stack(sets))[0, 1])) < 5 / 2000**0.5
    generator, same = sampler.generator(torch.device("cpu")), []
    for temperature in (0.8, 1.2):
        random = torch.Generator().manual_seed(3)
        with torch.no_grad():
            x = generator.at(temperature).draw(2000, Quartic(), generator=random).x
        same.append(Quartic().energy(x))
    assert float(torch.corrcoef(torch.stack(same))[0, 1]) > 0.3
    # A seed is a seed all the same.
    again = sampler.sample(2000, temperature=0.8, seed=3).energies
    assert torch.equal(again, sets[0])


def test_a_range_that_is_given_twice_must_be_the_same() -> None:
    with pytest.raises(InputError, match=r"given twice: 0\.5 to 2 \(--temperature\)"):
        config("temperatures.low=0.6")
    assert config(f"temperatures.low={RANGE.low}") == config()


def test_refinement_is_at_the_temperature(artifact) -> None:
    drawn = Sampler.load(artifact).sample(3000, temperature=0.6, refine=40, seed=1)
    u = 0.6 * drawn.energies
    assert abs(float(u.mean()) - 0.3) < 5 * float(u.std()) / len(u) ** 0.5


def test_reweighting_between_temperatures_agrees(artifact) -> None:
    sampler = Sampler.load(artifact)
    source = sampler.sample(8000, temperature=1.2, refine=40, seed=5)
    log_weights = source.energies - source.energies * (1.2 / 0.85)
    weight = torch.softmax(log_weights, 0)
    reweighted = float(weight @ (1.2 * source.energies))
    error = float((weight * (1.2 * source.energies - reweighted)).square().sum().sqrt())
    there = energies(sampler, 0.85)
    direct = float(there.std()) / len(there) ** 0.5
    assert abs(reweighted - float(there.mean())) < 5 * math.hypot(error, direct) + 0.05 * 0.85


def test_the_card_says_range_and_quality(artifact, capsys) -> None:
    card = Sampler.load(artifact).card
    assert card.temperatures == RANGE
    rows = [row for row in card.quality if row["metric"].startswith("at temperature")]
    assert [row["temperature"] for row in rows] == pytest.approx([0.5, 1.0, 2.0])
    whole = next(row for row in card.quality if row["metric"].startswith("discrepancy"))
    mean = sum(row["discrepancy"] for row in rows) / 3
    assert whole["value"] == pytest.approx(mean, rel=0.5)
    assert "judged at temperatures 0.5, 1, 2" in card.verdict.sentence
    bounds = card.energy_bounds
    assert [each.temperature for each in bounds] == [0.5, 1.0, 2.0]
    assert all(each.low < each.high for each in bounds)
    assert "redrawn" in Sampler.load(artifact).sample(50, temperature=0.7).metadata
    assert main(["info", str(artifact)]) == 0
    assert "low: 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("temperature", [0.49, 2.1, float("nan"), True, "1"])
def test_temperatures_outside_are_refused_with_the_range(artifact, temperature) -> None:
    with pytest.raises(InputError, match=r"draws at temperatures from 0\.5 to 2, and got"):
        Sampler.load(artifact).sample(10, temperature=temperature)


def test_the_command_refuses_and_draws(artifact, tmp_path, capsys) -> None:
    out = str(tmp_path / "x.npz")
    run = ["sample", str(artifact), "-n", "20", "-o", out]
    assert main([*run, "--temperature", "3"]) == 1
    assert "0.5 to 2" in capsys.readouterr().err
    assert main([*run, "--temperature", "1.3"]) == 0
    assert "20 samples of quartic at temperature 1.3" in capsys.readouterr().out


def test_without_its_own_temperature_in_the_range_one_has_to_be_given(artifact, tmp_path) -> None:
    sampler = Sampler.load(artifact)
    generator = sampler.generator(torch.device("cpu"))
    hot = TemperatureRange(low=1.5, high=3.0)
    generator.config = generator.config.conditioned(hot)
    generator.temperatures = hot
    save(tmp_path / "hot", generator, system=Quartic())
    with pytest.raises(InputError, match=r"1\.5 to 3.*own one, 1, is not among them"):
        Sampler.load(tmp_path / "hot").sample(10)
    assert len(Sampler.load(tmp_path / "hot").sample(10, temperature=2.5)) == 10


def test_a_sampler_of_one_temperature_says_so(tmp_path, capsys) -> None:
    with pytest.raises(InputError, match="single temperature, 1; one"):
        Sampler.load("mog40").sample(10, temperature=1.5)
    assert len(Sampler.load("mog40").sample(10, temperature=1.0)) == 10
    assert main(["curve", "mog40"]) == 1
    assert "single temperature" in capsys.readouterr().err


def test_a_card_that_hides_its_range_is_refused(artifact, tmp_path) -> None:
    sampler = Sampler.load(artifact)
    generator = sampler.generator(torch.device("cpu"))
    generator.temperatures = None
    with pytest.raises(FileFormatError, match="temperatures: the card says None"):
        save(tmp_path / "hidden", generator, system=Quartic())


def test_the_curve_of_a_sampler_is_the_exact_one(artifact, tmp_path, capsys) -> None:
    found = curve_of(Sampler.load(artifact), BETWEEN, n=3000, refine=40)
    lowest = BETWEEN[0]
    for row in found.rows:
        assert abs(row.energy.value - row.temperature / 2) < 5 * row.energy.se
        assert abs(row.heat_capacity.value - 0.5) < 5 * row.heat_capacity.se
        expected = -0.5 * math.log(row.temperature / lowest)
        assert abs(row.free_energy.value - expected) <= 5 * row.free_energy.se
    reference = tmp_path / "reference.json"
    run = ["curve", str(artifact), "-n", "400", "--seed", "9"]
    assert main([*run, "--points", "4", "--json", str(reference)]) == 0
    capsys.readouterr()
    plot = tmp_path / "curve.png"
    assert main([*run, "--reference", str(reference), "-o", str(plot), "--json", "-"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [row["temperature"] for row in values["rows"]] == pytest.approx(RANGE.spread(4))
    assert values["reference"]["rows"][0]["free_energy"]["value"] == 0
    assert plot.stat().st_size > 5000
    assert main([*run, "--temperature", "0.4:1"]) == 1
    assert "0.5 to 2" in capsys.readouterr().err


QUICK = (
    "iterations=4", "batch_size=16", "evaluate_every=2", "evaluate_samples=60", "evaluate_steps=2",
    "checkpoint_every=2", "log_every=1",
    "target_score={size: 30, anneal_moves: 1, equilibration: 6, refresh: 10, warmup: 3, nodes: 3}",
)  # fmt: skip


def test_a_run_that_is_stopped_goes_on_bit_for_bit(tmp_path, monkeypatch) -> None:
    whole = train(Quartic(), tmp_path / "whole", config(*QUICK))
    step = Trainer.step
    for stop in (2, 5):

        def interrupting(self, stop=stop):
            if self.state.steps == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self)

        monkeypatch.setattr(Trainer, "step", interrupting)
        assert train(Quartic(), tmp_path / "parts", config(*QUICK)).status == "interrupted"
    monkeypatch.setattr(Trainer, "step", step)
    assert train(Quartic(), tmp_path / "parts", config(*QUICK)).status == whole.status
    first, second = (
        checkpoint.load_latest(tmp_path / name / "checkpoints")[0] for name in ("whole", "parts")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    logs = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert '"exchanged"' in logs[0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("objective={kind: dikl-posterior}",), "'dikl-posterior' trains at one temperature"),
        (("generator={kind: direct}",), "'direct' takes no temperature"),
        (("temperatures={low: 2, high: 1}",), "low must be below high"),
    ],
)
def test_what_cannot_be_trained_over_a_range_is_refused(overrides, message) -> None:
    temperatures = None if "low" in overrides[0] else RANGE
    with pytest.raises(InputError, match=message):
        config(*overrides, temperatures=temperatures)


def test_a_sample_costs_what_it_costs_at_one_temperature() -> None:
    plain = config(temperatures=None).generator
    generators = [
        plain.build(Euclidean(1, 2)),
        plain.conditioned(RANGE).build(Euclidean(1, 2)).at(1.0),
    ]
    operations = []
    for generator in generators:
        generator.start_steps(0.1, None)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            generator.draw(64, Quartic(), generator=torch.Generator().manual_seed(0))
        operations.append(counter.get_total_flops())
    assert operations[0] <= operations[1] < 1.05 * operations[0]
    assert generators[0].evaluations_per_sample == generators[1].evaluations_per_sample


def test_presets_know_what_a_range_needs_besides(tmp_path) -> None:
    """Whoever asks for the range: the argument, a file or an override; and what they set themselves stays."""
    plain, ranged = (load_config("fast", "lj13", temperatures=each) for each in (None, RANGE))
    assert ranged.iterations > plain.iterations
    steps = [config.sampling["kinetic"]["steps"] for config in (plain, ranged)]
    assert steps[1] > steps[0]
    # What they have in common is left alone.
    assert ranged.sampling["kinetic"]["persistence"] == plain.sampling["kinetic"]["persistence"]
    assert ranged.objective == plain.objective
    file = tmp_path / "config.yaml"
    file.write_text(f"temperatures: {{low: {RANGE.low}, high: {RANGE.high}}}")
    assert load_config("fast", "lj13", file=file) == ranged
    override = f"temperatures={{low: {RANGE.low}, high: {RANGE.high}}}"
    assert load_config("fast", "lj13", overrides=[override]) == ranged
    assert load_config("fast", "lj13", overrides=["temperatures=null"]) == plain
    own = load_config("fast", "lj13", temperatures=RANGE, overrides=["iterations=7"])
    assert (own.iterations, own.sampling) == (7, ranged.sampling)
    file.write_text("iterations: 8")
    assert load_config("fast", "lj13", file=file, temperatures=RANGE).iterations == 8


@pytest.mark.parametrize(
    ("preset", "system"), [("fast", "lj13"), ("exact", "lj13"), ("exact", "dw4"), ("fast", "mog40")]
)
def test_presets_of_a_range_are_valid(preset, system) -> None:
    found = load_config(preset, get_system(system), temperatures=RANGE)
    plain = load_config(preset, get_system(system))
    assert found.temperatures == RANGE
    assert found.iterations <= 1.5 * plain.iterations


def test_samplers_of_one_temperature_each_draw_independently(tmp_path) -> None:
    """Trained apart, at temperatures of which one is not the system's own, and drawn by the same seed."""
    own = config("iterations=1", "target_score.warmup=1", temperatures=None)
    samplers = [
        Sampler.load(train(Quartic().at(each), tmp_path / f"{each:g}", own).artifact)
        for each in (1.0, 1.5)
    ]
    assert samplers[0].noise_seed(3) == 3
    assert samplers[1].noise_seed(3) != 3
    drawn = [sampler.sample(2000, seed=3).energies for sampler in samplers]
    assert abs(float(torch.corrcoef(torch.stack(drawn))[0, 1])) < 5 / 2000**0.5
