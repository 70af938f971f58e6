"""What training minimises, one file per kind."""

from .base import (
    OBJECTIVES,
    AnyObjective,
    Metrics,
    Objective,
    ObjectiveConfig,
    Preparation,
    Problem,
    State,
)

__all__ = [
    "OBJECTIVES",
    "AnyObjective",
    "Metrics",
    "Objective",
    "ObjectiveConfig",
    "Preparation",
    "Problem",
    "State",
]
