"""Generators, one file per kind: from noise to configurations."""

from .base import GENERATORS, AnyGenerator, Draw, Generator, GeneratorConfig, Sampling

__all__ = ["GENERATORS", "AnyGenerator", "Draw", "Generator", "GeneratorConfig", "Sampling"]
