"""SIGINT and SIGTERM in every phase of the long commands: exit code, saved state, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from children import leftovers, run

from molsampler import cli, export
from molsampler.export import npz, trajectory
from molsampler.mcmc import mala, smc
from molsampler.nn.generators.implicit import ImplicitConfig
from molsampler.objectives.dikl_replay import DiKLReplay
from molsampler.reference import dynamics
from molsampler.sampler import sampler as sampler_module
from molsampler.sampler import store
from molsampler.sampler.sampler import Sampler
from molsampler.sampler.stream import SampleStream
from molsampler.storage import files
from molsampler.systems import get_system
from molsampler.train import checkpoint
from molsampler.train import run as training
from molsampler.train.trainer import Trainer

Tally = Callable[[str, int, int], None]

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}

SETTINGS = {
    "iterations": 6,
    "batch_size": 8,
    "compile": "false",
    "score_steps": 1,
    "evaluate_every": 3,
    "evaluate_samples": 20,
    "evaluate_steps": 2,
    "checkpoint_every": 4,
    "log_every": 1,
    "generator": "{body: {kind: egnn, width: 4, layers: 1}}",
    "denoiser": "{kind: egnn, width: 4, layers: 1}",
    "target_score": "{size: 32, anneal_moves: 1, equilibration: 5, refresh: 8, warmup: 3}",
}


def train_command(folder: Path) -> list[str]:
    sets = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    return ["train", "dw4", str(folder), *sets]


@contextmanager
def signalling(place: Any, name: str, call: int, number: int) -> Iterator[None]:
    """Send ``number`` to this process at the beginning of the ``call``-th call of a function."""
    original, left = getattr(place, name), call

    def wrapper(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)
        return original(*arguments, **keywords)

    setattr(place, name, wrapper)
    try:
        yield
    finally:
        setattr(place, name, original)


def interrupted(command: list[str], point: tuple[Any, str, int], number: int, log: Path) -> Any:
    """How a child ended that runs ``command`` and gets the signal at a point; it must have got it."""
    place, name, call = point

    def work() -> int:
        with signalling(place, name, call, number):
            return cli.main(command)

    return run(work, log)


#: Phase of training -> where in the code the signal arrives: module or class, function, call.
TRAINING: dict[str, tuple[Any, str, int]] = {
    "before the first write": (training.RunFolder, "claim", 1),
    "annealing": (smc, "systematic_resample", 1),
    "equilibrating": (mala, "step", 3),
    "building networks": (DiKLReplay, "build", 1),
    "first checkpoint": (checkpoint, "write_bytes", 1),
    "warm-up": (DiKLReplay, "_teacher_step", 2),
    "training": (DiKLReplay, "_generator_step", 2),
    "evaluating": (Trainer, "evaluate", 1),
    "logging": (training.RunFolder, "log", 5),
    "exporting the artifact": (store, "write_bytes", 2),
    "later checkpoint": (checkpoint, "write_bytes", 2),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(train_command(folder)) == 3
    return folder


def same_run(first: Path, second: Path) -> None:
    """Both runs ended with the same weights, optimisers, replay, random state and log."""
    found = [checkpoint.load_latest(folder / "checkpoints") for folder in (first, second)]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0][0].keys() == found[1][0].keys()
    assert all(torch.equal(found[0][0][key], found[1][0][key]) for key in found[0][0])
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    lines = (second / "metrics.jsonl").read_text().splitlines()
    counts = [(found["iteration"], found.get("warmup", 0)) for found in map(json.loads, lines)]
    assert counts == sorted(set(counts))
    weights = [
        (folder / "artifact" / "weights.safetensors").read_bytes() for folder in (first, second)
    ]
    assert weights[0] == weights[1]


def check_training(
    phase: str, number: signal.Signals, folder: Path, uninterrupted: Path, log: Path
) -> None:
    ended = interrupted(train_command(folder), TRAINING[phase], number, log)
    assert ended.code == CODES[number], ended.said
    assert "Traceback" not in ended.said
    assert not leftovers(folder)
    resumed = run(lambda: cli.main(train_command(folder)), log)
    # A training of six iterations is not usable.
    assert resumed.code == 3, resumed.said
    assert "completed at iteration 6 of 6" in resumed.said
    same_run(uninterrupted, folder)


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        ("annealing", signal.SIGINT),
        ("exporting the artifact", signal.SIGTERM),
        ("later checkpoint", signal.SIGINT),
    ],
)
def test_training(
    phase: str, number: signal.Signals, tmp_path: Path, uninterrupted: Path, tally: Tally
) -> None:
    check_training(phase, number, tmp_path / "run", uninterrupted, tmp_path / "log")
    tally(f"{number.name} in training: {phase}", 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
def test_training_in_every_phase(
    number: signal.Signals, tmp_path: Path, uninterrupted: Path, tally: Tally
) -> None:
    """Under a minute of CPU time."""
    for k, phase in enumerate(TRAINING):
        check_training(phase, number, tmp_path / f"run{k}", uninterrupted, tmp_path / "log")
    tally(f"{number.name} in each phase of training", len(TRAINING), len(TRAINING))


#: Command -> phase -> where the signal arrives.
WORK: dict[str, dict[str, tuple[Any, str, int]]] = {
    "sample": {
        "loading": (sampler_module, "read_weights", 1),
        "sampling": (SampleStream, "_compute", 2),
        "writing": (npz, "_verify", 1),
        "renaming": (files, "fsync_folder", 1),
    },
    "reference": {
        "minimising": (dynamics.LangevinReplicas, "_minimised", 1),
        "dynamics": (dynamics.LangevinReplicas, "advance", 4),
        "reading": (dynamics.LangevinReplicas, "read", 5),
        "writing": (trajectory.Trajectory, "write", 1),
    },
    "export": {
        "reading": (npz, "read", 1),
        "writing": (trajectory, "_verify", 1),
        "recording": (trajectory, "update", 1),
    },
}


def arguments(command: str, folder: Path) -> tuple[list[str], Path]:
    """A command that writes to a file, and that file."""
    if command == "sample":
        output = folder / "out" / "a.npz"
        return ["sample", str(folder / "toy"), "-n", "3000", "-o", str(output)], output
    if command == "reference":
        output = folder / "out" / "a.dcd"
        return ["reference", "dw4", "-n", "8", "-o", str(output)], output
    output = folder / "out" / "a.xtc"
    return ["export", str(folder / "in.npz"), str(output)], output


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder with an untrained sampler of dw4, samples of it, and an empty folder for results."""
    system = get_system("dw4")
    config = ImplicitConfig.model_validate({"body": {"kind": "egnn", "width": 4, "layers": 1}})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = config.build(system.space)
    store.save(tmp_path / "toy", generator, system=system)
    Sampler.load(tmp_path / "toy").sample(5).save(tmp_path / "in.npz")
    (tmp_path / "out").mkdir()
    return tmp_path


def check_work(command: str, phase: str, number: signal.Signals, folder: Path) -> None:
    words, output = arguments(command, folder)
    log = folder / "log"
    ended = interrupted(words, WORK[command][phase], number, log)
    assert ended.code == CODES[number], ended.said
    assert "Traceback" not in ended.said
    assert not leftovers(folder)
    # A signal after the rename finds the file whole.
    if output.exists():
        assert export.describe(output)["intact"] is True
    else:
        assert not list(output.parent.glob("*.npz"))
    again = run(lambda: cli.main([*words, *(["--overwrite"] if output.exists() else [])]), log)
    assert again.code == 0, again.said
    assert export.describe(output)["intact"] is True


@pytest.mark.parametrize(
    ("command", "phase", "number"),
    [
        ("sample", "sampling", signal.SIGINT),
        ("sample", "renaming", signal.SIGTERM),
        ("reference", "dynamics", signal.SIGTERM),
        ("export", "writing", signal.SIGINT),
    ],
)
def test_work(
    command: str, phase: str, number: signal.Signals, prepared: Path, tally: Tally
) -> None:
    check_work(command, phase, number, prepared)
    tally(f"{number.name} in {command}: {phase}", 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("command", WORK)
def test_work_in_every_phase(command: str, prepared: Path, tally: Tally) -> None:
    """Under a minute of CPU time."""
    tried = 0
    for phase in WORK[command]:
        for number in CODES:
            for path in (prepared / "out").iterdir():
                path.unlink()
            check_work(command, phase, number, prepared)
            tried += 1
    tally(f"SIGINT and SIGTERM in each phase of {command}", tried, tried)


def test_interrupting_a_reader_leaves_no_decoder(tmp_path: Path, prepared: Path) -> None:
    """The process that decodes a trajectory ends with the one that asked for it."""
    from molsampler.export import isolated

    Sampler.load(prepared / "toy").sample(5).save(tmp_path / "a.xtc")
    log = tmp_path / "log"

    def work() -> int:
        with signalling(isolated, "_read", 1, signal.SIGTERM):
            return cli.main(["export", str(tmp_path / "a.xtc"), str(tmp_path / "b.npz")])

    ended = run(work, log)
    assert ended.code == 143, ended.said
    assert not any(
        str(tmp_path / "a.xtc").encode() in command.read_bytes()
        for command in Path("/proc").glob("[0-9]*/cmdline")
        if command.exists()
    )
