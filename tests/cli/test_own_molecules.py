"""Molecules by SMILES and in Amber's files, and one's own run as reference, through every command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import butane
import pytest

from molsampler import export
from molsampler.systems import get_system

openmm = pytest.importorskip("openmm")
from openmm import app, unit  # noqa: E402

NMA = Path(__file__).parents[1] / "data" / "nma"


def own_run(system, folder: Path, *, frames: int, every: int) -> tuple[Path, Path]:
    """What a user's script leaves: the file of OpenMM's own reporter, and a PDB file."""
    potential, topology = system.openmm_twin()
    simulation = app.Simulation(
        topology,
        potential,
        openmm.LangevinMiddleIntegrator(300, 10 / unit.picosecond, 0.0005),
        openmm.Platform.getPlatformByName("Reference"),
    )
    simulation.integrator.setRandomNumberSeed(1)
    simulation.context.setPositions(system.positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    simulation.step(500)
    with open(folder / "run.pdb", "w") as file:
        state = simulation.context.getState(positions=True)
        app.PDBFile.writeFile(topology, state.getPositions(), file)
    simulation.reporters.append(app.XTCReporter(str(folder / "run.xtc"), every))
    simulation.step(frames * every)
    return folder / "run.xtc", folder / "run.pdb"


def settings(network: str = "mlp") -> list[str]:
    """Those of :data:`butane.TINY` that the network of the preset has."""
    values = {
        key: value
        for key, value in butane.TINY.items()
        if network == "mlp" or not key.startswith("denoiser.")
    }
    return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.parametrize("kind", ["smiles", pytest.param("amber", marks=pytest.mark.slow)])
def test_a_molecule_is_trained_sampled_and_compared_with_ones_own_run(
    run, tmp_path: Path, kind: str
) -> None:
    yaml = tmp_path / "mine.yaml"
    if kind == "smiles":
        pytest.importorskip("rdkit")
        yaml.write_text("kind: smiles\nsmiles: CO\ntemperature: 300\nplatform: Reference\n")
    else:
        shutil.copytree(NMA, tmp_path, dirs_exist_ok=True)
        yaml.write_text(
            "kind: amber\nprmtop: nma.prmtop\ninpcrd: nma.inpcrd\ntemperature: 300\n"
            "platform: Reference\n"
        )
    outcome = run("train", yaml, tmp_path / "run", *settings())
    # Two iterations make a sampler, and not a usable one.
    assert outcome.code == 3, outcome.err
    assert "Cartesian" not in outcome.err
    artifact = tmp_path / "run" / "artifact"
    card = json.loads((artifact / "card.json").read_text())
    assert card["temperature"] == 300.0
    assert card["coordinates"] is not None

    samples = tmp_path / "samples.npz"
    # What makes a molecule by SMILES stands in its artifact; the files of others stay with the user.
    given = [] if kind == "smiles" else ["--system", yaml]
    outcome = run("sample", artifact, "-n", 100, "-o", samples, *given)
    assert outcome.code == 0, outcome.err

    system = get_system(yaml)
    trajectory, topology = own_run(system, tmp_path, frames=1500, every=20)
    report, metrics = tmp_path / "report.html", tmp_path / "metrics.json"
    outcome = run(
        "compare", samples, trajectory, "--top", topology, "--system", yaml,
        "-o", report, "--json", metrics, "-n", 200, "--no-monte-carlo",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines()[0] == "reading samples.npz"
    assert "comparing 100 samples of mine with 1,500 of the reference" in outcome.err
    assert "run.xtc: atoms have the names and order of the system." in outcome.out
    assert "reference: 1,500 frames are worth" in outcome.out
    assert "not judged" in outcome.out
    found = json.loads(metrics.read_text())
    assert any("statistical inefficiency" in text for text in found["remarks"])
    assert found["reference"]["n"] < 1500
    assert [m["judged"] for m in found["metrics"] if m["key"] == "w2"] == [False]
    page = report.read_text()
    assert "statistical inefficiency" in page
    assert "not judged" in page

    # Where nothing but the samples says what system it is, a run is a run all the same.
    if kind == "smiles":
        outcome = run("compare", samples, trajectory, "-n", 200, "--no-monte-carlo")
        assert outcome.code == 0, outcome.err
        assert "reference: 1,500 frames are worth" in outcome.out

    # Another molecule's names are refused.
    other = tmp_path / "other.pdb"
    other.write_text(
        topology.read_text().replace(" O  ", " S  ").replace("           O", "           S")
    )
    outcome = run("compare", samples, trajectory, "--top", other, "--system", yaml)
    assert outcome.code == 1
    assert "not those of 'mine'" in outcome.err


def test_a_molecule_without_a_chart_is_trained_in_cartesian_coordinates(
    run, tmp_path: Path
) -> None:
    """Hydrogen cyanide: its straight angle leaves no torsions."""
    pytest.importorskip("rdkit")
    yaml = tmp_path / "hcn.yaml"
    yaml.write_text("kind: smiles\nsmiles: C#N\ntemperature: 300\nplatform: Reference\n")
    outcome = run("train", yaml, tmp_path / "run", *settings(network="egnn"))
    # Two iterations make a sampler, and not a usable one.
    assert outcome.code == 3, outcome.err
    assert "hcn has a straight angle at its atoms" in outcome.err
    assert "trained in Cartesian coordinates" in outcome.err
    card = json.loads((tmp_path / "run" / "artifact" / "card.json").read_text())
    assert card["coordinates"] is None
    samples = tmp_path / "s.npz"
    outcome = run("sample", tmp_path / "run" / "artifact", "-n", 50, "-o", samples)
    assert outcome.code == 0, outcome.err
    assert len(export.load(samples)) == 50
