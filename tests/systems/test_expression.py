"""The expression language: agreement with OpenMM, derivatives, and defence against bad input."""

from __future__ import annotations

import math
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from molsampler.errors import ExpressionError
from molsampler.systems.pair.expression import FUNCTIONS, MAX_LENGTH, Expression

RADII = (0.37, 0.9, 1.0, 1.3, 2.6)

# Every function and every rule of precedence; all are finite at RADII.
EXPRESSIONS = [
    "-r^2",
    "2^r^2",
    "(2^r)^2",
    "-2^r",
    "2^-r",
    "2^-r*3",
    "2^-r^2",
    "--r",
    "r--2",
    "2*-r^2",
    "-r^-2",
    "r/3/2",
    "r-3-2",
    "r/3*2",
    "1.e3*r + .5*r - 5.*r + 1E-3*r + 1e+3*r",
    "4*((1/r)^12-(1/r)^6)",
    "r^0.5 + r^-0.5 + r^1.5 + r^-3 + r^5 + r^100",
    "(-r)^3 + (-r)^2.0",
    "r^r",
    "0^0*r",
    "sqrt(r)*exp(-r)*log(r+1)",
    "sin(r)+cos(2*r)-sec(r/3)+csc(r/2)",
    "tan(r/3)*cot(r/2)",
    "asin(r/3)+acos(r/4)*atan(r)",
    "atan2(r,2)+atan2(1,r)+atan2(r^2,r-5)",
    "sinh(r)/cosh(r)+tanh(r)^3",
    "erf(r)*erfc(r/2)",
    "step(r-1)*r^2",
    "step(1-r)*r^2",
    "delta(r-1.3) + r",
    "floor(3*r)+ceil(r)*r",
    "square(r)+cube(r)+recip(r)",
    "abs(r-1)*r",
    "min(r,1)+max(r,1.3)+min(r^2,r)+max(2-r,r)",
    "select(step(r-1.1), r^2, sqrt(2-r*0.1))",
    "select(r-1, r, 2*r)",
    "a*r; a=2*b; b=r",
    "a*r; a=r*r; ",
    "b*r;b=a*2;a=3",
    "a_1*r; a_1=2",
    "(r-1.1)^2*(r-1.1)^-1 + (r-4)/(r-4)",
    "exp(-(r-1)^2/0.3) - 3*exp(-r^2)",
    "1/(1+exp(5*(r-1)))",
    "138.9*exp(-r/0.7)/r",
    "5*(1-exp(-2*(r-1.1)))^2",
]


def openmm_values(text: str, radii: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """Energy and slope of a CustomBondForce at several distances, on the Reference platform."""
    import openmm

    system = openmm.System()
    force = openmm.CustomBondForce(text)
    for k in range(len(radii)):
        system.addParticle(1.0)
        system.addParticle(1.0)
        force.addBond(2 * k, 2 * k + 1, [])
    system.addForce(force)
    energies, slopes = [], []
    context = openmm.Context(
        system,
        openmm.VerletIntegrator(0.001),
        openmm.Platform.getPlatformByName("Reference"),
    )
    # One distance at a time, so that energies are not mixed: all bonds are set alike.
    for r in radii:
        context.setPositions([(r * (k % 2), 0, 0) for k in range(2 * len(radii))])
        state = context.getState(energy=True, forces=True)
        energies.append(state.getPotentialEnergy()._value / len(radii))
        slopes.append(-state.getForces()[1].x)
    return energies, slopes


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_values_and_slopes_are_those_of_openmm(text: str) -> None:
    value, slope = Expression(text).bind({})(torch.tensor(RADII, dtype=torch.float64))
    energies, slopes = openmm_values(text, RADII)
    assert value.tolist() == pytest.approx(energies, rel=1e-11, abs=1e-11)
    assert slope.tolist() == pytest.approx(slopes, rel=1e-11, abs=1e-11)


def test_every_function_is_compared_with_openmm() -> None:
    text = " ".join(EXPRESSIONS)
    assert [name for name in FUNCTIONS if f"{name}(" not in text] == []


def test_the_comparison_with_openmm_sees_a_wrong_precedence() -> None:
    energies, _ = openmm_values("(-r)^2", RADII)
    value, _ = Expression("-r^2").bind({})(torch.tensor(RADII, dtype=torch.float64))
    assert value.tolist() != pytest.approx(energies)


# Smooth on [0.5, 2] and of moderate size, so that finite differences are accurate.
_leaves = st.one_of(
    st.just("r"),
    st.just("a"),
    st.floats(0.1, 3).map(lambda x: f"{x:.3f}"),
    st.integers(1, 4).map(str),
)
_smooth = st.recursive(
    _leaves,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*"), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"),
        inner.map(lambda x: f"(-{x})"),
        st.tuples(inner, st.integers(2, 3)).map(lambda t: f"sin({t[0]})^{t[1]}"),
        st.tuples(inner, st.integers(1, 7)).map(lambda t: f"(2+cos({t[0]}))^-{t[1]}"),
        inner.map(lambda x: f"exp(-abs(tanh({x})))"),
        inner.map(lambda x: f"sqrt(1+({x})^2)"),
        inner.map(lambda x: f"atan({x})/r"),
        st.tuples(inner, inner).map(lambda t: f"(1.5+sin({t[0]}))^cos({t[1]})"),
    ),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(_smooth)
def test_random_expressions_have_the_slope_of_finite_differences(text: str) -> None:
    function = Expression(f"{text} + 0*a").bind({"a": 0.7})
    r = torch.tensor([0.61, 1.07, 1.9], dtype=torch.float64)
    _, slope = function(r)

    def difference(h: float) -> torch.Tensor:
        return (function(r + h)[0] - function(r - h)[0]) / (2 * h)

    # Richardson's estimate and its own error estimate; kinks of abs show up in the latter.
    coarse, fine = difference(2e-4), difference(1e-4)
    estimate = (4 * fine - coarse) / 3
    scale = 1 + estimate.abs() + function(r)[0].abs()
    resolved = (coarse - fine).abs() < 1e-5 * scale
    assert torch.where(resolved, (slope - estimate).abs() / scale, 0).max() < 1e-7


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(alphabet="r0123456789.e+-*/^(),;= absincoxyq_", max_size=40))
def test_any_text_is_either_accepted_or_refused_properly(text: str) -> None:
    try:
        function = Expression(text).bind({})
    except ExpressionError:
        return
    function(torch.tensor([0.5, 1.0], dtype=torch.float64))


def test_even_expressions_take_no_square_root() -> None:
    roots = {"sqrt", "rsqrt"}
    even = Expression("4*((s/r)^12-(s/r)^6) + k*r^2 + exp(-r^2)").bind({"s": 1.2, "k": 0.5})
    assert not roots & {*even.full.operators, *even.value_only.operators}
    odd = Expression("1/r").bind({})
    assert roots & {*odd.full.operators}


def test_lennard_jones_shares_powers_between_value_and_slope() -> None:
    lj = Expression("4*eps*((s/r)^12-(s/r)^6) + 0.5*k*r^2").bind({"eps": 2, "s": 1.1, "k": 3})
    assert len(lj.full) <= 8
    assert len(lj.value_only) <= 5
    # The harmonic part is left to the caller, who can sum it without visiting pairs.
    assert lj.full.value.quadratic == 1.5
    assert lj.full.slope.constant == 3.0


def test_equal_subexpressions_are_evaluated_once() -> None:
    once = Expression("exp(sin(r))").bind({})
    thrice = Expression("exp(sin(r))*2 + exp(sin(r)) + a; a=exp(b); b=sin(r)").bind({})
    assert len(once.value_only) == len(thrice.value_only)


@pytest.mark.parametrize(
    ("text", "parameters", "fragment"),
    [
        ("", {}, "ends where"),
        ("2*", {}, "ends where"),
        ("(r", {}, "missing ')'"),
        ("r)", {}, "unexpected ')'"),
        ("()", {}, "unexpected ')'"),
        ("2 r", {}, "needs '*'"),
        ("2r", {}, "needs '*'"),
        ("+r", {}, "unexpected '+'"),
        ("r-+2", {}, "unexpected '+'"),
        ("r**2", {}, "'^'"),
        ("r#2", {}, "'#'"),
        ("1.2.3*r", {}, "needs '*'"),
        ("1e999*r", {}, "out of range"),
        ("sqr(r)", {}, "did you mean 'sqrt'"),
        ("pow(r,2)", {}, "unknown function 'pow'"),
        ("sin (r)", {}, "no space"),
        ("sin + r", {}, "parentheses"),
        ("min(r)", {}, "takes 2"),
        ("sin(r,r)", {}, "takes 1"),
        ("r=2", {}, "unexpected '='"),
        ("r; 2", {}, "must define a name"),
        ("r; r=2", {}, "cannot be redefined"),
        ("sin(r); sin=2", {}, "cannot be redefined"),
        ("a*r; a=1; a=2", {}, "defined twice"),
        ("a*r; a=b; b=a", {}, "before it"),
        ("a*r; a=a", {}, "before it"),
        ("sigm*r", {"sigma": 1.0}, "did you mean 'sigma'"),
        ("k*r", {}, "unknown name 'k'"),
        ("r", {"k": 1.0}, "do not appear"),
        ("k*r", {"k": math.nan}, "finite"),
        ("k*r", {"k": math.inf}, "finite"),
        ("k*r", {"k": "1e-3"}, "a text"),
        ("k*r", {"k": True}, "number"),
        ("r", {"r": 1.0}, "taken"),
        ("r", {"exp": 1.0}, "taken"),
        ("r", {"a b": 1.0}, "letters"),
        ("1/0*r", {}, "not a finite"),
        ("r/(2-2)", {}, "not a finite"),
        ("log(0)*r", {}, "not a finite"),
        ("sqrt(-1)*r", {}, "not a finite"),
        ("(-8)^0.3*r", {}, "not a finite"),
        ("exp(1000)*r", {}, "not a finite"),
    ],
)
def test_malformed_input_is_explained(
    text: str, parameters: dict[str, float], fragment: str
) -> None:
    with pytest.raises(ExpressionError) as caught:
        Expression(text).bind(parameters)
    assert fragment in str(caught.value)


def test_the_caret_points_at_the_fault() -> None:
    with pytest.raises(ExpressionError) as caught:
        Expression("2*r + sqr(r)")
    _, line, caret = str(caught.value).splitlines()
    assert line[caret.index("^") :].startswith("sqr(r)")
    long = "+".join(["r"] * 200) + "+sqr(r)+" + "+".join(["r"] * 200)
    with pytest.raises(ExpressionError) as caught:
        Expression(long)
    _, line, caret = str(caught.value).splitlines()
    assert line[caret.index("^") :].startswith("sqr(r)")
    assert len(line) < 100


HOSTILE = {
    "parentheses": "(" * 100_000 + "r" + ")" * 100_000,
    "deep": "(" * 900 + "r" + ")" * 900,
    "minus": "-" * 1500 + "r",
    "functions": "sin(" * 600 + "r" + ")" * 600,
    "tower": "9^9^9^9",
    "tower of r": "^".join(["r"] * 900),
    "float tower": "9.5^9.5^9.5^9.5*r",
    "length": "r" * (MAX_LENGTH + 1),
    "one name": "a" * MAX_LENGTH,
    "digits": "9" * MAX_LENGTH,
    "exponent digits": "r^" + "9" * 300,
    "exponent zeros": "1e-" + "9" * 5000 + "*r",
    "unicode": "r\u00b2+\u0661",
    "control": "r\x00\x1b[2J",
    "attribute": "r.__class__",
    "call": "__import__('os')",
    "symbols": "r+" * 1100 + "r",
    "nested squares": "a0; "
    + "; ".join(f"a{k}=a{k + 1}*a{k + 1}" for k in range(200))
    + "; a200=r",
    "nested sums": "a0; "
    + "; ".join(f"a{k}=sin(a{k + 1})+cos(a{k + 1})+a{k + 1}*r" for k in range(80))
    + "; a80=r",
    "growing sums": "a0; "
    + "; ".join(f"a{k}=a{k + 1}*(a{k + 1}+r^{k})+a{k + 1}" for k in range(100))
    + "; a100=r",
    "towers of definitions": "a0; "
    + "; ".join(f"a{k}=a{k + 1}^a{k + 1}" for k in range(200))
    + "; a200=r",
    "products": "*".join(f"(r-{k})" for k in range(300)),
    "sum of products": "+".join(f"(r-{k})^{k % 60 + 2}" for k in range(180)),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_input_ends_quickly(text: str) -> None:
    start = time.process_time()
    message = ""
    try:
        Expression(text).bind({})(torch.tensor([1.0], dtype=torch.float64))
    except ExpressionError as error:
        message = str(error)
    assert time.process_time() - start < 5.0
    assert len(message) < 500


@pytest.mark.parametrize("form", ["sin({0})*{0}", "cos({0})+{0}", "exp(-{0}*{0})*({0}+r)"])
def test_repeated_definitions_do_not_grow_exponentially(form: str) -> None:
    def size(depth: int) -> int:
        parts = [f"a{k}={form.format(f'a{k + 1}')}" for k in range(depth)]
        function = Expression("; ".join(["a0", *parts, f"a{depth}=r"])).bind({})
        return len(function.full.operators)

    assert size(60) < 5 * size(30)
