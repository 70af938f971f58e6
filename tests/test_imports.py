"""Importing is silent and light: simulation libraries load only where they are used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import molsampler

ROOT = Path(__file__).parent.parent
HEAVY = ("openmm", "mdtraj", "ot", "scipy", "matplotlib", "jinja2", "tables")

# Prints the heavy modules that running the statements has loaded, on the last line.
PROBE = "import sys\n{statements}\nprint('loaded', *[m for m in {heavy!r} if m in sys.modules])"


def run(statements: str, cwd: Path, heavy: tuple[str, ...] = HEAVY) -> str:
    """Standard output and error of a fresh interpreter that executes ``statements``."""
    probe = PROBE.format(statements=statements, heavy=heavy)
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=cwd, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_import_is_silent_and_light(tmp_path: Path) -> None:
    assert run("import molsampler", tmp_path) == "loaded\n"


def test_probe_reports_a_heavy_import(tmp_path: Path) -> None:
    assert run("import molsampler, jinja2", tmp_path) == "loaded jinja2\n"


def test_sampling_and_training_paths_load_no_simulation_library(tmp_path: Path) -> None:
    statements = (
        "import molsampler, molsampler.train\n"
        "from molsampler import Sampler, Samples\n"
        "from molsampler.systems import get_system\n"
        "system = get_system('lj13')\n"
        "import torch\n"
        "system.energy_and_score(torch.randn(2, 13, 3))"
    )
    heavy = ("openmm", "mdtraj", "ot", "scipy", "matplotlib", "tables")
    assert run(statements, tmp_path, heavy) == "loaded\n"


@pytest.mark.parametrize("cwd", ["repository", "elsewhere"])
def test_mapped_packages_resolve_wherever_python_starts(cwd: str, tmp_path: Path) -> None:
    statements = (
        "import molsampler.systems as s, molsampler.analysis as a\nprint(s.__name__, a.__name__)"
    )
    output = run(statements, ROOT if cwd == "repository" else tmp_path)
    assert output.splitlines()[0] == "molsampler.systems molsampler.analysis"


@pytest.mark.parametrize("name", ["systems", "analysis"])
def test_folder_imported_as_top_level_package_is_refused(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert f"molsampler.{name}" in done.stderr.splitlines()[-1]


def test_lazy_names_are_the_real_ones_and_others_are_refused() -> None:
    from molsampler.sampler.sampler import Sampler
    from molsampler.samples import Samples

    assert molsampler.Sampler is Sampler
    assert molsampler.Samples is Samples
    assert {"Sampler", "Samples", "errors", "__version__"} <= set(dir(molsampler))
    with pytest.raises(AttributeError, match="Smapler"):
        _ = molsampler.Smapler  # type: ignore[attr-defined]


def test_version_agrees_with_the_metadata() -> None:
    from importlib.metadata import version

    assert version("molsampler") == molsampler.__version__
