r"""Optimisers of networks: Adam, and orthogonalised momentum for their matrices.

Momentum of the gradient of a weight matrix has a few large singular values and many small ones, along which
Adam hardly moves. :class:`Muon` (K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks",
2024) moves along all of them alike,

.. math:: M \leftarrow \mu M + G, \quad W \leftarrow W - c\,\eta \sqrt{\max(m, n)}\; U V^T
          \quad\text{for}\quad G + \mu M = U \Sigma V^T,

with the factor of Liu et al. (arXiv 2502.16982), by which entries of a full matrix move about as far as
Adam's do at the same rate. UV^T is found by five iterations of an odd polynomial of fifth degree, which bring
every singular value near one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..nn.readout import Readout

OptimiserName = Literal["adam", "muon"]

#: Matrices with a shorter side than this are left to Adam: heads, columns of few features.
_LEAST_SIDE = 8

_MOMENTUM = 0.95

#: The constant c above.
_FACTOR = 1.2

#: Of x, x^3 and x^5; steep at zero, between .7 and 1.2 after five times.
_POLYNOMIAL = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5

#: Norm below which momentum is none: what is left of a gradient that has vanished moves nothing.
_LEAST_SIZE = 1e-10


def optimiser_of(
    name: OptimiserName, network: nn.Module, *, lr: float, betas: tuple[float, float] = (0.9, 0.99)
) -> torch.optim.Optimizer:
    """The optimiser of that name for the parameters of a network, ``betas`` those of Adam."""
    if name == "muon":
        return Muon(network, lr=lr, betas=betas)
    # Fused: one call for all parameters, where the loop over them would take longer than their arithmetic.
    return torch.optim.Adam(network.parameters(), lr=lr, betas=betas, fused=True)


class Muon(torch.optim.Optimizer):
    """See the module. The weights of a network's linear layers are matrices, but those of a
    :class:`~molsampler.nn.readout.Readout`; the rest is left to Adam, at the same rate."""

    def __init__(self, network: nn.Module, *, lr: float, betas: tuple[float, float]):
        matrices = {
            id(each.weight)
            for each in network.modules()
            if isinstance(each, nn.Linear)
            and not isinstance(each, Readout)
            and min(each.weight.shape) >= _LEAST_SIDE
        }
        groups: list[dict[str, Any]] = []
        for of_matrices in (True, False):
            chosen = [
                each for each in network.parameters() if (id(each) in matrices) is of_matrices
            ]
            if chosen:
                groups.append({"params": chosen, "matrices": of_matrices})
        super().__init__(groups, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if group["matrices"]:
                    alike[parameter.shape].append((parameter, _momentum(gradient, state)))
                else:
                    _adam(parameter, gradient, state, group["lr"], group["betas"])
            for shape, pairs in alike.items():
                moved = orthogonal(torch.stack([momentum for _, momentum in pairs]))
                moved *= _FACTOR * group["lr"] * math.sqrt(max(shape))
                for (parameter, _), change in zip(pairs, moved, strict=True):
                    parameter -= change


def orthogonal(matrices: Tensor) -> Tensor:
    """U V^T of matrices U S V^T, ``(k, m, n)``, to a third of each singular value; nearly zero of matrices
    that vanish."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    size = torch.linalg.matrix_norm(x, keepdim=True)
    x = x / size.clamp(min=_LEAST_SIZE)
    first, third, fifth = _POLYNOMIAL
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = first * x + (third * square + fifth * (square @ square)) @ x
    found: Tensor = x.mT if tall else x
    return found


def _momentum(gradient: Tensor, state: dict[str, Any]) -> Tensor:
    """The gradient with momentum, taken where it will be (Nesterov)."""
    if not state:
        state["momentum"] = torch.zeros_like(gradient)
    momentum: Tensor = state["momentum"].mul_(_MOMENTUM).add_(gradient)
    return gradient.add(momentum, alpha=_MOMENTUM)


def _adam(
    parameter: Tensor,
    gradient: Tensor,
    state: dict[str, Any],
    lr: float,
    betas: tuple[float, float],
) -> None:
    if not state:
        state["step"] = torch.zeros(())
        state["exp_avg"] = torch.zeros_like(parameter)
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    state["step"] += 1
    first, second = (1 - beta ** float(state["step"]) for beta in betas)
    state["exp_avg"].lerp_(gradient, 1 - betas[0])
    state["exp_avg_sq"].lerp_(gradient.square(), 1 - betas[1])
    width = (state["exp_avg_sq"] / second).sqrt_().add_(1e-8)
    parameter.addcdiv_(state["exp_avg"], width, value=-lr / first)
