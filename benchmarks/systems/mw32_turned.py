"""The 16 double wells of ``mw32`` in coordinates turned at random: no axis is one of theirs."""

import torch

TURN = torch.linalg.qr(
    torch.randn(32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(32))
)[0]


def energy(x):
    """Reduced energies (b,) of positions (b, 1, 32)."""
    wells = (x[:, 0] @ TURN.to(x)).unflatten(-1, (16, 2))
    d, v = wells.unbind(-1)
    return (-0.5 * d - 6 * d**2 + d**4 + 0.5 * v**2).sum(-1)
