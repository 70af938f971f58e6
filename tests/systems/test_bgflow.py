"""bgflow both ways: with fakes of its shapes everywhere, with the real package where it imports."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from exact_systems import Springs
from torch import Tensor

from molsampler.analysis.comparison import compare_many, tabulate
from molsampler.errors import InputError, MissingDependencyError, ShapeError
from molsampler.samples import Samples
from molsampler.space import Euclidean, MeanFree
from molsampler.systems import get_system
from molsampler.systems.bgflow import BgflowSystem, draw, to_bgflow
from molsampler.target import System


class FakeEnergy:
    """The shapes of bgflow's energies: ``(b, 1)``, right for one batch dimension only."""

    def __init__(self, system: System, *, flat: bool, forces: bool = True):
        n, d = system.shape
        self.event_shape = torch.Size([n * d] if flat else [n, d])
        self.system = system
        if forces:
            self.force = self._force

    def energy(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        # As in bgflow's Lennard-Jones energy: view() and [:, None].
        u = self.system.energy(x.view(*x.shape[: -len(self.event_shape)], *self.system.shape))
        return u[:, None] / temperature

    def _force(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        x.requires_grad_(True)
        with torch.enable_grad():
            u = self.energy(x, temperature)
            (gradient,) = torch.autograd.grad(u.sum(), x)
        x.requires_grad_(False)
        return -gradient


class FakeBase(torch.nn.Module):
    """The part of ``bgflow.Energy`` that a subclass relies on."""

    def __init__(self, dim: list[int]):
        super().__init__()
        self.event_shape = torch.Size(dim)

    def energy(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        return self._energy(x) / temperature

    def force(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_(True)
            u = self.energy(x, temperature=temperature)
            return -torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def positions(*batch: int, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return 3.0 * torch.randn(*batch, 4, 2, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("forces", [True, False])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3), (0,)])
def test_energies_and_scores_are_those_of_the_object(
    batch: tuple[int, ...], flat: bool, forces: bool
) -> None:
    own = get_system("dw4")
    system = BgflowSystem(FakeEnergy(own, flat=flat, forces=forces), (4, 2))
    x = positions(*batch).requires_grad_()
    energy, score = system.energy_and_score(x)
    assert energy.shape == batch
    torch.testing.assert_close(energy, own.energy_and_score(x)[0])
    torch.testing.assert_close(score, own.energy_and_score(x)[1])
    assert x.requires_grad
    (gradient,) = torch.autograd.grad(system.energy(x).sum(), x)
    torch.testing.assert_close(gradient, -score)


def test_invariance_is_found_by_probing() -> None:
    free = BgflowSystem(FakeEnergy(get_system("lj13"), flat=False))
    assert free.invariant
    assert free.space == MeanFree(13, 3)

    class Field(FakeEnergy):
        """A weak uniform field along the first axis."""

        def energy(self, x: Tensor, temperature: float = 1.0) -> Tensor:
            return super().energy(x) + 0.01 * x.flatten(1)[:, :1]

    held = BgflowSystem(Field(get_system("lj13"), flat=False, forces=False))
    assert not held.invariant
    assert held.space == Euclidean(13, 3)

    class Handed(FakeEnergy):
        """An energy that tells mirror images apart."""

        def energy(self, x: Tensor, temperature: float = 1.0) -> Tensor:
            volume = torch.linalg.det(x[:, 1:4] - x[:, :1])
            return super().energy(x) + 0.01 * volume[:, None]

    handed = BgflowSystem(Handed(get_system("lj13"), flat=False, forces=False))
    assert not handed.invariant
    assert handed.space == MeanFree(13, 3)
    declared = BgflowSystem(Handed(get_system("lj13"), flat=False), invariant=True)
    assert declared.invariant


def test_unusable_objects_are_refused() -> None:
    own = get_system("dw4")
    with pytest.raises(InputError, match="method energy"):
        BgflowSystem(object(), (4, 2))
    with pytest.raises(InputError, match="shape must be given"):
        BgflowSystem(FakeEnergy(own, flat=True))
    with pytest.raises(ShapeError, match="event shape"):
        BgflowSystem(FakeEnergy(own, flat=True), (5, 2))

    cached = FakeEnergy(own, flat=True)
    cached.bridge = object()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="print-out"):
        BgflowSystem(cached, (4, 2))

    class Scalar(FakeEnergy):
        def energy(self, x: Tensor, temperature: float = 1.0) -> Tensor:
            return super().energy(x).sum()

    with pytest.raises(ShapeError, match="must hold 12 numbers"):
        BgflowSystem(Scalar(own, flat=True), (4, 2))


def test_a_row_that_is_not_finite_stays_alone() -> None:
    class Holed(FakeEnergy):
        def energy(self, x: Tensor, temperature: float = 1.0) -> Tensor:
            u = super().energy(x)
            return u.masked_fill(x.flatten(1)[:, :1] == 0, math.nan)

    own = get_system("dw4")
    system = BgflowSystem(Holed(own, flat=True), (4, 2), invariant=True, space=own.space)
    x = positions(3)
    x[1, 0, 0] = 0.0
    energy, score = system.energy_and_score(x)
    assert energy[1] == math.inf
    assert (score[1] == 0).all()
    # The energy alone and that beside a score round differently, so this compares the former.
    assert torch.equal(energy[[0, 2]], own.energy(x)[[0, 2]])
    torch.testing.assert_close(score[[0, 2]], own.energy_and_score(x)[1][[0, 2]])


def test_without_bgflow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bgflow", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'molsampler\[bgflow\]'"):
        to_bgflow(get_system("dw4"))


@pytest.mark.parametrize("flat", [True, False])
def test_a_target_becomes_a_subclass_of_the_base(
    monkeypatch: pytest.MonkeyPatch, flat: bool
) -> None:
    fake = ModuleType("bgflow")
    fake.Energy = FakeBase  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bgflow", fake)
    target = get_system("dw4")
    energy = to_bgflow(target, flat=flat)
    assert isinstance(energy, FakeBase)
    assert type(energy) is type(to_bgflow(get_system("lj13")))
    check_round_trip(energy, target, flat=flat)


def check_round_trip(energy: Any, target: System, *, flat: bool) -> None:
    n, d = target.shape
    x = positions(2, 3)
    state = x.reshape(2, 3, n * d) if flat else x.clone()
    u, score = target.energy_and_score(x)
    assert energy.energy(state).shape == (2, 3, 1)
    torch.testing.assert_close(energy.energy(state)[..., 0], u)
    torch.testing.assert_close(energy.energy(state, temperature=2.0)[..., 0], u / 2)
    torch.testing.assert_close(energy.force(state).detach().reshape(x.shape), score)
    back = BgflowSystem(energy, target.shape)
    torch.testing.assert_close(back.energy_and_score(x), (u, score))
    assert back.space == target.space
    assert back.invariant == target.invariant


class Gaussian:
    """A sampler with the interface of a Boltzmann generator, of a temperature of its own."""

    def __init__(self, system: Springs, temperature: float):
        self.system, self.temperature = system, temperature

    def sample(self, n: int, *, with_energy: bool = False) -> Any:
        std = (self.temperature / self.system.k) ** 0.5
        noise = torch.randn(n, *self.system.shape, dtype=torch.float64)
        # Any centre of mass: removed by draw().
        x = std * self.system.space.project(noise) + torch.randn(n, 1, 2, dtype=torch.float64)
        u = self.system.energy(x) / self.temperature
        flat = x.reshape(n, -1)
        return (flat, u[:, None] + 17.0) if with_energy else flat


def test_drawn_samples_meet_others_in_one_table() -> None:
    system = Springs()
    state = torch.random.get_rng_state()
    hot = draw(Gaussian(system, 1.5), system, 4000, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(hot.positions, draw(Gaussian(system, 1.5), system, 4000, seed=3).positions)
    assert hot.positions.mean(1).abs().max() < 1e-6
    found = compare_many(
        {
            "ours": Samples.of(system, system.sample(4000, 1)),
            "raw": hot,
            "reweighted": draw(Gaussian(system, 1.5), system, 20_000, seed=4, reweight=True),
        },
        Samples.of(system, system.sample(8000, 2)),
        system,
        n=1000,
        transport_repeats=0,
        drift_steps=0,
    )
    assert {label: c.passed for label, c in found.items()} == {
        "ours": True,
        "raw": False,
        "reweighted": True,
    }
    assert len(tabulate(found)[1]) == 5


def test_what_sample_returns_is_checked() -> None:
    system = Springs()

    class Returns:
        def __init__(self, value: Any):
            self.value = value

        def sample(self, n: int, **_: Any) -> Any:
            return self.value

    # Walkers in a second leading dimension are samples too.
    assert draw(Returns(torch.randn(5, 7, 8)), system, 5).positions.shape == (35, 4, 2)
    assert draw(Returns((torch.randn(5, 4, 2), None)), system, 5).positions.shape == (5, 4, 2)
    for value in (torch.randn(5, 9), torch.randn(8), (), None):
        with pytest.raises(ShapeError, match="must return states"):
            draw(Returns(value), system, 5)
    with pytest.raises(InputError, match="with_energy"):
        draw(Returns(torch.randn(5, 8)), system, 5, reweight=True)
    with pytest.raises(InputError, match="method sample"):
        draw(object(), system, 5)


@pytest.fixture
def bgflow(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(np, "infty", np.inf, raising=False)
    return pytest.importorskip("bgflow")


@pytest.mark.parametrize("flat", [True, False])
def test_the_real_package_round_trip(bgflow: Any, flat: bool) -> None:
    target = get_system("dw4")
    energy = to_bgflow(target, flat=flat)
    assert isinstance(energy, bgflow.Energy)
    check_round_trip(energy, target, flat=flat)


@pytest.mark.parametrize("two_event_dims", [True, False])
def test_real_energies_are_systems(bgflow: Any, two_event_dims: bool) -> None:
    # This release counts each Lennard-Jones pair once; eps = 2 restores the convention of lj13.
    energy = bgflow.LennardJonesPotential(39, 13, eps=2.0, two_event_dims=two_event_dims)
    system = BgflowSystem(energy, (13, 3), exchangeable=True)
    own = get_system("lj13")
    random = torch.Generator().manual_seed(0)
    x = 2.0 * torch.randn(3, 2, 13, 3, generator=random, dtype=torch.float64)
    u, score = system.energy_and_score(x)
    flat = x.reshape(6, *energy.event_shape)
    assert torch.equal(u.reshape(6, 1), energy.energy(flat))
    assert torch.equal(score.reshape(flat.shape), energy.force(flat).detach())
    # bgflow adds 1e-6 to squared distances.
    torch.testing.assert_close((u, score), own.energy_and_score(x), rtol=1e-3, atol=1e-2)
    assert system.invariant
    assert system.space == own.space


def test_a_real_markov_chain_runs_on_our_target(bgflow: Any) -> None:
    system = Springs()
    start = system.sample(2000, 0).reshape(2000, -1)
    torch.manual_seed(0)
    chain = bgflow.GaussianMCMCSampler(to_bgflow(system), 3.0 * start, noise_std=0.7, n_burnin=150)
    samples = draw(chain, system, 1)
    # Equipartition: energies are Gamma distributed, mean dof / 2 and variance dof / 2.
    half = system.space.dof / 2
    assert len(samples) == 2000
    assert abs(float(samples.energies.mean()) - half) < 6 * math.sqrt(half / 2000)
    # Negative control: the start is nine times too hot.
    assert abs(9 * half - half) > 6 * math.sqrt(half / 2000)


def test_a_real_boltzmann_generator_is_compared(bgflow: Any) -> None:
    system = Springs()
    energy = to_bgflow(system)
    prior = bgflow.MeanFreeNormalDistribution(8, 4, two_event_dims=False)
    flow = bgflow.SequentialFlow([])
    generator = bgflow.BoltzmannGenerator(prior, flow, energy)
    samples = draw(generator, system, 500, reweight=True)
    assert samples.log_weights is not None
    # Prior and target are equal up to a constant: k = 1 here.
    assert float(samples.log_weights.std()) < 1e-3
