r"""Linear layers, on a processor by the faster of the two libraries that torch multiplies with.

:math:`y = x W^\top + b` of ``x (*, inputs)``. In single precision torch takes MKL, which on processors that
Intel did not make stays at two fifths of what oneDNN, its other library, computes there; on Intel's the two
are alike. oneDNN takes longer to start, so small products are left to torch. Values, precision and parameters
are those of :class:`torch.nn.Linear`; sums may be added up in another order, those over rows in one that
depends on the number of threads.
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

#: Multiplications from which on oneDNN is faster in spite of its start, here some five microseconds.
_LEAST = 2**20

#: Its product. Not part of torch's public interface: where it is missing torch's own choice serves.
_BY_ONEDNN: Any = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and platform.machine() in ("x86_64", "AMD64")
    else None
)


class Linear(nn.Linear):
    """:class:`torch.nn.Linear`, see the module."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for ``(*, inputs)``, ``(outputs, inputs)`` and ``(outputs,)``, with gradients
    of any order."""
    if not _faster(x, weight, bias):
        return functional.linear(x, weight, bias)
    flat = x.flatten(0, -2)
    given = (x, weight, bias)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in given):
        y: Tensor = _Linear.apply(flat, weight, bias)  # type: ignore[no-untyped-call]
    else:
        y = _multiplied(flat, weight, bias)
    return y.reshape(*x.shape[:-1], len(weight))


def plain(*tensors: Tensor | None) -> bool:
    """Whether tensors are of single precision on the processor, and nobody has to see what is done to them:
    no autocast, forward derivative or transform of ``torch.func``."""
    given = [each for each in tensors if each is not None]
    if any(each.device.type != "cpu" or each.dtype != torch.float32 for each in given):
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    if torch.compiler.is_compiling():
        return True
    seen = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
    # Several gradients at a time come as tensors of an older kind.
    return not seen and not any(map(torch._C._functorch.is_legacy_batchedtensor, given))


def _faster(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if _BY_ONEDNN is None or x.dim() < 2 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        return False
    # oneDNN takes for granted that it is a row of numbers.
    usual = bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous())
    return usual and x.numel() * len(weight) >= _LEAST and plain(x, weight, bias)


class _Linear(torch.autograd.Function):
    """oneDNN's product, which by itself has no gradient, of ``x (rows, inputs)``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiplied(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            linear(gradient, weight.T) if of_x else None,
            _of_weight(gradient, x) if of_weight else None,
            gradient.sum(0) if of_bias else None,
        )


def _of_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """Products of ``(rows, outputs)`` and ``(rows, inputs)`` summed over rows; the wider one is packed."""
    if x.shape[1] < gradient.shape[1]:
        return linear(x.T, gradient.T).T
    return linear(gradient.T, x.T)


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    function = _opaque if torch.compiler.is_compiling() else _by_onednn
    y: Tensor = function(x, weight, bias)
    return y


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = _BY_ONEDNN(x, weight, bias, "none", [], "")
    return y


@torch.library.custom_op("molsampler::linear", mutates_args=())
def _opaque(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same, unseen by torch's compiler, which takes the weights of this product for constants."""
    return _by_onednn(x, weight, bias)


@_opaque.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(weight))
