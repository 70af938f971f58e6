"""The last layer of a network, whose outputs are quantities of unlike meaning and scale."""

from __future__ import annotations

from .linear import Linear


class Readout(Linear):
    """A linear layer whose rows an optimiser should not mix: each output is a width, a height or a slope of
    its own."""
