"""Network bodies, one file per kind: positions and features to displacements."""

from .base import BODIES, AnyBody, Body
from .egnn import EGNNBody
from .mlp import MLPBody
from .plain_mlp import PlainMLPBody
from .satorras import SatorrasBody

__all__ = [
    "BODIES",
    "AnyBody",
    "Body",
    "EGNNBody",
    "MLPBody",
    "PlainMLPBody",
    "SatorrasBody",
]
