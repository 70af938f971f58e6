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


def iterations(run_dir: Path) -> list[int]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["iteration"] for line in lines]


def test_training_completes_stops_on_time_and_resumes(run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = arguments(folder, iterations=30)
    first = run(*command, "--max-time", "0.01s")
    assert first.code == 0, first.err
    assert "out of time" in first.out
    assert "the same command resumes" in first.out
    second = run(*command)
    assert second.code == 0, second.err
    assert second.out.startswith("completed at iteration 35 of 35")
    assert iterations(folder) == sorted(set(iterations(folder)))
    described = json.loads(run("info", folder, "--json").out)
    assert described["kind"] == "training run"
    assert described["last_metrics"]["iteration"] == 35
    assert described["artifact"]["system"] == "dw4"
    assert str(tmp_path) not in described["artifact"]["training"]["command"]
    again = json.loads(run(*command, "--json").out)
    assert (again["status"], again["iteration"]) == ("completed", 35)


def test_other_settings_in_the_same_folder_are_refused(run, tmp_path: Path) -> None:
    assert run(*arguments(tmp_path / "run", iterations=1)).code == 0
    outcome = run(*arguments(tmp_path / "run", iterations=2))
    assert outcome.code == 1
    assert "iterations: 1 -> 2" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out.startswith("interrupted at iteration ")
    assert "Traceback" not in err
    reached = int(out.split()[3].replace(",", ""))
    assert iterations(folder)[-1] == reached
    # The checkpoint is of that very iteration: resuming continues from there.
    newest = max((folder / "checkpoints").iterdir())
    assert int(newest.name.split("-")[0]) == reached
    resumed = run(*arguments(folder, iterations=1_000_000), "--max-time", "1s", "--json")
    assert json.loads(resumed.out)["iteration"] > reached
    assert iterations(folder) == sorted(set(iterations(folder)))
