r"""Implicit generator: latent noise in, a configuration out, in one pass; its density is not known.

:math:`y = s z + G_\theta(s z, w)`, with :math:`z` standard normal on the space, :math:`w` extra latent
features: Gaussians and random signs per particle, and signs per configuration, shared by all
particles. The signs matter for targets with separated modes: a continuous map of one Gaussian has to
draw bridges between them, a map that also reads discrete bits does not. Shared signs can choose
between shapes; signs per particle can also choose which particle goes where, for modes that are
copies of each other under permutation.

``langevin_layers`` last layers use the physics itself: each is an unadjusted Langevin step of
learned size with truncated drift,

.. math:: x \leftarrow x + D_\epsilon(-\nabla u(x)) + \sqrt{2\epsilon}\,\xi,

at the cost of one energy-and-score evaluation per layer and sample (stochastic normalising flows,
Wu, Köhler & Noé, arXiv 2002.06707, use such layers with weights). They set the stiff coordinates,
bond lengths in a cluster, right to a precision that a network reaches only slowly. By the
Leimkuhler-Matthews scheme (arXiv 1203.5428) each layer takes the mean of two successive
:math:`\xi`; in a harmonic well that removes the excess variance :math:`\epsilon \nabla^2 u / 2` of
independent noise at any stable :math:`\epsilon`. The step sizes start on a geometric ladder, from
steps long enough to leave a barrier to steps short enough to have little discretisation error;
``langevin_fixed`` keeps them there. Averaged noise does not punish long steps, so that learned ones
may grow until the layers are unstable. ``langevin_adapted`` has them in units of the step that
Metropolis-adjusted Langevin dynamics takes on the target, and coordinates that are unlike in lengths of
their own (:mod:`molsampler.mcmc.scale`): a torsion then moves as far as it can while a bond vibrates.

How the trained network is sampled is chosen afterwards (:class:`ImplicitSampling`): by more ``layers`` than
were trained, for which the ladder of learned steps is stretched by interpolation, at as many energy
evaluations per sample as there are layers; by another ``scheme``; with a ``latent_factor`` on :math:`z`
alone (:func:`molsampler.train.criterion.calibrate`); and by ``kinetic`` layers after them (:class:`Kinetic`).

Gradients pass through the score with the target's Hessian, taken as a central difference of scores,
so no target has to provide second derivatives. ``langevin_hessian=False`` treats the score as a
constant instead. That is cheaper and steadier for steep walls, but only right while
:math:`\epsilon \nabla^2 u` stays below one: beyond, the layer reverses a displacement, and the
network is driven away.

For a molecule in Cartesian coordinates the latent positions are those of a Gaussian chain on its bond graph
(:meth:`molsampler.molecule.molecule.Molecule.chain_root`): bonded atoms start near each other, so the
network has to set lengths and angles, not to fetch atoms from anywhere. The law stays symmetric under
rotation, reflection and the exchange of equivalent atoms.

``standardised``, for plain vectors, has all of this in coordinates of zero mean and unit spread
(:class:`~molsampler.nn.frame.Frame`), those of the population that training starts from; ``auto`` does so
where space and body allow it.

With ``temperatures`` the network reads the temperature of every row as one more feature of each particle,
and the step sizes are in proportion to it: :math:`\epsilon \nabla^2 u_T` is then the same at all of
them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ...errors import InputError
from ...frozen import Frozen
from ...mcmc.mala import drift
from ...molecule.molecule import Molecule
from ...space import Space
from ...target import COORDINATE_LIMIT, Target
from ...temperatures import TemperatureRange
from ..bodies import AnyBody, Body, EGNNBody
from ..frame import Frame, Stretched, standardises
from .base import Draw, Generator, GeneratorConfig, Sampling

#: Coordinates are clamped to this before the energy sees them.
_REACH = 0.5 * COORDINATE_LIMIT

#: Components of the score are clamped to this.
_STEEPEST = 1e12

#: Length of the difference that stands for the Hessian, in units of a Langevin kick.
_DIFFERENCE = 0.02

#: First stiffness of the springs of a molecule's bonds. Jacobi sweeps over bonds and angles diverge at two
#: over the largest eigenvalue of the constraint graph, which is below ten for four-valent atoms.
_SPRING = 0.15

LangevinScheme = Literal["euler", "leimkuhler-matthews"]


class Kinetic(Frozen):
    r"""Layers after the trained ones: kinetic Langevin dynamics of unit masses by the middle scheme.

    .. math:: p \leftarrow p + h s(x), \quad x \leftarrow x + \tfrac{h}{2} p, \quad
              p \leftarrow a p + \sqrt{1 - a^2}\,\xi, \quad x \leftarrow x + \tfrac{h}{2} p,
              \qquad h = \sqrt{2\epsilon},

    from a standard normal p: the positions of BAOAB (arXiv 1203.5428; Zhang et al., J. Phys. Chem. A 123,
    6056 (2019)), of which the Leimkuhler-Matthews scheme is the limit of ``persistence`` a = 0. With momenta
    that persist, k layers go as far as k steps and not :math:`\sqrt{k}`, up to 1 / (1 - a) of them: slow
    coordinates, the closing of a cluster, relax in a tenth of the evaluations. They come after trained
    layers because the energy that a raw output sets free would heat them. ``step_factor`` is
    :math:`\epsilon` over the last trained step.
    """

    steps: int = Field(100, ge=1, le=10_000)
    persistence: float = Field(0.9, ge=0, lt=1)
    step_factor: float = Field(0.5, gt=0)


class ImplicitSampling(Sampling):
    """How an :class:`Implicit` generator is sampled; None is what it was trained with."""

    layers: int | None = Field(None, ge=1, le=256)
    scheme: LangevinScheme | None = None
    latent_factor: float = Field(1.0, gt=0)
    kinetic: Kinetic | None = None


class ImplicitConfig(GeneratorConfig):
    """An :class:`Implicit`."""

    kind: Literal["implicit"] = "implicit"
    body: AnyBody = EGNNBody()
    latent_scale: float = Field(1.0, gt=0)
    noise_features: int = Field(4, ge=0, le=256)
    sign_features: int = Field(0, ge=0, le=256)
    particle_signs: int = Field(0, ge=0, le=256)
    langevin_layers: int = Field(0, ge=0, le=256)
    langevin_step: float = Field(1e-3, gt=0)
    langevin_last_step: float | None = Field(None, gt=0)
    langevin_scheme: LangevinScheme = "euler"
    langevin_fixed: bool = False
    langevin_hessian: bool = True
    langevin_adapted: bool = False
    standardised: Literal["auto"] | bool = False
    temperatures: TemperatureRange | None = None

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.body,)

    def conditioned(self, temperatures: TemperatureRange) -> Self:
        return self.model_copy(update={"temperatures": temperatures})

    def scaled(self, length: float) -> Self:
        update = {
            "body": self.body.scaled(length),
            "latent_scale": self.latent_scale * length,
        }
        if not self.langevin_adapted:
            last = self.langevin_last_step
            update["langevin_step"] = self.langevin_step * length**2
            update["langevin_last_step"] = last and last * length**2
        return self.model_copy(update=update)

    @property
    def adapted(self) -> bool:
        return self.langevin_adapted and self.langevin_layers > 0

    def data_scale_of(self, scaled: GeneratorConfig) -> float:
        return (
            scaled.latent_scale / self.latent_scale if isinstance(scaled, ImplicitConfig) else 1.0
        )

    def frame(self, space: Space) -> Frame | None:
        alike = self.body.mirror_symmetric
        if not self.standardised or (
            self.standardised == "auto" and (alike or not standardises(space))
        ):
            return None
        if alike:
            raise InputError(
                f"a body of kind {self.body.kind!r} respects rotations, which standardised coordinates "
                "break: leave out generator.standardised, or use a body of kind 'mlp'"
            )
        return Frame(space)

    def require_sampling(self, sampling: Sampling) -> None:
        kinetic = isinstance(sampling, ImplicitSampling) and sampling.kinetic is not None
        if kinetic and not self.langevin_layers:
            raise InputError(
                "sampling.kinetic takes its step from trained Langevin layers, and there is none: set "
                "generator.langevin_layers, or sampling.kinetic=null"
            )

    @classmethod
    def sampling(cls, values: Mapping[str, Any] | None = None) -> ImplicitSampling:
        return ImplicitSampling.model_validate(dict(values or {}))

    def build(
        self, space: Space, *, molecule: Molecule | None = None, sampling: Sampling | None = None
    ) -> Implicit:
        how = ImplicitSampling() if sampling is None else sampling
        if not isinstance(how, ImplicitSampling):
            raise InputError(f"sampling must be an ImplicitSampling, got {type(how).__name__}")
        return Implicit(self, how, space, molecule)


class Latent(NamedTuple):
    """Noise behind a batch of ``b`` samples."""

    position: Tensor
    """Standard normal on the space, or a Gaussian chain of unit mean variance, ``(b, n, d)``."""
    features: Tensor
    """Gaussians per particle, signs shared by all particles, signs per particle, ``(b, n, f)``."""
    kicks: Tensor
    """Standard normal noise of the Langevin layers, ``(b, layers, n, d)``; by the Leimkuhler-Matthews
    scheme one more. That of kinetic layers follows, one for the first momentum and one for each."""


class _Score(torch.autograd.Function):
    """Score of a target; backward is the product with the Hessian, by central differences."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Target, length: float, steepest: Tensor) -> Tensor:
        # A network early in training may throw particles far out; the energy refuses such rows.
        x = x.clamp(-_REACH, _REACH)
        ctx.save_for_backward(x, steepest)
        ctx.target, ctx.length = target, length
        return target.energy_and_score(x)[1]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, steepest = ctx.saved_tensors
        # The longest displacement of a particle sets the scale of the difference, row by row.
        size = grad.norm(dim=-1).amax(-1)[:, None, None].clamp(min=1e-30)
        # A gradient that is not finite is passed on as such, for the trainer to refuse the step.
        usable = torch.isfinite(size)
        move = torch.where(usable, (ctx.length / size) * grad, 0.0)
        _, forward = ctx.target.energy_and_score(x + move)
        _, backward = ctx.target.energy_and_score(x - move)
        product = (forward - backward) * (size / (2 * ctx.length))
        # Rows in collision: their curvature says nothing about the truncated move they make.
        longest = product.norm(dim=-1).amax(-1)[:, None, None]
        product = torch.where(longest <= steepest * size, product, 0.0)
        return torch.where(usable, product, torch.nan), None, None, None


class Implicit(Generator):
    """Map from latents to configurations ``(b, n, d)``.

    Equivariant under rotation, reflection and permutation with an EGNN body: transforming the
    latent's positions and kicks transforms the output alike. For a molecule the permutations are those
    of equivalent atoms.
    """

    config: ImplicitConfig
    sampling: ImplicitSampling
    root: Tensor | None
    lengths: Tensor

    def __init__(
        self,
        config: ImplicitConfig,
        sampling: ImplicitSampling,
        space: Space,
        molecule: Molecule | None,
    ):
        super().__init__(config, sampling, space)
        self.mirror_symmetric = config.body.mirror_symmetric
        self.temperatures = config.temperatures
        root = None
        if config.body.mirror_symmetric and molecule is not None and molecule.bonds:
            # The mean of all particles, which the chain leaves out, is passed on for spaces that have one.
            mean = 1.0 / space.shape[0]
            root = torch.tensor((molecule.chain_root() + mean).tolist())
        self.register_buffer("root", root, persistent=False)
        features = config.noise_features + config.sign_features + config.particle_signs
        # A body without any features still needs one input to embed.
        self.features = max(features, 1) + (config.temperatures is not None)
        self.frame = config.frame(space)
        self.body = config.body.build(space, self.features, molecule)
        self.unit = config.latent_scale if config.body.unit_inputs else 1.0
        last = config.langevin_last_step or config.langevin_step
        self.log_step = nn.Parameter(
            torch.linspace(math.log(config.langevin_step), math.log(last), config.langevin_layers),
            requires_grad=not config.langevin_fixed,
        )
        if config.adapted:
            # Zero until steps are found.
            self.register_buffer("lengths", torch.zeros(space.shape))
        self._run: Callable[[Tensor, Tensor], Tensor] | None = None
        config.require_sampling(sampling)

    @property
    def evaluations_per_sample(self) -> int:
        return self.layers + (self.kinetic.steps if self.kinetic else 0)

    @property
    def kinetic(self) -> Kinetic | None:
        """The layers after those of :attr:`layers`."""
        return self.sampling.kinetic

    @property
    def layers(self) -> int:
        """Langevin layers that are evaluated, without kinetic ones."""
        trained = self.config.langevin_layers
        return (self.sampling.layers or trained) if trained else 0

    @property
    def scheme(self) -> LangevinScheme:
        """The layers' scheme."""
        return self.sampling.scheme or self.config.langevin_scheme

    def with_sampling(self, sampling: Sampling) -> Self:
        twin = super().with_sampling(sampling)
        self.config.require_sampling(sampling)
        return twin

    def start_from(self, x: Tensor, *, context: Tensor | None = None) -> None:
        if self.frame is not None:
            self.frame.start_from(x)
            x = self.frame.inward(x)
        self.body.start_from(x, spring=_SPRING)

    def start_steps(self, step: float, lengths: Tensor | None) -> None:
        with torch.no_grad():
            self.log_step.add_(math.log(step))
            self.lengths.copy_(torch.ones(()) if lengths is None else lengths)

    def compiled(self) -> Self:
        twin = copy.copy(self)
        twin.__dict__["_run"] = torch.compile(self.body, dynamic=False)
        return twin

    def calibrated(self, factor: float) -> Self:
        return self.with_sampling(self.sampling.model_copy(update={"latent_factor": factor}))

    def relaxed(self, layers: int) -> Self | None:
        if not self.layers:
            return None
        kinetic = Kinetic(steps=layers)
        if self.kinetic is not None:
            steps = self.kinetic.steps + layers
            kinetic = self.kinetic.model_copy(update={"steps": steps})
        return self.with_sampling(self.sampling.model_copy(update={"kinetic": kinetic}))

    def draw(
        self,
        n: int,
        target: Target,
        *,
        context: Tensor | None = None,
        generator: torch.Generator | None,
    ) -> Draw:
        context = self.context_of(n, context, like=self.log_step)
        if self.config.adapted and not self.lengths.any():
            raise InputError(
                "the Langevin layers of this generator take steps adapted to the target, which nobody has "
                "found: an objective calls start_steps, or set generator.langevin_adapted=false and "
                "generator.langevin_step"
            )
        x = self(self.draw_latent(n, generator=generator), target, context)
        return Draw(x, None, n * self.evaluations_per_sample)

    def draw_latent(self, n: int, *, generator: torch.Generator | None) -> Latent:
        """Draw the noise for ``n`` samples, on the device and in the dtype of the weights."""
        like = self.log_step
        config, (particles, _) = self.config, self.space.shape

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

        position = self.space.randn(n, generator=generator, like=like)
        if self.root is not None:
            position = self.root.to(like) @ position
        parts = [randn(n, particles, config.noise_features)]
        if config.sign_features:
            signs = randn(n, 1, config.sign_features).sign()
            parts.append(signs.expand(-1, particles, -1))
        if config.particle_signs:
            parts.append(randn(n, particles, config.particle_signs).sign())
        if not sum(part.shape[-1] for part in parts):
            parts = [torch.ones(n, particles, 1, dtype=like.dtype, device=like.device)]
        number = self.layers + (self.scheme == "leimkuhler-matthews")
        number += self.kinetic.steps + 1 if self.kinetic else 0
        kicks = self.space.randn(n, number, generator=generator, like=like)
        return Latent(position, torch.cat(parts, dim=-1), kicks)

    def forward(self, latent: Latent, target: Target, context: Tensor | None = None) -> Tensor:
        """Configurations ``(b, n, d)`` from latents; Langevin layers ask ``target`` for its score."""
        if self.frame is not None:
            return self.frame.outward(self._drawn(latent, self.frame.target(target), context))
        return self._drawn(latent, target, context)

    def _drawn(self, latent: Latent, target: Target, context: Tensor | None) -> Tensor:
        """The same in the generator's own coordinates."""
        features = latent.features
        if context is not None:
            told = context[:, None].expand(-1, features.shape[1], -1)
            features = torch.cat([features, told], dim=-1)
        z = self.config.latent_scale * self.sampling.latent_factor * latent.position
        body = self.body if self._run is None else self._run
        x = self.space.project(z + self.unit * body(z / self.unit, features))
        averaged = self.scheme == "leimkuhler-matthews"
        kicks, after = latent.kicks.split_with_sizes(
            [self.layers + averaged, latent.kicks.shape[1] - self.layers - averaged], dim=1
        )
        if averaged:
            kicks = 0.5 * (kicks[:, :-1] + kicks[:, 1:])
        hotter = self._hotter(context)
        steps = self.steps() if hotter is None else self.steps()[:, None, None, None] * hotter
        for layer, step in enumerate(steps):
            x = x + self._long(
                self._move(x, step, target) + torch.sqrt(2.0 * step) * kicks[:, layer]
            )
        if self.kinetic is not None:
            last = self.log_step[-1].exp()
            x = self._kinetic(
                x, after, self.kinetic, last if hotter is None else last * hotter, target
            )
        return x

    def _kinetic(
        self, x: Tensor, kicks: Tensor, how: Kinetic, last: Tensor, target: Target
    ) -> Tensor:
        """Positions after the kinetic layers; ``last`` is the last trained step."""
        step = how.step_factor * last
        h, a = torch.sqrt(2.0 * step), how.persistence
        momentum, b = kicks[:, 0], math.sqrt(1.0 - a * a)
        for kick in kicks[:, 1:].unbind(1):
            # The drift is h^2 / 2 times the score, truncated.
            pushed = momentum + (2.0 / h) * self._move(x, step, target)
            momentum = a * pushed + b * kick
            x = x + self._long(0.5 * h * (pushed + momentum))
        return x

    def _long(self, move: Tensor) -> Tensor:
        """A move, of lengths of the coordinates, in the unit of positions."""
        return move * self.lengths if self.config.adapted else move

    def _hotter(self, context: Tensor | None) -> Tensor | None:
        """Temperatures over the middle of the range ``(b, 1, 1)``, by which step sizes are multiplied."""
        if context is None or self.temperatures is None:
            return None
        relative = self.temperatures.temperature(context) / self.temperatures.middle
        return relative[:, None, None]

    def steps(self) -> Tensor:
        """Step sizes of the layers, ``(layers,)``, in squared lengths; with a temperature, those at the
        middle of its range."""
        log_step: Tensor = self.log_step
        if self.layers != len(log_step):
            log_step = functional.interpolate(
                log_step[None, None], size=self.layers, mode="linear", align_corners=True
            )[0, 0]
        return log_step.exp()

    def _move(self, x: Tensor, step: Tensor, target: Target) -> Tensor:
        """Truncated drift of a Langevin step, on the space, in lengths of the coordinates."""
        length, steepest, seen = 0.0, step.detach(), x.detach()
        if self.config.langevin_hessian:
            seen = x
            first = self.config.langevin_step
            if self.config.adapted:
                first = float(self.log_step[0].detach().exp())
            length = _DIFFERENCE * math.sqrt(2.0 * first)
            # Curvature beyond twice the stability limit of the step, epsilon H = 2.
            steepest = 4.0 / step.detach()
        if self.config.adapted:
            seen, target = seen / self.lengths, Stretched(target, self.lengths)
        score: Tensor = _Score.apply(seen, target, length, steepest)  # type: ignore[no-untyped-call]
        # Squares of larger scores overflow float32; the drift is truncated long before.
        score = score.clamp(-_STEEPEST, _STEEPEST)
        if score.requires_grad:
            with torch.no_grad():
                whole = step * score
                truncated = (drift(score, step) - whole).abs().amax(-1, keepdim=True) > 0
            score = torch.where(truncated, score.detach(), score)
        return self.space.project(drift(score, step))
