"""Reference samples by OpenMM dynamics or Monte Carlo, with a verdict on their convergence."""

from .run import REFERENCE_SETS, load_reference, reference_path, replica_index, sample_reference

__all__ = [
    "REFERENCE_SETS",
    "load_reference",
    "reference_path",
    "replica_index",
    "sample_reference",
]
