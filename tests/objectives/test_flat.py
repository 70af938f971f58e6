"""Parameters as one vector: the module keeps its meaning, and steps are those of torch's own functions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from molsampler.objectives.flat import FlatParameters
from molsampler.objectives.workspace import Workspace


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.SiLU(), nn.Linear(5, 1))


def test_a_module_computes_the_same_and_follows_its_vector():
    module = network()
    x = torch.randn(4, 3)
    before = module(x)
    flat = FlatParameters(module)
    assert torch.equal(module(x), before)
    assert len(flat.values) == sum(each.numel() for each in module.parameters())
    flat.values.zero_()
    assert module(x).eq(0).all()


def test_gradients_are_those_of_torch_clipped_as_torch_does():
    one, other = network(), network()
    flat = FlatParameters(one)
    x = torch.randn(8, 3)
    for module in (one, other):
        for _ in range(2):
            # Of the last pass alone.
            flat.clear() if module is one else module.zero_grad()
            torch.autograd.backward(module(x).square().sum())
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad)
    norm = float(nn.utils.clip_grad_norm_(other.parameters(), 0.1))
    assert flat.clip(0.1) == pytest.approx(norm, rel=1e-5)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine.grad, theirs.grad, rtol=1e-4)
    assert float(flat.gradients.norm()) == pytest.approx(0.1, rel=1e-4)
    # Negative control: what is below the limit stays.
    kept = flat.gradients.clone()
    flat.clip(1.0)
    assert torch.equal(flat.gradients, kept)


def test_weights_that_are_loaded_or_copied_stay_apart():
    module = network()
    flat = FlatParameters(module)
    twin = copy.deepcopy(module)
    module.load_state_dict({key: value + 1 for key, value in module.state_dict().items()})
    assert torch.equal(flat.values[:15], module[0].weight.flatten())
    assert not torch.equal(twin[0].weight, module[0].weight)


def test_what_is_not_trained_has_no_gradient_and_does_not_move():
    module = network()
    module[0].requires_grad_(False)
    frozen = module[0].weight.clone()
    optimiser = torch.optim.SGD([each for each in module.parameters() if each.requires_grad], lr=1)
    work = Workspace({"a": module}, {"a": optimiser}, rng=torch.Generator())
    last = module[2].weight.clone()
    _, taken = work.apply(
        "a", module(torch.ones(2, 3)).square().sum(), rate=0.1, max_grad_norm=None
    )
    assert taken
    assert torch.equal(module[0].weight, frozen)
    assert not torch.equal(module[2].weight, last)
    assert FlatParameters(network().requires_grad_(False)).gradients is None


def test_an_average_goes_its_share_of_the_way():
    first, second = network(), network().requires_grad_(False)
    optimiser = torch.optim.SGD(first.parameters(), lr=1)
    work = Workspace({"a": first, "ema": second}, {"a": optimiser}, rng=torch.Generator())
    with torch.no_grad():
        first[0].weight.add_(1.0)
    before = second[0].weight.clone()
    work.average("ema", "a", 0.9)
    assert torch.allclose(second[0].weight, before + 0.1)


def test_networks_of_two_types_are_refused():
    with pytest.raises(ValueError, match="one type"):
        FlatParameters(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()))
