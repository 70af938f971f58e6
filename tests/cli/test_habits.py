"""The small habits of a good command: short help, completion, choices named, and what `info` knows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from molsampler import export
from molsampler.errors import OutputExistsError, nearest
from molsampler.reference import load_reference
from molsampler.samples import Samples

VERBS = (
    "systems", "sample", "merge", "train", "reference", "compare", "free-energy", "curve", "export",
    "info", "demo", "doctor",
)  # fmt: skip


@pytest.fixture
def cluster() -> Samples:
    return load_reference("lj13")[:60]


@pytest.mark.parametrize("verb", VERBS)
def test_short_help_and_json_where_numbers_are_printed(run, verb: str) -> None:
    short, long = run(verb, "-h"), run(verb, "--help")
    assert short.code == 0
    assert short.out == long.out
    assert "--json" in short.out


def test_short_help_of_all(run) -> None:
    assert run("-h").out == run("--help").out


def test_shells_complete_verbs_and_choices() -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from molsampler.cli import main; sys.exit(main())",
    ]

    def complete(words: str) -> set[str]:
        environment = {
            **os.environ,
            "_MOLSAMPLER_COMPLETE": "complete_bash",
            "COMP_WORDS": f"molsampler {words}",
            "COMP_CWORD": str(len(words.split())),
        }
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        return set(done.stdout.split())

    assert complete("re") == {"reference"}
    assert complete("train dw4 run --preset f") == {"fast"}


def test_info_on_the_file_of_a_system(run, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("expression: 'r^2'\nparticles: 5\ndimensions: 3\nlength_nm: 0.3\n")
    found = json.loads(run("info", path, "--json").out)
    assert found["kind"] == "system"
    assert (found["name"], found["particles"], found["dimensions"]) == ("mine", 5, 3)
    assert found["length_nm"] == 0.3
    assert f"molsampler train {path} RUN_DIR" in found["sampler"]
    path.write_text("expression: 'r^2'\nparticels: 5\n")
    refused = run("info", path)
    assert refused.code == 1
    assert "did you mean 'particles'" in refused.err


def test_info_on_code_asks_for_trust(run, tmp_path: Path) -> None:
    (tmp_path / "energy.py").write_text("def u(x):\n    return (x**2).sum((-2, -1))\n")
    path = tmp_path / "mine.yaml"
    path.write_text("kind: function\nfunction: energy.py:u\nparticles: 2\ndimensions: 2\n")
    assert "--trust-code" in run("info", path).err
    trusted = json.loads(run("info", path, "--trust-code", "--json").out)
    assert trusted["particles"] == 2
    assert "--trust-code RUN_DIR" in trusted["sampler"]


def test_info_on_a_system_without_a_sampler(run) -> None:
    found = json.loads(run("info", "lj20", "--json").out)
    assert (found["kind"], found["particles"]) == ("system", 20)
    assert "none ships" in found["sampler"]
    # One with a sampler is described by its card.
    assert json.loads(run("info", "dw4", "--json").out)["kind"] == "sampler"
    unknown = run("info", "lj13x")
    assert unknown.code == 1
    assert "did you mean 'lj13'" in unknown.err
    assert "no file" in run("info", "nothing.npz").err


def test_info_on_a_report(run, cluster: Samples, tmp_path: Path) -> None:
    from molsampler.analysis import compare_many, write_report

    report = tmp_path / "report.html"
    made = compare_many(
        {"mine": cluster[:40]},
        cluster,
        cluster.system(),
        n=20,
        repeats=2,
        transport_repeats=0,
        drift_steps=0,
    )["mine"]
    write_report(made, report)
    found = json.loads(run("info", report, "--json").out)
    assert (found["kind"], found["label"], found["system"]) == ("report", "mine", "lj13")
    assert found["metrics"]["tvd_energy"]["value"] == made.metric("tvd_energy").value
    assert found["intact"] is True
    report.write_text(report.read_text().replace("Limits", "Merits"))
    outcome = run("info", report)
    assert outcome.code == 1
    assert "edited" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "dw4", "run", "--set", "foo"), ("KEY=VALUE", "batch_size", "generator.body")),
        (("train", "dw4", "run", "--set", "batchsize"), ("did you mean 'batch_size'",)),
        (("train", "dw4", "run", "--set", "foo=3"), ("unknown key 'foo'", "batch_size")),
    ],
)
def test_wrong_choices_name_the_right_ones(run, arguments, words, tmp_path: Path) -> None:
    outcome = run(*(tmp_path / "run" if a == "run" else a for a in arguments))
    assert outcome.code == 1
    assert all(word in outcome.err for word in words)


def test_wrong_choices_of_options_list_the_choices(run, tmp_path: Path) -> None:
    outcome = run("train", "dw4", tmp_path / "run", "--preset", "fats")
    assert outcome.code == 2
    assert all(f"'{preset}'" in outcome.err for preset in ("fast", "exact", "paper"))


def test_near_names_are_near() -> None:
    suffixes = export.FORMATS.names()
    assert nearest(".xyz", suffixes) == nearest(".html", suffixes) == ""
    assert nearest(".xtx", suffixes) == "; did you mean '.xtc'?"
    assert nearest("kj", ("kT", "kJ/mol", "kcal/mol")) == "; did you mean 'kJ/mol'?"
    assert nearest("LJ13", ("dw4", "lj13")) == "; did you mean 'lj13'?"
    assert nearest("", ("dw4", "lj13")) == ""


def test_a_foreign_format_is_told_how_to_convert(run, cluster: Samples, tmp_path: Path) -> None:
    import mdtraj

    cluster.save(tmp_path / "a.dcd")
    outcome = run("export", tmp_path / "a.dcd", tmp_path / "a.xyz")
    assert outcome.code == 1
    assert all(suffix in outcome.err for suffix in export.FORMATS.names())
    assert "mdtraj.load('X.dcd', top='X.pdb').save('X.xyz')" in outcome.err
    # What it says works.
    mdtraj.load(tmp_path / "a.dcd", top=tmp_path / "a.pdb").save(tmp_path / "a.xyz")
    assert mdtraj.load(tmp_path / "a.xyz", top=tmp_path / "a.pdb").n_frames == 60


def test_a_pdb_takes_the_place_of_the_topology_that_a_trajectory_left(
    run, cluster: Samples, tmp_path: Path
) -> None:
    cluster.save(tmp_path / "a.dcd")
    outcome = run("export", tmp_path / "a.dcd", tmp_path / "a.pdb", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["frames"] == 60
    assert len(export.load(tmp_path / "a.pdb")) == 60
    assert torch.allclose(export.load(tmp_path / "a.dcd").positions, cluster.positions, atol=1e-6)
    for name in ("a.dcd", "a.pdb"):
        assert export.describe(tmp_path / name)["intact"] is True
    # Now it holds samples, which are not replaced unasked.
    again = run("export", tmp_path / "a.dcd", tmp_path / "a.pdb")
    assert again.code == 1
    assert "--overwrite" in again.err


def test_no_other_pdb_is_replaced_unasked(cluster: Samples, tmp_path: Path) -> None:
    cluster.save(tmp_path / "a.dcd")
    topology = tmp_path / "a.pdb"
    left = topology.read_bytes()
    # Edited since.
    topology.write_bytes(left.replace(b"MODEL", b"REMARK mine\nMODEL", 1))
    with pytest.raises(OutputExistsError, match="overwrite"):
        cluster.save(topology)
    topology.write_bytes(left)
    # Other atoms.
    with pytest.raises(OutputExistsError, match="13 atoms"):
        load_reference("dw4")[:5].save(topology)
    assert topology.read_bytes() == left
    # Somebody's own.
    (tmp_path / "b.pdb").write_bytes(left)
    with pytest.raises(OutputExistsError, match="overwrite"):
        cluster.save(tmp_path / "b.pdb")
