r"""Step-size adaptation by stochastic approximation (Robbins & Monro 1951; Andrieu & Thoms 2008).

:math:`\log\epsilon \leftarrow \log\epsilon + \gamma_k (\bar a - a^*)` with :math:`\bar a` the mean
acceptance over the chains that share a step size and :math:`\gamma_k = (k+1)^{-0.6}`. Adaptation
breaks stationarity while it acts, so it ends before samples are kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..target import Target
from . import mala

#: Acceptance that maximises the efficiency of MALA in high dimension (Roberts & Rosenthal 1998).
MALA_ACCEPTANCE = 0.574


class Adaptation(NamedTuple):
    """Current step size and number of updates."""

    log_step: Tensor
    updates: int

    @property
    def step_size(self) -> Tensor:
        return self.log_step.exp()


class Kernel(Protocol):
    """The ``step`` of a kernel module."""

    def __call__(
        self,
        state: Any,
        target: Target,
        *,
        step_size: float | Tensor,
        generator: torch.Generator | None,
    ) -> tuple[Any, Any]: ...


def init(step_size: float | Tensor) -> Adaptation:
    """Start from a first guess; a tensor of guesses adapts each entry on its own."""
    return Adaptation(torch.as_tensor(step_size, dtype=torch.get_default_dtype()).log(), 0)


def update(
    adaptation: Adaptation, acceptance: Tensor, *, target_acceptance: float = MALA_ACCEPTANCE
) -> Adaptation:
    """Move the step size towards the wanted acceptance.

    ``acceptance`` has the shape of the step size, with any further leading dimensions averaged.
    """
    log_step = adaptation.log_step
    extra = acceptance.dim() - log_step.dim()
    mean = acceptance.mean(dim=tuple(range(extra))) if extra else acceptance
    gain = (adaptation.updates + 1) ** -0.6
    return Adaptation(
        log_step + gain * (mean.to(log_step) - target_acceptance), adaptation.updates + 1
    )


def adapt_step_size(
    state: Any,
    target: Target,
    *,
    steps: int,
    step_size: float,
    generator: torch.Generator | None,
    kernel: Kernel = mala.step,
    target_acceptance: float = MALA_ACCEPTANCE,
) -> tuple[Any, float]:
    """Run ``steps`` transitions while adapting one shared step size; return the last state and it."""
    adaptation = init(step_size)
    for _ in range(steps):
        state, info = kernel(
            state, target, step_size=float(adaptation.step_size), generator=generator
        )
        adaptation = update(
            adaptation, info.acceptance.flatten(), target_acceptance=target_acceptance
        )
    return state, float(adaptation.step_size)
