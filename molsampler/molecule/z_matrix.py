"""Internal coordinates of a molecule: a Z-matrix from its bonds, centres and widths from its energy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import InputError
from ..target import System
from .chart import Chart, chart_of
from .graph import Bonds, distances, neighbours
from .internal_coordinates import InternalCoordinates, InternalTarget

#: Steps of the minimisation that finds centres, and tolerance in kT per unit of q.
_MINIMISER_STEPS, _TOLERANCE = 500, 1e-3

#: Step, in first-guess widths, of the differences that find the curvature.
_DIFFERENCE = 1e-2

#: First guesses of the widths: nm relative to the bond's length, rad, rad.
_FIRST_WIDTHS = (0.025, 0.06, 0.1)

#: Cosine below which an angle (over 165 degrees) is straight.
_STRAIGHT = -0.966

#: Rigid rotations at which a free torsion is tried to find its cut.
_SCAN = 72


def has_internal_coordinates(system: System) -> bool:
    """Whether :func:`internal_coordinates` has what it needs: one molecule of known geometry and turning
    bonds, with no straight angle, felt by no field."""
    return not why_no_internal_coordinates(system)


def why_no_internal_coordinates(system: System) -> str:
    """What a system lacks for :func:`internal_coordinates`, as a clause that follows its name; or nothing.

    A torsion about an axis on which its outer atoms lie is not defined, so groups such as nitriles and
    alkynes, whose bond angle is 180 degrees, have no chart of this kind. Rings do: all but their closing
    bonds are coordinates.
    """
    molecule = system.molecule
    if molecule is None or not molecule.bonds:
        return "is no molecule with bonds"
    if system.shape[0] < 3 or system.shape[1] != 3:
        return f"has {system.shape[0]} particles in {system.shape[1]} dimensions, not 3 or more in space"
    if molecule.geometry is None or molecule.turning_bonds is None:
        return "has no known geometry"
    if not system.invariant:
        return "has an energy that depends on place and orientation"
    if (distances(len(molecule), molecule.bonds) < 0).any():
        return "is more than one molecule"
    x = torch.tensor(molecule.geometry, dtype=torch.float64)
    for atom, bonded, angle, _ in _tree(len(molecule), molecule.bonds)[2:]:
        arms = [torch.nn.functional.normalize(x[k] - x[bonded], dim=0) for k in (atom, angle)]
        if float(arms[0] @ arms[1]) < _STRAIGHT:
            return f"has a straight angle at its atoms {atom}, {bonded}, {angle}"
    return ""


def chart_to_move_in(system: System) -> Chart:
    """The coordinates in which Monte Carlo moves best: a molecule's internal ones, else positions."""
    return chart_of(
        system, internal_coordinates(system) if has_internal_coordinates(system) else None
    )


def internal_coordinates(system: System) -> InternalCoordinates:
    """Internal coordinates of a molecule, from its bonds, given geometry and energy.

    The molecule's ``geometry`` is where the minimisation starts.

    Raises
    ------
    InputError
        The system is no single molecule of three atoms or more in three dimensions, its energy depends on
        where it is, or its geometry is not known.
    """
    molecule = system.molecule
    lacking = why_no_internal_coordinates(system)
    if lacking or molecule is None:
        raise InputError(
            "internal coordinates need a molecule of at least three atoms with bonds and positions whose "
            f"energy does not depend on place and orientation; {system.name!r} {lacking}. The Cartesian way "
            "(coordinates=cartesian) needs none of this"
        )
    x = torch.tensor(molecule.geometry, dtype=torch.float64)[None]
    placements = _tree(len(molecule), molecule.bonds)
    turning = {frozenset(bond) for bond in molecule.turning_bonds or ()}
    free = _free(placements, turning)
    first = _provisional(placements, x)
    minimum = _minimised(InternalTarget(system, first), first.from_cartesian(x))
    settled = _recentred(first, first.to_cartesian(minimum).position)
    widths = _conditional_widths(InternalTarget(system, settled), settled)
    cuts = {k: _cut(system, settled, k) for k in free}
    return InternalCoordinates(
        placements=placements,
        centres=tuple((c[0], c[1], cuts.get(k, c[2])) for k, c in enumerate(settled.centres)),
        widths=tuple((w[0], w[1], 0.0 if k in cuts else w[2]) for k, w in enumerate(widths)),
    )


def _tree(n: int, bonds: Bonds) -> tuple[tuple[int, int, int, int], ...]:
    """Placements along the bond graph, from the middle outwards, breadth first."""
    partners, steps = neighbours(n, bonds), distances(n, bonds)
    if (steps < 0).any():
        raise InputError("internal coordinates need a single molecule: the bonds do not connect it")
    # The middle of the molecule keeps chains of placements, and so lever arms, short.
    inner = [i for i in range(n) if len(partners[i]) > 1]
    root = min(inner, key=lambda i: (steps[i].max(), steps[i].sum(), i))
    second = min(partners[root], key=lambda i: (-len(partners[i]), steps[i].max(), i))
    order, parent = [root, second], {second: root, root: second}
    children: dict[int, list[int]] = {}
    queue = [root, second]
    while queue:
        atom = queue.pop(0)
        # Atoms with partners of their own first: the torsion of the first one turns the others.
        fresh = sorted(
            (b for b in partners[atom] if b not in parent), key=lambda b: (-len(partners[b]), b)
        )
        for b in fresh:
            parent[b] = atom
            children.setdefault(atom, []).append(b)
            order.append(b)
            queue.append(b)
    placements = [(root, -1, -1, -1), (second, root, -1, -1)]
    for atom in order[2:]:
        bonded = parent[atom]
        angle = parent[bonded]
        placed = {placement[0] for placement in placements}
        if len(placements) == 2:
            placements.append((atom, bonded, angle, -1))
            continue
        siblings = [b for b in children[bonded] if b in placed]
        if siblings:
            reference = siblings[0]
        else:
            # The first atom on this bond: its torsion is the bond's own.
            candidates = [parent[angle], *children.get(angle, [])]
            reference = next(b for b in candidates if b in placed and b not in (bonded, angle))
        placements.append((atom, bonded, angle, reference))
    return tuple(placements)


def _free(
    placements: tuple[tuple[int, int, int, int], ...], turning: set[frozenset[int]]
) -> list[int]:
    """Placements whose torsion is that of a bond that turns freely, and not relative to a sibling."""
    bonded = {placement[0]: placement[1] for placement in placements}
    found = []
    for k, (_, b, c, d) in enumerate(placements):
        if k > 2 and frozenset((b, c)) in turning and bonded[d] != b:
            found.append(k)
    return found


def _provisional(
    placements: tuple[tuple[int, int, int, int], ...], x: Tensor
) -> InternalCoordinates:
    """Linear coordinates about a configuration ``(1, n, 3)``, with rough widths."""
    rough = InternalCoordinates(
        placements=placements,
        centres=((0.0, 0.0, 0.0),) + ((1.0, 1.0, 0.0),) * (len(placements) - 1),
        widths=((0.0, 0.0, 0.0),) + ((1.0, 1.0, 1.0),) * (len(placements) - 1),
    )
    return _recentred(rough, x)


def _recentred(coordinates: InternalCoordinates, x: Tensor) -> InternalCoordinates:
    """The same placements centred at a configuration ``(1, n, 3)``, with rough widths."""
    r, theta, phi = coordinates.measured(x)
    centres = [(0.0, 0.0, 0.0)]
    widths = [(0.0, 0.0, 0.0)]
    for k in range(1, len(coordinates.placements)):
        length = float(r[0, k - 1])
        centres.append(
            (
                length,
                float(theta[0, k - 2]) if k > 1 else 0.0,
                float(phi[0, k - 3]) if k > 2 else 0.0,
            )
        )
        widths.append(
            (
                _FIRST_WIDTHS[0] * length,
                _FIRST_WIDTHS[1] if k > 1 else 0.0,
                _FIRST_WIDTHS[2] if k > 2 else 0.0,
            )
        )
    return InternalCoordinates(
        placements=coordinates.placements, centres=tuple(centres), widths=tuple(widths)
    )


def _minimised(target: InternalTarget, q: Tensor) -> Tensor:
    """A local minimum of the energy near ``q`` ``(1, dof)``."""
    point = q.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [point],
        max_iter=_MINIMISER_STEPS,
        tolerance_grad=_TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        energy, score = target.energy_and_score(point.detach()[..., None])
        point.grad = -score[..., 0]
        return energy.sum()

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    found = point.detach()
    energy, _ = target.energy_and_score(found[..., None])
    if not bool(torch.isfinite(energy).all()):
        raise InputError(
            "the molecule's positions could not be minimised; start from a relaxed one"
        )
    return found


def _conditional_widths(
    target: InternalTarget, settled: InternalCoordinates
) -> list[tuple[float, float, float]]:
    """Standard deviation of each coordinate with the others held, from the curvature at the centre."""
    dof = settled.dof
    shift = _DIFFERENCE * torch.eye(dof, dtype=torch.float64)
    plus, minus = (target.energy_and_score(s[..., None])[1][..., 0] for s in (shift, -shift))
    curvature = ((minus - plus) / (2 * _DIFFERENCE)).diagonal()
    # A flat or falling direction keeps its first guess, at most ten times wider.
    scale = curvature.clamp(min=1e-2).rsqrt().tolist()
    n = len(settled.placements)
    widths = []
    for k, (bond, angle, torsion) in enumerate(settled.widths):
        widths.append(
            (
                bond * scale[k - 1] if k > 0 else 0.0,
                angle * scale[n - 1 + k - 2] if k > 1 else 0.0,
                torsion * scale[2 * n - 3 + k - 3] if k > 2 else 0.0,
            )
        )
    return widths


def _cut(system: System, settled: InternalCoordinates, k: int) -> float:
    """The torsion of placement ``k`` at which a rigid rotation from the minimum costs most."""
    n = len(settled.placements)
    turns = torch.linspace(0, 2 * math.pi, _SCAN + 1, dtype=torch.float64)[:-1]
    r, theta, phi = settled.measured(settled.to_cartesian(torch.zeros(1, settled.dof).double())[0])
    phi = phi.repeat(_SCAN, 1)
    phi[:, k - 3] += turns
    x = settled.placed(r.expand(_SCAN, n - 1), theta.expand(_SCAN, n - 2), phi)
    energy = system.energy_and_score(x)[0].nan_to_num(posinf=1e300)
    return float(phi[int(energy.argmax()), k - 3])
