"""What a generator is, and the registry of its kinds.

A generator turns noise into configurations. It knows no physics: the target whose energy its layers may
ask for is passed in with every draw. What the network is (its configuration) is one thing, how it is
sampled (number of layers, scheme, calibration) another: the first is fixed when it is trained, the second
may be chosen afterwards, by a twin that shares the weights (:meth:`Generator.with_sampling`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple, Self

import torch
from pydantic import PlainValidator, SerializeAsAny
from torch import Tensor, nn

from ...errors import InputError
from ...frozen import Frozen, Kind
from ...molecule.molecule import Molecule
from ...registry import Registry
from ...space import Space
from ...target import Target


class Draw(NamedTuple):
    """Configurations from a generator."""

    x: Tensor
    """``(n, *shape)``; carries the graph of the generator's parameters where gradients are enabled."""
    log_weight: Tensor | None
    """Log of target over proposal density ``(n,)`` where the generator knows its density, else None."""
    evaluations: int
    """Energy-and-score evaluations of the target that the draw has cost."""


class Sampling(Frozen):
    """How a generator is sampled; kinds that leave no choice have no fields."""


class GeneratorConfig(Kind):
    """What a generator is: its architecture, with lengths in units of the data scale until
    :meth:`scaled`."""

    kinds: ClassVar[Registry[type[GeneratorConfig]]] = Registry("generator kind")
    default = "implicit"

    def scaled(self, length: float) -> Self:
        """The same generator with lengths in the system's unit instead of data scales of ``length``."""
        return self

    def build(
        self, space: Space, *, molecule: Molecule | None = None, sampling: Sampling | None = None
    ) -> Generator:
        """The generator, with freshly drawn weights.

        Raises
        ------
        InputError
            It cannot serve this space, or ``sampling`` is of another kind.
        """
        raise NotImplementedError

    @classmethod
    def sampling(cls, values: Mapping[str, Any] | None = None) -> Sampling:
        """The kind's :class:`Sampling` from a plain mapping."""
        return Sampling.model_validate(dict(values or {}))


class Generator(nn.Module):
    """Base of all generators.

    Attributes
    ----------
    config, sampling : what it is, and how it is sampled; never changed after construction
    space : where its configurations live
    mirror_symmetric : whether a configuration and its mirror image are equally likely
    """

    mirror_symmetric: bool = False

    def __init__(self, config: GeneratorConfig, sampling: Sampling, space: Space):
        super().__init__()
        self.config, self.sampling, self.space = config, sampling, space

    @property
    def evaluations_per_sample(self) -> int:
        """Energy-and-score evaluations that one sample costs."""
        return 0

    def draw(
        self,
        n: int,
        target: Target,
        *,
        context: Tensor | None = None,
        generator: torch.Generator | None,
    ) -> Draw:
        """``n`` configurations, on the device and in the dtype of the weights.

        ``context`` ``(n, c)`` is what the samples depend on, such as an inverse temperature; kinds that
        take none refuse it.

        Raises
        ------
        InputError
            ``context`` is given to a kind that takes none, or missing where one is needed.
        """
        raise NotImplementedError

    def log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        """Log density ``(b,)`` at configurations ``x``.

        Raises
        ------
        InputError
            The kind does not know its density.
        """
        raise InputError(
            f"a generator of kind {self.config.kind!r} does not know its density; its samples carry no "
            "weights"
        )

    def start_from(self, x: Tensor) -> None:
        """Start from what configurations ``(b, n, d)`` of the target look like, where the kind can."""

    def compiled(self) -> Self:
        """A twin that shares the weights and computes through compiled code, where the kind has some."""
        return self

    def calibrated(self, factor: float) -> Self | None:
        """A twin whose one number for calibration is ``factor`` (one changes nothing), None without one."""
        return None

    def with_sampling(self, sampling: Sampling) -> Self:
        """A twin that shares the weights and is sampled otherwise."""
        twin = copy.copy(self)
        twin.__dict__["sampling"] = sampling
        return twin

    def refuse_context(self, context: Tensor | None) -> None:
        """For kinds that take no context."""
        if context is not None:
            raise InputError(
                f"a generator of kind {self.config.kind!r} takes no context, got one of shape "
                f"{tuple(context.shape)}"
            )


GENERATORS = GeneratorConfig.kinds
GENERATORS.register("implicit", "molsampler.nn.generators.implicit:ImplicitConfig")
GENERATORS.register("direct", "molsampler.nn.generators.direct:DirectConfig")
GENERATORS.register("spline", "molsampler.nn.generators.spline:SplineConfig")

#: A field of a configuration that holds a generator of any registered kind.
AnyGenerator = Annotated[SerializeAsAny[GeneratorConfig], PlainValidator(GeneratorConfig.parse)]
