"""Networks: equivariant and plain bodies, the generator, and the preconditioned denoiser.

A *body* maps positions and a conditioning vector to a displacement of the same shape; ``egnn`` and
``mlp`` are the two kinds. ``generator`` turns latent noise into configurations, ``denoiser`` turns
noisy configurations into scores.
"""

from .body import BodyConfig, EGNNConfig, MLPConfig, build_body
from .denoiser import Denoiser
from .generators.implicit import Generator, GeneratorConfig, Latent, build_generator

__all__ = [
    "BodyConfig",
    "Denoiser",
    "EGNNConfig",
    "Generator",
    "GeneratorConfig",
    "Latent",
    "MLPConfig",
    "build_body",
    "build_generator",
]
