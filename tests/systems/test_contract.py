"""What every system promises, checked on every registered one and on a user's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from molsampler.errors import InputError, NonFiniteError, ShapeError
from molsampler.space import MeanFree
from molsampler.systems import ASESystem, FunctionSystem, PairPotential, get_system, list_systems
from molsampler.target import System, Target

#: Ways for users to bring a system of their own, each by an example.
OWN = (
    "user",
    "user-1d",
    "ions",
    "ions-in-a-field",
    "ions-in-a-wall",
    "function",
    "function-in-a-field",
    "ase",
)

#: Registered systems, members of families with odd and even particle counts, and users' own.
NAMES = (*list_systems(), "lj2", "lj6", "dw3", "dw5", *OWN)

USER = "q*exp(-r/l)/r + k*r^2/n + a*erf(r) - w*sin(x)^2; x = 2*r"


def lennard_jones(x: Tensor) -> Tensor:
    i, j = torch.triu_indices(x.shape[1], x.shape[1], 1)
    s = (x[:, i] - x[:, j]).square().sum(-1).reciprocal() ** 3
    trap = (x - x.mean(1, keepdim=True)).square().sum((1, 2))
    return (s.square() - 2 * s).sum(-1) + 0.5 * trap


def make(name: str) -> System:
    if name.startswith("ions"):
        return PairPotential(
            name,
            "q1*q2/r + e*(s/r)^9 + k*r^2/n",
            n=6,
            d=3,
            parameters={"s": 1.1, "k": 0.8},
            particle_parameters={"q": {"A": 1.0, "B": -1.0, "C": 0.5}},
            species=["A", "A", "B", "B", "B", "C"],
            pair_parameters={"e": {"A-A": 1, "A-B": 0.5, "A-C": 0.7, "B-B": 2, "B-C": 1, "C-C": 1}},
            external="0.3*(x^2 + y^2 + q^2*z^2)" if name.endswith("field") else None,
            confinement="5*max(0, r - 1.2)^2" if name.endswith("wall") else None,
        )
    if name == "function":
        return FunctionSystem(
            name, lennard_jones, shape=(5, 3), space="mean-free", invariant=True, exchangeable=True
        )
    if name == "function-in-a-field":
        return FunctionSystem(
            name, lambda x: lennard_jones(x) + 0.2 * x[..., 0].square().sum(-1) + x[:, 0].square().sum(-1),
            shape=(4, 2),
        )  # fmt: skip
    if name == "ase":
        pytest.importorskip("ase")
        from ase import Atoms
        from ase.calculators.emt import EMT

        atoms = Atoms("Cu2Au2", 1.8 * np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]]))
        atoms.calc = EMT()
        return ASESystem(atoms, temperature=1000, restraint=20.0, name=name)
    if name.startswith("user"):
        return PairPotential(
            name,
            USER,
            n=6,
            d=1 if name.endswith("1d") else 3,
            parameters={"q": 2.0, "l": 1.5, "k": 0.8, "a": 0.5, "w": 0.3},
            length_nm=0.25,
        )
    return get_system(name)


@pytest.fixture(params=NAMES)
def system(request: pytest.FixtureRequest) -> System:
    return make(request.param)


def configurations(system: System, *batch: int, seed: int = 0) -> Tensor:
    """Moderately spread float64 positions: on a jittered grid, so that no two particles are close."""
    n, d = system.shape
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(*batch, n, d, generator=generator, dtype=torch.float64)
    if not isinstance(system.space, MeanFree):
        return noise
    side = math.ceil(n ** (1 / d))
    cells = torch.cartesian_prod(*[torch.arange(side, dtype=torch.float64)] * d).reshape(-1, d)
    return 1.2 * cells[:n] + 0.05 * noise


def rotation(d: int) -> Tensor:
    """An improper rotation (determinant -1), so that reflections are covered as well."""
    generator = torch.Generator().manual_seed(5)
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    q[:, 0] *= -torch.linalg.det(q).sign()
    return q


def test_is_a_target_with_a_description(system: System) -> None:
    assert isinstance(system, Target)
    assert system.shape == system.space.shape
    assert system.name
    assert system.length_nm > 0
    assert "\n" not in system.description  # type: ignore[attr-defined]
    assert "kT" in system.units  # type: ignore[attr-defined]


def test_the_score_is_minus_the_finite_difference_of_the_energy(system: System) -> None:
    x = configurations(system)
    _, score = system.energy_and_score(x)
    n, d = system.shape
    steps = 1e-4 * torch.eye(n * d, dtype=torch.float64).reshape(n * d, n, d)

    def difference(h: float) -> Tensor:
        return (system.energy(x + h * steps) - system.energy(x - h * steps)) / (2e-4 * h)

    estimate = ((4 * difference(1.0) - difference(2.0)) / 3).reshape(n, d)
    assert (score + estimate).abs().max() < 1e-6 * (1 + score.abs().max())


def test_autograd_through_the_energy_gives_the_score(system: System) -> None:
    x = configurations(system, 3).requires_grad_()
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * system.energy(x)).sum(), x)
    energy, score = system.energy_and_score(x)
    assert not energy.requires_grad
    torch.testing.assert_close(gradient, -weights[:, None, None] * score)


@pytest.mark.parametrize("batch", [(), (0,), (1,), (5,), (2, 0), (2, 3), (1, 2, 3)])
def test_batch_shapes(system: System, batch: tuple[int, ...]) -> None:
    x = configurations(system, *batch)
    energy, score = system.energy_and_score(x)
    assert energy.shape == batch
    assert score.shape == x.shape
    assert system.energy(x).shape == batch
    flat, flat_score = system.energy_and_score(x.reshape(-1, *system.shape))
    assert torch.equal(energy.reshape(-1), flat)
    assert torch.equal(score.reshape(-1, *system.shape), flat_score)


def test_memory_layout_of_the_input_does_not_matter(system: System) -> None:
    x = configurations(system, 4)
    strided = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    expanded = x[:1].expand(4, -1, -1)
    before = x.clone()
    assert torch.equal(system.energy(strided), system.energy(x))
    assert torch.equal(system.energy(expanded), system.energy(x)[:1].expand(4))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_positions(system: System, dtype: torch.dtype) -> None:
    x = configurations(system, 20).to(dtype)
    energy, score = system.energy_and_score(x)
    assert energy.dtype == score.dtype == system.energy(x).dtype == dtype
    exact, exact_score = system.energy_and_score(x.double())
    tolerance = 2e-5 if dtype == torch.float32 else 1e-12
    assert (energy - exact).abs().max() < tolerance * (1 + exact.abs().max())
    assert (score - exact_score).abs().max() < tolerance * (1 + exact_score.abs().max())


def test_a_row_does_not_depend_on_the_rest_of_its_batch(system: System) -> None:
    x = configurations(system, 300).float()
    energy, score = system.energy_and_score(x)
    for size in (1, 7, 100):
        parts = [system.energy_and_score(part) for part in x.split(size)[:5]]
        part_energy = torch.cat([part[0] for part in parts])
        part_score = torch.cat([part[1] for part in parts])
        rows = len(part_energy)
        torch.testing.assert_close(part_energy, energy[:rows], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(part_score, score[:rows], rtol=1e-4, atol=1e-4)


def test_invariances_are_as_declared(system: System) -> None:
    x = configurations(system, 4)
    n, d = system.shape
    energy, score = system.energy_and_score(x)
    q, shift = rotation(d), torch.full((d,), 3.3, dtype=torch.float64)
    moved, moved_score = system.energy_and_score(x @ q.T + shift)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    shuffled, shuffled_score = system.energy_and_score(x[:, order])
    if system.invariant:
        torch.testing.assert_close(moved, energy)
        torch.testing.assert_close(moved_score, score @ q.T)
        assert score.sum(-2).abs().max() < 1e-9 * (1 + score.abs().max())
    else:
        assert (moved - energy).abs().max() > 0.1
    if system.exchangeable:
        torch.testing.assert_close(shuffled, energy)
        torch.testing.assert_close(shuffled_score, score[:, order])
    if system.alike is not None:
        # Particles of one type may change places, the last two of each type that has two.
        order = torch.arange(n)
        for kind in set(system.alike):
            own = [k for k in range(n) if system.alike[k] == kind]
            order[own[-2:]] = order[own[-2:]].flip(0)
        exchanged, exchanged_score = system.energy_and_score(x[:, order])
        torch.testing.assert_close(exchanged, energy)
        torch.testing.assert_close(exchanged_score, score[:, order])


def test_wrong_shapes_name_both_shapes(system: System) -> None:
    n, d = system.shape
    for shape in [(n + 1, d), (n, d + 1), (d + n,), (2, n * d + 1)]:
        with pytest.raises(ShapeError, match="shape") as caught:
            system.energy(torch.zeros(shape))
        assert f"{n}, {d}" in str(caught.value)
        assert str(tuple(shape)) in str(caught.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e20])
def test_unusable_coordinates_are_named(system: System, bad: float) -> None:
    n, d = system.shape
    x = configurations(system, 2, 3)
    x[1, 1, n - 1, d - 1] = bad
    for function in (system.energy, system.energy_and_score):
        with pytest.raises(NonFiniteError, match=f"row 4, particle {n - 1}, axis {d - 1}"):
            function(x)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("mog40", "mw32")])
def test_coincident_particles_spoil_their_own_row_only(name: str) -> None:
    system = make(name)
    x = configurations(system, 5)
    energy, score = system.energy_and_score(x)
    y = x.clone()
    y[1, -1] = y[1, 0]
    y[3] = 0.0
    for positions in (y, y.float()):
        new_energy, new_score = system.energy_and_score(positions)
        alone = system.energy(positions)
        for row in (1, 3):
            assert new_energy[row] == math.inf
            assert alone[row] == math.inf
            assert torch.count_nonzero(new_score[row]) == 0
        keep = [0, 2, 4]
        torch.testing.assert_close(new_energy[keep].double(), energy[keep], rtol=1e-4, atol=1e-4)
        # Stiff terms cancel in a component, so rounding of the positions shows against the largest.
        slack = max(1e-3, 1e-6 * float(score.abs().max()))
        torch.testing.assert_close(new_score[keep].double(), score[keep], rtol=1e-3, atol=slack)
        torch.testing.assert_close(alone, new_energy)
        z = positions.clone().requires_grad_()
        system.energy(z)[keep].sum().backward()
        assert z.grad is not None
        assert z.grad.isfinite().all()


def test_random_configurations_never_give_nan(system: System) -> None:
    n, d = system.shape
    generator = torch.Generator().manual_seed(2)
    for scale in (1e-30, 1e-8, 1e-3, 1.0, 1e3, 1e5):
        x = scale * torch.randn(50, n, d, generator=generator)
        energy, score = system.energy_and_score(x)
        assert not energy.isnan().any()
        assert score.isfinite().all()
        assert not system.energy(x).isnan().any()


def test_particles_have_a_topology_and_points_have_none(system: System) -> None:
    n, _ = system.shape
    if system.name in ("mog40", "mw32"):
        with pytest.raises(InputError, match="topology"):
            system.topology()
    else:
        topology = system.topology()
        assert topology.n_atoms == n
        assert topology.n_chains == 1
    if system.name in ("mog40", "mw32", "function", "function-in-a-field", "ase"):
        with pytest.raises(InputError, match="twin"):
            system.openmm_twin()
    else:
        twin, twin_topology = system.openmm_twin()
        assert twin.getNumParticles() == twin_topology.getNumAtoms() == n
