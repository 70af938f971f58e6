r"""Diffusion generator: noise is taken away in many small steps, and every path of them has an exact weight.

A denoiser :math:`D(x, \sigma) \approx E[x_0 | x_\sigma = x]` of the target, of clean data noised by
:math:`x_\sigma = x_0 + \sigma\varepsilon`, carries a Gaussian through levels of noise
:math:`\sigma_K > \dots > \sigma_1 > \sigma_0 = 0` by

.. math:: x_{k-1} = x_k + (1 - r_k)\,(D(x_k, \sigma_k) - x_k) + \sqrt{v_k}\,\xi_k, \qquad
          r_k = \sigma_{k-1}^2 / \sigma_k^2, \quad
          v_k = (1 - r_k)\,\sigma_{k-1}^2 + (1 - r_k)^2\, V(\sigma_k),

with the mean squared error V of the denoiser, per coordinate: of isotropic Gaussian steps with this mean,
the likeliest (the optimal variance of Bao et al., arXiv 2201.06503). What they miss is that coordinates are
known unequally well. With ``covariance: pairs`` V is the matrix that :mod:`molsampler.nn.pair_precision`
builds for each configuration, and half as many steps do. An isotropic step of :math:`h` in
:math:`\log\sigma` loses, to leading order, :math:`h^2 (E\,\mathrm{tr}\,J^2 - (\mathrm{tr}\,J)^2 / d)` with
the derivative J of D in d dimensions; levels lie as dense as the root of that, which makes the sum least.
No derivative of D is taken for it: with :math:`\rho = V / \sigma^2 = E\,\mathrm{tr}\,J / d`, the relation of
information and error (Guo et al., IEEE Trans. Inf. Theory 51, 1261 (2005)) gives
:math:`E\,\mathrm{tr}\,J^2 / d = \rho + \tfrac12\, d\rho / d\log\sigma`.

The density of what comes out is not known; that of its whole path is, and so is that of the path
that noising takes from the target to the Gaussian. Their ratio,

.. math:: w = \frac{e^{-u(x_0)} \prod_k N(x_k; x_{k-1}, \sigma_k^2 - \sigma_{k-1}^2)}
                   {p(x_K) \prod_k N(x_{k-1}; m_k(x_k), v_k)},

has mean Z whatever the denoiser and however few the steps, and weighted averages over :math:`x_0` are those
of the target (Vargas et al., arXiv 2302.13834). An energy is evaluated once, at the end. An equivariant body
makes the law of :math:`x_0`, weights included, symmetric under rotation, reflection and permutation.

With ``temperatures`` the denoiser reads the temperature beside the noise, and its error is known at several:
levels and variances are those of the temperature that is drawn at.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from ...errors import InputError
from ...molecule.molecule import Molecule
from ...space import Space
from ...target import COORDINATE_LIMIT, Target
from ...temperatures import TemperatureRange
from ..bodies import AnyBody, Body, EGNNBody
from ..bodies.egnn import require_pairs
from ..denoiser import Denoiser
from ..kicks import IsotropicKick, Kick, PairKick
from ..pair_precision import PairPrecision
from .base import Draw, Generator, GeneratorConfig, Sampling
from .density import log_weight

#: Nodes of the table of the denoiser's error.
_NODES = 32

#: Temperatures of the table, where there is a range of them.
_RUNGS = 9

#: Added to the spread of the posterior's variances, so that every level of noise has its steps.
_LEAST_SPREAD = 0.02

#: Pairs of all rows whose matrices are in memory together, and rows that are at least.
_PAIRS, _LEAST_ROWS = 2**18, 16

#: Decay of the running averages in that table, once a place has been seen for some time.
_DECAY = 0.995


class DiffusionSampling(Sampling):
    """How many ``steps`` take the noise away, a pass of the network each."""

    steps: int = Field(100, ge=2, le=100_000)


class DiffusionConfig(GeneratorConfig):
    """A :class:`Diffusion`. Noise runs from ``sigma_min`` to ``sigma_max``; ``data_scale`` is the root mean
    square of the clean coordinates. All three are in data scales until :meth:`scaled`. Steps have a
    ``covariance``, isotropic or told by pairs of particles."""

    weighted = True

    kind: Literal["diffusion"] = "diffusion"
    body: AnyBody = EGNNBody()
    sigma_min: float = Field(0.015, gt=0)
    sigma_max: float = Field(4.0, gt=0)
    data_scale: float = Field(1.0, gt=0)
    covariance: Literal["isotropic", "pairs"] = "isotropic"
    temperatures: TemperatureRange | None = None

    @property
    def bodies(self) -> tuple[Body, ...]:
        return (self.body,)

    def conditioned(self, temperatures: TemperatureRange) -> Self:
        return self.model_copy(update={"temperatures": temperatures})

    def scaled(self, length: float) -> Self:
        return self.model_copy(
            update={
                "body": self.body.scaled(length),
                "sigma_min": self.sigma_min * length,
                "sigma_max": self.sigma_max * length,
                "data_scale": self.data_scale * length,
            }
        )

    def data_scale_of(self, scaled: GeneratorConfig) -> float:
        return scaled.data_scale / self.data_scale if isinstance(scaled, DiffusionConfig) else 1.0

    @classmethod
    def sampling(cls, values: Mapping[str, Any] | None = None) -> DiffusionSampling:
        return DiffusionSampling.model_validate(dict(values or {}))

    def build(
        self, space: Space, *, molecule: Molecule | None = None, sampling: Sampling | None = None
    ) -> Diffusion:
        if self.sigma_min >= self.sigma_max:
            raise InputError(
                f"sigma_min must be below sigma_max, got {self.sigma_min:g} and {self.sigma_max:g}"
            )
        how = DiffusionSampling() if sampling is None else sampling
        if not isinstance(how, DiffusionSampling):
            raise InputError(f"sampling must be a DiffusionSampling, got {type(how).__name__}")
        return Diffusion(self, how, space, molecule)


class Diffusion(Generator):
    """See the module."""

    config: DiffusionConfig
    sampling: DiffusionSampling
    error: Tensor
    seen: Tensor
    #: Few, for each takes as many passes as there are steps.
    at_once = 128

    def __init__(
        self,
        config: DiffusionConfig,
        sampling: DiffusionSampling,
        space: Space,
        molecule: Molecule | None,
    ):
        super().__init__(config, sampling, space)
        self.mirror_symmetric = config.body.mirror_symmetric
        self.temperatures = config.temperatures
        self.denoiser = Denoiser(
            config.body,
            space,
            data_scale=config.data_scale,
            molecule=molecule,
            context=int(config.temperatures is not None),
        )
        self.denoiser.body.start_late()
        self.precision: PairPrecision | None = None
        if config.covariance == "pairs":
            require_pairs(space)
            self.precision = PairPrecision(
                space,
                data_scale=config.data_scale,
                molecule=molecule,
                context=int(config.temperatures is not None),
            )
        # Mean squared errors, as a share of those of the best linear denoiser; over a range of temperatures
        # at each of several.
        if config.temperatures is None:
            self.register_buffer("error", torch.ones(_NODES))
        else:
            self.register_buffer("error", torch.ones(_RUNGS, _NODES))
            # How often each place was seen: a ladder may leave out some.
            self.register_buffer("seen", torch.zeros(_RUNGS, _NODES))
        self._run: Callable[..., Tensor] | None = None

    @property
    def evaluations_per_sample(self) -> int:
        return 1

    def compiled(self) -> Self:
        twin = copy.copy(self)
        twin.__dict__["_run"] = torch.compile(self.denoiser, dynamic=False)
        return twin

    def stepped(self, steps: int) -> Self:
        return self.with_sampling(self.sampling.model_copy(update={"steps": steps}))

    def start_from(self, x: Tensor, *, context: Tensor | None = None) -> None:
        self.denoiser.body.start_from(x, spring=0.0)

    def denoised(self, x: Tensor, sigma: Tensor, context: Tensor | None = None) -> Tensor:
        """Estimate of the clean configurations behind ``x`` ``(b, n, d)`` of noise ``sigma`` ``(b,)``, whose
        temperatures ``context`` ``(b, 1)`` tells where there are several."""
        run = self.denoiser if self._run is None else self._run
        return run(x, sigma) if context is None else run(x, sigma, context)

    def observe(self, sigma: Tensor, squared: Tensor, context: Tensor | None = None) -> None:
        """Take in squared errors ``(b,)`` of the denoiser, per coordinate, at noise ``sigma`` ``(b,)``, where
        there are several temperatures at those of ``context`` ``(b, 1)``."""
        share = (squared / self.denoiser.output_scale(sigma).square()).to(self.error)
        index = self._place(sigma).round().long()
        decay: float | Tensor = _DECAY
        if context is not None:
            index = index + _NODES * _rung(context[:, 0]).round().long()
            seen = self.seen.flatten()
            decay = (seen / (1 + seen)).clamp(max=_DECAY)
        table = self.error.flatten()
        count = torch.zeros_like(table).index_add_(0, index, torch.ones_like(share))
        mean = torch.zeros_like(table).index_add_(0, index, share) / count.clamp(min=1)
        after = torch.where(count > 0, mean + decay * (table - mean), table)
        self.error.copy_(after.reshape(self.error.shape))
        if context is not None:
            self.seen.add_((count > 0).to(self.seen).reshape(self.seen.shape))

    def _table(self) -> Tensor:
        """The table of errors ``(nodes,)``, of a range at the temperature of :meth:`at`.

        Raises
        ------
        InputError
            The generator is one of a range and has not been asked for a temperature.
        """
        if self.temperatures is None:
            return self.error
        if self.temperature is None:
            raise InputError(
                f"a diffusion generator of the temperatures {self.temperatures} draws at one of them: take "
                "at(temperature)"
            )
        told = self.temperatures.context(torch.tensor([self.temperature], dtype=torch.float64))
        place = float(_rung(told[0, 0]))
        met = (self.seen.sum(1) > 0).nonzero()[:, 0].tolist() or list(range(_RUNGS))
        below = max((rung for rung in met if rung <= place), default=met[0])
        above = min((rung for rung in met if rung > place), default=met[-1])
        share = (place - below) / (above - below) if above > below else 0.0
        return torch.lerp(self.error[below], self.error[above], share)

    def error_at(self, sigma: Tensor) -> Tensor:
        """Mean squared error V of the denoiser, per coordinate, at noise ``sigma`` ``(k,)``."""
        place = self._place(sigma)
        below = place.floor().long().clamp(max=_NODES - 2)
        table = self._table().to(sigma)
        share = torch.lerp(table[below], table[below + 1], place - below)
        scale = float(self.denoiser.data_scale)
        return share * sigma.square() * scale**2 / (sigma.square() + scale**2)

    def _place(self, sigma: Tensor) -> Tensor:
        """Where noise stands among the nodes, from zero to the last."""
        config = self.config
        share = (sigma / config.sigma_min).log() / math.log(config.sigma_max / config.sigma_min)
        return share.clamp(0.0, 1.0) * (_NODES - 1)

    def levels(self, *, like: Tensor) -> Tensor:
        """Noise from zero to the most ``(steps + 1,)`` in float64, dense where steps err most."""
        config = self.config
        place = torch.linspace(0, _NODES - 1, 50 * _NODES, dtype=torch.float64, device=like.device)
        below = place.floor().long().clamp(max=_NODES - 2)
        density = self._density().to(place)
        density = torch.lerp(density[below], density[below + 1], place - below)
        passed = torch.cumulative_trapezoid(density, dx=1.0)
        passed = torch.cat([passed.new_zeros(1), passed / passed[-1]])
        wanted = torch.linspace(0, 1, self.sampling.steps, dtype=torch.float64, device=like.device)
        above = torch.searchsorted(passed, wanted).clamp(1, len(passed) - 1)
        share = (wanted - passed[above - 1]) / (passed[above] - passed[above - 1])
        rise = torch.lerp(place[above - 1], place[above], share.clamp(0, 1)) / (_NODES - 1)
        sigma = config.sigma_min * (config.sigma_max / config.sigma_min) ** rise
        return torch.cat([sigma.new_zeros(1), sigma])

    def _density(self) -> Tensor:
        """Relative density of levels at the nodes ``(nodes,)``."""
        config = self.config
        rise = torch.linspace(0, 1, _NODES, dtype=torch.float64, device=self.error.device)
        sigma = config.sigma_min * (config.sigma_max / config.sigma_min) ** rise
        known = self.error_at(sigma) / sigma.square()
        padded = torch.cat([2 * known[:1] - known[1:2], known, 2 * known[-1:] - known[-2:-1]])
        # What noise there is in the table would be in its slope many times over.
        known = (padded[:-2] + padded[1:-1] + padded[2:]) / 3
        (slope,) = torch.gradient(known, spacing=float((sigma[1] / sigma[0]).log()))
        spread = (known + 0.5 * slope - known.square()).clamp(min=0)
        return (spread + _LEAST_SPREAD).sqrt()

    def variances(self, sigma: Tensor) -> Tensor:
        """Variances ``(steps,)`` of the steps to each of the levels ``sigma`` but the last."""
        ratio = (sigma[:-1] / sigma[1:]).square()
        return (1 - ratio) * sigma[:-1].square() + (1 - ratio).square() * self.error_at(sigma[1:])

    def draw(
        self,
        n: int,
        target: Target,
        *,
        context: Tensor | None = None,
        generator: torch.Generator | None,
    ) -> Draw:
        if self.temperatures is None:
            self.refuse_context(context)
        if context is not None:
            raise InputError(
                "paths from noise are of one temperature, got a context: take at(temperature)"
            )
        x, log_path = self.path(n, generator=generator)
        energy, _ = target.energy_and_score(x.detach().double())
        return Draw(x, log_weight(energy, -log_path), n)

    def path(self, n: int, *, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """``n`` configurations, and the log ratio ``(n,)`` of the densities of noising and denoising along
        the path behind each; minus its energy that is the log of its weight."""
        most = max(n, 1)
        if self.precision is not None:
            most = max(_LEAST_ROWS, _PAIRS // self.space.shape[0] ** 2)
        pieces = [
            self._path(min(most, n - done), generator=generator)
            for done in range(0, max(n, 1), most)
        ]
        return torch.cat([x for x, _ in pieces]), torch.cat([log_path for _, log_path in pieces])

    def _path(self, n: int, *, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """:meth:`path` of rows whose matrices are in memory together."""
        like, space = self.error, self.space
        sigma = self.levels(like=like)
        variance = self.variances(sigma)
        start = IsotropicKick(space, self.config.data_scale**2 + sigma[-1].square(), n, like=like)
        context = self.context_of(n, None, like=like)
        x = start.draw(generator).to(like)
        # Of rounded positions, in float64: the rounding belongs to neither path.
        log_path = 0.5 * space.dof * math.log(2 * math.pi) - start.log_density(x.double())
        lost = torch.zeros(n, dtype=torch.bool, device=like.device)
        for k in range(len(sigma) - 1, 0, -1):
            here = x.double()
            noise = sigma[k].to(like).expand(n)
            clean = self.denoised(x, noise, context)
            share = 1 - (sigma[k - 1] / sigma[k]).square()
            mean = here + share * (clean.double() - here)
            kick: Kick = IsotropicKick(space, variance[k - 1], n, like=like)
            if self.precision is not None:
                kick = PairKick(
                    space,
                    self.precision(clean, noise, context),
                    share * sigma[k - 1].square(),
                    (share * sigma[k]).square(),
                )
            x = (mean + kick.draw(generator)).to(like)
            # What a poor network throws out of the world ends without weight, not with an error.
            out = ~(x.abs() <= COORDINATE_LIMIT).flatten(1).all(1)
            x, lost = x.masked_fill(out[:, None, None], 0.0), lost | out
            there = x.double()
            noised = IsotropicKick(space, sigma[k].square() - sigma[k - 1].square(), n, like=like)
            log_path += noised.log_density(here - there) - kick.log_density(there - mean)
        return x, log_path.masked_fill(lost, -torch.inf)


def _rung(context: Tensor) -> Tensor:
    """Where temperatures, as networks are told of them, stand among those of the table."""
    return (0.5 * (context + 1)).clamp(0.0, 1.0) * (_RUNGS - 1)
