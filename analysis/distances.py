"""Interatomic distances and how their distribution differs from a reference.

All pairs ``i < j`` of all configurations are pooled into one distribution. It is invariant under
rotation, reflection, translation and relabelling, and blind to which distances occur together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from molsampler.errors import ShapeError
from molsampler.target import System

from .draws import Draw
from .energies import BINS, Binned, total_variation
from .metric import Distance, Value


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


def distance_total_variation(samples: Tensor, reference: Tensor, *, bins: int = BINS) -> Binned:
    """TVD-D: total variation distance of the pooled interatomic distances.

    Parameters
    ----------
    samples, reference : positions ``(*b, n, d)``

    Raises
    ------
    InputError
        See :func:`interatomic_distances` and :func:`molsampler.analysis.energies.total_variation`.
    """
    return total_variation(
        interatomic_distances(samples), interatomic_distances(reference), bins=bins
    )


class DistanceTotalVariation(Distance):
    key = "tvd_distance"
    name = "TVD-D"
    definition = "The same for all interatomic distances, pooled."
    aside = "outside the reference's range"

    def applies(self, system: System) -> bool:
        return system.shape[0] > 1

    def value(self, samples: Draw, reference: Draw) -> Value:
        found = distance_total_variation(samples.positions, reference.positions)
        return Value(found.value, found.outside)
