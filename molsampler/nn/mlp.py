"""Residual multilayer perceptron for targets without particle symmetry (mixtures, many-well)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class MLP(nn.Module):
    """Positions ``(b, n, d)`` and conditioning ``(b, f)`` to a displacement ``(b, n, d)``."""

    def __init__(self, shape: tuple[int, int], features: int, *, width: int, layers: int):
        super().__init__()
        size = shape[0] * shape[1]
        self.embed = nn.Linear(size + features, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.out = nn.Linear(width, size)

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        h = self.embed(torch.cat([x.flatten(1), features], dim=-1))
        for norm, hidden in zip(self.norms, self.hidden, strict=True):
            h = h + functional.silu(hidden(norm(h)))
        out: Tensor = self.out(h)
        return out.reshape(x.shape)
