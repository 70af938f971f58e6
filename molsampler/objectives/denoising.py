r"""A denoiser of the target, for generators that take noise away and weigh the path they took.

A population of chains is made from the energy alone and kept at equilibrium, as in
:mod:`molsampler.objectives.dikl_replay`; the denoiser of a :mod:`diffusion generator
<molsampler.nn.generators.diffusion>` is regressed on the least-variance mixture of the score identities of
its noised copies, over levels of noise uniform in their logarithm, in units of the best linear denoiser's
error:

.. math:: L = E\left[\,|D(x_0 + \sigma\varepsilon, \sigma) - y|^2 / c_{out}(\sigma)^2\right],

y the mixture of :math:`x_0` and :math:`x_0 + \sigma^{-2} C\,(x_\sigma - x_0 + \sigma^2 \nabla\log p(x_0))`,
which has the same mean for any matrix C that depends on :math:`x_\sigma` alone, since what C multiplies is
:math:`\sigma^2` times the gradient of the log density of :math:`x_0` given :math:`x_\sigma`. Without a
``covariance`` C is :math:`\sigma^2`, and this the target score identity. With that of ``pairs``
(:mod:`molsampler.nn.pair_precision`) it is a Newton step to the middle of what may lie behind
:math:`x_\sigma`, and does not vary at all where that is Gaussian; C itself is learned by the likelihood of
the residuals :math:`x_0 - D`. At low noise L is, up to a constant, the relative entropy of noising to
denoising paths, which bounds what the weights vary by.

Over a range of temperatures every chain has one of them (:mod:`molsampler.mcmc.ladder`), and the denoiser is
told that of each row.
"""

from __future__ import annotations

import logging
import math
from typing import ClassVar, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor

from ..diffusion.identity_mixture import IdentityMixture
from ..diffusion.schedule import LogUniformSigma
from ..errors import FileFormatError, InputError
from ..mcmc.population import Population
from ..nn.generators.diffusion import Diffusion, DiffusionConfig
from ..nn.pair_precision import Precision
from .base import Metrics, Problem, State
from .dikl_loss import diffuse
from .one_generator import OneGenerator
from .optimisers import OptimiserName
from .preparation import (
    PopulationObjectiveConfig,
    data_scale,
)
from .workspace import Workspace

log = logging.getLogger(__name__)

#: Iterations over which the learning rate rises.
_RISE = 100


class DenoisingConfig(PopulationObjectiveConfig):
    """Settings of :class:`Denoising`.

    The learning rate rises over the first hundred iterations, stays to ``decay_start`` and falls by a cosine
    to ``final_lr`` of itself. ``data_scale`` is the root-mean-square coordinate of the population unless
    given: the unit of the lengths in the generator's configuration. ``optimiser`` is ``adam``, or ``muon``
    (:mod:`molsampler.objectives.optimisers`) for the matrices of the networks.
    """

    over_temperatures: ClassVar[bool] = True

    kind: Literal["denoising"] = "denoising"
    optimiser: OptimiserName = "adam"
    lr: float = Field(1e-3, gt=0)
    final_lr: float = Field(0.01, ge=0, le=1)
    max_grad_norm: float = Field(10.0, gt=0)
    ema: float = Field(0.998, ge=0, lt=1)
    data_scale: float | None = Field(None, gt=0)

    def with_data_scale(self, length: float) -> Self:
        return self.model_copy(update={"data_scale": length})

    @property
    def rows(self) -> int:
        return self.batch_size + self.population.size

    def build(self, problem: Problem) -> Denoising:
        return Denoising(self, problem)


class Denoising(OneGenerator):
    """See the module."""

    def __init__(self, config: DenoisingConfig, problem: Problem):
        super().__init__(config, problem)
        if not isinstance(problem.generator, DiffusionConfig):
            raise InputError(
                "objective: denoising trains generators of kind 'diffusion', got kind "
                f"{problem.generator.kind!r}"
            )
        self.config, self.kind = config, problem.generator

    def start(self, prepared: State) -> State:
        x = self.preparation.population(prepared).state.position
        scale = self.config.data_scale or data_scale(x, self.problem)
        work = self.begun(self.build({"data_scale": scale}), prepared)
        work.tensors["mixture"] = IdentityMixture.fresh(x).moments
        work.numbers["data_scale"] = scale
        return self.flat(work)

    def evaluations_per_step(self, *, warmup: bool) -> int:
        exchanges = self.problem.temperatures is not None
        return self.config.population.evaluations_per_iteration(exchanges=exchanges)

    def build(self, state: State) -> Workspace:
        scale = state.get("data_scale")
        if not isinstance(scale, float) or not 0 < scale < math.inf:
            raise FileFormatError(f"the checkpoint has no usable data_scale: {scale!r}")
        problem, kind = self.problem, self.kind.scaled(scale)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(problem.seed)
            generator = kind.build(self.space, molecule=problem.molecule).to(problem.device)
        self.schedule = LogUniformSigma(kind.sigma_min, kind.sigma_max)
        self._run: Diffusion = generator.compiled() if problem.compile else generator
        return self.with_average(generator, optimiser=self.config.optimiser, lr=self.config.lr)

    def learn(self, work: Workspace, iteration: int) -> tuple[Metrics, bool]:
        population = Population.taken(work.tensors, work.numbers)
        chains = population.state
        index = torch.randint(
            len(chains.energy),
            (self.config.batch_size,),
            generator=work.rng,
            device=self.problem.device,
        )
        x, score = chains.position[index], chains.score[index]
        rows = population.temperature
        context = None if rows is None else self.problem.context(rows[index])
        t = self.schedule.times(len(x), generator=work.rng, like=x)
        y, scales, _ = diffuse(x, self.schedule(t), self.space, generator=work.rng)
        sigma = scales.sigma
        column = sigma[:, None, None]
        mixture = IdentityMixture(work.tensors["mixture"])
        denoised = self._run.denoised(y, sigma, context)
        width = self._run.denoiser.output_scale(sigma)[:, None, None]
        metrics: Metrics = {}
        likelihood, precision = column.new_zeros(()), None
        if self._run.precision is not None:
            precision = self._run.precision(denoised.detach(), sigma, context)
            residual = (x - denoised.detach()) / column
            likelihood = precision.negative_log_likelihood(residual, self.space.dof).mean()
            metrics["step_nll"] = float(likelihood.detach())
        by_target = middle(x, y, sigma, self.space.project(score), precision)
        aim = torch.lerp(x, by_target, mixture.weight(t)[:, None, None])
        loss = ((denoised - aim) / width).square().mean()
        norm, taken = work.apply(
            "generator",
            loss + likelihood,
            rate=self.config.lr * self._factor(iteration),
            max_grad_norm=self.config.max_grad_norm,
        )
        if taken:
            denoised = denoised.detach()
            mixture.update(mixture.sums(t, (denoised - x) / width, (denoised - by_target) / width))
            work.tensors["mixture"] = mixture.moments
            work.average("ema", "generator", self._decay(iteration))
            averaged = cast(Diffusion, work.modules["ema"])
            averaged.observe(sigma, _per_coordinate(denoised - x, self.space.dof), context)
        metrics.update(loss=float(loss.detach()), generator_grad=norm)
        return metrics, taken

    def _decay(self, iteration: int) -> float:
        return min(self.config.ema, (1 + iteration) / (10 + iteration))

    def _factor(self, iteration: int) -> float:
        config = self.config
        rise = min(1.0, (iteration + 1) / _RISE)
        done = iteration / self.problem.iterations
        passed = max(0.0, (done - config.decay_start) / (1 - config.decay_start))
        fall = 0.5 + 0.5 * math.cos(math.pi * passed)
        return rise * (config.final_lr + (1 - config.final_lr) * fall)


def middle(
    x: Tensor, y: Tensor, sigma: Tensor, score: Tensor, precision: Precision | None = None
) -> Tensor:
    """Unbiased estimate of the mean of what may lie behind ``y`` from one ``x`` that does, both
    ``(b, n, d)``, and the score there: a Newton step towards it with a precision that depends on ``y``,
    without one the target score identity."""
    column = sigma[:, None, None]
    # sigma times the gradient of the log density of x given y.
    slope = (y - x) / column + column * score
    return x + column * (slope if precision is None else precision.solved(slope))


def _per_coordinate(away: Tensor, dof: int) -> Tensor:
    """Squared lengths ``(b,)`` of displacements ``(b, n, d)``, per degree of freedom."""
    return away.square().sum(dim=(-2, -1)) / dof
