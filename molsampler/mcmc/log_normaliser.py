r"""log Z of a target by annealed importance sampling from a Gaussian as wide as given configurations.

A route to log Z that owes nothing to a generator: given configurations set the width of the start alone, and
:math:`E[w] = Z / Z_0` holds for any width. It is good for what its path reaches.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..target import Target
from . import adapt, ais, mala
from .population import Gaussian

#: Chains and steps that tune the step size half way along the path.
PILOT = (256, 200)


def annealing_weights(
    target: Target, x: Tensor, *, n: int, levels: int, generator: torch.Generator
) -> Tensor:
    """Log weights ``(n,)``, float64, whose mean weight is Z in orthonormal coordinates of the space.

    ``x`` ``(m, n, d)`` are configurations about as wide as the target. One Metropolis-adjusted Langevin step
    follows each of ``levels`` levels of the geometric path but the last: :func:`evaluations` energies.
    """
    space = target.space
    x = x.double()
    centred = space.project(x - x.mean(0))
    std = math.sqrt(float(centred.square().sum(dim=(-2, -1)).mean()) / space.dof)
    base, like = Gaussian(space, std), torch.empty(0, dtype=torch.float64, device=x.device)
    # One step size for all levels, tuned half way on chains of their own.
    middle = ais.Path(base, target, 0.5)
    chains, steps = PILOT
    pilot = mala.init(base.sample(chains, generator=generator, like=like), middle)
    _, step = adapt.adapt_step_size(
        pilot, middle, steps=steps, step_size=1e-2 * std**2, generator=generator
    )
    start = base.sample(n, generator=generator, like=like)
    state = ais.run(start, base, target, levels=levels, step_size=step, generator=generator)
    return state.log_weight + 0.5 * space.dof * math.log(2 * math.pi * std**2)


def evaluations(n: int, levels: int) -> int:
    """Energies that :func:`annealing_weights` takes, its pilot included."""
    chains, steps = PILOT
    return n * levels + chains * (steps + 1)
