r"""Mode weights: how much probability each named region of a system carries.

A system that has named modes implements :class:`HasModes`; the file that defines a system may give it
others, intervals of a collective variable (``system.basins``). Two kinds of answer are understood:

* *classes*, labels ``(n,)`` of integers: every configuration belongs to exactly one mode (the number
  of stretched pairs of a double-well system, the nearest component of a mixture). The distance is
  :math:`\tfrac12\sum_k|p_k-q_k|`.
* *events*, labels ``(n, k)`` of booleans: each of k statements holds or not (each coordinate of a
  many-well system in its right-hand well). The distance is :math:`\tfrac1k\sum_k|p_k-q_k|`, the mean
  total variation of the k two-valued distributions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molsampler.errors import InputError
from molsampler.target import System

from .draws import Draw, Pool
from .metric import Distance, Value
from .statistics import effective_sample_size

Array = NDArray[np.float64]

#: With this many samples expected in a mode, none is as unlikely as six standard deviations.
MISSING_COUNT = 20.0


@runtime_checkable
class HasModes(Protocol):
    """A system with named modes."""

    def mode_labels(self, x: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Labels of positions ``(n, N, D)`` and the names of the k modes.

        Labels are either ``(n,)`` integers in ``[0, k)`` (classes) or ``(n, k)`` booleans (events).
        """


def modes_of(system: System) -> HasModes | None:
    """What labels the modes of a system: the basins of its file, or itself; None where it names none."""
    if system.basins is not None:
        return system.basins
    return system if isinstance(system, HasModes) else None


@dataclass(frozen=True)
class ModeWeights:
    """Probability of each mode.

    Attributes
    ----------
    names : the modes, length k
    weights, se : probabilities ``(k,)`` and their standard errors for independent samples
    exclusive : whether the modes are classes, whose weights sum to one
    """

    names: tuple[str, ...]
    weights: Array
    se: Array
    exclusive: bool


@dataclass(frozen=True)
class ModeComparison:
    """Mode weights of samples and reference side by side.

    Attributes
    ----------
    samples, reference : the weights of each side
    distance : total variation of the weights (classes) or its mean over events
    difference, difference_se : samples minus reference, per mode, and its standard error
    hit, present : modes of the reference that the samples visit, and modes of the reference
    missing : modes without samples whose absence is no accident: by the reference's weight more
        than ``MISSING_COUNT`` were expected
    """

    samples: ModeWeights
    reference: ModeWeights
    distance: float
    difference: Array
    difference_se: Array
    hit: int
    present: int
    missing: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionary."""
        return {
            "names": list(self.samples.names),
            "exclusive": self.samples.exclusive,
            "samples": self.samples.weights.tolist(),
            "samples_se": self.samples.se.tolist(),
            "reference": self.reference.weights.tolist(),
            "reference_se": self.reference.se.tolist(),
            "difference": self.difference.tolist(),
            "difference_se": self.difference_se.tolist(),
            "distance": self.distance,
            "hit": self.hit,
            "present": self.present,
            "missing": list(self.missing),
        }


class Members(NamedTuple):
    """Which configurations are in which mode: ``member`` ``(n, k)`` booleans, and as in ModeWeights."""

    names: tuple[str, ...]
    member: Tensor
    exclusive: bool


def mode_members(x: Tensor, modes: HasModes) -> Members:
    """Membership of positions ``(n, N, D)`` in modes.

    Raises
    ------
    InputError
        The labels do not follow :class:`HasModes`.
    """
    labels, names = modes.mode_labels(x)
    k = len(names)
    exclusive = labels.dim() == 1
    if exclusive:
        if len(labels) and not bool(((labels >= 0) & (labels < k)).all()):
            raise InputError(
                f"mode labels must lie in [0, {k}), got {sorted(set(labels.tolist()))}"
            )
        member = torch.nn.functional.one_hot(labels.long(), k).bool()
    else:
        member = labels
    if tuple(member.shape) != (len(x), k):
        raise InputError(
            f"mode labels must have shape ({len(x)},) or ({len(x)}, {k}), got {tuple(labels.shape)}"
        )
    return Members(tuple(names), member, exclusive)


def mode_weights(x: Tensor, system: HasModes, *, weights: Tensor | None = None) -> ModeWeights:
    r"""Weights of the system's modes with binomial standard errors :math:`\sqrt{p(1-p)/n_{eff}}`.

    Parameters
    ----------
    x : positions ``(n, N, D)``
    weights : importance weights ``(n,)``, normalised here

    Raises
    ------
    InputError
        ``x`` is empty, all weights are zero, or the system's labels do not follow
        :class:`HasModes`.
    """
    if len(x) == 0:
        raise InputError("x must hold at least one configuration, got none")
    names, member, exclusive = mode_members(x, system)
    n = effective_sample_size(weights, len(x))
    w = torch.full((len(x),), 1 / len(x)) if weights is None else weights / weights.sum()
    p = (w.double().cpu() @ member.double().cpu()).clamp(0, 1).numpy()
    return ModeWeights(names, p, np.sqrt(p * (1 - p) / n), exclusive)


def mode_distance(a: ModeWeights, b: ModeWeights) -> float:
    """Total variation between two sets of class weights, or its mean over events; in [0, 1]."""
    if a.names != b.names or a.exclusive != b.exclusive:
        raise InputError("mode weights of different systems cannot be compared")
    gap = np.abs(a.weights - b.weights)
    return float(0.5 * gap.sum() if a.exclusive else gap.mean())


def compare_modes(
    samples: ModeWeights, reference: ModeWeights, *, n_samples: float
) -> ModeComparison:
    """Weights of both sides, their differences with standard errors, and how many modes are hit.

    The standard errors take the samples of each side as independent; a reference from a Markov
    chain has larger ones. ``n_samples`` is the (effective) number of samples.
    """
    present = reference.weights > 0
    sound = np.maximum(reference.weights - 3 * reference.se, 0)
    absent = (samples.weights == 0) & (sound * n_samples > MISSING_COUNT)
    missing = tuple(name for name, gone in zip(samples.names, absent, strict=True) if gone)
    return ModeComparison(
        samples,
        reference,
        mode_distance(samples, reference),
        samples.weights - reference.weights,
        np.hypot(samples.se, reference.se),
        int((present & (samples.weights > 0)).sum()),
        int(present.sum()),
        missing,
    )


def compare_pools(samples: Pool, reference: Pool) -> ModeComparison | None:
    """The modes of both sides, by weight; None where the system names none."""
    modes = modes_of(samples.system)
    if modes is None:
        return None
    a, b = (mode_weights(p.positions, modes, weights=p.weights) for p in (samples, reference))
    return compare_modes(a, b, n_samples=samples.effective)


class ModeTotalVariation(Distance):
    key = "mode_tvd"
    name = "mode weights"
    definition = (
        "Total variation distance between mode weights; where modes are separate events, the "
        "mean over the events."
    )

    def applies(self, system: System) -> bool:
        return modes_of(system) is not None

    def value(self, samples: Draw, reference: Draw) -> Value:
        modes = modes_of(samples.system)
        if modes is None:
            raise InputError(f"system {samples.system.name!r} names no modes")
        a, b = (mode_weights(draw.positions, modes) for draw in (samples, reference))
        return Value(mode_distance(a, b))
