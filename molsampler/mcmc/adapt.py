r"""Step-size adaptation by stochastic approximation (Robbins & Monro 1951; Andrieu & Thoms 2008).

:math:`\log\epsilon \leftarrow \log\epsilon + \gamma_k (\bar a - a^*)` with :math:`\bar a` the mean
acceptance over the chains that share a step size and :math:`\gamma_k = (k+1)^{-0.6}`. Adaptation
breaks stationarity while it acts, so it ends before samples are kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..space import Space
from ..target import Target
from . import mala
from .proposal import Info
from .scale import SCALE_EVERY, coordinate_scale

#: Acceptance that maximises the efficiency of MALA in high dimension (Roberts & Rosenthal 1998).
MALA_ACCEPTANCE = 0.574

#: Factor by which a step is changed until its acceptance is on the other side of the wanted one, how often
#: at most, and transitions that then adapt it.
_FACTOR, _SEARCH, _SETTLING = 4.0, 40, 40


class Adaptation(NamedTuple):
    """Current step size, number of updates, and lengths ``(n, d)`` of coordinates where they have some."""

    log_step: Tensor
    updates: int
    scale: Tensor | None = None

    @property
    def step_size(self) -> Tensor:
        return self.log_step.exp()

    def scaled_to(self, x: Tensor, score: Tensor, space: Space) -> Adaptation:
        """The same with the lengths of chains ``x`` ``(b, n, d)`` with such scores."""
        return self._replace(scale=coordinate_scale(x, score, space))

    def flatten(self) -> dict[str, Tensor | int]:
        """Tensors and numbers by name."""
        flat: dict[str, Tensor | int] = {"log_step": self.log_step, "updates": self.updates}
        return flat if self.scale is None else {**flat, "scale": self.scale}

    @classmethod
    def unflatten(cls, flat: Mapping[str, Any]) -> Adaptation:
        """The adaptation that was flattened; a key that is missing is a KeyError."""
        return cls(flat["log_step"], int(flat["updates"]), flat.get("scale"))


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
    return adaptation._replace(
        log_step=log_step + gain * (mean.to(log_step) - target_acceptance),
        updates=adaptation.updates + 1,
    )


def step(
    state: mala.State,
    target: Target,
    adaptation: Adaptation,
    *,
    generator: torch.Generator | None,
) -> tuple[mala.State, Info]:
    """One transition of MALA as it is adapted so far."""
    return mala.step(
        state,
        target,
        step_size=float(adaptation.step_size),
        generator=generator,
        scale=adaptation.scale,
    )


def tuned(
    state: mala.State,
    target: Target,
    *,
    steps: int,
    step_size: float,
    generator: torch.Generator | None,
    lengths: bool = True,
) -> tuple[mala.State, Adaptation]:
    """Run ``steps`` transitions of MALA while one step size adapts to them, and with ``lengths`` those of the
    coordinates; the last state, and what was reached."""
    adaptation = init(step_size)
    for k in range(steps):
        if lengths and k % SCALE_EVERY == 0:
            adaptation = adaptation.scaled_to(state.position, state.score, target.space)
        state, info = step(state, target, adaptation, generator=generator)
        adaptation = update(adaptation, info.acceptance.flatten())
    return state, adaptation


def found(
    state: mala.State,
    target: Target,
    *,
    step_size: float,
    acceptance: float,
    generator: torch.Generator | None,
) -> Adaptation:
    """The step size of MALA at which chains in equilibrium have a mean ``acceptance``, from whatever first
    guess, with lengths of coordinates where they are unlike.

    The guess is multiplied or divided until it is bracketed; from there the step adapts.
    """
    scale = coordinate_scale(state.position, state.score, target.space)
    adaptation = init(step_size)._replace(scale=scale)
    too_short = None
    for _ in range(_SEARCH):
        _, info = step(state, target, adaptation, generator=generator)
        short = float(info.acceptance.mean()) > acceptance
        if too_short is not None and short != too_short:
            break
        too_short = short
        change = math.log(_FACTOR if short else 1 / _FACTOR)
        adaptation = adaptation._replace(log_step=adaptation.log_step + change)
    else:
        # No step is too long, or none short enough: the guess is as good as any.
        adaptation = init(step_size)._replace(scale=scale)
    for _ in range(_SETTLING):
        state, info = step(state, target, adaptation, generator=generator)
        adaptation = update(adaptation, info.acceptance.flatten(), target_acceptance=acceptance)
    return adaptation
