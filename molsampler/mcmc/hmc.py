r"""Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011) with unit masses.

``leapfrog_steps`` steps of size :math:`\epsilon` of

.. math:: p \leftarrow p + \tfrac{\epsilon}{2} s(x),\quad x \leftarrow x + \epsilon p,\quad
          p \leftarrow p + \tfrac{\epsilon}{2} s(x),

then a Metropolis test on :math:`u(x) + \tfrac12 |p|^2`. The kernel with one step equals MALA
(without truncation) at step size :math:`\epsilon^2 / 2`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InputError
from ..target import Target
from .mala import State, init
from .proposal import Info, accept, as_column, choose, evaluate

__all__ = ["Info", "State", "init", "step"]


def step(
    state: State,
    target: Target,
    *,
    step_size: float | Tensor,
    generator: torch.Generator | None,
    leapfrog_steps: int = 8,
    scale: Tensor | None = None,
) -> tuple[State, Info]:
    """One transition of every chain, costing ``leapfrog_steps`` energy evaluations per chain.

    ``scale`` ``(n, d)`` are lengths of the coordinates, in which momenta are those of unit masses.

    Raises
    ------
    InputError
        ``leapfrog_steps`` is less than one.
    """
    if leapfrog_steps < 1:
        raise InputError(f"leapfrog_steps must be at least 1, got {leapfrog_steps}")
    x, energy, score = state
    epsilon = as_column(step_size, x)
    reach = epsilon if scale is None else epsilon * scale
    space = target.space
    momentum = space.randn(*x.shape[:-2], generator=generator, like=x)
    kinetic = 0.5 * momentum.square().sum(dim=(-2, -1))

    position, new_energy, new_score = x, energy, score
    absurd = torch.zeros_like(energy, dtype=torch.bool)
    for _ in range(leapfrog_steps):
        momentum = momentum + 0.5 * reach * space.project(new_score)
        position, new_energy, new_score, left = evaluate(target, position + reach * momentum, x)
        absurd = absurd | left
        momentum = momentum + 0.5 * reach * space.project(new_score)
    new_kinetic = 0.5 * momentum.square().sum(dim=(-2, -1))

    info = accept(energy + kinetic - new_energy - new_kinetic, absurd, generator=generator)
    return (
        State(
            choose(info.accepted, position, x),
            choose(info.accepted, new_energy, energy),
            choose(info.accepted, new_score, score),
        ),
        info,
    )
