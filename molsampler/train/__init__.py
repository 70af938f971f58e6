"""Training: configuration, the two-time-scale loop, and run folders that resume.

``train`` runs or resumes a run folder; ``load_config`` builds its configuration from a preset, a
file and overrides; ``started_from`` has it start from a trained sampler.
"""

from .config import PRESETS, TrainConfig, load_config
from .progress import Progress
from .run import TrainResult, train
from .start import started_from

__all__ = [
    "PRESETS",
    "Progress",
    "TrainConfig",
    "TrainResult",
    "load_config",
    "started_from",
    "train",
]
