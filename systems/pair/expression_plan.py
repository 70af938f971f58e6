"""Torch operations that evaluate an expression and its slope together.

Integer powers are built by multiplication and shared between value and slope, negative ones start
from a single reciprocal, and an expression in even powers of r is evaluated in r^2, without a
square root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .expression_graph import Graph, Node


class Step(NamedTuple):
    """One operation: register ``target`` from registers ``sources`` and a number."""

    operator: str
    target: int
    sources: tuple[int, ...]
    number: float = 0.0


class Form(NamedTuple):
    """A lowered result: ``scale * slots[slot] + quadratic * r^2 + constant`` (no slot: zero)."""

    slot: int | None
    scale: float
    quadratic: float
    constant: float


class _Lowering:
    """Chooses tensor operations for graph nodes; register 0 holds r^2."""

    def __init__(self, graph: Graph, roots: Iterable[int]) -> None:
        self.graph = graph
        self.steps: list[Step] = []
        self._registers = 1
        self._done: dict[int, int] = {}
        self._powers: dict[int, dict[int, int]] = {graph.r: {2: 0}}
        self._wanted: dict[int, set[int]] = {}
        for index in graph.reachable(*roots):
            node = graph.nodes[index]
            if node.kind == "product":
                for base, power in zip(node.arguments, node.weights, strict=True):
                    self._wanted.setdefault(base, set()).add(int(power))

    def _emit(self, operator: str, *sources: int, number: float = 0.0) -> int:
        self.steps.append(Step(operator, self._registers, sources, number))
        self._registers += 1
        return self._registers - 1

    def form(self, root: int, *, harmonic: bool) -> Form:
        """Lower a result whose overall factor and offset are left to the caller.

        With ``harmonic``, so is its term in r^2, which sums over pairs at the cost of one over
        particles.
        """
        constant, parts = self.graph.linear_parts(root)
        terms = dict(parts)
        square = self.graph.integer_power(self.graph.r, 2)
        quadratic = terms.pop(square, 0.0) if harmonic else 0.0
        if not terms:
            return Form(None, 0.0, quadratic, constant)
        scale = max(terms.values(), key=abs)
        register = self._linear(0.0, [(node, w / scale) for node, w in terms.items()])
        return Form(register, scale, quadratic, constant)

    def _register(self, index: int) -> int:
        """Register of a node. Arguments come first, by an explicit stack: graphs may be deep."""
        stack = [index]
        while stack:
            top = stack[-1]
            missing = [
                a
                for a in self.graph.nodes[top].arguments
                if a not in self._done and top not in self._done
            ]
            # The distance itself is made on demand: even expressions never take the square root.
            if self.graph.nodes[top].kind == "product":
                missing = [a for a in missing if a != self.graph.r]
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if top not in self._done:
                self._done[top] = self._lower(self.graph.nodes[top])
        return self._done[index]

    def _lower(self, node: Node) -> int:
        if node.kind == "number":
            return self._emit("fill", 0, number=node.value)
        if node.kind == "variable":
            return self._power(self.graph.r, 1)
        if node.kind == "linear":
            return self._linear(node.value, list(zip(node.arguments, node.weights, strict=True)))
        if node.kind == "product":
            factors = [
                self._power(base, int(power))
                for base, power in zip(node.arguments, node.weights, strict=True)
            ]
            result = factors[0]
            for factor in factors[1:]:
                result = self._emit("multiply", result, factor)
            return result
        sources = [self._done[a] for a in node.arguments]
        return self._emit(node.kind, *sources, number=node.value)

    def _linear(self, value: float, terms: list[tuple[int, float]]) -> int:
        # A term of weight one starts the sum for free; every other costs one pass.
        terms = sorted(terms, key=lambda term: term[1] != 1)
        node, weight = terms[0]
        result = self._register(node)
        if weight == -1 and value:
            result, value = self._emit("subtract_from", result, number=value), 0.0
        elif weight != 1:
            result = self._emit("scale", result, number=weight)
        for node, weight in terms[1:]:
            result = self._emit("add_scaled", result, self._register(node), number=weight)
        return self._emit("offset", result, number=value) if value else result

    def _power(self, base: int, power: int) -> int:
        """Register of ``base ^ power``, from powers already there where possible."""
        if base not in self._powers:
            self._powers[base] = {1: self._register(base)}
        table = self._powers[base]
        for wanted in sorted(self._wanted.pop(base, ()), key=lambda k: (abs(k), k)):
            self._power(base, wanted)
        if power in table:
            return table[power]
        is_distance = base == self.graph.r
        if is_distance and power == 1:
            table[power] = self._emit("sqrt", table[2])
        elif power == -1:
            if is_distance and 1 not in table:
                table[power] = self._emit("rsqrt", table[2])
            else:
                table[power] = self._emit("reciprocal", table[1])
        elif is_distance and power == -2 and -1 not in table:
            table[power] = self._emit("reciprocal", table[2])
        else:
            first = next((k for k in table if power - k in table), None)
            if first is None:
                first = self._split(power, even=is_distance)
            left, right = self._power(base, first), self._power(base, power - first)
            table[power] = self._emit("multiply", left, right)
        return table[power]

    @staticmethod
    def _split(power: int, *, even: bool) -> int:
        """A part of ``power`` of the same sign; for the distance, even unless it has to be odd."""
        sign, size = (1 if power > 0 else -1), abs(power)
        if even and size > 2:
            return sign * (1 if size % 2 else 2 * (size // 4))
        return sign * (size // 2)


_Kernel = Callable[[list[Tensor]], object]


def _kernel(operator: str, target: int, sources: tuple[int, ...], number: float) -> _Kernel:
    """The torch call of a step, writing in place into slot ``target``."""
    t, a = target, sources[0]
    b = sources[1] if len(sources) > 1 else 0
    in_place: dict[str, _Kernel] = {
        "multiply": lambda s: torch.mul(s[a], s[b], out=s[t]),
        "add_scaled": lambda s: torch.add(s[a], s[b], alpha=number, out=s[t]),
        "offset": lambda s: torch.add(s[a], number, out=s[t]),
        "scale": lambda s: torch.mul(s[a], number, out=s[t]),
        "subtract_from": lambda s: s[t].copy_(torch.rsub(s[a], number)),
        "fill": lambda s: s[t].fill_(number),
        "power": lambda s: torch.pow(s[a], number, out=s[t]),
        "pow": lambda s: torch.pow(s[a], s[b], out=s[t]),
        "min": lambda s: torch.minimum(s[a], s[b], out=s[t]),
        "max": lambda s: torch.maximum(s[a], s[b], out=s[t]),
        "step": lambda s: s[t].copy_(s[a] >= 0),
        "delta": lambda s: s[t].copy_(s[a] == 0),
        "select": lambda s: s[t].copy_(torch.where(s[a] != 0, s[b], s[sources[2]])),
        "sec": lambda s: torch.reciprocal(torch.cos(s[a]), out=s[t]),
        "csc": lambda s: torch.reciprocal(torch.sin(s[a]), out=s[t]),
        "cot": lambda s: torch.reciprocal(torch.tan(s[a]), out=s[t]),
        "atan2": lambda s: torch.atan2(s[a], s[b], out=s[t]),
    }
    if operator in in_place:
        return in_place[operator]
    function = getattr(torch, operator)
    return lambda s: function(s[a], out=s[t])


@dataclass(frozen=True)
class Plan:
    """Tensor operations on ``slots`` tensors of one shape, of which slot 0 holds r^2 on entry.

    ``value`` tells where u(r) is afterwards, ``slope`` where u'(r)/r is; ``steps`` are the operations on
    slots, one per pass over the pairs.
    """

    slots: int
    value: Form
    slope: Form
    steps: tuple[Step, ...]
    _kernels: tuple[_Kernel, ...] = field(repr=False)

    @property
    def operators(self) -> tuple[str, ...]:
        """Names of the operations."""
        return tuple(step.operator for step in self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def run(self, slots: list[Tensor]) -> None:
        """Carry out the operations in place."""
        for kernel in self._kernels:
            kernel(slots)


_NOTHING = Form(None, 0.0, 0.0, 0.0)


def plan(graph: Graph, value: int, slope: int | None) -> Plan:
    """Lower u, and u'(r)/r unless ``slope`` is None, to tensor operations."""
    lowering = _Lowering(graph, [value] if slope is None else [value, slope])
    value_form = lowering.form(value, harmonic=True)
    slope_form = _NOTHING if slope is None else lowering.form(slope, harmonic=False)
    return _allocate(lowering.steps, value_form, slope_form)


def _allocate(steps: list[Step], value: Form, slope: Form) -> Plan:
    """Map registers to as few slots as their lifetimes allow, to stay in the processor's cache."""
    last_use: dict[int, int] = {}
    for position, step in enumerate(steps):
        for source in step.sources:
            last_use[source] = position
    for form in (value, slope):
        if form.slot is not None:
            last_use[form.slot] = len(steps)
    slot_of, free, count = {0: 0}, [], 1
    placed: list[Step] = []
    for position, step in enumerate(steps):
        sources = tuple(slot_of[s] for s in step.sources)
        dead = {s for s in step.sources if last_use[s] == position}
        # A step may overwrite a source that dies with it: elementwise operations allow that.
        free.extend(sorted({slot_of[s] for s in dead}))
        if free:
            target = free.pop()
        else:
            target, count = count, count + 1
        slot_of[step.target] = target
        placed.append(Step(step.operator, target, sources, step.number))

    def place(form: Form) -> Form:
        return form if form.slot is None else form._replace(slot=slot_of[form.slot])

    kernels = tuple(_kernel(*step) for step in placed)
    return Plan(count, place(value), place(slope), tuple(placed), kernels)


def slopes(graph: Graph, derivative: int) -> Iterable[int]:
    """Equivalent ways to write u'(r)/r, of which the cheapest to evaluate is chosen."""
    inverse = graph.integer_power(graph.r, -1)
    yield graph.multiply(derivative, inverse)
    constant, parts = graph.linear_parts(derivative)
    terms = [(graph.multiply(node, inverse), weight) for node, weight in parts]
    if constant:
        terms.append((inverse, constant))
    spread = graph.linear(0.0, terms)
    yield spread
    # r^-2 outside the sum: the powers inside are then those of u itself.
    constant, parts = graph.linear_parts(spread)
    square = graph.integer_power(graph.r, 2)
    inside = graph.linear(0.0, [(graph.multiply(node, square), w) for node, w in parts])
    outside = graph.multiply(inside, graph.integer_power(graph.r, -2))
    yield graph.linear(constant, [(outside, 1.0)])


def evaluate(plan: Plan, square: Tensor) -> tuple[Tensor, Tensor]:
    """u(r) and u'(r)/r at squared distances, by a plan that has both."""
    slots = [square.clone()] + [torch.empty_like(square) for _ in range(plan.slots - 1)]
    plan.run(slots)
    results = []
    for form in (plan.value, plan.slope):
        result = torch.full_like(square, form.constant)
        if form.quadratic:
            result = result + form.quadratic * square
        if form.slot is not None:
            result = result + form.scale * slots[form.slot]
        results.append(result)
    return results[0], results[1]
