"""Which of the independent replicas of a reference run each of its samples is from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def replica_of_row(metadata: Mapping[str, Any], n: int) -> NDArray[np.int64] | None:
    """Replica of each of ``n`` rows, by what a reference run records; None for samples of another origin.

    Rows are ordered by draw, then by replica; the first draw may have been cut.
    """
    run = metadata.get("run")
    replicas = run.get("replicas") if isinstance(run, Mapping) else None
    if isinstance(replicas, bool) or not isinstance(replicas, int) or replicas < 1:
        return None
    first = run.get("first_replica") if isinstance(run, Mapping) else None
    if isinstance(first, bool) or not isinstance(first, int):
        first = -n % replicas if n > replicas else 0
    return (first + np.arange(n)) % replicas
