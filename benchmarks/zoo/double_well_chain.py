"""A chain of eight coupled double wells: neighbours like to be on the same side."""


def energy(x):
    """Reduced energies (b,) of positions (b, 8, 1)."""
    wells = 3 * (x.square() - 1).square()
    return wells.sum((-2, -1)) + 0.5 * x.diff(dim=-2).square().sum((-2, -1))
