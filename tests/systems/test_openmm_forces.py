"""OpenMM systems of forces that no force field makes: custom ones, and Python functions as openmm-ml's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from molsampler.space import Euclidean, MeanFree
from molsampler.systems import OpenMMSystem

openmm = pytest.importorskip("openmm")
app = pytest.importorskip("openmm.app")


def system_of(symbols: list[str], *forces):
    """A system of these elements under these forces, without bonds, and its topology."""
    system, topology = openmm.System(), app.Topology()
    chain = topology.addChain()
    for symbol in symbols:
        element = app.Element.getBySymbol(symbol)
        system.addParticle(element.mass)
        topology.addAtom(symbol, element, topology.addResidue("UNK", chain))
    for force in forces:
        system.addForce(force)
    return system, topology


def places(n: int, rows: int = 3) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return 0.3 * torch.randn(rows, n, 3, generator=rng, dtype=torch.float64)


def learned(state):
    """What a machine-learned potential looks like to OpenMM: positions in, energy and forces out."""
    x = state.getPositions(asNumpy=True)._value
    difference = x[:, None] - x
    d = np.sqrt((difference**2).sum(-1)) + np.eye(len(x))
    stretch = (d - 0.3) * (1 - np.eye(len(x)))
    forces = -1000.0 * ((stretch / d)[..., None] * difference).sum(1)
    return 250.0 * (stretch**2).sum(), forces


@pytest.mark.skipif(not hasattr(openmm, "PythonForce"), reason="OpenMM has no PythonForce")
def test_a_python_force_is_taken_as_any_other() -> None:
    system = OpenMMSystem(*system_of(["C"] * 4, openmm.PythonForce(learned)), 300)
    assert isinstance(system.space, MeanFree)
    assert (system.invariant, system.exchangeable, system.molecule) == (True, True, None)
    x = places(4).requires_grad_()
    _, score = system.energy_and_score(x.detach())
    step = torch.zeros(4, 3, dtype=torch.float64)
    step[1, 2] = 1e-5
    slope = (system.energy(x.detach() + step) - system.energy(x.detach() - step)) / 2e-5
    torch.testing.assert_close(score[:, 1, 2], -slope, rtol=1e-5, atol=1e-4)


def many_body():
    """An energy of all particles at once, equal in all of them."""
    names = [f"distance(p{i},p{j})" for i in range(1, 5) for j in range(1, i)]
    force = openmm.CustomCompoundBondForce(
        4, "500*(" + "+".join(f"({d}-0.3)^2" for d in names) + ")"
    )
    force.addBond([0, 1, 2, 3], [])
    return force


def test_a_many_body_force_is_taken_with_elements_as_types() -> None:
    alike = OpenMMSystem(*system_of(["C"] * 4, many_body()), 300)
    assert (alike.exchangeable, alike.molecule) == (True, None)
    mixed = OpenMMSystem(*system_of(["C", "C", "O", "O"], many_body()), 300)
    assert not mixed.exchangeable
    assert mixed.molecule is not None
    assert (mixed.molecule.types, mixed.molecule.bonds) == ((0, 0, 1, 1), ())
    torch.testing.assert_close(mixed.energy(places(4)), alike.energy(places(4)))


def charged(charges, *, external: bool = False):
    if external:
        force = openmm.CustomExternalForce("100*(2 + q)*(x^2 + y^2 + z^2)")
        force.addPerParticleParameter("q")
        for i, q in enumerate(charges):
            force.addParticle(i, [q])
        return force
    force = openmm.CustomNonbondedForce("q1*q2/r + 100*r^2")
    force.addPerParticleParameter("q")
    for q in charges:
        force.addParticle([q])
    return force


@pytest.mark.parametrize("external", [False, True])
def test_parameters_of_custom_forces_tell_particles_apart(external: bool) -> None:
    """A network that took them for alike would be symmetric where the energy is not."""
    force = charged([1.0, -1.0, 1.0, 2.0], external=external)
    system = OpenMMSystem(*system_of(["C"] * 4, many_body(), force), 300)
    assert system.molecule is not None
    assert system.molecule.types == (0, 1, 0, 2)
    x = places(4)
    swapped = x[:, [2, 1, 0, 3]]
    torch.testing.assert_close(system.energy(swapped), system.energy(x))
    assert float((system.energy(x[:, [1, 0, 2, 3]]) - system.energy(x)).abs().max()) > 1e-2
    assert isinstance(system.space, Euclidean if external else MeanFree)
    same = charged([1.0] * 4, external=external)
    assert OpenMMSystem(*system_of(["C"] * 4, many_body(), same), 300).molecule is None
