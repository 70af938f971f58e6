r"""log Z of a target by annealed importance sampling from a Gaussian as wide as given configurations.

A route to log Z that owes nothing to a generator: given configurations set the centre and the widths of the
start alone, and :math:`E[w] = Z / Z_0` holds for any. It is good for what its path reaches. Coordinates run
in units of their widths; those that go round start uniform, on a mean-free space all have one width.

Levels lie at :math:`\lambda = (k / K)^3`, close where collisions are switched on. The kernel is tuned along
the path on chains of its own: with one step size for all levels LJ-13 gives a tenth of the effective draws.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ..space import Space
from ..target import Target
from . import adapt, ais, mala

#: Chains that tune the kernel, places along the path where they do, and their steps at each.
PILOT = (32, 25, 6)

#: Levels lie at this power of even ones.
_POWER = 3


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
    kernels = _tuned(start, end, generator=generator, like=like) if levels > 1 else []
    state = ais.init(start.sample(n, generator=generator, like=like), start, end)
    for k in range(1, levels + 1):
        lam = (k / levels) ** _POWER
        state = ais.reweight(state, from_lam=((k - 1) / levels) ** _POWER, to_lam=lam)
        if k < levels:
            kernel = kernels[k * len(kernels) // levels]
            state, _ = ais.move(
                state,
                start,
                end,
                lam=lam,
                step_size=kernel.step_size,
                generator=generator,
                kernel=partial(mala.step, scale=kernel.scale),
            )
    volume = space.dof * float(scale.log().mean()) + start.log_normaliser
    return state.log_weight + volume


def evaluations(n: int, levels: int) -> int:
    """Energies that :func:`annealing_weights` takes, its pilot included."""
    chains, places, steps = PILOT
    return n * levels + (chains * (1 + places * steps) if levels > 1 else 0)


def _tuned(
    start: _Start, end: _InUnits, *, generator: torch.Generator, like: Tensor
) -> list[adapt.Adaptation]:
    """Kernels of equal parts of the levels."""
    chains, places, steps = PILOT
    state = ais.init(start.sample(chains, generator=generator, like=like), start, end)
    adaptation, kernels = adapt.init(0.1), []
    for place in range(places):
        # In the middle of the part, which it has to serve.
        lam = ((place + 0.5) / places) ** _POWER
        score = ais.mixed(lam, *state.scores)
        adaptation = adaptation.scaled_to(state.position, score, end.space)
        for _ in range(steps):
            state, info = ais.move(
                state,
                start,
                end,
                lam=lam,
                step_size=float(adaptation.step_size),
                generator=generator,
                kernel=partial(mala.step, scale=adaptation.scale),
            )
            adaptation = adapt.update(adaptation, info.acceptance)
        adaptation = adaptation._replace(updates=2)
        kernels.append(adaptation)
    return kernels


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
