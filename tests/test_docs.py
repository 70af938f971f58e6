"""What docs/extending.md and docs/molecules.md show works as it stands there."""

from __future__ import annotations

import importlib.util
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


#: The part of bgflow that the page uses, for machines that do not have it.
STAND_IN = """
import sys
from types import ModuleType

import torch


class Energy(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.event_shape = torch.Size(dim)

    def energy(self, x, temperature=1.0):
        return self._energy(x) / temperature


class GaussianMCMCSampler:
    def __init__(self, energy, init_state, noise_std, n_burnin):
        self.energy, self.state, self.std, self.burnin = energy, init_state, noise_std, n_burnin

    def sample(self, n):
        x, u = self.state, self.energy.energy(self.state)
        for _ in range(self.burnin + n):
            moved = x + self.std * torch.randn_like(x)
            there = self.energy.energy(moved)
            accepted = torch.rand_like(u).log() < u - there
            x, u = torch.where(accepted, moved, x), torch.where(accepted, there, u)
        return x


cheap = {"repeats": 2, "transport_repeats": 0, "drift_steps": 0}
sys.modules["bgflow"] = ModuleType("bgflow")
sys.modules["bgflow"].__dict__.update(Energy=Energy, GaussianMCMCSampler=GaussianMCMCSampler)
"""

#: What the page says numpy 2 needs.
REAL = "import numpy\nnumpy.infty = numpy.inf\n"


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_example_of_the_page_on_bgflow_runs(real: bool, tmp_path: Path) -> None:
    """Random-walk Metropolis leaves samples of the target where they were: the columns agree."""
    if real and importlib.util.find_spec("bgflow") is None:
        pytest.skip("bgflow is not installed")
    page = PAGE.with_name("bgflow.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    if not real:
        for whole, small in (
            ("4_000", "400"),
            ("n_burnin=500", "n_burnin=20"),
            ('load_reference("lj13"), system', 'load_reference("lj13"), system, **cheap'),
        ):
            assert whole in block
            block = block.replace(whole, small)
    check = (
        "import torch\n"
        "print(sorted(table))\n"
        "print(bool((ours.positions != theirs.positions).any()))\n"
        "print(float(ours.energies.median()), float(theirs.energies.median()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", "\n".join((REAL if real else STAND_IN, block, check))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900 if real else 120,
    )
    assert done.returncode == 0, done.stderr
    names, moved, medians = done.stdout.splitlines()[-3:]
    assert names == "['one step', 'then bgflow MCMC']"
    assert moved == "True"
    one, then = map(float, medians.split())
    assert abs(one - then) < (0.5 if real else 2.0)


def test_the_examples_of_the_page_on_own_systems_run(tmp_path: Path) -> None:
    from molsampler.systems import get_system

    text = (PAGE.parent / "own-systems.md").read_text()
    ions, walled, cold, copper = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "ions.yaml").write_text(ions)
    assert get_system(tmp_path / "ions.yaml").alike == (0,) * 4 + (1,) * 4
    (tmp_path / "lj7.yaml").write_text(walled)
    cluster = get_system(tmp_path / "lj7.yaml")
    assert (cluster.temperature, cluster.invariant) == (0.2, True)
    (tmp_path / "cold.yaml").write_text(cold)
    assert get_system(tmp_path / "cold.yaml").temperature == 0.3
    pytest.importorskip("ase")
    (tmp_path / "copper.yaml").write_text(copper)
    (tmp_path / "copper.xyz").write_text("2\n\nCu 0 0 0\nCu 2.2 0 0\n")
    (make,) = re.findall(r"# (def make.*)", copper)
    (tmp_path / "emt.py").write_text(f"from ase.calculators.emt import EMT\n{make}\n")
    assert get_system(tmp_path / "copper.yaml", trust_code=True).shape == (2, 3)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    assert float(names["u"][0]) == 9.0  # type: ignore[index]
