"""The potential of Mueller and Brown (Theor. Chim. Acta 53, 75, 1979), in units of 10 kT."""

import torch

A = torch.tensor([-200.0, -100.0, -170.0, 15.0], dtype=torch.float64)
a = torch.tensor([-1.0, -1.0, -6.5, 0.7], dtype=torch.float64)
b = torch.tensor([0.0, 0.0, 11.0, 0.6], dtype=torch.float64)
c = torch.tensor([-10.0, -10.0, -6.5, 0.7], dtype=torch.float64)
X = torch.tensor([1.0, 0.0, -0.5, -1.0], dtype=torch.float64)
Y = torch.tensor([0.0, 0.5, 1.5, 1.0], dtype=torch.float64)


def energy(x):
    """Reduced energies (b,) of positions (b, 1, 2)."""
    first, second = x[:, 0, :1] - X.to(x), x[:, 0, 1:] - Y.to(x)
    exponent = a.to(x) * first**2 + b.to(x) * first * second + c.to(x) * second**2
    return 0.1 * (A.to(x) * exponent.exp()).sum(-1)
