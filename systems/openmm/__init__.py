"""Any OpenMM system as a differentiable reduced energy."""

from .alanine_dipeptide import AlanineDipeptide
from .smiles import SmilesSystem
from .system import OpenMMSystem

__all__ = ["AlanineDipeptide", "OpenMMSystem", "SmilesSystem"]
