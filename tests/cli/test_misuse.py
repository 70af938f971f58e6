"""What a command is asked by mistake: refused in a sentence that says what was meant, before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from molsampler import Sampler
from molsampler.reference import load_reference
from molsampler.samples import Samples
from molsampler.systems import get_system
from molsampler.train import load_config
from molsampler.train.folder import RunFolder

FORMULA = (
    "name: seven\nexpression: {e}*((1/r)^12 - 2*(1/r)^6) + 0.5*r^2\nparticles: 7\ndimensions: 2\n"
)


def drawn(folder: Path, name: str, *, strength: float = 2, temperature: float = 1) -> Path:
    """A file of made-up samples of a cluster of seven."""
    system_file = folder / "seven.yaml"
    system_file.write_text(FORMULA.format(e=strength))
    system = get_system(system_file).at(temperature)
    x = 1.2 * torch.randn(300, 7, 2, generator=torch.Generator().manual_seed(0))
    path = folder / name
    Samples.of(system, system.space.project(x)).save(path)
    return path


def weighted(folder: Path) -> Path:
    samples = load_reference("lj13")[:300]
    path = folder / "weighted.npz"
    Samples(
        samples.positions,
        samples.energies,
        torch.zeros(300, dtype=torch.float64),
        {"system": "lj13"},
    ).save(path)
    return path


@pytest.mark.parametrize("change", [{"temperature": 2.0}, {"strength": 4}])
def test_samples_of_another_system_or_temperature_are_no_reference(
    run, tmp_path: Path, change
) -> None:
    ours, theirs = drawn(tmp_path, "ours.npz"), drawn(tmp_path, "theirs.npz", **change)
    outcome = run("compare", ours, theirs, "--no-monte-carlo")
    assert outcome.code == 1
    if "temperature" in change:
        assert (
            f"{theirs} is of seven at temperature 2, not 1; both have to be of one" in outcome.err
        )
    else:
        assert f"{theirs} is of another definition or temperature of 'seven'" in outcome.err
        assert run("compare", ours, ours, "--no-monte-carlo").code == 0


def test_no_curve_goes_through_samples_of_two_systems(run, tmp_path: Path) -> None:
    cold = drawn(tmp_path, "cold.npz")
    hot, other = (drawn(tmp_path, f"hot{e}.npz", strength=e, temperature=2) for e in (2, 4))
    assert run("curve", cold, hot).code == 0
    outcome = run("curve", cold, other)
    assert outcome.code == 1
    assert "set 2 of samples is of another system than 'seven'" in outcome.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--temperature", 0.8), "in kT it changes nothing"),
        (("--steps", 4), "is a file, whose samples have been drawn"),
        (("--anneal", 7), "is a file, whose samples have been drawn"),
        (("-n", 3), "is a file, whose samples have been drawn"),
    ],
)
def test_a_free_energy_of_a_file_takes_no_option_that_has_no_meaning(
    run, tmp_path: Path, options, sentence
) -> None:
    outcome = run("free-energy", weighted(tmp_path), *options)
    assert outcome.code != 0
    assert sentence in " ".join(outcome.err.replace("│", " ").split())
    assert outcome.out == ""


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--along", "distance:0,99"), "names particle 99"),
        (("--along", "angle:0,1,2"), "angle"),
        (("--edges", "1,2"), "pass along="),
        (("--unit", "kJ/mol"), "needs a temperature"),
        (("--temperature", "0.8"), "single temperature, 1; one of a range comes from"),
    ],
)
def test_a_question_without_an_answer_is_refused_before_draws_are_made(
    run, options, sentence, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_, **__):
        raise AssertionError("samples were drawn")

    monkeypatch.setattr("molsampler.sampler.stream.SampleStream.blocks", never)
    outcome = run("free-energy", "dw4-exact", *options)
    assert outcome.code != 0
    assert sentence in " ".join(outcome.err.replace("│", " ").split())


def test_info_of_a_system_at_a_temperature(run, tmp_path: Path) -> None:
    found = json.loads(run("info", "lj13@0.3", "--json").out)
    assert (found["kind"], found["name"], found["temperature"]) == ("system", "lj13", 0.3)
    # Only a sampler of a range draws there.
    assert found["sampler"] == "ships: lj13-range-exact"
    assert "lj13-exact" not in run("info", "lj13@0.3").out
    drawn(tmp_path, "x.npz")
    found = json.loads(run("info", f"{tmp_path / 'seven.yaml'}@2.5", "--json").out)
    assert found["temperature"] == 2.5
    assert "are in kelvin" in run("info", "alanine-dipeptide@0.3").err
    assert "temperature_kelvin: 350" in run("info", "alanine-dipeptide@350").out
    assert "below 1e9" in run("info", "lj13@1e9").err


def test_info_of_weighted_samples_says_whose_energies_those_are(run, tmp_path: Path) -> None:
    path = weighted(tmp_path)
    assert f"averages need their weights: molsampler free-energy {path}" in run("info", path).out
    assert "averages" not in json.loads(run("info", drawn(tmp_path, "x.npz"), "--json").out)


def test_what_is_no_sampler_says_what_it_is(run, tmp_path: Path) -> None:
    def refused(source: object) -> str:
        outcome = run("sample", source, "-n", 2, "-o", tmp_path / "x.npz")
        assert outcome.code != 0
        return outcome.err

    drawn(tmp_path, "y.npz")
    assert f"molsampler train {tmp_path / 'seven.yaml'} RUN_DIR" in refused(tmp_path / "seven.yaml")
    assert "(--temperature 0.9)" in refused("dw4-range@0.9")
    assert "sampler of one temperature" in refused("mog40-exact@0.9")
    begun = tmp_path / "run"
    begun.mkdir()
    (begun / "config.resolved.yaml").write_text("")
    assert "goes on with it" in refused(begun / "artifact")
    (begun / "artifact").mkdir()
    (begun / "artifact" / "card.json").write_text("{}")
    assert f"its sampler is {begun / 'artifact'}" in refused(begun)


def test_a_system_at_a_temperature_of_the_range_is_told_of_the_option(run, tmp_path: Path) -> None:
    outcome = run("sample", "dw4-range", "-n", 2, "-o", tmp_path / "x.npz", "--system", "dw4@0.8")
    assert outcome.code == 1
    assert "dw4-range is of dw4 at temperature 1, not 0.8" in outcome.err
    assert "(--temperature)" in outcome.err


def test_weights_that_carry_nothing_are_called_so(run, tmp_path: Path) -> None:
    few = run("sample", "lj13-exact", "-n", 20, "-o", tmp_path / "few.npz", "--steps", 2)
    assert few.code == 0
    assert "warning: hardly a draw has weight" in few.err
    assert "largest 100 %" in few.out
    two = run("sample", "mog40-exact", "-n", 2, "-o", tmp_path / "two.npz")
    assert "warning" not in two.err
    good = run("sample", "mog40-exact", "-n", 500, "-o", tmp_path / "good.npz")
    assert "warning" not in good.err


def test_systems_name_their_samplers(run) -> None:
    rows = {row["name"]: row for row in json.loads(run("systems", "--json").out)}
    assert {"dw4", "dw4-exact", "dw4-range", "dw4-range-exact"} <= set(rows["dw4"]["samplers"])
    assert "alanine-dipeptide-range-exact" in run("systems").out


def test_a_run_of_another_preset_is_refused_briefly(run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    RunFolder(folder).record(load_config("exact", "mog40"))
    outcome = run("train", "mog40", folder, "--max-time", "1s")
    assert outcome.code == 1
    assert "more keys" in outcome.err
    assert len(outcome.err) < 1000
    bare = run("train", "mog40", tmp_path / "other", "--set", "iterations")
    assert "got 'iterations': iterations=..." in bare.err


def test_few_rows_of_long_paths_do_not_cost_a_thousand() -> None:
    samples = Sampler.load("lj13-exact").sample(3, steps=2)
    assert samples.metadata["energy_evaluations"] <= 2 * 128


def test_small_mistakes_are_answered_with_what_was_meant(run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("expression: r^2\nname: [1\n")
    assert "(line 3)" in run("info", bad).err
    outcome = run("train", "lj13", tmp_path / "run", "--temperature", "0.5")
    assert "SYSTEM@0.5" in " ".join(outcome.err.split())
    curve = tmp_path / "fe.json"
    assert run("free-energy", weighted(tmp_path), "--json", curve).code in (0, 3)
    assert (
        "is not a curve of `molsampler curve --json`: it has no 'rows'"
        in run("curve", "dw4-range", "--reference", curve).err
    )
    one = tmp_path / "one.yaml"
    one.write_text("expression: r^2\nparticles: 1\ndimensions: 3\nexternal: x^2+y^2+z^2\n")
    assert "kind: function" in run("info", one).err
    assert ".npz holds its samples" in run("sample", "mog40", "-n", 2, "-o", tmp_path / "m.xtc").err
