"""Start a training from the weights of a trained sampler."""

from __future__ import annotations

import os

from pydantic import ValidationError
from torch import Tensor

from ..errors import FileFormatError, InputError
from ..molecule.internal_coordinates import InternalCoordinates
from ..nn.generators import GeneratorConfig
from ..sampler import store
from ..sampler.card import CARD, Card, read_card
from ..target import System
from .config import Start, TrainConfig


def started_from(config: TrainConfig, sampler: str | os.PathLike[str]) -> TrainConfig:
    """The configuration with the generator of an artifact or shipped sampler, and its weights as a start.

    The data scale of the objective becomes that of the sampler, since it is the unit of lengths in its
    networks.

    Raises
    ------
    InputError
        The configuration's generator is of another kind, or of another range of temperatures, or its
        objective takes no data scale.
    FileFormatError, IntegrityError, UnknownNameError
        It is no usable artifact.
    """
    folder = store.locate(sampler)
    card, _ = read_card(folder / CARD)
    try:
        own = GeneratorConfig.parse(card.architecture)
    except ValidationError as error:
        raise FileFormatError(f"{folder}: architecture: {error.errors()[0]['msg']}") from None
    if own.kind != config.generator.kind:
        raise InputError(
            f"the training cannot start from {sampler}, whose generator is of kind {own.kind!r} where "
            f"the preset trains one of kind {config.generator.kind!r}; choose the preset that trained it"
        )
    if card.temperatures != config.temperatures:
        theirs, here = (
            "one temperature" if each is None else f"the temperatures {each}"
            for each in (card.temperatures, config.temperatures)
        )
        raise InputError(
            f"the training cannot start from {sampler}, which is of {theirs} where this one would be of "
            f"{here}"
        )
    scale = config.generator.data_scale_of(own)
    return config.model_copy(
        update={
            "start": Start(sampler=str(sampler), weights_sha256=card.weights_sha256),
            "generator": own.scaled(1 / scale),
            "objective": config.objective.with_data_scale(scale),
        }
    )


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
