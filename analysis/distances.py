"""Interatomic distances and how their distribution differs from a reference.

All pairs ``i < j`` of all configurations are pooled into one distribution, or into one for each two types of
particles where these differ. It is invariant under rotation, reflection, translation and relabelling, and
blind to which distances occur together.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from molsampler.molecule.graph import pair_types
from molsampler.structure import interatomic_distances as interatomic_distances
from molsampler.target import System

from .draws import Draw
from .energies import BINS, Binned, total_variation
from .metric import Distance, Value


def distance_total_variation(
    samples: Tensor,
    reference: Tensor,
    *,
    types: Sequence[int] | None = None,
    bins: int = BINS,
) -> Binned:
    """TVD-D: total variation distance of the pooled interatomic distances.

    Parameters
    ----------
    samples, reference : positions ``(*b, n, d)``
    types : one of each particle: distances are pooled for each two types, and the distances of these
        distributions averaged over the pairs

    Raises
    ------
    InputError
        See :func:`molsampler.structure.interatomic_distances` and
        :func:`molsampler.analysis.energies.total_variation`.
    """
    a, b = interatomic_distances(samples), interatomic_distances(reference)
    if types is None or len(set(types)) < 2:
        return total_variation(a, b, bins=bins)
    groups = list(pair_types(types).values())
    found = [total_variation(a[..., pairs], b[..., pairs], bins=bins) for pairs in groups]
    shares = [len(pairs) / a.shape[-1] for pairs in groups]
    return Binned(
        sum(share * each.value for share, each in zip(shares, found, strict=True)),
        sum(share * each.outside for share, each in zip(shares, found, strict=True)),
    )


class DistanceTotalVariation(Distance):
    key = "tvd_distance"
    name = "TVD-D"
    definition = (
        "The same for all interatomic distances, pooled; where particles without bonds differ, for each "
        "two types, averaged over the pairs."
    )
    aside = "outside the reference's range"

    def applies(self, system: System) -> bool:
        return system.shape[0] > 1

    def value(self, samples: Draw, reference: Draw) -> Value:
        types = samples.system.alike
        found = distance_total_variation(samples.positions, reference.positions, types=types)
        return Value(found.value, found.outside)
