r"""DiKL with an amortised target score: the default objective.

The DiKL gradient needs :math:`\nabla\log p_t(x_t)` at every step. Fresh posterior chains give one noisy
estimate and forget it (:mod:`molsampler.objectives.dikl_posterior`). Here a population of chains, made from
the energy alone, is kept at equilibrium (:mod:`molsampler.mcmc.population`), and a denoiser regressed on
the score identities of its noised copies averages them over the whole of training, in the mixture of least
variance (:mod:`molsampler.diffusion.identity_mixture`). The model's own denoiser starts as a copy of the
target's: both then err alike, and in their difference, which is all that the generator sees, common errors
cancel.

Over a range of temperatures every chain of the population has one of them, every row of the generator one
drawn from the range, uniform in its logarithm, and all three networks are told it: what they learn is the
same as at one temperature, row by row. The least-variance mixture and the data scale are those of the range
as a whole.

Where the generator works in standardised coordinates (:class:`~molsampler.nn.frame.Frame`), so do noise,
denoisers and the data scale; chains and draws are of positions.

With ``shards`` every shard has its part of the population, made and moved on by itself, and its part of every
batch, drawn from its own random stream (:mod:`molsampler.objectives.shards`). Networks, averages and the
mixture are shared: gradients and moments are summed over shards before every step.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..diffusion.identity_mixture import IdentityMixture
from ..diffusion.schedule import Schedule
from ..errors import FileFormatError, NonFiniteError
from ..mcmc import adapt, mala
from ..mcmc.population import Population
from ..nn.bodies import AnyBody, Body, EGNNBody
from ..nn.denoiser import Denoiser, score_of
from ..nn.generators import Generator
from ..target import CountingTarget, Target
from .base import Metrics, ObjectiveConfig, Preparation, Problem, State, decay_of_share
from .dikl_loss import Weighting, diffuse, dikl_loss, weight
from .optimisers import optimiser_of
from .preparation import (
    ChainsConfig,
    PopulationPreparation,
    ShardedPreparation,
    data_scale,
    refreshed,
)
from .schedules import AnySchedule, LogUniformConfig
from .shards import Shards
from .workspace import Applied, NetworkObjective, Workspace

log = logging.getLogger(__name__)

#: Lowest time at the start of noise annealing; for the default schedule a noise of about the data scale.
_ANNEALING_START = 0.75

#: Iterations over which learning rates rise.
_RISE = 100

#: Chains by which the step of the generator's layers is found, their mean acceptance, and the first guess of
#: the step in squared data scales. Layers have no test that would correct a step: it is one of which few are
#: refused.
_ADAPTED_ROWS, _ADAPTED_ACCEPTANCE = 128, 0.8
_FIRST_STEP = 1e-3

#: Decay of the running average of the target's denoiser.
_TEACHER_EMA = 0.998


class ReplayConfig(ChainsConfig):
    """The population and the target score fitted to it.

    During training ``refresh`` chains make ``refresh_steps`` moves per iteration. The denoiser gets
    ``warmup`` iterations before the generator starts and ``steps`` per iteration after.
    """

    refresh: int = Field(512, ge=0)
    refresh_steps: int = Field(2, ge=1)
    warmup: int = Field(1500, ge=0)
    steps: int = Field(1, ge=0)


class DiKLReplayConfig(ObjectiveConfig):
    """Settings of :class:`DiKLReplay`.

    ``data_scale`` is the root-mean-square coordinate of the population unless given, in standardised
    coordinates where the generator works in these: the unit of the lengths in the networks' configurations.
    Learning rates rise over the first hundred iterations, stay to ``decay_start`` and fall by a cosine to
    ``final_lr`` of themselves (``score_final_lr`` for the model's denoiser, which follows a generator that
    never stands still).

    ``shards`` is how many processes can train together at most, each with its share of ``batch_size``,
    ``target_score.size`` and ``target_score.refresh``. Another number of shards is another run; the number of
    processes changes nothing.
    """

    over_temperatures: ClassVar[bool] = True

    kind: Literal["dikl-replay"] = "dikl-replay"
    denoiser: AnyBody = EGNNBody()
    schedule: AnySchedule = LogUniformConfig()
    target_score: ReplayConfig = ReplayConfig()
    weighting: Weighting = "denoiser"
    clip: float = Field(2.0, gt=0)
    noise_annealing: float = Field(0.0, ge=0, le=1)
    score_steps: int = Field(5, ge=1)
    generator_lr: float = Field(1e-3, gt=0)
    score_lr: float = Field(1e-3, gt=0)
    decay_start: float = Field(0.5, ge=0, lt=1)
    final_lr: float = Field(0.02, ge=0, le=1)
    score_final_lr: float | None = Field(None, ge=0, le=1)
    max_grad_norm: float = Field(10.0, gt=0)
    ema: float = Field(0.998, ge=0, lt=1)
    data_scale: float | None = Field(None, gt=0)
    shards: int = Field(1, ge=1)

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.denoiser,)

    @model_validator(mode="after")
    def _shared_out(self) -> Self:
        plan = self.target_score
        whole = {
            "batch_size": self.batch_size,
            "target_score.size": plan.size,
            "target_score.refresh": plan.refresh,
        }
        for key, value in whole.items():
            if value % self.shards:
                raise ValueError(f"shards={self.shards} must divide {key}={value}")
        if self.shards > 1 and plan.size < 2 * self.shards:
            raise ValueError(f"shards={self.shards} leaves less than two chains a shard")
        return self

    @property
    def chains(self) -> int:
        return self.target_score.size

    def with_chains(self, count: int) -> Self:
        size = max(count // self.shards, 2) * self.shards
        return self._with_plan(size=size)

    def shortened(self, iterations: float, warmup: float) -> Self:
        later = decay_of_share(self.decay_start, iterations)
        cut = self._with_plan(warmup=round(warmup * self.target_score.warmup))
        return cut.model_copy(update={"decay_start": later})

    def _with_plan(self, **update: int) -> Self:
        plan = self.target_score.model_copy(update=update)
        return self.model_copy(update={"target_score": plan})

    def with_data_scale(self, length: float) -> Self:
        return self.model_copy(update={"data_scale": length})

    @property
    def rows(self) -> int:
        return self.batch_size + self.target_score.size

    @property
    def most_ranks(self) -> int:
        return self.shards

    def plan_of_shard(self) -> ReplayConfig:
        """The population of one shard."""
        plan, shards = self.target_score, self.shards
        exchange = plan.exchange
        if exchange is not None:
            exchange = exchange.model_copy(update={"chains": max(exchange.chains // shards, 2)})
        shared = {
            "size": plan.size // shards,
            "refresh": plan.refresh // shards,
            "exchange": exchange,
        }
        return plan.model_copy(update=shared)

    def build(self, problem: Problem) -> DiKLReplay:
        return DiKLReplay(self, problem)


class DiKLReplay(NetworkObjective):
    """See the module."""

    def __init__(self, config: DiKLReplayConfig, problem: Problem):
        super().__init__(problem)
        self.config = config
        self.space = problem.target.space
        self.target = CountingTarget(problem.target)
        self.like = torch.empty(0, device=problem.device)
        self.shards = Shards(config.shards, problem.peers)
        self.plan, self.batch = config.plan_of_shard(), config.batch_size // config.shards
        self._preparations = {
            shard: PopulationPreparation(
                self.plan, replace(problem, seed=self.shards.seed(problem.seed, shard))
            )
            for shard in self.shards.owned
        }
        self._preparation = ShardedPreparation(self._preparations, self.shards)

    @property
    def warmup(self) -> int:
        return self.config.target_score.warmup

    @property
    def preparation(self) -> Preparation:
        return self._preparations[0] if self.shards.count == 1 else self._preparation

    def start(self, prepared: State) -> State:
        config, problem = self.config, self.problem
        self.target.evaluations = 0
        own = {shard: self._preparation.part(prepared, shard) for shard in self.shards.owned}
        spent = self._of_all(sum(int(each["energy_evaluations"]) for each in own.values()))
        populations = {
            shard: each.population(own[shard]) for shard, each in self._preparations.items()
        }
        x = torch.cat(self.shards.gather([each.state.position for each in populations.values()]))
        scale = config.data_scale or self._data_scale(x)
        work = self.build({"data_scale": scale})
        work.numbers["data_scale"] = scale
        for shard, each in self._preparations.items():
            work.streams[self.shards.prefix(shard)] = each.random(own[shard])
        context = None
        if problem.temperatures is not None:
            rows = [
                each.temperature for each in populations.values() if each.temperature is not None
            ]
            context = problem.temperatures.context(torch.cat(self.shards.gather(rows)))
        for name in ("generator", "ema"):
            cast(Generator, work.modules[name]).start_from(x, context=context)
        if problem.generator.adapted:
            found = self._adapted(work, x, context)
            for name in ("generator", "ema"):
                cast(Generator, work.modules[name]).start_steps(float(found.step_size), found.scale)
        for name in ("score", "teacher", "teacher_ema"):
            cast(Denoiser, work.modules[name]).body.start_from(self._inward(work, x), spring=0.0)
        for shard, population in populations.items():
            population.put(work.tensors, work.numbers, self.shards.prefix(shard))
        work.tensors["mixture"] = IdentityMixture.fresh(self.like).moments
        work.numbers.update(
            iteration=0,
            energy_evaluations=spent + self.target.evaluations,
        )
        return self.flat(work)

    def _data_scale(self, x: Tensor) -> float:
        """The data scale of a population, in the generator's coordinates."""
        frame = self.problem.generator.frame(self.space)
        if frame is not None:
            frame = frame.to(x.device)
            frame.start_from(x)
            x = frame.inward(x)
        return data_scale(x, self.problem)

    def _adapted(self, work: Workspace, x: Tensor, context: Tensor | None) -> adapt.Adaptation:
        """Step and lengths of Metropolis-adjusted Langevin dynamics from the population, in the generator's
        coordinates; over a range of temperatures, those of the middle."""
        problem, target = self.problem, cast(Target, self.target)
        if problem.temperatures is not None and problem.at is not None and context is not None:
            middle = problem.temperatures.middle
            target = self.target.counting(problem.at(torch.tensor(middle)))
            # Other rows are not where chains of this temperature would be.
            away = (problem.temperatures.temperature(context) - middle).abs()
            x = x[away.argsort(stable=True)]
        frame = cast(Generator, work.modules["generator"]).frame
        if frame is not None:
            x, target = frame.inward(x), frame.target(target)
        found = adapt.found(
            mala.init(x[:_ADAPTED_ROWS], target),
            target,
            step_size=_FIRST_STEP * float(work.numbers["data_scale"]) ** 2,
            acceptance=_ADAPTED_ACCEPTANCE,
            generator=torch.Generator(device=x.device).manual_seed(problem.seed),
        )
        # Every process has the numbers of the first, to the last bit.
        told = [
            found.log_step,
            torch.ones(self.space.shape) if found.scale is None else found.scale,
        ]
        log_step, scale = (problem.peers.gather(each.to(x))[0] for each in told)
        return adapt.Adaptation(log_step, found.updates, scale)

    @staticmethod
    def _inward(work: Workspace, x: Tensor) -> Tensor:
        """Positions in the generator's coordinates."""
        frame = cast(Generator, work.modules["generator"]).frame
        return x if frame is None else frame.inward(x)

    def evaluations_per_step(self, *, warmup: bool) -> int:
        plan, own = self.plan, len(self.shards.owned)
        exchanges = self.problem.temperatures is not None
        moved = own * plan.evaluations_per_iteration(exchanges=exchanges)
        if warmup:
            return moved
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            drawn = self.problem.generator.build(self.space, molecule=self.problem.molecule)
        return moved + own * self.batch * drawn.evaluations_per_sample

    def step(self, state: State) -> tuple[State, Metrics]:
        work = self.adopted(state)
        self.target.evaluations = 0
        self._sound = True
        iteration = int(work.numbers["iteration"])
        metrics: Metrics = {}
        try:
            if iteration >= self.warmup:
                metrics = self._generator_step(work)
            else:
                metrics = {"teacher_loss": self._teacher_step(work)}
                if iteration + 1 == self.warmup:
                    work.modules["score"].load_state_dict(work.modules["teacher"].state_dict())
        except NonFiniteError as error:
            # The networks threw a particle where no energy is.
            log.warning("%s: %s", self._where(iteration), error)
            self._sound = False
        if self.plan.refresh:
            metrics.update(self._refresh(work, iteration))
        work.numbers["iteration"] = iteration + 1
        work.numbers["energy_evaluations"] += self._of_all(self.target.evaluations)
        return self.flat(work), {**metrics, "nonfinite": float(not self._sound)}

    def _of_all(self, own: int) -> int:
        """A number of energy evaluations, summed over processes."""
        return sum(int(each) for each in self.problem.peers.gather(torch.tensor([own])))

    def _refresh(self, work: Workspace, iteration: int) -> Metrics:
        """Move part of the population on."""
        exchanged = [self._refresh_shard(work, iteration, shard) for shard in self.shards.owned]
        if self.problem.temperatures is None:
            return {}
        rates = [torch.tensor([rate], dtype=torch.float64) for rate in exchanged]
        return {"exchanged": float(self.shards.total(rates)) / self.shards.count}

    def _refresh_shard(self, work: Workspace, iteration: int, shard: int) -> float:
        """The share of exchanges between temperatures that were accepted, where there are any."""
        prefix = self.shards.prefix(shard)
        moved, rate = refreshed(
            Population.taken(work.tensors, work.numbers, prefix),
            self.plan,
            self.problem,
            self.target,
            iteration=iteration,
            generator=work.streams[prefix],
        )
        moved.put(work.tensors, work.numbers, prefix)
        return rate or 0.0

    def generator(self, state: State) -> Generator:
        averaged = cast(Generator, self.adopted(state).modules["ema"])
        return averaged.with_sampling(self.problem.sampling)

    def population(self, state: State) -> Population:
        prefixes = [self.shards.prefix(shard) for shard in range(self.shards.count)]
        return Population.joined([Population.taken(state, state, prefix) for prefix in prefixes])

    def whole(self, state: State) -> State:
        self.shards.require_same(state)
        return self.shards.collected(state)

    def build(self, state: State) -> Workspace:
        """Weights are drawn from a stream of their own, seeded by the run's seed."""
        scale = state.get("data_scale")
        if not isinstance(scale, float) or not 0 < scale < math.inf:
            raise FileFormatError(f"the checkpoint has no usable data_scale: {scale!r}")
        config, problem = self.config, self.problem
        # Module constructors draw from the global stream; fork it so that nobody else's is touched.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(problem.seed)
            generator = problem.generator.scaled(scale).build(self.space, molecule=problem.molecule)
            generator = generator.to(problem.device)
            score = Denoiser(
                config.denoiser.scaled(scale),
                self.space,
                data_scale=scale,
                molecule=problem.molecule,
                context=int(problem.temperatures is not None),
            ).to(problem.device)
        teacher = copy.deepcopy(score)
        modules: dict[str, nn.Module] = {
            "generator": generator,
            "ema": copy.deepcopy(generator).requires_grad_(False),
            "score": score,
            "teacher": teacher,
            "teacher_ema": copy.deepcopy(teacher).requires_grad_(False),
        }
        optimisers: dict[str, torch.optim.Optimizer] = {
            name: optimiser_of("adam", modules[name], lr=rate)
            for name, rate in (
                ("generator", config.generator_lr),
                ("score", config.score_lr),
                ("teacher", config.score_lr),
            )
        }
        self.schedule: Schedule = config.schedule.build(scale)
        self._run = generator.compiled() if problem.compile else generator
        self._score = _compiled(score, problem.compile)
        self._teacher = _compiled(teacher, problem.compile)
        self._teacher_ema = _compiled(modules["teacher_ema"], problem.compile)
        return Workspace(
            modules,
            optimisers,
            streams={self.shards.prefix(shard): self.random() for shard in self.shards.owned},
            foreign=self.shards.foreign,
        )

    # Steps

    def _generator_step(self, work: Workspace) -> Metrics:
        config = self.config
        teacher_loss = [self._teacher_step(work) for _ in range(config.target_score.steps)]
        drawn = self._drawn(work)
        score_loss = [self._score_step(work, drawn) for _ in range(config.score_steps)]
        step = self._apply(
            work,
            "generator",
            (self._generator_loss(work, shard, *each) for shard, each in drawn.items()),
            config.generator_lr,
        )
        if step.taken:
            done = int(work.numbers["iteration"]) - self.warmup
            decay = min(config.ema, (1 + done) / (10 + done))
            work.average("ema", "generator", decay)
        difference, clipped = (float(each) / self.shards.count for each in step.beside)
        metrics = {
            "score_loss": sum(score_loss) / len(score_loss),
            "difference": difference,
            "clipped": clipped,
            "generator_grad": step.norm,
        }
        if teacher_loss:
            metrics["teacher_loss"] = sum(teacher_loss) / len(teacher_loss)
        return metrics

    def _drawn(self, work: Workspace) -> dict[int, tuple[Tensor, Tensor | None]]:
        """Draws of the generator for every owned shard, with their context.

        Raises
        ------
        NonFiniteError
            Those of any shard, owned or not, are where no energy is.
        """
        drawn: dict[int, tuple[Tensor, Tensor | None]] = {}
        failure: NonFiniteError | None = None
        for shard in self.shards.owned:
            stream = work.streams[self.shards.prefix(shard)]
            context, target = self._drawn_temperatures(stream)
            try:
                x = self._run.draw(self.batch, target, context=context, generator=stream).x
                drawn[shard] = x, context
            except NonFiniteError as error:
                # The others draw all the same, so that no stream depends on who owns which shard.
                failure = error
        if self.shards.any(failure is not None):
            raise failure or NonFiniteError("draws of another process")
        return drawn

    def _generator_loss(
        self, work: Workspace, shard: int, x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The DiKL loss at a shard's draws; the mean difference of scores and the share of clipped rows."""
        config, stream = self.config, work.streams[self.shards.prefix(shard)]
        x = self._inward(work, x)
        t = self._annealed_times(work, x, stream)
        diffused = diffuse(x, self.schedule(t), self.space, generator=stream)
        x_t, scales = diffused.x_t.detach(), diffused.scales
        with torch.no_grad():
            model_score = score_of(self._score, x_t, scales, context)
            target_score = score_of(self._teacher_ema, x_t, scales, context)
        scale = float(work.numbers["data_scale"])
        result = dikl_loss(
            diffused,
            model_score,
            target_score,
            weight=weight(config.weighting, scales, data_scale=scale),
            clip=config.clip,
        )
        beside = [result.norm.nan_to_num().mean(), (result.norm > config.clip).float().mean()]
        return result.loss, torch.stack(beside)

    def _drawn_temperatures(self, stream: torch.Generator) -> tuple[Tensor | None, Target]:
        """The context ``(b, 1)`` of a batch of the generator, and the target at its temperatures."""
        known, at = self.problem.temperatures, self.problem.at
        if known is None or at is None:
            return None, self.target
        drawn = known.draw(self.batch, generator=stream, like=self.like)
        return known.context(drawn), self.target.counting(at(drawn))

    def _annealed_times(self, work: Workspace, x: Tensor, stream: torch.Generator) -> Tensor:
        """Times of the generator's and its score's steps, early in training the noisy ones only.

        At high noise the modes of the target are one. The floor falls as training goes, and they
        part while the generator can still move weight between them.
        """
        t = self.schedule.times(len(x), generator=stream, like=x)
        share = self.config.noise_annealing
        if not share:
            return t
        passed = int(work.numbers["iteration"]) - self.warmup
        done = passed / (share * self.problem.iterations)
        floor = _ANNEALING_START * max(0.0, 1.0 - done)
        return floor + (1.0 - floor) * t

    def _score_step(self, work: Workspace, drawn: dict[int, tuple[Tensor, Tensor | None]]) -> float:
        """Denoising score matching of the model's score on generator samples."""
        parts = (self._score_loss(work, shard, *each) for shard, each in drawn.items())
        return self._apply(work, "score", parts, self.config.score_lr).loss

    def _score_loss(
        self, work: Workspace, shard: int, x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x, stream = self._inward(work, x.detach()), work.streams[self.shards.prefix(shard)]
        t = self._annealed_times(work, x, stream)
        x_t, scales, _ = diffuse(x, self.schedule(t), self.space, generator=stream)
        s = scales.sigma / scales.alpha
        denoised = self._score(x_t / scales.alpha[:, None, None], s, *_told(context))
        width = cast(Denoiser, work.modules["score"]).output_scale(s)[:, None, None]
        return ((denoised - x) / width).square().mean(), x.new_empty(0)

    def _teacher_step(self, work: Workspace) -> float:
        """Regression of the target's denoiser on the least-variance mixture of identities."""
        parts = (self._teacher_loss(work, shard) for shard in self.shards.owned)
        step = self._apply(work, "teacher", parts, self.config.score_lr)
        # Averages would keep a NaN for ever.
        if step.taken:
            mixture = IdentityMixture(work.tensors["mixture"])
            mixture.update(step.beside.reshape(4, -1))
            work.tensors["mixture"] = mixture.moments
            iteration = int(work.numbers["iteration"])
            decay = min(_TEACHER_EMA, (1 + iteration) / (10 + iteration))
            work.average("teacher_ema", "teacher", decay)
        return step.loss

    def _teacher_loss(self, work: Workspace, shard: int) -> tuple[Tensor, Tensor]:
        """The loss at chains of a shard, and what it says of the two identities."""
        prefix = self.shards.prefix(shard)
        stream, chains = work.streams[prefix], Population.taken(work.tensors, work.numbers, prefix)
        index = torch.randint(
            len(chains.state.position),
            (self.batch,),
            generator=stream,
            device=self.problem.device,
        )
        x, score = self._inward(work, chains.state.position[index]), chains.state.score[index]
        frame = cast(Generator, work.modules["generator"]).frame
        if frame is not None:
            score = frame.score(score)
        context = None
        if self.problem.temperatures is not None and chains.temperature is not None:
            context = self.problem.temperatures.context(chains.temperature[index])
        t = self.schedule.times(len(x), generator=stream, like=x)
        x_t, scales, _ = diffuse(x, self.schedule(t), self.space, generator=stream)
        y, s = x_t / scales.alpha[:, None, None], scales.sigma / scales.alpha
        # Both identities in the form of a clean-position estimate.
        by_target = y + s[:, None, None] ** 2 * self.space.project(score)
        mixture = IdentityMixture(work.tensors["mixture"])
        share = mixture.weight(t)[:, None, None]
        denoised = self._teacher(y, s, *_told(context))
        width = cast(Denoiser, work.modules["teacher"]).output_scale(s)[:, None, None]
        loss = ((denoised - torch.lerp(x, by_target, share)) / width).square().mean()
        with torch.no_grad():
            denoised = denoised.detach()
            said = mixture.sums(t, (denoised - x) / width, (denoised - by_target) / width)
        return loss, said.flatten()

    def _apply(
        self, work: Workspace, name: str, parts: Iterable[tuple[Tensor, Tensor]], rate: float
    ) -> Applied:
        step = work.apply_shards(
            name,
            parts,
            shards=self.shards,
            rate=rate * self._rate_factor(name, int(work.numbers["iteration"])),
            max_grad_norm=self.config.max_grad_norm,
        )
        self._sound = self._sound and step.taken
        return step

    def _where(self, iteration: int) -> str:
        if iteration < self.warmup:
            return f"warm-up step {iteration + 1}"
        return f"iteration {iteration - self.warmup + 1}"

    def _rate_factor(self, name: str, iteration: int) -> float:
        """Linear rise, flat to ``decay_start``, then a cosine to the final rate."""
        begun = iteration - self.warmup if name == "generator" else iteration
        rise = min(1.0, (begun + 1) / _RISE)
        done = max(0.0, iteration - self.warmup) / self.problem.iterations
        flat = self.config.decay_start
        fall = 0.5 + 0.5 * math.cos(math.pi * max(0.0, (done - flat) / (1 - flat)))
        final = self.config.final_lr
        if name == "score" and self.config.score_final_lr is not None:
            final = self.config.score_final_lr
        return rise * (final + (1 - final) * fall)


def _told(context: Tensor | None) -> tuple[Tensor, ...]:
    """What a denoiser is told beside positions and noise."""
    return () if context is None else (context,)


def _compiled(module: nn.Module, wanted: bool) -> Callable[..., Any]:
    return torch.compile(module, dynamic=False) if wanted else module
