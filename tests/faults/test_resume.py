"""A training that is interrupted a hundred times ends as one that never was, to the last bit.

An hours-long training meets a handful of interruptions; a tiny one meets as many per second. Both go
through the same saves, loads and rewound logs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from children import leftovers, run

from molsampler.diffusion.identity_mixture import IdentityMixture
from molsampler.errors import ResourceError, StorageError
from molsampler.objectives import Metrics
from molsampler.objectives.dikl_replay import DiKLReplay
from molsampler.objectives.workspace import Workspace
from molsampler.sampler import store
from molsampler.systems import get_system
from molsampler.train import TrainConfig, checkpoint, load_config, train
from molsampler.train.folder import RunFolder
from molsampler.train.trainer import Trainer

Tally = Callable[[str, int, int], None]


def config(iterations: int, *extra: str) -> TrainConfig:
    return load_config(
        "fast",
        "dw4",
        overrides=(
            f"iterations={iterations}",
            "compile=false",
            "batch_size=8",
            "score_steps=1",
            "generator.body.width=4",
            "generator.body.layers=1",
            "denoiser.width=4",
            "denoiser.layers=1",
            "evaluate_every=7",
            "evaluate_samples=20",
            "evaluate_steps=2",
            "checkpoint_every=5",
            "log_every=1",
            "target_score={size: 32, anneal_moves: 1, equilibration: 5, refresh: 8, warmup: 5}",
            *extra,
        ),
    )


def same(first: Path, second: Path) -> None:
    """Tensors of the last checkpoint, log and artifact's weights are equal bit for bit."""
    a, b = (checkpoint.load_latest(folder / "checkpoints") for folder in (first, second))
    assert a is not None
    assert b is not None
    assert a[0].keys() == b[0].keys()
    assert all(torch.equal(a[0][key], b[0][key]) for key in a[0])
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    weights = "artifact/weights.safetensors"
    assert (first / weights).read_bytes() == (second / weights).read_bytes()


def at_each(step: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call ``step`` with the trainer before each of its iterations."""
    original = Trainer.step

    def watched(self: Trainer) -> dict[str, float]:
        step(self)
        return original(self)

    monkeypatch.setattr(Trainer, "step", watched)


@pytest.mark.parametrize("cycles", [6, pytest.param(120, marks=pytest.mark.slow)])
def test_interrupted_at_every_iteration(
    cycles: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tally: Tally
) -> None:
    """120 cycles take half a minute of CPU time."""
    system, settings = get_system("dw4"), config(cycles - 4)
    assert train(system, tmp_path / "whole", settings).status == "completed"
    numbers = (signal.SIGINT, signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_each(lambda trainer: os.kill(os.getpid(), numbers[trainer.state.steps % 2]), patch)
        interruptions = 0
        for _ in range(cycles):
            result = train(system, tmp_path / "parts", settings)
            interruptions += result.status == "interrupted"
    assert interruptions == cycles
    assert train(system, tmp_path / "parts", settings).status == "completed"
    same(tmp_path / "whole", tmp_path / "parts")
    tally("interrupt-and-resume cycles of one training", interruptions, interruptions)


@pytest.mark.parametrize("kills", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_between_and_during_saves(kills: int, tmp_path: Path, tally: Tally) -> None:
    """kill -9 loses the iterations since the last checkpoint, which come out the same again."""
    system, settings = get_system("dw4"), config(20)
    train(system, tmp_path / "whole", settings)
    places = ((RunFolder, "log"), (checkpoint, "write_bytes"), (store, "write_bytes"))
    for k in range(kills):
        place, name = places[k % len(places)]

        def doomed(place: Any = place, name: str = name, calls: int = 1 + k // len(places)) -> None:
            original, left = getattr(place, name), calls

            def dying(*arguments: Any, **keywords: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **keywords)

            setattr(place, name, dying)
            train(system, tmp_path / "parts", settings)

        ended = run(doomed, tmp_path / "log")
        assert ended.code in (0, -signal.SIGKILL), ended.said
    assert train(system, tmp_path / "parts", settings).status == "completed"
    assert not leftovers(tmp_path / "parts")
    same(tmp_path / "whole", tmp_path / "parts")
    tally("kill -9 in a training that is then resumed", kills, kills)


def test_the_artifact_of_a_run_killed_at_its_end_is_the_last(tmp_path: Path) -> None:
    """The last checkpoint is written after the artifact, so a finished run has its artifact."""
    system, settings = get_system("dw4"), config(9)
    train(system, tmp_path / "whole", settings)

    def work() -> None:
        original = checkpoint.save

        def dying(folder: Path, iteration: int, *rest: Any) -> Path:
            if iteration == 14:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(folder, iteration, *rest)

        checkpoint.save = dying  # type: ignore[assignment]
        train(system, tmp_path / "run", settings)

    assert run(work, tmp_path / "log").code == -signal.SIGKILL
    train(system, tmp_path / "run", settings)
    same(tmp_path / "whole", tmp_path / "run")
    # Damage that comes later is repaired by the same command, from the checkpoint.
    weights = tmp_path / "run" / "artifact" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    train(system, tmp_path / "run", settings)
    same(tmp_path / "whole", tmp_path / "run")


def test_damaged_checkpoint_does_not_displace_the_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    system, settings = get_system("dw4"), config(12)
    train(system, tmp_path / "whole", settings)
    folder = tmp_path / "run" / "checkpoints"

    def stop_at(iteration: int) -> None:
        with monkeypatch.context() as patch:
            at_each(
                lambda trainer: (
                    os.kill(os.getpid(), signal.SIGTERM)
                    if trainer.state.steps == iteration
                    else None
                ),
                patch,
            )
            train(system, tmp_path / "run", settings)

    stop_at(11)
    newest = checkpoint.checkpoints(folder)[0]
    newest.write_bytes(newest.read_bytes()[:-7])
    stop_at(10)
    assert f"{newest} is damaged" in caplog.text
    # The damaged one is of a later iteration; it does not push the good ones out.
    assert not newest.exists()
    assert all(checkpoint.read(path) is not None for path in checkpoint.checkpoints(folder))
    assert len(checkpoint.checkpoints(folder)) == 2
    train(system, tmp_path / "run", settings)
    same(tmp_path / "whole", tmp_path / "run")


def test_damaged_log_is_set_aside_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    system, settings = get_system("dw4"), config(3)
    folder = tmp_path / "run"
    train(system, folder, settings)
    log = folder / "metrics.jsonl"
    text = log.read_text()
    assert "0" in text
    log.write_text(text.replace('"iteration": 1', '"iteration": 7', 1))
    train(system, folder, settings)
    assert "is not the log that the checkpoint continues" in caplog.text
    kept = list(folder.glob("metrics.damaged-*.jsonl"))
    assert [path.read_text() for path in kept] == [
        text.replace('"iteration": 1', '"iteration": 7', 1)
    ]


def test_averages_survive_a_step_that_is_not_finite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A NaN loss of the teacher is skipped and counted; running averages do not keep it."""
    system, settings = get_system("dw4"), config(6)
    calls = 0
    weight = IdentityMixture.weight

    def sometimes(self: Any, t: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return weight(self, t) * (float("nan") if calls == 3 else 1.0)

    monkeypatch.setattr(IdentityMixture, "weight", sometimes)
    result = train(system, tmp_path / "run", settings)
    assert (result.status, result.skipped) == ("completed", 1)
    found = checkpoint.load_latest(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert all(bool(torch.isfinite(value).all()) for key, value in found[0].items() if key != "rng")


def test_full_disk_while_training_keeps_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, settings = get_system("dw4"), config(10)
    train(system, tmp_path / "whole", settings)
    write = checkpoint.write_bytes

    def full(path: Path, content: bytes) -> None:
        if path.name.startswith("000000010"):
            raise StorageError(f"no space left to write {path}; the previous file is intact")
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_bytes", full)
        with pytest.raises(StorageError, match="no space left"):
            train(system, tmp_path / "run", settings)
    train(system, tmp_path / "run", settings)
    same(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_suggests_the_batch_and_keeps_the_checkpoint(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, settings = get_system("dw4"), config(10)

    with monkeypatch.context() as patch:
        original = DiKLReplay._generator_step

        def failing(self: DiKLReplay, work: Workspace) -> Metrics:
            if work.numbers["iteration"] == 12:
                raise failure
            return original(self, work)

        patch.setattr(DiKLReplay, "_generator_step", failing)
        with pytest.raises(ResourceError, match=r"batch_size=4.*checkpoint is intact"):
            train(system, tmp_path / "run", settings)
    assert checkpoint.load_latest(tmp_path / "run" / "checkpoints") is not None
    assert train(system, tmp_path / "run", settings).status == "completed"
