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
from ...temperatures import TemperatureRange
from ..bodies.base import Body
from ..frame import Frame


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
    #: Whether draws carry weights.
    weighted: ClassVar[bool] = False

    @property
    def adapted(self) -> bool:
        """Whether steps of its layers are in units of the target's own (:meth:`Generator.start_steps`)."""
        return False

    @property
    def bodies(self) -> tuple[Body, ...]:
        """The networks in it that are of a kind of their own."""
        return ()

    def scaled(self, length: float) -> Self:
        """The same generator with lengths in the system's unit instead of data scales of ``length``."""
        return self

    def data_scale_of(self, scaled: GeneratorConfig) -> float:
        """The length for which :meth:`scaled` gives ``scaled``, which is of the same kind; one where lengths
        do not enter."""
        return 1.0

    def conditioned(self, temperatures: TemperatureRange) -> Self:
        """The same generator with the temperature as an input, of a range.

        Raises
        ------
        InputError
            The kind takes none.
        """
        raise InputError(
            f"a generator of kind {self.kind!r} takes no temperature; train it at one temperature, or a "
            "generator of kind 'implicit', 'spline' or 'diffusion' over the range"
        )

    def frame(self, space: Space) -> Frame | None:
        """The standardised coordinates in which the generator works, None for those of the space.

        Raises
        ------
        InputError
            The space, or the network, has none.
        """
        return None

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

    def require_sampling(self, sampling: Sampling) -> None:
        """Refuse a way of sampling for which the generator lacks something.

        Raises
        ------
        InputError
            It does.
        """

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
    temperatures : the range of which a temperature is its context, None without one
    temperature : the one of :meth:`at`, None where draws are told theirs
    frame : the standardised coordinates in which it works, None for those of the system
    at_once : rows that whoever wants many should draw at a time, and that are computed where fewer are wanted
    """

    mirror_symmetric: bool = False
    temperatures: TemperatureRange | None = None
    temperature: float | None = None
    at_once: int = 16384

    def __init__(self, config: GeneratorConfig, sampling: Sampling, space: Space):
        super().__init__()
        self.config, self.sampling, self.space = config, sampling, space
        # Not of the class, where it would hide the submodule.
        self.frame: Frame | None = None

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

        ``context`` ``(n, c)`` is what the samples depend on: temperatures of the range, as
        :meth:`~molsampler.temperatures.TemperatureRange.context` has them, row by row those of ``target``.
        Generators that take none refuse it, and so do kinds that draw at one temperature a call: ask their
        twin of :meth:`at`.

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
        paths = ", but that of whole paths, by which its draws are weighed"
        raise InputError(
            f"a generator of kind {self.config.kind!r} does not know its density at a configuration"
            + (paths if self.config.weighted else "; its samples carry no weights")
        )

    def start_from(self, x: Tensor, *, context: Tensor | None = None) -> None:
        """Start from what configurations ``(b, n, d)`` of the target look like, where the kind can;
        ``context`` ``(b, 1)`` is that of rows at several temperatures."""

    def start_steps(self, step: float, lengths: Tensor | None) -> None:
        """Start with steps in units of ``step``, that of Metropolis-adjusted Langevin dynamics on the target
        in the generator's coordinates, in ``lengths`` ``(n, d)`` of these where they are unlike; asked for
        where the configuration is :attr:`~GeneratorConfig.adapted`."""

    def compiled(self) -> Self:
        """A twin that shares the weights and computes through compiled code, where the kind has some."""
        return self

    def calibrated(self, factor: float) -> Self | None:
        """A twin whose one number for calibration is ``factor`` (one changes nothing), None without one."""
        return None

    def relaxed(self, layers: int) -> Self | None:
        """A twin whose samples relax for so many layers more, at an energy each; None for kinds without such
        layers."""
        return None

    def annealed(self, levels: int) -> Self:
        """A twin whose weights are evened out by annealing of ``levels`` levels, as many energies a sample.

        Raises
        ------
        InputError
            The kind does not know its density.
        """
        instead = "give it more steps (--steps)" if self.config.weighted else "refine its samples"
        raise InputError(
            f"annealing needs the density of the generator, and one of kind {self.config.kind!r} does not "
            f"know it; {instead} instead"
        )

    def stepped(self, steps: int) -> Self:
        """A twin that takes noise away in ``steps`` steps, a pass of the network each.

        Raises
        ------
        InputError
            The kind draws in one pass.
        """
        raise InputError(
            f"a generator of kind {self.config.kind!r} draws in one pass, and takes no steps; those of kind "
            "'diffusion' do"
        )

    def with_sampling(self, sampling: Sampling) -> Self:
        """A twin that shares the weights and is sampled otherwise."""
        twin = copy.copy(self)
        twin.__dict__["sampling"] = sampling
        return twin

    def at(self, temperature: float) -> Self:
        """A twin that shares the weights and draws at one temperature of the range, without a context.

        Raises
        ------
        InputError
            The generator takes no temperature, or this one is outside the range.
        """
        known = self.temperatures
        if known is None:
            raise InputError(
                f"a generator of one temperature cannot be asked for another, got {temperature!r}"
            )
        if temperature not in known:
            raise InputError(f"temperature must be from {known}, got {temperature:g}")
        twin = copy.copy(self)
        twin.__dict__["temperature"] = float(temperature)
        return twin

    def context_of(self, n: int, context: Tensor | None, *, like: Tensor) -> Tensor | None:
        """The context ``(n, 1)`` of ``n`` draws: the one given, or that of :meth:`at`; None for generators
        of one temperature.

        Raises
        ------
        InputError
            It is missing, of another shape, or given to a generator that takes none.
        """
        known = self.temperatures
        if known is None:
            self.refuse_context(context)
            return None
        if context is None and self.temperature is not None:
            temperature = torch.full((n,), self.temperature, dtype=like.dtype, device=like.device)
            return known.context(temperature)
        if context is None or tuple(context.shape) != (n, 1):
            got = "none" if context is None else f"one of shape {tuple(context.shape)}"
            raise InputError(
                f"a generator of the temperatures {known} needs a context of shape ({n}, 1), got {got}"
            )
        return context

    def refuse_context(self, context: Tensor | None) -> None:
        """For generators that take no context."""
        if context is not None:
            raise InputError(
                f"a generator of kind {self.config.kind!r} takes no context, got one of shape "
                f"{tuple(context.shape)}"
            )


GENERATORS = GeneratorConfig.kinds
GENERATORS.register("implicit", "molsampler.nn.generators.implicit:ImplicitConfig")
GENERATORS.register("direct", "molsampler.nn.generators.direct:DirectConfig")
GENERATORS.register("diffusion", "molsampler.nn.generators.diffusion:DiffusionConfig")
GENERATORS.register("spline", "molsampler.nn.generators.spline:SplineConfig")

#: A field of a configuration that holds a generator of any registered kind.
AnyGenerator = Annotated[SerializeAsAny[GeneratorConfig], PlainValidator(GeneratorConfig.parse)]
