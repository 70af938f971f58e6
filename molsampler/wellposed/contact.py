r"""Particles that meet: the energy must not fall so steeply that :math:`e^{-u}` has no integral there.

Where m coordinates shrink together by a factor r, :math:`\int r^{m-1} e^{-u(r)} \, \mathrm{d}r` is finite at
zero only if :math:`\mathrm{d}u / \mathrm{d}\log r < m` there. A pair that is brought together
has m = d. Soft contacts, of finite energy, have a derivative that goes to zero;
:math:`-C/r^p` and attracting charges have one that grows without bound.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import IllPosedError
from ..target import System
from .evaluator import Evaluator
from .kinds import kinds, pairs_of_kinds, spread
from .start import FORBIDDEN, Bases

_log = logging.getLogger(__name__)

#: Distances on a path, as powers of ten of the first one: the last decades decide.
_STEP = 0.5
_LAST_DOUBLE, _LAST_SINGLE = 9.0, 4.0
#: Slopes that must all be too steep.
_JUDGED = 4
#: Below this share of the first distance rounding may make NaN of what is none.
_NAN_SHARE = 1e-4
#: Energies in kT above the base from which on a NaN or a hole does not matter: nothing gets there.
_HIGH = 1e6
#: Height in kT of the barrier behind which a hole in a bonded molecule is only reported. Hydroxyl hydrogens
#: of common force fields have no core of their own.
_BARRIER = 50.0


@dataclass(frozen=True)
class Path:
    """A family of configurations in which something shrinks to a point."""

    name: str
    shrinking: int
    """Coordinates that shrink together, m."""
    first: float
    """Distance at its beginning."""
    positions: Tensor
    """``(points, n, d)``, the distance falling by a constant factor."""
    guarded: bool
    """Whether bonds have to be stretched on the way, in a molecule whose starts are known."""


def require_sound_contacts(system: System, evaluate: Evaluator, bases: Bases) -> None:
    """Refuse energies without a norm where particles meet.

    Raises
    ------
    IllPosedError
        The energy falls too steeply, or becomes NaN, on the way into contact.
    """
    ratios = _ratios(evaluate)
    paths = [path for x in bases.position[:2] for path in _paths(system, x, ratios, bases)]
    if not paths:
        return
    u = evaluate.energy(torch.cat([path.positions for path in paths])).reshape(len(paths), -1)
    base = float(bases.energy.min())
    behind = ""
    for path, values in zip(paths, u, strict=True):
        behind = behind or _judge(system, path, values, ratios, base)
    if behind:
        _log.warning("%s", behind)


def _ratios(evaluate: Evaluator) -> Tensor:
    last = _LAST_DOUBLE if evaluate.double else _LAST_SINGLE
    return 10 ** -torch.arange(0, last + _STEP / 2, _STEP, dtype=torch.float64)


def _paths(system: System, x: Tensor, ratios: Tensor, bases: Bases) -> list[Path]:
    n, d = x.shape
    bonded: set[int] = set()
    if system.molecule is not None:
        bonded = {index for bond in system.molecule.bonds for index in bond}
    paths = []
    for i, j in pairs_of_kinds(system, 12 if bases.sparing else 40):
        moved = x.repeat(len(ratios), 1, 1)
        moved[:, j] = x[i] + ratios[:, None] * (x[j] - x[i])
        first = float((x[j] - x[i]).norm())
        guarded = bool({i, j} & bonded)
        paths.append(Path(f"particles {i} and {j} meet", d, first, moved, guarded))
    groups = []
    if n > 3 and not bonded:
        kind = kinds(system)
        leading = [kind.index(each) for each in spread(sorted(set(kind)), 3)]
        groups.append(sorted((leading + [k for k in range(n) if k not in leading])[:3]))
    if n > 2 and not bonded:
        groups.append(list(range(n)))
    for group in groups:
        centre = x[group].mean(0)
        moved = x.repeat(len(ratios), 1, 1)
        moved[:, group] = centre + ratios[:, None, None] * (x[group] - centre)
        first = float((x[group] - centre).square().sum(-1).mean().sqrt())
        name = "all particles" if len(group) == n else "particles {}, {} and {}".format(*group)
        paths.append(Path(f"{name} meet", (len(group) - 1) * d, first, moved, False))
    return [
        Path(p.name, p.shrinking, p.first, system.space.project(p.positions), p.guarded)
        for p in paths
        if p.first > 0
    ]


def _judge(system: System, path: Path, u: Tensor, ratios: Tensor, base: float) -> str:
    """What to report of a path, or an error; empty where nothing is wrong."""
    values = u.tolist()
    usable = next((k for k, value in enumerate(values) if not math.isfinite(value)), len(values))
    highest = max([base, *values[:usable]])
    end = values[usable] if usable < len(values) else None
    before = values[usable - 1] if usable else base
    if end is not None and math.isnan(end):
        calm = before < base + _HIGH and ratios[usable] >= _NAN_SHARE
        if calm:
            raise IllPosedError(
                f"the energy of {system.name!r} becomes NaN as {path.name} (r = "
                f"{path.first * float(ratios[usable]):.2g}), coming from {before:.4g} kT. {FORBIDDEN}"
            )
    falling = end == -math.inf
    slopes = [
        (values[k] - values[k + 1]) / (_STEP * math.log(10.0)) for k in range(max(usable - 1, 0))
    ]
    last = slopes[-_JUDGED:]
    steep = len(slopes) > _JUDGED and all(slope >= path.shrinking for slope in last)
    # What levels off on the way in, as a very small core does, is left to the last digits.
    if not falling and not (steep and last[-1] >= 0.9 * last[0]):
        return ""
    at = next((k for k in range(usable) if values[k] < base - _HIGH), usable - 1)
    shown, where = values[at] if at >= 0 else end, path.first * float(ratios[max(at, 0)])
    said = (
        f"the energy of {system.name!r} falls to {shown:.2g} kT and further as {path.name} "
        f"(r = {where:.2g})"
    )
    if path.guarded and highest > base + _BARRIER:
        return (
            f"{said}, behind a barrier of {highest - base:.2g} kT: exp(-u) has no norm there, which chains "
            "that start outside are not expected to find"
        )
    raise IllPosedError(
        f"{said}: exp(-u) has no norm. Add a core, a repulsion that grows faster than the attraction as r "
        "goes to 0, such as (s/r)^12, or cap the attraction, as 1/(r^6 + a^6) does"
    )
