"""The compiled kernel of splines against the torch code that it stands for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from molsampler.compiled import SWITCH, UnavailableError
from molsampler.nn import splines

KINDS = [
    {"low": -3.0, "high": 3.0, "circular": False},
    {"low": 0.0, "high": 1.0, "circular": True},
]


@pytest.fixture(autouse=True)
def _needs_the_kernel() -> None:
    try:
        splines._kernel()
    except UnavailableError as error:
        pytest.skip(str(error))


def problem(bins: int, kind: dict, *, rows: int = 203) -> tuple[Tensor, ...]:
    """Numbers, some of them outside of an interval, free numbers, and weights of values and slopes."""
    random = torch.Generator().manual_seed(bins)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64)

    u = torch.rand((rows, 3), generator=random, dtype=torch.float64)
    if not kind["circular"]:
        u = 1.2 * u - 0.1
    x = kind["low"] + (kind["high"] - kind["low"]) * u
    numbers = splines.parameters(bins, circular=kind["circular"])
    return x, 1.2 * randn(rows, 3, numbers), randn(rows, 3), randn(rows, 3)


def answer(
    function: type, given: tuple[Tensor, ...], kind: dict, *, inverse: bool, dtype
) -> list[Tensor]:
    """Values, log slopes and both gradients, in float64."""
    x, free, by_y, by_slope = (each.to(dtype).clone() for each in given)
    leaves = x.requires_grad_(), free.requires_grad_()
    y, slope = function.apply(*leaves, kind["low"], kind["high"], kind["circular"], inverse)
    grads = torch.autograd.grad((y * by_y + slope * by_slope).sum(), leaves)
    return [each.detach().double() for each in (y, slope, *grads)]


@pytest.mark.parametrize("kind", KINDS, ids=["line", "circle"])
@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("bins", [2, 3, 8, 17])
def test_the_kernel_is_as_near_to_the_truth_as_torch_in_its_precision(kind, inverse, bins) -> None:
    given = problem(bins, kind)
    truth = answer(splines._Conditional, given, kind, inverse=inverse, dtype=torch.float64)
    kernel, torchs = (
        answer(function, given, kind, inverse=inverse, dtype=torch.float32)
        for function in (splines._Native, splines._Conditional)
    )
    for ours, theirs, exact in zip(kernel, torchs, truth, strict=True):
        # Narrow bins magnify rounding: what torch itself is off by, but for luck, bounds what is asked.
        scale = exact.abs().clamp(min=1)
        away, allowed = (((each - exact) / scale).abs().flatten() for each in (ours, theirs))
        for share in (0.5, 0.9, 0.99):
            assert float(away.quantile(share)) <= 3 * float(allowed.quantile(share)) + 1e-7
        assert float(away.max()) < 0.01


def test_numbers_outside_pass_and_what_is_not_a_number_stays_so() -> None:
    x = torch.tensor([[-4.0], [7.0], [float("nan")], [0.5]])
    free = torch.randn(4, 1, splines.parameters(5, circular=False))
    y, slope = splines.conditional(x, free, **KINDS[0])
    assert torch.equal(y[:2], x[:2])
    assert torch.equal(slope[:2], torch.zeros(2, 1))
    assert bool(y[2].isnan())
    assert bool(y[3].isfinite())
    # So does what is set by it.
    free[3, 0, 1] = float("nan")
    for inverse in (False, True):
        y, slope = splines.conditional(x, free, **KINDS[0], inverse=inverse)
        assert bool(y[3].isnan())
        assert bool(slope[3].isnan())
        assert bool(slope[:2].isfinite().all())


def test_no_rows_and_shapes_that_do_not_fit() -> None:
    x = torch.zeros(0, 3, requires_grad=True)
    free = torch.zeros(0, 3, splines.parameters(4, circular=False), requires_grad=True)
    y, slope = splines.conditional(x, free, **KINDS[0])
    grads = torch.autograd.grad(y.sum() + slope.sum(), (x, free))
    assert [each.shape for each in grads] == [x.shape, free.shape]
    for bad in (torch.zeros(4, 3, 11), torch.zeros(5, 3, 12)):
        with pytest.raises(ValueError, match="cannot go through"):
            splines.conditional(torch.zeros(5, 3), bad, **KINDS[0])


def test_threads_and_neighbours_do_not_change_a_number() -> None:
    x, free, *_ = problem(8, KINDS[0], rows=6000)
    x, free = x.float(), free.float()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        shared = splines.conditional(x, free, **KINDS[0])
        torch.set_num_threads(1)
        alone = splines.conditional(x, free, **KINDS[0])
        part = splines.conditional(x[5:10], free[5:10], **KINDS[0])
    finally:
        torch.set_num_threads(before)
    for one, other, some in zip(shared, alone, part, strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one[5:10], some)


def test_free_numbers_that_need_no_gradient_get_none() -> None:
    x, free, *_ = (each.float() for each in problem(4, KINDS[1]))
    y, slope = splines.conditional(x.requires_grad_(), free, **KINDS[1])
    (grad,) = torch.autograd.grad(y.sum() + slope.sum(), x)
    assert bool(grad.isfinite().all())


def test_what_serves_and_what_does_not() -> None:
    x, free = torch.zeros(3), torch.zeros(3, 5)
    assert splines._serves(x, free)
    assert not splines._serves(x.double(), free.double())
    code = (
        "import torch; from molsampler.nn import splines; "
        "print(splines._serves(torch.zeros(3), torch.zeros(3, 5)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, SWITCH: "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False"]
