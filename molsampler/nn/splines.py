r"""Monotone rational-quadratic splines, on an interval with straight tails or on a circle.

Between knots :math:`(x_k, y_k)` with slopes :math:`\delta_k`, and with :math:`s_k = (y_{k+1} - y_k) / w_k`,
:math:`w_k = x_{k+1} - x_k` and :math:`\xi = (x - x_k) / w_k`,

.. math:: y = y_k + \frac{(y_{k+1} - y_k)\,(s_k \xi^2 + \delta_k\, \xi (1 - \xi))}
                         {s_k + (\delta_{k+1} + \delta_k - 2 s_k)\, \xi (1 - \xi)},

which has a closed inverse and derivative (Gregory & Delbourgo 1982; Durkan et al., arXiv 1906.04032). On an
interval the map is the identity beyond the ends, where slopes are one; on a circle first and last slope are
one number, so that the map is smooth there too, and a shift turns it (Rezende et al., arXiv 2002.02428).

Where each number has a spline of its own, as in couplings, a compiled kernel (``splines.cpp``) serves
float32 on the processor; by torch, which serves the rest and machines without a compiler, it is a hundred
small operations.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..compiled import UnavailableError, library, require_native, shared

#: Least share of an interval that a bin gets, and least slope.
_LEAST_BIN, _LEAST_SLOPE = 1e-4, 1e-4

#: Bins from which on softmax over the last dimension is fast, a vector register of them.
_FEW = 16

#: What a free parameter of zero adds to, so that its slope is one.
_UNIT = math.log(math.expm1(1.0 - _LEAST_SLOPE))


_SOURCE = Path(__file__).with_name("splines.cpp")

#: Numbers below which one thread takes all.
_NUMBERS_PER_THREAD = 4096


class Knots(NamedTuple):
    """Splines of ``k`` numbers: places, values and slopes ``(k, bins + 1)``."""

    x: Tensor
    y: Tensor
    slope: Tensor


def parameters(bins: int, *, circular: bool) -> int:
    """Free numbers that a spline of ``bins`` bins takes."""
    return 3 * bins if circular else 3 * bins - 1


def knots(free: Tensor, *, low: float, high: float, circular: bool) -> Knots:
    """The splines of free numbers ``(k, parameters(bins))`` from ``[low, high]`` onto itself.

    All numbers zero give the identity.
    """
    bins = (free.shape[-1] + 1) // 3
    share_x, share_y, steep = _parts(free, bins)
    slope = _LEAST_SLOPE + functional.softplus(steep + _UNIT)
    if circular:
        slope = torch.cat([slope, slope[:, :1]], -1)
    else:
        slope = functional.pad(slope, (1, 1), value=1.0)

    def ends(share: Tensor) -> Tensor:
        inner = low + (high - low) * share[:, :-1].cumsum(-1)
        edge = inner.new_ones(len(inner), 1)
        return torch.cat([low * edge, inner, high * edge], -1)

    return Knots(ends(share_x), ends(share_y), slope)


def through(x: Tensor, spline: Knots, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Numbers ``(b, k)`` through the spline of each column, or back, and the log slope of that map."""
    ends = spline.y if inverse else spline.x
    low, high = (float(end) for end in ends[0, [0, -1]].detach())
    inside, kept = _kept(x, low, high)
    index = torch.searchsorted(ends[:, 1:-1].detach().contiguous(), kept.T.contiguous(), right=True)
    corners = [each.gather(1, index + k).T for each in spline for k in (0, 1)]
    return _within(kept, x, inside, *corners, inverse=inverse)


def conditional(
    x: Tensor, free: Tensor, *, low: float, high: float, circular: bool, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Numbers ``(*b,)`` each through a spline of its own, of free numbers ``(*b, parameters(bins))``,
    or back, and the log slope of that map.

    What :func:`knots` and :func:`through` do, without tensors of ``(*b, bins)`` in the graph: the backward
    pass is written out.
    """
    count = free.shape[-1]
    if free.shape[:-1] != x.shape or count != parameters((count + 1) // 3, circular=circular):
        raise ValueError(
            f"numbers of shape {tuple(x.shape)} cannot go through splines of shape {tuple(free.shape)}"
        )
    function = _Native if _serves(x, free) else _Conditional
    result: tuple[Tensor, Tensor] = function.apply(  # type: ignore[no-untyped-call]
        x, free, low, high, circular, inverse
    )
    return result


class _Settings(ctypes.Structure):
    _fields_ = [
        ("bins", ctypes.c_long),
        ("circular", ctypes.c_bool),
        ("inverse", ctypes.c_bool),
        ("low", ctypes.c_float),
        ("high", ctypes.c_float),
        ("least_bin", ctypes.c_float),
        ("least_slope", ctypes.c_float),
        ("unit", ctypes.c_float),
    ]


def _serves(x: Tensor, free: Tensor) -> bool:
    """Whether the kernel can be had, and takes such numbers."""
    single = x.dtype == free.dtype == torch.float32
    if not single or x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    try:
        require_native()
        _kernel()
    except UnavailableError:
        return False
    return True


@cache
def _kernel() -> ctypes.CDLL:
    made = library(_SOURCE)
    for function, tensors in ((made.spline_forward, 4), (made.spline_backward, 6)):
        function.argtypes = [
            *[ctypes.c_void_p] * tensors,
            ctypes.c_long,
            ctypes.POINTER(_Settings),
        ]
        function.restype = None
    return made


def _called(function: Callable[..., None], tensors: tuple[Tensor | None, ...], how: Any) -> None:
    """Have the kernel fill the last of ``tensors``, whose rows are as many, threads sharing them."""
    rows = next(len(each) for each in tensors if each is not None)

    def call(start: int, stop: int) -> None:
        places = (None if each is None else each[start:].data_ptr() for each in tensors)
        function(*places, stop - start, ctypes.byref(how))

    threads = max(min(torch.get_num_threads(), rows // _NUMBERS_PER_THREAD), 1)
    shared(call, rows, threads=threads)


class _Native(torch.autograd.Function):
    """:class:`_Conditional` by the kernel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, free: Tensor, low: float, high: float, circular: bool, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        bins = (free.shape[-1] + 1) // 3
        how = _Settings(bins, circular, inverse, low, high, _LEAST_BIN, _LEAST_SLOPE, _UNIT)
        flat, own = x.flatten().contiguous(), free.reshape(-1, free.shape[-1]).contiguous()
        y, slope = torch.empty_like(flat), torch.empty_like(flat)
        _called(_kernel().spline_forward, (flat, own, y, slope), how)
        ctx.save_for_backward(flat, own)
        ctx.how = how
        return y.view(x.shape), slope.view(x.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_slope: Tensor) -> tuple[Tensor | None, ...]:
        flat, own = ctx.saved_tensors
        grads = (each.flatten().contiguous() for each in (grad_y, grad_slope))
        grad_x = torch.empty_like(flat)
        grad_free = torch.empty_like(own) if ctx.needs_input_grad[1] else None
        _called(_kernel().spline_backward, (flat, own, *grads, grad_x, grad_free), ctx.how)
        shape = grad_y.shape
        back = None if grad_free is None else grad_free.view(*shape, own.shape[-1])
        return grad_x.view(shape), back, None, None, None, None


class _Conditional(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, free: Tensor, low: float, high: float, circular: bool, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        bins = (free.shape[-1] + 1) // 3
        share_x, share_y, steep = _parts(free, bins)
        ends_x, ends_y = (share.cumsum(-1) for share in (share_x, share_y))
        inside, kept = _kept(x, low, high)
        along = ((kept - low) / (high - low))[..., None]
        index = (along >= (ends_y if inverse else ends_x)[..., :-1]).sum(-1, keepdim=True)

        def corner(ends: Tensor) -> tuple[Tensor, Tensor]:
            above = ends.gather(-1, index)[..., 0]
            below = ends.gather(-1, (index - 1).clamp(min=0))[..., 0]
            below = torch.where(index[..., 0] == 0, 0.0, below)
            above = torch.where(index[..., 0] == bins - 1, 1.0, above)
            return low + (high - low) * below, low + (high - low) * above

        # Slopes stand at inner knots; on a circle the first is that of both ends.
        first = index if circular else (index - 1).clamp(min=0)
        second = (index + 1).remainder(bins) if circular else index.clamp(max=bins - 2)
        raw0, raw1 = steep.gather(-1, first)[..., 0], steep.gather(-1, second)[..., 0]
        corners = (*corner(ends_x), *corner(ends_y), raw0, raw1)
        ctx.save_for_backward(x, share_x, share_y, index, first, second, *corners)
        ctx.settings = (low, high, circular, inverse)
        return _between(x, inside, kept, index[..., 0], bins, corners, circular, inverse)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_slope: Tensor) -> tuple[Tensor | None, ...]:
        x, share_x, share_y, index, first, second, *corners = ctx.saved_tensors
        low, high, circular, inverse = ctx.settings
        bins = share_x.shape[-1]
        with torch.enable_grad():
            leaves = [each.detach().requires_grad_() for each in (x, *corners)]
            inside, kept = _kept(leaves[0], low, high)
            out = _between(
                leaves[0], inside, kept, index[..., 0], bins, tuple(leaves[1:]), circular, inverse
            )
            grads = torch.autograd.grad(out, leaves, (grad_y, grad_slope))
        grad_x, *rest = grads
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None, None, None
        place = torch.arange(bins, device=x.device)
        before, upto = place < index, place <= index
        grad_free = x.new_zeros(*x.shape, bins + bins + (bins if circular else bins - 1))
        scale = (high - low) * (1.0 - _LEAST_BIN * bins)
        for k, share in enumerate((share_x, share_y)):
            # d(end) / d(share) is one for the bins before it; the ends of the interval stand fast.
            gone = torch.where(index[..., 0] == bins - 1, 0.0, rest[2 * k + 1])
            pull = scale * (rest[2 * k][..., None] * before + gone[..., None] * upto)
            soft = (share - _LEAST_BIN) / (1.0 - _LEAST_BIN * bins)
            grad_free[..., k * bins : (k + 1) * bins] = soft * (
                pull - (soft * pull).sum(-1, keepdim=True)
            )
        steep = grad_free[..., 2 * bins :]
        steep.scatter_add_(-1, first, rest[4][..., None])
        steep.scatter_add_(-1, second, rest[5][..., None])
        return grad_x, grad_free, None, None, None, None


Corners = tuple[Tensor, ...]


def _between(
    x: Tensor,
    inside: Tensor,
    kept: Tensor,
    index: Tensor,
    bins: int,
    corners: Corners,
    circular: bool,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """:func:`_within` of slopes that are still free numbers."""
    x0, x1, y0, y1, raw0, raw1 = corners
    d0, d1 = (_LEAST_SLOPE + functional.softplus(raw + _UNIT) for raw in (raw0, raw1))
    if not circular:
        d0 = torch.where(index == 0, 1.0, d0)
        d1 = torch.where(index == bins - 1, 1.0, d1)
    return _within(kept, x, inside, x0, x1, y0, y1, d0, d1, inverse=inverse)


def _parts(free: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shares of the interval along x and y, and what slopes come from."""

    def share(part: Tensor) -> Tensor:
        return _LEAST_BIN + (1.0 - _LEAST_BIN * bins) * _softmax(part)

    return share(free[..., :bins]), share(free[..., bins : 2 * bins]), free[..., 2 * bins :]


def _softmax(part: Tensor) -> Tensor:
    """Softmax over the last dimension. Over few numbers that lie side by side torch takes them one by one, at
    ten times the cost of having the bins first."""
    if part.shape[-1] >= _FEW:
        return torch.softmax(part, -1)
    return torch.softmax(part.movedim(-1, 0).contiguous(), 0).movedim(0, -1)


def _kept(x: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Whether numbers lie inside the interval, and the numbers, those outside replaced."""
    inside = (x >= low) & (x <= high)
    return inside, torch.where(inside, x, 0.5 * (low + high))


def _within(
    at: Tensor,
    outside: Tensor,
    inside: Tensor,
    x0: Tensor,
    x1: Tensor,
    y0: Tensor,
    y1: Tensor,
    d0: Tensor,
    d1: Tensor,
    *,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    """The map of one bin at each ``at``, or its inverse; ``outside`` as it is where not ``inside``."""
    width, rise = x1 - x0, y1 - y0
    s = rise / width
    bend = d1 + d0 - 2 * s
    if inverse:
        up = (at - y0) * bend
        a = rise * (s - d0) + up
        b = rise * d0 - up
        c = -s * (at - y0)
        # This form of the root loses no digits to cancellation.
        xi = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
    else:
        xi = (at - x0) / width
    across = xi * (1 - xi)
    below = s + bend * across
    log_slope = (
        s.square() * (d1 * xi.square() + 2 * s * across + d0 * (1 - xi).square()) / below.square()
    ).log()
    if inverse:
        return (
            torch.where(inside, x0 + xi * width, outside),
            torch.where(inside, -log_slope, 0.0),
        )
    y = y0 + rise * (s * xi.square() + d0 * across) / below
    return torch.where(inside, y, outside), torch.where(inside, log_slope, 0.0)


def free_of(x: Tensor, y: Tensor, slope: Tensor, *, circular: bool) -> Tensor:
    """Free numbers of the spline through knots ``(*b, bins + 1)``, the inverse of :func:`knots`.

    Bins narrower and slopes lower than a spline can have become the least that it can have.
    """

    def shares(ends: Tensor) -> Tensor:
        bins = ends.shape[-1] - 1
        share = (ends.diff(dim=-1) / (ends[..., -1:] - ends[..., :1]) - _LEAST_BIN).clamp(min=1e-7)
        return (share / (1.0 - _LEAST_BIN * bins)).log()

    inner = slope[..., :-1] if circular else slope[..., 1:-1]
    steep = (inner - _LEAST_SLOPE).clamp(min=1e-6)
    # The inverse of softplus, in a form that large slopes do not overflow.
    free = steep + torch.log(-torch.expm1(-steep)) - _UNIT
    return torch.cat([shares(x), shares(y), free], -1)
