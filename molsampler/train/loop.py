"""The two-time-scale training loop: several score steps, then one generator step."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..diffusion.posterior import posterior_score, start_chains
from ..diffusion.schedule import Scales
from ..errors import DivergenceError, FileFormatError, NonFiniteError
from ..mcmc import adapt, mala
from ..mcmc import population as chains
from ..molecule.particles import Particles
from ..nn.generators.implicit import Generator, Latent
from ..objectives.dikl_loss import diffuse, dikl_loss, weight
from ..target import CountingTarget, Target
from .config import PosteriorConfig, ReplayConfig, TrainConfig
from .criterion import REACH, Discrepancy, calibrate
from .state import TrainState, build_schedule, build_state

#: Chains of the pilot run that finds the data scale where there is no replay to read it from.
_PILOT = 256

#: Lowest time at the start of noise annealing; for the fast preset a noise of about the data scale.
_ANNEALING_START = 0.75

#: Parts of the samples whose spread is the error of the drift.
_PARTS = 5


def start(
    config: TrainConfig,
    target: Target,
    *,
    device: torch.device,
    report: Callable[[str, float], None],
) -> TrainState:
    """Make a fresh state: equilibrate the replay (or a pilot), read the data scale, build networks."""
    rng = torch.Generator(device=device)
    rng.manual_seed(config.seed)
    counting = CountingTarget(target)
    like = torch.empty(0, device=device)
    amortised = isinstance(config.target_score, ReplayConfig)
    population, step_size, scale = None, 0.0, config.data_scale
    if amortised or scale is None:
        plan = (
            config.target_score
            if isinstance(config.target_score, ReplayConfig)
            else ReplayConfig(size=_PILOT, equilibration=500)
        )
        population, step_size = chains.equilibrate(
            plan,
            counting,
            generator=rng,
            like=like,
            report=report,
            particles=Particles.of(target),
        )
        if scale is None:
            x = population.position
            centred = target.space.project(x - x.mean(0))
            rms = centred.square().sum(dim=(-2, -1)).mean() / target.space.dof
            # Two digits are enough, and survive a change of hardware.
            scale = float(f"{math.sqrt(float(rms)):.2g}")
    state = build_state(config, target, data_scale=scale, rng=rng, device=device)
    if population is not None:
        state.settle(population.position)
    if amortised:
        state.replay, state.replay_step = population, step_size
    state.evaluations = counting.evaluations
    return state


def blank(
    config: TrainConfig, target: Target, counters: str, *, device: torch.device
) -> TrainState:
    """A state of the right structure, to be filled from a checkpoint with these counters.

    Raises
    ------
    FileFormatError
        They are not those of a checkpoint.
    """
    try:
        scale = float(json.loads(counters)["data_scale"])
        if not 0 < scale < math.inf:
            raise ValueError(f"data_scale {scale}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileFormatError(f"the counters of the checkpoint are unusable: {error}") from None
    rng = torch.Generator(device=device)
    return build_state(config, target, data_scale=scale, rng=rng, device=device)


@dataclass
class Evaluation:
    """What can be known of a generator without data."""

    discrepancy: float | None
    """Distance to the replay (:class:`~molsampler.train.criterion.Discrepancy`), None without one."""
    discrepancy_error: float | None
    drift: float
    """Energy-W2, in kT, between samples and the same samples after MALA steps; mean over parts."""
    drift_error: float
    """Standard error of that mean."""
    median_energy: float
    refined_median_energy: float
    acceptance: float

    @property
    def criterion(self) -> tuple[float, float]:
        """What selection goes by, and its standard error: the discrepancy where there is a replay."""
        if self.discrepancy is None or self.discrepancy_error is None:
            return self.drift, self.drift_error
        return self.discrepancy, self.discrepancy_error


class Trainer:
    """Advances a :class:`TrainState`; holds nothing that a resume would need."""

    def __init__(self, config: TrainConfig, target: Target, state: TrainState):
        self.config, self.state = config, state
        self.target = CountingTarget(target, state.evaluations)
        self.space = target.space
        # The generator's Langevin layers count too.
        for module in (state.generator, state.ema, state.selected):
            module.target = self.target if module.config.langevin_layers else None
        self.apply_calibration()
        self.schedule = build_schedule(config, state.data_scale)
        plan = config.target_score
        self.replay = plan if isinstance(plan, ReplayConfig) else None
        self.posterior = plan if isinstance(plan, PosteriorConfig) else None
        self.warmup = self.replay.warmup if self.replay else 0
        self.total = self.warmup + config.iterations
        compiled = config.compile and shutil.which("g++") is not None
        self.score = _compiled(state.score, compiled)
        self.teacher = _compiled(state.teacher, compiled) if state.teacher else None
        self.teacher_ema = _compiled(state.teacher_ema, compiled) if state.teacher_ema else None
        self.body = _compiled(state.generator.body, compiled)
        self.dtype = torch.empty(0, device=state.mixture.moments.device)

    @property
    def finished(self) -> bool:
        return self.state.iteration >= self.total

    @property
    def evaluation_due(self) -> bool:
        """Whether the criterion is to be measured after the iteration just done."""
        done = self.state.iteration - self.warmup
        return self.finished or (done > 0 and done % self.config.evaluate_every == 0)

    def step(self) -> dict[str, float]:
        """One iteration; returns what is worth logging.

        Raises
        ------
        DivergenceError
            ``max_bad_steps`` iterations in a row had a non-finite loss or gradient.
        """
        state, config = self.state, self.config
        began = time.perf_counter()
        self._bad = False
        try:
            values = self._advance()
        except NonFiniteError:
            # The networks threw a particle where no energy is.
            self._bad, values = True, {}
        self._refresh()
        state.iteration += 1
        state.evaluations = self.target.evaluations
        state.seconds += time.perf_counter() - began
        if self._bad:
            state.skipped += 1
            state.bad_in_a_row += 1
            if state.bad_in_a_row >= config.max_bad_steps:
                raise DivergenceError(
                    f"{state.bad_in_a_row} iterations in a row had a non-finite loss or gradient "
                    f"(last: iteration {state.iteration}); the last good checkpoint is kept"
                )
        else:
            state.bad_in_a_row = 0
        return values

    def _advance(self) -> dict[str, float]:
        if self.state.iteration >= self.warmup:
            return self._dikl_step()
        values = {"phase": 0.0, "teacher_loss": self._teacher_step()}
        if self.state.iteration + 1 == self.warmup:
            self._start_score_from_teacher()
        return values

    def evaluate(self) -> Evaluation:
        """Measure the averaged generator without data, and select it if none was better.

        Its random stream is its own, so evaluating more or less often changes nothing else. At the end of
        training the selected generator is calibrated.
        """
        state = self.state
        rng = torch.Generator(device=self.dtype.device)
        rng.manual_seed(self.config.seed + 7919 * (state.iteration + 1))
        discrepancy = None if state.replay is None else Discrepancy(state.replay, self.space)
        result = self._measure(state.ema, discrepancy, rng)
        value, error = result.criterion
        # Ties go to the later iteration: its average is longer and its learning rate lower.
        if value <= state.best + 2 * error:
            self._select(result)
            state.best_iteration = state.iteration
            state.selected.load_state_dict(state.ema.state_dict())
        state.best = min(state.best, value)
        if self.finished and discrepancy is not None and self.config.calibrate:
            state.calibration = calibrate(
                state.selected,
                discrepancy,
                self.target,
                samples=self.config.evaluate_samples,
                rng=rng,
                like=self.dtype,
            )
            self.apply_calibration()
            self._select(self._measure(state.selected, discrepancy, rng))
        state.evaluations = self.target.evaluations
        return result

    def apply_calibration(self) -> None:
        """Give the selected generator the state's calibration."""
        selected = self.state.selected
        selected.config = selected.config.model_copy(
            update={"latent_calibration": self.state.calibration}
        )

    def _select(self, result: Evaluation) -> None:
        self.state.best_drift = result.drift
        if result.discrepancy is not None:
            self.state.best_discrepancy = result.discrepancy

    def _measure(
        self, generator: Generator, discrepancy: Discrepancy | None, rng: torch.Generator
    ) -> Evaluation:
        config, state = self.config, self.state
        with torch.no_grad():
            latent = generator.draw_latent(config.evaluate_samples, generator=rng, like=self.dtype)
            x = generator(latent).nan_to_num().clamp(-REACH, REACH)
        chain = mala.init(x, self.target)
        before = chain.energy
        far, far_error = (None, None) if discrepancy is None else discrepancy(x, before)
        guess = state.replay_step or 1e-3 * state.data_scale**2
        adaptation = adapt.init(guess)
        acceptance = 0.0
        for _ in range(config.evaluate_steps):
            chain, info = mala.step(
                chain, self.target, step_size=float(adaptation.step_size), generator=rng
            )
            adaptation = adapt.update(adaptation, info.acceptance)
            acceptance += float(info.acceptance.mean()) / config.evaluate_steps
        after = chain.energy
        # One sample in collision must cost, not decide: energies end at the refined range, widened.
        low, high = after.min(), after.max()
        ceiling = high + (high - low)
        moved = torch.stack(
            [
                (first.clamp(max=ceiling).sort()[0] - second.sort()[0]).square().mean().sqrt()
                for first, second in zip(before.chunk(_PARTS), after.chunk(_PARTS), strict=True)
            ]
        )
        drift, error = float(moved.mean()), float(moved.std()) / math.sqrt(_PARTS)
        return Evaluation(
            far,
            far_error,
            drift,
            error,
            float(before.median()),
            float(after.median()),
            acceptance,
        )

    def _dikl_step(self) -> dict[str, float]:
        state, config = self.state, self.config
        teacher_loss = [
            self._teacher_step() for _ in range(self.replay.steps if self.replay else 0)
        ]
        latent = state.generator.draw_latent(
            config.batch_size, generator=state.rng, like=self.dtype
        )
        x = self._generate(latent)
        score_loss = [self._score_step(x.detach()) for _ in range(config.score_steps)]

        t = self._annealed_times(x)
        diffused = diffuse(x, self.schedule(t), self.space, generator=state.rng)
        x_t, scales = diffused.x_t.detach(), diffused.scales
        with torch.no_grad():
            model_score = _score(self.score, x_t, scales)
        target_score = self._target_score(x_t, scales, t)
        result = dikl_loss(
            diffused,
            model_score,
            target_score,
            weight=weight(config.weighting, scales, data_scale=state.data_scale),
            clip=config.clip,
        )
        norm = self._apply("generator", state.generator, result.loss, config.generator_lr)
        done = state.iteration - self.warmup
        _average(state.ema, state.generator, min(config.ema, (1 + done) / (10 + done)))
        values = {
            "phase": 1.0,
            "score_loss": sum(score_loss) / len(score_loss),
            "difference": float(result.norm.nan_to_num().mean()),
            "clipped": float((result.norm > config.clip).float().mean()),
            "generator_grad": norm,
        }
        if teacher_loss:
            values["teacher_loss"] = sum(teacher_loss) / len(teacher_loss)
        return values

    def _generate(self, latent: Latent) -> Tensor:
        # The compiled body stands in for the module's own during the call.
        return self.state.generator.forward(latent, body=self.body)

    def _annealed_times(self, x: Tensor) -> Tensor:
        """Times of the generator's and its score's steps, early in training the noisy ones only.

        At high noise the modes of the target are one. The floor falls as training goes, and they
        part while the generator can still move weight between them.
        """
        t = self.schedule.times(len(x), generator=self.state.rng, like=x)
        share = self.config.noise_annealing
        if not share:
            return t
        done = (self.state.iteration - self.warmup) / (share * self.config.iterations)
        floor = _ANNEALING_START * max(0.0, 1.0 - done)
        return floor + (1.0 - floor) * t

    def _target_score(self, x_t: Tensor, scales: Scales, t: Tensor) -> Tensor:
        state = self.state
        if self.teacher_ema is not None:
            with torch.no_grad():
                return _score(self.teacher_ema, x_t, scales)
        plan = self.posterior
        if plan is None:
            raise DivergenceError("no target score is configured")
        # One adapted step size per noise level, carried from iteration to iteration.
        bins = len(state.posterior_log_step)
        index = (t * bins).long().clamp(0, bins - 1)
        chain = start_chains(
            x_t,
            scales,
            self.target,
            particles=plan.particles,
            levels=plan.levels,
            step_size=state.posterior_log_step[index].exp(),
            generator=state.rng,
        )
        estimate = posterior_score(
            x_t,
            scales,
            self.target,
            chain,
            steps=plan.steps,
            average=plan.average,
            identity=plan.identity,
            generator=state.rng,
        )
        error = estimate.acceptance - adapt.MALA_ACCEPTANCE
        count = torch.zeros(bins, device=t.device).index_add_(0, index, torch.ones_like(t))
        total = torch.zeros(bins, device=t.device).index_add_(0, index, error)
        change = (0.3 * total / count.clamp(min=1.0)).nan_to_num()
        state.posterior_log_step = state.posterior_log_step + change
        return estimate.score

    def _score_step(self, x: Tensor) -> float:
        """Denoising score matching of the model's score on generator samples."""
        state = self.state
        t = self._annealed_times(x)
        x_t, scales = diffuse(x, self.schedule(t), self.space, generator=state.rng)
        s = scales.sigma / scales.alpha
        denoised = self.score(x_t / scales.alpha[:, None, None], s)
        residual = (denoised - x) / state.score.output_scale(s)[:, None, None]
        loss = residual.square().mean()
        self._apply("score", state.score, loss, self.config.score_lr)
        return float(loss.detach())

    def _teacher_step(self) -> float:
        """Regression of the target's denoiser on the least-variance mixture of identities."""
        state = self.state
        if state.replay is None or self.teacher is None or state.teacher is None:
            raise DivergenceError("the run has no replay to learn the target score from")
        index = torch.randint(
            len(state.replay.energy),
            (self.config.batch_size,),
            generator=state.rng,
            device=self.dtype.device,
        )
        x, score = state.replay.position[index], state.replay.score[index]
        t = self.schedule.times(len(x), generator=state.rng, like=x)
        x_t, scales = diffuse(x, self.schedule(t), self.space, generator=state.rng)
        y, s = x_t / scales.alpha[:, None, None], scales.sigma / scales.alpha
        # Both identities in the form of a clean-position estimate.
        by_target = y + s[:, None, None] ** 2 * self.space.project(score)
        share = state.mixture.weight(t)[:, None, None]
        denoised = self.teacher(y, s)
        scale = state.teacher.output_scale(s)[:, None, None]
        loss = ((denoised - torch.lerp(x, by_target, share)) / scale).square().mean()
        norm = self._apply("teacher", state.teacher, loss, self.config.score_lr)
        if not math.isfinite(norm):
            # Averages would keep a NaN for ever.
            return float(loss.detach())
        with torch.no_grad():
            denoised = denoised.detach()
            state.mixture.update(t, (denoised - x) / scale, (denoised - by_target) / scale)
            if state.teacher_ema is not None:
                _average(
                    state.teacher_ema,
                    state.teacher,
                    min(0.998, (1 + state.iteration) / (10 + state.iteration)),
                )
        return float(loss.detach())

    def _start_score_from_teacher(self) -> None:
        """The model's score starts as the target's: both then err alike, and errors cancel."""
        if self.state.teacher is not None:
            self.state.score.load_state_dict(self.state.teacher.state_dict())

    def _refresh(self) -> None:
        state, plan = self.state, self.replay
        if plan is None or state.replay is None or not plan.refresh:
            return
        state.replay = chains.refresh(
            state.replay,
            self.target,
            start=state.iteration * plan.refresh,
            count=min(plan.refresh, plan.size),
            steps=plan.refresh_steps,
            step_size=state.replay_step,
            generator=state.rng,
        )

    def _apply(self, name: str, module: nn.Module, loss: Tensor, rate: float) -> float:
        """One optimiser step, unless the loss or gradient is not finite; returns the gradient norm."""
        optimiser = self.state.optimisers[name]
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        norm = float(nn.utils.clip_grad_norm_(module.parameters(), self.config.max_grad_norm))
        if not math.isfinite(norm) or not math.isfinite(float(loss.detach())):
            self._bad = True
            optimiser.zero_grad(set_to_none=True)
            return norm
        for group in optimiser.param_groups:
            group["lr"] = rate * self._rate_factor(name)
        optimiser.step()
        return norm

    def _rate_factor(self, name: str) -> float:
        """Linear warm-up over 100 iterations, flat to ``decay_start``, then a cosine to the final rate.

        The score network may keep a higher rate: it follows a generator that never stands still.
        """
        iteration = self.state.iteration
        rise = min(1.0, (iteration + 1) / 100)
        if name == "generator":
            rise = min(1.0, (iteration - self.warmup + 1) / 100)
        done = max(0.0, iteration - self.warmup) / self.config.iterations
        flat = self.config.decay_start
        fall = 0.5 + 0.5 * math.cos(math.pi * max(0.0, (done - flat) / (1 - flat)))
        final = self.config.final_lr
        if name == "score" and self.config.score_final_lr is not None:
            final = self.config.score_final_lr
        return rise * (final + (1 - final) * fall)


def _score(denoiser: Any, x_t: Tensor, scales: Scales) -> Tensor:
    """Score from a (possibly compiled) denoiser."""
    alpha, sigma = scales.alpha[:, None, None], scales.sigma[:, None, None]
    denoised: Tensor = denoiser(x_t / alpha, scales.sigma / scales.alpha)
    return (alpha * denoised - x_t) / sigma**2


def _average(average: nn.Module, module: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for old, new in zip(average.parameters(), module.parameters(), strict=True):
            old.lerp_(new, 1.0 - decay)


def _compiled(module: nn.Module, wanted: bool) -> Any:
    return torch.compile(module, dynamic=False) if wanted else module
