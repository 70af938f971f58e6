"""Orthogonalised momentum for matrices, Adam for the rest."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional

from molsampler.nn.readout import Readout
from molsampler.objectives.optimisers import Muon, OptimiserName, optimiser_of, orthogonal

NAMES: tuple[OptimiserName, ...] = ("muon", "adam")


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(16, 12), nn.SiLU(), nn.Linear(12, 12), nn.SiLU(), nn.Linear(12, 1)
        )


def descended(model: nn.Module, optimiser: torch.optim.Optimizer, steps: int) -> float:
    stream = torch.Generator().manual_seed(1)
    x = torch.randn(256, 16, generator=stream)
    y = (x[:, :1] * x[:, 1:2]).sin()
    loss = torch.zeros(())
    for _ in range(steps):
        optimiser.zero_grad()
        loss = functional.mse_loss(model(x), y)
        torch.autograd.backward(loss)
        optimiser.step()
    return float(loss.detach())


def test_singular_values_come_near_one_and_directions_stay() -> None:
    stream = torch.Generator().manual_seed(0)
    for shape in ((3, 20, 20), (2, 8, 40), (2, 40, 8)):
        gradient = torch.randn(shape, generator=stream)
        found = orthogonal(gradient)
        assert found.shape == shape
        values = torch.linalg.svdvals(found)
        assert bool((values > 0.3).all())
        assert bool((values < 1.3).all())
        assert (
            float(torch.linalg.svdvals(gradient).amax() / torch.linalg.svdvals(gradient).amin()) > 2
        )
        u, _, v = torch.linalg.svd(gradient, full_matrices=False)
        seen = u.mT @ found @ v.mT
        beside = seen - torch.diag_embed(seen.diagonal(dim1=-2, dim2=-1))
        assert float(beside.abs().max()) < 1e-4
    for size in (0.0, 1e-30, 1e-38):
        vanished = orthogonal(size * torch.randn(1, 16, 16, generator=stream))
        assert float(vanished.abs().max()) < 1e-3


def test_a_gradient_that_vanishes_leaves_no_movement_behind() -> None:
    layer = nn.Linear(16, 16, bias=False)
    optimiser = optimiser_of("muon", layer, lr=1e-3)
    stream = torch.Generator().manual_seed(0)
    for step in range(1200):
        layer.weight.grad = float(step < 5) * torch.randn(16, 16, generator=stream)
        optimiser.step()
        if step == 1000:
            before = layer.weight.detach().clone()
    assert torch.equal(before, layer.weight)


def test_what_is_no_matrix_moves_as_by_adam() -> None:
    first, second = network(), network()
    descended(first, optimiser_of("muon", first, lr=1e-3), 1)
    descended(second, optimiser_of("adam", second, lr=1e-3), 1)
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    for one, other in pairs:
        thin = one.ndim < 2 or min(one.shape) < 8
        assert torch.allclose(one, other, atol=1e-7) is thin
    # After many steps, on gradients of its own, a vector alone is Adam's to rounding.
    vectors = [nn.Parameter(torch.ones(5)) for _ in range(2)]
    optimisers = [
        optimiser_of(name, nn.ParameterList([vector]), lr=1e-2)
        for name, vector in zip(NAMES, vectors, strict=True)
    ]
    for _ in range(30):
        for vector, optimiser in zip(vectors, optimisers, strict=True):
            optimiser.zero_grad()
            torch.autograd.backward((vector**4 * torch.arange(1.0, 6.0)).sum())
            optimiser.step()
    torch.testing.assert_close(vectors[0], vectors[1])


def test_a_readout_is_left_to_adam() -> None:
    moved = []
    for kind in (Readout, nn.Linear):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = kind(16, 16)
        twin = copy.deepcopy(layer)
        for each, name in ((layer, NAMES[0]), (twin, NAMES[1])):
            torch.autograd.backward(each(torch.ones(2, 16)).square().sum())
            optimiser_of(name, each, lr=1e-3).step()
        moved.append(torch.allclose(layer.weight, twin.weight, atol=1e-7))
    assert moved == [True, False]


def test_entries_move_as_far_as_the_module_says() -> None:
    """In the first step as by Adam, and later four times as far."""
    model = nn.Linear(32, 32, bias=False)
    moved: dict[str, list[float]] = {name: [] for name in NAMES}
    for name in NAMES:
        layer = copy.deepcopy(model)
        optimiser = optimiser_of(name, layer, lr=1e-3)
        stream = torch.Generator().manual_seed(0)
        for _ in range(150):
            before = layer.weight.detach().clone()
            layer.weight.grad = torch.randn(32, 32, generator=stream)
            optimiser.step()
            step = layer.weight.detach() - before
            moved[name].append(float(step.square().mean().sqrt()) / 1e-3)
    first = moved["muon"][0] / moved["adam"][0]
    later = sum(moved["muon"][100:]) / sum(moved["adam"][100:])
    assert 0.5 < first < 2
    assert 2.5 < later < 6


def test_it_moves_along_directions_that_adam_hardly_sees() -> None:
    """A linear map of inputs whose spreads fall from one to a hundredth, turned at random."""
    stream = torch.Generator().manual_seed(2)
    turn = torch.linalg.qr(torch.randn(16, 16, generator=stream))[0]
    x = torch.randn(512, 16, generator=stream) * torch.logspace(0, -2, 16) @ turn
    wanted = torch.randn(16, 16, generator=stream)
    error = {}
    for name in NAMES:
        layer = nn.Linear(16, 16, bias=False)
        nn.init.zeros_(layer.weight)
        optimiser = optimiser_of(name, layer, lr=1e-2)
        for step in range(200):
            for group in optimiser.param_groups:
                group["lr"] = 1e-2 * (1 - step / 200)
            optimiser.zero_grad()
            torch.autograd.backward((layer(x) - x @ wanted).square().sum(-1).mean())
            optimiser.step()
        error[name] = float((layer.weight.detach().T - wanted).square().mean())
    assert error["muon"] < 0.7 * error["adam"]


def test_a_saved_state_goes_on_bit_for_bit() -> None:
    model = network()
    optimiser = Muon(model, lr=1e-3, betas=(0.9, 0.99))
    descended(model, optimiser, 5)
    twin, saved = copy.deepcopy(model), copy.deepcopy(optimiser.state_dict())
    resumed = Muon(twin, lr=1e-3, betas=(0.9, 0.99))
    resumed.load_state_dict(saved)
    descended(model, optimiser, 3)
    descended(twin, resumed, 3)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
