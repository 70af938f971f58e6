"""Every verb against real files: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from molsampler import export
from molsampler.samples import Samples
from molsampler.systems import get_system, list_systems

pytestmark = pytest.mark.usefixtures("small_samplers")


def monte_carlo(seed: int, n: int = 400) -> Samples:
    """Crude dw4 samples, good enough to compare with themselves."""
    from molsampler.mcmc import mala

    system = get_system("dw4")
    generator = torch.Generator().manual_seed(seed)
    like = torch.zeros((), dtype=torch.float64)
    state = mala.init(2.0 * system.space.randn(n, generator=generator, like=like), system)
    for _ in range(200):
        state, _ = mala.step(state, system, step_size=0.02, generator=generator)
    return Samples.of(system, state.position)


def test_systems_lists_all_and_says_what_ships(run) -> None:
    outcome = run("systems", "--json")
    assert outcome.code == 0
    rows = json.loads(outcome.out)
    assert [row["name"] for row in rows] == list(list_systems())
    assert {row["name"] for row in rows if row["sampler"]} == {"dw4", "lj13"}
    lj13 = next(row for row in rows if row["name"] == "lj13")
    assert (lj13["particles"], lj13["dimensions"]) == (13, 3)
    plain = run("systems")
    assert plain.err == ""
    assert len(plain.out.splitlines()) == 1 + len(rows)


@pytest.mark.parametrize("suffix", export.FORMATS.names())
def test_sample_writes_every_format_and_info_finds_it_whole(run, suffix, tmp_path: Path) -> None:
    path = tmp_path / f"dw4{suffix}"
    outcome = run("sample", "dw4", "-n", 50, "-o", path, "--seed", 3, "--json")
    assert outcome.code == 0
    report = json.loads(outcome.out)
    assert report["n"] == report["energies"]["count"] == 50
    assert (report["seed"], report["system"]) == (3, "dw4")
    assert len(export.load(path)) == 50
    found = json.loads(run("info", path, "--json").out)
    assert found["kind"] == "samples"
    assert found["intact"] is True
    assert found["frames"] == 50
    assert found["provenance"]["artifact_hash"] == report["artifact_hash"]


def test_same_seed_same_samples_whatever_the_batch(run, tmp_path: Path) -> None:
    for name, extra in (("a", ()), ("b", ("--batch-size", 64)), ("c", ("--seed", 1))):
        assert run("sample", "dw4", "-n", 300, "-o", tmp_path / f"{name}.npz", *extra).code == 0
    a, b, c = (export.load(tmp_path / f"{name}.npz").positions for name in "abc")
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_refinement_lowers_the_energy_and_is_reported(run, tmp_path: Path) -> None:
    run("sample", "dw4", "-n", 200, "-o", tmp_path / "raw.npz")
    outcome = run("sample", "dw4", "-n", 200, "-o", tmp_path / "refined.npz", "--refine", 30)
    assert "refinement: 30 MALA steps, acceptance 0." in outcome.out
    raw, refined = (export.load(tmp_path / f"{name}.npz") for name in ("raw", "refined"))
    assert refined.energies.median() < raw.energies.median()


def test_existing_output_is_kept_unless_overwritten(run, tmp_path: Path) -> None:
    path = tmp_path / "dw4.npz"
    path.write_bytes(b"precious")
    outcome = run("sample", "dw4", "-n", 5, "-o", path)
    assert outcome.code == 1
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert len(outcome.err.splitlines()) == 1
    assert "--overwrite" in outcome.err
    assert path.read_bytes() == b"precious"
    assert run("sample", "dw4", "-n", 5, "-o", path, "--overwrite").code == 0
    assert len(export.load(path)) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sample", "dw5", "-n", "5", "-o", "{}/x.npz"), ("dw5", "dw4")),
        (("sample", "dw4", "-n", "5", "-o", "{}/x.xyz"), (".xyz", ".xtc")),
        (("sample", "dw4", "-n", "5", "-o", "{}/none/x.npz"), ("none",)),
        (("sample", "dw4", "-n", "5", "-o", "{}/x.npz", "--device", "cuda:99"), ("cuda:99",)),
        (("reference", "lj31x", "-n", "5", "-o", "{}/x.npz"), ("lj31x",)),
        (("reference", "mog40", "-n", "5", "-o", "{}/x.npz"), ("--method mcmc",)),
        (("compare", "{}/a.npz", "{}/b.npz"), ("a.npz",)),
        (("export", "{}/a.npz", "{}/b.xtc"), ("a.npz",)),
        (("info", "{}/a.npz"), ("a.npz",)),
        (("train", "dw4", "{}/run", "--set", "batch_sise=3"), ("batch_sise", "batch_size")),
        (("train", "dw4", "{}/run", "--device", "cuda:99"), ("cuda",)),
    ],
)
def test_failure_is_one_line_that_names_the_cause(run, arguments, words, tmp_path: Path) -> None:
    outcome = run(*(argument.format(tmp_path) for argument in arguments))
    assert outcome.code == 1
    assert outcome.out == ""
    errors = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert errors == [outcome.err.splitlines()[-1]]
    assert "unexpected" not in errors[0]
    assert all(word in errors[0] for word in words)
    assert not list(tmp_path.glob("*.npz"))


def test_reference_reports_convergence(run, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    outcome = run("reference", "lj2", "-n", 2000, "-o", path, "--json")
    assert outcome.code == 0
    report = json.loads(outcome.out)
    assert report["convergence"]["converged"] is True
    assert report["convergence"]["r_hat"] < 1.1
    assert export.load(path).metadata["convergence"] == report["convergence"]


def test_export_keeps_provenance_and_info_notices_a_flipped_bit(run, tmp_path: Path) -> None:
    source, target = tmp_path / "a.npz", tmp_path / "b.dcd"
    run("sample", "dw4", "-n", 20, "-o", source)
    assert run("export", source, target).code == 0
    assert run("export", source, target).code == 1
    converted = export.load(target)
    assert torch.allclose(converted.positions, export.load(source).positions, atol=1e-5)
    assert converted.metadata["seed"] == 0
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    outcome = run("info", target)
    assert outcome.code == 1
    assert "intact: False" in outcome.out
    assert "SHA-256" in outcome.out
    assert run("export", target, tmp_path / "c.npz").code == 1


def test_info_on_a_sampler_and_on_a_damaged_one(run, shipped: Path, tmp_path: Path) -> None:
    import shutil

    card = json.loads(run("info", "dw4", "--json").out)
    assert card["kind"] == "sampler"
    assert card["system"] == "dw4"
    copy = tmp_path / "copy"
    shutil.copytree(shipped / "dw4", copy)
    assert run("info", copy).code == 0
    weights = copy / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    outcome = run("info", copy)
    assert outcome.code == 1
    assert "SHA-256" in outcome.err


def test_compare_prints_floors_and_writes_report_and_json(run, tmp_path: Path) -> None:
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    monte_carlo(0).save(a)
    monte_carlo(1).save(b)
    report, metrics = tmp_path / "report.html", tmp_path / "metrics.json"
    outcome = run("compare", a, b, "--system", "dw4", "-n", 100, "-o", report, "--json", metrics)
    assert outcome.code == 0, outcome.err
    assert "floor" in outcome.out
    assert "TVD-E" in outcome.out
    assert report.read_text().startswith("<!doctype html>")
    written = json.loads(metrics.read_text())
    assert written["passed"] is True
    assert run("compare", a, b, "-o", report).code == 1


def test_compare_tells_other_samples_apart(run, tmp_path: Path) -> None:
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    run("sample", "dw4", "-n", 400, "-o", a)
    monte_carlo(1).save(b)
    outcome = run("compare", a, b, "-n", 100, "--json", "-", "--no-monte-carlo")
    assert json.loads(outcome.out)["passed"] is False
    assert set(tmp_path.iterdir()) == {a, b}


def test_doctor_passes_here(run) -> None:
    outcome = run("doctor", "--json")
    report = json.loads(outcome.out)
    assert outcome.code == 0, report["checks"]
    assert report["ok"] is True
    assert outcome.err == ""


@pytest.mark.parametrize("how", ["wrong golden value", "damaged sampler"])
def test_doctor_notices(run, how, monkeypatch, shipped: Path, tmp_path: Path) -> None:
    import shutil

    from molsampler.cli import doctor
    from molsampler.sampler import store

    if how == "wrong golden value":
        monkeypatch.setitem(doctor.GOLDEN, "lj13", -38.865)
        broken = {"energies have their published values", "OpenMM twins agree with the energies"}
    else:
        folder = tmp_path / "pretrained"
        shutil.copytree(shipped, folder)
        with open(folder / "lj13" / "weights.safetensors", "ab") as file:
            file.write(b"x")
        monkeypatch.setattr(store, "PRETRAINED", folder)
        broken = {"shipped samplers match their hashes and sample"}
    outcome = run("doctor", "--json")
    assert outcome.code == 1
    checks = json.loads(outcome.out)["checks"]
    assert {check["name"] for check in checks if not check["ok"]} == broken
