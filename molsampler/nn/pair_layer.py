"""One EGNN layer's work on pairs of particles, by a compiled kernel (``pair_layer.cpp``).

The equations are those of :mod:`molsampler.nn.bodies.egnn`. By torch every step of them is a tensor of all
pairs, written and read again; the kernel takes 32 configurations and one pair at a time, keeps what is
between positions and sums in the cache, and computes it again in the backward pass. It serves float32 on the
processor, up to three dimensions, widths that fill vector registers and layers without attention; torch
serves the rest.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..compiled import UnavailableError, library, require_native, shared
from .linear import plain

_SOURCE = Path(__file__).with_name("pair_layer.cpp")

#: Dimensions that it knows at most, and numbers in the least of vector registers.
DIMENSIONS, _LEAST_LANES = 3, 4

#: Pairs in all configurations below which one thread takes all.
_PAIRS_PER_THREAD = 1024


class Features(NamedTuple):
    """How a distance d is described: log(1 + d^2/range^2), radial functions exp(-gamma (d - c)^2) whose
    exponents stop at ``smallest``, and where asked for 1/(d + range/15); d^2 is ``epsilon`` larger."""

    centres: Tensor
    gamma: float
    range: float
    inverse: bool
    smallest: float
    epsilon: float


class Matrices(NamedTuple):
    """Weights of a layer: from features to messages, within messages with a bias, within a hidden layer of
    the head with a bias or None, and to the strength of a displacement."""

    edge: Tensor
    message: Tensor
    message_bias: Tensor
    hidden: Tensor | None
    hidden_bias: Tensor | None
    head: Tensor


#: Of ``x, first, second, extra, matrices`` what :func:`layer` returns.
ByTorch = Callable[
    [Tensor, Tensor, Tensor | None, Tensor | None, Matrices], tuple[Tensor, Tensor | None]
]

_LONG, _BOOL, _FLOAT = ctypes.c_long, ctypes.c_bool, ctypes.c_float


class _Settings(ctypes.Structure):
    _fields_ = [
        *(
            (name, _LONG)
            for name in ("particles", "dimensions", "batch", "width", "centres", "extra")
        ),
        *((name, _BOOL) for name in ("inverse", "ordered", "deep")),
        *((name, _FLOAT) for name in ("range", "gamma", "smallest", "epsilon")),
    ]


def _pointers(*names: str) -> type[ctypes.Structure]:
    fields = [(name, ctypes.c_void_p) for name in names]
    return type("_Pointers", (ctypes.Structure,), {"_fields_": fields})


_Inputs = _pointers("x", "first", "second", "extra", "centres", *Matrices._fields)
_Gradients = _pointers("by_moved", "by_aggregated", "x", "first", "second", "extra", "weights")


def serves(width: int, x: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernel can be had, and takes messages of that width, such positions ``(n, b, d)`` and all
    that goes with them."""
    shape = x.shape[-1] <= DIMENSIONS and x.numel() > 0
    return shape and not torch.compiler.is_compiling() and plain(x, *others) and available(width)


def available(width: int) -> bool:
    """Whether the kernel can be had for messages of that width."""
    if width % _LEAST_LANES:
        return False
    try:
        require_native()
        return width % int(_kernel().pair_layer_lanes()) == 0
    except UnavailableError:
        return False


def described() -> str:
    """The kernel of this machine in words."""
    try:
        require_native()
        return f"vectors of {_kernel().pair_layer_lanes()}"
    except UnavailableError:
        return "missing"


def layer(
    x: Tensor,
    first: Tensor,
    second: Tensor | None,
    extra: Tensor | None,
    features: Features,
    matrices: Matrices,
    *,
    aggregate: bool,
    by_torch: ByTorch,
) -> tuple[Tensor, Tensor | None]:
    """Sums over the pairs of each particle: of displacements ``(n, b, d)``, and of messages
    ``(n, b, width)`` where they are wanted.

    Positions ``x (n, b, d)``; what messages get of either particle, ``first`` and ``second (n, b, width)``,
    the same for both where there is no second: then pairs are unordered and messages belong to both; further
    features ``extra (pairs, b, k)``. ``by_torch`` computes the same where second
    derivatives are asked for.
    """
    given = (x, first, second, extra, *matrices)
    moved, sums = _Layer.apply(features, aggregate, by_torch, *given)  # type: ignore[no-untyped-call]
    return moved, sums if aggregate else None


@cache
def _kernel() -> ctypes.CDLL:
    made = library(_SOURCE)
    inputs, outputs = ctypes.POINTER(_Inputs), ctypes.c_void_p
    tail: list[Any] = [_LONG, _LONG, ctypes.POINTER(_Settings)]
    made.pair_layer_forward.argtypes = [inputs, outputs, outputs, *tail]
    made.pair_layer_backward.argtypes = [inputs, ctypes.POINTER(_Gradients), *tail]
    for function in (made.pair_layer_forward, made.pair_layer_backward):
        function.restype = None
    for function in (made.pair_layer_lanes, made.pair_layer_rows):
        function.restype = ctypes.c_long
    return made


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, features: Features, aggregate: bool, by_torch: ByTorch, *given: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.features, ctx.aggregate, ctx.by_torch = features, aggregate, by_torch
        ctx.save_for_backward(*given)
        how, inputs, kept = _laid_out(features, given)
        moved = torch.empty_like(kept["x"])
        sums = torch.zeros_like(kept["first"]) if aggregate else moved.new_empty(0)
        _call(_kernel().pair_layer_forward, how, inputs, _place(moved), _place(sums))
        return moved, sums

    @staticmethod
    def backward(ctx: Any, by_moved: Tensor, by_aggregated: Tensor) -> tuple[Tensor | None, ...]:
        given = ctx.saved_tensors
        asked = ctx.needs_input_grad[3:]
        sources = (by_moved, by_aggregated) if ctx.aggregate else (by_moved,)
        if torch.is_grad_enabled():
            return None, None, None, *_differentiably(ctx.by_torch, given, asked, sources)
        how, inputs, kept = _laid_out(ctx.features, given)
        found: dict[str, Tensor | None] = {
            "by_moved": by_moved.contiguous(),
            "by_aggregated": by_aggregated.contiguous() if ctx.aggregate else None,
            "x": torch.empty_like(kept["x"]),
            **{name: torch.zeros_like(kept[name]) for name in ("first", "second") if name in kept},
        }
        if how.extra:
            found["extra"] = torch.empty_like(kept["extra"])
        shapes = _shapes(given[4:])
        blocks = None
        if any(asked[4:]):
            count = -(-how.batch // _kernel().pair_layer_rows())
            blocks = found["weights"] = by_moved.new_zeros(count, sum(map(math.prod, shapes)))
        gradients = _Gradients(**{name: _place(tensor) for name, tensor in found.items()})
        _call(_kernel().pair_layer_backward, how, inputs, ctypes.byref(gradients))
        of_particles = map(found.get, ("x", "first", "second", "extra"))
        of_weights = [None] * len(shapes) if blocks is None else _parted(blocks, shapes, given[4:])
        return None, None, None, *of_particles, *of_weights


def _differentiably(
    by_torch: ByTorch,
    given: tuple[Tensor | None, ...],
    asked: tuple[bool, ...],
    sources: tuple[Tensor, ...],
) -> list[Tensor | None]:
    """Gradients by torch, with a graph of their own."""
    # By views: what is given may itself depend on positions, along a path that is not this function's.
    views = [None if each is None else each.view_as(each) for each in given]
    x, first, second, extra = views[:4]
    moved, sums = by_torch(
        cast(Tensor, x), cast(Tensor, first), second, extra, Matrices(*cast(Any, views[4:]))
    )
    out = [moved] if sums is None else [moved, sums]
    wanted = [index for index, needed in enumerate(asked) if needed and views[index] is not None]
    leaves = [cast(Tensor, views[index]) for index in wanted]
    grads = dict(
        zip(wanted, torch.autograd.grad(out, leaves, sources, create_graph=True), strict=True)
    )
    return [grads.get(index) for index in range(len(given))]


def _shapes(matrices: Sequence[Tensor | None]) -> list[tuple[int, ...]]:
    """Shapes in which the kernel leaves gradients: features, in whole registers, come first."""
    width, features = cast(Tensor, matrices[0]).shape
    lanes = _kernel().pair_layer_lanes()
    others = (() if each is None else tuple(each.shape) for each in matrices[1:])
    return [(-(-features // lanes) * lanes, width), *(shape or (0,) for shape in others)]


def _parted(
    blocks: Tensor, shapes: list[tuple[int, ...]], matrices: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Sums of blocks, of which there are as many whatever threads shared them, as gradients of matrices."""
    parts = torch.split(blocks.sum(0), [math.prod(shape) for shape in shapes])
    edge, *others = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
    features = cast(Tensor, matrices[0]).shape[1]
    kept = (
        part if each is not None else None for part, each in zip(others, matrices[1:], strict=True)
    )
    return [edge[:features].T, *kept]


def _laid_out(
    features: Features, given: Sequence[Tensor | None]
) -> tuple[_Settings, Any, dict[str, Tensor]]:
    """Settings, pointers, and what these point to."""
    names = ("x", "first", "second", "extra", *Matrices._fields)
    kept = {
        name: each.contiguous() for name, each in zip(names, given, strict=True) if each is not None
    }
    kept["centres"] = features.centres.contiguous()
    n, b, d = kept["x"].shape
    how = _Settings(
        *(n, d, b, kept["first"].shape[-1], len(features.centres)),
        kept["extra"].shape[-1] if "extra" in kept else 0,
        *(features.inverse, "second" in kept, "hidden" in kept),
        *(features.range, features.gamma, features.smallest, features.epsilon),
    )
    return how, _Inputs(**{name: _place(each) for name, each in kept.items()}), kept


def _place(tensor: Tensor | None) -> int | None:
    return tensor.data_ptr() or None if tensor is not None else None


def _call(function: Any, how: _Settings, inputs: Any, *outputs: Any) -> None:
    """Threads share the configurations, each whole blocks of them."""
    pairs = how.particles * (how.particles - 1) // (1 if how.ordered else 2)
    threads = max(min(torch.get_num_threads(), how.batch * pairs // _PAIRS_PER_THREAD), 1)

    def call(start: int, stop: int) -> None:
        function(ctypes.byref(inputs), *outputs, start, stop, ctypes.byref(how))

    shared(call, how.batch, threads=threads, multiple=_kernel().pair_layer_rows())
