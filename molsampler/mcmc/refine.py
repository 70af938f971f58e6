"""Refinement: a short Metropolis run on the exact target from configurations that are nearly right.

MALA leaves the target invariant, so right configurations keep their law while wrong ones drift towards it.
Training judges generators by that drift, sampling repairs samples with it, and analysis reports it; all
of them run :func:`refine`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..target import Target
from . import adapt, mala

#: First guess of the step size, in squared length units; adaptation covers many decades.
FIRST_STEP = 1e-2


class Tuning(NamedTuple):
    """A MALA kernel: its step size, and lengths of the coordinates where these are unlike."""

    step_size: float
    scale: Tensor | None = None


class Refined(NamedTuple):
    """Chains after the run."""

    state: mala.State
    acceptance: float
    """Mean acceptance probability."""
    accepted: float
    """Number of accepted moves."""


def refine(
    state: mala.State,
    target: Target,
    *,
    steps: int,
    tuning: Tuning,
    generator: torch.Generator | None,
    adaptive: bool = False,
) -> Refined:
    """Run ``steps`` MALA transitions of chains ``(b, n, d)``.

    With a fixed step size the kernel is reversible from its first step; ``adaptive`` lets the step size
    follow the acceptance, which serves where only the way that configurations go is wanted.
    """
    adaptation = adapt.init(tuning.step_size)
    acceptance = accepted = 0.0
    for _ in range(steps):
        size = float(adaptation.step_size) if adaptive else tuning.step_size
        state, info = mala.step(
            state, target, step_size=size, generator=generator, scale=tuning.scale
        )
        if adaptive:
            adaptation = adapt.update(adaptation, info.acceptance)
        acceptance += float(info.acceptance.mean()) / steps
        accepted += float(info.accepted.double().sum())
    return Refined(state, acceptance, accepted)


def tuned(
    x: Tensor,
    target: Target,
    *,
    steps: int,
    generator: torch.Generator | None,
    first: float = FIRST_STEP,
) -> Tuning:
    """The MALA kernel adapted on a run from ``x`` ``(b, n, d)`` that is thrown away.

    Costs ``b (steps + 1)`` energy evaluations.
    """
    _, adaptation = adapt.tuned(
        mala.init(x, target), target, steps=steps, step_size=first, generator=generator
    )
    return Tuning(float(adaptation.step_size), adaptation.scale)
