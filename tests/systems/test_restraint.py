"""The restraint that keeps molecules together: its formula, its symmetry, its derivative, its record."""

from __future__ import annotations

from pathlib import Path

import butane
import butanes
import pytest
import torch
from torch import Tensor

from molsampler.errors import InputError
from molsampler.systems import OpenMMSystem, get_system
from molsampler.systems.openmm.restraint import molecules
from molsampler.units import kT

pytest.importorskip("openmm")


def restrained(folder: Path, text: str) -> OpenMMSystem:
    system = get_system(butanes.write(folder, restraint=text))
    assert isinstance(system, OpenMMSystem)
    return system


@pytest.fixture
def apart(tmp_path: Path) -> Tensor:
    """Configurations of two molecules at several distances, ``(4, 8, 3)`` in nm."""
    x = torch.from_numpy(restrained(tmp_path, "").positions)
    shift = torch.zeros(4, 8, 3, dtype=torch.float64)
    shift[:, 4:, 0] = torch.tensor([0.0, 0.5, 1.5, 3.0])[:, None]
    return x + shift


def test_the_energy_is_the_formula(tmp_path: Path, apart: Tensor) -> None:
    free = restrained(tmp_path, "")
    for radius, k in ((0.5, 100.0), (0.0, 20.0)):
        bound = restrained(tmp_path, f"{{radius_nm: {radius}, stiffness: {k}}}")
        added = bound.energy(apart) - free.energy(apart)
        centres = torch.stack([apart[:, :4].mean(1), apart[:, 4:].mean(1)], dim=1)
        beyond = (centres - apart.mean(1, keepdim=True)).norm(dim=-1) - radius
        expected = 0.5 * k * beyond.clamp(min=0).square().sum(1) / kT(300.0)
        torch.testing.assert_close(added, expected, rtol=1e-6, atol=1e-6)
        assert float(expected.max()) > 1
        assert bound.invariant
        assert bound.record() != free.record()


def test_the_score_is_its_derivative(tmp_path: Path, apart: Tensor) -> None:
    system = restrained(tmp_path, "{radius_nm: 0.3}")
    rng = torch.Generator().manual_seed(0)
    v = torch.randn(apart.shape, generator=rng, dtype=torch.float64)
    step = 1e-6
    slope = (system.energy(apart + step * v) - system.energy(apart - step * v)) / (2 * step)
    _, score = system.energy_and_score(apart)
    torch.testing.assert_close(-(score * v).sum((1, 2)), slope, rtol=1e-5, atol=1e-4)


def test_the_twin_has_it_whatever_the_masses(tmp_path: Path, apart: Tensor) -> None:
    import openmm

    system = restrained(tmp_path, "{radius_nm: 0.3}")
    twin, _ = system.openmm_twin()
    for index, mass in enumerate((1.0, 100.0, 3.0, 4.0, 50.0, 6.0, 7.0, 80.0)):
        twin.setParticleMass(index, mass)
    context = openmm.Context(
        twin, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
    )
    for row, u in zip(apart, system.energy(apart), strict=True):
        context.setPositions(row.numpy())
        energy = context.getState(energy=True).getPotentialEnergy()._value / kT(300.0)
        assert energy == pytest.approx(float(u), rel=1e-9)


def test_molecules_are_the_connected_parts(tmp_path: Path) -> None:
    _, topology = restrained(tmp_path, "").openmm_twin()
    assert molecules(topology) == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "{radius_nm: -1}",
            "restraint.radius_nm must be a number of nanometres, 0 or more, got -1",
        ),
        ("{stiffness: 0}", "restraint.stiffness must be a positive number of kJ"),
        ("{radius: 1}", "unknown key 'restraint.radius'; did you mean 'radius_nm'"),
        ("harmonic", "restraint must be a mapping such as"),
    ],
)
def test_what_is_wrong_with_it_is_said(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        restrained(tmp_path, text)


def test_one_molecule_has_nothing_to_be_kept_with(tmp_path: Path) -> None:
    path = butane.write(tmp_path)
    path.write_text(path.read_text() + "restraint: {radius_nm: 1}\n")
    with pytest.raises(InputError, match="restraint needs two molecules or more"):
        get_system(path)
