"""Training in standardised coordinates: the user's units and origin do not matter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from molsampler.errors import InputError
from molsampler.nn.frame import Frame
from molsampler.nn.generators import Generator, GeneratorConfig
from molsampler.nn.generators.implicit import Implicit
from molsampler.objectives import ObjectiveConfig, Problem, State
from molsampler.objectives.dikl_replay import DiKLReplay
from molsampler.space import Euclidean, MeanFree
from molsampler.target import Target
from tests.mcmc.densities import Gaussian

SHAPE = (2, 2)
LOCATION = torch.tensor([[100.0, -3.0], [0.0, 40.0]], dtype=torch.float64)
SPREAD = torch.tensor([[8.0, 0.125], [1.0, 64.0]], dtype=torch.float64)
OBJECTIVE = {
    "kind": "dikl-replay",
    "batch_size": 16,
    "score_steps": 2,
    "denoiser": {"kind": "mlp", "width": 8, "layers": 1},
    "target_score": {
        "size": 64,
        "anneal_moves": 1,
        "equilibration": 10,
        "refresh": 0,
        "warmup": 2,
    },
}


class Moved:
    """A target of x as one of location + spread * x."""

    def __init__(self, inner: Target):
        self.inner, self.space = inner, inner.space

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, score = self.inner.energy_and_score((x - LOCATION.to(x)) / SPREAD.to(x))
        return energy, score / SPREAD.to(x)


def near() -> Gaussian:
    return Gaussian(torch.zeros(SHAPE), torch.diag(torch.tensor([1.0, 0.25, 4.0, 1.0])))


def generator(standardised: bool | str = True, **body: Any) -> GeneratorConfig:
    return GeneratorConfig.parse(
        {
            "kind": "implicit",
            "body": {"kind": "mlp", "width": 8, "layers": 1, **body},
            "langevin_layers": 2,
            "langevin_step": 0.02,
            "standardised": standardised,
        }
    )


def objective(target: Target, config: GeneratorConfig) -> DiKLReplay:
    problem = Problem(
        target=target,
        molecule=None,
        generator=config,
        sampling=config.sampling({"layers": 3, "kinetic": {"steps": 4}}),
        iterations=20,
        seed=3,
        device=torch.device("cpu"),
    )
    built = ObjectiveConfig.parse(OBJECTIVE).build(problem)
    assert isinstance(built, DiKLReplay)
    return built


def population() -> State:
    made = objective(near(), generator()).preparation
    state = made.init()
    while made.progress(state) is not None:
        state = made.step(state)
    return state


def moved(state: State) -> State:
    x, score = state["chains/position"], state["chains/score"]
    assert isinstance(x, Tensor)
    assert isinstance(score, Tensor)
    return {
        **state,
        "chains/position": LOCATION.to(x) + SPREAD.to(x) * x,
        "chains/score": score / SPREAD.to(x),
    }


def trained(target: Target, config: GeneratorConfig, prepared: State) -> Generator:
    learning = objective(target, config)
    state = learning.start(prepared)
    for _ in range(8):
        state, metrics = learning.step(state)
        assert not metrics["nonfinite"]
    return learning.generator(state)


def drawn(network: Generator, target: Target) -> Tensor:
    with torch.no_grad():
        return network.draw(64, target, generator=torch.Generator().manual_seed(0)).x


@pytest.mark.parametrize("standardised", [True, False])
def test_units_and_origin_do_not_matter(standardised: bool) -> None:
    prepared, config = population(), generator(standardised)
    here = drawn(trained(near(), config, prepared), near())
    there = drawn(trained(Moved(near()), config, moved(prepared)), Moved(near()))
    back = (there - LOCATION.to(there)) / SPREAD.to(there)
    # Rounding is that of a coordinate of 100 with a spread of 8, through ten optimiser steps.
    assert torch.allclose(back, here, atol=2e-2) == standardised


def test_a_frame_is_mean_and_spread_and_its_target_the_same_density() -> None:
    x = near().sample(5000, torch.Generator().manual_seed(1)) * SPREAD + LOCATION
    frame = Frame(Euclidean(*SHAPE)).double()
    frame.start_from(x)
    u = frame.inward(x)
    torch.testing.assert_close(u.mean(0), torch.zeros(SHAPE, dtype=u.dtype))
    torch.testing.assert_close(u.std(0), torch.ones(SHAPE, dtype=u.dtype))
    torch.testing.assert_close(frame.outward(u), x)
    target = Moved(near())
    u.requires_grad_()
    energy, score = frame.target(target).energy_and_score(u)
    torch.testing.assert_close(energy, target.energy_and_score(x)[0])
    (gradient,) = torch.autograd.grad(
        target.energy_and_score(frame.outward(u))[0].sum(), u, retain_graph=True
    )
    torch.testing.assert_close(score, -gradient)


def test_a_coordinate_that_stands_still_stays_finite() -> None:
    frame = Frame(Euclidean(1, 3))
    frame.start_from(torch.tensor([[[1.0, 2.0, 0.0]], [[3.0, 2.0, 0.0]]]))
    assert torch.isfinite(frame.inward(torch.tensor([[[2.0, 2.0, 0.0]]]))).all()
    assert (frame.spread > 0).all()


def test_a_narrow_coordinate_beside_a_large_one_keeps_its_spread() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, 2, generator=random) * torch.tensor([1e3, 0.01])
    frame = Frame(Euclidean(1, 2))
    frame.start_from(x + torch.tensor([1e5, 0.0]))
    torch.testing.assert_close(frame.spread[0], torch.tensor([1e3, 0.01]), rtol=0.05, atol=0)


def test_where_standardised_coordinates_have_no_meaning_they_are_refused() -> None:
    with pytest.raises(InputError, match="mean is held at zero"):
        generator().build(MeanFree(4, 2))
    with pytest.raises(InputError, match="go round"):
        generator().build(Euclidean(1, 2, circular=(0,)))
    with pytest.raises(InputError, match="respects rotations"):
        GeneratorConfig.parse({"kind": "implicit", "standardised": True}).build(Euclidean(4, 2))
    posterior = ObjectiveConfig.parse({"kind": "dikl-posterior", "batch_size": 8})
    problem = objective(near(), generator()).problem
    with pytest.raises(InputError, match="does not have"):
        posterior.build(problem)


def test_auto_standardises_where_it_can() -> None:
    config = generator(standardised="auto")
    assert config.build(Euclidean(4, 2)).frame is not None
    assert config.build(MeanFree(4, 2)).frame is None
    assert config.build(Euclidean(1, 2, circular=(0,))).frame is None
    equivariant = GeneratorConfig.parse({"kind": "implicit", "standardised": "auto"})
    assert equivariant.build(Euclidean(4, 2)).frame is None


def test_layers_whose_steps_nobody_found_are_refused() -> None:
    config = GeneratorConfig.parse(
        {**generator(standardised=False).model_dump(), "langevin_adapted": True}
    )
    network = config.build(Euclidean(*SHAPE))
    with pytest.raises(InputError, match="nobody has found"):
        drawn(network, near())
    network.start_steps(0.1, None)
    assert torch.isfinite(drawn(network, near())).all()


def test_gradients_pass_through_layers_with_lengths() -> None:
    """One step of a Gaussian of widths 1 and .1, half of each coordinate's stability limit."""
    widths = torch.tensor([[1.0, 1.0], [0.1, 0.1]], dtype=torch.float64)
    target = Gaussian(torch.zeros(SHAPE), torch.diag(widths.flatten() ** 2))
    config = GeneratorConfig.parse(
        {
            "kind": "implicit",
            "body": {"kind": "mlp", "width": 8, "layers": 1},
            "langevin_layers": 1,
            "langevin_step": 1.0,
            "langevin_adapted": True,
        }
    )
    network = config.build(Euclidean(*SHAPE)).double()
    network.start_steps(0.5, widths)
    x = (0.1 * widths).repeat(3, 1, 1).requires_grad_()
    moved = x + network._long(network._move(x, network.steps()[0], target))
    (gradient,) = torch.autograd.grad(moved.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.5), rtol=1e-3, atol=0)


def test_adapted_steps_follow_the_stiffness_of_the_target() -> None:
    """A Gaussian sixteen times as stiff in every coordinate takes steps sixteen times as short."""
    config = GeneratorConfig.parse(
        {**generator(standardised=False).model_dump(), "langevin_adapted": True}
    )
    steps = []
    for scale in (1.0, 0.25):
        target = Gaussian(torch.zeros(SHAPE), scale**2 * torch.eye(4))
        learning = objective(target, config)
        steps.append(learning.generator(learning.init(report=lambda *_: None)).steps())
    torch.testing.assert_close(steps[1] / steps[0], torch.full((3,), 1 / 16), rtol=0.2, atol=0)
    # Four times in five, in four dimensions: half a variance.
    assert 0.4 < float(steps[0][0]) / config.langevin_step < 0.7


def test_adapted_layers_move_unlike_coordinates_by_their_lengths() -> None:
    """A coordinate a tenth as wide takes kicks a tenth as long; in one length both take the shorter."""
    widths = torch.tensor([1.0, 1.0, 0.1, 0.1])
    target = Gaussian(torch.zeros(SHAPE), torch.diag(widths**2))
    config = GeneratorConfig.parse(
        {**generator(standardised=False).model_dump(), "langevin_adapted": True}
    )
    learning = objective(target, config)
    network = learning.generator(learning.init(report=lambda *_: None))
    assert isinstance(network, Implicit)
    flat = network.lengths.flatten()
    torch.testing.assert_close(flat / flat[0], widths, rtol=0.2, atol=0)
    latent = network.draw_latent(2000, generator=torch.Generator().manual_seed(0))
    still = latent._replace(kicks=torch.zeros_like(latent.kicks))
    with torch.no_grad():
        kicked = (network(latent, target) - network(still, target)).std(0).flatten()
    torch.testing.assert_close(kicked / kicked[0], widths, rtol=0.3, atol=0)
