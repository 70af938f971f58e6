r"""The local move of a population: a step of MALA, or a trajectory of Hamiltonian Monte Carlo.

One step size serves both. That of MALA, :math:`\epsilon`, is for one leapfrog step a length
:math:`h = \sqrt{2\epsilon}`; along a trajectory errors of the energy add up, and

.. math:: h = r \sqrt{2\epsilon}\,U, \qquad U \sim \mathcal{U}(0.6, 1.1),

with r = 0.8 has the acceptance that trajectories want, :data:`ACCEPTANCE`, where MALA has its own: so it is
for clusters of 4 to 55 particles. U, drawn chain by chain, keeps trajectories from closing on themselves
(Neal, arXiv 1206.1901).

A trajectory of k steps goes as far as k, k steps of MALA as far as :math:`\sqrt{k}`. In the same evaluations
Lennard-Jones clusters forget where they were five times sooner (13 particles) and come to rest ten times
sooner (55). Where barriers decide, or the coordinates of a molecule have each their own length and turn
(:mod:`molsampler.mcmc.turn`), MALA is as good or better; trajectories do not turn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..space import Space
from ..target import Target
from . import adapt, hmc, mala
from .proposal import Info

#: Acceptance that is good for trajectories: .65 in the limit of many dimensions (Beskos et al. 2013), more
#: in few.
ACCEPTANCE = 0.8

#: Leapfrog steps of a trajectory where nobody says.
LEAPFROG_STEPS = 8

_LENGTH, _SHORTEST, _LONGEST = 0.8, 0.6, 1.1


def step(
    state: mala.State,
    target: Target,
    *,
    step_size: float | Tensor,
    generator: torch.Generator | None,
    scale: Tensor | None = None,
    leapfrog_steps: int = 1,
) -> tuple[mala.State, Info]:
    """One transition of every chain, at ``leapfrog_steps`` energy evaluations each; ``step_size``, a number
    or ``(*b,)``, is that of MALA."""
    if leapfrog_steps == 1:
        return mala.step(state, target, step_size=step_size, generator=generator, scale=scale)
    energy = state.energy
    spread = torch.rand(energy.shape, generator=generator, dtype=energy.dtype, device=energy.device)
    longest = _LENGTH * torch.sqrt(2.0 * torch.as_tensor(step_size).to(energy))
    return hmc.step(
        state,
        target,
        step_size=longest * (_SHORTEST + (_LONGEST - _SHORTEST) * spread),
        generator=generator,
        scale=scale,
        leapfrog_steps=leapfrog_steps,
    )


def usual(space: Space) -> int:
    """Leapfrog steps for a space: those of a trajectory where it is mean-free, of particles in one length,
    and one where coordinates have lengths of their own."""
    n, d = space.shape
    return LEAPFROG_STEPS if space.dof < n * d else 1


def adapted(
    adaptation: adapt.Adaptation, acceptance: Tensor, *, leapfrog_steps: int = 1
) -> adapt.Adaptation:
    """The step size, adapted to the ``acceptance`` of such a move."""
    wanted = adapt.MALA_ACCEPTANCE if leapfrog_steps == 1 else ACCEPTANCE
    return adapt.update(adaptation, acceptance, target_acceptance=wanted)
