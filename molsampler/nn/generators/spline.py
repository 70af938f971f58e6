r"""Spline flow: a generator with a known density, one pass either way.

Noise z, standard normal in coordinates that lie on a line and uniform on [0, 1) in those that go round, is
carried to configurations by

1. coupling layers: one half of the coordinates moves by monotone rational-quadratic splines whose knots a
   perceptron reads off the other half (Durkan et al., arXiv 1906.04032), circular ones on the circle
   (Rezende et al., arXiv 2002.02428);
2. one spline per coordinate that depends on nothing, set at the start to the quantiles of the population;
3. for coordinates on a line an affine map, which starts out by whitening the population, along its
   independent components where asked (:mod:`molsampler.nn.independent_components`);
4. the way into the space: orthonormal coordinates of a mean-free one; the normal quantile of an angle.

The density follows from the slopes. With ``permutations`` or ``mirror`` the flow is averaged over all
relabellings of the particles (and a reflection), which is again a density, with that symmetry exactly; with
``rotations`` it describes the shape of a configuration in the plane and a uniform angle.

With ``temperatures`` all perceptrons read the temperature of the row too, and the widths of coordinates on a
line grow as powers of it, :math:`(T / T_{mid})^{a_k}`, which start out as those of the population: one half
where a coordinate is harmonic. The density is that at the row's temperature.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from ...errors import InputError
from ...molecule.molecule import Molecule
from ...space import Space
from ...temperatures import TemperatureRange
from .. import splines
from ..independent_components import unmixing
from ..linear import Linear
from ..readout import Readout
from .base import GeneratorConfig, Sampling
from .density import DensityGenerator, DensitySampling, Drawn

#: Relabellings that are averaged over at most.
_MOST_IMAGES = 1000

#: Harmonics of an angle that perceptrons read.
_HARMONICS = 2

_LOG_2PI = math.log(2 * math.pi)

#: A turn, in standard deviations of a uniform angle.
_TURN = math.sqrt(12.0)


class SplineConfig(GeneratorConfig):
    """A :class:`Spline` of ``layers`` couplings with perceptrons of ``depth`` hidden layers of ``width``.

    Splines have ``bins`` bins within ``reach`` standard deviations, those that depend on nothing
    ``marginal_bins``. Perceptrons read each coordinate on a line also through ``bumps`` Gaussians.
    ``axes`` is what the affine map does: ``own`` keeps the coordinates, each by its own mean and width,
    ``white`` decorrelates them, ``independent`` turns them to independent components.
    """

    weighted = True

    kind: Literal["spline"] = "spline"
    layers: int = Field(10, ge=1, le=256)
    width: int = Field(128, ge=1, le=2**14)
    depth: int = Field(2, ge=1, le=64)
    bins: int = Field(8, ge=2, le=1024)
    marginal_bins: int = Field(32, ge=2, le=1024)
    reach: float = Field(5.0, gt=0)
    bumps: int = Field(0, ge=0, le=1024)
    axes: Literal["own", "white", "independent"] = "own"
    permutations: bool = False
    mirror: bool = False
    rotations: bool = False
    temperatures: TemperatureRange | None = None

    def conditioned(self, temperatures: TemperatureRange) -> Self:
        return self.model_copy(update={"temperatures": temperatures})

    def build(
        self, space: Space, *, molecule: Molecule | None = None, sampling: Sampling | None = None
    ) -> Spline:
        return Spline(self, sampling or DensitySampling(), space)

    @classmethod
    def sampling(cls, values: Mapping[str, Any] | None = None) -> Sampling:
        return DensitySampling.model_validate(dict(values or {}))


class Spline(DensityGenerator):
    """See the module."""

    config: SplineConfig

    def __init__(self, config: SplineConfig, sampling: Sampling, space: Space):
        super().__init__(config, sampling, space)
        n, d = space.shape
        if config.rotations and (d != 2 or space.dof != (n - 1) * d or n < 2):
            raise InputError(
                f"rotations: true needs a mean-free space in the plane, this one is {space}"
            )
        self.images = _images(config, space)
        self.mirror_symmetric = config.mirror
        self.temperatures = config.temperatures
        self.flow = Flow(config, space.dof - config.rotations, space.circular)
        self.basis = None if space.dof == n * d else _helmert(n)

    # The space and flat coordinates

    def _flat(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Flat coordinates ``(b, k)`` of configurations, and the log density of what they leave out,
        less the log volume of the map."""
        n, d = self.space.shape
        if self.basis is None:
            return x.reshape(len(x), n * d), x.new_zeros(len(x))
        vectors = self.basis.to(x) @ x
        if not self.config.rotations:
            return vectors.flatten(1), x.new_zeros(len(x))
        # The first vector lies on the axis: its length, and the other vectors as seen from it.
        length = vectors[:, 0].norm(dim=-1).clamp(min=1e-12)
        axis = vectors[:, 0] / length[:, None]
        turned = _turn(vectors[:, 1:], axis, back=True)
        # dx = r dr dangle ..., and r stands as its logarithm; the angle is uniform.
        log_prob = -_LOG_2PI - 2 * length.log()
        return torch.cat([length.log()[:, None], turned.flatten(1)], 1), log_prob

    def _unflat(self, y: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`_flat`, what is left out drawn at random."""
        n, d = self.space.shape
        if self.basis is None:
            return y.reshape(-1, n, d), y.new_zeros(len(y))
        log_prob = y.new_zeros(len(y))
        if self.config.rotations:
            length = y[:, 0].exp()
            angle = (
                2
                * math.pi
                * torch.rand(len(y), generator=generator, dtype=y.dtype, device=y.device)
            )
            axis = torch.stack([angle.cos(), angle.sin()], -1)
            others = _turn(y[:, 1:].reshape(-1, n - 2, 2), axis, back=False)
            vectors = torch.cat([(length[:, None] * axis)[:, None], others], 1)
            log_prob = -_LOG_2PI - 2 * y[:, 0]
        else:
            vectors = y.reshape(-1, n - 1, d)
        return self.basis.to(y).T @ vectors, log_prob

    # The protocol

    def configurations(
        self, n: int, *, context: Tensor | None = None, generator: torch.Generator | None
    ) -> Tensor:
        z = self.flow.noise(n, generator=generator)
        y, _ = self.flow.push(z, self.context_of(n, context, like=z))
        x, _ = self._unflat(y, generator)
        return self._relabelled(x, generator)

    def sample(
        self, n: int, *, context: Tensor | None = None, generator: torch.Generator | None
    ) -> Drawn:
        z = self.flow.noise(n, generator=generator)
        return self._carried(z, self.context_of(n, context, like=z), generator)

    def _carried(
        self, z: Tensor, context: Tensor | None, generator: torch.Generator | None
    ) -> Drawn:
        y, log_volume = self.flow.push(z, context)
        x, rest = self._unflat(y, generator)
        if len(self.images) > 1:
            x = self._relabelled(x, generator)
            return Drawn(x, self.log_prob(x, context=context))
        return Drawn(x, self.flow.base_log_prob(z) - log_volume + rest)

    def noise(self, n: int, *, generator: torch.Generator | None) -> Tensor:
        line, circle = self.flow.both(self.flow.noise(n, generator=generator))
        return torch.cat([line, circle * _TURN], 1)

    def noise_energy(self, z: Tensor) -> tuple[Tensor, Tensor]:
        line, circle = self.flow.both(z)
        energy = 0.5 * line.double().square().sum(-1)
        return energy, torch.cat([-line, torch.zeros_like(circle)], 1)

    def carried(self, z: Tensor, *, generator: torch.Generator | None) -> Drawn:
        line, circle = self.flow.both(z)
        wrapped = torch.cat([line, (circle / _TURN).remainder(1.0)], 1)
        return self._carried(wrapped, self.context_of(len(z), None, like=z), generator)

    def _relabelled(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        if len(self.images) == 1:
            return x
        which = torch.randint(len(self.images), (len(x),), generator=generator, device=x.device)
        return self.images.apply(x, which)

    def log_prob(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        context = self.context_of(len(x), context, like=x)
        told = None if context is None else context.repeat(len(self.images), 1)
        y, rest = self._flat(self.images.all(x))
        log_prob = (self.flow.log_prob(y, told) + rest).reshape(len(self.images), len(x))
        return torch.logsumexp(log_prob, 0) - math.log(len(self.images))

    def start_from(self, x: Tensor, *, context: Tensor | None = None) -> None:
        with torch.no_grad():
            self.flow.start_from(self._flat(x)[0], self.context_of(len(x), context, like=x))


class Images:
    """Relabellings of particles and reflections of the first axis, under which a density is averaged."""

    def __init__(self, orders: Tensor, signs: Tensor):
        self.orders, self.signs = orders, signs

    def __len__(self) -> int:
        return len(self.orders)

    def apply(self, x: Tensor, which: Tensor) -> Tensor:
        """One image of each configuration."""
        order = self.orders.to(x.device)[which]
        moved = x.gather(1, order[..., None].expand_as(x))
        return moved * self.signs.to(x)[which][:, None]

    def all(self, x: Tensor) -> Tensor:
        """All images of configurations ``(b, n, d)``, ``(images * b, n, d)``."""
        if len(self) == 1:
            return x
        moved = x[:, self.orders.to(x.device)].transpose(0, 1)
        return (moved * self.signs.to(x)[:, None, None]).flatten(0, 1)


def _images(config: SplineConfig, space: Space) -> Images:
    n, d = space.shape
    count = (math.factorial(n) if config.permutations else 1) * (2 if config.mirror else 1)
    if count > _MOST_IMAGES:
        raise InputError(
            f"permutations: true averages over {count} images of {n} particles, more than {_MOST_IMAGES}"
        )
    orders = list(itertools.permutations(range(n))) if config.permutations else [tuple(range(n))]
    flips = [[1.0] * d, [-1.0] + [1.0] * (d - 1)] if config.mirror else [[1.0] * d]
    pairs = list(itertools.product(orders, flips))
    return Images(
        _known([order for order, _ in pairs]),
        _known(np.array([flip for _, flip in pairs], dtype=np.float32)),
    )


def _helmert(n: int) -> Tensor:
    """Orthonormal rows ``(n - 1, n)``, each orthogonal to the mean."""
    rows = np.zeros((n - 1, n))
    for k in range(1, n):
        rows[k - 1, :k] = 1.0 / math.sqrt(k * (k + 1))
        rows[k - 1, k] = -k / math.sqrt(k * (k + 1))
    return _known(rows)


def _known(values: npt.ArrayLike) -> Tensor:
    """A tensor that holds its values even where torch builds on the meta device."""
    array = np.asarray(values)
    return torch.from_numpy(array if array.size else np.zeros(array.shape, dtype=np.int64))


def _turn(vectors: Tensor, axis: Tensor, *, back: bool) -> Tensor:
    """Vectors ``(b, k, 2)`` turned by the angle of unit vectors ``(b, 2)``, or back by it."""
    c, s = axis[:, None, 0], axis[:, None, 1] * (-1 if back else 1)
    x, y = vectors.unbind(-1)
    return torch.stack([c * x - s * y, s * x + c * y], -1)


class Flow(nn.Module):
    """The flow on flat coordinates ``(b, k)``, of which some are the normal quantiles of angles; with a
    context ``(b, 1)`` where it is one of several temperatures."""

    def __init__(self, config: SplineConfig, size: int, circular: tuple[int, ...]):
        super().__init__()
        self.config, self.size = config, size
        self.circles = sorted(circular)
        self.lines = [k for k in range(size) if k not in circular]
        # Inside, coordinates on a line come first.
        order = self.lines + self.circles
        self.register_buffer("order", _known(order), persistent=False)
        self.register_buffer("back", _known(_inverse(order)), persistent=False)
        self.order: Tensor
        self.back: Tensor
        lines = len(self.lines)
        self.mean = nn.Parameter(torch.zeros(lines))
        self.mixing = nn.Parameter(torch.eye(lines))
        if config.temperatures is not None:
            self.growth = nn.Parameter(torch.zeros(lines))
        bins, circles = config.marginal_bins, len(self.circles)
        self.line_marginals = nn.Parameter(
            torch.zeros(lines, splines.parameters(bins, circular=False))
        )
        self.circle_marginals = nn.Parameter(
            torch.zeros(circles, splines.parameters(bins, circular=True))
        )
        self.couplings = nn.ModuleList(
            Coupling(config, part, lines, size) for part in _halves(size, config.layers)
        )

    def both(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates on a line and those that go round."""
        return z[:, : len(self.lines)], z[:, len(self.lines) :]

    def noise(self, n: int, *, generator: torch.Generator | None) -> Tensor:
        """Draws of the base ``(n, k)``, coordinates on a line first."""
        like = self.line_marginals
        shape, circles = (n, len(self.lines)), len(self.circles)
        z = torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
        if not circles:
            return z
        u = torch.rand((n, circles), generator=generator, dtype=like.dtype, device=like.device)
        return torch.cat([z, u], 1)

    def base_log_prob(self, z: Tensor) -> Tensor:
        """Log density of the base ``(b,)``."""
        line = z[:, : len(self.lines)]
        return -0.5 * line.square().sum(-1) - 0.5 * line.shape[1] * _LOG_2PI

    def log_prob(self, y: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density of flat coordinates."""
        z, log_volume = self.pull(y, context)
        return self.base_log_prob(z) + log_volume

    def push(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Flat coordinates of noise, and the log volume of the map."""
        total = z.new_zeros(len(z))
        for coupling in self.couplings:
            z, log_slope = coupling(z, context, inverse=False)
            total = total + log_slope
        z, log_slope = self._marginals(z, inverse=False)
        line, circle = self.both(z)
        if context is not None:
            log_width = self._log_width(context)
            line, total = line * log_width.exp(), total + log_width.sum(-1)
        line = line @ self.mixing.T + self.mean
        total = total + log_slope + self._log_mixing()
        circle, log_quantile = _quantile(circle)
        return torch.cat([line, circle], 1)[:, self.back], total + log_quantile

    def pull(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise of flat coordinates, and the log volume of the map."""
        line, circle = self.both(y[:, self.order])
        line = self._unmixed(line)
        circle, log_share = _share(circle)
        total = log_share - self._log_mixing()
        if context is not None:
            log_width = self._log_width(context)
            line, total = line * (-log_width).exp(), total - log_width.sum(-1)
        z, log_slope = self._marginals(torch.cat([line, circle], 1), inverse=True)
        total = total + log_slope
        for coupling in reversed(self.couplings):
            z, log_slope = coupling(z, context, inverse=True)
            total = total + log_slope
        return z, total

    def _log_temperature(self, context: Tensor) -> Tensor:
        """Log of temperatures over the middle of the range ``(b,)``."""
        known = self.config.temperatures
        if known is None:
            raise InputError("a flow of one temperature was given a context")
        return (known.temperature(context) / known.middle).log()

    def _log_width(self, context: Tensor) -> Tensor:
        """Log of the widths of coordinates on a line, over those at the middle of the range ``(b, k)``."""
        return self._log_temperature(context)[:, None] * self.growth

    def start_from(self, y: Tensor, context: Tensor | None = None) -> None:
        """Set what depends on nothing, but for the temperature, to the moments and quantiles of flat
        coordinates."""
        line, circle = self.both(y[:, self.order])
        if self.lines:
            if self.config.axes == "own":
                mean = line.double().mean(0)
                mixing = torch.diag(line.double().std(0).clamp(min=1e-6))
            else:
                mean, mixing = unmixing(line, rotate=self.config.axes == "independent")
            self.mean.copy_(mean)
            self.mixing.copy_(mixing)
            line = self._unmixed(line)
            if context is not None:
                self.growth.copy_(_growth(line, self._log_temperature(context)))
                line = line * (-self._log_width(context)).exp()
            self.line_marginals.copy_(self._quantiles(line, circular=False))
        if self.circles:
            self.circle_marginals.copy_(self._quantiles(_share(circle)[0], circular=True))

    def _quantiles(self, y: Tensor, *, circular: bool) -> Tensor:
        """Free numbers ``(k, p)`` of the splines that carry the base to each column of ``y``."""
        bins, reach = self.config.marginal_bins, self.config.reach
        low, high = (0.0, 1.0) if circular else (-reach, reach)
        at = torch.linspace(low, high, bins + 1, dtype=torch.float64, device=y.device)
        share = at if circular else torch.special.ndtr(at)
        ordered = y.double().clamp(low, high).sort(0)[0].T
        # The ends of the interval stand; between, each value has its share of the data.
        ends = torch.tensor([low, high], dtype=torch.float64, device=y.device)
        ends = ends.expand(len(ordered), 2)
        values = torch.cat([ends[:, :1], ordered, ends[:, 1:]], 1)
        levels = (torch.arange(len(y), dtype=torch.float64, device=y.device) + 0.5) / len(y)
        levels = torch.cat([levels.new_tensor([float(share[0])]), levels, levels.new_tensor([1.0])])
        above = torch.searchsorted(levels, share, right=True).clamp(1, len(levels) - 1)
        gap = (levels[above] - levels[above - 1]).clamp(min=1e-30)
        part = ((share - levels[above - 1]) / gap).clamp(0, 1)
        height = torch.lerp(values[:, above - 1], values[:, above], part)
        # Values must rise: ties of the data become narrow bins.
        step = height.diff(dim=1).clamp(min=(high - low) * 1e-4)
        step = step / step.sum(1, keepdim=True) * (high - low)
        height = torch.cat([height[:, :1], low + step.cumsum(1)], 1)
        rate = step / at.diff()
        # Harmonic means of the neighbouring rates keep the spline free of overshoots.
        slope = 2 / (1 / rate[:, 1:] + 1 / rate[:, :-1])
        if circular:
            end = 2 / (1 / rate[:, :1] + 1 / rate[:, -1:])
            slope = torch.cat([end, slope, end], 1)
        else:
            slope = functional.pad(slope, (1, 1), value=1.0)
        free = splines.free_of(at.expand_as(height), height, slope, circular=circular)
        return free.to(self.line_marginals)

    def _marginals(self, z: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        line, circle = self.both(z)
        total, reach = z.new_zeros(len(z)), self.config.reach
        if self.lines:
            on_line = splines.knots(self.line_marginals, low=-reach, high=reach, circular=False)
            line, slope = splines.through(line, on_line, inverse=inverse)
            total = total + slope.sum(-1)
        if self.circles:
            round_ = splines.knots(self.circle_marginals, low=0.0, high=1.0, circular=True)
            circle, slope = splines.through(circle, round_, inverse=inverse)
            total = total + slope.sum(-1)
        return torch.cat([line, circle], 1), total

    def _unmixed(self, line: Tensor) -> Tensor:
        back: Tensor = torch.linalg.inv(self.mixing.double()).to(line)
        return (line - self.mean) @ back.T

    def _log_mixing(self) -> Tensor:
        if not self.lines:
            return self.mixing.new_zeros(())
        log_volume: Tensor = torch.linalg.slogdet(self.mixing)[1]
        return log_volume


def _growth(line: Tensor, log_temperature: Tensor) -> Tensor:
    """Powers of the temperature with which the widths of columns ``(b, k)`` grow: slopes of the log of their
    standard deviations, by groups of rows of one temperature, to rounding; zero where there is only one."""
    near = (log_temperature.double() * 1e3).round()
    groups = [near == value for value in torch.unique(near)]
    groups = [group for group in groups if int(group.sum()) > 1]
    if len(groups) < 2:
        return torch.zeros_like(line[0])
    at = torch.stack([log_temperature[group].double().mean() for group in groups])
    widths = [line[group].double().std(0).clamp(min=1e-6).log() for group in groups]
    away = at - at.mean()
    spread = away.square().sum()
    slope: Tensor = away @ torch.stack(widths) / spread
    return slope.to(line)


def _inverse(order: list[int]) -> list[int]:
    """Where each index stands in a permutation."""
    return sorted(range(len(order)), key=order.__getitem__)


def _halves(size: int, layers: int) -> list[list[int]]:
    """What each coupling moves: pairs of a random half of ``range(size)`` and the rest."""
    shuffle = random.Random(size)
    halves = []
    for layer in range(0, layers, 2):
        order = list(range(size))
        if layer:
            shuffle.shuffle(order)
        half = sorted(order[::2])
        # Of a single coordinate there is no other half.
        halves += [half, sorted(order[1::2]) or half]
    return halves[:layers]


class Coupling(nn.Module):
    """One half of the coordinates moved by splines that the other half sets."""

    def __init__(self, config: SplineConfig, moved: list[int], lines: int, size: int):
        super().__init__()
        read = [k for k in range(size) if k not in moved]
        moved_line, moved_circle = ([k for k in moved if (k < lines) == on] for on in (True, False))
        read_line, read_circle = ([k for k in read if (k < lines) == on] for on in (True, False))
        self.reach, self.bins = config.reach, config.bins
        for name, index in (
            ("moved_line", moved_line),
            ("moved_circle", moved_circle),
            ("read_line", read_line),
            ("read_circle", read_circle),
            ("back", _inverse(moved_line + moved_circle + read_line + read_circle)),
        ):
            self.register_buffer(name, _known(index), persistent=False)
        self.moved_line: Tensor
        self.moved_circle: Tensor
        self.read_line: Tensor
        self.read_circle: Tensor
        self.back: Tensor
        centres = _known(np.linspace(-3.0, 3.0, max(config.bumps, 1), dtype=np.float32))
        self.register_buffer("centres", centres, persistent=False)
        self.centres: Tensor
        self.bumps = config.bumps
        self.sizes = (
            len(moved_line) * splines.parameters(config.bins, circular=False),
            # A circular spline has a shift beside its knots.
            len(moved_circle) * (splines.parameters(config.bins, circular=True) + 1),
        )
        inputs = 1 + len(read_line) * (1 + config.bumps) + len(read_circle) * 2 * _HARMONICS
        inputs += config.temperatures is not None
        self.net = Perceptron(inputs, sum(self.sizes), width=config.width, depth=config.depth)

    def forward(
        self, z: Tensor, context: Tensor | None = None, *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        """Moved coordinates ``(b, k)`` and the log slope of the map, or of its inverse."""
        read_line, read_circle = z[:, self.read_line], z[:, self.read_circle]
        line, circle = z[:, self.moved_line], z[:, self.moved_circle]
        features = self._features(read_line, read_circle, context)
        for_line, for_circle = self.net(features).split(self.sizes, 1)
        total = z.new_zeros(len(z))
        if line.shape[1]:
            free = for_line.reshape(*line.shape, -1)
            line, slope = splines.conditional(
                line, free, low=-self.reach, high=self.reach, circular=False, inverse=inverse
            )
            total = total + slope.sum(-1)
        if circle.shape[1]:
            free = for_circle.reshape(*circle.shape, -1)
            shift, free = free[..., -1], free[..., :-1]
            if inverse:
                circle = (circle - shift).remainder(1.0)
            circle, slope = splines.conditional(
                circle, free, low=0.0, high=1.0, circular=True, inverse=inverse
            )
            if not inverse:
                circle = (circle + shift).remainder(1.0)
            total = total + slope.sum(-1)
        return torch.cat([line, circle, read_line, read_circle], 1)[:, self.back], total

    def _features(self, line: Tensor, circle: Tensor, context: Tensor | None) -> Tensor:
        # The first is there for a single coordinate, which has no other half to read.
        parts = [line.new_ones(len(line), 1), line]
        if context is not None:
            parts.append(context.to(line))
        if self.bumps:
            spacing = 6.0 / max(self.bumps - 1, 1)
            bumps = torch.exp(-0.5 * ((line[..., None] - self.centres) / spacing).square())
            parts.append(bumps.flatten(1))
        for k in range(1, _HARMONICS + 1):
            angle = 2 * math.pi * k * circle
            parts += [angle.cos(), angle.sin()]
        return torch.cat(parts, 1)


class Perceptron(nn.Module):
    """Residual perceptron ``(b, inputs)`` to ``(b, outputs)`` whose output is zero at first."""

    def __init__(self, inputs: int, outputs: int, *, width: int, depth: int):
        super().__init__()
        self.first = Linear(inputs, width)
        self.hidden = nn.ModuleList(Linear(width, width) for _ in range(depth - 1))
        self.last = Readout(width, outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.silu(self.first(x))
        for hidden in self.hidden:
            h = h + functional.silu(hidden(h))
        result: Tensor = self.last(h)
        return result


def _quantile(u: Tensor) -> tuple[Tensor, Tensor]:
    """Normal quantile ``(b, k)`` of shares of a turn, and the log slope summed."""
    q = torch.special.ndtri(u.double().clamp(1e-8, 1 - 1e-8))
    return q.to(u), (0.5 * q.square() + 0.5 * _LOG_2PI).sum(-1).to(u)


def _share(q: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`_quantile`."""
    slope = -0.5 * q.double().square() - 0.5 * _LOG_2PI
    return torch.special.ndtr(q.double()).to(q), slope.sum(-1).to(q)
