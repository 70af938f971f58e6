r"""A field that acts on each particle by itself: :math:`\sum_i g(x_i, y_i, z_i)`.

The expression is in the coordinates x, y and z (:mod:`molsampler.systems.pair.one_body`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from molsampler.errors import ExpressionError

from .expression import Expression
from .expression_graph import VARIABLE
from .one_body import OneBodyTerm

if TYPE_CHECKING:
    import openmm

COORDINATES = ("x", "y", "z")


class ExternalField(OneBodyTerm):
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
        expression = Expression(source)
        names = expression.names
        coordinates = COORDINATES[:d]
        if any(op.kind == "name" and op.name == VARIABLE for op in expression.operations):
            raise ExpressionError(
                "external is a field in x, y and z, and knows no distance r; from the origin it is "
                "sqrt(x^2 + y^2 + z^2)"
            )
        for name in names:
            if name in COORDINATES and name not in coordinates:
                raise ExpressionError(f"external uses {name!r}, the system has {d} dimension(s)")
        super().__init__(
            "external",
            expression,
            coordinates=coordinates,
            n=n,
            parameters=parameters,
            values=values,
        )
        for name in coordinates:
            if name not in names:
                raise ExpressionError(
                    f"external must hold the particles along {name!r} as well: distances do not change "
                    "when all move together, so without it exp(-u) has no norm"
                )
        self._shape = (n, d)

    def _seen(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(COORDINATES, x.unbind(-1), strict=False))

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
