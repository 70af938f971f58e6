r"""Three identities for the score of a diffused density (De Bortoli et al., arXiv 2402.08667).

For :math:`x_t = \alpha_t x_0 + \sigma_t \varepsilon` and the posterior
:math:`p(x_0 | x_t) \propto e^{-u(x_0)}\, N(x_t; \alpha_t x_0, \sigma_t^2)`:

denoising
    :math:`\nabla \log p_t = (\alpha_t E[x_0 | x_t] - x_t) / \sigma_t^2`, low variance at high noise;
target
    :math:`\nabla \log p_t = E[-\nabla u(x_0) | x_t] / \alpha_t`, low variance at low noise;
mixed
    :math:`\nabla \log p_t = \alpha_t E[x_0 - \nabla u(x_0) | x_t] - x_t`, for
    :math:`\alpha_t^2 + \sigma_t^2 = 1`; in general the first two with weights
    :math:`\sigma^2/(\alpha^2 + \sigma^2)` and :math:`\alpha^2/(\alpha^2 + \sigma^2)`.

Each function returns one estimate per posterior sample; averaging over samples is the caller's.
Any mixture of the first two is unbiased under the exact posterior.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ..errors import InputError
from .schedule import Scales

Identity = Literal["denoising", "target", "mixed"]


def _columns(scales: Scales) -> tuple[Tensor, Tensor]:
    return scales.alpha[..., None, None], scales.sigma[..., None, None]


def denoising(x_t: Tensor, x_0: Tensor, scales: Scales) -> Tensor:
    """(alpha x_0 - x_t) / sigma^2, shape ``(*k, b, n, d)`` for posterior samples ``x_0`` of that shape."""
    alpha, sigma = _columns(scales)
    return (alpha * x_0 - x_t) / sigma**2


def target(score_0: Tensor, scales: Scales) -> Tensor:
    """Target score at the posterior samples, ``score_0`` ``(*k, b, n, d)``, over alpha."""
    alpha, _ = _columns(scales)
    return score_0 / alpha


def mixed(x_t: Tensor, x_0: Tensor, score_0: Tensor, scales: Scales) -> Tensor:
    """The denoising and target estimates weighted by sigma^2 and alpha^2, normalised."""
    alpha, sigma = _columns(scales)
    total = alpha**2 + sigma**2
    return (alpha * x_0 - x_t + alpha * score_0) / total


def estimate(
    identity: Identity, x_t: Tensor, x_0: Tensor, score_0: Tensor, scales: Scales
) -> Tensor:
    """Per-sample score estimates by the named identity.

    Raises
    ------
    InputError
        ``identity`` is not one of the three.
    """
    if identity == "denoising":
        return denoising(x_t, x_0, scales)
    if identity == "target":
        return target(score_0, scales)
    if identity == "mixed":
        return mixed(x_t, x_0, score_0, scales)
    raise InputError(f"identity must be 'denoising', 'target' or 'mixed', got {identity!r}")
