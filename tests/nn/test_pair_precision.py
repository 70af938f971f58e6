"""Gaussians that are built from pairs turn with the configuration, and are weighed as they are drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from molsampler.molecule.molecule import Molecule
from molsampler.nn.kicks import IsotropicKick, Kick, PairKick
from molsampler.nn.pair_precision import PairPrecision, Precision
from molsampler.objectives.denoising import middle
from molsampler.space import Euclidean, MeanFree, Space

N, D = 4, 3


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(space: Space, molecule: Molecule | None = None, context: int = 0) -> PairPrecision:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = PairPrecision(space, data_scale=0.8, molecule=molecule, context=context).double()
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return made


def clean(b: int = 3) -> Tensor:
    return MeanFree(N, D).randn(b, generator=stream(), like=torch.zeros((), dtype=torch.float64))


SIGMA = torch.tensor([0.03, 0.3, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("context", [0, 1])
def test_it_is_positive_definite_and_leaves_translations_alone(context: int) -> None:
    told = torch.tensor([[-1.0], [0.0], [1.0]], dtype=torch.float64) if context else None
    found = shaken(MeanFree(N, D), context=context)(clean(), SIGMA, told)
    assert torch.equal(found.matrix, found.matrix.mT)
    assert bool((torch.linalg.eigvalsh(found.matrix) > 0.999).all())
    shift = torch.ones(N, 1).mul(torch.tensor([1.0, -2.0, 0.5])).flatten().double()
    torch.testing.assert_close(found.matrix @ shift, found.beside[:, None] * shift)
    # It is not isotropic: the law could fail.
    assert not torch.allclose(
        found.matrix[1], found.matrix[1, 0, 0] * torch.eye(N * D).double(), rtol=0.1
    )


def test_it_turns_reflects_and_relabels_with_the_configuration() -> None:
    network, x = shaken(MeanFree(N, D)), clean()
    turn = torch.linalg.qr(torch.randn(D, D, generator=stream(3), dtype=torch.float64))[0]
    for sign in (1.0, -1.0):
        rotation = turn * torch.tensor([1.0, 1.0, sign])
        order = torch.tensor([2, 0, 3, 1])
        move = torch.kron(torch.eye(N, dtype=torch.float64)[order], rotation.T)
        plain = network(x, SIGMA).matrix
        moved = network(x[:, order] @ rotation, SIGMA).matrix
        torch.testing.assert_close(moved, move @ plain @ move.T)
        assert not torch.allclose(moved, plain)


def test_unlike_particles_are_told_apart_and_like_ones_are_not() -> None:
    molecule = Molecule(types=(0, 1, 1, 1), bonds=((0, 1), (0, 2), (2, 3)))
    network, x = shaken(MeanFree(N, D), molecule), clean()

    def swapped(first: int, second: int, kinds: Molecule) -> tuple[Tensor, Tensor]:
        network = shaken(MeanFree(N, D), kinds)
        order = torch.arange(N)
        order[[first, second]] = order[[second, first]]
        move = torch.kron(torch.eye(N, dtype=torch.float64)[order], torch.eye(D).double())
        return network(x[:, order], SIGMA).matrix, move @ network(x, SIGMA).matrix @ move.T

    assert not torch.allclose(*swapped(1, 2, molecule))
    alike = Molecule(types=(0, 1, 1, 1), bonds=((0, 1), (0, 2), (0, 3)))
    torch.testing.assert_close(*swapped(1, 2, alike))
    assert len(network.embed.weight) > len(shaken(MeanFree(N, D)).embed.weight)


def basis(space: Space) -> Tensor:
    """Orthonormal columns ``(n d, dof)`` of a space."""
    n, d = space.shape
    directions = space.project(torch.eye(n * d, dtype=torch.float64).view(-1, n, d)).flatten(1)
    u, s, _ = torch.linalg.svd(directions)
    return u[:, s > 0.5]


@pytest.mark.parametrize("space", [MeanFree(N, D), Euclidean(N, D)], ids=["mean-free", "whole"])
def test_kicks_are_weighed_as_they_are_drawn(space: Space) -> None:
    precision = shaken(space)(clean(1), SIGMA[1:2])
    a, b = torch.tensor(0.002, dtype=torch.float64), torch.tensor(0.05, dtype=torch.float64)
    many = 40_000
    kick = PairKick(
        space, Precision(*(each.expand(many, *each.shape[1:]) for each in precision)), a, b
    )
    drawn = kick.draw(stream())
    columns = basis(space)
    inside = drawn.flatten(1) @ columns
    torch.testing.assert_close(inside @ columns.T, drawn.flatten(1))
    inverse = torch.linalg.inv(columns.T @ precision.matrix[0] @ columns)
    wanted = a * torch.eye(space.dof).double() + b * inverse
    found = inside.T @ inside / many
    spread = wanted.diag().sqrt()
    error = (found - wanted) / (spread[:, None] * spread)
    assert float(error.abs().max()) < 5 * (2 / many) ** 0.5
    # An isotropic Gaussian of the same mean variance would be told apart.
    even = (wanted.trace() / space.dof * torch.eye(space.dof).double() - wanted) / (
        spread[:, None] * spread
    )
    assert float(even.abs().max()) > 20 * (2 / many) ** 0.5
    truth = MultivariateNormal(torch.zeros(space.dof).double(), wanted).log_prob(inside)
    constant = 0.5 * space.dof * math.log(2 * math.pi)
    torch.testing.assert_close(kick.log_density(drawn) - constant, truth)


def test_without_stiffness_it_is_the_isotropic_one() -> None:
    space = MeanFree(N, D)
    a, b = torch.tensor(0.02, dtype=torch.float64), torch.tensor(0.05, dtype=torch.float64)
    ones = Precision(torch.eye(N * D).double().expand(5, -1, -1), torch.ones(5).double())
    away = space.randn(5, generator=stream(), like=a)
    kicks: list[Kick] = [PairKick(space, ones, a, b), IsotropicKick(space, a + b, 5, like=a)]
    torch.testing.assert_close(*(kick.log_density(away) for kick in kicks))


def test_its_likelihood_is_that_of_the_gaussian() -> None:
    space = MeanFree(N, D)
    precision = shaken(space)(clean(), SIGMA)
    x = space.randn(3, generator=stream(5), like=SIGMA)
    columns = basis(space)
    for k in range(3):
        covariance = torch.linalg.inv(columns.T @ precision.matrix[k] @ columns)
        truth = MultivariateNormal(torch.zeros(space.dof).double(), covariance)
        found = precision.negative_log_likelihood(x, space.dof)[k] * space.dof
        constant = 0.5 * space.dof * math.log(2 * math.pi)
        torch.testing.assert_close(-truth.log_prob(x[k].flatten() @ columns), found + constant)


@pytest.mark.parametrize("right", [True, False], ids=["of the target", "of another"])
def test_a_newton_step_to_the_middle_is_unbiased_whatever_the_precision(right: bool) -> None:
    """Behind y of a Gaussian target lies a Gaussian; with its own precision the step ends at its mean."""
    space, std, sigma, many = Euclidean(N, D), 0.5, 0.4, 20_000
    y = space.randn(1, generator=stream(), like=SIGMA).expand(many, -1, -1)
    share = std**2 / (std**2 + sigma**2)
    noise = space.randn(many, generator=stream(2), like=SIGMA)
    x = share * y + share**0.5 * sigma * noise
    matrix = (1 + sigma**2 / std**2) * torch.eye(N * D).double()
    if not right:
        matrix = shaken(space)(y[:1] * 0.7, SIGMA[1:2]).matrix[0]
    precision = Precision(matrix.expand(many, -1, -1), matrix[:1, 0].expand(many))
    found = middle(x, y, torch.full((many,), sigma, dtype=torch.float64), -x / std**2, precision)
    spread = found.std(0)
    away = (found.mean(0) - share * y[0]) / (spread / many**0.5).clamp(min=1e-9)
    assert float(away.abs().max()) < 4.5
    assert float(spread.max()) < 1e-7 if right else float(spread.min()) > 0.01
    plain = middle(x, y, torch.full((many,), sigma, dtype=torch.float64), -x / std**2)
    away = (plain.mean(0) - share * y[0]) / plain.std(0) * many**0.5
    assert float(away.abs().max()) < 4.5
    # One that depends on x is biased.
    stiff = torch.diag_embed(1 + x.flatten(1).square())
    wrong = middle(
        x,
        y,
        torch.full((many,), sigma, dtype=torch.float64),
        -x / std**2,
        Precision(stiff, y[:, 0, 0]),
    )
    assert float(((wrong.mean(0) - share * y[0]) / wrong.std(0) * many**0.5).abs().max()) > 10


def test_turned_and_relabelled_kicks_weigh_the_same() -> None:
    space, network, x = MeanFree(N, D), shaken(MeanFree(N, D)), clean()
    a, b = torch.tensor(0.02, dtype=torch.float64), torch.tensor(0.05, dtype=torch.float64)
    away = space.randn(3, generator=stream(7), like=a)
    turn = torch.linalg.qr(torch.randn(D, D, generator=stream(3), dtype=torch.float64))[0]
    order = torch.tensor([2, 0, 3, 1])
    plain = PairKick(space, network(x, SIGMA), a, b).log_density(away)
    moved = PairKick(space, network(x[:, order] @ turn, SIGMA), a, b)
    torch.testing.assert_close(moved.log_density(away[:, order] @ turn), plain)
    assert not torch.allclose(moved.log_density(away), plain)
