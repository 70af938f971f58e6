r"""Collective variables: one number a configuration, named by a text; and basins, intervals of one.

=================== ==================================================== =============
text                value                                                unit
=================== ==================================================== =============
``torsion:i,j,k,l`` dihedral angle of four particles in three dimensions degrees, in [-180, 180)
``distance:i,j``    distance of two particles                            the system's length unit
``FILE.py:NAME``    ``NAME(x)`` of a Python file, (n, N, D) -> (n,)      its own
=================== ==================================================== =============

Particles are counted from zero. A function may carry an attribute ``period``: its values are then taken
modulo that, in [-period/2, period/2).
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import FileFormatError, InputError, MolsamplerError, NonFiniteError, ShapeError
from .registry import Registry

#: The forms of texts, for messages.
FORMS = ("torsion:i,j,k,l", "distance:i,j", "FILE.py:NAME")

#: Degrees in a turn, the period of a torsion.
TURN = 360.0


@dataclass(frozen=True)
class CollectiveVariable:
    """A function of a configuration.

    Attributes
    ----------
    name : what it is called in tables
    unit : of its values, empty where nothing is known of it
    period : of its values, None where they are no angles
    function : positions ``(n, N, D)`` to values ``(n,)``
    """

    name: str
    unit: str
    period: float | None
    function: Callable[[Tensor], Any]

    def __call__(self, x: Tensor) -> Tensor:
        """Values ``(n,)`` in float64 of positions ``(n, N, D)``; periodic ones in [-period/2, period/2).

        Raises
        ------
        ShapeError
            The function does not give one number a configuration.
        NonFiniteError
            A value is NaN or infinite.
        InputError
            The function fails.
        """
        try:
            with torch.no_grad():
                values = (
                    torch.as_tensor(self.function(x.double())).detach().cpu().double().contiguous()
                )
        except MolsamplerError:
            raise
        except Exception as error:
            raise InputError(
                f"collective variable {self.name!r} failed: {type(error).__name__}: {error}"
            ) from None
        if tuple(values.shape) != (len(x),):
            raise ShapeError(
                f"collective variable {self.name!r} must give values of shape ({len(x)},), "
                f"got {tuple(values.shape)}"
            )
        finite = torch.isfinite(values)
        if not bool(finite.all()):
            raise NonFiniteError(
                f"collective variable {self.name!r} is not finite in {int((~finite).sum())} of "
                f"{len(x)} configurations, the first is {int((~finite).nonzero()[0])}"
            )
        return values if self.period is None else wrapped(values, self.period)


#: Kinds by the word before the colon; a kind takes what stands behind it and the shape of positions.
COLLECTIVE_VARIABLES: Registry[Callable[[str, tuple[int, int]], CollectiveVariable]] = Registry(
    "kind of collective variables"
)


def collective_variable(
    text: str,
    shape: tuple[int, int],
    *,
    named: Mapping[str, str] | None = None,
    files: bool = True,
) -> CollectiveVariable:
    """The collective variable that a text names, for positions of ``shape`` ``(N, D)``.

    Parameters
    ----------
    named : further names and the texts that they stand for
    files : whether a Python file may be run

    Raises
    ------
    InputError
        The text is of no known form, or does not fit the shape.
    FileFormatError
        The Python file is missing.
    """
    name, text = text, (named or {}).get(text, text)
    kind, _, rest = text.partition(":")
    if kind in COLLECTIVE_VARIABLES:
        found = COLLECTIVE_VARIABLES[kind](rest, shape)
    else:
        file, _, attribute = text.rpartition(":")
        if not file.endswith(".py") or not attribute.isidentifier():
            raise InputError(
                f"collective variable {text!r} must be one of {_forms(named)}; particles count from zero"
            )
        if not files:
            raise InputError(
                f"collective variable {text!r} would run a Python file, which a system file must not; "
                "give it on the command line"
            )
        found = _from_file(Path(file), attribute)
    return CollectiveVariable(name, found.unit, found.period, found.function)


def _forms(named: Mapping[str, str] | None) -> str:
    forms = [*(named or {}), *FORMS, *(f"{kind}:..." for kind in COLLECTIVE_VARIABLES.names())]
    # Kinds from outside are listed by name alone.
    own = {form.partition(":")[0] for form in FORMS}
    return ", ".join(f for f in forms if not (f.endswith(":...") and f[:-4] in own))


def _particles(text: str, count: int, kind: str, shape: tuple[int, int]) -> list[int]:
    parts = text.split(",")
    form = f"{kind}:{','.join('ijkl'[:count])}"
    if len(parts) != count or not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"{kind}:{text} must be {form} with {count} particles, counted from zero")
    particles = [int(part) for part in parts]
    if max(particles) >= shape[0]:
        raise InputError(
            f"{kind}:{text} names particle {max(particles)}; there are {shape[0]}, 0 to {shape[0] - 1}"
        )
    if len(set(particles)) < count:
        raise InputError(f"{kind}:{text} names a particle twice")
    return particles


@COLLECTIVE_VARIABLES.register("torsion")
def torsion(text: str, shape: tuple[int, int]) -> CollectiveVariable:
    """The dihedral angle of particles ``i,j,k,l`` in degrees."""
    if shape[1] != 3:
        raise InputError(f"torsion:{text} needs three dimensions, the positions have {shape[1]}")
    particles = _particles(text, 4, "torsion", shape)
    return CollectiveVariable(f"torsion:{text}", "degrees", TURN, partial(_degrees, particles))


@COLLECTIVE_VARIABLES.register("distance")
def distance(text: str, shape: tuple[int, int]) -> CollectiveVariable:
    """The distance of particles ``i,j``."""
    particles = _particles(text, 2, "distance", shape)
    return CollectiveVariable(f"distance:{text}", "length", None, partial(_length, particles))


# Functions of the module, so that a system with basins can be sent to another process.
def _degrees(particles: list[int], x: Tensor) -> Tensor:
    return torch.rad2deg(dihedral(*x[:, particles].unbind(1)))


def _length(particles: list[int], x: Tensor) -> Tensor:
    i, j = particles
    length: Tensor = torch.linalg.vector_norm(x[:, i] - x[:, j], dim=-1)
    return length


def _from_file(path: Path, attribute: str) -> CollectiveVariable:
    """A function of a Python file, which is run."""
    if not path.is_file():
        raise FileFormatError(f"{path} does not exist or is no file")
    spec = importlib.util.spec_from_file_location(f"_collective_variables_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise FileFormatError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} cannot be run: {type(error).__name__}: {error}") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"{path} has no function {attribute!r}")
    period = getattr(function, "period", None)
    if period is not None and not (isinstance(period, int | float) and 0 < period < math.inf):
        raise InputError(
            f"the period of {attribute!r} in {path} must be a positive number, got {period!r}"
        )
    return CollectiveVariable(
        f"{path}:{attribute}", "", None if period is None else float(period), function
    )


def wrapped(values: Tensor, period: float) -> Tensor:
    """``values`` modulo ``period``, in [-period/2, period/2)."""
    inside = (values + period / 2) % period - period / 2
    # Rounding may take a value just below the start to the end.
    return torch.where(inside >= period / 2, -period / 2, inside)


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Dihedral angle in radians of points ``(*b, 3)``, 0 for cis, by the sign of IUPAC."""
    first, axis, last = b - a, c - b, d - c
    left, right = torch.linalg.cross(first, axis), torch.linalg.cross(axis, last)
    up = (torch.linalg.cross(left, right) * axis).sum(-1) / axis.norm(dim=-1)
    return torch.atan2(up, (left * right).sum(-1))


@dataclass(frozen=True)
class Intervals:
    """Basins: the intervals into which edges cut a collective variable.

    k edges make k + 1 intervals of a line and k of a circle, where the first runs through the end of the
    period. Each holds its lower edge.

    Raises
    ------
    InputError
        There is no edge (on a circle: fewer than two), they do not rise, or one lies outside the period.
    """

    variable: CollectiveVariable
    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        edges, period = self.edges, self.variable.period
        least = 1 if period is None else 2
        rising = all(a < b for a, b in itertools.pairwise(edges))
        if len(edges) < least or not rising or not all(map(math.isfinite, edges)):
            raise InputError(
                f"edges of {self.variable.name!r} must be at least {least} rising number(s), "
                f"got {list(edges)}"
            )
        if period is not None and not -period / 2 <= edges[0] <= edges[-1] < period / 2:
            raise InputError(
                f"edges of {self.variable.name!r} must lie in [{-period / 2:g}, {period / 2:g}), "
                f"got {list(edges)}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each interval."""
        name, edges = self.variable.name, [f"{edge:g}" for edge in self.edges]
        inner = [f"{name} in [{a}, {b})" for a, b in itertools.pairwise(edges)]
        if self.variable.period is not None:
            return (f"{name} in [{edges[-1]}, {edges[0]})", *inner)
        return (f"{name} < {edges[0]}", *inner, f"{name} >= {edges[-1]}")

    def labels(self, values: Tensor) -> Tensor:
        """Index ``(n,)`` of the interval of each value ``(n,)``."""
        index = torch.bucketize(values, torch.tensor(self.edges, dtype=values.dtype), right=True)
        return index if self.variable.period is None else index % len(self.edges)

    def mode_labels(self, x: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Index of the interval of each configuration ``(n, N, D)``, and the names, variable included."""
        return self.labels(self.variable(x)), self.names
