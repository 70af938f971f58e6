"""The DiKL gradient on a scale family, its clipping, and mode coverage beside plain reverse KL."""

import math

import pytest
import torch

from molsampler.diffusion.schedule import Scales
from molsampler.errors import InputError
from molsampler.objectives import ObjectiveConfig
from molsampler.objectives.dikl_loss import diffuse, dikl_loss, weight
from molsampler.space import Euclidean

SPACE = Euclidean(1, 2)


def _scale_gradient(theta: float, *, target_std: float = 1.0, draws: int = 40_000, seed: int = 0):
    """d/d theta of the surrogate for x = theta z and target N(0, target_std^2), with its error."""
    rng = torch.Generator().manual_seed(seed)
    like = torch.empty(0, dtype=torch.float64)
    batches = []
    for _ in range(16):
        z = SPACE.randn(draws // 16, generator=rng, like=like)
        parameter = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        sigma = 0.05 + 2 * torch.rand(len(z), generator=rng, dtype=torch.float64)
        diffused = diffuse(
            parameter * z, Scales(torch.ones_like(sigma), sigma), SPACE, generator=rng
        )
        column = sigma[:, None, None] ** 2
        model = -diffused.x_t / (theta**2 + column)
        target = -diffused.x_t / (target_std**2 + column)
        result = dikl_loss(diffused, model, target, weight=torch.ones_like(sigma))
        batches.append(float(torch.autograd.grad(result.loss, parameter)[0]))
    batches = torch.tensor(batches)
    return float(batches.mean()), float(batches.std() / 4)


def test_gradient_has_the_right_sign_on_either_side_and_vanishes_at_the_optimum():
    narrow, error = _scale_gradient(0.5)
    assert narrow < -6 * error
    wide, error = _scale_gradient(1.6)
    assert wide > 6 * error
    optimum, error = _scale_gradient(1.0)
    assert abs(optimum) <= 6 * error + 1e-12
    # Negative control: at 1.1 times the temperature the same theta is no optimum.
    shifted, error = _scale_gradient(1.0, target_std=math.sqrt(1.1))
    assert abs(shifted) > 6 * error


def test_gradient_equals_the_derivative_of_the_diffused_kl():
    """KL(N(0, theta^2 + s^2) || N(0, 1 + s^2)) in two dimensions, differentiated by hand."""
    theta = 0.7
    estimate, error = _scale_gradient(theta)
    sigma = 0.05 + 2 * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    truth = float((2 * theta * (1 / (1 + sigma**2) - 1 / (theta**2 + sigma**2))).mean())
    assert abs(estimate - truth) < 6 * error


def test_long_rows_are_shortened_and_bad_rows_left_out():
    x = torch.zeros(3, 1, 2, requires_grad=True)
    scales = Scales(torch.ones(3), torch.ones(3))
    diffused = diffuse(x, scales, SPACE, generator=torch.Generator().manual_seed(0))
    model = torch.tensor([[[1.0, 1.0]], [[100.0, 100.0]], [[math.nan, 1.0]]])
    result = dikl_loss(diffused, model, torch.zeros(3, 1, 2), weight=torch.ones(3), clip=2.0)
    (gradient,) = torch.autograd.grad(result.loss, x)
    assert torch.allclose(3 * gradient[:, 0, 0], torch.tensor([1.0, 2.0, 0.0]))
    assert result.used.tolist() == [True, True, False]


def test_weights():
    sigma = torch.tensor([0.01, 0.1, 10.0])
    scales = Scales(torch.ones(3), sigma)
    assert torch.allclose(weight("uniform", scales, data_scale=1.0), torch.ones(3))
    assert torch.allclose(weight("sigma", scales, data_scale=1.0), sigma)
    denoiser = weight("denoiser", scales, data_scale=1.0)
    assert torch.allclose(denoiser[0], sigma[0], rtol=1e-3)
    assert torch.allclose(denoiser[2], sigma[2] ** 2, rtol=1e-2)
    with pytest.raises(InputError, match="weighting"):
        weight("none", scales, data_scale=1.0)


def test_more_states_than_steps_cannot_be_averaged() -> None:
    values = {"kind": "dikl-posterior", "target_score": {"steps": 3, "average": 4}}
    with pytest.raises(ValueError, match="at most steps, 3, got 4"):
        ObjectiveConfig.parse(values)
