r"""The least-variance mixture of the target and denoising identities, per noise level.

For pairs (clean state, its noised copy) of a population at equilibrium any mixture of the two identities
(:mod:`molsampler.diffusion.identities`) is unbiased. With residuals :math:`r_A` (denoising) and :math:`r_B`
(target) of a denoiser,

.. math:: \lambda = \frac{E[r_A \cdot (r_A - r_B)]}{E|r_A - r_B|^2}

minimises :math:`E|(1-\lambda) r_A + \lambda r_B|^2`; the denoiser's own error is common to both and drops
out.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 24
_DECAY = 0.99


class IdentityMixture:
    """Running second moments of the two identities' residuals in bins of time, ``(3, BINS)``."""

    def __init__(self, moments: Tensor):
        self.moments = moments

    @staticmethod
    def fresh(like: Tensor) -> IdentityMixture:
        # All mass on the denoising identity (weight of the target identity 0) until there is evidence.
        moments = torch.zeros(3, BINS, dtype=like.dtype, device=like.device)
        moments[2] = 1e-6
        return IdentityMixture(moments)

    def weight(self, t: Tensor) -> Tensor:
        """Weight of the target identity at times ``t``, in [0, 1]."""
        aa, ab, bb = self.moments
        share = (aa - ab) / (aa - 2 * ab + bb).clamp(min=1e-12)
        clamped: Tensor = share.clamp(0.0, 1.0)
        return clamped[self._bin(t)]

    @staticmethod
    def sums(t: Tensor, denoising: Tensor, target: Tensor) -> Tensor:
        """What residuals ``(b, n, d)`` of both identities at times ``t`` ``(b,)`` say: moments summed by bin,
        and counts in the last row, ``(4, BINS)``."""
        index = IdentityMixture._bin(t)
        products = torch.stack(
            [
                (denoising * denoising).mean(dim=(-2, -1)),
                (denoising * target).mean(dim=(-2, -1)),
                (target * target).mean(dim=(-2, -1)),
            ]
        )
        count = torch.zeros(BINS, dtype=t.dtype, device=t.device).index_add_(
            0, index, torch.ones_like(t)
        )
        total = products.new_zeros(3, BINS).index_add_(1, index, products)
        return torch.cat([total, count[None]])

    def update(self, sums: Tensor) -> None:
        """Take in :meth:`sums`."""
        total, count = sums[:3], sums[3]
        seen = count > 0
        mean = total / count.clamp(min=1.0)
        self.moments = torch.where(seen, _DECAY * self.moments + (1 - _DECAY) * mean, self.moments)

    @staticmethod
    def _bin(t: Tensor) -> Tensor:
        return (t * BINS).long().clamp(0, BINS - 1)
