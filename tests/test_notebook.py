"""What samples, samplers and systems offer in a notebook."""

from __future__ import annotations

import logging
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from toy_systems import Cluster

from molsampler import Sampler, Samples
from molsampler.collective_variables import dihedral
from molsampler.errors import InputError, MissingDependencyError, RowError
from molsampler.notebook import bars, card
from molsampler.systems import get_system

SYSTEM = Cluster()


@pytest.fixture(scope="module")
def plain() -> Samples:
    return Samples.of("lj13", SYSTEM.grid(60), seed=3)


@pytest.fixture(scope="module")
def weighted() -> Samples:
    weights = torch.linspace(-3, 3, 40, dtype=torch.float64)
    return Samples.of("dw4", 3 * torch.randn(40, 4, 2, generator=torch.Generator().manual_seed(0)),
                      log_weights=weights)  # fmt: skip


def well_formed(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html)


def test_samples_in_one_line(plain: Samples, weighted: Samples) -> None:
    for samples, parts in (
        (plain, ("'lj13'", "n=60", "(13, 3)", "kT")),
        (weighted, ("'dw4'", f"ESS {weighted.ess:.0f}")),
        (plain[:0], ("n=0", "none finite")),
        (Samples(plain.positions, plain.energies), ("unnamed",)),
    ):
        assert "\n" not in repr(samples)
        assert len(repr(samples)) < 120
        for part in parts:
            assert part in repr(samples)
    # Energies are described by the weights.
    zero = Samples(
        torch.zeros(3, 1, 2),
        torch.tensor([1.0, 2.0, torch.inf], dtype=torch.float64),
        torch.tensor([0.0, -torch.inf, -torch.inf], dtype=torch.float64),
    )
    assert "energy 1.00" in repr(zero)


def test_the_rich_form_says_what_counts(plain: Samples, weighted: Samples) -> None:
    page = well_formed(plain._repr_html_())
    text = " ".join(page.itertext())
    assert "Samples of lj13" in text
    assert "60 of 13 × 3" in text
    assert "every sample counts the same" in text
    heights = [float(each.attrib["height"]) for each in page.iter("rect")]
    assert 2 < len(heights) <= 40
    assert max(heights) == pytest.approx(48, abs=0.1)
    text = " ".join(well_formed(weighted._repr_html_()).itertext())
    assert weighted.log_z is not None
    for part in (
        f"effective number {weighted.ess:,.0f}",
        "largest weight",
        f"{weighted.log_z.value:.3f}",
    ):
        assert part in text
    for odd in (plain[:0], plain[0], weighted[:0], weighted[5]):
        well_formed(odd._repr_html_())


def test_text_of_files_cannot_become_markup(plain: Samples) -> None:
    hostile = "<script>alert(1)</script>"
    samples = plain.with_metadata(system=hostile, note=hostile * 100, **{hostile: "x"})
    html = samples._repr_html_()
    assert "<script" not in html
    assert len(html) < 20_000
    well_formed(html)
    well_formed(card(hostile, [(hostile, hostile)], picture=bars([1.0], hostile, "'", label='"')))


def test_samplers_and_systems_say_what_they_are() -> None:
    sampler = Sampler.load("dw4-exact")
    assert "'spline'" in repr(sampler)
    text = " ".join(well_formed(sampler._repr_html_()).itertext())
    for part in ("Sampler of dw4", "spline", "usable", sampler.hash[:12], "energy evaluations"):
        assert part in text
    system = get_system("lj13")
    text = " ".join(well_formed(system._repr_html_()).itertext())
    assert "13 particles in 3 dimensions" in text
    assert "exchange of particles" in text
    assert "13, 3" in repr(system)


def test_a_number_gives_samples_of_length_one(weighted: Samples) -> None:
    assert weighted.log_weights is not None
    for index in (3, np.int64(3), torch.tensor(3)):
        one = weighted[index]
        assert len(one) == 1
        assert torch.equal(one.positions[0], weighted.positions[3])
        assert one.log_weights is not None
        assert one.log_weights[0] == weighted.log_weights[3]
    assert torch.equal(weighted[-1].energies, weighted.energies[-1:])
    assert [len(each) for each in weighted[:3]] == [1, 1, 1]


def test_masks_lists_and_steps(weighted: Samples) -> None:
    mask = weighted.energies < weighted.energies.median()
    for same in (mask, mask.numpy(), mask.tolist()):
        assert torch.equal(weighted[same].energies, weighted.energies[mask])
    assert torch.equal(weighted[[4, 0]].energies, weighted.energies[[4, 0]])
    assert torch.equal(weighted[::-2].energies, weighted.energies.flip(0)[::2])
    assert len(weighted[[]]) == 0


@pytest.mark.parametrize("index", [40, -41, [0, 40]])
def test_samples_that_are_not_there_are_refused(weighted: Samples, index: object) -> None:
    with pytest.raises(RowError, match="there are 40 samples, no sample"):
        weighted[index]
    with pytest.raises(IndexError):
        weighted[index]


@pytest.mark.parametrize("index", ["energy", 1.5, (0, 1, 2.5), None, [[0, 1]]])
def test_other_indices_are_refused(weighted: Samples, index: object) -> None:
    with pytest.raises(InputError, match="indexed by a number, a slice, a mask or a list"):
        weighted[index]
    with pytest.raises(InputError, match=r"mask must have shape \(40,\), got \(3,\)"):
        weighted[[True, False, True]]


def test_positions_in_nanometres_are_those_of_the_trajectory(plain: Samples) -> None:
    assert plain.positions_nm.shape == (60, 13, 3)
    assert torch.equal(plain.positions_nm, torch.from_numpy(plain.to_mdtraj().xyz))
    with pytest.raises(InputError, match="system"):
        Samples(plain.positions, plain.energies).positions_nm  # noqa: B018


def test_a_table_has_energies_weights_and_variables(weighted: Samples) -> None:
    pytest.importorskip("pandas")
    table = weighted.to_pandas("distance:0,3")
    assert list(table.columns) == ["energy", "log_weight", "distance:0,3"]
    assert table.index.name == "sample"
    distance = (weighted.positions[:, 0] - weighted.positions[:, 3]).norm(dim=-1)
    assert np.allclose(table["distance:0,3"], distance, rtol=1e-6)
    assert np.array_equal(table["energy"], weighted.energies)
    table["energy"] += 1
    assert not np.array_equal(table["energy"], weighted.energies)
    with pytest.raises(InputError, match="names particle 4"):
        weighted.to_pandas("distance:0,4")


def test_mdanalysis_measures_the_same_molecule(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("MDAnalysis")
    pytest.importorskip("openmm")
    from MDAnalysis.lib.distances import calc_bonds, calc_dihedrals

    system = get_system("alanine-dipeptide")
    x = system.starts(3, generator=torch.Generator().manual_seed(0))
    samples = Samples.of(system, x, log_weights=torch.zeros(3))
    universe = samples.to_mdanalysis(system=system)
    assert "no weights" in caplog.text
    assert len(universe.trajectory) == 3
    topology = system.topology()
    assert universe.atoms.names.tolist() == [atom.name for atom in topology.atoms]
    assert universe.atoms.elements.tolist() == [atom.element.symbol for atom in topology.atoms]
    assert universe.residues.resnames.tolist() == ["ACE", "ALA", "NME"]
    assert len(universe.bonds) == topology.n_bonds
    for frame, row in zip(universe.trajectory, samples.positions_nm, strict=True):
        phi = row[[4, 6, 8, 14]].double()
        found = calc_dihedrals(*(frame.positions[i] for i in (4, 6, 8, 14)))
        assert float(found) == pytest.approx(float(dihedral(*phi)), abs=1e-4)
        length = calc_bonds(frame.positions[0], frame.positions[1])
        assert float(length) == pytest.approx(10 * float((row[0] - row[1]).norm()), rel=1e-5)


def test_figures_show_energies_distances_and_torsions(plain: Samples) -> None:
    pytest.importorskip("openmm")
    assert [axes.get_xlabel() for axes in plain.plot().axes] == ["energy / kT", "distance of pairs"]
    system = get_system("alanine-dipeptide")
    x = system.starts(3, generator=torch.Generator().manual_seed(0))
    labels = [axes.get_xlabel() for axes in Samples.of(system, x).plot(system=system).axes]
    assert len(labels) > 4
    assert any("degrees" in label for label in labels)
    assert plain.plot()._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="no weight in all"):
        plain[:0].plot()


def test_figures_follow_the_weights() -> None:
    """Two heaps of energies of which one has no weight: it is not drawn."""
    system = get_system("mog40")
    x = torch.cat([torch.zeros(50, 1, 2), torch.full((50, 1, 2), 30.0)])
    energies = torch.cat([torch.zeros(50), torch.full((50,), 9.0)]).double()
    energies = energies + torch.linspace(0, 1, 100, dtype=torch.float64)
    weights = torch.zeros(100, dtype=torch.float64)
    both = Samples(x, energies, weights, {"system": "mog40"}).plot(system=system).axes[0]
    weights = weights.index_fill(0, torch.arange(50, 100), -torch.inf)
    one = Samples(x, energies, weights, {"system": "mog40"}).plot(system=system).axes[0]
    assert both.get_xlim()[1] > 9
    assert one.get_xlim()[1] < 1


def test_a_view_shows_the_samples_that_count(plain: Samples, weighted: Samples) -> None:
    pytest.importorskip("py3Dmol")
    page = plain.view(frames=4)._make_html()
    assert page.count("MODEL ") == 4
    first = 10 * (plain.positions_nm[0] - plain.positions_nm[0].mean(0))
    assert f"{float(first[0, 0]):8.3f}" in page
    assert weighted.view(frames=50)._make_html().count("MODEL ") == 50
    for wrong in (0, 501, 1.5, True):
        with pytest.raises(InputError, match="frames must be an integer from 1 to 500"):
            plain.view(frames=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no particles in space"):
        Samples.of("mog40", torch.zeros(2, 1, 2)).view()


@pytest.mark.parametrize(
    ("verb", "package"),
    [("to_pandas", "pandas"), ("to_mdanalysis", "MDAnalysis"), ("view", "py3Dmol")],
)
def test_what_is_not_installed_is_said_in_one_sentence(
    plain: Samples, verb: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingDependencyError, match=rf"{package} is not installed: pip install"
    ) as caught:
        getattr(plain, verb)()
    assert "\n" not in str(caught.value)


def test_progress_is_told_and_changes_no_sample(capsys: pytest.CaptureFixture[str]) -> None:
    sampler = Sampler.load("mog40-exact")
    told: list[int] = []
    plain = sampler.sample(1100, batch_size=1)
    assert capsys.readouterr().out == ""
    again = sampler.sample(1100, batch_size=1, progress=told.append)
    assert told == [1024, 1100]
    assert torch.equal(plain.positions, again.positions)
    sampler.sample(10, progress=True)
    assert "sampling mog40" in capsys.readouterr().out
    with pytest.raises(InputError, match="progress must be"):
        sampler.sample(10, progress="yes")  # type: ignore[arg-type]


def test_nothing_is_said_by_the_log_of_plain_samples(
    plain: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        plain.to_mdtraj()
    assert caplog.text == ""
