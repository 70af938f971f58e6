"""Pairs of particles that differ, sorted by the function that acts between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from molsampler.errors import ExpressionError, InputError

from .expression import Expression, RadialFunction
from .particles import Particles
from .sums import SortedPairs

#: Different functions that the pairs of one system may have: each is compiled, and passes over its own pairs.
MAX_KINDS = 1_000

#: Distances at which the two orders of a pair are compared, and the relative difference that is rounding.
_DISTANCES = torch.tensor([1.0, 0.5, 2.0, 0.2, 5.0, 0.1, 10.0, 0.01, 100.0], dtype=torch.float64)
_SAME = 1e-9


@dataclass(frozen=True, eq=False)
class PairKinds:
    """The functions that act between pairs, and the pairs in their order."""

    functions: tuple[RadialFunction, ...]
    pairs: SortedPairs

    @classmethod
    def of(
        cls, expression: Expression, parameters: Mapping[str, float], n: int, particles: Particles
    ) -> PairKinds:
        """Bind an expression for every kind of pair of ``n`` particles.

        Two kinds are one where the values that the expression uses are the same.

        Raises
        ------
        ExpressionError
            The expression does not match the parameters, or changes when the particles of a pair are
            swapped.
        InputError
            There are too many kinds.
        """
        types = particles.types or (0,) * n
        # Both values of a pair, for its two orders are told apart by them.
        used = [
            f"{name}{side}"
            for name in particles.values
            for side in (1, 2)
            if {f"{name}1", f"{name}2"} & set(expression.names)
        ]
        used += [name for name in particles.pairs if name in expression.names]
        first_of = {kind: types.index(kind) for kind in sorted(set(types))}
        last_of = {kind: n - 1 - types[::-1].index(kind) for kind in first_of}
        kinds: dict[tuple[float, ...], tuple[dict[str, float], dict[str, float]]] = {}
        key_of: dict[tuple[int, int], tuple[float, ...]] = {}
        for a, i in first_of.items():
            for b, j in last_of.items():
                if a > b or i == j:
                    continue
                here, there = particles.of_pair(i, j), particles.of_pair(j, i)
                values = {name: here[name] for name in used}
                swapped = {name: there[name] for name in used}
                key = min(tuple(values.values()), tuple(swapped.values()))
                kinds.setdefault(key, (values, swapped))
                key_of[a, b] = key
                if len(kinds) > MAX_KINDS:
                    raise InputError(
                        f"the particles make more than {MAX_KINDS:,} different pairs; give fewer of "
                        "them values of their own"
                    )
        functions = []
        for values, swapped in kinds.values():
            function = _bound(expression, parameters, n, values)
            if values != swapped:
                other = _bound(expression, parameters, n, swapped)
                _require_symmetry(function, other, values, swapped)
            functions.append(function)
        number = {key: k for k, key in enumerate(kinds)}
        table = torch.zeros(len(first_of), len(first_of), dtype=torch.long)
        for (a, b), key in key_of.items():
            table[a, b] = table[b, a] = number[key]
        first, second = torch.triu_indices(n, n, 1)
        type_of = torch.tensor(types)
        order = table[type_of[first], type_of[second]]
        sorting = order.argsort(stable=True)
        counts = torch.bincount(order, minlength=len(functions)).tolist()
        return cls(tuple(functions), SortedPairs(first[sorting], second[sorting], tuple(counts)))


def _bound(
    expression: Expression, parameters: Mapping[str, float], n: int, values: Mapping[str, float]
) -> RadialFunction:
    return expression.bind(parameters, provided={"n": n, **values})


def _require_symmetry(
    one: RadialFunction,
    other: RadialFunction,
    values: Mapping[str, float],
    swapped: Mapping[str, float],
) -> None:
    u, v = one(_DISTANCES)[0], other(_DISTANCES)[0]
    scale = torch.maximum(u.abs(), v.abs())
    differ = ((u - v).abs() > _SAME * scale) & (u.isfinite() | v.isfinite())
    if not bool(differ.any()):
        return
    k = int(differ.nonzero()[0])

    def told(some: Mapping[str, float]) -> str:
        return ", ".join(f"{name} = {value:g}" for name, value in some.items())

    raise ExpressionError(
        "the energy of a pair must not depend on which of its particles is the first: at r = "
        f"{float(_DISTANCES[k]):.3g} {one.expression.source[:80]!r} is {float(u[k]):.6g} with "
        f"{told(values)} and {float(v[k]):.6g} with {told(swapped)}; combine the two, as in q1*q2, "
        "(s1 + s2)/2 or sqrt(e1*e2)"
    )
