"""Profiles along collective variables and the basins between their barriers, against known densities."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from weighted import TwoWells, proposed

from molsampler.analysis import free_energy, write_profile
from molsampler.analysis.profile import basin_edges
from molsampler.errors import InputError, OutputExistsError
from molsampler.samples import Samples
from molsampler.systems import get_system


def rotor(n: int, *, seed: int, concentration: float = 4.0, centre: float = 180.0) -> Samples:
    """A torsion drawn evenly, weighted to exp(c cos 2 (phi - centre)): two equal wells, one at the seam."""
    random = torch.Generator().manual_seed(seed)
    phi = (torch.rand(n, generator=random, dtype=torch.float64) - 0.5) * 2 * math.pi
    x = torch.zeros(n, 4, 3)
    x[:, 0, 0] = 1
    x[:, 2:, 2] = 1
    x[:, 3, 0], x[:, 3, 1] = phi.cos(), phi.sin()
    energy = -concentration * torch.cos(2 * (phi - math.radians(centre)))
    return Samples(x, energy, -energy + math.log(2 * math.pi))


def test_basins_on_a_circle_join_across_its_seam() -> None:
    found = free_energy(rotor(20_000, seed=0), along="torsion:0,1,2,3")
    assert found.along is not None
    assert len(found.along.basin_edges) == 2
    assert sorted(map(abs, found.along.basin_edges)) == pytest.approx([90, 90], abs=18)
    assert len(found.basins) == 2
    for basin in found.basins:
        assert abs(basin.population.value - 0.5) < 5 * basin.population.se + 1e-3
    assert found.log_z is not None
    exact = math.log(2 * math.pi * float(np.i0(4.0)))
    assert abs(found.log_z.value - exact) < 5 * found.log_z.se


def test_the_same_values_on_a_line_make_three_basins() -> None:
    """Negative control: cut open, the well at the seam is two."""
    samples = rotor(20_000, seed=0)
    weights = samples.log_weights
    assert weights is not None
    phi = torch.atan2(samples.positions[:, 3, 1], samples.positions[:, 3, 0])
    counts, edges = np.histogram(phi.numpy(), 36, weights=weights.exp().numpy())
    sizes = np.histogram(phi.numpy(), 36)[0].astype(float)
    assert len(basin_edges(counts, sizes, edges, periodic=False)) == 2
    assert len(basin_edges(counts, sizes, edges, periodic=True)) == 2
    turned, sizes = np.roll(counts, 9), np.roll(sizes, 9)
    assert len(basin_edges(turned, sizes, edges, periodic=False)) == 1


def test_a_turned_circle_has_the_same_profile() -> None:
    for centre in (0.0, 45.0, 180.0):
        found = free_energy(rotor(20_000, seed=1, centre=centre), along="torsion:0,1,2,3", bins=36)
        assert found.along is not None
        middle = 0.5 * (found.along.edges[1:] + found.along.edges[:-1])
        exact = -4.0 * np.cos(2 * np.radians(middle - centre))
        gap = found.along.free_energy - exact
        # Within a bin the density changes; where it is even the profile follows within its errors.
        flat = exact < -2
        assert np.abs(gap[flat] - gap[flat].mean()).max() < 5 * found.along.se[flat].max() + 0.05


def test_a_profile_follows_the_density_and_its_errors() -> None:
    system = TwoWells(share=0.3)
    samples = proposed(system, 40_000, seed=0, width=3.0)

    found = free_energy(samples, system, along=__file__ + ":first", bins=40)
    assert found.along is not None
    middle = 0.5 * (found.along.edges[1:] + found.along.edges[:-1])
    density = 0.7 * np.exp(-0.5 * (middle + 3) ** 2) + 0.3 * np.exp(-0.5 * (middle - 3) ** 2)
    deep = -np.log(density) < 3
    least = np.nanargmin(found.along.free_energy)
    gap = (found.along.free_energy + np.log(density / density[least]))[deep]
    assert np.abs(gap / np.maximum(found.along.se[deep], 0.02)).max() < 6
    assert len(found.basins) == 2
    right = found.basins[1]
    assert right.population.value == pytest.approx(0.3, abs=5 * right.population.se + 0.002)


def first(x: torch.Tensor) -> torch.Tensor:
    """The first coordinate, for the test above."""
    return x[:, 0, 0]


def test_edges_of_the_user_are_taken_as_they_are() -> None:
    system = TwoWells(share=0.2)
    samples = proposed(system, 20_000, seed=0, width=3.0)
    found = free_energy(samples, system, along=__file__ + ":first", edges=[0.0])
    named = free_energy(samples, system)
    assert found.along is not None
    assert found.along.basin_edges == (0.0,)
    assert found.basins[1].population == pytest.approx(named.basins[1].population)
    with pytest.raises(InputError, match="rising"):
        free_energy(samples, system, along=__file__ + ":first", edges=[1.0, 0.0])


@pytest.mark.parametrize("seed", range(5))
def test_noise_makes_no_basins(seed: int) -> None:
    values = np.random.default_rng(seed).standard_normal(2_000)
    counts, edges = np.histogram(values, 60)
    assert basin_edges(counts.astype(float), counts.astype(float), edges, periodic=False) == ()


def test_a_lone_sample_far_away_is_no_basin() -> None:
    counts = np.zeros(60)
    counts[5:15] = [10, 40, 90, 160, 200, 200, 160, 90, 40, 10]
    counts[50] = 1
    edges = np.linspace(0, 60, 61)
    assert basin_edges(counts, counts, edges, periodic=False) == ()
    counts[45:55] = [10, 40, 90, 160, 200, 200, 160, 90, 40, 10]
    assert len(basin_edges(counts, counts, edges, periodic=False)) == 1


def test_the_system_s_own_file_names_variables(tmp_path: Path) -> None:
    path = tmp_path / "pair.yaml"
    path.write_text(
        "expression: 2*(r - 3)^2*(r - 5)^2\nparticles: 2\ndimensions: 3\n"
        "collective_variables: {bond: 'distance:0,1'}\nbasins: {along: bond, edges: [4]}\n"
    )
    system = get_system(path)
    random = torch.Generator().manual_seed(0)
    x = 2.0 * system.space.randn(20_000, generator=random, like=torch.zeros(()))
    log_q = -0.5 * (x / 2).double().square().sum((1, 2)) - 1.5 * math.log(2 * math.pi * 4)
    samples = Samples.of(system, x, log_weights=-system.energy(x.double()) - log_q)
    found = free_energy(samples, system)
    assert [basin.name for basin in found.basins] == ["bond < 4", "bond >= 4"]
    along = free_energy(samples, system, along="bond")
    assert along.along is not None
    assert (along.along.variable, along.along.basin_edges) == ("bond", (4.0,))
    assert along.basins == found.basins
    free = free_energy(samples, system, along="distance:0,1")
    assert free.along is not None
    assert free.along.basin_edges == pytest.approx((4.0,), abs=0.3)
    # On the line p(r) is proportional to r^2 exp(-u).
    r = np.linspace(0.01, 8, 4001)
    density = r**2 * np.exp(-2 * (r - 3) ** 2 * (r - 5) ** 2)
    share = density[r >= 4].sum() / density.sum()
    basin = found.basins[1]
    assert abs(basin.population.value - share) < 5 * basin.population.se


def test_a_plot_is_written_whole_or_refused(tmp_path: Path) -> None:
    found = free_energy(rotor(2_000, seed=0), along="torsion:0,1,2,3")
    assert found.along is not None
    for suffix in (".png", ".svg"):
        path = tmp_path / f"profile{suffix}"
        write_profile(found.along, path)
        assert path.stat().st_size > 1000
        with pytest.raises(OutputExistsError):
            write_profile(found.along, path)
    with pytest.raises(InputError, match="must end in"):
        write_profile(found.along, tmp_path / "profile.xyz")
