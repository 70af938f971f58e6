r"""Direct generator of the DiKL paper's code: the output of a network of Gaussian noise is the sample.

:math:`x = F_\theta(z)`, :math:`z` standard normal on the space; nothing is added to it, and no energy is
asked for (arXiv 2410.12456, released code).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal, Self

import torch
from torch import Tensor

from ...molecule.molecule import Molecule
from ...space import Space
from ...target import Target
from ..bodies import AnyBody, Body, PlainMLPBody
from .base import Draw, Generator, GeneratorConfig, Sampling


class DirectConfig(GeneratorConfig):
    """A :class:`Direct`."""

    kind: Literal["direct"] = "direct"
    body: AnyBody = PlainMLPBody()

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.body,)

    def build(
        self, space: Space, *, molecule: Molecule | None = None, sampling: Sampling | None = None
    ) -> Direct:
        return Direct(self, sampling or Sampling(), space, molecule)


class Direct(Generator):
    """Network of Gaussian noise."""

    config: DirectConfig

    def __init__(
        self, config: DirectConfig, sampling: Sampling, space: Space, molecule: Molecule | None
    ):
        super().__init__(config, sampling, space)
        self.body = config.body.build(space, 1, molecule)
        self.mirror_symmetric = config.body.mirror_symmetric
        self._run: Callable[[Tensor, Tensor], Tensor] | None = None

    def compiled(self) -> Self:
        twin = copy.copy(self)
        twin.__dict__["_run"] = torch.compile(self.body, dynamic=False)
        return twin

    def draw(
        self,
        n: int,
        target: Target,
        *,
        context: Tensor | None = None,
        generator: torch.Generator | None,
    ) -> Draw:
        self.refuse_context(context)
        like = next(self.parameters())
        z = self.space.randn(n, generator=generator, like=like)
        features = torch.ones(n, self.space.shape[0], 1, dtype=like.dtype, device=like.device)
        body = self.body if self._run is None else self._run
        return Draw(self.space.project(body(z, features)), None, 0)
