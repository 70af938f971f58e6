r"""Turns: a chain proposes any other angle for one of its circular coordinates.

Langevin steps cross the barrier between two rotamers as rarely as dynamics does. A circular coordinate q is
the normal quantile of its share of a turn, so a standard normal draw in its place is a uniform angle;
whatever else the energy says decides, with

.. math:: \log\alpha = u(q) - u(q') + \tfrac12 (q'^2 - q^2).

Of turns about a bond of a chain molecule 10 to 30 % are accepted. Mixed with Langevin steps, chain by chain
and at random, the kernel stays reversible, and costs what it did.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..space import Space

#: Share of the chains that turn rather than take a Langevin step.
SHARE = 0.2


class Turns(NamedTuple):
    """Which chains ``(*b,)`` turn, to where ``(*b, n, d)``, and log q(x | x') - log q(x' | x) ``(*b,)``."""

    chosen: Tensor
    position: Tensor
    log_q: Tensor


def proposed(x: Tensor, space: Space, *, generator: torch.Generator | None) -> Turns | None:
    """Turns of some of the chains ``x`` ``(*b, n, d)``; None on a space without circular coordinates."""
    if not space.circular:
        return None
    batch, device = x.shape[:-2], x.device
    circular = torch.tensor(space.circular, device=device)
    pick = torch.randint(len(circular), batch, generator=generator, device=device)
    which = circular[pick][..., None]
    flat = x.flatten(-2)
    old = flat.gather(-1, which)
    new = torch.randn(old.shape, generator=generator, dtype=x.dtype, device=device)
    return Turns(
        torch.rand(batch, generator=generator, device=device) < SHARE,
        flat.scatter(-1, which, new).reshape(x.shape),
        0.5 * (new.square() - old.square()).squeeze(-1),
    )
