"""What tells the particles of a pair potential apart: values of each particle, and of pairs of species."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, Self

from molsampler.errors import InputError, nearest

from ..arguments import is_number
from .expression import FUNCTIONS, IDENTIFIER
from .expression_graph import LARGEST, VARIABLE

Pair = tuple[str, str]


@dataclass(frozen=True)
class Particles:
    """Values of particles by name, as an expression reads them.

    A parameter ``q`` of each particle stands for itself in an external field, and for ``q1`` and ``q2`` in
    an expression of pairs, which is the convention of OpenMM's ``CustomNonbondedForce``. A parameter of
    pairs of species stands for itself.

    Attributes
    ----------
    species : species of every particle, None where there are none
    values : for each name the value of every particle
    pairs : for each name the values of pairs of species, in either order
    """

    species: tuple[str, ...] | None
    values: Mapping[str, tuple[float, ...]]
    pairs: Mapping[str, Mapping[Pair, float]]

    @classmethod
    def of(
        cls,
        n: int,
        *,
        particle_parameters: Any = None,
        species: Any = None,
        pair_parameters: Any = None,
        taken: Iterable[str] = (),
    ) -> Self:
        """Particles from what a user wrote; ``taken`` are names that stand for something else.

        Raises
        ------
        InputError
            A list has not one value a particle, a species or a pair of them is unknown or missing, a value
            is no number, or a name is taken.
        """
        kinds = None if species is None else _checked_species(species, n)
        values: dict[str, tuple[float, ...]] = {}
        pairs: dict[str, Mapping[Pair, float]] = {}
        known = set(taken)
        for name, given in _mapping("particle_parameters", particle_parameters).items():
            _check_name(name, "particle_parameters", known, stands_for=(f"{name}1", f"{name}2"))
            values[name] = _of_particles(name, given, n, kinds)
        for name, given in _mapping("pair_parameters", pair_parameters).items():
            _check_name(name, "pair_parameters", known, stands_for=(name,))
            if kinds is None:
                raise InputError(
                    f"pair_parameters {name!r} needs species, a list of one name for each particle, such "
                    "as species: [A, A, B]"
                )
            pairs[name] = _of_pairs(name, given, kinds)
        return cls(kinds, values, pairs)

    @property
    def types(self) -> tuple[int, ...] | None:
        """Equal numbers for particles that nothing tells apart; None where that is true of all."""
        n = max([len(each) for each in (self.species or (), *self.values.values())], default=0)
        labels = [
            (self.species and self.species[i], *(each[i] for each in self.values.values()))
            for i in range(n)
        ]
        numbers: dict[Any, int] = {}
        found = tuple(numbers.setdefault(label, len(numbers)) for label in labels)
        return found if len(numbers) > 1 else None

    @property
    def pair_names(self) -> tuple[str, ...]:
        """The names that an expression of pairs may use."""
        return (*(f"{name}{side}" for name in self.values for side in (1, 2)), *self.pairs)

    def of_pair(self, i: int, j: int) -> dict[str, float]:
        """Values of :attr:`pair_names` for particles i and j."""
        found = {}
        for name, each in self.values.items():
            found[f"{name}1"], found[f"{name}2"] = each[i], each[j]
        species = self.species or ()
        for name, table in self.pairs.items():
            found[name] = table[species[i], species[j]]
        return found

    def record(self) -> dict[str, Any]:
        """The arguments that make the same particles, without those that say nothing."""
        found: dict[str, Any] = {}
        if self.values:
            found["particle_parameters"] = {name: list(each) for name, each in self.values.items()}
        if self.species is not None:
            found["species"] = list(self.species)
        if self.pairs:
            found["pair_parameters"] = {
                name: {f"{a}-{b}": value for (a, b), value in sorted(each.items()) if a <= b}
                for name, each in self.pairs.items()
            }
        return found


def _mapping(argument: str, given: Any) -> Mapping[Any, Any]:
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise InputError(f"{argument} must map names to values, got {type(given).__name__}")
    return given


def _check_name(name: Any, argument: str, known: set[str], *, stands_for: Sequence[str]) -> None:
    if not isinstance(name, str) or not IDENTIFIER.fullmatch(name):
        raise InputError(
            f"a name in {argument} must consist of letters, digits and '_', got {str(name)[:40]!r}"
        )
    for each in {name, *stands_for}:
        if each == VARIABLE or each in FUNCTIONS or each in known:
            raise InputError(f"{argument} {name!r}: the name {each!r} is taken; choose another")
    known.update({name, *stands_for})


def _number(what: str, value: Any) -> float:
    if not is_number(value) or not abs(value) <= LARGEST:
        text = ", a text" if isinstance(value, str) else ""
        raise InputError(f"{what} must be a finite number, got {str(value)[:40]!r}{text}")
    return float(value)


def _checked_species(species: Any, n: int) -> tuple[str, ...]:
    if not isinstance(species, Sequence) or isinstance(species, str):
        raise InputError(
            f"species must be a list of one name for each particle, such as [A, A, B], got {species!r}"
        )
    for index, name in enumerate(species):
        if not isinstance(name, str) or not IDENTIFIER.fullmatch(name):
            hint = " (YAML reads N, Y, no and on as truth values: quote them)" * isinstance(
                name, bool
            )
            raise InputError(
                f"species of particle {index} must be a name of letters, digits and '_', got "
                f"{name!r}{hint}"
            )
    if len(species) != n:
        raise InputError(f"species must hold {n} names, one for each particle, got {len(species)}")
    return tuple(species)


def _of_particles(
    name: str, given: Any, n: int, species: tuple[str, ...] | None
) -> tuple[float, ...]:
    """The value of every particle, from a list of them or a mapping by species."""
    what = f"particle_parameters {name!r}"
    if isinstance(given, Mapping):
        if species is None:
            raise InputError(
                f"{what} is given by species: say species, a list of one name a particle"
            )
        _refuse_unknown(what, given, species)
        missing = [each for each in dict.fromkeys(species) if each not in given]
        if missing:
            raise InputError(f"{what} has no value for species {missing[0]!r}")
        return tuple(_number(f"{what} of species {each!r}", given[each]) for each in species)
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError(
            f"{what} must be a list of {n} numbers, one for each particle, got {str(given)[:40]!r}"
        )
    if len(given) != n:
        raise InputError(
            f"{what} must be a list of {n} numbers, one for each particle, got {len(given)}"
        )
    return tuple(_number(f"{what} of particle {i}", value) for i, value in enumerate(given))


def _of_pairs(name: str, given: Any, species: tuple[str, ...]) -> dict[Pair, float]:
    """Values of pairs of species in either order, from ``{A-A: 1, A-B: 0.5, B-B: 2}``."""
    what = f"pair_parameters {name!r}"
    if not isinstance(given, Mapping):
        raise InputError(
            f"{what} must map pairs of species to numbers, such as {{A-A: 1, A-B: 0.5}}, got "
            f"{str(given)[:40]!r}"
        )
    table: dict[Pair, float] = {}
    for key, value in given.items():
        parts = tuple(str(key).split("-"))
        if len(parts) != 2 or not all(parts):
            raise InputError(f"{what}: {key!r} must be a pair of species such as A-B")
        _refuse_unknown(what, parts, species)
        number = _number(f"{what} of {key}", value)
        first, second = parts
        if table.get((first, second), number) != number:
            raise InputError(
                f"{what} is {table[first, second]:g} for {second}-{first} and {number:g} for {key}; a pair "
                "of species has one value, whichever is named first"
            )
        table[first, second] = table[second, first] = number
    kinds = list(dict.fromkeys(species))
    for first, second in combinations_with_replacement(kinds, 2):
        # A species of a single particle makes no pair with itself.
        needed = first != second or species.count(first) > 1
        if needed and (first, second) not in table:
            raise InputError(f"{what} has no value for the pair {first}-{second}")
    return table


def _refuse_unknown(what: str, names: Iterable[Any], species: tuple[str, ...]) -> None:
    known = tuple(dict.fromkeys(species))
    for name in names:
        if name not in known:
            raise InputError(
                f"{what}: no particle is of species {str(name)[:40]!r}{nearest(str(name), known)} "
                f"(species: {', '.join(known)})"
            )
