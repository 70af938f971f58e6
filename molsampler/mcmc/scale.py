r"""Lengths of coordinates that are unlike, so that one step size serves them all.

A step of MALA is as short as the stiffest coordinate asks, and every softer one walks at its pace. In
lengths :math:`\ell_i = E[(\partial_i u)^2]^{-1/2}` all are as stiff on average: of a Gaussian they are the
widths of conditional densities, and by the Cramér-Rao bound they are never longer than a coordinate is wide.
A torsion with three narrow minima is as stiff as these are narrow, however far apart they lie, which no
covariance tells (on this choice: Titsias, arXiv 2305.14442).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..space import Space

#: Transitions between measurements, where a kernel is tuned for long.
SCALE_EVERY = 10

#: Share of the chains, of the largest derivatives, left out: a collision would decide otherwise.
_LEFT_OUT = 0.01

#: Coordinates whose lengths differ by less than this factor keep a common one.
_ALIKE = 2.0

#: Longest and shortest length over the middle one.
_REACH = 1e3


def coordinate_scale(x: Tensor, score: Tensor, space: Space) -> Tensor | None:
    """Lengths ``(n, d)`` of geometric mean one, of chains ``x`` ``(b, n, d)`` with scores of that shape.

    None where the coordinates are alike, and on a space whose coordinates are not free, where lengths of
    their own would break its symmetry.
    """
    n, d = space.shape
    if space.dof != n * d or n * d < 2:
        return None
    squared = score.square().nan_to_num(nan=torch.inf, posinf=torch.inf)
    kept = max(int((1 - _LEFT_OUT) * len(x)), 1)
    stiffness = squared.sort(dim=0)[0][:kept].mean(0)
    length = torch.minimum(stiffness.rsqrt(), x.std(0) if len(x) > 1 else torch.ones_like(x[0]))
    middle = length.median()
    if not bool(torch.isfinite(length).all() & (middle > 0)):
        return None
    length = (length / middle).clamp(1 / _REACH, _REACH)
    if float(length.max() / length.min()) < _ALIKE:
        return None
    return length / length.log().mean().exp()
