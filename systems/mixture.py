"""Mixtures of Gaussians: the only targets whose samples and normalisation are known exactly."""

from __future__ import annotations

import csv
import math
from functools import cache
from importlib import resources

import torch
from torch import Tensor

from molsampler.errors import InputError
from molsampler.space import Euclidean
from molsampler.target import System, check_positions

#: softplus(1), the standard deviation of every component.
SIGMA = math.log1p(math.e)


@cache
def _published_means() -> tuple[tuple[float, float], ...]:
    text = (resources.files(__package__) / "data" / "mog40_means.csv").read_text()
    return tuple((float(row["x"]), float(row["y"])) for row in csv.DictReader(text.splitlines()))


class GaussianMixture(System):
    r"""Forty equal isotropic Gaussians in the plane, the system ``mog40``.

    .. math:: u(x) = -\log \frac1{40} \sum_{k=1}^{40} \mathcal N(x; \mu_k, \sigma^2 I),
        \qquad \sigma = \log(1 + e) = 1.3132616875

    The density is normalised: ``log Z = 0``. At other temperatures than 1 neither its normalising constant
    nor draws of it are known, and asking for them is refused. Means and width are those of Midgley et al.
    (FAB, arXiv 2208.01893). One configuration is one point in the plane, shape ``(1, 2)``.

    Attributes
    ----------
    means : component centres, float64, shape ``(40, 2)``
    sigma : standard deviation of each component
    log_z : logarithm of the normalising constant of ``exp(-u)``
    """

    name = "mog40"
    description = "40 equal Gaussians in the plane"
    units = "energy kT, length arbitrary"

    concurrent = True

    def __init__(self) -> None:
        self.space = Euclidean(1, 2)
        self.means = torch.tensor(_published_means(), dtype=torch.float64)
        self.sigma = SIGMA
        self._log_weight = -math.log(len(self.means) * 2 * math.pi * SIGMA**2)

    @property
    def log_z(self) -> float:
        self._require_normalised()
        return 0.0

    def _require_normalised(self) -> None:
        if self._beta != 1.0:
            raise InputError(
                f"{self.name!r} is known exactly at temperature {self.default_temperature:g} only, this one "
                f"is at {self.temperature:g}"
            )

    def _displacements(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled displacements ``(b, 40, 2)`` from every mean, and component exponents ``(b, 40)``."""
        means = self.means.to(x)
        z = (x.reshape(-1, 1, 2) - means) / self.sigma
        return z, -0.5 * z.square().sum(-1)

    def _energy(self, x: Tensor) -> Tensor:
        _, exponent = self._displacements(x)
        return -exponent.logsumexp(-1) - self._log_weight

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, exponent = self._displacements(x)
        responsibility = exponent.softmax(-1)
        score = -(responsibility[..., None] * z).sum(-2, keepdim=True) / self.sigma
        return -exponent.logsumexp(-1) - self._log_weight, score

    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised log density, shape ``(*b,)``, at positions ``(*b, 1, 2)``.

        Raises
        ------
        ShapeError, NonFiniteError
            As :meth:`energy`.
        InputError
            The system is at another temperature than 1.
        """
        self._require_normalised()
        return -self.energy(x)

    def component(self, x: Tensor) -> Tensor:
        """Index of the nearest mean, shape ``(*b,)``; since components are equal, the likeliest.

        Raises
        ------
        ShapeError, NonFiniteError
            As :meth:`energy`.
        """
        x = check_positions(x, self.shape)
        _, exponent = self._displacements(x)
        return exponent.argmax(-1).reshape(x.shape[:-2])

    def mode_labels(self, x: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Component index of each configuration, shape ``(*b,)``, and the components' names.

        Raises
        ------
        ShapeError, NonFiniteError
            As :meth:`energy`.
        """
        return self.component(x), tuple(f"component {k}" for k in range(1, len(self.means) + 1))

    def sample(self, n: int, *, generator: torch.Generator | None) -> Tensor:
        """``n`` independent exact draws, float64, shape ``(n, 1, 2)``, on the generator's device.

        Raises
        ------
        InputError
            ``n`` is negative, or the system is at another temperature than 1.
        """
        self._require_normalised()
        if n < 0:
            raise InputError(f"n must be a non-negative number of samples, got {n}")
        device = "cpu" if generator is None else generator.device
        means = self.means.to(device)
        which = torch.randint(len(means), (n,), generator=generator, device=device)
        noise = torch.randn(n, 2, generator=generator, device=device, dtype=torch.float64)
        return (means[which] + self.sigma * noise)[:, None]
