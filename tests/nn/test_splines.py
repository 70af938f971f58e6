"""Rational-quadratic splines: laws of the map, its inverse, slopes and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from molsampler.nn import splines

LINE = {"low": -3.0, "high": 3.0, "circular": False}
CIRCLE = {"low": 0.0, "high": 1.0, "circular": True}
KINDS = pytest.mark.parametrize("kind", [LINE, CIRCLE], ids=["line", "circle"])


def free(rows: int, bins: int, *, circular: bool, size: float = 1.5, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    shape = (rows, splines.parameters(bins, circular=circular))
    return size * torch.randn(shape, generator=random, dtype=torch.float64)


def inside(rows: int, kind: dict, seed: int = 1) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    u = torch.rand(rows, generator=random, dtype=torch.float64)
    return kind["low"] + (kind["high"] - kind["low"]) * u


@KINDS
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_there_and_back(kind, dtype, tolerance) -> None:
    x = inside(4000, kind).to(dtype)
    parameters = free(4000, 8, circular=kind["circular"], size=1.0).to(dtype)
    y, up = splines.conditional(x, parameters, **kind)
    back, down = splines.conditional(y, parameters, **kind, inverse=True)
    # An error in y grows by the slope of the inverse.
    steep = torch.exp(-up).clamp(min=1)
    assert float(((back - x).abs() / steep).max()) < tolerance
    assert float(((up + down).abs() / steep).max()) < 100 * tolerance
    assert bool(((y >= kind["low"]) & (y <= kind["high"])).all())


@KINDS
@pytest.mark.parametrize("inverse", [False, True])
def test_the_log_slope_is_that_of_the_map(kind, inverse) -> None:
    x = inside(200, kind).requires_grad_()
    parameters = free(200, 6, circular=kind["circular"])
    y, log_slope = splines.conditional(x, parameters, **kind, inverse=inverse)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope, slope.log())
    assert float(slope.min()) > 0


@KINDS
@pytest.mark.parametrize("inverse", [False, True])
def test_the_backward_pass_is_the_gradient(kind, inverse) -> None:
    x = inside(12, kind)
    x[:2] = torch.tensor([-4.0, 5.0]) if not kind["circular"] else x[:2]
    x.requires_grad_()
    parameters = free(12, 5, circular=kind["circular"]).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: splines.conditional(a, b, **kind, inverse=inverse), (x, parameters)
    )


@KINDS
@pytest.mark.parametrize("inverse", [False, True])
def test_both_forms_are_one_map(kind, inverse) -> None:
    x = inside(50, kind).requires_grad_()
    parameters = free(50, 7, circular=kind["circular"]).requires_grad_()
    table = splines.knots(parameters, **kind)
    first = splines.through(x[None], table, inverse=inverse)
    second = splines.conditional(x, parameters, **kind, inverse=inverse)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one[0], other)
    gradients = [
        torch.autograd.grad((y * y).sum() + slope.sum(), (x, parameters))
        for y, slope in (first, second)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@KINDS
def test_zero_is_the_identity_and_beyond_the_ends_nothing_moves(kind) -> None:
    x = inside(100, kind)
    nothing = torch.zeros(100, splines.parameters(8, circular=kind["circular"])).double()
    y, log_slope = splines.conditional(x, nothing, **kind)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_slope, torch.zeros_like(x))
    if kind["circular"]:
        return
    far = torch.tensor([-7.0, 4.0], dtype=torch.float64)
    y, log_slope = splines.conditional(far, free(2, 8, circular=False), **kind)
    assert torch.equal(y, far)
    assert torch.equal(log_slope, torch.zeros_like(far))


def test_slopes_meet_where_the_circle_closes() -> None:
    parameters = free(20, 6, circular=True)
    ends = torch.full((20,), 1e-9, dtype=torch.float64)
    _, first = splines.conditional(ends, parameters, **CIRCLE)
    _, last = splines.conditional(1 - ends, parameters, **CIRCLE)
    torch.testing.assert_close(first, last, rtol=0, atol=1e-5)
    # Negative control: inside, slopes differ from those at the ends.
    _, middle = splines.conditional(0.5 + 0 * ends, parameters, **CIRCLE)
    assert float((middle - first).abs().max()) > 0.1


@KINDS
def test_free_numbers_of_knots_give_them_back(kind) -> None:
    table = splines.knots(free(30, 9, circular=kind["circular"], size=0.7), **kind)
    numbers = splines.free_of(*table, circular=kind["circular"])
    for one, other in zip(table, splines.knots(numbers, **kind), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
