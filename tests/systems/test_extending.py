"""The example of docs/extending.md: a kind from outside takes part in everything."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from molsampler import Sampler, Samples, export
from molsampler.analysis.comparison import compare
from molsampler.errors import InputError, UnknownNameError
from molsampler.systems import get_system, list_systems, register_system, register_system_kind
from molsampler.systems.registry import SYSTEM_KINDS, SYSTEMS
from molsampler.target import System
from molsampler.train import load_config, train

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The names that the page's code defines, run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (code,) = (block for block in blocks if "class RingSpec" in block)
    names: dict[str, Any] = {"__name__": "outside"}
    try:
        exec(code, names)
        yield names
    finally:
        SYSTEM_KINDS.unregister("ring")


def exact(system: System, n: int, *, seed: int) -> torch.Tensor:
    """Draws of the ring's Gaussian, by its normal modes."""
    particles, dimension = system.shape
    shift = torch.eye(particles, dtype=torch.float64).roll(1, 0)
    stiffness = 2.0 * (2 * torch.eye(particles, dtype=torch.float64) - shift - shift.T)
    values, vectors = torch.linalg.eigh(stiffness)
    z = torch.randn(
        n, particles - 1, dimension, generator=torch.Generator().manual_seed(seed)
    ).double()
    return vectors[:, 1:] @ (z / values[1:, None].sqrt())


def test_the_example_is_the_physics_that_it_says(example) -> None:
    system = example["system"]
    x = exact(system, 4000, seed=0)
    energy = system.energy(x)
    dof = system.space.dof
    assert abs(float(energy.mean()) - dof / 2) < 5 * (dof / 2 / 4000) ** 0.5
    x.requires_grad_()
    (slope,) = torch.autograd.grad(system._energy_and_score(x[:5])[0].sum(), x)
    torch.testing.assert_close(-slope[:5], system.energy_and_score(x[:5].detach())[1])


def test_a_kind_from_outside_trains_samples_compares_and_exports(example, tmp_path: Path) -> None:
    system = get_system("ring5.yaml")
    overrides = (
        "compile=false", "iterations=4", "batch_size=16", "generator.body.width=8",
        "generator.body.layers=1", "denoiser.width=8", "denoiser.layers=1", "evaluate_every=4",
        "evaluate_samples=20", "checkpoint_every=4", "target_score.warmup=4", "target_score.size=64",
        "target_score.equilibration=10", "target_score.refresh=16",
    )  # fmt: skip
    config = load_config("fast", system.name, overrides=overrides, invariant=True)
    artifact = train(system, tmp_path / "run", config).artifact
    # Nothing but the artifact says what the system is.
    sampler = Sampler.load(artifact)
    assert (sampler.system.name, sampler.system.stiffness) == ("ring5", 2.0)
    samples = sampler.sample(200, seed=0, device="cpu")
    reference = Samples.of(system, exact(system, 200, seed=1))
    comparison = compare(samples, reference, sampler.system, n=50, repeats=2, monte_carlo=False)
    assert comparison.system == "ring5"
    samples.save("ring5.npz", overwrite=True)
    export.convert("ring5.npz", "ring5.dcd")
    loaded = export.load("ring5.dcd")
    assert loaded.metadata["system"] == system.record()
    torch.testing.assert_close(loaded.energies, samples.energies, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "error", "sentence"),
    [
        ("particels: 5", UnknownNameError,
         "unknown key 'particels'; did you mean 'particles'? (known: kind, name, description, "
         "collective_variables, basins, temperature, particles, stiffness)"),
        ("stiffness: 1", InputError, "missing key(s) 'particles'"),
        ("particles: 2", InputError, "particles must be an integer of at least 3, got 2"),
        ("particles: 5\nstiffness: .inf", InputError,
         "stiffness must be a positive number of kT, got inf"),
    ],
)  # fmt: skip
def test_its_files_are_checked_like_any_other(example, text, error, sentence) -> None:
    Path("bad.yaml").write_text(f"kind: ring\n{text}\n")
    with pytest.raises(error) as caught:
        get_system("bad.yaml")
    assert str(caught.value) == f"bad.yaml: {sentence}"


def test_without_its_kind_a_file_is_refused_and_says_what_helps(example) -> None:
    system = example["system"]
    ring = SYSTEM_KINDS["ring"]
    SYSTEM_KINDS.unregister("ring")
    try:
        loaded = export.load("ring5.npz")
        with pytest.raises(UnknownNameError, match=r"no system kind 'ring'.*pass system="):
            loaded.system()
        assert export.load("ring5.npz", system=system).metadata["system"] == system.record()
    finally:
        register_system_kind("ring", ring)


def test_a_named_system_is_listed_made_and_read_back(example, tmp_path: Path) -> None:
    class Named(example["Ring"]):
        def __init__(self):
            super().__init__("ring-of-4", 4, 1.0)

        def record(self):
            return self.name

    register_system("ring-of-4", Named)
    register_system("alias", Named)
    try:
        assert "ring-of-4" in list_systems()
        system = get_system("ring-of-4")
        Samples.of("ring-of-4", torch.randn(3, 4, 3)).save(tmp_path / "a.npz")
        assert type(export.load(tmp_path / "a.npz").system()) is Named
        assert json.loads(json.dumps(system.record())) == "ring-of-4"
        # Files would record a name under which nobody finds it.
        with pytest.raises(InputError, match="registered as 'alias' calls itself 'ring-of-4'"):
            get_system("alias")
    finally:
        SYSTEMS.unregister("ring-of-4")
        SYSTEMS.unregister("alias")


@pytest.mark.parametrize("name", ["a/b", "x.yaml", "", "../x", 3])
def test_names_that_files_could_not_record_are_refused(name) -> None:
    with pytest.raises(InputError, match="name must be"):
        register_system(name, System)


@pytest.mark.parametrize("name", ["lj13", "mog40"])
def test_names_that_are_taken_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="already"):
        register_system(name, System)
