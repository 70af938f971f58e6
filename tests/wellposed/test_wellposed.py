"""Energies that can be sampled pass the probes; those without a norm are refused with the direction."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from functions import Function, square
from torch import Tensor

from molsampler.errors import IllPosedError
from molsampler.systems import PairPotential, get_system
from molsampler.target import System
from molsampler.wellposed import require_well_posed

TRAP = " + 0.5*r^2/n"
LJ = "4*((1/r)^12 - (1/r)^6)"


def pair(expression: str, n: int = 7, d: int = 3) -> PairPotential:
    return PairPotential("pair", expression, n=n, d=d)


def mueller_brown(x: Tensor) -> Tensor:
    terms = (
        (-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
        (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
        (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
        (15.0, 0.7, 0.6, 0.7, -1.0, 1.0),
    )
    u = x.new_zeros(len(x))
    for scale, a, b, c, x0, y0 in terms:
        dx, dy = x[:, 0, 0] - x0, x[:, 0, 1] - y0
        u = u + 0.1 * scale * torch.exp(a * dx**2 + b * dx * dy + c * dy**2)
    return u


def funnel(x: Tensor) -> Tensor:
    neck, rest = x[:, 0, 0], x[:, 0, 1:]
    return neck**2 / 18 + 0.5 * rest.square().sum(1) * torch.exp(-neck) + 4.5 * neck


def three_wells(x: Tensor) -> Tensor:
    centres = torch.tensor([[-30.0, 0.0], [40.0, 5.0], [0.0, 60.0]]).to(x)
    return -torch.logsumexp(-0.5 * (x - centres).square().sum(-1), dim=1)


def bonds(x: Tensor) -> Tensor:
    """Lengths of the bonds of a chain, ``(b, n - 1)``."""
    return (x[:, 1:] - x[:, :-1]).norm(dim=-1)


def distances(x: Tensor) -> Tensor:
    """Distances of all pairs, ``(b, n (n - 1) / 2)``."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1], 1)
    return (x[:, i] - x[:, j]).norm(dim=-1)


def repulsion(x: Tensor) -> Tensor:
    """Weeks-Chandler-Andersen: zero beyond the minimum of Lennard-Jones."""
    r = distances(x)
    return torch.where(r < 2 ** (1 / 6), 4 * (r**-12 - r**-6) + 1, 0 * r).sum(1)


def finitely_extensible(x: Tensor) -> Tensor:
    """A FENE chain, +inf where a bond is longer than 1.5."""
    r = bonds(x)
    inside = torch.where(r < 1.5, r, 0 * r)
    stretched = -33.75 * torch.log1p(-((inside / 1.5) ** 2))
    return torch.where(r < 1.5, stretched, torch.inf).sum(1) + repulsion(x)


def ions(x: Tensor) -> Tensor:
    i, j = torch.triu_indices(x.shape[1], x.shape[1], 1)
    sign = 1.0 - 2.0 * ((i + j) % 2)
    r = distances(x)
    return (20 * sign * (1 / r) + r**-9).sum(1) + 0.05 * square(x)


def field(x: Tensor) -> Tensor:
    """phi^4 on a ring."""
    y = x.flatten(1)
    return (0.5 * (y - y.roll(1, 1)) ** 2 + (y**2 - 1) ** 2).sum(1)


SOUND: dict[str, Callable[[], System]] = {
    **{
        name: lambda name=name: get_system(name)
        for name in ("dw4", "lj13", "lj55", "mog40", "mw32", "lj2", "dw8")
    },
    "README's Morse": lambda: pair(f"3*((1-exp(-4*(r-1)))^2-1){TRAP}", n=8),
    "Lennard-Jones in the plane": lambda: pair(LJ + TRAP, d=2),
    "deep Lennard-Jones": lambda: pair(f"100*{LJ}{TRAP}"),
    "soft core": lambda: pair(f"4*(1/(0.5+r^6)^2 - 1/(0.5+r^6)){TRAP}"),
    "Gaussian attraction": lambda: pair(f"-5*exp(-r^2){TRAP}"),
    "capped charges": lambda: pair(f"-5/sqrt(r^2+0.01){TRAP}"),
    "integrable logarithm in contact": lambda: pair(f"2*log(r){TRAP}", n=2),
    "integrable logarithm far away": lambda: pair("4*log(1+r)", n=2),
    "linear": lambda: pair("r"),
    "weak linear": lambda: pair("0.001*r + 1/r"),
    "one dimension": lambda: pair(f"1/r{TRAP}", d=1),
    "double well in the plane": lambda: Function(
        lambda x: 5 * (x[:, 0, 0] ** 2 - 1) ** 2 + x[:, 0, 1] ** 2 / 2
    ),
    "level line through the minimum": lambda: Function(
        lambda x: x[:, 0, 0] ** 2 * (1 + x[:, 0, 1] ** 4)
    ),
    "modulus": lambda: Function(lambda x: 1e-3 * x.abs().sum((1, 2)), d=5),
    "Rosenbrock": lambda: Function(
        lambda x: (1 - x[:, 0, 0]) ** 2 / 20 + 5 * (x[:, 0, 1] - x[:, 0, 0] ** 2) ** 2
    ),
    "funnel": lambda: Function(funnel, d=10),
    "mixture far apart": lambda: Function(three_wells),
    "Cauchy": lambda: Function(lambda x: torch.log1p(x.square()).sum((1, 2))),
    "Student's t": lambda: Function(lambda x: 2.5 * torch.log1p(square(x)), d=3),
    "Mueller-Brown": lambda: Function(mueller_brown),
    "Mueller-Brown in float32": lambda: Function(lambda x: mueller_brown(x.float()).to(x)),
    "small": lambda: Function(lambda x: square(x / 1e-3)),
    "large": lambda: Function(lambda x: square(x / 1e3)),
    "off centre": lambda: Function(lambda x: square(x - 200)),
    "walls": lambda: Function(
        lambda x: square(x) + torch.where(x.abs().amax((1, 2)) > 3, torch.inf, 0.0)
    ),
    "ring": lambda: Function(lambda x: (x.flatten(1).norm(dim=1) - 3) ** 2 / 0.1),
    "ill-conditioned": lambda: Function(
        lambda x: (x.flatten(1) ** 2 * torch.logspace(-3, 3, 100).to(x)).sum(1), d=100
    ),
    "exponential on one side": lambda: Function(lambda x: (x.exp() - 0.01 * x).sum((1, 2)), d=3),
    "repulsion in a trap": lambda: Function(
        lambda x: repulsion(x) + square(x) / 2, 6, 3, mean_free=True
    ),
    "flat bottom": lambda: Function(
        lambda x: repulsion(x) + 10 * torch.relu(x.norm(dim=-1) - 30).square().sum(1), 6, 3
    ),
    "harmonic chain": lambda: Function(
        lambda x: 50 * (bonds(x) - 1).square().sum(1), 10, 3, mean_free=True
    ),
    "extensible chain": lambda: Function(finitely_extensible, 6, 3, mean_free=True),
    "two kinds of ions": lambda: Function(ions, 8, 3),
    "lattice field": lambda: Function(field, 64, 1),
    "box": lambda: Function(
        lambda x: torch.where(x.abs().amax((1, 2)) > 1, torch.inf, 0.0) + 0 * square(x)
    ),
    "particles in a field": lambda: Function(
        lambda x: square(x) + x[:, :1].pow(4).sum((1, 2)), 4, 3
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_what_has_a_norm_passes(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        require_well_posed(SOUND[name]())
    assert caplog.records == []


ILL: dict[str, tuple[Callable[[], System], str]] = {
    "Buckingham": (
        lambda: pair(f"1000*exp(-4*r) - 10/r^6{TRAP}"),
        r"falls to -\S+ kT and further as particles 0 and 1 meet \(r = .*no norm\. Add a core",
    ),
    "Buckingham behind a barrier": (
        lambda: pair(f"1e6*exp(-6*r) - 10/r^6{TRAP}"),
        "particles 0 and 1 meet.*no norm",
    ),
    "dispersion alone": (lambda: pair(f"-1/r^6{TRAP}"), "particles 0 and 1 meet.*no norm"),
    "weak dispersion": (lambda: pair(f"-0.000001/r^6{TRAP}"), "particles 0 and 1 meet"),
    "attracting charges": (lambda: pair(f"-0.001/r{TRAP}"), "particles 0 and 1 meet"),
    "logarithm in contact": (lambda: pair(f"4*log(r){TRAP}", n=2), "particles 0 and 1 meet"),
    "three bodies": (
        lambda: Function(
            lambda x: (
                0.5 * square(x)
                - 1 / (x[:, :3] - x[:, :3].mean(1, keepdim=True)).square().sum((1, 2))
            ),
            5,
            3,
        ),
        "all particles meet.*no norm",
    ),
    "no trap": (lambda: pair(LJ), r"not grow as particle 0 leaves.*not bound.*0\.5\*k\*r\^2/n"),
    "no trap in the plane": (lambda: pair(LJ, d=2), "not grow as particle 0 leaves the others"),
    "deep, no trap": (lambda: pair(f"100*{LJ}"), "not grow as particle 0 leaves the others"),
    "repulsion": (lambda: pair("1/r^12"), "not grow as particle 0 leaves the others"),
    "slow logarithm": (lambda: pair("2*log(1+r)", n=2), "not grow as particle 0 leaves the others"),
    "inverted trap": (lambda: pair("1/r^12 - 0.5*r^2"), "falls without bound as particle 0 leaves"),
    "flat": (lambda: pair("0*r"), "not grow as particle 0 leaves"),
    "level axis": (lambda: Function(lambda x: x[:, 0, 0] ** 2), "goes away along axis 1.*not held"),
    "level diagonal": (
        lambda: Function(lambda x: x.sum((1, 2)) ** 2),
        r"moves along [+-]0\.71 x\[\d\], [+-]0\.71 x\[\d\]",
    ),
    "periodic": (lambda: Function(lambda x: x.cos().sum((1, 2))), "not grow as x goes away"),
    "shallow well": (lambda: Function(lambda x: -5 * torch.exp(-square(x))), "not grow as x goes"),
    "cubic": (
        lambda: Function(lambda x: x[:, 0, 0] ** 3 + x[:, 0, 1] ** 2),
        "falls without bound as x goes away",
    ),
    "a free particle in a field": (
        lambda: Function(lambda x: square(x[:, 1:]), 3, 3),
        "not grow as particle 0 leaves",
    ),
    "no field": (
        lambda: Function(lambda x: square(x - x.mean(1, keepdim=True)), 3, 3),
        "not grow as the configuration moves away",
    ),
    "NaN everywhere": (lambda: Function(lambda x: square(x) * torch.nan), "is NaN at all"),
    "NaN in contact": (
        lambda: pair(f"sqrt(r - 0.5){TRAP}"),
        "becomes NaN as particles 0 and 1 meet",
    ),
    "NaN outside a domain": (
        lambda: Function(lambda x: -(x.log() + (1 - x).log()).sum((1, 2))),
        "becomes nan as x goes away.*should rise, or be",
    ),
    "a broken chain": (
        lambda: Function(
            lambda x: 50 * (bonds(x)[:, [0, 1, 3, 4]] - 1).square().sum(1), 6, 3, mean_free=True
        ),
        "not grow as x moves along.*no norm",
    ),
    "detached": (lambda: Function(lambda x: square(x).detach()), "cannot be differentiated"),
    "partly detached": (
        lambda: Function(lambda x: square(x).detach() + 0.1 * square(x)),
        "not minus the gradient",
    ),
    "rounded": (
        lambda: Function(lambda x: square(x).round() + 0 * square(x)),
        "not minus the gradient",
    ),
    "force of the wrong sign": (lambda: Function(square, sign=-1.0), "not minus the gradient"),
    "force of another unit": (lambda: Function(square, sign=10.0), "not minus the gradient"),
    "an exception of its own": (
        lambda: Function(lambda x: square(x @ torch.eye(3))),
        r"cannot be evaluated at positions \(2, 1, 2\): RuntimeError",
    ),
}


@pytest.mark.parametrize("name", ILL)
def test_what_has_no_norm_is_refused(name: str) -> None:
    make, said = ILL[name]
    with pytest.raises(IllPosedError, match=said):
        require_well_posed(make())


def test_probes_cost_little_and_touch_no_random_stream() -> None:
    system, asked = get_system("lj13"), []
    evaluate = system._energy_and_score

    def counted(x: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(len(x))
        return evaluate(x)

    system._energy_and_score = counted  # type: ignore[method-assign]
    before = torch.random.get_rng_state()
    require_well_posed(system)
    assert torch.equal(torch.random.get_rng_state(), before)
    first = list(asked)
    assert sum(first) < 3000
    asked.clear()
    require_well_posed(system)
    assert asked == first


def test_a_bound_state_that_nothing_leaves_is_reported_not_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Known(Function):
        def starts(self, count: int, *, generator: torch.Generator | None) -> Tensor:
            return torch.zeros(count, 1, 2, dtype=torch.float64)

    require_well_posed(Known(lambda x: -60 * torch.exp(-square(x))))
    assert "has no norm, strictly" in caplog.text
    with pytest.raises(IllPosedError, match="not grow"):
        require_well_posed(Known(lambda x: -20 * torch.exp(-square(x))))


def test_a_given_start_must_be_usable() -> None:
    class Known(Function):
        def starts(self, count: int, *, generator: torch.Generator | None) -> Tensor:
            x = torch.tensor([[0.0, 0, 0], [0, 0, 1e-3]], dtype=torch.float64)
            return self.space.project(x.repeat(count, 1, 1))

    def lennard_jones(x: Tensor) -> Tensor:
        r = (x[:, 0] - x[:, 1]).norm(dim=-1)
        return 4 * (r**-12 - r**-6) + r**2

    with pytest.raises(
        IllPosedError, match=r"given start.*0 and 1, are 0\.001 apart.*particles overlap"
    ):
        require_well_posed(Known(lennard_jones, 2, 3, mean_free=True))
    with pytest.raises(IllPosedError, match="is NaN at the given start"):
        require_well_posed(
            Known(lambda x: (x[:, 0] - x[:, 1]).norm(dim=-1).sub(0.5).sqrt(), 2, 3, mean_free=True)
        )
