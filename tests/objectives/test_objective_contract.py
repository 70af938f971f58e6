"""What every registered objective promises."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from molsampler.errors import FileFormatError
from molsampler.nn.generators import GeneratorConfig
from molsampler.objectives import OBJECTIVES, Objective, ObjectiveConfig, Problem, State
from molsampler.systems import get_system
from molsampler.target import CountingTarget, Target

EGNN = {"kind": "egnn", "width": 4, "layers": 1}
POSTERIOR = {
    "batch_size": 8,
    "score_steps": 2,
    "target_score": {"particles": 3, "levels": 2, "steps": 3},
}

#: Settings of a kind that make it quick; kinds without an entry are tested as they come.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "dikl-replay": [
        {
            "batch_size": 8,
            "score_steps": 2,
            "denoiser": EGNN,
            "target_score": {
                "size": 32,
                "anneal_moves": 1,
                "equilibration": 4,
                "refresh": 8,
                "warmup": 2,
            },
        }
    ],
    "dikl-posterior": [
        {**POSTERIOR, "score": {"kind": "plain-mlp", "width": 8, "layers": 1, "levels": True}},
        {**POSTERIOR, "score": EGNN, "score_form": "denoiser", "ema": 0.9},
    ],
    "denoising": [
        {
            "batch_size": 8,
            "population": {"size": 32, "anneal_moves": 1, "equilibration": 4, "refresh": 4},
            "optimiser": optimiser,
        }
        # By Muon with steps of pairs.
        for optimiser in ("adam", "muon")
    ],
    "exact": [
        {
            "batch_size": 8,
            "draws": 8,
            "draw_from": 0.0,
            "reverse_from": reverse_from,
            "weighted": 0.5,
            "population": {"size": 32, "anneal_moves": 1, "equilibration": 4, "refresh": 4},
        }
        for reverse_from in (0.0, 0.05)
    ],
}
CASES = [
    pytest.param({"kind": kind, **settings}, id=f"{kind}-{index}")
    for kind in OBJECTIVES.names()
    for index, settings in enumerate(VARIANTS.get(kind, [{}]))
]

pytestmark = pytest.mark.parametrize("settings", CASES)


def problem(settings: dict[str, Any], target: Target | None = None, width: int = 4) -> Problem:
    kind = settings["kind"]
    body = {**EGNN, "width": width}
    covariance = "pairs" if settings.get("optimiser") == "muon" else "isotropic"
    generators: dict[str, dict[str, Any]] = {
        "exact": {"kind": "spline", "width": width, "layers": 2},
        "denoising": {"kind": "diffusion", "body": body, "covariance": covariance},
    }
    other = {"kind": "implicit", "body": body, "langevin_layers": 1}
    config = GeneratorConfig.parse(generators.get(kind, other))
    return Problem(
        target=target or get_system("dw4"),
        molecule=None,
        generator=config,
        sampling=config.sampling(),
        iterations=20,
        seed=3,
        device=torch.device("cpu"),
    )


def made(settings: dict[str, Any], target: Target | None = None, width: int = 4) -> Objective:
    return ObjectiveConfig.parse(settings).build(problem(settings, target, width))


def begun(objective: Objective) -> State:
    return objective.init(report=lambda *_: None)


def copied(state: State) -> State:
    """As a checkpoint holds it: no memory shared, tensors and numbers only."""
    return {key: v.detach().clone() if isinstance(v, Tensor) else v for key, v in state.items()}


def assert_same(first: State, second: State) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, second[key]), key
        else:
            assert value == second[key], key


def test_a_state_is_flat_and_counts(settings) -> None:
    counting = CountingTarget(get_system("dw4"))
    objective = made(settings, counting)
    state = begun(objective)
    for done in range(objective.warmup + 2):
        assert all(isinstance(value, Tensor | int | float) for value in state.values())
        assert state["iteration"] == done
        assert state["energy_evaluations"] == counting.evaluations
        assert isinstance(state["energy_evaluations"], int)
        state, metrics = objective.step(state)
        assert metrics["nonfinite"] == 0
        assert all(isinstance(value, float) for value in metrics.values())
        assert all(math.isfinite(value) for value in metrics.values())


def test_a_resumed_state_goes_on_bit_for_bit(settings) -> None:
    objective = made(settings)
    state = begun(objective)
    start = copied(state)
    for _ in range(objective.warmup + 1):
        state, _ = objective.step(state)
    middle = copied(state)
    for _ in range(2):
        state, _ = objective.step(state)
    other = made(settings)
    resumed: State = middle
    for _ in range(2):
        resumed, _ = other.step(resumed)
    assert_same(state, resumed)
    # Going back in the same object is no different, and the seed decides the start.
    assert_same(copied(begun(made(settings))), start)
    again: State = copied(start)
    for _ in range(objective.warmup + 3):
        again, _ = objective.step(again)
    assert_same(again, resumed)
    assert any(
        not torch.equal(value, resumed[key])
        for key, value in start.items()
        if isinstance(value, Tensor)
    )


def test_its_generator_draws_and_is_what_is_trained(settings) -> None:
    objective = made(settings)
    state = begun(objective)
    target = get_system("dw4")

    def drawn() -> Tensor:
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            return objective.generator(state).draw(16, target, generator=random).x

    before = drawn()
    assert before.shape == (16, 4, 2)
    assert torch.equal(drawn(), before)
    for _ in range(objective.warmup + 2):
        state, _ = objective.step(state)
    assert bool(torch.isfinite(drawn()).all())
    assert not torch.equal(drawn(), before)


def test_the_global_random_state_plays_no_part(settings) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    objective = made(settings)
    objective.step(begun(objective))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_of_another_configuration_is_refused(settings) -> None:
    state = copied(begun(made(settings)))
    with pytest.raises(FileFormatError, match="does not fit this configuration"):
        made(settings, width=6).step(state)
    rng = {key: value for key, value in state.items() if key != "rng"}
    with pytest.raises(FileFormatError):
        made(settings).step(rng)


class Breaking:
    """A target whose score becomes NaN when it is told to."""

    def __init__(self) -> None:
        self.target = get_system("dw4")
        self.space = self.target.space
        self.broken = False

    def energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energy, score = self.target.energy_and_score(x)
        return energy, score * torch.nan if self.broken else score


def test_a_step_that_is_not_finite_is_told_and_changes_no_parameter(settings) -> None:
    target = Breaking()
    objective = made(settings, target)
    state = begun(objective)
    for _ in range(objective.warmup + 1):
        state, _ = objective.step(state)

    before = copied(state)
    trained = [key for key in state if key.startswith(("module/generator/", "module/ema/"))]
    assert trained
    target.broken = True
    state, metrics = objective.step(state)
    if settings["kind"] == "denoising":
        # It learns from what its chains hold, and moves that fail leave that as it was.
        assert metrics["nonfinite"] == 0
        assert all(bool(torch.isfinite(torch.as_tensor(value)).all()) for value in state.values())
        return
    assert metrics["nonfinite"] == 1
    assert state["iteration"] == before["iteration"] + 1
    assert all(torch.equal(before[key], state[key]) for key in trained)
    # Averages of weights, the moments of optimisers and chains stay usable.
    for key, value in state.items():
        assert bool(torch.isfinite(torch.as_tensor(value)).all()), key
    # Negative control: the same step on a target that is whole changes them.
    target.broken = False
    state, metrics = objective.step(copied(before))
    assert metrics["nonfinite"] == 0
    assert not all(torch.equal(before[key], state[key]) for key in trained)
