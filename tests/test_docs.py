"""What docs/extending.md and docs/molecules.md show works as it stands there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "extending.md"


def test_the_examples_of_the_page_on_extending_run(tmp_path: Path) -> None:
    """One after the other, in a process of their own; log Z of the toy is log 4 pi."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) >= 6
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"(\d+) effective samples, log Z = .*value=([\d.]+)", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) > 4000
    assert abs(float(found[2]) - 2.5310) < 0.02


def test_the_examples_of_the_page_on_molecules_run(tmp_path: Path) -> None:
    """In a folder with the Amber files that the page speaks of."""
    pytest.importorskip("rdkit")
    pytest.importorskip("openmm")
    data = Path(__file__).parent / "data" / "nma"
    for name in ("nma.prmtop", "nma.inpcrd"):
        shutil.copy(data / name, tmp_path)
    page = PAGE.with_name("molecules.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(blocks)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "CCCC with the energy MMFF94, 300 K (14, 3)"


def test_the_examples_of_the_page_on_own_systems_run(tmp_path: Path) -> None:
    from molsampler.systems import get_system

    text = (PAGE.parent / "own-systems.md").read_text()
    ions, cold = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "ions.yaml").write_text(ions)
    assert get_system(tmp_path / "ions.yaml").alike == (0,) * 4 + (1,) * 4
    (tmp_path / "cold.yaml").write_text(cold)
    assert get_system(tmp_path / "cold.yaml").temperature == 0.3
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert float(names["u"][0]) == 9.0  # type: ignore[index]
