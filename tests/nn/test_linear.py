"""Linear layers by oneDNN against torch's own choice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from molsampler.nn import linear as module
from molsampler.nn.linear import Linear, linear

#: Rows, inputs, outputs: on both sides of the size from which oneDNN serves, and wide to narrow.
SHAPES = [((700,), 64, 96), ((3, 500), 18, 64), ((2000,), 64, 1), ((40, 90), 96, 17), ((5,), 8, 8)]


@pytest.fixture(autouse=True)
def _needs_onednn() -> None:
    if module._BY_ONEDNN is None:
        pytest.skip("torch has no oneDNN here")


def problem(rows: tuple[int, ...], inputs: int, outputs: int) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(inputs)
    shapes = (*rows, inputs), (outputs, inputs), (outputs,), (*rows, outputs)
    return tuple(torch.randn(shape, generator=random) for shape in shapes)


def answer(function, given: tuple[Tensor, ...], dtype: torch.dtype) -> list[Tensor]:
    """Values, gradients, and gradients of a function of these, in float64."""
    *leaves, weight = (each.to(dtype).clone() for each in given)
    for leaf in leaves:
        leaf.requires_grad_()
    y = function(*leaves)
    first = torch.autograd.grad((y.square() * weight).sum(), leaves, create_graph=True)
    second = torch.autograd.grad(sum(each.square().mean() for each in first), leaves)
    return [each.detach().double() for each in (y, *first, *second)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_to_second_order_are_those_of_torch(shape) -> None:
    given = problem(*shape)
    truth = answer(functional.linear, given, torch.float64)
    theirs = answer(functional.linear, given, torch.float32)
    ours = answer(linear, given, torch.float32)
    for exact, own, other in zip(truth, ours, theirs, strict=True):
        scale = exact.abs().max()
        assert (own - exact).abs().max() <= 4 * (other - exact).abs().max() + 1e-6 * scale


def test_the_layer_is_torchs_but_for_who_multiplies() -> None:
    torch.manual_seed(0)
    own, theirs = Linear(64, 48), nn.Linear(64, 48)
    theirs.load_state_dict(own.state_dict())
    x = torch.randn(900, 64)
    torch.testing.assert_close(own(x), theirs(x))
    assert not own(x.requires_grad_()).is_leaf
    with torch.no_grad():
        assert not own(x).requires_grad


def test_rows_that_do_not_follow_each_other_are_taken_as_they_stand() -> None:
    x, weight, bias, _ = problem((64, 40), 64, 64)
    turned = x.transpose(0, 1)
    torch.testing.assert_close(
        linear(turned, weight, bias), functional.linear(turned, weight, bias)
    )
    torch.testing.assert_close(linear(turned, weight), functional.linear(turned, weight))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_left_to_torch(dtype) -> None:
    x, weight, bias, _ = (each.to(dtype) for each in problem((900,), 64, 64))
    y = linear(x, weight, bias)
    assert y.dtype == dtype
    assert torch.equal(y, functional.linear(x, weight, bias))


def test_a_weight_of_another_precision_is_refused_as_torch_does() -> None:
    x, weight, bias, _ = problem((900,), 64, 64)
    with pytest.raises(RuntimeError, match="dtype"):
        linear(x, weight.double(), bias.double())


def test_torchs_compiler_takes_it() -> None:
    torch.manual_seed(0)
    layer = Linear(64, 64)
    x = torch.randn(600, 64, requires_grad=True)

    def result(call) -> tuple[Tensor, ...]:
        y = call(x)
        return y, *torch.autograd.grad(y.square().sum(), (x, layer.weight, layer.bias))

    compiled = torch.compile(layer, dynamic=False, backend="aot_eager")
    for own, other in zip(result(compiled), result(layer), strict=True):
        torch.testing.assert_close(own, other)


def test_without_onednn_torch_serves(monkeypatch) -> None:
    monkeypatch.setattr(module, "_BY_ONEDNN", None)
    x, weight, bias, _ = problem((900,), 64, 64)
    assert torch.equal(linear(x, weight, bias), functional.linear(x, weight, bias))


def test_biases_of_any_layout_are_read_as_torch_does() -> None:
    x, weight, bias, _ = problem((900,), 64, 96)
    strided = torch.stack([bias] * 4, -1)[:, 1]
    for other in (strided, bias[:1], bias[:1].expand(96), bias[0]):
        torch.testing.assert_close(linear(x, weight, other), functional.linear(x, weight, other))


def test_forward_derivatives_and_transforms_are_not_lost() -> None:
    x, weight, bias, tangent = problem((900,), 64, 64)
    _, along = torch.func.jvp(lambda x: linear(x, weight, bias), (x,), (tangent,))
    torch.testing.assert_close(along, tangent @ weight.T, rtol=1e-3, atol=1e-4)
    with forward_ad.dual_level():
        y = linear(forward_ad.make_dual(x, tangent), weight, bias)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, along)
    leaf = x.clone().requires_grad_()
    y = linear(leaf, weight, bias)
    (grads,) = torch.autograd.grad(
        y, leaf, torch.stack([tangent, 2 * tangent]), is_grads_batched=True
    )
    torch.testing.assert_close(grads[1], 2 * tangent @ weight, rtol=1e-3, atol=1e-3)
