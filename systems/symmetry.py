"""Which motions leave an energy unchanged, found by trying them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from molsampler.space import Space

#: Length scales of the probed configurations: in collision, in contact, far apart.
SCALES = (0.1, 1.0, 10.0)


class Symmetry(NamedTuple):
    """Whether translations, and whether rotations and reflections, leave the energy unchanged."""

    translation: bool
    rotation: bool


def probe_positions(space: Space, rows: int = 4) -> Tensor:
    """Gaussian configurations ``(3 rows, n, d)`` in float64, ``rows`` of each of :data:`SCALES`."""
    rng = torch.Generator().manual_seed(0)
    like = torch.zeros((), dtype=torch.float64)
    return torch.cat([scale * space.randn(rows, generator=rng, like=like) for scale in SCALES])


def probe(energy: Callable[[Tensor], Tensor], x: Tensor, *, tolerance: float) -> Symmetry:
    """Try one shift and one improper rotation on configurations ``x``, ``(b, n, d)``.

    ``energy`` gives ``(b,)``; a change of ``tolerance (1 + |u|)`` still counts as none.
    """
    rng = torch.Generator().manual_seed(1)
    d = x.shape[-1]
    shift = torch.randn(d, generator=rng, dtype=x.dtype)
    turn, _ = torch.linalg.qr(torch.randn(d, d, generator=rng, dtype=x.dtype))
    mirror = torch.ones(d, dtype=x.dtype)
    mirror[0] = -1.0
    u = energy(x)

    def same(moved: Tensor) -> bool:
        change = (energy(moved) - u).abs()
        return bool((change <= tolerance * (1.0 + u.abs())).all())

    return Symmetry(same(x + shift), same(x @ turn) and same(x * mirror))
