r"""Algebraic expressions in one distance, with OpenMM's syntax, compiled to torch.

The grammar is that of OpenMM's custom forces (the Lepton library), so one text defines a system
here and its OpenMM twin::

    expression  = sum { ";" name "=" sum } [ ";" ]
    sum         = product { ("+" | "-") product }
    product     = factor { ("*" | "/") factor }
    factor      = "-" factor | power
    power       = atom [ "^" factor ]
    atom        = number | name | function "(" sum { "," sum } ")" | "(" sum ")"

so ``-r^2`` is ``-(r^2)`` and ``2^r^2`` is ``2^(r^2)``. A definition after a semicolon may be used
in everything before it. There is no unary plus, as in Lepton.

A text goes through three forms. The parser turns it into a list of operations with symbolic
parameters (:class:`Expression`). Binding the parameters rewrites that as a graph of linear
combinations, products of integer powers, and functions, in which equal sub-expressions are one
node and constants are folded; its derivative is built in the same graph. Lowering then chooses a
short sequence of tensor operations that yields value and derivative together
(:class:`RadialFunction`).

Texts may come from strangers: nothing is passed to Python's own evaluator, and length, depth and
the size of every intermediate form are bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from molsampler.errors import ExpressionError, nearest

from .expression_graph import LARGEST, MAX_TERMS, VARIABLE, Graph, Operation, TooLargeError
from .expression_plan import Plan, evaluate, plan, slopes

MAX_LENGTH = 10_000
MAX_TOKENS = 2_000
MAX_DEPTH = 100

#: Functions of Lepton and their numbers of arguments.
FUNCTIONS: dict[str, int] = {
    **dict.fromkeys(
        [
            *("sqrt", "exp", "log", "sin", "cos", "sec", "csc", "tan", "cot", "asin", "acos"),
            *("atan", "sinh", "cosh", "tanh", "erf", "erfc", "step", "delta", "square", "cube"),
            *("recip", "abs", "floor", "ceil"),
        ],
        1,
    ),
    **dict.fromkeys(["atan2", "min", "max"], 2),
    "select": 3,
}

_TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<operator>[-+*/^(),;=])"
)

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


def _fail(source: str, position: int, message: str) -> NoReturn:
    """Raise an error that shows the neighbourhood of ``position`` with a caret under it."""
    start, stop = max(0, position - 40), min(len(source), position + 30)
    line = "".join(c if c.isprintable() else " " for c in source[start:stop])
    lead = "..." if start else ""
    tail = "..." if stop < len(source) else ""
    caret = " " * (len(lead) + position - start) + "^"
    raise ExpressionError(f"{message} at position {position}\n  {lead}{line}{tail}\n  {caret}")


def _tokenize(source: str) -> list[_Token]:
    tokens: list[_Token] = []
    position = 0
    while position < len(source):
        match = _TOKEN.match(source, position)
        if match is None:
            _fail(source, position, f"unexpected character {source[position]!r}")
        kind = match.lastgroup or ""
        if kind != "space":
            tokens.append(_Token(kind, match.group(), position))
            if len(tokens) > MAX_TOKENS:
                _fail(source, position, f"expression has more than {MAX_TOKENS} symbols")
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent over one semicolon-separated part, appending to a shared operation list."""

    def __init__(self, source: str, operations: list[Operation]) -> None:
        self.source = source
        self.operations = operations
        self.definitions: dict[str, int] = {}
        self.pending: set[str] = set()
        self.tokens: list[_Token] = []
        self.at = 0
        self.depth = 0
        self.end = 0

    def parse(self, tokens: list[_Token], end: int) -> int:
        self.tokens, self.at, self.depth, self.end = tokens, 0, 0, end
        result = self._sum()
        if self.at < len(tokens):
            token = tokens[self.at]
            hint = "; multiplication needs '*'" if token.kind in ("name", "number") else ""
            self._error(f"unexpected {token.text[:40]!r}{hint}")
        return result

    def _error(self, message: str) -> NoReturn:
        at = self.tokens[self.at].position if self.at < len(self.tokens) else self.end
        _fail(self.source, at, message)

    def _emit(
        self, kind: str, *arguments: int, name: str = "", value: float = 0.0, position: int
    ) -> int:
        self.operations.append(Operation(kind, arguments, name, value, position))
        return len(self.operations) - 1

    def _take(self, operators: str) -> _Token | None:
        if self.at < len(self.tokens):
            token = self.tokens[self.at]
            if token.kind == "operator" and token.text in operators:
                self.at += 1
                return token
        return None

    def _sum(self) -> int:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._error(f"expression is nested deeper than {MAX_DEPTH} levels")
        result = self._product()
        while token := self._take("+-"):
            result = self._emit(token.text, result, self._product(), position=token.position)
        self.depth -= 1
        return result

    def _product(self) -> int:
        result = self._factor()
        while token := self._take("*/"):
            if token.text == "*" and self._take("*"):
                self.at -= 1
                self._error("unexpected '*'; powers are written with '^'")
            result = self._emit(token.text, result, self._factor(), position=token.position)
        return result

    def _factor(self) -> int:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._error(f"expression is nested deeper than {MAX_DEPTH} levels")
        if token := self._take("-"):
            result = self._emit("neg", self._factor(), position=token.position)
        else:
            result = self._atom()
            if token := self._take("^"):
                result = self._emit("^", result, self._factor(), position=token.position)
        self.depth -= 1
        return result

    def _atom(self) -> int:
        if self.at >= len(self.tokens):
            self._error("expression ends where a number, a name or '(' is expected")
        token = self.tokens[self.at]
        if token.kind == "number":
            self.at += 1
            value = float(token.text)
            if not math.isfinite(value):
                _fail(self.source, token.position, f"number {token.text[:40]} is out of range")
            return self._emit("number", value=value, position=token.position)
        if token.kind == "name":
            self.at += 1
            # Lepton takes a name for a function only if the parenthesis touches it; so do we.
            if self._take("("):
                return self._call(token)
            return self._name(token)
        if self._take("("):
            result = self._sum()
            self._close()
            return result
        return self._error(
            f"unexpected {token.text[:40]!r} where a number, a name or '(' is expected"
        )

    def _name(self, token: _Token) -> int:
        name = token.text
        if name in self.definitions:
            return self.definitions[name]
        if name in self.pending:
            _fail(
                self.source,
                token.position,
                f"{name[:40]!r} is used in or after its own definition; "
                "a definition serves only what stands before it",
            )
        if name in FUNCTIONS:
            _fail(self.source, token.position, f"function {name!r} needs arguments in parentheses")
        return self._emit("name", name=name, position=token.position)

    def _call(self, token: _Token) -> int:
        name = token.text
        if name not in FUNCTIONS:
            near = nearest(name[:40], tuple(FUNCTIONS))
            _fail(self.source, token.position, f"unknown function {name[:40]!r}{near}")
        if token.position + len(name) != self.tokens[self.at - 1].position:
            _fail(self.source, token.position, f"no space is allowed between {name!r} and '('")
        arguments = [self._sum()]
        while self._take(","):
            arguments.append(self._sum())
        self._close()
        if len(arguments) != FUNCTIONS[name]:
            _fail(
                self.source,
                token.position,
                f"{name} takes {FUNCTIONS[name]} argument(s), got {len(arguments)}",
            )
        return self._emit("call", *arguments, name=name, position=token.position)

    def _close(self) -> None:
        if not self._take(")"):
            self._error("missing ')'")


class Expression:
    """A parsed expression in the distance ``r`` with named parameters.

    Parameters
    ----------
    source : the text, in the syntax of OpenMM's custom forces

    Attributes
    ----------
    source : the text
    names : the parameters it uses, in order of appearance
    operations, root : the steps of the parsed form, and which of them is the result

    Raises
    ------
    ExpressionError
        The text is malformed, too long or too deeply nested; the message shows where.
    """

    def __init__(self, source: str) -> None:
        if not isinstance(source, str):
            raise ExpressionError(f"expression must be text, got {type(source).__name__}")
        if len(source) > MAX_LENGTH:
            raise ExpressionError(
                f"expression has {len(source)} characters; at most {MAX_LENGTH} are accepted"
            )
        self.source = source
        self._tokens = _tokenize(source)
        self.operations: list[Operation] = []
        parts = self._split()
        parser = _Parser(source, self.operations)
        for _, name, _ in parts[1:]:
            if name is not None:
                self._check_definition(name, parser.pending)
                parser.pending.add(name.text)
        for tokens, name, end in reversed(parts):
            result = parser.parse(tokens, end)
            if name is not None:
                parser.definitions[name.text] = result
        self.root = result
        found = sorted(
            (op.position, op.name)
            for op in self.operations
            if op.kind == "name" and op.name != VARIABLE
        )
        self.names = tuple(dict.fromkeys(name for _, name in found))

    def _split(self) -> list[tuple[list[_Token], _Token | None, int]]:
        """Parts between semicolons: tokens, defined name (None for the first), end position."""
        parts: list[tuple[list[_Token], _Token | None, int]] = []
        current: list[_Token] = []
        end_token = _Token("operator", ";", len(self.source))
        for token in [*self._tokens, end_token]:
            if token.text != ";":
                current.append(token)
                continue
            if not parts:
                parts.append((current, None, token.position))
            elif current:
                if len(current) < 2 or current[0].kind != "name" or current[1].text != "=":
                    _fail(
                        self.source,
                        current[0].position,
                        "a part after ';' must define a name, as in '; x = r - 1'; unexpected text",
                    )
                parts.append((current[2:], current[0], token.position))
            elif token is not end_token:
                _fail(self.source, token.position, "empty definition")
            current = []
        return parts

    def _check_definition(self, name: _Token, defined: set[str]) -> None:
        if name.text == VARIABLE or name.text in FUNCTIONS:
            _fail(self.source, name.position, f"{name.text!r} cannot be redefined")
        if name.text in defined:
            _fail(self.source, name.position, f"{name.text[:40]!r} is defined twice")

    def __repr__(self) -> str:
        return f"Expression({self.source!r})"

    def bind(
        self, parameters: Mapping[str, float], *, provided: Mapping[str, float] | None = None
    ) -> RadialFunction:
        """The function of ``r`` that results from giving every parameter its value.

        ``provided`` holds values that the expression may use but need not.

        Raises
        ------
        ExpressionError
            A parameter is missing, unused, not a finite number or not a usable name, or a constant
            part of the expression has no finite value.
        """
        values = self._check_parameters(parameters, provided or {})
        graph = Graph()
        nodes: list[int] = []
        for operation in self.operations:
            arguments = [nodes[i] for i in operation.arguments]
            try:
                nodes.append(graph.apply(operation, arguments, values))
            except (ArithmeticError, ValueError) as error:
                if isinstance(error, ExpressionError):
                    raise
                what = operation.name or operation.kind
                _fail(
                    self.source,
                    operation.position,
                    f"the constant result of {what!r} is not a finite float32 number",
                )
            except TooLargeError:
                raise ExpressionError(
                    f"expression grows beyond {MAX_TERMS} terms; write it more briefly"
                ) from None
        try:
            return RadialFunction._compile(self, values, graph, nodes[self.root])
        except TooLargeError:
            raise ExpressionError(
                f"the derivative grows beyond {MAX_TERMS} terms; write the expression more briefly"
            ) from None
        except (ArithmeticError, ValueError) as error:
            raise ExpressionError(
                f"the derivative of {self.source[:80]!r} has a constant {error}"
            ) from None

    def _check_parameters(
        self, parameters: Mapping[str, Any], provided: Mapping[str, float]
    ) -> dict[str, float]:
        for name, value in parameters.items():
            if not isinstance(name, str) or not IDENTIFIER.fullmatch(name):
                raise ExpressionError(
                    f"parameter name {str(name)[:40]!r} must consist of letters, digits and '_'"
                )
            if name == VARIABLE or name in FUNCTIONS or name in provided:
                raise ExpressionError(f"parameter name {name!r} is taken; choose another")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ExpressionError(
                    f"parameter {name!r} must be a number, got {str(value)[:40]!r}{_hint(name, value)}"
                )
            if not abs(value) <= LARGEST:
                raise ExpressionError(f"parameter {name!r} must be finite, got {str(value)[:40]}")
        known = (*parameters, *provided)
        for operation in sorted(self.operations, key=lambda op: op.position):
            name = operation.name
            if operation.kind == "name" and name != VARIABLE and name not in known:
                near = nearest(name[:40], [*known, VARIABLE, *FUNCTIONS])
                if not near and name[-1] in "12" and len(name) > 1:
                    near = (
                        f"; if it belongs to one particle of the pair, give particle_parameters: "
                        f"{{{name[:-1][:40]}: [a number for each particle]}}"
                    )
                listed = ", ".join(repr(p) for p in parameters) or "none"
                _fail(
                    self.source,
                    operation.position,
                    f"unknown name {name[:40]!r}{near} (parameters given: {listed})",
                )
        unused = [name for name in parameters if name not in self.names]
        if unused:
            raise ExpressionError(
                f"parameter(s) {', '.join(map(repr, unused))} do not appear in {self.source[:80]!r}"
                f"{nearest(unused[0], self.names)}"
            )
        used = {**provided, **parameters}
        return {name: float(used[name]) for name in self.names}

    def openmm_text(
        self,
        values: Mapping[str, float],
        *,
        length: float,
        energy: float,
        lengths: Sequence[str] = (VARIABLE,),
    ) -> str:
        """The expression for an OpenMM custom force, with parameters replaced by their values.

        ``r``, or each of ``lengths``, becomes ``r / length`` and the result is multiplied by ``energy``. No
        names remain but those, parameters without a value here, and the expression's own definitions, so
        nothing can collide in an OpenMM context.
        """
        parts: list[str] = []
        for tokens, name, _ in self._split():
            words: list[str] = []
            for k, token in enumerate(tokens):
                called = k + 1 < len(tokens) and tokens[k + 1].text == "("
                if token.text in lengths:
                    words.append(f"({token.text}/{length!r})")
                elif token.kind == "name" and token.text in values and not called:
                    words.append(f"({values[token.text]!r})")
                else:
                    words.append(token.text)
            text = "".join(words)
            parts.append(f"{energy!r}*({text})" if name is None else f"{name.text}={text}")
        return "; ".join(parts)


def _hint(name: str, value: Any) -> str:
    """What somebody meant who gave another value than a number."""
    if isinstance(value, str):
        return ", a text"
    if isinstance(value, list | tuple | Mapping):
        stem = name[:-1] if name[-1] in "12" and len(name) > 1 else name
        return (
            f". Values of each particle are particle_parameters: {{{stem}: [...]}}, which the expression "
            f"reads as {stem}1 and {stem}2; values of pairs of species are pair_parameters"
        )
    return ""


@dataclass(frozen=True)
class RadialFunction:
    r"""A function u(r) of the distance with its slope, ready to be evaluated in torch.

    Attributes
    ----------
    expression : the parsed text
    values : the values of its parameters
    full : plan for u and u'(r)/r; an expression even in r takes no square root
    value_only : plan for u alone
    cusp_at_zero : whether u(0) is finite while u'(r)/r is not
    """

    expression: Expression
    values: Mapping[str, float]
    full: Plan
    value_only: Plan
    cusp_at_zero: bool

    @classmethod
    def _compile(
        cls, expression: Expression, values: Mapping[str, float], graph: Graph, root: int
    ) -> RadialFunction:
        derivative = graph.derivative(root)
        candidates = [plan(graph, root, slope) for slope in slopes(graph, derivative)]
        full = min(candidates, key=len)
        zero = torch.zeros(1, dtype=torch.float64)
        value, slope = (bool(part.isfinite().item()) for part in evaluate(full, zero))
        return cls(expression, dict(values), full, plan(graph, root, None), value and not slope)

    def __call__(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """u(r) and u'(r), both of the shape of ``r``; distances are not negative."""
        with torch.no_grad():
            value, slope = evaluate(self.full, r.square())
            return value, slope * r

    def openmm_text(self, *, length: float, energy: float) -> str:
        """``energy * u(r / length)`` for an OpenMM custom force."""
        return self.expression.openmm_text(self.values, length=length, energy=energy)
