r"""Generators with a known density: likelihood, reverse KL and their own weights, on one population.

For a generator whose density q is known three losses can be mixed, by weights:

``forward``
    :math:`-E_p[\log q(x)]` on a population of chains of the target p, made from the energy alone. It covers
    what the population covers. With ``order`` :math:`\alpha > 1` its frames count by
    :math:`(p/q)^{\alpha-1}`, at most ``cap`` times the median of their batch: the gradient of the Rényi
    divergence :math:`D_\alpha(p \| q) = \log E_p[(p/q)^{\alpha-1}] / (\alpha-1)`. That of order two is
    minus the log of the effective share of the draws: what is too rare among them, and would carry a heavy
    weight, is learned first. (Midgley et al., arXiv 2208.01893, have no population and reach it by
    annealing.)
``reverse``
    :math:`E_q[\log q(x) + u(x)]` on fresh draws. Rows of the greatest loss are left out, and derivatives are
    cut to a multiple of their median norm: a draw in collision would decide otherwise. ``estimator: path``
    takes its path gradient, at :math:`x = g_\theta(z)` the derivative of :math:`\log q + u` with respect to x
    alone, carried back to :math:`\theta`; what is left out has mean zero, and what remains vanishes row by
    row where q = p, and is noisier far from there (Roeder et al., arXiv 1703.09194). Both move draws, and
    so mass, only where draws are: between modes along bridges, whose rows are left out or cut.
    ``estimator: score`` needs no forces, :math:`-E_q[\delta \nabla_\theta \log q(x)]` with :math:`\delta`
    the log weight less its mean, cut at ``clip``: the gradient of half the variance of the log weights
    (Richter et al., arXiv 2010.10436). It raises a mode that has too little wherever it lies, and its noise
    vanishes with :math:`\delta`.
``weighted``
    :math:`-\sum_i \bar w_i \log q(x_i)` on the same draws, weights :math:`w = e^{-u}/q` held fixed, the
    largest ``cut`` of them cut (Noé et al., Science 365, eaaw1147 (2019); Midgley et al., arXiv 2208.01893).

The draws are also proposals: a chain at x moves to x' with probability :math:`\min(1, w(x')/w(x))`, which
leaves the target invariant and, other than a local move, mends the weights of modes that the population
started with. The generator learns from the population while the population is set right by the generator.

Over a range of temperatures every chain has one of them and is offered draws at its own, and neighbours
exchange (:mod:`molsampler.mcmc.ladder`). Weights at different temperatures differ by the ratio of their Z:
where rows are compared, each stands against the median of its temperature.
"""

from __future__ import annotations

import logging
import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError, NonFiniteError
from ..estimate import effective_count
from ..mcmc import mala
from ..mcmc.population import Population
from ..nn.generators.density import DensityGenerator, log_weight
from ..target import COORDINATE_LIMIT, Target
from .base import Metrics, Problem, State
from .one_generator import OneGenerator
from .optimisers import OptimiserName
from .preparation import PopulationObjectiveConfig
from .workspace import Workspace

log = logging.getLogger(__name__)

#: Iterations over which the learning rate rises.
_RISE = 100


class ExactConfig(PopulationObjectiveConfig):
    """Settings of :class:`Exact`.

    ``forward`` is the weight of the likelihood before the share ``reverse_from`` of the iterations and
    ``forward_later`` after it; ``reverse`` and ``weighted`` are zero before. Draws are proposed to the
    population from the share ``draw_from`` on, from which on frames count by their weights, too.
    ``batch_size`` chains and ``draws`` fresh draws make a step.
    The learning rate rises over the first hundred iterations, stays to ``decay_start`` and falls by a cosine
    to ``final_lr`` of itself. ``optimiser`` is ``adam``, or ``muon``
    (:mod:`molsampler.objectives.optimisers`) for the matrices of the network.
    """

    over_temperatures: ClassVar[bool] = True

    kind: Literal["exact"] = "exact"
    draws: int = Field(256, ge=1)
    draw_from: float = Field(0.05, ge=0, le=1)
    reverse_from: float = Field(0.35, ge=0, le=1)
    forward: float = Field(1.0, ge=0)
    forward_later: float = Field(0.5, ge=0)
    order: float = Field(1.0, ge=1)
    cap: float = Field(20.0, ge=1)
    reverse: float = Field(1.0, ge=0)
    weighted: float = Field(0.0, ge=0)
    estimator: Literal["path", "total", "score"] = "total"
    trim: float = Field(0.1, ge=0, lt=1)
    clip: float = Field(3.0, gt=0)
    cut: float = Field(0.01, ge=0, lt=1)
    propose: bool = True
    optimiser: OptimiserName = "adam"
    lr: float = Field(1e-3, gt=0)
    final_lr: float = Field(0.01, ge=0, le=1)
    max_grad_norm: float = Field(3.0, gt=0)
    ema: float = Field(0.998, ge=0, lt=1)

    @property
    def rows(self) -> int:
        return self.batch_size + self.draws + self.population.size

    def build(self, problem: Problem) -> Exact:
        return Exact(self, problem)


class Exact(OneGenerator):
    """See the module."""

    def __init__(self, config: ExactConfig, problem: Problem):
        super().__init__(config, problem)
        self.config = config

    def start(self, prepared: State) -> State:
        work = self.begun(self.build({}), prepared)
        work.numbers.update(proposed=0, accepted=0)
        return self.flat(work)

    def evaluations_per_step(self, *, warmup: bool) -> int:
        config = self.config
        drawing = 1 - min(config.reverse_from, config.draw_from if config.propose else 1.0)
        exchanges = self.problem.temperatures is not None
        moves = config.population.evaluations_per_iteration(exchanges=exchanges)
        return moves + round(drawing * config.draws)

    def build(self, state: State) -> Workspace:
        config, problem = self.config, self.problem
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(problem.seed)
            generator = problem.generator.build(self.space, molecule=problem.molecule)
        if not isinstance(generator, DensityGenerator):
            raise InputError(
                f"objective: exact needs a generator that knows its density, such as spline; kind "
                f"{problem.generator.kind!r} does not"
            )
        generator = generator.to(problem.device)
        self._run: DensityGenerator = generator.compiled() if problem.compile else generator
        return self.with_average(generator, optimiser=config.optimiser, lr=config.lr)

    def learn(self, work: Workspace, iteration: int) -> tuple[Metrics, bool]:
        config = self.config
        population = Population.taken(work.tensors, work.numbers)
        done = iteration / self.problem.iterations
        late = done >= config.reverse_from
        metrics: Metrics = {}
        loss = torch.zeros((), device=self.problem.device)
        if late or (config.propose and done >= config.draw_from):
            loss, population, metrics = self._draws(work, population, learn=late)
            population.put(work.tensors, work.numbers)
        forward = config.forward_later if late else config.forward
        if forward:
            index = torch.randint(
                len(population.state.energy),
                (config.batch_size,),
                generator=work.rng,
                device=self.problem.device,
            )
            temperature = _rows(population.temperature, index)
            log_q = self._run.log_prob(
                population.state.position[index], context=self.problem.context(temperature)
            )
            metrics["log_likelihood"] = float(log_q.detach().mean())
            if config.order > 1 and done >= config.draw_from:
                log_q = log_q * emphasis(
                    population.state.energy[index],
                    log_q.detach(),
                    order=config.order,
                    cap=config.cap,
                    temperature=temperature,
                ).to(log_q)
            loss = loss - forward * log_q.mean()
        if not loss.requires_grad:
            return metrics, True
        norm, taken = work.apply(
            "generator", loss, rate=self._rate(iteration), max_grad_norm=config.max_grad_norm
        )
        metrics["generator_grad"] = norm
        if taken:
            decay = min(config.ema, (1 + iteration) / (10 + iteration))
            work.average("ema", "generator", decay)
        return metrics, taken

    def _draws(
        self, work: Workspace, population: Population, *, learn: bool
    ) -> tuple[Tensor, Population, Metrics]:
        """Losses on fresh draws, the population after it was offered them, and what to log."""
        config = self.config
        by_score = config.estimator == "score"
        reverse = learn and config.reverse > 0 and not by_score
        offered = self._offered(work, population)
        temperature = _rows(population.temperature, offered)
        context = self.problem.context(temperature)
        target: Target = self.target
        if temperature is not None and self.problem.at is not None:
            target = self.target.counting(self.problem.at(temperature))
        count = config.draws if temperature is None else len(offered)
        with torch.set_grad_enabled(reverse):
            x, own = self._run.sample(count, context=context, generator=work.rng)
            at = x.detach().clamp(-COORDINATE_LIMIT, COORDINATE_LIMIT).nan_to_num()
            log_prob, slope = own.detach(), torch.zeros_like(at)
            if reverse and config.estimator == "path":
                log_prob = self._run.log_prob(at.requires_grad_(), context=context)
                (slope,) = torch.autograd.grad(log_prob.sum(), at)
        at, log_prob = at.detach(), log_prob.detach()
        energy, score = target.energy_and_score(at)
        weight = log_weight(energy, log_prob)
        whole = torch.isfinite(torch.stack([x.detach(), score])).flatten(2).all(-1).all(0)
        weight = weight.masked_fill(~whole, -torch.inf)
        usable = torch.isfinite(weight)
        if not bool(usable.any()):
            raise NonFiniteError(f"none of {len(weight)} draws has a finite energy and score")
        compared = weight if temperature is None else levelled(weight, temperature)
        kept = usable & (compared >= compared[usable].quantile(config.trim))
        loss = torch.zeros((), device=x.device)
        if reverse:
            away = _clipped((slope - score)[kept], config.clip)
            # Its value means nothing; its gradient is that of the loss.
            each = (away * x[kept]).flatten(1).sum(-1)
            if config.estimator == "total":
                each = each + own[kept]
            loss = loss + config.reverse * each.mean()
        if learn and config.reverse > 0 and by_score:
            delta = (compared[usable] - compared[usable].median()).clamp(-config.clip, config.clip)
            log_q = self._run.log_prob(at[usable], context=_rows(context, usable))
            loss = loss - config.reverse * ((delta - delta.mean()).to(log_q) * log_q).mean()
        if learn and config.weighted:
            highest = compared[usable].quantile(1 - config.cut)
            again = self._run.log_prob(at[usable], context=_rows(context, usable))
            share = shares(compared[usable].clamp(max=highest), _rows(temperature, usable))
            loss = loss - config.weighted * (share.to(again) * again).mean()
        metrics = {
            "log_weight": float(weight[usable].mean()),
            "effective": effective_count(compared) / len(compared),
        }
        if config.propose:
            population, accepted = self._propose(
                work, population, mala.State(at, energy, score), weight, offered
            )
            work.numbers["proposed"] += len(weight)
            work.numbers["accepted"] += accepted
            metrics["proposal_acceptance"] = accepted / len(weight)
        return loss, population, metrics

    def _offered(self, work: Workspace, population: Population) -> Tensor:
        """Indices of the chains that the next draws are offered to."""
        size = len(population.state.energy)
        count = min(self.config.draws, size)
        start = int(work.numbers["proposed"]) % size
        return (torch.arange(count, device=population.state.energy.device) + start) % size

    def _propose(
        self,
        work: Workspace,
        population: Population,
        drawn: mala.State,
        weight: Tensor,
        index: Tensor,
    ) -> tuple[Population, int]:
        """Offer draws to the chains ``index``, at whose temperatures they are, by independence Metropolis."""
        state, count = population.state, len(index)
        context = self.problem.context(_rows(population.temperature, index))
        with torch.no_grad():
            log_prob = self._run.log_prob(state.position[index], context=context)
        old = log_weight(state.energy[index], log_prob)
        chance = torch.rand(count, generator=work.rng, device=weight.device, dtype=weight.dtype)
        # A chain where the generator has no density at all has infinite weight and stays.
        old = old.masked_fill(~torch.isfinite(log_prob), torch.inf)
        accepted = chance.log() < weight[:count] - old
        chosen = index[accepted]
        moved = mala.State(
            *(
                field.index_copy(0, chosen, new[:count][accepted].to(field))
                for field, new in zip(state, drawn, strict=True)
            )
        )
        return population._replace(state=moved), int(accepted.sum())

    def _rate(self, iteration: int) -> float:
        config = self.config
        rise = min(1.0, (iteration + 1) / _RISE)
        done = iteration / self.problem.iterations
        passed = max(0.0, (done - config.decay_start) / (1 - config.decay_start))
        fall = 0.5 + 0.5 * math.cos(math.pi * passed)
        return config.lr * rise * (config.final_lr + (1 - config.final_lr) * fall)


def _rows(values: Tensor | None, index: Tensor) -> Tensor | None:
    return None if values is None else values[index]


def levelled(log_weight: Tensor, temperature: Tensor) -> Tensor:
    """Log weights ``(b,)`` less the median of the finite ones of their temperature ``(b,)``."""
    result = log_weight.clone()
    for value in torch.unique(temperature):
        own = temperature == value
        finite = log_weight[own & torch.isfinite(log_weight)]
        if len(finite):
            result[own] -= finite.median()
    return result


def shares(log_weight: Tensor, temperature: Tensor | None = None) -> Tensor:
    """Weights ``(b,)`` of mean one, over all rows or over those of each temperature ``(b,)``."""
    groups = [torch.ones_like(log_weight, dtype=torch.bool)]
    if temperature is not None:
        groups = [temperature == value for value in torch.unique(temperature)]
    result = torch.empty_like(log_weight)
    for group in groups:
        result[group] = log_weight[group].softmax(0) * group.sum()
    return result


def emphasis(
    energy: Tensor,
    log_prob: Tensor,
    *,
    order: float,
    cap: float,
    temperature: Tensor | None = None,
) -> Tensor:
    r"""How much each frame of the target counts, of mean one: :math:`(p/q)^{\alpha-1}`, cut at ``cap`` times
    its median.

    Parameters
    ----------
    energy, log_prob : reduced energies of the frames, and their log densities under the generator ``(b,)``
    order : :math:`\alpha \geq 1`; one has all frames count alike
    temperature : of the frames ``(b,)`` where they have several, each with a median and a mean of its own
    """
    log_ratio = -(energy.double() + log_prob.double())
    away = (
        log_ratio - log_ratio.median() if temperature is None else levelled(log_ratio, temperature)
    )
    away = ((order - 1) * away).nan_to_num(nan=0.0)
    return shares(away.clamp(max=math.log(cap)), temperature)


def _clipped(rows: Tensor, clip: float) -> Tensor:
    """Rows ``(b, n, d)`` of a norm of at most ``clip`` times the median."""
    norm = rows.flatten(1).norm(dim=-1)
    factor = (clip * norm.median() / norm.clamp(min=1e-30)).clamp(max=1.0)
    clipped: Tensor = rows * factor[:, None, None]
    return clipped
