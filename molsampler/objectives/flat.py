"""The parameters of a network as one vector, and their gradients as another.

A network of sixty small tensors costs an optimiser step, a norm or an average sixty calls each; vectors cost
one, and are what processes that train together exchange.
"""

from __future__ import annotations

import torch
from torch import nn


class FlatParameters:
    """Makes the parameters of ``module`` views of the vector ``values``, in their order, and where they are
    trained their gradients views of ``gradients``, which is None for a module of which none is.

    The module has to be where it will be, and its gradients are to be cleared by :meth:`clear` alone.

    Raises
    ------
    ValueError
        Its parameters are of several types or on several devices.
    """

    def __init__(self, module: nn.Module):
        parameters = list(module.parameters())
        if len({(each.dtype, each.device) for each in parameters}) > 1:
            raise ValueError("the parameters of a network are of one type and on one device")
        flat = [each.detach().flatten() for each in parameters]
        self.values = torch.cat(flat) if flat else torch.zeros(0)
        trained = any(each.requires_grad for each in parameters)
        self.gradients = torch.zeros_like(self.values) if trained else None
        done = 0
        for each in parameters:
            end = done + each.numel()
            each.data = self.values[done:end].view_as(each)
            if self.gradients is not None and each.requires_grad:
                each.grad = self.gradients[done:end].view_as(each)
            done = end

    def clear(self) -> None:
        """Forget the gradients."""
        if self.gradients is not None:
            self.gradients.zero_()

    def clip(self, limit: float) -> float:
        """The norm of the gradients, which are scaled down to ``limit`` where it is larger."""
        if self.gradients is None:
            return 0.0
        norm = float(self.gradients.norm())
        if norm > limit:
            self.gradients.mul_(limit / norm)
        return norm

    def approach(self, other: FlatParameters, share: float) -> None:
        """Move the values by a share of the way to another's."""
        self.values.lerp_(other.values, share)
