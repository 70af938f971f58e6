"""Distances within configurations."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import ShapeError


def interatomic_distances(x: Tensor) -> Tensor:
    r"""Distances :math:`|x_i - x_j|` of all pairs ``i < j``, shape ``(*b, n (n - 1) / 2)``.

    Parameters
    ----------
    x : positions ``(*b, n, d)`` with at least two particles, system length unit

    Raises
    ------
    ShapeError
        ``x`` has fewer than two dimensions or fewer than two particles.
    """
    if not isinstance(x, Tensor) or x.dim() < 2 or x.shape[-2] < 2:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(
            f"x must be a tensor (*batch, particle, dimension) of two or more particles, got {got}"
        )
    i, j = torch.triu_indices(x.shape[-2], x.shape[-2], 1, device=x.device)
    distances: Tensor = torch.linalg.vector_norm(x[..., i, :] - x[..., j, :], dim=-1)
    return distances
