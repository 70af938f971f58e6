"""Turns of circular coordinates: right weights between wells that Langevin steps do not connect."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from molsampler.mcmc import mala, turn
from molsampler.space import Euclidean, MeanFree
from molsampler.systems import get_system


class Rotor:
    r"""A torsion with two narrow wells of weights 3 to 1, and one free coordinate beside it.

    In the angle :math:`\phi = 2 \pi \Phi(q)` the density is a mixture of two von Mises distributions.
    """

    space = Euclidean(2, 1, circular=(1,))
    sharpness, wells, weights = 40.0, (0.6, 3.5), (0.75, 0.25)

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            q = x[..., 1, 0]
            phi = 2 * math.pi * torch.special.ndtr(q)
            parts = [
                math.log(w) + self.sharpness * torch.cos(phi - centre)
                for w, centre in zip(self.weights, self.wells, strict=True)
            ]
            u = -torch.logsumexp(torch.stack(parts), 0) + 0.5 * q.square()
            u = u + 0.5 * x[..., 0, 0].square()
            (slope,) = torch.autograd.grad(u.sum(), x)
        return u.detach(), -slope


def in_second_well(x: Tensor) -> float:
    phi = 2 * math.pi * torch.special.ndtr(x[..., 1, 0])
    return float((phi > 2.0).double().mean())


def chains(count: int, steps: int) -> Tensor:
    """Chains that all started in the first well."""
    target, rng = Rotor(), torch.Generator().manual_seed(0)
    x = torch.zeros(count, 2, 1, dtype=torch.float64)
    x[:, 0] = torch.randn(count, 1, generator=rng, dtype=x.dtype)
    x[:, 1] = torch.special.ndtri(torch.tensor(0.6 / (2 * math.pi), dtype=torch.float64))
    state = mala.init(x, target)
    for _ in range(steps):
        state, _ = mala.step(state, target, step_size=0.003, generator=rng)
    return state.position


def test_wells_that_no_step_connects_get_their_weights() -> None:
    x = chains(4000, 400)
    found = in_second_well(x)
    assert abs(found - 0.25) < 4 * math.sqrt(0.25 * 0.75 / len(x))
    # What the turn leaves alone is as it was.
    assert kstest(x[:, 0, 0].numpy(), "norm").pvalue > 1e-3


def test_without_turns_the_second_well_stays_empty(monkeypatch) -> None:
    monkeypatch.setattr(turn, "SHARE", 0.0)
    x = chains(1000, 400)
    assert in_second_well(x) == 0.0


def test_without_the_density_of_the_proposal_weights_are_wrong(monkeypatch) -> None:
    right = turn.proposed

    def uncorrected(*args, **options):
        found = right(*args, **options)
        return found._replace(log_q=torch.zeros_like(found.log_q))

    monkeypatch.setattr(turn, "proposed", uncorrected)
    x = chains(4000, 400)
    assert abs(in_second_well(x) - 0.25) > 8 * math.sqrt(0.25 * 0.75 / len(x))


def test_a_turn_moves_one_circular_coordinate_to_a_uniform_angle() -> None:
    space = Euclidean(6, 1, circular=(1, 4))
    x = torch.randn(3, 5000, 6, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = turn.proposed(x, space, generator=torch.Generator().manual_seed(2))
    assert found.chosen.shape == found.log_q.shape == (3, 5000)
    assert abs(float(found.chosen.double().mean()) - turn.SHARE) < 0.02
    changed = (found.position != x)[..., 0]
    assert changed.sum(-1).eq(1).all()
    assert changed.sum((0, 1)).nonzero().flatten().tolist() == [1, 4]
    angle = torch.special.ndtr(found.position[..., 0][changed])
    assert kstest(angle.numpy(), "uniform").pvalue > 1e-3


@pytest.mark.parametrize("space", [MeanFree(4, 3), Euclidean(5, 1)])
def test_other_spaces_draw_nothing(space) -> None:
    rng = torch.Generator().manual_seed(0)
    before = rng.get_state()
    assert turn.proposed(torch.zeros(7, *space.shape), space, generator=rng) is None
    assert torch.equal(rng.get_state(), before)


def test_a_molecules_backbone_turns() -> None:
    from molsampler.molecule.z_matrix import chart_to_move_in

    pytest.importorskip("openmm")
    system = get_system("alanine-dipeptide")
    chart, rng = chart_to_move_in(system), torch.Generator().manual_seed(0)
    x = chart.coordinates(system.starts(64, generator=rng).double())
    state = mala.init(x, chart.target)
    for _ in range(100):
        state, _ = mala.step(state, chart.target, step_size=1e-3, generator=rng)
    circular = list(chart.target.space.circular)
    turned = (
        torch.special.ndtr(state.position[:, circular, 0]) - torch.special.ndtr(x[:, circular, 0])
    ).abs()
    assert float((turned > 0.2).double().mean()) > 0.2
