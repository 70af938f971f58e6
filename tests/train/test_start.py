"""A training that starts from the weights of a trained sampler."""

from __future__ import annotations

import shutil

import pytest
from torch import Tensor

from molsampler import Sampler
from molsampler.cli import main
from molsampler.errors import InputError
from molsampler.space import Euclidean
from molsampler.systems import get_system, register_system
from molsampler.target import System
from molsampler.train import load_config, started_from, train


class Crescent(System):
    """u = 8 (r - 1)^2 - x in the plane."""

    name, concurrent = "crescent", True

    def __init__(self) -> None:
        self.space = Euclidean(1, 2)

    def _energy_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r = x.square().sum((1, 2)).sqrt().clamp(min=1e-6)
        score = -16 * ((r - 1) / r)[:, None, None] * x
        score[..., 0] += 1
        return 8 * (r - 1) ** 2 - x[:, 0, 0], score


register_system("crescent", Crescent)

EXACT = (
    "probe=false", "iterations=150", "evaluate_every=150", "evaluate_samples=2000", "log_every=1",
    "generator={kind: spline, layers: 4, width: 16, bins: 6, marginal_bins: 8}",
    "objective={kind: exact, batch_size: 256, draws: 128, reverse_from: 1.0, lr: 0.005, "
    "population: {size: 512, start_scale: 1.0, anneal_moves: 2, equilibration: 20, refresh: 64}}",
)  # fmt: skip
REPLAY = (
    "compile=false", "probe=false", "iterations=2", "batch_size=64", "evaluate_every=2",
    "calibrate=false", "evaluate_samples=500", "evaluate_steps=2",
    "generator={kind: implicit, body: {kind: mlp, width: 16, layers: 1}, noise_features: 0, "
    "langevin_layers: 2, langevin_step: 0.05, langevin_last_step: 0.02, langevin_scheme: "
    "leimkuhler-matthews, langevin_fixed: true, langevin_hessian: false}",
    "denoiser={kind: mlp, width: 16, layers: 1}",
    "target_score={size: 256, anneal_moves: 1, equilibration: 10, refresh: 16, warmup: 2}",
)  # fmt: skip


def exact(*extra: str):
    return load_config("exact", "crescent", overrides=(*EXACT, *extra), invariant=False)


def replay(*extra: str):
    return load_config("fast", "crescent", overrides=(*REPLAY, *extra), invariant=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train(Crescent(), tmp_path_factory.mktemp("start") / "run", exact()).artifact


@pytest.fixture(scope="module")
def replayed(tmp_path_factory):
    return train(Crescent(), tmp_path_factory.mktemp("start") / "run", replay()).artifact


def share(artifact) -> float:
    drawn = Sampler.load(artifact).sample(4000)
    return drawn.ess / len(drawn)


def test_it_starts_as_good_as_the_sampler_and_a_fresh_one_does_not(trained, tmp_path) -> None:
    brief = ("iterations=1", "evaluate_every=1", "objective.lr=1e-5")
    config = started_from(exact(*brief), trained)
    started = share(train(Crescent(), tmp_path / "started", config).artifact)
    fresh = share(train(Crescent(), tmp_path / "fresh", exact(*brief)).artifact)
    assert started == pytest.approx(share(trained), abs=0.05)
    assert fresh < started - 0.1


def test_the_generator_is_that_of_the_sampler_in_its_own_lengths(replayed, tmp_path) -> None:
    card = Sampler.load(replayed).card
    # Another body than the preset has, and another population, whose scale would differ.
    config = started_from(replay("target_score.start_scale=3.0", "seed=7"), replayed)
    other = Sampler.load(train(Crescent(), tmp_path / "run", config).artifact)
    assert other.card.architecture == card.architecture


def test_a_sampler_replaced_since_is_refused(trained, tmp_path) -> None:
    copy = shutil.copytree(trained, tmp_path / "artifact")
    config = started_from(exact("iterations=2"), copy)
    shutil.rmtree(copy)
    train(Crescent(), tmp_path / "other", exact("iterations=2", "seed=3"))
    shutil.copytree(tmp_path / "other" / "artifact", copy)
    with pytest.raises(InputError, match="other weights than those that the training started from"):
        train(Crescent(), tmp_path / "run", config)
    assert not (tmp_path / "run" / "artifact").exists()


@pytest.mark.parametrize(
    ("build", "name", "message"),
    [
        (lambda: load_config("fast", "lj13"), "lj13-exact", "kind 'diffusion' where the preset"),
        (lambda: load_config("exact", "mw32"), "mw32", "kind 'implicit' where the preset"),
        (lambda: load_config("paper", "dw4"), "dw4", "kind"),
    ],
)
def test_another_kind_of_generator_is_refused(build, name, message) -> None:
    with pytest.raises(InputError, match=message):
        started_from(build(), name)


def test_another_system_is_refused_where_weights_mean_nothing(tmp_path) -> None:
    config = started_from(load_config("fast", "lj13"), "dw4")
    with pytest.raises(InputError, match=r"shape \(4, 2\) where those of lj13 have \(13, 3\)"):
        train(get_system("lj13"), tmp_path / "run", config)
    config = started_from(
        load_config("fast", "alanine-dipeptide", overrides=("coordinates=cartesian",)),
        "alanine-dipeptide",
    )
    with pytest.raises(InputError, match="internal coordinates where this one would in Cartesian"):
        train(get_system("alanine-dipeptide"), tmp_path / "run", config)


def test_the_command_starts_from_an_artifact(trained, tmp_path, capsys) -> None:
    command = ["train", "crescent", str(tmp_path / "run"), "--preset", "exact"]
    command += ["--from", str(trained)]
    for item in (*EXACT, "iterations=1", "evaluate_every=1"):
        if not item.startswith("generator"):
            command += ["--set", item]
    assert main([*command, "--set", "generator.width=8"]) == 1
    assert "--from takes the generator of" in capsys.readouterr().err
    assert main(command) in (0, 3)
    assert share(tmp_path / "run" / "artifact") > 0.3
    assert str(trained) in Sampler.load(tmp_path / "run" / "artifact").card.training.command
