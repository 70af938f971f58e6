r"""Bond lengths, angles and torsions of a molecule as unconstrained coordinates of unit scale.

In Cartesian coordinates a molecule's density is a thin curved sheet: bonds are a few per cent wide, torsions
go all the way round. In internal coordinates it is nearly a product. Atoms are placed one after the other
from bond length r, angle θ and torsion φ relative to three atoms placed before (Parsons et al.,
J. Comput. Chem. 26, 1063 (2005)), and the volume element is

.. math:: dx = r_2^2\, dr_2\; r_3^2 \sin\theta_3\, dr_3\, d\theta_3
   \prod_{i > 3} r_i^2 \sin\theta_i\, dr_i\, d\theta_i\, d\phi_i \times d(\text{translation, rotation}).

A vector q of :math:`3n - 6` numbers stands for them. Stiff ones are :math:`c + w q` with centre c and
width w from the molecule's own energy: a minimum and the curvature there. The torsion about a bond that
turns freely is

.. math:: \phi = \phi_\mathrm{cut} + 2 \pi\, \Phi(q)

with the normal distribution function Φ, so that a free rotor is a standard normal; the cut is put where the
torsion is least likely. Further atoms on the same bond are placed relative to the first one.

The density of q is :math:`\exp(-u(x(q)))\,|dx/dq|`, which :class:`InternalTarget` gives to samplers. Stiff
torsions are kept within 1 rad of their centre by a wall. It is what holds the handedness of chiral centres,
and double and peptide bonds as they were given; other isomers are other molecules here.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Self

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor
from torch.special import ndtr

from ..errors import InputError
from ..space import Euclidean
from ..target import Target

#: Stiff torsions end this far from their centre, in rad: short of the other hand of a chiral centre.
_TORSION_REACH = 1.0

#: Width of the walls, in rad, or in relative length for bonds.
_WALL = 0.05

#: Angles end this far from straight and from folded, bonds at this share of their centre.
_ANGLE_MARGIN, _SHORTEST = 0.1, 0.4


class Placed(NamedTuple):
    """Configurations that belong to q."""

    position: Tensor
    """``(b, n, 3)``, in the system's length unit, in the frame of the first three atoms."""
    log_volume: Tensor
    """``log |dx/dq|`` up to a constant, ``(b,)``."""
    wall: Tensor
    """Energy of the walls in kT, ``(b,)``."""


class InternalCoordinates(BaseModel):
    """A tree of placements; a frozen description that a card can hold.

    Attributes
    ----------
    placements : per atom, in the order of placing, ``(atom, bonded, angle, torsion)``: the atoms to which
        its bond, angle and torsion refer; -1 where the first three atoms have none
    centres, widths : of bond, angle and torsion per placement, in the length unit and rad; for a free
        torsion the centre is the cut and the width zero

    Both have a row of three for each placement; entries that a placement does not have are zero.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    placements: tuple[tuple[int, int, int, int], ...]
    centres: tuple[tuple[float, float, float], ...]
    widths: tuple[tuple[float, float, float], ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        n = len(self.placements)
        if n < 3 or len(self.centres) != n or len(self.widths) != n:
            raise ValueError("three placements at least, with centres and widths for each")
        placed: set[int] = set()
        for index, (atom, *references) in enumerate(self.placements):
            wanted = references[: min(index, 3)]
            if not 0 <= atom < n or atom in placed:
                raise ValueError(f"placement {index} names atom {atom} twice or out of range")
            if len(set(wanted)) < len(wanted) or not set(wanted) <= placed:
                raise ValueError(f"placement {index} refers to atoms that are not placed before")
            if any(reference != -1 for reference in references[min(index, 3) :]):
                raise ValueError(f"placement {index} has no such reference")
            placed.add(atom)
            for kind in range(min(index, 3)):
                width = self.widths[index][kind]
                if not (0 < width < 100 or (kind == 2 and width == 0)):
                    raise ValueError(f"width {width} of placement {index} is out of range")
                if not abs(self.centres[index][kind]) < 100:
                    raise ValueError(f"centre of placement {index} is out of range")
            if index and not self.centres[index][0] > 0:
                raise ValueError(f"bond of placement {index} has no length")
        return self

    @property
    def dof(self) -> int:
        """Number of coordinates, 3n - 6."""
        return 3 * len(self.placements) - 6

    @property
    def free(self) -> tuple[int, ...]:
        """Placements whose torsion is free."""
        return tuple(k for k in range(3, len(self.placements)) if self.widths[k][2] == 0)

    @property
    def log_constant(self) -> float:
        r"""What :attr:`Placed.log_volume` leaves out of the log of
        :math:`\prod r^2 \sin\theta\, dr\, d\theta\, d\phi / dq`: the widths, and
        :math:`\sqrt{2\pi}` for each free torsion."""
        stiff = sum(math.log(width) for row in self.widths for width in row if width > 0)
        return stiff + 0.5 * math.log(2 * math.pi) * len(self.free)

    def to_cartesian(self, q: Tensor) -> Placed:
        """Configurations of ``q`` ``(b, dof)``; differentiable."""
        n = len(self.placements)
        centres = torch.tensor(self.centres, dtype=q.dtype, device=q.device)
        widths = torch.tensor(self.widths, dtype=q.dtype, device=q.device)
        bonds, angles, torsions = torch.split(q, [n - 1, n - 2, n - 3], dim=-1)
        shortest = _SHORTEST * centres[1:, 0]
        r, wall = _walled(centres[1:, 0] + widths[1:, 0] * bonds, shortest, None, shortest * _WALL)
        theta, extra = _walled(
            centres[2:, 1] + widths[2:, 1] * angles, _ANGLE_MARGIN, math.pi - _ANGLE_MARGIN, _WALL
        )
        log_volume = 2 * r.log().sum(-1) + theta.sin().log().sum(-1)
        free = torch.tensor(self.widths)[3:, 2] == 0
        turn = widths[3:, 2] * torsions
        stiff, more = _walled(turn, -_TORSION_REACH, _TORSION_REACH, _WALL)
        # The tails of the normal are beyond reach of the angle's precision.
        phi = torch.where(
            free.to(q.device),
            centres[3:, 2] + 2 * math.pi * ndtr(torsions),
            centres[3:, 2] + stiff,
        )
        log_volume = log_volume - 0.5 * torsions[..., free].square().sum(-1)
        return Placed(self.placed(r, theta, phi), log_volume, wall + extra + more)

    def placed(self, r: Tensor, theta: Tensor, phi: Tensor) -> Tensor:
        """Positions from bonds ``(b, n-1)``, angles ``(b, n-2)`` and torsions ``(b, n-3)``."""
        n = len(self.placements)
        zero = torch.zeros_like(r[:, 0])
        # Distances along, across and out of the frame of the three references.
        along = -r[:, 1:] * theta.cos()
        across = r[:, 1:] * theta.sin()
        columns: list[Tensor] = [zero.new_zeros(0)] * n
        first, second, third = (placement[0] for placement in self.placements[:3])
        columns[first] = torch.stack([zero, zero, zero], -1)
        columns[second] = torch.stack([r[:, 0], zero, zero], -1)
        bonded, other = self.placements[2][1:3]
        inwards = columns[bonded] - columns[other]
        unit = inwards / inwards.norm(dim=-1, keepdim=True)
        sideways = torch.zeros_like(unit)
        sideways[:, 1] = 1.0
        columns[third] = columns[bonded] + along[:, :1] * unit + across[:, :1] * sideways
        for level in self._levels():
            atoms = [self.placements[k] for k in level]
            b = torch.stack([columns[a[1]] for a in atoms], 1)
            c = torch.stack([columns[a[2]] for a in atoms], 1)
            d = torch.stack([columns[a[3]] for a in atoms], 1)
            axis = torch.nn.functional.normalize(b - c, dim=-1)
            normal = torch.nn.functional.normalize(torch.linalg.cross(c - d, axis), dim=-1)
            in_plane = torch.linalg.cross(normal, axis)
            rows = [k - 2 for k in level]
            angle = phi[:, [k - 3 for k in level]]
            x = (
                b
                + along[:, rows, None] * axis
                + (across[:, rows] * angle.cos())[..., None] * in_plane
                + (across[:, rows] * angle.sin())[..., None] * normal
            )
            for column, (atom, *_) in enumerate(atoms):
                columns[atom] = x[:, column]
        return torch.stack(columns, 1)

    def _levels(self) -> list[list[int]]:
        """Placements after the third in groups that need nothing of each other."""
        depth: dict[int, int] = {placement[0]: 0 for placement in self.placements[:3]}
        levels: list[list[int]] = []
        for k, (atom, *references) in enumerate(self.placements[3:], start=3):
            depth[atom] = 1 + max(depth[reference] for reference in references)
            while len(levels) < depth[atom]:
                levels.append([])
            levels[depth[atom] - 1].append(k)
        return levels

    def from_cartesian(self, x: Tensor) -> Tensor:
        """Coordinates ``(b, dof)`` of configurations ``(b, n, 3)``; they end at eight widths in a free
        torsion's cut."""
        values = self.measured(x)
        centres = torch.tensor(self.centres, dtype=x.dtype, device=x.device)
        widths = torch.tensor(self.widths, dtype=x.dtype, device=x.device)
        bonds = (values[0] - centres[1:, 0]) / widths[1:, 0]
        angles = (values[1] - centres[2:, 1]) / widths[2:, 1]
        turn = values[2] - centres[3:, 2]
        free = widths[3:, 2] == 0
        share = (turn / (2 * math.pi)).remainder(1.0)
        stiff = (turn + math.pi).remainder(2 * math.pi) - math.pi
        torsions = torch.where(
            free,
            torch.special.ndtri(share).clamp(-8, 8),
            stiff / torch.where(free, 1.0, widths[3:, 2]),
        )
        return torch.cat([bonds, angles, torsions], -1)

    def measured(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bonds ``(b, n-1)``, angles ``(b, n-2)``, torsions ``(b, n-3)`` of configurations ``(b, n, 3)``."""
        index = torch.tensor(self.placements, device=x.device)
        atom, bonded, angle, torsion = (x[:, index[:, k].clamp(min=0)] for k in range(4))
        own, axis = atom - bonded, bonded - angle
        r = own.norm(dim=-1)[:, 1:]
        cos = -torch.nn.functional.cosine_similarity(own, axis, dim=-1)[:, 2:]
        normal = torch.linalg.cross(angle - torsion, axis)
        in_plane = torch.linalg.cross(normal, torch.nn.functional.normalize(axis, dim=-1))
        phi = torch.atan2((own * normal).sum(-1), (own * in_plane).sum(-1))[:, 3:]
        return r, torch.arccos(cos.clamp(-1, 1)), phi


def _walled(
    value: Tensor, low: Tensor | float | None, high: float | None, width: Tensor | float
) -> tuple[Tensor, Tensor]:
    """``value`` kept between ``low`` and ``high``, and the energy of having been beyond, ``(b,)``."""
    kept = value.clamp(
        min=None if low is None else torch.as_tensor(low).to(value),
        max=None if high is None else torch.as_tensor(high).to(value),
    )
    return kept, (0.5 * ((value - kept.detach()) / width).square()).sum(-1)


class InternalTarget:
    """A molecule's density in internal coordinates, a target on :math:`R^{3n-6}`.

    Shapes are ``(3n-6, 1)``: what limits the move of a particle, the truncated drift of Langevin steps,
    then limits every coordinate by itself, and a clash that one torsion causes cannot throw that torsion
    across its range.
    """

    def __init__(self, system: Target, coordinates: InternalCoordinates):
        shape = system.space.shape
        if len(coordinates.placements) != shape[0] or shape[1] != 3:
            raise InputError(
                f"internal coordinates of {len(coordinates.placements)} atoms do not fit a system of "
                f"shape {shape}"
            )
        self.system, self.coordinates = system, coordinates
        torsions = 2 * len(coordinates.placements) - 3
        circular = tuple(torsions + k - 3 for k in coordinates.free)
        self.space = Euclidean(coordinates.dof, 1, circular)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``u(x(q)) - log|dx/dq|`` plus walls, and its negative gradient; ``x`` is q, ``(*b, dof, 1)``."""
        q = x.detach().reshape(-1, self.coordinates.dof).double()
        with torch.enable_grad():
            q.requires_grad_()
            placed = self.coordinates.to_cartesian(q)
            energy, score = self.system.energy_and_score(placed.position.detach())
            shape = placed.log_volume - placed.wall
            # The gradient of this is that of -u(x(q)) + shape.
            along = (placed.position * score).sum(dim=(-2, -1)) + shape
            (gradient,) = torch.autograd.grad(along.sum(), q)
        energy = energy - shape.detach()
        bad = ~torch.isfinite(energy) | ~torch.isfinite(gradient).all(-1)
        energy = energy.masked_fill(bad, torch.inf)
        gradient = gradient.masked_fill(bad[:, None], 0.0)
        return energy.reshape(x.shape[:-2]).to(x), gradient.reshape(x.shape).to(x)


def random_rotations(n: int, *, generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Uniform rotations ``(n, 3, 3)`` (Shoemake 1992)."""
    q = torch.randn(n, 4, generator=generator, dtype=like.dtype, device=like.device)
    w, x, y, z = torch.nn.functional.normalize(q, dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
