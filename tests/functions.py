"""Systems from a function of positions, for tests of what may be sampled and what not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from molsampler.space import Euclidean, MeanFree
from molsampler.target import System


class Function(System):
    """u(x) of positions ``(b, n, d)``; the score is the derivative by torch, times ``sign``."""

    concurrent = True

    def __init__(
        self,
        u: Callable[[Tensor], Tensor],
        n: int = 1,
        d: int = 2,
        *,
        mean_free: bool = False,
        sign: float = 1.0,
    ):
        self.name, self.u, self.sign = "function", u, sign
        self.space = MeanFree(n, d) if mean_free else Euclidean(n, d)
        self.invariant = mean_free

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            u = self.u(x)
            (gradient,) = torch.autograd.grad(u.sum(), x)
        return u.detach(), -self.sign * gradient


def square(x: Tensor) -> Tensor:
    """The sum of squares of each configuration."""
    return x.square().sum((1, 2))


def channel(x: Tensor) -> Tensor:
    """A Gaussian that falls without bound in a narrow cone of ten dimensions, which no probe enters."""
    axis = torch.arange(1.0, 11.0).to(x)
    along = x.flatten(1) @ (axis / axis.norm())
    return 0.5 * square(x) - 5 * torch.relu(along - 0.6 * x.flatten(1).norm(dim=1)).pow(4)
