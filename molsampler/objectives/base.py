"""What an objective is, and the registry of its kinds.

An objective owns whatever networks, optimisers and populations it trains with, and shows them as a flat
mapping of tensors and numbers. The trainer stores that mapping, hands it back, and knows nothing else: any
objective can be checkpointed, resumed, judged and shipped.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Self

import torch
from pydantic import Field, PlainValidator, SerializeAsAny
from torch import Tensor

from ..errors import InputError
from ..frozen import Kind
from ..mcmc.population import Population, Progress
from ..molecule.molecule import Molecule
from ..nn.bodies import Body
from ..nn.generators import Generator, GeneratorConfig, Sampling
from ..registry import Registry
from ..target import Target
from ..temperatures import TemperatureRange
from .shards import Alone, Peers

#: Everything that a bit-exact resume needs. Every state holds ``iteration``, the steps taken, and
#: ``energy_evaluations``, what they and :meth:`Objective.init` have cost. Tensors may be live: a state is
#: good until the step after it.
State = dict[str, Tensor | float | int]

Metrics = dict[str, float]

#: ``report(stage, share)`` is called between parts of long work and may raise to interrupt.
Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Problem:
    """What there is to learn, and the means.

    Attributes
    ----------
    target : the density, in the coordinates in which the generator works
    molecule : what tells its particles apart, None for identical ones or where coordinates are internal
    generator : what to train, with lengths in units of the data scale
    sampling : how the generator that is judged and shipped is sampled
    iterations : steps of the generator
    seed : of everything random
    device : where tensors live
    compile : whether networks are to be compiled
    temperatures : the range over which there is to be trained, None for the target's own temperature alone
    at : the target at temperatures ``(n,)``, row by row, or at one for all; None without a range
    peers : the processes that train together
    hurry : whether the time is short: a population that still drifts is then taken as it is
    """

    target: Target
    molecule: Molecule | None
    generator: GeneratorConfig
    sampling: Sampling
    iterations: int
    seed: int
    device: torch.device
    compile: bool = False
    temperatures: TemperatureRange | None = None
    at: Callable[[Tensor], Target] | None = None
    peers: Peers = field(default_factory=Alone)
    hurry: bool = False

    def context(self, temperature: Tensor | None) -> Tensor | None:
        """What networks are told of the temperatures of rows ``(b,)``: ``(b, 1)``, None without a range."""
        known = self.temperatures
        return None if known is None or temperature is None else known.context(temperature)


class Preparation(ABC):
    """Long work before the first step, in pieces: a run that is stopped in between goes on there.

    Every state holds ``energy_evaluations``. A step leaves the state that it is given as it is, so whatever
    interrupts it loses that step alone.
    """

    @abstractmethod
    def init(self) -> State:
        """The state after the first piece."""

    @abstractmethod
    def step(self, state: State) -> State:
        """The state after one more piece, of at most a few energy evaluations a chain.

        Raises
        ------
        FileFormatError
            ``state`` is of another preparation.
        """

    @abstractmethod
    def progress(self, state: State) -> Progress | None:
        """Where it stands, None when nothing is left to do."""

    def whole(self, state: State) -> State:
        """What a checkpoint has to hold, at rank 0: ``state`` with what other processes hold of it.

        Every process has to ask. Nothing where one of them has not begun.
        """
        return state

    @abstractmethod
    def expected_evaluations(self, state: State) -> int:
        """An estimate of the energy evaluations that the whole of it needs."""


class Objective(ABC):
    """Trains a generator, one step at a time."""

    @property
    def warmup(self) -> int:
        """Steps before the generator's first one."""
        return 0

    @property
    def preparation(self) -> Preparation | None:
        """What precedes :meth:`start`, None for objectives that :meth:`init` alone begins."""
        return None

    def require(self) -> None:  # noqa: B027
        """Refuse a problem whose networks cannot be built, before anything is done for it; objectives without
        networks of their own need not.

        Raises
        ------
        InputError
            They cannot.
        """

    def init(self, *, report: Report) -> State:
        """A fresh state, after the whole preparation; objectives without one say here what theirs is."""
        made = self.preparation
        if made is None:
            raise NotImplementedError
        state = made.init()
        while (at := made.progress(state)) is not None:
            report(at.phase, at.done / at.total if at.total else 0.0)
            state = made.step(state)
        return self.start(state)

    def start(self, prepared: State) -> State:
        """A fresh state from the last one of the preparation, for objectives that have one."""
        raise NotImplementedError

    def with_generator(self, state: State, weights: Mapping[str, Tensor]) -> State:
        """A fresh state with the weights of a trained generator of the same architecture.

        Raises
        ------
        InputError
            They do not fit, or the objective takes none.
        """
        raise InputError(f"{type(self).__name__} cannot start from a trained sampler")

    def evaluations_per_step(self, *, warmup: bool) -> int | None:
        """Energy evaluations that a step needs, None where it is not known before one is made."""
        return None

    @abstractmethod
    def step(self, state: State) -> tuple[State, Metrics]:
        """The next state and what is worth logging.

        The metric ``nonfinite`` is one where a loss or gradient was not finite; the parameters concerned
        are then left as they were.

        Raises
        ------
        FileFormatError
            ``state`` is of another configuration.
        """

    @abstractmethod
    def generator(self, state: State) -> Generator:
        """The generator to be judged and shipped; it is live, copy it to keep it."""

    def whole(self, state: State) -> State:
        """What a checkpoint has to hold, at rank 0: ``state`` with what other processes hold of it.

        Every process has to ask.

        Raises
        ------
        RankError
            They no longer hold the same networks.
        """
        return state

    def population(self, state: State) -> Population | None:
        """Chains at equilibrium that generators can be compared with, None where there are none; ``state`` is
        a whole one."""
        return None


def decay_of_share(decay_start: float, share: float) -> float:
    """Where the learning rate begins to fall in a schedule of a share of its length: later, since the first
    hundreds of steps, which go far, are the same in any."""
    return 1 - (1 - decay_start) * math.sqrt(share)


class ObjectiveConfig(Kind):
    """Settings of an objective."""

    kinds: ClassVar[Registry[type[ObjectiveConfig]]] = Registry("objective")
    default = "dikl-replay"
    #: Whether it can train over a range of temperatures.
    over_temperatures: ClassVar[bool] = False

    batch_size: int = Field(256, ge=1)

    @property
    def bodies(self) -> tuple[Body, ...]:
        """The networks that it trains with beside the generator."""
        return ()

    @property
    def rows(self) -> int:
        """Configurations that are held at once at least, for an estimate of memory."""
        return self.batch_size

    @property
    def most_ranks(self) -> int:
        """Processes that can train it together at most."""
        return 1

    @property
    def chains(self) -> int | None:
        """Chains of the population, None where there is none."""
        return None

    def with_chains(self, count: int) -> Self:
        """The same objective with another number of chains, where it has a population."""
        return self

    def shortened(self, iterations: float, warmup: float) -> Self:
        """The same objective where there is time for a share of the iterations, and one of the warm-up."""
        return self

    def with_data_scale(self, length: float) -> Self:
        """The same objective with the unit of its lengths given rather than measured.

        Raises
        ------
        InputError
            The kind takes none, and it is not one.
        """
        if length != 1:
            raise InputError(f"an objective of kind {self.kind!r} takes no data scale")
        return self

    def build(self, problem: Problem) -> Objective:
        """The objective for a problem."""
        raise NotImplementedError


OBJECTIVES = ObjectiveConfig.kinds
OBJECTIVES.register("dikl-replay", "molsampler.objectives.dikl_replay:DiKLReplayConfig")
OBJECTIVES.register("denoising", "molsampler.objectives.denoising:DenoisingConfig")
OBJECTIVES.register("exact", "molsampler.objectives.exact:ExactConfig")
OBJECTIVES.register("dikl-posterior", "molsampler.objectives.dikl_posterior:DiKLPosteriorConfig")

#: A field of a configuration that holds an objective of any registered kind.
AnyObjective = Annotated[SerializeAsAny[ObjectiveConfig], PlainValidator(ObjectiveConfig.parse)]
