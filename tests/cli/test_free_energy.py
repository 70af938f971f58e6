"""``molsampler free-energy``: numbers, refusals and exit codes, from files and from samplers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from weighted import Harmonic, proposed

from molsampler import export
from molsampler.nn.generators import GENERATORS, Draw, Generator, GeneratorConfig, Sampling
from molsampler.sampler import store
from molsampler.samples import Samples
from molsampler.systems import get_system


def weighted(folder: Path, name: str = "x.npz", n: int = 4_000, **arguments: Any) -> Path:
    """Samples of a normal law for MoG-40, with weights, in a file."""
    system = get_system("mog40")
    random = torch.Generator().manual_seed(0)
    x = 30.0 * torch.randn(n, 1, 2, generator=random)
    log_q = -0.5 * (x / 30).double().square().sum((1, 2)) - math.log(2 * math.pi * 900)
    log_weights = -system.energy(x.double()) - log_q
    path = folder / name
    Samples.of(system, x, log_weights=log_weights, **arguments).save(path)
    return path


def test_a_file_of_weighted_samples_gives_numbers(run, tmp_path: Path) -> None:
    path = weighted(tmp_path)
    out = run("free-energy", path)
    assert out.code == 0
    for text in ("log Z", "C, var(u)", "component 40", "Pareto k", "measure of log Z: Lebesgue"):
        assert text in out.out
    numbers = run("free-energy", path, "--json", "-")
    data = json.loads(numbers.out)
    assert abs(data["log_z"]["value"]) < 5 * data["log_z"]["se"]
    assert data["F"]["value"] == -data["log_z"]["value"]
    assert (data["n"], data["usable"], len(data["basins"])) == (4_000, True, 40)
    target = tmp_path / "numbers.json"
    assert run("free-energy", path, "--json", target).code == 0
    assert json.loads(target.read_text()) == data
    refused = run("free-energy", path, "--json", target)
    assert refused.code == 1
    assert "--overwrite" in refused.err


def test_a_profile_is_drawn_and_basins_are_cut(run, tmp_path: Path) -> None:
    path, plot = weighted(tmp_path), tmp_path / "profile.png"
    script = tmp_path / "cv.py"
    script.write_text("def first(x):\n    return x[:, 0, 0]\n")
    out = run("free-energy", path, "--along", f"{script}:first", "--edges", "0", "-o", plot)
    assert out.code == 0
    assert f"{script}:first >= 0" in out.out
    assert plot.stat().st_size > 1000
    assert run("free-energy", path, "-o", tmp_path / "y.png").code == 2
    assert run("free-energy", path, "--along", f"{script}:first", "--edges", "a").code == 2
    assert "FILE.py:NAME" in run("free-energy", path, "--along", "angle:0,1").err


def test_weights_of_any_origin_need_no_metadata(run, tmp_path: Path) -> None:
    """positions, energies and log_weights written by numpy, as a metadynamics run might leave them."""
    samples = proposed(Harmonic(), 4_000, seed=0, width=0.9)
    assert samples.log_weights is not None
    path = tmp_path / "meta.npz"
    np.savez(
        path,
        positions=samples.positions.numpy(),
        energies=samples.energies.numpy(),
        log_weights=samples.log_weights.numpy(),
    )
    data = json.loads(run("free-energy", path, "--json", "-").out)
    truth = Harmonic().truth
    for name in ("log_z", "U", "C"):
        assert abs(data[name]["value"] - truth[name]) < 5 * data[name]["se"]
    assert (data["system"], data["basins"]) == (None, [])
    assert json.loads(run("info", path, "--json").out)["ess"] == pytest.approx(data["ess"])
    again = tmp_path / "again.npz"
    assert run("export", path, again).code == 0
    assert torch.equal(export.load(again).log_weights, samples.log_weights)
    # Frames for programs that know no weights are drawn by them.
    even = tmp_path / "even.npz"
    assert run("export", path, even, "--resample", 4000, "--seed", 3).code == 0
    drawn = export.load(even)
    assert (len(drawn), drawn.log_weights) == (4000, None)
    assert torch.equal(drawn.positions, samples.resample(4000, seed=3).positions)
    assert abs(float(drawn.energies.mean()) - truth["U"]) < 0.2
    # Negative control: all of them alike are not.
    assert abs(float(samples.energies.mean()) - truth["U"]) > 0.2
    # Without energies the system must be named, since it gives them.
    np.savez(path, positions=samples.positions.numpy(), log_weights=samples.log_weights.numpy())
    refused = run("free-energy", path)
    assert (refused.code, "pass system=" in refused.err) == (1, True)


@pytest.mark.parametrize("fill", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(run, tmp_path: Path, fill: float) -> None:
    path = tmp_path / "bad.npz"
    values = np.zeros(200)
    values[7] = fill
    np.savez(path, positions=np.zeros((200, 1, 2)), energies=np.zeros(200), log_weights=values)
    refused = run("free-energy", path)
    assert refused.code == 1
    assert "the first is sample 7" in refused.err
    assert refused.out == ""


@pytest.mark.parametrize("case", ["one rules", "all zero"])
def test_ill_weights_exit_with_three(run, tmp_path: Path, case: str) -> None:
    values = torch.full((500,), -math.inf if case == "all zero" else 0.0, dtype=torch.float64)
    if case == "one rules":
        values[3] = 50.0
    path = tmp_path / "ill.npz"
    Samples.of("mog40", torch.randn(500, 1, 2), log_weights=values).save(path)
    out = run("free-energy", path)
    assert out.code == 3
    assert "NOT USABLE" in out.out
    assert "±" not in out.out
    numbers = run("free-energy", path, "--json", "-")
    assert numbers.code == 3
    data = json.loads(numbers.out)
    assert [data[name] for name in ("log_z", "F", "U", "S", "C", "basins")] == [None] * 5 + [[]]
    assert data["reason"]
    # Negative control: the same samples with even weights.
    Samples.of("mog40", torch.randn(500, 1, 2), log_weights=0 * torch.rand(500)).save(
        path, overwrite=True
    )
    assert run("free-energy", path).code == 0


class NormalConfig(GeneratorConfig):
    """A :class:`Normal`."""

    kind: Literal["toy-normal"] = "toy-normal"
    width: float = 30.0

    def build(self, space: Any, *, molecule: Any = None, sampling: Any = None) -> Normal:
        return Normal(self, sampling or Sampling(), space)


class Normal(Generator):
    """A normal law on the space, whose draws carry weights."""

    def __init__(self, config: NormalConfig, sampling: Sampling, space: Any):
        super().__init__(config, sampling, space)
        self.width = torch.nn.Parameter(torch.tensor(config.width))

    def draw(self, n: int, target: Any, *, context: Any = None, generator: Any) -> Draw:
        self.refuse_context(context)
        x = self.width * self.space.randn(n, generator=generator, like=self.width)
        energy, _ = target.energy_and_score(x.double())
        return Draw(x, -energy - self.log_prob(x.double()), n)

    def log_prob(self, x: Tensor, *, context: Any = None) -> Tensor:
        constant = self.width.double().log() + 0.5 * math.log(2 * math.pi)
        square = (x / self.width.double()).square().sum((-2, -1))
        return -0.5 * square - self.space.dof * constant


@pytest.fixture
def artifact(tmp_path: Path) -> Iterator[Path]:
    GENERATORS.register("toy-normal", NormalConfig)
    system = get_system("mog40")
    store.save(tmp_path / "normal", NormalConfig().build(system.space), system=system)
    yield tmp_path / "normal"
    GENERATORS.unregister("toy-normal")


def test_a_sampler_that_knows_its_density_is_sampled(run, artifact: Path) -> None:
    out = run("free-energy", artifact, "-n", 5_000, "--json", "-")
    data = json.loads(out.out)
    assert (out.code, data["n"], data["weighted"]) == (0, 5_000, True)
    assert abs(data["log_z"]["value"]) < 5 * data["log_z"]["se"]
    assert run("free-energy", artifact, "-n", 50).code == 3


@pytest.mark.usefixtures("small_samplers")
def test_a_sampler_without_density_gives_plain_averages(run) -> None:
    out = run("free-energy", "dw4", "-n", 200, "--json", "-")
    data = json.loads(out.out)
    assert (out.code, data["log_z"], data["F"], data["S"]) == (0, None, None, None)
    assert data["reason"].startswith("unweighted")
    assert data["U"]["se"] > 0
    refused = run("free-energy", "dw4", "-n", 200, "--unit", "kJ/mol")
    assert refused.code == 1
    assert "--temperature" in refused.err
    assert run("free-energy", "dw4", "-n", 200, "--unit", "kJ/mol", "--temperature", 300).code == 0
