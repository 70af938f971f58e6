"""Run the command line in this process and see what it wrote where; small untrained samplers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from molsampler.cli import main
from molsampler.nn.generators.implicit import ImplicitConfig
from molsampler.sampler import store
from molsampler.systems import get_system


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]

#: An untrained equivariant generator, as small as they come.
GENERATOR = ImplicitConfig.model_validate({"body": {"kind": "egnn", "width": 4, "layers": 1}})


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run


def make_sampler(folder: Path, name: str) -> Path:
    system = get_system(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = GENERATOR.build(system.space, molecule=system.molecule)
    store.save(folder, generator, system=system)
    return folder


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of untrained samplers that stands in for the shipped ones."""
    folder = tmp_path_factory.mktemp("pretrained")
    for name in ("dw4", "lj13"):
        make_sampler(folder / name, name)
    return folder


@pytest.fixture
def small_samplers(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PRETRAINED", shipped)
