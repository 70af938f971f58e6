"""Structures of a report: the right configurations, with their distances and hands, within rounding."""

from __future__ import annotations

import json
import re
from html import unescape

import numpy as np
import pytest
import torch
from exact_systems import Springs
from peptides import BONDS, Peptide

from molsampler.analysis import figures
from molsampler.analysis.comparison import compare
from molsampler.analysis.draws import Pool
from molsampler.analysis.report import render
from molsampler.analysis.structures import Structure, along_axes, choose, onto
from molsampler.reference import load_reference
from molsampler.samples import Samples
from molsampler.systems import get_system
from molsampler.target import System

#: Positions stand in pages to 1e-4 nm: two of them shift a distance by at most this.
ROUNDING = 2e-4


def distances(x: object) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64).reshape(-1, 3)
    return np.linalg.norm(x[:, None] - x, axis=-1)


def volume(x: np.ndarray) -> float:
    return float(np.linalg.det(x[1:4] - x[0]))


def pools(system: System, *samples: Samples) -> list[Pool]:
    return [Pool.of(each, system, "samples") for each in samples]


@pytest.fixture(scope="module")
def peptide() -> tuple[System, Samples, Samples]:
    system = Peptide()
    return (
        system,
        Samples.of(system, system.sample(300, 1)),
        Samples.of(system, system.sample(300, 2)),
    )


def test_lowest_typical_and_worst_are_those_of_the_energies() -> None:
    system = get_system("lj13")
    whole = load_reference("lj13")
    samples, reference = whole[:301], whole[301:600]
    found = choose(*pools(system, samples, reference))
    assert found is not None
    for three, side in ((found.samples, samples), (found.reference, reference)):
        u = side.energies
        assert [s.title for s in three] == ["lowest", "typical", "worst"]
        assert [s.energy for s in three] == [u.min(), u.median(), u.max()]
        for s in three:
            row = int((u == s.energy).nonzero()[0])
            expected = distances(side.positions[row]) * system.length_nm
            assert np.abs(distances(s.positions_nm) - expected).max() < 1e-6


def test_the_page_holds_the_samples_within_rounding(
    peptide: tuple[System, Samples, Samples],
) -> None:
    system, samples, reference = peptide
    page = render(
        compare(
            samples,
            reference,
            system,
            n=20,
            repeats=2,
            transport_repeats=0,
            drift_steps=0,
            monte_carlo=False,
        )
    )
    drawn = [json.loads(text) for text in re.findall(r'data-x="([^"]*)"', page)]
    (shared,) = (json.loads(unescape(t)) for t in re.findall(r'data-structures="([^"]*)"', page))
    assert {tuple(sorted(bond)) for bond in shared["bonds"]} == {tuple(sorted(b)) for b in BONDS}
    assert len(shared["colours"]) == len(shared["radii"]) == 22
    rows = [int(f(side.energies)) for side in (samples, reference) for f in (np.argmin, np.argmax)]
    for k, row, side in zip(
        (0, 2, 3, 5), rows, (samples, samples, reference, reference), strict=True
    ):
        x = side.positions[row].double().numpy()
        assert np.abs(distances(drawn[k]) - distances(x)).max() < ROUNDING
        # Turned, never mirrored.
        own = volume(np.reshape(drawn[k], (-1, 3)))
        assert own == pytest.approx(volume(x), abs=0.05 * abs(volume(x)))
    # Negative control: another configuration is not the one drawn.
    assert np.abs(distances(drawn[1]) - distances(drawn[4])).max() > 10 * ROUNDING


def test_configurations_of_zero_weight_are_none_of_the_law(
    peptide: tuple[System, Samples, Samples],
) -> None:
    system, samples, reference = peptide
    logs = torch.zeros(len(samples), dtype=torch.float64)
    order = samples.energies.argsort()
    logs[order[:5]] = logs[order[-7:]] = -torch.inf
    weighted = Samples.of(system, samples.positions, log_weights=logs)
    found = choose(*pools(system, weighted, reference))
    assert found is not None
    lowest, _, worst = (s.energy for s in found.samples)
    assert (lowest, worst) == (samples.energies[order[5]], samples.energies[order[-8]])


def test_turning_finds_a_turned_copy_and_keeps_the_hand() -> None:
    generator = np.random.default_rng(0)
    model = generator.normal(size=(9, 3))
    model -= model.mean(0)
    q, _ = np.linalg.qr(generator.normal(size=(3, 3)))
    q *= np.sign(np.linalg.det(q))
    assert np.abs(onto(model @ q, model) - model).max() < 1e-12
    mirrored = model * [1, 1, -1]
    for turned in (onto(mirrored, model), along_axes(mirrored)):
        assert volume(turned) == pytest.approx(volume(mirrored))
        assert np.abs(turned - model).max() > 0.1
    spread = along_axes(model).std(0)
    assert spread[0] > spread[1] > spread[2]


@pytest.mark.parametrize("system", [Springs(), Springs(4, 3), get_system("dw4")])
def test_what_has_no_particles_in_space_has_no_structures(system: System) -> None:
    x = torch.randn(60, *system.shape, generator=torch.Generator().manual_seed(0))
    pool = Pool.of(Samples.of(system, x), system, "samples")
    assert choose(pool, pool) is None
    assert figures.structures(None) is None


def test_a_configuration_that_flew_apart_is_drawn_small_and_said_so() -> None:
    system = get_system("lj13")
    samples = load_reference("lj13")[:60]
    x = samples.positions.clone()
    x[0, 0] += 30.0
    x[1, 0] = x[1, 1]
    found = choose(*pools(system, Samples.of(system, x), samples))
    assert found is not None
    view = figures.structures(found)
    assert view is not None
    assert view["drawn"][2]["energy"] == "u infinite"
    apart = Structure("worst", 0.0, found.samples[2].positions_nm * 10)
    other = figures.structures(
        type(found)(
            found.kinds,
            found.bonds,
            found.contact_nm,
            (*found.samples[:2], apart),
            found.reference,
        )
    )
    assert other is not None
    assert "the worst of the samples" in other["note"]
    assert view["note"] != other["note"]
