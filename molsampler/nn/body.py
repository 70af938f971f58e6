"""Configuration of network bodies, and one place that builds them.

A body takes positions ``(b, n, d)`` and features per particle ``(b, n, f)`` and returns a
displacement ``(b, n, d)``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..errors import InputError
from ..molecule.particles import Particles
from ..space import Space
from .egnn import EGNN
from .mlp import MLP


class Frozen(BaseModel):
    """Base of all configurations: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EGNNConfig(Frozen):
    """An :class:`~molsampler.nn.egnn.EGNN`. ``particles`` is filled in from the target by training.

    The upper bounds keep the card of a stranger from asking for a network without end.
    """

    kind: Literal["egnn"] = "egnn"
    width: int = Field(64, ge=1, le=2**14)
    layers: int = Field(4, ge=1, le=256)
    rbf: int = Field(16, ge=0, le=1024)
    rbf_range: float = Field(3.0, gt=0)
    inverse: bool = True
    attention: bool = False
    unordered: bool = False
    deep_head: bool = False
    particles: Particles | None = None


class MLPConfig(Frozen):
    """An :class:`~molsampler.nn.mlp.MLP`."""

    kind: Literal["mlp"] = "mlp"
    width: int = Field(128, ge=1, le=2**14)
    layers: int = Field(4, ge=1, le=256)
    bumps: int = Field(0, ge=0, le=1024)
    bins: int = Field(0, ge=0, le=1024)


BodyConfig = Annotated[EGNNConfig | MLPConfig, Field(discriminator="kind")]


class _Flat(nn.Module):
    """An MLP in the interface of a body: features per particle are flattened."""

    def __init__(self, shape: tuple[int, int], features: int, config: MLPConfig):
        super().__init__()
        self.net = MLP(shape, shape[0] * features, **config.model_dump(exclude={"kind"}))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        displacement: Tensor = self.net(x, features.flatten(1))
        return displacement


def build_body(config: EGNNConfig | MLPConfig, space: Space, features: int) -> nn.Module:
    """Build the body that ``config`` describes, for ``features`` input features per particle.

    Raises
    ------
    InputError
        An EGNN is asked for where there are no pairs of particles for it to read.
    """
    if isinstance(config, MLPConfig):
        return _Flat(space.shape, features, config)
    if space.shape[0] < 2:
        raise InputError(
            f"an EGNN moves particles along the lines between them and needs at least two, got a "
            f"system of shape {space.shape}; use a body of kind 'mlp'"
        )
    settings = config.model_dump(exclude={"kind", "particles"})
    return EGNN(space.shape[0], features, **settings, particles=config.particles)
