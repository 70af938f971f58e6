"""Configurations to probe around, and whether the one that the user gave is usable."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import IllPosedError
from ..target import System
from .evaluator import Evaluator

#: Energy in kT per particle above which a given start is an overlap or of another unit: each coordinate
#: would have it at some million kelvin.
_ABSURD = 1e4

#: Particles from which on evaluations are dear, as they are for molecules; such systems are probed at fewer
#: configurations.
_MANY = 50

#: Scales of the Gaussians drawn where the system knows no start, and draws of each; and of many particles.
_SCALES = tuple(10.0 ** (k / 2) for k in range(-4, 7))
_DRAWS, _FEW_DRAWS = 8, 3

#: Fall in kT per particle at which a descent ends: it has found a hole, not a minimum.
_HOLE = 1e6
#: Factor by which a descent may move outwards: an energy that falls that way has no minimum to find.
_REACH = 2.0

#: What to do about a NaN outside the domain of an energy.
FORBIDDEN = (
    "A root or logarithm may have a negative argument there; where configurations are forbidden the energy "
    "should rise, or be +inf"
)


class Bases(NamedTuple):
    """Configurations ``(k, n, d)`` near minima of the energy, their energies, and their size.

    ``known`` says that the system itself knows where chains start; ``sparing`` that evaluations are dear.
    """

    position: Tensor
    energy: Tensor
    size: float
    known: bool
    sparing: bool


def given_start(system: System) -> Tensor | None:
    """The configuration ``(n, d)`` that the user gave, None where there is none."""
    molecule = system.molecule
    if molecule is not None and molecule.geometry is not None:
        return torch.tensor(molecule.geometry, dtype=torch.float64)
    found = system.starts(1, generator=torch.Generator().manual_seed(0))
    return None if found is None else found[0].double()


def require_usable_start(system: System, evaluate: Evaluator) -> None:
    """Refuse a given start whose energy is NaN, infinite or absurdly high.

    Raises
    ------
    IllPosedError
        See above; the closest pair is named.
    """
    x = given_start(system)
    if x is None:
        return
    u, score = evaluate(system.space.project(x)[None])
    energy, n = float(u[0]), len(x)
    if torch.isnan(u).any():
        raise IllPosedError(
            f"the energy of {system.name!r} is NaN at the given start ({closest(x)}); a parameter may be "
            "NaN, or a root or logarithm may have a negative argument there"
        )
    if energy == torch.inf or energy > _ABSURD * n:
        raise IllPosedError(
            f"the given start of {system.name!r} has an energy of {energy:.2g} kT ({closest(x)}): "
            "particles overlap, or coordinates are in another unit than the energy (positions of "
            "molecules are in nm, those of PDB files in Angstrom). Minimise it, or give another"
        )
    if not torch.isfinite(score).all():
        raise IllPosedError(
            f"the score of {system.name!r} is not finite at the given start, where the energy is "
            f"{energy:.6g} kT ({closest(x)})"
        )


def closest(x: Tensor) -> str:
    """The closest pair of particles of a configuration ``(n, d)``, as a clause."""
    if len(x) < 2:
        return "one particle"
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance.fill_diagonal_(torch.inf)
    i, j = divmod(int(distance.argmin()), len(x))
    return (
        f"the closest particles, {min(i, j)} and {max(i, j)}, are {float(distance[i, j]):.3g} apart"
    )


def find_bases(system: System, evaluate: Evaluator) -> Bases | None:
    """Configurations of low energy: given starts, or the best of Gaussians, followed downhill a little.

    None where nothing has a finite energy.

    Raises
    ------
    IllPosedError
        The energy is NaN wherever it was asked for.
    """
    rng = torch.Generator().manual_seed(1)
    found = system.starts(2, generator=rng)
    known, scale = found is not None, 0.0
    sparing = known or system.shape[0] > _MANY
    if found is None:
        like = torch.empty(0, dtype=torch.float64)
        count = _FEW_DRAWS if sparing else _DRAWS
        draws = system.space.randn(count, generator=rng, like=like)
        tried = torch.stack([scale * draws for scale in _SCALES])
        u = evaluate.energy(tried.flatten(0, 1)).reshape(len(_SCALES), count)
        if bool(u.isnan().all()):
            raise IllPosedError(
                f"the energy of {system.name!r} is NaN at all of {u.numel()} random configurations of "
                f"sizes {_SCALES[0]:g} to {_SCALES[-1]:g}"
            )
        u = u.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
        # The lowest free energy: low energies at sizes that have room.
        room = system.space.dof * torch.tensor(_SCALES, dtype=torch.float64).log()
        chosen = int((u.median(dim=1)[0] - room).argmin())
        scale = _SCALES[chosen]
        found = tried[chosen][u[chosen].argsort()[: 1 if sparing else 4]]
    # Pair sums cost the square of the particles.
    steps = 60 if not sparing else max(3, min(30, 3000 // system.shape[0]))
    x, u = _descend(found.double(), evaluate, steps=steps)
    usable = torch.isfinite(u)
    if not usable.any():
        return None
    x, u = x[usable], u[usable]
    centre = x - x.mean(1, keepdim=True) if x.shape[1] > 1 else x
    size = float(centre.square().sum(-1).mean().sqrt())
    # One particle at its origin has no size; a unit of length is the system's own.
    return Bases(x, u, max(size, scale) if max(size, scale) > 1e-6 else 1.0, known, sparing)


def _descend(x: Tensor, evaluate: Evaluator, *, steps: int) -> tuple[Tensor, Tensor]:
    """Steps along the score that lower the energy, each row with a length of its own, and not far away."""
    space = evaluate.system.space
    u, score = evaluate(x)
    n = x.shape[1]
    floor = u - _HOLE * n
    reach = _REACH * x.flatten(1).norm(dim=1)
    length = 0.1 * x.flatten(1).abs().amax(1).clamp(min=1e-6)
    for _ in range(steps):
        largest = score.flatten(1).abs().amax(1).clamp(min=1e-300)
        trial = space.project(
            x + (length / largest)[:, None, None] * score.nan_to_num(0.0, 0.0, 0.0)
        )
        new, slope = evaluate(trial)
        # From an overlap the energy may fall by any amount, from a calm start only into a hole.
        hole = (new < floor) & (u < _ABSURD * n)
        near = trial.flatten(1).norm(dim=1) <= reach
        lower = (new < u) & near & ~hole & torch.isfinite(slope).flatten(1).all(1)
        x = torch.where(lower[:, None, None], trial, x)
        score = torch.where(lower[:, None, None], slope, score)
        u = torch.where(lower, new, u)
        length = torch.where(lower, 1.3 * length, 0.4 * length)
    return x, u
