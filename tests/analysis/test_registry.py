"""Metrics defined outside the package take part everywhere that the built-in ones do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from molsampler.analysis import (
    Distance,
    Draw,
    MetricKind,
    Pool,
    Share,
    Shares,
    Value,
    compare,
    metric_kinds,
    register_metric,
    tabulate,
    unregister_metric,
    write_json,
    write_report,
)
from molsampler.cli import main
from molsampler.errors import InputError, UnknownNameError
from molsampler.export import load, save
from molsampler.samples import Samples
from molsampler.systems import get_system
from molsampler.target import System

BUILT_IN = tuple(kind.key for kind in metric_kinds())


class Radius(Distance):
    key = "radius"
    name = "mean radius"
    definition = "Difference of the root-mean-square distances from the centre."
    unit = "length"
    aside = "of the samples are large"

    def applies(self, system: System) -> bool:
        return system.shape[0] > 1

    def value(self, samples: Draw, reference: Draw) -> Value:
        a, b = (draw.positions.square().mean().sqrt() for draw in (samples, reference))
        large = samples.positions.flatten(1).norm(dim=1) > 4
        return Value(abs(float(a - b)), set_aside=float(large.double().mean()))


class Repulsive(Share):
    key = "repulsive"
    name = "repulsive"
    definition = "Share of configurations whose energy is above five."

    def shares(self, samples: Pool, reference: Pool) -> Shares:
        a, b = (float(p.probabilities @ (p.energies > 5).numpy()) for p in (samples, reference))
        return Shares(a, b, "energies above five")


@pytest.fixture
def toys() -> Iterator[None]:
    kinds: tuple[MetricKind, ...] = (Radius(), Repulsive())
    for kind in kinds:
        register_metric(kind)
    yield
    for kind in kinds:
        unregister_metric(kind.key)
    assert tuple(kind.key for kind in metric_kinds()) == BUILT_IN


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Samples of double wells that are too wide, and a reference."""
    system = get_system("dw4")
    paths = tmp_path / "samples.npz", tmp_path / "reference.npz"
    for seed, (path, scale) in enumerate(zip(paths, (1.5, 1.0), strict=True)):
        generator = torch.Generator().manual_seed(seed)
        x = scale * torch.randn(200, 4, 2, generator=generator, dtype=torch.float64)
        save(Samples.of(system, system.space.project(x)), path)
    return paths


@pytest.mark.usefixtures("toys")
def test_comparison_table_report_and_json_hold_it(files: tuple[Path, Path], tmp_path: Path) -> None:
    samples, reference = (load(path) for path in files)
    comparison = compare(
        samples,
        reference,
        get_system("dw4"),
        n=50,
        repeats=3,
        transport_repeats=0,
        drift_steps=0,
    )
    radius, repulsive = comparison.metric("radius"), comparison.metric("repulsive")
    assert [m.key for m in comparison.metrics][-2:] == ["radius", "repulsive"]
    assert radius.z > 0
    assert (radius.unit, radius.repeats, radius.floor_repeats) == ("length", 3, 6)
    assert radius.note.endswith("% of the samples are large")
    assert repulsive.note == "energies above five"
    assert comparison.baselines[0].metric("radius").floor == radius.floor
    header, rows = tabulate({"wide": comparison})
    assert header[-2:] == ["mean radius", "repulsive"]
    assert {len(row) for row in rows} == {len(header)}
    write_report(comparison, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for kind in (Radius, Repulsive):
        assert page.count(f">{kind.name}<") + page.count(f">{kind.name} <") == 3
        assert f"<dd>{kind.definition}</dd>" in page
    write_json(comparison, tmp_path / "metrics.json")
    written = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    assert [m["value"] for m in written[-2:]] == [radius.value, repulsive.value]


@pytest.mark.usefixtures("toys")
def test_the_command_line_prints_it(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["compare", *map(str, files), "--system", "dw4", "-n", "50", "--no-monte-carlo"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("mean radius (length)" in line for line in lines)
    assert any("repulsive" in line for line in lines)


@pytest.mark.usefixtures("toys")
def test_it_is_left_out_where_it_does_not_apply() -> None:
    system = get_system("mog40")
    x = torch.randn(100, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws = Samples.of(system, x)
    keys = [
        m.key
        for m in compare(
            draws, draws, system, repeats=2, transport_repeats=0, drift_steps=0, monte_carlo=False
        ).metrics
    ]
    assert "radius" not in keys
    assert "repulsive" in keys


def test_what_is_no_metric_is_refused() -> None:
    class Unnamed(Radius):
        key = "unnamed"
        definition = ""

    class Taken(Radius):
        key = "w2"

    with pytest.raises(InputError, match="definition"):
        register_metric(Unnamed())
    with pytest.raises(InputError, match="'w2' already"):
        register_metric(Taken())
    with pytest.raises(InputError, match="instance"):
        register_metric(Radius)  # type: ignore[type-var]
    with pytest.raises(UnknownNameError, match="radius"):
        unregister_metric("radius")
    assert tuple(kind.key for kind in metric_kinds()) == BUILT_IN
