"""Samples as a pandas table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..collective_variables import collective_variable
from ..errors import MissingDependencyError
from ..samples import Samples

if TYPE_CHECKING:
    from pandas import DataFrame


def to_pandas(samples: Samples, variables: Sequence[str], named: Mapping[str, str]) -> DataFrame:
    """One row a sample; see :meth:`molsampler.samples.Samples.to_pandas`."""
    try:
        from pandas import DataFrame
    except ImportError:
        raise MissingDependencyError(
            "pandas is not installed: pip install 'molsampler[notebook]'"
        ) from None
    _, particles, dimension = samples.positions.shape
    known = [collective_variable(text, (particles, dimension), named=named) for text in variables]
    columns = {"energy": samples.energies.numpy().copy()}
    if samples.log_weights is not None:
        columns["log_weight"] = samples.log_weights.numpy().copy()
    columns |= {each.name: each(samples.positions).numpy() for each in known}
    table = DataFrame(columns)
    table.index.name = "sample"
    table.attrs = dict(samples.metadata)
    return table
