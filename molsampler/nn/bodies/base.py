"""What a body is, and the registry of its kinds.

A body takes positions ``(b, n, d)`` and features per particle ``(b, n, f)`` and returns a displacement
``(b, n, d)``. A kind is a configuration that builds its module.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import PlainValidator, SerializeAsAny
from torch import Tensor, nn

from ...frozen import Kind
from ...molecule.molecule import Molecule
from ...registry import Registry
from ...space import Space


class BodyNetwork(nn.Module):
    """The module of a body; ``forward(x, features)`` as above."""

    def start_from(self, x: Tensor, *, spring: float) -> None:
        """Start reference lengths at the mean geometry of configurations ``(b, n, d)``, and the springs of
        bonds and angles at ``spring``, where the body has such."""

    def start_late(self) -> None:
        """Start with early layers that look and hardly move, where the body moves particles layer by layer.

        What a layer moves by is decided by what the layers before it have seen. Which one learns to carry
        the displacement is chance otherwise, and training does not change it later.
        """


class Body(Kind):
    """Configuration of a body.

    Attributes
    ----------
    unit_inputs : whether it needs positions of unit scale; a body that reads distances takes them in
        their own unit, so that the position of a wall does not move with the noise
    mirror_symmetric : whether reflected inputs give reflected displacements
    """

    kinds: ClassVar[Registry[type[Body]]] = Registry("network body")
    default = "egnn"
    unit_inputs: ClassVar[bool] = False
    mirror_symmetric: ClassVar[bool] = False

    def scaled(self, length: float) -> Self:
        """The same body with lengths in the system's unit instead of data scales of ``length``."""
        return self

    def by_kernel(self, space: Space) -> bool:
        """Whether a compiled kernel does its work on the processor, and leaves torch's compiler little."""
        return False

    def build(self, space: Space, features: int, molecule: Molecule | None) -> BodyNetwork:
        """The module, for ``features`` input features per particle.

        Raises
        ------
        InputError
            The body cannot serve this space.
        """
        raise NotImplementedError


BODIES = Body.kinds

#: A field of a configuration that holds a body of any registered kind.
AnyBody = Annotated[SerializeAsAny[Body], PlainValidator(Body.parse)]
