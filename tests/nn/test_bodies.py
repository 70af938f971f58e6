"""What every registered body promises, and two bodies against their printed equations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from molsampler.nn.bodies import BODIES, Body, EGNNBody, PlainMLPBody, SatorrasBody
from molsampler.nn.bodies.base import BodyNetwork
from molsampler.space import MeanFree

SPACE = MeanFree(5, 3)
SMALL = {"width": 8, "layers": 2}
#: Settings of a kind from outside may differ.
SETTINGS: dict[str, dict[str, Any]] = dict.fromkeys(("egnn", "mlp", "plain-mlp", "satorras"), SMALL)

kinds = pytest.mark.parametrize("kind", BODIES.names())


def config(kind: str) -> Body:
    return BODIES[kind].model_validate(SETTINGS.get(kind, {}))


def made(body: Body, features: int = 2) -> BodyNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return body.build(SPACE, features, None).double()


def inputs(b: int = 6, features: int = 2) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    like = torch.empty(0, dtype=torch.float64)
    x = SPACE.randn(b, generator=random, like=like)
    # Alike for all particles, so that exchanging positions exchanges particles.
    given = torch.randn(b, 1, features, generator=random, dtype=torch.float64)
    return x, given.expand(-1, 5, -1)


@kinds
def test_positions_in_displacements_out(kind: str) -> None:
    net = made(config(kind))
    out = net(*inputs())
    assert out.shape == (6, 5, 3)
    assert out.dtype == torch.float64
    assert bool(torch.isfinite(out).all())
    x, features = inputs()
    # Rows do not see each other.
    torch.testing.assert_close(net(x[2:4], features[2:4]), out[2:4])


@kinds
def test_mirror_symmetric_bodies_commute_with_motions(kind: str) -> None:
    body = config(kind)
    net, (x, features) = made(body).requires_grad_(False), inputs()
    random = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=random, dtype=torch.float64))[0]
    order = [3, 0, 4, 2, 1]
    motions = [lambda x: x @ turn, lambda x: x @ -turn, lambda x: x[:, order]]
    out = net(x, features)
    gaps = [
        float((net(move(x), features) - move(out)).abs().max() / out.abs().max())
        for move in motions
    ]
    if body.mirror_symmetric:
        assert max(gaps) < 1e-9
    else:
        assert min(gaps) > 1e-3


@kinds
def test_scaling_changes_lengths_only(kind: str) -> None:
    body = config(kind)
    scaled = body.scaled(3.0)
    assert type(scaled) is type(body)
    old, new = body.model_dump(), scaled.model_dump()
    changed = {key for key in old if old[key] != new[key]}
    assert all(new[key] == pytest.approx(3.0 * old[key]) for key in changed)
    weights = [{key: t.shape for key, t in made(b).state_dict().items()} for b in (body, scaled)]
    assert weights[0] == weights[1]
    assert body.scaled(1.0) == body


def test_satorras_is_the_sum_over_pairs_of_its_docstring() -> None:
    """Particle by particle and pair by pair, one configuration at a time."""
    reach, layers = 15.0, 2
    net: Any = made(SatorrasBody(width=8, layers=layers, reach=reach))
    with torch.no_grad():
        for layer in net.layers:
            # The head starts a thousand times smaller than it becomes.
            layer.head_out.weight.mul_(300)
    random = torch.Generator().manual_seed(2)
    x, _ = inputs(3)
    features = torch.randn(3, 5, 2, generator=random, dtype=torch.float64)
    expected = []
    for start, given in zip(x, features, strict=True):
        h, y = net.embed(given), start
        for layer in net.layers:
            moves, seen = torch.zeros_like(y), torch.zeros_like(h)
            for i, j in ((i, j) for i in range(5) for j in range(5) if i != j):
                now = (y[i] - y[j]).square().sum()[None]
                before = (start[i] - start[j]).square().sum()[None]
                message = torch.relu(layer.edge(torch.cat([h[i], h[j], now, before])))
                message = torch.relu(layer.edge_out(message))
                message = message * torch.sigmoid(layer.gate(message))
                weight = torch.tanh(layer.head_out(torch.relu(layer.head(message))))
                moves[i] += (y[i] - y[j]) / (torch.sqrt(now + 1e-8) + 1) * reach / layers * weight
                seen[i] += message
            y = y + moves
            h = h + layer.node_out(torch.relu(layer.node(torch.cat([h, seen], -1))))
        expected.append(y - start)
    torch.testing.assert_close(net(x, features), torch.stack(expected))
    assert float(torch.stack(expected).detach().abs().max()) > 0.01


@pytest.mark.parametrize("levels", [False, True])
def test_the_plain_perceptron_is_its_equation(levels: bool) -> None:
    net: Any = made(PlainMLPBody(width=8, layers=3, levels=levels), 1)
    x, _ = inputs(4)
    level = torch.tensor([1.0, 7.0, 30.0, 2.0], dtype=torch.float64)
    features = level[:, None, None].expand(-1, 5, 1)
    expected = []
    for positions, number in zip(x, level, strict=True):
        h = positions.flatten()
        for k, hidden in enumerate(net.hidden):
            h = hidden.weight @ h + hidden.bias
            if levels:
                phase = 2 * math.pi * net.frequencies[k] * number
                h = h + torch.cat([phase.sin(), phase.cos()])
            h = h * torch.sigmoid(h)
        expected.append((net.out.weight @ h + net.out.bias).reshape(5, 3))
    torch.testing.assert_close(net(x, features), torch.stack(expected))
    # The level counts where there are levels, and only there.
    assert torch.equal(net(x, features), net(x, features + 1)) is not levels
    if levels:
        assert float(net.frequencies.std()) == pytest.approx(30.0, rel=0.6)


def test_a_network_that_starts_late_moves_in_its_last_layers() -> None:
    net = made(EGNNBody(width=8, layers=4)).requires_grad_(False)
    x, features = inputs()

    def moves() -> list[float]:
        found: list[float] = []
        hooks = [
            layer.register_forward_hook(
                lambda _, given, out: found.append(float((out[1] - given[1]).abs().mean()))
            )
            for layer in net.get_submodule("layers").children()
        ]
        net(x, features)
        for hook in hooks:
            hook.remove()
        return found

    before = moves()
    net.start_late()
    after = moves()
    for first, second in zip(before[:2], after[:2], strict=True):
        assert 0 < second < 0.05 * first
    for first, second in zip(before[2:], after[2:], strict=True):
        assert second > 0.5 * first


@kinds
def test_starting_late_is_asked_of_every_body(kind: str) -> None:
    net = made(config(kind))
    net.start_late()
    assert bool(torch.isfinite(net(*inputs())).all())
