"""What the fault tests share: children that die, and a table of what was tried."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from toy_systems import Cluster

from molsampler.nn.generators import Generator
from molsampler.nn.generators.implicit import ImplicitConfig
from molsampler.sampler import store
from molsampler.sampler.sampler import Sampler
from molsampler.samples import Samples

ROWS = pytest.StashKey[list[tuple[str, int, int, float]]]()

SYSTEM = Cluster(4, 2, "toy-planar")
CONFIG = ImplicitConfig.model_validate({"body": {"kind": "egnn", "width": 4, "layers": 1}})


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[str, int, int], None]:
    """``tally(fault, variants, survived)`` adds a row to the table at the end of the run."""
    started = time.monotonic()

    def record(fault: str, variants: int, survived: int) -> None:
        rows = request.config.stash.setdefault(ROWS, [])
        rows.append((fault, variants, survived, time.monotonic() - started))

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = terminalreporter.config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.write_sep("-", "faults provoked")
    terminalreporter.write_line("| fault | variants | survived | seconds |")
    terminalreporter.write_line("|---|---|---|---|")
    for fault, variants, survived, seconds in rows:
        terminalreporter.write_line(f"| {fault} | {variants:,} | {survived:,} | {seconds:.1f} |")


@pytest.fixture(scope="session")
def system() -> Cluster:
    return SYSTEM


@pytest.fixture(scope="session")
def samples() -> Samples:
    """A few samples of a planar system, with log weights and metadata."""
    positions = SYSTEM.grid(30)
    return Samples.of(SYSTEM, positions, log_weights=torch.linspace(-3, 2, 30), note="as they were")


def build() -> Generator:
    generator = CONFIG.build(SYSTEM.space)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=random))
    return generator


@pytest.fixture
def save_sampler() -> Callable[..., Sampler]:
    """Save an untrained sampler whose parameters are shifted by ``shift``."""

    def save(folder: Path, shift: float = 0.0, *, overwrite: bool = False) -> Sampler:
        generator = build()
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.add_(shift)
        store.save(folder, generator, system=SYSTEM, overwrite=overwrite)
        return Sampler.load(folder, system=SYSTEM)

    return save
