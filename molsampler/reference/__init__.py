"""Reference samples by OpenMM dynamics or Monte Carlo, with a verdict on their convergence."""

from .run import replica_index, sample_reference
from .shipped import REFERENCE_SETS, load_reference, reference_path

__all__ = [
    "REFERENCE_SETS",
    "load_reference",
    "reference_path",
    "replica_index",
    "sample_reference",
]
