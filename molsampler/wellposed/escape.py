r"""Particles, molecules and configurations that go apart: the energy must hold them.

Far away along a direction that is one of m, :math:`\int R^{m-1} e^{-u(R)} \, \mathrm{d}R` is finite only if
u grows faster than :math:`m \log R`. A particle or molecule that leaves the others has m = d, as has a
configuration that moves as a whole where no field holds it; a direction chosen for its own sake, such as
an axis, has m = 1, and counts where the energy is level along it from every configuration tried.

A well that levels off at a height of many kT has no norm either, but nothing leaves it: molecules with
bonds that can break, clusters at low temperature. From :data:`_BOUND` on that is reported, not refused.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import IllPosedError
from ..space import MeanFree
from ..target import COORDINATE_LIMIT, System
from .evaluator import Evaluator
from .kinds import fragments
from .start import FORBIDDEN, Bases

_log = logging.getLogger(__name__)

#: Distances between which slopes are taken: the last ones, relative to the configuration, and the factor
#: between the first and the last. Molecules go less far: their libraries may compute in float32.
_FAR, _NEAR, _FACTOR = 1e5, 1e3, 1e3
_BLOCKS = 3
#: The first distance is at least this many sizes of the configuration.
_OUTSIDE = 3.0

#: Share of m log R up to which growth is too slow; what grows faster and faster is given time.
_SLOW, _FASTER = 0.9, 1.2

#: Height in kT over the lowest energy from which a level energy holds what it holds for any purpose:
#: e^30 is the volume of a sphere of 13,000 times the size of the bound state. Where chains do not
#: start in it but in a Gaussian, they have to find it first.
_BOUND, _BOUND_IF_FOUND = 30.0, 300.0

#: Directions at random, axes at most, fragments at most, and directions without a force at most.
_RANDOM, _AXES, _FRAGMENTS, _LEVEL = 2, 8, 8, 3

#: Degrees of freedom up to which directions without a force are sought.
_SOUGHT = 64


@dataclass(frozen=True)
class Direction:
    """Displacements ``(k, n, d)`` of unit length that are alternatives to each other."""

    name: str
    growing: int
    """Dimensions in which it is one direction, m."""
    displacement: Tensor
    bound: str
    """What to do about it."""


_RESTRAINT = "add a restraint, 'restraint:' in the YAML of a molecule"
_TRAP = (
    "add a trap, such as + 0.5*k*r^2/n in the expression of a pair potential, or restraint: in the file of "
    "an ASE system"
)
_FIELD = "add a term that holds it, such as a harmonic trap"


def require_bound(system: System, evaluate: Evaluator, bases: Bases) -> None:
    """Refuse energies without a norm far away.

    Raises
    ------
    IllPosedError
        The energy levels off, grows too slowly, falls or becomes NaN in a direction.
    """
    last = min((_NEAR if bases.known else _FAR) * bases.size, 0.2 * COORDINATE_LIMIT)
    first = max(last / _FACTOR, _OUTSIDE * bases.size)
    if first > 0.1 * last:
        # Coordinates so large leave no room to look.
        return
    radii = torch.logspace(math.log10(first), math.log10(last), _BLOCKS + 1, dtype=torch.float64)
    found = _directions(system, bases)
    if not bases.known:
        found += _without_force(system, evaluate, bases)
    held = ""
    for direction in found:
        held = held or _judge(system, evaluate, bases, direction, radii)
    if held:
        _log.warning("%s", held)


def _directions(system: System, bases: Bases) -> list[Direction]:
    n, d = system.shape
    rng = torch.Generator().manual_seed(3)
    pushes = torch.randn(_RANDOM, d, generator=rng, dtype=torch.float64)
    pushes = torch.cat([pushes, -pushes]) / pushes.norm(dim=1).repeat(2)[:, None]
    axes = torch.eye(d, dtype=torch.float64)[: 0 if system.invariant else _AXES]
    found = []

    def move(group: list[int], name: str, bound: str) -> None:
        shift = torch.zeros(n, 1, dtype=torch.float64)
        shift[group] = 1.0
        found.append(Direction(name, d, shift * pushes[:, None], bound))
        for k, axis in enumerate(axes):
            for sign in (1.0, -1.0):
                along = f"{name} along {'-' if sign < 0 else ''}axis {k}"
                found.append(Direction(along, 1, (sign * shift * axis)[None], bound))

    if not isinstance(system.space, MeanFree):
        move(list(range(n)), "the configuration moves away" if n > 1 else "x goes away", _FIELD)
    for group in fragments(system, _FRAGMENTS) if n > 1 else []:
        bonded = system.molecule is not None and bool(system.molecule.bonds)
        if bonded:
            name = f"the molecule of particles {group[0]} to {group[-1]} leaves the others"
        else:
            name = f"particle {group[0]} leaves the others"
        move(group, name, _RESTRAINT if bonded else _TRAP)
    if n > 1:
        outward = torch.stack([x - x.mean(0) for x in bases.position[:2]])
        outward = outward / outward.flatten(1).norm(dim=1)[:, None, None].clamp(min=1e-12)
        found.append(Direction("all particles go apart", system.space.dof, outward, _TRAP))
    return found


def _without_force(system: System, evaluate: Evaluator, bases: Bases) -> list[Direction]:
    """Directions that are orthogonal to the score wherever it was asked for."""
    space = system.space
    if space.dof > _SOUGHT or space.dof < 2:
        return []
    n, d = system.shape
    rng = torch.Generator().manual_seed(4)
    like = torch.empty(0, dtype=torch.float64)
    rows = torch.arange(2 * space.dof) % len(bases.position)
    spread = 0.3 * bases.size * space.randn(len(rows), generator=rng, like=like)
    u, score = evaluate(bases.position[rows] + spread)
    score = space.project(score)[torch.isfinite(u)].flatten(1)
    size = score.norm(dim=1, keepdim=True)
    if len(score) < space.dof or not torch.isfinite(score).all() or bool((size == 0).all()):
        return []
    # What the space excludes counts as known.
    outside = torch.eye(n * d, dtype=torch.float64)
    outside = outside - space.project(outside.reshape(-1, n, d)).flatten(1)
    stacked = torch.cat([score / size.clamp(min=1e-300), outside])
    _, values, vectors = torch.linalg.svd(stacked)
    level = vectors[values < 1e-6 * values.max()] if len(values) == n * d else vectors[:0]
    if not 0 < len(level) <= space.dof - 1:
        return []
    return [
        Direction(f"x moves along {_vector(v)}", 1, v.reshape(1, n, d), _FIELD)
        for v in level[:_LEVEL]
    ]


def _vector(v: Tensor) -> str:
    """The largest components of a direction."""
    largest = v.abs().argsort(descending=True)[:4]
    return ", ".join(f"{float(v[k]):+.2g} x[{k}]" for k in largest.tolist() if abs(v[k]) > 1e-3)


def _judge(
    system: System, evaluate: Evaluator, bases: Bases, direction: Direction, radii: Tensor
) -> str:
    """What to report of a direction, or an error; empty where the energy grows."""
    starts = bases.position[:2]
    if direction.growing == 1:
        # A line through a minimum may be level where all beside it rise.
        rng = torch.Generator().manual_seed(5)
        starts = starts + 0.3 * bases.size * system.space.randn(
            len(starts), generator=rng, like=starts
        )
    distances = torch.cat([radii.new_zeros(1), radii])
    push = direction.displacement[:, None, None] * distances[:, None, None]
    x = system.space.project(starts[None, :, None] + push)
    u = evaluate.energy(x.flatten(0, 2)).reshape(-1, len(distances))
    heights = []
    for base, *values in u.tolist():
        bad = next((k for k, value in enumerate(values) if not math.isfinite(value)), None)
        if bad is not None:
            before = values[bad - 1] if bad else base
            if values[bad] == math.inf or (abs(before - base) > 1e6 and values[bad] != -math.inf):
                return ""
            raise IllPosedError(
                f"the energy of {system.name!r} becomes {values[bad]} as {direction.name} "
                f"(R = {float(radii[bad]):.2g}), coming from {before:.4g} kT. {FORBIDDEN}"
            )
        logs = radii.log().tolist()
        slopes = [
            (values[k + 1] - values[k]) / (logs[k + 1] - logs[k]) for k in range(len(values) - 1)
        ]
        second, last = slopes[-2:]
        if last < -1.0 and last <= 0.9 * second and values[-1] < base:
            raise IllPosedError(
                f"the energy of {system.name!r} falls without bound as {direction.name}: from "
                f"{base:.4g} to {values[-1]:.2g} kT at R = {float(radii[-1]):.2g}. exp(-u) has no norm: "
                f"{direction.bound}"
            )
        growing = last > 0.05 * direction.growing and last > _FASTER * max(second, 0.0)
        slow = max(second, last) < _SLOW * direction.growing
        if growing or not slow:
            return ""
        heights.append(values[-1] - base)
    height = max(heights)
    said = (
        f"the energy of {system.name!r} does not grow as {direction.name}: it is {abs(height):.3g} kT "
        f"{'above' if height >= 0 else 'below'} where it began at R = {float(radii[-1]):.2g}"
    )
    if height > (_BOUND if bases.known else _BOUND_IF_FOUND):
        return (
            f"{said}. exp(-u) has no norm, strictly; what is sampled is the bound state, which chains at "
            "this temperature do not leave"
        )
    unbound = "not bound" if "leave" in direction.name or "apart" in direction.name else "not held"
    raise IllPosedError(f"{said}: {unbound}, so exp(-u) has no norm; {direction.bound}")
