r"""Directions of data that are least Gaussian: FastICA (Hyvärinen, IEEE Trans. Neural Netw. 10, 626 (1999)).

Data are whitened, :math:`z = W (x - \mu)`, and turned by the rotation R of which the components of
:math:`R z` have extremal :math:`E[\log\cosh]`, all at once with symmetric orthogonalisation. A density that
is a product along hidden axes is then one along the coordinates.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS, _CLOSE = 300, 1e-5


def unmixing(x: Tensor, *, rotate: bool = True) -> tuple[Tensor, Tensor]:
    """Mean ``(k,)`` and matrix A ``(k, k)`` so that ``(x - mean) @ inverse(A).T`` is white, float64.

    ``x`` ``(b, k)``; with ``rotate`` its components are as independent as a rotation makes them.
    Directions without spread get a spread of 1e-6 of the largest.
    """
    x = x.double()
    mean = x.mean(0)
    centred = x - mean
    variance, axes = torch.linalg.eigh(centred.T @ centred / max(len(x) - 1, 1))
    deviation = variance.clamp(min=1e-12 * float(variance.max().clamp(min=1e-30))).sqrt()
    if not rotate or x.shape[1] < 2:
        # Back to the given axes as near as whitening can be (ZCA): coordinates keep their meaning.
        return mean, axes @ torch.diag(deviation) @ axes.T
    white = centred @ (axes / deviation)
    rotation = torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    # Degenerate directions of the covariance are already mixed at random by the eigenvectors.
    for _ in range(_STEPS):
        projected = white @ rotation.T
        slope = torch.tanh(projected)
        moved = slope.T @ white / len(white) - (1 - slope.square()).mean(0)[:, None] * rotation
        left, _, right = torch.linalg.svd(moved)
        new = left @ right
        change = float((1 - (new * rotation).sum(1).abs()).max())
        rotation = new
        if change < _CLOSE:
            break
    return mean, axes @ torch.diag(deviation) @ rotation.T
