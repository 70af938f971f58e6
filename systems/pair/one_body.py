r"""Terms of single particles: :math:`\sum_i g_i`, with g an expression in what is known of particle i.

The expression has OpenMM's syntax (:mod:`molsampler.systems.pair.expression`); its slope is autograd's, since
particles are few where pairs are many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from molsampler.errors import ExpressionError, nearest

from .expression import Expression

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


class OneBodyTerm:
    """The sum over particles of an expression, in units of kT.

    Parameters
    ----------
    key : what the term is called in files, and in messages
    expression : the expression
    coordinates : what it may read of positions
    n : number of particles, which it reads as ``n``
    parameters : values of names that are the same for all particles; others than used may be there
    values : for each name the value of every particle; likewise

    Raises
    ------
    ExpressionError
        It names something else.
    """

    def __init__(
        self,
        key: str,
        expression: Expression,
        *,
        coordinates: Sequence[str],
        n: int,
        parameters: Mapping[str, float],
        values: Mapping[str, tuple[float, ...]],
    ) -> None:
        self.expression = expression
        names = expression.names
        known = [*coordinates, "n", *parameters, *values]
        for name in names:
            if name in known:
                continue
            hint = nearest(name[:40], known)
            if name[-1] in "12" and name[:-1] in values:
                hint = f"; it acts on one particle: write {name[:-1]!r}"
            raise ExpressionError(
                f"{key}: unknown name {name[:40]!r}{hint} (known: {', '.join(known)})"
            )
        self._same = {name: value for name, value in parameters.items() if name in names}
        if "n" in names:
            self._same["n"] = float(n)
        self._own = {name: each for name, each in values.items() if name in names}

    def _seen(self, x: Tensor) -> dict[str, Tensor]:
        """What the expression reads of positions ``(b, n, d)``, by name, each ``(b, n)``."""
        raise NotImplementedError

    def energy(self, x: Tensor) -> Tensor:
        """Energies ``(b,)`` of positions ``(b, n, d)``; differentiable."""
        given = self._seen(x)
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
            if not energy.requires_grad:
                # Of steps alone: flat wherever there is a slope.
                return energy, torch.zeros_like(x)
            (gradient,) = torch.autograd.grad(energy.sum(), leaf)
        return energy.detach(), -gradient
