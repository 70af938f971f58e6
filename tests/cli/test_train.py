"""Training from the command line: completion, resumption, and signals with the state saved."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-c", "import sys; from molsampler.cli import main; sys.exit(main())"]

SMALL = {
    "batch_size": 8,
    "compile": "false",
    "score_steps": 1,
    "evaluate_every": 20,
    "evaluate_samples": 20,
    "evaluate_steps": 2,
    "checkpoint_every": 10,
    "log_every": 1,
    "generator": "{body: {kind: egnn, width: 4, layers: 1}}",
    "denoiser": "{kind: egnn, width: 4, layers: 1}",
    "target_score": "{size: 64, anneal_moves: 1, equilibration: 5, refresh: 16, warmup: 5}",
}


def arguments(run_dir: Path, **settings: object) -> list[str]:
    values = {**SMALL, **settings}
    sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    return ["train", "dw4", str(run_dir), *sets]


def counts(run_dir: Path) -> list[tuple[int, int]]:
    """Iteration and warm-up step of every line of the log."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [(found["iteration"], found.get("warmup", 0)) for found in map(json.loads, lines)]


def test_training_completes_stops_on_time_and_resumes(run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = arguments(folder, iterations=30)
    first = run(*command, "--max-time", "0.01s")
    assert first.code == 0, first.err
    assert "out of time" in first.out
    assert "the same command resumes" in first.out
    second = run(*command)
    # Thirty iterations of four features make nothing that could be used, and that is said.
    assert second.code == 3, second.err
    assert second.out.startswith("completed at iteration 30 of 30")
    assert "verdict: not usable: " in second.out
    assert counts(folder) == [(0, k) for k in range(1, 6)] + [(k, 0) for k in range(1, 31)]
    described = json.loads(run("info", folder, "--json").out)
    assert described["kind"] == "training run"
    assert described["last_metrics"]["iteration"] == 30
    artifact = described["artifact"]
    assert artifact["system"] == "dw4"
    assert artifact["training"]["cost"]["iterations"] == 30
    assert artifact["training"]["config"]["iterations"] == 30
    assert artifact["verdict"]["usable"] is False
    assert str(tmp_path) not in artifact["training"]["command"]
    again = json.loads(run(*command, "--json").out)
    assert (again["status"], again["iteration"], again["total"]) == ("completed", 30, 30)
    assert again["verdict"] == artifact["verdict"]


def test_sampling_repeats_the_warning_of_an_artifact_that_is_not_usable(
    run, tmp_path: Path
) -> None:
    assert run(*arguments(tmp_path / "run", iterations=1)).code == 3
    drawn = run("sample", tmp_path / "run" / "artifact", "-n", 5, "-o", tmp_path / "a.npz")
    assert drawn.code == 0, drawn.err
    assert len([line for line in drawn.err.splitlines() if "not usable" in line]) == 1
    shown = run("info", tmp_path / "run" / "artifact").out
    assert "verdict:" in shown
    assert "usable: False" in shown


def test_a_usable_sampler_ends_with_zero(run, tmp_path: Path, monkeypatch) -> None:
    """The same training under a goal that it meets: the verdict decides the exit code, nothing else."""
    from molsampler.train import verdict

    for goal in ("DISCREPANCY_GOAL", "DRIFT_GOAL", "BROKEN_GOAL", "REDRAWN_GOAL"):
        monkeypatch.setattr(verdict, goal, 1e9)
    outcome = run(*arguments(tmp_path / "run", iterations=1))
    assert outcome.code == 0, outcome.err
    assert "verdict: usable: " in outcome.out
    drawn = run("sample", tmp_path / "run" / "artifact", "-n", 5, "-o", tmp_path / "a.npz")
    assert "usable" not in drawn.err


def test_other_settings_in_the_same_folder_are_refused(run, tmp_path: Path) -> None:
    assert run(*arguments(tmp_path / "run", iterations=1)).code == 3
    outcome = run(*arguments(tmp_path / "run", iterations=2))
    assert outcome.code == 1
    assert "iterations: 1 -> 2" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_interrupted_training_saves_its_state(
    run, number: signal.Signals, code: int, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [*COMMAND, *arguments(folder, iterations=1_000_000)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (folder / "metrics.jsonl").exists() and counts(folder)[-1:] > [(0, 5)]:
            break
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out.startswith("interrupted at iteration ")
    assert "Traceback" not in err
    reached = int(out.split()[3].replace(",", ""))
    assert counts(folder)[-1] == (reached, 0)
    # The checkpoint is of that very iteration, after five steps of warm-up: resuming continues there.
    newest = max((folder / "checkpoints").iterdir())
    assert int(newest.name.split("-")[0]) == reached + 5
    resumed = run(*arguments(folder, iterations=1_000_000), "--max-time", "1s", "--json")
    assert json.loads(resumed.out)["iteration"] > reached
    assert counts(folder) == sorted(set(counts(folder)))
