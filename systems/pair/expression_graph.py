"""Expressions as a graph in normal form, with derivatives.

Nodes are linear combinations, products of integer powers, and functions; equal nodes are one node
and constants are folded. Arguments always precede the nodes that use them, so every pass over a
graph is a loop, however deep the expression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

#: The independent variable: the distance.
VARIABLE = "r"
#: Bound on the terms of all graph nodes together, which bounds time and memory of compilation.
MAX_TERMS = 50_000
#: Integer exponents up to this size become multiplications; beyond, a general power.
_MAX_POWER = 64
#: Longer sums and products stay closed when others absorb them, or repeated definitions would
#: grow with every use.
_MAX_SUMMANDS = 32
_MAX_FACTORS = 6
#: Folded coefficients stay within this factor of one, so that they exist in float32 as well.
_COEFFICIENT_RANGE = 1e18
#: Constants must exist in float32, since every system runs in it.
LARGEST = 3e38


class Operation(NamedTuple):
    """One step of the parsed form; ``arguments`` are indices of earlier operations."""

    kind: str
    arguments: tuple[int, ...]
    name: str
    value: float
    position: int


class TooLargeError(Exception):
    """A graph outgrew :data:`MAX_TERMS`."""


class Node(NamedTuple):
    """A node of the bound graph.

    kind "number": value. "variable". "linear": value + sum of weights[i] * arguments[i].
    "product": product of arguments[i] ^ weights[i], integer weights. Otherwise a function's name.
    """

    kind: str
    arguments: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    value: float = 0.0


def _finite(value: float) -> float:
    if not abs(value) <= LARGEST:
        raise ArithmeticError("out of range")
    return value


class Graph:
    """Nodes in a normal form, each stored once; arguments always precede the node."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._index: dict[Node, int] = {}
        self._terms = 0
        self._derivatives: dict[int, int] = {}
        self.r = self._node(Node("variable"))

    def _node(self, node: Node) -> int:
        found = self._index.get(node)
        if found is None:
            self._terms += 1 + len(node.arguments)
            if self._terms > MAX_TERMS:
                raise TooLargeError
            self.nodes.append(node)
            found = self._index[node] = len(self.nodes) - 1
        return found

    def number(self, value: float) -> int:
        # Adding zero merges -0.0 with 0.0, which are equal but print and divide differently.
        return self._node(Node("number", value=_finite(value) + 0.0))

    def constant(self, node: int) -> float | None:
        return self.nodes[node].value if self.nodes[node].kind == "number" else None

    def linear_parts(
        self, node: int, *, most: int = MAX_TERMS
    ) -> tuple[float, Iterable[tuple[int, float]]]:
        """Offset and weighted nodes of a sum; a sum of more than ``most`` terms stays closed."""
        found = self.nodes[node]
        if found.kind == "number":
            return found.value, ()
        if found.kind == "linear" and len(found.arguments) <= most:
            return found.value, zip(found.arguments, found.weights, strict=True)
        return 0.0, ((node, 1.0),)

    def linear(self, value: float, terms: Iterable[tuple[int, float]]) -> int:
        """``value + sum of weight * node``, flattened, with equal nodes merged."""
        merged: dict[int, float] = {}
        for node, weight in terms:
            offset, parts = self.linear_parts(node, most=_MAX_SUMMANDS)
            value += weight * offset
            for inner, inner_weight in parts:
                merged[inner] = merged.get(inner, 0.0) + weight * inner_weight
            if len(merged) > MAX_TERMS:
                raise TooLargeError
        merged = {node: _finite(weight) for node, weight in merged.items() if weight != 0}
        if not merged:
            return self.number(value)
        if value == 0 and len(merged) == 1 and next(iter(merged.values())) == 1:
            return next(iter(merged))
        keys = tuple(sorted(merged))
        self._terms += len(keys)
        return self._node(
            Node("linear", keys, tuple(merged[k] for k in keys), _finite(value) + 0.0)
        )

    def add(self, a: int, b: int) -> int:
        return self.linear(0.0, ((a, 1.0), (b, 1.0)))

    def scale(self, a: int, factor: float) -> int:
        return self.linear(0.0, ((a, factor),))

    def _factors(self, node: int) -> tuple[float, dict[int, int]]:
        """``node`` as coefficient times a product of powers; sums are made monic."""
        found = self.nodes[node]
        if found.kind == "number":
            return found.value, {}
        if found.kind == "product" and len(found.arguments) <= _MAX_FACTORS:
            return 1.0, dict(zip(found.arguments, map(int, found.weights), strict=True))
        if found.kind == "linear":
            leading = max(found.weights, key=abs)
            if 1 / _COEFFICIENT_RANGE <= abs(leading) <= _COEFFICIENT_RANGE:
                rest = node if leading == 1 else self.scale(node, 1 / leading)
                inner = self.nodes[rest]
                if inner.kind == "product":
                    return leading, self._factors(rest)[1]
                return leading, {rest: 1}
        return 1.0, {node: 1}

    def _product(self, coefficient: float, powers: dict[int, int]) -> int:
        powers = {node: power for node, power in powers.items() if power}
        if coefficient == 0 or not powers:
            return self.number(coefficient)
        if len(powers) == 1 and next(iter(powers.values())) == 1:
            core = next(iter(powers))
        else:
            if any(abs(power) > _MAX_POWER for power in powers.values()):
                core, remaining = -1, dict(powers)
                for node, power in powers.items():
                    if abs(power) > _MAX_POWER:
                        del remaining[node]
                        factor = self._node(Node("power", (node,), (), float(power)))
                        remaining[factor] = remaining.get(factor, 0) + 1
                return self._product(coefficient, remaining)
            keys = tuple(sorted(powers))
            core = self._node(Node("product", keys, tuple(float(powers[k]) for k in keys)))
        return self.scale(core, coefficient)

    def multiply(self, a: int, b: int) -> int:
        first, powers = self._factors(a)
        second, others = self._factors(b)
        coefficient = _finite(first * second)
        for node, power in others.items():
            powers[node] = powers.get(node, 0) + power
        return self._product(coefficient, powers)

    def integer_power(self, a: int, power: int) -> int:
        if power == 0:
            return self.number(1.0)
        if power == 1:
            return a
        value = self.constant(a)
        if value is not None:
            return self.number(value**power)
        coefficient, powers = self._factors(a)
        if coefficient != 1 and abs(math.log(abs(coefficient)) * power) > math.log(
            _COEFFICIENT_RANGE
        ):
            # The coefficient must not leave the range of float32 by being raised apart from r.
            if power % 2 == 0 and abs(power) > 2 and 1e-9 < abs(coefficient) < 1e9:
                square = self.integer_power(a, 2)
                return self.integer_power(square, power // 2)
            return self._node(Node("product", (a,), (float(power),)))
        return self._product(coefficient**power, {k: p * power for k, p in powers.items()})

    def divide(self, a: int, b: int) -> int:
        value = self.constant(b)
        if value is not None:
            above = self.constant(a)
            if above is not None:
                return self.number(above / value)
            return self.scale(a, _finite(1.0 / value))
        return self.multiply(a, self.integer_power(b, -1))

    def power(self, a: int, b: int) -> int:
        exponent, base = self.constant(b), self.constant(a)
        if exponent is not None and base is not None:
            return self.number(math.pow(base, exponent))
        if exponent is not None:
            if exponent == round(exponent) and abs(exponent) <= _MAX_POWER:
                return self.integer_power(a, round(exponent))
            if exponent == 0.5:
                return self.call("sqrt", (a,))
            return self._node(Node("power", (a,), (), exponent))
        if base is not None and base > 0:
            return self.call("exp", (self.scale(b, math.log(base)),))
        return self._node(Node("pow", (a, b)))

    def call(self, name: str, arguments: tuple[int, ...]) -> int:
        if name in ("square", "cube", "recip"):
            return self.integer_power(arguments[0], {"square": 2, "cube": 3, "recip": -1}[name])
        values = [self.constant(a) for a in arguments]
        if name == "select" and values[0] is not None:
            return arguments[1] if values[0] else arguments[2]
        if all(value is not None for value in values):
            return self.number(_FOLD[name](*values))
        if name in ("min", "max", "select") and arguments[-1] == arguments[-2]:
            return arguments[-1]
        return self._node(Node(name, arguments))

    def apply(self, operation: Operation, arguments: list[int], values: Mapping[str, float]) -> int:
        """Node of a parsed operation whose arguments are already nodes."""
        match operation.kind:
            case "number":
                return self.number(operation.value)
            case "name":
                if operation.name == VARIABLE:
                    return self.r
                return self.number(values[operation.name])
            case "neg":
                return self.scale(arguments[0], -1.0)
            case "+":
                return self.add(*arguments)
            case "-":
                return self.linear(0.0, ((arguments[0], 1.0), (arguments[1], -1.0)))
            case "*":
                return self.multiply(*arguments)
            case "/":
                return self.divide(*arguments)
            case "^":
                return self.power(*arguments)
            case _:
                return self.call(operation.name, tuple(arguments))

    def derivative(self, root: int) -> int:
        """d(root)/dr. Arguments precede nodes, so one pass over the graph suffices."""
        needed = self.reachable(root)
        for index in sorted(needed):
            if index not in self._derivatives:
                self._derivatives[index] = self._derive(index)
        return self._derivatives[root]

    def reachable(self, *roots: int) -> set[int]:
        """The nodes that ``roots`` are made of."""
        seen: set[int] = set()
        stack = list(roots)
        while stack:
            index = stack.pop()
            if index not in seen:
                seen.add(index)
                stack.extend(self.nodes[index].arguments)
        return seen

    def _derive(self, index: int) -> int:
        node = self.nodes[index]
        if node.kind == "number":
            return self.number(0.0)
        if node.kind == "variable":
            return self.number(1.0)
        slopes = [self._derivatives[a] for a in node.arguments]
        if node.kind == "linear":
            return self.linear(0.0, zip(slopes, node.weights, strict=True))
        if node.kind == "product":
            terms = []
            powers = dict(zip(node.arguments, map(int, node.weights), strict=True))
            for (argument, power), slope in zip(powers.items(), slopes, strict=True):
                if self.constant(slope) != 0:
                    quotient = self._product(1.0, {**powers, argument: power - 1})
                    terms.append((self.multiply(quotient, slope), float(power)))
            return self.linear(0.0, terms)
        if all(self.constant(slope) == 0 for slope in slopes):
            return self.number(0.0)
        if node.kind in ("min", "max"):
            a, b = node.arguments
            first = self.call("step", (self.linear(0.0, ((a, 1.0), (b, -1.0))),))
            if node.kind == "max":
                return self.call("select", (first, slopes[0], slopes[1]))
            return self.call("select", (first, slopes[1], slopes[0]))
        if node.kind == "select":
            return self.call("select", (node.arguments[0], slopes[1], slopes[2]))
        partials = _PARTIALS[node.kind](self, index, node)
        return self.linear(
            0.0,
            (
                (self.multiply(partial, slope), 1.0)
                for partial, slope in zip(partials, slopes, strict=True)
                if self.constant(slope) != 0
            ),
        )


_FOLD: dict[str, Callable[..., float]] = {
    "sqrt": math.sqrt,
    "exp": math.exp,
    "log": math.log,
    "sin": math.sin,
    "cos": math.cos,
    "sec": lambda x: 1 / math.cos(x),
    "csc": lambda x: 1 / math.sin(x),
    "tan": math.tan,
    "cot": lambda x: 1 / math.tan(x),
    "asin": math.asin,
    "acos": math.acos,
    "atan": math.atan,
    "atan2": math.atan2,
    "sinh": math.sinh,
    "cosh": math.cosh,
    "tanh": math.tanh,
    "erf": math.erf,
    "erfc": math.erfc,
    "step": lambda x: 1.0 if x >= 0 else 0.0,
    "delta": lambda x: 1.0 if x == 0 else 0.0,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "min": min,
    "max": max,
    "select": lambda c, a, b: a if c else b,
}


def _one_minus_square(graph: Graph, x: int, sign: float = -1.0) -> int:
    return graph.linear(1.0, ((graph.integer_power(x, 2), sign),))


def _gauss(graph: Graph, x: int, factor: float) -> int:
    exponent = graph.scale(graph.integer_power(x, 2), -1.0)
    return graph.scale(graph.call("exp", (exponent,)), factor)


def _atan2_partials(graph: Graph, y: int, x: int) -> tuple[int, ...]:
    square = graph.add(graph.integer_power(y, 2), graph.integer_power(x, 2))
    inverse = graph.integer_power(square, -1)
    return graph.multiply(x, inverse), graph.scale(graph.multiply(y, inverse), -1.0)


def _pow_partials(graph: Graph, index: int, base: int, exponent: int) -> tuple[int, ...]:
    lower = graph.power(base, graph.linear(-1.0, ((exponent, 1.0),)))
    value = graph.constant(base)
    if value is not None:
        # A base of zero or less has no logarithm, and its power no slope in the exponent.
        return graph.number(0.0), graph.number(0.0)
    return (
        graph.multiply(exponent, lower),
        graph.multiply(index, graph.call("log", (base,))),
    )


#: Partial derivatives of each function with respect to its arguments; ``i`` is the node itself.
_PARTIALS: dict[str, Callable[[Graph, int, Node], tuple[int, ...]]] = {
    "sqrt": lambda g, i, n: (g.scale(g.integer_power(i, -1), 0.5),),
    "exp": lambda g, i, n: (i,),
    "log": lambda g, i, n: (g.integer_power(n.arguments[0], -1),),
    "sin": lambda g, i, n: (g.call("cos", n.arguments),),
    "cos": lambda g, i, n: (g.scale(g.call("sin", n.arguments), -1.0),),
    "sec": lambda g, i, n: (g.multiply(i, g.call("tan", n.arguments)),),
    "csc": lambda g, i, n: (g.scale(g.multiply(i, g.call("cot", n.arguments)), -1.0),),
    "tan": lambda g, i, n: (_one_minus_square(g, i, 1.0),),
    "cot": lambda g, i, n: (g.scale(_one_minus_square(g, i, 1.0), -1.0),),
    "asin": lambda g, i, n: (
        g.integer_power(g.call("sqrt", (_one_minus_square(g, n.arguments[0]),)), -1),
    ),
    "acos": lambda g, i, n: (
        g.scale(g.integer_power(g.call("sqrt", (_one_minus_square(g, n.arguments[0]),)), -1), -1.0),
    ),
    "atan": lambda g, i, n: (g.integer_power(_one_minus_square(g, n.arguments[0], 1.0), -1),),
    "atan2": lambda g, i, n: _atan2_partials(g, *n.arguments),
    "sinh": lambda g, i, n: (g.call("cosh", n.arguments),),
    "cosh": lambda g, i, n: (g.call("sinh", n.arguments),),
    "tanh": lambda g, i, n: (_one_minus_square(g, i),),
    "erf": lambda g, i, n: (_gauss(g, n.arguments[0], 2 / math.sqrt(math.pi)),),
    "erfc": lambda g, i, n: (_gauss(g, n.arguments[0], -2 / math.sqrt(math.pi)),),
    # Lepton's conventions: flat functions have slope zero, and |x| has slope +1 at zero.
    "step": lambda g, i, n: (g.number(0.0),),
    "delta": lambda g, i, n: (g.number(0.0),),
    "floor": lambda g, i, n: (g.number(0.0),),
    "ceil": lambda g, i, n: (g.number(0.0),),
    "abs": lambda g, i, n: (g.linear(-1.0, ((g.call("step", n.arguments), 2.0),)),),
    "power": lambda g, i, n: (g.scale(g.power(n.arguments[0], g.number(n.value - 1)), n.value),),
    "pow": lambda g, i, n: _pow_partials(g, i, *n.arguments),
}
