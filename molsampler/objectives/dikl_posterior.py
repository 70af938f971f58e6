r"""DiKL as in the paper: the target score from fresh posterior chains at every step.

One iteration (arXiv 2410.12456 and its released code): ``score_steps`` steps of the score network, each on
fresh generator samples at random levels, minimising

.. math:: E\left[\textstyle\sum (\varepsilon + \sigma_t\, s_\phi(x_t, t))^2\right];

then one step of the generator on fresh samples, with the gradient of :mod:`molsampler.objectives.dikl_loss`
and a target score from posterior samples (:mod:`molsampler.diffusion.posterior`). Adam with its own
defaults, constant learning rates, no average of weights unless ``ema`` is set.

``score_form: denoiser`` preconditions the score network (:mod:`molsampler.nn.denoiser`), for comparisons.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..diffusion.identities import Identity
from ..diffusion.posterior import posterior_score, start_chains
from ..diffusion.schedule import Scales, Schedule
from ..errors import InputError, NonFiniteError
from ..frozen import Frozen
from ..mcmc import hmc, mala
from ..mcmc.adapt import Kernel
from ..nn.bodies import AnyBody, Body, PlainMLPBody
from ..nn.denoiser import Denoiser, score_of
from ..nn.generators import Generator
from ..nn.score_network import ScoreNetwork
from ..target import CountingTarget
from .base import Metrics, ObjectiveConfig, Problem, Report, State
from .dikl_loss import Weighting, diffuse, dikl_loss, weight
from .optimisers import optimiser_of
from .schedules import AnySchedule, LinearBetaConfig
from .workspace import NetworkObjective, Workspace

log = logging.getLogger(__name__)

#: Acceptance between which the step size of the chains is left alone, and the factor it moves by outside.
_ACCEPTANCE, _FACTOR = (0.5, 0.6), 1.5


class PosteriorConfig(Frozen):
    """How posterior samples are drawn.

    ``particles`` from the Gaussian factor, within ``box`` in every coordinate, are annealed through
    ``levels`` by one transition of ``kernel`` (of ``anneal_step``; HMC with ``leapfrog_steps``) between
    levels. The one drawn by weight takes ``steps`` MALA steps of ``step_size``, and ``identity`` is averaged
    over the last ``average``. With ``adaptive`` the step size is multiplied or divided by 1.5 after an
    iteration with an acceptance above .6 or below .5.
    """

    particles: int = Field(20, ge=1)
    levels: int = Field(10, ge=1)
    kernel: Literal["mala", "hmc"] = "mala"
    leapfrog_steps: int = Field(1, ge=1)
    anneal_step: float = Field(0.01, gt=0)
    steps: int = Field(50, ge=1)
    step_size: float = Field(0.01, gt=0)
    adaptive: bool = True
    average: int = Field(1, ge=1)
    identity: Identity = "mixed"
    box: float | None = Field(1000.0, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.average > self.steps:
            raise ValueError(f"average must be at most steps, {self.steps}, got {self.average}")
        return self


class DiKLPosteriorConfig(ObjectiveConfig):
    """Settings of :class:`DiKLPosterior`.

    Lengths in the networks' configurations and of a log-uniform schedule are in units of ``data_scale``,
    those of the posterior sampler in the system's.
    """

    kind: Literal["dikl-posterior"] = "dikl-posterior"
    batch_size: int = Field(1024, ge=1)
    score: AnyBody = PlainMLPBody(levels=True)
    score_form: Literal["score", "denoiser"] = "score"
    schedule: AnySchedule = LinearBetaConfig(beta_min=1e-4, beta_max=0.15, levels=30, first=1)
    target_score: PosteriorConfig = PosteriorConfig()
    weighting: Weighting = "inverse-alpha"
    clip: float | None = Field(None, gt=0)
    score_steps: int = Field(50, ge=1)
    generator_lr: float = Field(1e-3, gt=0)
    score_lr: float = Field(1e-4, gt=0)
    max_grad_norm: float = Field(10.0, gt=0)
    ema: float = Field(0.0, ge=0, lt=1)
    data_scale: float = Field(1.0, gt=0)

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.score,)

    def with_data_scale(self, length: float) -> Self:
        return self.model_copy(update={"data_scale": length})

    @property
    def rows(self) -> int:
        return self.batch_size * self.target_score.particles

    def build(self, problem: Problem) -> DiKLPosterior:
        return DiKLPosterior(self, problem)


class DiKLPosterior(NetworkObjective):
    """See the module."""

    def __init__(self, config: DiKLPosteriorConfig, problem: Problem):
        super().__init__(problem)
        self.config = config
        self.space = problem.target.space
        if problem.generator.adapted or problem.generator.frame(self.space) is not None:
            raise InputError(
                "standardised coordinates and adapted steps are those of a population, which "
                "objective.kind=dikl-posterior does not have: leave out generator.standardised and "
                "generator.langevin_adapted"
            )
        self.target = CountingTarget(problem.target)
        self.schedule: Schedule = config.schedule.build(config.data_scale)
        plan = config.target_score
        self.kernel: Kernel = mala.step
        if plan.kernel == "hmc":
            self.kernel = partial(hmc.step, leapfrog_steps=plan.leapfrog_steps)

    def init(self, *, report: Report) -> State:
        work = self.build({})
        step_size = self.config.target_score.step_size
        work.numbers = {"iteration": 0, "energy_evaluations": 0, "chain_step": step_size}
        return self.flat(work)

    def step(self, state: State) -> tuple[State, Metrics]:
        work = self.adopted(state)
        self.target.evaluations = int(work.numbers["energy_evaluations"])
        metrics: Metrics = {}
        sound = True
        try:
            losses = []
            for _ in range(self.config.score_steps):
                loss, taken = self._score_step(work)
                losses.append(loss)
                sound = sound and taken
            metrics, taken = self._generator_step(work)
            metrics["score_loss"] = sum(losses) / len(losses)
            sound = sound and taken
        except NonFiniteError as error:
            # The networks threw a particle where no energy is.
            log.warning("iteration %d: %s", int(work.numbers["iteration"]) + 1, error)
            sound = False
        work.numbers["iteration"] = int(work.numbers["iteration"]) + 1
        work.numbers["energy_evaluations"] = self.target.evaluations
        return self.flat(work), {**metrics, "nonfinite": float(not sound)}

    def generator(self, state: State) -> Generator:
        work = self.adopted(state)
        name = "ema" if self.config.ema else "generator"
        return cast(Generator, work.modules[name]).with_sampling(self.problem.sampling)

    def build(self, state: State) -> Workspace:
        """Weights are drawn from a stream of their own, seeded by the run's seed."""
        config, problem = self.config, self.problem
        scale = config.data_scale
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(problem.seed)
            generator = problem.generator.scaled(scale).build(self.space, molecule=problem.molecule)
            body = config.score.scaled(scale)
            score = (
                ScoreNetwork(body, self.space)
                if config.score_form == "score"
                else Denoiser(body, self.space, data_scale=scale, molecule=problem.molecule)
            )
        modules: dict[str, nn.Module] = {
            "generator": generator.to(problem.device),
            "score": score.to(problem.device),
        }
        optimisers: dict[str, torch.optim.Optimizer] = {
            name: optimiser_of("adam", modules[name], lr=rate, betas=(0.9, 0.999))
            for name, rate in (("generator", config.generator_lr), ("score", config.score_lr))
        }
        if config.ema:
            modules["ema"] = copy.deepcopy(generator).requires_grad_(False)
        self._run = generator.compiled() if problem.compile else generator
        self._score: Callable[..., Tensor] = (
            torch.compile(score, dynamic=False) if problem.compile else score
        )
        return Workspace(modules, optimisers, rng=self.random())

    def _draw(self, work: Workspace) -> Tensor:
        return self._run.draw(self.config.batch_size, self.target, generator=work.rng).x

    def _model_score(self, x_t: Tensor, scales: Scales, t: Tensor) -> Tensor:
        if self.config.score_form == "denoiser":
            return score_of(self._score, x_t, scales)
        return self._score(x_t, self.schedule.level(t))

    def _score_step(self, work: Workspace) -> tuple[float, bool]:
        with torch.no_grad():
            x = self._draw(work)
        t = self.schedule.times(len(x), generator=work.rng, like=x)
        scales = self.schedule(t)
        x_t, _, noise = diffuse(x, scales, self.space, generator=work.rng)
        score = self._model_score(x_t, scales, t)
        residual = noise + scales.sigma[:, None, None] * score
        loss = residual.square().sum(dim=(-2, -1)).mean()
        _, taken = work.apply("score", loss, rate=self.config.score_lr, max_grad_norm=None)
        return float(loss.detach()), taken

    def _generator_step(self, work: Workspace) -> tuple[Metrics, bool]:
        config = self.config
        x = self._draw(work)
        t = self.schedule.times(len(x), generator=work.rng, like=x)
        scales = self.schedule(t)
        diffused = diffuse(x, scales, self.space, generator=work.rng)
        x_t = diffused.x_t.detach()
        with torch.no_grad():
            model_score = self._model_score(x_t, scales, t)
        target_score, acceptance = self._target_score(work, x_t, scales)
        result = dikl_loss(
            diffused,
            model_score,
            target_score,
            weight=weight(config.weighting, scales, data_scale=config.data_scale),
            clip=config.clip,
        )
        norm, taken = work.apply(
            "generator",
            result.loss,
            rate=config.generator_lr,
            max_grad_norm=config.max_grad_norm,
        )
        if config.ema and taken:
            done = int(work.numbers["iteration"])
            decay = min(config.ema, (1 + done) / (10 + done))
            work.average("ema", "generator", decay)
        return {
            "difference": float(result.norm.nan_to_num().mean()),
            "generator_grad": norm,
            "chain_acceptance": acceptance,
        }, taken

    def _target_score(self, work: Workspace, x_t: Tensor, scales: Scales) -> tuple[Tensor, float]:
        """Posterior sampling in float64, where differences of steep energies keep their digits."""
        plan = self.config.target_score
        noisy, exact = x_t.double(), Scales(scales.alpha.double(), scales.sigma.double())
        chain = start_chains(
            noisy,
            exact,
            self.target,
            particles=plan.particles,
            levels=plan.levels,
            step_size=plan.anneal_step,
            generator=work.rng,
            kernel=self.kernel,
            box=plan.box,
        )
        step_size = float(work.numbers["chain_step"])
        found = posterior_score(
            noisy,
            exact,
            self.target,
            chain,
            steps=plan.steps,
            average=plan.average,
            identity=plan.identity,
            step_size=step_size,
            generator=work.rng,
        )
        if plan.adaptive and math.isfinite(found.acceptance):
            low, high = _ACCEPTANCE
            if found.acceptance > high:
                step_size *= _FACTOR
            elif found.acceptance < low:
                step_size /= _FACTOR
            work.numbers["chain_step"] = step_size
        return found.score.to(x_t), found.acceptance
