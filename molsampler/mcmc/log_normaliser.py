r"""log Z of a target by annealed importance sampling from a Gaussian as wide as given configurations.

A route to log Z that owes nothing to a generator: given configurations set the centre and the widths of the
start alone, and :math:`E[w] = Z / Z_0` holds for any. It is good for what its path reaches. Coordinates run
in units of their widths; those that go round start uniform, on a mean-free space all have one width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..space import Space
from ..target import Target
from . import adapt, ais, mala

#: Chains and steps that tune the step size half way along the path.
PILOT = (32, 60)


def annealing_weights(
    target: Target, x: Tensor, *, n: int, levels: int, generator: torch.Generator
) -> Tensor:
    """Log weights ``(n,)``, float64, whose mean weight is Z in orthonormal coordinates of the space.

    ``x`` ``(m, n, d)`` are configurations about as wide as the target. One Metropolis-adjusted Langevin step
    follows each of ``levels`` levels of the geometric path but the last: :func:`evaluations` energies.
    """
    space = target.space
    x = space.project(x.double())
    one_width = space.dof < x[0].numel()
    if one_width:
        centre = torch.zeros_like(x[0])
        scale = (x.square().sum(dim=(-2, -1)).mean() / space.dof).sqrt().expand_as(centre)
    else:
        round_ = torch.tensor(space.circular, dtype=torch.long, device=x.device)
        centre = x.mean(0).index_fill(0, round_, 0.0)
        scale = x.std(0).index_fill(0, round_, 1.0).clamp(min=1e-12)
    start, end = _Start(space), _InUnits(target, centre, scale)
    like = torch.empty(0, dtype=torch.float64, device=x.device)
    # One step size for all levels, tuned half way on chains of their own.
    chains, steps = PILOT
    middle = ais.Path(start, end, 0.5)
    pilot = mala.init(start.sample(chains, generator=generator, like=like), middle)
    _, step = adapt.adapt_step_size(pilot, middle, steps=steps, step_size=0.02, generator=generator)
    y = start.sample(n, generator=generator, like=like)
    state = ais.run(y, start, end, levels=levels, step_size=step, generator=generator)
    volume = space.dof * float(scale.log().mean()) + start.log_normaliser
    return state.log_weight + volume


def evaluations(n: int, levels: int) -> int:
    """Energies that :func:`annealing_weights` takes, its pilot included."""
    chains, steps = PILOT
    return n * levels + chains * (steps + 1)


class _Start:
    """Unit Gaussian on a space, uniform in coordinates that go round."""

    def __init__(self, space: Space):
        self.space = space
        size = space.shape[1]
        turning = len(space.circular) * size
        self.log_normaliser = (0.5 * (space.dof - turning) + turning) * math.log(2 * math.pi)

    def energy_and_score(self, y: Tensor) -> tuple[Tensor, Tensor]:
        still = y.clone()
        still[..., list(self.space.circular), :] = 0.0
        return 0.5 * still.square().sum(dim=(-2, -1)), -still

    def sample(self, n: int, *, generator: torch.Generator, like: Tensor) -> Tensor:
        y = self.space.randn(n, generator=generator, like=like)
        where = list(self.space.circular)
        turns = torch.rand(
            n, len(where), y.shape[-1], generator=generator, dtype=y.dtype, device=y.device
        )
        y[..., where, :] = (2 * turns - 1) * math.pi
        return y


class _InUnits:
    """A target in coordinates that are counted from a centre, in units of their scales."""

    def __init__(self, target: Target, centre: Tensor, scale: Tensor):
        self.target, self.centre, self.scale = target, centre, scale
        self.space = target.space

    def energy_and_score(self, y: Tensor) -> tuple[Tensor, Tensor]:
        energy, score = self.target.energy_and_score(self.centre + self.scale * y)
        return energy.double(), score * self.scale
