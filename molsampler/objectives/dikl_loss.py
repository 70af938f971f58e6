r"""The DiKL objective: reverse KL between diffused model and diffused target, over noise levels.

.. math:: \nabla_\theta = E_{z,t,\varepsilon}\left[ w(t)\,
          (\nabla\log p_{\theta,t}(x_t) - \nabla\log p_t(x_t)) \cdot \partial x_t / \partial\theta \right],
          \qquad x_t = \alpha_t g_\theta(z) + \sigma_t \varepsilon

(arXiv 2410.12456, equation for the gradient of SDS-type objectives). The loss below has this
gradient: both scores are constants, and only :math:`x_t` carries the graph. With one noise level of
:math:`\sigma \to 0` it is the plain reverse KL, which drops modes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..diffusion.schedule import Scales
from ..errors import InputError
from ..space import Space

Weighting = Literal["uniform", "inverse-alpha", "sigma", "denoiser"]


class Diffused(NamedTuple):
    """Noisy positions ``(b, n, d)``, the noise scales ``(b,)`` that made them, and the noise itself."""

    x_t: Tensor
    scales: Scales
    noise: Tensor


def diffuse(
    x: Tensor, scales: Scales, space: Space, *, generator: torch.Generator | None
) -> Diffused:
    """x_t = alpha x + sigma eps, with noise on the target's space."""
    noise = space.randn(len(x), generator=generator, like=x)
    x_t = scales.alpha[:, None, None] * x + scales.sigma[:, None, None] * noise
    return Diffused(x_t, scales, noise)


def weight(weighting: Weighting, scales: Scales, *, data_scale: float) -> Tensor:
    """Weight w(t), shape ``(b,)``, of the score difference.

    ``uniform`` and ``inverse-alpha`` are the paper's. ``sigma`` keeps the size of the update equal
    over low noise levels. ``denoiser`` is the difference of the two denoisers over the scale of
    their uncertainty, equal to ``sigma`` at low noise and growing as ``sigma^2 / data_scale`` beyond.
    """
    alpha, sigma = scales
    if weighting == "uniform":
        return torch.ones_like(sigma)
    if weighting == "inverse-alpha":
        return 1.0 / alpha
    if weighting == "sigma":
        return sigma
    if weighting == "denoiser":
        relative = sigma / alpha
        uncertainty = relative * data_scale / torch.sqrt(relative**2 + data_scale**2)
        return sigma**2 / (alpha * uncertainty)
    raise InputError(
        f"weighting must be 'uniform', 'inverse-alpha', 'sigma' or 'denoiser', got {weighting!r}"
    )


class Loss(NamedTuple):
    """Surrogate loss (its gradient is the DiKL gradient; its value has no meaning) and diagnostics."""

    loss: Tensor
    norm: Tensor
    """Root-mean-square weighted score difference per row, before clipping ``(b,)``."""
    used: Tensor
    """Rows with finite scores, ``(b,)``."""


def dikl_loss(
    diffused: Diffused,
    model_score: Tensor,
    target_score: Tensor,
    *,
    weight: Tensor,
    clip: float | None = None,
) -> Loss:
    """Surrogate loss of the DiKL gradient at noisy model samples.

    Parameters
    ----------
    diffused : noisy samples that carry the generator's graph
    model_score, target_score : scores of the two diffused densities there, ``(b, n, d)``, constants
    weight : w(t), ``(b,)``
    clip : largest root-mean-square of a row's weighted score difference; longer ones are shortened.
        Clipping each row, not the whole batch, keeps a few rows in collision from silencing the rest.
    """
    difference = (weight[:, None, None] * (model_score - target_score)).detach()
    used = torch.isfinite(difference).flatten(1).all(-1)
    difference = torch.where(used[:, None, None], difference, 0.0)
    norm = difference.square().mean(dim=(-2, -1)).sqrt()
    if clip is not None:
        difference = difference * (clip / norm.clamp(min=1e-12)).clamp(max=1.0)[:, None, None]
    loss = (difference * diffused.x_t).sum(dim=(-2, -1)).mean()
    return Loss(loss, norm, used)
