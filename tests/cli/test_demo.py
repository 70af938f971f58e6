"""The tour, with shipped samplers replaced by untrained ones and the OpenMM run by its stored result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mdtraj
import pytest

from molsampler import export
from molsampler.cli import demo as module
from molsampler.reference import load_reference
from molsampler.samples import Samples
from molsampler.target import System


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, small_samplers: None) -> None:
    def stored(system: System, number: int, **_: Any) -> Samples:
        return load_reference(system.name)[:number]

    monkeypatch.setattr(module.referring, "run", stored)
    for name, value in {
        "SAMPLES": 120,
        "REFERENCE": 120,
        "DRAW": 50,
        "GEOMETRIC_DRAW": 20,
        "REFINE": 3,
        "FRAMES": 30,
    }.items():
        monkeypatch.setattr(module, name, value)


@pytest.mark.usefixtures("small")
def test_demo_writes_the_whole_tour_and_says_what_to_open(run, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    refused = run("demo", "-o", folder)
    assert refused.code == 1
    assert "--overwrite" in refused.err
    outcome = run("demo", "-o", folder, "--overwrite")
    assert outcome.code == 0, outcome.err
    assert (folder / "notes.txt").read_text() == "mine"
    page = (folder / "report.html").read_text()
    for name in ("dw4", "lj13"):
        assert f'href="{name}-report.html"' in page
        assert (folder / f"{name}-report.html").read_text().startswith("<!doctype html>")
        assert len(export.load(folder / f"{name}.npz")) == 120
        for suffix in (".xtc", ".dcd", ".h5", ".pdb"):
            assert len(export.load(folder / f"{name}{suffix}")) == 30
            assert f"{name}.pdb" in outcome.out
        # What a viewer would do: frames from one file, atoms from the other.
        frames = mdtraj.load(folder / f"{name}.xtc", top=folder / f"{name}.pdb")
        assert frames.n_frames == 30
    assert "floor" in outcome.out
    assert str(folder / "report.html") in outcome.out
    # An untrained network must not pass for a good one.
    assert " *" in outcome.out


@pytest.mark.slow
def test_demo_as_shipped(run, tmp_path: Path) -> None:
    outcome = run("demo", "-o", tmp_path / "demo")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("converged: R-hat") == 2
