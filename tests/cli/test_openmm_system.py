"""Every command on a molecule that a user wrote as a system file."""

from __future__ import annotations

import json
from pathlib import Path

import butane
import pytest

from molsampler import export
from molsampler.systems import get_system

pytest.importorskip("openmm")


def test_a_system_file_goes_through_every_command(run, tmp_path: Path) -> None:
    import MDAnalysis
    import mdtraj
    from openmm import app

    yaml = butane.write(tmp_path)
    reference = tmp_path / "reference.npz"
    command = ("reference", yaml, "-n", 120, "-o", reference, "--replicas", 8, "--json")
    outcome = run(*command, "--checkpoint", tmp_path / "state")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["temperature"] == "300 K"
    assert report["run"]["replicas"] == 8
    assert report["system"]["name"] == "butane"

    settings = [part for key, value in butane.TINY.items() for part in ("--set", f"{key}={value}")]
    outcome = run("train", yaml, tmp_path / "run", *settings)
    # Two iterations make a sampler, and not a usable one.
    assert outcome.code == 3, outcome.err
    artifact = tmp_path / "run" / "artifact"
    card = json.loads((artifact / "card.json").read_text())
    assert card["temperature"] == 300.0

    # The artifact names the system and does not contain it.
    samples = tmp_path / "samples.dcd"
    outcome = run("sample", artifact, "-n", 50, "-o", samples, "--refine", 5)
    assert outcome.code == 1
    assert "--system FILE.yaml" in outcome.err
    outcome = run("sample", artifact, "-n", 50, "-o", samples, "--refine", 5, "--system", yaml)
    assert outcome.code == 0, outcome.err
    assert run("info", artifact, "--system", yaml).code == 0

    # Another temperature is another system.
    hot = tmp_path / "hot" / "butane.yaml"
    hot.parent.mkdir()
    butane.write(hot.parent)
    hot.write_text(hot.read_text().replace("300", "301"))
    outcome = run("export", samples, tmp_path / "hot.npz", "--system", hot)
    assert outcome.code == 1
    assert "temperature" in outcome.err
    outcome = run("sample", artifact, "-n", 50, "-o", tmp_path / "hot.npz", "--system", hot)
    assert outcome.code == 1
    assert "temperature" in outcome.err

    converted = tmp_path / "converted.h5"
    outcome = run("export", samples, converted, "--system", yaml)
    assert outcome.code == 0, outcome.err
    assert len(export.load(converted, system=get_system(yaml))) == 50

    outcome = run(
        "compare", samples, reference, "--system", yaml, "-n", 20, "-o", tmp_path / "report.html",
        "--no-monte-carlo",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "energy-W2" in outcome.out

    topology = samples.with_suffix(".pdb")
    frames = mdtraj.load(str(samples), top=str(topology))
    assert frames.xyz.shape == (50, 4, 3)
    assert [atom.name for atom in frames.topology.atoms] == ["C1", "C2", "C3", "C4"]
    assert [residue.name for residue in frames.topology.residues] == ["BUT"]
    assert frames.topology.n_bonds == 3
    universe = MDAnalysis.Universe(str(topology), str(samples))
    assert list(universe.atoms.names) == ["C1", "C2", "C3", "C4"]
    assert len(universe.trajectory) == 50
    pdb = app.PDBFile(str(topology))
    assert [atom.element.symbol for atom in pdb.topology.atoms()] == ["C"] * 4
    assert len(list(pdb.topology.bonds())) == 3
