r"""A field that acts on each particle by itself: :math:`\sum_i g(x_i, y_i, z_i)`.

The expression has OpenMM's syntax (:mod:`molsampler.systems.pair.expression`) in the coordinates x, y and z;
its slope is autograd's, since particles are few where pairs are many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from molsampler.errors import ExpressionError, nearest

from .expression import Expression
from .expression_graph import VARIABLE

if TYPE_CHECKING:
    import openmm

COORDINATES = ("x", "y", "z")

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "neg": torch.neg,
    "+": torch.add,
    "-": torch.sub,
    "*": torch.mul,
    "/": torch.div,
    "^": torch.pow,
    "sec": lambda x: torch.cos(x).reciprocal(),
    "csc": lambda x: torch.sin(x).reciprocal(),
    "cot": lambda x: torch.tan(x).reciprocal(),
    "step": lambda x: (x >= 0).to(x),
    "delta": lambda x: (x == 0).to(x),
    "cube": lambda x: x * x * x,
    "recip": torch.reciprocal,
    "min": torch.minimum,
    "max": torch.maximum,
    "select": lambda c, a, b: torch.where(c != 0, a, b),
}


class ExternalField:
    """The field of an expression on ``n`` particles in ``d`` dimensions.

    Parameters
    ----------
    source : the expression, in units of kT
    parameters : values of names that are the same for all particles; others than used may be there
    values : for each name the value of every particle

    Raises
    ------
    ExpressionError
        The text is malformed, names something unknown, or leaves a direction in which nothing holds the
        particles.
    """

    def __init__(
        self,
        source: str,
        *,
        n: int,
        d: int,
        parameters: Mapping[str, float],
        values: Mapping[str, tuple[float, ...]],
    ) -> None:
        self.expression = Expression(source)
        names = self.expression.names
        coordinates = COORDINATES[:d]
        known = [*coordinates, "n", *parameters, *values]
        if any(op.kind == "name" and op.name == VARIABLE for op in self.expression.operations):
            raise ExpressionError(
                "external is a field in x, y and z, and knows no distance r; from the origin it is "
                "sqrt(x^2 + y^2 + z^2)"
            )
        for name in names:
            if name in COORDINATES and name not in coordinates:
                raise ExpressionError(f"external uses {name!r}, the system has {d} dimension(s)")
            if name not in known:
                hint = nearest(name[:40], known)
                if name[-1] in "12" and name[:-1] in values:
                    hint = f"; a field acts on one particle: write {name[:-1]!r}"
                raise ExpressionError(
                    f"external: unknown name {name[:40]!r}{hint} (known: {', '.join(known)})"
                )
        for name in coordinates:
            if name not in names:
                raise ExpressionError(
                    f"external must hold the particles along {name!r} as well: distances do not change "
                    "when all move together, so without it exp(-u) has no norm"
                )
        self._shape = (n, d)
        self._same = {name: value for name, value in parameters.items() if name in names}
        if "n" in names:
            self._same["n"] = float(n)
        self._own = {name: each for name, each in values.items() if name in names}

    def energy(self, x: Tensor) -> Tensor:
        """Energies ``(b,)`` of positions ``(b, n, d)``; differentiable."""
        given: dict[str, Tensor] = dict(zip(COORDINATES, x.unbind(-1), strict=False))
        given |= {name: x.new_tensor(value) for name, value in self._same.items()}
        given |= {name: x.new_tensor(each) for name, each in self._own.items()}
        results: list[Tensor] = []
        for operation in self.expression.operations:
            if operation.kind == "number":
                results.append(x.new_tensor(operation.value))
            elif operation.kind == "name":
                results.append(given[operation.name])
            else:
                name = operation.name or operation.kind
                function = _FUNCTIONS.get(name) or getattr(torch, name)
                results.append(function(*(results[k] for k in operation.arguments)))
        return results[self.expression.root].expand(x.shape[:-1]).sum(-1)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Energies ``(b,)`` and minus their gradients ``(b, n, d)``."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.detach().clone().requires_grad_()
            energy = self.energy(leaf)
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        return energy.detach(), -gradient

    def openmm_force(self, *, length: float, energy: float) -> openmm.Force:
        """The field as a ``CustomExternalForce``: ``energy * g(x / length, ...)``."""
        import openmm

        n, d = self._shape
        text = self.expression.openmm_text(
            self._same, length=length, energy=energy, lengths=COORDINATES[:d]
        )
        force = openmm.CustomExternalForce(text)
        for name in self._own:
            force.addPerParticleParameter(name)
        for i in range(n):
            force.addParticle(i, [each[i] for each in self._own.values()])
        return force
