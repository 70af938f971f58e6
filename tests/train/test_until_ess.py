"""Training that ends when enough of its draws are effective, and says so when they never are."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from molsampler import Sampler
from molsampler.cli import main
from molsampler.errors import InputError
from molsampler.nn.generators.spline import Spline
from molsampler.space import Euclidean
from molsampler.systems import register_system
from molsampler.target import System
from molsampler.train import load_config, train, trainer


class Bent(System):
    """u = 2 (r - 1)^2 in the plane."""

    name, concurrent = "bent", True

    def __init__(self) -> None:
        self.space = Euclidean(1, 2)

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = x.square().sum((1, 2)).sqrt().clamp(min=1e-6)
        return 2 * (r - 1) ** 2, -4 * ((r - 1) / r)[:, None, None] * x


register_system("bent", Bent)

SETTINGS = (
    "probe=false", "iterations=600", "evaluate_every=25", "evaluate_samples=4000",
    "generator={kind: spline, layers: 4, width: 16, bins: 6, marginal_bins: 8}",
    "objective={kind: exact, batch_size: 256, draws: 128, reverse_from: 1.0, lr: 0.005, "
    "population: {size: 512, start_scale: 1.0, anneal_moves: 2, equilibration: 20, refresh: 64}}",
)  # fmt: skip


def config(*extra: str):
    return load_config("exact", "bent", overrides=(*SETTINGS, *extra), invariant=False)


def test_it_stops_when_enough_draws_are_effective(tmp_path) -> None:
    result = train(Bent(), tmp_path / "run", config("until_ess=0.7"))
    assert result.status == "completed"
    assert 0 < result.iteration < 600
    assert result.verdict is not None
    assert result.verdict.usable
    assert result.verdict.goal == 0.7
    drawn = Sampler.load(result.artifact).sample(10_000)
    assert drawn.ess > 0.6 * len(drawn)
    # It stays stopped.
    again = train(Bent(), tmp_path / "run", config("until_ess=0.7"))
    assert again.iteration == result.iteration
    assert again.evaluations == result.evaluations


def test_what_is_never_reached_is_not_usable(tmp_path, capsys) -> None:
    settings = [part for item in (*SETTINGS, "iterations=30") for part in ("--set", item)]
    run = ["train", "bent", str(tmp_path / "run"), "--preset", "exact", "--until-ess", "0.9999"]
    assert main([*run, *settings, "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["iteration"] == 30
    assert found["verdict"]["goal"] == 0.9999
    assert "goal 0.9999" in found["verdict"]["sentence"]


def test_it_needs_weights() -> None:
    with pytest.raises(InputError, match="until_ess: a generator of kind 'implicit' draws without"):
        load_config("fast", "dw4", overrides=["until_ess=0.5"])


def test_annealing_by_the_command(tmp_path, capsys) -> None:
    plain, even = (
        Sampler.load("mog40-exact").sample(2048, seed=1, anneal=levels) for levels in (1, 4)
    )
    assert even.ess > plain.ess
    assert even.metadata["anneal"] == 4
    assert even.metadata["energy_evaluations"] == plain.metadata["energy_evaluations"] + 3 * 2048
    file = tmp_path / "even.npz"
    arguments = ["sample", "mog40-exact", "-n", "2048", "--seed", "1", "-o", str(file)]
    assert main([*arguments, "--anneal", "4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ess"] == pytest.approx(even.ess)
    assert main(["sample", "mog40", "-n", "8", "-o", str(tmp_path / "x.npz"), "--anneal", "4"]) == 1
    assert "does not know it; refine its samples instead" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "x.npz").exists()
    torch.testing.assert_close(even.energies, even.system().energy(even.positions.double()))


@pytest.mark.parametrize(
    "families",
    [1.0, pytest.param(0.0, marks=pytest.mark.slow)],
    ids=["of the population", "of its own"],
)
def test_the_card_has_log_z_by_two_routes(tmp_path, monkeypatch, families) -> None:
    monkeypatch.setattr(trainer, "_FAMILIES", families)
    settings = ("iterations=100", "evaluate_every=100", "evaluate_steps=40")
    result = train(Bent(), tmp_path / "run", config(*settings))
    card = Sampler.load(tmp_path / "run" / "artifact", system=Bent()).card
    row = next(each for each in card.quality if each["metric"] == "effective share of weights")
    assert result.verdict is not None
    assert result.verdict.usable
    assert "two routes agree" in result.verdict.sentence
    # Z = 2 pi int r exp(-2 (r - 1)^2) dr.
    r = torch.linspace(0, 8, 20_001, dtype=torch.float64)
    truth = float((2 * torch.pi * torch.trapezoid(r * (-2 * (r - 1) ** 2).exp(), r)).log())
    assert row["log_z by annealing"] == pytest.approx(
        truth, abs=5 * row["log_z by annealing, error"]
    )
    cost = card.training.cost.energy_evaluations
    spent = row["energies of the annealing"]
    assert spent == 0 if families else 0 < spent <= 0.03 * cost

    # Negative control: a density that is twice what it should be gives half the weight.
    right = Spline.sample

    def wrong(self, n, **keywords):
        drawn = right(self, n, **keywords)
        return drawn._replace(log_prob=drawn.log_prob + 0.7)

    monkeypatch.setattr(Spline, "sample", wrong)
    result = train(Bent(), tmp_path / "wrong", config(*settings))
    assert result.verdict is not None
    assert not result.verdict.usable
    assert "two routes disagree" in result.verdict.sentence
