r"""What holds a cluster together: :math:`\sum_i g(|x_i - \bar x|)`, of distances from the mean.

Cluster studies put a wall around the centre of mass where the public benchmarks have a harmonic trap. It does
not act on the cluster as a whole: configurations stay in the mean-free space, and energies are invariant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from molsampler.errors import ExpressionError

from .expression import Expression
from .expression_graph import VARIABLE
from .external import COORDINATES
from .one_body import OneBodyTerm

if TYPE_CHECKING:
    import openmm


class Confinement(OneBodyTerm):
    """The confinement of an expression in r on ``n`` particles.

    Parameters
    ----------
    source : the expression, in units of kT
    parameters : values of names that are the same for all particles; others than used may be there
    values : for each name the value of every particle

    Raises
    ------
    ExpressionError
        The text is malformed, names something unknown, or does not depend on r.
    """

    def __init__(
        self,
        source: str,
        *,
        n: int,
        parameters: Mapping[str, float],
        values: Mapping[str, tuple[float, ...]],
    ) -> None:
        expression = Expression(source)
        for name in expression.names:
            if name in COORDINATES and name not in {**parameters, **values}:
                raise ExpressionError(
                    f"confinement uses {name!r}: it knows the distance r from the mean only, and external "
                    "the coordinates"
                )
        super().__init__(
            "confinement",
            expression,
            coordinates=[VARIABLE],
            n=n,
            parameters=parameters,
            values=values,
        )
        if not any(op.kind == "name" and op.name == VARIABLE for op in expression.operations):
            raise ExpressionError(
                "confinement must depend on r, the distance of a particle from the mean of all"
            )
        self._n = n

    def _seen(self, x: Tensor) -> dict[str, Tensor]:
        return {VARIABLE: (x - x.mean(-2, keepdim=True)).norm(dim=-1)}

    def openmm_force(self, *, length: float, energy: float) -> openmm.Force:
        """The confinement as a ``CustomCentroidBondForce`` between each particle and all of them, whose
        masses are taken as equal."""
        import openmm

        text = self.expression.openmm_text(self._same, length=length, energy=energy)
        force = openmm.CustomCentroidBondForce(2, f"{text}; {VARIABLE}=distance(g1, g2)")
        for name in self._own:
            force.addPerBondParameter(name)
        everything = list(range(self._n))
        centre = force.addGroup(everything, [1.0] * self._n)
        for i in everything:
            each = force.addGroup([i])
            force.addBond([each, centre], [values[i] for values in self._own.values()])
        return force
