"""Energies and scores for probes, as the formula gives them, NaN and infinities included."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import IllPosedError, MolsamplerError, SimulationError
from ..target import COORDINATE_LIMIT, System


class Evaluator:
    """Evaluates a system in float64, or in float32 where it knows no other.

    Raises
    ------
    IllPosedError
        The system raises an exception of its own or of a library's.
    """

    def __init__(self, system: System):
        self.system = system
        self.dtype = torch.float64
        self._check(system.space.randn(2, generator=_random(), like=self._like()))

    @property
    def double(self) -> bool:
        return self.dtype == torch.float64

    def _like(self) -> Tensor:
        return torch.empty(0, dtype=self.dtype)

    def _check(self, x: Tensor) -> None:
        for dtype in (torch.float64, torch.float32):
            self.dtype = dtype
            try:
                self.system.unguarded_energy_and_score(x.to(dtype))
                return
            except SimulationError:
                # A random configuration may be one that OpenMM refuses.
                return
            except MolsamplerError:
                raise
            except Exception as error:
                last = error
        said = str(last).splitlines()[0] if str(last) else type(last).__name__
        if "does not require grad" in said:
            raise IllPosedError(
                f"the energy of {self.system.name!r} cannot be differentiated: it does not depend on the "
                "positions by torch operations (no detach, item, numpy or rounding on the way)"
            ) from last
        raise IllPosedError(
            f"the energy of {self.system.name!r} cannot be evaluated at positions (2, "
            f"{self.system.shape[0]}, {self.system.shape[1]}): {type(last).__name__}: {said}"
        ) from last

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(b,)`` and scores ``(b, n, d)`` in float64.

        Rows that OpenMM refuses, or that leave the coordinates that systems take, are +inf.
        """
        x = x.to(self.dtype)
        beyond = ~(x.abs() <= COORDINATE_LIMIT).flatten(1).all(1)
        if beyond.any():
            u, score = self(x.masked_fill(beyond[:, None, None], 0.0))
            return (
                u.masked_fill(beyond, torch.inf),
                score.masked_fill(beyond[:, None, None], 0.0),
            )
        try:
            u, score = self.system.unguarded_energy_and_score(x)
        except SimulationError:
            if len(x) == 1:
                return torch.full((1,), torch.inf, dtype=torch.float64), torch.zeros_like(
                    x
                ).double()
            parts = [self(row) for row in torch.split(x, 1)]
            return torch.cat([u for u, _ in parts]), torch.cat([score for _, score in parts])
        return u.detach().cpu().double(), score.detach().cpu().double()

    def energy(self, x: Tensor) -> Tensor:
        """Energies ``(b,)``."""
        return self(x)[0]


def _random() -> torch.Generator:
    return torch.Generator().manual_seed(0)
