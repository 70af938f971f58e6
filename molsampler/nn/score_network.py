"""Score network of the DiKL paper: the output of a body is the score itself, the level a whole number."""

from __future__ import annotations

from torch import Tensor, nn

from ..space import Space
from .bodies.base import Body


class ScoreNetwork(nn.Module):
    """Diffused score at ``x_t`` ``(b, n, d)`` of noise levels ``(b,)``, without preconditioning."""

    def __init__(self, config: Body, space: Space):
        super().__init__()
        self.space = space
        self.body = config.build(space, 1, None)

    def forward(self, x_t: Tensor, level: Tensor) -> Tensor:
        features = level.to(x_t)[:, None, None].expand(-1, x_t.shape[1], 1)
        return self.space.project(self.body(x_t, features))
