"""Double-well clusters: every pair prefers one of two distances."""

from __future__ import annotations

import torch
from torch import Tensor

from molsampler.target import check_positions

from .potential import PairPotential


class DoubleWell(PairPotential):
    r"""``n`` particles whose pair distances each feel a double well.

    .. math:: u(x) = \sum_{i<j} \left[ b\,(d_{ij}-d_0)^2 + c\,(d_{ij}-d_0)^4 \right],
        \qquad b = -4,\; c = 0.9,\; d_0 = 4

    ``dw4`` has four particles in the plane (Köhler, Klein & Noé, arXiv 2006.02425). Energies are in
    kT; one unit of length is drawn as 0.1 nm, which puts the wells at 0.25 and 0.55 nm.
    """

    def __init__(self, n: int = 4, d: int = 2) -> None:
        super().__init__(
            f"dw{n}" if d == 2 else f"dw{n}-{d}d",
            "b*x^2 + c*x^4; x = r - d0",
            n=n,
            d=d,
            parameters={"b": -4.0, "c": 0.9, "d0": 4.0},
            length_nm=0.1,
            description=f"{n} particles in {d}-D, double well in every pair distance",
        )

    def mode_labels(self, x: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Number of pairs in the outer well (distance beyond d0), shape ``(*b,)``, and its names.

        Raises
        ------
        ShapeError, NonFiniteError
            As :meth:`energy`.
        """
        x = check_positions(x, self.shape)
        i, j = torch.triu_indices(self.shape[0], self.shape[0], 1, device=x.device)
        distance = (x[..., i, :] - x[..., j, :]).norm(dim=-1)
        names = tuple(f"{k} long pair{'' if k == 1 else 's'}" for k in range(len(i) + 1))
        return (distance > self.parameters["d0"]).sum(-1), names
