"""Trained samplers: their card, their files, and the samples they draw."""

from .sampler import Sampler

__all__ = ["Sampler"]
