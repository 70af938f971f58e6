"""Start a training from the weights of a trained sampler."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ..errors import FileFormatError, InputError
from ..molecule.internal_coordinates import InternalCoordinates
from ..nn.generators import GeneratorConfig
from ..objectives.dikl_replay import DiKLReplayConfig
from ..sampler import store
from ..sampler.card import CARD, Card, read_card
from ..target import System
from .config import Start, TrainConfig


def started_from(config: TrainConfig, sampler: str | os.PathLike[str]) -> TrainConfig:
    """The configuration with the weights of an artifact, or of a shipped sampler, as a start.

    The data scale becomes that of the sampler, since it is the unit of lengths in its networks.

    Raises
    ------
    InputError
        Its generator is another than that of the configuration; what differs is named.
    FileFormatError, IntegrityError, UnknownNameError
        It is no usable artifact.
    """
    folder = store.locate(sampler)
    card, _ = read_card(folder / CARD)
    try:
        own = GeneratorConfig.parse(card.architecture)
    except ValidationError as error:
        raise FileFormatError(f"{folder}: architecture: {error.errors()[0]['msg']}") from None
    wanted = config.what_to_train()
    scale = wanted.data_scale_of(own) if own.kind == wanted.kind else 1.0
    _require_same(str(sampler), own.model_dump(), wanted.scaled(scale).model_dump())
    objective = config.objective
    if isinstance(objective, DiKLReplayConfig):
        objective = objective.model_copy(update={"data_scale": scale})
    elif not math.isclose(scale, 1.0):
        raise InputError(
            f"the training cannot start from {sampler}: its lengths are in units of {scale:.4g}, which an "
            f"objective of kind {objective.kind!r} does not take"
        )
    start = Start(sampler=str(sampler), weights_sha256=card.weights_sha256)
    return config.model_copy(update={"start": start, "objective": objective})


def _require_same(sampler: str, own: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse a generator of another architecture."""
    first, second = _flat(own), _flat(wanted)
    differing = [
        f"{key} is {first.get(key)!r} there and {second.get(key)!r} here"
        for key in sorted(first.keys() | second.keys())
        if not _same(first.get(key), second.get(key))
    ]
    if differing:
        raise InputError(
            f"the training cannot start from {sampler}, whose generator is another one: "
            f"{'; '.join(differing[:4])}"
        )


def _flat(values: Mapping[str, Any], prefix: str = "generator") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}"
        flat.update(_flat(value, name) if isinstance(value, Mapping) else {name: value})
    return flat


def _same(one: Any, other: Any) -> bool:
    """Whether two settings are equal, to the rounding of a data scale."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-9)
    return bool(one == other)


def start_of(start: Start, system: System) -> tuple[Card, dict[str, Tensor]]:
    """Card and weights of the sampler that a training of ``system`` starts from.

    Raises
    ------
    InputError
        The sampler is of configurations of another shape, of particles of other types, or has been replaced
        since the training began.
    """
    folder = store.locate(start.sampler)
    card, _ = read_card(folder / CARD)
    if card.weights_sha256 != start.weights_sha256:
        raise InputError(
            f"{start.sampler} has other weights than those that the training started from (SHA-256 "
            f"{card.weights_sha256[:12]}..., recorded {start.weights_sha256[:12]}...); name a new run folder"
        )
    if card.shape != system.shape:
        raise InputError(
            f"the training cannot start from {start.sampler}, whose configurations have shape {card.shape} "
            f"where those of {system.name} have {system.shape}"
        )
    if card.coordinates is None and card.molecule != store.recorded(system.molecule):
        raise InputError(
            f"the training cannot start from {start.sampler}, whose particles are of other types or "
            f"otherwise bonded than those of {system.name}"
        )
    return card, store.read_weights(folder, card.weights_sha256)


def coordinates_of(
    card: Card, own: InternalCoordinates | None, start: Start
) -> InternalCoordinates | None:
    """The sampler's coordinates, in which its weights have a meaning.

    Raises
    ------
    InputError
        The configuration's are of another kind, or refer to other atoms.
    """
    theirs = card.coordinates
    if (theirs is None) != (own is None):
        kinds = ["Cartesian" if each is None else "internal" for each in (theirs, own)]
        raise InputError(
            f"the training cannot start from {start.sampler}, which works in {kinds[0]} coordinates where "
            f"this one would in {kinds[1]}; --set coordinates={kinds[0].lower()}"
        )
    if theirs is not None and own is not None and theirs.placements != own.placements:
        raise InputError(
            f"the training cannot start from {start.sampler}, whose molecule is bonded otherwise"
        )
    return theirs
