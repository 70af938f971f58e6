r"""Preconditioned denoiser, and the score it implies (Karras et al., arXiv 2206.00364).

With :math:`y = x_t / \alpha_t` and :math:`s = \sigma_t / \alpha_t`,

.. math:: D(y; s) = c_{skip}\, y + c_{out}\, F(y, \log s), \qquad
          c_{skip} = \frac{\sigma_d^2}{s^2 + \sigma_d^2}, \quad
          c_{out} = \frac{s\,\sigma_d}{\sqrt{s^2 + \sigma_d^2}},

estimates :math:`E[x_0 | x_t]`; by Tweedie's formula
:math:`\nabla \log p_t(x_t) = (\alpha_t D - x_t) / \sigma_t^2`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..diffusion.schedule import Scales
from ..molecule.molecule import Molecule
from ..space import Space
from .bodies.base import Body

_FREQUENCIES = 8


class Denoiser(nn.Module):
    """Denoiser on a space, for one data scale.

    Parameters
    ----------
    config : body of the network F
    space : the target's space; outputs are projected onto it
    data_scale : root-mean-square coordinate of the clean data, :math:`\\sigma_d`
    molecule : what tells the particles apart, None for identical ones
    context : number of features that a row is told of beside its noise, such as its temperature
    """

    frequencies: Tensor
    data_scale: Tensor

    def __init__(
        self,
        config: Body,
        space: Space,
        *,
        data_scale: float,
        molecule: Molecule | None = None,
        context: int = 0,
    ):
        super().__init__()
        self.space = space
        self.body = config.build(space, 1 + 2 * _FREQUENCIES + context, molecule)
        self.unit_inputs = config.unit_inputs
        self.register_buffer("data_scale", torch.tensor(float(data_scale)))
        # log s spans about five units; frequencies from one period in six to one in a third.
        self.register_buffer(
            "frequencies",
            2 * math.pi / torch.logspace(math.log10(6.0), math.log10(1 / 3), _FREQUENCIES),
            persistent=False,
        )

    def output_scale(self, s: Tensor) -> Tensor:
        """c_out of relative noise ``s``, the scale of the denoiser's uncertainty."""
        return s * self.data_scale * torch.rsqrt(s.square() + self.data_scale.square())

    def forward(self, y: Tensor, s: Tensor, context: Tensor | None = None) -> Tensor:
        """Estimate of E[x_0 | y], shape ``(b, n, d)``, at relative noise ``s`` ``(b,)`` and the context
        ``(b, c)``, None for a denoiser without one."""
        log_s = torch.log(s / self.data_scale)[:, None]
        phase = log_s * self.frequencies
        told = [] if context is None else [context]
        features = torch.cat([0.5 * log_s, phase.sin(), phase.cos(), *told], dim=-1)
        features = features[:, None].expand(-1, y.shape[1], -1)
        column = s[:, None, None]
        total = column**2 + self.data_scale**2
        inputs = y / total.sqrt() if self.unit_inputs else y
        output = self.body(inputs, features) * self.output_scale(column)
        denoised: Tensor = self.space.project(self.data_scale**2 / total * y + output)
        return denoised


def score_of(
    denoiser: Callable[..., Tensor], x_t: Tensor, scales: Scales, context: Tensor | None = None
) -> Tensor:
    """Score of the diffused density at ``x_t`` ``(b, n, d)`` by a (possibly compiled) denoiser, told of the
    context ``(b, c)`` where there is one."""
    told = () if context is None else (context,)
    alpha, sigma = scales.alpha[:, None, None], scales.sigma[:, None, None]
    return (alpha * denoiser(x_t / alpha, scales.sigma / scales.alpha, *told) - x_t) / sigma**2
