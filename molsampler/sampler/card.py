"""What an artifact says of its weights: the content of ``card.json``."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..errors import FileFormatError, InputError
from ..molecule.internal_coordinates import InternalCoordinates
from ..molecule.molecule import Molecule
from ..storage.files import read_limited
from ..storage.sealed_json import parse_json, unsealed
from ..storage.validation import validated
from ..temperatures import TemperatureRange
from ..version import __version__
from .verdict import Verdict

CARD = "card.json"
CARD_LIMIT = 4 * 2**20


class Cost(BaseModel):
    """What training took."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    energy_evaluations: int = Field(ge=0)
    seconds: float = Field(ge=0)
    iterations: int = Field(ge=0)
    machine: str


class Training(BaseModel):
    """How the weights came to be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: dict[str, Any]
    command: str
    seed: int
    cost: Cost


class EnergyBounds(BaseModel):
    """What the reduced energies of draws at a temperature of a range are between."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: float = Field(gt=0)
    low: float
    high: float


class Card(BaseModel):
    """Content of ``card.json``.

    ``system`` is a registered name or an inline specification; ``architecture`` is the generator's
    configuration, ``sampling`` how it is sampled; ``coordinates`` are the internal ones in which it works,
    None for positions, and ``molecule`` what then tells the particles apart; ``temperature`` is in kelvin,
    or that of a reduced system in its own unit, None for those at their default one; ``temperatures`` is the
    range at any of which it can be sampled, None for a sampler of one; ``quality`` is a table of measured
    metrics, one row each; ``verdict`` is that of the training, None where there was none; draws whose energy
    in the sampler's coordinates is beyond ``energy_bounds`` are drawn again, None keeps all. A sampler of a
    range has them at some temperatures of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format_version: Literal[1] = 1
    system: str | dict[str, Any]
    shape: tuple[int, int]
    architecture: dict[str, Any]
    sampling: dict[str, Any] = Field(default_factory=dict)
    coordinates: InternalCoordinates | None = None
    molecule: Molecule | None = None
    units: dict[str, str] = Field(default_factory=dict)
    temperature: float | None = None
    temperatures: TemperatureRange | None = None
    weights_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    training: Training | None = None
    quality: list[dict[str, Any]] = Field(default_factory=list)
    verdict: Verdict | None = None
    energy_bounds: (
        tuple[float, float] | Annotated[list[EnergyBounds], Field(min_length=1)] | None
    ) = None
    molsampler_version: str
    license: str = "MIT"

    def bounds_at(self, temperature: float) -> tuple[float, float] | None:
        """``energy_bounds`` at a temperature, linear between those of a range in its inverse, as reduced
        energies U / kT are."""
        known = self.energy_bounds
        if known is None or isinstance(known, tuple):
            return known
        rows = sorted((1 / each.temperature, each.low, each.high) for each in known)
        inverse, low, high = zip(*rows, strict=True)
        return (
            float(np.interp(1 / temperature, inverse, low)),
            float(np.interp(1 / temperature, inverse, high)),
        )


def read_card(path: Path) -> tuple[Card, str]:
    """The card in a file and the SHA-256 of its bytes.

    Raises
    ------
    FileFormatError
        It is not a card, has unknown or missing keys, or is of another format version.
    IntegrityError
        It is damaged or was edited.
    """
    if path.is_symlink():
        raise FileFormatError(f"{path} is a link; an artifact holds its files itself")
    content = read_limited(path, CARD_LIMIT)
    fields = parse_json(content, path)
    if not isinstance(fields, dict):
        raise FileFormatError(f"{path} must hold a JSON object, got {type(fields).__name__}")
    version = fields.get("format_version")
    if version != 1 or isinstance(version, bool):
        raise FileFormatError(
            f"{path} has format_version {version!r}; molsampler {__version__} reads version 1"
        )
    try:
        return validated(Card, unsealed(fields, path)), hashlib.sha256(content).hexdigest()
    except InputError as error:
        raise FileFormatError(f"{path}: {error}") from None
