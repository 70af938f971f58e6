"""The spline flow: its density is one, whatever its weights and symmetries."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from molsampler.errors import InputError
from molsampler.estimate import effective_count, log_mean
from molsampler.mcmc.population import Gaussian
from molsampler.nn.generators.spline import Spline, SplineConfig
from molsampler.nn.independent_components import unmixing
from molsampler.space import Euclidean, MeanFree, Space

PLANE = MeanFree(4, 2)
WHOLE = {"rotations": True, "permutations": True, "mirror": True}
CASES = pytest.mark.parametrize(
    ("space", "settings"),
    [
        (Euclidean(1, 2), {}),
        (Euclidean(3, 1, (1,)), {}),
        (Euclidean(2, 1, (0, 1)), {}),
        (Euclidean(1, 1), {"bumps": 8}),
        (MeanFree(3, 3), {"permutations": True}),
        (PLANE, {"axes": "independent"}),
        (PLANE, {"rotations": True}),
        (PLANE, WHOLE),
    ],
    ids=["plain", "torsion", "torus", "line", "labels", "axes", "turned", "whole"],
)


def made(space: Space, settings: dict[str, Any], *, shaken: float = 0.1) -> Spline:
    """A flow in float64 with random weights, started from a Gaussian of width 1.3."""
    random = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        flow = SplineConfig(layers=4, width=16, bins=6, marginal_bins=8, **settings).build(space)
    flow = flow.double()
    flow.start_from(
        1.3 * space.randn(2000, generator=random, like=torch.empty(0, dtype=torch.float64))
    )
    for parameter in flow.parameters():
        with torch.no_grad():
            parameter += shaken * torch.randn(
                parameter.shape, generator=random, dtype=torch.float64
            )
    return flow.requires_grad_(False)


@CASES
def test_the_density_of_a_draw_is_the_density_there(space, settings) -> None:
    flow = made(space, settings)
    x, log_prob = flow.sample(500, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=0, atol=1e-8)
    single = flow.float()
    x, log_prob = single.sample(500, generator=torch.Generator().manual_seed(0))
    assert x.dtype == torch.float32
    assert float((single.log_prob(x) - log_prob).abs().median()) < 2e-5


@CASES
def test_the_density_integrates_to_one(space, settings) -> None:
    """By importance sampling from another density: the mean of q over a wide Gaussian's is one."""
    flow, wide, n = made(space, settings, shaken=0.03), Gaussian(space, 1.7), 20_000
    # Many images make a draw dear.
    n //= max(1, len(flow.images) // 4)
    like = torch.empty(0, dtype=torch.float64)
    x = wide.sample(n, generator=torch.Generator().manual_seed(1), like=like)
    normaliser = 0.5 * space.dof * math.log(2 * math.pi * 1.7**2)
    weights = flow.log_prob(x) + wide.energy_and_score(x)[0] + normaliser
    total = log_mean(weights)
    assert effective_count(weights) > 100
    assert abs(total.value) < 5 * total.se < 0.25
    # And the other way: weights of its draws have the mean Z of a narrow Gaussian.
    narrow = Gaussian(space, 0.9)
    draw = flow.draw(n, narrow, generator=torch.Generator().manual_seed(2))
    assert draw.log_weight is not None
    z = log_mean(draw.log_weight)
    truth = 0.5 * space.dof * math.log(2 * math.pi * 0.9**2)
    assert abs(z.value - truth) < 5 * z.se < 0.25


@CASES
def test_annealed_draws_carry_exact_weights_that_vary_less(space, settings) -> None:
    flow, n = made(space, settings, shaken=0.06), 3000
    n //= max(1, len(flow.images) // 8)
    narrow = Gaussian(space, 0.9)
    truth = 0.5 * space.dof * math.log(2 * math.pi * 0.9**2)
    plain, even = (
        each.draw(n, narrow, generator=torch.Generator().manual_seed(4))
        for each in (flow, flow.annealed(8))
    )
    assert even.evaluations == 8 * n
    assert plain.log_weight is not None
    assert even.log_weight is not None
    assert effective_count(even.log_weight) > 1.04 * effective_count(plain.log_weight)
    z = log_mean(even.log_weight)
    assert abs(z.value - truth) < 5 * z.se < 0.35

    def energy(log_weight: Tensor) -> tuple[float, float]:
        w, u = torch.softmax(log_weight, 0), narrow.energy_and_score(even.x)[0]
        mean = float(w @ u)
        return mean, float((w.square() @ (u - mean).square()).sqrt())

    mean, error = energy(even.log_weight)
    assert abs(mean - 0.5 * space.dof) < 5 * error
    # Negative control: they are no draws of the flow, and its own weights are wrong for them.
    own = -narrow.energy_and_score(even.x)[0] - flow.log_prob(even.x)
    wrong = log_mean(own)
    assert abs(wrong.value - truth) > 5 * wrong.se


def test_labels_stay_while_a_draw_is_annealed() -> None:
    """On a target that tells particles apart, which the average over labels does not know."""
    space = Euclidean(2, 1)
    flow = made(space, {"permutations": True})

    class Apart:
        def __init__(self) -> None:
            self.space = space

        def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
            away = x - torch.tensor([[-1.0], [1.0]], dtype=x.dtype)
            return 2.0 * away.square().sum((1, 2)), -4.0 * away

    draw = flow.annealed(6).draw(6000, Apart(), generator=torch.Generator().manual_seed(0))
    assert draw.log_weight is not None
    z = log_mean(draw.log_weight)
    assert abs(z.value - math.log(math.pi / 2)) < 5 * z.se < 0.2


def test_quadrature_in_the_plane() -> None:
    space = Euclidean(1, 2)
    flow = made(space, {})
    line = torch.linspace(-9, 9, 451, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)[:, None]
    cell = float(line[1] - line[0]) ** 2
    total = float(flow.log_prob(grid).exp().sum()) * cell
    assert abs(total - 1) < 1e-3
    # Negative control: without the affine map's volume it is not.
    dropped = flow.log_prob(grid) + torch.linalg.slogdet(flow.flow.mixing)[1]
    assert abs(float(dropped.exp().sum()) * cell - 1) > 0.05


def test_symmetries_are_exact_where_they_are_asked_for() -> None:
    whole, labels = made(PLANE, WHOLE), made(PLANE, {"permutations": True})
    turned, plain = made(PLANE, {"rotations": True}), made(PLANE, {})
    x = PLANE.randn(
        64, generator=torch.Generator().manual_seed(0), like=torch.empty(0, dtype=torch.float64)
    )
    angle = torch.tensor(0.7, dtype=torch.float64)
    turn = torch.stack(
        [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
    )
    moves = {
        "turn": x @ turn,
        "mirror": x * torch.tensor([1.0, -1.0], dtype=torch.float64),
        "relabel": x[:, [2, 0, 3, 1]],
    }
    kept = {
        "whole": (whole, {"turn", "mirror", "relabel"}),
        "labels": (labels, {"relabel"}),
        "turned": (turned, {"turn"}),
        "plain": (plain, set()),
    }
    for name, (flow, symmetries) in kept.items():
        for move, y in moves.items():
            gap = float((flow.log_prob(y) - flow.log_prob(x)).abs().max())
            assert (gap < 1e-8) == (move in symmetries), (name, move, gap)


def test_draws_are_relabelled_as_the_density_says() -> None:
    flow = made(PLANE, {"permutations": True}, shaken=0.3)
    x = flow.configurations(4000, generator=torch.Generator().manual_seed(0))
    means = x.square().sum(-1).mean(0)
    spread = x.square().sum(-1).std() / math.sqrt(len(x))
    assert float((means - means.mean()).abs().max()) < 5 * float(spread)
    plain = made(PLANE, {}, shaken=0.3).configurations(
        4000, generator=torch.Generator().manual_seed(0)
    )
    means = plain.square().sum(-1).mean(0)
    assert float((means - means.mean()).abs().max()) > 5 * float(spread)


def test_a_start_from_data_is_a_density_of_that_shape() -> None:
    random = torch.Generator().manual_seed(0)
    side = torch.randint(2, (6000, 3), generator=random) * 6.0 - 3.0
    data = side + torch.randn(6000, 3, generator=random)
    # A product along hidden axes: only independent components see it.
    turn = torch.linalg.qr(torch.randn(3, 3, generator=random))[0]
    data = (data @ turn)[:, None]

    def likelihood(axes: str) -> float:
        flow = SplineConfig(layers=2, width=8, axes=axes).build(Euclidean(1, 3))
        flow.start_from(data[:3000])
        with torch.no_grad():
            return float(flow.log_prob(data[3000:]).mean())

    truth = -3 * (0.5 * math.log(2 * math.pi * math.e) + math.log(2.0))
    assert likelihood("independent") > truth - 0.2
    assert likelihood("white") < truth - 0.3
    assert likelihood("own") < truth - 0.3


def test_independent_components_undo_a_mixture() -> None:
    random = torch.Generator().manual_seed(0)
    sources = torch.rand(20_000, 4, generator=random, dtype=torch.float64).sub(0.5) * math.sqrt(12)
    mixing = torch.randn(4, 4, generator=random, dtype=torch.float64)
    mean, found = unmixing(sources @ mixing.T + 2.0)
    product = torch.linalg.inv(found) @ mixing
    # A permutation with signs: one entry of each row is all of it.
    largest = product.abs().max(1)[0]
    assert float((largest - product.norm(dim=1)).abs().max()) < 0.01
    torch.testing.assert_close(mean, torch.full_like(mean, 2.0), rtol=0, atol=0.1)
    # Negative control: decorrelation alone leaves them mixed.
    _, white = unmixing(sources @ mixing.T, rotate=False)
    product = torch.linalg.inv(white) @ mixing
    assert float((product.abs().max(1)[0] - product.norm(dim=1)).abs().max()) > 0.05


def test_data_without_spread_or_with_ties_are_no_obstacle() -> None:
    space = Euclidean(3, 1, (2,))
    flow = SplineConfig(layers=2, width=8).build(space)
    data = torch.zeros(100, 3, 1)
    data[50:, 0] = 1.0
    flow.start_from(data)
    x: Tensor = flow.configurations(100, generator=torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(x).all())
    assert bool(torch.isfinite(flow.log_prob(x)).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rotations": True}, "rotations: true needs a mean-free space in the plane"),
        ({"permutations": True}, "5040 images of 7 particles"),
    ],
)
def test_what_cannot_be_averaged_is_refused(settings, message) -> None:
    with pytest.raises(InputError, match=message):
        SplineConfig(**settings).build(MeanFree(7, 3))
