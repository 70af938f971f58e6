"""Paths that take noise away: their weights are exact, whatever the denoiser."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from molsampler.errors import InputError
from molsampler.estimate import effective_count, log_mean, mean
from molsampler.nn.generators import GeneratorConfig
from molsampler.nn.generators.diffusion import Diffusion, DiffusionConfig, DiffusionSampling
from molsampler.objectives import ObjectiveConfig, Problem
from molsampler.space import Euclidean, MeanFree
from molsampler.systems import get_system

SPACE = MeanFree(4, 2)
BODY = {"kind": "egnn", "width": 8, "layers": 1}


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Well:
    """A Gaussian of standard deviation ``std`` on the space, times ``exp(-bend |x|^4)``."""

    space = SPACE

    def __init__(self, std: float = 0.7, bend: float = 0.0):
        self.std, self.bend = std, bend

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        square = x.square().sum(dim=(-2, -1))
        slope = 1 / self.std**2 + 4 * self.bend * square
        return 0.5 * square / self.std**2 + self.bend * square**2, -slope[:, None, None] * x

    def moments(self) -> tuple[float, float]:
        """Log Z and the mean of |x|^2, by quadrature over the radius in six dimensions."""
        r = torch.linspace(0, 12, 200_001, dtype=torch.float64)
        u = 0.5 * r**2 / self.std**2 + self.bend * r**4
        density = r**5 * (-u).exp()
        shell = torch.trapezoid(density, r)
        mean = torch.trapezoid(density * r**2, r) / shell
        return float(shell.log()) + math.log(math.pi**3), float(mean)


def made(steps: int, *, shaken: float = 0.0, **settings: Any) -> Diffusion:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = DiffusionConfig.model_validate({"body": BODY, **settings})
        generator = config.build(SPACE, sampling=DiffusionSampling(steps=steps))
        for parameter in generator.denoiser.body.parameters():
            parameter.add_(shaken * torch.randn_like(parameter))
        if generator.precision is not None:
            # Pairs are stiff by their distance.
            for parameter in generator.precision.of_pairs.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return generator


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("covariance", ["isotropic", "pairs"])
@pytest.mark.parametrize("shaken", [0.0, 0.05], ids=["plain", "bad"])
@pytest.mark.parametrize("target", [Well(), Well(1.0, 0.05)], ids=["gaussian", "quartic"])
def test_weights_have_the_right_mean_and_mend_the_samples(
    target: Well, shaken: float, covariance: str
) -> None:
    generator = made(12, shaken=shaken, covariance=covariance)
    draw = generator.draw(6000, target, generator=stream())
    assert draw.log_weight is not None
    log_z, square = target.moments()
    found = log_mean(draw.log_weight)
    assert found.se < 0.04
    assert abs(found.value - log_z) < 4 * found.se
    values = draw.x.double().square().sum(dim=(-2, -1))
    mended = mean(values, draw.log_weight)
    assert abs(float(mended.value) - square) < 4 * float(mended.se)
    # Without weights the samples are wrong by far more: the test can fail.
    assert abs(float(values.mean()) - square) > 10 * float(mended.se)


def test_weights_without_one_of_their_factors_are_found_out() -> None:
    target, generator = Well(), made(12)
    x, log_path = generator.path(6000, generator=stream())
    found = log_mean(log_path - target.energy_and_score(x.double())[0])
    truth, _ = target.moments()
    assert abs(found.value - truth) < 4 * found.se
    sigma = generator.levels(like=generator.error)
    dropped = 0.5 * SPACE.dof * float((sigma[-1] / sigma[-2]).log())
    assert abs(found.value - dropped - truth) > 10 * found.se


@pytest.mark.parametrize("steps", [2, 16])
def test_a_perfect_denoiser_of_a_gaussian_needs_no_weights(steps: int) -> None:
    weight = perfect(made(steps)).draw(500, Well(1.0), generator=stream()).log_weight
    assert weight is not None
    assert effective_count(weight) > 499.9
    # One that is off by little does.
    shaken = made(steps, shaken=0.02).draw(500, Well(1.0), generator=stream()).log_weight
    assert shaken is not None
    assert effective_count(shaken) < 490


def perfect(generator: Diffusion) -> Diffusion:
    """The denoiser of a Gaussian of the data scale is the linear one."""
    for parameter in generator.denoiser.body.parameters():
        parameter.data.zero_()
    return generator


def test_kicks_have_the_variance_of_what_they_stand_for() -> None:
    generator = perfect(made(16))
    sigma = generator.levels(like=generator.error)
    variance = generator.variances(sigma)
    clean = SPACE.randn(20_000, generator=stream(), like=sigma)
    for k in (1, 6, 12):
        # Noised twice, and compared with the mean of the step back.
        before = clean + sigma[k - 1] * SPACE.randn(20_000, generator=stream(k), like=sigma)
        width = (sigma[k].square() - sigma[k - 1].square()).sqrt()
        after = before + width * SPACE.randn(20_000, generator=stream(k + 50), like=sigma)
        share = 1 - (sigma[k - 1] / sigma[k]).square()
        guess = generator.denoised(after.float(), sigma[k].float().expand(20_000)).double()
        away = before - (after + share * (guess - after))
        found = float(away.square().sum(dim=(-2, -1)).mean()) / SPACE.dof
        assert found == pytest.approx(float(variance[k - 1]), rel=0.02)


def test_the_table_of_errors_learns_what_it_sees() -> None:
    generator = made(8)
    config = generator.config
    nodes = len(generator.error) - 1
    at = config.sigma_min * (config.sigma_max / config.sigma_min) ** (20 / nodes)
    sigma = torch.full((64,), at)
    for _ in range(2000):
        generator.observe(sigma, torch.full((64,), 0.03))
    assert float(generator.error_at(torch.tensor([at]))) == pytest.approx(0.03, rel=0.01)
    # Elsewhere it still is that of the best linear denoiser.
    assert float(generator.error_at(torch.tensor([2.0]))) == pytest.approx(4.0 / 5.0, rel=1e-3)


class Uneven:
    """A Gaussian whose particles lie on either axis with other widths."""

    space = SPACE
    std = torch.tensor([1.4, 0.1], dtype=torch.float64)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scaled = x / self.std.to(x)
        return 0.5 * scaled.square().sum(dim=(-2, -1)), -scaled / self.std.to(x)

    def denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        std = self.std.to(x)
        return x * std**2 / (std**2 + sigma[:, None, None] ** 2)


def uneven(steps: int) -> Diffusion:
    """With the perfect denoiser of the uneven Gaussian and the table of its errors."""
    target, generator = Uneven(), made(steps)
    generator.__dict__["_run"] = target.denoised
    sigma = generator.config.sigma_min * (
        generator.config.sigma_max / generator.config.sigma_min
    ) ** torch.linspace(0, 1, len(generator.error), dtype=torch.float64)
    square = target.std**2
    error = (square * sigma[:, None] ** 2 / (square + sigma[:, None] ** 2)).mean(1)
    generator.error.copy_(error / generator.denoiser.output_scale(sigma.float()) ** 2)
    return generator


def test_levels_lie_where_steps_err_most(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {}
    for name, least in (("dense", 0.02), ("even", 1e6)):
        monkeypatch.setattr("molsampler.nn.generators.diffusion._LEAST_SPREAD", least)
        generator = uneven(24)
        sigma = generator.levels(like=generator.error)
        assert bool((sigma.diff() > 0).all())
        assert float(sigma[1]) == pytest.approx(generator.config.sigma_min)
        assert float(sigma[-1]) == pytest.approx(generator.config.sigma_max)
        weight = generator.draw(4000, Uneven(), generator=stream()).log_weight
        assert weight is not None
        found, truth = log_mean(weight), 3 * float((2 * math.pi * Uneven.std.prod()).log())
        assert abs(found.value - truth) < 4 * found.se
        shares[name] = effective_count(weight) / 4000
    assert shares["dense"] > shares["even"] + 0.02
    # Between the two widths of the target there are more of them than elsewhere.
    between = (sigma[1:] > 0.1) & (sigma[1:] < 1.4)
    monkeypatch.setattr("molsampler.nn.generators.diffusion._LEAST_SPREAD", 0.02)
    dense = uneven(24).levels(like=generator.error)[1:]
    assert int(((dense > 0.1) & (dense < 1.4)).sum()) > int(between.sum())


def test_turned_and_relabelled_noise_gives_the_same_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator, target = made(12, shaken=0.05).double(), Well()
    plain = generator.draw(16, target, generator=stream())
    turn = torch.linalg.qr(torch.randn(2, 2, generator=stream(3), dtype=torch.float64))[0]
    order = torch.tensor([2, 0, 3, 1])
    drawn = SPACE.randn

    def moved(*shape: int, **keywords: Any) -> Tensor:
        return drawn(*shape, **keywords)[:, order] @ turn

    monkeypatch.setattr(SPACE.__class__, "randn", lambda self, *a, **k: moved(*a, **k))
    other = generator.draw(16, target, generator=stream())
    assert plain.log_weight is not None
    assert other.log_weight is not None
    torch.testing.assert_close(other.x, plain.x[:, order] @ turn)
    torch.testing.assert_close(other.log_weight, plain.log_weight)


def test_what_is_thrown_out_of_the_world_has_no_weight() -> None:
    generator = made(4)
    monstrous = generator.denoiser.body.register_forward_hook(
        lambda *_: 1e30 * torch.randn(8, *SPACE.shape, generator=stream())
    )
    weight = generator.draw(8, Well(), generator=stream()).log_weight
    monstrous.remove()
    assert weight is not None
    assert bool((weight == -torch.inf).all())


def test_what_is_no_number_behind_a_pair_has_no_weight() -> None:
    generator = made(4, covariance="pairs")
    broken = generator.denoiser.body.register_forward_hook(
        lambda *_: torch.full((8, *SPACE.shape), torch.nan)
    )
    weight = generator.draw(8, Well(), generator=stream()).log_weight
    broken.remove()
    assert weight is not None
    assert bool((weight == -torch.inf).all())


@pytest.mark.parametrize("covariance", ["isotropic", "pairs"])
def test_rows_that_are_drawn_in_pieces_are_all_there(
    covariance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = made(4, covariance=covariance)
    assert len(generator.draw(0, Well(), generator=stream()).x) == 0
    monkeypatch.setattr("molsampler.nn.generators.diffusion._PAIRS", 16 * SPACE.shape[0] ** 2)
    draw = generator.draw(40, Well(), generator=stream())
    assert draw.x.shape == (40, *SPACE.shape)
    assert draw.log_weight is not None
    assert len({*draw.log_weight.tolist()}) == 40


def test_steps_of_pairs_are_for_pairs() -> None:
    config = DiffusionConfig.model_validate(
        {"body": {"kind": "mlp", "width": 8}, "covariance": "pairs"}
    )
    with pytest.raises(InputError, match="at least two"):
        config.build(Euclidean(1, 2))


def test_levels_that_fall_are_refused() -> None:
    with pytest.raises(InputError, match="sigma_min must be below sigma_max"):
        DiffusionConfig(sigma_min=2.0, sigma_max=1.0).build(SPACE)


def test_the_objective_takes_no_other_generator() -> None:
    spline = GeneratorConfig.parse({"kind": "spline"})
    problem = Problem(
        target=get_system("dw4"),
        molecule=None,
        generator=spline,
        sampling=spline.sampling(),
        iterations=1,
        seed=0,
        device=torch.device("cpu"),
    )
    with pytest.raises(InputError, match="of kind 'diffusion', got kind 'spline'"):
        ObjectiveConfig.parse({"kind": "denoising"}).build(problem)
